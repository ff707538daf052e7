"""Each user gets an embedding space of their own, so that accounts cannot be put together (B4B)."""

from functools import lru_cache

import torch
from torch import Tensor

from contsteal.remember import finite, named, whole
from contsteal.seeds import generator

MOST_PADDING = 2**16  # coordinates; with more, padding is most of what is sent
KINDS = ("affine", "scale", "pad", "shuffle", "binary")


def kinds(text: str) -> tuple[str, ...]:
    """Return the steps of "affine+pad+shuffle", none of "none"; ValueError lists the known ones."""
    steps = () if text == "none" else tuple(str(text).split("+"))
    if unknown := [step for step in steps if step not in KINDS]:
        raise ValueError(
            f"unknown transformation {unknown[0]!r} in {text!r}: join some of {', '.join(KINDS)} "
            "by '+', or say 'none'"
        )
    return steps


# Secrets follow from seed and user, so nothing of them is stored. A dense one takes longer to draw
# than to use: those of the last users are kept, at most 32 MB at 512 dimensions.
@lru_cache(maxsize=32)
def _secrets(
    kind: str, seed: int, user: str, step: int, dim: int, extra: int, device: torch.device
) -> tuple[Tensor, ...]:
    draws = generator("disguise", seed, user, step, kind)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draws) * 2 - 1

    if kind == "affine":  # sqrt(3 / D): lengths stay, on average, what they were
        made = (uniform(dim, dim) * (3 / dim) ** 0.5, uniform(dim))
    elif kind == "scale":
        made = (uniform(dim), uniform(dim))
    elif kind == "pad":
        made = (torch.randn(extra, generator=draws),)
    elif kind == "shuffle":
        made = (torch.randperm(dim, generator=draws),)
    else:
        planes = torch.randn(dim, dim, generator=draws)
        made = (planes, (torch.rand(dim, dim, generator=draws) * planes).sum(0))
    return tuple(secret.to(device) for secret in made)


def _step(answers: Tensor, kind: str, secrets: tuple[Tensor, ...]) -> Tensor:
    if kind == "affine":
        return answers @ secrets[0].to(answers) + secrets[1].to(answers)
    if kind == "scale":
        return answers * secrets[0].to(answers) + secrets[1].to(answers)
    if kind == "pad":
        return torch.cat([answers, secrets[0].to(answers).expand(len(answers), -1)], 1)
    if kind == "shuffle":
        return answers[:, secrets[0]]
    return (answers @ secrets[0].to(answers) > secrets[1].to(answers)).to(answers.dtype)


def disguise(answers: Tensor, steps: tuple[str, ...], seed: int, user: str, extra: int) -> Tensor:
    """Return answers (N, D) in the space of one user, (N, D + `extra`) after "pad", in order.

    Equal seed, user and step, equal secret. The published code's dense and elementwise "affine" are
    "affine" and "scale" here.
    """
    for place, kind in enumerate(steps):
        key = (kind, seed, user, place, answers.shape[1], extra, answers.device)
        answers = _step(answers, kind, _secrets(*key))
    return answers


class UserTransform:
    """Map each user's answers by a secret map of that user (B4B, NeurIPS 2023, section 4).

    `transform` joins steps by "+": "affine" is yA + b with dense A, entries U(-1, 1) times sqrt(3/D),
    a factor that the code lacks, and b, the paper's "add", from U(-1, 1); "scale" the same elementwise;
    "pad" appends `padding` constants from N(0, 1), so D grows; "shuffle" permutes the coordinates;
    "binary" gives D bits, each the side of a random plane through a random point of [0, 1]^D, as the
    code does. Nothing is stored: a secret follows from `seed` and user. ValueError: an unknown step, or
    padding below 1 or above 2^16.
    """

    def __init__(self, transform: str = "affine", padding: int = 64, seed: int = 0) -> None:
        self._steps = kinds(transform)
        self.transform, self.seed = transform, whole(seed, "UserTransform seed")
        self.padding = whole(padding, "UserTransform padding", 1, MOST_PADDING)

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        return disguise(finite(answers), self._steps, self.seed, named(user), self.padding)

    def __repr__(self) -> str:
        told = [repr(self.transform)]
        told += [f"padding={self.padding}"] * ("pad" in self._steps)
        return f"UserTransform({', '.join(told + [f'seed={self.seed}'] * bool(self.seed))})"
