"""Comparisons that change one thing at a time, run side by side: tables with one row per run and task."""

import argparse
import fcntl
import json
import os
import platform
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from itertools import product as combinations
from pathlib import Path
from typing import Any, NamedTuple, cast

import joblib
import pandas as pd
import torch
from torch import distributed as dist
from tqdm.auto import tqdm

from contsteal import choice, encoders, evaluate, files, loop, number, pretrain, steal
from contsteal.lab import artifacts
from contsteal.lab.experiment import Lab
from contsteal.lab.profiles import config, distinct, variant
from contsteal.victim import Defense

PRICE = 1.0  # US dollars for 1,000 answers, where a profile states none
WORKERS = "CONTSTEAL_WORKERS"  # processes of a notebook that shares the machine with others
SCHEDULER = "DASK_SCHEDULER_ADDRESS"  # whose workers run sweeps, where it is set
SENT = ("CONTSTEAL_MODE", "CONTSTEAL_PRECISION", "DATA_DIR")  # variables that workers take over
SHARING = "surrogates that fill a card"  # a row of benchmarks/results, per encoder
PATIENCE = 10  # seconds that a scheduler and its first worker have to answer
VARYING = ("forwards", "seconds")  # what no two runs share: shown, and kept out of stored tables
OF_LAB = ("data", "train_split", "method", "query_data", "query_split", "query_images")
AS_GIVEN = "as given"  # the knob of an ablation's first row
READ = "read"  # an encoder that was trained before
ALONE = {"SimCLR on the queries": "simclr", "labelled images": "supervised"}  # without a victim

Row = dict[str, Any]
Done = tuple[list[Row], list[str]]  # a job's rows, and what was computed for them
Names = Sequence[str]
Numbers = Sequence[int]
Pairs = tuple[tuple[str, Any], ...]  # changes of settings, hashable


# ---------------------------------------------------------------------------- running jobs


@dataclass(frozen=True)
class Job:
    """What `run` runs, side by side on a CPU: `make(lab, *given)` in a lab with changed settings.

    One that only `trains` needs no victim.
    """

    make: Callable[..., list[Row]]
    given: tuple[Any, ...]
    lab: Pairs = ()
    trains: bool = False


def steal_rows(
    lab: Lab, attack: str, queries: int, seed: int, tasks: Names, defenses: Sequence[Defense] = (),
    changes: Pairs = (),
) -> list[Row]:  # fmt: skip
    """Run an attack, by its name and variants; return a row per task with what it cost in queries."""
    stolen = lab.steal(attack, queries, seed, defenses, **dict(changes))
    about = {"attack": attack, "images": queries, "seed": seed, **stolen.queries}
    about["usd"] = round(stolen.queries["calls"] * lab.settings.get("price", PRICE) / 1000, 6)
    about["seconds"] = stolen.seconds
    return score_rows(lab, about, stolen.encoder, tasks, seed, head=stolen.projector)


def score_rows(
    lab: Lab, about: Row, net: encoders.Encoder, tasks: Names, seed: int = 0, **judged: Any
) -> list[Row]:
    """Score an encoder, `judged` as by `Lab.score`; return a row per task, with what it is."""
    return [about | {"task": t, **lab.score(net, t, seed, **judged)} for t in distinct(tasks)]


def alone_rows(lab: Lab, name: str, queries: int, seed: int, tasks: Names, steps: int) -> list[Row]:
    """Return what a thief gets without the victim: by a name of ALONE, from queries or labelled images.

    Without tasks it is trained and not scored, which needs no victim at all.
    """
    net = lab.alone(ALONE[name], queries, seed, steps).encoder
    # Supervision has seen the labels of one set: with those of another it would have twice as many.
    draws = 1 if ALONE[name] == "supervised" else None
    about = {"attack": name, "images": queries, "seed": seed, "steps": steps}
    return score_rows(lab, about, net, tasks, seed, draws=draws)


def pretrain_victim(lab: Lab, part: str, method: str | None = None) -> list[Row]:
    """Train a victim by a method, or the supervised encoder, or find that it was done; no row."""
    lab.train(part, method)
    return []


