"""Train a victim: any method of `methods` on the one training loop, monitored on held-out images."""

import warnings
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from contsteal import checkpoints, choice, encoders, evaluate, files, loop
from contsteal.methods import METHODS, Config, Head, Method, Momentum

READY = "ready"  # a method that trains nothing: the encoder comes from a hub or a file
COLLAPSED = 0.1  # a spread below it: nearly all embeddings point one way


class ImageSet(Protocol):
    """Images to train on, such as `data.ImageSet`."""

    @property
    def images(self) -> Tensor: ...  # uint8 (N, 3, H, W)
    @property
    def labels(self) -> Tensor | None: ...  # int64 (N,)
    @property
    def classes(self) -> tuple[str, ...]: ...
    def take(self, chosen: slice) -> "ImageSet": ...


class Fitted(NamedTuple):
    """An encoder, its history per epoch, and the projector its loss was computed behind, if any."""

    encoder: encoders.Encoder
    history: list[loop.Row]
    projector: Head | None


def train(config: Config, images: ImageSet, checkpoint: Path | None = None) -> encoders.Encoder:
    """Train an encoder as `fit` does and return it alone.

    Args:
        config: what to train and how.
        images: uint8 (N, 3, H, W), such as a `data.ImageSet`.
        checkpoint: a file to resume from and to save to; None saves nothing.

    Returns:
        The encoder in eval mode, on the images' device.

    Raises:
        ValueError: for an unknown method, missing labels, or fewer images than a batch.
        loop.Diverged: for a NaN loss.

    Example:
        >>> from contsteal import data
        >>> config = Config("simclr", "conv4", steps=2, batch=16, optimizer="adamw", lr=1e-2)
        >>> train(config, data.load("shapes", n=64)).dim
        128
    """
    return fit(config, images, checkpoint).encoder


