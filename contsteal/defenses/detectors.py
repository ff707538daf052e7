"""Detectors, which judge each user by what their queries have in common, and a price on queries.

`SimilarQueries` looks for views of one image (Dziedzic et al., ICML 2022, 5.3), `Prada` for distances
between queries that are not normal (Juuti et al., EuroS&P 2019; code
SSGAalto/prada-protecting-against-dnn-model-stealing-attacks). `ProofOfWork` makes users pay in seconds of
computation, more for queries unlike a customer's (Dziedzic et al., "Increasing the Cost of Model
Extraction with Calibrated Proof of Work", ICLR 2022; code cleverhans-lab/model-extraction-iclr); its
puzzle is HashCash's.
"""

import copy
import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal import Count, NotNegative, Positive, number
from contsteal.defenses.state import Answered, PerUser, fresh_draws, identity
from contsteal.seeds import derive
from contsteal.victim import finite

__all__ = ["Prada", "ProofOfWork", "Refused", "SimilarQueries"]

A = TypeVar("A", bound=Answered)


class Refused(RuntimeError):
    """A detector refuses this user as a thief; nothing was answered."""


class Detector(PerUser[A], ABC):
    """A defence with a verdict on each user; `action` says what follows from it.

    "refuse" raises `Refused` for a flagged user, "record" changes nothing, and the third action of
    each detector replaces the answers that it flags.
    """

    action: str

    @torch.no_grad()
    def __call__(self, answers: Tensor, user: str) -> Tensor:
        self._refuse(user)
        record = self._of(user)
        # Of float16 no distances are defined.
        wide = finite(answers).to(torch.promote_types(answers.dtype, torch.float32))
        flags = self._observe(record, wide)
        self._refuse(user)
        if self.action in ("refuse", "record"):
            return answers
        return torch.where(flags[:, None], self._replaced(answers, record, user), answers)

    @abstractmethod
    def statistic(self, user: str) -> float:
        """Return the number that the verdict on a user rests on."""

    @abstractmethod
    def flagged(self, user: str) -> bool:
        """Return the verdict on a user: True for a thief."""

    @abstractmethod
    def _observe(self, record: A, answers: Tensor) -> Tensor:
        """Update the record by answers (N, D), and return (N,) which of them are flagged."""

    @abstractmethod
    def _replaced(self, answers: Tensor, record: A, user: str) -> Tensor:
        """Return what is sent (N, D) where an answer is flagged."""

    def _refuse(self, user: str) -> None:
        if self.action == "refuse" and self.flagged(user):
            raise Refused(f"user {user!r} is refused by {self!r} at {self.statistic(user):.3g}: nothing "
                          "was answered; the provider may lift the verdict with forget(user), or only "
                          "record it with action='record'")  # fmt: skip


def _earlier(kept: Tensor, points: Tensor) -> Tensor:
    """Return the rows kept of a user, on the device of new ones (N, D); ValueError for another D."""
    if len(kept) and kept.shape[1] != points.shape[1]:
        raise ValueError(f"this user's earlier answers have {kept.shape[1]} coordinates, these "
                         f"{points.shape[1]}: give each kind of answer a defence of its own")  # fmt: skip
    return kept.to(points) if len(kept) else points[:0]


# -------------------------------------------------------------------- similar queries

FEWEST_QUERIES = 100  # SimilarQueries has no verdict on a user before
SIMILAR_BLOCK = 1024  # queries that SimilarQueries compares at once: bounds the memory of a request


@dataclass
class Recent(Answered):
    """A user's newest embeddings, and how many queries of all were similar to an earlier one."""

    recent: Tensor = field(default_factory=lambda: torch.empty(0))
    queries: int = 0
    similar: int = 0


