"""The papers' data sets: fetched, checked and read by torchvision; ImageNet by folder only."""

import os
import shlex
import shutil
import socket
from collections.abc import Collection, Iterable, Mapping
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
DAMAGE = (RuntimeError, AssertionError, ValueError, IndexError, SyntaxError, OSError)  # as raised
COMMAND = "`make data PROFILE=...` (the profile that reads it)"
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


ARCHIVES = (
    Archive("cifar10", "train test", "cifar-10-python.tar.gz", 170498071, "cifar-10-batches-py"),
    Archive("cifar100", "train test", "cifar-100-python.tar.gz", 169001437, "cifar-100-python"),
    Archive("stl10", "train test unlabeled", "stl10_binary.tar.gz", 2640397119, "stl10_binary"),
    Archive("svhn", "train", "train_32x32.mat", 182040794, "train_32x32.mat"),
    Archive("svhn", "test", "test_32x32.mat", 64275384, "test_32x32.mat"),
    Archive("svhn", "extra", "extra_32x32.mat", 1329278602, "extra_32x32.mat"),
    *(
        Archive("fashion_mnist", "train test", f"FashionMNIST/raw/{name}.gz", size,
                f"FashionMNIST/raw/{name}")
        for name, size in (
            ("train-images-idx3-ubyte", 26421880), ("train-labels-idx1-ubyte", 29515),
            ("t10k-images-idx3-ubyte", 4422102), ("t10k-labels-idx1-ubyte", 5148),
        )
    ),
    *(
        Archive("gtsrb", split, f"gtsrb/{path}", size, f"gtsrb/{content}")
        for split, path, size, content in (
            ("train", "GTSRB-Training_fixed.zip", 187490228, "GTSRB/Training"),
            ("test", "GTSRB_Final_Test_Images.zip", 88978620, "GTSRB/Final_Test/Images"),
            ("test", "GTSRB_Final_Test_GT.zip", 99620, "GT-final_test.csv"),
        )
    ),
)  # fmt: skip
# The training images are those of the 2011 competition, not the 39,209 published later. torchvision
# takes signs that were unpacked in part for whole.
SIGNS = {"train": 26640, "test": 12630}
STL10_CLASSES = (
    "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
)  # fmt: skip
GTSRB_CLASSES = (
    "Speed limit (20km/h)", "Speed limit (30km/h)", "Speed limit (50km/h)", "Speed limit (60km/h)",
    "Speed limit (70km/h)", "Speed limit (80km/h)", "End of speed limit (80km/h)",
    "Speed limit (100km/h)", "Speed limit (120km/h)", "No passing",
    "No passing for vehicles over 3.5 metric tons", "Right-of-way at the next intersection",
    "Priority road", "Yield", "Stop", "No vehicles", "Vehicles over 3.5 metric tons prohibited",
    "No entry", "General caution", "Dangerous curve to the left", "Dangerous curve to the right",
    "Double curve", "Bumpy road", "Slippery road", "Road narrows on the right", "Road work",
    "Traffic signals", "Pedestrians", "Children crossing", "Bicycles crossing",
    "Beware of ice/snow", "Wild animals crossing", "End of all speed and passing limits",
    "Turn right ahead", "Turn left ahead", "Ahead only", "Go straight or right",
    "Go straight or left", "Keep right", "Keep left", "Roundabout mandatory", "End of no passing",
    "End of no passing by vehicles over 3.5 metric tons",
)  # fmt: skip

Read = tuple[Tensor, Tensor | None, tuple[str, ...]]


def data_dir() -> Path:
    """Return the folder of all data sets, laid out as torchvision does: $DATA_DIR or `data/`.

    `data/` is that of the repository, or of the current folder for a package that is installed.
    """
    home = REPOSITORY if (REPOSITORY / "pyproject.toml").exists() else Path.cwd()
    return Path(os.environ.get("DATA_DIR") or home / "data").expanduser().resolve()


def missing(name: str, splits: Collection[str]) -> list[Archive]:
    """Return the archives whose content does not lie in data_dir().

    Raises:
        ValueError: for an unknown name or split, with those that exist.
    """
    if name not in SPLITS:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(NAMES)}")
    for split in splits:
        if split not in SPLITS[name]:
            allowed = ", ".join(SPLITS[name])
            raise ValueError(f"unknown split {split!r} of {name}: choose one of {allowed}")
    return [a for a in _archives(name, splits) if not (data_dir() / a.content).exists()]


def _archives(name: str, splits: Collection[str]) -> list[Archive]:
    return [a for a in ARCHIVES if a.name == name and set(splits) & set(a.splits.split())]


def is_present(name: str, splits: Collection[str]) -> bool:
    """Say whether the files of some splits lie in data_dir(); reading checks that they are whole."""
    return not missing(name, splits)


def require(name: str, splits: Collection[str]) -> None:
    """Raise MissingData where files are missing: how large they are, and what to do."""
    if archives := missing(name, splits):
        raise MissingData(f"{name} is not complete in {data_dir()}: {_remedy(archives)}")


