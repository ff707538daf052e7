"""Results kept by content: a folder per artifact, whose name follows from its settings and its code."""

import ast
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import pandas as pd
import torch

import contsteal
from contsteal import encoders, files, loop, methods

PACKAGE = Path(__file__).resolve().parent.parent
ROOT = PACKAGE.parent
MANIFEST, HEAD = "manifest.json", "projector.safetensors"
LIBRARIES = ("numpy", "pandas", "pillow", "scikit-learn", "scipy", "timm", "torchvision")
NOTEBOOK = "CONTSTEAL_NOTEBOOK"  # which the runner sets
UNTRAINED = ["epoch", "loss", "lr", "seconds"]  # columns of a history without epochs


def runs_dir() -> Path:
    """Return the folder of executed notebooks and artifacts: $CONTSTEAL_RUNS or `runs/`."""
    return Path(os.environ.get("CONTSTEAL_RUNS", ROOT / "runs")).resolve()


def figures_dir() -> Path:
    """Return the folder of figures and the numbers behind them: $CONTSTEAL_FIGURES or `figures/`."""
    return Path(os.environ.get("CONTSTEAL_FIGURES", ROOT / "figures")).resolve()


def publish_dir() -> Path:
    """Return where notebooks write figures: `runs/interactive`, where the runner set no folder."""
    return figures_dir() if "CONTSTEAL_FIGURES" in os.environ else runs_dir() / "interactive"


# --------------------------------------------------------------------------- keys of code


def sources(*modules: str) -> str:
    """Return a key of the code of these modules and of all that they import of the package."""
    return files.key([(name, source_key(_file(name))) for name in sorted(closure(*modules))])


def closure(*modules: str) -> set[str]:
    """Return these modules and all that they import of the package, directly or not.

    Imports are read from the source, those inside functions too. The packages around an imported module
    count with their own code alone: what their `__init__` re-exports is followed where it is used.
    """
    reached: set[str] = set()
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += _read(_file(name))[1]
    inside = (name.split(".") for name in reached if _in_package(name))
    return reached | {part for parts in inside for part in accumulate(parts, "{}.{}".format)}


def _in_package(name: str) -> bool:
    return name.split(".")[0] == PACKAGE.name


def _file(module: str) -> Path:
    """Return a module's file: by its place in the package, by what is loaded elsewhere."""
    if not _in_package(module):
        return Path(sys.modules[module].__file__ or "")  # a defence's, defined by a user
    path = PACKAGE.parent.joinpath(*module.split("."))
    init = path / "__init__.py"
    return init if init.is_file() else path.with_suffix(".py")


def imported(code: ast.Module, module: str = "") -> frozenset[str]:
    """Return the modules of the package that a module's code, or a notebook's, imports.

    `module` is where relative imports start; the module of a package's own file ends in `.__init__`.
    """
    names: set[str] = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(filter(None, (start, node.module)))
            parts = [f"{base}.{alias.name}" for alias in node.names]  # modules, or names in one
            names |= {part if _is_ours(part) else base for part in parts}
    return frozenset(filter(_is_ours, names))


def _is_ours(module: str) -> bool:
    return _in_package(module) and _file(module).is_file()


def source_key(file: Path) -> str:
    """Return a key of a file's code; comments, layout and docstrings of Python files do not count."""
    return _read(file)[0]


def _read(file: Path) -> tuple[str, frozenset[str]]:
    """Return the key of a file's code, and the modules of the package that it imports."""
    return _read_once(file, file.stat().st_mtime_ns)


@cache
def _read_once(file: Path, changed: int) -> tuple[str, frozenset[str]]:
    if file.suffix != ".py":
        return files.sha256(file), frozenset()
    tree, inside = ast.parse(file.read_bytes(), str(file)), file.is_relative_to(PACKAGE)
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts if inside else ()
    names = imported(tree, ".".join(parts))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), names


def defining_modules(*things: object) -> list[str]:
    """Return the modules, with a file, of objects' classes and their bases, Python's own excepted."""
    names = {getattr(thing, "__module__", None) or "" for thing in things}
    names |= {c.__module__ for thing in things for c in type(thing).__mro__}
    apart = sys.stdlib_module_names | {"__main__", ""}
    return sorted(
        name
        for name in names
        if name.split(".")[0] not in apart and getattr(sys.modules.get(name), "__file__", None)
    )


