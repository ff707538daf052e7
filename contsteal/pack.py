"""Pack an image folder: decode every file once, in parallel, into one raw file (see `packed`).

Row i belongs to file i from the start, so neither the order in which blocks are done nor a file that
turns out to be unreadable moves anything: the same folder gives the same bytes with any number of
workers, after any number of kills. `journal.jsonl` holds the sha256 of the blocks that are done.
"""

import argparse
import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from contsteal import blocks, folders, packed, runs
from contsteal.folders import FolderError, Listing
from contsteal.packed import IMAGES, JOURNAL, LABELS, Packed, PackError, open_pack, verify

__all__ = ["PackError", "Packed", "main", "open_pack", "pack", "verify"]
Record = dict[str, Any]  # of a block: its first row, its sha256, and {file: why it was skipped}


def pack(
    src: Path, dst: Path, size: int, workers: int | None = None, keep: Collection[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Decode the folder `src` into `dst`, or its splits into `dst/<split>`; return their manifests.

    `keep` restricts to these class folders. What was killed continues when it is started again, and
    what is finished is not done again. Memory: one image, decoded and resized, for each worker (a
    thread a core). Errors: folders.FolderError for a folder that cannot be packed,
    PackError where `dst` is of other files or another size, runs.StorageError for too little space.
    """
    src, dst = Path(src), Path(dst)
    if size < 8 or (workers is not None and workers < 1):
        raise ValueError(
            f"size={size}, workers={workers}: at least 8 pixels and 1 worker are needed"
        )
    if dst.resolve().is_relative_to(src.resolve()):
        raise ValueError(
            f"{dst} lies in {src}, which is to be packed: choose a folder outside of it"
        )
    parts = folders.splits(src, keep)
    found = {split: folders.listing(at, keep) for split, at in parts.items()}
    homes = {split: dst if at == src else dst / split for split, at in parts.items()}
    _check_space(dst, {homes[s]: len(f.files) * 3 * size**2 for s, f in found.items()})
    return {s: _pack(parts[s], homes[s], found[s], size, workers or 0) for s in parts}


def _check_space(dst: Path, wanted: Mapping[Path, int]) -> None:
    need = 0
    for home, size in wanted.items():
        images = home / IMAGES
        # What was not yet written of an unfinished pack is a hole that takes no space.
        have = 512 * getattr(images.stat(), "st_blocks", 0) if images.exists() else 0
        need += 0 if (home / runs.MANIFEST).exists() else max(0, size - have)
    place = next(p for p in (dst.resolve(), *dst.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if need > free:
        raise runs.StorageError(
            f"{dst} needs {need / 1e9:.3g} GB and {free / 1e9:.3g} GB are free there: free space or "
            "choose another disk, a smaller size or fewer classes; nothing was written"
        )


@contextmanager
def _storing(home: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, runs.StorageError) as error:
        raise runs.StorageError(
            f"{home} cannot be written ({error.__cause__ or error}): free space or give permission, "
            "then start the same pack again; the blocks that are done are kept"
        ) from error


def _pack(folder: Path, home: Path, found: Listing, size: int, workers: int) -> dict[str, Any]:
    files, identity = found.files, _identity(folder, found, size)
    folders.tell_others(found.others, folder)
    if (home / runs.MANIFEST).exists():
        _check_same(home, packed.load(home), identity)
        return packed.load(home)
    with _storing(home):
        home.mkdir(parents=True, exist_ok=True)
        known = _journal(home, identity)
        with (home / IMAGES).open("ab") as images:
            images.truncate(len(files) * 3 * size**2)
        fill = _filler(folder, files, home / IMAGES, size, known)
        records = []
        with (home / JOURNAL).open("a") as journal:
            for record in blocks.parallel(fill, len(files), f"packing {folder.name}", workers):
                records.append(record)
                if record is not known.get(record["start"]):
                    journal.write(f"\n{json.dumps(record)}")  # after the torn line of a killed run
                    journal.flush()
        return _finish(folder, home, found, identity, records)


def _identity(folder: Path, found: Listing, size: int) -> dict[str, Any]:
    """Return what a pack is of; the source is known by the names and sizes of its files."""
    digest, rows = hashlib.sha256(), len(found.files)
    for file in found.files:
        try:
            length = (folder / file).stat().st_size
        except OSError as error:
            raise FolderError(f"{folder / file} cannot be read ({error.strerror})") from error
        digest.update(f"{file.as_posix()}\0{length}\n".encode())
    return {"format": packed.FORMAT, "source": digest.hexdigest(), "rows": rows, "size": size}


def _check_same(home: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if old["size"] != new["size"]:
        raise PackError(
            f"{home} holds images of {old['size']} px, not {new['size']}: remove it, or choose "
            "another folder"
        )
    if any(old[name] != new[name] for name in new):
        raise PackError(
            f"{home} was packed from {old['rows']} files, now there are {new['rows']}, or a name or "
            "size among them, the classes kept or the version of the format changed: restore what "
            "changed, or remove the folder to pack anew"
        )


def _journal(home: Path, identity: Mapping[str, Any]) -> dict[int, Record]:
    """Return the blocks that an earlier run has done, or begin a journal."""
    path, lines = home / JOURNAL, []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:  # the line that was being written when the run was killed
            continue
    if not lines or "format" not in lines[0]:
        path.write_text(json.dumps(identity))
        return {}
    _check_same(home, lines[0], identity)
    return {record["start"]: record for record in lines[1:]}


def _filler(
    folder: Path, files: Sequence[Path], images: Path, size: int, known: Mapping[int, Record]
) -> Callable[[slice], Record]:
    """Return what decodes a block and writes it to its place, unless what is `known` of it is there."""
    scratch = threading.local()

    def fill(part: slice) -> Record:
        # One image's memory for each worker, hashed and written while it is in the processor's cache.
        if not hasattr(scratch, "image"):
            scratch.image = np.empty((1, 3, size, size), np.uint8)
        image, old = scratch.image, known.get(part.start)
        if old and packed.block_sha256(images, part, image) == old["sha256"]:
            return old
        sha, skipped = hashlib.sha256(), {}
        with images.open("r+b") as file:
            file.seek(part.start * image.nbytes)
            for name in files[part]:
                skipped |= folders.decode_all(folder, (name,), image)
                sha.update(image)
                file.write(image)
        return {"start": part.start, "sha256": sha.hexdigest(), "skipped": skipped}

    return fill


def _finish(
    folder: Path, home: Path, found: Listing, identity: Mapping[str, Any], records: Sequence[Record]
) -> dict[str, Any]:
    """Write labels and manifest; from then on the pack can be opened."""
    skipped = {name: why for record in records for name, why in record["skipped"].items()}
    folders.report(skipped, len(found.files), folder)
    names = [file.as_posix() for file in found.files]
    if found.labels is not None:
        with runs.atomic(home / LABELS) as partial, partial.open("wb") as file:
            np.save(file, found.labels.numpy()[[n not in skipped for n in names]])
    manifest = identity | {
        "count": len(names) - len(skipped),
        "classes": found.classes,
        "labels": None if found.labels is None else runs.sha256(home / LABELS),
        "blocks": [record["sha256"] for record in records],
        "skipped": [(i, n, skipped[n]) for i, n in enumerate(names) if n in skipped],
    }
    runs.write_json(home / runs.MANIFEST, manifest | {"seal": packed.seal(manifest)})
    (home / JOURNAL).unlink()
    return packed.load(home)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, pack a folder, say what came of it, and return the exit code."""
    parser = argparse.ArgumentParser(prog="contsteal.data pack", description=__doc__)
    parser.add_argument("src", type=Path, help="folder of images, of classes, or of splits")
    parser.add_argument("dst", type=Path, help="folder to write; the same again continues it")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side (256)")
    parser.add_argument("--workers", type=int, help="threads (one a core)")
    parser.add_argument("--keep", type=Path, help="file that names a class folder in every line")
    given = parser.parse_args(arguments)
    try:
        keep = given.keep.read_text().splitlines() if given.keep else None
        made = pack(given.src, given.dst, given.size, given.workers, keep)
    except (ValueError, OSError, runs.StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for split, manifest in made.items():
        told = f"{manifest['count']} images of {len(manifest['classes'])} classes"
        print(f"{split}: {told} at {given.size} px, {len(manifest['skipped'])} files skipped")
    return 0
