"""Figures of differences: one knob at a time, where which attack wins, and what goes with it."""

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from contsteal.evaluate import mean_interval
from contsteal.paper.style import canvas, headline, require, worded

METRICS = {
    "norm_spread": "spread of norms",
    "anisotropy": "anisotropy",
    "effective_rank": "effective rank",
}
NAMES = {"independent": "augmented"}


def ablation_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy per knob and value: a dot per seed, mean and t-interval, a line at the default."""
    require(table, "knob", "value", "seed", "accuracy")
    groups = list(worded(table, "value").groupby(["knob", "value"], sort=False))[::-1]
    fig, ax = canvas(1, 1, height=0.22 * len(groups) + 0.9)
    default = groups[-1][1]["accuracy"].mean()
    ax.axvline(default, color="#333333", linewidth=0.8, linestyle=":")
    for at, (_, rows) in enumerate(groups):
        mean, low, high = mean_interval(rows["accuracy"])
        ax.plot([low, high], [at, at], color="#D55E00", linewidth=4, alpha=0.3)
        ax.plot(rows["accuracy"], [at] * len(rows), "o", color="#D55E00", markersize=3, alpha=0.8)
        ax.plot([mean], [at], "|", color="#D55E00", markersize=9, markeredgewidth=2)
    names = [f"{knob} {value}".strip() for (knob, value), _ in groups]
    ax.set_yticks(range(len(groups)), names)
    ax.set(xlabel="accuracy on the main task", ylim=(-0.6, len(groups) - 0.4))
    headline(fig, title)
    ax.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    return fig


def boundary_map(gains: pd.DataFrame, title: str) -> Figure:
    """Draw the difference in accuracy over images and epochs, a panel per query data and views.

    Cells hold points; those whose interval excludes zero are bold and framed.
    """
    require(gains, "method", "query_data", "views", "images", "epochs", "gain", "low", "high")
    panels = list(gains.groupby(["query_data", "views"], sort=False))
    rows = sorted({(m, e) for m, e in zip(gains["method"], gains["epochs"], strict=True)})
    columns = sorted(gains["images"].unique())
    fig, axes = canvas(1, len(panels), height=0.32 * len(rows) + 1.45, sharey=True, squeeze=False)
    bound = max(0.05, gains["gain"].abs().max())
    for ax, ((data, views), part) in zip(axes[0], panels, strict=True):
        grid = np.full((len(rows), len(columns)), np.nan)
        for r in part.itertuples():
            at = rows.index((r.method, r.epochs)), columns.index(r.images)
            grid[at] = r.gain
            _cell(ax, at, r)
        shown = ax.imshow(grid, cmap="RdBu_r", norm=TwoSlopeNorm(0, -bound, bound), aspect="auto")
        ax.set(xticks=range(len(columns)), xlabel="query images", title="")
        ax.set_title(f"{data},\n{NAMES.get(views, views)}", size=7.5)
        ax.set_xticklabels(columns)
        ax.set_yticks(range(len(rows)), [f"{m}, {e} epochs" for m, e in rows])
        ax.grid(False)
    bar = fig.colorbar(shown, ax=axes[0], shrink=0.8, format=lambda v, _: f"{100 * v:+.0f}")
    bar.set_label("points", size=7)
    headline(fig, title)
    return fig


def _cell(ax: Axes, at: tuple[int, int], r: pd.Series) -> None:
    sure = r.low > 0 or r.high < 0
    weight, edge = ("bold", "#000000") if sure else ("normal", "none")
    box = {"boxstyle": "square,pad=0.15", "facecolor": "#FFFFFFC0", "edgecolor": edge}
    ax.text(at[1], at[0], f"{100 * r.gain:+.0f}", ha="center", va="center", size=6.5,
            weight=weight, bbox=box, zorder=3)  # fmt: skip


def pull_map(table: pd.DataFrame, title: str) -> Figure:
    """Draw what each loss does to a surrogate's vector: whom it is drawn to, whom it is driven from."""
    require(table, "loss", "anchor", "other", "pull")
    groups = list(table.groupby("loss", sort=False))
    fig, axes = canvas(1, len(groups), height=2.1, sharey=True, squeeze=False)
    for ax, (name, rows) in zip(axes[0], groups, strict=True):
        wide = rows.pivot(index="anchor", columns="other", values="pull")
        wide = wide[sorted(wide, key=lambda c: (c[0], int(c[1:])))]
        bound = wide.abs().to_numpy().max()
        ax.imshow(wide, cmap="RdBu", norm=TwoSlopeNorm(0, -bound, bound), aspect="equal")
        ax.set(xticks=range(wide.shape[1]), title=name, xlabel="all vectors")
        ax.set_xticklabels(wide.columns, size=6)
        ax.set_yticks(range(len(wide)), wide.index)
        ax.axvline(len(wide) - 0.5, color="#333333", linewidth=0.8)
        ax.grid(False)
    axes[0][0].set_ylabel("surrogate's vector")
    headline(fig, title)
    return fig


def coverage_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw the share of the embedding space that users' answers cover, and the noise that it brings."""
    require(table, "user", "queries", "coverage", "noise")
    fig, axes = canvas(1, 2, height=2.3)
    colours = cycle(("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"))
    for (name, rows), colour in zip(table.groupby("user", sort=False), colours, strict=False):
        for ax, column in zip(axes, ("coverage", "noise"), strict=True):
            ax.plot(rows["queries"], rows[column], color=colour, label=name)
    axes[0].yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    axes[0].set(xlabel="queries", ylabel="share of buckets", ylim=(0, None))
    axes[1].set(xlabel="queries", ylabel="noise (standard deviation)", yscale="log")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center")
    headline(fig, title)
    return fig


def geometry_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw the mean difference in accuracy against three measures of the victim's embeddings."""
    require(table, "method", "query_data", "gain", *METRICS)
    fig, axes = canvas(1, 3, height=2.3, sharey=True)
    marks = dict(zip(table["query_data"].unique(), cycle("osD^v"), strict=False))
    colours = cycle(("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00"))
    palette = dict(zip(table["method"].unique(), colours, strict=False))
    for ax, (metric, label) in zip(axes, METRICS.items(), strict=True):
        ax.axhline(0, color="#999999", linewidth=0.8)
        for r in table.itertuples():
            ax.plot(getattr(r, metric), r.gain, marks[r.query_data], color=palette[r.method],
                    markersize=4, label=f"{r.method}, {r.query_data}")  # fmt: skip
        found = spearmanr(table[metric], table["gain"]) if len(table) > 4 else None
        told = f"rank correlation {found.statistic:+.2f}, n {len(table)}" if found else ""
        ax.set(xlabel=label)
        ax.set_title(told, size=7.5)
        ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:+.1f}")
    headline(fig, title)
    axes[0].set_ylabel("Cont-Steal minus MSE, points")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center", fontsize=6)
    return fig
