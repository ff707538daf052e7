"""Train a victim: any method of `methods` on the one training loop, monitored on held-out images."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from contsteal import checkpoints, encoders, evaluate, files, loop
from contsteal.methods import METHODS, Config, Head, Method, Momentum

READY = "ready"  # a method that trains nothing: the encoder comes from a hub or a file
COLLAPSED = 0.1  # a spread below it: nearly all embeddings point one way


class ImageSet(Protocol):
    """Images to train on, such as `data.ImageSet`: uint8 (N, 3, H, W), labels int64 (N,) or None."""

    images: Tensor
    labels: Tensor | None
    name: str
    split: str
    classes: tuple[str, ...]

    def __len__(self) -> int: ...
    def take(self, chosen: Tensor | slice) -> "ImageSet": ...


class Fitted(NamedTuple):
    """An encoder, its history per epoch, and the projector its loss was computed behind, if any."""

    encoder: encoders.Encoder
    history: list[loop.Row]
    projector: Head | None


def fit(config: Config, images: ImageSet, checkpoint: Path | None = None) -> Fitted:
    """Train an encoder; return it, in eval mode on the images' device, with history and projector.

    Up to `held_out` images (a tenth at most) are not trained on: kNN accuracy and spread of their
    embeddings are the monitor, so no choice is ever made on test data. Warns where the embeddings
    collapsed. Method "ready" reads `weights` and has no history. Errors: ValueError for an unknown
    method, data without labels, fewer images than a batch; loop.Diverged for a NaN loss.
    """
    origin(config)
    if config.method == READY:
        return Fitted(_ready(config).eval().to(images.images.device), [], None)
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
    return Fitted(model.eval().encoder, history, model.projector)


def _ready(config: Config) -> encoders.Encoder:
    given = {"pretrained": True} if config.weights == "timm" else {"weights": _file(config)}
    return encoders.build(
        config.encoder, config.image_size, width=config.width, inputs=config.inputs, **given
    )


def origin(config: Config) -> str | None:
    """Return what tells the weights of a ready encoder from others: "timm", or the file's sha256.

    None for an encoder that is trained. Errors: ValueError where `weights` and `method` do not fit,
    or for a file that is not there.
    """
    if config.method != READY and (config.weights or config.inputs):
        raise ValueError(
            f"weights={config.weights}, inputs={config.inputs}: method {config.method!r} trains its "
            f"own; set method: {READY} to take them"
        )
    if config.method != READY or config.weights == "timm":
        return config.weights
    if not config.weights or not _file(config).is_file():
        where = f" ({_file(config)} is none)" if config.weights else ""
        raise ValueError(
            f"weights={config.weights!r}{where}: method {READY!r} needs 'timm' or a file"
        )
    return files.sha256(_file(config))


def _file(config: Config) -> Path:
    """Return the file of weights."""
    return Path(config.weights).expanduser()


def build(config: Config, classes: int) -> Method:
    """Build a method around a fresh encoder, all weights drawn from the config's seed alone."""
    net = encoders.build(config.encoder, config.image_size, width=config.width, seed=config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return METHODS[config.method].build(net, config, classes)


def adopt(method: Method, trained: Fitted) -> None:
    """Put a trained encoder and its projector into a method, and into the copy that follows them.

    What a `Fitted` does not hold (predictors, a queue) stays fresh. Errors: ValueError for another
    architecture.
    """
    for own, given in ((method.encoder, trained.encoder), (method.projector, trained.projector)):
        if own is not None and given is not None:
            told = checkpoints.misfit(own.state_dict(), given.state_dict())
            if told:
                raise ValueError(f"the trained network does not fit {method.config}: {told}")
            own.load_state_dict(given.state_dict())
    for part in method.modules():
        if isinstance(part, Momentum):
            part.module.load_state_dict(method.online.state_dict())


def schedule(config: Config) -> loop.Schedule:
    """Return how long and how fast a config trains; ValueError for a method or value not known."""
    if config.method not in METHODS:
        known = ", ".join([*METHODS, READY])
        raise ValueError(f"unknown method {config.method!r}: choose one of {known}")
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
