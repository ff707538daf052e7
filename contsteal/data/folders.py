"""Image folders: list them with their classes, decode files, read a whole split into memory.

A folder is flat (no labels) or has one subfolder per class; it may be divided into `train`, `test`
and `val` first. Hidden files are no images, nor are files of other extensions, which are told.
"""

import errno
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from torch import Tensor
from tqdm.auto import tqdm

from contsteal.lab import artifacts

BLOCK = 32  # rows that a worker takes at a time
T = TypeVar("T")


def parallel(do: Callable[[slice], T], n: int, title: str, workers: int = 0) -> Iterator[T]:
    """Yield `do(rows)` for blocks of the rows 0..n-1, in order, with a progress bar.

    Threads, one a core by default: Pillow, sha256 and files release the interpreter's lock.
    """
    parts = [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
    pool = ThreadPoolExecutor(workers or artifacts.cores())
    try:
        with tqdm(total=n, desc=title, unit=" images", leave=False) as bar:
            for part, result in zip(parts, pool.map(do, parts), strict=True):
                bar.update(part.stop - part.start)
                yield result
    finally:
        pool.shutdown(cancel_futures=True)


EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "test", "val")
Decoded = tuple[Tensor, Tensor | None, tuple[str, ...], dict[str, str]]


class FolderError(ValueError):
    """A folder that is missing, has no images, or is not laid out as classes and splits are."""


class Unreadable(ValueError):
    """A file that gives no image of three 8-bit channels; its text is the reason."""


class Listing(NamedTuple):
    """The images of a folder, relative to it, sorted; labels int64 (N,), None where it is flat."""

    files: tuple[Path, ...]
    labels: Tensor | None
    classes: tuple[str, ...]
    others: tuple[str, ...]  # the files beside them that are no images by their names


def listing(root: Path, keep: Collection[str] | None = None) -> Listing:
    """List the images of a folder; those of a class folder may lie at any depth.

    Labels count the class folders in sorted order; `keep` restricts to some. Errors: FolderError for
    no folder, no image in it or in a class, images beside class folders, or a class not there.
    """
    folders, beside = _subfolders(root), list(_files(root, deep=False))
    loose = [name for name in beside if _is_image(name)]
    if folders and loose:
        raise FolderError(
            f"{root} holds images ({_some(loose, 2)}) and folders ({_some(folders, 2)}): move one away"
        )
    classes = folders if keep is None else sorted(set(keep))
    if unknown := set(classes).difference(folders):
        raise FolderError(f"no class folders {_some(unknown)} in {root}: it has {_some(folders)}")
    inside = [[f"{name}/{f}" for f in _files(root / name)] for name in classes]
    found = [[Path(f) for f in names if _is_image(f)] for names in inside]
    if not loose and not any(found):
        raise FolderError(f"no image in {root}: files that end in {', '.join(EXTENSIONS)} count")
    if empty := [name for name, files in zip(classes, found, strict=True) if not files]:
        raise FolderError(f"class folders of {root} without an image: {_some(empty)}; remove them")
    files = [sorted(names, key=lambda f: f.parts) for names in found or [map(Path, loose)]]
    labels = torch.tensor([label for label, names in enumerate(found) for _ in names])
    others = tuple(f for f in chain(beside, *inside) if not _is_image(f))
    return Listing(tuple(chain(*files)), labels if classes else None, tuple(classes), others)


def _subfolders(root: Path) -> list[str]:
    if not root.is_dir():
        raise FolderError(f"{root} is not a folder: give the path of a folder of images")
    return sorted(e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != ".")


def _files(root: Path, deep: bool = True) -> Iterator[str]:
    for folder, inside, files in os.walk(root, onerror=_forbidden, followlinks=True):
        inside[:] = [name for name in inside if deep and name[0] != "."]
        place = Path(folder).relative_to(root).as_posix()
        for name in files:
            if name[0] != ".":
                yield name if place == "." else f"{place}/{name}"


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _forbidden(error: OSError) -> None:
    raise FolderError(f"{error.filename} cannot be listed ({error.strerror})") from error


