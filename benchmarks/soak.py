"""A campaign of faults: what was tried, and what survived. `make soak` runs all of it.

A fault is survived where the result is the undisturbed one, or an error of this package names what is
wrong: a ValueError that its own code raises, or one of its own kinds of RuntimeError. KeyError,
AttributeError, IndexError, TypeError, a bare error of torch, and NaN without a word are not survived.
"""

import argparse
import inspect
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from contsteal import (
    attacks,
    data,
    defenses,
    encoders,
    evaluate,
    files,
    loop,
    methods,
    pretrain,
    seeds,
    victim,
)
from contsteal.data import folders, packed
from contsteal.lab import artifacts, owner, profiles
from contsteal.ownership import inference, obfuscation, sslguard, watermark
from contsteal.paper import claims, figures, notebooks

RESULT = artifacts.ROOT / "benchmarks" / "results" / "soak.csv"
SURVIVED = ""  # any other outcome is a sentence on what went wrong
SMOKE = ["make", "paper", "PROFILE=smoke", f"PYTHON={sys.executable}"]
Outcomes = Iterator[str]
Dice = random.Random
NONE = object()


def outcome(do: Callable[[], object]) -> str:
    """Return SURVIVED where a call returns finite numbers or refuses clearly, else what it did."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = do()
    except Exception as error:
        place = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = place.is_relative_to(artifacts.PACKAGE) and isinstance(error, ValueError)
        if ours or type(error).__module__.startswith("contsteal"):
            return SURVIVED
        return f"{type(error).__name__} in {place.name}: {error!s:.200}"
    return SURVIVED if finite(value) else "NaN or infinity without a word"


def finite(value: object) -> bool:
    """Say whether all numbers of a result are finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, float):
        return bool(np.isfinite(value))
    values = value.values() if isinstance(value, dict) else value
    return all(map(finite, values)) if isinstance(value, dict | list | tuple) else True


