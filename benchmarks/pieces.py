"""The whole record of a GPU in pieces: its tests, its benchmarks, then the notebooks of its profiles.

`make record SECONDS=540` runs pieces, the most valuable first, until so many seconds have passed; the
next call goes on where this one stopped. A notebook may be stopped at any time, since it keeps each
training, score and figure that it has finished. Tests and benchmarks start over, so they begin only
where they fit. `runs/record.json` says what was done and with which versions; on a GPU a copy of it lies
beside the card's rates. After every piece all that should be kept is packed into one archive. Without a
GPU a profile must be named, tests and benchmarks run at a tiny size, and their rates go to `runs/record`:
a rehearsal.
"""

import argparse
import ast
import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks import bars, record, report
from contsteal import files, loop
from contsteal.lab import artifacts
from contsteal.paper import notebooks

ORDER = ("03", "01", "04", "05a", "02", "05b", "05c", "00 06")  # notebooks, by their numbers
INTERACTIVE = ("ipywidgets", "jupyterlab")  # packages that no run needs
GRACE = 20.0  # seconds of a call for ending a piece, the summary and the record
LEAST = 45.0  # seconds below which a notebook would do nothing but start
KEPT_LINES = 15  # of what a piece printed, in the record
OUTCOMES = {0: "done", bars.MISSED: "done"}  # by exit code: a missed bar is a result, too
BEAT = 5.0  # seconds between two notes of how long a piece has run
ARCHIVE, LARGEST = "record.tar.gz", 16 * 2**20  # bytes: of the archive, and of a part of VICTIMS
VICTIMS = "victims.tar"
State = dict[str, Any]  # what became of each piece, by its name; which one runs; and the versions


@dataclass(frozen=True)
class Piece:
    """A part of the record.

    `notebook` is a profile and an entry of ORDER: `make paper` runs it and knows whether it is up to
    date. Other pieces run `command` with this interpreter and are finished where command, `code` (files)
    and versions are those of their last run, as is a notebook that another machine has finished where
    its settings and tables are; `seconds` are an estimate for an H200.
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
        profile, numbers = self.notebook
        given = [f"PROFILE={profile}", f"NB={numbers}", f"PYTHON={sys.executable}"]
        return ["make", "--no-print-directory", "paper", *given]

    def key(self) -> str:
        """Return a hash of what decides its results: command, code, versions; a notebook's tables."""
        if self.notebook is not None:
            profile, numbers = self.notebook
            tables = artifacts.figures_dir() / profile
            own = [p for number in numbers.split() for p in sorted(tables.glob(f"{number}_*.csv"))]
            return files.key([[(p.name, files.sha256(p)) for p in own],
                              [task.key for task in self.tasks()]])  # fmt: skip
        paths = [artifacts.ROOT / name for name in self.code]
        modules = artifacts.imported(ast.parse("\n".join(path.read_text() for path in paths)))
        code = [*map(artifacts.source_key, paths), artifacts.sources(*modules)]
        return files.key([self.command, code, versions()])

    def tasks(self) -> list[notebooks.Task]:
        """Return what the runner knows of its notebooks."""
        profile, numbers = self.notebook or ("", "")
        return notebooks.tasks(profile, numbers.split())

    def finished(self, state: State) -> bool:
        """Whether nothing would change if it ran again; a notebook is not where packages are missing."""
        if self.notebook and missing():
            return False
        if self.notebook and not any(task.reason for task in self.tasks()):
            return True
        known = state["pieces"].get(self.name, {})
        return known.get("outcome") == "done" and known["key"] == self.key()

    def needs(self, state: State) -> float:
        """Return the seconds that must be left for it to begin: more than it had and left nothing in."""
        return max(self.seconds, 1.5 * state["pieces"].get(self.name, {}).get("vain", 0.0))

    def later(self, state: State) -> bool:
        """Whether all others come first: it failed, or with it all that ran was killed."""
        outcome = state["pieces"].get(self.name, {}).get("outcome")
        return outcome == "failed" or (outcome == "killed" and not self.notebook)

    def kept(self, since: float) -> bool:
        """Whether it has left something since then that its next try goes on from."""
        left = (artifacts.runs_dir() / "artifacts").glob("*/*")  # checkpoints, encoders, scores
        return self.notebook is not None and any(path.stat().st_mtime > since for path in left)


