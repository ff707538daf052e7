"""Calibrated proof of work: the asker pays in seconds, more for queries unlike a customer's.

Dziedzic et al., "Increasing the Cost of Model Extraction with Calibrated Proof of Work", ICLR 2022;
code cleverhans-lab/model-extraction-iclr. The puzzle is HashCash's.
"""

import hashlib
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from contsteal.defenses.state import PerUser, identity, real, whole
from contsteal.seeds import derive
from contsteal.victim import finite

BATCH = 64  # queries that one price is for, in the paper


@dataclass(frozen=True)
class Puzzle:
    """Find a number that makes SHA-1 of `challenge:number` begin with `bits` zero bits."""

    challenge: str
    bits: int


def solves(puzzle: Puzzle, number: int) -> bool:
    """Return whether a number solves a puzzle, at the price of one hash."""
    text = f"{puzzle.challenge}:{number}".encode()
    digest = hashlib.sha1(text, usedforsecurity=False).digest()
    return 8 * len(digest) - int.from_bytes(digest).bit_length() >= puzzle.bits


def solve(puzzle: Puzzle) -> int:
    """Return the least number that solves a puzzle, after 2^bits hashes on average."""
    return next(number for number in itertools.count() if solves(puzzle, number))


def hash_rate(tries: int = 20_000) -> float:
    """Return how many numbers per second this machine can try."""
    impossible = Puzzle("rate", 160)
    start = time.perf_counter()
    for number in range(tries):
        solves(impossible, number)
    return tries / (time.perf_counter() - start)


def calibrate(costs: Tensor) -> tuple[float, float]:
    """Return (intercept, slope) of the line that customers' summed costs (U, Q) follow, by least squares.

    Column q holds the summed cost after q + 1 queries. ValueError for fewer than 2 queries.
    """
    if costs.ndim != 2 or not len(costs) or costs.shape[1] < 2 or not costs.isfinite().all():
        raise ValueError(
            f"costs {tuple(costs.shape)}: finite, of (customers, at least 2 queries), is needed"
        )
    asked = np.arange(1, costs.shape[1] + 1)
    slope, intercept = np.polyfit(asked, costs.double().mean(0).cpu().numpy(), 1)
    return float(intercept), float(slope)


def entropy(posteriors: Tensor) -> Tensor:
    """Return the entropy (N,) in nats of posteriors (N, C); ValueError where a row is none."""
    if (
        posteriors.ndim != 2
        or (posteriors < 0).any()
        or ((posteriors.sum(1) - 1).abs() > 1e-3).any()
    ):
        raise ValueError(
            "entropy is the cost of posteriors, rows of numbers from 0 of sum 1: use "
            "cost='flat' or a function of your own for embeddings and logits"
        )
    return torch.special.entr(posteriors).sum(1)


@dataclass
class Bill:
    """What a user asked, what it cost in the measure of `cost`, and the work due for it."""

    queries: int = 0
    cost: float = 0.0
    seconds: float = 0.0


