"""The one training loop: shuffled batches, warm-up and cosine, checkpoints, and a stop at NaN.

$CONTSTEAL_MODE is "fast" (default) or "exact" (bit by bit the same on the same machine),
$CONTSTEAL_PRECISION "auto" (default: what the hardware is fast in), "bf16" or "fp32". Kernels of
notebooks and workers inherit both.
"""

import io
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from tqdm.auto import tqdm

from contsteal import (
    Batch,
    Checked,
    Count,
    Natural,
    NotNegative,
    Positive,
    checkpoints,
    choice,
    files,
)
from contsteal.seeds import generator

Row = dict[str, float]
Backend = str | Callable[..., Any]  # of torch.compile
Loss = Callable[[Tensor, int, torch.Generator], Tensor]  # (indices (B,), epoch, draws) -> scalar
WARMUP = 0.1  # share of all steps
# Seconds between checkpoints, which a run that is ended or killed can lose: more where one takes long.
SAVE_EVERY = 1.0
SAVING = 0.05  # seconds that one may take for each SAVE_EVERY: a twentieth of the time
MOST = 30.0  # times SAVE_EVERY, however long one takes
QUIET = "TQDM_DISABLE"  # which a notebook's bars do not read by themselves
HIDDEN = ("epoch", "lr", "seconds")  # columns of a row that the progress bar leaves out


class Diverged(RuntimeError):
    """A loss was NaN or infinite; the last good checkpoint is kept."""


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
}


@dataclass(frozen=True)
class Schedule(Checked):
    """How long and how fast: linear warm-up, then one cosine to zero over the whole run.

    Example:
        >>> schedule = Schedule(epochs=40, batch=64, lr=1e-2)
        >>> schedule.check(1024), schedule.total(1024)
        (16, 640)
    """

    epochs: Count
    batch: Batch  # incomplete batches are dropped
    lr: Positive  # at the peak
    weight_decay: NotNegative = 1e-4
    optimizer: str = "adamw"  # a name of OPTIMIZERS
    #: of the optimizer, which then cut the last epoch short; 0: all of the epochs'
    steps: Natural = 0

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of the weights that are trained; ValueError for an unknown name."""
        trained = [p for p in model.parameters() if p.requires_grad]
        make = OPTIMIZERS[choice(self.optimizer, "optimizer", OPTIMIZERS)]
        return make(trained, lr=self.lr, weight_decay=self.weight_decay)

    def check(self, n: int) -> int:
        """Return the steps per epoch for `n` samples; ValueError where they fill no batch."""
        if n < self.batch:
            raise ValueError(
                f"{n} images are fewer than one batch of {self.batch}: give more images "
                f"(a larger budget) or set batch to {max(n, 2)} or less"
            )
        return n // self.batch

    def total(self, n: int) -> int:
        """Return the optimizer's steps of the whole training on `n` samples."""
        return self.steps or self.epochs * self.check(n)

    def factor(self, step: int, steps: int) -> float:
        """Return the share of the peak learning rate at `step` of `steps`."""
        ramp = max(1, round(WARMUP * steps))
        if step < ramp:
            return (step + 1) / ramp
        return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def fit(
    model: nn.Module, loss: Loss, n: int, schedule: Schedule, *, seed: int,
    checkpoint: Path | None = None, after_epoch: Callable[[int], Row] | None = None,
    title: str = "training", identity: str = "",
) -> list[Row]:  # fmt: skip
    """Train `model` in place on `n` samples; it ends in eval mode.

    Args:
        model: the module to train; frozen weights stay as they are.
        loss: maps the indices (B,) of a batch, the epoch and a generator to a scalar.
        n: number of samples.
        schedule: how long and how fast.
        seed: decides the order of the samples, and with the epoch what `loss` draws.
        checkpoint: a file to save the state to after an epoch: every second where that takes at most a
            twentieth of the time, and every half a minute at least. A run that was ended or killed
            continues from it to the same weights.
        after_epoch: maps an epoch to more columns of its row, such as a monitor's.
        title: stands before the progress bar.
        identity: describes the run: the checkpoint of another one is refused.

    Returns:
        One row per epoch: epoch (from 1), mean loss, last learning rate, seconds, more columns.

    Raises:
        ValueError: for fewer samples than a batch, or a checkpoint of another run.
        Diverged: for the first NaN or infinite loss, with its epoch and step.

    Example:
        >>> net, x = nn.Linear(2, 1), torch.randn(8, 2)
        >>> history = fit(net, lambda rows, epoch, draws: net(x[rows]).square().mean(), 8,
        ...               Schedule(epochs=3, batch=4, lr=0.1), seed=0)
        >>> len(history)
        3
    """
    set_mode()
    epochs = math.ceil(schedule.total(n) / schedule.check(n))
    optimizer = schedule.build(model)
    identity = f"{identity} {schedule} seed={seed} n={n}"
    history = _resume(checkpoint, model, optimizer, identity)
    saved, pause, done = time.monotonic(), SAVE_EVERY, len(history)
    bar = tqdm(
        total=epochs, initial=done, desc=title, leave=False, delay=2, disable=QUIET in os.environ
    )
    with flags_restored(), bar:
        torch.backends.cudnn.benchmark = mode() == "fast"  # tries its kernels on every shape
        for epoch in range(done, epochs):
            start, draws = time.monotonic(), generator("epoch", seed, epoch)
            mean = _epoch(model.train(), loss, n, schedule, optimizer, draws, epoch)
            row = {"epoch": epoch + 1, "loss": mean, "lr": optimizer.param_groups[0]["lr"],
                   "seconds": time.monotonic() - start}  # fmt: skip
            history.append(row | (after_epoch(epoch) if after_epoch else {}))
            bar.set_postfix({k: f"{v:.3f}" for k, v in history[-1].items() if k not in HIDDEN})
            bar.update()
            if checkpoint and (begun := time.monotonic()) - saved > pause:
                state = {
                    "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "rng": torch.get_rng_state(), "history": history, "identity": identity,
                }  # fmt: skip
                torch.save(state, buffer := io.BytesIO())
                with files.atomic(checkpoint) as partial:
                    partial.write_bytes(buffer.getvalue())
                saved = time.monotonic()
                pause = SAVE_EVERY * min(max(1.0, (saved - begun) / SAVING), MOST)
    optimizer.zero_grad(set_to_none=True)  # gradients take as much memory as the weights
    model.eval()
    return history


