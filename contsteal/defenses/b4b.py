"""B4B: noise that grows with the share of the embedding space a user has seen, and a space of their own.

Dubiński et al., "Bucks for Buckets", NeurIPS 2023, sections 3-4; code stapaw/b4b-active-encoder-defense.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from contsteal.defenses.state import PerUser, real, whole
from contsteal.seeds import generator
from contsteal.victim import finite, named

MOST_PADDING = 2**16  # coordinates; with more, padding is most of what is sent
KINDS = ("affine", "scale", "pad", "shuffle", "binary")


def kinds(text: str) -> tuple[str, ...]:
    """Return the steps of "affine+pad+shuffle", none of "none"; ValueError lists the known ones."""
    steps = () if text == "none" else tuple(str(text).split("+"))
    if unknown := [step for step in steps if step not in KINDS]:
        raise ValueError(
            f"unknown transformation {unknown[0]!r} in {text!r}: join some of {', '.join(KINDS)} "
            "by '+', or say 'none'"
        )
    return steps


# Secrets follow from seed and user, so nothing of them is stored. A dense one takes longer to draw
# than to use: those of the last users are kept, at most 32 MB at 512 dimensions.
@lru_cache(maxsize=32)
def _secrets(
    kind: str, seed: int, user: str, step: int, dim: int, extra: int, device: torch.device
) -> tuple[Tensor, ...]:
    draws = generator("disguise", seed, user, step, kind)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draws) * 2 - 1

    if kind == "affine":  # sqrt(3 / D): lengths stay, on average, what they were
        made = (uniform(dim, dim) * (3 / dim) ** 0.5, uniform(dim))
    elif kind == "scale":
        made = (uniform(dim), uniform(dim))
    elif kind == "pad":
        made = (torch.randn(extra, generator=draws),)
    elif kind == "shuffle":
        made = (torch.randperm(dim, generator=draws),)
    else:
        planes = torch.randn(dim, dim, generator=draws)
        made = (planes, (torch.rand(dim, dim, generator=draws) * planes).sum(0))
    return tuple(secret.to(device) for secret in made)


def _step(answers: Tensor, kind: str, secrets: tuple[Tensor, ...]) -> Tensor:
    if kind == "affine":
        return answers @ secrets[0].to(answers) + secrets[1].to(answers)
    if kind == "scale":
        return answers * secrets[0].to(answers) + secrets[1].to(answers)
    if kind == "pad":
        return torch.cat([answers, secrets[0].to(answers).expand(len(answers), -1)], 1)
    if kind == "shuffle":
        return answers[:, secrets[0]]
    return (answers @ secrets[0].to(answers) > secrets[1].to(answers)).to(answers.dtype)


def disguise(answers: Tensor, steps: tuple[str, ...], seed: int, user: str, extra: int) -> Tensor:
    """Return answers (N, D) in the space of one user, (N, D + `extra`) after "pad", in order.

    Equal seed, user and step, equal secret. The published code's dense and elementwise "affine" are
    "affine" and "scale" here.
    """
    for place, kind in enumerate(steps):
        key = (kind, seed, user, place, answers.shape[1], extra, answers.device)
        answers = _step(answers, kind, _secrets(*key))
    return answers


class UserTransform:
    """Map each user's answers by a secret map of that user (B4B, NeurIPS 2023, section 4).

    `transform` joins steps by "+": "affine" is yA + b with dense A, entries U(-1, 1) times sqrt(3/D),
    a factor that the code lacks, and b, the paper's "add", from U(-1, 1); "scale" the same elementwise;
    "pad" appends `padding` constants from N(0, 1), so D grows; "shuffle" permutes the coordinates;
    "binary" gives D bits, each the side of a random plane through a random point of [0, 1]^D, as the
    code does. Nothing is stored: a secret follows from `seed` and user. ValueError: an unknown step, or
    padding below 1 or above 2^16.
    """

    def __init__(self, transform: str = "affine", padding: int = 64, seed: int = 0) -> None:
        self._steps = kinds(transform)
        self.transform, self.seed = transform, whole(seed, "UserTransform seed")
        self.padding = whole(padding, "UserTransform padding", 1, MOST_PADDING)

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        return disguise(finite(answers), self._steps, self.seed, named(user), self.padding)

    def __repr__(self) -> str:
        told = [repr(self.transform)]
        told += [f"padding={self.padding}"] * ("pad" in self._steps)
        return f"UserTransform({', '.join(told + [f'seed={self.seed}'] * bool(self.seed))})"


MOST_BITS = 24  # 2 MB per user; with more, no user covers a noticeable share
LARGEST = 80  # e^80 times lambda is still a float32


@dataclass
class Visited:
    """The buckets a user's answers fell into, one bit each, how many these are, and all calls."""

    buckets: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    occupied: int = 0
    calls: int = 0


@lru_cache(maxsize=8)
def _planes(seed: int, dim: int, planes: int, device: torch.device) -> Tensor:
    return torch.randn(dim, planes, generator=generator("b4b planes", seed)).to(device)


