"""Load a data set by name as one set of uint8 images: embedded, the papers', a folder or a pack."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from contsteal import Seed, choice, fitting
from contsteal.data import folders, torchsets
from contsteal.data.embedded import ENDLESS, SOURCES, Source
from contsteal.data.folders import FolderError
from contsteal.data.torchsets import CorruptData, MissingData, data_dir
from contsteal.seeds import generator

if TYPE_CHECKING:  # `python -m contsteal.data.packed` warns where this package has imported it
    from contsteal.data.packed import Packed

__all__ = [
    "ENDLESS", "PATHS", "SOURCES", "SPLITS", "CorruptData", "FolderError", "ImageSet", "MissingData",
    "Source", "data_dir", "known", "load", "needs", "order", "require",
]  # fmt: skip
SPLITS = ("train", "test")
PATHS = ("folder", "packed")  # names that lead to a path: folder:PATH, packed:PATH
LARGEST = 8 * 2**30  # bytes of a resized set that is held in memory
Asked = Annotated[int, ("least", 1), ("most", 10**8)] | None
Side = Annotated[int, ("least", 8), ("most", 2**15)]  # pixels
Read = tuple["Tensor | Packed", Tensor | None, tuple[str, ...]]


@dataclass(frozen=True)
class ImageSet:
    """Images with their labels, the names of the classes, and where they come from."""

    images: "Tensor | Packed"  #: uint8 (N, 3, H, W), in memory or on disk
    labels: Tensor | None  #: int64 (N,)
    name: str
    split: str
    classes: tuple[str, ...]  #: in the order of the labels

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: str | torch.device) -> "ImageSet":
        """Return the same set on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def take(self, chosen: Tensor | slice) -> "ImageSet":
        """Return the chosen images with their labels, in that order.

        Args:
            chosen: a slice, or indices (M,).
        """
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, images=self.images[chosen], labels=labels)


def load(
    name: str, split: str = "train", n: int | None = None, seed: int = 0, image_size: int = 32
) -> ImageSet:
    """Load images of a data set, with their labels and the names of the classes.

    Args:
        name: an embedded set (SOURCES), one of `torchsets.NAMES`, `folder:PATH` or `packed:PATH`.
        split: "train" or "test"; `torchsets.SPLITS` lists more, which may be joined ("train+test").
        n: how many; None for all of them, or 4,096 of an endless set. Fewer are a prefix of more.
        seed: draws embedded images, and the order of stored ones.
        image_size: pixels of a side. A stored set that would exceed 8 GiB is resized as it is read.

    Returns:
        Images uint8 (N, 3, H, W), labels int64 (N,) or None, the name, the split and the classes.

    Raises:
        ValueError: for a name, split, n or size that does not exist.
        MissingData, CorruptData, FolderError, PackError: for files that are missing or damaged.

    Example:
        >>> images = load("shapes", n=2)
        >>> images.images.shape, images.labels.shape, images.classes[:2]
        (torch.Size([2, 3, 32, 32]), torch.Size([2]), ('disc', 'square'))
    """
    name, split = fitting(name, "data set", str), fitting(split, "split", str)
    n = fitting(n, f"n images of {name!r:.60}: n", Asked)
    seed, image_size = fitting(seed, "seed", Seed), fitting(image_size, "image_size", Side)
    images: Tensor | Packed
    chosen: Tensor | slice
    if name in SOURCES:
        choice(split, f"split of {name}", SPLITS)
        (images, labels), classes = SOURCES[name].read(n, split, seed), SOURCES[name].classes
        chosen = slice(n)
    else:
        images, labels, classes = _open(name, split, image_size)
        chosen = order(len(images), seed)[:n]
    if n is not None and n > len(images):
        raise ValueError(f"{name} has {len(images)} {split} images, n={n}: ask for fewer")
    images = images[chosen] if isinstance(images, Tensor) else images.rows(chosen)
    labels = None if labels is None else labels[chosen]
    return ImageSet(_resized(images, image_size, name), labels, name, split, classes)


