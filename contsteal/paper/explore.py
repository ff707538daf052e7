"""A panel over stored results: choose queries, attack and defence, and see who gets what.

Nothing is trained: the panel reads the tables of notebooks 04 and 05 as they are stored.
"""

import base64
import io
from pathlib import Path
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from contsteal.evaluate import mean_interval
from contsteal.lab import artifacts
from contsteal.paper import style

STORED = artifacts.ROOT / "figures"
QUIET = "#BBBBBB"


def tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Return the rows of budgets and of defences and their stamp; ValueError where they are missing."""
    budgets, stamp = style.read(folder, "04_budget")
    return budgets, style.read(folder, "05_defenses")[0], stamp


def _attacks(table: pd.DataFrame) -> list[str]:
    return [a for a in table["attack"].unique() if a not in style.REFERENCES]


def _told(values: pd.Series) -> str:
    """Say a mean and its 95 % t-interval over seeds, in per cent."""
    mean, low, high = mean_interval(values)
    return f"{style.percent(mean)} [{100 * low:.1f}, {100 * high:.1f}]"


def _budget(ax: Axes, table: pd.DataFrame, attack: str, images: float) -> None:
    """Draw accuracy against answers, the chosen attack in its colour and the others in grey."""
    for name in sorted(_attacks(table), key=lambda n: n == attack):
        rows = table[table["attack"] == name]
        mean = rows.groupby("images")[["calls", "accuracy"]].mean()
        colour = style.COLOURS.get(name, "#333333") if name == attack else QUIET
        ax.plot(mean["calls"], mean["accuracy"], color=colour, zorder=2)
    rows = table[(table["attack"] == attack) & (table["images"] == images)]
    colour = style.COLOURS.get(attack, "#333333")
    ax.plot(rows["calls"], rows["accuracy"], "o", color=colour, markersize=6, zorder=3)
    style.frame(ax, table, "accuracy", vertical=False)
    cost = f"{rows['calls'].mean():.0f} answers, {rows['usd'].mean():.2f} US dollars"
    ax.set(xscale="log", xlabel="answers of the victim (log scale)", ylabel="thief's accuracy")
    ax.set_title(f"{attack}, {images:.0f} images: {_told(rows['accuracy'])}\n{cost}", size=8)


def _defence(ax: Axes, table: pd.DataFrame, attack: str, defence: str) -> None:
    """Draw thief against customer per defence: the chosen one beside none, the others in grey."""
    known = _attacks(table)
    measured = attack if attack in known else known[0]
    rows = table[table["attack"] == measured]
    means = rows.groupby("defence", sort=False)[["legitimate", "accuracy"]].mean()
    ax.plot(means["legitimate"], means["accuracy"], "o", color=QUIET, markersize=4)
    for name, colour, below in (
        ("none", "#333333", True),
        (defence, style.COLOURS.get(measured), False),
    ):
        at = {"xytext": (-5, -11 if below else 6), "textcoords": "offset points", "ha": "right"}
        ax.plot(*means.loc[name], "o", color=colour, markersize=7)
        ax.annotate(style.short(name, 24), means.loc[name], size=7, **at)
    low, high = means["legitimate"].min(), means["legitimate"].max()
    room = max(high - low, 0.05)  # for the names, which stand to the left of their points
    ax.set_xlim(low - 0.9 * room, high + 0.1 * room)
    style.frame(ax, table, "accuracy", vertical=False)
    by = f"customer's accuracy (thief: {measured}, {rows['images'].iloc[0]:.0f} images)"
    ax.set(ylabel="thief's accuracy")
    ax.set_xlabel(by, size=7)
    lost = 100 * (means.loc[defence] - means.loc["none"])
    told = f"thief {lost['accuracy']:+.1f}, customer {lost['legitimate']:+.1f} points"
    ax.set_title(f"{style.short(defence)}:\n{told}", size=8)


def picture(
    budgets: pd.DataFrame, defended: pd.DataFrame, attack: str, images: float, defence: str
) -> Figure:
    """Draw one choice: what the thief gets for that many queries, and what the defence takes of whom.

    Errors: ValueError for an attack, a number of images or a defence that the tables do not have.
    """
    for what, given, known in (
        ("attack", attack, _attacks(budgets)),
        ("number of images", images, sorted(budgets["images"].dropna().unique())),
        ("defence", defence, list(defended["defence"].dropna().unique())),
    ):
        if given not in known:
            raise ValueError(f"no {what} {given!r} in the stored tables: choose one of {known}")
    fig, (left, right) = style.canvas(1, 2, height=2.9)
    _budget(left, budgets, attack, images)
    _defence(right, defended, attack, defence)
    for axis in (left.yaxis, right.xaxis, right.yaxis):
        axis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    return fig


class Panel(ipywidgets.VBox):
    """Three choices over the stored results of a profile, and the picture that belongs to them.

    Where widgets do not run (an executed copy, a page) the picture of the first choice is shown.
    Errors: ValueError where the profile has not stored the tables.
    """

    def __init__(self, profile: str = "demo") -> None:
        *self._tables, self._stamp = tables(STORED / profile)
        budgets, defended = self._tables
        counts = sorted(budgets["images"].dropna().unique().tolist())
        named = {"style": {"description_width": "6em"}}
        self.images = ipywidgets.SelectionSlider(
            options=[(f"{n:.0f}", n) for n in counts],
            value=counts[-1],
            description="queries",
            **named,
        )
        self.attack = ipywidgets.Dropdown(options=_attacks(budgets), description="attack", **named)
        known = [d for d in defended["defence"].dropna().unique() if d != "none"]
        self.defence = ipywidgets.Dropdown(options=known, description="defence", **named)
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%", "width": "52em"})
        choices = (self.images, self.attack, self.defence)
        for choice in choices:
            choice.observe(self._show, "value")
        self._show()
        super().__init__([*choices, self.image])

    def _show(self, change: object = None) -> None:
        fig = picture(*self._tables, self.attack.value, self.images.value, self.defence.value)
        style.sign(fig, self._stamp)
        data = io.BytesIO()
        fig.savefig(data, format="png")
        plt.close(fig)  # else the notebook would show it a second time
        self.image.value = data.getvalue()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        still = {"image/png": base64.b64encode(self.image.value).decode()}
        return super()._repr_mimebundle_(**options) | still