class B4B(PerUser[Visited]):
    """Add N(0, sigma^2), sigma = lambda (exp(ln(alpha/lambda) E/beta) - 1), then map per user.

    E is the share of the 2^`bits` buckets, signs of `bits` random projections, that a user's answers
    have occupied so far; it never falls, and an answer meets the E of the answers up to itself, however
    they are batched. `families` hashes are averaged: 1 in the paper, 20 in the code. `lam` is lambda;
    sigma reaches alpha - lambda at E = beta. `transform` and `padding`: see `disguise.UserTransform`.
    Repeats of one input cost a user nothing and get fresh noise. Answers of several dimensions fall
    into the same buckets.

    The published code departs from its paper: lambda 1e-7, noise that lags behind E and is equal in
    each epoch, E of one pass over a file and not per user, and a first account without a transform.

    Memory per user: `families` 2^`bits` / 8 bytes whatever they ask, 512 by default, so 10^5 users
    take about 0.1 GB. `families` 2^`bits` is 2^24 at most. Errors:
    ValueError for parameters out of range and answers with NaN.
    """

    record = Visited

    def __init__(
        self,
        lam: float = 1e-6,
        alpha: float = 1.0,
        beta: float = 0.8,
        bits: int = 12,
        families: int = 1,
        transform: str = "affine",
        padding: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        lam, alpha = real(lam, "B4B lam"), real(alpha, "B4B alpha")
        self.lam, self.alpha, self.beta = lam, alpha, real(beta, "B4B beta")
        self._check(lam, alpha, self.beta)
        self.bits, self.seed = whole(bits, "B4B bits", 1, MOST_BITS), whole(seed, "B4B seed")
        self.families = whole(families, "B4B families", 1, 100)
        if self.families << self.bits > 1 << MOST_BITS:
            raise ValueError(f"B4B families={families}, bits={bits}: families 2^bits may be "
                             f"2^{MOST_BITS}, 2 MB per user, at most")  # fmt: skip
        self.transform, self._steps = transform, kinds(transform)
        self.padding = whole(padding, "B4B padding", 1, MOST_PADDING)

    @staticmethod
    def _check(lam: float, alpha: float, beta: float) -> None:
        if not 0 < lam < math.inf:
            raise ValueError(f"B4B lam={lam}: above 0 and finite is needed; the paper has 1e-6")
        if not lam < alpha < math.inf:
            raise ValueError(f"B4B alpha={alpha}: above lam={lam} and finite is needed")
        if not 0 < beta < math.inf or math.log(alpha / lam) / beta > LARGEST:
            least = math.log(alpha / lam) / LARGEST
            raise ValueError(
                f"B4B beta={beta}: at least {least:.3g} is needed with lam={lam} and alpha={alpha}, "
                "or noise at full coverage is infinite; the paper has 0.8"
            )

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        mine, answers = self._of(user), finite(answers)
        stds = self.sigma(self._visit(mine, answers))
        draws = generator("b4b noise", self.seed, user, mine.calls)
        mine.calls += 1
        noise = torch.randn(answers.shape, generator=draws).to(answers)
        noisy = answers + torch.from_numpy(stds).to(answers)[:, None] * noise
        return disguise(noisy, self._steps, self.seed, user, self.padding)

    def sigma(self, coverage: float | np.ndarray) -> np.ndarray:
        """Return the noise's standard deviation at a coverage from 0 to 1."""
        return self.lam * np.expm1(math.log(self.alpha / self.lam) * coverage / self.beta)

    def coverage(self, user: str) -> float:
        """Return the share of the buckets, from 0 to 1, that a user's answers have occupied."""
        return self._seen(user).occupied / (self.families << self.bits)

    def _visit(self, mine: Visited, answers: Tensor) -> np.ndarray:
        """Mark the answers' buckets, and return the coverage (N,) after each of them."""
        cells, size = self._cells(answers), self.families << self.bits
        if not len(mine.buckets):
            mine.buckets = torch.zeros((size + 7) // 8, dtype=torch.uint8)
        packed = mine.buckets.numpy()  # the same memory
        cell, first = np.unique(cells, return_index=True)
        byte, bit = cell >> 3, np.left_shift(1, cell & 7).astype(np.uint8)
        new = packed[byte] & bit == 0
        np.bitwise_or.at(packed, byte[new], bit[new])
        grown = np.bincount(first[new] // self.families, minlength=len(answers)).cumsum()
        covered = (mine.occupied + grown) / size
        mine.occupied += int(new.sum())
        return covered

    def _cells(self, answers: Tensor) -> np.ndarray:
        """Return the bucket of every answer under every hash, flat in the order of the answers."""
        planes = _planes(self.seed, answers.shape[1], self.families * self.bits, answers.device)
        side = (answers @ planes.to(answers) > 0).view(len(answers), self.families, self.bits)
        places = torch.arange(self.bits, device=answers.device)
        bucket = (side << places).sum(2)
        bucket += torch.arange(self.families, device=answers.device) << self.bits
        return bucket.flatten().cpu().numpy()

    def __repr__(self) -> str:
        told = [f"lam={self.lam!r}", f"alpha={self.alpha!r}", f"beta={self.beta!r}"]
        told += [f"bits={self.bits}"] + [f"families={self.families}"] * (self.families > 1)
        told += [f"transform={self.transform!r}"]
        told += [f"padding={self.padding}"] * ("pad" in self._steps)
        return f"B4B({', '.join(told + [f'seed={self.seed}'] * bool(self.seed))})"
