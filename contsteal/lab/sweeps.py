"""Comparisons that change one thing at a time, run side by side: tables with one row per run and task."""

import copy
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product as combinations
from numbers import Integral
from typing import Any, Protocol
from unittest.mock import patch

import joblib
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from contsteal import encoders, evaluate, loop, steal
from contsteal.defenses.b4b import B4B
from contsteal.lab import artifacts
from contsteal.lab.experiment import Lab
from contsteal.lab.profiles import distinct, variant
from contsteal.victim import Defense

PRICE = 1.0  # US dollars for 1,000 answers, where a profile states none
WORKERS = "CONTSTEAL_WORKERS"  # processes of a notebook that shares the machine with others
VARYING = ("forwards", "seconds")  # what no two runs share: shown, and kept out of stored tables
OF_LAB = ("data", "train_split", "method", "query_data", "query_split", "query_images")
AS_GIVEN = "as given"  # the knob of an ablation's first row
ALONE = {"SimCLR on the queries": "simclr", "labelled images": "supervised"}  # without a victim

Row = dict[str, Any]
Names = Sequence[str]
Numbers = Sequence[int]
Pairs = tuple[tuple[str, Any], ...]  # changes of settings, hashable


# ---------------------------------------------------------------------------- running jobs


class Work(Protocol):
    """What `run` runs, side by side on a CPU; `lab` holds changes of the profile's settings."""

    @property
    def lab(self) -> Pairs: ...
    def run(self, lab: Lab) -> list[Row]: ...


@dataclass(frozen=True)
class Job:
    """One attack, by its name and variants, and the tasks it is scored on."""

    attack: str
    queries: int
    seed: int
    tasks: tuple[str, ...]
    defenses: tuple[Defense, ...] = ()
    changes: Pairs = ()
    lab: Pairs = ()

    def run(self, lab: Lab) -> list[Row]:
        """Steal, score, and return one row per task with what it cost in queries."""
        changes = dict(self.changes)
        stolen = lab.steal(self.attack, self.queries, self.seed, self.defenses, **changes)
        about = {"attack": self.attack, "images": self.queries, "seed": self.seed, **stolen.queries}
        about["usd"] = round(stolen.queries["calls"] * lab.settings.get("price", PRICE) / 1000, 6)
        about["seconds"] = stolen.seconds
        net = stolen.encoder
        return [about | {"task": task, **lab.score(net, task, self.seed), **lab.own_head(stolen, task)}
                for task in self.tasks]  # fmt: skip


@dataclass(frozen=True)
class Alone:
    """What a thief gets without the victim: by a name of ALONE, from its queries or labelled images.

    Without tasks it is trained and not scored, which needs no victim at all.
    """

    name: str
    queries: int
    seed: int
    tasks: tuple[str, ...]
    steps: int
    lab: Pairs = ()

    def run(self, lab: Lab) -> list[Row]:
        """Train, score, and return one row per task."""
        net = lab.alone(ALONE[self.name], self.queries, self.seed, self.steps).encoder
        # Supervision has seen the labels of one set: with those of another it would have twice as many.
        draws = 1 if ALONE[self.name] == "supervised" else None
        about = {
            "attack": self.name,
            "images": self.queries,
            "seed": self.seed,
            "steps": self.steps,
        }
        return [
            about | {"task": task, **lab.score(net, task, self.seed, draws)} for task in self.tasks
        ]


@dataclass(frozen=True)
class Exam:
    """An encoder to be scored on tasks with a seed's labelled images, and what its rows say of it."""

    about: Row
    net: encoders.Encoder
    tasks: tuple[str, ...]
    seed: int = 0
    lab: Pairs = ()

    def run(self, lab: Lab) -> list[Row]:
        """Score, and return one row per task."""
        return [
            self.about | {"task": task, **lab.score(self.net, task, self.seed)}
            for task in self.tasks
        ]


@dataclass(frozen=True)
class Pretraining:
    """A victim by one method, or the supervised encoder, to be trained beside others."""

    part: str
    method: str | None = None
    lab: Pairs = ()

    def run(self, lab: Lab) -> list[Row]:
        """Train, or find that it was done; there is no row."""
        lab.train(self.part, self.method, report=lab.messages.append)
        return []