@dataclass(repr=False, eq=False)
class SimilarQueries(Detector[Recent]):
    """Answer noise to queries that resemble an earlier one of their user (Dziedzic et al., 5.3).

    A query is similar where its least L2 distance to the user's last `memory` queries is below
    `threshold`, or their largest cosine is above it. The paper's thresholds for a CIFAR-10 SimCLR:
    cosine 0.5, l2 13 on projections, l2 18 on answers. Its code has cosine 0.6, forgets the user after
    every batch, and has no verdict on users. Repeated inputs are similar too. Attacks with one view, or
    with views split over accounts, are missed. A user takes up to 4 `memory` D bytes.

    Raises:
        ValueError: for parameters out of range, and a `projection` that is no module.
        Refused: on a flagged user's answers, where `action` is "refuse".

    Example:
        >>> watcher = SimilarQueries(threshold=0.9, action="record")
        >>> answers = watcher(torch.eye(200), "customer")  # no two alike
        >>> answers = watcher(torch.ones(200, 8), "thief")  # all alike
        >>> watcher.flagged("customer"), watcher.flagged("thief")
        (False, True)
    """

    title, optional, record = "similar queries", ("projection", "seed"), Recent
    threshold: float  #: of the `measure`
    measure: Literal["l2", "cosine"] = "cosine"
    #: (N, D) -> (N, P), what is compared instead of answers: the paper takes the training head
    projection: nn.Module | None = None
    action: Literal["replace", "refuse", "record"] = "replace"
    mean: float = 1000.0  #: of what replaces similar answers, N(mean, std^2)
    std: NotNegative = 20.0
    memory: Count = 4096  #: queries of a user that a new one is compared with
    #: flagged is who has more similar ones among at least 100 queries
    share: Annotated[float, ("least", 0), ("below", 1)] = 0.5
    seed: int = 0  #: of replaced answers

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = {"above": -1, "below": 1} if self.measure == "cosine" else {"above": 0}
        number(self.threshold, f"SimilarQueries measure={self.measure!r}, threshold", **limits)
        if self.projection is not None:
            identity(self.projection)  # refuses what is no module
            # A copy, which later training does not change.
            self.projection = copy.deepcopy(self.projection).eval().requires_grad_(False)

    def statistic(self, user: str) -> float:
        """Return the share of a user's queries that were similar to an earlier one."""
        record = self._seen(user)
        return record.similar / max(record.queries, 1)

    def flagged(self, user: str) -> bool:
        """Return whether more than `share` of at least 100 queries were similar."""
        return self._seen(user).queries >= FEWEST_QUERIES and self.statistic(user) > self.share

    def _observe(self, record: Recent, answers: Tensor) -> Tensor:
        points = answers if self.projection is None else finite(self.projection(answers))
        points = F.normalize(points, dim=1) if self.measure == "cosine" else points
        similar = torch.cat([self._similar(record, part) for part in points.split(SIMILAR_BLOCK)])
        record.queries += len(similar)
        record.similar += int(similar.sum())
        return similar

    def _similar(self, record: Recent, points: Tensor) -> Tensor:
        """Compare each point with the `memory` points before it; keep the newest."""
        earlier = _earlier(record.recent, points)
        stream, old = torch.cat([earlier, points]), len(earlier)
        if self.measure == "cosine":
            near = points @ stream.T > self.threshold  # (N, old + N)
        else:
            near = torch.cdist(points, stream) < self.threshold
        record.recent = stream[-self.memory :].clone()
        return near.tril(old - 1).triu(old - self.memory).any(1)

    def _replaced(self, answers: Tensor, record: Recent, user: str) -> Tensor:
        draws = fresh_draws(record, "similar queries", self.seed, user)
        return self.mean + self.std * torch.randn(answers.shape, generator=draws).to(answers)


# ------------------------------------------------------------------------------ PRADA

TEST_EVERY = 10  # queries between two tests
FEWEST_POOLED = 100  # the test needs more distances than this
NEWEST = 5000  # distances kept; scipy vouches for Shapiro-Wilk up to here
PRADA_BLOCK = 256  # queries whose distances Prada computes at once


@dataclass
class Growing(Answered):
    """A user's growing set, the distances to it, and the latest verdict."""

    members: Tensor = field(default_factory=lambda: torch.empty(0))
    member_distances: list[float] = field(default_factory=list)  # on joining; 0 for the first
    threshold: float = 0.0
    distances: list[float] = field(default_factory=list)  # of the newest queries to the set
    queries: int = 0
    shapiro: float = 1.0
    flagged: bool = False


