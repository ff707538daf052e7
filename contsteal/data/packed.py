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
import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal import encoders, files
from contsteal.data import folders
from contsteal.data.folders import FolderError, Listing
from contsteal.lab import artifacts

IMAGES, LABELS, JOURNAL = "images.bin", "labels.npy", "journal.jsonl"
FORMAT = f"contsteal pack 1, blocks of {folders.BLOCK}"
Index = Tensor | np.ndarray | list[int]


class PackError(ValueError):
    """A pack that is missing, unfinished, truncated or altered, or of other files or another size."""


class Packed:
    """Images uint8 (N, 3, S, S) on disk that stand where a tensor of them would.

    An index reads its images, in the order of the file, into a tensor on `device` in the order asked
    for; a slice is another view. Memory: the images read, nothing else. They are read, not mapped: a
    file that shrinks under a memory map kills the process, and mapped pages count as its memory.
    """

    ndim, dtype = 4, torch.uint8

    def __init__(
        self, file: Path, size: int, rows: np.ndarray, device: str | torch.device = "cpu"
    ) -> None:
        self._file, self._size, self._rows = file, size, rows  # int64 (N,), rows of the file
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, self._size, self._size))

    @property
    def key(self) -> str:
        """What tells these images from others: the manifest, which seals all blocks, and the rows."""
        rows = hashlib.sha256(np.ascontiguousarray(self._rows)).hexdigest()
        return files.key([files.sha256(self._file.with_name(artifacts.MANIFEST)), rows])

    def is_floating_point(self) -> bool:
        return False

    def to(self, device: str | torch.device) -> "Packed":
        """Return the same images; what is read of them goes to `device`."""
        return Packed(self._file, self._size, self._rows, device)

    def rows(self, index: Index | slice) -> "Packed":
        """Return a view of these images, in this order; nothing is read."""
        return Packed(self._file, self._size, self._rows[_plain(index)], self.device)

    def split(self, batch: int) -> Iterator[Tensor]:
        """Read all images in order, `batch` at a time."""
        for start in range(0, len(self), batch):
            yield self._read(self._rows[start : start + batch])

    def __getitem__(self, index: Index | slice | int) -> "Tensor | Packed":
        if isinstance(index, slice):
            return self.rows(index)
        rows = np.asarray(self._rows[_plain(index)])
        if rows.ndim > 1:
            raise IndexError(f"index of shape {rows.shape}: give a slice or one dimension of rows")
        return self._read(rows) if rows.ndim else self._read(rows[None])[0]

    def _read(self, rows: np.ndarray) -> Tensor:
        out = torch.empty(
            (len(rows), *self.shape[1:]), dtype=self.dtype, pin_memory=self.device.type == "cuda"
        )
        order = rows.argsort(kind="stable")
        # Neighbours in the file that are neighbours in the answer are one read.
        breaks = np.flatnonzero((np.diff(rows[order]) != 1) | (np.diff(order) != 1)) + 1
        with self._file.open("rb") as file:
            for run in np.split(order, breaks) if len(order) else ():
                part = out[run[0] : run[0] + len(run)].numpy()
                file.seek(int(rows[run[0]]) * part[0].nbytes)
                if file.readinto(part) < part.nbytes:
                    raise PackError(f"{self._file} was truncated: pack the folder again")
        return out.to(self.device, non_blocking=True)


def _plain(index: Index | slice | int) -> np.ndarray | list[int] | slice | int:
    return index.cpu().numpy() if isinstance(index, Tensor) else index


def open_pack(path: Path, split: str) -> tuple[Packed, Tensor | None, tuple[str, ...]]:
    """Return images, labels int64 (N,) or None, and classes of a split that `pack` has written.

    As in a folder, a pack without splits is all `train`, and `test` falls back to `val`. Sizes, the
    manifest and labels are checked, the images by `verify` alone. Errors: PackError for a pack that is
    unfinished or damaged, folders.FolderError for a split that is not there.
    """
    home = folders.choose(path, split, homes(path))
    manifest = load(home)
    kept = np.delete(np.arange(manifest["rows"]), [row for row, *_ in manifest["skipped"]])
    labels = torch.from_numpy(np.load(home / LABELS)) if manifest["labels"] else None
    return Packed(home / IMAGES, manifest["size"], kept), labels, tuple(manifest["classes"])


