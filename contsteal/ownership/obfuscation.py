"""How a thief hides a stolen encoder: affine maps of its features.

Each map y -> W y + b can be undone, so a linear probe on the features loses nothing, and it costs no
query. This is the adaptive thief of the ownership tests (Dziedzic et al., NeurIPS 2022, table 1).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal import number
from contsteal.encoders import Encoder
from contsteal.seeds import generator


class Obfuscated(nn.Module):
    """An encoder behind a fixed affine map: images (N, 3, H, W) to features (N, `dim`).

    Args:
        encoder: of D features.
        weight: (`dim`, D).
        bias: (`dim`,).

    Raises:
        ValueError: for a weight of another shape.
    """

    dim: int
    weight: Tensor
    bias: Tensor

    def __init__(self, encoder: "Encoder | Obfuscated", weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        if weight.shape != (len(bias), encoder.dim):
            raise ValueError(f"a map {tuple(weight.shape)} + {tuple(bias.shape)} does not take the "
                             f"encoder's {encoder.dim} features")  # fmt: skip
        self.encoder, self.dim = encoder, len(bias)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.to(next(encoder.parameters()).device)

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(self.encoder(images), self.weight, self.bias)


Net = Encoder | Obfuscated


def shuffle(encoder: Net, seed: int = 0) -> Obfuscated:
    """Return the encoder with its features in an order drawn from `seed`.

    Args:
        encoder: images (N, 3, H, W) to features (N, D).
        seed: of the order.

    Returns:
        An encoder of as many features.

    Example:
        >>> from contsteal import encoders
        >>> shuffle(encoders.build("conv4")).dim
        128
    """
    order = torch.randperm(encoder.dim, generator=generator("shuffle", seed))
    return Obfuscated(encoder, torch.eye(encoder.dim)[order], torch.zeros(encoder.dim))


def scale(encoder: Net, factor: float = 10.0) -> Obfuscated:
    """Return the encoder with all features times `factor`.

    Args:
        encoder: images (N, 3, H, W) to features (N, D).
        factor: of every feature.

    Returns:
        An encoder of as many features.

    Raises:
        ValueError: for a size below 1e-30 or above 1e30, of which float32 makes 0 or infinity.

    Example:
        >>> from contsteal import encoders
        >>> scale(encoders.build("conv4"), 2.0).dim
        128
    """
    if not 1e-30 < abs(number(factor, "factor")) < 1e30:
        raise ValueError(f"factor={factor}: its size must lie between 1e-30 and 1e30")
    return Obfuscated(encoder, factor * torch.eye(encoder.dim), torch.zeros(encoder.dim))


def affine(encoder: Net, seed: int = 0, shift: float = 1.0) -> Obfuscated:
    """Return A y + b with A ~ N(0, 1/D) and b ~ N(0, `shift`^2), in the features' units.

    A square Gaussian matrix is invertible with probability 1, so no information is lost.

    Args:
        encoder: images (N, 3, H, W) to features (N, D).
        seed: of A and b.
        shift: standard deviation of b.

    Returns:
        An encoder of as many features.

    Example:
        >>> from contsteal import encoders
        >>> affine(encoders.build("conv4")).dim
        128
    """
    shift = number(shift, "shift", least=-1e30, most=1e30)
    draws, dim = generator("affine", seed), encoder.dim
    weight = torch.randn(dim, dim, generator=draws) / dim**0.5
    return Obfuscated(encoder, weight, shift * torch.randn(dim, generator=draws))


def pad(encoder: Net, extra: int = 16, seed: int = 0) -> Obfuscated:
    """Return the features and `extra` zeros, shuffled: no watermark head reads that dimension.

    Args:
        encoder: images (N, 3, H, W) to features (N, D).
        extra: number of zeros.
        seed: of the order.

    Returns:
        An encoder of as many features, and `extra` more.

    Raises:
        ValueError: for extra below 1.

    Example:
        >>> from contsteal import encoders
        >>> pad(encoders.build("conv4"), extra=16).dim
        144
    """
    extra = number(extra, "extra", int, least=1, most=2**16)
    order = torch.randperm(encoder.dim + extra, generator=generator("pad", seed))
    weight = torch.eye(encoder.dim + extra, encoder.dim)[order]
    return Obfuscated(encoder, weight, torch.zeros(len(order)))


OBFUSCATIONS: dict[str, Callable[[Net], Obfuscated]]
OBFUSCATIONS = {"shuffle": shuffle, "scale": scale, "affine": affine, "pad": pad}
