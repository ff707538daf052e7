"""Sets larger than memory: one numpy memory map per split, used like a tensor of uint8 images.

`python -m contsteal.data.packed SRC DST --size 256` decodes an image folder once, in parallel, into
`DST` or `DST/<split>`: `images.npy` (N, 3, S, S), `sums.npy` and `manifest.json`. Row i is file i of the
listing; a file that cannot be decoded keeps its row, black, which readers leave out. Each row that is
read is compared with its sum.
"""

import argparse
import copy
import hashlib
import os
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal import files, number
from contsteal.data import folders
from contsteal.data.folders import Listing

IMAGES, SUMS, MANIFEST = "images.npy", "sums.npy", "manifest.json"
COMMAND = "python -m contsteal.data.packed"
RESIZED = 4096  # images resized at once: floats take four times their memory
Index = Tensor | np.ndarray | list[int] | slice | int


class PackError(ValueError):
    """A pack that is missing, unfinished, truncated or altered, or of other files or another size."""


class Packed:
    """Images uint8 (N, 3, S, S) on disk, `rows` of a .npy file, that stand where a tensor would.

    An index reads its images into a tensor on `device`, in the order asked for; a slice is a view, of
    which nothing is read. Each read opens the map: a view is small to send to another process.
    """

    ndim, dtype = 4, torch.uint8

    def __init__(
        self, file: Path, size: int, rows: np.ndarray, sums: np.ndarray | None = None
    ) -> None:
        self._file, self._size, self._rows, self._sums = file, size, rows, sums
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, self._size, self._size))

    @property
    def key(self) -> str:
        """Identify these images: by the manifest, which has a hash of all pixels, and the rows."""
        return files.key([files.sha256(self._file.with_name(MANIFEST)), self._rows.tolist()])

    def is_floating_point(self) -> bool:
        return False

    def to(self, device: str | torch.device) -> Self:
        """Return the same images; what is read of them goes to `device`."""
        view = self.rows(slice(None))
        view.device = torch.device(device)
        return view

    def cpu(self) -> Tensor:
        """Return these images in memory, on the CPU: of a slice that is meant to be small."""
        return torch.cat([part.cpu() for part in self.split(RESIZED)])

    def rows(self, index: Index) -> Self:
        """Return a view of these images, in this order; nothing is read."""
        view = copy.copy(self)
        plain = index.cpu().numpy() if isinstance(index, Tensor) else index
        view._rows = np.asarray(self._rows[plain])
        return view

    def split(self, batch: int) -> Iterator[Tensor]:
        """Read all images in order, `batch` at a time."""
        for start in range(0, len(self), batch):
            yield self._read(self._rows[start : start + batch])

    def __getitem__(self, index: Index) -> "Tensor | Self":
        view = self.rows(index)
        if isinstance(index, slice):
            return view
        return self._read(view._rows) if view._rows.ndim else self._read(view._rows[None])[0]

    def _read(self, rows: np.ndarray) -> Tensor:
        pinned = self.device.type == "cuda"
        out = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype, pin_memory=pinned)
        # The default mode of `take` would copy through a buffer; these rows are all in range.
        np.take(_map(self._file), rows, axis=0, out=out.numpy(), mode="clip")
        if self._sums is not None and len(bad := rows[sums(out.numpy()) != self._sums[rows]]):
            raise _spoilt(self._file, f"was damaged or altered in row {bad[0]}")
        return out.to(self.device, non_blocking=True)


def _map(file: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(file, mmap_mode="r"))
    except Exception as error:  # of many kinds for a damaged header, which numpy parses as Python
        raise _spoilt(file, f"is missing or truncated ({error})") from error


def _spoilt(file: Path, problem: str = "was damaged or altered") -> PackError:
    return PackError(f"{file} {problem}: remove {file.parent} and pack it again")


def sums(images: np.ndarray) -> np.ndarray:
    """Return a sum (N,) of the bytes of images (N, 3, S, S), by eights where they divide them."""
    flat = images.reshape(len(images), int(np.prod(images.shape[1:])))
    return (flat if flat.shape[1] % 8 else flat.view("<u8")).sum(1, dtype=np.uint64)


class Scaled(Packed):
    """Images of a tensor uint8 (M, 3, H, W), resized to (N, 3, S, S) as they are read."""

    def __init__(self, images: Tensor, size: int) -> None:
        super().__init__(Path(), size, np.arange(len(images)))
        self._images = images

    @property
    def key(self) -> str:
        """Identify these images: by those of native size, in order, and the size shown."""
        return files.key([files.digest([("", self._images[self._rows])]), self._size])

    def _read(self, rows: np.ndarray) -> Tensor:
        return resize(self._images[rows].to(self.device), self._size)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images to (N, 3, size, size), bilinear with antialiasing."""
    out = images.new_empty(len(images), 3, size, size)
    for rows, part in zip(out.split(RESIZED), images.split(RESIZED), strict=True):
        wide = F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
        rows.copy_(wide.round().clamp(0, 255))
    return out


def open_pack(path: Path, split: str) -> tuple[Packed, Tensor | None, tuple[str, ...]]:
    """Open a split that `pack` has written.

    Args:
        path: the pack.
        split: "train", "test" or "val".

    Returns:
        Images on disk, labels int64 (N,) or None, and classes.

    Raises:
        PackError: where it is missing, unfinished or damaged: the manifest, the sums and the shape of
            the images are checked, and the pixels as they are read.
        FolderError: for an unknown split.

    Example:
        See `pack`.
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
    classes = manifest["classes"]
    labels = np.arange(len(classes)).repeat(list(classes.values()))  # rows are sorted by class
    images = Packed(home / IMAGES, manifest["size"], kept, _map(home / SUMS))
    return images, torch.from_numpy(labels[kept]) if classes else None, tuple(classes)


