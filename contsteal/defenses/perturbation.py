"""Defences that change each answer by itself: scaling, noise, rounding, truncation, poisoning."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal import Count, NotNegative
from contsteal.defenses.state import Answered, Described, PerUser, fresh_draws
from contsteal.seeds import generator
from contsteal.victim import finite

__all__ = ["GaussianNoise", "Normalise", "PredictionPoisoning", "Rounding", "TopK"]


class Normalise(Described):
    """Scale each answer (N, D) to length 1, which hides its norm.

    Example:
        >>> Normalise()(torch.tensor([[3.0, 4.0]]), "user")
        tensor([[0.6000, 0.8000]])
    """

    title = "normalised"

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        return F.normalize(finite(answers), dim=1)


@dataclass(repr=False, eq=False)
class GaussianNoise(PerUser[Answered]):
    """Add N(mean, std^2) to every coordinate of every answer (Dziedzic et al., ICML 2022, A.2).

    The draws depend on `seed`, the user and how often the user was answered: a run repeats exactly,
    and a repeated query gets fresh noise.

    Raises:
        ValueError: for a negative std, and parameters that are no finite numbers.

    Example:
        >>> GaussianNoise(std=0.0, mean=10.0)(torch.tensor([[1.0, 2.0]]), "user")
        tensor([[11., 12.]])
    """

    title, optional, record = "noise", ("mean", "seed"), Answered
    std: NotNegative  #: standard deviation, in the units of the answers
    mean: float = 0.0  #: offset, in the units of the answers
    seed: int = 0  #: of the draws

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        record, answers = self._of(user), finite(answers)
        draws = fresh_draws(record, "noise", self.seed, user)
        noise = torch.randn(answers.shape, generator=draws).to(answers)
        return answers + self.mean + self.std * noise


@dataclass(repr=False, eq=False)
class Rounding(Described):
    """Round every coordinate to `decimals` places, from -6 (millions) to 12.

    Raises:
        ValueError: for other numbers of places.

    Example:
        >>> Rounding(1)(torch.tensor([[0.123, 0.987]]), "user")
        tensor([[0.1000, 1.0000]])
    """

    positional = ("decimals",)
    decimals: Annotated[int, ("least", -6), ("most", 12)]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.title = "rounding to {decimals} decimal" + "s" * (self.decimals != 1)

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        return finite(answers).round(decimals=self.decimals)


@dataclass(repr=False, eq=False)
class TopK(Described):
    """Keep the `k` largest coordinates of each answer, at most all, and set the others to 0.

    Raises:
        ValueError: for k below 1, and on answers with fewer coordinates than k.

    Example:
        >>> TopK(1)(torch.tensor([[1.0, 3.0, 2.0]]), "user")
        tensor([[0., 3., 0.]])
    """

    title, positional = "top {k}", ("k",)
    k: Count

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        if self.k > finite(answers).shape[1]:
            raise ValueError(f"TopK k={self.k}: answers have {answers.shape[1]} coordinates")
        kept = answers.topk(self.k, dim=1)
        return torch.zeros_like(answers).scatter(1, kept.indices, kept.values)


@dataclass(repr=False, eq=False)
class PredictionPoisoning(PerUser[Answered]):
    """Turn a surrogate's gradient as far as ||y~ - y|| <= `eps` allows (Orekondy et al., ICLR 2020).

    Under MSE the last layer W h of a surrogate F has the gradients (F - y) h^T and (F - y~) h^T: their
    cosine is that of y - F and y~ - F for every h. With r = ||y - F|| it is least, sqrt(1 - (eps/r)^2),
    where the line from F touches the ball around y: y~ = y + eps (-sin(t) v + cos(t) u), sin(t) = eps/r,
    v along y - F, u across it in a direction drawn anew for each answer. From eps = r on, the gradient
    is reversed. F is one random point: the defence does not see the thief's surrogate, and an encoder
    of random weights answers almost the same to every input.

    Made for classifiers, where y~ keeps the largest class and customers lose nothing. Embeddings have
    none, and a contrastive surrogate sees angles, not y - F (Dziedzic et al., ICML 2022, E.1).

    Raises:
        ValueError: for a negative eps or scale.

    Example:
        >>> answers = torch.eye(4)
        >>> moved = PredictionPoisoning(eps=0.5)(answers, "user")
        >>> (moved - answers).norm(dim=1)
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    title, optional, record = "prediction poisoning", ("scale", "seed"), Answered
    eps: NotNegative  #: L2 distance that each answer is moved by, in the units of the answers
    scale: NotNegative = 1.0  #: F is drawn from `scale` N(0, I/D)
    seed: int = 0  #: of F and of the directions

    def surrogate(self, dim: int) -> Tensor:
        """Return F (D,), the random surrogate's answer to every input."""
        draws = generator("poisoning", self.seed)
        return self.scale * torch.randn(dim, generator=draws) / math.sqrt(dim)

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        record, answers = self._of(user), finite(answers)
        away = answers - self.surrogate(answers.shape[1]).to(answers)  # (N, D)
        draws = fresh_draws(record, "poisoning", self.seed, user)
        along = F.normalize(away, dim=1)
        across = torch.randn(answers.shape, generator=draws).to(answers)
        across = F.normalize(across - (across * along).sum(1, keepdim=True) * along, dim=1)
        sine = (self.eps / away.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1)  # (N, 1)
        return answers + self.eps * ((1 - sine.square()).sqrt() * across - sine * along)
