"""What a few seeds say about a claim: intervals, and verdicts that are given only where they suffice.

A claim names a region in which a mean must lie. It holds where the 95 % t-interval over seeds lies
inside the region in every comparison that the claim makes. It does not hold where, in one of them, the
interval lies outside; among k comparisons that interval has the level 1 - 0.05/k (Bonferroni), since
one of many may stray by chance. Anything else, and anything from too few seeds, is no verdict.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import pandas as pd

from contsteal import evaluate
from contsteal.lab import artifacts


def summary(table: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Return mean, 95 % t-interval over seeds and n of each metric per group, in order of appearance."""

    def line(values: pd.Series) -> str:
        if values.isna().all():
            return "-"
        mean, low, high = evaluate.mean_interval(values)
        return f"{100 * mean:.1f}{_span(low, high)}"

    table = table.assign(**{name: table[name].map(_word) for name in by})
    groups = table.groupby(list(by), sort=False)
    costs = {"unique_inputs": "distinct inputs", "calls": "answers", "usd": "US dollars"}
    spent = groups[[c for c in costs if c in table]].mean().round(3).rename(columns=costs)
    spent = spent.map(lambda cost: "-" if pd.isna(cost) else f"{cost:g}")
    return spent.join(groups[list(metrics)].agg(line)).assign(n=groups.size())


def _word(value: object) -> object:
    """Return a group's name; floor and victim have no views, budget or defence."""
    if pd.isna(value):
        return "-"
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _span(low: float, high: float) -> str:
    """Format an interval; nothing where there is none (one run, or equal runs)."""
    return f" [{100 * low:.1f}, {100 * high:.1f}]" if high - low > 1e-9 else ""


def difference(
    table: pd.DataFrame, a: str, b: str, metric: str = "accuracy", level: float = 0.95
) -> tuple[float, float, float, int]:
    """Return mean, t-interval (95 %, or `level`) and n of a's minus b's metric, paired by seed."""
    wide = table.pivot_table(index="seed", columns="attack", values=metric)
    pairs = (wide[a] - wide[b]).dropna()
    return *evaluate.mean_interval(pairs, level), len(pairs)


def effect(table: pd.DataFrame, a: str, b: str, metric: str = "accuracy") -> float:
    """Return the effect size of paired runs, Cohen's d_z: mean over standard deviation of a - b."""
    wide = table.pivot_table(index="seed", columns="attack", values=metric)
    pairs = (wide[a] - wide[b]).dropna()
    return float(pairs.mean() / pairs.std()) if len(pairs) > 1 and pairs.std() > 0 else float("nan")


def points(found: tuple[float, float, float, int]) -> str:
    """Format a difference in percentage points with its interval."""
    mean, low, high, _ = found
    return f"{100 * mean:+.1f} points{_span(low, high)}"


def verdict(table: pd.DataFrame, a: str, b: str, metric: str = "accuracy") -> str:
    """Say in one sentence whether a beats b, as measured, with the paired interval and n."""
    found = difference(table, a, b, metric)
    _, low, high, n = found
    if n < 2:
        return f"{a} against {b}: {points(found)}, one seed proves nothing"
    how = "beats" if low > 0 else "loses to" if high < 0 else "cannot be told from"
    return f"{a} {how} {b}: {points(found)}, {n} seeds"


def percentages(table: pd.DataFrame) -> pd.DataFrame:
    """Return shares as percentages with one decimal."""
    return (100 * table).round(1)


def sentences(told: Sequence[str]) -> str:
    """Join what was told into one sentence; empty parts are left out."""
    return "; ".join(sentence for sentence in told if sentence) + "." if any(told) else ""


POINT = ("method", "query_data", "views", "images", "epochs", "steps")


