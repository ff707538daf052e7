"""Draw a profile's figures again from their tables, and show all of them on one page.

`python -m contsteal.redraw --profile demo` is what `make figures` calls; with `--check` nothing is
written, and the exit code says whether every stored figure is what its table draws.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from rich.markup import escape

from contsteal import files
from contsteal.lab import artifacts, profiles
from contsteal.paper import report, style
from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


def finish(work, *errors):
    return work()

SHEET = "contact_sheet"
COLUMNS, WIDTH, GAP = 3, 640, 24  # of the sheet, in pixels


def stored(folder: Path) -> list[str]:
    """Return the figures whose table and stamp lie in a folder, in the order of the notebooks."""
    return [
        stem
        for stem in report.FIGURES
        if all((folder / f"{stem}.{kind}").is_file() for kind in ("csv", "json"))
    ]


def profiles_with_results(name: str = "auto") -> list[str]:
    """Return the profile named, or with "auto" every one that has results.

    Errors: ValueError for an unknown profile, and for one without results, with the command that
    makes them and the profiles that have some.
    """
    known = [p for p in profiles.names() if stored(artifacts.figures_dir() / p)]
    if name != "auto":
        profiles.profile(name)
    if name == "auto" and known:
        return known
    if name not in known:
        wanted = "" if name == "auto" else f" PROFILE={name}"
        raise ValueError(
            f"no results in {artifacts.figures_dir() / name if wanted else artifacts.figures_dir()}: "
            f"`make paper{wanted}` makes them; there are some of: {', '.join(known) or 'no profile'}"
        )
    return [name]


def redraw(folder: Path, stem: str, into: Path) -> None:
    """Draw one figure of `folder` from its table, with its own stamp, and save it in `into`.

    Equal tables give equal bytes. Errors: ValueError where the table or its stamp is missing."""
    table, stamp = style.read(folder, stem)
    style.save(report.draw(stem, style.as_read(table)), into, stem, table, stamp)


def stale(folder: Path, stems: Sequence[str]) -> list[str]:
    """Return the figures whose stored picture is missing or not the one that their table draws."""
    found = []
    with tempfile.TemporaryDirectory() as home:
        for stem in stems:
            redraw(folder, stem, Path(home))
            if not _alike(folder / f"{stem}.png", Path(home) / f"{stem}.png"):
                found.append(stem)
    return found


def _alike(a: Path, b: Path) -> bool:
    """Say whether two pictures are one but for the rounding of another processor's text edges."""
    if not a.is_file():
        return False
    x, y = (np.asarray(Image.open(path).convert("RGB"), dtype=np.int16) for path in (a, b))
    return x.shape == y.shape and bool((np.abs(x - y).max(axis=2) > 8).mean() < 1e-5)


def sheet(folder: Path) -> Path:
    """Put all pictures of a folder on one page, `contact_sheet.png` and `.pdf`; return the first.

    Equal pictures give equal bytes. Errors: ValueError where there is no picture.
    """
    stems = [s for s in report.FIGURES if (folder / f"{s}.png").is_file()]
    if not stems:
        raise ValueError(f"no figure in {folder}: `make figures` draws them from their tables")
    page = _page([(stem, Image.open(folder / f"{stem}.png").convert("RGB")) for stem in stems])
    with files.atomic(folder / f"{SHEET}.pdf") as path:
        # Pillow would note the time and the temporary name, and no two runs would agree.
        same = {"title": SHEET, "creationDate": None, "modDate": None}
        page.save(path, "PDF", resolution=200, quality=85, **same)
    with files.atomic(folder / f"{SHEET}.png") as path:
        page.quantize(256).save(path, "PNG", optimize=True)
    return folder / f"{SHEET}.png"


def _page(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Lay pictures out in columns of one width, each under its name, in reading order by column."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 18)
    sized = [(s, p.resize((WIDTH, round(p.height * WIDTH / p.width)))) for s, p in pictures]
    share = sum(p.height + 2 * GAP for _, p in sized) / COLUMNS
    places, column, top = [], 0, GAP
    for stem, picture in sized:
        if column < COLUMNS - 1 and top + picture.height / 2 > share:
            column, top = column + 1, GAP
        places.append((stem, picture, GAP + column * (WIDTH + GAP), top))
        top += picture.height + 2 * GAP
    bottom = max(y + p.height for _, p, _, y in places) + 2 * GAP
    page = Image.new("RGB", (COLUMNS * (WIDTH + GAP) + GAP, bottom), "white")
    pen = ImageDraw.Draw(page)
    for stem, picture, x, y in places:
        pen.text((x, y), stem, "#666666", font)
        page.paste(picture, (x, y + GAP))
    return page


def _draw(profile: str) -> int:
    folder = artifacts.figures_dir() / profile
    stems, changed = stored(folder), []
    for stem in stems:
        files = [folder / f"{stem}.{kind}" for kind in ("pdf", "png")]
        before = [path.read_bytes() if path.is_file() else b"" for path in files]
        redraw(folder, stem, folder)
        if before != [path.read_bytes() for path in files]:
            changed.append(stem)
    made = sheet(folder)
    told = f"changed: {', '.join(changed)}" if changed else "none changed"
    console.print(escape(f"{profile}: {len(stems)} figures drawn, {told}; all on one page: {made}"))
    return 0


def _check(profile: str) -> int:
    folder = artifacts.figures_dir() / profile
    found = stale(folder, stored(folder))
    told = f"not what their tables draw: {', '.join(found)}; `make figures PROFILE={profile}`"
    console.print(escape(f"{profile}: {told if found else 'every figure is what its table draws'}"))
    return int(bool(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, draw or check, and return the exit code."""
    parser = argparse.ArgumentParser(prog="contsteal.redraw", description=__doc__)
    parser.add_argument("--profile", default="auto", help="a profile; auto: all with results")
    parser.add_argument("--check", action="store_true", help="write nothing, name stale figures")
    given = parser.parse_args(arguments)
    return finish(
        lambda: max(
            [(_check if given.check else _draw)(p) for p in profiles_with_results(given.profile)]
        )
    )


if __name__ == "__main__":
    sys.exit(main())
