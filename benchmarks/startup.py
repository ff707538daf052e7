"""Seconds before anything useful happens: import, the device, the first step, compilation."""

import os
import subprocess
import sys

from benchmarks import record
from benchmarks.record import US, Row

STEPS = {
    "interpreter": "",
    "import torch": "import torch",
    "import contsteal": "from contsteal import data, pretrain, steal, victim",
    "first product on the device": (
        "import torch; from contsteal.lab import artifacts; "
        "x = torch.ones(64, 64, device=artifacts.device()); (x @ x).sum().item()"
    ),
    "first training step": (
        "from contsteal import data, pretrain; from contsteal.lab import artifacts; "
        "c = pretrain.Config(encoder='resnet10t', width=0.5, epochs=1, batch=64, hidden=256, "
        "held_out=0); pretrain.train(c, data.load('shapes', n=64).to(artifacts.device()))"
    ),
}


def _run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, timeout=600)


def measure(tiny: bool) -> list[Row]:
    """Return the seconds of a fresh process that does one thing and ends, from least to most."""
    chosen = dict(list(STEPS.items())[:1]) if tiny else STEPS
    turns = 1 if tiny else 5
    return [
        record.row("startup", name, US, "s", record.by_turns({US: lambda c=c: _run(c)}, turns)[US])
        for name, c in chosen.items()
    ]
