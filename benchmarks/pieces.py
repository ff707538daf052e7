"""The whole record of a GPU in pieces: its tests, its benchmarks, then the notebooks of its profiles.

`make record SECONDS=540` runs pieces, the most valuable first, until so many seconds have passed; the
next call goes on where this one stopped. A notebook may be stopped at any time, since it keeps each
training, score and figure that it has finished. Tests and benchmarks start over, so they begin only
where they fit. `runs/record.json` says what was done and with which versions; on a GPU a copy of it lies
beside the card's rates. Without a GPU a profile must be named, and benchmarks run at their tiny size: a
rehearsal.
"""

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks import bars, record, report
from contsteal import files, loop
from contsteal.lab import artifacts
from contsteal.paper import notebooks

ORDER = ("03", "01", "04", "05a", "02", "05b", "05c", "")  # notebooks; "": all that are left
INTERACTIVE = ("ipywidgets", "jupyterlab")  # packages that no run needs
GRACE = 20.0  # seconds of a call for ending a piece, the summary and the record
LEAST = 45.0  # seconds below which a notebook would do nothing but start
KEPT_LINES = 15  # of what a piece printed, in the record
OUTCOMES = {0: "done", bars.MISSED: "done"}  # by exit code: a missed bar is a result, too
State = dict[str, Any]  # of the record: what became of each piece, by its name, and the versions


@dataclass(frozen=True)
class Piece:
    """A part of the record.

    `notebook` is a profile and a number of ORDER: `make paper` runs it and knows whether it is up to
    date. Other pieces run `command` with this interpreter and are finished where command, `code` (files)
    and versions are those of their last run; `seconds` are an estimate for an H200.
    """

    name: str
    command: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    seconds: float = LEAST
    notebook: tuple[str, str] | None = None

    def line(self) -> list[str]:
        """Return the command line."""
        if self.notebook is None:
            return [sys.executable, *self.command]
        profile, number = self.notebook
        given = [f"PROFILE={profile}", f"NB={number}", f"PYTHON={sys.executable}"]
        return ["make", "--no-print-directory", "paper", *given]

    def key(self) -> str:
        """Return a hash of the command, the code that it runs, and the versions."""
        paths = [artifacts.ROOT / name for name in self.code]
        modules = notebooks.imports("\n".join(path.read_text() for path in paths))
        code = [*map(artifacts.source_key, paths), artifacts.sources(*modules)]
        return files.key([self.command, code, versions()])

    def finished(self, state: State) -> bool:
        """Whether nothing would change if it ran again; a notebook is not where packages are missing."""
        if self.notebook is None:
            known = state["pieces"].get(self.name, {})
            return known.get("outcome") == "done" and known["key"] == self.key()
        profile, number = self.notebook
        only = [number] if number else []
        return not missing() and not any(t.reason for t in notebooks.tasks(profile, only))

    def needs(self, state: State) -> float:
        """Return the seconds that must be left for it to begin: if it was stopped, more than it had."""
        known = state["pieces"].get(self.name, {})
        stopped = known.get("outcome") == "stopped" and not self.notebook
        return max(self.seconds, 1.5 * known["seconds"] if stopped else 0.0)


def benchmark(*parts: str, seconds: float, tiny: bool) -> Piece:
    """Return the piece that measures some parts of the benchmarks."""
    command = ("-m", "benchmarks", "--only", *parts, *(["--tiny"] if tiny else []))
    code = tuple(f"benchmarks/{name}.py" for name in ("record", "training", *parts))
    return Piece(f"benchmark {' '.join(parts)}", command, code, seconds)


def tests(name: str, chosen: str, seconds: float) -> Piece:
    """Return the piece that runs the GPU tests whose names pytest's expression chooses."""
    # The fixtures of all tests need more packages than a GPU machine may have; these need none.
    options = ("-q", "-p", "no:cacheprovider", "--noconftest", "-m", "gpu", "-k", chosen)
    command = ("-m", "pytest", "tests/test_gpu.py", *options)
    return Piece(name, command, ("tests/test_gpu.py",), seconds)


