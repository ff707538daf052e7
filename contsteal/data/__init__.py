"""Load a data set by name as one set of uint8 images: embedded, the papers', a folder or a pack.

`python -m contsteal.data pack SRC DST --size 256` packs a folder that is larger than memory.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from contsteal.data import embedded, folders, packed, torchsets
from contsteal.data.packed import Packed, PackError, open_pack, sized
from contsteal.seeds import generator

SPLITS = ("train", "test")
PATHS = ("folder", "packed")  # names that lead to a path: folder:PATH, packed:PATH
Read = tuple["Tensor | Packed", Tensor | None]


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, 3, H, W), in memory or packed, labels int64 (N,) or None, and their names."""

    images: Tensor | Packed
    labels: Tensor | None
    name: str
    split: str
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: str | torch.device) -> "ImageSet":
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def take(self, chosen: Tensor | slice) -> "ImageSet":
        """Return the chosen images with their labels, in that order."""
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, images=self.images[chosen], labels=labels)


class Source(NamedTuple):
    """An embedded set: a loader `(n, split, seed) -> (images, labels)` and the names of its classes."""

    read: Callable[[int | None, str, int], Read]
    classes: tuple[str, ...]


def _shapes(column: int) -> Callable[[int | None, str, int], Read]:
    def read(n: int | None, split: str, seed: int) -> Read:
        images, labels = embedded.shapes(4096 if n is None else n, split, seed)
        return images, labels[:, column]

    return read


def _digits(n: int | None, split: str, seed: int) -> Read:
    images, labels = embedded.digits(split, seed)
    return _first("digits", split, images, labels, n)


def _patches(n: int | None, split: str, seed: int) -> Read:
    return embedded.patches(4096 if n is None else n, split, seed), None


SOURCES: dict[str, Source] = {
    "shapes": Source(_shapes(0), embedded.SHAPES),
    "shapes:colour": Source(_shapes(1), embedded.COLOURS),
    "shapes:texture": Source(_shapes(2), embedded.TEXTURES),
    "digits": Source(_digits, tuple("0123456789")),
    "patches": Source(_patches, ()),
}
ENDLESS = tuple(name for name in SOURCES if name != "digits")  # as many images as are asked for


