"""Detectors: what one user's stream of answers tells, and what the provider then does."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal.remember import PerUser, earlier, finite, identity, real, whole
from contsteal.seeds import generator

FEWEST = 100  # no verdict on a user before this many queries
BLOCK = 1024  # rows compared at once, which bounds the memory of a large request

Record = TypeVar("Record")


class Refused(RuntimeError):
    """A detector takes this user for a thief; nothing was answered."""


class Detector(PerUser[Record], ABC):
    """A defence with a verdict on each user; `action` says what follows from it."""

    def __init__(self, action: str, actions: tuple[str, ...]) -> None:
        super().__init__()
        if action not in actions:
            raise ValueError(f"unknown action {action!r}: choose one of {', '.join(actions)}")
        self.action = action

    @abstractmethod
    def statistic(self, user: str) -> float:
        """Return the number that the verdict on a user rests on."""

    @abstractmethod
    def flagged(self, user: str) -> bool:
        """Return the verdict on a user: True for a thief."""

    def _refuse(self, user: str) -> None:
        if self.action == "refuse" and self.flagged(user):
            raise Refused(
                f"user {user!r} is refused by {self!r} at {self.statistic(user):.3g}: nothing was "
                "answered; the provider may lift the verdict with forget(user), or only record it "
                "with action='record'"
            )


@dataclass
class Asked:
    """The newest embeddings of a user, and how many of all were similar to an earlier one."""

    recent: Tensor = field(default_factory=lambda: torch.empty(0))
    queries: int = 0
    similar: int = 0
    calls: int = 0


class SimilarQueries(Detector[Asked]):
    """Answer N(mean, std^2) to what resembles an earlier query of its user (Dziedzic et al., 5.3).

    A query is similar where the least L2 distance to the user's last `memory` queries is below
    `threshold`, or their largest cosine is above it. Compared are answers, or `projection(answers)`,
    such as the victim's training head: the paper's choice, which tells views of one image best. The
    paper's thresholds for a CIFAR-10 SimCLR: cosine 0.5, l2 13 on projections, l2 18 on answers. Its
    code has cosine 0.6, forgets the user after every batch, and has no verdict on users.

    `action`: "replace" similar answers as above, "refuse" a flagged user, or only "record". A user is
    flagged where more than `share` of at least 100 queries were similar: `statistic(user)`.
    Repeated inputs are similar too; attacks with one view, or views split over accounts, are missed.

    Memory per user grows to 4 `memory` D bytes at most, where the paper's has no end: 10^5 users of
    512-D answers take 0.2 GB per unit of `memory`. Errors: ValueError for bad parameters and answers
    with NaN; Refused.
    """

    record = Asked

    def __init__(
        self,
        threshold: float,
        measure: Literal["l2", "cosine"] = "cosine",
        projection: Callable[[Tensor], Tensor] | None = None,
        action: Literal["replace", "refuse", "record"] = "replace",
        mean: float = 1000.0,
        std: float = 20.0,
        memory: int = 4096,
        share: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(action, ("replace", "refuse", "record"))
        told = {"threshold": threshold, "mean": mean, "std": std, "share": share}
        reals = [real(value, f"SimilarQueries {name}") for name, value in told.items()]
        self.threshold, self.mean, self.std, self.share = reals
        self._check(self.threshold, measure, self.mean, self.std)
        if not 0 <= self.share < 1:
            raise ValueError(f"SimilarQueries share={share}: from 0 to below 1 is needed")
        self.measure, self.seed = measure, whole(seed, "SimilarQueries seed")
        self.memory = whole(memory, "SimilarQueries memory", 1)
        self._project = _frozen(projection)
        self._projection = identity(self._project) if projection is not None else None

    @staticmethod
    def _check(threshold: float, measure: str, mean: float, std: float) -> None:
        if measure not in ("l2", "cosine"):
            raise ValueError(f"unknown measure {measure!r}: choose 'l2' or 'cosine'")
        low, high = (-1, 1) if measure == "cosine" else (0, math.inf)
        if not low < threshold < high:
            raise ValueError(
                f"SimilarQueries threshold={threshold}: between {low} and {high} is needed for the "
                f"measure {measure!r}"
            )
        if not 0 <= std < math.inf or not math.isfinite(mean):
            raise ValueError(f"SimilarQueries std={std}, mean={mean}: finite, and std 0 or above")

    @torch.no_grad()
    def __call__(self, answers: Tensor, user: str) -> Tensor:
        self._refuse(user)
        mine, points = self._of(user), finite(self._project(finite(answers)))
        if self.measure == "cosine":
            points = F.normalize(points, dim=1)
        hits = torch.cat([self._similar(mine, part) for part in points.split(BLOCK)])
        mine.queries += len(hits)
        mine.similar += int(hits.sum())
        self._refuse(user)
        if self.action != "replace":
            return answers
        draws = generator("similar queries", self.seed, user, mine.calls)
        mine.calls += 1
        noise = torch.randn(answers.shape, generator=draws).to(answers)
        return torch.where(hits[:, None], self.mean + self.std * noise, answers)

    def _similar(self, mine: Asked, points: Tensor) -> Tensor:
        """Compare each point with the `memory` points before it; keep the newest."""
        known = earlier(mine.recent, points)
        every, old = torch.cat([known, points]), len(known)
        if self.measure == "cosine":
            near = points @ every.T > self.threshold
        else:
            near = torch.cdist(points, every) < self.threshold
        mine.recent = every[-self.memory :].clone()
        return near.tril(old - 1).triu(old - self.memory).any(1)

    def statistic(self, user: str) -> float:
        """Return the share of a user's queries that were similar to an earlier one."""
        mine = self._seen(user)
        return mine.similar / max(mine.queries, 1)

    def flagged(self, user: str) -> bool:
        """Return whether more than `share` of at least 100 queries were similar."""
        return self._seen(user).queries >= FEWEST and self.statistic(user) > self.share

    def __repr__(self) -> str:
        told = [f"threshold={self.threshold!r}", f"measure={self.measure!r}"]
        told += [f"projection={self._projection!r}"] * (self._projection is not None)
        told += [f"action={self.action!r}", f"mean={self.mean!r}", f"std={self.std!r}"]
        told += [f"memory={self.memory}", f"share={self.share!r}"]
        return f"SimilarQueries({', '.join(told + [f'seed={self.seed}'] * bool(self.seed))})"


def _frozen(projection: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
    """Return what to compare answers by; a module's copy is in eval mode and cannot be trained on."""
    if projection is None:
        return _as_is
    if not isinstance(projection, nn.Module):
        return projection
    return copy.deepcopy(projection).eval().requires_grad_(False)


def _as_is(answers: Tensor) -> Tensor:
    return answers