def _open(name: str, split: str, size: int) -> Read:
    """Open a whole split from disk, a folder's images at `size`, others as large as they are."""
    from contsteal.data import packed

    kind, _, path = name.partition(":")
    home = Path(os.path.expanduser(path))  # an unknown user's ~name stays as it is
    if kind == "packed" and path:
        return packed.open_pack(home, split)
    if kind == "folder" and path:
        return folders.read(home, split, size)
    if name in torchsets.FOLDERS:
        home = torchsets.imagenet(name, size)
        unlabelled = split == "test" and (home / "val").is_dir()  # as ImageNet's test images are
        return packed.open_pack(home, "val" if unlabelled else split)
    known(name)
    if "+" not in split:
        return torchsets.read(name, split, size)
    parts = [torchsets.read(name, part, size) for part in split.split("+")]
    labels = [part[1] for part in parts if part[1] is not None]
    joined = torch.cat(labels) if len(labels) == len(parts) else None
    return torch.cat([part[0] for part in parts]), joined, parts[0][2]


def known(name: str) -> str:
    """Return the name of a data set that `load` takes; ValueError for an unknown one, with the known."""
    kind, _, path = name.partition(":")
    if name in SOURCES or name in torchsets.NAMES or (kind in PATHS and path):
        return name
    names = [*SOURCES, *torchsets.NAMES, *(f"{kind}:PATH" for kind in PATHS)]
    return choice(name, "data set", names)


def _resized(images: "Tensor | Packed", size: int, name: str) -> "Tensor | Packed":
    from contsteal.data import packed

    own = images.shape[-1]
    if images.shape[-2:] == (size, size):
        return images
    if isinstance(images, packed.Packed):
        remedy = f"set image_size to {own}, or pack the folder again with --size {size}"
        raise ValueError(f"{name} is packed at {own} px, not {size} px: {remedy}")
    return (packed.Scaled if len(images) * 3 * size**2 > LARGEST else packed.resize)(images, size)


def order(n: int, seed: int) -> Tensor:
    """Return the one permutation of `n` images whose prefixes are the query budgets of `seed`.

    Args:
        n: number of images.
        seed: of the permutation.

    Returns:
        Rows, int64 (n,).

    Example:
        >>> order(4, seed=0).sort().values
        tensor([0, 1, 2, 3])
    """
    return torch.randperm(n, generator=generator("query order", seed))


def needs(
    settings: Mapping[str, Any], parameters: Iterable[Mapping[str, Any]]
) -> dict[str, set[str]]:
    """Return the stored data sets that a profile and its notebooks read, with their splits.

    Args:
        settings: of the profile, with `data`, `train_split`, `query_data` and `query_split`.
        parameters: of each notebook. A data set is mentioned as `name`, which means its train and test
            splits, as `name@split`, or in a record [name, split, ...].
    """
    reads = [part for values in parameters for part in _flat(values)] + [settings.get("data")]
    for name, split in (("data", "train_split"), ("query_data", "query_split")):
        reads.append([settings.get(name), settings.get(split, "train")])
    splits: dict[str, set[str]] = {}
    for mention in reads:
        if isinstance(mention, str):
            name, _, split = mention.partition("@")
            mention = [name, split or "+".join(SPLITS)]
        if isinstance(mention, list | tuple) and len(mention) > 1:
            name = str(mention[0])
            if name in torchsets.NAMES or name.startswith(tuple(f"{kind}:" for kind in PATHS)):
                splits.setdefault(name, set()).update(mention[1].split("+"))
    return splits


def _flat(value: object) -> list[Any]:
    """Return the values in lists and tables of a parameter; records, lists in lists, stay whole."""
    if isinstance(value, Mapping):
        return [part for inner in value.values() for part in _flat(inner)]
    return value if isinstance(value, list) else [value]


def require(name: str, splits: Collection[str], image_size: int) -> None:
    """Raise what `load` would for splits of a stored set, without reading their images.

    Damaged images are found by reading alone.
    """
    kind, _, path = name.partition(":")
    if name in torchsets.SPLITS:
        return torchsets.require(name, splits)
    for split in sorted(splits):
        if kind == "folder" and path:
            home = Path(os.path.expanduser(path))
            folders.listing(folders.choose(home, split, folders.splits(home)))
        else:
            _resized(_open(name, split, image_size)[0], image_size, name)
    return None
