"""The papers' data sets, read through torchvision from files whose checksums were verified first."""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from contsteal.datafiles import (
    ELSEWHERE,
    NAMES,
    SPLITS,
    CorruptData,
    File,
    MissingData,
    check,
    data_dir,
    expected,
    prepare,
    show,
)

__all__ = [
    "FOLDERS",
    "NAMES",
    "SPLITS",
    "CorruptData",
    "File",
    "MissingData",
    "data_dir",
    "expected",
    "imagenet100_wnids",
    "imagenet_folder",
    "read",
]

FOLDERS = ("imagenet", "imagenet100")  # too large to be read whole: imagenet_folder() finds them
DIGITS = tuple("0123456789")
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


def read(name: str, split: str, image_size: int = 32) -> Read:
    """Read one split of a data set: images, labels, names of the classes.

    Images are uint8 (N, 3, H, W) at native size, gray ones repeated three times; GTSRB's, which have
    many sizes, are squeezed to `image_size` squared (bilinear, antialiased). Labels are int64 (N,),
    None for STL10's `unlabeled`. It takes twice the split's size in memory (STL10 unlabeled: 5.5 GB).
    Errors: ValueError for an unknown name or split, MissingData, CorruptData.
    """
    check(name, split)
    if name in FOLDERS:
        raise ValueError(
            f"{name} is a folder of JPEG files, too large to be read whole: take the path that "
            f"imagenet_folder({name!r}, {split!r}) returns"
        )
    for file in expected(name):
        if split in file.splits:
            prepare(name, file)
    if name in ("cifar10", "cifar100"):
        return _cifar(getattr(datasets, name.upper()), split)
    if name == "gtsrb":
        return _gtsrb(split, image_size)
    return {"stl10": _stl10, "svhn": _svhn, "fashion_mnist": _fashion_mnist}[name](split)


def _open(cls: type, *args: object, **options: object) -> datasets.VisionDataset:
    """Construct a torchvision data set without its checksum test: `prepare` has just made it."""
    verified = type(cls.__name__, (cls,), {"_check_integrity": lambda self: True})
    return verified(data_dir(), *args, **options)


def _cifar(cls: type, split: str) -> Read:
    found = _open(cls, train=split == "train")
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(found.targets), tuple(found.classes)


def _stl10(split: str) -> Read:
    found = _open(datasets.STL10, split)
    images = torch.from_numpy(np.ascontiguousarray(found.data))
    labels = None if split == "unlabeled" else torch.from_numpy(found.labels.astype(np.int64))
    return images, labels, tuple(getattr(found, "classes", STL10_CLASSES))


def _svhn(split: str) -> Read:
    found = _open(datasets.SVHN, split)
    return (
        torch.from_numpy(np.ascontiguousarray(found.data)),
        torch.from_numpy(found.labels),
        DIGITS,
    )


def _fashion_mnist(split: str) -> Read:
    found = datasets.FashionMNIST(data_dir(), train=split == "train")
    images = found.data[:, None].expand(-1, 3, -1, -1).contiguous()
    return images, found.targets, tuple(found.classes)


def _gtsrb(split: str, size: int) -> Read:
    squeeze = v2.Compose([v2.Resize((size, size)), v2.PILToTensor()])
    found = datasets.GTSRB(data_dir(), split, transform=squeeze)
    inside = [part for file in expected("gtsrb") if split in file.splits for part in file.parts]
    published = max(part.count for part in inside)
    if len(found) != published:
        raise _bad_signs(f"gtsrb {split} lists {len(found)} images of {published}")
    images = torch.empty(published, 3, size, size, dtype=torch.uint8)
    labels = torch.empty(published, dtype=torch.int64)
    for i in range(published):
        try:
            images[i], labels[i] = found[i]
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
            raise _bad_signs(f"image {i} of gtsrb {split} cannot be read ({error})") from error
    return images, labels, GTSRB_CLASSES


def _bad_signs(what: str) -> CorruptData:
    home = data_dir() / "gtsrb"
    return CorruptData(
        f"{what}: delete {home / 'GTSRB'} and {home / 'GT-final_test.csv'}, then they are unpacked "
        "again from the archives beside them"
    )


def imagenet100_wnids() -> tuple[str, ...]:
    """Return the 100 classes of ImageNet-100 (Tian et al., Contrastive Multiview Coding), sorted."""
    return tuple(Path(__file__).with_name("imagenet100.txt").read_text().split())


def imagenet_home(name: str) -> Path:
    """Return where an ImageNet's splits lie or are to be put: `imagenet100/` only where it exists."""
    home = data_dir() / name
    return home if home.is_dir() else data_dir() / "imagenet"


def imagenet_folder(name: str, split: str) -> Path:
    """Return the folder of class folders, <wnid>/*.JPEG, that is one split; `test` is `val`.

    For `imagenet100` it is in `imagenet100/` if that exists, else in `imagenet/`, where more classes
    than imagenet100_wnids() may lie beside. Errors: ValueError for a name or split; MissingData.
    """
    if name not in FOLDERS:
        raise ValueError(f"{name!r} is no folder of JPEG files: choose {' or '.join(FOLDERS)}")
    check(name, split)
    home = imagenet_home(name)
    folder = home / ("val" if split == "test" else split)
    there = {f.name for f in folder.iterdir() if f.is_dir()} if folder.is_dir() else set()
    wnids = {n for n in there if re.fullmatch(r"n\d{8}", n)}
    if name == "imagenet100":
        wnids &= set(imagenet100_wnids())
    if len(wnids) < (wanted := 100 if name == "imagenet100" else 1000):
        raise MissingData(
            f"{name} {split}: {folder} has {len(wnids)} of {wanted} class folders. {_register(home)}"
        )
    return folder


def _register(home: Path) -> str:
    """Say how ImageNet gets onto a disk: its owners allow no download without registration."""
    tars = ", ".join(f"{Path(f.path).name} ({show(f.size)})" for f in expected("imagenet"))
    return (
        f"Nothing downloads ImageNet: register at image-net.org, put {tars} in {home} and run "
        f"torchvision.datasets.ImageNet({str(home)!r}, split) for 'train' and for 'val', which makes "
        f"train/<wnid>/*.JPEG and val/<wnid>/*.JPEG there; or link a folder of that layout to {home}, "
        f"or {ELSEWHERE}"
    )
