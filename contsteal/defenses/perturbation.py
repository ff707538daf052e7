"""Prediction poisoning: answers bent so that a thief's gradient points elsewhere."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal.defenses.state import Answered, PerUser, real, whole
from contsteal.seeds import generator
from contsteal.victim import finite


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


class PredictionPoisoning(PerUser[Answered]):
    """Turn a random surrogate's gradient as far as ||y~ - y|| <= `eps` allows (Orekondy et al., 2020).

    Under MSE the last layer W h of a surrogate F has the gradients (F - y) h^T and (F - y~) h^T: their
    cosine is that of y - F and y~ - F whatever h is. With r = ||y - F|| it is least, sqrt(1 - (eps/r)^2),
    where the line from F touches the ball around y: y~ = y + eps (-sin(t) v + cos(t) u), sin(t) = eps/r,
    v along y - F, u any direction across, drawn anew for each answer; from eps = r on, y~ lies behind F
    and the gradient is reversed. F is one point, `scale` N(0, I/D): a surrogate of random weights
    answers almost the same to every input, and a defence sees none.

    Why this does not carry over from classifiers (Dziedzic et al., E.1, who ran no experiment). There,
    y~ stays on the simplex with its largest class, so customers lose nothing; an embedding has neither,
    and each customer's task, unknown here, loses what y~ moves. And the thief's loss is unknown: a
    contrastive one sees angles among answers, not y - F; with F far from the trained surrogate, u
    averages out over repeated answers and what is left is a small pull towards F.

    Memory per user: one number. Errors: ValueError for bad parameters and answers with NaN.
    """

    record = Answered

    def __init__(self, eps: float, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.eps = real(eps, "PredictionPoisoning eps")
        self.scale = real(scale, "PredictionPoisoning scale")
        self.seed = whole(seed, "PredictionPoisoning seed")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"PredictionPoisoning eps={eps}: 0 or above and finite is needed")
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"PredictionPoisoning scale={scale}: 0 or above and finite is needed")

    def surrogate(self, dim: int) -> Tensor:
        """Return the random surrogate's answer (D,) to any input."""
        draws = generator("poisoning", self.seed)
        return self.scale * torch.randn(dim, generator=draws) / math.sqrt(dim)

    def __call__(self, answers: Tensor, user: str) -> Tensor:
        mine, away = self._of(user), finite(answers) - self.surrogate(answers.shape[1]).to(answers)
        draws = generator("poisoning", self.seed, user, mine.calls)
        mine.calls += 1
        along = F.normalize(away, dim=1)
        across = torch.randn(answers.shape, generator=draws).to(answers)
        across = F.normalize(across - (across * along).sum(1, keepdim=True) * along, dim=1)
        sine = (self.eps / away.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
        return answers + self.eps * ((1 - sine.square()).sqrt() * across - sine * along)

    def __repr__(self) -> str:
        told = [f"eps={self.eps!r}", f"scale={self.scale!r}"]
        return f"PredictionPoisoning({', '.join(told + [f'seed={self.seed}'] * bool(self.seed))})"
