"""The profiles of the papers' tables from end to end, on tiny archives in the data sets' own formats.

`make test` runs one cheap notebook of each. All of them, after which every row of `docs/tables.md` is
looked for in the tables that came out:

    CONTSTEAL_NOTEBOOKS=all .venv/bin/python -m pytest -n 0 tests/paper/test_published.py
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import timm
import tinysets
import torch
import yaml
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config

from contsteal.data import packed, torchsets
from contsteal.lab import artifacts, experiment, inspection, profiles
from contsteal.paper import notebooks

sys.path.append(str(artifacts.ROOT / "docs"))
import tables  # docs/tables.py

EVERY = os.environ.get("CONTSTEAL_NOTEBOOKS") == "all"
NAMES = ("paper", "imagenet", "timm")
CHEAP = {"paper": "05b", "imagenet": "05c", "timm": "04"}
VICTIMS = {"victim": "test_resnet", "dinov2": "test_vit", "dinov3": "test_vit2", "mae": "test_vit4",
           "convnextv2": "test_convnext2"}  # fmt: skip
TRAINED = ("attack", "alone", "victim", "supervised", "independent", "watermarked", "guarded")
BATCHES = {"32": 8, "1024": 16}
WATCHED = 100  # queries of a user, from which on detectors have a verdict
SEEDS = [0, 1]  # an interval needs two
SMALL = {"encoder": "conv4", "batch": 8, "epochs": 1}
TINY = {  # of the settings; the victims' methods, optimizers and data stay the profile's
    "train_images": 0, "probe_images": 0, "test_images": 0, "workers": 1, "image_size": 32,
}  # fmt: skip
OWN = {  # parameters that are no numbers of queries, of steps or of seeds
    "map_images": 8, "users": 2, "b4b_bits": 4, "b4b_families": [1],
    "strangers": {"count": 3, "epochs": 1, "data": "cifar100"},
    "mark": {"start": "scratch", "epochs": 1}, "guard": {"epochs": 1},
    "inference": {"images": 8, "components": 2, "covariance": "diag"},
}  # fmt: skip
COUNTS = ("queries", "losses_queries", "budgets", "without", "map_counts", "transfer", "elsewhere")


def sizes(given: dict[str, dict[str, Any]]) -> dict[int, int]:
    """Return a small number of queries for each that a profile's notebooks name, in the same order."""
    found: set[int] = set()
    for values in given.values():
        for name in COUNTS:
            value = values.get(name, [])
            each = value if isinstance(value, list) else [value]
            found |= {row[-1] if isinstance(row, list) else row for row in each}
    return {count: 32 + k for k, count in enumerate(sorted(found))}


def shrunk(value: Any, small: dict[int, int]) -> Any:
    if isinstance(value, list):
        return [shrunk(inner, small) for inner in value]
    return small.get(value, value) if isinstance(value, int) else value


def tiny_profile(name: str, home: Path) -> dict[int, int]:
    """Write a profile's tiny form, and return what became of its numbers of queries."""
    settings = yaml.safe_load((artifacts.ROOT / "notebooks/profiles" / f"{name}.yaml").read_text())
    common, books = settings["common"], settings["notebooks"]
    small = sizes(books)
    for values in books.values():
        for parameter, value in values.items():
            if parameter in COUNTS:
                values[parameter] = shrunk(value, small)
            elif parameter.endswith("steps"):
                values[parameter] = [k + 1 for k in range(len(value))]
            elif parameter in OWN and value not in ({}, {"count": 0}):
                values[parameter] = OWN[parameter]
        values["seeds"] = SEEDS
        if "batch" in values.get("knobs", {}):
            values["knobs"]["batch"] = [*BATCHES.values()]
        if "more_seeds" in values:
            values["more_seeds"] = [2]
    books["05b_detectors"]["queries"] = WATCHED
    common |= TINY | {"query_images": WATCHED}
    common["surrogate"] |= {"encoder": "conv4", "batch": 8, "steps": 2}
    parts = {part: common[part] for part in ("victim", "supervised")}
    for part, config in (parts | common.get("victims", {})).items():
        encoder = VICTIMS.get(part, "test_resnet")
        ready = {"encoder": encoder, "weights": str(home / f"{encoder}.safetensors")}
        config |= ready if config["method"] == "ready" else SMALL
    common["methods"] = {"moco": {"queue": 64}} if "methods" in common else {}
    (home / f"{name}.yaml").write_text(json.dumps(settings))
    return small


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory):
    """A folder with tiny archives of all data sets, tiny profiles, and room for results."""
    home = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RUNS", "FIGURES"):
            patch.setenv(f"CONTSTEAL_{name}", str(home / name.lower()))
        patch.setenv("DATA_DIR", str(home / "data"))
        patch.setattr(profiles, "PROFILES", home / "profiles")
        (home / "profiles").mkdir()
        experiment._cached.cache_clear()
        for name in torchsets.SPLITS:
            tinysets.make(name, home / "data", patch, times=40)
        for split in ("train", "val"):
            for k in range(240):  # a customer of 05a needs 25 of three classes
                tinysets.noise_file(home / f"jpegs/{split}/n{k % 5}/{k}.png", 2 * (k % 128))
        pack = [home / "jpegs", home / "data" / "imagenet-32", "--size", 32, "--workers", 1]
        packed.main([*map(str, pack)])
        for known in (profiles.VARIANTS["published optimizer"], *profiles.PUBLISHED.values()):
            patch.setitem(known, "batch", 8)
        for encoder in VICTIMS.values():  # as timm's hub has them, classifier and all
            options = {"img_size": 32} if "vit" in encoder else {}
            weights = timm.create_model(encoder, num_classes=10, **options).state_dict()
            save_file(weights, home / "profiles" / f"{encoder}.safetensors")
        yield home
        experiment._cached.cache_clear()


