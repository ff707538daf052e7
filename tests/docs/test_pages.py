"""README and docs: examples that run, a README of two screens, and the files that GitHub reads."""

import os
import re
import time
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml

from contsteal import encoders
from contsteal.lab import profiles

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What examples are cut down to, and the weights that a test cannot download.
SMALL = (
    (r"\bsteps=\d+", "steps=2"),
    (r"\bbatch=\d+", "batch=16"),
    (r"\bn=\d+", "n=64"),
    (r'"vit_small_patch14_dinov2\.lvd142m", image_size=518, pretrained=True', '"test_vit", 160'),
)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.+?)```", path.read_text(), re.DOTALL)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file of weights that examples read."""
    monkeypatch.chdir(tmp_path)
    weights = encoders.build("resnet18").backbone.state_dict()
    state = {f"backbone.{name}": value for name, value in weights.items()}
    torch.save({"state_dict": state}, tmp_path / "checkpoint.pth")
    return tmp_path


@pytest.mark.parametrize(
    "path", [p for p in PAGES if blocks(p, "python")], ids=lambda path: path.stem
)
def test_examples_run_one_after_another(path: Path, desk: Path) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(path, "python"):
        for pattern, small in SMALL:
            block = re.sub(pattern, small, block)
        exec(compile(block, str(path), "exec"), names)


def test_slurm_gets_jobs_of_one_worker_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's example submits them to a stand-in for Slurm, which keeps the jobs and runs none."""
    for name, command in (("sbatch", f'cat "$1" >> {tmp_path}/jobs; echo job 1'), ("scancel", ":")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "jobs").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (block,) = blocks(ROOT / "docs" / "scaling.md", "python")
    names: dict[str, Any] = {}
    exec(block.partition("cluster.close()")[0], names)
    shown, address = capsys.readouterr().out.rsplit("\n", 2)[:2]
    wanted = (
        "#SBATCH -n 1", "#SBATCH --cpus-per-task=1", "#SBATCH --mem=15G", "#SBATCH -t 08:00:00",
        "#SBATCH --gres=gpu:1", "cd $SLURM_SUBMIT_DIR", "source .venv/bin/activate",
    )  # fmt: skip
    worker = (
        rf"-m distributed.cli.dask_worker {address} .*--nthreads 1 --memory-limit 14.90GiB --nanny"
    )
    jobs, end = tmp_path / "jobs", time.monotonic() + 60
    with names["cluster"] as cluster:
        cluster.scale(2)
        while jobs.read_text().count(address) < 2 and time.monotonic() < end:
            time.sleep(0.02)
    submitted = jobs.read_text().split("#!")[1:]
    assert len(submitted) == 2
    for text in (shown, *submitted):
        assert set(wanted) <= set(text.splitlines())
        assert re.search(worker, text)


@pytest.mark.parametrize("block", blocks(ROOT / "docs" / "victims-and-data.md", "yaml"))
def test_settings_that_are_shown_are_ones_that_profiles_take(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = yaml.safe_load((ROOT / "notebooks" / "profiles" / "demo.yaml").read_text())
    tables["common"] |= yaml.safe_load(block)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tables))
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    common = profiles.profile("mine")["common"]
    victims = [common["victim"], *common.get("victims", {}).values()]
    assert "ready" in {victim["method"] for victim in victims}


def test_the_readme_fits_two_screens_and_shows_one_figure() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    assert re.findall(r"!\[[^]]*\]\(([^)]+png)\)", text) == ["figures/demo/03_attacks.png"]


def test_the_badges_say_what_is_true() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["requires-python"].removeprefix(">=")
    (licence,) = re.findall(r"^(\w+) License\n", (ROOT / "LICENSE").read_text())
    said = {"licence": licence, "python": f"≥ {needed}"}
    for badge, value in said.items():
        svg = ElementTree.parse(ROOT / "docs" / f"{badge}.svg").getroot()
        assert [e.text for e in svg.findall(".//{*}text")] == [badge, value]
        assert svg.attrib["aria-label"] == svg.findtext("{*}title") == f"{badge}: {value}"
    wanted = {f"Licence: {project['license']}": "docs/licence.svg",
              f"Python {needed} or newer": "docs/python.svg",
              "CI": "../../actions/workflows/ci.yml/badge.svg"}  # fmt: skip
    text = (ROOT / "README.md").read_text()
    assert dict(re.findall(r"\[!\[([^]]*)\]\(([^)]+svg)\)\]", text)) == wanted
    assert (ROOT / ".github" / "workflows" / "ci.yml").is_file()  # whose state the first one shows


def test_the_hosted_workflow_runs_what_a_laptop_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").is_file()


@pytest.mark.parametrize("name", ["my-number-differs", "add-an-attack"])
def test_issue_forms_have_what_github_needs(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert form["name"]
    assert form["description"]
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert all(part["attributes"]["label"] for part in asked)
    assert len({part["id"] for part in asked}) == len(asked) > 3
