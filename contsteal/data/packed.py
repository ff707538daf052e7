"""Sets larger than memory: one numpy memory map per split, used like a tensor of uint8 images.

`python -m contsteal.data.packed SRC DST --size 256` decodes an image folder once, in parallel, into
`DST` or `DST/<split>`: `images.npy` (N, 3, S, S), `labels.npy` and `manifest.json`. Row i is file i of
the listing; a file that cannot be decoded keeps its row, black, which readers leave out.
"""

import argparse
import copy
import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal import files
from contsteal.data import folders
from contsteal.data.folders import Listing

IMAGES, LABELS, MANIFEST = "images.npy", "labels.npy", "manifest.json"
COMMAND = "python -m contsteal.data.packed"
RESIZED = 4096  # images resized at once: floats take four times their memory
Index = Tensor | np.ndarray | list[int] | slice | int


class PackError(ValueError):
    """A pack that is missing, unfinished, truncated or altered, or of other files or another size."""


class Packed:
    """Images uint8 (N, 3, S, S) on disk that stand where a tensor of them would.

    An index reads its images into a tensor on `device`, in the order asked for; a slice is another
    view, of which nothing is read. The map is opened for each read: a view is small to send to another
    process, and a truncated file is an error. `rows`, int64 (N,), are those of the .npy file.
    """

    ndim, dtype = 4, torch.uint8

    def __init__(self, file: Path, size: int, rows: np.ndarray) -> None:
        self._file, self._size, self._rows = file, size, rows
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, self._size, self._size))

    @property
    def key(self) -> str:
        """Identify these images: by the manifest, which has a hash of all pixels, and the rows."""
        rows = hashlib.sha256(self._rows.tobytes()).hexdigest()
        return files.key([files.sha256(self._file.with_name(MANIFEST)), rows])

    def is_floating_point(self) -> bool:
        return False

    def to(self, device: str | torch.device) -> Self:
        """Return the same images; what is read of them goes to `device`."""
        view = copy.copy(self)
        view.device = torch.device(device)
        return view

    def rows(self, index: Index) -> Self:
        """Return a view of these images, in this order; nothing is read."""
        view = copy.copy(self)
        view._rows = self._rows[_plain(index)]
        return view

    def split(self, batch: int) -> Iterator[Tensor]:
        """Read all images in order, `batch` at a time."""
        for start in range(0, len(self), batch):
            yield self._read(self._rows[start : start + batch])

    def __getitem__(self, index: Index) -> "Tensor | Self":
        if isinstance(index, slice):
            return self.rows(index)
        rows = np.asarray(self._rows[_plain(index)])
        if rows.ndim > 1:
            raise IndexError(f"index of shape {rows.shape}: give a slice or one dimension of rows")
        return self._read(rows) if rows.ndim else self._read(rows[None])[0]

    def _read(self, rows: np.ndarray) -> Tensor:
        pinned = self.device.type == "cuda"
        out = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype, pin_memory=pinned)
        # The default mode of `take` would copy through a buffer; these rows are all in range.
        np.take(_map(self._file), rows, axis=0, out=out.numpy(), mode="clip")
        return out.to(self.device, non_blocking=True)


def _plain(index: Index) -> Any:
    return index.cpu().numpy() if isinstance(index, Tensor) else index


def _map(file: Path) -> np.ndarray:
    try:
        images: np.ndarray = np.load(file, mmap_mode="r")
        return images
    except (OSError, ValueError, EOFError) as error:
        raise PackError(
            f"{file} is missing or truncated ({error}): remove {file.parent} and pack it again"
        ) from error


class Scaled(Packed):
    """Images of a tensor uint8 (M, 3, H, W), resized to (N, 3, S, S) as they are read."""

    def __init__(self, images: Tensor, size: int) -> None:
        super().__init__(Path(), size, np.arange(len(images)))
        self._images = images

    @property
    def key(self) -> str:
        """Identify these images: by those of native size, in order, and the size shown."""
        chosen = self._images[torch.from_numpy(self._rows)]
        return files.key([files.digest([("", chosen)]), self._size])

    def _read(self, rows: np.ndarray) -> Tensor:
        return resize(self._images[torch.from_numpy(rows)].to(self.device), self._size)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images to (N, 3, size, size), bilinear with antialiasing."""
    out = images.new_empty(len(images), 3, size, size)
    for rows, part in zip(out.split(RESIZED), images.split(RESIZED), strict=True):
        wide = F.interpolate(
            part.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False
        )
        rows.copy_(wide.round().clamp(0, 255))
    return out


def open_pack(path: Path, split: str) -> tuple[Packed, Tensor | None, tuple[str, ...]]:
    """Open images, labels, int64 (N,) or None, and classes of a split that `pack` has written.

    Raises:
        PackError: for a pack that is missing, unfinished or damaged. The manifest, the labels and the
            shape of the images are checked.
        FolderError: for an unknown split.
    """
    places = {s: path / s for s in folders.SPLITS if (path / s / MANIFEST).exists()}
    if (path / MANIFEST).exists():
        places = {"train": path}
    if not places:
        command = f"{COMMAND} FOLDER {shlex.quote(str(path))}"
        raise PackError(f"no finished pack in {path}: make one with {command}")
    home = folders.choose(path, split, places)
    manifest = _manifest(home)
    kept = np.delete(np.arange(manifest["rows"]), [row for row, *_ in manifest["skipped"]])
    labels = torch.from_numpy(np.load(home / LABELS)) if manifest["labels"] else None
    return Packed(home / IMAGES, manifest["size"], kept), labels, tuple(manifest["classes"])


def _manifest(home: Path) -> dict[str, Any]:
    """Return the manifest of a split; PackError where it, the labels or the images do not fit it."""
    manifest = files.read_json(home / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("seal") != _seal(manifest):
        damaged = MANIFEST
    elif _hash(home / LABELS) != manifest["labels"]:
        damaged = LABELS
    elif _map(home / IMAGES).shape != (manifest["rows"], 3, *[manifest["size"]] * 2):
        damaged = IMAGES
    else:
        return manifest
    raise PackError(f"{home / damaged} is not what was written: remove {home} and pack it again")


def _seal(manifest: dict[str, Any]) -> str:
    return files.key({name: value for name, value in manifest.items() if name != "seal"})


def _hash(file: Path) -> str | None:
    return files.sha256(file) if file.exists() else None


def pack(
    src: Path, dst: Path, size: int, workers: int = -1, keep: Collection[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Decode the folder `src` into `dst`, or its splits into `dst/<split>`; return their manifests.

    A split appears when all of it is written; one that is there already is not done again.

    Args:
        src: a folder of images, of classes, or of splits.
        dst: the folder to write.
        size: pixels of a side.
        workers: threads, -1 for one a core.
        keep: the class folders to restrict it to.

    Raises:
        FolderError: for a folder that cannot be packed.
        PackError: where `dst` is of other files or another size.
        StorageError: for too little space or no permission.
    """
    src, dst = Path(src), Path(dst)
    if size < 8 or not (workers == -1 or workers > 0):
        raise ValueError(f"size={size}, workers={workers}: give at least 8 pixels and 1 worker")
    if dst.resolve().is_relative_to(src.resolve()):
        raise ValueError(f"{dst} lies in {src}, which is to be packed: choose another folder")
    places = folders.splits(src, keep)
    homes = {split: dst if place == src else dst / split for split, place in places.items()}
    listings = {split: folders.listing(place, keep) for split, place in places.items()}
    unfinished = [split for split, home in homes.items() if not (home / MANIFEST).exists()]
    _check_space(dst, sum(len(listings[split].files) for split in unfinished) * 3 * size**2)
    return {s: _pack(places[s], homes[s], listings[s], size, workers) for s in places}


