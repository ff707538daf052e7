"""Atomic writes, and hashes that identify files, values and tensors."""

import glob
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


HOST = platform.node().partition(".")[0]  # processes of several machines may share a folder


class StorageError(RuntimeError):
    """A result could not be written: no permission or no space."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    Write by Python's own files: torch and safetensors hide what a disk says.

    Args:
        path: the file or folder to write; its parents are made.

    Raises:
        StorageError: where it cannot be written; what `path` held before is kept.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}@{HOST}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and Path(str(error.filename)) not in path.parents:
            raise  # something that the block reads
        reason = error.strerror or error
        raise StorageError(
            f"{path} cannot be written ({reason}): free space, give permission, or set CONTSTEAL_RUNS "
            "(for figures CONTSTEAL_FIGURES) to another folder; what was saved before is kept"
        ) from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.exists():
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as partial:
        partial.write_text(text)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, keys sorted."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Return a JSON file's content, or None where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def makers(path: Path) -> set[int]:
    """Return the living processes of this machine that write a path; remove what dead ones left of it.

    What processes of another machine write is left alone: nobody here knows whether they live.
    """
    import psutil

    living = set()
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*@{HOST}.partial"):
        if not (number := partial.name.split(".")[-2].partition("@")[0]).isdecimal():
            continue  # no name of ours
        pid = int(number)
        with suppress(psutil.Error, FileNotFoundError):  # it may end in the meantime
            since = partial.stat().st_ctime
            if psutil.pid_exists(pid) and psutil.Process(pid).create_time() < since + 5:
                living.add(pid)
            else:
                shutil.rmtree(partial, ignore_errors=True)  # it may be as large as the path
    return living


def move_aside(path: Path) -> Path:
    """Rename a damaged file or folder to `<name>.corrupt-<time>` and return the new path.

    Raises StorageError where that is not permitted; another process may have done it already.
    """
    aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        pass
    except OSError as error:
        reason = f"cannot be moved aside ({error.strerror})"
        raise StorageError(f"{path} is damaged and {reason}: remove it") from error
    return aside


def sha256(path: Path) -> str:
    """Return a file's sha256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key(value: object) -> str:
    """Return 16 hexadecimal digits that identify a JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with a `key` of its own content as its `seal`."""
    return manifest | {"seal": key(manifest | {"seal": None})}


def intact(manifest: dict[str, Any]) -> bool:
    """Return whether a manifest is what was `sealed`; an older one without a seal counts as intact."""
    return "seal" not in manifest or sealed(manifest) == manifest


def digest(tensors: "Iterable[tuple[str, Tensor]]") -> str:
    """Return the sha256 over names, shapes and bytes of named tensors, in name order."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        value = tensor.detach().cpu().contiguous()
        total.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def content(images: "Tensor") -> str:
    """Return what identifies images (N, 3, H, W) by their pixels; those on disk know it."""
    return getattr(images, "key", "") or digest([("", images)])