def child(do: Callable[[], object]) -> int:
    """Call a function in a process of its own, which ends with 0, or with 1 after an error."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        with suppress(KeyboardInterrupt):
            do()
            code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


# ----------------------------------------------------------------------------------- kills


def problem() -> tuple[nn.Module, loop.Loss]:
    """Return a regression of a few thousand steps a second, with draws, dropout and a batch norm."""
    x = torch.linspace(-1, 1, 256).reshape(64, 4)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 2))

    def loss(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        noisy = x[chosen] + 0.1 * torch.randn(len(chosen), 4, generator=draws)
        return (model(noisy) - x[chosen, :2].sin()).square().mean()

    return model, loss


def trained(path: Path | None) -> str:
    """Train the regression, from a checkpoint where there is one; return a hash of its weights."""
    loop.SAVE_EVERY, (model, loss) = 0.0, problem()
    schedule = loop.Schedule(epochs=12, batch=16, lr=1e-2)
    loop.fit(model, loss, 64, schedule, seed=0, checkpoint=path)
    return files.digest(model.state_dict().items())


def kills_in_training(home: Path, dice: Dice, count: int) -> Outcomes:
    """Kill a training at a random moment, by one of three signals, and continue it."""
    start = time.monotonic()
    whole, taken = trained(home / "whole.pt"), time.monotonic() - start
    for k in range(count):
        pid = child(partial(trained, home / f"{k}.pt"))
        time.sleep(dice.uniform(0, taken))
        os.kill(pid, dice.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
        os.waitpid(pid, 0)
        same = trained(home / f"{k}.pt") == whole
        yield SURVIVED if same else "other weights than without the kill"


def write_parts(folder: Path) -> None:
    """Make an artifact of three files, slowly."""
    for k in range(3):
        (folder / f"{k}.bin").write_bytes(bytes([k]) * 20_000)
        time.sleep(0.003)


def made(config: object) -> list[bytes]:
    """Return the content of an artifact, made where need be."""
    code = ["contsteal.losses"]
    folder = artifacts.artifact("soak", config, code, write_parts, lambda line: None)
    return [(folder / f"{k}.bin").read_bytes() for k in range(3)]


def kills_in_artifacts(home: Path, dice: Dice, count: int) -> Outcomes:
    """Kill the making of an artifact, and ask for it again."""
    whole = made("whole")
    for k in range(count):
        pid = child(partial(made, k))
        time.sleep(dice.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        yield SURVIVED if made(k) == whole else "another content than without the kill"


def two_at_once(home: Path, dice: Dice, count: int) -> Outcomes:
    """Let two processes make the same artifact and store the same answers at the same time."""
    names, answers = [bytes(16)], torch.ones(1, 4)
    for k in range(count):
        store = victim.AnswerStore(home / f"answers-{k}")

        def work(k: int = k, store: victim.AnswerStore = store) -> None:
            made(f"both {k}")
            store.put(names, answers)

        codes = [os.waitpid(pid, 0)[1] for pid in [child(work), child(work)]]
        stored = store.get(names)
        same = made(f"both {k}") == made("one") and stored is not None
        yield SURVIVED if same and codes == [0, 0] else f"exit codes {codes}"


def whole_runs(home: Path, dice: Dice, count: int) -> Outcomes:
    """Kill `make paper` at a random moment: nothing of it lives on, and the next run is complete.

    Killed is make, by one of two signals, or what it has started, by -9. The last time nothing is killed,
    and two runs start at once. All tables are then those of an undisturbed run.
    """
    place = {"CONTSTEAL_RUNS": str(home / "runs"), "CONTSTEAL_FIGURES": str(home / "figures")}
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFL"))
    }
    start = partial(
        subprocess.Popen, SMOKE, cwd=artifacts.ROOT, env=own | place, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def tables() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (home / "figures/smoke").glob("*.csv")}

    began = time.monotonic()
    code, taken = start().wait(), time.monotonic() - began
    whole = tables() if code == 0 else {}
    print(f"an undisturbed run took {taken:.0f} s, {len(whole)} tables", flush=True)
    for k in range(count):
        for folder in ("runs", "figures"):
            shutil.rmtree(home / folder, ignore_errors=True)
        alive = kill(start(), dice, taken) if k < count - 1 else 0
        runs = [start() for _ in range(1 if k < count - 1 else 2)]
        codes = [run.wait() for run in runs]
        fine = tables() == whole != {} and not alive and not any(codes)
        print(f"run {k + 1} of {count}: {'complete' if fine else 'not survived'}", flush=True)
        yield SURVIVED if fine else f"exit codes {codes}, {alive} processes alive"


def kill(process: subprocess.Popen[bytes], dice: Dice, within: float) -> int:
    """Kill a run at a random moment; return how many of its processes are alive 20 seconds later."""
    time.sleep(dice.uniform(0, within))
    whom, number = dice.choice(((0, signal.SIGTERM), (0, signal.SIGKILL), (1, signal.SIGKILL)))
    if process.poll() is not None:
        return 0
    everybody = [psutil.Process(process.pid)]  # make, what it has started, and so on
    everybody += everybody[0].children(recursive=True)
    everybody[min(whom, len(everybody) - 1)].send_signal(number)
    return len(psutil.wait_procs(everybody, timeout=20)[1])


# --------------------------------------------------------------------------------- full disks


def writers(home: Path) -> dict[str, Callable[[], object]]:
    """Return what writes each kind of file, of a few hundred kilobytes."""
    net, names = encoders.build("conv4", seed=0), [bytes([k]) * 16 for k in range(99)]
    model, loss = nn.Linear(200, 200), lambda rows, epoch, draws: model.weight.square().mean()
    schedule, table = loop.Schedule(1, 2, 0.1), pd.DataFrame({"a": range(40_000)})
    loop.SAVE_EVERY = 0.0
    stamp = artifacts.stamp("smoke", "shapes", "0")
    return {
        "encoder": lambda: encoders.save(net, home / "encoder.safetensors"),
        "answers": lambda: victim.AnswerStore(home / "answers").put(names, torch.ones(99, 999)),
        "checkpoint": lambda: loop.fit(
            model, loss, 4, schedule, seed=0, checkpoint=home / "last.pt"
        ),
        "artifact": lambda: artifacts.artifact(
            "full", 0, ["contsteal.losses"], lambda f: artifacts.write(f, net), lambda line: None
        ),
        "record": lambda: files.write_json(home / "record.json", list(range(40_000))),
        "table": lambda: figures.save(None, home, "00_samples", table, stamp),
    }


def full_disk(home: Path, dice: Dice, count: int) -> Outcomes:
    """Write each kind of file where a random number of bytes fits: an error says what, and keeps the old.

    A limit of the process stands for the disk; where mounting is allowed, a small file system is one.
    """
    known = writers(home)
    for make in known.values():
        make()
    for k in range(count):
        name = list(known)[k % len(known)]
        limit = dice.randrange(100_000)
        before = snapshot(home)

        def write(name: str = name, limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            if name == "artifact":
                os.environ["CONTSTEAL_RUNS"] = str(home / "other")
            try:
                known[name]()
            except files.StorageError:
                os._exit(3)

        code = os.waitstatus_to_exitcode(os.waitpid(child(write), 0)[1])
        kept = snapshot(home) == before or code == 0
        yield SURVIVED if code in (0, 3) and kept else f"{name}: exit code {code}, kept {kept}"


def full_mount(home: Path, dice: Dice, count: int) -> Outcomes:
    """Write each kind of file to a file system that is full."""
    place = home / "mounted"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "soak", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        print("mounting is not allowed here: no full file system was tried")
        return
    try:
        os.environ["CONTSTEAL_RUNS"] = str(place / "runs")
        for name, write in list(writers(place).items())[:count]:
            try:
                write()
                yield f"{name}: no error"
            except files.StorageError:
                yield SURVIVED
            except Exception as error:
                yield f"{name}: {type(error).__name__}: {error}"
    finally:
        subprocess.run(["umount", str(place)], check=True)


def snapshot(home: Path) -> dict[str, str]:
    """Return the hash of every file of a folder that is read back, without what is being written."""
    paths = (p for p in home.rglob("*") if p.is_file() and "other" not in p.parts)
    return {str(p): files.sha256(p) for p in paths if "partial" not in p.name}


# ---------------------------------------------------------------------------------- bit flips


Kind = tuple[
    Callable[[], Path], Callable[[], object]
]  # writes a file; reads it as the package does


def stored_kinds(home: Path) -> dict[str, Kind]:
    """Return each kind of file that the package writes and reads back."""
    return kinds_of_training(home) | kinds_of_data(home) | kinds_of_results(home)


def kinds_of_training(home: Path) -> dict[str, Kind]:
    """Return encoders, answers, checkpoints and artifacts."""
    net = encoders.build("conv4", width=0.5, seed=0)
    store, names = victim.AnswerStore(home / "answers"), [bytes(16), bytes([1]) * 16]
    clean, projector = torch.linspace(0, 1, 8).reshape(2, 4), methods.Head(64, 8, 4)

    def fill(folder: Path) -> None:
        artifacts.write(folder, net, queries={"calls": 4}, projector=projector)
        files.write_json(folder / "score.json", {"accuracy": 0.25, "agreement": 0.5})

    def folder() -> Path:
        return artifacts.artifact("flip", 0, ["contsteal.losses"], fill, lambda line: None)

    def read_artifact() -> object:
        got = artifacts.read(folder(), CPU)
        head = encoders.digest(got.projector.state_dict().items()) if got.projector else ""
        score = files.read_json(folder() / "score.json")
        return got.sha256, got.history.to_csv(), got.queries, head, score

    def answers() -> Path:
        store.put(names, clean)
        return next((home / "answers").glob("*.safetensors"))

    def checkpoint() -> Path:
        path = home / "last.pt"
        path.unlink(missing_ok=True)
        trained(path)
        return path

    def alone() -> Path:
        encoders.save(net, home / "net.safetensors")
        return home / "net.safetensors"

    parts = ("encoder.safetensors", artifacts.HEAD, "history.csv", "queries.json", "score.json",
             artifacts.MANIFEST)  # fmt: skip
    return {
        "encoder": (alone, lambda: encoders.identity(encoders.load(home / "net.safetensors"))),
        "answers": (answers, lambda: store.get(names)),
        "checkpoint": (checkpoint, lambda: trained(home / "last.pt")),
        **{f"artifact, {part}": (lambda part=part: folder() / part, read_artifact) for part in parts},
    }  # fmt: skip


def kinds_of_data(home: Path) -> dict[str, Kind]:
    """Return the files of a pack."""
    source = home / "source"
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    for label in "ab":
        (source / label).mkdir(parents=True)
        Image.fromarray(image).save(source / label / "1.png")

    def pack(name: str) -> Path:
        shutil.rmtree(home / "pack", ignore_errors=True)
        packed.pack(source, home / "pack", 8)
        return home / "pack" / name

    def read() -> object:
        images, labels, classes = packed.open_pack(home / "pack", "train")
        return images[[0, 1]].tolist(), None if labels is None else labels.tolist(), classes

    names = (packed.IMAGES, packed.SUMS, packed.MANIFEST)
    return {f"pack, {name}": (partial(pack, name), read) for name in names}


def kinds_of_results(home: Path) -> dict[str, Kind]:
    """Return what a run writes of its notebooks: figures, tables, stamps, notes, records, times."""
    stamp, folder = artifacts.stamp("smoke", "shapes", "0"), home / "smoke"
    table = pd.DataFrame({"attack": ["a", "b"], "accuracy": [0.25, 0.5]})
    times = {"00_start_here": {"seconds": 2.5, "device": "CPU"}}
    executed, key = home / "00_start_here.ipynb", {"parameters": "0"}
    order = {"key": key, "parameters": {"seeds": [0, 1]}, "reason": "never"}

    def written(name: str) -> Path:
        figures.save(Figure(), folder, "03_pulls", table, stamp)
        os.environ["CONTSTEAL_FIGURES"] = str(home)
        figures.note("05a_price", table, stamp)
        files.write_json(executed, {"cells": [{"outputs": ["accuracy 0.5"]}]})
        made = {path.name: files.sha256(path) for path in folder.glob("03_pulls.*")}
        record = {"key": key, "outputs": made, "seconds": 2.5}
        record["copy"] = files.sha256(executed)
        files.write_json(executed.with_suffix(".json"), files.sealed(record))
        files.write_json(folder / notebooks.TIMINGS, files.sealed(times))
        files.write_json(home / "mark", files.sealed(order))
        return home / name

    def up_to_date() -> object:
        return None if notebooks._reason(executed, key, folder) else "up to date"

    readers: dict[str, Callable[[], object]] = {
        "smoke/03_pulls.csv": lambda: claims.read(folder, "03_pulls").to_csv(),
        "smoke/03_pulls.json": lambda: figures.read(folder, "03_pulls")[1],
        "smoke/03_pulls.png": up_to_date,
        "smoke/03_pulls.pdf": up_to_date,
        "smoke/05a_price.json": lambda: figures.noted(folder, "05a_price"),
        f"smoke/{notebooks.TIMINGS}": lambda: notebooks._read(folder / notebooks.TIMINGS),
        "00_start_here.ipynb": up_to_date,
        "00_start_here.json": up_to_date,
        "mark": lambda: notebooks._read(home / "mark"),
    }
    return {name: (partial(written, name), read) for name, read in readers.items()}


CPU = torch.device("cpu")
LOST = ({}, None)  # nothing is known, so it is computed again


def bit_flips(home: Path, dice: Dice, count: int) -> Outcomes:
    """Flip one bit of each kind of file: the same result, none, or a clear error."""
    for k, (name, (write, read)) in enumerate(list(stored_kinds(home).items()) * count):
        if k >= count:
            return
        path = write()
        whole, content = read(), bytearray(path.read_bytes())
        place = dice.randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        got: list[object] = []
        problem = outcome(lambda read=read, got=got: got.append(read()))
        right = not got or same(got[0], whole) or any(got[0] is x or got[0] == x for x in LOST)
        yield problem or (SURVIVED if right else f"{name}: bit {place} changed what is read")


def same(one: object, two: object) -> bool:
    """Say whether two values are equal, also where they are tensors."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return torch.equal(one, two)
    return not isinstance(one, Tensor) and not isinstance(two, Tensor) and one == two


