"""The papers' data sets: tiny files in the original formats through the real torchvision code."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo
from tinysets import CIFAR, cifar, fashion_mnist, gtsrb, stl10, svhn

from contsteal.data import torchsets


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of data sets."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


forms = pytest.mark.parametrize("form", ["archive", "extracted"])

# --------------------------------------------------------------------------------- contents


@forms
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", CIFAR)
def test_cifar_holds_its_pickles_pixels(
    name: str, split: str, form: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat, labels = cifar(name, home, monkeypatch, form)[split]
    images, got, classes = torchsets.read(name, split)
    assert (images.shape, images.dtype) == ((len(flat), 3, 32, 32), torch.uint8)
    assert images.is_contiguous()
    for i, c, y, x in ((0, 0, 0, 1), (2, 1, 30, 7), (1, 2, 5, 31), (0, 2, 0, 0)):
        assert images[i, c, y, x] == flat[i][1024 * c + 32 * y + x]
    assert torch.equal(images.flatten(1), torch.from_numpy(np.stack(flat)))
    assert (got.tolist(), got.dtype) == (labels, torch.int64)
    assert classes == tuple(f"class {i}" for i in range(10))


@forms
def test_stl10_stands_upright_and_counts_its_labels_from_zero(
    form: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = stl10(home, monkeypatch, form)
    labels = {"train": [0, 9, 2, 2], "test": [1, 1, 8, 9], "unlabeled": None}
    for split, pixels in wanted.items():
        images, got, classes = torchsets.read("stl10", split)
        assert torch.equal(images, torch.from_numpy(pixels))
        assert images.is_contiguous()
        assert (None if got is None else got.tolist()) == labels[split]
        assert got is None or got.dtype == torch.int64
        assert classes[0] == "airplane"
        assert len(classes) == 10


def test_stl10_knows_its_classes_without_their_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stl10(home, monkeypatch, "extracted")
    (home / "stl10_binary" / "class_names.txt").unlink()
    assert torchsets.read("stl10", "train")[2] == torchsets.STL10_CLASSES


@pytest.mark.parametrize("split", ["train", "test", "extra"])
def test_svhn_needs_only_the_file_of_its_split(
    split: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = svhn(home, monkeypatch, split)[split]
    images, labels, classes = torchsets.read("svhn", split)
    for n in range(4):
        for c in range(3):
            assert torch.equal(images[n, c], torch.from_numpy(wanted[:, :, c, n]))
    assert (labels.tolist(), labels.dtype) == ([0, 1, 9, 0], torch.int64)
    assert classes == tuple("0123456789")
    assert images.is_contiguous()


@pytest.mark.parametrize("split", ["train", "test"])
def test_fashion_mnist_repeats_its_gray_channel(
    split: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = torch.from_numpy(fashion_mnist(home, monkeypatch)[split])
    images, labels, classes = torchsets.read("fashion_mnist", split)
    assert images.shape == (5, 3, 28, 28)
    assert all(torch.equal(images[:, c], wanted) for c in range(3))
    assert (labels.tolist(), labels.dtype) == ([0, 9, 4, 4, 1], torch.int64)
    assert (classes[0], classes[9], len(classes)) == ("T-shirt/top", "Ankle boot", 10)


def test_what_lies_unpacked_of_fashion_mnist_is_replaced_where_it_differs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fashion_mnist(home, monkeypatch)
    wanted = torchsets.read("fashion_mnist", "train")[0]
    raw = home / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    raw.write_bytes(raw.read_bytes()[:-784] + bytes(784))
    assert torch.equal(torchsets.read("fashion_mnist", "train")[0], wanted)


@forms
@pytest.mark.parametrize(("split", "labels"), [("train", [0, 0, 1, 1]), ("test", [42, 7])])
def test_signs_of_all_sizes_are_squeezed_to_one(
    split: str, labels: list[int], form: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = gtsrb(home, monkeypatch, form)[split]
    images, got, classes = torchsets.read("gtsrb", split, image_size=24)
    assert (images.shape, images.dtype) == ((len(wanted), 3, 24, 24), torch.uint8)
    assert (got.tolist(), got.dtype) == (labels, torch.int64)
    for image, pixels in zip(images, wanted, strict=True):
        exact = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
        small = F.interpolate(exact, (24, 24), mode="bilinear", antialias=True)[0]
        assert (image - small).abs().max() < 1.01  # two roundings: rows, then columns
    assert (len(set(classes)), classes[14], classes[42][:17]) == (43, "Stop", "End of no passing")


def test_each_split_of_signs_needs_its_own_archives(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gtsrb(home, monkeypatch, "archive")
    (home / "gtsrb" / "GTSRB_Final_Test_GT.zip").unlink()
    assert len(torchsets.read("gtsrb", "train")[0]) == 4
    with pytest.raises(torchsets.MissingData, match=r"GTSRB_Final_Test_GT\.zip"):
        torchsets.read("gtsrb", "test")


# ----------------------------------------------------------------------------------- ImageNet


def test_imagenet100_is_a_hundred_classes_of_imagenet() -> None:
    wnids = torchsets.imagenet100_wnids()
    assert len(set(wnids)) == len(wnids) == 100
    assert set(wnids) < set(ImageNetInfo().label_names())
    assert list(wnids) == sorted(wnids)
    assert {"n02869837", "n01749939", "n02090622"} < set(wnids)


def make_folders(folder: Path, wnids: list[str] | tuple[str, ...]) -> Path:
    for wnid in wnids:
        (folder / wnid).mkdir(parents=True)
    return folder


def test_imagenet_is_found_and_its_test_is_val(home: Path) -> None:
    everything = ImageNetInfo().label_names()
    train = make_folders(home / "imagenet" / "train", everything)
    val = make_folders(home / "imagenet" / "val", everything)
    for name in torchsets.FOLDERS:
        assert torchsets.imagenet_folder(name, "train") == train
        assert torchsets.imagenet_folder(name, "test") == val


def test_imagenet100_in_a_folder_of_its_own_comes_first(home: Path) -> None:
    make_folders(home / "imagenet" / "val", ImageNetInfo().label_names())
    own = make_folders(home / "imagenet100" / "val", torchsets.imagenet100_wnids())
    assert torchsets.imagenet_folder("imagenet100", "test") == own


def test_imagenet_without_all_classes_says_what_to_put_where(home: Path) -> None:
    make_folders(
        home / "imagenet" / "val", [*torchsets.imagenet100_wnids()[:99], "n00000000", "other"]
    )
    with pytest.raises(torchsets.MissingData, match=r"val has 99 of 100 class folders"):
        torchsets.imagenet_folder("imagenet100", "test")
    with pytest.raises(torchsets.MissingData, match=r"val has 100 of 1000 class folders"):
        torchsets.imagenet_folder("imagenet", "test")
    with pytest.raises(torchsets.MissingData, match=r"train has 0 of 1000") as caught:
        torchsets.imagenet_folder("imagenet", "train")
    for part in ("register", "ILSVRC2012_img_train.tar (147.9 GB)", "devkit", "DATA_DIR", "`demo`"):
        assert part in str(caught.value)
    assert str(home / "imagenet") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("cifar10", "test", r"'cifar10' is no folder.*imagenet or imagenet100"),
        ("imagenet", "val", r"unknown split 'val' of imagenet: choose one of train, test"),
    ],
)
def test_imagenet_folder_refuses_other_names(name: str, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchsets.imagenet_folder(name, split)
