"""The papers' data sets: fetched, checked and read by torchvision; ImageNet by folder only."""

import os
import shlex
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from contsteal.files import StorageError

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("imagenet", "imagenet100")  # folders of JPEG files: never downloaded, read once packed
SPLITS: dict[str, tuple[str, ...]] = {
    "cifar10": ("train", "test"), "cifar100": ("train", "test"),
    "stl10": ("train", "test", "unlabeled"), "svhn": ("train", "test", "extra"),
    "fashion_mnist": ("train", "test"), "gtsrb": ("train", "test"),
}  # fmt: skip
NAMES = (*SPLITS, *FOLDERS)
TIMEOUT = 60  # seconds without a byte before a server counts as dead; torchvision sets none
DAMAGE = (
    RuntimeError, AssertionError, ValueError, IndexError, SyntaxError, OSError, EOFError, HTTPException,
)  # fmt: skip
REMEDY = "set DATA_DIR to look in another folder; the profile `demo` needs no data set"


class MissingData(ValueError):
    """A data set is not where it was looked for."""


class CorruptData(ValueError):
    """A file of a data set is not the published one: damaged, incomplete or another."""


class Archive(NamedTuple):
    """A published file, its bytes, and what it is unpacked to; paths are relative to data_dir()."""

    name: str
    splits: str
    path: str
    size: int
    content: str


MNIST = {
    "FashionMNIST/raw/train-images-idx3-ubyte": 26421880,
    "FashionMNIST/raw/train-labels-idx1-ubyte": 29515,
    "FashionMNIST/raw/t10k-images-idx3-ubyte": 4422102,
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": 5148,
}
ARCHIVES = (
    Archive("cifar10", "train test", "cifar-10-python.tar.gz", 170498071, "cifar-10-batches-py"),
    Archive("cifar100", "train test", "cifar-100-python.tar.gz", 169001437, "cifar-100-python"),
    Archive("stl10", "train test unlabeled", "stl10_binary.tar.gz", 2640397119, "stl10_binary"),
    Archive("svhn", "train", "train_32x32.mat", 182040794, "train_32x32.mat"),
    Archive("svhn", "test", "test_32x32.mat", 64275384, "test_32x32.mat"),
    Archive("svhn", "extra", "extra_32x32.mat", 1329278602, "extra_32x32.mat"),
    *(Archive("fashion_mnist", "train test", f"{k}.gz", size, k) for k, size in MNIST.items()),
    Archive("gtsrb", "train", "gtsrb/GTSRB-Training_fixed.zip", 187490228, "gtsrb/GTSRB/Training"),
    Archive("gtsrb", "test", "gtsrb/GTSRB_Final_Test_Images.zip", 88978620,
            "gtsrb/GTSRB/Final_Test/Images"),
    Archive("gtsrb", "test", "gtsrb/GTSRB_Final_Test_GT.zip", 99620, "gtsrb/GT-final_test.csv"),
)  # fmt: skip
# The training images are those of the 2011 competition, not the 39,209 published later. torchvision
# takes signs that were unpacked in part for whole.
SIGNS = {"train": 26640, "test": 12630}
STL10_CLASSES = (
    "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
)  # fmt: skip

Read = tuple[Tensor, Tensor | None, tuple[str, ...]]


def data_dir() -> Path:
    """Return the folder of all data sets, laid out as torchvision does: $DATA_DIR or `data/`.

    Returns:
        An absolute path.

    Raises:
        MissingData: for the home of a user that this machine does not know.

    Example:
        >>> data_dir().is_absolute()
        True
    """
    # An installed package has no repository: `data/` is that of the current folder.
    home = REPOSITORY if (REPOSITORY / "pyproject.toml").exists() else Path.cwd()
    place = os.path.expanduser(os.environ.get("DATA_DIR") or home / "data")
    if str(place).startswith("~"):
        raise MissingData(f"DATA_DIR={place!r}: this machine has no such user; give the whole path")
    return Path(place).resolve()


def missing(name: str, splits: Collection[str]) -> list[Archive]:
    """Return the archives of splits whose content does not lie in data_dir(), even if damaged."""
    if name not in SPLITS:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(NAMES)}")
    if unknown := set(splits).difference(SPLITS[name]):
        known = ", ".join(SPLITS[name])
        raise ValueError(f"unknown split {min(unknown)!r} of {name}: choose one of {known}")
    archives = [a for a in ARCHIVES if a.name == name and set(splits) & set(a.splits.split())]
    return [archive for archive in archives if not (data_dir() / archive.content).exists()]


def require(name: str, splits: Collection[str]) -> None:
    """Check that the files of splits are there.

    Raises:
        MissingData: where files are missing: how large they are, and what to do.
    """
    if archives := missing(name, splits):
        raise MissingData(f"{name} is not complete in {data_dir()}: {_remedy(archives)}")


def _remedy(archives: Collection[Archive]) -> str:
    paths = ", ".join(str(data_dir() / archive.path) for archive in archives)
    return (
        f"fetch it ({_size(archives)}) with `make data PROFILE=...` (the profile that reads it). "
        f"Without a network, put the published files at {paths} and run it again; or {REMEDY}"
    )


