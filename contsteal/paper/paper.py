"""Run the notebooks of a profile: strict parameters, one process each, resumed, never half done.

`python -m contsteal.paper run|plan|data --profile demo` is what `make paper`, `make plan` and
`make data` call.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any
from unittest.mock import patch

import psutil
from rich.markup import escape

from contsteal.data import torchsets
from contsteal.lab import artifacts, estimate, profiles
from contsteal.lab.sweeps import WORKERS
from contsteal.paper import durations, needs, plan, report, usage
from contsteal.paper.command import console, finish
from contsteal.paper.execute import NotebookFailed, execute
from contsteal.paper.plan import Task


def run(tasks: Sequence[Task], at_once: int = 1) -> None:
    """Execute the notebooks that must run, telling what, why and how long is left.

    They run in order; `at_once` above 1 runs those of a stage side by side on shares of the cores.
    """
    start, before, todo = time.monotonic(), artifacts.count_artifacts(), list(tasks)
    with usage.watch() as peak:
        for stage in [[task] for task in tasks] if at_once == 1 else plan.stages(tasks):
            if sum(task.reason is not None for task in stage) > 1:
                _side_by_side(tasks, todo, at_once, stage)
                continue
            for task in stage:  # on all cores
                _run(tasks, todo, at_once, False, task)
    if tasks and [t.stem for t in tasks if t.reason] == plan.notebooks():
        made = artifacts.count_artifacts() - before
        spent = {"seconds": time.monotonic() - start, "memory": peak.memory}
        durations.keep(tasks[0].figures, durations.WHOLE, spent, made)


def _side_by_side(tasks: Sequence[Task], todo: list[Task], at_once: int, stage: list[Task]) -> None:
    """Execute a stage, the longest notebook first, so that none is left alone; none after a failure."""
    stage = sorted(reversed(stage), key=lambda task: -(task.seconds or math.inf))
    before, pool, ended = artifacts.count_artifacts(), ThreadPoolExecutor(at_once), Event()

    def one(task: Task) -> dict[str, Any] | None:
        try:
            return None if ended.is_set() else _run(tasks, todo, at_once, True, task)
        except BaseException:
            ended.set()
            raise

    with _share(at_once):
        running = [pool.submit(one, task) for task in stage]
        try:
            wait(running)
        except KeyboardInterrupt:
            ended.set()
            _end_children()
            raise
        finally:
            pool.shutdown()  # what has begun is waited for
    made = artifacts.count_artifacts() - before
    for task, found in zip(stage, running, strict=True):
        if record := found.result():
            durations.keep(task.figures, task.stem, record, made, at_once)


def _end_children() -> None:
    for child in psutil.Process().children(recursive=True):  # Ctrl-C does not reach the kernels
        with suppress(psutil.NoSuchProcess):
            child.terminate()


@contextmanager
def _share(at_once: int) -> Iterator[None]:
    """Give each notebook its share of the cores: more threads than cores wait for each other."""
    share = str(max(1, artifacts.cores() // at_once))
    own = {name: os.environ.get(name, share) for name in ("OMP_NUM_THREADS", WORKERS)}
    with patch.dict(os.environ, own):
        yield


def _run(
    tasks: Sequence[Task], todo: list[Task], at_once: int, crowded: bool, task: Task
) -> dict[str, Any] | None:
    """Execute a notebook that must run, and take it off what is still to do."""
    index = tasks.index(task)
    place = f"[{index + 1}/{len(tasks)}] {task.stem}"
    if not task.reason:
        todo.remove(task)
        console.print(escape(f"{place}: up to date"))
        return None
    rest = durations.left(todo, at_once)
    console.print(escape(f"{place}: {task.reason} ({rest} left in all)"))
    before = artifacts.count_artifacts()
    with durations.progress(task, console, hidden=crowded):
        record = execute(task)
    if not crowded:
        made = artifacts.count_artifacts() - before
        durations.keep(task.figures, task.stem, record, made)
    todo.remove(task)
    console.print(escape(f"{place}: done in {record['seconds']:.1f} s"))
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, plan or fetch, and return the exit code."""
    parser = argparse.ArgumentParser(prog="contsteal.paper", description=__doc__)
    parser.add_argument("command", choices=("run", "plan", "data"))
    parser.add_argument("--profile", default="auto", help="smoke, demo, synthetic, paper or auto")
    parser.add_argument("--only", nargs="*", default=[], help="notebooks by stem or number")
    parser.add_argument("--force", action="store_true", help="run also what is up to date")
    given = parser.parse_args(arguments)
    os.environ.setdefault("TQDM_MININTERVAL", "30")
    os.environ["CONTSTEAL_FIGURES"] = str(
        artifacts.figures_dir()
    )  # the notebooks' results are kept
    return finish(lambda: _do(given), NotebookFailed)


def _do(given: argparse.Namespace) -> int:
    profile, why = plan.choose(given.profile)
    console.print(f"profile {profile} on {artifacts.processor()}: {why}")
    tasks = plan.tasks(profile, given.only, given.force)
    return {"run": _run_all, "plan": _tell, "data": _fetch}[given.command](profile, tasks)


def _run_all(profile: str, tasks: Sequence[Task]) -> int:
    _check_data(profile, tasks)
    run(tasks, profiles.profile(profile)["common"].get("at_once", 1))
    if any(task.reason for task in tasks):
        _summarise(profile)
    console.print(f"figures, numbers and summary.md: {artifacts.figures_dir() / profile}")
    return 0


def _fetch(profile: str, tasks: Sequence[Task]) -> int:
    names, files = needs.datasets(profile), needs.files(profile)
    more = ["--all"] if any(f not in torchsets.used(name) for name, f in files) else []
    code = torchsets.main([*names, *more]) if names else 0
    others = needs.unfetched(profile)
    for name, (told, _) in others.items():
        console.print(escape(f"{name}: {told}"))
    return code or int(not all(there for _, there in others.values()))


def _check_data(profile: str, tasks: Sequence[Task]) -> None:
    """Raise MissingData before any work where a data set of the profile is not on disk."""
    for name, file in needs.files(profile) if any(task.reason for task in tasks) else ():
        torchsets.prepare(name, file)


def _summarise(profile: str) -> None:
    """Write the summary again, with the durations of this run, where all results are there."""
    with suppress(ValueError):
        report.write(profile)


def _tell(profile: str, tasks: Sequence[Task]) -> int:
    for task in tasks:
        told = (
            f"runs, {task.reason}; {durations.clock(task.seconds)}" if task.reason else "up to date"
        )
        console.print(escape(f"  {task.stem}: {told}"))
        if task.stem == plan.VICTIM and task.reason and task.seconds is None:
            _tell_estimates(task)
    for name, file in needs.files(profile):
        if not torchsets.is_present(file):
            told = f"missing: {name}, {file.path} ({torchsets.show(file.size)}); {torchsets.FETCH}"
            console.print(escape(f"  {told}"))
    left = durations.left(tasks, profiles.profile(profile)["common"].get("at_once", 1))
    console.print(f"{left} in all" if any(t.reason for t in tasks) else "nothing to do")
    return 0


def _tell_estimates(task: Task) -> None:
    """Say what each training will take: no run of this profile is recorded that could tell."""
    given = plan.parameters(task.stem, task.profile)
    for found in estimate.profile(task.profile, [given["method"], *given["others"]]):
        console.print(escape(f"    {found}"))


if __name__ == "__main__":
    sys.exit(main())
