"""The notebooks of a profile: which must run and why, the execution of one, and how long each took.

`make paper` calls `paper`, which checks everything before any work and marks what must run; a make of
its own then calls `execute` for each of these, in the order of its graph. `make plan` and `make data`
call the commands of those names.
"""

import argparse
import ast
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from contsteal import files

if TYPE_CHECKING:
    from contsteal import methods
    from contsteal.lab import inspection

# `execute` starts once for each notebook, so what only the other commands need is imported by them.

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
VICTIM = "01"  # the notebook that comes before all that attack, with all cores
PARTIAL = ".partial.ipynb"  # of a copy that is being executed, or was not to its end
NOT_STARTED = "Kernel died before replying"  # jupyter_client's words; no cell was run
TIMINGS, WHOLE = "timings.json", "in all"
CHANGED = "results missing or changed"
RUNNER = "CONTSTEAL_RUNNER"  # the process that started make, with which kernels end
WITHOUT_LAB = 90.0  # seconds at most of a notebook that trains nothing of the lab's, on a CPU
PATIENCE = 3.0  # seconds that kernels and workers have to save their checkpoints


# ------------------------------------------------------------------------- reading notebooks


def stems() -> list[str]:
    """Return the notebooks' names in the order of their numbers."""
    return sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb"))


def number(name: str) -> str:
    """Return the number of a notebook or of one of its figures, such as "03" or "05a"."""
    return name.partition("_")[0]


def choose(only: Iterable[str]) -> list[str]:
    """Return the notebooks with these names or numbers ("05" is 05a and 05b), all of them for none."""
    names = {stem: {stem, number(stem), stem[:2]} for stem in stems()}
    only = set(only)
    if unknown := sorted(only.difference(*names.values())):
        raise ValueError(f"unknown notebook {unknown[0]!r}: choose one of {', '.join(names)}")
    return [stem for stem, own in names.items() if not only or own & only]


def _code_cells(stem: str) -> list[dict[str, Any]]:
    book = json.loads((NOTEBOOKS / f"{stem}.ipynb").read_text())
    return [c | {"source": "".join(c["source"])} for c in book["cells"] if c["cell_type"] == "code"]