def pieces(profiles: Sequence[str], tiny: bool) -> list[Piece]:
    """Return the pieces in order: whether it is right, how fast it is, and then what was stolen."""
    short = 20.0 if tiny else 0.0
    first = [
        tests("tests", "not compiled and not graphs", short or 120),
        benchmark("gpu", seconds=short or 240, tiny=tiny),
        benchmark("stealing", seconds=short or 60, tiny=tiny),
    ]
    later = [
        benchmark("attack", seconds=short or 200, tiny=tiny),
        tests("tests of compiled steps", "compiled or graphs", short or 300),
        benchmark("fidelity", seconds=short or 240, tiny=tiny),
        benchmark("growth", seconds=short or 300, tiny=tiny),
    ]
    books = [Piece(_title(p, n), notebook=(p, n)) for p in profiles for n in ORDER]
    return [*first, *books[:1], *later[:1], *books[1:], *later[1:]]


def _title(profile: str, number: str) -> str:
    return f"{profile} {number or 'to its end'}"


# --------------------------------------------------------------------------- what is here


@cache
def versions() -> dict[str, str]:
    """Return what the numbers depend on beside the code: GPU, driver, CUDA, packages."""
    found = {"device": artifacts.processor(), "python": platform.python_version(),
             "torch": torch.__version__, "CUDA": str(torch.version.cuda)}  # fmt: skip
    found |= {name: version(name) for name in ("numpy", "timm")}
    if torch.cuda.is_available():
        asked = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found |= {"driver": asked.partition("\n")[0], "cuDNN": str(torch.backends.cudnn.version())}
    return found


def _output(*command: str) -> str:
    """Return what a command prints, "unknown" where it is missing or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=artifacts.ROOT
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def missing() -> list[str]:
    """Return the packages that notebooks need and this interpreter lacks."""
    project = tomllib.loads((artifacts.ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=~!\[ ;]", line)[0] for line in project["dependencies"]]
    return [name for name in names if name not in INTERACTIVE and not _installed(name)]


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def profiles_of(name: str) -> list[str]:
    """Return the profiles of the record: the one that was asked for, or those of a GPU."""
    if name != "auto":
        return [name]
    if not torch.cuda.is_available():
        raise ValueError(
            "no CUDA GPU is visible; `make record PROFILE=smoke` rehearses without one"
        )
    return ["synthetic"] if missing() or notebooks.missing_data("paper") else ["synthetic", "paper"]


# ------------------------------------------------------------------------------ the record


def run(piece: Piece, limit: float) -> tuple[str, float, list[str]]:
    """Run a piece for `limit` seconds at most; return its outcome, its seconds and its last lines.

    A piece that is stopped gets SIGTERM: make and the runner of notebooks end their kernels on it, and
    a training goes on from its last checkpoint, which is hardly older than `loop.SAVE_EVERY` seconds.
    """
    log = artifacts.runs_dir() / "record" / f"{piece.name.replace(' ', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # Of make's own variables none is inherited: they would name this call's profile and targets.
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    start = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(piece.line(), cwd=artifacts.ROOT, stdout=out, env=env,
                                   stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        try:
            outcome = OUTCOMES.get(process.wait(limit), "failed")
        except subprocess.TimeoutExpired:
            outcome = "stopped"
        finally:
            _end(process)
    said = [line for line in log.read_text().splitlines() if line.strip()][-KEPT_LINES:]
    if piece.notebook and outcome == "stopped":
        said = []  # how its kernel was ended
    return outcome, time.monotonic() - start, said


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group: by SIGTERM, and by SIGKILL what is left after half of GRACE."""
    patience = time.monotonic() + GRACE / 2
    with suppress(
        ProcessLookupError, PermissionError
    ):  # macOS has the latter for a group that is gone
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < patience:
            process.poll()
            os.killpg(process.pid, 0)  # raises once nobody is left
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def proceed(todo: Sequence[Piece], state: State, end: float, file: Path) -> None:
    """Run the pieces that fit before `end`, in their order, and note in `file` what became of each."""
    for piece in todo:
        left, known = end - time.monotonic(), state["pieces"].get(piece.name, {})
        if left < piece.needs(state):
            continue  # a later one may still fit
        print(f"{piece.name}: begins, {left:.0f} s are left", flush=True)
        key = "" if piece.notebook else piece.key()
        outcome, took, said = run(piece, left)
        for line in said:
            print(f"    {line}")
        print(f"{piece.name}: {outcome} after {took:.0f} s", flush=True)
        before = known["seconds"] if piece.notebook and known.get("outcome") == "stopped" else 0.0
        state["pieces"][piece.name] = {
            "outcome": outcome, "key": key, "seconds": round(before + took, 1), "last lines": said,
            "date": date.today().isoformat(),
            "commit": _output("git", "describe", "--always", "--dirty"),
        }  # fmt: skip
        if piece.notebook and outcome == "stopped":  # `make paper` did not get to its end
            notebooks.finish(piece.notebook[0], time.time())
        files.write_json(file, state)
        if torch.cuda.is_available():
            shutil.copy(file, record.RESULTS / f"{loop.card()}_record.json")


