"""Time several ways of doing the same work by turns, and keep what was measured.

A peer and we do the same work in one run, one after the other in changing order, after a warm-up
each: what else the machine does then falls on both. A row holds the median and the spread over turns.
"""

import json
import os
import platform
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import joblib
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from contsteal import files, loop
from contsteal.lab import artifacts

STORED = artifacts.ROOT / "benchmarks" / "results"
RESULTS = Path(os.environ.get("CONTSTEAL_RESULTS", STORED)).resolve()
US = "contsteal"
device = loop.card  # the name of this device's record
# Units that are no rates.
PLAIN = ("s", "forwards", "points", "share", "slope", "weights", "steps", "surrogates")


@contextmanager
def forced(
    *, mode: str | None = None, precision: str | None = None, backend: loop.Backend | None = None
) -> Iterator[None]:
    """Force mode, precision and compilation in this process: for benchmarks and tests.

    Args:
        mode: "fast" or "exact".
        precision: "auto", "bf16" or "fp32".
        backend: one of torch.compile's, whatever the device and length of a training; or "none".

    Raises:
        ValueError: for an unknown mode or precision.
    """
    given = {"mode": mode, "precision": precision}
    names = {loop.CHOICES[name][0]: value for name, value in given.items() if value}
    backend = backend or loop.BACKEND
    with (
        patch.dict(os.environ, names),
        patch.object(loop, "BACKEND", backend),
        loop.flags_restored(),
    ):
        loop.mode_labels()  # refuses what is unknown
        loop.set_mode()
        yield


@dataclass(frozen=True)
class Row:
    """One measured rate: `value` is the median over `turns` of how many `unit` a second took.

    `low` and `high` are the slowest and fastest turn; `peak_mb` is the extra memory at its peak, where
    it was looked at. A `unit` of PLAIN is no rate: "s" means seconds of the whole, less is better.
    """

    part: str
    work: str
    who: str
    unit: str
    value: float
    low: float
    high: float
    turns: int
    peak_mb: float | None = None

    @property
    def name(self) -> tuple[str, str, str]:
        """What tells this row from others of a record."""
        return (self.part, self.work, self.who)

    @property
    def outside(self) -> float:
        """How far 0 lies outside [low, high], where these bound a difference."""
        return max(0.0, self.low, -self.high)


def wait() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(do: Callable[[], object]) -> float:
    """Return how long one call takes, on a GPU until it is done."""
    wait()
    start = time.perf_counter()
    do()
    wait()
    return time.perf_counter() - start


def by_turns(ways: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Return the seconds of every way, `turns` times each, after one call of each to warm up.

    The order goes round by one from turn to turn, so that nobody always comes first.
    """
    if turns < 1:
        raise ValueError(f"turns={turns}: at least one is needed")
    for do in ways.values():
        do()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(turns):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            taken[name].append(seconds(ways[name]))
    return taken


def compare(
    part: str,
    work: str,
    ways: Mapping[str, Callable[[], object]],
    amount: int | Mapping[str, int],
    unit: str,
    turns: int,
) -> list[Row]:
    """Time `ways` by turns and return a row of each: `amount` of `unit` per second, or seconds.

    `amount` may differ by way, where a slow one does less of the same work; unit "s" ignores it.
    """
    rows = []
    for who, taken in by_turns(ways, turns).items():
        done = amount if isinstance(amount, int) else amount[who]
        values = taken if unit == "s" else [done / one for one in taken]
        rows.append(row(part, work, who, unit, values))
    return rows


def row(
    part: str, work: str, who: str, unit: str, values: Iterable[float], peak_mb: float | None = None
) -> Row:
    """Return the row of some measured values."""
    values = list(values)
    return Row(part, work, who, unit, statistics.median(values), min(values), max(values),
               len(values), peak_mb)  # fmt: skip


class _Living(TorchDispatchMode):
    """Count the bytes of all tensors that are made inside and live, at their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self._known = 0, 0, {}

    def __torch_dispatch__(
        self, do: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ):
        out = do(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        name, size = storage._cdata, storage.nbytes()
        if name in self._known:
            return

        def gone(_: object) -> None:
            del self._known[name]
            self.now -= size

        self._known[name] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_mb(do: Callable[[], object]) -> float:
    """Return the memory in MB that one call takes at its peak beside what is there before it.

    On a GPU as its allocator counts it; elsewhere all tensors that live at once, without the workspace
    of a kernel. Views of older tensors count as new where their storage was not seen before.
    """
    if torch.cuda.is_available():
        wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        do()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with _Living() as living:
        do()
    return living.peak / 1e6


def is_stored(tiny: bool) -> bool:
    """Whether rows are stored: those of tiny sizes only in a folder apart, $CONTSTEAL_RESULTS."""
    return not tiny or "CONTSTEAL_RESULTS" in os.environ


def path() -> Path:
    """Return where this device's record is stored."""
    return RESULTS / f"{loop.card()}.json"


def read(file: Path) -> dict[str, Any]:
    """Return a stored record, or an empty one."""
    return json.loads(file.read_text()) if file.exists() else {"parts": {}, "rows": []}


def rows_of(stored: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a stored record."""
    return [Row(**values) for values in stored["rows"]]


def store(part: str, rows: Iterable[Row], file: Path | None = None) -> None:
    """Put the rows of one part into the record of this device, in place of its former ones."""
    file = file or path()
    stored = read(file)
    kept = [r for r in rows_of(stored) if r.part != part]
    stored["parts"][part] = {
        "device": artifacts.processor(), "date": date.today().isoformat(), "cores": joblib.cpu_count(),
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip
    stored["rows"] = [_rounded(r) for r in [*kept, *rows]]
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, stored)


def _rounded(one: Row) -> dict[str, Any]:
    """Return a row with four digits: more would be noise in every comparison of two records."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in asdict(one).items()}
