"""Calibrated proof of work: users pay in seconds of computation, more for queries unlike a customer's.

Dziedzic et al., "Increasing the Cost of Model Extraction with Calibrated Proof of Work", ICLR 2022;
code cleverhans-lab/model-extraction-iclr. The puzzle is HashCash's.
"""

import hashlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from contsteal.defenses.state import PerUser, Positive, Record, choice, identity, number
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
    """Return the least number that solves a puzzle, found with 2^bits hashes on average."""
    return next(number for number in itertools.count() if solves(puzzle, number))


def calibrate(costs: Tensor) -> tuple[float, float]:
    """Return intercept and slope, by least squares, of customers' summed costs (U, Q) over queries.

    ValueError for costs that are not finite, no customer, or fewer than 2 queries.
    """
    if costs.ndim != 2 or not len(costs) or costs.shape[1] < 2 or not costs.isfinite().all():
        size = tuple(costs.shape)
        raise ValueError(f"costs {size}: finite, of (customers, at least 2 queries), is needed")
    queries = np.arange(1, costs.shape[1] + 1)
    slope, intercept = np.polyfit(queries, costs.double().mean(0).cpu().numpy(), 1)
    return float(intercept), float(slope)


def entropy(posteriors: Tensor) -> Tensor:
    """Return the entropy (N,) in nats of posteriors (N, C); ValueError for other rows."""
    simplex = posteriors.ndim == 2 and not (posteriors < 0).any()
    if not simplex or ((posteriors.sum(1) - 1).abs() > 1e-3).any():
        raise ValueError("entropy is the cost of posteriors, rows of numbers from 0 on with sum 1: use "
                         "cost='flat' or a function of your own for embeddings and logits")  # fmt: skip
    return torch.special.entr(posteriors).sum(1)


@dataclass
class Bill(Record):
    """What a user asked, what it cost in the measure of `cost`, and the seconds due for it."""

    queries: int = 0
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(repr=False, eq=False)
class ProofOfWork(PerUser[Bill]):
    """Charge base^x seconds per 64 answers, x = |c(q) - (intercept + slope q)|, and change nothing.

    c(q) is a user's summed cost after q queries; the line is a customer's, from `calibrate`. Each answer
    owes 1/64 of its own price, where the code prices whole batches: how queries are batched changes no
    bill. A puzzle has log2(price `hashes_per_second`) zero bits. This is a cost model: it bills, and
    never waits for a solution.

    The paper's cost is the privacy cost of PATE, from an ensemble's votes. Encoders have no votes and no
    usual mix of queries to calibrate by (Dziedzic et al., ICML 2022, 5.5): "flat" charges x = 0.
    """

    title, record = "proof of work", Bill
    cost: str | Callable[[Tensor], Tensor] = "flat"  #: or "entropy", or a function (N, D) -> (N,)
    intercept: float = 0.0  #: of the customer's line, in the measure of `cost`
    slope: float = 0.0  #: of the customer's line, per query
    base: Annotated[float, {"least": 1}] = 1.0075  #: of the price; below 1 thieves would pay less
    least: Positive = 0.1  #: seconds that 64 answers cost at least, above 0
    most: float = 2948.0  #: seconds that 64 answers cost at most
    hashes_per_second: Positive = 1e6  #: that a user is assumed to try
    seed: int = 0  #: of the puzzles

    def __post_init__(self) -> None:
        super().__post_init__()
        if callable(self.cost):
            identity(self.cost)  # refuses a function without a name
        else:
            choice(self.cost, "cost", ("flat", "entropy", "a function"))
        number(self.most, f"ProofOfWork least={self.least}, most", least=self.least)

    @torch.no_grad()
    def __call__(self, answers: Tensor, user: str) -> Tensor:
        record, costs = self._of(user), self._costs(finite(answers)).double().cpu().numpy()
        if not len(costs):
            return answers
        summed = record.cost + costs.cumsum()  # (N,)
        queries = record.queries + np.arange(1, len(costs) + 1)
        record.seconds += float(self.price(summed, queries).sum()) / BATCH
        record.queries, record.cost = int(queries[-1]), float(summed[-1])
        return answers

    def _costs(self, answers: Tensor) -> Tensor:
        if self.cost == "flat":
            return answers.new_zeros(len(answers))
        costs = self.cost(answers) if callable(self.cost) else entropy(answers)
        if costs.shape != answers.shape[:1]:
            name = self.parameters()["cost"]
            raise ValueError(f"{name} returned {tuple(costs.shape)}: ({len(answers)},) is needed")
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
        """Return the puzzle for the user's next 64 answers, a new one after every answer."""
        record = self._seen(user)
        price = float(self.price(record.cost, record.queries))
        bits = max(0, round(math.log2(price * self.hashes_per_second)))
        return Puzzle(f"{derive('puzzle', self.seed, user, record.queries):016x}", bits)