def _remedy(archives: Collection[Archive]) -> str:
    paths = ", ".join(str(data_dir() / archive.path) for archive in archives)
    return (
        f"fetch it ({human(archives)}) with {COMMAND}. Without a network, put the published files at "
        f"{paths} by hand and run the same, which checks and unpacks them; or {REMEDY}"
    )


def human(size: float | Iterable[Archive]) -> str:
    """Write a number of bytes, or the published size of archives, for people."""
    count = size if isinstance(size, int | float) else sum(archive.size for archive in size)
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def fetch(needs: Mapping[str, Collection[str]]) -> None:
    """Fetch, check and unpack what is missing of data sets, by torchvision's own download.

    A data set that fails does not keep the others from being fetched.

    Args:
        needs: the splits of each data set; ImageNets, folders and packs are left out.

    Raises:
        ValueError: for an unknown name or split.
        StorageError: for too little space; nothing was fetched.
        RuntimeError: with the problem and the remedy of all that failed.
    """
    names = [name for name in needs if name not in FOLDERS and ":" not in name]
    wanted = {name: missing(name, needs[name]) for name in names}
    _make_room(wanted)
    problems = []
    for name, archives in wanted.items():
        try:
            for split in sorted(needs[name]):
                _open(name, split, download=True)
            print(f"{name}: complete in {data_dir()}")
        except CorruptData as error:
            reason = f"{name} could not be fetched ({error.__cause__})"
            problems.append(f"{reason}: {_remedy(archives)}" if archives else str(error))
    if problems:
        raise RuntimeError("\n\n".join(problems))


def _make_room(wanted: Mapping[str, Collection[Archive]]) -> None:
    """Print what will be fetched, how large and where; check that there is space for it."""
    home = data_dir()
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{home} cannot be made ({error}): {REMEDY}") from error
    for name, archives in wanted.items():
        if archives:
            print(f"fetching {name} ({human(archives)}) into {home}")
    # What an archive is unpacked to, at most twice its size, lies beside it.
    parts = [archive for archives in wanted.values() for archive in archives]
    need = sum(a.size * (1 if a.path == a.content else 3) for a in parts)
    if need > (free := shutil.disk_usage(home).free):
        raise StorageError(
            f"{home} has {human(free)} free, {human(need)} are needed to fetch and unpack: free space, "
            f"or {REMEDY}"
        )


def _open(name: str, split: str, download: bool = False, **options: object) -> Any:
    """Construct torchvision's data set, which checks its files; CorruptData where one is not whole."""
    from torchvision import datasets

    kind = getattr(datasets, {"fashion_mnist": "FashionMNIST"}.get(name, name.upper()))
    by_name = name in ("stl10", "svhn", "gtsrb")
    options |= {"split": split} if by_name else {"train": split == "train"}
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        dataset = kind(data_dir(), download=download, **options)
        if name == "gtsrb" and len(dataset) != SIGNS[split]:
            raise RuntimeError(f"{len(dataset)} images of {SIGNS[split]}")
        return dataset
    except (*DAMAGE, HTTPException, EOFError) as error:
        raise _damaged(name, split, error) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _damaged(name: str, split: str, error: Exception) -> CorruptData:
    paths = " and ".join(str(data_dir() / a.content) for a in _archives(name, [split]))
    return CorruptData(
        f"{name} {split} is damaged or incomplete ({error}): delete {paths} and run {COMMAND}"
    )


def read(name: str, split: str, image_size: int = 32) -> Read:
    """Read one split of a data set; it takes twice the split's size in memory.

    GTSRB's images, of many sizes, are squeezed to `image_size`; others keep their own size.

    Returns:
        Images, uint8 (N, 3, H, W), gray ones repeated three times; labels, int64 (N,), None for
        STL10's `unlabeled`; the names of the classes.

    Raises:
        ValueError: for an unknown name or split.
        MissingData: where files are missing.
        CorruptData: where torchvision finds a file that is not the published one.
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
    try:
        images, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    except DAMAGE as error:
        raise _damaged("gtsrb", split, error) from error
    return torch.stack(images), torch.tensor(labels), GTSRB_CLASSES


def imagenet(name: str, size: int) -> Path:
    """Return the pack of an ImageNet; MissingData with how to make it where it is missing."""
    pack = data_dir() / f"{name}-{size}"
    if pack.is_dir():
        return pack
    own, home = data_dir() / name, data_dir() / "imagenet"
    home = own if own.is_dir() else home  # ImageNet-100 may lie in a folder of its own
    keep = ["--keep", Path(__file__).with_name("imagenet100.txt")] if name == "imagenet100" else []
    words = ["python", "-m", "contsteal.data.packed", home, pack, "--size", size, *keep]
    raise MissingData(
        f"{name} at {size} px is not packed in {pack}. Nothing downloads ImageNet: register at "
        "image-net.org, put ILSVRC2012_img_train.tar (147.9 GB), ILSVRC2012_img_val.tar (6.7 GB) and "
        f"ILSVRC2012_devkit_t12.tar.gz in {home} and run torchvision.datasets.ImageNet({str(home)!r}, "
        "split) for 'train' and for 'val', which makes train/<wnid>/*.JPEG and val/<wnid>/*.JPEG there; "
        f"or link a folder of that layout to {home}. Then run {shlex.join(map(str, words))}; or {REMEDY}"
    )