def trial_rows(
    lab: Lab, attack: str, rate: float, queries: int, held_out: int, seed: int, steps: int
) -> list[Row]:
    """Train an attack on the first queries; return its own loss on those after them, all clean."""
    stolen = lab.steal(attack, queries, seed, lr=rate, steps=steps)
    rest = lab.queries(queries + held_out, seed)[queries:]
    config = steal.Config(variant(attack)[0], views="clean", answers=1)
    (answers,) = steal.ask(config, lab.api(), rest)
    outputs = encoders.embed(stolen.encoder, rest)
    if stolen.projector is not None:
        outputs = stolen.projector(outputs)
    loss = config.recipe.loss(outputs, answers, **config.options).item()
    return [{"attack": attack, "rate": rate, "seed": seed, "steps": steps, "images": queries,
             "held_out": held_out, "loss": loss}]  # fmt: skip


def run(lab: Lab, jobs: Sequence[Job]) -> list[Row]:
    """Run jobs, print what was computed (not where bars are off), and return all rows."""
    quiet = loop.QUIET in os.environ
    bar = tqdm(_results(lab, jobs), desc="runs", total=len(jobs), disable=quiet or len(jobs) < 2)
    done = list(bar)
    said = Counter(line for _, messages in done for line in messages if not quiet)
    for message, count in said.items():
        print(f"{message} ({count})")
    return [row for rows, _ in done for row in rows]


def _results(lab: Lab, jobs: Sequence[Job]) -> Iterator[Done]:
    """Run jobs in the workers of a Dask cluster, in processes of this machine, or one by one here."""
    if address := os.environ.get(SCHEDULER):
        yield from _on_cluster(lab, jobs, address)
        return
    workers = min(_processes(lab), len(jobs))
    if workers < 2:
        yield from (_run(lab, job) for job in jobs)
        return
    _make_victims(lab, jobs)
    kept = [_read(lab, job) for job in jobs]  # a process takes long to start
    rest = [job for job, found in zip(jobs, kept, strict=True) if found is None]
    made = _side_by_side(lab, rest, workers) if len(rest) > 1 else (_run(lab, job) for job in rest)
    yield from (found or next(made) for found in kept)


def _read(lab: Lab, job: Job) -> Done | None:
    """Run a job of which everything was computed before; None where something was not."""
    with suppress(artifacts.NotKept), artifacts.only_kept():
        return _run(lab, job)
    return None


def _side_by_side(lab: Lab, jobs: Sequence[Job], workers: int) -> Iterator[Done]:
    """Run jobs in processes of this machine, which share its cards evenly and end with this one."""
    begin = {"initializer": _settle, "initargs": (os.getpid(), tuple(cards(lab)), _seats().name)}
    count = min(workers, len(jobs))
    with joblib.parallel_config("loky", n_jobs=count, inner_max_num_threads=1, **begin):
        yield from joblib.Parallel(return_as="generator")(
            joblib.delayed(_run_in_worker)(_order(lab), job) for job in jobs
        )


def _make_victims(lab: Lab, jobs: Sequence[Job]) -> None:
    """Make here, once, what every worker would otherwise make for its first job."""
    for job in jobs:
        if not job.trains:
            _ = lab.but(**dict(job.lab)).victim


@artifacts.single_thread()
def _run(lab: Lab, job: Job) -> Done:
    """Run a job in the lab of its changes; return its rows, and messages of what was computed."""
    changed = lab.but(**dict(job.lab))
    rows, messages = job.make(changed, *job.given), list(changed.messages)
    changed.messages.clear()
    return rows, messages


# ------------------------------------------------------------- workers: processes, GPUs, machines


@dataclass(frozen=True)
class Order:
    """What a worker gets with every job: the lab, variables, and what must be the same as here.

    `facts` are those of `_facts`; `token` is a file in the runs folder that a worker must find there.
    """

    profile: str
    changes: str  # as JSON: settings are what YAML holds, and some cannot be hashed
    environment: Pairs
    facts: Pairs = field(default=(), compare=False)
    token: str = field(default="", compare=False)


def _order(lab: Lab, **more: Any) -> Order:
    sent = {name: os.environ[name] for name in SENT if name in os.environ}
    sent |= {loop.QUIET: "1", "CONTSTEAL_RUNS": str(artifacts.runs_dir())}  # they share a terminal
    return Order(lab.profile, json.dumps(lab.changes), tuple(sent.items()), **more)


def _run_in_worker(order: Order, job: Job) -> Done:
    os.environ.update(order.environment)
    return _run(_worker_lab(order), job)


@cache
def _worker_lab(order: Order) -> Lab:
    return Lab(order.profile, **json.loads(order.changes))


def _run_on_cluster(order: Order, job: Job) -> Done:
    """Run a job in a Dask worker, also in one that was started after the others were looked at."""
    import distributed

    _join(order, distributed.get_worker())
    return _run_in_worker(order, job)