def fit(config: Config, images: ImageSet, checkpoint: Path | None = None) -> Fitted:
    """Train an encoder on images, without those that its monitor needs.

    Up to `held_out` images (at most a tenth) are not trained on: the history has kNN accuracy and
    spread of their embeddings, so that no choice is ever made on test data. Warns of a collapse.

    Args:
        config: what to train; method "ready" reads `weights` and trains nothing.
        images: uint8 (N, 3, H, W), with labels for the monitor's kNN and for supervision.
        checkpoint: as in `loop.fit`.

    Returns:
        The encoder in eval mode, on the images' device, with history and projector.

    Raises:
        ValueError: for an unknown method, missing labels, or fewer images than a batch.
        loop.Diverged: for a NaN loss.

    Example:
        >>> from contsteal import data
        >>> fitted = fit(Config("simclr", "conv4", steps=2, batch=16), data.load("shapes", n=64))
        >>> fitted.encoder.dim, len(fitted.history)
        (128, 1)
    """
    origin(config)
    if not hasattr(images, "images"):
        kind = type(images).__name__
        raise ValueError(f"images of kind {kind}: an ImageSet is needed, as data.load returns")
    encoders.check_images(images.images)
    device = images.images.device
    if config.method == READY:
        return Fitted(ready(config).to(device), [], None)
    plan = schedule(config)
    if images.labels is not None:
        count = len(images.classes) if config.method == "supervised" else evaluate.MOST_CLASSES
        evaluate.classes(images.labels, len(images.images), count)
    held = min(config.held_out, len(images.images) // 10)
    kept, watched = images.take(slice(held, None)), images.take(slice(held))
    model = build(config, len(images.classes)).to(device)
    history = _learn(model, plan, kept, watched, loop.checkpoint_file(checkpoint))
    if history[-1].get("spread", 1.0) < COLLAPSED:
        warnings.warn(f"{config.method} collapsed: its embeddings have a spread of "
                      f"{history[-1]['spread']:.3f}; lower the learning rate", stacklevel=2)  # fmt: skip
    return Fitted(model.encoder, history, model.projector)


def ready(config: Config) -> encoders.Encoder:
    """Return the encoder of method "ready", in eval mode, with weights of timm's hub or of a file.

    Raises:
        ValueError, checkpoints.CheckpointError, encoders.DownloadError: those of `encoders.build`.
    """
    file = None if config.weights == "timm" else Path(config.weights or "").expanduser()
    return encoders.build(
        config.encoder, config.image_size, width=config.width, inputs=config.inputs,
        pretrained=file is None, weights=file,
    ).eval()  # fmt: skip


def _learn(
    model: Method, plan: loop.Schedule, kept: ImageSet, watched: ImageSet, checkpoint: Path | None
) -> list[loop.Row]:
    """Train a method on images and return its history: by compiled steps where they pay, or together
    with other processes."""
    config, device, count = model.config, kept.images.device, len(kept.images)
    last = ceil(plan.total(count) / plan.check(count))  # epoch
    step, steps = (share(model), 0) if loop.several() else (model.loss, plan.total(count))
    with loop.compiled(step, device, steps) as compare:

        def loss(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
            labels = None if kept.labels is None else kept.labels[chosen]
            return compare(*model.views(kept.images[chosen], labels, draws))

        return loop.fit(
            model, loss, count, plan, seed=config.seed, checkpoint=checkpoint,
            after_epoch=_monitor(model, watched, kept, last) if len(watched.images) > 1 else None,
            title=f"{config.method} {config.encoder}", identity=repr(config),
        )  # fmt: skip


def schedule(config: Config) -> loop.Schedule:
    """Return how long and how fast a config trains; ValueError for a method or value not known."""
    choice(config.method, "method", [*METHODS, READY])
    method = METHODS[config.method]
    lr = config.lr or method.lr * (config.batch / 128 if method.scaled else 1)
    return loop.Schedule(
        config.epochs, config.batch, lr, config.weight_decay, optimizer=config.optimizer,
        steps=config.steps,
    )  # fmt: skip


def build(config: Config, classes: int) -> Method:
    """Build a method around a fresh encoder, all weights drawn from the config's seed alone."""
    net = encoders.build(config.encoder, config.image_size, width=config.width, seed=config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return METHODS[config.method](net, config, classes)


def adopt(method: Method, trained: Fitted) -> None:
    """Put a trained encoder and its projector into a method, and into the copy that follows them.

    What a `Fitted` does not hold (predictors, a queue) stays fresh.

    Raises:
        ValueError: for another architecture.
    """
    for ours, given in [(method.encoder, trained.encoder), (method.projector, trained.projector)]:
        if ours is None or given is None:
            continue
        if problem := checkpoints.misfit(ours.state_dict(), given.state_dict()):
            raise ValueError(f"the trained network does not fit {method.config}: {problem}")
        ours.load_state_dict(given.state_dict())
    for part in method.modules():
        if isinstance(part, Momentum):
            part.module.load_state_dict(method.online.state_dict())


def _monitor(model: Method, held: ImageSet, kept: ImageSet, last: int) -> Callable[[int], loop.Row]:
    """Return what measures held-out images after every `monitor_every`-th epoch, and the last."""
    config, bank = model.config, kept.take(slice(4096))
    compared = model.online if model.projector else model.encoder  # by the loss: what can collapse

    def measure(epoch: int) -> loop.Row:
        if (epoch + 1) % config.monitor_every and epoch + 1 < last:
            return {}
        row = {"spread": evaluate.spread(encoders.embed(compared, held.images))}
        if held.labels is None or bank.labels is None:
            return row
        x, y = (encoders.embed(model.encoder, part.images) for part in (bank, held))
        return row | {"knn": evaluate.knn(x, bank.labels, y, held.labels, k=50).accuracy}

    return measure


# ------------------------------------------------------------------------- several processes


def share(model: Method) -> DistributedDataParallel:
    """Let each process run the networks on its rows of a batch, and the loss on the rows of all.

    Every process is given the views of the whole batch, as a single one is, and gathers the outputs of
    all with their gradients. Batch norm is over the whole batch, too: torch's on GPUs; on a CPU, where
    that does not exist, every layer gathers its input.

    Raises:
        ValueError: where the processes cannot share a batch evenly.
    """
    _own_rows(torch.empty(model.config.batch))
    copies = [part.module for part in model.modules() if isinstance(part, Momentum)]
    for net in (model.online, *copies):
        if next(net.parameters()).is_cuda:
            nn.SyncBatchNorm.convert_sync_batchnorm(net)
        else:
            for layer in net.modules():
                if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    _hook(layer, _AllRows.apply, _own_rows)
        _hook(net, _own_rows, _AllRows.apply)
    return DistributedDataParallel(model)


def _hook(
    net: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]
) -> None:
    net.register_forward_pre_hook(lambda net, x: before(x[0]) if net.training else None)
    net.register_forward_hook(lambda net, _, y: after(y) if net.training else None)


def _own_rows(x: Tensor) -> Tensor:
    count, rows = dist.get_world_size(), len(x)
    if rows % count:
        raise ValueError(f"{count} processes cannot share {rows} rows of a batch evenly: choose a "
                         "number of processes, or a batch, that fits")  # fmt: skip
    return x.narrow(0, dist.get_rank() * rows // count, rows // count)


class _AllRows(torch.autograd.Function):
    """The rows of all processes; backward sums their gradients, of which torch then takes the mean."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> Tensor:
        up = up.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(up)
        return _own_rows(up)


# --------------------------------------------------------------------- encoders of others


def origin(config: Config) -> str | None:
    """Return what identifies the weights of a ready encoder: "timm", or its file's sha256.

    None for an encoder that is trained.

    Raises:
        ValueError: where `weights` and `method` do not fit, or the file does not exist.
    """
    if config.method != READY and (config.weights or config.inputs):
        given = f"weights={config.weights}, inputs={config.inputs}: method {config.method!r}"
        raise ValueError(f"{given} trains its own weights; leave both out")
    if config.method != READY or config.weights == "timm":
        return config.weights
    path = Path(config.weights or "").expanduser()
    if not path.is_file():
        raise ValueError(f"weights={config.weights!r} is no file: {READY!r} needs one, or 'timm'")
    return files.sha256(path)
