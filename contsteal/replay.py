"""An encoder's calls in a training step, replaced by CUDA graphs or by compiled code.

`Calls` takes the place of one encoder's forward and gives it back: its state and the copies made before
are those of the ordinary module. In float32 replays equal eager calls bit by bit; in bf16 they round as
one call does, where two eager calls of a step would also sum their gradients in bf16.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contsteal.encoders import Encoder

MOST = 8  # graphs of equal calls in one step: each keeps the memory of its activations
BACKEND = "inductor"


class Call(NamedTuple):
    """What a recorded call can be repeated for: the images' shape and type, gradients, autocast."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    grad: bool
    autocast: bool


class Calls:
    """An encoder's forward during a training: calls of the first step are counted, then replaced.

    Another shape, eval mode and images with a gradient get the ordinary forward.
    """

    def __init__(self, net: Encoder, ready: Callable[[], None]) -> None:
        self.net, self.ready, self.forward = net, ready, net.forward
        self.device = next(net.parameters()).device
        self.trained = any(p.requires_grad for p in net.parameters())
        self.now: Counter[Call] = Counter()
        self.made: dict[tuple[Call, int], Callable[[Tensor], Tensor]] = {}
        self.compiled: Callable[[Tensor], Tensor] | None = None
        net.forward = self

    def __call__(self, images: Tensor) -> Tensor:
        if not self.net.training or images.requires_grad:
            return self.forward(images)
        self.ready()
        grad = self.trained and torch.is_grad_enabled()
        cast = torch.is_autocast_enabled(images.device.type)
        call = Call(tuple(images.shape), images.dtype, grad, cast)
        return self.made.get((call, self.place(call)), self.forward)(images)

    def place(self, call: Call) -> int:
        """Count a call; return which of its kind it is in this step, 0 where one graph serves all."""
        self.now[call] += 1
        return self.now[call] - 1 if call.grad else 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Calls":
        raise RuntimeError(
            "an encoder cannot be copied during its training: copy it before or after"
        )

    def graph(self, call: Call, times: int) -> None:
        """Record a call, once for each time that a step makes it, as far as `MOST` goes.

        A replay overwrites what the one before it has returned and kept for its backward pass, so calls
        of one step need graphs of their own. Without a gradient a copy of the result is enough.
        """
        for place in range(min(times, MOST) if call.grad else 1):
            replay = self._record(call)
            self.made[call, place] = replay if call.grad else lambda x, run=replay: run(x).clone()

    def _record(self, call: Call) -> Callable[[Tensor], Tensor]:
        """Record a call; warming up must leave neither running statistics nor random numbers changed."""
        kind, sample = self.device.type, torch.zeros(call.shape, dtype=call.dtype).to(self.device)
        kept = [b.clone() for b in self.net.buffers()]
        del self.net.forward  # the class's own is recorded
        try:
            with (
                torch.random.fork_rng(devices=[self.device.index or 0] * (kind == "cuda")),
                torch.set_grad_enabled(call.grad),
                torch.autocast(
                    kind, torch.get_autocast_dtype(kind), enabled=call.autocast, cache_enabled=False
                ),
            ):
                torch.cuda.make_graphed_callables(self.net, (sample,), allow_unused_input=True)
            return self.net.__dict__["forward"]
        finally:
            self.net.forward = self
            with torch.no_grad():
                for buffer, value in zip(self.net.buffers(), kept, strict=True):
                    buffer.copy_(value)

    def compile(self, call: Call, times: int, careful: bool) -> None:
        """Compile a call; a `careful` one that cannot be compiled is made as before, with a warning."""
        self.compiled = torch.compile(self.forward, backend=BACKEND, dynamic=False)

        def run(images: Tensor) -> Tensor:
            try:
                return self.compiled(images)
            except RuntimeError as error:
                if not careful:
                    raise
                tell("compiled", error)
                self.made |= dict.fromkeys(places, self.forward)
                return self.forward(images)

        places = [(call, place) for place in range(times)]
        self.made |= dict.fromkeys(places, run)

    def undo(self) -> None:
        """Give the encoder its own forward back, and free what was made."""
        del self.net.forward
        self.made.clear()
        if self.compiled:
            torch.compiler.reset()  # its cache holds a few encoders' code only


def tell(what: str, error: Exception) -> None:
    """Warn that an encoder stays as it was, and why."""
    line = str(error).partition("\n")[0]
    warnings.warn(f"an encoder's step could not be {what} ({line}): it runs eagerly", stacklevel=4)
