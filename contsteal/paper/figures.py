"""How figures are drawn from their tables, saved, read back, redrawn and checked.

`python -m contsteal.paper.figures --profile demo` is what `make figures` calls; with `--check` nothing
is written, and the exit code says whether every stored figure is what its table draws.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape

from contsteal import files
from contsteal.lab import artifacts, profiles
from contsteal.lab.sweeps import VARYING
from contsteal.paper import plots
from contsteal.paper.plots import FIGURES

Stamp = dict[str, str]  # profile, data, seeds, device, torch and date of a run

SPENT = ("attack", "images", "seed", "views", "defence", "knob", "value")  # one run, many tasks


# -------------------------------------------------------------------- draw, save and read


def draw(stem: str, table: pd.DataFrame) -> Figure:
    """Draw the figure `stem` from its table.

    Raises ValueError for an unknown stem, which lists the known, and for a table without rows or
    columns; NothingToShow for one with too few points.
    """
    if stem not in FIGURES:
        raise ValueError(f"unknown figure {stem!r}: choose one of {', '.join(FIGURES)}")
    if table.empty:
        raise ValueError(f"{stem}: the table has no rows")
    row = FIGURES[stem]
    try:
        return row.plot(table, row.summarise(table).title)
    except KeyError as error:
        columns = ", ".join(map(str, table.columns))
        raise ValueError(f"{stem}: the table lacks {error}; its columns are {columns}") from error


def save(fig: Figure | None, folder: Path, stem: str, table: pd.DataFrame, stamp: Stamp) -> None:
    """Write `<stem>.pdf`, `.png` and the `.csv` behind them, with the stamp on the figure.

    The stamp also goes into `<stem>.json`, so that the figure can be drawn again with the facts of its
    own run. Without a figure no picture stays. Equal inputs give equal bytes.
    """
    files.write_json(folder / f"{stem}.json", stamp)
    with files.atomic(folder / f"{stem}.csv") as path:
        table.to_csv(path, index=False, float_format="%.6f")
    if fig is None:
        for kind in ("pdf", "png"):
            (folder / f"{stem}.{kind}").unlink(missing_ok=True)
        return
    run = f"{stamp['profile']} profile, {stamp['data']}, seeds {stamp['seeds']}"
    run = f"{run}; {stamp['device']}; {stamp['date']}"
    fig.supxlabel(run, size=6, color="#888888", x=0.99, ha="right")
    with files.atomic(folder / f"{stem}.pdf") as path:
        fig.savefig(path, format="pdf", metadata={"CreationDate": None})
    fig.set_layout_engine("none")  # it is laid out now; each further drawing would do it again
    with files.atomic(folder / f"{stem}.png") as path:
        fig.savefig(path, format="png", metadata={"Software": None})


def read(folder: Path, stem: str) -> tuple[pd.DataFrame, Stamp]:
    """Return a figure's table and stamp; ValueError where the run that makes them is missing."""
    stamp, path = files.read_json(folder / f"{stem}.json"), folder / f"{stem}.csv"
    if stamp is None or not path.is_file():
        raise ValueError(f"{path} is missing: run notebook {stem[:2]} of this profile first")
    return pd.read_csv(path), stamp