@dataclass(frozen=True)
class Trial:
    """One attack at one learning rate, judged by its own loss on queries that it was not trained on."""

    attack: str
    rate: float
    queries: int
    held_out: int
    seed: int
    steps: int
    lab: Pairs = ()

    def run(self, lab: Lab) -> list[Row]:
        """Train on the first queries, and return the loss on those after them, all of them clean."""
        attack, _ = variant(self.attack)
        stolen = lab.steal(self.attack, self.queries, self.seed, lr=self.rate, steps=self.steps)
        recipe, images = steal.ATTACKS[attack], lab.queries(self.queries + self.held_out, self.seed)
        rest = images[self.queries :]
        (answers,) = steal.ask(steal.Config(attack, views="clean", answers=1), lab.api(), rest)
        outputs = encoders.embed(stolen.encoder, rest)
        if stolen.projector is not None:
            outputs = stolen.projector(outputs)
        tau = {} if recipe.temperature is None else {"temperature": recipe.temperature}
        with torch.no_grad():
            loss = recipe.loss(outputs, answers, **tau).item()
        about = {"attack": self.attack, "rate": self.rate, "seed": self.seed, "steps": self.steps}
        return [about | {"images": self.queries, "held_out": self.held_out, "loss": loss}]


def run(lab: Lab, jobs: Sequence[Work]) -> list[Row]:
    """Run jobs, print what was computed and why, and return all rows."""
    for tasks in {getattr(job, "tasks", ()) for job in jobs}:
        distinct(tasks)
    alone = len(jobs) < 2 or loop.QUIET in os.environ
    done = list(tqdm(_results(lab, jobs), desc="runs", total=len(jobs), disable=alone))
    for message, count in Counter(line for _, messages in done for line in messages).items():
        print(f"{message} ({count})")
    return [row for rows, _ in done for row in rows]


def _results(lab: Lab, jobs: Sequence[Work]) -> Iterator[tuple[list[Row], list[str]]]:
    """Run jobs, one process per core on a CPU (a run uses one thread), one by one on a GPU."""
    limit = lab.settings.get("workers", int(os.environ.get(WORKERS, joblib.cpu_count())))
    workers = min(limit, len(jobs))
    if workers < 2 or lab.device.type != "cpu":
        yield from (_run(lab, job) for job in jobs)
        return
    needing = [
        job
        for job in jobs
        if not (isinstance(job, Pretraining) or (isinstance(job, Alone) and not job.tasks))
    ]
    for changes in {repr(job.lab): job.lab for job in needing}.values():
        _ = lab.but(**dict(changes)).victim  # made here, once, not by every worker
    settings = json.dumps(lab.changes)  # settings are what YAML holds; some cannot be hashed
    quiet = patch.dict(os.environ, {loop.QUIET: "1"})  # workers would share one terminal
    with quiet, joblib.parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        yield from joblib.Parallel(return_as="generator")(
            joblib.delayed(_run_in_worker)(os.getpid(), lab.profile, settings, job) for job in jobs
        )


def _run(lab: Lab, job: Work) -> tuple[list[Row], list[str]]:
    """Run a job in the lab of its changes; return its rows, and messages of what was computed."""
    changed = lab.but(**dict(job.lab))
    rows = job.run(changed)
    messages = list(changed.messages)
    changed.messages.clear()
    return rows, messages


@cache
def _worker_lab(profile: str, changes: str) -> Lab:
    return Lab(profile, **json.loads(changes))


@cache
def _end_with(parent: int) -> None:
    """Watch the process that gives this worker its jobs, and end as by SIGTERM when it is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _run_in_worker(
    parent: int, profile: str, changes: str, job: Work
) -> tuple[list[Row], list[str]]:
    _end_with(parent)
    return _run(_worker_lab(profile, changes), job)


# --------------------------------------------------------------------------------- sweeps


def product(*lists: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Return every combination of values, one of each list; ValueError for a value named twice."""
    return combinations(*map(distinct, lists))


def train(
    lab: Lab, methods: Names, data: Names = (), alone: tuple[int, Numbers, Numbers] | None = None
) -> None:
    """Train victims side by side on a CPU: by these methods, on other `data`, and the supervised one.

    `alone` (queries, seeds, steps) are trainings of `without_victim` that later cells read back.
    """
    jobs = [Pretraining("victim", method) for method in methods]
    others = [Pretraining("victim", lab=tuple(_on(lab, name).items())) for name in data]
    victims = [*jobs, *(job for job in others if job.lab), Pretraining("supervised")]
    queries, seeds, steps = alone or (0, (), ())
    points = product(ALONE, seeds, steps)
    run(lab, [*victims, *(Alone(name, queries, seed, (), n) for name, seed, n in points)])


