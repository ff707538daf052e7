"""Train a victim: a self-supervised or supervised method on one common loop."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal import augment, encoders, evaluate, loop, losses
from contsteal.data import ImageSet


@dataclass(frozen=True)
class Config:
    """What to train and how; the defaults are SimCLR's CIFAR recipe (Chen et al., 2020, app. B.9)
    with AdamW in the place of LARS."""

    method: str = "simclr"
    encoder: str = "resnet18"
    width: float = 1.0
    image_size: int = 32
    epochs: int = 100
    batch: int = 512
    lr: float = 1e-3
    weight_decay: float = 1e-4
    temperature: float = 0.5
    policy: str = "simclr"
    projection: int = 128
    held_out: int = 1024  # training images kept for the kNN monitor, at most a tenth of the set
    monitor_every: int = 5  # epochs between two kNN values
    seed: int = 0


class SimCLR(nn.Module):
    """SimCLR (Chen et al., ICML 2020): NT-Xent between two views, on a two-layer projection."""

    def __init__(self, encoder: encoders.Encoder, config: Config, classes: int) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.projector = nn.Sequential(
            nn.Linear(encoder.dim, encoder.dim),
            nn.ReLU(inplace=True),
            nn.Linear(encoder.dim, config.projection),
        )

    def forward(self, images: Tensor, labels: Tensor | None, draws: torch.Generator) -> Tensor:
        views = augment.apply(self.config.policy, images.repeat(2, 1, 1, 1), draws)  # (2B, 3, H, W)
        first, second = self.projector(self.encoder(views)).chunk(2)  # (B, projection) each
        return losses.info_nce(first, second, self.config.temperature)


class Supervised(nn.Module):
    """Cross-entropy on labels: the ceiling that self-supervised victims are measured against."""

    def __init__(self, encoder: encoders.Encoder, config: Config, classes: int) -> None:
        super().__init__()
        if not classes:
            raise ValueError("method 'supervised' needs a data set with labels: choose another set")
        self.encoder, self.config = encoder, config
        self.head = nn.Linear(encoder.dim, classes)

    def forward(self, images: Tensor, labels: Tensor | None, draws: torch.Generator) -> Tensor:
        views = augment.apply(self.config.policy, images, draws)
        return F.cross_entropy(self.head(self.encoder(views)).float(), labels)


METHODS: dict[str, Callable[..., nn.Module]] = {"simclr": SimCLR, "supervised": Supervised}


def fit(
    config: Config, images: ImageSet, checkpoint: Path | None = None
) -> tuple[encoders.Encoder, list[loop.Row]]:
    """Train an encoder; return it, in eval mode on the images' device, with its history per epoch.

    Up to `held_out` images (a tenth at most) are not trained on: kNN accuracy and spread of their
    embeddings are the monitor, so no choice is ever made on test data. Errors: ValueError for an
    unknown method, data without labels, fewer images than a batch; loop.Diverged for a NaN loss.
    """
    if config.method not in METHODS:
        raise ValueError(f"unknown method {config.method!r}: choose one of {', '.join(METHODS)}")
    if config.monitor_every < 1 or config.held_out < 0:
        raise ValueError(f"{config}: monitor_every must be >= 1 and held_out >= 0")
    held = min(config.held_out, len(images) // 10)
    kept = images.take(slice(held, None))
    net = encoders.build(config.encoder, config.image_size, width=config.width, seed=config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = METHODS[config.method](net, config, len(images.classes)).to(images.images.device)

    def loss(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        labels = None if kept.labels is None else kept.labels[chosen]
        return model(kept.images[chosen], labels, draws)

    def monitor(epoch: int) -> loop.Row:
        due = (epoch + 1) % config.monitor_every == 0 or epoch + 1 == config.epochs
        return _monitor(net, images.take(slice(held)), kept) if due and held else {}

    schedule = loop.Schedule(config.epochs, config.batch, config.lr, config.weight_decay)
    history = loop.fit(
        model,
        loss,
        len(kept),
        schedule,
        seed=config.seed,
        checkpoint=checkpoint,
        after_epoch=monitor,
        title=f"{config.method} {config.encoder}",
        identity=repr(config),
    )
    return net.eval(), history


def _monitor(net: encoders.Encoder, held: ImageSet, kept: ImageSet) -> loop.Row:
    x = encoders.embed(net, held.images)
    row = {"spread": evaluate.spread(x)}
    if held.labels is None:
        return row
    bank = kept.take(slice(4096))
    vote = evaluate.knn(encoders.embed(net, bank.images), bank.labels, x, held.labels, k=50)
    return row | {"knn": vote.accuracy}


def train(config: Config, images: ImageSet, checkpoint: Path | None = None) -> encoders.Encoder:
    """Train an encoder as `fit` does and return it alone."""
    return fit(config, images, checkpoint)[0]
