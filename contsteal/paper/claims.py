"""The claims that stored results can test: `claims.yaml`, read and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from contsteal.lab import artifacts, profiles, tables

PATH = artifacts.PACKAGE / "claims.yaml"
BUDGETS = ("images", "unique_inputs", "calls")
Filters = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """One claim: who says it, which rows of which table it compares, and what must come out.

    `where` filters the rows, `a` and `b` the two sides of a comparison (`order`: each of its sides
    beats the next), as `matching.expand` reads them. The `metric` of a minus b, or of a alone, or as a
    share of b's, must lie where `test` and `threshold` say (`evidence.REGIONS`), with at least `seeds`
    seeds. Both sides of a pair must agree in the columns `equal`, where the table has them; `mean_over`
    averages over these columns first. `within` limits a share's distinct inputs to a part of the
    victim's training set. `premise` is a difference (a, b, threshold) without which there is nothing to
    test. `says` is what this repository says of a profile itself.
    """

    id: str
    text: str
    source: str
    stem: str
    test: str
    threshold: float
    seeds: int
    metric: str = "accuracy"
    where: Filters = field(default_factory=dict)
    a: Filters = field(default_factory=dict)
    b: Filters = field(default_factory=dict)
    order: Sequence[Filters] = ()
    equal: Sequence[str] = BUDGETS
    mean_over: Sequence[str] = ()
    within: float = 0.0
    premise: Filters = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The columns that its table must have; the budgets are compared where there are any."""
        sides = [self.where, self.a, self.b, *self.order]
        sides += [self.premise.get("a", {}), self.premise.get("b", {})]
        asked = [c for side in sides for c in side]
        asked += [c for c in self.equal if self.equal is not BUDGETS]
        asked += ["unique_inputs"] if self.within else []
        return list(dict.fromkeys([*asked, self.metric, *self.mean_over]))


KINDS: dict[str, tuple[type, ...]] = {
    "id": (str,), "text": (str,), "source": (str,), "stem": (str,), "test": (str,), "metric": (str,),
    "threshold": (int, float), "within": (int, float), "seeds": (int,), "where": (dict,), "a": (dict,),
    "b": (dict,), "premise": (dict,), "says": (dict,), "order": (list,), "equal": (list,),
    "mean_over": (list,),
}  # fmt: skip
NEEDS = {
    "difference": ("a", "b"), "equivalence": ("a", "b"), "share": ("a", "b"), "above": ("a",),
    "below": ("a",), "order": ("order",),
}  # fmt: skip


def _check(given: object, place: str) -> None:
    """Raise ValueError for an entry with unknown, missing or mistyped fields."""
    if not isinstance(given, dict):
        raise ValueError(f"{place}: {given!r} is no mapping of fields to values")
    needed = [f.name for f in fields(Claim) if f.default is f.default_factory is MISSING]
    for name in given:
        if name not in KINDS:
            raise ValueError(f"{place}: no field {name!r}; a claim has {', '.join(KINDS)}")
    for name in needed:
        if name not in given:
            raise ValueError(f"{place}: field {name!r} is missing; needed are {', '.join(needed)}")
    for name, value in given.items():
        if type(value) not in KINDS[name] or value == "":
            kinds = " or ".join(k.__name__ for k in KINDS[name])
            raise ValueError(f"{place}: {name}={value!r} must be {kinds}, and not empty")


def _check_test(given: dict[str, Any], place: str) -> None:
    """Raise ValueError for an unknown test, and for sides that it has not or misses."""
    test, known = given["test"], NEEDS
    if test not in known:
        raise ValueError(f"{place}: unknown test {test!r}: choose one of {', '.join(known)}")
    wanted = set(NEEDS[test])
    sides = {name for name in ("a", "b", "order") if given.get(name)}
    if sides != wanted or len(given.get("order", [0, 0])) < 2:
        raise ValueError(
            f"{place}: the test {test!r} compares {', '.join(NEEDS[test])} (an order has at least two "
            f"sides), given are {', '.join(sorted(sides)) or 'none'}"
        )
    if test == "equivalence" and given["threshold"] <= 0:
        raise ValueError(f"{place}: threshold={given['threshold']}: a margin is above 0")
    if given["seeds"] < 2:
        raise ValueError(f"{place}: seeds={given['seeds']}: an interval needs at least 2")
    premise = given.get("premise")
    if premise is not None and set(premise) != {"a", "b", "threshold"}:
        raise ValueError(f"{place}: premise={premise}: it has a, b and threshold")
    if bool(given.get("within")) != (test == "share"):
        raise ValueError(f"{place}: `within` belongs to the test 'share', and is needed there")


def _check_says(given: dict[str, Any], place: str) -> None:
    """Raise ValueError for what is said of unknown profiles, or is no verdict."""
    for profile, said in given.get("says", {}).items():
        if profile not in profiles.names():
            known = ", ".join(profiles.names())
            raise ValueError(f"{place}, says: unknown profile {profile!r}: choose one of {known}")
        if said not in tables.VERDICTS[:-1]:
            known = ", ".join(tables.VERDICTS[:-1])
            raise ValueError(f"{place}, says, {profile}: {said!r} is no verdict: choose {known}")


def load(path: Path = PATH) -> list[Claim]:
    """Return the claims of a file, in its order.

    Errors: ValueError with the place for text that is no YAML or no list, and for unknown, missing,
    mistyped or repeated fields, tests, profiles and verdicts.
    """
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML: {error}") from error
    if not isinstance(found, list) or not found:
        raise ValueError(f"{path.name}: a list of claims is needed, each with - id: ...")
    claims: list[Claim] = []
    for number, given in enumerate(found, 1):
        name = given.get("id", "?") if isinstance(given, dict) else "?"
        place = f"{path.name}, claim {number} ({name})"
        for check in (_check, _check_test, _check_says):
            check(given, place)
        if name in {c.id for c in claims}:
            raise ValueError(f"{place}: another claim has this id")
        claims.append(Claim(**given))
    return claims