def _on(lab: Lab, data: str) -> dict[str, Any]:
    """Return the changes of a profile that give victim and queries another data set, none for its own."""
    own = data == lab.settings["data"] == lab.settings["query_data"]
    return {} if own else of_lab(lab, data=data, query_data=data)


def sweep(
    lab: Lab,
    attacks: Names,
    queries: Numbers,
    seeds: Numbers,
    tasks: Names,
    defenses: Sequence[Defense] = (),
    steps: Numbers = (),
    **changes: Any,
) -> pd.DataFrame:
    """Run every combination of attack, number of query images, length and seed; a row per run and task.

    Attacks are rows of `steal.ATTACKS`, perhaps with `profiles.VARIANTS`: "embedding, own views".
    `steps` are lengths of training, the profile's where none is given; `changes` are fields of
    `steal.Config`. Each row has what it cost (`unique_inputs`, `calls`, `usd` at the profile's price,
    and in this run the victim's `forwards` and `seconds`) and what the surrogate is worth (`accuracy`,
    `agreement`, `knn`, `cka`, `cosine`, and of a classifier's thief `own_head`, the accuracy of its own
    head, and `own_agreement` with the provider's classifier).
    """
    chain, scored = tuple(defenses), tuple(tasks)
    jobs = [
        Job(attack, count, seed, scored, chain, tuple(sorted((changes | length).items())))
        for attack, count, seed, length in product(attacks, queries, seeds, lengths(steps))
    ]
    return pd.DataFrame(run(lab, jobs))


def lengths(steps: Numbers) -> list[dict[str, Any]]:
    """Return the changes of `steal.Config` for each length of training; one of none for the profile's.

    Raises ValueError for what is no list, and for a length that is no whole number of 1 or more or is
    named twice.
    """
    whole = isinstance(steps, Sequence) and all(isinstance(n, Integral) and n >= 1 for n in steps)
    if not whole or len(set(steps)) < len(steps):
        raise ValueError(f"steps={steps!r}: a list of different lengths of 1 or more is needed")
    return [{"steps": n} for n in steps] or [{}]


def search_rates(
    lab: Lab, attacks: Names, rates: Sequence[float], queries: int, seeds: Numbers, steps: int
) -> pd.DataFrame:
    """Train attacks at several learning rates and return their losses on held-out queries, a row each.

    Of `queries` three quarters are trained on. No test image is used: what is chosen by this table is
    chosen with what a thief has.
    """
    held_out = queries // 4
    jobs = [
        Trial(attack, rate, queries - held_out, held_out, seed, steps)
        for attack, rate, seed in product(attacks, rates, seeds)
    ]
    return pd.DataFrame(run(lab, jobs))


def without_victim(
    lab: Lab, queries: Numbers, seeds: Numbers, tasks: Names, steps: Numbers
) -> pd.DataFrame:
    """Return what a thief gets without any answer, at the same lengths of training; rows as `sweep`'s.

    SimCLR on each number of query images alone, and supervision with labelled images of the main task.
    Raises ValueError for no length of training, and for what `lengths` refuses.
    """
    if not steps:
        raise ValueError("steps=[]: at least one length of training is needed")
    lengths(steps)
    jobs = [
        Alone(name, count, seed, tuple(tasks), length)
        for name, count, seed, length in product(ALONE, queries, seeds, steps)
    ]
    return pd.DataFrame(run(lab, jobs))


def stake(lab: Lab, data: Names, queries: int, seeds: Numbers, steps: Numbers) -> pd.DataFrame:
    """Return, per data set, what a thief gets `without_victim`, beside random features and the victim.

    Victim and queries are of that set; each row names it as `data`. Raises ValueError for no set.
    """
    if not data:
        raise ValueError("data=[]: at least one data set is needed")
    parts = []
    for name in data:
        other = lab.but(**_on(lab, name))
        rows = (
            without_victim(other, [queries], seeds, [name], steps),
            references(other, [name], seeds),
        )
        parts += [part.assign(data=name) for part in rows]
    return pd.concat(parts, ignore_index=True)


