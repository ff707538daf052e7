"""Whom an owner examines: victims, obfuscated copies, independent encoders, stolen ones, as jobs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from torch import nn

from contsteal import independent, runs
from contsteal.experiment import Lab
from contsteal.independent import Strangers
from contsteal.obfuscate import OBFUSCATIONS

Thieves = Mapping[str, Mapping[str, Any]]
Row = dict[str, Any]
KINDS = ("victim", "unmarked", "obfuscated", "stolen", "independent")


@dataclass(frozen=True)
class Suspect:
    """One encoder to be examined, by what makes it; `kind` is one of KINDS.

    "unmarked" is the victim before it was marked, "obfuscated" the victim's own weights behind a map of
    `obfuscate`. A stolen one has the query `images` and an attack's `changes`.
    """

    kind: str
    name: str
    seed: int = 0
    images: int | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    how: Strangers = field(default_factory=Strangers)

    def find(self, lab: Lab, there: Lab) -> nn.Module:
        """Return the encoder; `there` is the lab whose victim was attacked, `lab` the unmarked one."""
        if self.kind == "stolen":
            return there.steal(queries=self.images, seed=self.seed, **dict(self.changes)).encoder
        if self.kind == "independent":
            return independent.train(lab, self.how, self.seed).encoder
        if self.kind == "unmarked":
            return lab.train("victim", lab.method).encoder
        net = there.victim.encoder
        return OBFUSCATIONS[self.name](net) if self.kind == "obfuscated" else net

    @property
    def about(self) -> Row:
        """What each of its rows says of it."""
        return {"kind": self.kind, "suspect": self.name, "seed": self.seed, "images": self.images}


@dataclass(frozen=True)
class Trial:
    """One suspect, made where need be, and a test of it; `lab` holds changes of the settings."""

    suspect: Suspect
    test: Callable[[Lab, nn.Module], list[Row]]
    lab: tuple[tuple[str, Any], ...] = ()

    def run(self, lab: Lab) -> tuple[list[Row], list[str]]:
        """Return the test's rows, each beside what tells the suspect, and what was computed and why."""
        there = lab.but(**dict(self.lab))
        net = self.suspect.find(lab, there)
        with runs.single_thread():
            rows = self.test(there, net)
        told = [reason for one in {id(x): x for x in (lab, there)}.values() for reason in one.told]
        lab.told, there.told = [], []
        return [self.suspect.about | row for row in rows], told


@dataclass(frozen=True)
class Training:
    """What trials need first, run beside others: an independent encoder, or a victim's mark."""

    suspect: Suspect
    mark: tuple[tuple[str, Any], ...] = ()
    lab: tuple[tuple[str, Any], ...] = ()

    def run(self, lab: Lab) -> tuple[list[Row], list[str]]:
        """Train, or read back; return the seconds that it took."""
        there = lab.but(watermark=dict(self.mark)) if self.mark else lab
        own = self.suspect
        made = there.victim if self.mark else independent.train(lab, own.how, own.seed)
        told, there.told = there.told, []
        return [self.suspect.about | {"seconds": made.seconds}], told


def strangers(how: Strangers) -> Iterator[Suspect]:
    """Yield the independent encoders; ValueError for a count below 0."""
    if how.count < 0:
        raise ValueError(f"{how.count} independent encoders: 0 or more are needed")
    return (Suspect("independent", "independent", k, how=how) for k in range(how.count))


def stolen(thieves: Thieves, budgets: Sequence[int], seeds: Sequence[int]) -> Iterator[Suspect]:
    """Yield a surrogate per thief, budget and seed; a thief's changes name its `attack`."""
    for (name, changes), images, seed in product(thieves.items(), budgets, seeds):
        yield Suspect("stolen", name, seed, images, tuple(sorted(changes.items())))


def copies() -> Iterator[Suspect]:
    """Yield the victim's weights behind each obfuscation."""
    return (Suspect("obfuscated", name) for name in OBFUSCATIONS)
