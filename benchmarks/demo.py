"""Seconds of the whole demo as a user runs it: from nothing, and again with all artifacts kept."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import record
from benchmarks.record import US, Row
from contsteal.lab import artifacts

WAYS = {"from nothing": [], "again, all kept": ["FORCE=1"]}


def execute(home: Path, *options: str) -> None:
    """Run notebooks in a process of its own, with artifacts and figures under `home`.

    Errors: subprocess.CalledProcessError where a notebook fails; what it said stands above.
    """
    own = {"CONTSTEAL_RUNS": str(home / "runs"), "CONTSTEAL_FIGURES": str(home / "figures")}
    command = ["make", "paper", f"PYTHON={sys.executable}", *options]
    own["TQDM_DISABLE"] = "1"
    subprocess.run(command, cwd=artifacts.ROOT, env=os.environ | own, check=True)


def whole(name: str, options: Sequence[str]) -> list[Row]:
    """Return the rows of both WAYS, each timed once: the second needs what the first has computed."""
    with tempfile.TemporaryDirectory() as home:
        taken = {
            way: record.seconds(lambda more=more: execute(Path(home), *options, *more))
            for way, more in WAYS.items()
        }
    return [record.row("demo", f"{name}, {way}", US, "s", [s]) for way, s in taken.items()]


def measure(tiny: bool) -> list[Row]:
    """Return the seconds of the demo profile; where `tiny`, of the first notebook of `smoke`."""
    given = ["PROFILE=smoke", "NB=00"] if tiny else ["PROFILE=demo"]
    return whole("whole demo", given)
