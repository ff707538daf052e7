"""How fast the package steals: cached answers, K views, new views in every epoch, and the victim itself.

All of it runs through `steal.train` and `BlackBox`, as an attack does. A cached step is timed by the
epoch, after the first ones: asking and building are not in it. "new views" is a whole attack divided
by the images it trained on, since each epoch has its own views and answers. A turn is an epoch of the
former, a whole attack of the latter. The victim answers images that it has not seen, in requests of
`batch`; hashing them, which tells them from others, is in its rate.
"""

from typing import NamedTuple

from torch import Tensor

from benchmarks import record
from benchmarks.record import US, Row
from contsteal import data, encoders, steal
from contsteal.lab import artifacts
from contsteal.victim import BlackBox

BATCHES = (32, 128, 512)
VIEWS = 4
EPOCHS = 3  # that are timed; a cached run has one more before them, K views one each


class Size(NamedTuple):
    """Which encoder, as victim and surrogate, and how many query images."""

    encoder: str
    width: float
    images: int
    batches: tuple[int, ...]


CPU, GPU = Size("resnet10t", 0.5, 1024, BATCHES), Size("resnet18", 1.0, 16384, BATCHES)
TINY = Size("test_resnet", 1.0, 64, (32,))


def config(size: Size, batch: int, epochs: int, views: steal.Views, answers: int) -> steal.Config:
    """Return an attack with Cont-Steal's loss in the code's form, the same for every row."""
    return steal.Config(
        "cont-steal-code", views=views, answers=answers, encoder=size.encoder, width=size.width,
        epochs=epochs, batch=batch, seed=1,
    )  # fmt: skip


def cached(
    size: Size, victim: encoders.Encoder, images: Tensor, batch: int, answers: int
) -> list[float]:
    """Return samples per second of each epoch, once every view was seen; 0 answers: clean images."""
    first = answers or 1
    views = "shared" if answers else "clean"
    own = config(size, batch, first + EPOCHS, views, answers or 1)
    history = steal.train(own, BlackBox(victim), images).history
    samples = len(images) // batch * batch
    return [samples / epoch["seconds"] for epoch in history[first:]]


def fresh(size: Size, victim: encoders.Encoder, images: Tensor, batch: int) -> float:
    """Return samples per second of a whole attack that draws and asks new views in every epoch."""
    own = config(size, batch, EPOCHS, "shared", 0)
    taken = record.seconds(lambda: steal.train(own, BlackBox(victim), images))
    return EPOCHS * (len(images) // batch * batch) / taken


def answers(victim: encoders.Encoder, images: Tensor, batch: int) -> float:
    """Return images per second of a new black box, asked in requests of `batch`."""
    api = BlackBox(victim)

    def ask() -> None:
        for request in images.split(batch):
            api.embed(request)

    return len(images) / record.seconds(ask)


def measure(tiny: bool) -> list[Row]:
    """Return samples per second of each way to steal, and of the victim's answers, at each batch."""
    device = artifacts.device()
    size = TINY if tiny else GPU if device.type == "cuda" else CPU
    victim = encoders.build(size.encoder, 32, width=size.width, seed=0).to(device)
    images = data.load("shapes", n=size.images).images.to(device)
    rows = []
    for batch in size.batches:
        fresh(size, victim, images[: 2 * batch], batch)  # warms up
        found = {
            "cached clean answers": cached(size, victim, images, batch, 0),
            f"{VIEWS} views": cached(size, victim, images, batch, VIEWS),
            "new views": [fresh(size, victim, images, batch)],
        }
        rows += [row(name, batch, "samples", values) for name, values in found.items()]
        rates = [answers(victim, images, batch) for _ in range(EPOCHS)]
        rows.append(row("victim answers", batch, "images", rates))
    return rows


def row(name: str, batch: int, unit: str, values: list[float]) -> Row:
    """Return the row of one way to steal at one batch."""
    return record.row("stealing", f"{name}, batch {batch}", US, unit, values)
