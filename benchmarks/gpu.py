"""How near a GPU comes to its own limit: the product's rate, forms of a step, and small batches."""

import time
from collections.abc import Iterator

import torch

from benchmarks import record, training
from benchmarks.record import US, Row
from contsteal import data, encoders, loop
from contsteal.lab import artifacts

ENCODER, BATCH, WORKERS = "resnet18", 512, 16
BATCHES = (16, 32, 64, 128, 256, 512, 1024)  # where a step stops to be bound by its launches
BACKENDS = {"eager": "none", "compile": "inductor"}  # the forms of a step
FORMS = (("eager", "bf16"), ("eager", "fp32"), ("compile", "bf16"))
PASSES = 3 * 2  # forward and backward, two operations a multiply-add
TURNS = 3


def rate(encoder: str, batch: int, form: str, precision: str, mode: str = "fast") -> float:
    """Return views per second of a SimCLR step, its augmentation included, in one form."""
    with loop.forced(mode=mode, precision=precision, backend=BACKENDS[form]):
        return 2 * training.own("simclr", batch, encoder=encoder, width=1.0).rate()


def matmul_rate(seconds: float = 0.3) -> float:
    """Return the FLOP/s of one large square matrix product in the precision that training uses."""
    device = artifacts.device()
    n = 8192 if device.type == "cuda" else 1024
    kind = torch.bfloat16 if loop.precision(device) == "bf16" else torch.float32
    x = torch.randn(n, n, device=device).to(kind)
    start, done = time.perf_counter(), 0
    while not done or time.perf_counter() - start < seconds:
        (x @ x)[0, 0].item()  # waits for a GPU
        if not done:
            start = time.perf_counter()  # the first product sets things up
        done += 1
    return 2 * n**3 * (done - 1 or 1) / (time.perf_counter() - start)


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
    peak = matmul_rate()
    yield record.row("gpu", "bf16 matmul", US, "FLOP", [peak])
    yield record.row("gpu", "share of the matmul rate", US, "share", [best.value * cost / peak])
    yield rates("simclr step, exact mode", encoder, batch, "eager", "bf16", "exact")


def small(encoder: str, batches: tuple[int, ...]) -> Iterator[Row]:
    """Yield the rate at growing batches, eager and compiled: they meet where launches cost nothing."""
    for batch in batches:
        for form in BACKENDS:
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
