"""The papers' data sets: tiny files in the original formats through the real torchvision code."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo
from tinysets import CIFAR, cifar, fashion_mnist, gtsrb, make, put, stl10, svhn
from torchvision import datasets

from contsteal import files
from contsteal.data import torchsets

Patch = pytest.MonkeyPatch


@pytest.fixture
def home(tmp_path: Path, monkeypatch: Patch) -> Path:
    """An empty folder of data sets, and a network that is down."""

    def down(*_: object, **__: object) -> None:
        raise URLError("the network is down")

    monkeypatch.setattr("urllib.request.urlopen", down)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


# --------------------------------------------------------------------------------- contents


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", CIFAR)
def test_cifar_holds_its_pickles_pixels(name: str, split: str, home, monkeypatch) -> None:
    flat, labels = cifar(name, home, monkeypatch, "extracted")[split]
    images, got, classes = torchsets.read(name, split)
    assert (images.shape, images.dtype) == ((len(flat), 3, 32, 32), torch.uint8)
    assert images.is_contiguous()
    for i, c, y, x in ((0, 0, 0, 1), (2, 1, 30, 7), (1, 2, 5, 31), (0, 2, 0, 0)):
        assert images[i, c, y, x] == flat[i][1024 * c + 32 * y + x]
    assert torch.equal(images.flatten(1), torch.from_numpy(np.stack(flat)))
    assert (got.tolist(), got.dtype) == (labels, torch.int64)
    assert classes == tuple(f"class {i}" for i in range(10))


def test_stl10_stands_upright_and_counts_its_labels_from_zero(home, monkeypatch) -> None:
    wanted = stl10(home, monkeypatch, "extracted")
    labels = {"train": [0, 9, 2, 2], "test": [1, 1, 8, 9], "unlabeled": None}
    for split, pixels in wanted.items():
        images, got, classes = torchsets.read("stl10", split)
        assert torch.equal(images, torch.from_numpy(pixels))
        assert images.is_contiguous()
        assert (None if got is None else got.tolist()) == labels[split]
        assert got is None or got.dtype == torch.int64
        assert (classes[0], classes[9], len(classes)) == ("airplane", "truck", 10)


@pytest.mark.parametrize("split", ["train", "test", "extra"])
def test_svhn_needs_only_the_file_of_its_split(split: str, home: Path, monkeypatch: Patch) -> None:
    wanted = svhn(home, monkeypatch, split)[split]
    assert [s for s in torchsets.SPLITS["svhn"] if not torchsets.missing("svhn", [s])] == [split]
    images, labels, classes = torchsets.read("svhn", split)
    assert torch.equal(images, torch.from_numpy(wanted.transpose(3, 2, 0, 1)))
    assert images.is_contiguous()
    assert (labels.tolist(), labels.dtype) == ([0, 1, 9, 0], torch.int64)
    assert classes == tuple("0123456789")


@pytest.mark.parametrize("split", ["train", "test"])
def test_fashion_mnist_repeats_its_gray_channel(split: str, home: Path, monkeypatch: Patch) -> None:
    wanted = torch.from_numpy(fashion_mnist(home, monkeypatch)[split])
    images, labels, classes = torchsets.read("fashion_mnist", split)
    assert images.shape == (5, 3, 28, 28)
    assert all(torch.equal(images[:, c], wanted) for c in range(3))
    assert (labels.tolist(), labels.dtype) == ([0, 9, 4, 4, 1], torch.int64)
    assert (classes[0], classes[9], len(classes)) == ("T-shirt/top", "Ankle boot", 10)


@pytest.mark.parametrize(("split", "labels"), [("train", [0, 0, 1, 1]), ("test", [42, 7])])
def test_signs_of_all_sizes_are_squeezed_to_one(
    split: str, labels: list[int], home, monkeypatch
) -> None:
    wanted = gtsrb(home, monkeypatch)[split]
    images, got, classes = torchsets.read("gtsrb", split, image_size=24)
    assert (images.shape, images.dtype) == ((len(wanted), 3, 24, 24), torch.uint8)
    assert (got.tolist(), got.dtype) == (labels, torch.int64)
    for image, pixels in zip(images, wanted, strict=True):
        exact = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
        small = F.interpolate(exact, (24, 24), mode="bilinear", antialias=True)[0]
        assert (image - small).abs().max() < 1.01  # two roundings: rows, then columns
    assert (len(set(classes)), classes[14], classes[42][:17]) == (43, "Stop", "End of no passing")


# --------------------------------------------------------------------------------- missing data


def test_paths_are_those_of_torchvision() -> None:
    paths = {a.path for a in torchsets.ARCHIVES}
    published = {datasets.CIFAR10.filename, datasets.CIFAR100.filename, datasets.STL10.filename}
    published |= {path for _, path, _ in datasets.SVHN.split_list.values()}
    published |= {f"FashionMNIST/raw/{path}" for path, _ in datasets.FashionMNIST.resources}
    assert {path for path in paths if "gtsrb" not in path} == published


@pytest.mark.parametrize(
    ("name", "size", "path"),
    [
        ("cifar10", "170.5 MB", "cifar-10-python.tar.gz"),
        ("cifar100", "169.0 MB", "cifar-100-python.tar.gz"),
        ("stl10", "2.6 GB", "stl10_binary.tar.gz"),
        ("svhn", "182.0 MB", "train_32x32.mat"),
        ("fashion_mnist", "30.9 MB", "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz"),
        ("gtsrb", "187.5 MB", "gtsrb/GTSRB-Training_fixed.zip"),
    ],
)
def test_missing_data_says_where_how_large_and_what_to_do(name, size, path, home) -> None:
    wanted = rf"{name} is not complete in {home}: .*\({size}\).*`make data PROFILE.*{home}/{path}"
    with pytest.raises(torchsets.MissingData, match=f"{wanted}.*DATA_DIR.*`demo` needs no data"):
        torchsets.read(name, "train")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("cifar", "train", r"unknown data set 'cifar': .*cifar10, cifar100, stl10, .*imagenet100"),
        ("cifar10", "val", r"unknown split 'val' of cifar10: choose one of train, test$"),
        ("svhn", "unlabeled", r"'unlabeled' of svhn: .*train, test, extra"),
    ],
)
def test_unknown_names_and_splits_list_the_known(name: str, split: str, message: str) -> None:
    for call in (torchsets.read, lambda n, s: torchsets.fetch(n, [s])):
        with pytest.raises(ValueError, match=message):
            call(name, split)


def test_the_folder_is_that_of_the_variable_or_of_the_repository(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DATA_DIR", "")
    assert torchsets.data_dir() == Path(__file__).resolve().parents[2] / "data"
    monkeypatch.setattr(torchsets, "REPOSITORY", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    assert torchsets.data_dir() == tmp_path.resolve() / "data", "of an installed package"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA_DIR", "~/sets")
    assert torchsets.data_dir() == tmp_path.resolve() / "sets"
    monkeypatch.setenv("DATA_DIR", "~no such user/sets")
    with pytest.raises(torchsets.MissingData, match=r"DATA_DIR='~no such user/sets': .*whole path"):
        torchsets.data_dir()


# --------------------------------------------------------------------------------- damaged data


def touch_on_load(target: Path) -> bytes:
    """A pickle that makes a file when it is loaded."""

    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (target,)

    return pickle.dumps(Evil())


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("batch", ["data_batch_3", "test_batch", "batches.meta"])
def test_no_pickle_is_opened_before_its_checksum_is_right(
    batch: str, home, tmp_path, monkeypatch
) -> None:
    cifar("cifar10", home, monkeypatch, "extracted")
    put(home / "cifar-10-batches-py" / batch, touch_on_load(tmp_path / "executed"))
    with pytest.raises(torchsets.CorruptData, match=r"cifar10 train is damaged.*delete .*-py and"):
        torchsets.read("cifar10", "train")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_5", flip),
        ("cifar100", "cifar-100-python/meta", lambda content: content[:-1]),
        ("stl10", "stl10_binary/unlabeled_X.bin", flip),
        ("svhn", "train_32x32.mat", flip),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte", lambda content: content[:-1]),
        ("gtsrb", "gtsrb/GTSRB/Training/00001/00003_00000.ppm", lambda content: content[:-100]),
        ("gtsrb", "gtsrb/GTSRB/Training/00001/00003_00000.ppm", lambda content: b"no image"),
    ],
)
def test_damaged_files_are_noticed_and_the_remedy_is_named(
    name: str, file: str, change: Callable[[bytes], bytes], home, monkeypatch
) -> None:
    make(name, home, monkeypatch)
    torchsets.read(name, "train")
    (home / file).write_bytes(change((home / file).read_bytes()))
    wanted = rf"{name} train is damaged .*\((?s:.+)\): delete {home}/.* and run `make data"
    with pytest.raises(torchsets.CorruptData, match=wanted):
        torchsets.read(name, "train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_signs_that_were_unpacked_in_part_are_noticed(split: str, home, monkeypatch) -> None:
    gtsrb(home, monkeypatch)
    table = home / "gtsrb/GT-final_test.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    next(home.glob("gtsrb/GTSRB/Training/00000/*.ppm")).unlink()
    with pytest.raises(torchsets.CorruptData, match=r"\((3 images of 4|1 images of 2)\): delete"):
        torchsets.read("gtsrb", split)
    with pytest.raises(RuntimeError, match=r"images of [24]\): delete"):
        torchsets.fetch("gtsrb", [split])


# --------------------------------------------------------------------------------------- fetch


def served(monkeypatch: Patch, home: Path) -> list[str]:
    """Let torchvision download from `home.parent / "server"`; return the files it asks for."""
    asked: list[str] = []

    def copy(url: str, filename: str, *_: object) -> None:
        asked.append(Path(filename).name)
        shutil.copy(home.parent / "server" / Path(filename).name, filename)

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", copy)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    return asked


def test_fetch_downloads_checks_and_unpacks_what_is_missing(home, monkeypatch, capsys) -> None:
    wanted = cifar("cifar10", home.parent / "server", monkeypatch, "archive")
    svhn(home.parent / "server", monkeypatch, "train", "test", "extra")
    asked, needs = served(monkeypatch, home), {"cifar10": {"train", "test"}, "svhn": {"extra"}}
    for name, splits in needs.items():
        torchsets.fetch(name, splits)
    assert asked == ["cifar-10-python.tar.gz", "extra_32x32.mat"]
    assert capsys.readouterr().out.splitlines() == [
        f"{line} {home}"
        for name, size in (("cifar10", "170.5 MB"), ("svhn", "1.3 GB"))
        for line in (f"fetching {name} ({size}) into", f"{name}: complete in")
    ]
    images = torchsets.read("cifar10", "test")[0]
    assert torch.equal(images.flatten(1), torch.from_numpy(np.stack(wanted["test"][0])))
    asked.clear()
    torchsets.fetch("cifar10", needs["cifar10"])
    assert asked == [], "it is there already"


def test_archives_put_by_hand_are_unpacked_without_a_network(home, monkeypatch) -> None:
    stl10(home, monkeypatch, "archive")
    fashion_mnist(home, monkeypatch)
    for raw in home.glob("FashionMNIST/raw/*-ubyte"):
        raw.unlink()
    torchsets.fetch("stl10", {"unlabeled"})
    torchsets.fetch("fashion_mnist", {"train"})
    assert len(torchsets.read("stl10", "unlabeled")[0]) == 4
    assert len(torchsets.read("fashion_mnist", "test")[0]) == 5


@pytest.mark.parametrize("other", [True, False])
def test_what_cannot_be_fetched_is_an_error_with_the_remedy(other: bool, home, monkeypatch) -> None:
    cifar("cifar10", home.parent / "server", monkeypatch, "archive")
    if other:  # the server has another file; otherwise the network is down
        served(monkeypatch, home)
        archive = home.parent / "server/cifar-10-python.tar.gz"
        archive.write_bytes(flip(archive.read_bytes()))
    reason = "not found or corrupted" if other else "the network is down"
    wanted = rf"cifar10 could not be fetched \(.*{reason}.*170.5 MB.*make data.*put.*tar.gz.*`demo`"
    with pytest.raises(RuntimeError, match=wanted):
        torchsets.fetch("cifar10", {"train"})
    assert torchsets.missing("cifar10", ["train"])


def test_too_little_space_is_noticed_before_anything_is_fetched(home, monkeypatch) -> None:
    asked = served(monkeypatch, home)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5e8))
    with pytest.raises(files.StorageError, match=r"cannot take 0.5 GB \(too little sp.*DATA_DIR"):
        torchsets.fetch("cifar10", {"train"})
    assert asked == []
    put(home / "file", b"")
    monkeypatch.setenv("DATA_DIR", str(home / "file"))
    with pytest.raises(files.StorageError, match=r"file cannot take .*exists.*DATA_DIR"):
        torchsets.fetch("cifar10", {"train"})


# ------------------------------------------------------------------------------------ ImageNet


@pytest.mark.parametrize("name", torchsets.FOLDERS)
def test_an_imagenet_that_is_not_packed_says_what_to_put_where(name: str, home: Path) -> None:
    with pytest.raises(torchsets.MissingData) as caught:
        torchsets.imagenet(name, 64)
    message = str(caught.value)
    command = f"python -m contsteal.data.packed {home}/imagenet {home}/{name}-64 --size 64"
    for part in (command, "register", f"155 GB into {home}/imagenet/train/", "DATA_DIR", "`demo`"):
        assert part in message
    if name == "imagenet100":
        wnids = Path(message.partition("--keep ")[2].partition(";")[0]).read_text().split()
        assert wnids == sorted(set(wnids))
        assert len(wnids) == 100
        assert {"n02869837", "n01749939"} < set(wnids) < set(ImageNetInfo().label_names())
    (home / f"{name}-64").mkdir()
    assert torchsets.imagenet(name, 64) == home / f"{name}-64"