def object_key(thing: object) -> str:
    """Return what tells an object from others of its class: its `key`, its `repr`, or its content.

    The content is that of a pickle where a repr is only an address, or no file holds the class, such as
    a notebook's: no stale result is then taken for its own, but another session may compute it again.
    """
    stated = getattr(thing, "key", None) or repr(thing)
    if " at 0x" in stated or type(thing).__module__ not in defining_modules(thing):
        stated = hashlib.sha256(cloudpickle.dumps(thing)).hexdigest()
    return f"{type(thing).__module__}.{stated}"


# ------------------------------------------------------------------------------ artifacts


class _MadeMeanwhile(Exception): ...


class NotKept(Exception):
    """An artifact that is missing or damaged where only those that were made before are asked for."""


_READING = ContextVar("reading", default=False)


@contextmanager
def only_kept() -> Iterator[None]:
    """Make no artifact: raise NotKept for one that is missing or damaged."""
    token = _READING.set(True)
    try:
        yield
    finally:
        _READING.reset(token)


def artifact(
    kind: str,
    config: object,
    code: Sequence[str],
    make: Callable[[Path], None],
    report: Callable[[str], object] = print,
) -> Path:
    """Return the folder of the artifact that `config` and the modules `code` define, made if need be.

    The key covers the import closure of `code`, and the module alone that defines `make`, which gets a
    folder to write into. Checkpoints that it leaves in `work_dir` survive a kill and are removed on
    success. A folder that is damaged or another artifact's is moved aside and made again; one that
    another process is making is waited for. `report` gets a line where the artifact is computed.
    Errors: StorageError where it cannot be written.
    """
    maker = [source_key(_file(name)) for name in defining_modules(make)] or [object_key(make)]
    identity = {"kind": kind, "config": config, "code": files.key([sources(*code), *maker])}
    identity = json.loads(json.dumps(identity, default=str))  # as it will be read from the manifest
    name = f"{kind}-{files.key([kind, config])[:12]}-{files.key(identity['code'])[:8]}"
    folder = runs_dir() / "artifacts" / name
    reading = _READING.get()
    while not (reading or folder.exists()) and files.makers(folder) - {os.getpid()}:
        time.sleep(0.1)
    problem = damage(folder, identity) if folder.exists() else "it is missing"
    if problem is None:
        return folder
    if reading:
        raise NotKept(f"{name}: {problem}")
    if folder.exists():
        warnings.warn(f"{folder.name}: {problem}; moved aside, it is computed again", stacklevel=2)
        files.move_aside(folder)
    report(f"computing {kind}")
    start = time.monotonic()
    with suppress(_MadeMeanwhile), files.atomic(folder) as partial:
        partial.mkdir()
        make(partial)
        hashes = {file.name: files.sha256(file) for file in sorted(partial.iterdir())}
        seconds = round(time.monotonic() - start, 3)
        manifest = {"files": hashes, "seconds": seconds, **identity}
        files.write_json(partial / MANIFEST, files.sealed(manifest))
        if folder.exists() and damage(folder, identity) is None:
            raise _MadeMeanwhile  # by another process; somebody may be reading it
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(work_dir(folder), ignore_errors=True)
    return folder


