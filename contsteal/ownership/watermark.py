"""The rotation watermark: a victim that also learns which half-plane an image was turned into.

Dziedzic et al. (ICML 2022), section 5.1. The owner keeps a head on the raw features y; a stolen
encoder should have inherited the task, an independent one never learned it in these coordinates.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from contsteal import augment, encoders, loop, methods, pretrain
from contsteal.augment import rotate
from contsteal.methods import Head, Method
from contsteal.ownership import inference
from contsteal.ownership.inference import Verdict
from contsteal.pretrain import ImageSet
from contsteal.seeds import derive, generator

TEST = "rotation watermark"


@dataclass(frozen=True)
class Config:
    """Whose training is watermarked, and how.

    The published code never gives the head to the optimizer: with `trained_head=False` the encoder
    alone is tuned to a head that stays random.
    """

    victim: methods.Config = field(default_factory=methods.Config)
    trained_head: bool = True
    weight: float = 1.0  # of the rotation task; the paper alternates epochs of the two tasks
    hidden: tuple[int, ...] = (256, 128)  # the code's; the paper says "two-layer"


@dataclass(frozen=True)
class Mark:
    """What the owner keeps in secret: a head (N, D) -> (N, 2), and what it reads."""

    head: nn.Module
    dim: int
    trained_head: bool


@dataclass(frozen=True)
class Watermarked:
    """A watermarked victim, its mark, and one row per epoch with the mark's rate on held-out images."""

    encoder: encoders.Encoder
    mark: Mark
    history: list[loop.Row]
    projector: Head | None = None


class Marked(nn.Module):
    """A self-supervised method with the rotation task beside it: loss = method + weight x rotation.

    Two deviations: both tasks share each step, where the published code alternates whole epochs; and a
    mark that is `tuned` into a victim is read in eval mode, as at the test, so that the running averages
    of batch norm stay those of the method's views. Else they average over turned images too, as there.
    """

    def __init__(self, method: Method, config: Config, tuned: bool = False) -> None:
        super().__init__()
        self.tuned = tuned
        if not 0 <= config.weight < float("inf"):
            raise ValueError(f"weight={config.weight}: it must be finite, and 0 or above")
        self.method, self.weight = method, config.weight
        self.head = Head(method.encoder.dim, *config.hidden, 2, norm=False)
        self.head.requires_grad_(config.trained_head)

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None,
        draws: torch.Generator,
        turns: torch.Generator,
        carriers: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of uint8 images (B, 3, H, W); views and angles have generators of their own.

        The rotation task is that of the images too, or of as many `carriers`, drawn from (N, 3, H, W).
        """
        turned = images
        if carriers is not None:
            turned = carriers[torch.randint(len(carriers), (len(images),), generator=turns)]
        return self.method(images, labels, draws) + self.weight * self.rotation(turned, turns)

    def rotation(self, images: Tensor, turns: torch.Generator) -> Tensor:
        """Return the cross-entropy of the head on both turns of each image."""
        with torch.autocast(images.device.type, enabled=False):
            turned = halves(augment.to_float(images), turns)
        with encoders.evaluating(self.method.encoder) if self.tuned else nullcontext():
            logits = self.head(self.method.encoder(turned)).float()
        return F.cross_entropy(logits, which(len(images)).to(logits.device))


def halves(images: Tensor, draws: torch.Generator) -> Tensor:
    """Turn each image by U[0, 180) degrees, then each by U[180, 360): (N, 3, H, H) to (2N, 3, H, H)."""
    angle = 180 * torch.rand(2, len(images), generator=draws)
    angle[1] += 180
    return rotate(images.repeat(2, 1, 1, 1), angle.flatten())


def which(n: int) -> Tensor:
    """Return the half of each of the 2N images of `halves`: N times 0, N times 1."""
    return torch.arange(2).repeat_interleave(n)


def fit(
    config: Config,
    images: ImageSet,
    checkpoint: Path | None = None,
    start: pretrain.Fitted | None = None,
    carriers: Tensor | None = None,
) -> Watermarked:
    """Train a watermarked victim on the images that `pretrain.fit` would train it on, with its views.

    With `start`, a trained victim, the mark is tuned into a copy of it. Turned are the training images,
    as in the paper, or the owner's own `carriers` (N, 3, H, W). The rate per epoch ("wsr") is over the
    images, or carriers, that `held_out` keeps from training. Errors: ValueError as `pretrain.fit`'s,
    and for a weight below 0; loop.Diverged for a NaN loss.
    """
    victim, schedule = config.victim, pretrain.schedule(config.victim)
    held = min(victim.held_out, len(images) // 10)
    kept, watched = images.take(slice(held, None)), images.images[:held]
    if carriers is not None:
        held = min(victim.held_out, len(carriers) // 10)
        watched, carriers = carriers[:held], carriers[held:]
    model = build(config, len(images.classes) if images.labels is not None else 0, start)
    model = model.to(images.images.device)
    mark = Mark(model.head, model.method.encoder.dim, config.trained_head)
    turns = lru_cache(maxsize=1)(lambda epoch: generator("rotation", victim.seed, epoch))

    def loss(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        labels = None if kept.labels is None else kept.labels[chosen]
        return model(kept.images[chosen], labels, draws, turns(epoch), carriers)

    history = loop.fit(
        model, loss, len(kept), schedule, seed=victim.seed, checkpoint=checkpoint,
        after_epoch=_monitor(mark, model.method, watched) if held else None,
        title=f"watermarked {victim.method} {victim.encoder}",
        identity=f"{config!r} {start and encoders.identity(start.encoder)}",
    )  # fmt: skip
    model.head.requires_grad_(False)
    return Watermarked(model.method.encoder.eval(), mark, history, model.method.projector)


def build(config: Config, classes: int, start: pretrain.Fitted | None = None) -> Marked:
    """Build the victim exactly as `pretrain.build` does, and a head drawn from the same seed."""
    method = pretrain.build(config.victim, classes)
    if start:
        pretrain.adopt(method, start)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive("watermark head", config.victim.seed))
        return Marked(method, config, start is not None)


def _monitor(mark: Mark, method: Method, images: Tensor) -> Callable[[int], loop.Row]:
    """Return what measures the mark's rate on held-out images after an epoch."""

    def look(epoch: int) -> loop.Row:
        return {"wsr": rate(mark, method.encoder, images)}

    return look