def store_whole(profile: str, state: State) -> None:
    """Store the seconds that all notebooks of a profile took together, once all of them are done."""
    parts = [state["pieces"].get(_title(profile, number), {}) for number in ORDER]
    if all(part.get("outcome") == "done" for part in parts):
        seconds = sum(part["seconds"] for part in parts)
        row = record.row("pieces", f"{profile}, all notebooks", record.US, "s", [seconds])
        record.store("pieces", [row])
        report.write()


def messages(wanted: Sequence[Piece], left: Sequence[Piece], state: State) -> Iterator[str]:
    """Yield what is done, what is left, and what the next call does and needs."""
    yield "done: " + (", ".join(p.name for p in wanted if p not in left) or "nothing")
    yield "left: " + (", ".join(p.name for p in left) or "nothing")
    lacking = missing()
    if lacking and any(piece.notebook for piece in left):
        names, python = " ".join(lacking), sys.executable
        yield (
            f"Notebooks need {', '.join(lacking)}, which {python} lacks: run `{python} -m pip install "
            f"{names}`; without a network fetch the wheels elsewhere by `pip download --dest wheels "
            f"--only-binary=:all: --python-version {platform.python_version()} {names}` and add "
            "`--no-index --find-links wheels` to the first command."
        )
    able = [piece for piece in left if not (lacking and piece.notebook)]
    for piece in able[:1]:
        yield (f"The next call goes on with {piece.name}, for which it needs "
               f"SECONDS={piece.needs(state) + GRACE:.0f} or more; commit figures/ and benchmarks/ "
               "to keep what is done.")  # fmt: skip


def main(arguments: Sequence[str] | None = None, age: float = 0.0) -> int:
    """Run what fits into the seconds, less its own `age`; 1 where a piece failed or cannot run."""
    begin = time.monotonic() - age
    parser = argparse.ArgumentParser(prog="make record", description=__doc__)
    parser.add_argument("--profile", default="auto", help="auto: those of a GPU")
    parser.add_argument("--seconds", type=float, default=540.0, help="after which this call ends")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        wanted = pieces(profiles_of(given.profile), tiny=not torch.cuda.is_available())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    file = artifacts.runs_dir() / "record.json"
    state: State = {"pieces": {}} | (files.read_json(file) or {}) | {"versions": versions()}
    print(f"record: {', '.join(f'{k} {v}' for k, v in state['versions'].items())}", flush=True)
    todo = [piece for piece in wanted if not piece.finished(state)]
    for piece in todo:
        if state["pieces"].get(piece.name, {}).get("outcome") == "done":
            del state["pieces"][piece.name]  # out of date
    able = [piece for piece in todo if not (piece.notebook and missing())]
    # What failed is tried again, after all that did not.
    able.sort(key=lambda p: state["pieces"].get(p.name, {}).get("outcome") == "failed")
    with suppress(KeyboardInterrupt):  # each piece before was noted
        proceed(able, state, begin + given.seconds - GRACE, file)
    left = [p for p in todo if state["pieces"].get(p.name, {}).get("outcome") != "done"]
    if torch.cuda.is_available():
        store_whole("synthetic", state)
    print("\n".join(messages(wanted, left, state)))
    failed = any(state["pieces"].get(p.name, {}).get("outcome") == "failed" for p in left)
    return int(failed or len(able) < len(todo))


if __name__ == "__main__":
    sys.exit(
        main(age=time.time() - psutil.Process().create_time())
    )  # importing torch takes its time
