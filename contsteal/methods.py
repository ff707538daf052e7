"""How a victim learns: four self-supervised methods and supervision.

A method is a module whose `loss` compares augmented views of a batch; only its `encoder` is kept
(and its projector, by the owner). A new one is a class here and a row in METHODS. [L] marks
settings of lightly's CIFAR-10 benchmark of ResNet-18.

In the comments B is the batch, P the projection's dimension, K the length of MoCo's queue.
"""

import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal import (
    Batch,
    Checked,
    Count,
    Natural,
    NotNegative,
    Positive,
    Seed,
    Share,
    augment,
    checkpoints,
    losses,
)
from contsteal.encoders import Encoder

Pair = tuple[Tensor, Tensor]  # of what a loss compares


@dataclass(frozen=True)
class Config(Checked):
    """How a victim is trained. [L] marks settings of lightly's CIFAR-10 benchmark of ResNet-18.

    Example:
        >>> Config("byol", "conv4", steps=4480, batch=128, optimizer="adamw", lr=1e-2).method
        'byol'
    """

    method: str = "simclr"  #: a name of METHODS, or "ready": nothing is trained
    encoder: str = "resnet18"  #: as `encoders.build` takes it
    width: Positive = 1.0  #: scales a ResNet's channels
    image_size: Count = 32  #: pixels
    epochs: Count = 200  #: [L]; 800 to 1,000 in the papers' tables; where `steps` is 0
    steps: Natural = 0  #: of the optimizer, however many the images
    batch: Batch = 512  #: images per step [L]
    optimizer: str = "sgd"  #: with momentum 0.9 [L], or "adamw"
    lr: Positive | None = None  #: at the peak; None: the recipe's, scaled to the batch
    weight_decay: NotNegative = 5e-4  #: [L]
    temperature: Positive | None = None  #: None: the method's, 0.5 for SimCLR and 0.1 for MoCo
    policy: str = "simclr"  #: the views of every method; SimSiam's on CIFAR (appendix D)
    hidden: Count | None = None  #: width of the heads' hidden layers; None: the method's
    projection: Count | None = None  #: dimension that the loss is computed in; None: the method's
    momentum: Share = 0.99  #: of the key or target encoder, MoCo and BYOL [L]
    queue: Count = 4096  #: MoCo's negatives [L]; 8,192 there at batch 512
    symmetric: bool = True  #: MoCo: each view is query and key once [L]
    key_groups: Count = 8  #: MoCo: parts of a batch of keys, each normalised by itself [L]
    held_out: Natural = 1024  #: training images kept for the monitor, at most a tenth of the set
    monitor_every: Count = 1  #: epochs between two measurements on them
    seed: Seed = 0  #: of first weights, order and views
    weights: str | None = None  #: of method "ready": "timm", or a file of weights
    inputs: dict[str, Any] | None = None  #: of such a file: mean, std, padding, relu


# ------------------------------------------------------------------------- heads and copies


class Head(nn.Sequential):
    """A multilayer perceptron (N, sizes[0]) -> (N, sizes[-1]) with ReLU between its linear layers.

    Args:
        sizes: the width of every layer.
        norm: batch norm after each hidden linear layer.
        last: batch norm after the last one too.
    """

    def __init__(self, *sizes: int, norm: bool = True, last: bool = False) -> None:
        layers: list[nn.Module] = []
        for place, (a, b) in enumerate(pairwise(sizes), 2):
            final = place == len(sizes)
            normed = last if final else norm
            layers.append(nn.Linear(a, b, bias=not normed))
            layers += [nn.BatchNorm1d(b)] * normed + [nn.ReLU(inplace=True)] * (not final)
        super().__init__(*layers)
        self.spec = {"sizes": sizes, "norm": norm, "last": last}

    def save(self, path: Path) -> None:
        """Write weights and architecture as safetensors."""
        checkpoints.write_sealed(path, self.state_dict(), head=self.spec)

    @staticmethod
    def load(path: Path) -> "Head":
        """Return the head that `save` wrote, in eval mode; CheckpointError for any other file."""
        state, facts = checkpoints.read_sealed(path, "head")
        head = Head(*facts["head"].pop("sizes"), **facts["head"])
        head.load_state_dict(state)
        return head.eval()


class Frozen(nn.Module):
    """A module that is used and not trained: no gradient for its weights, always in eval mode."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class Momentum(nn.Module):
    """A copy of a network that follows its weights: theta <- m theta + (1 - m) theta_net."""

    def __init__(self, net: nn.Module, momentum: float) -> None:
        super().__init__()
        self.module, self.momentum = copy.deepcopy(net).requires_grad_(False), momentum

    @torch.no_grad()
    def follow(self, net: nn.Module) -> None:
        """Move one step towards `net`, without a host synchronisation."""
        torch._foreach_lerp_([*self.module.parameters()], [*net.parameters()], 1 - self.momentum)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


# -------------------------------------------------------------------------------- methods


class Method(nn.Module):
    """What all methods share: an encoder with a head behind it, and two views of a batch.

    A subclass gives `loss`, and where it needs another projector, `head`.

    Args:
        encoder: what is kept after training.
        config: of the training.
        classes: of the labels, 0 where there are none.
    """

    hidden = 0  # default width of the heads; 0 is the encoder's dimension
    projection = 0  # default dimension that the loss is computed in
    lr = 0.06  # default learning rate at batch 128 [L]
    scaled = True  # whether it grows with the batch

    def __init__(self, encoder: Encoder, config: Config, classes: int) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        self.hidden = config.hidden or self.hidden or encoder.dim
        self.projection = config.projection or self.projection
        self.online = nn.Sequential(encoder, self.head(encoder.dim, self.hidden, self.projection))

    def head(self, dim: int, hidden: int, out: int) -> nn.Module:
        """Return the projector, from the encoder's `dim` over `hidden` to `out` dimensions."""
        return Head(dim, hidden, out, norm=False)

    def views(self, images: Tensor, labels: Tensor | None, draws: torch.Generator) -> Pair:
        """Return what `loss` compares: two float views (B, 3, H, W) of uint8 images (B, 3, H, W).

        Args:
            images: uint8 (B, 3, H, W).
            labels: (B,) or None.
            draws: CPU generator of the views.
        """
        one, two = augment.apply(self.config.policy, images.repeat(2, 1, 1, 1), draws).chunk(2)
        return one, two

    def loss(self, one: Tensor, two: Tensor, /) -> Tensor:
        """Return the loss of what `views` gives, a scalar."""
        raise NotImplementedError

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return self.loss(one, two)

    @property
    def encoder(self) -> Encoder:
        """The encoder that is kept."""
        return cast(Encoder, self.online[0])

    @property
    def projector(self) -> Head | None:
        """The head that the loss is computed behind; None where it is a classifier."""
        head = self.online[1]
        return head if isinstance(head, Head) else None