def defaults(stem: str) -> dict[str, Any]:
    """Return the literals of a notebook's `parameters` cell."""
    cells = [c for c in _code_cells(stem) if "parameters" in c["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{stem}.ipynb has {len(cells)} cells tagged 'parameters': it needs one")
    assigned = [n for n in ast.parse(cells[0]["source"]).body if isinstance(n, ast.Assign)]
    return {ast.unparse(n.targets[0]): ast.literal_eval(n.value) for n in assigned}


def parameters(stem: str, profile: str) -> dict[str, Any]:
    """Return a notebook's parameters under a profile; ValueError for misspelt or mistyped ones."""
    from contsteal.lab import profiles

    known = defaults(stem)
    given = (profiles.profile(profile).get("notebooks") or {}).get(stem) or {}
    profiles.check(given, known, f"{profile}.yaml, {stem}")
    return {**known, "profile": profile, **given}


# --------------------------------------------------------------------------- what must run


class Task(NamedTuple):
    """A notebook under a profile: what decides its results, and why it must run, or ""."""

    stem: str
    executed: Path  # its executed copy
    parameters: dict[str, Any]
    key: dict[str, str]
    reason: str


def tasks(profile: str, only: Iterable[str] = (), force: bool = False) -> list[Task]:
    """Return the chosen notebooks, each with the reason for which it must run."""
    from contsteal.lab import artifacts, profiles

    choose(profiles.profile(profile).get("notebooks") or {})  # refuses a misspelt section
    chosen: list[Task] = []
    for stem in choose(only):
        executed = artifacts.runs_dir() / profile / f"{stem}.ipynb"
        values = parameters(stem, profile)
        key = _key(stem, profile, values)
        reason = "forced" if force else _reason(executed, key, artifacts.figures_dir() / profile)
        if not reason and stem == stems()[-1] and any(task.reason for task in chosen):
            reason = "tables changed"
        chosen.append(Task(stem, executed, values, key, reason))
    return chosen


def _key(stem: str, profile: str, values: dict[str, Any]) -> dict[str, str]:
    """Return hashes of everything that decides a notebook's results, in the order of telling."""
    import torch

    from contsteal import loop, pretrain
    from contsteal.lab import artifacts, profiles

    settings = profiles.profile(profile)
    common, weights = settings["common"], {}
    for part, config in _victims(common).items():
        with suppress(ValueError):  # the notebook says what is wrong with the file
            weights[part] = pretrain.origin(config)
    code = [cell["source"] for cell in _code_cells(stem)]
    modules = sorted(artifacts.imported(ast.parse("\n".join(code))))
    styles = [p for p in sorted(artifacts.PACKAGE.rglob("*.*")) if p.suffix not in (".py", ".pyc")]
    parts = {
        "parameters": json.dumps(values),  # as text: rows of tables follow their order
        "settings": [common, settings.get("expectations")],
        "code": code,
        "package": [artifacts.sources("contsteal", *modules), *map(files.sha256, styles)],
        "machine": [artifacts.device().type, torch.__version__, loop.mode_labels()],
        "weights": weights,
        "tables": _tables(artifacts.figures_dir() / profile) if stem == stems()[-1] else "",
    }
    return {name: files.key(part) for name, part in parts.items()}


def _victims(common: dict[str, Any]) -> "dict[str, methods.Config]":
    """Return how a profile's encoders are made, by its part or by the name of a further victim."""
    from contsteal.lab import profiles

    parts = {part: profiles.config(common, part) for part in ("victim", "supervised")}
    return parts | {n: profiles.config(common, "victim", n) for n in common.get("victims", {})}


def _tables(figures: Path) -> list[tuple[str, str]]:
    """Return the tables of others that the last notebook draws, by name and hash."""
    own, paths = f"{number(stems()[-1])}_", sorted(figures.glob("*.csv"))
    return [(path.name, files.sha256(path)) for path in paths if not path.name.startswith(own)]


def _reason(executed: Path, key: dict[str, str], figures: Path) -> str:
    """Return why a notebook must run, "" where its last run still stands."""
    record = _read(executed.with_suffix(".json"))
    if _changed(executed.with_suffix(PARTIAL)) > _changed(executed):
        return "stopped before its end"
    if not executed.exists():
        return "never run"
    if not record:
        return CHANGED  # what they were is not known
    made = {figures / name: digest for name, digest in record["outputs"].items()}
    made[executed] = record["copy"]
    kept = all(path.is_file() and files.sha256(path) == digest for path, digest in made.items())
    parts = (f"{part} changed" for part, value in key.items() if record["key"].get(part) != value)
    return next(parts, "" if kept else CHANGED)


def _read(path: Path) -> dict[str, Any]:
    """Return what was sealed and written as JSON, {} where that is missing or damaged."""
    facts = files.read_json(path)
    if not isinstance(facts, dict) or files.sealed(facts) != facts:
        return {}
    return {name: value for name, value in facts.items() if name != "seal"}


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


# ---------------------------------------------------------------- make paper, plan and data


def choose_profile(name: str, fetches: bool = False) -> tuple[str, str, list[str]]:
    """Return the profile to run, why it was chosen, and the notebooks that can run, [] for all.

    "auto" looks at the hardware and the data. With `fetches`, what the profile `paper` lacks is fetched
    first, where it can be; without a set of it, those notebooks run that neither train on nor read it.
    """
    from contsteal.lab import artifacts, profiles

    if name != "auto":
        profiles.profile(name)
        return name, "asked for", []
    if artifacts.device().type != "cuda":
        return "demo", "no CUDA GPU is visible", []
    if fetches:
        obtain("paper")
    if not (missing := missing_data("paper")):
        return "paper", "a CUDA GPU is visible, and so are the papers' data", []
    names, common = ", ".join(missing), profiles.profile("paper")["common"]
    needs = {stem: common.keys() | needed_data("paper", [stem]).keys() for stem in stems()[1:-1]}
    able = [stem for stem, needed in needs.items() if not missing.keys() & needed]
    if not able:
        return "synthetic", f"a CUDA GPU is visible; `make data PROFILE=paper` fetches {names}", []
    numbers = ", ".join(map(number, able))
    return "paper", f"a CUDA GPU is visible; {names} cannot be had, so only {numbers} run", able


def needed_data(profile: str, only: Iterable[str] = ()) -> dict[str, set[str]]:
    """Return the stored data sets that a profile and its notebooks read, with their splits."""
    from contsteal import data
    from contsteal.lab import profiles

    common = profiles.SPLITS | profiles.profile(profile)["common"]
    return data.needs(common, [parameters(stem, profile) for stem in choose(only)])


def missing_data(profile: str, only: Iterable[str] = (), whole: bool = False) -> dict[str, str]:
    """Return what cannot be read of a profile's data sets and ready encoders: problem and remedy.

    With `whole` the papers' sets are read and compared with their checksums, which takes seconds.
    """
    from contsteal import data, encoders, pretrain
    from contsteal.data import torchsets
    from contsteal.lab import profiles

    common = profiles.profile(profile)["common"]
    size, problems = common.get("image_size", 32), {}
    for name, splits in needed_data(profile, only).items():
        try:
            data.require(name, splits, size)
            if whole and name in torchsets.SPLITS:
                torchsets.verify(name, splits)
        except (ValueError, OSError) as error:
            problems[name] = str(error)
    for part, config in _victims(common).items():
        if config.method != pretrain.READY:
            continue
        try:
            if pretrain.origin(config) == "timm" and not encoders.stored(config.encoder):
                raise encoders.DownloadError(
                    f"the weights of {config.encoder} are not in the cache of the Hugging Face hub: "
                    "`make data PROFILE=...` fetches them. Without a network, fetch its "
                    "model.safetensors elsewhere and set `weights:` to that file"
                )
            pretrain.ready(config)
        except (ValueError, RuntimeError, OSError) as error:
            problems[part] = f"{part} of {profile}.yaml: {error}"
    return problems


def obtain(profile: str) -> None:
    """Fetch what a profile's data sets lack, and print what could not be had; nothing is raised.

    Where the first set cannot be fetched, the others are not tried: most likely there is no network.
    """
    from contsteal.data import torchsets

    needs = {n: s for n, s in needed_data(profile).items() if n in torchsets.SPLITS}
    lacking = {n: found for n, s in needs.items() if (found := torchsets.missing(n, s))}
    if not lacking:
        return
    size = sum(archive.size for archives in lacking.values() for archive in archives)
    print(f"fetching {', '.join(lacking)}, {size / 1e9:.1f} GB, into {torchsets.data_dir()}; the "
          "profile `synthetic` needs no data: make paper PROFILE=synthetic", flush=True)  # fmt: skip
    for name, archives in lacking.items():
        try:
            torchsets.fetch(name, needs[name])
        except (ValueError, RuntimeError, OSError) as error:
            wrong = [str(p) for a in archives if (p := torchsets.data_dir() / a.path).exists()]
            print(f"not as published, delete it: {', '.join(wrong)}. " * bool(wrong)
                  + str(error).partition("\n")[0], flush=True)  # fmt: skip
            if name == next(iter(lacking)):
                return


def paper(profile: str, only: Sequence[str], force: bool) -> None:
    """Run what is out of date, side by side, and keep how long it took.

    Ctrl-C and SIGTERM end every process of the run. Raises SystemExit with make's code where one failed.
    """
    since = time.time()
    arguments = prepare(profile, only, force)
    if not arguments:
        return
    command = ["make", "--no-print-directory", "--silent", *arguments]
    # In a session of its own: Ctrl-C reaches this process alone, which then ends the others.
    with _left_at_once("interrupted: `make paper` continues from the last checkpoints"):
        code = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {RUNNER: str(os.getpid())},
            start_new_session=True, close_fds=False,
        ).wait()  # fmt: skip
    if code:
        raise SystemExit(code)
    finish(profile, since)


