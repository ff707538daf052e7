"""One function per figure, from a table and a title to a matplotlib figure, and one row in `FIGURES`."""

import base64
import re
import textwrap
from collections.abc import Callable
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import spearmanr

from contsteal.evaluate import mean_interval
from contsteal.lab import detection, provider, sweeps, tables
from contsteal.lab.tables import DEFENCES, name, names
from contsteal.paper import sentences
from contsteal.paper.sentences import REFERENCES, Summary

STYLE = Path(__file__).with_name("contsteal.mplstyle")
WIDTH, WIDEST = 6.75, 90  # inches of a figure, and characters of its title that fit
METRICS = "accuracy", "agreement"
DARK, FLOOR, CEILING = "#333333", "#777777", "#000000"
MOST_SHADED = 0.25  # change of accuracy from which on colours stay: else one cell hides the others
NEAR = 0.06  # distance of two accuracies below which numbers would overlap
STRENGTHS = {"GaussianNoise": "std", "GaussianNoise with offset": "std", "Rounding": "decimals",
             "TopK": "k", "PredictionPoisoning": "eps", "B4B": "beta"}  # fmt: skip
# Okabe and Ito's colours, and some of Paul Tol's, which colour-blind readers can distinguish.
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
COLOURS = {  # of what stands before the first comma of a name: each attack has one in all figures
    "label": "#CC79A7", "posterior": "#56B4E9", "embedding": "#0072B2", "info-nce": "#009E73",
    "cont-steal": "#D55E00", "cont-steal-code": "#E69F00", "cosine": "#AA4499", "soft-nn": "#332288",
    "sup-con": "#44AA99", "wasserstein": "#999933", "barlow": "#6699CC", "barlow-published": "#88CCEE",
    "stolen-encoder": "#117733", "rda": "#882255", "recreate-head": "#AA7744", "access-head": "#661100",
    "posterior-logits": "#56B4E9", "info-nce-2": "#009E73", "info-nce-2-published": "#009E73",
    "random": "#BBBBBB", "SimCLR on the queries": "#777777", "labelled images": "#AAAAAA",
    "supervised": "#333333", "simclr": "#332288", "moco": "#999933", "byol": "#44AA99",
    "simsiam": "#117733", "customer": "#0072B2", "thief": "#D55E00",
}  # fmt: skip
DASHES = ("", (4, 1.5), (1, 1), (4, 1, 1, 1))  # of lines that share a colour
# Marks that a `key` explains: of runs, and of users or suspects about whom somebody decides.
SEEDS: Any = {"a seed": {"marker": "o"}, "mean": {"marker": "|", "markersize": 9, "markeredgewidth": 2},
         "95 % interval": {"linestyle": "-", "linewidth": 4, "alpha": 0.4}}  # fmt: skip
FILLED, EMPTY = {"marker": "o"}, {"marker": "o", "markerfacecolor": "white"}
BELOW: Any = {"loc": "outside lower left", "fontsize": 7, "borderpad": 0.8, "borderaxespad": 1.2}
BOLD = {"marker": r"$\mathbf{12}$", "markersize": 9, "markeredgewidth": 0, "color": DARK}
SUSPECTS = {"stolen": "thief, ", "stolen before": "thief before marking, ",
            "profile": "main victim, "}  # fmt: skip
# Of proofs, by the column of their panels: what is measured, its name, and its value by chance.
PROOFS = {"form": ("effect", "gap in standard deviations", 0.0),
          "head": ("wsr", "watermark success rate", 0.5),
          "on": ("cosine", "mean cosine of the answers with the key", 0.0)}  # fmt: skip


class NothingToShow(ValueError):
    """A table that is right and has too few points for a figure."""


# ------------------------------------------------------------------------------ house style