def _epoch(
    model: nn.Module, loss: Loss, n: int, schedule: Schedule, optimizer: torch.optim.Optimizer,
    draws: torch.Generator, epoch: int,
) -> float:  # fmt: skip
    """Run one epoch and return its mean loss; no value leaves the device before the end of it."""
    device = next(model.parameters()).device
    before, steps = epoch * schedule.check(n), schedule.total(n)
    order = torch.randperm(n, generator=draws).to(device)
    # The incomplete batch is dropped, and what lies beyond the last step.
    batches = order.split(schedule.batch)[: min(schedule.check(n), steps - before)]
    values = torch.empty(len(batches), device=device)
    for step, chosen in enumerate(batches):
        optimizer.param_groups[0]["lr"] = schedule.lr * schedule.factor(before + step, steps)
        optimizer.zero_grad(set_to_none=True)
        with autocast(device):
            value = loss(chosen, epoch, draws)
        value.backward()
        optimizer.step()
        values[step] = value.detach()
    if len(bad := (~values.isfinite()).nonzero()):
        step = int(bad[0, 0])
        images = ", ".join(map(str, batches[step][:8].tolist()))
        raise Diverged(
            f"the loss became {values[step].item()} in epoch {epoch + 1}, step {step + 1}, on a batch of "
            f"{len(batches[step])} images ({images}, ...): lower the learning rate or raise the "
            "temperature; the last checkpoint is kept"
        )
    if not all(p.isfinite().all() for p in model.parameters()):
        raise Diverged(f"a weight is NaN or infinite in epoch {epoch + 1}: lower the learning rate")
    return values.mean().item()


def checkpoint_file(path: Path | str | None) -> Path | None:
    """Return the file to resume from and to save to; ValueError for a folder, or for no path."""
    if path is not None and not isinstance(path, str | Path):
        raise ValueError(f"checkpoint={path!r:.60}: the path of a file is needed")
    if path is not None and Path(path).is_dir():
        raise ValueError(f"checkpoint={path} is a folder: give a file in it")
    return None if path is None else Path(path)


def check_owner(path: Path | None, identity: str) -> None:
    """Raise ValueError where a checkpoint is of a run whose identity does not begin like this.

    A damaged one is no reason: `fit` moves it aside.
    """
    if (path := checkpoint_file(path)) is None or not path.exists():
        return
    try:
        stored = str(checkpoints.unpickle(path)["identity"])
    except Exception:  # of many kinds for a damaged file
        return
    if not f"{stored} ".startswith(f"{identity} "):
        raise ValueError(f"{path} belongs to another run ({stored}, not {identity}): remove it")


def _resume(
    path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, identity: str
) -> list[Row]:
    """Restore a checkpoint, in all processes the one that the first has, and return its history."""
    state = [_kept(path, model, identity)]
    if several():
        dist.broadcast_object_list(state)
    if state[0] is None:
        return []
    model.load_state_dict(state[0]["model"])
    optimizer.load_state_dict(state[0]["optimizer"])
    torch.set_rng_state(state[0]["rng"])
    return cast(list[Row], state[0]["history"])


