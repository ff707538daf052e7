"""Train a victim: any method of `methods` on the one training loop, monitored on held-out images."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from contsteal import encoders, evaluate, loop
from contsteal.data import ImageSet
from contsteal.methods import METHODS, Config, Method

__all__ = ["METHODS", "Config", "fit", "schedule", "train"]
COLLAPSED = 0.1  # a spread below it: nearly all embeddings point one way


def fit(
    config: Config, images: ImageSet, checkpoint: Path | None = None
) -> tuple[encoders.Encoder, list[loop.Row]]:
    """Train an encoder; return it, in eval mode on the images' device, with its history per epoch.

    Up to `held_out` images (a tenth at most) are not trained on: kNN accuracy and spread of their
    embeddings are the monitor, so no choice is ever made on test data. Warns where the embeddings
    collapsed. Errors: ValueError for an unknown method, data without labels, fewer images than a
    batch; loop.Diverged for a NaN loss.
    """
    plan = schedule(config)
    held = min(config.held_out, len(images) // 10)
    kept, watched = images.take(slice(held, None)), images.take(slice(held))
    if config.method == "supervised" and images.labels is None:
        raise ValueError(
            f"method 'supervised' needs labels, {images.name} has none in its split "
            f"{images.split!r}: choose another method, data set or train_split"
        )
    model = build(config, len(images.classes)).to(images.images.device)

    def loss(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        labels = None if kept.labels is None else kept.labels[chosen]
        return model(kept.images[chosen], labels, draws)

    history = loop.fit(
        model, loss, len(kept), plan, seed=config.seed, checkpoint=checkpoint,
        after_epoch=_monitor(model, watched, kept) if held > 1 else None,
        title=f"{config.method} {config.encoder}", identity=repr(config),
    )  # fmt: skip
    if history[-1].get("spread", 1.0) < COLLAPSED:
        warnings.warn(f"{config.method} collapsed: its embeddings have a spread of "
                      f"{history[-1]['spread']:.3f}; lower the learning rate", stacklevel=2)  # fmt: skip
    return model.encoder.eval(), history


def build(config: Config, classes: int) -> Method:
    """Build a method around a fresh encoder, all weights drawn from the config's seed alone."""
    net = encoders.build(config.encoder, config.image_size, width=config.width, seed=config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return METHODS[config.method].build(net, config, classes)


def schedule(config: Config) -> loop.Schedule:
    """Return how long and how fast a config trains; ValueError for a method or value not known."""
    if config.method not in METHODS:
        raise ValueError(f"unknown method {config.method!r}: choose one of {', '.join(METHODS)}")
    if config.monitor_every < 1 or config.held_out < 0:
        raise ValueError(f"{config}: monitor_every must be >= 1 and held_out >= 0")
    recipe = METHODS[config.method]
    lr = recipe.lr * (config.batch / 128 if recipe.scaled else 1)
    lr = lr if config.lr is None else config.lr
    return loop.Schedule(
        config.epochs, config.batch, lr, config.weight_decay, optimizer=config.optimizer
    )


def _monitor(model: Method, held: ImageSet, kept: ImageSet) -> Callable[[int], loop.Row]:
    """Return what looks at held-out images after every `monitor_every`-th epoch, and the last."""
    config, bank = model.config, kept.take(slice(4096))

    def look(epoch: int) -> loop.Row:
        if (epoch + 1) % config.monitor_every and epoch + 1 < config.epochs:
            return {}
        row = {"spread": evaluate.spread(encoders.embed(model.compared, held.images))}
        if held.labels is None:
            return row
        x, y = (encoders.embed(model.encoder, part.images) for part in (bank, held))
        vote = evaluate.knn(x, bank.labels, y, held.labels, k=50)
        return row | {"knn": vote.accuracy}

    return look


def train(config: Config, images: ImageSet, checkpoint: Path | None = None) -> encoders.Encoder:
    """Train an encoder as `fit` does and return it alone."""
    return fit(config, images, checkpoint)[0]