@dataclass(repr=False, eq=False)
class Prada(Detector[Growing]):
    """Flag a user whose nearest distances are not normal: Shapiro-Wilk W < `threshold`.

    A set takes in a query whose least L2 distance to it is above T = max(T, mean - std of the
    distances at which members joined). Every 10 queries the distances of all queries (the newest 5,000
    here) are tested, without those 3 std or more off the mean, if more than 100 remain. As in the code,
    the verdict is the latest test's; where it refuses, it stays.

    PRADA measures distances between inputs, with a set for each class; a defence sees answers, so they
    are measured there, and embeddings have no class.
    Natural images sent by an encoder thief look like a customer's (Dziedzic et al., ICML 2022, 5.3).
    A user takes up to 4 `memory` D bytes and 0.2 MB; the paper's sets never stop growing.

    Raises:
        ValueError: for parameters out of range.
        Refused: on a flagged user's answers, where `action` is "refuse".

    Example:
        >>> watcher = Prada(action="record")
        >>> answers = watcher(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), "user")
        >>> watcher.statistic("user"), watcher.flagged("user")  # too few queries for a test
        (1.0, False)
    """

    title, record = "PRADA", Growing
    threshold: Annotated[float, ("above", 0), ("below", 1)] = 0.9  #: of W
    #: "shuffle" a flagged user's three largest coordinates, as in the code
    action: Literal["shuffle", "refuse", "record"] = "shuffle"
    memory: Count = 1000  #: queries in a user's set
    seed: int = 0  #: of the shuffling

    def statistic(self, user: str) -> float:
        """Return W of the latest test on a user; 1 before the first."""
        return self._seen(user).shapiro

    def flagged(self, user: str) -> bool:
        """Return whether W of the latest test was below `threshold`."""
        return self._seen(user).flagged

    def _observe(self, record: Growing, answers: Tensor) -> Tensor:
        """Take in one query after the other, as the rule needs; return (N,) the verdict after each."""
        return torch.cat([self._observe_block(record, part) for part in answers.split(PRADA_BLOCK)])

    def _observe_block(self, record: Growing, part: Tensor) -> Tensor:
        old, earlier = len(record.members), _earlier(record.members, part)
        links = torch.cdist(part, torch.cat([earlier, part])).double().cpu().numpy()
        nearest = links[:, :old].min(1, initial=np.inf)  # (N,)
        joined, flags = [], torch.zeros(len(part), dtype=torch.bool)
        for i in range(len(part)):
            if record.flagged and self.action == "refuse":
                break  # the verdict stays where it refuses
            if self._joins(record, float(nearest[i])):
                joined.append(i)
                nearest = np.minimum(nearest, links[:, old + i])
            record.queries += 1
            if record.queries % TEST_EVERY == 1:
                self._test(record)
            flags[i] = record.flagged
        record.members = torch.cat([earlier, part[joined]])
        return flags.to(part.device)

    def _joins(self, record: Growing, distance: float) -> bool:
        """Note a query's distance, and return whether it joins the set."""
        first = distance == np.inf
        if not first:
            record.distances.append(distance)
        full = len(record.member_distances) >= self.memory
        if full or not (first or distance > record.threshold):
            return False
        record.member_distances.append(0.0 if first else distance)
        joining = np.array(record.member_distances)
        record.threshold = max(record.threshold, float(joining.mean() - joining.std()))
        return True

    def _test(self, record: Growing) -> None:
        """Test the pooled distances for normality; too few leave the verdict as it is."""
        del record.distances[:-NEWEST]
        if len(record.distances) <= FEWEST_POOLED:
            return
        pooled = np.array(record.distances)
        pooled = pooled[np.abs(pooled - pooled.mean()) < 3 * pooled.std()]
        if len(pooled) > FEWEST_POOLED:
            from scipy.stats import shapiro  # half a second to import

            record.shapiro = float(shapiro(pooled).statistic)
            record.flagged = record.shapiro < self.threshold

    def _replaced(self, answers: Tensor, record: Growing, user: str) -> Tensor:
        """Return answers whose three largest coordinates changed places, each row its own way."""
        draws = fresh_draws(record, "prada", self.seed, user)
        top = answers.topk(min(3, answers.shape[1]), dim=1)
        order = torch.rand(top.values.shape, generator=draws).argsort(1).to(answers.device)
        return answers.scatter(1, top.indices, top.values.gather(1, order))


