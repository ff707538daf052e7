"""Parts that methods and attacks share: projection heads, and a copy that follows a network."""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(*sizes: int, norm: bool = True, last: bool = False) -> nn.Sequential:
    """Return linear layers of these sizes with ReLU, and batch norm after all but the last."""
    layers: list[nn.Module] = []
    for place, (a, b) in enumerate(pairwise(sizes), 2):
        final = place == len(sizes)
        normed = last if final else norm
        layers.append(nn.Linear(a, b, bias=not normed))
        layers += [nn.BatchNorm1d(b)] * normed + [nn.ReLU(inplace=True)] * (not final)
    return nn.Sequential(*layers)


class Momentum(nn.Module):
    """A copy of a network that follows its weights: theta <- m theta + (1 - m) theta_net."""

    def __init__(self, net: nn.Module, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum}: it must be between 0 and 1")
        self.module, self.momentum = copy.deepcopy(net).requires_grad_(False), momentum

    @torch.no_grad()
    def follow(self, net: nn.Module) -> None:
        """Move one step towards `net`, without a host synchronisation."""
        torch._foreach_lerp_([*self.module.parameters()], [*net.parameters()], 1 - self.momentum)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)