def _size(archives: Collection[Archive]) -> str:
    size = sum(archive.size for archive in archives)
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def fetch(name: str, splits: Collection[str]) -> None:
    """Fetch, check and unpack what is missing of a data set's splits, by torchvision.

    Args:
        name: of SPLITS.
        splits: some of them.

    Raises:
        StorageError: for no permission or too little space; nothing was fetched.
        RuntimeError: with the problem and the remedy.
    """
    archives = missing(name, splits)
    _check_space(archives)
    if archives:
        print(f"fetching {name} ({_size(archives)}) into {data_dir()}", flush=True)
    try:
        for split in sorted(splits):
            _open(name, split, download=True)
    except CorruptData as error:
        reason = f"{name} could not be fetched ({error.__cause__}): {_remedy(archives)}"
        raise RuntimeError(reason if archives else str(error)) from error
    print(f"{name}: complete in {data_dir()}")


def _check_space(archives: Collection[Archive]) -> None:
    # What an archive is unpacked to, at most twice its size, lies beside it.
    need = sum(a.size * (1 if a.path == a.content else 3) for a in archives)
    try:
        data_dir().mkdir(parents=True, exist_ok=True)
        problem = None if shutil.disk_usage(data_dir()).free >= need else "too little space"
    except OSError as error:
        problem = str(error)
    if problem:
        raise StorageError(f"{data_dir()} cannot take {need / 1e9:.1f} GB ({problem}): {REMEDY}")


@contextmanager
def _checks(name: str, split: str) -> Iterator[None]:
    """Raise CorruptData, with the files to delete, for what torchvision raises inside."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    except DAMAGE as error:
        contents = [a.content for a in ARCHIVES if a.name == name and split in a.splits.split()]
        paths = " and ".join(str(data_dir() / content) for content in contents)
        message = f"{name} {split} is damaged or incomplete ({error}): delete {paths}"
        raise CorruptData(f"{message} and run `make data PROFILE=...`") from error
    finally:
        socket.setdefaulttimeout(timeout)


def _open(name: str, split: str, **options: object) -> Any:
    """Construct torchvision's data set, which checks its files; CorruptData where one is not whole."""
    from torchvision import datasets

    kind = getattr(datasets, {"fashion_mnist": "FashionMNIST"}.get(name, name.upper()))
    by_name = name in ("stl10", "svhn", "gtsrb")
    options |= {"split": split} if by_name else {"train": split == "train"}
    with _checks(name, split):
        dataset = kind(data_dir(), **options)
        if name == "gtsrb" and len(dataset) != SIGNS[split]:
            raise RuntimeError(f"{len(dataset)} images of {SIGNS[split]}")
        return dataset


def verify(name: str, splits: Collection[str]) -> None:
    """Read splits and compare them with what was published.

    Raises:
        MissingData, CorruptData: for files that are not there, or not the published ones.
    """
    require(name, splits)
    for split in sorted(splits):
        _open(name, split)


def read(name: str, split: str, image_size: int = 32) -> Read:
    """Read one split of a data set; it takes twice the split's size in memory.

    Args:
        name: of SPLITS.
        split: one of them.
        image_size: side in pixels that GTSRB's images, which differ in size, are squeezed to.

    Returns:
        Images, uint8 (N, 3, H, W), gray ones repeated three times; labels, int64 (N,), None for STL10's
        `unlabeled`; the names of the classes.

    Raises:
        MissingData, CorruptData: for files that are not there, or not the published ones.
    """
    require(name, [split])
    if name == "gtsrb":
        return _signs(split, image_size)
    dataset = _open(name, split)
    if name == "fashion_mnist":
        images = dataset.data[:, None].expand(-1, 3, -1, -1).contiguous()
    elif name in ("cifar10", "cifar100"):
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    else:
        images = torch.from_numpy(np.ascontiguousarray(dataset.data))
    labels = dataset.labels if name in ("stl10", "svhn") else dataset.targets
    labels = None if split == "unlabeled" else torch.as_tensor(labels, dtype=torch.int64)
    classes = {"stl10": STL10_CLASSES, "svhn": tuple("0123456789")}
    return images, labels, classes.get(name) or tuple(dataset.classes)


def _signs(split: str, size: int) -> Read:
    from torchvision.transforms import v2

    squeeze = v2.Compose([v2.Resize((size, size)), v2.PILToTensor()])
    dataset = _open("gtsrb", split, transform=squeeze)
    with _checks("gtsrb", split):
        images, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    classes = Path(__file__).with_name("gtsrb.txt").read_text().splitlines()
    return torch.stack(images), torch.tensor(labels), tuple(classes)


def imagenet(name: str, size: int) -> Path:
    """Return the pack of an ImageNet at a size in pixels.

    Raises:
        MissingData: where it was not packed, with how to make it.
    """
    pack, home = data_dir() / f"{name}-{size}", data_dir() / "imagenet"
    if pack.is_dir():
        return pack
    keep = ["--keep", Path(__file__).with_name("imagenet100.txt")] if name == "imagenet100" else []
    words = ["python", "-m", "contsteal.data.packed", home, pack, "--size", size, *keep]
    raise MissingData(
        f"{name} at {size} px is not packed in {pack}. Nothing downloads ImageNet: register at "
        f"image-net.org, unpack its 155 GB into {home}/train/<wnid> and {home}/val/<wnid>, as "
        f"torchvision.datasets.ImageNet does, and run {shlex.join(map(str, words))}; or {REMEDY}"
    )