def _some(names: Collection[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(sorted(names)[:most]) or "none") + more


def splits(root: Path, keep: Collection[str] | None = None) -> dict[str, Path]:
    """Return the folder of every split; a folder without split folders is all `train`.

    A split without class folders is unlabelled, as ImageNet's test images are. Errors: FolderError
    where a class folder (of `keep`) is missing in a split, or other folders hold images too.
    """
    names = _subfolders(root)
    found = {split: root / split for split in SPLITS if split in names}
    more = [n for n in names if n not in found] if found else []
    if strange := [n for n in more if any(map(_is_image, _files(root / n)))]:
        raise FolderError(
            f"{root} holds images in {_some(strange)} beside the splits {', '.join(found)}: put "
            "classes into the splits, or rename a class called like a split"
        )
    classes = {split: set(_subfolders(at)) for split, at in found.items()}
    wanted = set().union(*classes.values()) if keep is None else set(keep)
    for split, have in classes.items():
        if have and (missing := wanted - have):
            raise FolderError(f"{found[split]} lacks class folders of others: {_some(missing)}")
    return found or {"train": root}


def choose(root: Path, split: str, found: Mapping[str, Path]) -> Path:
    """Return the folder of a split among those `found` in `root`; `test` falls back to `val`."""
    name = "val" if split == "test" and "test" not in found else split
    if name not in found:
        raise FolderError(f"no split {split!r} in {root}: choose one of {', '.join(found)}")
    return found[name]


def decode(path: Path, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """Decode a file (into `out`) to uint8 (3, size, size): its centre, the shorter side resized.

    Bilinear with antialiasing, the pixels of torchvision's Resize and CenterCrop. EXIF orientation is
    applied, gray and palettes become RGB, transparency is laid over white. Large JPEGs are decoded at
    a half, a quarter or an eighth (`draft`), to no less than twice `size`. Errors: Unreadable for
    what is damaged, no image, animated, CMYK or of more than 8 bits; FolderError where the disk fails.
    """
    try:
        with Image.open(path) as image:
            _refuse(image)
            drafted = image.draft(None, (2 * size, 2 * size))
            box = _box(drafted[1][2:] if drafted else image.size, size)
            square = _rgb(image).resize((size, size), Image.Resampling.BILINEAR, box)
            square.getexif()[Base.Orientation] = image.getexif().get(Base.Orientation, 1)
            ImageOps.exif_transpose(square, in_place=True)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # decoders raise many kinds for a damaged file
        fault = error.errno if isinstance(error, OSError) else None
        if fault not in (None, errno.EINVAL):  # the disk's; a damaged file seeks nowhere: EINVAL
            raise FolderError(f"{path} cannot be read ({error.strerror}): restore it") from error
        known = not isinstance(error, UnidentifiedImageError)
        raise Unreadable(f"damaged ({error})" if known else "not an image") from error
    out = np.empty((3, size, size), np.uint8) if out is None else out
    out[:] = np.asarray(square).transpose(2, 0, 1)
    return out


def _refuse(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # cameras store previews behind a still image: MPO
        raise Unreadable(f"animated ({frames} frames)")
    if image.mode == "CMYK":
        raise Unreadable("CMYK colours")
    # Pillow cuts RGB of 16 bits down to 8 and tells it nowhere but in the decoder's arguments.
    cut = any(";16" in str(t.args) or t.args == ("RGB", 65535) for t in image.tile)
    if cut or image.mode[0] in "IF":
        raise Unreadable("more than 8 bits a channel")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _box(sides: Sequence[float], size: int) -> tuple[float, float, float, float]:
    """Return the part of an image that torchvision's Resize(size) and CenterCrop(size) keep."""
    ends = []
    for side in sides:  # fractions where a drafted image ends within its last pixel
        resized = int(size * side / min(sides))
        start = round((resized - size) / 2)
        ends.append((start * side / resized, (start + size) * side / resized))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def decode_all(folder: Path, files: Sequence[Path], out: np.ndarray) -> dict[str, str]:
    """Decode files into `out` (B, 3, S, S); return why which of them are left out, and black."""
    skipped = {}
    for row, file in enumerate(files):
        try:
            decode(folder / file, out.shape[-1], out[row])
        except Unreadable as error:
            out[row], skipped[file.as_posix()] = 0, str(error)
    return skipped


def tell_others(others: Collection[str], folder: Path) -> None:
    """Warn about files of a listing that are no images by their names."""
    if others:
        warnings.warn(
            f"{len(others)} files in {folder} are no images by their names and were left out "
            f"({_some(others, 3)})",
            stacklevel=3,
        )


def report(skipped: Mapping[str, str], n: int, folder: Path) -> None:
    """Warn about files that were skipped; FolderError where none is left."""
    told = [f"{name}: {reason}" for name, reason in skipped.items()]
    text = f"{len(told)} of {n} files in {folder} were skipped ({_some(told, 3)})"
    if len(told) == n:
        raise FolderError(f"{text}: no image is left")
    if told:
        warnings.warn(text, stacklevel=3)


def read(root: Path, split: str, size: int) -> Decoded:
    """Return images uint8 (N, 3, S, S), labels (N,) or None, classes, and why which file is left out.

    Decoded in parallel; skipped files are warned about. Without split folders all is `train`; `test`
    falls back to `val`. Errors: FolderError as of `listing` and `splits`, or for too little memory.
    """
    folder = choose(root, split, splits(root))
    files, labels, classes, others = listing(folder)
    tell_others(others, folder)
    images, skipped = _room(len(files), size, folder), {}
    for reasons in parallel(
        lambda part: decode_all(folder, files[part], images[part]), len(files), folder.name
    ):
        skipped |= reasons
    report(skipped, len(files), folder)
    kept = [row for row, file in enumerate(files) if file.as_posix() not in skipped]
    for place, row in enumerate(kept if skipped else []):  # a copy would take the memory twice
        images[place] = images[row]
    images = torch.from_numpy(images[: len(kept)])
    return images, None if labels is None else labels[kept], classes, skipped


def _room(n: int, size: int, folder: Path) -> np.ndarray:
    try:
        return np.empty((n, 3, size, size), np.uint8)
    except MemoryError as error:
        raise FolderError(
            f"{folder} at {size} px takes {n * 3 * size**2 / 1e9:.0f} GB of memory: pack it instead"
        ) from error
