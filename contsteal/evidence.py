"""What a few seeds say about a claim: intervals, and verdicts that are given only where they suffice.

A claim names a region in which a mean must lie. It holds where the 95 % t-interval over seeds lies
inside the region in every comparison that the claim makes. It does not hold where, in one of them, the
interval lies outside; among k comparisons that interval has the level 1 - 0.05/k (Bonferroni), since
one of many may stray by chance. Anything else, and anything from too few seeds, is no verdict.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from contsteal import evaluate

HOLDS, FAILS, OPEN, ABSENT = "holds", "does not hold", "not enough evidence", "not measured"
VERDICTS = (HOLDS, FAILS, OPEN, ABSENT)
RISK = 0.05
SAME = 1e-9  # values of all seeds nearer than this are one measurement, repeated

Region = tuple[float, float]
REGIONS: dict[str, Callable[[float], Region]] = {
    "difference": lambda t: (t, inf),
    "order": lambda t: (t, inf),
    "share": lambda t: (t, inf),
    "above": lambda t: (t, inf),
    "below": lambda t: (-inf, t),
    "equivalence": lambda t: (-t, t),
}


@dataclass(frozen=True)
class Finding:
    """A verdict and the comparison that decides it: mean, 95 % t-interval, seeds, name, and why.

    The bounds are NaN for one seed. `few` says that there were fewer seeds than asked.
    """

    verdict: str
    mean: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    n: int = 0
    name: str = ""
    why: str = ""
    few: bool = False


def seeds(values: Sequence[float]) -> int:
    """Return how many measurements these are: what is equal in all seeds was measured once."""
    return 1 if max(values) - min(values) < SAME else len(values)


def _inside(bounds: Region, region: Region) -> bool:
    return region[0] < bounds[0] and bounds[1] < region[1]


def _outside(bounds: Region, region: Region) -> bool:
    return bounds[1] < region[0] or bounds[0] > region[1]


def _room(found: Finding, region: Region) -> float:
    """Return how far a mean lies inside the region; below zero outside."""
    return min(found.mean - region[0], region[1] - found.mean)


def _measure(name: str, values: Sequence[float]) -> Finding:
    return Finding(OPEN, *evaluate.mean_interval(values), n=seeds(values), name=name)


def decide(
    samples: Mapping[str, Sequence[float]], region: Region, needed: int, conclusive: bool = True
) -> Finding:
    """Return the verdict on a claim from the values per seed of each comparison that it makes.

    The finding shows the comparison with the least room. Fewer than `needed` seeds in one of them give
    no verdict; nor does a failure that is not `conclusive`. Errors: ValueError for none or one needed.
    """
    if needed < 2 or not samples:
        raise ValueError(
            f"{len(samples)} comparisons of {needed} seeds: take at least 1 of at least 2"
        )
    found = {name: _measure(name, values) for name, values in samples.items()}
    order = sorted(found, key=lambda name: _room(found[name], region))
    worst, count = found[order[0]], min(f.n for f in found.values())
    if count < needed:
        what = "seeds" if count > 1 else "measurements"
        return replace(worst, why=f"{count} of {needed} {what}", few=True)
    if all(_inside((f.low, f.high), region) for f in found.values()):
        return replace(worst, verdict=HOLDS)
    level = 1 - RISK / len(samples)
    for name in order:
        if conclusive and _outside(evaluate.mean_interval(samples[name], level)[1:], region):
            return replace(found[name], verdict=FAILS)
    return worst