class ProofOfWork(PerUser[Bill]):
    """Charge base^x seconds per 64 answers, x = |c(q) - (intercept + slope q)|, and change nothing.

    c(q) is a user's summed `cost` after q queries, (N, D) -> (N,); the line is a customer's, from
    `calibrate`. The price stays within `least` and `most`. Each answer owes 1/64 of its own price, where
    the code prices whole batches: how queries are batched changes no bill. A puzzle has log2(price
    `hashes_per_second`) zero bits; the code has a line fitted to times it measured. This is a cost
    model: it bills, and never waits for a solution.

    The paper's cost is the privacy cost of PATE, from the votes of an ensemble. Encoders have no
    votes, no softmax and no usual mix of queries, so nothing calibrates it there (ICML 2022, 5.5):
    "flat" is the price of x = 0 for all. "entropy" is for posteriors. Memory per user: 3 numbers.
    Errors: ValueError for bad parameters, answers with NaN, or a cost of another shape.
    """

    record = Bill

    def __init__(
        self,
        cost: str | Callable[[Tensor], Tensor] = "flat",
        intercept: float = 0.0,
        slope: float = 0.0,
        base: float = 1.0075,
        least: float = 0.1,
        most: float = 2948.0,
        hashes_per_second: float = 1e6,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not callable(cost) and cost not in ("flat", "entropy"):
            raise ValueError(f"unknown cost {cost!r}: choose 'flat', 'entropy' or give a function")
        told = {"intercept": intercept, "slope": slope, "base": base, "least": least, "most": most}
        told["hashes_per_second"] = hashes_per_second
        vars(self).update({k: real(v, f"ProofOfWork {k}") for k, v in told.items()})
        if not (math.isfinite(self.intercept) and math.isfinite(self.slope)):
            raise ValueError(f"ProofOfWork intercept={intercept}, slope={slope}: finite is needed")
        self._check(base, least, most, hashes_per_second)
        self.seed = whole(seed, "ProofOfWork seed")
        self.cost = cost
        self._cost = cost if isinstance(cost, str) else identity(cost)

    @staticmethod
    def _check(base: float, least: float, most: float, hashes_per_second: float) -> None:
        if not 1 <= base < math.inf:
            raise ValueError(f"ProofOfWork base={base}: 1 or above, or thieves pay less")
        if not 0 < least <= most < math.inf:
            raise ValueError(f"ProofOfWork least={least}, most={most}: 0 < least <= most is needed")
        if not 0 < hashes_per_second < math.inf:
            raise ValueError(
                f"ProofOfWork hashes_per_second={hashes_per_second}: above 0 is needed"
            )

    @torch.no_grad()
    def __call__(self, answers: Tensor, user: str) -> Tensor:
        mine, costs = self._of(user), self._costs(finite(answers)).double().cpu().numpy()
        if not len(costs):
            return answers
        summed = mine.cost + costs.cumsum()
        asked = mine.queries + np.arange(1, len(costs) + 1)
        mine.seconds += float(self.price(summed, asked).sum()) / BATCH
        mine.queries, mine.cost = int(asked[-1]), float(summed[-1])
        return answers

    def _costs(self, answers: Tensor) -> Tensor:
        if self.cost == "flat":
            return answers.new_zeros(len(answers))
        costs = (entropy if self.cost == "entropy" else self.cost)(answers)
        if costs.shape != answers.shape[:1]:
            raise ValueError(
                f"{self._cost} returned {tuple(costs.shape)}: ({len(answers)},) is needed"
            )
        return finite(costs.double()[:, None])[:, 0]

    def price(self, cost: float | np.ndarray, queries: int | np.ndarray) -> np.ndarray:
        """Return the seconds per 64 answers at a summed cost after so many queries."""
        line = 0.0 if self.cost == "flat" else self.intercept + self.slope * np.asarray(queries)
        power = np.abs(cost - line) * math.log(self.base)
        return np.exp(np.clip(power, math.log(self.least), math.log(self.most)))

    def bill(self, user: str) -> float:
        """Return the seconds of work due for all answers so far."""
        return self._seen(user).seconds

    def puzzle(self, user: str) -> Puzzle:
        """Return the puzzle for the user's next 64 answers: another one after every answer."""
        mine = self._seen(user)
        price = float(self.price(mine.cost, mine.queries))
        bits = max(0, round(math.log2(price * self.hashes_per_second)))
        return Puzzle(f"{derive('puzzle', self.seed, user, mine.queries):016x}", bits)

    def statement(self, user: str) -> str:
        """Return the bill in words."""
        mine = self._seen(user)
        price = float(self.price(mine.cost, mine.queries))
        return (
            f"user {user!r} owes {mine.seconds:,.1f} s of work for {mine.queries:,} answers; the "
            f"next {BATCH} cost {price:,.2f} s, {self.puzzle(user).bits} zero bits"
        )

    def __repr__(self) -> str:
        told = [f"cost={self._cost!r}", f"intercept={self.intercept!r}", f"slope={self.slope!r}"]
        told += [f"base={self.base!r}", f"least={self.least!r}", f"most={self.most!r}"]
        told += [f"hashes_per_second={self.hashes_per_second!r}"]
        return f"ProofOfWork({', '.join(told + [f'seed={self.seed}'] * bool(self.seed))})"