def _join(order: Order, dask_worker: Any) -> None:
    """Check a worker, and let it take runs up to its limit of memory, at which Dask starts it again.

    At four fifths of it Dask would pause the worker, until memory is freed that a run never frees.
    Raises RuntimeError where it would not give the numbers of the sweep.
    """
    os.environ.update(order.environment)
    who, token = f"the worker {dask_worker.address}", artifacts.runs_dir() / order.token
    if (threads := dask_worker.state.nthreads) > 1:
        raise RuntimeError(f"{who} has {threads} threads: start it with --nthreads 1")
    if not token.exists():
        raise RuntimeError(
            f"{who} does not see {token}: results are kept in the runs folder, which must lie on a "
            "file system that all workers share; set CONTSTEAL_RUNS to such a folder"
        )
    there = dict(_facts(_worker_lab(order)))
    if other := [f"{k} {there[k]}, here {here}" for k, here in order.facts if there[k] != here]:
        raise RuntimeError(f"{who} has {'; '.join(other)}: install the same, and start it again")
    dask_worker.memory_manager.memory_pause_fraction = 1.0


@cache
def _facts(lab: Lab) -> Pairs:
    """Return what must be the same in all workers, so that a row does not depend on who computed it."""
    parts = sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py"))
    code = artifacts.sources(*(f"contsteal.lab.{part}" for part in parts))
    facts = {
        "code": code, "settings": files.key([lab.settings, lab.method]),
        "python": platform.python_version(), "torch": torch.__version__,
        "device": lab.device.type, "precision": loop.precision(lab.device),
        **{name: version(name) for name in artifacts.LIBRARIES}, "mode": ", ".join(loop.mode_labels()),
    }  # fmt: skip
    return tuple(facts.items())


def _processes(lab: Lab) -> int:
    """Return how many runs this machine works on at once: one per core, or what fills its GPUs.

    The profile's `workers`, else $CONTSTEAL_WORKERS, take its place.
    """
    encoder = lab.settings["surrogate"]["encoder"]
    fills = len(cards(lab)) * int(loop.measured(f"{SHARING}, {encoder}", 1))
    most = {"cpu": joblib.cpu_count(), "cuda": fills}.get(lab.device.type, 1)
    given = os.environ.get(WORKERS, str(most))
    count = number(int(given) if given.isdecimal() else given, WORKERS, int, least=1)
    return lab.settings.get("workers", count)


def cards(lab: Lab) -> list[str]:
    """Return the GPUs that runs may use, as CUDA_VISIBLE_DEVICES names them."""
    if lab.device.type != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = visible.split(",")[:count] if visible else [str(k) for k in range(count)]
    return names if lab.device.index is None else [names[lab.device.index]]


_seats = cache(tempfile.TemporaryDirectory)  # a folder of this process


def _settle(parent: int, cards: Sequence[str], seats: str) -> None:
    """Begin a process: take a card before CUDA has looked for any, and watch the parent."""
    if len(cards) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[_seat(seats) % len(cards)]
    _end_with(parent)


def _seat(folder: str, number: int = 0) -> int:
    """Return the lowest number, from this one on, that no living process has taken in a folder.

    joblib replaces processes that were idle or have grown. By the order of their start, the new ones
    could share a card while another card has none.
    """
    lock = os.open(f"{folder}/{number}", os.O_CREAT | os.O_RDWR)  # held until this process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return _seat(folder, number + 1)
    return number


