"""Whether the fast ways change what is measured: accuracy after each, against the slow way, by seed.

Fast is what the package does: bf16 where the hardware computes in it, answers asked once, views of a
whole batch at once. Slow is float32, asking the victim's network again in every epoch, and torchvision
on one image at a time in float. A compiled step is compared with the eager one where a compiler exists.
A row is the mean difference in points of accuracy, fast minus slow, and its
95 % t-interval over seeds; three seeds bound it loosely. Cached answers must give equal weights.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.record import US, Row, forced
from contsteal import (
    augment,
    data,
    encoders,
    evaluate,
    loop,
    pretrain,
    steal,
)
from contsteal.lab import artifacts
from contsteal.victim import AnswerCache, BlackBox

SEEDS, QUERIES, EPOCHS, PROBE = 3, 512, 10, 1500
SIMCLR = v2.Compose([
    v2.RandomResizedCrop(32, scale=(0.2, 1.0)), v2.RandomHorizontalFlip(),
    v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), v2.RandomGrayscale(0.2),
])  # fmt: skip


class Forgetful(AnswerCache):
    """A victim that runs its network for every answer, also where it gave the same one before."""

    def __call__(self, images: Tensor, names: object) -> Tensor:
        self.forwards += len(images)
        return encoders.embed(self.net, images)


def one_by_one(images: Tensor, g: torch.Generator) -> Tensor:
    """Return SimCLR's views from torchvision, one float image at a time."""
    seed = int(torch.randint(2**62, (1,), generator=g))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return torch.stack([SIMCLR(image) for image in augment.to_float(images)])


def image_by_image() -> AbstractContextManager:
    """Augment one image at a time."""
    return patch.dict(augment.POLICIES, simclr=one_by_one)


@dataclass(frozen=True)
class Setting:
    """What is stolen by whom, and the labelled images that tell how good the surrogate is."""

    victim: encoders.Encoder
    queries: Tensor
    train: data.ImageSet
    test: data.ImageSet
    config: steal.Config

    def run(
        self,
        seed: int,
        way: Callable[[], AbstractContextManager] = nullcontext,
        again: bool = False,
    ) -> tuple[float, encoders.Encoder]:
        """Steal in a way and return accuracy in points and the surrogate; `again` asks every epoch."""
        config = replace(self.config, seed=seed, answers=0 if again else 1)
        victim = Forgetful(self.victim) if again else self.victim
        with way():
            trained = steal.train(config, BlackBox(victim), self.queries).encoder
        train, test = (encoders.embed(trained, part.images) for part in (self.train, self.test))
        probe = evaluate.linear_probe(train, self.train.labels, test, self.test.labels)
        return 100 * probe.accuracy, trained


def setting(tiny: bool) -> Setting:
    """Return a trained victim, and an attack on it with the demo's encoder."""
    device = artifacts.device()
    encoder, width = ("test_resnet", 1.0) if tiny else ("resnet10t", 0.5)
    queries, epochs, probe = (64, 1, 100) if tiny else (QUERIES, EPOCHS, PROBE)
    own = pretrain.Config("supervised", encoder, width=width, epochs=1 if tiny else 5, batch=64,
                          policy="none", lr=3e-3, held_out=0)  # fmt: skip
    victim = pretrain.train(own, data.load("shapes", n=4 * queries).to(device)).to(device)
    asked = (("train", queries, 1), ("train", probe, 2), ("test", probe, 0))
    sets = [data.load("shapes", split, n, seed=seed).to(device) for split, n, seed in asked]
    config = steal.Config("cont-steal-code", views="surrogate", policy="simclr", encoder=encoder,
                          width=width, epochs=epochs, batch=32 if tiny else 64, lr=3e-3)  # fmt: skip
    return Setting(victim, sets[0].images, *sets[1:], config)


def difference(work: str, fast: list[float], slow: list[float]) -> Row:
    """Return the mean paired difference in points with its t-interval as `low` and `high`."""
    mean, low, high = evaluate.mean_interval(a - b for a, b in zip(fast, slow, strict=True))
    return Row("fidelity", work, US, "points", mean, low, high, len(fast))


def differing(one: encoders.Encoder, other: encoders.Encoder) -> int:
    """Return how many weights and statistics of two encoders are not equal bit by bit."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return sum(int((a != b).sum()) for a, b in pairs)


def measure(tiny: bool) -> list[Row]:
    """Return the paired differences of every fast way, and the weights that caching changes."""
    given, seeds = setting(tiny), range(2 if tiny else SEEDS)
    fast, nets = zip(*(given.run(seed) for seed in seeds), strict=True)
    again, others = zip(*(given.run(seed, again=True) for seed in seeds), strict=True)
    unequal = [differing(a, b) for a, b in zip(nets, others, strict=True)]
    rows = [
        difference("answers asked once against every epoch", fast, again),
        Row("fidelity", "weights changed by asking once", US, "weights", max(unequal), min(unequal),
            max(unequal), len(unequal)),
    ]  # fmt: skip
    slow = {"views of a batch against one by one": image_by_image}
    if loop.precision(artifacts.device()) == "bf16":
        slow["bf16 against float32"] = partial(forced, precision="fp32")
    for work, way in slow.items():
        rows.append(difference(work, fast, [given.run(seed, way)[0] for seed in seeds]))
    if tiny or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return rows
    eager, compiled = (
        [given.run(seed, partial(forced, backend=backend))[0] for seed in seeds]
        for backend in ("none", "inductor")
    )
    return [*rows, difference("compile against eager", compiled, eager)]