def gains(table: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Return a's minus b's accuracy at each point of a `grid`: mean, 95 % t-interval, n."""
    rows, axes = [], [c for c in POINT if c in table]
    for at, found in table.groupby(axes, sort=False):
        mean, low, high, n = difference(found, a, b)
        rows.append(dict(zip(axes, at, strict=True))
                    | {"gain": mean, "low": low, "high": high, "n": n})  # fmt: skip
    return pd.DataFrame(rows)


COSTS = {"unique_inputs": "distinct inputs", "calls": "answers"}


def layout(table: pd.DataFrame) -> pd.DataFrame:
    """Return a loss table as the ICML paper lays it out: a row per loss, a column per victim and task.

    Before them stands what a run sends: not all losses cost the same. Published numbers (`published`)
    have rows of their own, where there are any of the same data.
    """
    rows = table.assign(attack=_named(table))
    cells = rows.groupby(["attack", "victim", "task"], sort=False)["accuracy"].agg(_cell)
    wide = cells.unstack(["victim", "task"]).reindex(rows["attack"].unique())
    spent = rows.groupby("attack")[["unique_inputs", "calls"]].mean()
    for place, (cost, label) in enumerate(COSTS.items()):
        wide.insert(place, (label, ""), spent[cost].map("{:g}".format, na_action="ignore"))
    told = published(table)
    if told.empty:
        return wide.fillna("-")
    names = _named(told) + ", " + told["source"]
    theirs = told.assign(attack=names, accuracy=told["accuracy"].map("{:.1f}".format))
    theirs = theirs.pivot(index="attack", columns=["victim", "task"], values="accuracy")
    return pd.concat([wide, theirs]).fillna("-")


def _named(table: pd.DataFrame) -> pd.Series:
    """Return attacks with what they were queried with, where a table tells several sets apart."""
    if (
        "query_data" not in table
        or len(table[["query_data", "images"]].dropna().drop_duplicates()) < 2
    ):
        return table["attack"]
    sent = ", " + table["images"].map("{:g}".format) + " " + table["query_data"].fillna("")
    return table["attack"] + sent.where(table["query_data"].fillna("") != "", "")


def _cell(values: pd.Series) -> str:
    mean, low, high = evaluate.mean_interval(values)
    return f"{100 * mean:.1f}" + ("" if np.isnan(low) else f" +- {50 * (high - low):.1f}")


def published(table: pd.DataFrame) -> pd.DataFrame:
    """Return published accuracies (in %) on a table's victims, tasks and numbers of queries."""
    known = pd.read_csv(artifacts.PACKAGE / "published.csv", comment="#")
    sent = table["query_data"] if "query_data" in table else table["victim"]
    ours = set(zip(table["victim"], sent, table["images"], table["task"], strict=True))
    theirs = zip(known["victim"], known["query_data"], known["images"], known["task"], strict=True)
    found = known[[point in ours for point in theirs]]
    ceiling = known[(known["attack"] == "victim") & known["victim"].isin(found["victim"])]
    ceiling = ceiling[ceiling["task"].isin(found["task"])]
    return pd.concat([found, ceiling]).drop_duplicates().reset_index(drop=True)


def reached(table: pd.DataFrame, share: float, trained_on: int) -> pd.DataFrame:
    """Return per attack the smallest measured budget with `share` of the victim's accuracy.

    Per seed, then mean and 95 % t-interval, in distinct inputs and as a share of the `trained_on`
    images of the victim. An attack that misses it in a seed has no budget: the table says how often.
    """
    goal = share * table.loc[table["attack"] == "victim", "accuracy"].mean()
    rows = {}
    runs_of = table.dropna(subset=["unique_inputs"])
    for name, found in runs_of.groupby("attack", sort=False):
        hits = found[found["accuracy"] >= goal].groupby("seed")["unique_inputs"].min()
        n = found["seed"].nunique()
        mean, low, high = evaluate.mean_interval(hits) if len(hits) == n else [np.nan] * 3
        rows[name] = {"seeds that reach it": f"{len(hits)} of {n}", "distinct inputs": mean,
                      "low": low, "high": high, "share of training set": mean / trained_on}  # fmt: skip
    return pd.DataFrame(rows).T


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