def canvas(
    rows: int = 1, columns: int = 1, height: float = 2.6, title: str = "", **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure of text width with its title, and its axes (rows, columns)."""
    plt.style.use(STYLE)
    fig, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **options)
    if title:  # in lines of about equal length, between which no interval is broken
        whole = re.sub(r"\([^)]*CI [^)]*\)| %", lambda m: m[0].replace(" ", "\u00a0"), title)
        wrapped = [textwrap.wrap(whole, width, break_on_hyphens=False)
                   for width in range(1, WIDEST + 1)]  # fmt: skip
        lines = next(lines for lines in wrapped if len(lines) == len(wrapped[-1]))
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
    return fig, [(ax, *part) for ax, part in zip(axes.flat, parts, strict=False)]


def in_percent(*axes: Any, unit: str = " %") -> None:
    """Show shares on these axes (`ax.xaxis`, `ax.yaxis`) as percentages, differences in points."""
    for axis in axes:
        axis.set_major_formatter(lambda value, _: f"{100 * value:.3g}{unit}")


def palette(values: Any) -> dict[str, str]:
    """Return the colour of each name: its attack's, else the next that none of them has."""
    known = {value: COLOURS.get(value.split(", ")[0]) for value in values}
    free = cycle(colour for colour in CYCLE if colour not in known.values())
    return {name(value): colour or next(free) for value, colour in known.items()}


def interval(values: Any) -> tuple[float, float]:
    """Return the 95 % t-interval over seeds, as seaborn's `errorbar`."""
    return mean_interval(values)[1:]


def legend(fig: Figure, **options: Any) -> None:
    """Put the legend that all axes of a figure share to its right, or where `loc` says."""
    entries = {label: handle for ax in fig.axes  # methods of one panel may be missing in another
               for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}  # fmt: skip
    for drawn in filter(None, (ax.get_legend() for ax in fig.axes)):
        drawn.remove()
    fig.legend([*entries.values()], [*entries], **{"loc": "outside right center"} | options)


def key(fig: Any, looks: dict[str, Any]) -> None:
    """Say below a figure's axes what its marks mean: each has a look, or a colour that fills cells."""
    common: Any = {"linestyle": "none", "color": FLOOR, "markersize": 4.5, "solid_capstyle": "butt"}
    marks = [Line2D([], [], label=label, **common | (
                 {"marker": "s", "color": look} if isinstance(look, str) else look))
             for label, look in looks.items()]  # fmt: skip
    fig.legend(handles=marks, ncols=len(marks), columnspacing=1.4, handlelength=1.4, **BELOW)


def frame(ax: Axes, table: pd.DataFrame, metric: str, vertical: bool = True) -> None:
    """Draw the random floor, the best that needs no victim, and the victim, labelled at their ends.

    Curves begin at 0. Labels stand outside the axes, those of near lines apart. Of axes that share a
    scale the rightmost has the labels of horizontal lines, for all.
    """
    means = table.groupby("attack")[metric].mean()
    lines = [(means.get("random"), "random", FLOOR, ":"), (means.get("victim"), "victim", CEILING, "--"),
             (means[means.index.isin(sweeps.ALONE)].max(), "no victim", FLOOR, "-.")]  # fmt: skip
    known = sorted(line for line in lines if pd.notna(line[0]))
    for value, _, colour, style in known:
        line = ax.axvline if vertical else ax.axhline
        line(value, color=colour, linestyle=style, linewidth=1)
    if not vertical:
        ax.set_ylim(0)
    same = ax.get_shared_y_axes().get_siblings(ax)
    if not vertical and ax is not max(same, key=lambda other: other.get_position().x0):
        return
    far = 0.2 * np.ptp(ax.get_xlim() if vertical else ax.get_ylim())
    near = [after[0] - before[0] < far for before, after in pairwise(known)]
    # The first of vertical lines may stand at the edge: its label has room at its right.
    low, high = ("right", "left") if vertical else ("top", "bottom")
    sides = [low if after else high if before else "center"
             for before, after in zip([vertical, *near], [*near, False], strict=True)]  # fmt: skip
    for (value, which, colour, _), side in zip(known, sides, strict=False):
        aligned: Any = {"ha" if vertical else "va": side}
        place, offset = ((value, 1), (0, 2)) if vertical else ((1, value), (3, 0))
        along = ax.get_xaxis_transform() if vertical else ax.get_yaxis_transform()
        ax.annotate(f"{which}\n{100 * value:.0f} %", place, offset, along, "offset points", size=6.5,
                    color=colour, linespacing=0.95, **aligned)  # fmt: skip


def _attacks(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["attack"].isin(REFERENCES)]


def _dots(ax: Axes, rows: pd.DataFrame, x: str, label: str, colours: Any, unit: str = " %") -> None:
    """Draw a dot per seed, the mean as a tick and its 95 % t-interval as a band, per attack."""
    same = {"data": rows, "x": x, "y": "attack", "hue": "attack", "palette": colours, "ax": ax,
            "legend": False}  # fmt: skip
    sns.pointplot(**same, errorbar=interval, linestyle="none", marker="|", markersize=11,
                  markeredgewidth=2, err_kws={"linewidth": 4, "alpha": 0.3})  # fmt: skip
    sns.stripplot(**same, jitter=False, size=3.5, alpha=0.8)
    ax.set(xlabel=label, ylabel="")
    if ax is ax.figure.axes[0]:
        key(ax.figure, SEEDS)
    in_percent(ax.xaxis, unit=unit)
    ax.grid(False, axis="y")


def _leads(rows: pd.DataFrame, title: str, colour: str) -> Figure:
    """Draw the `gain` of each row of `attack` in points, a panel per one it is `over`."""
    if rows.empty:
        raise NothingToShow(title)
    fig, each = panels(rows, "over", title, 0.3 * rows["attack"].nunique(), 1.4, sharey=True)
    colours = dict.fromkeys(rows["attack"], COLOURS[colour])
    for ax, label, part in each:
        ax.axvline(0, color="#999999", linewidth=0.8)
        _dots(ax, part, "gain", label, colours, "")
    return fig


# ------------------------------------------------------------------------- data and victims


def sample_sheet(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw one strip of images per set, each image under its class."""
    fig, each = panels(table.fillna(""), "set", title, 0.78, 0.5, columns=1)
    for ax, which, rows in each:
        size = rows["size"].iloc[0]
        pitch = 1.12 * size  # pixels from one image to the next
        for k, row in enumerate(rows.to_dict("records")):
            pixels = np.frombuffer(base64.b64decode(row["pixels"]), np.uint8)
            x = k * pitch
            ax.imshow(pixels.reshape(size, size, 3), extent=(x, x + size, 0, size))
            ax.text(x + size / 2, size, row["label"], size=6, ha="center", va="bottom")
        ax.set(xlim=(-2.2 * pitch, len(rows) * pitch), ylim=(0, 1.15 * size))
        ax.axis("off")
        ax.text(-0.2 * pitch, 0.5 * size, name(which), ha="right", va="center", size=7.5)
    return fig


def training_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw loss, kNN accuracy and spread against epochs, a line per method."""
    loss = table["loss"] / table.groupby("method")["loss"].transform("first")
    rows = table.assign(loss=loss, method=table["method"].map(name))
    labels = {"loss": "training loss / first epoch's", "knn": "kNN accuracy, many labels",
              "spread": "spread of features (0: collapsed)"}  # fmt: skip
    fig, axes = canvas(1, 3, 2.4, title)
    for ax, (column, label) in zip(axes[0], labels.items(), strict=True):
        sns.lineplot(rows, x="epoch", y=column, hue="method", style="method", errorbar=None,
                     palette=palette(table["method"]), legend=column == "loss", ax=ax)  # fmt: skip
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
        _dots(ax, _attacks(rows), "accuracy", f"accuracy on {data}", COLOURS)
        ax.set(xlim=(0, 1))
        frame(ax, rows, "accuracy")
    return fig


def embedding_map(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw a two-dimensional map of the same images per encoder, each as the number of its class."""
    order = sorted(table["label"].unique(), key=lambda label: (len(str(label)), str(label)))
    signs = {label: f"${k:0{len(str(len(order) - 1))}d}$" for k, label in enumerate(order)}
    fig, each = panels(table, "encoder", title, 2.3, 0.4, columns=3)
    for ax, encoder, rows in each:
        ax.axis("off")
        sns.scatterplot(rows.sort_values("label"), x="x", y="y", hue="label", style="label", s=22,
                        linewidth=0, markers=signs, hue_order=order, style_order=order, ax=ax,
                        rasterized=True,  # the outline of each number would fill a megabyte
                        palette=dict(zip(order, cycle(CYCLE), strict=False)))  # fmt: skip
        ax.set_title(name(encoder))
    columns = 1 + (len(order) > 10)  # more classes in one column would not fit beside the maps
    legend(fig, handletextpad=0, ncols=columns, columnspacing=0.5, fontsize=6)
    return fig


# ----------------------------------------------------------------------------------- attacks


def attack_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy and agreement on the main task per attack, for the first victim."""
    rows = sentences.main_task(table)
    if "victim" in rows:
        rows = rows[rows["victim"].isna() | (rows["victim"] == rows["victim"].iloc[0])]
    named = _attacks(rows).assign(attack=lambda t: t["attack"].map(name))
    fig, axes = canvas(1, 2, 0.28 * named["attack"].nunique() + 1.5, title, sharey=True)
    for ax, metric in zip(axes[0], METRICS, strict=True):
        _dots(ax, named, metric, f"{metric} on the main task", palette(_attacks(rows)["attack"]))
        frame(ax, rows, metric)
    return fig


def reading_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw the embedding thief's lead by what is compared, a panel per rival; right of zero it leads."""
    rows = tables.readings(table)
    over = "lead over " + rows["attack"].map(name) + ", points"
    wrapped = rows["reading"].map(lambda text: textwrap.fill(text, 32))
    return _leads(rows.assign(attack=wrapped, over=over), title, "embedding")


def query_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw `attack_dots` of attacks named by what they send, as far as they differ in it."""
    if "query_data" in table:
        sent = table["images"].map("{:g} ".format) + table["query_data"].map(name)
    else:
        each = (table["unique_inputs"] / table["images"]).round()
        sent = each.map("{:g} queries per image".format).where(each > 1, "")
    thieves = ~table["attack"].isin([*REFERENCES, *sweeps.ALONE]) & (sent != "")
    attack = table["attack"] + (", " + sent).where(thieves, "")
    return attack_dots(table.assign(attack=attack), title)


def rate_map(table: pd.DataFrame, title: str) -> Figure:
    """Draw each attack's mean loss on held-out queries per learning rate, its least the darkest."""
    losses = table.pivot_table(index="attack", columns="rate", values="loss", sort=False)
    losses = losses.rename(name).sort_index(axis=1).rename(columns="{:g}".format)
    excess = losses.sub(losses.min(axis=1), axis=0)
    excess = excess.div(excess.max(axis=1).replace(0, 1), axis=0)
    fig, ((ax,),) = canvas(1, 1, 0.2 * len(losses) + 1.0, title)
    _heatmap(ax, excess, losses.map("{:.4g}".format), excess == 0, cmap="Blues_r", linewidths=1,
             vmin=-0.5)  # fmt: skip
    ax.set(xlabel="learning rate")
    key(fig, {"the least loss of an attack": BOLD})
    return fig


def step_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy against the steps of training, a line per attack with its 95 % t-interval."""
    rows = _attacks(sentences.main_task(table)).assign(name=lambda t: t["attack"].map(name))
    ends = rows[rows["steps"] == rows.groupby("name")["steps"].transform("max")]
    means = ends.groupby("name")["accuracy"].mean().sort_values(ascending=False)
    order = list(means.index)  # as lines end
    drawn = pd.Series(palette(rows["attack"]))  # lines of one colour differ in dashes
    dashes = dict(drawn.groupby(drawn).cumcount().map(lambda place: DASHES[place % len(DASHES)]))
    fig, ((ax,),) = canvas(1, 1, 3.2, title)
    sns.lineplot(rows, x="steps", y="accuracy", hue="name", style="name", markers=True, markersize=5,
                 hue_order=order, style_order=order, palette=dict(drawn), dashes=dashes,
                 errorbar=interval, err_kws={"alpha": 0.12}, ax=ax)  # fmt: skip
    frame(ax, table[~table["attack"].isin(sweeps.ALONE)], "accuracy", vertical=False)  # lines here
    lengths = sorted(rows["steps"].unique())
    ax.set(xscale="log", xlabel="steps of training", ylabel="accuracy on the main task")
    ax.set_xticks(lengths, [f"{n:g}" for n in lengths])
    ax.minorticks_off()
    in_percent(ax.yaxis)
    legend(fig, fontsize=6.5)
    key(fig, {"95 % interval": SEEDS["95 % interval"]})
    return fig


def victims_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw Cont-Steal minus MSE per victim: a dot per seed, their mean and its 95 % t-interval."""
    wide = table.pivot_table(index=["victim_seed", "seed"], columns="attack", values="accuracy")
    rows = (wide["cont-steal"] - wide["embedding"]).dropna().rename("gain").reset_index()
    victim = "victim " + rows["victim_seed"].astype(int).astype(str)
    over = "lead of Cont-Steal over MSE in accuracy on the main task, points"
    return _leads(rows.assign(attack=victim, over=over), title, "cont-steal")


def ablation_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw what each changed knob of Cont-Steal changes, a dot per seed; left of zero it harms."""
    wide = sentences.changed(table).pivot_table(index="seed", columns="attack", values="accuracy",
                                                sort=False)  # fmt: skip
    gains = wide.drop(columns=sweeps.AS_GIVEN).sub(wide[sweeps.AS_GIVEN], axis=0)
    over = "change of Cont-Steal's accuracy on the main task, points"
    return _leads(gains.melt(value_name="gain").assign(over=over).dropna(), title, "cont-steal")


def views_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy per loss, a panel per kind of views: a dot per seed and the 95 % t-interval."""
    rows = sentences.by_views(_attacks(table)).dropna(subset=["views"])
    named, colours = rows.assign(attack=rows["loss"].map(name)), palette(rows["loss"])
    height = 0.22 * named["attack"].nunique() + 0.9
    fig, each = panels(named, "views", title, height, 0.7, columns=2, sharex=True, sharey=True)
    for ax, _, part in each:
        _dots(ax, part, "accuracy", "accuracy on the main task", colours)
    for ax, view, _ in each:  # once the common scale is known
        frame(ax, table, "accuracy")
        ax.set_title(str(view).replace("clean", "clean images"), pad=20)
    return fig


def budget_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy and agreement against answers, which cost money.

    Dashed lines lead from images that are asked once to the same ones asked anew in every step.
    """
    attacks = _attacks(table).dropna(subset=["unique_inputs"])
    anew = attacks["attack"].str.endswith(", anew")
    attacks = attacks.assign(loss=attacks["attack"].str.removesuffix(", anew").map(name))
    price = 1000 * (attacks["usd"] / attacks["calls"]).mean()
    colours = palette(attacks["attack"][~anew])
    means = attacks.groupby(["attack", "loss", "images"], sort=False)[["calls", *METRICS]].mean()
    fig, axes = canvas(1, 2, 3.0, title)
    for ax, metric in zip(axes[0], METRICS, strict=True):
        look = {"x": "calls", "y": metric, "hue": "loss", "palette": colours, "legend": False}
        sns.scatterplot(attacks, **look, s=10, alpha=0.5, linewidth=0, ax=ax)
        sns.lineplot(attacks[~anew], **look, errorbar=None, ax=ax)
        sns.lineplot(means, **look, units="images", estimator=None, ls="--", linewidth=0.8, ax=ax)
        frame(ax, table, metric, vertical=False)
        ax.set(xscale="log", xlabel=f"answers, at {price:g} $ for 1,000 (log scale)", ylabel=metric)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        in_percent(ax.yaxis)
    once = {f"{loss}, asked once": {"linestyle": "-", "color": colours[loss]} for loss in colours}
    key(fig, {"a seed": {"marker": "o", "markersize": 3}} | once
        | {"the same images, asked anew in every step": {"linestyle": (0, (2, 1))}})  # fmt: skip
    return fig


def pull_maps(table: pd.DataFrame, title: str) -> Figure:
    """Draw whether each loss moves a surrogate's vector towards (blue) or away from every other one."""
    fig, each = panels(table, "loss", title, 2.1, sharey=True)
    for ax, loss, rows in each:
        bound = rows["pull"].abs().max()
        wide = rows.pivot(index="anchor", columns="other", values="pull")
        _heatmap(ax, wide, cmap="RdBu", square=True, vmin=-bound, vmax=bound)
        ax.set(xlabel="surrogate's s, victim's t", title=name(loss))
        ax.axvline(len(wide), color=DARK, linewidth=0.8)
        ax.tick_params(axis="x", labelsize=6)
    fig.axes[0].set_ylabel("surrogate's vector")
    return fig


def _heatmap(
    ax: Axes, values: pd.DataFrame, texts: Any = None, bold: Any = None, **options: Any
) -> None:
    """Draw a heat map; cells hold `texts`, those that `bold` marks in bold; unknown values are 0."""
    cells = {} if texts is None else {"annot": texts, "fmt": "", "annot_kws": {"size": 7}}
    sns.heatmap(values.fillna(0.0), ax=ax, cbar=False, **cells, **options)
    for text, heavy in zip(ax.texts, [] if bold is None else bold.to_numpy().flat, strict=False):
        text.set_fontweight("bold" if heavy else "normal")
    ax.tick_params(length=0, rotation=0)
    ax.set(xlabel="", ylabel="")
    ax.grid(False)


def boundary_maps(table: pd.DataFrame, title: str) -> Figure:
    """Draw Cont-Steal minus MSE over images, a panel per query data and views.

    Cells hold points; those whose interval excludes zero are bold. In grey ones
    neither attack is above what needs no victim.
    """
    gains = tables.gains(sentences.main_task(table), "cont-steal", "embedding")
    gains["sure"] = (gains["low"] > 0) | (gains["high"] < 0)
    gains["shade"] = gains["gain"].mask(sentences.not_stolen(table, gains))
    gains["text"] = gains["gain"].map(sentences.signed)
    gains["images"] = gains["images"].astype(int)
    gains["setting"] = gains["method"].map(name)
    views = gains["views"].replace("surrogate", "own views").replace("clean", "clean images")
    by = [gains["query_data"].map(name), views]
    fig, each = panels(gains, by, title, 0.32 * gains["setting"].nunique(), 1.3, sharey=True)
    bound = max(0.05, gains["gain"].abs().max())
    for ax, (data, view), part in each:
        shade, text, sure = (part.pivot(index="setting", columns="images", values=v)
                             for v in ("shade", "text", "sure"))  # fmt: skip
        _heatmap(ax, shade, text.fillna(""), sure == True,  # noqa: E712 a missing point is neither
                 cmap="RdBu_r", vmin=-bound, vmax=bound)  # fmt: skip
        ax.pcolormesh(np.where(shade.isna(), 0.2, np.nan), cmap="Greys", vmin=0, vmax=1)
        ax.set(xlabel="query images", title=f"queries: {data},\n{view}")
    fig.axes[0].set_ylabel("victim")
    marks: Any = {"Cont-Steal is ahead": "#F4A582", "MSE is ahead": "#92C5DE"}
    marks |= {"95 % interval excludes 0": BOLD, "no more than without the victim": "#DDDDDD"}
    key(fig, marks)
    return fig


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
        ax.set_title(f"rank correlation {rank:+.2f}")
    legend(fig, fontsize=6.5)
    return fig


# ---------------------------------------------------------------------------------- defences


def defence_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw a thief's accuracy against a customer's: a panel per kind of defence, a curve per attack.

    Each curve goes from no defence through the strengths of the kind; it is dashed where the thief
    adapts. In the green corner a defence takes enough from the thief and little from the customer.
    """
    rows = _attacks(table).dropna(subset=["defence"])
    rows = rows.assign(adapts=rows["adapts"].fillna(""))
    free = rows[rows["kind"] == "none"]
    main = free["attack"].iloc[0]
    known, colours = rows[rows["kind"] != "none"], palette(rows["attack"])
    columns = 2 if known["kind"].nunique() in (2, 4) else 3
    fig, each = panels(known, "kind", title, 2.0, 0.9, columns, sharex=True, sharey=True)
    for ax, kind, own in each:  # a defence works where it takes enough, and not too much
        same = free[free["seed"].isin(own["seed"])]  # not every defence has all seeds
        base = same.loc[same["attack"] == main, ["accuracy", "legitimate"]].mean()
        ax.fill_between([base["legitimate"] - provider.COSTS, 1], 0, base["accuracy"] - provider.TAKES,
                        color=CYCLE[2], alpha=0.12, linewidth=0, label="a defence works")  # fmt: skip
        for (attack, adapts), runs in own.groupby(["attack", "adapts"], sort=False):
            start = same[same["attack"] == (attack if attack in set(same["attack"]) else main)]
            labels = attack == main and not adapts
            _strengths(ax, start, runs, colours[name(attack)], labels)
        frame(ax, table, "accuracy", vertical=False)
        knob = STRENGTHS.get(kind.split(" + ")[-1], "")
        called = re.sub("|".join(DEFENCES), lambda match: DEFENCES[match[0]], kind)
        ax.set(xlim=(0, 0.1 + free["legitimate"].mean()), title=called + f" ({knob})" * bool(knob),
               xlabel="customer's accuracy", ylabel="thief's accuracy")  # fmt: skip
        ax.label_outer()
        ax.xaxis.set_tick_params(labelbottom=True)
        in_percent(ax.xaxis, ax.yaxis)
    legend(fig, ncols=3, **BELOW)
    return fig


def _strengths(
    ax: Axes, start: pd.DataFrame, runs: pd.DataFrame, colour: str, labels: bool
) -> None:
    """Draw a curve from no defence through the strengths of one, with intervals of the accuracy."""
    who, adapts = name(runs["attack"].iloc[0]), bool(runs["adapts"].iloc[0])
    by = runs.groupby("defence", sort=False)
    means = by[["legitimate", "accuracy", "strength"]].mean()
    means[["low", "high"]] = by["accuracy"].agg(interval).tolist()
    means = means.sort_values("legitimate", ascending=False)
    first = start[["legitimate", "accuracy"]].mean()
    points = pd.concat([first.to_frame().T, means])
    ax.plot(points["legitimate"], points["accuracy"], "--D" if adapts else "-o", color=colour, ms=3.5,
            linewidth=1, alpha=0.9, markerfacecolor="white" if adapts else colour,
            label=who + " that adapts" * adapts)  # fmt: skip
    ax.vlines(
        means["legitimate"], means["low"], means["high"], color=colour, linewidth=2, alpha=0.3
    )
    last = first.to_numpy()
    for x, y, strength, *_ in means.to_numpy() if labels else ():
        if np.hypot(*(last - (x, y))) >= NEAR:  # else its number would lie on another
            last = np.array([x, y])
            ax.annotate(f"{strength:g}", (x, y), (4, -8), size=6, color=colour,
                        textcoords="offset points")  # fmt: skip


def _sheet(
    values: pd.DataFrame, title: str, height: float, bold: pd.DataFrame | None = None
) -> tuple[Figure, Axes]:
    """Draw changes of accuracy in points, and shares of those found; green is good for the provider."""
    columns = pd.Series(map(str, values))
    change, bad = (columns.str.startswith(sides).to_numpy()
                   for sides in (("attacker", "customer"), ("attacker", "others")))  # fmt: skip
    level = values.div(np.where(change, MOST_SHADED, 1)).clip(-1, 1).mul(np.where(bad, -1, 1))
    good = level.abs().pow(0.5) * np.sign(level)
    texts = values.astype(object)
    for column, points in zip(columns, change, strict=True):
        form = sentences.signed if points else (lambda share: f"{100 * share:.0f} %")
        known = values.loc[:, change & bad].notna().any(axis=1) & bool(points)  # of a perturbation
        texts[column] = [form(v) if pd.notna(v) else "not run" if run else ""
                         for v, run in zip(values[column], known, strict=True)]  # fmt: skip
    found = {"thieves": "thieves found, hardest kind", "others": "others found"}
    heads = columns.replace(found).map(name)
    parts = (head.replace(":", ": ").split(", ") for head in heads)
    good.columns = [",\n".join(textwrap.fill(part, 11) for part in label) for label in parts]
    fig, ((ax,),) = canvas(1, 1, height * len(values) + 1.3, title)
    _heatmap(ax, good, texts, bold, vmin=-1, vmax=1, cmap="PiYG", linewidths=1)
    ax.xaxis.tick_top()
    reliable = {} if bold is None else {"95 % interval excludes 0": BOLD}
    key(fig, {"good for the provider": "#4D9221", "bad": "#C51B7D"} | reliable)
    return fig, ax


def defence_matrix(table: pd.DataFrame, title: str) -> Figure:
    """Draw the change of accuracy by each defence (rows) for each thief and customer's task (columns).

    Cells hold points; those whose 95 % t-interval excludes zero are bold. Green is good
    for the provider: a thief's loss, a customer's gain.
    """
    cells = table.assign(row=table["defence"].map(names(table["defence"])),
                         column=table["party"] + ", " + table["who"],
                         sure=(table["low"] > 0) | (table["high"] < 0))  # fmt: skip
    change, sure = (cells.pivot_table(v, "row", "column", sort=False) for v in ("change", "sure"))
    fig, ax = _sheet(change, title, 0.34, sure == True)  # noqa: E712 a missing cell is neither
    ax.axvline(sum(change.columns.str.startswith("attacker")), color=DARK, linewidth=1.5)
    for place, verdict in enumerate(provider.worth(table)["verdict"]):  # in the order of the rows
        ax.annotate(verdict, (len(change.columns), place + 0.5), xytext=(4, 0), va="center", size=7,
                    textcoords="offset points", annotation_clip=False)  # fmt: skip
    return fig


def parties_sheet(table: pd.DataFrame, title: str) -> Figure:
    """Draw what each of a provider's means does to every party: green is good for the provider.

    Of several kinds of thieves the share of those found is of the hardest, which is found least often.
    """
    values = table.set_index("means").filter(regex="^(attacker|customer|thieves|others)")
    fig, ax = _sheet(values, title, 0.24)
    ax.tick_params(labelsize=6.5)
    starts = table["kind"].ne(table["kind"].shift())
    does = {sentences.DETECTOR: "detectors flag users", sentences.PROOF: "proofs accuse encoders"}
    for border in table.index[starts][1:]:  # the label stands in cells that are always blank
        ax.axhline(border, color=DARK, linewidth=1.5)
        ax.text(0.1, border + 0.5, does[table["kind"][border]], size=7, va="center", style="italic")
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
        ax.set_title(str(detector).replace(", ", ",\n"))
        ax.tick_params(labelsize=6.5)
        ax.xaxis.label.set_fontsize(6.5)
        ax.locator_params(axis="x", nbins=3)
    return fig, each


def detector_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw each detector's statistic per user, a dot per seed, filled where the user was flagged.

    Shaded is the side on which users are flagged; its border lies between them and the others.
    """
    fig, each = _by_detector(table, title, "statistic", "flagged")
    kinds = {"PRADA": "Shapiro-Wilk W\n(low: suspicious)", "proof of work": "seconds",
             "similar projections": "share of similar\nhead outputs",
             "similar embeddings": "share of similar answers"}  # fmt: skip
    for ax, detector, rows in each:
        labels = [text for kind, text in kinds.items() if detector.startswith(kind)]
        ax.set_xlabel([*labels, "share of similar queries"][0])
        sign = -1 if detector.startswith(detection.LOW) else 1
        suspicion, flagged = sign * rows["statistic"], rows["flagged"] > 0
        least, most = suspicion[flagged].min(), suspicion[~flagged].max()
        ends = ax.get_xlim()
        if flagged.any() and not least < most:  # where all are flagged the border lies outside
            border = ends[sign < 0] if flagged.all() else sign * (least + most) / 2
            ax.axvspan(border, ends[sign > 0], color=CYCLE[1], alpha=0.12, linewidth=0)
            ax.axvline(border, color=DARK, linestyle="--", linewidth=0 if flagged.all() else 1)
        ax.set_xlim(ends)
    side = {"marker": "s", "color": CYCLE[1], "alpha": 0.2}
    key(fig, {"flagged": FILLED, "not flagged": EMPTY, "side on which users are flagged": side})
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
        ax.set(xlim=(0, 1.05), xlabel="answers before a refusal")
        in_percent(ax.xaxis)
    number = BOLD | {"marker": "$2.5$", "markersize": 11}
    key(fig, {"was refused": FILLED, "was not refused": EMPTY, "accounts for all answers": number})
    return fig


def roc_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw ROC curves of the detectors' statistics, a panel per kind of thief; dots: own thresholds."""
    fig, each = panels(table, "user", title, 2.2, 1.0, columns=3, sharey=True)
    for ax, user, rows in each:
        look = {"x": "fpr", "y": "tpr", "hue": "detector", "palette": palette(table["detector"]),
                "alpha": 0.85, "ax": ax}  # fmt: skip
        ax.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.8, linestyle=":", label="chance")
        sns.lineplot(rows[rows["at"] == "curve"], style="detector", estimator=None, sort=False,
                     linewidth=1.2, **look)  # fmt: skip
        sns.scatterplot(rows[rows["at"] == "verdict"], legend=False, s=24, clip_on=False, **look)
        ax.set(xlim=(0, 1), ylim=(0, 1), title=user, xlabel="customers flagged",
               ylabel="thieves flagged")  # fmt: skip
        ax.plot([], [], "o", color=FLOOR, label="at a detector's own threshold")
        ax.label_outer()
        ax.xaxis.set_tick_params(labelbottom=True)
        ax.locator_params(axis="x", nbins=3)
        in_percent(ax.xaxis, ax.yaxis)
    legend(fig, ncols=3, **BELOW)
    return fig


def refused_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw what refused thieves end with, on one account and on all, a panel per detector."""
    runs = table.dropna(subset=["detector"])
    each = runs.groupby(["detector", "attack"])[["answers", "accounts"]].transform("mean")
    given = each["answers"].map("\n({:.0f} answers on ".format)
    given += each["accounts"].map(lambda n: f"{n:.2g} account{'s' * (n > 1)})")
    rows = runs.assign(attack=runs["attack"].map(name) + given)
    height = 0.4 * runs["attack"].nunique()
    fig, drawn = panels(rows, "detector", title, height, 1.2, columns=1, sharex=True)
    for ax, detector, part in drawn:
        label = f"accuracy on the main task; refused by {detector}"
        _dots(ax, part, "accuracy", label, dict.fromkeys(part["attack"], COLOURS["thief"]))
        frame(ax, table[table["detector"].isna()], "accuracy")
    return fig


def coverage_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw what users' answers cover of the embedding space, the noise, and what it costs them.

    The noise is that of the first B4B and of the last; dotted is what customers can bear. Accuracy is
    with the first B4B minus without one, where it was measured.
    """
    known = table.dropna(subset=["coverage"])["defence"].unique()
    lost, users = provider.lost(table), table["user"].unique()
    look: Any = {"x": "queries", "hue": "user", "style": "user", "errorbar": None,
                 "palette": palette(users), "style_order": users}  # fmt: skip
    fig, axes = canvas(2, 2, 4.2, title)
    cover, first, last, change = axes.flat
    sns.lineplot(table[table["defence"] == known[0]], y="coverage", ax=cover, **look)
    cover.set(ylim=(0, None), ylabel="share of B4B's buckets")
    for ax, defence in ((first, known[0]), (last, known[-1])):
        rows = table[table["defence"] == defence]
        sns.lineplot(rows, y="noise", ax=ax, **look)
        bearable = rows["bearable"].mean()
        ax.axhline(bearable, color=DARK, linestyle=":", linewidth=0.8)
        ax.annotate("tolerated", (0, bearable), (2, 2), textcoords="offset points", size=6)
        ax.set(yscale="log", ylim=(1e-7, 10), ylabel="noise (std)")
        ax.set_title(name(defence), size=7)
    change.set_visible(len(lost) > 0)
    if len(lost):
        sns.lineplot(lost, y="change", ax=change, marker="o", markersize=4, legend=False, **look)
        change.axhline(0, color=DARK, linewidth=0.8)
        change.set(xlim=cover.get_xlim(), ylabel="change of accuracy, points")
        change.set_title(f"with {name(known[0])}", size=7)
    in_percent(cover.yaxis)
    in_percent(change.yaxis, unit="")
    legend(fig, fontsize=6.5)
    return fig


# --------------------------------------------------------------------------------- ownership


def suspect_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw what a proof of ownership measures of each encoder, a panel per form of the test.

    Filled dots are accused. Orange are the victim, its copies and its thieves; blue is who took nothing
    that the test looks for.
    """
    by = next(column for column in PROOFS if column in table)
    measure, label, chance = PROOFS[by]
    rows = table.dropna(subset=[measure])  # a test does not apply to every suspect
    queries = ", {:g} queries" * (len(rows["images"].dropna().unique()) > 1)
    sent = rows["images"].map(queries.format, na_action="ignore").fillna("")
    rows = rows.assign(who=rows["kind"].map(SUSPECTS).fillna("") + rows["suspect"] + sent)
    order = list(rows["who"].unique())[::-1]
    fig, each = panels(rows, by, title, 0.2 * len(order) + 0.2, 1.3, sharex=True, sharey=True)
    for ax, form, part in each:
        ax.axvline(chance, color="#999999", linewidth=0.8)
        innocent = part["kind"].isin(["independent", "unmarked", "stolen before"])
        _filled_dots(ax, part[measure], part["who"], order, innocent, part["accused"] == 1)
        least = part.loc[part["kind"] == "victim", "detectable"].mean()
        if by != "form":
            least += part.loc[part["kind"] == "independent", measure].mean()
        sides = [(least, "accused \u2192", "left"), (-least, "\u2190 accused", "right")]
        for value, text, side in sides[: 1 + (form == "published")]:  # which accuses on both sides
            if np.isfinite(value):
                ax.axvline(value, color=DARK, linestyle="--", linewidth=1)
                ax.annotate(text, (value, 1), xycoords=ax.get_xaxis_transform(), size=6.5, ha=side,
                            va="bottom")  # fmt: skip
        ax.set(xlabel=label)
        ax.set_title(str(form).replace(", ", ",\n") + " form" * (by == "form"), pad=14)
        if by == "head":
            in_percent(ax.xaxis)
    key(fig, {"accused": FILLED, "not accused": EMPTY, "victim, its copies and thieves": CYCLE[1],
              "took nothing": CYCLE[0]})  # fmt: skip
    return fig


# ------------------------------------------------------------------------------ the registry


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
        if isinstance(self.summary, str):
            return Summary(self.summary)
        shown = self.shown(table)
        result = self.summary(shown)
        if self.lengths or len(tables.trainings(table)) == 1 or " steps" in result.title:
            return result
        return result._replace(title=f"After {shown['steps'].max():g} steps: {result.title}")


FIGURES = {
    "00_samples": Row("Images of the embedded data sets (in code, the photographs are `patches`).",
                      sample_sheet, "Images of the embedded data sets"),
    "01_views": Row("Two augmented views of each image, as the victim's training sees them.",
                    sample_sheet, "Training images and two views of each"),
    "01_training": Row("The victim's training, monitored on held-out training images, whose neighbours "
                       "are looked for among up to 4,096 labelled ones: a probe of few labels is "
                       "less accurate.", training_curves, sentences.training),
    "01_worth": Row("The victim's features beside random ones and those of supervised training.",
                    worth_bars, sentences.worth),
    "01_stake": Row("How good an encoder a thief trains without the victim, by data set.",
                    stake_dots, sentences.stake),
    "01_embedding_map": Row("Test images as the encoders see them (t-SNE; numbers are classes).",
                            embedding_map, sentences.maps),
    "02_conventional": Row("Conventional attacks with equal queries.",
                           attack_dots, sentences.conventional),
    "02_readings": Row("Are encoders more vulnerable than classifiers? The lead of the thief of "
                       "embeddings over thieves of labels and posteriors, by what is compared.",
                       reading_dots, sentences.readings),
    "02_losses": Row("Stealing losses by victim and downstream task (published rows: queries are "
                     "test images there). A corrected interval allows for the choice of the best and the "
                     "worst among all pairs (Bonferroni).", query_dots, sentences.losses),
    "02_elsewhere": Row("Queries from other data than the victim's.",
                        query_dots, sentences.queries),
    "03_pulls": Row("Which vectors each loss moves a surrogate's vector towards, and away from.",
                    pull_maps, sentences.pulls),
    "03_attacks": Row("All attacks with equal queries.", attack_dots, sentences.attacks),
    "03_control": Row("Controls: attacks that are broken on purpose, beside whole ones.",
                      attack_dots, sentences.control),
    "03_rates": Row("Losses on held-out queries, by which each attack's learning rate is chosen "
                    "(bold: the least; the darker, the nearer to it).", rate_map, sentences.rates),
    "03_steps": Row("Accuracy against the length of training.", step_curves, sentences.steps,
                    lengths=True),
    "03_victims": Row("The attack Cont-Steal (with its augmentation) against conventional MSE (without) "
                      "on one victim of a recipe or several, with more seeds.",
                      victims_dots, sentences.victims),
    "03_views": Row("Losses by what surrogate and victim see of each image: at equal views only the "
                    "loss differs. The attack Cont-Steal of other figures is its loss on independent "
                    "views; the victim answers one of each image.", views_dots, sentences.views),
    "03_ablations": Row("What one changed knob at a time does to Cont-Steal, paired by seed.",
                        ablation_dots, sentences.ablations),
    "03_boundary": Row("When the contrastive loss beats MSE at equal views (bold: reliably; grey: "
                       "neither steals more than a thief has without the victim).",
                       boundary_maps, sentences.boundary),
    "03_geometry": Row("The victims' embeddings, and what Cont-Steal gains on them.",
                       geometry_dots, sentences.geometry),
    "03_embedding_map": Row("Test images as the victim and two surrogates see them (t-SNE; numbers are "
                            "classes).", embedding_map, sentences.maps),
    "04_budget": Row("Accuracy against the answers that a thief pays for. As published, Cont-Steal "
                     "trains on augmented views and MSE on clean images.", budget_curves,
                     sentences.budget),
    "05a_coverage": Row("What B4B sees of its users, and the noise that they get (beta 0.8 is published, "
                        "others are calibrated on customers).", coverage_curves, sentences.coverage),
    "05a_defenses": Row("Defences by strength: thieves, those that adapt, and the customer. In the green "
                        "corner a defence works.", defence_curves, sentences.defenses),
    "05a_matrix": Row("What each defence changes for thieves and for customers, in points (bold: "
                      "reliably; green: good for the provider). A defence is undecided where intervals "
                      "reach both sides, where two lengths of training disagree, or where it might work "
                      "and no thief has adapted to it.", defence_matrix, sentences.matrix),
    "05b_detectors": Row("What detectors see of customers and thieves, and whom they flag (filled, "
                         "in the shade). Projections are outputs of the head with which SimCLR was "
                         "trained.", detector_dots, sentences.detectors),
    "05b_roc": Row("ROC curves of the detectors' statistics, for each kind of thief (dots: at a "
                   "detector's own threshold).",
                   roc_curves, sentences.roc),
    "05b_accounts": Row("Answers before a refusal, and accounts that all answers take.",
                        account_dots, sentences.accounts),
    "05b_refused": Row("What a refused thief ends with: it stops, or goes on under new names.",
                       refused_dots, sentences.refused),
    "05c_inference": Row("Dataset inference: does an encoder know the victim's training set (filled)? "
                         "The victims memorise few images; the main victim saw many.",
                         suspect_dots, sentences.dataset_inference),
    "05c_sslguard": Row("SSLGuard: which encoders answer the secret key (filled).", suspect_dots,
                        sentences.guard),
    "05c_watermark": Row("The rotation watermark: which encoders carry it (filled).", suspect_dots,
                         sentences.watermark),
    "06_parties": Row("What each of a provider's means does to thieves, customers and others. Thieves "
                      "found are of the kind that is found least often. Others found are customers whom "
                      "a detector flags; independent encoders, or thieves of the victim before it was "
                      "marked, whom a proof accuses. Green is good for the provider; blank: does not "
                      "apply.", parties_sheet, sentences.parties),
}  # fmt: skip
