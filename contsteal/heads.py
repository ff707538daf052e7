"""Parts that methods and attacks share: projection heads, and a copy that follows a network."""

import copy
import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from contsteal import runs, tensorfiles


class Head(nn.Sequential):
    """Linear layers of `sizes` with ReLU, and batch norm (N, D) after all but the last."""

    def __init__(self, *sizes: int, norm: bool = True, last: bool = False) -> None:
        layers: list[nn.Module] = []
        for place, (a, b) in enumerate(pairwise(sizes), 2):
            final = place == len(sizes)
            normed = last if final else norm
            layers.append(nn.Linear(a, b, bias=not normed))
            layers += [nn.BatchNorm1d(b)] * normed + [nn.ReLU(inplace=True)] * (not final)
        super().__init__(*layers)
        self.spec = {"sizes": sizes, "norm": norm, "last": last}

    def write(self, path: Path) -> None:
        """Write the weights and how to build the head again, as safetensors."""
        state = {
            name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()
        }
        with runs.atomic(path) as partial:
            partial.write_bytes(save(state, metadata={"head": json.dumps(self.spec)}))


def read(path: Path) -> Head:
    """Return the head that `Head.write` wrote, in eval mode; CheckpointError for a damaged file."""
    state, header = tensorfiles.read_safetensors(path)
    spec = json.loads(header["head"])
    head = Head(*spec["sizes"], norm=spec["norm"], last=spec["last"])
    head.load_state_dict(state)
    return head.eval()


class Frozen(nn.Module):
    """A module that is used and not trained: no gradient for its weights, always in eval mode."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


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
