"""Encoders as artifacts: written with their history, read back with their sha256."""

import ast
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

import pandas as pd
import psutil
import torch

from contsteal import encoders, files, loop
from contsteal.files import (
    atomic,
    key,
    move_aside,
    read_json,
    sha256,
    write_json,
)
from contsteal.methods import Head

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = Path(__file__).resolve().parent.parent
MANIFEST, MAKER = "manifest.json", "CONTSTEAL_NOTEBOOK"  # a file; a variable: who runs


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


def source_key(path: Path) -> str:
    """Return a key of a source file's code; comments and layout of Python files do not count."""
    return _source_key(path, path.stat().st_mtime_ns)


@cache
def _source_key(path: Path, changed: int) -> str:
    code = ast.dump(ast.parse(path.read_text())) if path.suffix == ".py" else None
    return hashlib.sha256(code.encode() if code else path.read_bytes()).hexdigest()


def sources(*modules: str) -> str:
    """Return a key of the code of these modules and of everything of ours that they import."""
    return key([(name, source_key(_file(name))) for name in sorted(closure(*modules))])


def closure(*modules: str) -> set[str]:
    """Return these modules and all that they import, directly or not, among `contsteal`'s own.

    Imports are read from the source, those inside functions too: what a run might execute decides its
    result.
    """
    reached: set[str] = set()
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += _imported(_file(name), _file(name).stat().st_mtime_ns)
            pending += [name.rpartition(".")[0]] * ("." in name)  # importing a.b runs a, too
    return reached


def _file(module: str) -> Path:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _imported(path: Path, changed: int) -> frozenset[str]:
    """Return the modules of ours that a file imports, by name; `changed` is the file's time of change."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "contsteal":
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {a.name for a in node.names if a.name.split(".")[0] == "contsteal"}
    return frozenset(name for name in names if _file(name).is_file())


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

    The key covers the import closure of `code` and the module that defines `make`.

    `make` gets a folder to write into; checkpoints it leaves in `<folder>.work` survive a kill and
    are removed on success. A folder whose files do not have the stored hashes is moved aside and made
    again; one that another process is making is waited for. `tell` is told why it is computed.
    Errors: StorageError where it cannot be written.
    """
    maker = Path(sys.modules[make.__module__].__file__)
    identity = {"kind": kind, "config": config, "code": key([sources(*code), source_key(maker)])}
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


HEAD = "projector.safetensors"
UNTRAINED = ("epoch", "loss", "lr", "seconds")  # columns of a history without epochs


@dataclass(frozen=True)
class Trained:
    """An encoder read back from its artifact, its history per epoch, its `encoders.identity`, the seconds
    it took, what it cost in queries, and the projector that its own loss was computed behind."""

    encoder: encoders.Encoder
    history: pd.DataFrame
    sha256: str
    seconds: float
    queries: dict[str, int]
    projector: Head | None = None


def read(folder: Path, device: torch.device) -> Trained:
    """Return what `write` has left in an artifact's folder, the encoder in eval mode on `device`."""
    net = encoders.load(folder / "encoder.safetensors").to(device).eval()
    manifest, head = files.read_json(folder / MANIFEST) or {}, folder / HEAD
    return Trained(
        net, pd.read_csv(folder / "history.csv"), encoders.identity(net),
        manifest["seconds"], files.read_json(folder / "queries.json") or {},
        Head.load(head).to(device) if head.exists() else None,
    )  # fmt: skip


def write(
    folder: Path,
    net: encoders.Encoder,
    history: list[loop.Row],
    queries: dict[str, int],
    projector: Head | None = None,
) -> None:
    """Write an encoder, its history (empty for one not trained here), its queries and projector."""
    encoders.save(net, folder / "encoder.safetensors", epochs=len(history))
    table = pd.DataFrame(history) if history else pd.DataFrame(columns=list(UNTRAINED))
    table.to_csv(folder / "history.csv", index=False)
    files.write_json(folder / "queries.json", queries)
    if projector is not None:
        projector.save(folder / HEAD)
