"""The pages of results: a profile's summary, the README's generated part, tables for the docs."""

import shutil
from pathlib import Path

import pytest

from contsteal import files
from contsteal.lab import artifacts
from contsteal.paper import claims, figures


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's stored tables, without one that was not run and without pictures of another."""
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path))
    shutil.copytree(artifacts.ROOT / "figures" / "demo", tmp_path / "demo")
    (tmp_path / "demo" / "04_budget.csv").unlink()
    (tmp_path / "demo" / "03_geometry.png").unlink(missing_ok=True)
    return tmp_path / "demo"


def test_a_summary_has_numbers_intervals_n_and_origin(folder: Path) -> None:
    text = figures.write_summary("demo").read_text()
    stamp = files.read_json(folder / "03_attacks.json")
    many = len(stamp["seeds"].split(", "))
    assert f"`03_attacks`: {stamp['data']}; {many} seeds; {stamp['device']}; torch " in text
    numbers = figures.FIGURES["03_attacks"].summarise(figures.read(folder, "03_attacks")[0]).numbers
    assert numbers.loc["Cont-Steal", "accuracy"] in text
    pictures = {stem for stem in figures.FIGURES if f"({stem}.png)" in text}
    absent = {"02_losses", "02_elsewhere", "03_rates", "03_ablations", "04_budget", "05b_refused",
              "05c_sslguard", "05c_watermark"}  # fmt: skip
    assert pictures == figures.FIGURES.keys() - absent - {"03_geometry"}
    assert f"Not run: {', '.join(stem for stem in figures.FIGURES if stem in absent)}." in text
    assert "Expected, and measured:" in text
    assert "## Claims" in text


def test_a_profile_that_was_not_run_names_the_notebook(folder: Path) -> None:
    with pytest.raises(ValueError, match="run notebook 00"):
        figures.write_summary("smoke")


def test_the_readme_shows_the_stored_results_between_its_markers(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{figures.MARKERS[0]}\noutdated\n{figures.MARKERS[1]}\nafter\n")
    judgements = claims.judge("demo")
    figures.update_readme(judgements, path)
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    made = figures.readme(judgements)
    assert made in text
    assert "outdated" not in text
    assert "figures/demo/summary.md" in text
    study = figures.read(artifacts.ROOT / "figures" / "study", "03_steps")[0]
    assert f"in `study`: {figures.FIGURES['03_steps'].summarise(study).text}\n" in made
    assert len(made.splitlines()) < 30, "details are in the documentation"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="lacks one of the lines"):
        figures.update_readme(judgements, path)
