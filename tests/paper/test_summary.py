"""The pages of results: a profile's summary, the README's generated part, tables for the docs."""

import re
import shutil
from dataclasses import replace
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
    found = text.split("## What was found")[1].split("##")[0]
    shown = [stem for stem in figures.FINDINGS if stem not in absent]
    assert len(found.split("\n\n")) == len(shown) + 2
    assert text.index("## What was found") < text.index("| ")
    assert "## Claims" in text


def test_a_lead_that_is_reliable_only_by_itself_is_called_so(folder: Path) -> None:
    """With the sign that its sentence has, and not where another notebook tests the claim."""
    title = figures.FIGURES["03_steps"].summarise(figures.read(folder, "03_steps")[0]).details
    low, high = map(float, re.findall(r"CI ([\d.]+) to ([\d.]+)", title)[-1])
    alone = claims.Finding(claims.OPEN, why="a; holds by itself, not as one of 9 claims")
    rows = [one for one in claims.judge("demo") if one.claim.table in ("03_victims", "02_readings")]
    said = f"{low} to {high}; reliable by itself, not as one of 9 claims tested together)"
    for one in rows:
        finding = replace(alone, low=-high / 100, high=-low / 100)
        text = figures.finding(folder, "03_steps", [replace(one, finding=finding)])
        assert (said in text) == (one.claim.table == "03_victims")
    assert said not in figures.finding(folder, "03_steps", [])


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
    assert len(made.splitlines()) <= 30, "details are in the documentation"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="lacks one of the lines"):
        figures.update_readme(judgements, path)
