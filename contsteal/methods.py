"""How a victim learns: four self-supervised methods and supervision, each a module with one loss.

A method gets uint8 images (B, 3, H, W), labels or None, and a generator, and returns a batch's loss;
only its `encoder` is kept. [L] marks what lightly's CIFAR-10 benchmark of ResNet-18 uses.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from contsteal import augment, checkpoints, files, losses
from contsteal.encoders import Encoder


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
        with files.atomic(path) as partial:
            partial.write_bytes(save(state, metadata={"head": json.dumps(self.spec)}))


def read(path: Path) -> Head:
    """Return the head that `Head.write` wrote, in eval mode; CheckpointError for a damaged file."""
    state, header = checkpoints.read_safetensors(path)
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


@dataclass(frozen=True)
class Config:
    """What to train and how; `None` takes what the method's recipe says."""

    method: str = "simclr"
    encoder: str = "resnet18"
    width: float = 1.0
    image_size: int = 32
    epochs: int = 200  # [L]; 800 to 1,000 in the papers' tables
    batch: int = 512  # [L]
    optimizer: str = "sgd"  # with momentum 0.9 [L]
    lr: float | None = None  # the recipe's, scaled to the batch
    weight_decay: float = 5e-4  # [L]
    temperature: float | None = None
    policy: str = "simclr"  # SimSiam's on CIFAR (appendix D), for every method
    hidden: int | None = None  # width of the heads' hidden layers
    projection: int | None = None  # dimension that the loss is computed in
    momentum: float = 0.99  # of the key or target encoder, MoCo and BYOL [L]
    queue: int = 4096  # MoCo's negatives [L]; 8,192 there at batch 512
    symmetric: bool = True  # MoCo: each view is query and key once [L]
    key_groups: int = 8  # MoCo: parts of a batch of keys, each normalised by itself [L]
    held_out: int = 1024  # training images kept for the monitor, at most a tenth of the set
    monitor_every: int = 1  # epochs between two looks at them
    seed: int = 0
    weights: str | None = None  # of method "ready": "timm", or a file of weights
    inputs: dict[str, Any] | None = None  # of such a file: mean, std, padding, relu


class Recipe(NamedTuple):
    """A method's module, its learning rate at batch 128, and where both come from."""

    build: Callable[[Encoder, Config, int], "Method"]
    lr: float
    scaled: bool  # whether the learning rate grows with the batch
    source: str


class Method(nn.Module):
    """What all methods share: an encoder, a projector, and two views of a batch."""

    hidden = projection = 0  # defaults of the heads; 0 is the encoder's dimension

    def __init__(self, encoder: Encoder, config: Config, classes: int) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        self.hidden = config.hidden or self.hidden or encoder.dim
        self.projection = config.projection or self.projection
        head = self.head(encoder.dim, self.hidden, self.projection)
        self.online = nn.Sequential(encoder, head)

    @property
    def encoder(self) -> Encoder:
        """The encoder that is kept."""
        return self.online[0]

    @property
    def projector(self) -> Head | None:
        """The head that the loss is computed behind; None where it is a classifier."""
        return self.online[1] if isinstance(self.online[1], Head) else None

    @property
    def compared(self) -> nn.Module:
        """The network whose outputs the loss compares: what can collapse."""
        return self.online

    def head(self, dim: int, hidden: int, out: int) -> nn.Module:
        """Return the projector."""
        return Head(dim, hidden, out, norm=False)

    def project(self, x: Tensor) -> Tensor:
        """Return what the loss compares, (N, P), of views (N, 3, H, W)."""
        return self.online(x)

    def forward(self, images: Tensor, labels: Tensor | None, draws: torch.Generator) -> Tensor:
        """Return the loss of a batch, a scalar, from two augmented views of each image."""
        return self.loss(
            *augment.apply(self.config.policy, images.repeat(2, 1, 1, 1), draws).chunk(2)
        )

    def loss(self, one: Tensor, two: Tensor) -> Tensor:
        """Return the loss of two views (B, 3, H, W) of the same images."""
        raise NotImplementedError


class SimCLR(Method):
    """SimCLR (Chen et al., ICML 2020): NT-Xent between two views, negatives from the batch."""

    projection = 128

    def loss(self, one: Tensor, two: Tensor) -> Tensor:
        first, second = self.project(torch.cat([one, two])).chunk(2)  # one batch norm over 2B views
        return losses.info_nce(first, second, self.config.temperature or 0.5)


