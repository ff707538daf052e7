"""Small images shown large: what would not fit in memory at the asked size is resized as it is read."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal import encoders, runs
from contsteal.packed import Packed

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
        return runs.key([encoders.digest([("", chosen)]), self._size])

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
