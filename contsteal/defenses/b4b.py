"""B4B: noise that grows with the part of the embedding space a user has seen, and a space per user.

Dubiński et al., "Bucks for Buckets", NeurIPS 2023, sections 3-4; code stapaw/b4b-active-encoder-defense.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from contsteal import Positive, number
from contsteal.defenses.state import Answered, Described, PerUser, fresh_draws
from contsteal.seeds import generator
from contsteal.victim import finite, named

__all__ = ["B4B", "UserTransform"]

TRANSFORMS = ("affine", "scale", "pad", "shuffle", "binary")
Padding = Annotated[int, ("least", 1), ("most", 2**16)]  # more would be most of what is sent
MOST_BITS = 24  # 2 MB per user; with more, no user covers a noticeable share
MOST_BETAS = 2  # of coverage, from which on noise stays as it is
MOST_LOG = 40  # of the largest noise: the square of an answer must be a float32


# Secrets follow from seed, user and place in the chain, so none is stored. A dense one takes longer to
# draw than to use: those of the last users are cached, at most 32 MB at 512 dimensions.
@lru_cache(maxsize=32)
def _step(
    kind: str, seed: int, user: str, place: int, dim: int, padding: int
) -> Callable[[Tensor], Tensor]:
    """Return one step of a user's secret map, of answers y (N, `dim`)."""
    draws = generator("disguise", seed, user, place, kind)
    if kind == "pad":
        constants = torch.randn(padding, generator=draws)
        return lambda y: torch.cat([y, constants.to(y).expand(len(y), -1)], 1)
    if kind == "shuffle":
        order = torch.randperm(dim, generator=draws)
        return lambda y: y[:, order.to(y.device)]
    if kind == "binary":
        normals = torch.randn(dim, dim, generator=draws)
        heights = (torch.rand(dim, dim, generator=draws) * normals).sum(0)
        return lambda y: (y @ normals.to(y) > heights.to(y)).to(y)
    shape = (dim, dim) if kind == "affine" else (dim,)
    weight, bias = (torch.rand(s, generator=draws) * 2 - 1 for s in (shape, (dim,)))
    if kind == "scale":
        return lambda y: y * weight.to(y) + bias.to(y)
    weight *= (3 / dim) ** 0.5  # keeps the average length of the answers
    return lambda y: y @ weight.to(y) + bias.to(y)


class Transforming(Described):
    """A defence that maps the answers of each user by steps that its `transform` lists."""

    transform: str
    padding: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._steps = [] if self.transform == "none" else str(self.transform).split("+")
        if unknown := set(self._steps).difference(TRANSFORMS):
            raise ValueError(f"unknown transformation {min(unknown)!r} in {self.transform!r}: join some "
                             f"of {', '.join(TRANSFORMS)} by '+', or say 'none'")  # fmt: skip

    def _to_space(self, answers: Tensor, user: str) -> Tensor:
        """Return answers (N, D) in one user's space, (N, D + `padding`) after "pad"."""
        for place, kind in enumerate(self._steps):
            step = _step(kind, self.seed, user, place, answers.shape[1], self.padding)
            answers = step(answers)
        return answers


@dataclass(repr=False, eq=False)
class UserTransform(Transforming):
    """Map each user's answers by a secret map of that user (B4B, NeurIPS 2023, section 4).

    "affine" is yA + b with dense A, entries from U(-1, 1) times sqrt(3/D), a factor that the published
    code lacks, and b, the paper's "add", from U(-1, 1). "scale" is the same elementwise, the code's
    "affine" for vectors. "pad" appends constants from N(0, 1), so that D grows. "shuffle" permutes the
    coordinates. "binary" gives D bits, each the side of a random plane through a random point of
    [0, 1]^D, as in the code.

    Raises:
        ValueError: for an unknown step, and a padding below 1.

    Example:
        >>> UserTransform("pad+shuffle", padding=2)(torch.zeros(4, 3), "user").shape
        torch.Size([4, 5])
    """

    title, positional = "user transform, {transform}", ("transform",)
    optional = ("padding", "seed")
    transform: str = "affine"  #: steps joined by "+", or "none"
    padding: Padding = 64  #: coordinates that "pad" appends
    seed: int = 0  #: of the secrets

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        return self._to_space(finite(answers), named(user))


@dataclass
class Visited(Answered):
    """The buckets that a user's answers fell into, one bit each, and their number."""

    buckets: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    occupied: int = 0


@lru_cache(maxsize=8)
def _planes(seed: int, dim: int, planes: int, device: torch.device) -> Tensor:
    return torch.randn(dim, planes, generator=generator("b4b planes", seed)).to(device)