def _end_with(parent: int) -> None:
    """Watch the process that gives this worker its jobs, and end as by SIGTERM when it is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _on_cluster(lab: Lab, jobs: Sequence[Job], address: str) -> Iterator[Done]:
    """Run jobs by the workers of a Dask scheduler, once these are found to be as this process is.

    Dask runs the jobs of a lost worker again; what they had finished is read back. (joblib's own Dask
    backend would run all jobs in this process where the cluster has a single worker.)
    """
    with ExitStack() as stack:
        try:
            import distributed

            distributed.comm.get_address_host_port(address)  # a client of no address is slow to end
            client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
            stack.enter_context(client).wait_for_workers(1, PATIENCE)
        except (ImportError, OSError, ValueError) as error:  # a TimeoutError is an OSError
            raise RuntimeError(
                f"{SCHEDULER}={address!r}: no scheduler with a worker answers within {PATIENCE} s "
                f"({error}); pip install 'contsteal[cluster]', start `dask scheduler` and `dask "
                "worker`, or unset the variable to run on this machine"
            ) from error
        token = artifacts.runs_dir() / f".shared-{uuid.uuid4().hex}"
        stack.callback(token.unlink, missing_ok=True)
        files.write_text(token, "")
        order = _order(lab, facts=_facts(lab), token=token.name)
        try:
            client.run(_join, order)
        except OSError as error:
            raise RuntimeError(
                "a worker ended while it joined, most often for want of memory (--memory-limit)"
            ) from error
        _make_victims(lab, jobs)
        futures = client.map(partial(_run_on_cluster, order), jobs, pure=False)
        try:
            yield from (future.result() for future in futures)
        except distributed.KilledWorker as error:
            raise RuntimeError(
                f"a run ended its worker {error.allowed_failures + 1} times, the last time "
                f"{error.last_worker.address}: most often its memory is too small (dask worker "
                "--memory-limit). Finished runs are kept; the same command goes on after them"
            ) from error


# --------------------------------------------------------------------------------- sweeps


def product(*lists: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Return every combination of values, one of each list; ValueError for a value named twice."""
    return combinations(*map(distinct, lists))


def train(
    lab: Lab, methods: Names, data: Names, alone: tuple[int, Numbers, Numbers] = (0, (), ())
) -> None:
    """Train victims side by side on a CPU: by these methods, on other `data`, and the supervised one.

    `alone` (queries, seeds, steps) are trainings of `without_victim` that later cells read back.
    """
    jobs = [Job(pretrain_victim, ("victim", method), trains=True) for method in distinct(methods)]
    jobs += [Job(pretrain_victim, ("victim",), tuple(changes.items()), True)
             for changes in (_on(lab, name) for name in distinct(data)) if changes]  # fmt: skip
    jobs.append(Job(pretrain_victim, ("supervised",), trains=True))
    queries, seeds, steps = alone
    jobs += [Job(alone_rows, (name, queries, seed, (), n), trains=True)
             for name, seed, n in product(ALONE, seeds, steps)]  # fmt: skip
    run(lab, jobs)


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
    points = product(attacks, queries, seeds)
    rows = [Attack({}, attack, images, seed, changes) for attack, images, seed in points]
    return table(lab, tasks, rows, steps)


def lengths(steps: Numbers) -> list[dict[str, Any]]:
    """Return the changes of `steal.Config` for each length of training; one of none for the profile's.

    Raises ValueError for what is no list, and for a length that is no whole number of 1 or more or is
    named twice.
    """
    if not isinstance(steps, Sequence):
        raise ValueError(f"steps={steps!r}: a list of lengths is needed")
    each = distinct(steps, "steps=")
    return [{"steps": number(n, "steps", int, least=1)} for n in each] or [{}]


def search_rates(
    lab: Lab, attacks: Names, rates: Sequence[float], queries: int, seeds: Numbers, steps: int
) -> pd.DataFrame:
    """Train attacks at several learning rates and return their losses on held-out queries, a row each.

    Of `queries` three quarters are trained on. No test image is used: what is chosen by this table is
    chosen with what a thief has.
    """
    held_out = queries // 4
    jobs = [Job(trial_rows, (attack, rate, queries - held_out, held_out, seed, steps))
            for attack, rate, seed in product(attacks, rates, seeds)]  # fmt: skip
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
    jobs = [Job(alone_rows, (name, count, seed, tasks, length))
            for name, count, seed, length in product(ALONE, queries, seeds, steps)]  # fmt: skip
    return pd.DataFrame(run(lab, jobs))


def stake(lab: Lab, data: Names, queries: int, seeds: Numbers, steps: Numbers) -> pd.DataFrame:
    """Return, per data set, what a thief gets `without_victim`, beside random features and the victim.

    Victim and queries are of that set; each row names it as `data`. Raises ValueError for no set.
    """
    if not data:
        raise ValueError("data=[]: at least one data set is needed")
    parts = []
    for name in distinct(data):
        other = lab.but(**_on(lab, name))
        rows = without_victim(other, [queries], seeds, [name], steps)
        parts.append(_framed(other, rows, [name], seeds).assign(data=name))
    return pd.concat(parts, ignore_index=True)


