"""How long notebooks took, how long is left, and what is shown of it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from contsteal import plan, runs
from contsteal.plan import Task

WHOLE = "in all"  # the entry of a run of every notebook


def keep(folder: Path, name: str, seconds: float, computed: int, at_once: int = 1) -> None:
    """Note a notebook's duration, or that of all (`WHOLE`), beside the figures.

    `computed` artifacts were made meanwhile. A run that made fewer than the recorded one read the
    others back, so its time is not the notebook's and is not noted. `at_once` notebooks shared the
    machine.
    """
    path = folder / plan.TIMINGS
    known = runs.read_json(path) or {}
    if computed >= known.get(name, {}).get("computed", 0):
        entry = {"seconds": round(seconds, 1), "computed": computed}
        runs.write_json(
            path, known | {name: entry | {"at_once": at_once} if at_once > 1 else entry}
        )


def table(folder: Path) -> str:
    """Return the recorded seconds of each notebook, or say that none are recorded."""
    known = runs.read_json(folder / plan.TIMINGS) or {}
    rows = [{"notebook": n, "seconds": known[n]["seconds"]} for n in sorted({*known} - {WHOLE})]
    if not rows:
        return "No durations are recorded."
    crowd = max(entry.get("at_once", 1) for entry in known.values())
    whole = known.get(WHOLE, {}).get("seconds")
    if whole is None and crowd == 1:
        whole = round(sum(r["seconds"] for r in rows), 1)
    rows += [{"notebook": WHOLE, "seconds": whole}] if whole else []
    told = pd.DataFrame(rows).to_markdown(index=False)
    aside = f"Up to {crowd} notebooks ran side by side, so their seconds overlap."
    return f"{told}\n\n{aside}" if crowd > 1 else told


def clock(seconds: float | None) -> str:
    """Return minutes and seconds in words."""
    return (
        "time unknown" if seconds is None else f"about {int(seconds // 60)}:{int(seconds % 60):02d}"
    )


def left(tasks: Sequence[Task], at_once: int = 1) -> str:
    """Return how long the tasks that must run will take, where that is known of one of them."""
    stages = plan.stages(tasks) if at_once > 1 else [[t] for t in tasks]
    todo = [[t.seconds for t in stage if t.reason and t.seconds] for stage in stages]
    share = [sum(stage) / min(at_once, len(stage)) for stage in todo if stage]
    return clock(sum(share) if share else None)


@contextmanager
def progress(task: Task, console: Console, hidden: bool) -> Iterator[None]:
    """Show elapsed and remaining time of one notebook on a terminal; elsewhere nothing."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    hidden = hidden or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        shown, ended = bar.add_task(task.stem, total=task.seconds), Event()
        start = time.monotonic()

        def tick() -> None:
            while not ended.wait(1.0):
                gone = time.monotonic() - start
                rest = None if task.seconds is None else max(task.seconds - gone, 0)
                told = clock(rest) + (" left" if rest is not None else "")
                bar.update(shown, completed=gone, description=f"{task.stem}: {told}")

        Thread(target=tick, daemon=True).start()
        try:
            yield
        finally:
            ended.set()
