"""Figures of what a defence changes for whom, and of what detectors see of their users."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from contsteal.paper.style import canvas, headline, require, short

# A thief's loss is the provider's gain, a customer's is not: green is good for the provider.
GOOD = {"attacker": -1, "customer": 1}


def defence_matrix(table: pd.DataFrame, title: str) -> Figure:
    """Draw the change of accuracy by each defence (rows) for each attack and customer's task (columns).

    Cells hold points; those whose 95 % t-interval excludes zero, or that draw nothing, are bold.
    """
    require(table, "defence", "party", "who", "change", "low", "high")
    rows = list(table["defence"].unique())
    columns = list(dict.fromkeys(zip(table["party"], table["who"], strict=True)))
    grid = np.full((len(rows), len(columns)), np.nan)
    fig, ax = canvas(1, 1, height=0.34 * len(rows) + 1.2)
    for r in table.itertuples():
        at = rows.index(r.defence), columns.index((r.party, r.who))
        grid[at] = 100 * GOOD[r.party] * r.change
        weight = "bold" if r.low > 0 or r.high < 0 else "normal"
        ax.text(
            at[1],
            at[0],
            f"{round(100 * r.change) + 0:+d}",
            ha="center",
            va="center",
            size=7,
            weight=weight,
        )
    bound = max(5.0, np.nanmax(np.abs(grid)))
    ax.imshow(grid, cmap="PiYG", vmin=-1.3 * bound, vmax=1.3 * bound, aspect="auto")
    ax.set_yticks(range(len(rows)), [short(r) for r in rows])
    ax.set_xticks(range(len(columns)), [f"{who}\n{party}" for party, who in columns])
    ax.xaxis.tick_top()
    attackers = sum(party == "attacker" for party, _ in columns)
    ax.axvline(attackers - 0.5, color="#333333", linewidth=1.5)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    headline(fig, title)
    return fig


def detector_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw each detector's statistic per user, a dot per seed, filled where the user was flagged."""
    require(table, "detector", "user", "seed", "statistic", "flagged")
    kinds, users = list(table["detector"].unique()), list(table["user"].unique())[::-1]
    fig, axes = canvas(1, len(kinds), height=0.28 * len(users) + 1.1, sharey=True, squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        for r in table[table["detector"] == kind].itertuples():
            colour = "#0072B2" if r.user.startswith("customer") else "#D55E00"
            fill = colour if r.flagged in (True, 1) else "white"
            ax.plot(r.statistic, users.index(r.user), "o", color=colour, markerfacecolor=fill,
                    markersize=5)  # fmt: skip
        ax.set_yticks(range(len(users)), users)
        ax.set(ylim=(-0.6, len(users) - 0.4), xlabel=kind)
    headline(fig, title)
    return fig
