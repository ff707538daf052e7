"""One function per figure, from a tidy table to a matplotlib figure, and the way to save it."""

import base64
from collections.abc import Sequence
from typing import Protocol

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from contsteal.evaluate import mean_interval
from contsteal.paper.style import (
    COLOURS,
    REFERENCES,
    canvas,
    frame,
    headline,
    number,
    require,
    short,
)


class Sheet(Protocol):
    """What a sample sheet needs of a set of images."""

    images: Tensor
    labels: Tensor | None
    name: str
    classes: tuple[str, ...]


def sheet_table(sets: Sequence[Sheet], names: Sequence[str] = (), count: int = 10) -> pd.DataFrame:
    """Return `count` images per set with their captions, pixels included (base64 of H x W x 3)."""
    rows = []
    for name, images in zip(names or [s.name for s in sets], sets, strict=True):
        for i, image in enumerate(images.images[:count].permute(0, 2, 3, 1).cpu().numpy()):
            label = "" if images.labels is None else images.classes[int(images.labels[i])]
            pixels = base64.b64encode(image.tobytes()).decode()
            rows.append({"set": name, "label": label, "size": len(image), "pixels": pixels})
    return pd.DataFrame(rows)


def sample_sheet(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw one strip of images per set, each image under its class."""
    require(table, "set", "label", "size", "pixels")
    groups = list(table.fillna("").groupby("set", sort=False))
    fig, axes = canvas(len(groups), 1, height=0.78 * len(groups) + 0.5, squeeze=False)
    for ax, (name, rows) in zip(axes[:, 0], groups, strict=True):
        pitch = 1.12 * rows["size"].iloc[0]  # pixels from one image to the next
        for place, row in enumerate(rows.itertuples()):
            pixels = np.frombuffer(base64.b64decode(row.pixels), np.uint8)
            extent = (place * pitch, place * pitch + row.size, 0, row.size)
            ax.imshow(pixels.reshape(row.size, row.size, 3), extent=extent, interpolation="nearest")
            ax.text(
                place * pitch + row.size / 2, row.size, row.label, size=6, ha="center", va="bottom"
            )
        ax.set(xlim=(-2.2 * pitch, len(rows) * pitch), ylim=(0, 1.15 * rows["size"].iloc[0]))
        ax.axis("off")
        ax.text(-0.2 * pitch, 0.5 * rows["size"].iloc[0], name, ha="right", va="center", size=7.5)
    headline(fig, title)
    return fig


def training_curve(table: pd.DataFrame, title: str) -> Figure:
    """Draw loss, kNN accuracy and spread on held-out training images against epochs, per method."""
    require(table, "method", "epoch", "loss", "knn", "spread")
    fig, axes = canvas(1, 3)
    names = {"loss": "training loss / first epoch's", "knn": "kNN accuracy", "spread": "spread"}
    for method, rows in table.groupby("method", sort=False):
        rows = rows.assign(loss=rows["loss"] / rows["loss"].iloc[0])
        for ax, column in zip(axes, names, strict=True):
            seen = rows.dropna(subset=[column])
            ax.plot(seen["epoch"], seen[column], color=COLOURS.get(method, "#333333"), label=method)
    for ax, label in zip(axes, names.values(), strict=True):
        ax.set(xlabel="epoch", ylabel=label, ylim=(0, None))
    axes[1].set_title("held-out training images", size=7.5)
    axes[2].set_title("held-out training images", size=7.5)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    headline(fig, title)
    return fig


def worth_bars(table: pd.DataFrame, title: str) -> Figure:
    """Draw linear-probe accuracy per task, a bar per encoder."""
    require(table, "encoder", "task", "accuracy")
    wide = table.pivot_table(index="encoder", columns="task", values="accuracy", sort=False)
    fig, ax = canvas(1, 1, height=2.5)
    width = 0.8 / len(wide)
    for k, name in enumerate(wide.index):
        x = np.arange(len(wide.columns)) + (k - (len(wide) - 1) / 2) * width
        bars = ax.bar(
            x, wide.loc[name], 0.94 * width, color=COLOURS.get(name, "#8888AA"), label=name
        )
        ax.bar_label(bars, [f"{100 * v:.0f}" for v in wide.loc[name]], size=6.5, padding=1)
    ax.set(xticks=range(len(wide.columns)), ylim=(0, 1.1), ylabel="linear-probe accuracy")
    ax.set_xticklabels(wide.columns)
    ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    ax.grid(False, axis="x")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    headline(fig, title)
    return fig


def attack_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy and agreement per attack: a dot per seed, mean and t-interval over seeds."""
    require(table, "attack", "seed", "accuracy", "agreement")
    names = [n for n in table["attack"].unique() if n not in REFERENCES][::-1]
    fig, axes = canvas(1, 2, height=0.28 * len(names) + 1.5, sharey=True)
    for ax, metric in zip(axes, ("accuracy", "agreement"), strict=True):
        for at, name in enumerate(names):
            values = table.loc[table["attack"] == name, metric].to_numpy()
            mean, low, high = mean_interval(values)
            colour = COLOURS.get(name, "#333333")
            ax.plot(
                [low, high], [at, at], color=colour, linewidth=4, alpha=0.3, solid_capstyle="butt"
            )
            ax.plot(values, [at] * len(values), "o", color=colour, markersize=3, alpha=0.8)
            ax.plot([mean], [at], "|", color=colour, markersize=11, markeredgewidth=2)
        frame(ax, table, metric)
        ax.set(xlabel=f"{metric} on the main task", ylim=(-0.6, len(names) - 0.4))
        ax.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    axes[0].set_yticks(range(len(names)), [short(n, 44) for n in names])
    headline(fig, title)
    return fig


def two_by_two(table: pd.DataFrame, title: str) -> Figure:
    """Draw {MSE, contrastive} x {clean, augmented}: a line per loss, a dot per seed."""
    require(table, "attack", "views", "seed", "accuracy")
    fig, ax = canvas(1, 1, height=2.4)
    places = {"clean": 0.0, "augmented": 1.0}
    attacks = table.loc[~table["attack"].isin(REFERENCES)].groupby("attack", sort=False)
    ends = {n: r.loc[r["views"] == "augmented", "accuracy"].mean() for n, r in attacks}
    for shift, (name, rows) in zip((-0.02, 0.02), attacks, strict=True):
        means = rows.groupby("views")["accuracy"].mean()
        x = [places[v] + shift for v in rows["views"]]
        ax.plot(x, rows["accuracy"], "o", color=COLOURS[name], alpha=0.6)
        ax.plot([p + shift for p in places.values()], means[list(places)], color=COLOURS[name])
        side = "bottom" if name == max(ends, key=ends.get) else "top"  # two names never meet
        ax.annotate(f"  {name}", (1.03, means["augmented"]), color=COLOURS[name], va=side)
    frame(ax, table, "accuracy", vertical=False)
    ax.set(xticks=list(places.values()), xlim=(-0.3, 1.45), ylabel="accuracy on the main task")
    headline(fig, title)
    ax.set_xticklabels(places)
    ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    return fig


def budget_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy and agreement against distinct inputs and against answers, which cost money."""
    require(table, "attack", "images", "unique_inputs", "calls", "usd", "accuracy", "agreement")
    fig, axes = canvas(2, 2, height=4.6, sharex="col", sharey="row")
    attacks = table.loc[~table["attack"].isin(REFERENCES)]
    costs = {"unique_inputs": "distinct inputs", "calls": "answers"}
    for row, metric in zip(axes, ("accuracy", "agreement"), strict=True):
        for ax, cost in zip(row, costs, strict=True):
            for name, rows in attacks.groupby("attack", sort=False):
                mean = rows.groupby("images")[[cost, metric]].mean()
                colour = COLOURS.get(name, "#333333")
                ax.plot(rows[cost], rows[metric], "o", color=colour, markersize=2.5, alpha=0.5)
                look = "--" if name.endswith("anew") else "-"  # else one line hides another
                ax.plot(mean[cost], mean[metric], look, color=colour, label=name)
            ax.set(xscale="log")
            ax.margins(y=0.12)
            frame(ax, table, metric, vertical=False)
            ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
        row[0].set_ylabel(f"{metric} on the main task")
    for ax, label in zip(axes[1], costs.values(), strict=True):
        ax.set_xlabel(f"{label} (log scale)")
    _dollars(axes[0][1], attacks)
    headline(fig, title)
    handles, labels = axes[1][1].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center")
    return fig


def _dollars(ax: Axes, attacks: pd.DataFrame) -> None:
    """Put what the answers cost on top of their axis."""
    price = float((attacks["usd"] / attacks["calls"]).mean())
    top = ax.secondary_xaxis("top", functions=(lambda x: x * price, lambda x: x / price))
    top.set_xlabel(f"US dollars, at {1000 * price:g} for 1,000 answers", size=7)


def defence_tradeoff(table: pd.DataFrame, title: str) -> Figure:
    """Draw attacker's accuracy against the legitimate user's, a numbered point per defence and attack."""
    require(table, "defence", "attack", "legitimate", "accuracy")
    attacks = [a for a in table["attack"].unique() if a not in REFERENCES]
    names = list(table["defence"].dropna().unique())
    fig, axes = canvas(1, len(attacks), height=3.1, sharex=True, sharey=True, squeeze=False)
    for ax, name in zip(axes[0], attacks, strict=True):
        rows = table[table["attack"] == name].groupby("defence")
        spots = [_spot(ax, rows.get_group(n), COLOURS.get(name, "#333333")) for n in names]
        ax.margins(x=0.2)
        frame(ax, table, "accuracy", vertical=False)
        number(ax, spots)
        ax.set_xlabel("legitimate\nuser's accuracy", size=7)
        ax.set_title(f"attack: {name}", size=7.5)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    axes[0][0].set_ylabel("attacker's accuracy")
    marks = [
        plt.Line2D([], [], linestyle="", marker=f"${k + 1}$", color="#333333", markeredgewidth=0.3)
        for k in range(len(names))
    ]
    fig.legend(marks, [short(n) for n in names], loc="outside right center", handletextpad=0.2)
    headline(fig, title)
    return fig


def _spot(ax: Axes, points: pd.DataFrame, colour: str) -> tuple[float, float]:
    """Draw a mean and its interval over seeds; return where the mean is."""
    mean, low, high = mean_interval(points["accuracy"])
    x = points["legitimate"].mean()
    ax.plot([x, x], [low, high], color=colour, alpha=0.35, linewidth=3)
    ax.plot(x, mean, "o", color=colour, markersize=4)
    return x, mean


def embedding_map(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw a two-dimensional map of one set of images per encoder, coloured by class."""
    require(table, "encoder", "x", "y", "label")
    panels = table["encoder"].unique()
    fig, axes = canvas(1, len(panels), height=2.7)
    palette = plt.get_cmap("tab10")
    for ax, name in zip(axes, panels, strict=True):
        rows = table.loc[table["encoder"] == name]
        for index, (label, points) in enumerate(rows.groupby("label", sort=True)):
            ax.scatter(
                points["x"], points["y"], s=4, color=palette(index), label=label, linewidths=0
            )
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, size=7.5)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center", markerscale=2, handletextpad=0)
    headline(fig, title)
    return fig