def victims(
    lab: Lab, victim_seeds: Numbers, attacks: Names, queries: int, seeds: Numbers, task: str,
    steps: Numbers,
) -> pd.DataFrame:  # fmt: skip
    """Run attacks on victims of the profile's recipe that differ in their seed; rows name it.

    The seed decides the victim's first weights, batches and views. Each victim has a row of its own.
    """
    recipe = lab.settings["victim"]
    changes = {seed: {"victim": recipe | {"seed": seed}} for seed in victim_seeds}
    run(lab, [Pretraining("victim", lab=tuple(change.items())) for change in changes.values()])
    parts = []
    for seed, change in changes.items():
        other = lab.but(**change)
        rows = sweep(other, attacks, [queries], seeds, [task], steps=steps)
        parts += [
            part.assign(victim_seed=seed) for part in (rows, references(other, [task], seeds))
        ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def references(lab: Lab, tasks: Iterable[str], seeds: Iterable[int]) -> pd.DataFrame:
    """Return the rows that frame every table: random features and the victim, each per seed."""
    nets = [("random", s, lab.random(s)) for s in seeds]
    nets += [("victim", s, lab.victim.encoder) for s in seeds]
    exams = [Exam({"attack": name, "seed": s}, net, tuple(tasks), s) for name, s, net in nets]
    return pd.DataFrame(run(lab, exams))


def of_lab(lab: Lab, **given: Any) -> dict[str, Any]:
    """Return those changes of the profile that differ from what it says already, for `lab.but`."""
    return dict(_split(lab, given)[1])


def _split(lab: Lab, given: Mapping[str, Any]) -> tuple[Pairs, Pairs]:
    """Return an attack's changes, and those of the profile that differ from what it says already."""
    settings = lab.settings | {"method": lab.method or lab.settings["victim"].get("method")}
    knobs = {k: v for knob in given.items() for k, v in _unfolded(*knob)}
    attack = sorted((k, v) for k, v in knobs.items() if k not in OF_LAB)
    profile = sorted((k, v) for k, v in knobs.items() if k in OF_LAB and v != settings[k])
    return tuple(attack), tuple(profile)


def _unfolded(knob: str, value: Any) -> Pairs:
    """Return `name@split` as a set and its split; a set without one means its `train`."""
    if knob not in ("data", "query_data"):
        return ((knob, value),)
    name, _, split = value.partition("@")
    splits = {"data": "train_split", "query_data": "query_split"}
    return (knob, name), (splits[knob], split or "train")


Point = tuple[Row, str, int, int, Mapping[str, Any]]  # what rows say; attack, images, seed, changes


def _table(lab: Lab, tasks: Names, points: Sequence[Point], steps: Numbers = ()) -> pd.DataFrame:
    """Run an attack per point and length of training; return a row for each and each task.

    Beside it stands what the point says of it.
    """
    if steps and (named := {k for *_, changes in points for k in changes} & {"steps", "epochs"}):
        raise ValueError(
            f"steps={list(steps)}: {named.pop()!r} is a knob already, leave one of them out"
        )
    runs = [(*point, length) for point, length in product(points, lengths(steps))]
    jobs = [
        Job(attack, images, seed, tuple(tasks), (), *_split(lab, {**changes, **length}))
        for _, attack, images, seed, changes, length in runs
    ]
    about = [row for row, *_ in runs for _ in tasks]
    return pd.DataFrame([a | row for a, row in zip(about, run(lab, jobs), strict=True)])


def ablate(
    lab: Lab,
    attack: str,
    knobs: Mapping[str, Sequence[Any]],
    queries: int,
    seeds: Numbers,
    task: str,
    steps: Numbers = (),
) -> pd.DataFrame:
    """Run an attack as given, then with one knob changed at a time, at the same number of queries.

    Knobs are fields of steal.Config, or the profile's data, query_data (a set, or set@split) or the
    victim's method. "Same number" is of images: more answers an image cost more. Rows are those of
    `sweep`, at as many lengths of training, with `knob` and `value`.
    """
    settings = [(AS_GIVEN, ""), *((knob, value) for knob in knobs for value in knobs[knob])]
    return _table(lab, [task], [
        ({"knob": knob, "value": str(value)}, attack, queries, seed,
         {} if knob == AS_GIVEN else {knob: value})
        for (knob, value), seed in product(settings, seeds)
    ], steps)  # fmt: skip


def losses(
    lab: Lab, attacks: Names, victim_data: Names, queries: int, seeds: Numbers, tasks: Names,
    steps: Numbers = (),
) -> pd.DataFrame:  # fmt: skip
    """Run every attack on the victim of each data set, which is queried with its own images."""
    return _table(lab, tasks, [
        ({"victim": name}, attack, queries, seed, {"data": name, "query_data": name})
        for name, attack, seed in product(victim_data, attacks, seeds)
    ], steps)  # fmt: skip


def classifiers(
    lab: Lab,
    victims: Mapping[str, Names],
    queries: int,
    seeds: Numbers,
    tasks: Names,
    steps: Numbers,
) -> pd.DataFrame:
    """Run attacks on several encoders of the profile and their classifiers; rows name the `victim`.

    `victims` names attacks by the setting that trains the encoder: "victim", or "supervised". The
    classifier of each is the provider's probe on its features. `share` is what a row has of its own
    victim's accuracy on that task with the same labelled images.
    """
    if unknown := sorted(victims.keys() - {"victim", "supervised"}):
        raise ValueError(f"unknown victim {unknown[0]!r}: choose victim or supervised")
    if not victims:
        raise ValueError("victims={}: name victim or supervised, with its attacks")
    parts = []
    for name, attacks in victims.items():
        settings = lab.settings[name]
        other = lab.but(**({} if name == "victim" else {"victim": settings}))
        rows = sweep(other, attacks, [queries], seeds, tasks, steps=steps)
        part = pd.concat([rows, references(other, tasks, seeds)], ignore_index=True)
        ceiling = part[part["attack"] == "victim"].set_index(["seed", "task"])["accuracy"]
        own = [ceiling[point] for point in zip(part["seed"], part["task"], strict=True)]
        parts.append(part.assign(victim=settings.get("method", name), share=part["accuracy"] / own))
    return pd.concat(parts, ignore_index=True)


def elsewhere(
    lab: Lab, attacks: Names, sources: Sequence[tuple[str, str, int]], seeds: Numbers, tasks: Names,
    steps: Numbers = (),
) -> pd.DataFrame:  # fmt: skip
    """Run attacks on the profile's victim with queries from elsewhere: (data set, split, images)."""
    points: list[Point] = []
    for (data, split, images), attack, seed in product(sources, attacks, seeds):
        pool = max(images, lab.settings["query_images"])
        changes = {"query_data": f"{data}@{split}", "query_images": pool}
        name = data if split == "train" else f"{data}@{split}"
        about = {"victim": lab.settings["data"], "query_data": name}
        points.append((about, attack, images, seed, changes))
    return _table(lab, tasks, points, steps)


def grid(
    lab: Lab, attacks: Names, axes: Mapping[str, Sequence[Any]], seeds: Numbers, tasks: Names,
    steps: Numbers = (),
) -> pd.DataFrame:  # fmt: skip
    """Run attacks on every point of a grid; `axes` are knobs as in `ablate`, and `images`.

    All attacks of a point see the same images, of a larger pool where the profile's is too small. Rows
    have the axes' columns; where `epochs` is one of them, also `steps`, the optimizer's steps of the
    training.
    """
    largest = lab.settings["surrogate"].get("batch", steal.Config.batch)
    points: list[Point] = []
    for values, attack, seed in product(product(*axes.values()), attacks, seeds):
        about = dict(zip(axes, values, strict=True))
        images = about["images"]
        batch = min(largest, images)
        changes = {k: v for k, v in about.items() if k != "images"} | {"batch": batch}
        changes["query_images"] = max(images, lab.settings["query_images"])
        length = {"steps": about["epochs"] * (images // batch)} if "epochs" in about else {}
        points.append((about | length, attack, images, seed, changes))
    return _table(lab, tasks, points, steps)


def landscapes(lab: Lab, methods: Names, query_data: Names, count: int) -> pd.DataFrame:
    """Describe the victims' embeddings of query images (`evaluate.geometry`), per method and data."""
    rows = []
    for method, data in product(methods, query_data):
        about = {"method": method, "query_data": data}
        changed = lab.but(**of_lab(lab, **about))
        images = changed.queries(count)
        with artifacts.single_thread():
            geometry = evaluate.geometry(encoders.embed(changed.victim.encoder, images))
        rows.append(about | geometry)
    return pd.DataFrame(rows)


def coverage(defense: B4B, users: Mapping[str, Tensor], step: int) -> pd.DataFrame:
    """Return how much of the embedding space each user's answers (N, D) cover, every `step` answers.

    Rows have the user, `queries`, `coverage` from 0 to 1 and the `noise` that it brings (B4B).
    """
    rows = []
    for user, answers in users.items():
        watching, queries = copy.deepcopy(defense), 0
        for part in answers.split(step):
            watching(part, user)
            queries += len(part)
            share = watching.coverage(user)
            noise = float(watching.sigma(share))
            rows.append({"user": user, "queries": queries, "coverage": share, "noise": noise})
    return pd.DataFrame(rows)
