"""Artifacts keyed by content, atomic writes, and the facts of the machine a result came from."""

import ast
import hashlib
import json
import os
import platform
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from functools import cache
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(__file__).resolve().parent
MANIFEST, MAKER = "manifest.json", "CONTSTEAL_NOTEBOOK"  # a file; a variable: who runs


class StorageError(RuntimeError):
    """A result could not be written: no permission or no space."""


def runs_dir() -> Path:
    """Return the folder of executed notebooks and artifacts: $CONTSTEAL_RUNS or `runs/`."""
    return Path(os.environ.get("CONTSTEAL_RUNS", ROOT / "runs")).resolve()


def figures_dir() -> Path:
    """Return the folder of figures and the numbers behind them: $CONTSTEAL_FIGURES or `figures/`."""
    return Path(os.environ.get("CONTSTEAL_FIGURES", ROOT / "figures")).resolve()


def publish_dir() -> Path:
    """Return where notebooks write figures: `runs/interactive`, where the runner set no folder."""
    return figures_dir() if "CONTSTEAL_FIGURES" in os.environ else runs_dir() / "interactive"


class _MadeMeanwhile(Exception): ...


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise  # something that the block reads
        raise StorageError(
            f"{path} cannot be written ({error.strerror or error}): free space or give permission, "
            "or set CONTSTEAL_RUNS (CONTSTEAL_FIGURES for figures) to another folder; what was saved "
            "before is kept"
        ) from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.exists():
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as partial:
        partial.write_text(text)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, keys sorted."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")


def read_json(path: Path) -> dict | None:
    """Return a JSON file's content, or None where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def sha256(path: Path) -> str:
    """Return a file's sha256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key(value: object) -> str:
    """Return 16 hexadecimal digits that identify a JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_key(path: Path) -> str:
    """Return a key of a source file's code; comments and layout of Python files do not count."""
    return _source_key(path, path.stat().st_mtime_ns)


@cache
def _source_key(path: Path, changed: int) -> str:
    code = ast.dump(ast.parse(path.read_text())) if path.suffix == ".py" else None
    return hashlib.sha256(code.encode() if code else path.read_bytes()).hexdigest()


def sources(*modules: str) -> str:
    """Return a key of the package's modules named."""
    return key([(m, source_key(PACKAGE / f"{m}.py")) for m in modules])


def move_aside(path: Path) -> Path:
    """Rename a damaged file or folder to `<name>.corrupt-<time>` and return the new path."""
    aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
    path.rename(aside)
    return aside


def damage(folder: Path) -> str | None:
    """Say what is wrong with an artifact folder: a file missing or not as its manifest says."""
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return "its manifest is missing or damaged"
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != digest:
            return f"{name} is not what was written"
    return None


def artifact(
    kind: str,
    config: object,
    code: tuple[str, ...],
    make: Callable[[Path], None],
    tell: Callable[[str], None] = print,
) -> Path:
    """Return the folder of the artifact that `config` and the modules `code` define, made if need be.

    `make` gets a folder to write into; checkpoints it leaves in `<folder>.work` survive a kill and
    are removed on success. A folder whose files do not have the stored hashes is moved aside and made
    again; one that another process is making is waited for. `tell` is told why it is computed.
    Errors: StorageError where it cannot be written.
    """
    identity = {"kind": kind, "config": config, "code": sources(*code)}
    folder = runs_dir() / "artifacts" / f"{kind}-{key(identity)}"
    while _made_by_others(folder):
        time.sleep(0.1)
    if folder.exists():
        wrong = damage(folder)
        if wrong is None:
            return folder
        warnings.warn(f"{folder.name}: {wrong}; moved aside, computing it again", stacklevel=2)
        move_aside(folder)
    start = time.monotonic()
    tell(f"computing {kind}: {why(kind, identity)}")
    with suppress(_MadeMeanwhile), atomic(folder) as partial:
        partial.mkdir()
        make(partial)
        files = {f.name: sha256(f) for f in sorted(partial.iterdir())}
        told = {"seconds": round(time.monotonic() - start, 3), "by": os.environ.get(MAKER, "")}
        write_json(partial / MANIFEST, {"files": files} | told | identity)
        if folder.exists() and damage(folder) is None:
            raise _MadeMeanwhile  # by another process; somebody may be reading it
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(work_dir(folder), ignore_errors=True)
    return folder


def why(kind: str, identity: dict) -> str:
    """Say why an artifact is computed: the first of its kind, or what differs from the newest one."""
    found = (runs_dir() / "artifacts").glob(f"{kind}-*/{MANIFEST}")
    newest = max(found, key=lambda f: f.stat().st_mtime, default=None)
    old = newest and read_json(newest)
    if not isinstance(old, dict):
        return "the newest one's manifest is damaged" if newest else "never computed"
    if old.get("code") != identity["code"]:
        return "its code changed"
    before, now = old.get("config") or {}, json.loads(json.dumps(identity["config"], default=str))
    told = [f"{n}: {before.get(n)} -> {now[n]}" for n in now if before.get(n) != now[n]]
    return ", ".join(told) or "its files were damaged"


def _made_by_others(folder: Path) -> bool:
    """Say whether another process is making this artifact; remove what killed ones left of it."""
    for partial in folder.parent.glob(f".{folder.name}.*.partial"):
        with suppress(psutil.AccessDenied, ValueError, FileNotFoundError):
            pid, since = int(partial.name.split(".")[-2]), partial.stat().st_ctime
            if psutil.pid_exists(pid) and psutil.Process(pid).create_time() < since + 5:
                return pid != os.getpid()
            shutil.rmtree(
                partial, ignore_errors=True
            )  # nobody's, or the number is another's by now
    return False


def count_artifacts() -> int:
    """Return how many artifacts there are, whole ones only."""
    found = (runs_dir() / "artifacts").glob(f"*/{MANIFEST}")
    return sum(".corrupt-" not in f.parent.name and f.parent.name[0] != "." for f in found)


def work_dir(folder: Path) -> Path:
    """Return where an artifact's checkpoints lie while it is made."""
    return folder.with_name(re.sub(r"^\.(.+)\.\d+\.partial$", r"\1", folder.name) + ".work")


def device() -> torch.device:
    """Return the device that runs use: $CONTSTEAL_DEVICE, or a CUDA GPU where one is visible."""
    return torch.device(
        os.environ.get("CONTSTEAL_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    )


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute on one CPU thread, so that a number does not depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Name the hardware: the GPU, or the CPU with the number of threads in use."""
    if device().type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.exists() else None
    return f"{named[1].strip() if named else platform.processor() or 'CPU'}, {cores()} threads"


def stamp(profile: str, data: str, seeds: str) -> dict[str, str]:
    """Return what every figure and table carries: profile, data, seeds, device and date of run."""
    return {"profile": profile, "data": data, "seeds": seeds, "device": processor(),
            "torch": torch.__version__, "date": date.today().isoformat()}  # fmt: skip