# -------------------------------------------------------------------------- threads and ledger


class Sums(nn.Module):
    """A network whose answer to an image is known: two sums of its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return torch.stack([flat.sum(1), flat[:, ::2].sum(1)], 1) * self.weight


def threads(home: Path, dice: Dice, count: int) -> Outcomes:
    """Let eight threads ask at once on a budget for half of them: no answer too many, none exchanged."""
    net = Sums().eval()
    for k in range(count):
        images = torch.randint(256, (8, 4, 3, 4, 4), dtype=torch.uint8,
                               generator=torch.Generator().manual_seed(k))  # fmt: skip
        alone = {part: victim.BlackBox(net).embed(part) for part in images}
        api, barrier, problems = victim.BlackBox(net, budget=16), threading.Barrier(8), []

        def ask(part: Tensor, api: victim.BlackBox = api, barrier: threading.Barrier = barrier,
                problems: list[str] = problems, alone: dict[Tensor, Tensor] = alone) -> None:  # fmt: skip
            barrier.wait()
            try:
                if not torch.allclose(api.embed(part), alone[part]):
                    problems.append("the answer to another image")
            except victim.BudgetExceeded:
                pass
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}")

        workers = [threading.Thread(target=ask, args=(part,)) for part in alone]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        spent = api.ledger.unique_inputs, api.ledger.calls
        problems += [] if spent == (16, 16) else [f"{spent} answers on a budget of 16"]
        yield "; ".join(problems)


# ----------------------------------------------------------------------------- generated inputs

ODD = [0, 1, 2, -1, 3, 8, 0.0, 1.0, 0.5, -0.5, 1.5, 1e-3, 1e300, float("nan"), float("inf"), True,
       False, None, "", "a", "simclr", "embedding", [], [1], [0, 0], {}, {"a": 1}, (), b"x",
       10**30, "\0", "1e-3", np.int64(3), np.float32(0.5), object()]  # fmt: skip


def config(dice: Dice) -> Callable[[], object]:
    """Return the use of a training's or an attack's config with some odd values."""
    kind = dice.choice((methods.Config, attacks.Config, loop.Schedule))
    names = [field.name for field in fields(kind)]
    given = {name: dice.choice(ODD) for name in dice.sample(names, dice.randint(1, 3))}
    if kind is attacks.Config and dice.random() < 0.8:
        given["attack"] = dice.choice([*attacks.ATTACKS])
    base = {"epochs": 2, "batch": 4, "lr": 0.1} if kind is loop.Schedule else {"encoder": "conv4"}

    def use() -> object:
        made = kind(**base | given)
        if isinstance(made, methods.Config):
            return pretrain.schedule(made).total(9999)
        if isinstance(made, attacks.Config):
            whole = made.for_images(64)
            return [whole.rounds, whole.tau, whole.options and 0, whole.distinct(64)]
        return [made.total(64), made.factor(1, 3), made.build(nn.Linear(2, 2)) and 0]

    return use


@cache
def smoke() -> str:
    """Return the profile that is altered, as text."""
    return (profiles.PROFILES / "smoke.yaml").read_text()


@cache
def known_parameters() -> dict[str, dict[str, Any]]:
    """Return the parameters of every notebook."""
    return {stem: notebooks.defaults(stem) for stem in notebooks.stems()}


def profile(dice: Dice, home: Path) -> Callable[[], object]:
    """Return the reading of a profile in which a few values are odd, missing, or of another place.

    One in five is the right profile, under odd changes.
    """
    settings = yaml.safe_load(smoke())
    if dice.random() < 0.2:
        names = dice.sample([*settings["common"], "method", "probe_draws", "price", "watermark"], 2)
        changes = {name: dice.choice([*ODD, settings["common"].get(name)]) for name in names}
        return lambda: profiles.changed("smoke", changes) and 0
    for _ in range(dice.randint(1, 3)):
        place, inner = settings, settings
        while isinstance(inner, dict) and inner and dice.random() < 0.8:
            place, key = inner, dice.choice([*inner])
            inner = inner[key]
        if place is settings and inner is settings:
            continue
        odd = dice.choice([*ODD[:27], NONE])
        if odd is NONE:
            del place[key]
        else:
            place[key] = odd if not isinstance(odd, bytes) else "x"
    text = bytearray(yaml.safe_dump(settings, allow_unicode=True).encode())
    if dice.random() < 0.3:  # damaged as a file: a byte, or a part that stands there twice
        place = dice.randrange(len(text))
        text[place : place + 1] = dice.choice(
            (bytes([dice.randrange(256)]), text[place:], b"&a *a ")
        )

    def read() -> object:
        (home / "odd.yaml").write_bytes(text)
        before, profiles.PROFILES = profiles.PROFILES, home
        try:
            given = profiles.profile("odd").get("notebooks")
            for stem in notebooks.choose(given) if given else ():
                profiles.check(given.get(stem, {}), known_parameters()[stem], stem)
            profiles.config(profiles.profile("odd")["common"])
        finally:
            profiles.PROFILES = before
        return 0

    return read


def tree(dice: Dice, home: Path) -> Callable[[], object]:
    """Return the reading or packing of a small folder with links, odd names and damaged files."""
    root, image = home / "tree", Image.effect_mandelbrot((12, 9), (-2, -1, 1, 1), 9).convert("RGB")
    for name in ("tree", "pack"):
        shutil.rmtree(home / name, ignore_errors=True)
    for split, label in zip(dice.sample(("train", "test", "val"), 3), "aba", strict=True):
        folder = root / dice.choice((split, split, "")) / dice.choice((label, label, ""))
        folder.mkdir(parents=True, exist_ok=True)
        name = dice.choice(("1.png", "2.PNG", "a b.jpg", "\udcff.png", "3.txt", ".4.png", "-.bmp"))
        with suppress(ValueError):  # Pillow knows no such format
            image.save(folder / name)
        if dice.random() < 0.2:
            (folder / name).write_bytes(b"GIF89a")
        if dice.random() < 0.2:
            (folder / f"link {split}").symlink_to(dice.choice((root, folder, home / "nowhere")))
    split, size = (
        dice.choice(("train", "test", "val", "a", "train+test")),
        dice.choice((8, 9, *ODD[:12])),
    )
    if dice.random() < 0.5:
        return lambda: data.load(f"folder:{root}", split, image_size=size).images[:1]

    def pack() -> object:
        packed.pack(root, home / "pack", size, workers=dice.choice((1, -1, 0)))
        return data.load(f"packed:{home / 'pack'}", split, image_size=size).images[[0]]

    return pack


def loader(dice: Dice, home: Path) -> Callable[[], object]:
    """Return the loading of an odd set or folder, or the decoding of a damaged image."""
    if dice.random() < 0.25:
        return tree(dice, home)
    if dice.random() < 0.5:
        path = home / f"image{dice.choice(('.png', '.jpg', '.bmp', '.gif', '.webp', '.tif'))}"
        Image.effect_mandelbrot((12, 9), (-2, -1, 1, 1), 9).convert("RGB").save(path)
        content = bytearray(path.read_bytes())
        for _ in range(dice.randint(1, 5)):
            content[dice.randrange(len(content))] = dice.randrange(256)
        path.write_bytes(content[: dice.randint(0, len(content))])
        return lambda: torch.from_numpy(folders.decode(path, 8))
    names = [
        *data.SOURCES,
        "folder:",
        "packed:/nowhere",
        f"folder:{home}",
        "nothing",
        "cifar10",
        "imagenet",
    ]
    given = {"name": dice.choice(names), "n": dice.choice((1, 2, 4)), "seed": dice.choice((0, 1))}
    given[dice.choice(("name", "split", "n", "seed", "image_size"))] = dice.choice(ODD)
    return lambda: data.load(**{"image_size": 32} | given).images[:1]


def tensor(dice: Dice, rows: int, width: int) -> Tensor:
    """Return an odd tensor, mostly of floats (rows, width)."""
    g = torch.Generator().manual_seed(dice.randrange(2**31))
    shape = dice.choice(
        [(rows, width)] * 8 + [(0, width), (rows, 0), (rows,), (rows, width, 1), ()]
    )
    scale = dice.choice((1.0, 1.0, 1.0, 0.0, 1e-20, 1e4, 1e18))
    values = scale * torch.randn(shape, generator=g)
    if dice.random() < 0.1 and values.numel():
        values.view(-1)[0] = dice.choice((float("nan"), float("inf")))
    kinds = [torch.float32] * 6 + [torch.float64, torch.float16, torch.int64, torch.bool]
    return values.to(dice.choice(kinds))


def labels(dice: Dice, rows: int) -> Tensor:
    """Return labels (rows,), some below 0, beyond all classes, fractional or too many."""
    drawn = [dice.randrange(3) for _ in range(dice.choice([rows] * 8 + [0, rows + 1]))]
    if drawn and dice.random() < 0.3:
        drawn[0] = dice.choice((-1, 5, 10**9))
    return torch.tensor(drawn, dtype=dice.choice([torch.int64] * 6 + [torch.float32, torch.int32]))


def images(dice: Dice) -> Any:
    """Return odd images, mostly uint8 (N, 3, 8, 8)."""
    whole = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    return dice.choice([whole] * 6 + [
        whole[:0], whole[..., :0], whole[0], whole.float() / 255, whole.float(), whole.numpy(), None,
        whole.double() * float("nan"), whole.to_sparse(), whole[:, :1], whole.long(), [whole], "x",
    ])  # fmt: skip


def ledger(dice: Dice) -> Callable[[], object]:
    """Return a few requests to a victim with odd budgets, users and images; the bill must be right."""
    chain = [protection(dice)] if dice.random() < 0.3 else []
    budget = dice.choice([None, 4, 6, 9, *ODD])
    requests = [(images(dice), dice.choice(["a", "b", "adversary", *ODD[15:30]])) for _ in range(3)]

    def ask() -> object:
        api = victim.BlackBox(Sums().eval(), [make() for make in chain], budget=budget)
        answered = 0
        for sent, user in requests:
            with suppress(victim.BudgetExceeded, defenses.Refused):
                answers = api.embed(sent, user=user)
                answered += len(answers)
                if not finite(answers):
                    return answers
        over = budget is not None and any(
            account.unique_inputs > budget for account in api.ledger.accounts.values()
        )
        if over or api.ledger.calls != answered:
            raise AssertionError(f"{api.ledger.calls} billed, {answered} answered")
        return 0

    return ask


def protection(dice: Dice) -> Callable[[], Any]:
    """Return the making of a defence with odd parameters."""
    name = dice.choice([*defenses.DEFENSES])
    own = inspect.signature(defenses.DEFENSES[name]).parameters
    given = {key: dice.choice(ODD) for key in dice.sample(sorted(own), min(len(own), 2))}
    needed: dict[str, dict[str, Any]] = {
        "gaussian-noise": {"std": 0.1}, "rounding": {"decimals": 1}, "top-k": {"k": 1},
        "similar-queries": {"threshold": 0.5}, "prediction-poisoning": {"eps": 1.0},
    }  # fmt: skip
    base = needed.get(name, {})
    return lambda: defenses.build(name, **(base if dice.random() < 0.5 else base | given))


def defended(dice: Dice) -> Callable[[], object]:
    """Return the answers of a defence to odd vectors."""
    make, answers = protection(dice), tensor(dice, 6, 4)
    return lambda: victim.finite(make()(victim.finite(answers), dice.choice(["a", "b"])))


def loss(dice: Dice) -> Callable[[], object]:
    """Return a loss of odd vectors that are finite."""
    one, two = (tensor(dice, dice.choice((1, 2, 4)), 4).nan_to_num(0, 1, -1) for _ in range(2))
    name = dice.choice([*attacks.ATTACKS])
    recipe, tau = attacks.ATTACKS[name], dice.choice([0.07, 0.5, 1.0, *ODD[:17]])
    options = {} if recipe.temperature is None else {"temperature": tau}
    given = (labels(dice, len(one) if one.ndim else 1),) if recipe.labels else ()
    return lambda: recipe.loss(one, two, *given, **options)


def evaluation(dice: Dice) -> Callable[[], object]:
    """Return a measure of odd features and labels."""
    n, m = dice.choice((4, 6, 8)), dice.choice((1, 4, 6))
    x, y, p, q = tensor(dice, n, 3), tensor(dice, m, 3), labels(dice, n), labels(dice, m)
    return dice.choice([
        lambda: evaluate.geometry(x),
        lambda: evaluate.mean_interval(dice.sample(ODD[:12], 3), dice.choice([0.95, *ODD])),
        lambda: evaluate.linear_probe(x, p, y, q).accuracy,
        lambda: evaluate.knn(x, p, y, q, k=dice.choice([1, 3, *ODD])).accuracy,
        lambda: evaluate.agreement(p, q),
        lambda: evaluate.linear_cka(x, y),
        lambda: evaluate.mean_cosine(x, y),
        lambda: evaluate.spread(x),
        lambda: evaluate.nearest(x, dice.choice(ODD), dice.choice(ODD)),
    ])  # fmt: skip


@cache
def owned() -> tuple[watermark.Mark, sslguard.Key, encoders.Encoder]:
    """Return a mark and a key for three features, and a suspect with as many."""
    head, key = (
        methods.Head(3, 4, 2, norm=False),
        sslguard.Key(sslguard.Config(key=4, image_size=8), 3),
    )
    return (
        watermark.Mark(head, 3),
        key,
        encoders.build("conv4", 16, width=0.5, out_dim=3).eval(),
    )


def ownership(dice: Dice) -> Callable[[], object]:
    """Return a proof of ownership from odd answers, images, controls and levels."""
    mark, key, net = owned()
    odd = lambda *usual: dice.choice([*usual, *usual, *ODD])  # noqa: E731
    x, y, z = (tensor(dice, dice.choice((1, 4, 8)), 3) for _ in range(3))
    numbers = [odd(0.5, 0.25) for _ in range(dice.randint(0, 4))]
    sent = images(dice)
    names = "count", "epochs", "images", "batch", "data", "split"
    given = {name: dice.choice(ODD) for name in dice.sample(names, 2)}
    options = {"components": odd(1, 2), "covariance": odd("full", "diag"), "ridge": odd(1e-6),
               "standardise": odd(True), "seed": odd(0)}  # fmt: skip
    guard = {"key": 8, "epochs": 1, "batch": 2, "shadow": "conv4", "image_size": 16, "hidden": (4,)}
    names = *guard, "masked", "gradients", "lr_shadow"
    guard |= {name: dice.choice(ODD) for name in dice.sample(names, dice.randint(0, 2))}
    return dice.choice([
        lambda: inference.proportion(odd(1), odd(4), odd(0.95)),
        lambda: vars(inference.against_controls(odd(0.5), numbers)),
        lambda: inference.least_excess(numbers, odd(0.05)),
        lambda: inference.least_gap(odd(4), odd(4), odd(0.05)),
        lambda: vars(inference.welch(x.flatten(), y.flatten(), form=odd("signed"))),
        lambda: inference.mixture_scores(x, y, z, **options),
        lambda: vars(inference.dataset_inference(net, sent, images(dice), components=1)),
        lambda: watermark.success(mark, x),
        lambda: vars(watermark.ranked(mark, x)),
        lambda: vars(watermark.verify(mark, net, sent, seed=odd(0))),
        lambda: watermark.Config(weight=odd(1.0), trained_head=odd(True), hidden=odd((4,))) and 0,
        lambda: sslguard.decoded(key, x),
        lambda: vars(sslguard.verify(key, net, sent)),
        lambda: sslguard.embed(sslguard.Config(**guard), net, sent, sent).history,
        lambda: obfuscation.scale(net, odd(2.0)).weight,
        lambda: obfuscation.affine(net, odd(0), odd(1.0)).weight,
        lambda: obfuscation.pad(net, odd(1), odd(0)).weight,
        lambda: profiles.validated(owner.Strangers, given, "strangers") and 0,
    ])  # fmt: skip


def generated(kind: Callable[..., Callable[[], object]]) -> Callable[[Path, Dice, int], Outcomes]:
    """Return a fault that gives so many generated inputs of a kind."""

    def give(home: Path, dice: Dice, count: int) -> Outcomes:
        place = (home,) if kind in (profile, loader) else ()
        for _ in range(count):
            yield outcome(kind(dice, *place))

    return give


# ------------------------------------------------------------------------------------ campaign

# how often in full, and in the short campaign of the tests
FAULTS: dict[str, tuple[Callable[[Path, Dice, int], Outcomes], int, int]] = {
    "a whole run is killed, or runs twice": (whole_runs, 4, 0),
    "odd configurations": (generated(config), 4000, 60),
    "odd profiles": (generated(profile), 600, 10),
    "odd data and damaged images": (generated(loader), 1000, 40),
    "odd requests and budgets": (generated(ledger), 3000, 40),
    "odd defences and answers": (generated(defended), 3000, 40),
    "odd vectors in losses": (generated(loss), 4000, 60),
    "odd features and labels": (generated(evaluation), 4000, 40),
    "odd proofs of ownership": (generated(ownership), 4000, 40),
    "eight threads on one budget": (threads, 1000, 5),
    "one bit of a file is flipped": (bit_flips, 630, 21),
    "the disk is full, by a limit": (full_disk, 120, 6),
    "the disk is full, mounted": (full_mount, 6, 6),
    "a training is killed": (kills_in_training, 40, 2),
    "the making of an artifact is killed": (kills_in_artifacts, 60, 3),
    "two processes at once": (two_at_once, 30, 2),
}


def campaign(short: bool, seed: int, only: Sequence[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """Try every fault; return the table, and each problem once."""
    rows, problems = [], dict[str, int]()
    for fault, (run, full, few) in FAULTS.items():
        if not (few if short else full) or (only and not any(word in fault for word in only)):
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            home, before, saved = Path(folder), dict(os.environ), loop.SAVE_EVERY
            os.environ["CONTSTEAL_RUNS"] = str(home / "runs")
            try:
                dice = Dice(seeds.derive(fault, seed))
                outcomes = list(run(home, dice, few if short else full))
            finally:
                loop.SAVE_EVERY = saved
                os.environ.clear()
                os.environ.update(before)
        for text in filter(None, outcomes):
            problems[f"{fault}: {text}"] = problems.get(f"{fault}: {text}", 0) + 1
        survived = sum(text == SURVIVED for text in outcomes)
        rows.append({"fault": fault, "tried": len(outcomes), "survived": survived,
                     "seconds": round(time.monotonic() - began, 1)})  # fmt: skip
        print(f"{fault}: {survived} of {len(outcomes)} survived", flush=True)
    return pd.DataFrame(rows), [f"{text} ({count})" for text, count in problems.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, print what was not survived, store the full one, and return 1 for any."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--short", action="store_true", help="seconds; nothing is stored")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        help="faults with one of these words",
    )
    given = parser.parse_args(arguments)
    table, problems = campaign(given.short, given.seed, given.only)
    print("\n".join(problems))
    if not given.short:
        stamp = {
            "seed": given.seed,
            "commit": artifacts.code_version().split()[1],
            "device": artifacts.processor(),
            "date": date.today().isoformat(),
        }
        rows = [table.assign(**stamp)]
        if RESULT.is_file():  # of the faults that were left out now
            rows.append(pd.read_csv(RESULT).query("fault not in @table.fault"))
        with files.atomic(RESULT) as path:
            pd.concat(rows).to_csv(path, index=False)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
