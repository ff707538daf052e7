"""The look of every figure, and the one way to save it and to read its table back."""

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from contsteal import files

STYLE = Path(__file__).parent.with_name("contsteal.mplstyle")
REFERENCES = ("random", "victim")
# Okabe and Ito's colours, told apart by colour-blind readers; one method, one colour, everywhere.
COLOURS = {
    "label": "#999999",
    "posterior": "#56B4E9",
    "embedding": "#0072B2",
    "info-nce": "#009E73",
    "cont-steal": "#D55E00",
    "cont-steal-code": "#E69F00",
    "embedding, anew": "#56B4E9",
    "cont-steal, anew": "#CC79A7",
    "random": "#BBBBBB",
    "supervised": "#333333",
    "simclr": "#D55E00",
    "moco": "#0072B2",
    "byol": "#009E73",
    "simsiam": "#CC79A7",
}
WIDEST = 92  # characters of a title that fit a figure
FLOOR, CEILING = "#777777", "#000000"


def percent(value: float) -> str:
    """Format a share as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def short(name: str, most: int = 34) -> str:
    """Leave out parameters in brackets of a name longer than `most`, but the first where it fits."""
    first = re.sub(r"\(([^,()]*),.*\)", r"(\1, ...)", name)
    whole = re.sub(r"\(.*\)", "(...)", name)
    return next((n for n in (name, first) if len(n) <= most), whole)


def require(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return the table if it has rows and these columns; ValueError names what is missing."""
    missing = [c for c in columns if c not in table.columns]
    if missing or table.empty:
        raise ValueError(
            f"table has columns {list(table.columns)}, {len(table)} rows: needs {columns}"
        )
    return table


def headline(fig: Figure, title: str) -> None:
    """Put a figure's message on top, in lines that are no wider than the figure."""
    if lines := textwrap.wrap(title, WIDEST):
        fig.suptitle("\n".join(lines), x=0.01, ha="left", size=9, weight="bold")


def worded(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the table with a column of texts; empty cells, of which a column may have nothing else,
    are empty texts."""
    return table.assign(**{column: table[column].astype(object).fillna("").astype(str)})


def sign(fig: Figure, stamp: dict[str, str]) -> None:
    """Write below a figure which run its numbers come from."""
    told = f"{stamp['profile']} profile, {stamp['data']}, seeds {stamp['seeds']}"
    told = f"{told}; {stamp['device']}; {stamp['date']}"
    fig.supxlabel(told, size=6, color="#888888", x=0.99, ha="right")


def save(fig: Figure, folder: Path, stem: str, table: pd.DataFrame, stamp: dict[str, str]) -> None:
    """Write `<stem>.pdf`, `.png` and the `.csv` behind them, with the stamp on the figure.

    The stamp (profile, data, seeds, device, date) also goes into `<stem>.json`, so the figure can be
    drawn again later with the facts of its own run. Equal inputs give equal bytes.
    """
    files.write_json(folder / f"{stem}.json", stamp)
    sign(fig, stamp)
    with files.atomic(folder / f"{stem}.csv") as path:
        table.to_csv(path, index=False, float_format="%.6f")
    with files.atomic(folder / f"{stem}.pdf") as path:
        fig.savefig(path, format="pdf", metadata={"CreationDate": None})
    fig.set_layout_engine("none")  # it is laid out now; each further drawing would do it again
    with files.atomic(folder / f"{stem}.png") as path:
        fig.savefig(path, format="png", metadata={"Software": None})


def read(folder: Path, stem: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return a figure's table and stamp; ValueError where the run that makes them is missing."""
    stamp, path = files.read_json(folder / f"{stem}.json"), folder / f"{stem}.csv"
    if stamp is None or not path.is_file():
        raise ValueError(f"{path} is missing: run notebook {stem[:2]} of this profile first")
    return pd.read_csv(path), stamp


def as_read(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as it reads back from its CSV, so that a figure is drawn from what is kept."""
    return pd.read_csv(io.StringIO(table.to_csv(index=False, float_format="%.6f")))


def canvas(
    rows: int = 1, columns: int = 1, height: float = 2.6, **options: object
) -> tuple[Figure, object]:
    """Return a figure of text width in the house style and its axes."""
    plt.style.use(STYLE)
    # Drawn and saved at once: nothing is lost when the oldest of many figures is closed.
    if len(plt.get_fignums()) > 9:
        plt.close(plt.get_fignums()[0])
    fig, axes = plt.subplots(rows, columns, figsize=(6.75, height), **options)
    return fig, axes


def frame(ax: Axes, table: pd.DataFrame, metric: str, vertical: bool = True) -> None:
    """Draw the random floor and the victim's ceiling, labelled at their ends outside the axes.

    Of axes that share a scale the rightmost has the labels of horizontal lines, for all.
    """
    same = ax.get_shared_y_axes().get_siblings(ax)
    last = max(same, key=lambda other: other.get_position().x0)
    for name, colour, style in (("random", FLOOR, ":"), ("victim", CEILING, "--")):
        value = table.loc[table["attack"] == name, metric].mean()
        line = ax.axvline if vertical else ax.axhline
        line(value, color=colour, linestyle=style, linewidth=1)
        text = {"size": 6.5, "textcoords": "offset points", "color": colour}
        if vertical:
            told, end = f"{name} {percent(value)}", ("data", "axes fraction")
            ax.annotate(told, (value, 1), xytext=(2, 1), xycoords=end, ha="center", **text)
        elif ax is last:
            told, end = f"{name}\n{percent(value)}", ("axes fraction", "data")
            ax.annotate(told, (1, value), xytext=(3, 0), xycoords=end, va="center", **text)


def number(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Write 1, 2, ... beside points (x, y); where they crowd, above each other, tied to their points."""
    wide, high = (abs(end - start) for start, end in (ax.get_xlim(), ax.get_ylim()))
    placed: list[tuple[float, float]] = []
    for k in sorted(range(len(points)), key=lambda k: points[k][1]):
        x, y = points[k]
        beside = [b for a, b in placed if abs(a - x) < wide / 8]
        at = max([y, *(b + high / 18 for b in beside)])
        placed.append((x, at))
        tie = {"arrowstyle": "-", "linewidth": 0.4, "color": FLOOR, "shrinkA": 0, "shrinkB": 1}
        ax.annotate(str(k + 1), (x, y), xytext=(x + wide / 20, at), size=7, va="center",
                    arrowprops=tie if at > y else None)  # fmt: skip
