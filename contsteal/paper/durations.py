"""How long notebooks took and what else, how long is left, and what is shown of it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from contsteal import files
from contsteal.lab import artifacts
from contsteal.paper import plan
from contsteal.paper.plan import Task

WHOLE = "in all"  # the entry of a run of every notebook
COSTS = {"memory": "peak memory, MiB", "disk": "disk, MiB"}
MEASURED = (
    "Memory is that of a notebook's kernel and workers together, looked at twice a second (what they "
    "share counts in each; a GPU's is not counted); disk that of the artifacts it made first, and of "
    "its executed copy."
)


def keep(
    folder: Path, name: str, spent: Mapping[str, Any], computed: int, at_once: int = 1
) -> None:
    """Note what a notebook took, or all of them (`WHOLE`), beside the figures.

    `spent` has `seconds`, and the bytes of `memory` and `disk` where they were measured. `computed`
    artifacts were made meanwhile. A run that made fewer than the recorded one read the others back, so
    its time is not the notebook's and is not noted. `at_once` notebooks shared the machine.
    """
    path = folder / plan.TIMINGS
    known = files.read_json(path) or {}
    if computed >= known.get(name, {}).get("computed", 0):
        entry = {"seconds": round(spent["seconds"], 1), "computed": computed}
        entry |= {k: spent[k] for k in COSTS if k in spent} | {"device": artifacts.processor()}
        entry |= {"at_once": at_once} if at_once > 1 else {}
        files.write_json(path, known | {name: entry})


def table(folder: Path) -> str:
    """Return what each notebook took: seconds, peak memory, disk, device; or that nothing is recorded.

    What an older run did not measure is shown as "-".
    """
    known = files.read_json(folder / plan.TIMINGS) or {}
    each = {name: known[name] for name in sorted({*known} - {WHOLE})}
    if not each:
        return "No durations are recorded."
    crowd = max(entry.get("at_once", 1) for entry in known.values())
    whole = _whole(list(each.values()), crowd > 1) | known.get(WHOLE, {})
    each |= {WHOLE: whole} if "seconds" in whole else {}
    told = pd.DataFrame([_row(*entry) for entry in each.items()]).to_markdown(index=False)
    asides = [f"Up to {crowd} notebooks ran side by side, so their seconds overlap."] * (crowd > 1)
    asides += [MEASURED] * any("memory" in entry for entry in each.values())
    return "\n\n".join([told, " ".join(asides)] if asides else [told])


def _whole(each: Sequence[Mapping[str, Any]], crowded: bool) -> dict[str, Any]:
    """Return what all notebooks took, as far as those that were recorded one by one tell it."""
    found: dict[str, Any] = {}
    if not crowded:
        found["seconds"] = round(sum(entry["seconds"] for entry in each), 1)
    if not crowded and all("memory" in entry for entry in each):
        found["memory"] = max(entry["memory"] for entry in each)
    if all("disk" in entry for entry in each):
        found["disk"] = sum(entry["disk"] for entry in each)
    devices = {entry.get("device") for entry in each}
    return found | ({"device": devices.pop()} if len(devices) == 1 and None not in devices else {})


def _row(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {
        label: f"{entry[cost] / 2**20:.1f}" if cost in entry else "-"
        for cost, label in COSTS.items()
    }
    shown = {"notebook": name, "seconds": entry["seconds"]}
    return shown | sizes | {"device": entry.get("device", "-")}


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