def damage(folder: Path, identity: dict[str, Any] | None = None) -> str | None:
    """Return what is wrong with an artifact's folder: other files than were written, or another identity.

    Its manifest is sealed by a hash of its own content, in which are the hashes of the files.
    """
    manifest = files.read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or files.sealed(manifest) != manifest:
        return "its manifest is missing or damaged"
    if identity and {name: manifest.get(name) for name in identity} != identity:
        return "its manifest belongs to another artifact"
    visible = {f.name for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")}
    if odd := sorted(visible ^ {MANIFEST, *manifest["files"]}):
        return f"{odd[0]} is missing, or does not belong there"
    altered = (n for n, digest in manifest["files"].items() if files.sha256(folder / n) != digest)
    return next((f"{name} was altered" for name in altered), None)


def work_dir(folder: Path) -> Path:
    """Return where an artifact's checkpoints lie while it is made."""
    return folder.with_name(re.sub(r"^\.(.+)\.\d+@[^.]*\.partial$", r"\1", folder.name) + ".work")


# --------------------------------------------------------------------------- trained encoders


@dataclass(frozen=True)
class Trained:
    """An encoder read back from its artifact, its history per epoch, its `encoders.identity`, the seconds
    it took, what it cost in queries, the projector that its loss was computed behind, and the secret
    `watermark.Mark` or `sslguard.Key` that its owner keeps."""

    encoder: encoders.Encoder
    history: pd.DataFrame
    sha256: str
    seconds: float
    queries: dict[str, int]
    projector: methods.Head | None = None
    mark: Any = None


def read(folder: Path, device: torch.device) -> Trained:
    """Return what `write` has left in an artifact's folder, the encoder in eval mode on `device`."""
    net = encoders.load(folder / "encoder.safetensors").to(device).eval()
    manifest, head = files.read_json(folder / MANIFEST), folder / HEAD
    return Trained(
        net, pd.read_csv(folder / "history.csv"), encoders.identity(net),
        manifest["seconds"], files.read_json(folder / "queries.json") or {},
        methods.Head.load(head).to(device) if head.exists() else None,
    )  # fmt: skip


def write(
    folder: Path,
    net: encoders.Encoder,
    history: Sequence[loop.Row] = (),
    queries: dict[str, int] | None = None,
    projector: methods.Head | None = None,
) -> None:
    """Write an encoder, its history (empty where it was not trained here), its queries and projector."""
    encoders.save(net, folder / "encoder.safetensors")
    table = pd.DataFrame(history, columns=None if history else UNTRAINED)
    table.to_csv(folder / "history.csv", index=False)
    files.write_json(folder / "queries.json", queries or {})
    if projector is not None:
        projector.save(folder / HEAD)


# ---------------------------------------------------------------------------- the machine


def device() -> torch.device:
    """Return the device that runs use: $CONTSTEAL_DEVICE, or a CUDA GPU where one is visible.

    Raises ValueError for a device that this machine does not have.
    """
    name = os.environ.get("CONTSTEAL_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    known, found = ["cpu"], torch.accelerator.current_accelerator(check_available=True)
    if found is not None:
        numbers = range(torch.accelerator.device_count())
        known += [found.type, *(f"{found.type}:{k}" for k in numbers)]
    return torch.device(contsteal.choice(name, "CONTSTEAL_DEVICE", known))


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute on one CPU thread, so that a number does not depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def processor() -> str:
    """Return the name of the GPU, or of the CPU with the number of threads in use."""
    if device().type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.exists() else None
    name = model[1].strip() if model else platform.processor() or "CPU"
    return f"{name}, {joblib.cpu_count()} threads"


@cache
def code_version() -> str:
    """Return the package's version, the commit where there is one, and a key of its code."""
    paths = sorted(PACKAGE.rglob("*.py"))
    code = files.key([(str(p.relative_to(PACKAGE)), files.sha256(p)) for p in paths])
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    with suppress(OSError):
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        return " ".join(filter(None, (contsteal.__version__, commit, code)))
    return f"{contsteal.__version__} {code}"


def stamp(profile: str, data: str, seeds: str) -> dict[str, str]:
    """Return what every figure and table carries: what it was computed from, by which code, and where.

    `notebook` has a key of the executed notebook's code and parameters, where the runner executed it.
    """
    versions = [f"{name} {version(name)}" for name in LIBRARIES]
    return {"profile": profile, "data": data, "seeds": seeds, "device": processor(),
            "torch": torch.__version__, "date": date.today().isoformat(), "code": code_version(),
            "libraries": ", ".join([f"python {platform.python_version()}", *versions]),
            "notebook": os.environ.get(NOTEBOOK, "interactive")}  # fmt: skip


def sealed(stamp: dict[str, str], table: Path) -> dict[str, str]:
    """Return a stamp with a key of itself and its table; one of before there were keys stays as it is."""
    facts = {name: value for name, value in stamp.items() if name != "seal"}
    return facts | ({"seal": files.key([facts, files.sha256(table)])} if "code" in facts else {})


def check_table(table: Path, stamp: dict[str, str]) -> None:
    """Raise ValueError where a stored table and its stamp are not what was written together."""
    if {"code", "seal"} & stamp.keys() and sealed(stamp, table) != stamp:
        number = table.name.partition("_")[0]
        raise ValueError(f"{table} was altered: restore it, or run notebook {number} again")
