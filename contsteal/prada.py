"""PRADA: the distances between a user's queries are nearly normal, those of crafted queries are not.

Juuti et al., EuroS&P 2019; code SSGAalto/prada-protecting-against-dnn-model-stealing-attacks.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from contsteal.detection import Detector
from contsteal.remember import earlier, finite, real, whole
from contsteal.seeds import generator

EVERY = 10  # queries between two tests
FEWEST = 10  # distances a class needs to be pooled
POOLED = 100  # the test needs more distances than this
NEWEST = 5000  # distances kept; scipy vouches for Shapiro-Wilk up to here
BLOCK = 256  # rows compared at once


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
        for part in finite(answers).split(BLOCK):
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
        pooled = pooled[np.bincount(classes)[classes] >= FEWEST]
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