def homes(path: Path) -> dict[str, Path]:
    """Return the folder of each split of a pack; PackError where there is none."""
    places = {"train": path} if _begun(path) else {s: path / s for s in folders.SPLITS}
    found = {split: home for split, home in places.items() if _begun(home)}
    if not found:
        raise PackError(f"no pack in {path}: make one with python -m contsteal.data pack")
    return found


def _begun(home: Path) -> bool:
    return (home / artifacts.MANIFEST).exists() or (home / JOURNAL).exists()


def load(home: Path) -> dict[str, Any]:
    """Return the manifest of a split; PackError where it, the labels or a size is not as written."""
    if not (home / artifacts.MANIFEST).exists():
        raise PackError(f"{home} is unfinished: start the same pack again, it continues")
    manifest = files.read_json(home / artifacts.MANIFEST)
    if wrong := _damage(home, manifest if isinstance(manifest, dict) else {}):
        raise PackError(f"{home}: {wrong}; remove the folder and pack it again")
    return manifest


def _damage(home: Path, manifest: dict[str, Any]) -> str | None:
    if manifest.get("seal") != seal(manifest):
        return f"{artifacts.MANIFEST} is not what was written"
    if manifest["format"] != FORMAT:
        return f"it is a {manifest['format']!r}, read are {FORMAT!r}"
    need, images, labels = (
        manifest["rows"] * 3 * manifest["size"] ** 2,
        home / IMAGES,
        home / LABELS,
    )
    have = images.stat().st_size if images.exists() else 0
    if have != need:
        return f"{IMAGES} has {have} bytes of {need}"
    if manifest["labels"] and not (labels.exists() and files.sha256(labels) == manifest["labels"]):
        return f"{LABELS} is not what was written"
    return None


def seal(manifest: dict[str, Any]) -> str:
    """Return the key that shows whether a manifest was altered."""
    return files.key({name: value for name, value in manifest.items() if name != "seal"})


