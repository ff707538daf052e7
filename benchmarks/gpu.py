"""How near a GPU comes to its own limit: a product's rate, the forms of a training step, exact mode.

Each form of a SimCLR step is timed at several encoders and batches, its augmentation included. The
default form, eager and in bf16, is the row of contsteal; beside it stand float32, the compiled step and
exact mode. From compiling's seconds and what a step then saves follows the length of training from
which it pays, which `loop.compile_from` reads on the same card.
"""

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from benchmarks import fidelity, record, training
from benchmarks.record import US, Row
from contsteal import data, encoders, loop
from contsteal.lab import artifacts

WORKERS = 16
PASSES = 3 * 2  # forward and backward, two operations a multiply-add
NEVER = 1e9  # steps, where a compiled step is not the faster one
COMPILED = "compiled"
FORMS: dict[str, dict[str, Any]] = {
    US: {"backend": "none", "precision": "bf16"},
    "float32": {"backend": "none", "precision": "fp32"},
    COMPILED: {"backend": "inductor", "precision": "bf16"},
    "exact mode": {"backend": "none", "precision": "bf16", "mode": "exact"},
}


class Size(NamedTuple):
    """At which encoders and batches the forms are timed, and how; the first is the card's own point."""

    points: tuple[tuple[str, int], ...]
    turns: int = 3
    least: float = 1.0  # seconds of a turn
    side: int = 8192  # of the product's matrices


# 32 images leave a GPU idle between launches, 512 do not; ResNet-34 is the larger surrogate of `paper`.
GPU = Size((("resnet18", 512), ("resnet18", 128), ("resnet18", 32), ("resnet34", 256)))
TINY = Size((("test_resnet", 8),), 1, 0.0, 64)


def matmul_rate(side: int, least: float) -> float:
    """Return the FLOP/s of a square matrix product in the precision that training uses."""
    device = artifacts.device()
    kind = torch.bfloat16 if loop.precision(device) == "bf16" else torch.float32
    x = torch.randn(side, side, device=device).to(kind)
    return 2 * side**3 * training.sustained(lambda: x @ x, least)


def forms(encoder: str, batch: int, size: Size) -> tuple[list[Row], float]:
    """Return views per second of a step in each form, and the steps from which compiling pays."""
    rows, ready = {}, {}
    for who, form in FORMS.items():
        if form["backend"] == "inductor" and artifacts.device().type != "cuda":
            form = form | {"backend": "eager"}  # the same path without a compiler's minute
        with loop.forced(**form):
            trial = training.own("simclr", batch, encoder=encoder, width=1.0)
            ready[who], rates = trial.timed(size.turns, size.least)
        work = f"simclr step, {encoder}, batch {batch}"
        rows[who] = record.row("gpu", work, who, "views", [2 * rate for rate in rates])
    eager, compiled = (2 * batch / rows[who].value for who in (US, COMPILED))
    compiling = max(0.0, ready[COMPILED] - ready[US])
    return list(rows.values()), compiling / (eager - compiled) if compiled < eager else NEVER


def chosen(rows: list[Row], encoder: str, size: Size) -> Iterator[Row]:
    """Yield the rate of the best form, and its share of what the card reaches in a matrix product."""
    best = max(rows, key=lambda r: r.value)
    yield record.row("gpu", "simclr step, best", US, "views", [best.low, best.value, best.high])
    cost = PASSES * 1e9 * encoders.describe(encoders.build(encoder, 32))["gmac"]
    peak = matmul_rate(size.side, 0.3 * size.least)
    yield record.row("gpu", "bf16 matmul", US, "FLOP", [peak])
    yield record.row("gpu", "share of the matmul rate", US, "share", [best.value * cost / peak])


def repeated(encoder: str, batch: int) -> Row:
    """Return how many weights differ between two short trainings in exact mode."""
    nets = []
    with loop.forced(mode="exact"):
        for _ in range(2):
            trial = training.own("simclr", batch, encoder=encoder, width=1.0)
            for _ in range(5):
                trial.step()
            nets.append(trial.model.encoder)
    return record.row("gpu", "exact mode, twice", US, "weights", [fidelity.differing(*nets)])


def peer(encoder: str, batch: int, turns: int) -> list[Row]:
    """Return SimCLR's views per second beside lightly's pipeline; no row where lightly is missing."""
    if find_spec("lightly") is None:
        print("lightly is not installed: the comparison with its pipeline is left out")
        return []
    steps = 8
    images = data.load("shapes", n=steps * batch).images
    trial = training.own("simclr", batch, encoder=encoder, width=1.0)
    theirs = training.Lightly(images, WORKERS, batch, encoder, 1.0)

    def ours() -> None:
        for _ in range(steps):
            trial.step()

    ways = {US: ours, "lightly": theirs.epoch}
    return record.compare("gpu", "simclr step", ways, 2 * batch * steps, "views", turns)


def measure(tiny: bool) -> list[Row]:
    """Return the rows of a CUDA GPU; without one none, or where `tiny` those of a tiny encoder."""
    on_gpu = artifacts.device().type == "cuda"
    if not on_gpu and not tiny:
        return []
    size = TINY if tiny else GPU
    encoder, batch = size.points[0]
    rows: list[Row] = []
    # Compilers keep what they made between processes: in a new folder their whole time is seen.
    with tempfile.TemporaryDirectory() as new, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=new):
        for point in size.points:
            own, pays = forms(*point, size)
            rows += own if rows else [*own, *chosen(own, encoder, size)]
            name = (
                loop.PAYS
                if point == size.points[0]
                else f"{loop.PAYS}, {point[0]}, batch {point[1]}"
            )
            rows.append(record.row("gpu", name, US, "steps", [pays]))
    rows.append(repeated(encoder, batch))
    return rows + (peer(encoder, batch, size.turns) if on_gpu else [])