def benchmark(*parts: str, seconds: float, tiny: bool) -> Piece:
    """Return the piece that measures some parts of the benchmarks."""
    command = ("-m", "benchmarks", "--only", *parts, *(["--tiny"] if tiny else []))
    code = tuple(
        f"benchmarks/{name}.py" for name in ("record", "training", "gpu", "literal", *parts)
    )
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
        benchmark("gpu", seconds=short or 110, tiny=tiny),
        benchmark("stealing", seconds=short or 60, tiny=tiny),
    ]
    later = [
        benchmark("attack", seconds=short or 200, tiny=tiny),
        tests("tests of compiled steps", "compiled or graphs", short or 300),
        benchmark("forms", seconds=short or 200, tiny=tiny),
        benchmark("fidelity", seconds=short or 240, tiny=tiny),
        benchmark("growth", seconds=short or 300, tiny=tiny),
    ]
    order = (ORDER[0], " ".join(ORDER[1:])) if tiny else ORDER  # side by side in a rehearsal
    books = [Piece(_title(p, n), notebook=(p, n)) for p in profiles for n in order]
    return [*first, *books[:1], *later[:1], *books[1:], *later[1:]]


def _title(profile: str, numbers: str) -> str:
    return f"{profile} {numbers}"


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
    """Return what notebooks need and this machine lacks: make, and packages of this interpreter."""
    project = tomllib.loads((artifacts.ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=~!\[ ;]", line)[0] for line in project["dependencies"]]
    lacking = [name for name in names if name not in INTERACTIVE and not _installed(name)]
    return lacking if shutil.which("make") else ["make", *lacking]


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


def state_file() -> Path:
    """Return the file that says what was done."""
    return artifacts.runs_dir() / "record.json"


def logs() -> Path:
    """Return the folder of what the pieces printed, and of a rehearsal's rates."""
    return artifacts.runs_dir() / "record"


def run(piece: Piece, limit: float, state: State) -> tuple[str, float, list[str]]:
    """Run a piece for `limit` seconds at most; return its outcome, its seconds and its last lines.

    A piece that is stopped gets SIGTERM: make and the runner of notebooks end their kernels on it, and
    a training goes on from its last checkpoint, which is hardly older than half a minute.
    """
    log = logs() / f"{piece.name.replace(' ', '_')}.log"
    # Of make's own variables none is inherited: they would name this call's profile and targets.
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    # GPU tests run on this device, or fail: skipped ones would say nothing of it.
    env |= {"GPU_TESTS_ON": artifacts.device().type, "PYTHONUNBUFFERED": "1"}
    if not torch.cuda.is_available():  # a rehearsal's rates stay apart
        env["CONTSTEAL_RESULTS"] = str(logs() / "results")
    start = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(piece.line(), cwd=artifacts.ROOT, stdout=out, env=env,
                                   stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        try:
            outcome = _watched(piece, process, start + limit, state)
        except KeyboardInterrupt:
            outcome = "interrupted"
        finally:
            _end(process.pid, process.poll)
    state.pop("running", None)
    said = [line for line in log.read_text().splitlines() if line.strip()][-KEPT_LINES:]
    if piece.notebook and outcome in ("stopped", "interrupted"):
        said = []  # how its kernel was ended
    return outcome, time.monotonic() - start, said


def _watched(piece: Piece, process: subprocess.Popen[bytes], end: float, state: State) -> str:
    """Wait until a process ends, or the time has come; keep for how long it has run, should all die."""
    born, start = psutil.Process(process.pid).create_time(), time.monotonic()
    while (left := end - time.monotonic()) > 0:
        took = round(time.monotonic() - start, 1)
        state["running"] = {"piece": piece.name, "pid": process.pid, "born": born, "seconds": took}
        files.write_json(state_file(), state)
        with suppress(subprocess.TimeoutExpired):
            return OUTCOMES.get(process.wait(min(BEAT, left)), "failed")
    return "stopped"


def _end(group: int, poll: Callable[[], object] = lambda: None) -> None:
    """End a group of processes: by SIGTERM, and by SIGKILL what is left after half of GRACE."""
    patience = time.monotonic() + GRACE / 2
    # Raised once nobody is left; macOS has PermissionError for a group that is gone.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < patience:
            poll()  # a child that has ended stays in its group until somebody asks
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)
    poll()


def clear(wanted: Sequence[Piece], state: State) -> None:
    """End what a call that was killed has left running, and note what became of its piece."""
    if not (known := state.pop("running", None)):
        return
    name, took, born = known["piece"], known["seconds"], known["born"]
    print(f"{name}: killed with the last call, after {took:.0f} s or more")
    try:
        found = psutil.Process(known["pid"]).create_time()
        ours = abs(found - born) < 5  # a clock may have been set; else it is the number's new owner
    except psutil.NoSuchProcess:
        ours = True  # what it started may be there
    if ours:
        _end(known["pid"])
    for piece in wanted:
        if piece.name == name:
            note(piece, state, "killed", born, took)


def note(
    piece: Piece, state: State, outcome: str, since: float, took: float, key: str = "",
    said: Sequence[str] = (),
) -> None:  # fmt: skip
    """Note what became of a piece that began at `since` (seconds of the epoch) and took so long."""
    known = state["pieces"].get(piece.name, {})
    before = known["seconds"] if piece.notebook and known.get("outcome", "done") != "done" else 0.0
    vain = outcome in ("stopped", "killed") and not piece.kept(since)
    state["pieces"][piece.name] = {
        "outcome": outcome, "key": key, "seconds": round(before + took, 1), "last lines": said,
        "vain": round(took, 1) if vain else 0.0, "date": date.today().isoformat(),
        "code": artifacts.code_version(),
    }  # fmt: skip


def proceed(todo: Sequence[Piece], state: State, end: float, kept: Callable[[], object]) -> None:
    """Run the pieces that fit before `end`, in their order; after each note it, and call `kept`."""
    for piece in todo:
        if (left := end - time.monotonic()) < piece.needs(state):
            continue  # a later one may still fit
        print(f"{piece.name}: begins, {left:.0f} s are left", flush=True)
        key, since = "" if piece.notebook else piece.key(), time.time()
        outcome, took, said = run(piece, left, state)
        if piece.notebook and outcome == "done":
            key = piece.key()  # of the tables that it has left
        for line in said:
            print(f"    {line}")
        print(f"{piece.name}: {outcome} after {took:.0f} s", flush=True)
        note(piece, state, outcome, since, took, key, said)
        if piece.notebook and outcome != "done":  # `make paper` did not get to its end
            notebooks.finish(piece.notebook[0], time.time())
        kept()
        if outcome == "interrupted":
            break


def keep(state: State, profiles: Iterable[str], to: Path | None) -> None:
    """Write the state, and pack it with logs, rates and figures into an archive for a clone.

    With a folder `to` for what leaves a machine that forgets, trained victims are put there, too.
    """
    archive, kept = (to or artifacts.runs_dir()) / ARCHIVE, {"runs/record": logs()}
    if torch.cuda.is_available():
        store_whole("synthetic", state)
        files.write_json(record.RESULTS / f"{loop.card()}_record.json", state)
        kept |= {"benchmarks/README.md": report.README, "benchmarks/results": record.RESULTS}
    files.write_json(state_file(), state)
    kept |= {f"figures/{name}": artifacts.figures_dir() / name for name in sorted(profiles)}
    _pack(archive, kept | {"runs/record.json": state_file()})
    if archive.stat().st_size > LARGEST:
        print(f"{archive} has {archive.stat().st_size / 2**20:.0f} MiB: too much for a repository")
    # Those alone that all attacks share: surrogates would be gigabytes.
    victims = [p for p in (artifacts.runs_dir() / "artifacts").glob("victim-*") if not p.suffix]
    if to and victims:
        for old in to.glob(f"{VICTIMS}.*"):
            old.unlink()
        whole = to / VICTIMS
        _pack(whole, {f"runs/artifacts/{path.name}": path for path in victims})
        with whole.open("rb") as file:
            for number, part in enumerate(iter(lambda: file.read(LARGEST - 2**20), b"")):
                (to / f"{VICTIMS}.{number}").write_bytes(part)
        whole.unlink()


def _pack(archive: Path, kept: Mapping[str, Path]) -> None:
    """Write those of the files and folders that exist into an archive, each under its name there."""
    kind = "w:gz" if archive.suffix == ".gz" else "w"  # weights cannot be packed
    with files.atomic(archive) as new, tarfile.open(new, kind) as tar:
        for name, path in kept.items():
            if path.exists():
                tar.add(path, name)


def store_whole(profile: str, state: State) -> None:
    """Store the seconds that all notebooks of a profile took together, once all of them are done."""
    parts = [state["pieces"].get(_title(profile, number), {}) for number in ORDER]
    if all(part.get("outcome") == "done" for part in parts):
        seconds = sum(part["seconds"] for part in parts)
        row = record.row("pieces", f"{profile}, all notebooks", record.US, "s", [seconds])
        record.store("pieces", [row])
        report.write()


def messages(wanted: Sequence[Piece], left: Sequence[Piece], state: State) -> Iterator[str]:
    """Yield what is done, what is left, what failed, and what the next call does and needs."""
    failed = [p.name for p in left if state["pieces"].get(p.name, {}).get("outcome") == "failed"]
    yield "done: " + (", ".join(p.name for p in wanted if p not in left) or "nothing")
    yield "left: " + (", ".join(p.name for p in left) or "nothing: the record is complete")
    if failed:
        yield f"failed: {', '.join(failed)}; all that they printed is in {logs()}"
    lacking, python = missing(), sys.executable
    if lacking and any(piece.notebook for piece in left):
        yield f"Notebooks need {', '.join(lacking)}, which this machine or {python} lacks."
    if names := " ".join(name for name in lacking if name != "make"):
        yield (
            f"Install packages by `{python} -m pip install {names}`; without a network fetch the wheels "
            "elsewhere by `pip download --dest wheels --only-binary=:all: --python-version "
            f"{platform.python_version()} {names}` and add `--no-index --find-links wheels` to the "
            "first command."
        )
    able = [piece for piece in left if not (lacking and piece.notebook)]
    for piece in able[:1]:
        yield (f"The next call goes on with {piece.name}, for which it needs "
               f"SECONDS={piece.needs(state) + GRACE:.0f} or more.")  # fmt: skip


@contextmanager
def alone() -> Iterator[None]:
    """Hold what no other call may hold; ValueError where one does, StorageError where nothing fits."""
    own = [record.RESULTS] if torch.cuda.is_available() else []
    for place in (logs(), artifacts.figures_dir(), *own):
        files.write_text(place / ".writable", " " * 2**16)
        (place / ".writable").unlink()
    with (artifacts.runs_dir() / "record.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError("another `make record` runs here: wait for its end") from None
        yield


def main(arguments: Sequence[str] | None = None, age: float = 0.0) -> int:
    """Run what fits into the seconds, less its own `age`; 1 where a piece failed or cannot run."""
    begin = time.monotonic() - age
    parser = argparse.ArgumentParser(prog="make record", description=__doc__)
    parser.add_argument("--profile", default="auto", help="auto: those of a GPU")
    parser.add_argument("--seconds", type=float, default=540.0, help="after which this call ends")
    parser.add_argument("--to", type=Path,
                        help=f"folder of {ARCHIVE}, and of the victims in parts: what to take along "
                             "from a machine that forgets")  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        with alone():
            return call(given.profile, begin + given.seconds - GRACE, given.to)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, files.StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def call(profile: str, end: float, to: Path | None) -> int:
    """Go on with the record of a profile until `end`; return the exit code."""
    wanted = pieces(profiles_of(profile), tiny=not torch.cuda.is_available())
    state: State = {"pieces": {}} | (files.read_json(state_file()) or {}) | {"versions": versions()}
    print(f"record: {', '.join(f'{k} {v}' for k, v in state['versions'].items())}", flush=True)
    clear(wanted, state)
    todo = [piece for piece in wanted if not piece.finished(state)]
    for piece in todo:
        if state["pieces"].get(piece.name, {}).get("outcome") == "done":
            del state["pieces"][piece.name]  # out of date
    able = sorted((p for p in todo if not (p.notebook and missing())), key=lambda p: p.later(state))
    kept = partial(keep, state, {p.notebook[0] for p in wanted if p.notebook}, to)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        proceed(able, state, end, kept)
    finally:
        signal.signal(signal.SIGTERM, before)
    left = [p for p in todo if state["pieces"].get(p.name, {}).get("outcome") != "done"]
    archive = (to or artifacts.runs_dir()) / ARCHIVE
    if not archive.exists():  # nothing had to be done
        kept()
    print("\n".join(messages(wanted, sorted(left, key=lambda p: p.later(state)), state)))
    print(f"{archive} has all that should be kept: `tar xzf` in a clone "
          "puts it where it can be committed, and a call there goes on from it.")  # fmt: skip
    failed = any(state["pieces"].get(p.name, {}).get("outcome") == "failed" for p in left)
    return int(failed or len(able) < len(todo))


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(
        main(age=time.time() - psutil.Process().create_time())
    )  # importing torch takes its time
