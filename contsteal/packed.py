"""Read packs: sets larger than memory, in one raw file each, used like a tensor of uint8 images.

A pack is a folder: `images.bin` (row i, of 3 x S x S bytes, is file i of the listing), `labels.npy`
(int64) where there are classes, and `manifest.json`. A file that could not be decoded keeps its
row, black, so that no other moves; the manifest names it, and neither `Packed` nor the labels have it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contsteal import blocks, folders, runs

IMAGES, LABELS, JOURNAL = "images.bin", "labels.npy", "journal.jsonl"
FORMAT = f"contsteal pack 1, blocks of {blocks.BLOCK}"
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
        return runs.key([runs.sha256(self._file.with_name(runs.MANIFEST)), rows])

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
    return (home / runs.MANIFEST).exists() or (home / JOURNAL).exists()


def load(home: Path) -> dict[str, Any]:
    """Return the manifest of a split; PackError where it, the labels or a size is not as written."""
    if not (home / runs.MANIFEST).exists():
        raise PackError(f"{home} is unfinished: start the same pack again, it continues")
    manifest = runs.read_json(home / runs.MANIFEST)
    if wrong := _damage(home, manifest if isinstance(manifest, dict) else {}):
        raise PackError(f"{home}: {wrong}; remove the folder and pack it again")
    return manifest


def _damage(home: Path, manifest: dict[str, Any]) -> str | None:
    if manifest.get("seal") != seal(manifest):
        return f"{runs.MANIFEST} is not what was written"
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
    if manifest["labels"] and not (labels.exists() and runs.sha256(labels) == manifest["labels"]):
        return f"{LABELS} is not what was written"
    return None


def seal(manifest: dict[str, Any]) -> str:
    """Return the key that shows whether a manifest was altered."""
    return runs.key({name: value for name, value in manifest.items() if name != "seal"})


def verify(path: Path) -> None:
    """Read all of a pack again, in parallel; PackError naming the blocks that are not as written."""
    for home in homes(path).values():
        manifest = load(home)

        def check(part: slice, home: Path = home, manifest: dict = manifest) -> slice | None:
            image = np.empty((1, 3, manifest["size"], manifest["size"]), np.uint8)
            known = manifest["blocks"][part.start // blocks.BLOCK]
            return None if block_sha256(home / IMAGES, part, image) == known else part

        bad = [p for p in blocks.parallel(check, manifest["rows"], f"verifying {home.name}") if p]
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
