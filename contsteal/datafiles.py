"""Which files the papers' data sets consist of, where they lie, and whether they are the right ones."""

import gzip
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from torchvision import datasets
from torchvision.datasets.imagenet import ARCHIVE_META
from torchvision.datasets.utils import calculate_md5, extract_archive

from contsteal import runs

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
    return Path(os.environ.get("DATA_DIR") or runs.ROOT / "data").expanduser().resolve()


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
        raise runs.StorageError(
            f"{archive} cannot be unpacked ({error}): free space or give permission; {ELSEWHERE}"
        ) from error


def _gunzip(archive: Path) -> None:
    """Write what a verified .gz file holds beside it, unless just that is there: raw has no md5."""
    raw, content = archive.with_suffix(""), gzip.decompress(archive.read_bytes())
    if not raw.is_file() or raw.read_bytes() != content:
        with runs.atomic(raw) as partial:
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
    with suppress(runs.StorageError):  # a folder of data that is only read is hashed every time
        runs.write_json(data_dir() / VERIFIED, _notes() | {key: note})


def _note(path: Path, md5: str) -> tuple[str, list]:
    stat = path.stat()
    return path.relative_to(data_dir()).as_posix(), [stat.st_size, stat.st_mtime_ns, md5]


def _notes() -> dict[str, list]:
    notes = runs.read_json(data_dir() / VERIFIED)
    return notes if isinstance(notes, dict) else {}