@pytest.fixture(scope="module")
def small(desk: Path) -> dict[str, dict[int, int]]:
    return {name: tiny_profile(name, desk / "profiles") for name in NAMES}


def execute(stem: str, profile: str) -> None:
    """Run a notebook's cells in this process, where torchvision's checksums are those of tiny files."""
    space: dict[str, Any] = {}
    for cell in notebooks._code_cells(stem):
        exec(compile(cell["source"], f"{stem}, {profile}", "exec"), space)
        if "parameters" in cell["metadata"].get("tags", []):
            space |= notebooks.parameters(stem, profile)
    plt.close("all")


DONE: list[inspection.Work] = []  # what the plans of earlier notebooks say


def trainings(desk: Path) -> int:
    made = (desk / "runs" / "artifacts").glob("*/manifest.json")
    return sum(path.parent.name.split("-")[0] in TRAINED for path in made)


RUNS = [(name, stem) for name in NAMES for stem in notebooks.stems()
        if (EVERY and stem[:2] != "00") or notebooks.number(stem) == CHEAP[name]]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "stem"), RUNS)
def test_a_notebook_runs_and_has_every_published_row(
    desk: Path, small: dict[str, dict[int, int]], name: str, stem: str
) -> None:
    chosen = notebooks.Task(stem, Path(), notebooks.parameters(stem, name), {}, "never")
    planned = notebooks.work([chosen]).get(stem, inspection.Work())
    before = trainings(desk)
    execute(stem, name)
    if notebooks.number(stem) != "05b":  # whose refusals are results
        assert trainings(desk) - before == len(planned.without(DONE).trainings), "the plan's"
    DONE.append(planned)
    for entry in profiles.profile(name).get("tables", []):
        figure = entry.get("figure", "")
        if notebooks.number(figure) != notebooks.number(stem):
            continue
        table = pd.read_csv(desk / "figures" / name / f"{figure}.csv")
        for row, own in entry["rows"].items():
            for point in tables.conditions(entry.get("where", {}) | own):
                if point.get("images"):
                    point["images"] = small[name][point["images"]]
                if point.get("knob") == "batch":
                    point["value"] = str(BATCHES[point["value"]])
                assert len(tables.select(table, point)), (entry["table"], row, point)


@pytest.mark.parametrize("name", VICTIMS)
def test_a_public_encoder_is_a_victim_by_its_name(
    desk: Path, small: dict[str, dict[int, int]], name: str
) -> None:
    """Its answers are those of timm's own network to images as that network takes them; it is stolen."""
    lab = experiment.Lab("timm").but(**({} if name == "victim" else {"method": name}))
    queries = lab.queries(16).cpu()
    encoder = VICTIMS[name]
    options = {"img_size": 32} if "vit" in encoder else {}
    theirs = timm.create_model(encoder, num_classes=0, **options).eval()
    weights = load_file(desk / "profiles" / f"{encoder}.safetensors")
    missing, _ = theirs.load_state_dict(weights, strict=False)
    assert missing == []
    config = resolve_model_data_config(theirs)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = theirs((queries / 255 - mean) / std)
    assert torch.allclose(lab.api().embed(queries), expected, atol=1e-4)
    stolen = lab.steal("embedding", 16, steps=1)
    assert stolen.encoder.dim == lab.victim.encoder.dim == expected.shape[1]
