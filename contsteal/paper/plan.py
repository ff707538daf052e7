"""What a run of the notebooks would do, and why: parameters checked, inputs hashed, reasons told."""

import ast
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import torch

from contsteal import files, loop, pretrain
from contsteal.lab import artifacts, profiles

NOTEBOOKS = artifacts.ROOT / "notebooks"
VICTIM = "01_train_victim"
TIMINGS, SUMMARY = "timings.json", "summary.md"
AROUND = (  # modules that run and show notebooks
    "paper.py", "plan.py", "durations.py", "usage.py", "command.py", "execute.py", "check.py",
    "redraw.py", "site.py", "formulas.py", "navigation.py",
)  # fmt: skip


def notebooks() -> list[str]:
    """Return the notebooks' stems in the order they run."""
    return sorted(p.stem for p in NOTEBOOKS.glob("[0-9]*.ipynb"))


def choose(name: str) -> tuple[str, str]:
    """Return the profile to run and why: "auto" is the GPU's profile where a CUDA GPU is visible."""
    if name != "auto":
        profiles.profile(name)
        return name, "asked for"
    if artifacts.device().type != "cuda":
        return "demo", "no CUDA GPU is visible"
    known = profiles.names()
    return next(p for p in ("paper", "synthetic", "demo") if p in known), "a CUDA GPU is visible"


# -------------------------------------------------------------------------------- parameters


def defaults(stem: str) -> dict[str, Any]:
    """Return the literals of a notebook's `parameters` cell."""
    notebook = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{stem}.ipynb has {len(cells)} cells tagged 'parameters': it needs one")
    assigned = [n for n in ast.parse(cells[0].source).body if isinstance(n, ast.Assign)]
    return {n.targets[0].id: ast.literal_eval(n.value) for n in assigned}


def parameters(stem: str, profile: str) -> dict[str, Any]:
    """Return a notebook's parameters under a profile, checked against its defaults.

    Errors: ValueError for a name that the notebook does not have (papermill would only warn) or a
    value of another type than the default's (YAML reads 1e-3 as text).
    """
    known = defaults(stem)
    given = (profiles.profile(profile).get("notebooks") or {}).get(stem) or {}
    place = f"{profiles.PROFILES.name}/{profile}.yaml, {stem}"
    profiles.check(given, known, place)
    return {**known, "profile": profile, **given}


# -------------------------------------------------------------------------------- what to run


@dataclass(frozen=True)
class Task:
    """One notebook under one profile: why it must run (or None), and how long it took."""

    stem: str
    profile: str
    reason: str | None
    seconds: float | None

    @property
    def folder(self) -> Path:
        return artifacts.runs_dir() / self.profile

    @property
    def figures(self) -> Path:
        return artifacts.figures_dir() / self.profile

    def owns(self, name: str) -> bool:
        """Say whether a file of the figures' folder is made by this notebook."""
        return name[:2] == self.stem[:2] or (name == SUMMARY and self.stem == notebooks()[-1])

    def files(self) -> dict[str, int]:
        """Return the figures' files with their times of change."""
        return {p.name: p.stat().st_mtime_ns for p in self.figures.glob("*") if p.is_file()}

    @property
    def record(self) -> Path:
        return self.folder / f"{self.stem}.json"


def _results(profile: str) -> dict[str, str]:
    folder = artifacts.figures_dir() / profile
    return {p.name: files.sha256(p) for p in sorted(folder.glob("*.csv"))}