def _check_space(dst: Path, need: int) -> None:
    place = next(p for p in (dst.resolve(), *dst.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if need > free:
        raise files.StorageError(
            f"{dst} needs {need / 1e9:.3g} GB and {free / 1e9:.3g} GB are free there: free space or "
            "choose another disk, a smaller size or fewer classes; nothing was written"
        )


def _pack(folder: Path, home: Path, found: Listing, size: int, workers: int) -> dict[str, Any]:
    identity = _identity(folder, found.files, size)
    if (home / MANIFEST).exists():
        old = _manifest(home)
        if all(old[name] == value for name, value in identity.items()):
            return old
        raise PackError(
            f"{home} holds {old['rows']} files at {old['size']} px, asked for are {identity['rows']} "
            f"at {size} px, or a name or size among them changed: restore them, or remove it to pack anew"
        )
    try:
        _remove_leftovers(home)
        with files.atomic(home) as partial:
            partial.mkdir()
            _write(folder, partial, found, identity, workers)
    except (OSError, files.StorageError) as error:
        raise files.StorageError(
            f"{home} cannot be written ({error.__cause__ or error}): free space or give permission, "
            "then pack again"
        ) from error
    return _manifest(home)


def _identity(folder: Path, names: Sequence[Path], size: int) -> dict[str, Any]:
    """Return what a pack is of; the source is known by the names and sizes of its files."""
    sizes = [(name.as_posix(), (folder / name).stat().st_size) for name in names]
    source = hashlib.sha256(repr(sizes).encode()).hexdigest()
    return {"source": source, "rows": len(names), "size": size}


def _remove_leftovers(home: Path) -> None:
    """Remove what killed processes have left of this pack: it may be as large as the pack."""
    import psutil

    for partial in home.parent.glob(f".{home.name}.*.partial"):
        if not psutil.pid_exists(int(partial.name.split(".")[-2])):
            shutil.rmtree(partial, ignore_errors=True)


def _write(
    folder: Path, home: Path, found: Listing, identity: dict[str, Any], workers: int
) -> None:
    shape = (identity["rows"], 3, identity["size"], identity["size"])
    images = np.lib.format.open_memmap(home / IMAGES, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):  # a disk that fills up kills a process that writes a map
        with (home / IMAGES).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, images.nbytes + images.offset)
    skipped, pixels = folders.decode_all(folder, found.files, images, workers)
    images.flush()
    names = [file.as_posix() for file in found.files]
    if found.labels is not None:
        np.save(home / LABELS, found.labels.numpy()[[name not in skipped for name in names]])
    manifest = identity | {
        "count": len(names) - len(skipped),
        "classes": found.classes,
        "pixels": pixels,
        "labels": _hash(home / LABELS),
        "skipped": [(i, name, skipped[name]) for i, name in enumerate(names) if name in skipped],
    }
    files.write_json(home / MANIFEST, manifest | {"seal": _seal(manifest)})


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, pack a folder, print what was written, and return the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("src", type=Path, help="folder of images, of classes, or of splits")
    parser.add_argument("dst", type=Path, help="folder to write")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side (256)")
    parser.add_argument("--workers", type=int, default=-1, help="threads (one a core)")
    parser.add_argument("--keep", type=Path, help="file that names a class folder in every line")
    given = parser.parse_args(arguments)
    try:
        keep = given.keep.read_text().splitlines() if given.keep else None
        manifests = pack(given.src, given.dst, given.size, given.workers, keep)
    except (ValueError, OSError, files.StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for split, manifest in manifests.items():
        count, classes = manifest["count"], len(manifest["classes"])
        skipped = f"{len(manifest['skipped'])} files skipped"
        print(f"{split}: {count} images of {classes} classes at {given.size} px, {skipped}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