def victims(
    lab: Lab, victim_seeds: Numbers, attacks: Names, queries: int, seeds: Numbers, task: str,
    steps: Numbers,
) -> pd.DataFrame:  # fmt: skip
    """Run attacks on victims of the profile's recipe that differ in their seed; rows name it.

    The seed decides the victim's first weights, batches and views. Each victim has a row of its own.
    """
    recipe = lab.settings["victim"]
    changes = {seed: {"victim": recipe | {"seed": seed}} for seed in distinct(victim_seeds)}
    run(lab, [Job(pretrain_victim, ("victim",), tuple(change.items()), True)
              for change in changes.values()])  # fmt: skip
    parts = [pd.DataFrame()]
    for seed, change in changes.items():
        other = lab.but(**change)
        rows = sweep(other, attacks, [queries], seeds, [task], steps=steps)
        parts.append(_framed(other, rows, [task], seeds).assign(victim_seed=seed))
    return pd.concat(parts, ignore_index=True)


def references(lab: Lab, tasks: Iterable[str], seeds: Iterable[int]) -> pd.DataFrame:
    """Return the rows that frame every table: random features and the victim, each per seed."""
    nets = {"random": lab.random, "victim": lambda seed: lab.victim.encoder}
    jobs = [Job(score_rows, ({"attack": name, "seed": seed}, net(seed), tasks, seed))
            for (name, net), seed in product(nets.items(), seeds)]  # fmt: skip
    return pd.DataFrame(run(lab, jobs))


def _framed(lab: Lab, rows: pd.DataFrame, tasks: Names, seeds: Numbers) -> pd.DataFrame:
    return pd.concat([rows, references(lab, tasks, seeds)], ignore_index=True)


def of_lab(lab: Lab, **given: Any) -> dict[str, Any]:
    """Return those changes of the profile that differ from what it says already, for `lab.but`."""
    return _split(lab, given)[1]


