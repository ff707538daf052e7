"""Verdicts: what the stored results of a profile say about each claim, as objects and as tables."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path

import pandas as pd

from contsteal.lab import artifacts, profiles, tables
from contsteal.lab.tables import ABSENT, FAILS, HOLDS, OPEN, Finding
from contsteal.paper import claims, matching
from contsteal.paper.claims import Claim

NEAR = 0.9  # a share that is missed at less than this part of the limit may yet be reached
# from 0 to 1
PARTS = ("accuracy", "agreement", "knn", "cka", "cosine", "legitimate", "coverage", "wsr")
BETWEEN = ("difference", "order", "equivalence")


@dataclass(frozen=True)
class Verdict:
    """What the results of one profile say about one claim."""

    claim: Claim
    profile: str
    finding: Finding

    @property
    def says(self) -> str:
        """What the repository says about the claim for this profile, or nothing."""
        return self.claim.says.get(self.profile, "")

    @property
    def contradicts(self) -> bool:
        """Whether the repository gives another verdict than its results, or one that they cannot give.

        Too few seeds, or rows that were not measured, contradict nobody; nor does a verdict where the
        repository says that there is not enough evidence.
        """
        known = self.finding.verdict != ABSENT and not self.finding.few
        return known and self.says in (HOLDS, FAILS) and self.says != self.finding.verdict

    @property
    def effect(self) -> str:
        """The effect that decides, with its interval, in points, in percent, or as it is."""
        found, between = self.finding, self.claim.test in BETWEEN
        if isnan(found.mean):
            return "-"
        part = self.claim.metric in PARTS or self.claim.test == "share"
        scale, form = (100, ".1f") if part else (1, ".3g")
        unit = (" points" if between else " %") if part else ""
        told = f"{scale * found.mean:{'+' if between else ''}{form}}{unit}"
        if isnan(found.low) or found.n < 2:
            return told
        return f"{told} [{scale * found.low:{form}}, {scale * found.high:{form}}]"


def _premise(claim: Claim, table: pd.DataFrame) -> str:
    """Say why there is nothing to test, or nothing: what a claim takes for granted must be shown."""
    given = claim.premise
    found, _ = matching.samples(claim, table, given["a"], given["b"])
    region = tables.REGIONS["difference"](given["threshold"])
    seen = tables.decide(found, region, claim.seeds) if found else Finding(ABSENT)
    if seen.verdict == HOLDS:
        return ""
    one, two = (", ".join(map(str, given[side].values())) for side in ("a", "b"))
    return f"({one}) is not shown to be above ({two}): nothing to test"


def _compared(claim: Claim, table: pd.DataFrame) -> tuple[dict[str, pd.Series], list[str]]:
    """Return the values by seed of every comparison of a claim, and what was left out."""
    if claim.test != "order":
        b = claim.b if claim.b else None
        return matching.samples(claim, table, claim.a, b, claim.test == "share")
    found: dict[str, pd.Series] = {}
    left: list[str] = []
    for one, two in zip(claim.order, claim.order[1:], strict=False):
        step, more = matching.samples(claim, table, one, two)
        name = " over ".join(" ".join(map(str, side.values())) for side in (one, two))
        found |= {f"{name}, {k}" if k else name: v for k, v in step.items()}
        left += more or ([] if step else [f"{name}: no rows"])
    return ({}, left) if left else (found, left)  # an order with a gap is none


def _limited(claim: Claim, table: pd.DataFrame, limit: int) -> tuple[pd.DataFrame, bool, str]:
    """Return the rows within a limit of distinct inputs, and whether to miss a share there means it."""
    table, most = matching.largest_within(table, claim.a, limit)
    return table, most >= NEAR * limit, f"at {most:g} of at most {limit} distinct inputs"


def assess(claim: Claim, table: pd.DataFrame, trained_on: int) -> Finding:
    """Return what a table says about a claim; `trained_on` is the victim's number of training images."""
    conclusive, note = True, ""
    if claim.within:
        if not trained_on:
            return Finding(ABSENT, why="the profile does not count the victim's training images")
        table, conclusive, note = _limited(claim, table, int(claim.within * trained_on))
    found, left = _compared(claim, table)
    if not found:
        return Finding(ABSENT, why="; ".join(left) or f"{claim.stem}.csv has no such rows")
    region = tables.REGIONS[claim.test](claim.threshold)
    seen = tables.decide(found, region, claim.seeds, conclusive)
    missing = _premise(claim, table) if claim.premise else ""
    many = f"of {len(found)} comparisons" if len(found) > 1 else ""
    why = "; ".join(filter(None, (seen.name, many, note, seen.why, missing, *left)))
    return replace(seen, verdict=OPEN if missing else seen.verdict, why=why)


def judge(profile: str, listed: Sequence[Claim] | None = None) -> list[Verdict]:
    """Return the verdict on every claim from a profile's stored results.

    Errors: ValueError, naming file and column, for tables that are damaged, lack a column or rows, or
    come from another profile's run.
    """
    folder, tables, found = artifacts.figures_dir() / profile, {}, []
    trained_on = profiles.profile(profile)["common"].get("train_images", 0)
    for claim in claims.load() if listed is None else listed:
        if claim.stem not in tables:
            tables[claim.stem] = matching.read(folder, claim.stem)
        table = tables[claim.stem]
        if table is None:
            finding = Finding(ABSENT, why=f"no {claim.stem}.csv")
        else:
            matching.require(table, claim, folder / f"{claim.stem}.csv")
            finding = assess(claim, table, trained_on)
        found.append(Verdict(claim, profile, finding))
    return found


def stored(folder: Path | None = None) -> list[str]:
    """Return the profiles of which results are stored."""
    folder = folder or artifacts.figures_dir()
    return [name for name in profiles.names() if any((folder / name).glob("*.csv"))]


def frame(profile: str, found: Sequence[Verdict] | None = None) -> pd.DataFrame:
    """Return the verdicts of a profile as a table: claim, verdict, effect with interval, n, source."""
    found = judge(profile) if found is None else found
    rows = [
        {"claim": v.claim.text, "verdict": v.finding.verdict, "effect": v.effect,
         "n": v.finding.n or "-", "decided by": v.finding.why or "-", "source": v.claim.source}
        for v in found
    ]  # fmt: skip
    return pd.DataFrame(rows)


def counted(found: Sequence[Verdict]) -> str:
    """Say how many claims got which verdict."""
    count = Counter(v.finding.verdict for v in found)
    return (
        f"{len(found)} claims: {count[HOLDS]} hold, {count[FAILS]} do not hold, for {count[OPEN]} there "
        f"is not enough evidence, {count[ABSENT]} are not measured"
    )


def markdown(profile: str, short: bool = False) -> list[str]:
    """Return how many claims got which verdict, and their table; `short` keeps what is decided."""
    found = judge(profile)
    shown = [v for v in found if not short or v.finding.verdict in (HOLDS, FAILS)]
    lead = (
        f"The papers' claims and our own, tested on these results (`make check`): {counted(found)}."
    )
    table = frame(profile, shown)
    if short and shown:
        table = table.drop(columns=["decided by"])
    return [lead, table.to_markdown(index=False)] if shown else [lead]
