"""How near a GPU comes to its own limit: a product's rate, the forms of a training step, exact mode.

Each form of a SimCLR step is timed, its augmentation included; other encoders and batches are those of
benchmarks/forms.py. The default form, eager and in bf16, is the row of contsteal; beside it stand
float32, the compiled step and exact mode. From compiling's seconds and what a step then saves follows the
length of training from which it pays, which `loop.compiled` reads on the same card. A form that
cannot be run has no row, and one that cannot be compiled never pays.
"""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
EAGERLY = ": it runs eagerly"  # how `loop.Compiled` ends its warning
FORMS: dict[str, dict[str, Any]] = {
    US: {"backend": "none", "precision": "bf16"},
    "float32": {"backend": "none", "precision": "fp32"},
    COMPILED: {"backend": "inductor", "precision": "bf16"},
    "exact mode": {"backend": "none", "precision": "bf16", "mode": "exact"},
}


class Size(NamedTuple):
    """At which encoder and batch the forms are timed, and how."""

    encoder: str
    batch: int
    turns: int = 3
    least: float = 1.0  # seconds of a turn
    side: int = 8192  # of the product's matrices


GPU, TINY = Size("resnet18", 512), Size("test_resnet", 8, 1, 0.0, 64)


def matmul_rate(side: int, least: float) -> float:
    """Return the FLOP/s of a square matrix product in the precision that training uses."""
    device = artifacts.device()
    kind = torch.bfloat16 if loop.precision(device) == "bf16" else torch.float32
    x = torch.randn(side, side, device=device).to(kind)
    return 2 * side**3 * training.sustained(lambda: x @ x, least)


def forms(size: Size) -> tuple[list[Row], float]:
    """Return views per second of a step in each form, and the steps from which compiling pays.

    A form that fails is left out, with a sentence; only without the default one is there no result.
    """
    rows, ready, work = {}, {}, f"simclr step, {size.encoder}, batch {size.batch}"
    for who, form in FORMS.items():
        if form["backend"] == "inductor" and artifacts.device().type != "cuda":
            form = form | {"backend": "eager"}  # the same path without a compiler's minute
        try:
            with record.forced(**form), _compiled_or_error():
                trial = training.own("simclr", size.batch, encoder=size.encoder, width=1.0)
                ready[who], rates = trial.timed(size.turns, size.least)
        except Exception as error:
            if who == US:
                raise
            reason = str(error).partition("\n")[0].removesuffix(EAGERLY)
            print(f"{work}: {who} is left out, because it failed: {reason}")
            continue
        rows[who] = record.row("gpu", work, who, "views", [2 * rate for rate in rates])
    pays = NEVER
    if COMPILED in rows and rows[COMPILED].value > rows[US].value:
        saved = 2 * size.batch * (1 / rows[US].value - 1 / rows[COMPILED].value)
        pays = max(0.0, ready[COMPILED] - ready[US]) / saved
    return list(rows.values()), pays


@contextmanager
def _compiled_or_error() -> Iterator[None]:
    """Compile in a new cache, so that the whole time is seen; what would run eagerly is an error."""
    with (
        tempfile.TemporaryDirectory() as new,
        patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=new),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("error", f".*{EAGERLY}")
        yield


def chosen(rows: list[Row], size: Size) -> Iterator[Row]:
    """Yield the rate of the best form, and its share of what the card reaches in a matrix product."""
    best = max(rows, key=lambda r: r.value)
    yield record.row("gpu", "simclr step, best", US, "views", [best.low, best.value, best.high])
    cost = PASSES * 1e9 * encoders.describe(encoders.build(size.encoder, 32))["gmac"]
    peak = matmul_rate(size.side, 0.3 * size.least)
    yield record.row("gpu", "bf16 matmul", US, "FLOP", [peak])
    yield record.row("gpu", "share of the matmul rate", US, "share", [best.value * cost / peak])


def repeated(size: Size) -> Row:
    """Return how many weights differ between two short trainings in exact mode."""
    nets = []
    with record.forced(mode="exact"):
        for _ in range(2):
            trial = training.own("simclr", size.batch, encoder=size.encoder, width=1.0)
            for _ in range(5):
                trial.step()
            nets.append(trial.model.encoder)
    return record.row("gpu", "exact mode, twice", US, "weights", [fidelity.differing(*nets)])


def peer(size: Size, workers: int) -> list[Row]:
    """Return SimCLR's views per second beside lightly's; a row without turns where that is missing."""
    if find_spec("lightly") is None:
        print("the comparison with lightly is not measured: no lightly is installed")
        return [Row("gpu", "simclr step", "lightly", "views", 0.0, 0.0, 0.0, 0)]
    steps, batch = max(2, 4 * workers), size.batch  # several batches for each worker
    images = data.load("shapes", n=steps * batch).images
    trial = training.own("simclr", batch, encoder=size.encoder, width=1.0)
    theirs = training.Lightly(images, workers, batch, size.encoder, 1.0)

    def ours() -> None:
        for _ in range(steps):
            trial.step()

    ways = {US: ours, "lightly": theirs.epoch}
    return record.compare("gpu", "simclr step", ways, 2 * batch * steps, "views", size.turns)


def measure(tiny: bool) -> list[Row]:
    """Return the rows of a CUDA GPU; without one none, or where `tiny` those of a tiny encoder."""
    if artifacts.device().type != "cuda" and not tiny:
        return []
    size = TINY if tiny else GPU
    rows, pays = forms(size)
    rows += [*chosen(rows, size), record.row("gpu", loop.PAYS, US, "steps", [pays])]
    return [*rows, repeated(size), *peer(size, 0 if tiny else WORKERS)]
