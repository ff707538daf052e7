"""Load a data set by name as one tensor of uint8 images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal import synthetic
from contsteal.seeds import generator

SPLITS = ("train", "test")


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, 3, H, W), labels int64 (N,) or None, and what they are called."""

    images: Tensor
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
    """Where a name leads: a loader `(n, split, seed) -> (images, labels)`, classes, default size."""

    read: Callable[[int | None, str, int], tuple[Tensor, Tensor | None]]
    classes: tuple[str, ...]


def _shapes(column: int) -> Callable[[int | None, str, int], tuple[Tensor, Tensor | None]]:
    def read(n: int | None, split: str, seed: int) -> tuple[Tensor, Tensor | None]:
        images, labels = synthetic.shapes(4096 if n is None else n, split, seed)
        return images, labels[:, column]

    return read


def _digits(n: int | None, split: str, seed: int) -> tuple[Tensor, Tensor | None]:
    images, labels = synthetic.digits(split, seed)
    if n is not None and n > len(images):
        raise ValueError(
            f"digits has {len(images)} {split} images, {n} were asked for: ask for fewer"
        )
    return images[:n], labels[:n]


def _patches(n: int | None, split: str, seed: int) -> tuple[Tensor, Tensor | None]:
    return synthetic.patches(4096 if n is None else n, split, seed), None


SOURCES: dict[str, Source] = {
    "shapes": Source(_shapes(0), synthetic.SHAPES),
    "shapes:colour": Source(_shapes(1), synthetic.COLOURS),
    "shapes:texture": Source(_shapes(2), synthetic.TEXTURES),
    "digits": Source(_digits, tuple("0123456789")),
    "patches": Source(_patches, ()),
}


def load(
    name: str, split: str = "train", n: int | None = None, seed: int = 0, image_size: int = 32
) -> ImageSet:
    """Load `n` images of a data set (all of it, or 4,096 of an endless one, when `n` is None).

    `shapes`, `shapes:colour` and `shapes:texture` are the same images under three label sets. A
    smaller `n` gives a prefix of a larger one. Errors: ValueError for a name, split, n or size
    that does not exist.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(SOURCES)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of {name}: choose one of {', '.join(SPLITS)}")
    if n is not None and n < 1:
        raise ValueError(f"n={n} images of {name}: ask for at least 1")
    if image_size < 8:
        raise ValueError(f"image_size={image_size}: at least 8 pixels are needed")
    images, labels = SOURCES[name].read(n, split, seed)
    if images.shape[-1] != image_size:
        images = resize(images, image_size)
    return ImageSet(images, labels, name, split, SOURCES[name].classes)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images to (N, 3, size, size), bilinear with antialiasing."""
    wide = F.interpolate(
        images.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return wide.round().clamp(0, 255).to(torch.uint8)


def order(n: int, seed: int) -> Tensor:
    """Return the one permutation of `n` images whose prefixes are the query budgets of `seed`."""
    return torch.randperm(n, generator=generator("query order", seed))
