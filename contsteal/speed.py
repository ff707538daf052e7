"""Exact or fast: bitwise repeatable training, or the quickest execution of an encoder's steps.

$CONTSTEAL_MODE is "fast" (default) or "exact", $CONTSTEAL_FORM "auto" (default), "eager", "compile" or
"graph", $CONTSTEAL_PRECISION "auto" (default: the hardware's), "bf16" or "fp32". Notebooks' kernels and
workers inherit them.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import nn

from contsteal import replay
from contsteal.encoders import Encoder

CHOICES = {  # what can be chosen, by which variable; the first of each is the default
    "mode": ("CONTSTEAL_MODE", ("fast", "exact")),
    "form": ("CONTSTEAL_FORM", ("auto", "eager", "compile", "graph")),
    "precision": ("CONTSTEAL_PRECISION", ("auto", "bf16", "fp32")),
}
# Views a call below which launching a ResNet-18's kernels takes longer than running them: a prediction
# for an H200 (4 ms of launches a step, 12.5 us a view), until it is measured.
LAUNCH_BOUND = 320
WORTH = 3.0  # minutes of training left above which a compilation of 20 to 130 s can pay for itself

_forced: dict[str, str] = {}


def _choice(name: str) -> str:
    variable, allowed = CHOICES[name]
    value = _forced.get(name) or os.environ.get(variable) or allowed[0]
    if value not in allowed:
        raise ValueError(f"{variable}={value!r} is unknown: choose {', '.join(allowed)}")
    return value


def mode() -> str:
    """Return "fast" or "exact"; ValueError for another value of $CONTSTEAL_MODE."""
    return _choice("mode")


def form() -> str:
    """Return the form asked for, "eager" in exact mode; ValueError for one that does not exist there."""
    asked, exact = _choice("form"), mode() == "exact"
    if exact and asked not in ("auto", "eager"):
        raise ValueError(
            f"form {asked!r} in exact mode, which is eager: unset CONTSTEAL_FORM, or take "
            "CONTSTEAL_MODE=fast"
        )
    return "eager" if exact else asked


def precision() -> str | None:
    """Return "bf16" or "fp32" where one is asked for, or None where the hardware decides."""
    found = _choice("precision")
    return None if found == "auto" else found


def named() -> list[str]:
    """Return what is not the default, such as "exact mode": it tells results from other results."""
    return [
        f"{value} {name}" for name in CHOICES if (value := _choice(name)) != CHOICES[name][1][0]
    ]


def signed(stamp: dict[str, str]) -> dict[str, str]:
    """Return a figure's stamp whose device says what is not the default."""
    return stamp | {"device": ", ".join([stamp["device"], *named()])}


def settle() -> None:
    """Make this process bitwise repeatable in exact mode; in fast mode change nothing.

    Operations without a deterministic form then raise torch's RuntimeError, which names them. None is
    in the package's training: timm pools by a mean; max pooling's backward gathers; views, whose
    grid sampling has no such form, need no gradient; class targets are 1-D. Indexed writes, scatters,
    cumulative sums and convolutions have deterministic forms, which torch takes then.
    """
    if mode() == "exact":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


@contextmanager
def forced(
    form: str | None = None, *, mode: str | None = None, precision: str | None = None
) -> Iterator[None]:
    """Force a form, a mode and a precision ("bf16", "fp32") in this process, whatever is set outside.

    For benchmarks and tests: workers do not inherit it. Errors: ValueError for an unknown value.
    """
    before, flags = dict(_forced), (
        torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    )  # fmt: skip
    given = {"form": form, "mode": mode, "precision": precision}
    _forced.update({name: value for name, value in given.items() if value is not None})
    try:
        for name in CHOICES:
            _choice(name)
        settle()
        yield
    finally:
        _forced.clear()
        _forced.update(before)
        torch.use_deterministic_algorithms(flags[0])
        torch.backends.cudnn.benchmark = flags[1]


def compiler() -> bool:
    """Say whether torch.compile can work for a GPU here: it needs Triton, and Triton a C compiler."""
    found = os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))
    return bool(found) and find_spec("triton") is not None


def choose(device: str, views: int, minutes: float, compiles: bool, asked: str = "auto") -> str:
    """Return how to execute a call of an encoder on so many `views`, with `minutes` of training left."""
    if asked == "compile":
        return asked
    if device != "cuda" or asked == "eager":
        return "eager"
    if asked == "graph" or views < LAUNCH_BOUND:
        return "graph"
    return "compile" if minutes > WORTH and compiles else "eager"


def kind(model: nn.Module) -> str:
    """Return the type of device that a model is on."""
    return next(model.parameters()).device.type


class Pace:
    """How the encoders of a training are executed: learnt from the first step, made before the next."""

    def __init__(self, nets: Sequence[Encoder], device: str, asked: str) -> None:
        self.device, self.asked, self.due, self.minutes = device, asked, False, 0.0
        self.seen: list[Counter[replay.Call]] = []
        self.calls = [replay.Calls(net, self._make) for net in nets]

    def stepped(self, *_: object) -> None:
        """Note the end of a step. Nothing is recorded yet: the step's autograd graph is still alive."""
        if not self.seen and any(c.now for c in self.calls):
            self.seen, self.due = [c.now for c in self.calls], True
        for calls in self.calls:
            calls.now = Counter()

    def left(self, seconds: float) -> None:
        """Note after an epoch how long the rest takes: a long one is worth a compilation."""
        self.minutes, self.due = seconds / 60, bool(self.seen)

    def _make(self) -> None:
        if not self.due:
            return
        self.due = False
        for calls, seen in zip(self.calls, self.seen, strict=True):
            for call, times in seen.items():
                if (call, 0) not in calls.made:
                    self._replace(calls, call, times)

    def _replace(self, calls: replay.Calls, call: replay.Call, times: int) -> None:
        how = choose(self.device, call.shape[0], self.minutes, compiler(), self.asked)
        if how == "compile":
            calls.compile(call, times, careful=self.asked == "auto")
        if how == "graph":
            try:
                calls.graph(call, times)
            except RuntimeError as error:  # of CUDA, also for want of memory
                if self.asked != "auto":
                    raise
                replay.tell("recorded", error)
                calls.made.setdefault((call, 0), calls.forward)

    def undo(self) -> None:
        """Give every encoder its own forward back."""
        for calls in self.calls:
            calls.undo()


@contextmanager
def accelerated(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Pace]:
    """Hold the encoders inside `model` in the form that mode and hardware call for, then undo it."""
    settle()
    device, asked = kind(model), form()
    idle = asked == "eager" or (device != "cuda" and asked != "compile")
    nets = [] if idle else [m for m in model.modules() if isinstance(m, Encoder)]
    before, pace = torch.backends.cudnn.benchmark, Pace(nets, device, asked)
    hook = optimizer.register_step_post_hook(pace.stepped)
    try:
        torch.backends.cudnn.benchmark = mode() == "fast"
        yield pace
    finally:
        hook.remove()
        pace.undo()
        torch.backends.cudnn.benchmark = before


if os.environ.get(CHOICES["mode"][0]) == "exact":
    settle()  # at import: before anything is computed
