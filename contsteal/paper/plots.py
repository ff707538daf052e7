"""One function per figure, from a table and a title to a matplotlib figure, and one row in `FIGURES`."""

import base64
import re
import textwrap
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.spatial import KDTree
from scipy.stats import spearmanr

from contsteal.evaluate import mean_interval
from contsteal.lab import detection, profiles, provider, sweeps, tables
from contsteal.lab.tables import name, names
from contsteal.ownership import proportion
from contsteal.paper import sentences
from contsteal.paper.sentences import REFERENCES, Summary

STYLE = Path(__file__).with_name("contsteal.mplstyle")
WIDTH, WIDEST = 6.75, 90  # inches of a figure, and characters of its title that fit
DARK, FLOOR, CEILING = "#333333", "#777777", "#000000"
# Okabe and Ito's colours, which colour-blind readers can distinguish; one method, one colour.
MOST_SHADED = 0.25  # change of accuracy from which on colours stay: else one cell hides the others
NEAR = 0.06  # distance of two accuracies below which numbers would overlap
STRENGTHS = {"GaussianNoise": "std", "GaussianNoise with offset": "std", "Rounding": "decimals",
             "TopK": "k", "PredictionPoisoning": "eps", "B4B": "beta"}  # fmt: skip
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
COLOURS = {
    "label": "#999999", "posterior": "#56B4E9", "embedding": "#0072B2", "info-nce": "#009E73",
    "cont-steal": "#D55E00", "cont-steal-code": "#E69F00", "embedding, anew": "#56B4E9",
    "cont-steal, anew": "#CC79A7", "random": "#BBBBBB", "supervised": "#333333",
    "SimCLR on the queries": "#777777", "labelled images": "#AAAAAA", "cosine": "#56B4E9",
    "embedding, own views": "#332288", "info-nce, own views": "#009E73",
    "info-nce, own views, shuffled": "#CC79A7", "cont-steal-code, RandAugment": "#882255",
    "cont-steal-code, published optimizer": "#DDCC77", "embedding, published optimizer": "#88CCEE",
    "simclr": "#D55E00", "moco": "#0072B2", "byol": "#009E73", "simsiam": "#CC79A7",
}  # fmt: skip


class NothingToShow(ValueError):
    """A table that is right and has too few points for a figure."""


# ------------------------------------------------------------------------------ house style