def inputs(stem: str, profile: str) -> dict[str, Any]:
    """Return everything that decides a notebook's result, as hashes and values that can be compared."""
    notebook = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    code = [c.source for c in notebook.cells if c.cell_type == "code"]
    package = {
        p.name: artifacts.source_key(p)
        for p in sorted(artifacts.PACKAGE.rglob("*.[cmpy]*"))
        if p.is_file()
    }
    for name in AROUND:  # how notebooks are run and shown is not what they compute
        package.pop(name, None)
    last, found = stem == notebooks()[-1], profiles.profile(profile)
    return {
        "code": files.key(code),
        "parameters": parameters(stem, profile),
        "package": package,
        "settings": found["common"] | {"expectations": found.get("expectations")},
        "weights": _weights(found["common"]),
        "machine": {"device": artifacts.device().type, "torch": torch.__version__}
        | dict.fromkeys(loop.mode_labels(), "asked for"),
        "upstream": _results(profile) if last else {},  # the last one redraws what the others wrote
    }


def _weights(common: dict[str, Any]) -> dict[str, str]:
    """Return what tells the files of ready encoders from others; a fault of theirs is told later."""
    found = {}
    for part in ("victim", "supervised"):
        config = profiles.config(common, part) if part in common else None
        if config and config.method == pretrain.READY:
            with suppress(ValueError):
                found[part] = pretrain.origin(config)
    return found


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = [n for n in sorted({*old, *new}) if old.get(n) != new.get(n)]
    return ", ".join(
        f"{n}: {old.get(n)} -> {new.get(n)}" if len(f"{old.get(n)}{new.get(n)}") < 60 else n
        for n in names
    )


def reason(
    stem: str, profile: str, now: dict[str, Any], record: dict[str, Any] | None
) -> str | None:
    """Say why a notebook must run, or None where its last run still stands."""
    if record is None:
        return "never run"
    if not isinstance(record, dict) or not {"status", "inputs", "outputs"} <= record.keys():
        return "its record is damaged"
    if record["status"] != "ok":
        return "did not finish last time"
    for part in ("parameters", "settings", "package", "weights", "machine", "upstream"):
        before = record["inputs"].get(part, {})
        if before != now[part]:
            return f"{part} changed: {_difference(before, now[part])}"
    if record["inputs"].get("code") != now["code"]:
        return "code cells changed"
    for name, digest in record["outputs"].items():
        path = artifacts.figures_dir() / profile / name
        if not path.is_file() or (digest and files.sha256(path) != digest):
            return f"{name} is missing or was altered"
    return None


def _chosen(only: Iterable[str]) -> list[str]:
    """Return the notebooks named by stem or by number, all where none is named."""
    known = notebooks()
    for name in only:
        if name not in {*known, *(s[:2] for s in known)}:
            raise ValueError(f"unknown notebook {name!r}: choose one of {', '.join(known)}")
    return [s for s in known if not only or s in only or s[:2] in only]


def tasks(profile: str, only: Sequence[str] = (), force: bool = False) -> list[Task]:
    """Return the notebooks of a run with the reason for each; ValueError for an unknown notebook."""
    _chosen(profiles.profile(profile).get("notebooks") or {})  # refuses a misspelt section
    found: list[Task] = []
    for stem in _chosen(only):
        record = files.read_json(artifacts.runs_dir() / profile / f"{stem}.json")
        now = inputs(stem, profile)
        why = "forced" if force else reason(stem, profile, now, record)
        if why is None and stem == notebooks()[-1] and any(t.reason for t in found):
            why = "notebooks before it run"
        took = expected(profile).get(stem)
        found.append(Task(stem, profile, why, took))
    return found


def stages(tasks: Sequence[Task]) -> list[list[Task]]:
    """Return tasks in groups that need not wait for each other: the victim's notebook comes before all,
    with all cores to itself, and the last one after all whose results it draws."""
    known = notebooks()
    order = {stem: 1 for stem in known} | {stem: 0 for stem in known[1:2]} | {known[-1]: 2}
    groups = ([t for t in tasks if order[t.stem] == stage] for stage in range(3))
    return [group for group in groups if group]


def expected(profile: str) -> dict[str, float]:
    """Return the seconds that each notebook took when its results were computed."""
    known = files.read_json(artifacts.figures_dir() / profile / TIMINGS) or {}
    return {stem: entry["seconds"] for stem, entry in known.items()}
