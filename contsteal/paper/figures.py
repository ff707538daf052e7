"""Every figure, as one row of `FIGURES`; how they are saved, read back, redrawn and checked.

`python -m contsteal.paper.figures --profile demo` is what `make figures` calls; with `--check` nothing
is written, and the exit code says whether every stored figure is what its table draws.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

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
from contsteal.paper import plots, sentences
from contsteal.paper.sentences import Summary

Stamp = dict[str, str]  # profile, data, seeds, device, torch and date of a run

SPENT = ("attack", "images", "seed", "views", "defence", "knob", "value")  # one run, many tasks
MAP = "Test images (t-SNE); in brackets: nearest neighbour is of the same class"


class Row(NamedTuple):
    """A figure: what it shows, who draws it, and its title or what says title and numbers."""

    shows: str
    plot: Callable[[pd.DataFrame, str], Figure]
    summary: str | Callable[[pd.DataFrame], Summary]

    def summarise(self, table: pd.DataFrame) -> Summary:
        """Return what the table says; a fixed title says nothing."""
        return Summary(self.summary) if isinstance(self.summary, str) else self.summary(table)


FIGURES = {
    "00_samples": Row("The embedded data sets.",
                      plots.sample_sheet, "Images of the embedded data sets"),
    "01_views": Row("Two augmented views of each image, as the victim's training sees them.",
                    plots.sample_sheet, "Training images, and two augmented views of each"),
    "01_training": Row("The victim's training, monitored on held-out training images.",
                       plots.training_curves, sentences.training),
    "01_worth": Row("What the victim is worth, between random floor and supervised ceiling.",
                    plots.worth_bars, sentences.worth),
    "01_embedding_map": Row("Test images as the encoders see them (t-SNE).",
                            plots.embedding_map, MAP),
    "02_conventional": Row("Conventional attacks with equal queries.",
                           plots.attack_dots, sentences.conventional),
    "02_losses": Row("Stealing losses by victim and downstream task (published rows: queries are "
                     "test images there).", plots.attack_dots, sentences.losses),
    "02_elsewhere": Row("Queries from other data than the victim's.",
                        plots.query_dots, sentences.queries),
    "03_pulls": Row("Which vectors each loss moves a surrogate's vector towards, and away from.",
                    plots.pull_maps, sentences.pulls),
    "03_attacks": Row("All attacks with equal queries.", plots.attack_dots, sentences.attacks),
    "03_control": Row("A control that must fail: every image with the answer to another.",
                      plots.attack_dots, sentences.control),
    "03_two_by_two": Row("{MSE, contrastive} x {clean, augmented}.",
                         plots.two_by_two, sentences.two_by_two),
    "03_ablations": Row("Cont-Steal with one knob changed at a time.",
                        plots.ablation_dots, sentences.ablations),
    "03_boundary": Row("When contrastive stealing beats regression.",
                       plots.boundary_maps, sentences.boundary),
    "03_geometry": Row("The victims' embeddings, and what Cont-Steal gains on them.",
                       plots.geometry_dots, sentences.geometry),
    "03_embedding_map": Row("Test images by the victim and by two surrogates (t-SNE).",
                            plots.embedding_map, MAP),
    "04_budget": Row("Accuracy against both query budgets.", plots.budget_curves, sentences.budget),
    "05_adaptive": Row("What adapting to a defence gains the attacker.",
                       plots.adaptive_dots, sentences.adaptive),
    "05_coverage": Row("What B4B sees of its users.", plots.coverage_curves, sentences.coverage),
    "05_defenses": Row("Defences: attacker and legitimate user.",
                       plots.defence_tradeoff, sentences.defenses),
    "05_matrix": Row("What each defence changes for attacks and for customers.",
                     plots.defence_matrix, sentences.matrix),
    "05_detectors": Row("What detectors see of their users, and which users they flag.",
                        plots.detector_dots, sentences.detectors),
    "05_inference": Row("Dataset inference: does an encoder know the victim's training set?",
                        plots.inference_dots, sentences.dataset_inference),
    "05_watermark": Row("The rotation watermark: which encoders carry it.",
                        plots.watermark_curves, sentences.watermark),
}  # fmt: skip


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
    known = [p for p in profiles.names() if stored(artifacts.figures_dir() / p)]
    if name != "auto":
        profiles.profile(name)
    if name == "auto" and known:
        return known
    if name not in known:
        place, wanted = artifacts.figures_dir(), ""
        if name != "auto":
            place, wanted = place / name, f" PROFILE={name}"
        raise ValueError(f"no results in {place}: `make paper{wanted}` makes them; there are some of: "
                         f"{', '.join(known) or 'no profile'}")  # fmt: skip
    return [name]


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


def _draw(profile: str, console: Console) -> int:
    folder = artifacts.figures_dir() / profile
    stems, changed = stored(folder), []
    for stem in stems:
        pictures = [folder / f"{stem}.{kind}" for kind in ("pdf", "png")]
        before = [path.read_bytes() for path in pictures if path.is_file()]
        redraw(stem, *read(folder, stem), folder)
        if before != [path.read_bytes() for path in pictures if path.is_file()]:
            changed.append(stem)
    page = sheet(folder)
    message = f"changed: {', '.join(changed)}" if changed else "none changed"
    console.print(escape(f"{profile}: {len(stems)} figures, {message}; all on one page: {page}"))
    return 0


def _check(profile: str, console: Console) -> int:
    folder = artifacts.figures_dir() / profile
    found = stale(folder, stored(folder))
    message = "every figure is what its table draws"
    if found:
        message = (
            f"not what their tables draw: {', '.join(found)}; `make figures PROFILE={profile}`"
        )
    console.print(escape(f"{profile}: {message}"))
    return int(bool(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, draw or check, and return the exit code."""
    parser = argparse.ArgumentParser(prog="contsteal.paper.figures", description=__doc__)
    parser.add_argument("--profile", default="auto", help="a profile; auto: all with results")
    parser.add_argument("--check", action="store_true", help="write nothing, name stale figures")
    given, console = parser.parse_args(arguments), Console(highlight=False, soft_wrap=True)
    work = _check if given.check else _draw
    try:
        return max([work(profile, console) for profile in profiles_with_results(given.profile)])
    except (ValueError, files.StorageError) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
