"""The rotation watermark: the victim also learns into which half-plane an image was turned.

Dziedzic et al. (ICML 2022), section 5.1. The owner keeps a head on the raw features y. A stolen encoder
should have inherited the task; an independent one never learned it in these coordinates.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal import Checked, Count, NotNegative, augment, encoders, loop, pretrain
from contsteal.augment import rotate
from contsteal.methods import Head, Method
from contsteal.ownership.inference import Verdict, check_answers
from contsteal.pretrain import ImageSet
from contsteal.seeds import derive, generator

TEST = "rotation watermark"


@dataclass(frozen=True)
class Config(Checked):
    """Whose training is watermarked, and how.

    The published code never gives the head to the optimizer: with `trained_head=False` the encoder alone
    is tuned to a head that stays random.
    """

    victim: pretrain.Config = field(default_factory=pretrain.Config)
    trained_head: bool = True
    weight: NotNegative = 1.0  #: of the rotation task; the paper alternates epochs of the two tasks
    hidden: tuple[Count, ...] = (256, 128)  #: the code's; the paper says "two-layer"


@dataclass(frozen=True)
class Mark:
    """What the owner keeps secret: a head (N, `dim`) -> (N, 2)."""

    head: nn.Module
    dim: int


@dataclass(frozen=True)
class Watermarked:
    """A watermarked victim, its mark, and one row per epoch with the mark's rate on held-out images."""

    encoder: encoders.Encoder
    mark: Mark
    history: list[loop.Row]
    projector: Head | None = None


