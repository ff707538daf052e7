"""PRADA: the distances between a user's queries are nearly normal, those of crafted queries are not.

Juuti et al., EuroS&P 2019; code SSGAalto/prada-protecting-against-dnn-model-stealing-attacks.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal.defenses.state import PerUser, earlier, identity, real, whole
from contsteal.seeds import generator
from contsteal.victim import finite

FEWEST_QUERIES = 100  # no verdict on a user before this many queries
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
        return self._seen(user).queries >= FEWEST_QUERIES and self.statistic(user) > self.share

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


EVERY = 10  # queries between two tests
FEWEST_DISTANCES = 10  # distances a class needs to be pooled
POOLED = 100  # the test needs more distances than this
NEWEST = 5000  # distances kept; scipy vouches for Shapiro-Wilk up to here
PRADA_BLOCK = 256  # rows compared at once


@dataclass
class Watched:
    """A user's growing sets, one per class, the distances to them, and the latest verdict."""

    members: Tensor = field(default_factory=lambda: torch.empty(0))
    classes: list[int] = field(default_factory=list)  # of the members
    gaps: list[float] = field(default_factory=list)  # at which these joined; 0 for a class's first
    thresholds: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    distances: list[float] = field(default_factory=list)
    of: list[int] = field(default_factory=list)  # the classes these distances belong to
    queries: int = 0
    calls: int = 0
    shapiro: float = 1.0
    flagged: bool = False


class Prada(Detector[Watched]):
    """Flag a user whose nearest distances are not normal: Shapiro-Wilk W < `threshold`.

    A class's set takes in a query whose least L2 distance to it is above T = max(T, mean - std of the
    distances at which members joined). Every 10 queries the distances of all queries, the newest 5,000
    here, of classes with at least 10, less those 3 std or more off the mean, are tested if above 100
    remain.

    PRADA measures distances between inputs; a defence sees answers, so they are measured there.
    `classes`: "argmax" of the answer for posteriors and logits, "one" for embeddings, which have none.
    `action` on a flagged user: "shuffle" the three largest coordinates as the code does, "refuse", or
    only "record". As in the code, a verdict is the latest test's; where refused, it stays. Natural
    images sent by an encoder thief look like a customer's (Dziedzic et al., 5.3).

    Memory per user grows to 4 `memory` D bytes and 0.3 MB at most, where the paper's sets never stop;
    a set is full at `memory`. A query waits for the one before it: the sets' rule is sequential.
    Errors: ValueError for bad parameters and answers with NaN; Refused.
    """

    record = Watched

    def __init__(
        self,
        threshold: float = 0.9,
        classes: Literal["one", "argmax"] = "one",
        action: Literal["shuffle", "refuse", "record"] = "shuffle",
        memory: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(action, ("shuffle", "refuse", "record"))
        self.threshold, self.seed = real(threshold, "Prada threshold"), whole(seed, "Prada seed")
        if not 0 < self.threshold < 1:
            raise ValueError(f"Prada threshold={threshold}: between 0 and 1 is needed, as W is")
        if classes not in ("one", "argmax"):
            raise ValueError(f"unknown classes {classes!r}: choose 'one' or 'argmax'")
        self.classes, self.memory = classes, whole(memory, "Prada memory", 1)

    @torch.no_grad()
    def __call__(self, answers: Tensor, user: str) -> Tensor:
        self._refuse(user)
        mine, caught = self._of(user), []
        for part in finite(answers).split(PRADA_BLOCK):
            caught.append(self._watch(mine, part))
            self._refuse(user)
        if self.action != "shuffle":
            return answers
        draws = generator("prada", self.seed, user, mine.calls)
        mine.calls += 1
        return torch.where(torch.cat(caught)[:, None], _shuffled(answers, draws), answers)

    def _watch(self, mine: Watched, part: Tensor) -> Tensor:
        """Take in one query after the other; return (N,) the verdict after each."""
        labels, links = self._links(mine, part)
        old = len(mine.members)
        least = links[:, :old].min(1, initial=np.inf)
        joined, verdicts = [], torch.zeros(len(part), dtype=torch.bool)
        for i, label in enumerate(labels.tolist()):
            if self._joins(mine, label, float(least[i])):
                joined.append(i)
                least = np.minimum(least, links[:, old + i])
            mine.queries += 1
            if mine.queries % EVERY == 1:
                self._test(mine)
            verdicts[i] = mine.flagged
            if mine.flagged and self.action == "refuse":
                break
        mine.members = torch.cat([earlier(mine.members, part), part[joined]])
        return verdicts.to(part.device)

    def _links(self, mine: Watched, part: Tensor) -> tuple[Tensor, np.ndarray]:
        """Return classes (N,), and distances to members and each other, infinite across classes."""
        labels = part.argmax(1).cpu() if self.classes == "argmax" else torch.zeros(len(part)).long()
        links = torch.cdist(part, torch.cat([earlier(mine.members, part), part])).double().cpu()
        others = torch.cat([torch.tensor(mine.classes, dtype=torch.long), labels])
        return labels, links.masked_fill(labels[:, None] != others, torch.inf).numpy()

    def _joins(self, mine: Watched, label: int, distance: float) -> bool:
        """Return whether a query joins its class's set, and note its distance."""
        first = distance == np.inf
        if label >= len(mine.thresholds):
            grown = mine.thresholds.new_zeros(label + 1 - len(mine.thresholds))
            mine.thresholds = torch.cat([mine.thresholds, grown])
        if not first:
            mine.distances.append(distance)
            mine.of.append(label)
        if len(mine.gaps) >= self.memory or not (first or distance > mine.thresholds[label]):
            return False
        mine.gaps.append(0.0 if first else distance)
        mine.classes.append(label)
        gaps = np.array(mine.gaps)[np.array(mine.classes) == label]
        higher = max(mine.thresholds[label].item(), gaps.mean() - gaps.std())
        mine.thresholds[label] = higher
        return True

    def _test(self, mine: Watched) -> None:
        """Test the pooled distances for normality; too few leave the verdict as it is."""
        del mine.distances[:-NEWEST], mine.of[:-NEWEST]
        if len(mine.distances) <= POOLED:
            return
        classes, pooled = np.array(mine.of), np.array(mine.distances)
        pooled = pooled[np.bincount(classes)[classes] >= FEWEST_DISTANCES]
        pooled = (
            pooled[np.abs(pooled - pooled.mean()) < 3 * pooled.std()] if len(pooled) else pooled
        )
        if len(pooled) > POOLED:
            from scipy.stats import shapiro  # half a second to import: not for every notebook

            mine.shapiro = float(shapiro(pooled).statistic)
            mine.flagged = mine.shapiro < self.threshold

    def statistic(self, user: str) -> float:
        """Return W of the latest test on a user; 1 before the first."""
        return self._seen(user).shapiro

    def flagged(self, user: str) -> bool:
        """Return whether W of the latest test was below `threshold`."""
        return self._seen(user).flagged

    def __repr__(self) -> str:
        told = [f"threshold={self.threshold!r}", f"classes={self.classes!r}"]
        told += [f"action={self.action!r}", f"memory={self.memory}"]
        return f"Prada({', '.join(told + [f'seed={self.seed}'] * bool(self.seed))})"


def _shuffled(answers: Tensor, draws: torch.Generator) -> Tensor:
    """Return answers whose three largest coordinates changed places, each row its own way."""
    top = answers.topk(min(3, answers.shape[1]), dim=1)
    order = torch.rand(top.values.shape, generator=draws).argsort(1).to(answers.device)
    return answers.scatter(1, top.indices, top.values.gather(1, order))
