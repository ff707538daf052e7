"""Comparisons that change one thing at a time: ablations, loss tables, and where which attack wins."""

import copy
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Protocol
from unittest.mock import patch

import joblib
import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from contsteal import encoders, evaluate, steal
from contsteal.defenses.b4b import B4B
from contsteal.lab import artifacts
from contsteal.lab.experiment import Lab
from contsteal.victim import Defense

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
    own = lab.settings.get("workers", int(os.environ.get(WORKERS, artifacts.cores())))
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


# Knobs that are the profile's, not the attack's.
OF_LAB = ("data", "train_split", "method", "query_data", "query_split", "query_images")
AS_GIVEN = "as given"
Pairs = tuple[tuple[str, Any], ...]


def _split(lab: Lab, given: Mapping[str, Any]) -> tuple[Pairs, Pairs]:
    """Return an attack's changes, and those of the profile that differ from what it says already."""
    given = {k: v for knob in given.items() for k, v in _unfolded(*knob)}
    own = lab.settings | {"method": lab.method or lab.settings["victim"].get("method")}
    attack = sorted((k, v) for k, v in given.items() if k not in OF_LAB)
    return tuple(attack), tuple(
        sorted((k, v) for k, v in given.items() if k in OF_LAB and v != own[k])
    )


def _unfolded(knob: str, value: Any) -> Pairs:
    """Return `name@split` as a set and its split; a set without one means its `train`."""
    if knob not in ("data", "query_data"):
        return ((knob, value),)
    name, _, split = value.partition("@")
    return (knob, name), (
        "query_split" if knob == "query_data" else "train_split",
        split or "train",
    )


def of_lab(lab: Lab, **given: Any) -> dict[str, Any]:
    """Return those changes of the profile that differ from what it says already, for `lab.but`."""
    return dict(_split(lab, given)[1])


def _table(lab: Lab, points: Sequence[tuple[dict[str, Any], Job]]) -> pd.DataFrame:
    """Run the jobs side by side; return their rows, each beside what its point says of it."""
    rows = run(lab, [job for _, job in points])
    said = [about for about, job in points for _ in job.tasks]
    return pd.DataFrame([about | row for about, row in zip(said, rows, strict=True)])


def ablate(
    lab: Lab,
    attack: str,
    knobs: Mapping[str, Sequence[Any]],
    queries: int,
    seeds: Sequence[int],
    task: str,
) -> pd.DataFrame:
    """Run an attack as given, then with one knob changed at a time, at the same number of queries.

    Knobs are fields of steal.Config, or the profile's data, query_data (a set, or set@split) or the
    victim's method. "Same number" is of images: more answers an image cost more. Rows
    are those of `tables.sweep` with `knob` and `value`.
    """
    settings = [(AS_GIVEN, ""), *((k, v) for k, values in knobs.items() for v in values)]
    points = []
    for (knob, value), seed in product(settings, seeds):
        changed = {} if knob == AS_GIVEN else {knob: value}
        job = Job(attack, queries, seed, (task,), (), *_split(lab, changed))
        points.append(({"knob": knob, "value": str(value)}, job))
    return _table(lab, points)


def losses(
    lab: Lab,
    attacks: Sequence[str],
    victim_data: Sequence[str],
    queries: int,
    seeds: Sequence[int],
    tasks: Sequence[str],
) -> pd.DataFrame:
    """Run every attack on the victim of each data set, which is queried with its own images."""
    points = []
    for victim, attack, seed in product(victim_data, attacks, seeds):
        changes = _split(lab, {"data": victim, "query_data": victim})
        job = Job(attack, queries, seed, tuple(tasks), (), *changes)
        points.append(({"victim": victim}, job))
    return _table(lab, points)


def elsewhere(
    lab: Lab,
    attacks: Sequence[str],
    sources: Sequence[tuple[str, str, int]],
    seeds: Sequence[int],
    tasks: Sequence[str],
) -> pd.DataFrame:
    """Run attacks on the profile's victim with queries from elsewhere: (data set, split, images)."""
    points = []
    for (name, split, images), attack, seed in product(sources, attacks, seeds):
        pool = max(images, lab.settings["query_images"])
        given = {"query_data": f"{name}@{split}", "query_images": pool}
        name = name if split == "train" else f"{name}@{split}"
        job = Job(attack, images, seed, tuple(tasks), (), *_split(lab, given))
        points.append(({"victim": lab.settings["data"], "query_data": name}, job))
    return _table(lab, points)


def grid(
    lab: Lab,
    attacks: Sequence[str],
    axes: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    tasks: Sequence[str],
) -> pd.DataFrame:
    """Run attacks on every point of a grid; `axes` are knobs as in `ablate`, and `images`.

    All attacks of a point see the same images. Rows have the axes' columns; where `epochs` is one of
    them, also `steps`, the optimizer's steps of the training.
    """
    batch = lab.settings["surrogate"].get("batch", steal.Config.batch)
    points = []
    for values in product(*axes.values()):
        at = dict(zip(axes, values, strict=True))
        size = min(batch, at["images"])
        told = {"steps": at["epochs"] * (at["images"] // size)} if "epochs" in at else {}
        knobs = {k: v for k, v in at.items() if k != "images"} | {"batch": size}
        for attack, seed in product(attacks, seeds):
            job = Job(attack, at["images"], seed, tuple(tasks), (), *_split(lab, knobs))
            points.append((at | told, job))
    return _table(lab, points)


def landscapes(
    lab: Lab, methods: Sequence[str], query_data: Sequence[str], count: int
) -> pd.DataFrame:
    """Describe the victims' embeddings of query images (`evaluate.geometry`), per method and data."""
    rows = []
    for method, name in product(methods, query_data):
        there = lab.but(**dict(_split(lab, {"method": method, "query_data": name})[1]))
        images = there.queries(count)
        with artifacts.single_thread():
            found = evaluate.geometry(encoders.embed(there.victim.encoder, images))
        rows.append({"method": method, "query_data": name} | found)
    return pd.DataFrame(rows)


def coverage(defense: B4B, users: Mapping[str, Tensor], step: int) -> pd.DataFrame:
    """Return how much of the embedding space each user's answers (N, D) cover, every `step` answers.

    Rows have the user, `queries`, `coverage` from 0 to 1 and the `noise` that it brings (B4B).
    """
    rows = []
    for name, answers in users.items():
        watching, asked = copy.deepcopy(defense), 0
        for part in answers.split(step):
            watching(part, name)
            asked += len(part)
            share = watching.coverage(name)
            noise = float(watching.sigma(share))
            rows.append({"user": name, "queries": asked, "coverage": share, "noise": noise})
    return pd.DataFrame(rows)