def verify(path: Path) -> None:
    """Read all of a pack again, in parallel; PackError naming the blocks that are not as written."""
    for home in homes(path).values():
        manifest = load(home)

        def check(part: slice, home: Path = home, manifest: dict = manifest) -> slice | None:
            image = np.empty((1, 3, manifest["size"], manifest["size"]), np.uint8)
            known = manifest["blocks"][part.start // folders.BLOCK]
            return None if block_sha256(home / IMAGES, part, image) == known else part

        bad = [p for p in folders.parallel(check, manifest["rows"], f"verifying {home.name}") if p]
        if bad:
            told = ", ".join(f"{p.start}-{p.stop - 1}" for p in bad[:5])
            raise PackError(
                f"{home / IMAGES} is not what was written in {len(bad)} blocks (rows {told}"
                f"{', ...' if len(bad) > 5 else ''}): remove the folder and pack it again"
            )


def block_sha256(images: Path, part: slice, image: np.ndarray) -> str:
    """Return the sha256 of rows of a pack, read one by one into `image`; "" where the file ends first."""
    sha = hashlib.sha256()
    with images.open("rb") as file:
        file.seek(part.start * image.nbytes)
        for _ in range(part.start, part.stop):
            if file.readinto(image) < image.nbytes:
                return ""
            sha.update(image)
    return sha.hexdigest()


LARGEST = 8 * 2**30  # bytes that a resized set may take in memory
BLOCK = 4096  # images resized at once: floats take four times their memory


class Scaled(Packed):
    """Images uint8 (N, 3, S, S) of a tensor (M, 3, H, W), resized where `Packed` would read a disk."""

    def __init__(
        self, images: Tensor, size: int, rows: np.ndarray, device: str | torch.device = "cpu"
    ) -> None:
        self._images, self._size, self._rows = images, size, rows
        self.device = torch.device(device)

    @property
    def key(self) -> str:
        """What tells these images from others: those of native size, in order, and the size shown."""
        chosen = self._images[torch.from_numpy(self._rows)]
        return files.key([encoders.digest([("", chosen)]), self._size])

    def to(self, device: str | torch.device) -> "Scaled":
        """Return the same images; small ones are sent to `device` and resized there."""
        return Scaled(self._images, self._size, self._rows, device)

    def rows(self, index: object) -> "Scaled":
        """Return a view of these images, in this order; nothing is resized."""
        index = index.cpu().numpy() if isinstance(index, Tensor) else index
        return Scaled(self._images, self._size, self._rows[index], self.device)

    def _read(self, rows: np.ndarray) -> Tensor:
        return resize(self._images[torch.from_numpy(rows)].to(self.device), self._size)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images to (N, 3, size, size), bilinear with antialiasing."""
    out = images.new_empty(len(images), 3, size, size)
    for rows, part in zip(out.split(BLOCK), images.split(BLOCK), strict=True):
        wide = F.interpolate(
            part.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False
        )
        rows.copy_(wide.round().clamp(0, 255))
    return out


def sized(images: Tensor, size: int) -> Tensor | Scaled:
    """Return images (N, 3, size, size): resized now, or as they are read where they take too much."""
    if len(images) * 3 * size**2 > LARGEST:
        return Scaled(images, size, np.arange(len(images)))
    return resize(images, size)


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
        need += 0 if (home / artifacts.MANIFEST).exists() else max(0, size - have)
    place = next(p for p in (dst.resolve(), *dst.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if need > free:
        raise files.StorageError(
            f"{dst} needs {need / 1e9:.3g} GB and {free / 1e9:.3g} GB are free there: free space or "
            "choose another disk, a smaller size or fewer classes; nothing was written"
        )


@contextmanager
def _storing(home: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, files.StorageError) as error:
        raise files.StorageError(
            f"{home} cannot be written ({error.__cause__ or error}): free space or give permission, "
            "then start the same pack again; the blocks that are done are kept"
        ) from error


def _pack(folder: Path, home: Path, found: Listing, size: int, workers: int) -> dict[str, Any]:
    files, identity = found.files, _identity(folder, found, size)
    folders.tell_others(found.others, folder)
    if (home / artifacts.MANIFEST).exists():
        _check_same(home, load(home), identity)
        return load(home)
    with _storing(home):
        home.mkdir(parents=True, exist_ok=True)
        known = _journal(home, identity)
        with (home / IMAGES).open("ab") as images:
            images.truncate(len(files) * 3 * size**2)
        fill = _filler(folder, files, home / IMAGES, size, known)
        records = []
        with (home / JOURNAL).open("a") as journal:
            for record in folders.parallel(fill, len(files), f"packing {folder.name}", workers):
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
    return {"format": FORMAT, "source": digest.hexdigest(), "rows": rows, "size": size}


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
        if old and block_sha256(images, part, image) == old["sha256"]:
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
        with files.atomic(home / LABELS) as partial, partial.open("wb") as file:
            np.save(file, found.labels.numpy()[[n not in skipped for n in names]])
    manifest = identity | {
        "count": len(names) - len(skipped),
        "classes": found.classes,
        "labels": None if found.labels is None else files.sha256(home / LABELS),
        "blocks": [record["sha256"] for record in records],
        "skipped": [(i, n, skipped[n]) for i, n in enumerate(names) if n in skipped],
    }
    files.write_json(home / artifacts.MANIFEST, manifest | {"seal": seal(manifest)})
    (home / JOURNAL).unlink()
    return load(home)


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
    except (ValueError, OSError, files.StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for split, manifest in made.items():
        told = f"{manifest['count']} images of {len(manifest['classes'])} classes"
        print(f"{split}: {told} at {given.size} px, {len(manifest['skipped'])} files skipped")
    return 0
