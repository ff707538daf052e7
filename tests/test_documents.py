"""What the documents say is true: commands exist, diffs apply and run, the citation is well formed."""

import datetime
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from contsteal.lab import artifacts
from contsteal.paper import plan

ROOT = artifacts.ROOT
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *(f"notebooks/{s}.ipynb" for s in plan.notebooks()))
ADDED = """
import pandas as pd
from contsteal import data, defenses, encoders, report, steal, summary, victim
images = data.load("noise", n=32, seed=1).images
assert images.shape == (32, 3, 32, 32) and data.load("noise", n=8, seed=1).labels is None
api = victim.BlackBox(encoders.build("test_resnet"), [defenses.build("clip", limit=0.125)], budget=32)
assert api.embed(images).abs().max() == 0.125
config = steal.Config(attack="huber", encoder="test_resnet", epochs=1, batch=16)
assert steal.train(config, api, images).unique_inputs == 32
fig = report.draw("03_similarity", pd.DataFrame({"cka": [0.1, 0.2], "agreement": [0.3, 0.4]}))
assert fig.axes[0].get_ylabel() and summary.SECTIONS["03_similarity"]
print("all there")
"""


def text(name: str) -> str:
    if not name.endswith(".ipynb"):
        return (ROOT / name).read_text()
    return "\n".join(c.source for c in nbformat.read(ROOT / name, as_version=4).cells)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_exists(name: str) -> None:
    told = text(name)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = re.findall(r"`([^`\n]+)`", told) + re.findall(r"```bash\n(.+?)```", told, re.DOTALL)
    asked = [m for line in lines for m in re.findall(r"(?:^|\s|[\d\w]\s)make ([a-z]+)", line)]
    assert set(asked) <= targets
    for module in re.findall(r"python -m contsteal\.(\w+)", told):
        assert (ROOT / "contsteal" / f"{module}.py").is_file(), module
    if name == "README.md":
        assert {"paper", "test", "plan", "data", "lab", "figures", "html", "bench"} <= set(asked)


def test_links_of_contributing_lead_to_files_and_it_is_short() -> None:
    told = text("CONTRIBUTING.md")
    for target in re.findall(r"`((?:contsteal|tests|notebooks)/[\w/]*(?:\.py)?)`", told):
        assert (ROOT / target).exists(), target
    assert len(told.splitlines()) < 200


def test_the_diffs_of_contributing_apply_and_do_what_they_say(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "contsteal", tmp_path / "contsteal")
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    diffs = re.findall(r"```diff\n(.+?)```", text("CONTRIBUTING.md"), re.DOTALL)
    assert len(diffs) == 4
    command = ["git", "apply", "-"]
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    for diff in diffs:
        done = subprocess.run(command, input=diff, text=True, capture_output=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    run = subprocess.run(
        [sys.executable, "-c", ADDED], text=True, capture_output=True, cwd=tmp_path
    )
    assert run.stdout.strip().endswith("all there"), run.stderr


# What the schema of CFF 1.2.0 allows of the fields used here, all of them optional but REQUIRED.
FIELDS = {
    "cff-version": str, "message": str, "title": str, "authors": list, "type": str, "version": str,
    "license": str, "keywords": list, "references": list, "date-released": datetime.date,
    "abstract": str, "url": str, "repository-code": str, "identifiers": list,
}  # fmt: skip
WORK = {
    "type": str, "title": str, "authors": list, "conference": dict, "year": int, "identifiers": list,
    "url": str, "doi": str, "journal": str, "pages": int, "volume": int,
}  # fmt: skip
REQUIRED = ({"cff-version", "message", "title", "authors"}, {"type", "title", "authors"})
PERSON = {"family-names", "given-names", "affiliation", "email", "orcid", "alias", "website"}
KINDS = {"article", "conference-paper", "software", "dataset", "generic", "report", "thesis"}


def faults(told: dict[str, Any], fields: dict[str, type], required: set[str]) -> list[str]:
    """Return what the schema forbids: missing, unknown and mistyped fields, ill-formed names."""
    found = [f"{name} is missing" for name in sorted(required - told.keys())]
    found += [f"{name} is no field" for name in sorted(told.keys() - fields.keys())]
    typed = {name: value for name, value in told.items() if name in fields}
    found += [f"{n}: {v!r}" for n, v in typed.items() if type(v) is not fields[n] or v in ("", [])]
    for author in told.get("authors", []):
        entity = set(author) == {"name"}
        named = entity or ("family-names" in author and set(author) <= PERSON)
        found += (
            [] if named and all(type(v) is str and v for v in author.values()) else [f"{author}"]
        )
    for known in told.get("identifiers", []):
        fine = set(known) <= {"type", "value", "description"} and {"type", "value"} <= set(known)
        found += [] if fine and known["type"] in ("doi", "url", "swh", "other") else [f"{known}"]
    return found


def test_the_citation_obeys_the_schema_of_its_format() -> None:
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert faults(told, FIELDS, REQUIRED[0]) == []
    assert told["type"] in ("software", "dataset")
    assert len(set(told["keywords"])) == len(told["keywords"])
    for work in told["references"]:
        assert faults(work, WORK, REQUIRED[1]) == []
        assert work["type"] in KINDS
        assert work["conference"].keys() == {"name"}
        assert re.fullmatch(r"https?://\S+", work["url"])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": 0.1}, "version: 0.1"),
        ({"date-released": "23.11.2026"}, "date-released: '23.11.2026'"),
        ({"authors": [{"given-names": "A."}]}, "{'given-names': 'A.'}"),
        ({"authors": [{"family-names": True}]}, "{'family-names': True}"),
        ({"authors": []}, "authors: []"),
        ({"licence": "MIT"}, "licence is no field"),
        ({"identifiers": [{"type": "arxiv", "value": "1"}]}, "{'type': 'arxiv', 'value': '1'}"),
    ],
)
def test_a_citation_against_the_schema_is_seen(change: dict[str, Any], fault: str) -> None:
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert faults(told | change, FIELDS, REQUIRED[0]) == [fault]
    del told["message"]
    assert faults(told, FIELDS, REQUIRED[0]) == ["message is missing"]


def test_the_citation_is_well_formed_and_of_this_version() -> None:
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert told["cff-version"] == "1.2.0"
    assert (told["type"], told["version"]) == ("software", project["version"])
    assert told["license"] == project["license"]
    assert told["authors"] == [{"name": "The contsteal authors"}]
    assert "The contsteal authors" in (ROOT / "LICENSE").read_text()
    for work in told["references"]:
        assert all(isinstance(a["family-names"], str) for a in work["authors"]), "Yu, not a year"
        assert work["url"].endswith(work["identifiers"][0]["value"].removeprefix("arXiv:"))