class WatermarkedMethod(nn.Module):
    """A method of victim training with the rotation task beside it: loss = method + weight x rotation.

    Two deviations from the published code: both tasks share each step, where it alternates whole epochs.
    And where the mark is `tuned` into a trained victim, the encoder reads turned images in eval mode, as
    at the test, so that the running averages of batch norm stay those of the method's views.
    """

    def __init__(self, method: Method, config: Config, tuned: bool = False) -> None:
        super().__init__()
        self.method, self.weight, self.tuned = method, config.weight, tuned
        self.head = Head(method.encoder.dim, *config.hidden, 2, norm=False)
        self.head.requires_grad_(config.trained_head)

    def forward(
        self, images: Tensor, labels: Tensor | None, draws: torch.Generator, angles: torch.Generator,
        carriers: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the loss of uint8 images (B, 3, H, W); views and angles have their own generators.

        The rotation task takes the images too, or as many drawn from `carriers` (N, 3, H, W).
        """
        turned = images
        if carriers is not None:
            turned = carriers[torch.randint(len(carriers), (len(images),), generator=angles)]
        loss = self.method(*self.method.views(images, labels, draws))
        return loss + self.weight * self.rotation(turned, angles)

    def rotation(self, images: Tensor, angles: torch.Generator) -> Tensor:
        """Return the cross-entropy of the head on both turns of uint8 images (B, 3, H, W)."""
        with torch.autocast(images.device.type, enabled=False):
            turned = turn(augment.to_float(images), angles)  # (2B, 3, H, W)
        with encoders.evaluating(self.method.encoder) if self.tuned else nullcontext():
            logits = self.head(self.method.encoder(turned)).float()  # (2B, 2)
        return F.cross_entropy(logits, half_planes(len(images)).to(logits.device))


def turn(images: Tensor, draws: torch.Generator) -> Tensor:
    """Turn images (N, 3, H, H) by U[0, 180) degrees and by U[180, 360): (2N, 3, H, H), in this order."""
    angle = 180 * torch.rand(2, len(images), generator=draws)
    angle[1] += 180
    return rotate(images.repeat(2, 1, 1, 1), angle.flatten())


def half_planes(n: int) -> Tensor:
    """Return the half-plane, 0 or 1, of each of the 2N images that `turn` makes."""
    return torch.arange(2).repeat_interleave(n)


def fit(
    config: Config, images: ImageSet, checkpoint: Path | None = None,
    start: pretrain.Fitted | None = None, carriers: Tensor | None = None,
) -> Watermarked:  # fmt: skip
    """Train a watermarked victim on the images and views that `pretrain.fit` would train it on.

    Args:
        config: of victim and watermark.
        images: the training set; a tenth at most is held out for the rate per epoch, "wsr".
        checkpoint: where a killed run continues.
        start: a trained victim; the mark is tuned into a copy of it.
        carriers: the owner's images to turn, uint8 (N, 3, H, W), in place of the training images, which
            are the paper's choice. The rate is then over held-out carriers.

    Returns:
        The watermarked victim, the owner's mark, and one row per epoch.

    Raises:
        ValueError: as `pretrain.fit` does, and for a negative weight.
        loop.Diverged: for a NaN loss.

    Example:
        >>> from contsteal import data
        >>> images = data.load("shapes", n=64)
        >>> config = Config(pretrain.Config("simclr", "conv4", steps=2, batch=16))
        >>> owned = fit(config, images)
        >>> verify(owned.mark, owned.encoder, images.images).samples
        128
    """
    victim, schedule = config.victim, pretrain.schedule(config.victim)
    held = min(victim.held_out, len(images.images) // 10)
    kept, watched = images.take(slice(held, None)), images.images[:held]
    if carriers is not None:
        held = min(victim.held_out, len(carriers) // 10)
        watched, carriers = carriers[:held], carriers[held:]
    model = build(config, len(images.classes) if images.labels is not None else 0, start)
    model = model.to(images.images.device)
    mark = Mark(model.head, model.method.encoder.dim)

    @lru_cache(maxsize=1)  # the steps of an epoch draw from one generator, one after the other
    def angles(epoch: int) -> torch.Generator:
        return generator("rotation", victim.seed, epoch)

    def loss(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        labels = None if kept.labels is None else kept.labels[chosen]
        return model(kept.images[chosen], labels, draws, angles(epoch), carriers)

    def success_rate(epoch: int) -> loop.Row:
        return {"wsr": rate(mark, model.method.encoder, watched)}

    history = loop.fit(
        model, loss, len(kept.images), schedule, seed=victim.seed, checkpoint=checkpoint,
        after_epoch=success_rate if held else None,
        title=f"watermarked {victim.method} {victim.encoder}",
        identity=f"{config!r} {start and encoders.identity(start.encoder)}",
    )  # fmt: skip
    model.head.requires_grad_(False)
    return Watermarked(model.method.encoder.eval(), mark, history, model.method.projector)


def build(config: Config, classes: int, start: pretrain.Fitted | None = None) -> WatermarkedMethod:
    """Build the victim exactly as `pretrain.build` does, and a head drawn from the same seed."""
    method = pretrain.build(config.victim, classes)
    if start:
        pretrain.adopt(method, start)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive("watermark head", config.victim.seed))
        return WatermarkedMethod(method, config, start is not None)


# --------------------------------------------------------------------------- verification


def questions(images: Tensor, seed: int = 0) -> Tensor:
    """Return what an owner sends to a suspect: both turns of each image.

    Args:
        images: uint8 (N, 3, H, H).
        seed: of the angles.

    Returns:
        All images turned into the first half-plane, then all turned into the second, uint8 (2N, 3, H, H).

    Example:
        >>> questions(torch.zeros(4, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([8, 3, 32, 32])
    """
    images = augment.to_float(encoders.check_images(images))
    return augment.to_uint8(turn(images, generator("questions", seed)))


@torch.no_grad()
def _margins(mark: Mark, answers: Tensor) -> Tensor:
    """Return the head's logits (2N, 2) on the CPU for answers (2N, D) to `questions`."""
    answers = check_answers(answers, mark.dim, TEST)
    if len(answers) % 2:
        raise ValueError(f"{len(answers)} answers: two are needed for each image, one per rotation")
    return mark.head(answers.to(next(mark.head.parameters()).device, torch.float32)).cpu()


def success(mark: Mark, answers: Tensor) -> Tensor:
    """Return which answers to `questions` the head classifies rightly, 0 or 1, float64 (2N,).

    Args:
        mark: the owner's.
        answers: a suspect's, (2N, D).

    Returns:
        0 or 1 each, float64 (2N,).

    Raises:
        ValueError: for another dimension than the victim's, an odd number of answers, or NaN.

    Example:
        >>> mark = Mark(nn.Linear(128, 2), 128)
        >>> success(mark, torch.zeros(4, 128)).mean().item()  # the same answer to all
        0.5
    """
    return (_margins(mark, answers).argmax(1) == half_planes(len(answers) // 2)).double()


def ranked(mark: Mark, answers: Tensor) -> Verdict:
    """Test answers to `questions` by the order of the head's margins, not by their sign.

    If a surrogate's features are shifted, the head may see one half-plane throughout, at a rate of 1/2;
    the order survives. H0: the area under the ROC curve, the verdict's `measure`, is at most 1/2 (Mann
    and Whitney, 1947).

    Args:
        mark: the owner's.
        answers: a suspect's, (2N, D).

    Returns:
        The verdict.

    Raises:
        ValueError: as `success`.

    Example:
        >>> mark = Mark(nn.Linear(128, 2), 128)
        >>> ranked(mark, torch.zeros(4, 128)).measure
        0.5
    """
    from scipy import stats

    logits = _margins(mark, answers)
    one, two = (logits[:, 1] - logits[:, 0]).chunk(2)
    result, n = stats.mannwhitneyu(two.numpy(), one.numpy(), alternative="greater"), len(answers)
    area = float(result.statistic) / (n / 2) ** 2
    return Verdict(f"{TEST} by rank", area, result.statistic, float(result.pvalue), area - 0.5, n)


def rate(mark: Mark, suspect: nn.Module, images: Tensor, seed: int = 0) -> float:
    """Return the watermark success rate of a suspect.

    Args:
        mark: the owner's.
        suspect: images (N, 3, H, H) to features (N, D).
        images: to ask about, uint8 (N, 3, H, H).
        seed: of the angles.

    Returns:
        From 0 to 1; chance is 1/2.

    Raises:
        ValueError: as `success`.

    Example:
        >>> mark = Mark(nn.Linear(128, 2), 128)
        >>> rate(mark, encoders.build("conv4"), torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
        0.5
    """
    return success(mark, encoders.embed(suspect, questions(images, seed))).mean().item()


def verify(mark: Mark, suspect: nn.Module, images: Tensor, seed: int = 0) -> Verdict:
    """Test a suspect's watermark success rate on the victim's training images.

    H0 is a rate of at most 1/2. An independent encoder may depart from 1/2 too, if the head happens to
    lean one way in its coordinates: compare the rate with that of independently trained encoders
    (`against_controls`). The paper's own test (table 5) is
    `welch(success(mark, suspect), success(mark, control))` on answers to `questions`.

    Args:
        mark: the owner's.
        suspect: images (N, 3, H, H) to features (N, D).
        images: what the victim was trained on, (N, 3, H, H).
        seed: of the angles.

    Returns:
        The verdict; its `measure` is the rate from 0 to 1.

    Raises:
        ValueError: for a suspect of another dimension, naming the test that applies.

    Example:
        See `fit`.
    """
    return against_chance(success(mark, encoders.embed(suspect, questions(images, seed))))


def against_chance(right: Tensor) -> Verdict:
    """Test a watermark success rate against one of at most 1/2, by the exact binomial test.

    Args:
        right: what `success` returns, (2N,).

    Returns:
        The verdict; its `measure` is the rate.

    Example:
        >>> against_chance(torch.ones(10)).p_value == 0.5**10
        True
    """
    from scipy import stats

    share, n = right.mean().item(), len(right)
    p_value = float(stats.binomtest(int(right.sum()), n, alternative="greater").pvalue)
    z = (share - 0.5) * 2 * n**0.5
    return Verdict(f"{TEST} against chance", share, z, p_value, share - 0.5, n)
