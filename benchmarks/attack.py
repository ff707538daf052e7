"""A whole attack with its evaluation against the literal form of the published pipeline.

Both sides steal from one victim with the same query images, encoder, size, epochs and batch, with the
official loss on views that are drawn anew in every epoch and shown to both encoders; then a linear
probe is fitted on labelled images and scored. Both send `queries` augmented images an epoch. Ours asks
for all of them first and never again; the literal form asks within each step (benchmarks/literal.py).

The official setting, OFFICIAL, is 100 epochs of each phase in batches of 32 on one thread, as the code
sets it; ours is the package's default, which keeps one view and its answer, on all threads. The other
comparisons favour the literal form: it gets all threads and EPOCHS, a tenth of the official number
(our probe takes as long after 10 epochs as after 100), and ours asks about new views in every epoch.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from benchmarks import literal, record
from benchmarks.record import US, Row
from contsteal import data, encoders, evaluate, steal
from contsteal.lab import artifacts
from contsteal.victim import AnswerCache, BlackBox

OFFICIAL = (256, 100, 384)  # query images, epochs of each phase, labelled images
EPOCHS = 10  # of the attack, and of the literal form's probe
BATCHES = {"": literal.BATCH, ", batch 128": 128}  # the official one, and the package's own
VIEWS = 4
TURNS = 1  # after a small warm-up: a turn of the literal form takes a minute
# The attack that has a bar in seconds, and its rehearsal: queries, epochs, batch, probe, encoder.
GPU, TINY = (9000, 100, 512, 4096, "resnet18"), (64, 2, 32, 64, "test_resnet")


class Work(NamedTuple):
    """What both sides get: a victim, query images, labelled images, and how long they train."""

    victim: encoders.Encoder
    queries: data.ImageSet
    train: data.ImageSet
    test: data.ImageSet
    epochs: int
    encoder: str = "resnet10t"
    width: float = 0.5


def work(
    queries: int, epochs: int, probe: int, encoder: str = "resnet10t", width: float = 0.5
) -> Work:
    """Return one attack's images and its victim, on the device; weights count for nothing in time."""
    device = artifacts.device()
    asked = (("train", queries, 1), ("train", probe, 2), ("test", probe, 0))
    sets = [data.load("shapes", split, n, seed=seed).to(device) for split, n, seed in asked]
    victim = encoders.build(encoder, 32, width=width, seed=0).to(device)
    return Work(victim, *sets, epochs, encoder, width)


def config(given: Work, batch: int, answers: int, attack: str = "cont-steal-code") -> steal.Config:
    """Return our attack: `answers` views of each image, 0 for new ones in every epoch."""
    return steal.Config(
        attack, views="shared", answers=answers, policy="randaugment", encoder=given.encoder,
        width=given.width, epochs=given.epochs, batch=batch, lr=literal.LR, seed=1,
    )  # fmt: skip


def ours(given: Work, batch: int, answers: int = 0) -> tuple[float, float]:
    """Steal and evaluate with the package; return accuracy and mean cosine to the victim."""
    api = BlackBox(given.victim)
    net = steal.train(config(given, batch, answers), api, given.queries.images).encoder
    train, test = (encoders.embed(net, part.images) for part in (given.train, given.test))
    probe = evaluate.linear_probe(train, given.train.labels, test, given.test.labels)
    return probe.accuracy, evaluate.mean_cosine(test, api.embed(given.test.images, user="owner"))


def theirs(given: Work, batch: int) -> float:
    """Steal and evaluate as the published code does; return the accuracy."""
    net = encoders.build(given.encoder, 32, width=given.width, seed=1).to(artifacts.device())
    literal.steal(given.victim, net, given.queries.images, given.epochs, batch)
    return literal.evaluate(given.victim, net, given.train, given.test, given.epochs, batch)


def second(given: Work, batch: int, answers: int = VIEWS) -> int:
    """Return the victim's forward passes that a second attack on the same queries adds.

    Both share the answers of one victim; the second differs in its loss and asks for the same views.
    """
    shared = AnswerCache(given.victim)
    for attack in ("cont-steal-code", "embedding"):
        before = shared.forwards
        own = config(given, batch, answers, attack)
        steal.train(own, BlackBox(shared), given.queries.images, user=attack)
    return shared.forwards - before


def timed(
    ways: dict[str, Callable[[Work], object]], given: Work, small: Work
) -> dict[str, list[float]]:
    """Return the seconds of every way on `given`, TURNS times, after all have done `small`."""
    for do in ways.values():
        do(small)
    return {who: [record.seconds(partial(do, given)) for _ in range(TURNS)]
            for who, do in ways.items()}  # fmt: skip


def official(given: Work, small: Work) -> list[Row]:
    """Return the seconds of our default attack and of the literal form on one thread, and on all."""

    def single(w: Work) -> float:
        with artifacts.single_thread():  # as the published loader sets it (R4)
            return theirs(w, literal.BATCH)

    ways = {
        US: lambda w: ours(w, literal.BATCH, answers=1),
        "literal": single,
        "literal, all threads": lambda w: theirs(w, literal.BATCH),
    }
    return [record.row("attack", "official attack", who, "s", taken)
            for who, taken in timed(ways, given, small).items()]  # fmt: skip


def compared(given: Work, small: Work, batch: int, name: str) -> list[Row]:
    """Return the seconds of ours with new views, ours with VIEWS of them, and the literal form."""
    views = f"{VIEWS} views"
    ways = {
        US: lambda w: ours(w, batch),
        views: lambda w: ours(w, batch, VIEWS),
        "literal": lambda w: theirs(w, batch),
    }
    taken = timed(ways, given, small)
    return [
        record.row("attack", f"whole attack{name}", US, "s", taken[US]),
        record.row("attack", f"whole attack{name}", "literal", "s", taken["literal"]),
        record.row("attack", f"{VIEWS}-view attack{name}", US, "s", taken[views]),
        record.row("attack", f"{VIEWS}-view attack{name}", "literal", "s", taken["literal"]),
    ]


def measure(tiny: bool) -> list[Row]:
    """Return the rows of whole attacks, and what a second attack on the same queries adds."""
    small = work(160, 1, 64)
    given = work(160, 2, 64) if tiny else work(1024, EPOCHS, 1500)
    rows = official(small if tiny else work(*OFFICIAL), small)
    rows += [r for name, batch in BATCHES.items() for r in compared(given, small, batch, name)]
    added = second(small, literal.BATCH)
    rows.append(record.row("attack", "same queries, second attack", US, "forwards", [added]))
    if tiny or torch.cuda.is_available():
        rows.append(large(*(TINY if tiny else GPU)))
    return rows


def large(queries: int, epochs: int, batch: int, probe: int, encoder: str) -> Row:
    """Return the seconds of our attack at a GPU's size, evaluation included."""
    given = work(queries, epochs, probe, encoder, 1.0)
    small = given._replace(epochs=2)
    taken = timed({US: lambda w: ours(w, batch, answers=1)}, given, small)
    return record.row("attack", f"{queries:,} queries x {epochs} epochs", US, "s", taken[US])
