"""Figures redrawn from their tables: equal bytes, one page of all, stale ones named."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from contsteal.lab import artifacts
from contsteal.paper import redraw

STORED = artifacts.ROOT / "figures"
FEW = ("01_worth", "03_pulls", "03_ablations")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of figures with three tables of the demo and their stamps, without pictures."""
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path))
    (tmp_path / "demo").mkdir()
    for stem in FEW:
        for kind in ("csv", "json"):
            shutil.copy(STORED / "demo" / f"{stem}.{kind}", tmp_path / "demo")
    return tmp_path / "demo"


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_figures_are_redrawn_to_equal_bytes_and_tables_are_not_touched(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(desk)
    assert redraw.main(["--profile", "demo"]) == 0
    assert "changed: 01_worth, 03_pulls, 03_ablations" in capsys.readouterr().out
    first = content(desk)
    made = {f"{s}.{kind}" for s in (*FEW, redraw.SHEET) for kind in ("pdf", "png")}
    assert first.keys() == before.keys() | made
    assert {n: first[n] for n in before} == before
    assert redraw.main(["--profile", "auto"]) == 0, "auto is every profile with results"
    assert "none changed" in capsys.readouterr().out
    assert content(desk) == first


def test_stored_figures_are_what_their_tables_draw() -> None:
    assert redraw.stale(STORED / "demo", FEW) == []
    assert redraw.stale(STORED / "study", ["03_attacks"]) == []


def test_a_figure_of_another_table_is_stale(desk: Path) -> None:
    redraw.main(["--profile", "demo"])
    table = pd.read_csv(desk / "01_worth.csv")
    table.assign(accuracy=0.9 * table["accuracy"]).to_csv(desk / "01_worth.csv", index=False)
    (desk / "03_pulls.png").unlink()
    assert redraw.stale(desk, FEW) == ["01_worth", "03_pulls"]
    before = content(desk)
    assert redraw.main(["--profile", "demo", "--check"]) == 1
    assert content(desk) == before


def test_the_sheet_shows_every_picture_under_its_name(tmp_path: Path) -> None:
    colours = {"00_samples": "red", "03_attacks": "lime", "04_budget": "blue", "notes": "cyan"}
    for stem, colour in colours.items():
        Image.new("RGB", (300, 200), colour).save(tmp_path / f"{stem}.png")
    page = Image.open(redraw.sheet(tmp_path)).convert("RGB")
    seen = {tuple(pixel) for pixel in np.asarray(page).reshape(-1, 3)}
    shown = {(255, 0, 0), (0, 255, 0), (0, 0, 255)}
    assert shown <= seen
    assert (0, 255, 255) not in seen, "not a figure"


def test_a_sheet_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no figure in .*make figures"):
        redraw.sheet(tmp_path)


def test_profiles_without_results_say_which_command_makes_them(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert redraw.main(["--profile", "paper"]) == 1
    told = capsys.readouterr().out
    assert "`make paper PROFILE=paper` makes them; there are some of: demo" in told
    assert redraw.main(["--profile", "papr"]) == 1
    assert "unknown profile 'papr': choose one of demo" in capsys.readouterr().out


def test_nothing_at_all_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path))
    with pytest.raises(ValueError, match="`make paper` makes them; there are some of: no profile"):
        redraw.profiles_with_results()
