"""Image folders: list them with their classes, decode files, read a whole split into memory.

A folder is flat (no labels) or has one subfolder per class; it may be divided into `train`, `test`
and `val` first. Hidden files do not count; files of other extensions are left out with a warning.
"""

import errno
import hashlib
import math
import os
import stat
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:  # Pillow is imported by the first image that is decoded
    from PIL.Image import Image

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "test", "val")
MOST_PIXELS = 2**26  # of an image as it is decoded, about 3 seconds and 0.2 GB; cameras take fewer
TOO_LARGE = f"more than {MOST_PIXELS:,} pixels"


class FolderError(ValueError):
    """A folder that is missing, has no images, or is not laid out as classes and splits are."""


class Unreadable(ValueError):
    """A file that gives no image of three 8-bit channels; its text is the reason."""


class Listing(NamedTuple):
    """The images of a folder, relative to it, sorted; labels int64 (N,), None where it is flat."""

    files: list[Path]
    labels: Tensor | None
    classes: tuple[str, ...]


def listing(root: Path, keep: Collection[str] | None = None) -> Listing:
    """List the images of a folder, at any depth of its class folders.

    Labels count the class folders in sorted order. Other files are a warning, and a folder that links
    lead to twice is an error: its images would count twice, or have two labels.

    Args:
        root: the folder.
        keep: class folders to restrict it to.

    Raises:
        FolderError: for no folder, no image, or a layout that is not one of classes.
    """
    seen: set[tuple[int, int]] = set()
    folders, beside = _subfolders(root), list(_files(root, seen, deep=False))
    classes = folders if keep is None else sorted(set(keep))
    if folders and (loose := [name for name in beside if _is_image(name)]):
        both = f"images ({_some(loose, 2)}) and folders ({_some(folders, 2)})"
        raise FolderError(f"{root} holds {both}: move the images or the folders away")
    if unknown := set(classes).difference(folders):
        raise FolderError(f"no class folders {_some(unknown)} in {root}: it has {_some(folders)}")
    if strange := [name for name in classes if _shown(name) != name]:
        raise FolderError(f"class folder {_some(strange)} of {root} is not in UTF-8: rename it")
    inside = [[f"{name}/{file}" for file in _files(root / name, seen)] for name in classes]
    groups = [sorted(Path(n) for n in names if _is_image(n)) for names in inside or [beside]]
    if not any(groups):
        raise FolderError(f"no image in {root}: add files that end in {', '.join(EXTENSIONS)}")
    if empty := [name for name, files in zip(classes, groups, strict=False) if not files]:
        raise FolderError(f"class folders of {root} have no image: {_some(empty)}; remove them")
    if others := [name for names in (beside, *inside) for name in names if not _is_image(name)]:
        message = f"{len(others)} files in {root} do not have an image's name and were left out"
        warnings.warn(f"{message} ({_some(others, 3)})", stacklevel=3)
    labels = torch.tensor([label for label, files in enumerate(groups) for _ in files])
    paths = [file for files in groups for file in files]
    return Listing(paths, labels if classes else None, tuple(classes))


def _subfolders(root: Path) -> list[str]:
    if not root.is_dir():
        raise FolderError(f"{root} is not a folder: put images into train/CLASS/ in it")
    return sorted(e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != ".")


def _files(root: Path, seen: set[tuple[int, int]], deep: bool = True) -> Iterator[str]:
    """Yield the files below a folder, relative to it; links to folders are followed, to none twice."""
    for folder, inside, files in os.walk(root, onerror=_raise, followlinks=True):
        place = os.stat(folder)
        if (place.st_dev, place.st_ino) in seen:
            twice = f"a link leads to {_shown(folder)} again"
            raise FolderError(f"{twice}: its images would count twice; remove the link")
        seen.add((place.st_dev, place.st_ino))
        inside[:] = [name for name in inside if deep and name[0] != "."]
        below = Path(folder).relative_to(root)
        yield from ((below / name).as_posix() for name in files if name[0] != ".")


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _raise(error: OSError) -> None:
    raise FolderError(f"{_shown(error.filename)} cannot be listed ({error.strerror})") from error


