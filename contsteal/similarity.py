"""Cosines of all pairs of rows, and a cross-entropy over them whose memory is linear in the batch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 512  # rows that are compared with all others at a time
WHOLE = 2048  # rows up to which all pairs are kept at once: 16 MB, no slower than blocks


def products(a: Tensor, b: Tensor) -> Tensor:
    """Return a b' in the inputs' own precision, also inside autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def positive(temperature: float) -> float:
    """Return the temperature; ValueError unless it is above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: it must be above 0")
    return temperature


def cosines(z: Tensor, temperature: float) -> Tensor:
    """Return the cosines of all pairs of rows over `temperature`, -inf for a row with itself."""
    z = F.normalize(z, dim=1)
    return (products(z, z) / positive(temperature)).fill_diagonal_(float("-inf"))


def cross_entropy(z: Tensor, partner: Tensor, temperature: float) -> Tensor:
    """Return mean_i -log(e^{z_i z_p(i)} / sum_{k != i} e^{z_i z_k}) of rows z (R, D), partners p (R,).

    Above WHOLE rows it goes by blocks: memory is linear in R, not quadratic, and a gradient of the
    gradient does not exist.
    """
    if len(z) <= WHOLE:
        return F.cross_entropy(cosines(z, temperature), partner)
    with torch.autocast(z.device.type, enabled=False):
        return _Blocks.apply(F.normalize(z, dim=1), partner, positive(temperature))


class _Blocks(torch.autograd.Function):
    """`cross_entropy` of unit rows z; its gradient is made on the way, while a block is at hand.

    With L = (1 / R) sum_i (logsumexp_j l_ij - l_ip(i)), l_ij = z_i z_j / T and G = softmax(l) - 1_p:
    dL/dz = (G + G') z / (R T).
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, partner: Tensor, temperature: float) -> Tensor:
        total, gradient = z.new_zeros(()), torch.zeros_like(z)
        for first in range(0, len(z), BLOCK):
            rows, target = z[first : first + BLOCK], partner[first : first + BLOCK, None]
            logits = (rows @ z.T).div_(temperature)  # (BLOCK, R)
            logits.diagonal(first).fill_(float("-inf"))
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - logits.gather(1, target)).sum()
            g = logits.sub_(norm).exp_()
            g.scatter_add_(1, target, torch.full_like(norm, -1))
            gradient[first : first + BLOCK].addmm_(g, z)
            gradient.addmm_(g.T, rows)
        ctx.save_for_backward(gradient.div_(len(z) * temperature))
        return total / len(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return up * gradient, None, None