def canvas(
    rows: int = 1, columns: int = 1, height: float = 2.6, title: str = "", **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure of text width with its title, and its axes (rows, columns)."""
    plt.style.use(STYLE)
    # Drawn and saved at once: nothing is lost when the oldest of many figures is closed.
    if len(plt.get_fignums()) > 9:
        plt.close(plt.get_fignums()[0])
    fig, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **options)
    if (
        title
    ):  # in lines of about equal length; what stands in brackets is not broken over two of them
        whole = re.sub(r"\(.*?\)| %", lambda m: m[0].replace(" ", "\N{NO-BREAK SPACE}"), title)
        wrapped = [textwrap.wrap(whole, width, break_on_hyphens=False)
                   for width in range(WIDEST, 0, -1)]  # fmt: skip
        lines = [lines for lines in wrapped if len(lines) == len(wrapped[0])][-1]
        fig.suptitle("\n".join(lines), x=0.01, ha="left", size=8.5, weight="bold")
    return fig, axes


def panels(
    table: pd.DataFrame, by: Any, title: str, height: float, more: float = 0.0, columns: int = 9,
    **options: Any,
) -> tuple[Figure, list[tuple[Axes, Any, Any]]]:  # fmt: skip
    """Return a figure with a panel per value of `by`, and of each its axes, the value and its rows.

    A line of at most `columns` panels is `height` inches high, and the figure `more` than its lines.
    """
    parts = list(table.groupby(by, sort=False))
    lines = -(-len(parts) // columns)
    fig, axes = canvas(lines, min(len(parts), columns), height * lines + more, title, **options)
    for ax in axes.flat[len(parts) :]:
        ax.axis("off")
    drawn = zip(axes.flat, parts, strict=False)
    return fig, [(ax, value, rows) for ax, (value, rows) in drawn]


def in_percent(*axes: Any, unit: str = " %") -> None:
    """Show shares on these axes (`ax.xaxis`, `ax.yaxis`) as percentages, differences in points."""
    for axis in axes:
        axis.set_major_formatter(lambda value, _: f"{100 * value:.3g}{unit}")


def palette(values: Any) -> dict[str, str]:
    """Return the colour of each name: its method's own, else the next that none of them has."""
    known = list(dict.fromkeys(values))
    free = cycle(c for c in CYCLE if c not in {COLOURS.get(value) for value in known})
    return {name(value): COLOURS.get(value) or next(free) for value in known}


def interval(values: Any) -> tuple[float, float]:
    """Return the 95 % t-interval over seeds, as seaborn's `errorbar`."""
    return mean_interval(values)[1:]


def legend(fig: Figure, inside: Axes | None = None, **options: Any) -> None:
    """Put the legend that all axes of a figure share to its right, or where some axes are empty."""
    entries = {label: handle for ax in fig.axes  # methods of one panel may be missing in another
               for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}  # fmt: skip
    for drawn in filter(None, (ax.get_legend() for ax in fig.axes)):
        drawn.remove()
    place: Any = inside or fig
    options = {"loc": "best" if inside else "outside right center"} | options
    place.legend([*entries.values()], [*entries], **options)


def frame(ax: Axes, table: pd.DataFrame, metric: str, vertical: bool = True) -> None:
    """Draw the random floor, the best that needs no victim, and the victim, labelled at their ends.

    The axis begins at 0. Labels stand outside the axes, those of near lines apart. Of axes that share a
    scale the rightmost has the labels of horizontal lines, for all.
    """
    means = table.groupby("attack")[metric].mean()
    lines = [(means.get("random"), "random", FLOOR, ":"), (means.get("victim"), "victim", CEILING, "--"),
             (means[means.index.isin(sweeps.ALONE)].max(), "no victim", FLOOR, "-.")]  # fmt: skip
    known = sorted(line for line in lines if pd.notna(line[0]))
    for value, _, colour, style in known:
        line = ax.axvline if vertical else ax.axhline
        line(value, color=colour, linestyle=style, linewidth=1)
    (ax.set_xlim if vertical else ax.set_ylim)(0)
    same = ax.get_shared_y_axes().get_siblings(ax)
    if not vertical and ax is not max(same, key=lambda other: other.get_position().x0):
        return
    far, sides = 0.2 * (ax.get_xlim() if vertical else ax.get_ylim())[1], ["center"] * len(known)
    for k in range(1, len(known)):
        if known[k][0] - known[k - 1][0] < far:
            sides[k - 1 : k + 1] = ["right", "left"] if vertical else ["top", "bottom"]
    for (value, which, colour, _), side in zip(known, sides, strict=True):
        text: dict[str, Any] = {"xy": (1, value), "xytext": (3, 0), "va": side,
                                "xycoords": ("axes fraction", "data")}  # fmt: skip
        if vertical:
            text = {"xy": (value, 1), "xytext": (0, 2), "ha": side,
                    "xycoords": ("data", "axes fraction")}  # fmt: skip
        ax.annotate(f"{which}\n{100 * value:.0f} %", textcoords="offset points", size=6.5, color=colour,
                    linespacing=0.95, **text)  # fmt: skip


def _attacks(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["attack"].isin(REFERENCES)]


def _dots(
    ax: Axes, rows: pd.DataFrame, x: str, colours: Mapping[str, str], label: str, unit: str = " %"
) -> None:
    """Draw a dot per seed, the mean as a tick and its 95 % t-interval as a band, per attack."""
    same = {"data": rows, "x": x, "y": "attack", "hue": "attack", "palette": colours, "ax": ax,
            "legend": False}  # fmt: skip
    sns.pointplot(**same, errorbar=interval, linestyle="none", marker="|", markersize=11,
                  markeredgewidth=2, err_kws={"linewidth": 4, "alpha": 0.3})  # fmt: skip
    sns.stripplot(**same, jitter=False, size=3.5, alpha=0.8)
    ax.set(xlabel=label, ylabel="")
    in_percent(ax.xaxis, unit=unit)
    ax.grid(False, axis="y")


# ------------------------------------------------------------------------- data and victims


def sample_sheet(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw one strip of images per set, each image under its class."""
    groups = list(table.fillna("").groupby("set", sort=False))
    fig, axes = canvas(len(groups), 1, 0.78 * len(groups) + 0.5, title)
    for ax, (which, rows) in zip(axes[:, 0], groups, strict=True):
        pitch = 1.12 * rows["size"].iloc[0]  # pixels from one image to the next
        for k, row in enumerate(rows.to_dict("records")):
            size, x = row["size"], k * pitch
            pixels = np.frombuffer(base64.b64decode(row["pixels"]), np.uint8)
            ax.imshow(pixels.reshape(size, size, 3), extent=(x, x + size, 0, size))
            ax.text(x + size / 2, size, row["label"], size=6, ha="center", va="bottom")
        ax.set(xlim=(-2.2 * pitch, len(rows) * pitch), ylim=(0, 1.15 * rows["size"].iloc[0]))
        ax.axis("off")
        ax.text(-0.2 * pitch, 0.5 * rows["size"].iloc[0], which, ha="right", va="center", size=7.5)
    return fig


def training_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw loss, kNN accuracy and spread against epochs, a line per method."""
    loss = table["loss"] / table.groupby("method")["loss"].transform("first")
    rows = table.assign(loss=loss, method=table["method"].map(name))
    colours = palette(table["method"])
    labels = {"loss": "training loss / first epoch's", "knn": "kNN accuracy",
              "spread": "spread of features (0: collapsed)"}  # fmt: skip
    fig, axes = canvas(1, 3, 2.4, title)
    for ax, (column, label) in zip(axes[0], labels.items(), strict=True):
        sns.lineplot(rows, x="epoch", y=column, hue="method", palette=colours, errorbar=None,
                     legend=column == "loss", ax=ax)  # fmt: skip
        ax.set(ylim=(0, None))
        ax.set_ylabel(label, size=7)
    legend(fig)
    return fig


def worth_bars(table: pd.DataFrame, title: str) -> Figure:
    """Draw linear-probe accuracy per task, a bar per encoder."""
    rows = table.assign(encoder=table["encoder"].map(name))
    fig, ((ax,),) = canvas(1, 1, 2.5, title)
    sns.barplot(rows, x="task", y="accuracy", hue="encoder", errorbar=None, saturation=1, width=0.85,
                palette=palette(table["encoder"]), ax=ax)  # fmt: skip
    for bars in ax.containers:
        ax.bar_label(bars, fmt=lambda value: f"{100 * value:.0f}", size=6.5, padding=1)
    ax.set(xlabel="", ylim=(0, 1.1), ylabel="linear-probe accuracy")
    in_percent(ax.yaxis)
    ax.grid(False, axis="x")
    legend(fig)
    return fig


def stake_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw what a thief gets without the victim between random features and victim, a panel per set."""
    fig, each = panels(table, "data", title, 1.9, sharey=True)
    for ax, data, rows in each:
        _dots(ax, _attacks(rows), "accuracy", COLOURS, f"accuracy on {data}")
        frame(ax, rows, "accuracy")
        ax.set(xlim=(0, 1))
    return fig


def same_class(rows: pd.DataFrame) -> float:
    """Return how often the nearest neighbour of a point on a map is of its class."""
    labels, xy = rows["label"].to_numpy(), rows[["x", "y"]]
    nearest = KDTree(xy).query(xy, k=2)[1]
    other = np.where(nearest[:, 0] == np.arange(len(xy)), nearest[:, 1], nearest[:, 0])
    return float((labels == labels[other]).mean())


def embedding_map(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw a two-dimensional map of the same images per encoder, coloured by class."""
    many = table["label"].nunique() > 10  # whose names in one column would not fit beside the maps
    order = sorted(table["label"].unique(), key=lambda label: (len(str(label)), str(label)))
    fig, each = panels(table, "encoder", title, 2.3, 0.4, columns=3)
    for ax, encoder, rows in each:
        ax.axis("off")
        sns.scatterplot(rows.sort_values("label"), x="x", y="y", hue="label", s=7, linewidth=0,
                        palette="tab20" if many else "tab10", hue_order=order, ax=ax)  # fmt: skip
        ax.set_title(f"{name(encoder)} ({100 * same_class(rows):.0f} %)", size=7.5)
    legend(fig, markerscale=2, handletextpad=0, ncols=1 + many, columnspacing=0.5, fontsize=6)
    return fig


# ----------------------------------------------------------------------------------- attacks


def attack_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy and agreement on the main task per attack, for the first victim."""
    rows = sentences.main_task(table)
    if "victim" in rows:
        rows = rows[rows["victim"].isna() | (rows["victim"] == rows["victim"].iloc[0])]
    known = names(_attacks(rows)["attack"])
    colours = {n: COLOURS.get(a.split(", ")[0], DARK) for a, n in known.items()}
    fig, axes = canvas(1, 2, 0.28 * len(known) + 1.5, title, sharey=True)
    for ax, metric in zip(axes[0], ("accuracy", "agreement"), strict=True):
        named = _attacks(rows).replace({"attack": known})
        _dots(ax, named, metric, colours, f"{metric} on the main task")
        frame(ax, rows, metric)
    return fig


def reading_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw the embedding thief's lead by what is compared, a panel per rival; right of zero it leads."""
    rows = tables.readings(table)
    if rows.empty:
        raise NothingToShow(title)
    fig, each = panels(rows, "attack", title, 0.3 * rows["reading"].nunique(), 1.2, sharey=True)
    for ax, rival, part in each:
        ax.axvline(0, color="#999999", linewidth=0.8)
        colours = dict.fromkeys(part["reading"], COLOURS["embedding"])
        label = f"lead over {name(rival)}, points"
        _dots(ax, part.assign(attack=part["reading"]), "gain", colours, label, "")
    return fig


def query_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw `attack_dots` of attacks named by their queries."""
    sent = ", " + table["images"].map("{:g}".format) + " " + table["query_data"].fillna("")
    references = table["attack"].isin([*REFERENCES, *sweeps.ALONE])
    return attack_dots(table.assign(attack=table["attack"] + sent.where(~references, "")), title)


def rate_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw each attack's loss on held-out queries, over its least, against the learning rate."""
    means = table.groupby(["attack", "rate"], sort=False)["loss"].mean().reset_index()
    each = means.groupby("attack")["loss"]
    span = (each.transform("max") - each.transform("min")).replace(0, 1)
    rows = sentences.by_views(means.assign(excess=(means["loss"] - each.transform("min")) / span))
    colours = palette(rows["loss"])
    rows = rows.assign(views=rows["views"].fillna("as published"), loss=rows["loss"].map(name))
    fig, ((ax,),) = canvas(1, 1, 2.6, title)
    sns.lineplot(rows, x="rate", y="excess", hue="loss", style="views", markers=True,
                 palette=colours, errorbar=None, ax=ax)  # fmt: skip
    ax.set(xscale="log", xlabel="learning rate (log scale)")
    ax.set_yticks([0, 1], ["least", "greatest"])
    ax.set(ylabel="loss on held-out queries")
    legend(fig)
    return fig


def step_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy against the steps of training, a line per attack with its 95 % t-interval."""
    rows = _attacks(sentences.main_task(table)).assign(name=lambda t: t["attack"].map(name))
    shapes = {n: (2, 1) if n in sweeps.ALONE else "" for n in rows["name"].unique()}
    ends = rows[rows["steps"] == rows.groupby("name")["steps"].transform("max")]
    order = (
        ends.groupby("name")["accuracy"].mean().sort_values(ascending=False).index
    )  # as lines end
    fig, ((ax,),) = canvas(1, 1, 3.2, title)
    sns.lineplot(rows, x="steps", y="accuracy", hue="name", style="name", dashes=shapes, hue_order=order,
                 palette=palette(rows["attack"]), errorbar=interval, marker="o", markersize=4,
                 err_kws={"alpha": 0.12}, ax=ax)  # fmt: skip
    frame(ax, table[~table["attack"].isin(sweeps.ALONE)], "accuracy", vertical=False)  # lines here
    lengths = sorted(rows["steps"].unique())
    ax.set(xscale="log", xlabel="steps of training", ylabel="accuracy on the main task")
    ax.set_xticks(lengths, [f"{n:g}" for n in lengths])
    ax.minorticks_off()
    in_percent(ax.yaxis)
    legend(fig, fontsize=6.5)
    return fig


def victims_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw Cont-Steal minus MSE per victim: a dot per seed, their mean and its 95 % t-interval."""
    wide = table.pivot_table(index=["victim_seed", "seed"], columns="attack", values="accuracy")
    rows = (wide["cont-steal"] - wide["embedding"]).dropna().rename("gain").reset_index()
    rows["attack"] = "victim " + rows["victim_seed"].astype(int).astype(str)
    fig, ((ax,),) = canvas(1, 1, 0.3 * rows["attack"].nunique() + 1.0, title)
    ax.axvline(0, color="#999999", linewidth=0.8)
    _dots(ax, rows, "gain", dict.fromkeys(rows["attack"], COLOURS["cont-steal"]),
          "Cont-Steal minus MSE: accuracy on the main task, points", "")  # fmt: skip
    return fig


def views_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy by what both sides see, a colour per loss, a dot per seed and the 95 % t-interval."""
    attacks = sentences.by_views(_attacks(table)).dropna(subset=["views"])
    attacks["loss"] = attacks["loss"].map(name)
    order = [v for v in profiles.VARIANTS if v in set(attacks["views"])]
    same: dict[str, Any] = {"data": attacks, "x": "views", "y": "accuracy", "hue": "loss", "order": order,
                            "palette": palette(attacks["attack"].str.split(", ").str[0])}  # fmt: skip
    fig, ((ax,),) = canvas(1, 1, 3.0, title)
    count = attacks["loss"].nunique()
    width = 0.8 * (count - 1) / count  # where stripplot puts its dots
    sns.pointplot(**same, errorbar=interval, dodge=width, marker="_", markersize=12, linestyle="none",
                  err_kws={"linewidth": 4, "alpha": 0.3}, ax=ax)  # fmt: skip
    sns.stripplot(**same, dodge=True, jitter=False, size=3.5, alpha=0.8, legend=False, ax=ax)
    frame(ax, table, "accuracy", vertical=False)
    ax.set(xlabel="what the surrogate sees of each image", ylabel="accuracy on the main task")
    in_percent(ax.yaxis)
    legend(fig, ax, ncols=count)
    return fig


def budget_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy and agreement against distinct inputs and against answers, which cost money."""
    costs = {"unique_inputs": "distinct inputs", "calls": "answers"}
    attacks = _attacks(table).dropna(subset=["unique_inputs"])
    means = attacks.groupby(["attack", "images"])[[*costs]].transform("mean")
    rows = attacks.assign(**means, name=attacks["attack"].map(name))
    anew = {n: (2, 1) if n.endswith("anew") else "" for n in rows["name"].unique()}
    fig, axes = canvas(2, 2, 4.6, title, sharex="col", sharey="row")
    for line, metric in zip(axes, ("accuracy", "agreement"), strict=True):
        for ax, (cost, label) in zip(line, costs.items(), strict=True):
            same = {"data": rows, "x": cost, "y": metric, "hue": "name", "ax": ax,
                    "palette": palette(attacks["attack"])}  # fmt: skip
            sns.scatterplot(**same, s=10, alpha=0.5, linewidth=0, legend=False)
            sns.lineplot(**same, style="name", dashes=anew, errorbar=None)
            frame(ax, table, metric, vertical=False)
            ax.set(xscale="log", xlabel=f"{label} (log scale)", ylabel=metric)
            in_percent(ax.yaxis)
    for ax in axes[:, 0]:
        ax.set_xticks(budgets := sorted(attacks["images"].unique()), [f"{n:g}" for n in budgets])
        ax.tick_params(axis="x", labelrotation=45)
        ax.minorticks_off()
    price = float((attacks["usd"] / attacks["calls"]).mean())
    top = axes[0][1].secondary_xaxis("top", functions=(lambda x: np.multiply(x, price),
                                                       lambda x: np.divide(x, price)))  # fmt: skip
    top.set_xlabel(f"US dollars, at {1000 * price:g} for 1,000 answers", size=7)
    legend(fig, loc="outside lower left", ncols=2, fontsize=7)
    return fig


def pull_maps(table: pd.DataFrame, title: str) -> Figure:
    """Draw whether each loss moves a surrogate's vector towards (blue) or away from every other one."""
    fig, each = panels(table, "loss", title, 2.1, sharey=True)
    for ax, loss, rows in each:
        wide = rows.pivot(index="anchor", columns="other", values="pull")
        _heatmap(ax, wide, None, cmap="RdBu", square=True)
        ax.set(xlabel="surrogate's s, victim's t", ylabel="")
        ax.set_title(name(loss), size=7.5)
        ax.axvline(len(wide), color=DARK, linewidth=0.8)
        ax.tick_params(axis="x", labelsize=6)
    fig.axes[0].set_ylabel("surrogate's vector")
    return fig


def _heatmap(
    ax: Axes, values: pd.DataFrame, sure: pd.DataFrame | None, bound: float = 0.0, **options: Any
) -> None:
    """Draw a heat map centred at zero; cells hold points where `sure` says which are bold."""
    bound = max(bound, values.abs().to_numpy(na_value=0).max())
    shown = values.map(lambda v: "" if pd.isna(v) else f"{round(100 * v) + 0:+d}")
    sns.heatmap(values, vmin=-bound, vmax=bound, annot=False if sure is None else shown, fmt="",
                annot_kws={"size": 7}, ax=ax, cbar=False, **options)  # fmt: skip
    ax.tick_params(length=0, rotation=0)
    if sure is not None:
        bold = sure.to_numpy()[values.notna().to_numpy()]
        for text, heavy in zip(ax.texts, bold, strict=True):
            text.set_fontweight("bold" if heavy else "normal")


def ablation_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy per knob and value, with a line at the default's mean."""
    rows = sentences.changed(table)
    known = list(rows["attack"].unique())
    fig, ((ax,),) = canvas(1, 1, 0.22 * len(known) + 0.9, title)
    ax.axvline(rows.loc[rows["attack"] == known[0], "accuracy"].mean(), color=DARK, linewidth=0.8,
               linestyle=":")  # fmt: skip
    colours = dict.fromkeys(known, COLOURS["cont-steal"])
    _dots(ax, rows, "accuracy", colours, "accuracy on the main task")
    return fig


def boundary_maps(table: pd.DataFrame, title: str) -> Figure:
    """Draw Cont-Steal minus MSE over images, a panel per query data and views.

    Cells hold points; those whose interval excludes zero are bold. In grey ones
    neither attack is above what needs no victim.
    """
    gains = tables.gains(sentences.main_task(table), "cont-steal", "embedding")
    gains["sure"] = (gains["low"] > 0) | (gains["high"] < 0)
    gains["weak"] = sentences.not_stolen(table, gains)
    gains["images"] = gains["images"].astype(int)
    gains["setting"] = gains["method"].map(name)
    if len(gains["steps"].unique()) > 1:
        gains["setting"] += ", " + gains["steps"].map("{:g} steps".format)
    views = gains["views"].replace("surrogate", "own views")
    order = gains.sort_values(["method", "steps"])["setting"].unique()
    by = [gains["query_data"], views]
    fig, each = panels(gains, by, title, 0.32 * len(order), 1.3, sharey=True)
    bound = max(0.05, gains["gain"].abs().max())
    for ax, (data, view), part in each:
        gain, sure, weak = (part.pivot(index="setting", columns="images", values=v).loc[order]
                            for v in ("gain", "sure", "weak"))  # fmt: skip
        _heatmap(ax, gain, sure, bound, cmap="RdBu_r")
        _grey(ax, weak.to_numpy() == True)  # noqa: E712 a missing point is neither
        ax.set(xlabel="query images", ylabel="")
        ax.set_title(f"{data},\n{view}", size=7.5)
    return fig


def _grey(ax: Axes, cells: np.ndarray) -> None:
    """Cover the marked cells of a heat map with grey, and write on them in dark."""
    places = [tuple(place) for place in np.argwhere(cells)]
    for row, column in places:
        ax.add_patch(plt.Rectangle((column, row), 1, 1, color="#DDDDDD"))
    for text in ax.texts:
        x, y = text.get_position()
        if (int(y), int(x)) in places:
            text.set_color(DARK)


def geometry_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw Cont-Steal's gain over MSE against three measures of the victim's embeddings."""
    if len(table) < sentences.LEAST_POINTS:
        raise NothingToShow(title)
    rows = table.assign(method=table["method"].map(name), gain=100 * table["gain"],
                        queries=table["query_data"])  # fmt: skip
    fig, axes = canvas(1, 3, 2.3, title, sharey=True)
    for ax, (metric, label) in zip(axes[0], sentences.GEOMETRY.items(), strict=True):
        sns.scatterplot(rows, x=metric, y="gain", hue="method", style="queries", s=30, ax=ax,
                        palette=palette(table["method"]))  # fmt: skip
        ax.axhline(0, color="#999999", linewidth=0.8)
        ax.set(xlabel=label, ylabel="Cont-Steal minus MSE, points")
        rank = spearmanr(table[metric], table["gain"]).statistic
        ax.set_title(f"rank correlation {rank:+.2f}", size=7.5)
    legend(fig, fontsize=6.5)
    return fig


# ---------------------------------------------------------------------------------- defences


def defence_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw a thief's accuracy against the paying user's: a panel per kind of defence, a curve per attack.

    Each curve goes from no defence through the strengths of the kind; it is dashed where the attacker
    adapts. In the green corner a defence takes enough from the thief and little from the customer.
    """
    rows = _attacks(table).dropna(subset=["defence"])
    rows = rows.assign(adapts=rows["adapts"].fillna(""))
    free = rows[rows["kind"] == "none"]
    main = free["attack"].iloc[0]
    base = free.loc[free["attack"] == main, ["accuracy", "legitimate"]].mean()
    known, colours = rows[rows["kind"] != "none"], palette(rows["attack"])
    columns = 2 if known["kind"].nunique() in (2, 4) else 3
    fig, each = panels(known, "kind", title, 2.0, 0.9, columns, sharex=True, sharey=True)
    for ax, kind, own in each:  # a defence works where it takes enough, and not too much
        ax.fill_between([base["legitimate"] - provider.COSTS, 1], 0, base["accuracy"] - provider.TAKES,
                        color=CYCLE[2], alpha=0.12, linewidth=0)  # fmt: skip
        for (attack, adapts), runs in own.groupby(["attack", "adapts"], sort=False):
            start = free[free["attack"] == (main if adapts else attack)]
            labels = attack == main and not adapts
            _strengths(ax, start, runs, name(attack), colours[name(attack)], bool(adapts), labels)
        frame(ax, table, "accuracy", vertical=False)
        knob = STRENGTHS.get(kind.split(" + ")[-1], "")
        ax.set_title(sentences.kind_name(kind) + f" ({knob})" * bool(knob), size=7.5)
        ax.set(xlim=(0, 0.1 + free["legitimate"].mean()))
        ax.set(xlabel="paying user's accuracy", ylabel="thief's accuracy")
        ax.label_outer()
        ax.xaxis.set_tick_params(labelbottom=True)
        in_percent(ax.xaxis, ax.yaxis)
    legend(fig, loc="outside lower left", ncols=2, fontsize=7)
    return fig


def _strengths(
    ax: Axes,
    start: pd.DataFrame,
    runs: pd.DataFrame,
    who: str,
    colour: str,
    adapts: bool,
    labels: bool,
) -> None:
    """Draw a curve from no defence through the strengths of one, with intervals of the accuracy."""
    each = sorted((part for _, part in runs.groupby("defence", sort=False)),
                  key=lambda part: -part["legitimate"].mean())  # fmt: skip
    x, y = ([part[c].mean() for part in (start, *each)] for c in ("legitimate", "accuracy"))
    ax.plot(x, y, "--D" if adapts else "-o", color=colour, ms=3.5, linewidth=1, alpha=0.9,
            markerfacecolor="white" if adapts else colour,
            label=f"{who} that adapts" if adapts else who)  # fmt: skip
    spans = np.array([interval(part["accuracy"]) for part in each])
    ax.vlines(x[1:], *spans.T, color=colour, linewidth=2, alpha=0.3)
    last = [x[0], y[0]]
    for part, *point in zip(each, x[1:], y[1:], strict=True) if labels else ():
        if np.hypot(*np.subtract(point, last)) < NEAR:
            continue  # its number would lie on another
        last = point
        ax.annotate(f"{part['strength'].iloc[0]:g}", (last[0], last[1]), (4, -8), size=6, color=colour,
                    textcoords="offset points")  # fmt: skip


def _party(who: str, party: str) -> str:
    """Return a column's label, on lines of its own."""
    parts = (textwrap.fill(part, 12) for part in re.split(r"(?<=[,:])\s*", name(who)))
    return "\n".join([*parts, party])


def defence_matrix(table: pd.DataFrame, title: str) -> Figure:
    """Draw the change of accuracy by each defence (rows) for each attack and customer's task (columns).

    Cells hold points; those whose 95 % t-interval excludes zero are bold. Green is good
    for the provider: a thief's loss, a customer's gain.
    """
    known = names(table["defence"])
    who = pd.Series(list(map(_party, table["who"], table["party"])), table.index)
    gain = table["change"].where(table["party"] == "customer", -table["change"])
    gain = np.sign(gain) * np.sqrt(gain.abs().clip(upper=MOST_SHADED) / MOST_SHADED)
    cells = table.assign(row=table["defence"].map(known), column=who, gain=gain,
                         sure=(table["low"] > 0) | (table["high"] < 0))  # fmt: skip
    columns = list(who.unique())
    change, good, sure = (
        cells.pivot(index="row", columns="column", values=v).loc[[*known.values()], columns]
        for v in ("change", "gain", "sure")
    )
    fig, ((ax,),) = canvas(1, 1, 0.34 * len(known) + 1.2, title)
    _heatmap(ax, good, sure, 1, cmap="PiYG", alpha=0.75, linewidths=1)
    for text, value in zip(ax.texts, change.to_numpy()[change.notna().to_numpy()], strict=True):
        text.set_text(f"{round(100 * value) + 0:+d}")
    ax.xaxis.tick_top()
    ax.set(xlabel="", ylabel="")
    ax.grid(False)
    ax.axvline(sum(c.endswith("attacker") for c in columns), color=DARK, linewidth=1.5)
    for place, verdict in enumerate(provider.worth(table)["verdict"]):  # in the order of the rows
        ax.annotate(verdict, (len(columns), place + 0.5), xytext=(4, 0), va="center", size=7,
                    textcoords="offset points", annotation_clip=False)  # fmt: skip
    return fig


def parties_sheet(table: pd.DataFrame, title: str) -> Figure:
    """Draw what each of a provider's means does to every party: green is good for the provider."""
    wanted = ("attacker", "customer", "thieves", "others")
    columns = [c for c in map(str, table) if c.startswith(wanted)]
    values = table.set_index("means")[columns]
    good, text = values.copy(), values.astype(object)
    for column in columns:
        change = column.startswith(("attacker", "customer"))
        share = (values[column] / MOST_SHADED if change else values[column]).clip(-1, 1)
        sign = -1 if column.startswith(("attacker", "others")) else 1
        good[column] = sign * np.sign(share) * np.sqrt(share.abs())
        form = (lambda v: f"{round(100 * v) + 0:+d}") if change else (lambda v: f"{100 * v:.0f} %")
        text[column] = values[column].map(form, na_action="ignore")
    labels = {"thieves": "thieves\nfound", "others": "others\nfound"}
    good.columns = [labels.get(c) or _party(*c.split(", ", 1)[::-1]) for c in columns]
    fig, ((ax,),) = canvas(1, 1, 0.24 * len(table) + 1.3, title)
    _heatmap(ax, good, good.isna(), 1, cmap="PiYG", alpha=0.75, linewidths=1)
    for drawn, shown in zip(ax.texts, text.to_numpy()[values.notna().to_numpy()], strict=True):
        drawn.set_text(shown)
    ax.xaxis.tick_top()
    ax.tick_params(labelsize=6.5)
    ax.set(xlabel="", ylabel="")
    ax.grid(False)
    for border in np.flatnonzero(table["kind"].to_numpy()[1:] != table["kind"].to_numpy()[:-1]):
        ax.axhline(border + 1, color=DARK, linewidth=1.5)
    return fig


def _filled_dots(
    ax: Axes, x: pd.Series, who: pd.Series, order: list[str], honest: pd.Series, filled: pd.Series
) -> None:
    """Draw a dot per run on the line of its user or suspect: blue for the honest, filled or empty."""
    colours = np.where(honest, CYCLE[0], CYCLE[1])
    ax.scatter(x, who.map(order.index), s=16, c=np.where(filled, colours, "white"), edgecolors=[*colours],
               linewidths=0.8, alpha=0.85, clip_on=False)  # fmt: skip
    ax.set_yticks(range(len(order)), [name(one) for one in order])
    ax.set(ylim=(-0.6, len(order) - 0.4))


def _by_detector(
    table: pd.DataFrame, title: str, x: str, filled: str
) -> tuple[Figure, list[tuple[Axes, Any, Any]]]:
    """Draw a panel per detector, a dot per user and seed, filled where the column `filled` is not 0."""
    users = list(table["user"].unique())[::-1]
    fig, each = panels(table, "detector", title, 0.15 * len(users) + 0.85, 0.3, 4, sharey=True)
    for ax, detector, rows in each:
        honest = rows["user"].str.startswith("customer")
        _filled_dots(ax, rows[x], rows["user"], users, honest, rows[filled] > 0)
        ax.set_title(str(detector).replace(", ", ",\n"), size=7.5)
        ax.tick_params(labelsize=6.5)
        ax.locator_params(axis="x", nbins=3)
    return fig, each


def detector_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw each detector's statistic per user, a dot per seed, filled where the user was flagged.

    Shaded is the side on which users are flagged; its border lies between them and the others.
    """
    fig, each = _by_detector(table, title, "statistic", "flagged")
    kinds = {"PRADA": "W, low is suspicious", "proof of work": "seconds"}
    for ax, detector, rows in each:
        label = next((text for kind, text in kinds.items() if detector.startswith(kind)), "")
        ax.set_xlabel(label or "share of similar queries", size=6.5)
        sign = -1 if detector.startswith(detection.LOW) else 1
        suspicion, flagged = sign * rows["statistic"], rows["flagged"] > 0
        least, most = suspicion[flagged].min(), suspicion[~flagged].max()
        ends = ax.get_xlim()
        if flagged.any() and not least < most:  # where all are flagged the border lies outside
            border = ends[sign < 0] if flagged.all() else sign * (least + most) / 2
            ax.axvspan(border, ends[sign > 0], color=CYCLE[1], alpha=0.12, linewidth=0)
            ax.axvline(border, color=DARK, linestyle="--", linewidth=0 if flagged.all() else 1)
        ax.set_xlim(ends)
    return fig


def account_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw the share of answers that a user's first account gets, filled where one was refused.

    The number at the right is the mean of the accounts that all answers take.
    """
    shares = table.assign(share=table["answers"] / table["queries"])
    fig, each = _by_detector(shares, title, "share", "refusals")
    users = list(table["user"].unique())[::-1]
    for ax, _, rows in each:
        ax.annotate("accounts", (1, len(users) - 0.4), (3, 1), size=5.5, textcoords="offset points",
                    xycoords=("axes fraction", "data"))  # fmt: skip
        for user, accounts in rows.groupby("user")["accounts"].mean().items():
            ax.annotate(f"{accounts:.2g}", (1, users.index(str(user))), size=6.5,
                        va="center", xytext=(4, 0), xycoords=("axes fraction", "data"),
                        textcoords="offset points")  # fmt: skip
        ax.set(xlim=(0, 1.05), xlabel="answers to one account")
        ax.xaxis.label.set_fontsize(6.5)
        in_percent(ax.xaxis)
    return fig


def roc_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw ROC curves of the detectors' statistics, a panel per kind of thief, and their own verdicts.

    A dot is the detector's threshold, its bars Clopper-Pearson 95 % intervals.
    """
    colours = dict(zip(table["detector"].unique(), cycle(CYCLE), strict=False))
    fig, axes = canvas(2, 2, 5.2, title)
    for ax, (user, part) in zip(axes.flat, table.groupby("user", sort=False), strict=False):
        ax.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.8, linestyle=":")
        for detector, rows in part.groupby("detector", sort=False):
            curve, verdicts = (rows[rows["at"] == at] for at in ("curve", "verdict"))
            colour = colours[str(detector)]
            ax.plot(curve["fpr"], curve["tpr"], color=colour, linewidth=1.2, alpha=0.85)
            for row in verdicts.to_dict("records"):
                _rates(ax, row, colour)
        ax.set(xlabel="customers flagged", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        ax.set(ylabel="thieves flagged")
        ax.set_title(user, size=7.5)
        in_percent(ax.xaxis, ax.yaxis)
        areas = part.groupby("detector", sort=False)["auc"].first()
        lines = [Line2D([], [], color=colours[str(detector)], label=f"{area:.2f}")
                 for detector, area in areas.items()]  # fmt: skip
        ax.legend(handles=lines, loc="best", fontsize=6.5, title="area", title_fontsize=6.5,
                  labelspacing=0.2, handlelength=1)  # fmt: skip
    lines = [Line2D([], [], color=c, label=detector) for detector, c in colours.items()]
    axes[1][1].axis("off")
    axes[1][1].legend(handles=lines, loc="center left", title="detector (dots: at its threshold)")
    return fig


def _rates(ax: Axes, row: Mapping[Any, Any], colour: str) -> None:
    """Draw the shares of customers and thieves that a detector flags, with their intervals."""
    spans = {}
    for rate, side in (("tpr", "thieves"), ("fpr", "customers")):
        found = proportion(round(row[rate] * row[side]), row[side])
        spans[rate] = [[found.rate - found.low], [found.high - found.rate]]
    ax.errorbar(row["fpr"], row["tpr"], yerr=spans["tpr"], xerr=spans["fpr"], fmt="o", markersize=4.5,
                color=colour, elinewidth=0.8, alpha=0.85)  # fmt: skip


def refused_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw what refused thieves end with, on one account and on all, a panel per detector."""
    runs = table.dropna(subset=["detector"])
    height = 0.34 * runs["attack"].nunique()
    fig, each = panels(runs, "detector", title, height, 1.2, columns=1, sharex=True)
    for ax, detector, rows in each:
        means = rows.groupby("attack", sort=False)[["answers", "accounts"]].mean().iterrows()
        names = {
            attack: f"{attack}: {row['answers']:.0f} answers, {row['accounts']:.3g} "
            f"account{'s' * bool(row['accounts'] > 1)}"
            for attack, row in means
        }
        colours = {n: CYCLE[1] if str(a).endswith("stops") else CYCLE[0] for a, n in names.items()}
        label = f"accuracy on the main task; refused by {detector}"
        _dots(ax, rows.replace({"attack": names}), "accuracy", colours, label)
        frame(ax, table[table["detector"].isna()], "accuracy")
    return fig


def coverage_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw the share of the embedding space that users' answers cover, and the noise that it brings.

    The noise is that of the first B4B and of the last; dotted is what customers can bear.
    """
    known = table["defence"].unique()
    shown = [
        ("", known[0], "coverage"),
        *((name(d), d, "noise") for d in dict.fromkeys(known[[0, -1]])),
    ]
    fig, axes = canvas(1, len(shown), 2.4, title)
    for ax, (label, defence, column) in zip(axes[0], shown, strict=True):
        rows = table[table["defence"] == defence]
        sns.lineplot(rows, x="queries", y=column, hue="user", palette=palette(table["user"]),
                     errorbar=None, ax=ax)  # fmt: skip
        ax.set(ylabel="share of buckets" if column == "coverage" else "noise")
        ax.set_title(label.replace(", bits", ",\nbits"), size=7)
        if column == "noise":
            ax.set(yscale="log", ylim=(1e-7, 10))
            ax.axhline(
                bearable := rows["bearable"].mean(), color=DARK, linestyle=":", linewidth=0.8
            )
            ax.annotate("bearable", (0, bearable), (2, 2), textcoords="offset points", size=6)
    axes[0][0].set(ylim=(0, None))
    in_percent(axes[0][0].yaxis)
    legend(fig, fontsize=6.5)
    return fig


# --------------------------------------------------------------------------------- ownership


def watermark_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw the watermark success rate against query images, a panel per head; dots are runs.

    Lines mark the victim's own rate and its rate before marking; the band holds the independent encoders,
    and a suspect above the dotted line is accused.
    """
    stolen = table[table["kind"] == "stolen"]
    images = sorted(stolen["images"].unique())
    fig, each = panels(table, "head", title, 2.9, sharex=True, sharey=True)
    for ax, head, rows in each:
        known = rows.dropna(subset=["wsr"]).groupby("kind")["wsr"]
        rates = known.agg(["first", "mean", "min", "max", "size"])
        levels = [(rates.loc["victim", "first"], "--", CEILING, "victim"),
                  (rates.loc["unmarked", "first"], "-.", FLOOR, "victim before marking")]  # fmt: skip
        if "independent" in rates.index:
            _, mean, low, high, n = rates.loc["independent"]
            label = f"{n:g} independent"
            ax.axhspan(low, high, color="#BBBBBB", alpha=0.45, linewidth=0, label=label)
            least = rows[rows["kind"] == "victim"]["detectable"].iloc[0]
            levels.append((mean + least, ":", DARK, "accused above"))
        for level, style, colour, label in levels:
            ax.axhline(level, linestyle=style, color=colour, linewidth=1, label=label)
        runs = rows[rows["kind"] == "stolen"].assign(suspect=lambda t: t["suspect"].map(name))
        same = {"data": runs, "x": "images", "y": "wsr", "hue": "suspect", "ax": ax,
                "palette": palette(stolen["suspect"])}  # fmt: skip
        sns.scatterplot(**same, s=12, alpha=0.5, linewidth=0, legend=False)
        sns.lineplot(**same, errorbar=None, marker="o", markersize=4)
        before = rows[rows["kind"] == "stolen before"]
        first = name(before["suspect"].iloc[0]) if len(before) else ""
        label = f"{first}, victim before marking"
        ax.plot(before["images"], before["wsr"], "x", color=DARK, label=label)
        ax.set(xlabel="query images", ylabel="watermark success rate", xscale="log")
        ax.set_xticks(images, [f"{n:g}" for n in images])
        ax.minorticks_off()
        ax.set_title(str(head).replace(", ", ",\n"), size=7.5)
        in_percent(ax.yaxis)
    legend(fig, fontsize=6.5)
    return fig


def _honest(rows: pd.DataFrame) -> pd.Series:
    return rows["kind"].isin(["independent", "unmarked", "profile"])


def _threshold(ax: Axes, value: float, text: str) -> None:
    ax.axvline(value, color=DARK, linestyle="--", linewidth=1)
    ax.annotate(text, (value, 1), size=6.5, ha="center", va="bottom",
                xycoords=("data", "axes fraction"))  # fmt: skip


def inference_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw each encoder's gap in standard deviations, a panel per form of the test.

    Dots are filled where the encoder is accused; orange are the victim, its copies and its thieves.
    """
    order = list(table["suspect"].unique())[::-1]
    fig, each = panels(table, "form", title, 0.24 * len(order), 1.3, sharex=True, sharey=True)
    for ax, form, rows in each:
        ax.axvline(0, color="#999999", linewidth=0.8)
        _filled_dots(
            ax, rows["effect"], rows["suspect"], order, _honest(rows), rows["accused"] == 1
        )
        least = rows["detectable"].mean()
        for side in (least, -least)[: 1 + (form == "published")]:  # it accuses on both sides
            _threshold(ax, side, "accused" if side > 0 else "")
        ax.set(xlabel="gap in standard deviations")
        ax.set_title(f"{form} form", size=7.5, pad=14)
    return fig


def key_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw how well each encoder's answers agree with the secret key; filled dots are accused.

    Orange are the victim, its copies and its thieves.
    """
    read = table[table["applies"] == "yes"]
    order = list(read["suspect"].unique())[::-1]
    fig, ((ax,),) = canvas(1, 1, 0.24 * len(order) + 1.2, title)
    _filled_dots(ax, read["cosine"], read["suspect"], order, _honest(read), read["accused"] == 1)
    independent = read[read["kind"] == "independent"]
    if len(independent) and len(least := read[read["kind"] == "victim"]["detectable"].dropna()):
        _threshold(ax, independent["cosine"].mean() + least.iloc[0], "accused")
    ax.set(xlabel="mean cosine of the answers with the key")
    return fig


# ------------------------------------------------------------------------------ the registry

MAP = (
    "Maps of test images (t-SNE); in brackets: how often the nearest neighbour is of the same class"
)


class Row(NamedTuple):
    """A figure: what it shows, who draws it, and its title or what says title and numbers.

    Of a table with several lengths of training it shows the longest, unless it is about the `lengths`.
    """

    shows: str
    plot: Callable[[pd.DataFrame, str], Figure]
    summary: str | Callable[[pd.DataFrame], Summary]
    lengths: bool = False

    def shown(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a table that the figure shows."""
        return table if self.lengths else tables.longest(table)

    def summarise(self, table: pd.DataFrame) -> Summary:
        """Return what the table says, and after which length where it has several."""
        if isinstance(self.summary, str):  # a fixed title says nothing
            return Summary(self.summary)
        shown = self.shown(table)
        result = self.summary(shown)
        if self.lengths or len(tables.trainings(table)) == 1 or " steps" in result.title:
            return result
        return result._replace(title=f"{result.title}, after {shown['steps'].max():g} steps")

    def draw(self, table: pd.DataFrame) -> Figure:
        """Draw the figure from its table under its title."""
        return self.plot(self.shown(table), self.summarise(table).title)


FIGURES = {
    "00_samples": Row("The embedded data sets.",
                      sample_sheet, "Images of the embedded data sets"),
    "01_views": Row("Two augmented views of each image, as the victim's training sees them.",
                    sample_sheet, "Training images, and two augmented views of each"),
    "01_training": Row("The victim's training, monitored on held-out training images.",
                       training_curves, sentences.training),
    "01_worth": Row("What the victim is worth, between random floor and supervised ceiling.",
                    worth_bars, sentences.worth),
    "01_stake": Row("What a thief gets without the victim, by data set.", stake_dots, sentences.stake),
    "01_embedding_map": Row("Test images as the encoders see them (t-SNE).",
                            embedding_map, MAP),
    "02_conventional": Row("Conventional attacks with equal queries.",
                           attack_dots, sentences.conventional),
    "02_readings": Row("Are encoders more vulnerable than classifiers? The embedding thief's lead, by "
                       "what is compared.", reading_dots, sentences.readings),
    "02_losses": Row("Stealing losses by victim and downstream task (published rows: queries are "
                     "test images there).", attack_dots, sentences.losses),
    "02_elsewhere": Row("Queries from other data than the victim's.",
                        query_dots, sentences.queries),
    "03_pulls": Row("Which vectors each loss moves a surrogate's vector towards, and away from.",
                    pull_maps, sentences.pulls),
    "03_attacks": Row("All attacks with equal queries.", attack_dots, sentences.attacks),
    "03_control": Row("Controls: attacks that are broken on purpose.",
                      attack_dots, sentences.control),
    "03_rates": Row("Learning rates, chosen on held-out queries.", rate_curves, sentences.rates),
    "03_steps": Row("Accuracy against the length of training.", step_curves, sentences.steps,
                    lengths=True),
    "03_victims": Row("Cont-Steal against MSE, with more seeds, on one victim of a recipe or several.",
                      victims_dots, sentences.victims),
    "03_views": Row("Losses by what surrogate and victim see of each image.",
                    views_dots, sentences.views),
    "03_ablations": Row("Cont-Steal with one knob changed at a time.",
                        ablation_dots, sentences.ablations),
    "03_boundary": Row("When contrastive stealing beats regression (bold: reliably; grey: no theft).",
                       boundary_maps, sentences.boundary),
    "03_geometry": Row("The victims' embeddings, and what Cont-Steal gains on them.",
                       geometry_dots, sentences.geometry),
    "03_embedding_map": Row("Test images by the victim and by two surrogates (t-SNE).",
                            embedding_map, MAP),
    "04_budget": Row("Accuracy against both query budgets.", budget_curves, sentences.budget),
    "05a_coverage": Row("What B4B sees of its users.", coverage_curves, sentences.coverage),
    "05a_defenses": Row("Defences by strength: thieves, those that adapt, and the paying user. In the "
                        "green corner a defence works.", defence_curves, sentences.defenses),
    "05a_matrix": Row("What each defence changes for attacks and for customers, in points (bold: "
                      "reliably; green: good for the provider).", defence_matrix, sentences.matrix),
    "05b_detectors": Row("What detectors see of their users, and which they flag (filled, in the shade).",
                        detector_dots, sentences.detectors),
    "05b_roc": Row("ROC curves of the detectors' statistics, for each kind of thief.",
                   roc_curves, sentences.roc),
    "05b_accounts": Row("Answers before a refusal, and accounts that all answers take.",
                        account_dots, sentences.accounts),
    "05b_refused": Row("What a refused thief ends with: it stops, or goes on under new names.",
                       refused_dots, sentences.refused),
    "05c_inference": Row("Dataset inference: does an encoder know the victim's training set (filled)?",
                        inference_dots, sentences.dataset_inference),
    "05c_sslguard": Row("SSLGuard: which encoders answer the secret key (filled).", key_dots,
                        sentences.guard),
    "05c_watermark": Row("The rotation watermark: which encoders carry it (above the dotted line).",
                        watermark_curves, sentences.watermark),
    "06_parties": Row("What each of a provider's means does to thieves, customers and others: customers "
                      "whom a detector flags; independent encoders, or thieves of the victim before it "
                      "was marked, whom a proof accuses. Green is good for the provider.",
                      parties_sheet, sentences.parties),
}  # fmt: skip
