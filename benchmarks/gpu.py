"""How near a GPU comes to its own limit: the product's rate, forms of a step, and small batches."""

from collections.abc import Iterator

import torch

from benchmarks import record, training
from benchmarks.record import US, Row
from contsteal import data, encoders, speed
from contsteal.lab import artifacts, estimate

ENCODER, BATCH, WORKERS = "resnet18", 512, 16
BATCHES = (16, 32, 64, 128, 256, 512, 1024)  # where a step stops to be bound by its launches
FORMS = (("eager", "bf16"), ("eager", "fp32"), ("compile", "bf16"), ("graph", "bf16"))
PASSES = 3 * 2  # forward and backward, two operations a multiply-add
TURNS = 3


def rate(encoder: str, batch: int, form: str, precision: str, mode: str = "fast") -> float:
    """Return views per second of a SimCLR step, its augmentation included, in one form."""
    with speed.forced(form, mode=mode, precision=precision):
        return 2 * training.own("simclr", batch, encoder=encoder, width=1.0).rate()


def rates(name: str, *given: object) -> Row:
    """Return the row of TURNS measurements of `rate`."""
    return record.row("gpu", name, US, "views", [rate(*given) for _ in range(TURNS)])


def forms(encoder: str, batch: int) -> Iterator[Row]:
    """Yield a step's rate in each form, the best of them, its share of the card, and exact mode's."""
    found = [
        rates(f"simclr step, {form} {kind}", encoder, batch, form, kind) for form, kind in FORMS
    ]
    yield from found
    best = max(found, key=lambda r: r.value)
    yield record.row("gpu", "simclr step, best", US, "views", [best.low, best.value, best.high])
    cost = PASSES * 1e9 * encoders.describe(encoders.build(encoder, 32))["gmac"]
    peak = estimate.matmul_rate()
    yield record.row("gpu", "bf16 matmul", US, "FLOP", [peak])
    yield record.row("gpu", "share of the matmul rate", US, "share", [best.value * cost / peak])
    yield rates("simclr step, exact mode", encoder, batch, "eager", "bf16", "exact")


def small(encoder: str, batches: tuple[int, ...]) -> Iterator[Row]:
    """Yield the rate at growing batches, eager and as a graph: they meet where launches cost nothing."""
    for batch in batches:
        for form in ("eager", "graph"):
            yield rates(f"batch {batch}, {form}", encoder, batch, form, "bf16")


def peer(encoder: str, batch: int) -> list[Row]:
    """Return SimCLR's views per second beside lightly's pipeline."""
    steps = 8
    images = data.load("shapes", n=steps * batch).images
    trial = training.own("simclr", batch, encoder=encoder, width=1.0)
    theirs = training.Lightly(images, WORKERS, batch, encoder, 1.0)

    def ours() -> None:
        for _ in range(steps):
            trial.step()

    ways = {US: ours, "lightly": theirs.epoch}
    return record.compare("gpu", "simclr step", ways, 2 * batch * steps, "views", TURNS)


def measure(tiny: bool) -> list[Row]:
    """Return the rows of a CUDA GPU; none without one, but for the eager step of a tiny encoder."""
    if artifacts.device().type != "cuda":
        own = rates("simclr step, eager fp32", "test_resnet", 8, "eager", "fp32")
        return [own] if tiny else []
    encoder, batch, batches = ("test_resnet", 16, (16,)) if tiny else (ENCODER, BATCH, BATCHES)
    torch.cuda.empty_cache()
    return [*forms(encoder, batch), *small(encoder, batches), *peer(encoder, batch)]