def _some(names: Collection[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (_shown(", ".join(sorted(names)[:most])) or "none") + more


def _shown(name: object) -> str:
    """Return a file's name, which need not be UTF-8, as text that can be printed and stored."""
    return str(name).encode(errors="backslashreplace").decode()


def splits(root: Path, keep: Collection[str] | None = None) -> dict[str, Path]:
    """Return the folder of every split; a folder without split folders is all `train`.

    All splits have the same class folders (`keep` at least), or none: ImageNet's test images.

    Raises:
        FolderError: for images beside the splits, and for classes that a split lacks.
    """
    names = _subfolders(root)
    places = {split: root / split for split in SPLITS if split in names}
    others = [name for name in names if places and name not in places]
    if strange := [name for name in others if any(map(_is_image, _files(root / name, set())))]:
        beside = f"{root} holds images in {_some(strange)} beside the splits {', '.join(places)}"
        raise FolderError(f"{beside}: move them into a split, or rename a class named like a split")
    classes = {split: set(_subfolders(place)) for split, place in places.items()}
    wanted = set().union(*classes.values()) if keep is None else set(keep)
    for split, present in classes.items():
        if present and (missing := wanted - present):
            raise FolderError(f"{places[split]} lacks the other splits' classes: {_some(missing)}")
    return places or {"train": root}


def choose(root: Path, split: str, places: Mapping[str, Path]) -> Path:
    """Return the folder of a split among the `places` in `root`; `test` falls back to `val`.

    Raises:
        FolderError: for a split that does not exist.
    """
    name = "val" if split == "test" and "test" not in places else split
    if name not in places:
        raise FolderError(f"no split {split!r} in {root}: choose one of {', '.join(places)}")
    return places[name]


def decode(path: Path, size: int) -> np.ndarray:
    """Decode a file to its centre square, uint8 (3, size, size), the shorter side resized.

    Bilinear with antialiasing: the pixels of torchvision's Resize and CenterCrop. EXIF orientation
    is applied, gray and palettes become RGB, transparency is laid over white. Large JPEGs are decoded
    at a half, a quarter or an eighth (`draft`), to no less than twice `size`.

    Raises:
        Unreadable: for what is damaged, no image, animated, CMYK, of more than 8 bits or MOST_PIXELS.
        FolderError: where the disk fails.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError
    from PIL.ExifTags import Base

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Unreadable("not a file")  # opening a pipe would wait for ever
        with Image.open(path) as image:
            _refuse(image)
            drafted = image.draft(None, (2 * size, 2 * size))
            if math.prod(image.size) > MOST_PIXELS:
                raise Unreadable(TOO_LARGE)
            box = _box(drafted[1][2:] if drafted else image.size, size)
            square = _rgb(image).resize((size, size), Image.Resampling.BILINEAR, box)
            square.getexif()[Base.Orientation] = image.getexif().get(Base.Orientation, 1)
            ImageOps.exif_transpose(square, in_place=True)
    except (Unreadable, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(TOO_LARGE) from error
    except UnidentifiedImageError as error:
        raise Unreadable("not an image") from error
    except Exception as error:  # decoders raise many kinds for a damaged file
        fault = error.errno if isinstance(error, OSError) else None
        if fault not in (None, errno.EINVAL):  # the disk's; seeking in a damaged file gives EINVAL
            raise FolderError(f"{_shown(path)} cannot be read ({os.strerror(fault)})") from error
        raise Unreadable(f"damaged ({error})") from error
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _refuse(image: "Image") -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # cameras store previews behind a still image: MPO
        raise Unreadable(f"animated ({frames} frames)")
    if image.mode == "CMYK":
        raise Unreadable("CMYK colours")
    # Pillow cuts RGB of 16 bits down to 8 and says so nowhere but in the decoder's arguments.
    cut = any(";16" in str(t.args) or t.args == ("RGB", 65535) for t in getattr(image, "tile", ()))
    if cut or image.mode[0] in "IF":
        raise Unreadable("more than 8 bits a channel")


def _rgb(image: "Image") -> "Image":
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        from PIL.Image import new

        white = new("RGBA", image.size, "white")
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


def decode_all(
    folder: Path, files: Sequence[Path], out: np.ndarray, workers: int = -1
) -> tuple[dict[int, str], str]:
    """Decode N files of a folder into `out`; unreadable ones become black.

    Args:
        folder, files: the files are relative to the folder.
        out: uint8 (N, 3, S, S), filled in place.
        workers: threads, -1 for one a core: Pillow and sha256 release the interpreter's lock.

    Returns:
        The rows that were skipped and why, which is a warning, too, and a sha256 of all pixels.

    Raises:
        FolderError: where no file could be read, or the disk fails.
    """
    from joblib import Parallel, delayed
    from tqdm.auto import tqdm

    def decode_row(row: int) -> tuple[str | None, bytes]:
        reason = None
        try:
            out[row] = decode(folder / files[row], out.shape[-1])
        except Unreadable as error:
            out[row], reason = 0, str(error)
        return reason, hashlib.sha256(out[row]).digest()

    run = Parallel(n_jobs=workers, prefer="threads", return_as="generator")
    results = run(delayed(decode_row)(row) for row in range(len(files)))
    bar = tqdm(results, f"decoding {folder.name}", len(files), unit=" images", leave=False)
    reasons, hashes = zip(*bar, strict=True)
    if skipped := {row: reason for row, reason in enumerate(reasons) if reason}:
        named = _some([f"{files[row].as_posix()}: {reason}" for row, reason in skipped.items()], 3)
        message = f"{len(skipped)} of {len(files)} files in {folder} were skipped ({named})"
        if len(skipped) == len(files):
            raise FolderError(f"{message}: no image is left")
        warnings.warn(message, stacklevel=3)
    return skipped, hashlib.sha256(b"".join(hashes)).hexdigest()


def read(root: Path, split: str, size: int) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Read a split into memory.

    Args:
        root: an image folder.
        split: "train", "test" or "val".
        size: pixels of a side.

    Returns:
        Images uint8 (N, 3, size, size), labels int64 (N,) or None, classes.

    Raises:
        FolderError: for what cannot be listed or read, or exceeds the memory.
    """
    folder = choose(root, split, splits(root))
    files, labels, classes = listing(folder)
    try:
        pixels = np.empty((len(files), 3, size, size), np.uint8)
    except MemoryError as error:
        command = f"`python -m contsteal.data.packed {root} PACK --size {size}`, load packed:PACK"
        raise FolderError(f"{folder} does not fit in memory: run {command}") from error
    skipped, _ = decode_all(folder, files, pixels)
    kept = [row for row in range(len(files)) if row not in skipped]
    for place, row in enumerate(kept if skipped else []):  # a copy would take the memory twice
        pixels[place] = pixels[row]
    return torch.from_numpy(pixels[: len(kept)]), None if labels is None else labels[kept], classes