def as_read(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as it reads back from its CSV, so that a figure is drawn from what is kept."""
    return pd.read_csv(io.StringIO(table.to_csv(index=False, float_format="%.6f")))


def redraw(stem: str, table: pd.DataFrame, stamp: Stamp, folder: Path) -> Figure | None:
    """Draw a figure from its table as stored and save both; say so where there is nothing to show.

    Equal tables give equal bytes.
    """
    fig = None
    try:
        fig = draw(stem, as_read(table))
    except plots.NothingToShow as reason:
        print(f"{stem} is not drawn: {reason}")
    save(fig, folder, stem, table, stamp)
    return fig


def publish(stem: str, table: pd.DataFrame, stamp: Stamp) -> Figure | None:
    """Draw a figure and save it with its table in its profile's folder of `publish_dir()`.

    What no two runs share (VARYING) is not stored: `costs` shows it.
    """
    table = table.drop(columns=list(VARYING), errors="ignore")
    return redraw(stem, table, stamp, artifacts.publish_dir() / stamp["profile"])


def note(stem: str, table: pd.DataFrame, stamp: Stamp) -> pd.DataFrame:
    """Keep a table of times, which no two runs share, as JSON beside the figures; return it."""
    folder = artifacts.publish_dir() / stamp["profile"]
    files.write_json(folder / f"{stem}.json", stamp | {"rows": table.to_dict("index")})
    return table


def costs(stem: str, table: pd.DataFrame, stamp: Stamp) -> pd.DataFrame:
    """Return and `note` what each attack cost: means over runs of both budgets, dollars, seconds.

    `forwards` are those that the victim really computed: answers are cached, so attacks that send the
    same images share them. Seconds are of the run that computed an attack, on its own core.
    """
    spent = table.drop_duplicates([c for c in SPENT if c in table])
    columns = ["unique_inputs", "calls", "usd", *VARYING]
    means = spent.groupby("attack", sort=False)[columns].mean().dropna(how="all").round(2)
    return note(stem, means, stamp)


# ----------------------------------------------------------------------- stored figures


def stored(folder: Path) -> list[str]:
    """Return the figures whose table and stamp lie in a folder, in the order of the notebooks."""
    kinds = ("csv", "json")
    return [s for s in FIGURES if all((folder / f"{s}.{kind}").is_file() for kind in kinds)]


def profiles_with_results(name: str = "auto") -> list[str]:
    """Return the profile named, or with "auto" every one that has results.

    Raises ValueError for an unknown profile, and for one without results, with the command that makes
    them and the profiles that have some.
    """
    home, option = artifacts.figures_dir(), "" if name == "auto" else f" PROFILE={name}"
    if name != "auto":
        profiles.profile(name)
    known = [p for p in profiles.names() if stored(home / p)]
    chosen = [p for p in known if name in ("auto", p)]
    if not chosen:
        raise ValueError(f"no results in {home}: `make paper{option}` makes them; there are some of: "
                         f"{', '.join(known) or 'no profile'}")  # fmt: skip
    return chosen


def stale(folder: Path, stems: Sequence[str]) -> list[str]:
    """Return the figures whose stored picture is missing or not the one that their table draws."""
    with tempfile.TemporaryDirectory() as home:
        for stem in stems:
            redraw(stem, *read(folder, stem), Path(home))
        return [s for s in stems if not _alike(folder / f"{s}.png", Path(home) / f"{s}.png")]


def _alike(a: Path, b: Path) -> bool:
    """Say whether two pictures are one but for the rounding of another processor's text edges."""
    if not (a.is_file() and b.is_file()):
        return a.is_file() == b.is_file()
    x, y = (np.asarray(Image.open(path).convert("RGB"), dtype=np.int16) for path in (a, b))
    return x.shape == y.shape and bool((np.abs(x - y).max(axis=2) > 8).mean() < 1e-5)


def sheet(folder: Path) -> Path:
    """Put all pictures of a folder on one page, `contact_sheet.png` and `.pdf`; return the first.

    Equal pictures give equal bytes. Raises ValueError where there is no picture.
    """
    stems = [s for s in FIGURES if (folder / f"{s}.png").is_file()]
    if not stems:
        raise ValueError(f"no figure in {folder}: `make figures` draws them from their tables")
    page = _page({stem: Image.open(folder / f"{stem}.png").convert("RGB") for stem in stems})
    with files.atomic(folder / "contact_sheet.pdf") as path:
        # Pillow would note the time and the temporary name, and no two runs would agree.
        same = {"title": "contact_sheet", "creationDate": None, "modDate": None}
        page.save(path, "PDF", resolution=200, quality=85, **same)
    with files.atomic(folder / "contact_sheet.png") as path:
        page.quantize(256).save(path, "PNG", optimize=True)
    return folder / "contact_sheet.png"


def _page(pictures: dict[str, Image.Image]) -> Image.Image:
    """Lay pictures out in three columns of about the same height, each under its name."""
    columns, width, gap = 3, 640, 24
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 18)
    sized = {s: p.resize((width, round(p.height * width / p.width))) for s, p in pictures.items()}
    share = sum(p.height + 2 * gap for p in sized.values()) / columns
    page = Image.new("RGB", (columns * (width + gap) + gap, round(2 * share) + 4 * gap), "white")
    pen, column, top, bottom = ImageDraw.Draw(page), 0, gap, 0
    for stem, picture in sized.items():
        if column < columns - 1 and top + picture.height / 2 > share:
            column, top = column + 1, gap
        x = gap + column * (width + gap)
        pen.text((x, top), stem, "#666666", font)
        page.paste(picture, (x, top + gap))
        top += picture.height + 2 * gap
        bottom = max(bottom, top)
    return page.crop((0, 0, page.width, bottom + gap))


# ------------------------------------------------------------------------- the command


def update(profile: str) -> tuple[int, str]:
    """Redraw a profile's stored figures; return the exit code and what changed."""
    folder = artifacts.figures_dir() / profile
    stems, changed = stored(folder), []
    for stem in stems:
        pictures = [folder / f"{stem}.{kind}" for kind in ("pdf", "png")]
        before = [path.read_bytes() for path in pictures if path.is_file()]
        redraw(stem, *read(folder, stem), folder)
        if before != [path.read_bytes() for path in pictures if path.is_file()]:
            changed.append(stem)
    message = f"changed: {', '.join(changed)}" if changed else "none changed"
    return 0, f"{profile}: {len(stems)} figures, {message}; all on one page: {sheet(folder)}"


def check(profile: str) -> tuple[int, str]:
    """Return 1 and the stale figures of a profile, or 0; nothing is written."""
    folder = artifacts.figures_dir() / profile
    if stems := stale(folder, stored(folder)):
        names = ", ".join(stems)
        return (
            1,
            f"{profile}: not what their tables draw: {names}; `make figures PROFILE={profile}`",
        )
    return 0, f"{profile}: every figure is what its table draws"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, draw or check, and return the exit code."""
    parser = argparse.ArgumentParser(prog="contsteal.paper.figures", description=__doc__)
    parser.add_argument("--profile", default="auto", help="a profile; auto: all with results")
    parser.add_argument("--check", action="store_true", help="write nothing, name stale figures")
    given, console, codes = parser.parse_args(arguments), Console(soft_wrap=True), [0]
    try:
        for profile in profiles_with_results(given.profile):
            code, message = check(profile) if given.check else update(profile)
            codes.append(code)
            console.print(message, markup=False, highlight=False)
    except (ValueError, files.StorageError) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        return 1
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