def _manifest(home: Path) -> dict[str, Any]:
    """Return the manifest of a split; PackError where it is damaged or the images do not fit it."""
    manifest = files.read_json(home / MANIFEST)
    if not isinstance(manifest, dict) or files.sealed(manifest) != manifest:
        raise _spoilt(home / MANIFEST)
    images, _ = _map(home / IMAGES), _map(home / SUMS)
    if images.shape != (manifest["rows"], 3, *2 * [manifest["size"]]) or images.dtype != np.uint8:
        raise _spoilt(home / IMAGES)
    if files.sha256(home / SUMS) != manifest.get("sums"):
        raise _spoilt(home / SUMS)
    return manifest


def pack(
    src: Path, dst: Path, size: int, workers: int = -1, keep: Collection[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Decode the folder `src` into `dst`, or its splits into `dst/<split>`.

    A split appears when all of it is written; one that is there already is not done again.

    Args:
        src: a folder of images, of classes, or of splits.
        dst: the folder to write.
        size: pixels of a side.
        workers: threads; -1 for one a core.
        keep: class folders to restrict it to.

    Returns:
        The manifest of each split.

    Raises:
        FolderError, PackError: for a `src` that cannot be packed, a `dst` of other files or size.
        StorageError: for too little space, which is reserved before decoding, or no permission.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> with TemporaryDirectory() as folder:
        ...     (Path(folder) / "src").mkdir()
        ...     Image.new("RGB", (20, 16)).save(Path(folder) / "src" / "1.png")
        ...     manifest = pack(Path(folder) / "src", Path(folder) / "dst", 16, workers=1)
        ...     images, labels, classes = open_pack(Path(folder) / "dst", "train")
        ...     manifest["train"]["rows"], images[:].shape
        (1, torch.Size([1, 3, 16, 16]))
    """
    number(size, "size", int, least=8), number(abs(workers), "workers", int, least=1)
    if dst.resolve().is_relative_to(src.resolve()):
        raise ValueError(f"{dst} lies in {src}, the folder to pack: choose another place")
    places = folders.splits(src, keep)
    homes = {split: dst if place == src else dst / split for split, place in places.items()}
    listings = {split: folders.listing(place, keep) for split, place in places.items()}
    return {s: _pack(places[s], homes[s], listings[s], size, workers) for s in places}


def _pack(folder: Path, home: Path, listing: Listing, size: int, workers: int) -> dict[str, Any]:
    # The source is known by the names and sizes of its files.
    sizes = [(name.as_posix(), (folder / name).stat().st_size) for name in listing.files]
    source = hashlib.sha256(repr(sizes).encode()).hexdigest()
    if (home / MANIFEST).exists():
        old = _manifest(home)
        if (old["source"], old["size"]) == (source, size):
            return old
        raise PackError(
            f"{home} holds {old['rows']} files at {old['size']} px, and not the {len(sizes)} of {folder} "
            f"at {size} px as they are now: remove {home} to pack them again"
        )
    files.makers(home)  # removes what killed processes have left
    with files.atomic(home) as partial:
        partial.mkdir()
        manifest = _write(folder, partial / IMAGES, listing, size, workers)
        manifest |= {"source": source, "rows": len(sizes), "size": size}
        files.write_json(partial / MANIFEST, files.sealed(manifest))
    return _manifest(home)


def _write(folder: Path, file: Path, listing: Listing, size: int, workers: int) -> dict[str, Any]:
    """Decode the images of a folder into a .npy file; return what the manifest says of them."""
    names, labels, classes = listing
    images = np.lib.format.open_memmap(file, "w+", np.uint8, (len(names), 3, size, size))
    if hasattr(os, "posix_fallocate"):  # a disk that fills up kills a process that writes a map
        with file.open("r+b") as out:
            os.posix_fallocate(out.fileno(), 0, images.nbytes + images.offset)
    skipped, pixels = folders.decode_all(folder, names, images, workers)
    images.flush()
    each = [sums(images[k : k + RESIZED]) for k in range(0, len(images), RESIZED)]
    np.save(file.with_name(SUMS), np.concatenate(each))
    counts = [] if labels is None else labels.bincount().tolist()
    unreadable = [[row, names[row].as_posix(), reason] for row, reason in skipped.items()]
    by_class = dict(zip(classes, counts, strict=True))
    summed = files.sha256(file.with_name(SUMS))
    return {"classes": by_class, "pixels": pixels, "skipped": unreadable, "sums": summed}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, pack a folder, print what was written, and return the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("src", type=Path, help="folder of images, of classes, or of splits")
    parser.add_argument("dst", type=Path, help="folder to write")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side (256)")
    parser.add_argument("--workers", type=int, default=-1, help="threads (one a core)")
    parser.add_argument("--keep", type=Path, help="file that names a class folder in every line")
    args = parser.parse_args(arguments)
    try:
        keep = args.keep.read_text().splitlines() if args.keep else None
        manifests = pack(args.src, args.dst, args.size, args.workers, keep)
    except (ValueError, OSError, files.StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for split, manifest in manifests.items():
        skipped, classes = len(manifest["skipped"]), len(manifest["classes"])
        count = f"{manifest['rows'] - skipped} images of {classes} classes"
        print(f"{split}: {count} at {args.size} px, {skipped} files skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
