"""Run the notebooks of a profile: strict parameters, one process each, resumed, never half done.

`python -m contsteal.paper run|plan --profile demo` is what `make paper` and `make plan` call.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from threading import Event, Thread
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from traitlets.config import Config

from contsteal import plan, report, runs
from contsteal.plan import Task

console = Console(highlight=False, soft_wrap=True)


class NotebookFailed(RuntimeError):
    """A cell raised; its executed copy is kept for inspection."""


def _check_writable(task: Task) -> None:
    """Raise StorageError before any work where results could not be kept."""
    for folder in (task.folder, task.figures):
        runs.write_text(folder / ".writable", " " * 2**16)
        (folder / ".writable").unlink()


def execute(task: Task) -> dict[str, Any]:
    """Execute one notebook in its own process; rename its copy to the final name only on success."""
    _check_writable(task)
    partial, final = (task.folder / f"{task.stem}{end}" for end in (".partial.ipynb", ".ipynb"))
    now, before, start = plan.inputs(task.stem, task.profile), task.files(), time.monotonic()
    runs.write_json(task.record, {"status": "unfinished", "inputs": now, "outputs": {}})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # papermill's own, about its metadata
            papermill.execute_notebook(
                plan.NOTEBOOKS / f"{task.stem}.ipynb", partial, now["parameters"],
                kernel_name="python3", cwd=runs.ROOT, progress_bar=False, coalesce_streams=True,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
                config=Config(AsyncKernelManager={"transport_encryption": "auto"}),
            )  # fmt: skip
    except DeadKernelError as error:
        raise NotebookFailed(
            f"{task.stem}: the kernel died, most likely for want of memory; the executed copy is kept "
            f"at {partial}"
        ) from error
    except PapermillExecutionError as error:  # papermill adds one cell, with the parameters
        raise NotebookFailed(
            f"{task.stem}, code cell {error.exec_count - 1}:\n\n{error.source}\n\n{error.ename}: "
            f"{error.evalue}\n\nthe executed copy is kept at {partial}"
        ) from error
    partial.replace(final)
    written = [n for n, at in task.files().items() if before.get(n) != at]
    record = {
        "status": "ok", "inputs": now, "seconds": round(time.monotonic() - start, 1),
        "outputs": {n: _digest(task.figures / n) for n in written if task.owns(n)},
        "date": date.today().isoformat(), "device": runs.processor(),
    }  # fmt: skip
    runs.write_json(task.record, record)
    return record


def _digest(path: Path) -> str:
    """Return a file's sha256; none for the summary, which is written again with the durations."""
    return "" if path.name == plan.SUMMARY else runs.sha256(path)


def keep_time(task: Task, seconds: float, computed: int) -> None:
    """Note a notebook's duration beside the figures.

    `computed` artifacts were made. A run that made fewer than the recorded one read the others back,
    so its time is not the notebook's and is not noted.
    """
    path = task.figures / plan.TIMINGS
    known = runs.read_json(path) or {}
    if computed >= known.get(task.stem, {}).get("computed", 0):
        runs.write_json(path, known | {task.stem: {"seconds": seconds, "computed": computed}})


def _clock(seconds: float | None) -> str:
    return (
        "time unknown" if seconds is None else f"about {int(seconds // 60)}:{int(seconds % 60):02d}"
    )


def _left(tasks: Sequence[Task]) -> str:
    todo = [t.seconds for t in tasks if t.reason]
    return _clock(sum(s for s in todo if s)) if any(todo) else "time unknown"


@contextmanager
def _progress(task: Task) -> Iterator[None]:
    """Show elapsed and expected time of one notebook on a terminal; elsewhere nothing."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        shown, ended = bar.add_task(task.stem, total=task.seconds), Event()
        start = time.monotonic()

        def tick() -> None:
            while not ended.wait(1.0):
                gone = time.monotonic() - start
                left = (
                    "time unknown"
                    if task.seconds is None
                    else f"{_clock(task.seconds - gone)} left"
                )
                bar.update(shown, completed=gone, description=f"{task.stem}: {left}")

        Thread(target=tick, daemon=True).start()
        try:
            yield
        finally:
            ended.set()


def run(tasks: Sequence[Task]) -> None:
    """Execute the notebooks that must run, in order, telling what, why and how long is left."""
    for index, task in enumerate(tasks, 1):
        place = f"[{index}/{len(tasks)}] {task.stem}"
        if not task.reason:
            console.print(f"{escape(place)}: up to date")
            continue
        left = _left(tasks[index - 1 :])
        console.print(escape(f"{place}: {task.reason} ({left} left in all)"))
        artifacts = runs.count_artifacts()
        columns = (
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
        )
        hidden = not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
            bar.add_task(f"{task.stem}, {_clock(task.seconds)} in all", total=task.seconds)
            record = execute(task)
        keep_time(task, record["seconds"], runs.count_artifacts() - artifacts)
        console.print(escape(f"{place}: done in {record['seconds']:.1f} s"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run or plan, and return the exit code."""
    parser = argparse.ArgumentParser(prog="contsteal.paper", description=__doc__)
    parser.add_argument("command", choices=("run", "plan"))
    parser.add_argument("--profile", default="auto", help="smoke, demo, synthetic, paper or auto")
    parser.add_argument("--only", nargs="*", default=[], help="notebooks by stem or number")
    parser.add_argument("--force", action="store_true", help="run also what is up to date")
    given = parser.parse_args(arguments)
    os.environ.setdefault("TQDM_MININTERVAL", "30")
    os.environ["CONTSTEAL_FIGURES"] = str(runs.figures_dir())  # the notebooks' results are kept
    try:
        profile, why = plan.choose(given.profile)
        console.print(f"profile {profile} on {runs.processor()}: {why}")
        tasks = plan.tasks(profile, given.only, given.force)
        if given.command == "plan":
            _tell(tasks)
            return 0
        run(tasks)
        if any(task.reason for task in tasks):
            _summarise(profile)
    except (ValueError, NotebookFailed, runs.StorageError) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        return 1
    console.print(f"figures, numbers and summary.md: {runs.figures_dir() / profile}")
    return 0


def _summarise(profile: str) -> None:
    """Write the summary again, with the durations of this run, where all results are there."""
    with suppress(ValueError):
        report.write(profile)


def _tell(tasks: Sequence[Task]) -> None:
    for task in tasks:
        told = f"runs, {task.reason}; {_clock(task.seconds)}" if task.reason else "up to date"
        console.print(escape(f"  {task.stem}: {told}"))
    console.print(f"{_left(tasks)} in all" if any(t.reason for t in tasks) else "nothing to do")


if __name__ == "__main__":
    sys.exit(main())
