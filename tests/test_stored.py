"""Stored data sets through `data.load`: folders, packs, the papers' sets, and how the lab takes them."""

from pathlib import Path

import numpy as np
import pytest
import tinysets
import torch
from PIL import Image
from tinysets import stl10, svhn

from contsteal import data, encoders
from contsteal.data import packed as packs
from contsteal.data import torchsets
from contsteal.lab import estimate, experiment, inspection, profiles
from contsteal.paper import report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two splits, two classes and images of noise, told apart by their even red."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 12), ("test", 4)):
        for k in range(count):
            home = root / split / ("cat", "dog")[k % 2]
            home.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(k).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            pixels[..., 0] = 10 * k
            Image.fromarray(pixels).save(home / f"{k:02}.png")
    return root


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("packs") / "p"
    packs.pack(folder, home, 32)
    return home


def reds(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_a_folder_and_its_pack_are_one_data_set(kind, folder, packed):
    path = {"folder": folder, "packed": packed}[kind]
    got = data.load(f"{kind}:{path}", image_size=32)
    assert got.images.shape == (12, 3, 32, 32)
    assert got.classes == ("cat", "dog")
    shown = reds(got.images[torch.arange(12)])
    assert sorted(shown) == [10 * k for k in range(12)]
    assert shown != sorted(shown), "class by class, a prefix would be one class"
    assert got.labels.tolist() == [red // 10 % 2 for red in shown]
    other = data.load(f"folder:{folder}", image_size=32)
    assert reds(other.images) == shown


@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_a_stored_prefix_is_a_prefix_and_the_seed_draws_the_order(kind, folder, packed):
    name = f"{kind}:{ {'folder': folder, 'packed': packed}[kind] }".replace(" ", "")
    few, everything = data.load(name, n=5, image_size=32), data.load(name, image_size=32)
    rows = torch.arange(5)
    assert torch.equal(few.images[rows], everything.images[rows])
    assert torch.equal(few.labels, everything.labels[:5])
    other = data.load(name, seed=1, image_size=32)
    assert not torch.equal(other.labels, everything.labels)
    with pytest.raises(ValueError, match="has 12 train images, 13 were asked for: ask for fewer"):
        data.load(name, n=13, image_size=32)


def test_a_pack_of_another_size_says_what_to_set(packed):
    with pytest.raises(ValueError, match="packed at 32 px, asked for are 16: set image_size to 32"):
        data.load(f"packed:{packed}", image_size=16)


def test_cifar_goes_through_torchvision_at_the_size_asked_for(monkeypatch):
    images = torch.arange(6 * 3 * 4 * 4, dtype=torch.uint8).reshape(6, 3, 4, 4)
    asked = []

    def read(name, split, size):
        asked.append((name, split, size))
        return images, torch.arange(6), tuple("abcdef")

    monkeypatch.setattr(torchsets, "read", read)
    got = data.load("stl10", "unlabeled", n=4, image_size=8)
    assert asked == [("stl10", "unlabeled", 8)]
    assert got.images.shape == (4, 3, 8, 8)
    assert torch.equal(got.images, packs.resize(images[data.order(6, 0)[:4]], 8))


def test_an_imagenet_that_is_not_packed_says_how(monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(torchsets, "imagenet_folder", lambda name, split: tmp_path / name / split)
    with pytest.raises(
        torchsets.MissingData,
        match=r"contsteal.data pack .*imagenet100 .*imagenet100-64 --size 64 --keep",
    ):
        data.load("imagenet100", image_size=64)


def test_an_imagenet_is_read_from_its_pack(monkeypatch, tmp_path, folder):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    packs.pack(folder, tmp_path / "imagenet-32", 32)
    got = data.load("imagenet", "test", image_size=32)
    assert (len(got), got.classes) == (4, ("cat", "dog"))


@pytest.mark.parametrize("name", ["cifar11", "folder:", "zip:here"])
def test_an_unknown_name_lists_embedded_stored_and_paths(name):
    with pytest.raises(
        ValueError, match=f"unknown data set '{name}'.*shapes.*cifar10.*folder:PATH"
    ):
        data.load(name)


def test_large_sets_are_resized_in_parts_like_whole_ones(monkeypatch):
    images = torch.randint(256, (5000, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(packs.resize(images, 12)[4090:4100], packs.resize(images[4090:4100], 12))


@pytest.fixture
def lazily(monkeypatch, tmp_path) -> data.ImageSet:
    """Load both splits of a small CIFAR-10 at a size that is taken for too large."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    tinysets.make("cifar10", tmp_path, monkeypatch)
    monkeypatch.setattr(packs, "LARGEST", 1000)
    return data.load("cifar10", "train+test", image_size=48)


def test_what_exceeds_the_memory_is_resized_as_it_is_read(lazily, monkeypatch):
    monkeypatch.setattr(packs, "LARGEST", 2**30)
    whole = data.load("cifar10", "train+test", image_size=48)
    assert isinstance(lazily.images, packs.Scaled)
    assert isinstance(whole.images, torch.Tensor)
    assert lazily.images.shape == whole.images.shape
    chosen = torch.tensor([3, 0, 2])
    assert torch.equal(lazily.images[chosen], whole.images[chosen])
    assert torch.equal(torch.cat(list(lazily.images.split(2))), whole.images)
    some = lazily.take(slice(1, 4)).to("cpu")
    assert torch.equal(some.images[:][torch.tensor([0, 2])], whole.images[torch.tensor([1, 3])])
    net = encoders.build("test_resnet", image_size=48, seed=0)
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(
        encoders.embed(net, lazily.images), encoders.embed(net, whole.images), **close
    )


def test_what_is_resized_later_has_a_key_of_its_images_and_size(lazily):
    again, fewer = data.load("cifar10", "train+test", image_size=48), lazily.images[:3]
    larger = data.load("cifar10", "train+test", image_size=64)
    assert again.images.key == lazily.images.key
    assert len({lazily.images.key, fewer.key, larger.images.key}) == 3


def test_joined_splits_are_both_with_their_labels(monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    tinysets.make("cifar10", tmp_path, monkeypatch)
    parts = [torchsets.read("cifar10", split) for split in ("train", "test")]
    both = data.load("cifar10", "train+test")
    order = data.order(len(both), 0)
    assert torch.equal(both.images, torch.cat([p[0] for p in parts])[order])
    assert torch.equal(both.labels, torch.cat([p[1] for p in parts])[order])
    with pytest.raises(ValueError, match="unknown split 'tset' of cifar10: choose one of train"):
        data.load("cifar10", "train+tset")


def test_joined_splits_have_labels_only_where_all_do(monkeypatch):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    labels = {"train": torch.zeros(2, dtype=torch.int64), "unlabeled": None}
    monkeypatch.setattr(torchsets, "read", lambda name, split, size: (images, labels[split], ()))
    joined = data.load("stl10", "train+unlabeled", image_size=8)
    assert (len(joined), joined.labels) == (4, None)


def test_the_command_packs_and_nothing_else(folder, tmp_path, capsys):
    assert data.main(["pack", str(folder), str(tmp_path / "p"), "--size", "16"]) == 0
    assert "train: 12 images of 2 classes at 16 px" in capsys.readouterr().out
    assert data.main(["unpack"]) == 2
    assert "usage" in capsys.readouterr().err


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


def test_altered_images_are_another_victim(lab, folder, monkeypatch):
    first = lab.train()
    pixels = data.load(lab.settings["data"], image_size=32).images[torch.arange(12)]
    changed = data.ImageSet(255 - pixels, torch.zeros(12, dtype=torch.int64), "x", "train", ("a",))
    monkeypatch.setattr(lab, "train_images", lambda part: changed)
    assert lab.train().sha256 != first.sha256
    again = data.ImageSet(pixels.clone(), changed.labels, "x", "train", ("a",))
    np.testing.assert_equal(lab._data_key(again) == lab._data_key(changed), False)


def test_two_folders_are_two_tasks_and_their_pixels_are_part_of_a_score(lab, folder, tmp_path):
    other = tmp_path / "other"
    for path in folder.rglob("*.png"):
        home = other / path.relative_to(folder)
        home.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(path)) // 4  # darker, and nothing to tell classes by
        Image.fromarray(pixels).save(home)
    net = lab.random()
    features = [lab._embed(net, "x", f"folder:{f}", "test") for f in (folder, other)]
    assert not torch.equal(*features)
    before = lab._task_key(f"folder:{other}", "test")
    for path in other.rglob("*.png"):
        Image.new("RGB", (40, 30)).save(path)
    experiment._cached.cache_clear()
    assert experiment.Lab("smoke")._task_key(f"folder:{other}", "test") != before


def test_labels_are_part_of_what_a_victim_is_trained_on(lab):
    images = lab.train_images()
    again = data.ImageSet(
        images.images, images.labels.flip(0), images.name, "train", images.classes
    )
    assert lab._data_key(again) != lab._data_key(images)


def test_a_packed_set_goes_through_views_and_api(lab, packed):
    assert len(inspection.view_sheet(lab, 4)) == 12
    task = lab.settings["data"]
    api = lab.api()
    assert len(api.embed(lab.images(task).images)) == 12
    assert 0 <= lab.legitimate(task) <= 1


# -------------------------------------------------------------------- splits of a profile


@pytest.fixture
def splitting(lab, monkeypatch, tmp_path):
    """Return what makes a lab of tiny STL10 and SVHN files with some settings changed."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    stl10(tmp_path / "data", monkeypatch, "archive")
    svhn(tmp_path / "data", monkeypatch, "train", "test", "extra")
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
    assert "all images of `stl10`, `unlabeled` |" in report.profile_table()
    plain = splitting()
    assert "all images of `stl10` " in report.profile_table()
    assert plain.train_images().split == "train"
    assert pixels(plain.queries(4)) == pixels(data.load("svhn", image_size=32).images)


def test_another_split_is_another_victim_and_another_attack(splitting, folder, packed, tmp_path):
    def made(**changes: str) -> tuple[int, int]:
        lab = splitting(data=f"packed:{packed}", query_data=f"folder:{folder}", **changes)
        stolen = lab.steal("embedding", 4, epochs=1, batch=2)
        table = inspection.worth(lab, {"stolen": stolen.encoder}, [f"folder:{folder}"])
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
    with pytest.raises(ValueError, match=r"unknown split 'extra' of shapes: choose .*train, test"):
        splitting(query_data="shapes", query_split="extra").queries(1)
    wanted = r"needs labels, stl10 has none in its split 'unlabeled': choose .*train_split"
    with pytest.raises(ValueError, match=wanted):
        splitting(train_split="unlabeled").train("victim", "supervised")
    ceiling = splitting(train_split="unlabeled").train_images("supervised")
    assert ceiling.split == "train", "the ceiling learns from labels"


def test_the_images_of_the_split_trained_on_are_counted(splitting, monkeypatch):
    asked = []

    def load(*names: str, image_size: int) -> list[int]:
        asked.append(names)
        return list(range(50))

    monkeypatch.setattr(estimate.data, "load", load)
    monkeypatch.setattr(estimate, "training", lambda config, images: images)
    splitting(train_split="unlabeled")
    assert estimate.profile("smoke", ["simclr"]) == [45, 45]
    assert asked == [("stl10", "unlabeled")]


def test_packed_queries_are_sent_and_stay_on_disk(splitting, packed):
    lab = splitting(data=f"packed:{packed}", query_data=f"packed:{packed}")
    assert not isinstance(lab.queries(4), torch.Tensor), "a pack, not a tensor of it"
    for attack in ("embedding", "cosine"):
        stolen = lab.steal(attack, 4, epochs=1, batch=2)
        assert stolen.queries["unique_inputs"] == 4