# ---------------------------------------------------------------------- proof of work

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


def price_line(costs: Tensor) -> tuple[float, float]:
    """Fit a customer's line: summed costs over queries, by least squares.

    Args:
        costs: summed costs of U customers after each of Q queries, (U, Q).

    Returns:
        Intercept, and slope per query.

    Raises:
        ValueError: for costs that are not finite, no customer, or fewer than 2 queries.

    Example:
        >>> [round(x, 6) for x in price_line(torch.tensor([[2.0, 4.0, 6.0]]))]
        [0.0, 2.0]
    """
    if costs.ndim != 2 or not len(costs) or costs.shape[1] < 2 or not costs.isfinite().all():
        size = tuple(costs.shape)
        raise ValueError(f"costs {size}: finite (customers, 2 or more queries) are needed")
    queries = np.arange(1, costs.shape[1] + 1)
    slope, intercept = np.polyfit(queries, costs.double().mean(0).cpu().numpy(), 1)
    return float(intercept), float(slope)


def entropy(posteriors: Tensor) -> Tensor:
    """Return the entropy (N,) in nats of posteriors (N, C); ValueError for other rows."""
    simplex = posteriors.ndim == 2 and not (posteriors < 0).any()
    if not simplex or ((posteriors.sum(1) - 1).abs() > 1e-3).any():
        raise ValueError("cost='entropy' needs posteriors, rows from 0 to 1 with sum 1: for others use "
                         "cost='flat'")  # fmt: skip
    return torch.special.entr(posteriors).sum(1)


@dataclass
class Bill:
    """What a user asked, what it cost in the measure of `cost`, and the seconds due for it."""

    queries: int = 0
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(repr=False, eq=False)
class ProofOfWork(PerUser[Bill]):
    """Charge base^x seconds per 64 answers, x = |c(q) - (intercept + slope q)|, and change nothing.

    c(q) is a user's summed cost after q queries; the line is a customer's, from `price_line`. Each answer
    owes 1/64 of its own price, where the code prices whole batches: how queries are batched changes no
    bill. A puzzle has log2(price `hashes_per_second`) zero bits. This is a cost model: it bills, and
    never waits for a solution.

    The paper's cost is the privacy cost of PATE, from an ensemble's votes. Encoders have no votes and no
    usual mix of queries to calibrate by (Dziedzic et al., ICML 2022, 5.5): "flat" charges x = 0.

    Raises:
        ValueError: for parameters out of range, and for answers that are no posteriors where these are
            needed.

    Example:
        >>> meter = ProofOfWork(least=0.1)
        >>> answers = meter(torch.zeros(64, 8), "user")
        >>> round(meter.bill("user"), 2)  # seconds: base^0 for 64 answers
        1.0
    """

    title, record = "proof of work", Bill
    cost: Literal["flat", "entropy"] = "flat"
    intercept: float = 0.0  #: of the customer's line, in the measure of `cost`
    slope: float = 0.0  #: of the customer's line, per query
    base: Annotated[float, ("least", 1)] = 1.0075  #: of the price; below 1 thieves would pay less
    least: Positive = 0.1  #: seconds that 64 answers cost at least, above 0
    most: float = 2948.0  #: seconds that 64 answers cost at most
    hashes_per_second: Positive = 1e6  #: that a user is assumed to try
    seed: int = 0  #: of the puzzles

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self.most, f"ProofOfWork least={self.least}, most", least=self.least)

    @torch.no_grad()
    def __call__(self, answers: Tensor, user: str) -> Tensor:
        record, answers = self._of(user), finite(answers)
        if not len(answers):
            return answers
        priced = entropy(answers) if self.cost == "entropy" else answers.new_zeros(len(answers))
        costs = priced.double().cpu().numpy()
        summed = record.cost + costs.cumsum()  # (N,)
        queries = record.queries + np.arange(1, len(costs) + 1)
        record.seconds += float(self.price(summed, queries).sum()) / BATCH
        record.queries, record.cost = int(queries[-1]), float(summed[-1])
        return answers

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
