"""One notebook in a process of its own: executed, measured, recorded, and renamed only on success."""

import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from contsteal import files
from contsteal.lab import artifacts
from contsteal.paper import plan, usage
from contsteal.paper.plan import Task


class NotebookFailed(RuntimeError):
    """A cell raised; its executed copy is kept for inspection."""


def _check_writable(task: Task) -> None:
    """Raise StorageError before any work where results could not be kept."""
    for folder in (task.folder, task.figures):
        probe = folder / f".{task.stem}.writable"
        files.write_text(probe, " " * 2**16)
        probe.unlink()


def execute(task: Task) -> dict[str, Any]:
    """Execute one notebook in its own process; rename its copy to the final name only on success.

    Return its record, as stored: what it read and wrote, `seconds`, the peak `memory` of its processes
    and the `disk` that its artifacts and its copy take, in bytes, date and device.
    """
    _check_writable(task)
    name = f"{task.profile}/{task.stem}"
    partial, final = (task.folder / f"{task.stem}{end}" for end in (".partial.ipynb", ".ipynb"))
    now, before, start = plan.inputs(task.stem, task.profile), task.files(), time.monotonic()
    files.write_json(task.record, {"status": "unfinished", "inputs": now, "outputs": {}})
    with usage.watch(name) as peak:
        _execute(task.stem, name, partial, now["parameters"])
    partial.replace(final)
    written = [n for n, at in task.files().items() if before.get(n) != at]
    record = {
        "status": "ok", "inputs": now, "seconds": round(time.monotonic() - start, 1),
        "outputs": {n: _digest(task.figures / n) for n in written if task.owns(n)},
        "memory": peak.memory, "disk": usage.disk(name, final),
        "date": date.today().isoformat(), "device": artifacts.processor(),
    }  # fmt: skip
    files.write_json(task.record, record)
    return record


def _execute(stem: str, name: str, partial: Path, parameters: dict[str, Any]) -> None:
    """Write the executed copy, cell by cell; raise NotebookFailed where it does not get to its end."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # papermill's own, about its metadata
            papermill.execute_notebook(
                plan.NOTEBOOKS / f"{stem}.ipynb", partial, parameters,
                kernel_name="python3", cwd=artifacts.ROOT, progress_bar=False, coalesce_streams=True,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL", usage.argument(name)],
                config=Config(AsyncKernelManager={"transport_encryption": "auto"}),
            )  # fmt: skip
    except DeadKernelError as error:
        raise NotebookFailed(
            f"{stem}: the kernel died, most likely for want of memory; the executed copy is kept "
            f"at {partial}"
        ) from error
    except PapermillExecutionError as error:  # papermill adds one cell, with the parameters
        raise NotebookFailed(
            f"{stem}, code cell {error.exec_count - 1}:\n\n{error.source}\n\n{error.ename}: "
            f"{error.evalue}\n\nthe executed copy is kept at {partial}"
        ) from error


def _digest(path: Path) -> str:
    """Return a file's sha256; none for the summary, which is written again with the durations."""
    return "" if path.name == plan.SUMMARY else files.sha256(path)
