"""Tidy tables for the figures: sweeps over attacks, budgets, seeds and defences, and their frame."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Protocol
from unittest.mock import patch

import joblib
import pandas as pd
from tqdm.auto import tqdm

from contsteal import encoders, evaluate, runs
from contsteal.defenses import Defense
from contsteal.experiment import Lab

PRICE = 1.0  # US dollars for 1,000 answers, where a profile states none
WORKERS = "CONTSTEAL_WORKERS"  # processes of a notebook that shares the machine with others
VARYING = ("forwards", "seconds")  # what no two runs share: shown, and kept out of stored tables


class Work(Protocol):
    """What `run` runs, side by side on a CPU: it returns rows, and why they were computed."""

    lab: tuple[tuple[str, Any], ...]

    def run(self, lab: Lab) -> tuple[list[dict[str, Any]], list[str]]: ...


@dataclass(frozen=True)
class Job:
    """One attack and the tasks it is scored on; `lab` holds changes of the profile's settings."""

    attack: str
    queries: int
    seed: int
    tasks: tuple[str, ...]
    defenses: tuple[Defense, ...]
    changes: tuple[tuple[str, Any], ...] = ()
    lab: tuple[tuple[str, Any], ...] = ()

    def run(self, lab: Lab) -> tuple[list[dict[str, Any]], list[str]]:
        """Steal, score, and return one row per task with what it cost in queries, and why it ran."""
        lab = lab.but(**dict(self.lab))
        stolen = lab.steal(
            self.attack, self.queries, self.seed, self.defenses, **dict(self.changes)
        )
        about = {"attack": self.attack, "images": self.queries, "seed": self.seed, **stolen.queries}
        about["usd"] = round(stolen.queries["calls"] * lab.settings.get("price", PRICE) / 1000, 6)
        about["seconds"] = stolen.seconds
        rows = [about | {"task": t, **lab.score(stolen.encoder, t)} for t in self.tasks]
        told, lab.told = lab.told, []
        return rows, told


@dataclass(frozen=True)
class Exam:
    """An encoder to be scored on tasks, and what its rows say of it."""

    about: dict[str, Any]
    net: encoders.Encoder
    tasks: tuple[str, ...]
    lab: tuple[tuple[str, Any], ...] = ()

    def run(self, lab: Lab) -> tuple[list[dict[str, Any]], list[str]]:
        """Score, and return one row per task, and why it was computed."""
        lab = lab.but(**dict(self.lab))
        rows = [self.about | {"task": t, **lab.score(self.net, t)} for t in self.tasks]
        told, lab.told = lab.told, []
        return rows, told


@cache
def _worker_lab(profile: str, changes: str) -> Lab:
    return Lab(profile, **json.loads(changes))


def _in_worker(profile: str, changes: str, job: Work) -> tuple[list[dict[str, Any]], list[str]]:
    return job.run(_worker_lab(profile, changes))


@contextmanager
def _quiet() -> Iterator[None]:
    """Let the workers start without progress bars of their own: they would share one terminal."""
    with patch.dict(os.environ, {"TQDM_DISABLE": "1"}):
        yield


def run(lab: Lab, jobs: Sequence[Work]) -> list[dict[str, Any]]:
    """Run jobs, tell what was computed and why, and return all rows."""
    bar = {"desc": "runs", "total": len(jobs), "disable": len(jobs) < 2}
    found = list(tqdm(_each(lab, jobs), **bar))
    for line in reasons([reason for _, told in found for reason in told]):
        print(line)
    return [row for rows, _ in found for row in rows]


def reasons(told: Iterable[str]) -> list[str]:
    """Return one line per kind of artifact: how many were computed, and why.

    The members of a sweep differ from each other, each in its own way: that is said once, without values.
    """
    kinds: dict[str, Counter[str]] = {}
    for kind, _, cause in (reason.partition(": ") for reason in told):
        kinds.setdefault(kind, Counter())[cause] += 1
    lines = []
    for kind, causes in kinds.items():
        brief: Counter[str] = Counter()
        for cause, count in causes.items():
            one = " -> " not in cause or len(causes) == 1
            brief[cause if one else "new settings"] += count
        counted = ", ".join(f"{c} ({n})" if c else f"({n})" for c, n in brief.items())
        lines.append(f"{kind}{':' if any(brief) else ''} {counted}")
    return lines


def _each(lab: Lab, jobs: Sequence[Work]) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """Run jobs, one process per core on a CPU (a run uses one thread), one by one on a GPU."""
    own = lab.settings.get("workers", int(os.environ.get(WORKERS, runs.cores())))
    workers = min(own, len(jobs))
    if workers < 2 or lab.device.type != "cpu":
        yield from (job.run(lab) for job in jobs)
        return
    for changes in {repr(job.lab): job.lab for job in jobs}.values():
        _ = lab.but(**dict(changes)).victim  # made here, once, not by every worker
    own = json.dumps(lab.changes)  # settings are what YAML holds; some cannot be hashed
    with _quiet(), joblib.parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        yield from joblib.Parallel(return_as="generator")(
            joblib.delayed(_in_worker)(lab.profile, own, job) for job in jobs
        )


def sweep(
    lab: Lab,
    attacks: Sequence[str],
    queries: Sequence[int],
    seeds: Sequence[int],
    tasks: Sequence[str],
    defenses: Sequence[Defense] = (),
    **changes: Any,
) -> pd.DataFrame:
    """Run every combination of attack, number of query images and seed; one row per run and task.

    `changes` are fields of `steal.Config`. Each row has what it cost (`unique_inputs`, `calls`, `usd`
    at the profile's price, and in this run the victim's `forwards` and `seconds`) and what the
    surrogate is worth (`accuracy`, `agreement`, `knn`, `cka`, `cosine`).
    """
    jobs = [
        Job(*point, tuple(tasks), tuple(defenses), tuple(sorted(changes.items())))
        for point in product(attacks, queries, seeds)
    ]
    return pd.DataFrame(run(lab, jobs))


def references(lab: Lab, tasks: Iterable[str], seeds: Iterable[int]) -> pd.DataFrame:
    """Return the rows that frame every table: the random floor per seed, and the victim."""
    nets = [("random", s, lab.random(s)) for s in seeds] + [("victim", 0, lab.victim.encoder)]
    exams = [Exam({"attack": name, "seed": seed}, net, tuple(tasks)) for name, seed, net in nets]
    return pd.DataFrame(run(lab, exams))


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
