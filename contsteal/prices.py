"""What defending costs the provider: time on each answer, and memory per user."""

import copy
import time
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from contsteal import encoders
from contsteal.provider import Chain, name
from contsteal.remember import PerUser


def price(
    net: encoders.Encoder,
    chains: Sequence[Chain],
    images: Tensor,
    batch: int = 256,
    rounds: int = 5,
) -> pd.DataFrame:
    """Return what defending a victim costs: the median time of 1,000 answers, and memory per user.

    `seconds` are the victim's and the chain's for requests of `batch` images, on this machine;
    `added` is the chain's share of the victim's. `bytes, half` is a user's state after half of the
    images, `bytes` after all: equal where memory does not grow with queries.
    """
    answered = encoders.embed(net, images).split(batch)
    parts = images.split(batch)
    alone = _median(lambda: [encoders.embed(net, part) for part in parts], rounds)
    rows = []
    for chain in chains:
        own = copy.deepcopy(list(chain))
        spent = _median(lambda own=own: [_through(own, part) for part in answered], rounds)
        half, whole = (_bytes(chain, answered[:k]) for k in (len(parts) // 2, len(parts)))
        rows.append({"defence": name(chain), "seconds": 1000 * (alone + spent) / len(images),
                     "added": spent / alone, "bytes, half": half, "bytes": whole})  # fmt: skip
    return pd.DataFrame(rows).set_index("defence")


def _through(chain: Chain, answers: Tensor) -> Tensor:
    for defense in chain:
        answers = defense(answers, "customer")
    return answers


def _median(do: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of doing something, on a GPU until it is done."""
    do()  # warm: secrets are drawn, memory is there
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        do()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[rounds // 2]


def _bytes(chain: Chain, parts: Sequence[Tensor]) -> int:
    """Return the size of what a chain remembers of one user who was given these answers."""
    own = copy.deepcopy(list(chain))
    for part in parts:
        _through(own, part)
    return sum(defense.size("customer") for defense in own if isinstance(defense, PerUser))