class SimCLR(Method):
    """SimCLR (Chen et al., ICML 2020): NT-Xent between two views, negatives from the batch."""

    projection = 128

    def loss(self, one: Tensor, two: Tensor) -> Tensor:
        z1, z2 = self.online(torch.cat([one, two])).chunk(2)  # (B, P), one batch norm over both
        return losses.info_nce(z1, z2, self.config.temperature or 0.5)


class MoCo(Method):
    """MoCo v2 (He et al., CVPR 2020; Chen et al., 2020): keys of a momentum encoder, and a queue.

    Keys pass in groups with batch statistics of their own, as [L]'s split batch norm: an encoder
    could otherwise recognise a key by the batch that it shares with its query. The queue starts with
    random directions.
    """

    projection = 128
    queue: Tensor
    next: Tensor

    def __init__(self, encoder: Encoder, config: Config, classes: int) -> None:
        super().__init__(encoder, config, classes)
        sent = config.batch * (2 if config.symmetric else 1)
        if config.queue < sent:
            raise ValueError(f"queue={config.queue}: it must hold the {sent} keys of a batch of "
                             f"{config.batch}")  # fmt: skip
        if config.batch % config.key_groups:
            raise ValueError(f"key_groups={config.key_groups}: it must divide batch={config.batch}")
        self.keys = Momentum(self.online, config.momentum)
        queue = F.normalize(torch.randn(config.queue, self.projection), dim=1)
        self.register_buffer("queue", queue)  # (K, P)
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))  # the oldest entry

    def loss(self, one: Tensor, two: Tensor) -> Tensor:
        self.keys.follow(self.online)
        pairs = [(one, two), (two, one)] if self.config.symmetric else [(one, two)]
        with torch.no_grad():
            keys = [self.encode(key) for _, key in pairs]  # (B, P) each
        terms = []
        for (query, _), k in zip(pairs, keys, strict=True):
            q = self.online(query)  # (B, P)
            terms.append(losses.moco(q, k, self.queue, self.config.temperature or 0.1))
        self.enqueue(torch.cat(keys))
        return torch.stack(terms).mean()

    def encode(self, views: Tensor) -> Tensor:
        """Return the keys (B, P) of views; every `key_groups`-th row shares its batch norm."""
        count = self.config.key_groups
        groups = [self.keys(views[k::count]) for k in range(count)]  # (B / count, P) each
        return torch.stack(groups, 1).flatten(0, 1)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest entries of the queue by these keys (B, P)."""
        at = (self.next + torch.arange(len(keys), device=keys.device)) % len(self.queue)  # (B,)
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
            z2, z1 = self.target(two), self.target(one)  # (B, P) each
        p1 = self.predictor(self.online(one))  # (B, P), predicts z2
        p2 = self.predictor(self.online(two))  # (B, P), predicts z1
        return (losses.cosine(p1, z2) + losses.cosine(p2, z1)) / 2


class SimSiam(Method):
    """SimSiam (Chen & He, CVPR 2021, Algorithm 1): predict the other view's projection, held still.

    Two projection layers, as on CIFAR (appendix D). The loss is 1 - cos.
    """

    hidden, projection = 2048, 2048
    scaled = False

    def __init__(self, encoder: Encoder, config: Config, classes: int) -> None:
        super().__init__(encoder, config, classes)
        self.predictor = Head(self.projection, max(self.projection // 4, 8), self.projection)

    def head(self, dim: int, hidden: int, out: int) -> nn.Module:
        return Head(dim, hidden, out, last=True)

    def loss(self, one: Tensor, two: Tensor) -> Tensor:
        z1, z2 = self.online(one), self.online(two)  # (B, P) each: a batch norm per view
        p1, p2 = self.predictor(z1), self.predictor(z2)  # (B, P) each
        z1, z2 = z1.detach(), z2.detach()  # else a constant would solve the loss
        return (losses.cosine(p1, z2) + losses.cosine(p2, z1)) / 2


class Supervised(Method):
    """Cross-entropy on labels: the ceiling for self-supervised victims."""

    def head(self, dim: int, hidden: int, out: int) -> nn.Module:
        return nn.Linear(dim, self.classes)

    def views(self, images: Tensor, labels: Tensor | None, draws: torch.Generator) -> Pair:
        """Return one view (B, 3, H, W), and the labels (B,)."""
        if labels is None:
            raise ValueError("method 'supervised' needs labels: choose another set or train_split")
        return augment.apply(self.config.policy, images, draws), labels.long()

    def loss(self, view: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.online(view).float(), labels)  # of logits (B, classes)


METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "simsiam": SimSiam,
    "supervised": Supervised,
}