def prepare(profile: str, only: Sequence[str], force: bool) -> list[str]:
    """Check everything, mark what must run, and return make's arguments for it, [] for nothing."""
    import joblib

    from contsteal.lab import artifacts, profiles

    figures, folder = (home / profile for home in (artifacts.figures_dir(), artifacts.runs_dir()))
    todo = [task for task in tasks(profile, only, force) if task.reason]
    if not todo:
        print(f"nothing to do; figures and numbers: {figures}")
        return []
    if problems := missing_data(profile, [task.stem for task in todo], whole=True):
        raise ValueError("\n".join(problems.values()))
    costs = work(todo)
    if problem := lacks_space(costs.values()):
        raise ValueError(problem)
    files.write_text(figures / ".writable", " ")  # a StorageError before, not after, the trainings
    (figures / ".writable").unlink(missing_ok=True)
    beside = [t for t in todo if t.stem[:2] != VICTIM and t.stem != stems()[-1]]
    given, jobs = _jobs(profiles.profile(profile)["common"].get("at_once", 1), len(beside))
    cores = str(max(1, joblib.cpu_count() // jobs))
    threads = {"OMP_NUM_THREADS": cores}  # more threads than cores would wait for each other
    # A GPU holds as many runs whatever the cores.
    share = threads | ({"CONTSTEAL_WORKERS": cores} if artifacts.device().type == "cpu" else {})
    for task in todo:
        shares = task in beside and min(jobs, len(beside)) > 1
        # The victim's notebook may run beside the first one, which needs no victim.
        beside_first = jobs > 1 and task.stem[:2] == VICTIM and todo[0].stem == stems()[0]
        order = {
            "figures": str(figures), "device": artifacts.processor(), "key": task.key,
            "environment": share if shares else threads if beside_first else {},
            "parameters": task.parameters, "reason": task.reason,
        }  # fmt: skip
        text = json.dumps(files.sealed(order))  # parameters keep their order
        files.write_text(folder / ".keys" / task.stem, text)
    # The longest first: by its time, and without one by how much it trains and scores.
    times = {stem: entry["seconds"] for stem, entry in _read(figures / TIMINGS).items()}
    amount = {stem: len(cost.trainings) + len(cost.scores) for stem, cost in costs.items()}
    longest = sorted(todo, key=lambda t: (times.get(t.stem, 1e9), amount.get(t.stem, 0)))[::-1]
    return [*given, f"FOLDER={_relative(folder)}", *(_relative(t.executed) for t in longest)]


def _jobs(at_once: int, most: int) -> tuple[list[str], int]:
    """Return make's argument for notebooks side by side, unless its user gave one, and their number."""
    asked = re.search(r"(?:^|\s)-j\s*(\d*)(?:\s|$)", os.environ.get("MAKEFLAGS", ""))
    if asked is None:
        return [f"-j{at_once}"], at_once
    return [], int(asked[1]) if asked[1] else max(most, 1)


def _relative(path: Path) -> str:
    """Return a path as make takes it: within the repository, relative; never one with a space."""
    name = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
    if re.search(r"[\s%:#$*?\[\]\\=]", name):
        raise ValueError(
            f"make cannot use {name!r}: set CONTSTEAL_RUNS to a path of plain characters"
        )
    return name


def plan(profile: str, only: Sequence[str], force: bool) -> None:
    """Print what `make paper` would run, why, what it takes, how long it took, and what is missing."""
    from contsteal.lab import artifacts

    times = _read(artifacts.figures_dir() / profile / TIMINGS)
    chosen = tasks(profile, only, force)
    todo = [task for task in chosen if task.reason]
    machine, costs = machine_of(profile), work(todo)
    for task in chosen:
        took = times.get(task.stem)
        time_taken = f", {took['seconds']:.0f} s on {took.get('device', '-')}" if took else ""
        line = f"  {task.stem}: {task.reason + time_taken if task.reason else 'up to date'}"
        if cost := costs.get(task.stem):
            line += f"; {len(cost.trainings):,} trainings, {cost.forwards:,.0f} answers of the "
            line += f"victim, {_hours(cost.seconds(machine) + machine.start)}, "
            line += f"{cost.disk() / 1e9:.1f} GB of disk, {cost.memory() / 1e9:.1f} GB of memory"
        elif task.reason and costs:
            line += f"; {_hours(WITHOUT_LAB)} on a CPU"
        print(line)
    if costs:
        seconds = sum(cost.seconds(machine) + machine.start for cost in costs.values())
        seconds += WITHOUT_LAB * (len(todo) - len(costs))
        disk = sum(cost.disk() for cost in costs.values())
        print(f"  in all, an estimate for {machine.name}: {_hours(seconds)}, {disk / 1e9:.1f} GB of "
              f"disk ({machine.said}); what is kept already counts again")  # fmt: skip
    for problem in missing_data(profile).values():
        print(f"  missing: {problem}")
    if problem := lacks_space(costs.values()):
        print(f"  too little space: {problem}")


def work(chosen: Iterable[Task]) -> "dict[str, inspection.Work]":
    """Return what each of these notebooks would do that none before it does, if it trains or asks."""
    from contsteal.lab import inspection

    found: dict[str, inspection.Work] = {}
    for task in chosen:
        code = [cell["source"] for cell in _code_cells(task.stem)]
        try:
            whole = inspection.rehearse(code, task.parameters)
        except ValueError as error:
            raise ValueError(f"{task.parameters['profile']}.yaml, {task.stem}: {error}") from None
        if whole.trainings or whole.inputs:
            found[task.stem] = whole.without([*found.values()])
    return found


def machine_of(profile: str) -> "inspection.Machine":
    """Return the device of an estimate: a GPU that is here; all cores for a small encoder; an H200."""
    import joblib

    from contsteal import encoders
    from contsteal.lab import artifacts, inspection, profiles
    from contsteal.lab.experiment import Lab

    if artifacts.device().type == "cuda":
        return inspection.timed(Lab(profile))
    if profiles.profile(profile)["common"]["surrogate"]["encoder"] == encoders.SMALL:
        return replace(inspection.CORE, name=artifacts.processor(), cores=joblib.cpu_count())
    return inspection.H200


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def lacks_space(costs: "Iterable[inspection.Work]") -> str:
    """Return what is wrong where the disk has no room for all that notebooks keep, else ""."""
    from contsteal.lab import artifacts

    folder = artifacts.runs_dir()
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    kept = sum(p.stat().st_size for p in (folder / "artifacts").glob("*/*") if p.is_file())
    need = sum(cost.disk() for cost in costs) - kept
    return "" if need <= free else (
        f"{folder} needs {need / 1e9:.4g} GB more and has {free / 1e9:.4g} GB: set CONTSTEAL_RUNS to a "
        "folder with more space, or choose notebooks with NB"
    )  # fmt: skip


def fetch(profile: str) -> None:
    """Fetch the data sets of a profile that can be fetched; raise ValueError for those that miss then."""
    from contsteal import data, pretrain
    from contsteal.data import torchsets
    from contsteal.lab import profiles

    obtain(profile)
    for name, config in _victims(profiles.profile(profile)["common"]).items():
        if config.weights == "timm":
            pretrain.ready(config)
            print(f"{name}: the weights of {config.encoder} are present")
    problems = missing_data(profile, whole=True)
    for name in needed_data(profile).keys() - problems.keys():
        print(f"{name}: present ({data.data_dir() if name in torchsets.NAMES else 'your own'})")
    if problems:
        raise ValueError("\n".join(f"{name}: missing: {p}" for name, p in problems.items()))


# ----------------------------------------------------------------------- execution of one


def execute(executed: Path) -> None:
    """Execute the notebook of this copy as it was prepared; the copy appears only on success."""
    stem, mark = executed.stem, executed.parent / ".keys" / executed.stem
    with _locked(mark.with_suffix(".lock"), stem):
        if not (order := _read(mark)):
            raise ValueError(f"{mark} is missing or damaged: run `make paper` again")
        record = executed.with_suffix(".json")
        if _changed(executed) >= _changed(mark) and _read(record).get("key") == order["key"]:
            return  # by another run, meanwhile
        print(f"{stem}: starts ({order['reason']})", flush=True)
        figures, start = Path(order["figures"]), time.time()
        if order["key"]["tables"] != files.key(""):  # the others have written theirs meanwhile
            order["key"]["tables"] = files.key(_tables(figures))
        own = f"{number(stem)}_*"
        before = {path: _changed(path) for path in figures.glob(own)}
        key = files.key([order["key"][part] for part in ("parameters", "code")])
        names = {"CONTSTEAL_FIGURES": str(figures.parent), "CONTSTEAL_NOTEBOOK": f"{stem} {key}"}
        # A copy is read, not watched: without bars, unless they are asked for.
        os.environ |= {"TQDM_DISABLE": "1"} | order["environment"] | os.environ | names
        partial = executed.with_suffix(PARTIAL)
        _execute(stem, partial, order["parameters"])
        partial.replace(executed)
        made = [path for path in figures.glob(own) if _changed(path) != before.get(path)]
        for path in before:  # results that this notebook no longer has
            if path.stem not in {p.stem for p in made}:
                path.unlink()
        facts = {
            "key": order["key"], "outputs": {p.name: files.sha256(p) for p in sorted(made)},
            "copy": files.sha256(executed),
            "seconds": round(time.time() - start, 1), "started": start, "device": order["device"],
        }  # fmt: skip
        files.write_json(record, files.sealed(facts))
        print(f"{stem}: done in {time.time() - start:.1f} s", flush=True)


@contextmanager
def _locked(path: Path, stem: str) -> Iterator[None]:
    """Hold a lock that ends with this process, so that no notebook is executed twice at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{stem}: waiting for another run of this profile, which executes it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _execute(stem: str, partial: Path, values: dict[str, Any], again: bool = True) -> None:
    """Write the executed copy cell by cell; RuntimeError where it does not get to its end.

    Once more where its kernel took a port that another one had just taken.
    """
    # jsonschema would compile a grammar of URIs: three quarters of the time of papermill's import.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    known = defaults(stem)  # the page has a cell with what the profile changes, if anything
    given = {n: v for n, v in values.items() if json.dumps(v) != json.dumps(known[n])}
    try:
        with _left_at_once(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # papermill's own, about its metadata
            papermill.execute_notebook(
                NOTEBOOKS / f"{stem}.ipynb", partial, given, kernel_name="python3", cwd=ROOT,
                progress_bar=False, coalesce_streams=True,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
                config=Config(AsyncKernelManager={"transport_encryption": "auto"}),
            )  # fmt: skip
    except DeadKernelError as error:
        message = f"{stem}: the kernel died, probably because memory ran out"
        raise RuntimeError(f"{message}; the executed copy is kept at {partial}") from error
    except PapermillExecutionError as error:
        raise RuntimeError(
            f"{stem}, code cell {error.exec_count - bool(given)}:\n\n{error.source}\n\n{error.ename}: "
            f"{error.evalue}\n\nthe executed copy is kept at {partial}"
        ) from error
    except RuntimeError as error:
        if not again or NOT_STARTED not in str(error):
            raise
        _execute(stem, partial, values, again=False)


@contextmanager
def _left_at_once(message: str = "") -> Iterator[None]:
    """On Ctrl-C or SIGTERM end every process below this one, print a line, and exit with 130 or 143.

    The same where the process above this one is killed, or that which started make. No exception is
    raised: what it passes through would wait for kernels that are gone, and print a traceback.
    """
    import psutil

    runner, done = int(os.environ.get(RUNNER, os.getppid())), threading.Event()

    def watch() -> None:
        while not done.wait(1):
            if runner not in (above.pid for above in psutil.Process().parents()):
                os.kill(os.getpid(), signal.SIGTERM)

    def leave(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        below = psutil.Process().children(recursive=True)
        for process in below:
            with suppress(psutil.NoSuchProcess):  # make would report, and start the next notebook
                process.kill() if process.name() == "make" else process.terminate()
        for process in psutil.wait_procs(below, timeout=PATIENCE)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if message:
            print(message, file=sys.stderr, flush=True)
        os._exit(128 + number)

    before = {each: signal.signal(each, leave) for each in (signal.SIGINT, signal.SIGTERM)}
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        for each, handler in before.items():
            signal.signal(each, handler)


# -------------------------------------------------------------------------------- durations


def finish(profile: str, since: float) -> None:
    """Keep how long the notebooks took, and write the summary again with it."""
    from contsteal.lab import artifacts
    from contsteal.paper.figures import stored, write_summary

    folder, figures = artifacts.runs_dir() / profile, artifacts.figures_dir() / profile
    with _locked(folder / ".keys" / "finish.lock", "summary"):
        records = {s: r for s in stems() if (r := _read(folder / f"{s}.json"))}
        times = {n: {k: r[k] for k in ("seconds", "device")} for n, r in records.items()}
        kept = (artifacts.runs_dir() / "artifacts").glob("*/manifest.json")
        begun = [record["started"] for record in records.values()]
        whole = len(records) == len(stems()) and min(begun) >= since
        if whole and all(path.stat().st_mtime >= since for path in kept):
            took = round(time.time() - since, 1)
            times[WHOLE] = {"seconds": took, "device": artifacts.processor()}
        else:
            # It may have read artifacts back: earlier times stand, and its own where there are none.
            earlier = _read(figures / TIMINGS).items()
            times |= {name: entry for name, entry in earlier if name in (*stems(), WHOLE)}
        files.write_json(figures / TIMINGS, files.sealed(times))
        if stored(figures):
            write_summary(profile)
    print(f"what was found: {figures / 'summary.md'}, figures and tables beside it")


def timings_table(folder: Path) -> str:
    """Return what each notebook took as a Markdown table, or that nothing is recorded."""
    import pandas as pd

    times = _read(folder / TIMINGS)
    if not times:
        return "No durations are recorded."
    table = pd.DataFrame.from_dict(times, orient="index", columns=["seconds", "device"])
    shown = table.rename_axis("notebook").to_markdown()
    return f"{shown}\n\nNotebooks that run side by side count the same seconds."


# ------------------------------------------------------------------------------ command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, do what it says, and return the exit code."""
    parser = argparse.ArgumentParser(prog="contsteal.paper.notebooks", description=__doc__)
    parser.add_argument("command", choices=("paper", "plan", "data", "execute"))
    parser.add_argument("executed", nargs="?", type=Path, help="of `execute`: the copy to make")
    parser.add_argument("--profile", default="auto", help="auto: what the machine allows")
    parser.add_argument("--only", nargs="*", default=[], help="notebooks by name or number")
    parser.add_argument("--force", action="store_true", help="run also what is up to date")
    try:
        _command(parser.parse_args(arguments))
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _command(given: argparse.Namespace) -> None:
    if given.command == "execute":
        execute(given.executed.resolve())
        return
    from contsteal.lab import artifacts

    profile, why, able = choose_profile(given.profile, fetches=given.command == "paper")
    print(f"profile {profile} on {artifacts.processor()}: {why}", flush=True)
    if given.command == "data":
        fetch(profile)
        return
    if given.command == "paper" and given.profile != "auto":
        obtain(profile)
    if able:
        asked = choose(given.only)
        given.only = [stem for stem in asked if stem in able] or asked  # which says what it lacks
    {"paper": paper, "plan": plan}[given.command](profile, given.only, given.force)


if __name__ == "__main__":
    sys.exit(main())
