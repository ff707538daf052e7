"""What a provider does to answers before they leave, per user and in order.

A defence maps answers (N, D) of one user to those that leave, of the same shape but for padding.
Defences compose by being listed: `[Normalise(), Rounding(1)]` rounds unit vectors. What one remembers
of its users outlives a restart by `state_dict` and `load_state_dict`.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal.b4b import B4B
from contsteal.detection import SimilarQueries
from contsteal.disguise import UserTransform
from contsteal.poisoning import PredictionPoisoning
from contsteal.prada import Prada
from contsteal.remember import Answered, PerUser, finite, real, whole
from contsteal.seeds import generator
from contsteal.work import ProofOfWork


class Defense(Protocol):
    """Anything that maps one user's answers (N, D) to the answers that leave."""

    def __call__(self, answers: Tensor, user: str) -> Tensor: ...


class Normalise:
    """Scale each answer to length 1, which removes what its norm tells."""

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        return F.normalize(finite(answers), dim=1)

    def __repr__(self) -> str:
        return "Normalise()"


class GaussianNoise(PerUser[Answered]):
    """Add N(mean, std^2) to every coordinate, drawn anew for every answer (Dziedzic et al., A.2).

    `std` and `mean` are in the units of the answer. The draws depend on `seed`, the user and how
    often the user was answered, so a run repeats exactly while repeated queries get fresh noise. That
    count is all that is kept of a user.
    """

    record = Answered

    def __init__(self, std: float, mean: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.std, self.mean = real(std, "GaussianNoise std"), real(mean, "GaussianNoise mean")
        self.seed = whole(seed, "GaussianNoise seed")
        if not 0 <= self.std < math.inf or not math.isfinite(self.mean):
            raise ValueError(f"GaussianNoise std={std}, mean={mean}: finite, and std 0 or above")

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        mine, answers = self._of(user), finite(answers)
        draws = generator("noise", self.seed, user, mine.calls)
        mine.calls += 1
        noise = torch.randn(answers.shape, generator=draws).to(answers)
        return answers + self.mean + self.std * noise

    def __repr__(self) -> str:
        told = [f"std={self.std!r}"] + [f"mean={self.mean!r}"] * bool(self.mean)
        return f"GaussianNoise({', '.join(told + [f'seed={self.seed}'] * bool(self.seed))})"


class Rounding:
    """Round every coordinate to `decimals` decimal places; negative ones round to tens and more."""

    def __init__(self, decimals: int) -> None:
        self.decimals = whole(decimals, "Rounding decimals", -6, 12)

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        return finite(answers).round(decimals=self.decimals)

    def __repr__(self) -> str:
        return f"Rounding({self.decimals})"


class TopK:
    """Keep the `k` largest coordinates of each answer and set the others to 0."""

    def __init__(self, k: int) -> None:
        self.k = whole(k, "TopK k", 1)

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        if self.k > finite(answers).shape[1]:
            raise ValueError(f"TopK k={self.k}: answers have {answers.shape[1]} coordinates only")
        kept = answers.topk(self.k, dim=1)
        return torch.zeros_like(answers).scatter(1, kept.indices, kept.values)

    def __repr__(self) -> str:
        return f"TopK({self.k})"


DEFENSES = {
    "normalise": Normalise,
    "gaussian-noise": GaussianNoise,
    "rounding": Rounding,
    "top-k": TopK,
    "user-transform": UserTransform,
    "b4b": B4B,
    "similar-queries": SimilarQueries,
    "prada": Prada,
    "proof-of-work": ProofOfWork,
    "prediction-poisoning": PredictionPoisoning,
}


def build(name: str, **options: object) -> Defense:
    """Build a defence by name; ValueError lists the known ones."""
    if not isinstance(name, str) or name not in DEFENSES:
        raise ValueError(f"unknown defence {name!r}: choose one of {', '.join(DEFENSES)}")
    try:
        return DEFENSES[name](**options)
    except TypeError as error:
        raise ValueError(f"defence {name!r} does not take {options}: {error}") from error
