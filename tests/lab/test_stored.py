"""Stored data sets in the lab: a victim of a packed set, queries from disk, splits of a profile."""

from pathlib import Path

import numpy as np
import pytest
import tinysets
import torch
from PIL import Image

from contsteal import data
from contsteal.data import packed as packs
from contsteal.lab import experiment, inspection, profiles, provider


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinysets.folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("packs") / "p"
    packs.pack(folder, home, 32)
    return home


@pytest.fixture
def lab(monkeypatch, folder, packed, tmp_path):
    """A lab whose victim learns from a pack and whose task is the folder."""
    given = profiles.profile("smoke")
    given["common"] |= {
        "data": f"packed:{packed}", "image_size": 32, "train_images": 0, "probe_images": 0,
        "test_images": 0, "query_data": f"folder:{folder}", "query_images": 0,
        "victim": {"encoder": "test_resnet", "epochs": 1, "batch": 4, "optimizer": "adamw", "lr": 1e-3},
    }  # fmt: skip
    monkeypatch.setattr(profiles, "profile", lambda name: given)
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path))
    return experiment.Lab("smoke")


def test_a_lab_trains_steals_and_scores_on_stored_data(lab, folder):
    assert len(lab.train_images()) == 12, "0 is all of it"
    stolen = lab.steal("embedding", 10, epochs=1, batch=5)
    assert (stolen.queries["unique_inputs"], stolen.queries["calls"]) == (10, 10)
    assert 0 <= lab.score(stolen.encoder, f"folder:{folder}")["accuracy"] <= 1


def test_two_folders_are_two_tasks_and_their_pixels_are_part_of_a_score(lab, folder, tmp_path):
    other = tmp_path / "other"
    for path in folder.rglob("*.png"):
        home = other / path.relative_to(folder)
        home.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(path)) // 4  # darker, and nothing to tell classes by
        Image.fromarray(pixels).save(home)
    net = lab.random()
    tasks = [f"folder:{f}" for f in (folder, other)]
    features = [lab._embed(net, task, "test", lab.images(task, "test")) for task in tasks]
    assert not torch.equal(*features)
    before = lab.test_key(f"folder:{other}")
    for path in other.rglob("*.png"):
        Image.new("RGB", (40, 30)).save(path)
    experiment._cached.cache_clear()
    assert experiment.Lab("smoke").test_key(f"folder:{other}") != before


def test_a_packed_set_goes_through_views_and_api(lab, packed):
    assert len(inspection.view_sheet(lab, 4)) == 12
    task = lab.settings["data"]
    api = lab.api()
    assert len(api.embed(lab.images(task).images)) == 12
    assert 0 <= provider.purchase(lab, (), task)[0]["legitimate"] <= 1


# -------------------------------------------------------------------- splits of a profile


@pytest.fixture
def splitting(lab, monkeypatch, tmp_path):
    """Return what makes a lab of tiny STL10 and SVHN files with some settings changed."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    tinysets.stl10(tmp_path / "data", monkeypatch, "extracted")
    tinysets.svhn(tmp_path / "data", monkeypatch, "train", "test", "extra")
    victim = {"encoder": "test_resnet", "epochs": 1, "batch": 2, "optimizer": "adamw", "lr": 1e-3}
    experiment._cached.cache_clear()  # of other tests' tiny files
    common = profiles.profile("smoke")["common"]
    common |= {"data": "stl10", "query_data": "svhn", "victim": victim}

    def make(**changes: str) -> experiment.Lab:
        monkeypatch.setattr(
            profiles, "profile", lambda name: {"about": "", "common": common | changes}
        )
        return experiment.Lab("smoke")

    yield make
    experiment._cached.cache_clear()


def pixels(images: torch.Tensor) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in images)


def test_a_profile_chooses_the_split_trained_on_and_the_split_queried(splitting):
    lab = splitting(train_split="unlabeled", query_split="extra")
    assert (lab.train_images().split, lab.train_images().labels) == ("unlabeled", None)
    assert pixels(lab.queries(4)) == pixels(data.load("svhn", "extra", image_size=32).images)
    assert lab.images("stl10").split == "train", "a probe needs labels"
    assert lab.images("svhn").split == "train"
    plain = splitting()
    assert plain.train_images().split == "train"
    assert pixels(plain.queries(4)) == pixels(data.load("svhn", image_size=32).images)


def test_another_split_is_another_victim_and_another_attack(splitting, folder, packed, tmp_path):
    def made(**changes: str) -> tuple[int, int]:
        lab = splitting(data=f"packed:{packed}", query_data=f"folder:{folder}", **changes)
        stolen = lab.steal("embedding", 4, epochs=1, batch=2)
        table = inspection.worth(lab, {"stolen": stolen.encoder}, [f"folder:{folder}"], [0])
        assert table["accuracy"].between(0, 1).all(), "probes have their own splits"
        assert len(inspection.view_sheet(lab, 4)) == 12
        found = (tmp_path / "artifacts").glob
        return len(list(found("victim-*"))), len(list(found("attack-*")))

    assert made() == (1, 1)
    assert made(train_split="train", query_split="train") == (1, 1), "the default, written out"
    assert made(query_split="test") == (1, 2)
    assert made(train_split="test") == (2, 3)


def test_a_split_that_is_not_there_is_told(splitting):
    with pytest.raises(ValueError, match=r"unknown split 'unlabelled' of stl10: .*unlabeled"):
        splitting(train_split="unlabelled").train_images()
    with pytest.raises(ValueError, match=r"unknown split 'unlabeled' of svhn: .*extra"):
        splitting(query_split="unlabeled").queries(1)
    with pytest.raises(ValueError, match=r"unknown split of shapes 'extra': choose .*train, test"):
        splitting(query_data="shapes", query_split="extra").queries(1)
    wanted = "'supervised' needs labels: choose .*train_split"
    with pytest.raises(ValueError, match=wanted):
        splitting(train_split="unlabeled").train("victim", "supervised")
    ceiling = splitting(train_split="unlabeled").train_images("supervised")
    assert ceiling.split == "train", "the ceiling learns from labels"


def test_packed_queries_are_sent_and_stay_on_disk(splitting, packed):
    lab = splitting(data=f"packed:{packed}", query_data=f"packed:{packed}")
    assert not isinstance(lab.queries(4), torch.Tensor), "a pack, not a tensor of it"
    for attack in ("embedding", "cosine"):
        stolen = lab.steal(attack, 4, epochs=1, batch=2)
        assert stolen.queries["unique_inputs"] == 4