class MoCo(Method):
    """MoCo v2 (He et al., CVPR 2020; Chen et al., 2020): keys of a momentum encoder, and a queue.

    Keys pass in groups with batch statistics of their own, as [L]'s split batch norm: an encoder could
    else tell a key by the batch it shares with its query. The queue starts with random directions.
    """

    projection = 128

    def __init__(self, encoder: Encoder, config: Config, classes: int) -> None:
        super().__init__(encoder, config, classes)
        sent = config.batch * (2 if config.symmetric else 1)
        if config.queue < sent:
            raise ValueError(f"queue={config.queue}: it must hold the {sent} keys of a batch of "
                             f"{config.batch}")  # fmt: skip
        if config.key_groups < 1 or config.batch % config.key_groups:
            raise ValueError(f"key_groups={config.key_groups}: it must divide batch={config.batch}")
        self.keys = Momentum(self.online, config.momentum)
        keys = F.normalize(torch.randn(config.queue, self.projection), dim=1)
        self.register_buffer("queue", keys)
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def loss(self, one: Tensor, two: Tensor) -> Tensor:
        self.keys.follow(self.online)
        pairs = [(one, two), (two, one)] if self.config.symmetric else [(one, two)]
        with torch.no_grad():
            keys = [self.encode(key) for _, key in pairs]
        tau = self.config.temperature or 0.1
        terms = [
            losses.moco(self.project(view), key, self.queue, tau)
            for (view, _), key in zip(pairs, keys, strict=True)
        ]
        self.enqueue(torch.cat(keys))
        return torch.stack(terms).mean()

    def encode(self, views: Tensor) -> Tensor:
        """Return the keys (B, P) of views; every `key_groups`-th row shares its batch norm."""
        groups = [
            self.keys(views[k :: self.config.key_groups]) for k in range(self.config.key_groups)
        ]
        return torch.stack(groups, 1).flatten(0, 1)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest entries of the queue by these keys (B, P)."""
        at = (self.next + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[at] = F.normalize(keys.to(self.queue.dtype), dim=1)
        self.next.copy_((self.next + len(keys)) % len(self.queue))


class BYOL(Method):
    """BYOL (Grill et al., NeurIPS 2020): predict a momentum encoder's projection of the other view.

    The loss is 1 - cos, half of eq. 2, averaged over both directions.
    """

    hidden, projection = 1024, 256

    def __init__(self, encoder: Encoder, config: Config, classes: int) -> None:
        super().__init__(encoder, config, classes)
        self.predictor = Head(self.projection, self.hidden, self.projection)
        self.target = Momentum(self.online, config.momentum)

    def head(self, dim: int, hidden: int, out: int) -> nn.Module:
        return Head(dim, hidden, out)

    def loss(self, one: Tensor, two: Tensor) -> Tensor:
        self.target.follow(self.online)
        with torch.no_grad():
            goals = self.target(two), self.target(one)
        guesses = [self.predictor(self.project(view)) for view in (one, two)]
        return (losses.cosine(guesses[0], goals[0]) + losses.cosine(guesses[1], goals[1])) / 2


class SimSiam(Method):
    """SimSiam (Chen & He, CVPR 2021, Algorithm 1): predict the other view's projection, which is held
    still (stop-gradient). Two projection layers on CIFAR (appendix D). The loss is 1 - cos."""

    hidden, projection = 2048, 2048

    def __init__(self, encoder: Encoder, config: Config, classes: int) -> None:
        super().__init__(encoder, config, classes)
        self.predictor = Head(self.projection, max(self.projection // 4, 8), self.projection)

    def head(self, dim: int, hidden: int, out: int) -> nn.Module:
        return Head(dim, hidden, out, last=True)

    def loss(self, one: Tensor, two: Tensor) -> Tensor:
        z, w = self.project(one), self.project(two)  # a batch norm per view
        there = losses.cosine(self.predictor(z), self.still(w))
        back = losses.cosine(self.predictor(w), self.still(z))
        return (there + back) / 2

    def still(self, z: Tensor) -> Tensor:
        """Stop the gradient: without it the loss is solved by a constant."""
        return z.detach()


class Supervised(Method):
    """Cross-entropy on labels: the ceiling for self-supervised victims."""

    @property
    def compared(self) -> nn.Module:
        return self.encoder

    def head(self, dim: int, hidden: int, out: int) -> nn.Module:
        if not self.classes:
            raise ValueError("method 'supervised' needs a data set with labels: choose another set")
        return nn.Linear(dim, self.classes)

    def forward(self, images: Tensor, labels: Tensor | None, draws: torch.Generator) -> Tensor:
        views = augment.apply(self.config.policy, images, draws)
        return F.cross_entropy(self.project(views).float(), labels)


LIGHTLY = "lightly's CIFAR-10 benchmark"
METHODS: dict[str, Recipe] = {
    "simclr": Recipe(SimCLR, 0.06, True, LIGHTLY),
    "moco": Recipe(MoCo, 0.06, True, f"{LIGHTLY}, queue 4,096"),
    "byol": Recipe(BYOL, 0.06, True, LIGHTLY),
    "simsiam": Recipe(SimSiam, 0.06, False, LIGHTLY),
    "supervised": Recipe(Supervised, 0.06, True, "ours: as the others"),
}
