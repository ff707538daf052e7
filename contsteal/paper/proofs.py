"""What an owner's tables show: two figures, the sentences under them, and how often tests are wrong."""

from collections.abc import Mapping
from itertools import cycle

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from contsteal.lab import tables
from contsteal.ownership import inference
from contsteal.paper import style
from contsteal.paper.style import canvas, headline, require

ALPHA = 0.05
LEAST = 1e-12  # the smallest p-value that a figure tells from zero
P_VALUES = ("p_chance", "p_rank", "p_controls")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
TESTS = {
    "p_chance": "watermark, against chance",
    "p_rank": "watermark, by rank, against chance",
    "p_paper": "watermark, against one independent encoder",
    "p_controls": "watermark, against the other independent encoders",
    "p": "dataset inference",
    "p_keys": "SSLGuard, against random keys",
}
ORDER = ("victim", "unmarked", "obfuscated", "stolen", "independent")


# ------------------------------------------------------------------------------ sentences


def _of(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    return table[table["kind"] == kind]


def _span(values: pd.Series) -> str:
    """Return a set of shares as one percentage or as a range."""
    values = values.dropna()
    if values.empty:
        return "none"
    low, high = (f"{100 * v:.1f}" for v in (values.min(), values.max()))
    return f"{low} %" if low == high else f"{low} to {high} %"


def watermarked(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Say of each head what victim, thieves and independent encoders answer, and what marking costs."""
    told = [_told(head, rows) for head, rows in table.groupby("head", sort=False)]
    shown = table.assign(
        asked=("on " + table["on"]).where(table["applies"] == "yes", table["applies"])
    )
    by = ["head", "suspect", "images", "asked"]
    numbers = tables.summary(shown, by, ["wsr", "auc", "accuracy"])
    p_values = shown.groupby(by, sort=False, dropna=False)[[*P_VALUES]].median()
    return "; ".join(told) + ".", numbers.assign(**{k: p_values[k].to_numpy() for k in P_VALUES})


def _told(head: str, rows: pd.DataFrame) -> str:
    """Say of one head what everybody answers."""
    victim, before = (_of(rows, kind).iloc[0] for kind in ("victim", "unmarked"))
    largest = _of(rows, "stolen")["images"].max()
    last = _of(rows, "stolen")[lambda t: t["images"] == largest]
    thieves = [f"`{n}` {_span(r['wsr'])}" for n, r in last.groupby("suspect", sort=False)]
    own, was = (f"{style.percent(r['wsr'])}" for r in (victim, before))
    worth, had = (f"{style.percent(r['accuracy'])}" for r in (victim, before))
    return (
        f"{head} ({victim['mark']}): the victim's own rate is {own}, {was} before marking; at "
        f"{largest:g} query images {', '.join(thieves)}; independent encoders "
        f"{_span(_of(rows, 'independent')['wsr'])}; accuracy {worth}, {had} before marking"
    )


def inferred(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Say how many encoders of each kind dataset inference accuses, in its two forms."""
    told = []
    for form, rows in table.groupby("form", sort=False):
        counts = [
            f"{(_of(rows, kind)['p'] <= ALPHA).sum()} of {len(_of(rows, kind))} {kind}"
            for kind in ORDER
            if len(_of(rows, kind))
        ]
        told.append(f"the {form} test accuses {', '.join(counts)}")
    numbers = table.groupby(["form", "suspect", "images", "on"], sort=False, dropna=False)
    means = numbers[["gap", "effect"]].mean().round(3).assign(p=numbers["p"].median())
    return "; ".join(told) + f", at {100 * ALPHA:g} %.", means.assign(n=numbers.size())


def wrong(*found: pd.DataFrame) -> pd.DataFrame:
    """Return how often each test accuses independent encoders, with its Clopper-Pearson 95 % interval.

    A row per test, and per head or form; `of` is the number of encoders that the test is defined for.
    """
    rows = []
    for table in found:
        by = next((c for c in ("head", "form") if c in table), None)
        groups = table.groupby(by, sort=False) if by else [("", table)]
        for which, part in groups:
            rows += [
                _wrong(name, which, _of(part, "independent")[column])
                for column, name in TESTS.items()
                if column in part
            ]
    return pd.DataFrame(rows).set_index(["test", "form"])


def _wrong(name: str, which: str, p_values: pd.Series) -> Mapping[str, object]:
    """Return one test's false positives; without an encoder there is no rate."""
    p_values = p_values.dropna()
    row = {
        "test": name,
        "form": which,
        "accused": int((p_values <= ALPHA).sum()),
        "of": len(p_values),
    }
    if not len(p_values):
        return row | {"rate": "-", "95 % interval": "-"}
    rate = inference.proportion(row["accused"], row["of"])
    interval = f"{100 * rate.low:.0f} to {100 * rate.high:.0f} %"
    return row | {"rate": style.percent(rate.rate), "95 % interval": interval}


# -------------------------------------------------------------------------------- figures


def rate_curves(table: pd.DataFrame) -> Figure:
    """Draw the watermark success rate against query images, a panel per head; dots are runs.

    Lines stand at the victim's own rate, at the victim's before marking and at chance; the band holds
    the independent encoders.
    """
    require(table, "head", "kind", "suspect", "images", "wsr")
    groups = list(table.groupby("head", sort=False))
    asked = sorted(_of(table, "stolen")["images"].unique())
    fig, axes = canvas(1, len(groups), height=2.9, sharex=True, sharey=True, squeeze=False)
    for ax, (head, rows) in zip(axes[0], groups, strict=True):
        _levels(ax, rows)
        stolen = _of(rows, "stolen")
        for (name, runs), colour in zip(stolen.groupby("suspect", sort=False), cycle(COLOURS)):
            mean = runs.groupby("images")["wsr"].mean()
            ax.plot(runs["images"], runs["wsr"], "o", color=colour, markersize=3, alpha=0.5)
            ax.plot(mean.index, mean, color=colour, label=name)
        ax.set(xlabel="query images", xscale="log", xticks=asked)
        ax.set_xticklabels([f"{n:g}" for n in asked])
        ax.minorticks_off()
        ax.set_title(head, size=7.5)
        ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    axes[0][0].set_ylabel("watermark success rate")
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=6.5)
    headline(fig, _verdict(table))
    return fig


def _levels(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw what a thief's rate is to be compared with."""
    alone = _of(rows, "independent")["wsr"].dropna()
    if len(alone):
        ax.axhspan(alone.min(), alone.max(), color="#BBBBBB", alpha=0.45, linewidth=0,
                   label=f"{len(alone)} independent")  # fmt: skip
    for kind, look, colour in (("victim", "--", "#000000"), ("unmarked", "-.", "#777777")):
        label = {"victim": "victim", "unmarked": "victim before marking"}[kind]
        for value in _of(rows, kind)["wsr"].dropna():
            ax.axhline(value, linestyle=look, color=colour, linewidth=1, label=label)
    ax.axhline(0.5, linestyle=":", color="#999999", linewidth=1, label="chance")


def _verdict(table: pd.DataFrame) -> str:
    """Return a title: the highest rates under the first head."""
    rows = table[table["head"] == table["head"].iloc[0]]
    told = [f"victim {100 * _of(rows, 'victim')['wsr'].iloc[0]:.0f} %"]
    for kind, name in (("stolen", "thieves"), ("independent", "independent")):
        rates = _of(rows, kind)["wsr"].dropna()
        told.append(f"{name} up to {100 * rates.max():.0f} %" if len(rates) else f"no {name}")
    return "Watermark read rightly: " + ", ".join(told)


def verdict_dots(table: pd.DataFrame) -> Figure:
    """Draw each suspect's gap in standard deviations and its p-value, by both forms of the test."""
    require(table, "kind", "suspect", "form", "effect", "p")
    names = list(table["suspect"].unique())[::-1]
    fig, axes = canvas(1, 2, height=0.24 * len(names) + 1.3, sharey=True)
    looks = {"signed": ("o", "#0072B2", 0.1), "published": ("D", "#D55E00", -0.1)}
    signed = table[table["form"] == "signed"]
    axes[0].plot(signed["effect"], signed["suspect"].map(names.index), "o", color="#0072B2",
                 markersize=4, alpha=0.7)  # fmt: skip
    axes[0].axvline(0, color="#999999", linewidth=0.8)
    for form, (mark, colour, shift) in looks.items():
        rows = table[table["form"] == form]
        axes[1].plot(rows["p"].clip(lower=LEAST), rows["suspect"].map(names.index) + shift, mark,
                     color=colour, markersize=3.5, alpha=0.7, label=form)  # fmt: skip
    axes[1].axvline(ALPHA, color="#333333", linestyle="--", linewidth=1)
    axes[1].annotate(f"{100 * ALPHA:g} %", (ALPHA, 1), xycoords=("data", "axes fraction"), size=6.5,
                     ha="center", va="bottom")  # fmt: skip
    axes[0].set(xlabel="gap in standard deviations", ylim=(-0.6, len(names) - 0.4))
    axes[0].set_yticks(range(len(names)), names)
    axes[1].set(xlabel="p-value (log scale)", xscale="log", xlim=(None, 1.6))
    fig.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
    headline(fig, _accusation(signed))
    return fig


def _accusation(signed: pd.DataFrame) -> str:
    """Return a title: whom the signed test accuses."""
    hits = signed.assign(hit=signed["p"] <= ALPHA).groupby("kind")["hit"].agg(["sum", "size"])
    told = [f"{hits.loc[k, 'sum']} of {hits.loc[k, 'size']} {k}" for k in ORDER if k in hits.index]
    return "The signed test accuses " + ", ".join(told)