# --------------------------------------------------------------------------- verification


def questions(images: Tensor, seed: int = 0) -> Tensor:
    """Return the uint8 images (2N, 3, H, H) that an owner sends to a suspect: both turns of each."""
    turned = halves(augment.to_float(images), generator("questions", seed))
    return augment.to_uint8(turned)


@torch.no_grad()
def success(mark: Mark, answers: Tensor) -> Tensor:
    """Return which answers (2N, D) to `questions` the head reads rightly: 0 or 1, float64 (2N,).

    Errors: ValueError for another dimension than the victim's, or an odd number of answers.
    """
    inference.same_dimension(answers, mark.dim, TEST)
    if not len(answers) or len(answers) % 2:
        raise ValueError(f"{len(answers)} answers: give those to both turns of each image")
    device = next(mark.head.parameters()).device
    read = mark.head(answers.to(device, torch.float32)).argmax(1).cpu()
    return (read == which(len(answers) // 2)).double()


@torch.no_grad()
def ranked(mark: Mark, answers: Tensor) -> Verdict:
    """Test answers (2N, D) to `questions` by the order of the head's margins, not by their sign.

    A surrogate whose features are shifted is read as one half throughout, at a rate of 1/2; the order
    survives. `measure` is the area under the ROC curve, H0 that it is at most 1/2 (Mann and Whitney,
    1947). Errors: as `success`'s.
    """
    success(mark, answers)  # refuses what the head cannot read
    logits = mark.head(answers.to(next(mark.head.parameters()).device, torch.float32)).cpu()
    one, two = (logits[:, 1] - logits[:, 0]).chunk(2)
    found, n = stats.mannwhitneyu(two.numpy(), one.numpy(), alternative="greater"), len(answers)
    area = float(found.statistic) / (n / 2) ** 2
    return Verdict(f"{TEST} by rank", area, found.statistic, float(found.pvalue), area - 0.5, n)


def rate(mark: Mark, suspect: nn.Module, images: Tensor, seed: int = 0) -> float:
    """Return the watermark success rate of a suspect in [0, 1]; chance is 1/2."""
    return success(mark, encoders.embed(suspect, questions(images, seed))).mean().item()


def verify(
    mark: Mark,
    suspect: nn.Module,
    images: Tensor,
    *,
    controls: Sequence[nn.Module] = (),
    seed: int = 0,
) -> Verdict:
    """Test a suspect's watermark success rate on images (N, 3, H, H), the victim's training images.

    Without controls H0 is a rate of at most 1/2, by the exact binomial test over 2N answers: an
    independent encoder may depart from 1/2 too, if the head happens to lean that way in its
    coordinates. With two or more independent `controls` H0 is that the suspect's rate is one of
    theirs (`ownership.against_controls`). The paper's own test (table 5) is
    `ownership.welch(success(mark, suspect), success(mark, control))` on answers to `questions`.
    Errors: ValueError for a suspect of another dimension, saying which test applies instead.
    """
    found = success(mark, encoders.embed(suspect, questions(images, seed)))
    if controls:
        rates = [rate(mark, control, images, seed) for control in controls]
        return inference.against_controls(found.mean().item(), rates, f"{TEST} against controls")
    return against_chance(found)


def against_chance(right: Tensor) -> Verdict:
    """Test what `success` returns, (2N,), against a rate of at most 1/2, by the exact binomial test."""
    share, n = right.mean().item(), len(right)
    p_value = float(stats.binomtest(int(right.sum()), n, alternative="greater").pvalue)
    z = (share - 0.5) * 2 * n**0.5
    return Verdict(f"{TEST} against chance", share, z, p_value, share - 0.5, n)
