"""The one training loop: shuffled batches, warm-up and cosine, checkpoints, and a stop at NaN."""

import csv
import io
import math
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from contsteal import files, speed
from contsteal.seeds import generator

Row = dict[str, float]
Loss = Callable[[Tensor, int, torch.Generator], Tensor]  # (indices (B,), epoch, draws) -> scalar
SAVE_EVERY = 15.0  # seconds between checkpoints: what a killed run can lose
DULL = ("epoch", "lr", "seconds")  # what a progress bar need not say


class Diverged(RuntimeError):
    """A loss was NaN or infinite; the last good checkpoint is kept."""


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: linear warm-up, then one cosine to zero over the whole run."""

    epochs: int
    batch: int
    lr: float
    weight_decay: float = 1e-4
    warmup: float = 0.1  # share of all steps
    optimizer: str = "adamw"

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of the weights that are trained; ValueError for an unknown name."""
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"unknown optimizer {self.optimizer!r}: choose one of {', '.join(OPTIMIZERS)}"
            )
        trained = [p for p in model.parameters() if p.requires_grad]
        return OPTIMIZERS[self.optimizer](trained, lr=self.lr, weight_decay=self.weight_decay)

    def check(self, n: int) -> int:
        """Return the steps per epoch for `n` samples; ValueError where there is not one batch."""
        if self.epochs < 1 or self.batch < 2 or not self.lr > 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"{self}: epochs must be >= 1, batch >= 2, lr > 0 and warmup in [0, 1)"
            )
        if n < self.batch:
            raise ValueError(
                f"{n} images are fewer than one batch of {self.batch}: give more images "
                f"(a larger budget) or set batch to {max(n, 2)} or less"
            )
        return n // self.batch

    def factor(self, step: int, steps: int) -> float:
        """Return the share of the peak learning rate at `step` of `steps`."""
        ramp = max(1, round(self.warmup * steps))
        if step < ramp:
            return (step + 1) / ramp
        return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def autocast(device: torch.device) -> torch.autocast:
    """Return bf16 autocast where the hardware computes in bf16, else an autocast that is off."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device) == "bf16")


def precision(device: torch.device) -> str:
    """Return "bf16" or "fp32": what `autocast` computes convolutions in."""
    if asked := speed.precision():
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Without AVX512-BF16 the CPU emulates bf16 many times slower than it computes in float32.
    fast = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if fast else "fp32"


def fit(
    model: nn.Module,
    loss: Loss,
    n: int,
    schedule: Schedule,
    *,
    seed: int,
    checkpoint: Path | None = None,
    after_epoch: Callable[[int], Row] | None = None,
    title: str = "training",
    identity: str = "",
) -> list[Row]:
    """Train `model` in place on `n` samples and return one row per epoch (loss, lr, seconds, ...).

    `loss` gets the indices of a batch. Incomplete batches are dropped. With `checkpoint` a killed
    run continues after its last saved epoch and ends with the same weights. Errors: ValueError for
    fewer samples than a batch, `Diverged` naming epoch and step of the first NaN loss.
    """
    schedule.check(n)
    optimizer = schedule.build(model)
    identity = f"{identity} {schedule} seed={seed} n={n}"
    history = _resume(checkpoint, model, optimizer, identity)
    saved, model = time.monotonic(), model.train()
    bar = tqdm(total=schedule.epochs, initial=len(history), desc=title, leave=False, delay=2)
    with speed.accelerated(model, optimizer) as pace:
        for epoch in range(len(history), schedule.epochs):
            start, draws = time.monotonic(), generator("epoch", seed, epoch)
            mean = _epoch(model, loss, n, schedule, optimizer, draws, epoch)
            row = {"epoch": epoch + 1, "loss": mean, "lr": optimizer.param_groups[0]["lr"],
                   "seconds": time.monotonic() - start}  # fmt: skip
            pace.left(row["seconds"] * (schedule.epochs - epoch - 1))
            history.append(row | (after_epoch(epoch) if after_epoch else {}))
            model.train()
            bar.set_postfix({k: f"{v:.3f}" for k, v in history[-1].items() if k not in DULL})
            bar.update()
            if checkpoint:
                _log(checkpoint.with_suffix(".csv"), history)
            if checkpoint and time.monotonic() - saved > SAVE_EVERY:
                _save(checkpoint, model, optimizer, identity, history)
                saved = time.monotonic()
    bar.close()
    optimizer.zero_grad(set_to_none=True)  # gradients take as much memory as the weights
    model.eval()
    return history


def _epoch(
    model: nn.Module,
    loss: Loss,
    n: int,
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    draws: torch.Generator,
    epoch: int,
) -> float:
    """Run one epoch and return its mean loss; no value leaves the device before the end of it."""
    device, steps = next(model.parameters()).device, schedule.check(n)
    order = torch.randperm(n, generator=draws).to(device)
    values = torch.empty(steps, device=device)
    for step, chosen in enumerate(order[: steps * schedule.batch].split(schedule.batch)):
        share = schedule.factor(epoch * steps + step, schedule.epochs * steps)
        optimizer.param_groups[0]["lr"] = schedule.lr * share
        with autocast(device):
            value = loss(chosen, epoch, draws)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        values[step] = value.detach()
        del value  # CUDA graphs are recorded before a step, when no autograd graph may be alive
    _check_finite(values, model, epoch, order.split(schedule.batch))
    return values.mean().item()


def _check_finite(values: Tensor, model: nn.Module, epoch: int, batches: Sequence[Tensor]) -> None:
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0, 0])
        some = ", ".join(map(str, batches[step][:8].tolist()))
        raise Diverged(
            f"the loss became {values[step].item()} at epoch {epoch + 1}, step {step + 1} of it, on "
            f"images {some}, ... of the {len(batches[step])} of its batch: lower the learning rate or "
            "raise the temperature; the last checkpoint is kept"
        )
    if not all(p.isfinite().all() for p in model.parameters()):
        raise Diverged(f"a weight became NaN or infinite in epoch {epoch + 1}")


def _log(path: Path, history: list[Row]) -> None:
    """Write one line per epoch so far, to be watched while the training runs."""
    text = io.StringIO()
    columns = dict.fromkeys(key for row in history for key in row)
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    files.write_text(path, text.getvalue())


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: str,
    history: list[Row],
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "history": history,
        "identity": identity,
    }
    with files.atomic(path) as partial, partial.open("wb") as file:
        torch.save(state, file)  # into an open file: a full disk is an OSError then


def _resume(
    path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, identity: str
) -> list[Row]:
    """Restore a checkpoint and return its history; a damaged one is moved aside, with a warning."""
    if path is None or not path.exists():
        return []
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if bad := archive.testzip():
                raise ValueError(f"{bad} is not what was written")
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored = state["identity"]
    except Exception as error:  # torch.load raises many kinds for a damaged file
        warnings.warn(f"{path} is damaged ({error}): moved aside, starting anew", stacklevel=3)
        files.move_aside(path)
        return []
    if stored != identity:
        raise ValueError(f"{path} belongs to another run ({stored}, not {identity}): remove it")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return state["history"]