def load(
    name: str, split: str = "train", n: int | None = None, seed: int = 0, image_size: int = 32
) -> ImageSet:
    """Load `n` images of a data set (all of it, or 4,096 of an endless one, when `n` is None).

    Names: the embedded SOURCES, those of torchsets.NAMES, `folder:PATH` and `packed:PATH`. Splits of
    torchsets may be joined ("train+test"). What exceeds scaled.LARGEST is resized as it is read. Embedded
    images are drawn by `seed`; stored ones come in the order that `seed` draws. A smaller `n` gives
    a prefix of a larger one. Errors: ValueError for a name, split, n or size that does not exist,
    torchsets.MissingData and CorruptData, folders.FolderError, packed.PackError.
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n} images of {name}: ask for at least 1")
    if image_size < 8:
        raise ValueError(f"image_size={image_size}: at least 8 pixels are needed")
    if name in SOURCES:
        if split not in SPLITS:
            raise ValueError(
                f"unknown split {split!r} of {name}: choose one of {', '.join(SPLITS)}"
            )
        images, labels = SOURCES[name].read(n, split, seed)
        classes = SOURCES[name].classes
    else:
        images, labels, classes = _stored(name, split, image_size)
        chosen = order(len(images), seed)
        images = images.rows(chosen) if isinstance(images, Packed) else images[chosen]
        labels = None if labels is None else labels[chosen]
        images, labels = _first(name, split, images, labels, n)
    return ImageSet(_sized(images, image_size, name), labels, name, split, classes)


def _stored(
    name: str, split: str, size: int
) -> tuple[Tensor | Packed, Tensor | None, tuple[str, ...]]:
    """Read a whole split from disk, in the order of its files."""
    kind, _, path = name.partition(":")
    if kind == "packed" and path:
        return open_pack(Path(path).expanduser(), split)
    if kind == "folder" and path:
        return folders.read(Path(path).expanduser(), split, size)[:3]
    if name in torchsets.FOLDERS:
        return _packed_imagenet(name, split, size)
    if name in torchsets.NAMES:
        parts = [torchsets.read(name, part, size) for part in split.split("+")]
        return parts[0] if len(parts) == 1 else _joined(parts)
    known = ", ".join([*SOURCES, *torchsets.NAMES, *(f"{k}:PATH" for k in PATHS)])
    raise ValueError(f"unknown data set {name!r}: choose one of {known}")


def _joined(parts: Sequence[torchsets.Read]) -> torchsets.Read:
    """Put splits of one set behind each other; labels only where all have them."""
    images, labels, classes = zip(*parts, strict=True)
    known = None if any(part is None for part in labels) else torch.cat(labels)
    return torch.cat(images), known, classes[0]


def _packed_imagenet(name: str, split: str, size: int) -> tuple:
    """Open the pack of an ImageNet, which fits no memory; say how to make it where it is missing."""
    home = torchsets.data_dir() / f"{name}-{size}"
    if home.is_dir():
        # ImageNet's test images have no labels: "test" is its "val", also where both were packed.
        return open_pack(home, "val" if split == "test" and (home / "val").is_dir() else split)
    try:
        source = torchsets.imagenet_folder(name, split).parent
        first = f"{name} at {size} px is not packed: run"
    except torchsets.MissingData as error:
        source, first = torchsets.imagenet_home(name), f"{error}. Then run"
    raise torchsets.MissingData(f"{first} {_command(name, source, home, size)}")


def _command(name: str, source: Path | str, home: Path, size: int) -> str:
    """Return the command that packs a folder, as a shell takes it."""
    words = ["python", "-m", "contsteal.data", "pack", source, home, "--size", size]
    if name == "imagenet100":
        words += ["--keep", Path(__file__).parent.with_name("imagenet100.txt")]
    return shlex.join(map(str, words))


def locate(name: str, split: str, image_size: int) -> Path:
    """Return where a set that nothing fetches lies: an ImageNet's pack, `folder:PATH`, `packed:PATH`.

    No image is read. Errors: torchsets.MissingData with what to put where, and the command that packs
    it; ValueError for a name or split that does not exist, or a pack of another size.
    """
    kind, _, path = name.partition(":")
    home = Path(path).expanduser() if path else torchsets.data_dir() / f"{name}-{image_size}"
    try:
        if kind == "folder" and path:
            folders.listing(folders.choose(home, split, folders.splits(home)))
        else:
            _sized(_stored(name, split, image_size)[0], image_size, name)
    except (folders.FolderError, PackError) as error:
        raise torchsets.MissingData(f"{error}. {_remedy(name, home, image_size)}") from error
    return home


def _remedy(name: str, home: Path, size: int) -> str:
    """Say how images get to where a profile looks for them."""
    if not name.startswith("folder:"):
        source = torchsets.imagenet_home(name) if name in torchsets.FOLDERS else "FOLDER"
        return f"With the images in {source}, run {_command(name, source, home, size)}"
    pack = home.with_name(f"{home.name}-{size}")
    return (
        f"Put the images into {home}/train/CLASS/ and {home}/test/CLASS/; where they exceed the memory, "
        f"run {_command(name, home, pack, size)} and name packed:{pack} in the profile"
    )


def _first(
    name: str, split: str, images: Tensor | Packed, labels: Tensor | None, n: int | None
) -> Read:
    if n is not None and n > len(images):
        raise ValueError(
            f"{name} has {len(images)} {split} images, {n} were asked for: ask for fewer"
        )
    return images[:n], None if labels is None else labels[:n]


def _sized(images: Tensor | Packed, size: int, name: str) -> Tensor | Packed:
    if images.shape[-1] == size and images.shape[-2] == size:
        return images
    if isinstance(images, Packed):
        raise ValueError(
            f"{name} is packed at {images.shape[-1]} px, asked for are {size}: set image_size to "
            f"{images.shape[-1]}, or pack the folder again with --size {size}"
        )
    return sized(images, size)


def order(n: int, seed: int) -> Tensor:
    """Return the one permutation of `n` images whose prefixes are the query budgets of `seed`."""
    return torch.randperm(n, generator=generator("query order", seed))


def main(arguments: Sequence[str]) -> int:
    """Run the command `pack`; it is the only one."""

    if list(arguments[:1]) != ["pack"]:
        print("usage: python -m contsteal.data pack SRC DST --size 256", file=sys.stderr)
        return 2
    return packed.main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