def _split(lab: Lab, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an attack's changes, and those of the profile that differ from what it says already."""
    settings = lab.settings | {"method": lab.method or lab.settings["victim"].get("method")}
    knobs = dict(given)
    for knob, split in (("data", "train_split"), ("query_data", "query_split")):
        if knob in given:
            # `name@split` is a set and its split; a set without one means its `train`.
            name, _, part = given[knob].partition("@")
            knobs |= {knob: name, split: given.get(split, part or "train")}
    own = {name: knobs.pop(name) for name in OF_LAB if name in knobs}
    return knobs, {name: value for name, value in own.items() if value != settings[name]}


class Attack(NamedTuple):
    """A row of a `table`: what it says of itself, the attack, its query images and seed.

    `changes` are fields of steal.Config or, as OF_LAB, of the profile; `defenses` those of the victim.
    """

    about: Row
    name: str
    images: int
    seed: int
    changes: Mapping[str, Any] = {}
    defenses: Sequence[Defense] = ()


def table(lab: Lab, tasks: Names, attacks: Sequence[Attack], steps: Numbers = ()) -> pd.DataFrame:
    """Run every attack at each length of training; return a row per run and task, after what it says."""
    if steps and (named := {k for one in attacks for k in one.changes} & {"steps", "epochs"}):
        raise ValueError(
            f"steps={list(steps)}: {named.pop()!r} is a knob already, leave one of them out"
        )
    tasks, jobs, about = distinct(tasks), [], []
    for one, length in product(attacks, lengths(steps)):
        knobs, profile = _split(lab, {**one.changes, **length})
        given = (one.name, one.images, one.seed, tasks, tuple(one.defenses), tuple(knobs.items()))
        jobs.append(Job(steal_rows, given, tuple(profile.items())))
        about += len(tasks) * [one.about]
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
    return table(lab, [task], [
        Attack({"knob": knob, "value": str(value)}, attack, queries, seed,
               {} if knob == AS_GIVEN else {knob: value})
        for (knob, value), seed in product(settings, seeds)
    ], steps)  # fmt: skip


def losses(
    lab: Lab, attacks: Names, victim_data: Names, queries: int, seeds: Numbers, tasks: Names,
    steps: Numbers = (), split: str = "train",
) -> pd.DataFrame:  # fmt: skip
    """Run every attack on the victim of each data set, queried with images of that set's `split`."""
    return table(lab, tasks, [
        Attack({"victim": name}, attack, queries, seed,
               {"data": name, "query_data": f"{name}@{split}"})
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
    if not victims:
        raise ValueError("victims={}: name victim or supervised, with its attacks")
    recipes = {k: lab.settings[choice(k, "victim", ("victim", "supervised"))] for k in victims}
    parts = []
    for name, recipe in recipes.items():
        other = lab if name == "victim" else lab.but(victim=recipe)
        rows = sweep(other, victims[name], [queries], seeds, tasks, steps=steps)
        part = _framed(other, rows, tasks, seeds)
        own = part["accuracy"].where(part["attack"] == "victim")
        ceiling = own.groupby([part["seed"], part["task"]]).transform("first")
        method = recipe.get("method", name)
        parts.append(part.assign(victim=method, share=part["accuracy"] / ceiling))
    return pd.concat(parts, ignore_index=True)


def elsewhere(
    lab: Lab, attacks: Names, sources: Sequence[tuple[str, str, int]], seeds: Numbers, tasks: Names,
    steps: Numbers = (),
) -> pd.DataFrame:  # fmt: skip
    """Run attacks on the profile's victim with queries from elsewhere: (data set, split, images)."""
    rows: list[Attack] = []
    for (data, split, images), attack, seed in product(sources, attacks, seeds):
        pool = max(images, lab.settings["query_images"])
        changes = {"query_data": f"{data}@{split}", "query_images": pool}
        name = data if split == "train" else f"{data}@{split}"
        about = {"victim": lab.settings["data"], "query_data": name}
        rows.append(Attack(about, attack, images, seed, changes))
    return table(lab, tasks, rows, steps)


def grid(
    lab: Lab, attacks: Names, axes: Mapping[str, Sequence[Any]], seeds: Numbers, tasks: Names,
    steps: Numbers = (),
) -> pd.DataFrame:  # fmt: skip
    """Run attacks on every point of a grid; `axes` are knobs as in `ablate`, and `images`.

    All attacks of a point see the same images, of a larger pool where the profile's is too small. Rows
    have the axes' columns.
    """
    largest = lab.settings["surrogate"].get("batch", steal.Config.batch)
    rows: list[Attack] = []
    for values, attack, seed in product(product(*axes.values()), attacks, seeds):
        about = dict(zip(axes, values, strict=True))
        images = about["images"]
        changes = {k: v for k, v in about.items() if k != "images"}
        changes["batch"] = min(largest, images)
        changes["query_images"] = max(images, lab.settings["query_images"])
        rows.append(Attack(about, attack, images, seed, changes))
    return table(lab, tasks, rows, steps)


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


# ------------------------------------------------------------------- a victim by several processes


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a profile's victim in as many processes as torchrun has started; notebook 01 reads it."""
    command = "torchrun --nproc-per-node N -m contsteal.lab.sweeps"
    parser = argparse.ArgumentParser(prog=command, description=main.__doc__)
    parser.add_argument("--profile", required=True, help="whose victim, such as paper")
    parser.add_argument("--method", help="of its training, where it is not the profile's")
    parser.add_argument("--part", default="victim", choices=("victim", "supervised"))
    given = parser.parse_args(arguments)
    lab, processes = Lab(given.profile), int(os.environ.get("WORLD_SIZE", 1))
    if (batch := config(lab.settings, given.part, given.method).batch) % processes:
        problem = f"{processes} processes cannot share {batch} images of a batch evenly"
        first = os.environ["RANK"] == "0"  # who says it for all, before they wait for each other
        raise SystemExit(f"{problem}: choose a number that divides it" if first else 2)
    if several := processes > 1:
        on_gpus = lab.device.type == "cuda"
        if on_gpus:
            place, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if place >= count:
                raise ValueError(f"process {place + 1} of {count} GPUs: one a GPU")
            torch.cuda.set_device(place)
        dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        train_together(lab, given.part, given.method)
    finally:
        if several:
            dist.destroy_process_group()


def train_together(lab: Lab, part: str, method: str | None = None) -> None:
    """Train an encoder of a profile, in all processes of a group; the first one keeps the artifact.

    It tells the others whether there is something to train before it begins.
    """
    if loop.several() and dist.get_rank():
        message = [READ]
        dist.broadcast_object_list(message)
        if message != [READ]:
            os.environ[loop.QUIET] = "1"
            with artifacts.single_thread():
                pretrain.fit(config(lab.settings, part, method), cast(Any, lab.train_images(part)))
        return
    reasons: list[str] = []

    def announce(reason: str) -> None:
        reasons.append(reason)
        if loop.several():
            dist.broadcast_object_list([reason])

    lab.report = announce
    trained = lab.train(part, method)
    if not reasons:
        announce(READ)
    print(f"{', '.join(reasons)}: {part} {trained.sha256[:12]}")


if __name__ == "__main__":
    main()
