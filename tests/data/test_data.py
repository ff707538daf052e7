"""`data.load` for every kind of set, their order, and which stored sets a profile needs."""

from pathlib import Path

import pytest
import tinysets
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from contsteal import data
from contsteal.data import packed, torchsets


@given(st.integers(1, 500), st.integers(0, 2**32))
def test_order_is_one_permutation_of_a_seed(n: int, seed: int) -> None:
    order = data.order(n, seed)
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, data.order(n, seed))
    assert data.order(1000, 5)[:5].tolist() == [434, 564, 288, 634, 423], "as in stored results"


@pytest.mark.parametrize(
    "chosen", [torch.tensor([5, 0, 5]), slice(2, 7), torch.arange(20) % 3 == 0]
)
@pytest.mark.parametrize("name", ["shapes", "patches"])
def test_take_keeps_images_and_labels_together(name: str, chosen: Tensor | slice) -> None:
    whole = data.load(name, n=20)
    part = whole.take(chosen)
    assert torch.equal(part.images, whole.images[chosen])
    assert (part.labels is None) == (whole.labels is None) == (name == "patches")
    if whole.labels is not None:
        assert torch.equal(part.labels, whole.labels[chosen])
    assert (part.name, part.split, part.classes) == (whole.name, whole.split, whole.classes)
    moved = whole.to("meta")
    assert moved.images.device.type == "meta"
    assert moved.labels is None or moved.labels.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "shape"}, r"'shape'.*shapes, shapes:colour, .*patches, cifar10.*folder:PATH"),
        ({"name": "folder:"}, r"unknown data set 'folder:'.*imagenet100, folder:PATH, packed:PATH"),
        ({"name": "zip:x"}, r"unknown data set 'zip:x'"),
        ({"name": "digits", "split": "val"}, r"split of digits 'val'.*train, test"),
        ({"name": "shapes", "n": 0}, r"images of 'shapes': n=0: .*at least 1"),
        ({"name": "digits", "n": 1439}, r"1438 train images, n=1439: ask for fewer"),
        ({"name": "shapes", "n": 1, "image_size": 7}, r"image_size=7: .*at least 8"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(**options)


# ------------------------------------------------------------------------- folders and packs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinysets.folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def stored(folder: Path) -> dict[str, str]:
    """The names of the folder and of its pack."""
    packed.pack(folder, folder.parent / "pack", 32)
    return {"folder": f"folder:{folder}", "packed": f"packed:{folder.parent / 'pack'}"}


def reds(images: Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("kind", data.PATHS)
def test_a_folder_and_its_pack_are_one_data_set(kind: str, stored: dict[str, str]) -> None:
    got = data.load(stored[kind])
    assert (got.images.shape, got.classes) == ((12, 3, 32, 32), ("cat", "dog"))
    shown = reds(got.images[torch.arange(12)])
    assert sorted(shown) == [10 * k for k in range(12)]
    assert shown != sorted(shown), "class by class, a prefix would be one class"
    assert got.labels.tolist() == [red // 10 % 2 for red in shown]
    assert isinstance(got.images, packed.Packed) == (kind == "packed")
    whole = data.load(stored["folder"])
    assert torch.equal(got.images[torch.arange(12)], whole.images)


@pytest.mark.parametrize("kind", data.PATHS)
def test_a_stored_prefix_is_a_prefix_and_the_seed_draws_the_order(
    kind: str, stored: dict[str, str]
) -> None:
    few, everything = data.load(stored[kind], n=5), data.load(stored[kind])
    assert torch.equal(few.images[torch.arange(5)], everything.images[torch.arange(5)])
    assert torch.equal(few.labels, everything.labels[:5])
    assert not torch.equal(data.load(stored[kind], seed=1).labels, everything.labels)
    with pytest.raises(ValueError, match="has 12 train images, n=13: ask for fewer"):
        data.load(stored[kind], n=13)
    with pytest.raises(data.FolderError, match=r"no split 'val' in .*choose one of train, test"):
        data.require(stored[kind], ["val"], 32)
    if kind == "packed":
        for call, split in ((data.load, "train"), (data.require, ["train"])):
            with pytest.raises(ValueError, match="at 32 px, not 16 px: set image_size to 32"):
                call(stored["packed"], split, image_size=16)


def test_an_imagenet_is_read_from_its_pack(monkeypatch, tmp_path, folder) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    packed.pack(folder, tmp_path / "imagenet-32", 32)
    got = data.load("imagenet", "test")
    assert (len(got), got.classes) == (4, ("cat", "dog"))
    (tmp_path / "imagenet-32/train").rename(tmp_path / "imagenet-32/val")
    assert len(data.load("imagenet", "test")) == 12, "ImageNet's test images have no labels"


# ------------------------------------------------------------------------- torchvision's sets


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tiny CIFAR-10, unpacked."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    tinysets.cifar("cifar10", tmp_path, monkeypatch, "extracted")


def test_splits_are_shuffled_cut_resized_and_joined_with_their_labels(cifar10: None) -> None:
    parts = [torchsets.read("cifar10", split) for split in ("train", "test")]
    few, first = data.load("cifar10", n=4, image_size=48), data.order(15, 0)[:4]
    assert torch.equal(few.images, packed.resize(parts[0][0][first], 48))
    assert torch.equal(few.labels, parts[0][1][first])
    both = data.load("cifar10", "train+test")
    order = data.order(len(both), 0)
    assert torch.equal(both.images, torch.cat([p[0] for p in parts])[order])
    assert torch.equal(both.labels, torch.cat([p[1] for p in parts])[order])
    with pytest.raises(ValueError, match="unknown split 'tset' of cifar10: choose one of train"):
        data.load("cifar10", "train+tset")


def test_joined_splits_have_labels_only_where_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    labels = {"train": torch.zeros(2, dtype=torch.int64), "unlabeled": None}
    monkeypatch.setattr(torchsets, "read", lambda name, split, size: (images, labels[split], ()))
    joined = data.load("stl10", "train+unlabeled", image_size=8)
    assert (len(joined), joined.labels) == (4, None)


def test_what_exceeds_the_memory_is_resized_as_it_is_read(cifar10: None, monkeypatch) -> None:
    whole = data.load("cifar10", "train+test", image_size=48)
    monkeypatch.setattr(data, "LARGEST", 1000)
    lazy = data.load("cifar10", "train+test", image_size=48)
    assert isinstance(whole.images, Tensor)
    assert isinstance(lazy.images, packed.Scaled)
    assert lazy.images.shape == whole.images.shape
    chosen = torch.tensor([3, 0, 2])
    assert torch.equal(lazy.images[chosen], whole.images[chosen])
    assert torch.equal(torch.cat(list(lazy.images.split(2))), whole.images)
    some = lazy.take(slice(1, 4)).to("cpu")
    assert torch.equal(some.images[:][torch.tensor([0, 2])], whole.images[torch.tensor([1, 3])])
    again, larger = (data.load("cifar10", "train+test", image_size=s).images for s in (48, 64))
    assert again.key == lazy.images.key
    assert len({again.key, again[:3].key, larger.key}) == 3


def test_large_sets_are_resized_in_parts_like_whole_ones() -> None:
    images = torch.randint(256, (5000, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(packed.resize(images, 12)[4090:4100], packed.resize(images[4090:4100], 12))


# ------------------------------------------------------------------- what a profile needs


@pytest.mark.parametrize(
    ("settings", "parameters", "expected"),
    [
        ({"data": "shapes", "query_data": "patches"}, [{"tasks": ["digits", "folder"], "n": 3}], {}),
        ({"data": "cifar10", "query_data": "shapes"}, [], {"cifar10": {"train", "test"}}),
        ({"data": "stl10", "train_split": "train+unlabeled"}, [],
         {"stl10": {"train", "test", "unlabeled"}}),
        ({}, [{"tasks": ["svhn"]}, {"tasks": "gtsrb"}],
         {"svhn": {"train", "test"}, "gtsrb": {"train", "test"}}),
        ({}, [{"knobs": {"query_data": ["stl10@unlabeled", "shapes"], "batch": [32, 64]}}],
         {"stl10": {"unlabeled"}}),
        ({}, [{"elsewhere": [["svhn", "extra", 9000], ["cifar10", "train+test", 60000]]}],
         {"svhn": {"extra"}, "cifar10": {"train", "test"}}),
        ({"data": "imagenet"}, [{"tasks": ["folder:/x", "packed:/y"]}],
         {n: {"train", "test"} for n in ("imagenet", "folder:/x", "packed:/y")}),
    ],
)  # fmt: skip
def test_needs_are_the_stored_sets_that_parameters_mention(
    settings: dict, parameters: list[dict], expected: dict[str, set[str]]
) -> None:
    assert data.needs(settings, parameters) == expected


def test_stored_sets_are_required_without_reading_them(
    cifar10: None, tmp_path, folder, stored: dict[str, str], monkeypatch
) -> None:
    packed.pack(folder, tmp_path / "imagenet-32", 32)
    monkeypatch.setattr("contsteal.data.folders.decode", None)
    monkeypatch.setattr(torchsets, "read", None)
    for name in ("cifar10", "imagenet", stored["folder"], stored["packed"]):
        data.require(name, {"train", "test"}, 32)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("x", ValueError, r"unknown data set 'x'"),
        ("svhn", data.MissingData, r"svhn is not complete in .*246.3 MB"),
        ("imagenet100", data.MissingData, r"packed {0}/imagenet {0}/imagenet100-32 --size 32 --keep"),
        ("folder:{0}/x", data.FolderError, r"{0}/x is not a folder: put images into train/CLASS"),
        ("packed:{0}/x y", packed.PackError, r"no finished pack in {0}/x y: make one with .*'{0}/x y'"),
    ],
)  # fmt: skip
def test_a_requirement_says_what_to_do_for_what_is_missing(
    name: str, error: type, message: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    with pytest.raises(error, match=message.format(tmp_path)):
        data.require(name.format(tmp_path), {"train", "test"}, 32)