@dataclass(repr=False, eq=False)
class B4B(Transforming, PerUser[Visited]):
    """Add N(0, sigma^2), sigma = lambda (exp(ln(alpha/lambda) E/beta) - 1), then map per user.

    E is the share of the 2^bits buckets, signs of random projections, that a user's answers have
    occupied so far. It never falls, and an answer meets the E of the answers up to itself, however
    they are batched. Repeats of an input do not raise E and get fresh noise.

    The published code departs from its paper: lambda is 1e-7, the noise lags behind E and is equal in
    each epoch, E is of one pass over a file and not per user, and the first account has no transform.

    A user takes families 2^bits / 8 bytes, 512 by default and 2^21 at most.

    Raises:
        ValueError: for parameters out of range, an alpha not above lambda, and too much noise or memory.

    Example:
        >>> defence = B4B(bits=4, transform="none")
        >>> answers = defence(torch.eye(8), "user")
        >>> 0 < defence.coverage("user") <= 8 / 16
        True
    """

    title, record = "B4B, {bits} bits", Visited
    optional = ("lam", "alpha", "families", "transform", "padding", "seed")
    lam: Positive = 1e-6  #: lambda, the scale of the noise at low coverage, above 0
    alpha: float = 1.0  #: sigma reaches alpha - lambda at E = beta
    beta: Positive = 0.8  #: the coverage from which on answers are useless
    bits: Annotated[int, ("least", 1), ("most", MOST_BITS)] = 12  #: random projections of one hash
    #: hashes that E is averaged over, 1 in the paper, 20 in the code
    families: Annotated[int, ("least", 1), ("most", 100)] = 1
    transform: str = "affine"  #: as of `UserTransform`, applied after the noise
    padding: Padding = 64  #: as of `UserTransform`
    seed: int = 0  #: of projections, noise and secrets

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self.alpha, f"B4B lam={self.lam}, alpha", above=self.lam)
        if 2 * math.log(self.alpha) - math.log(self.lam) > MOST_LOG:
            raise ValueError(f"B4B lam={self.lam}, alpha={self.alpha}: the noise at twice beta, alpha^2 "
                             "/ lam, would overflow; take a smaller alpha or a larger lam")  # fmt: skip
        if self.families << self.bits > 1 << MOST_BITS:
            raise ValueError(f"B4B families={self.families}, bits={self.bits}: families x 2^bits must be "
                             f"at most 2^{MOST_BITS}, which takes 2 MB per user")  # fmt: skip

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        record, answers = self._of(user), finite(answers)
        stds = self.sigma(self._visit(record, answers))  # (N,)
        draws = fresh_draws(record, "b4b noise", self.seed, user)
        noise = torch.randn(answers.shape, generator=draws).to(answers)
        return self._to_space(answers + torch.from_numpy(stds).to(answers)[:, None] * noise, user)

    def sigma(self, coverage: float | np.ndarray) -> np.ndarray:
        """Return the noise's deviation at a coverage from 0 to 1, in the units of the answers."""
        betas = np.minimum(np.asarray(coverage) / self.beta, MOST_BETAS)
        return self.lam * np.expm1(math.log(self.alpha / self.lam) * betas)

    def calibrated(self, coverage: float, noise: float) -> "B4B":
        """Return this defence with the beta at which a user of a `coverage` gets so much `noise`.

        The paper chooses beta by looking at its victim; here it follows from what customers cover.

        Args:
            coverage: the share of the buckets that customers occupy, above 0.
            noise: the standard deviation that is bearable for them, above 0, in the units of the answers.

        Raises:
            ValueError: for 0 or below.
        """
        number(coverage, "B4B coverage", above=0)
        number(noise, "B4B noise", above=0)
        beta = math.log(self.alpha / self.lam) * coverage / math.log1p(noise / self.lam)
        return replace(self, beta=float(f"{beta:.2g}"))

    def coverage(self, user: str) -> float:
        """Return the share of the buckets, from 0 to 1, that a user's answers have occupied."""
        return self._seen(user).occupied / (self.families << self.bits)

    def _visit(self, record: Visited, answers: Tensor) -> np.ndarray:
        """Mark the answers' buckets, and return the coverage (N,) after each of them."""
        buckets, size = self._buckets(answers), self.families << self.bits
        if not len(record.buckets):
            record.buckets = torch.zeros((size + 7) // 8, dtype=torch.uint8)
        packed = record.buckets.numpy()  # shares the tensor's memory
        bucket, first = np.unique(buckets, return_index=True)
        byte, bit = bucket >> 3, np.left_shift(1, bucket & 7).astype(np.uint8)
        new = packed[byte] & bit == 0
        np.bitwise_or.at(packed, byte[new], bit[new])
        grown = np.bincount(first[new] // self.families, minlength=len(answers)).cumsum()
        covered = (record.occupied + grown) / size
        record.occupied += int(new.sum())
        return covered

    def _buckets(self, answers: Tensor) -> np.ndarray:
        """Return the bucket of every answer under every hash, (N `families`,), answer by answer."""
        planes = _planes(self.seed, answers.shape[1], self.families * self.bits, answers.device)
        side = (answers @ planes.to(answers) > 0).view(len(answers), self.families, self.bits)
        bucket = (side << torch.arange(self.bits, device=answers.device)).sum(2)
        bucket += torch.arange(self.families, device=answers.device) << self.bits
        return bucket.flatten().cpu().numpy()