def _kept(path: Path | None, model: nn.Module, identity: str) -> dict[str, Any] | None:
    """Return the state in a checkpoint; a damaged one is moved aside, with a warning."""
    check_owner(path, identity)  # refuses a folder, which would be moved aside
    if path is None or not path.exists():
        return None
    try:
        state: dict[str, Any] = checkpoints.unpickle(path)
        if problem := checkpoints.misfit(model.state_dict(), state["model"]):
            raise ValueError(problem)
        _ = state["history"], state["optimizer"], state["rng"]
        return state
    except Exception:  # of many kinds for a damaged file
        warnings.warn(
            f"{path} is damaged: it is moved aside, and training starts again", stacklevel=4
        )
        files.move_aside(path)
        return None


def several() -> bool:
    """Return whether this process is one of several that train together, as torchrun starts them."""
    return dist.is_available() and dist.is_initialized()


CHOICES = {  # variable and allowed values of each; the first is the default
    "mode": ("CONTSTEAL_MODE", ("fast", "exact")),
    "precision": ("CONTSTEAL_PRECISION", ("auto", "bf16", "fp32")),
}
# Steps from which compiling (20 to 130 s) pays for itself on a GPU: a prediction, for a card that has
# no row PAYS in benchmarks/results.
COMPILE_FROM = 5000
PAYS = "steps from which compiling pays"
RECORDS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"  # of a clone
# Of torch.compile, or "none", whatever the device and the length: benchmarks set it.
BACKEND: Backend | None = None


def _choice(name: str) -> str:
    variable, allowed = CHOICES[name]
    return choice(os.environ.get(variable) or allowed[0], variable, allowed)


def mode() -> str:
    """Return "fast" or "exact"; ValueError for another value of $CONTSTEAL_MODE."""
    return _choice("mode")


def precision(device: torch.device) -> str:
    """Return "bf16" or "fp32", what `autocast` computes in; ValueError for another value."""
    asked = _choice("precision")
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Without AVX512-BF16 the CPU emulates bf16 many times slower than it computes in float32.
    fast = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if fast else "fp32"


def mode_labels() -> list[str]:
    """Return what is not the default, such as ["exact mode"]: results of it are kept apart."""
    values = {name: _choice(name) for name in CHOICES}
    return [f"{value} {name}" for name, value in values.items() if value != CHOICES[name][1][0]]


def autocast(device: torch.device) -> torch.autocast:
    """Return bf16 autocast where the hardware computes in bf16, else an autocast that is off."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device) == "bf16")


def set_mode() -> None:
    """Make torch repeat itself bit by bit in exact mode; in fast mode change nothing.

    An operation without a deterministic form then raises torch's RuntimeError, which names it; the
    package's losses and encoders differentiate none.
    """
    if mode() == "exact":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


@contextmanager
def flags_restored() -> Iterator[None]:
    """Put torch's flags back that `set_mode` and a training change."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark


def card() -> str:
    """Return this GPU's name as the files of `benchmarks/results` have it, "cpu" without one."""
    if not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name().lower().replace(" ", "-")


def measured(work: str, default: float) -> float:
    """Return what was measured on this card, by its name in `benchmarks/results`; else the default."""
    stored = files.read_json(RECORDS / f"{card()}.json") or {"rows": []}
    return next((row["value"] for row in stored["rows"] if row["work"] == work), default)


class Compiled:
    """A function by torch.compile; where it cannot be compiled, itself, after one warning."""

    def __init__(self, function: Callable[..., Tensor], backend: Backend) -> None:
        self.function, self.graphs = function, backend == "inductor"
        mode = "reduce-overhead" if self.graphs else None  # CUDA graphs
        self.run = torch.compile(function, backend=backend, mode=mode, dynamic=False)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step returned may go
        try:
            return self.run(*inputs)
        except RuntimeError as error:
            if self.run is self.function:
                raise
            reason = str(error).partition("\n")[0]
            warnings.warn(f"a step could not be compiled ({reason}): it runs eagerly", stacklevel=2)
            self.run, self.graphs = self.function, False
            return self.run(*inputs)


@contextmanager
def compiled(
    function: Callable[..., Tensor], device: torch.device, steps: int
) -> Iterator[Callable[..., Tensor]]:
    """Hold what a step computes, such as a network, in its fastest form; call it once a step.

    Args:
        function: a module, or a method of one. The weights stay the module's own.
        device: compiled is on a CUDA GPU alone, with Triton, in fast mode.
        steps: of the whole training: a short one ends before compiling has paid for itself.

    Yields:
        The compiled function, or `function` itself.
    """
    c_compiler = os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))
    able = device.type == "cuda" and c_compiler and find_spec("triton")
    pays = able and steps >= measured(PAYS, COMPILE_FROM)
    wanted = BACKEND or ("inductor" if pays else "none")
    backend = None if mode() == "exact" or wanted == "none" else wanted
    try:
        yield Compiled(function, backend) if backend else function
    finally:
        if backend:
            torch.compiler.reset()  # frees its CUDA graphs
