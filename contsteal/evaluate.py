"""What an encoder's features are worth: probes and similarities on cached features.

Every function takes features (N, D) of a frozen encoder; none of them runs a network.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal import Count, Positive, Seed, dense, fitting, number, shown
from contsteal.seeds import generator

MOST_CLASSES = 2**20  # a larger label is no class: a probe has a row of weights for each
LARGEST = 1e15  # norm of a feature: squares of larger ones overflow
L2_GRID = (1e-1, 1e-2, 1e-3, 1e-4)
STEPS = 100  # of L-BFGS at most; half as many where a fit only helps to choose the penalty


def features(x: Tensor, rows: int = 1) -> Tensor:
    """Return features (N, D), N at least `rows`, in at least 32 bits and without gradients.

    Raises ValueError for what is not finite.
    """
    if not dense(x) or not x.is_floating_point() or x.ndim != 2 or len(x) < rows or not x.shape[1]:
        raise ValueError(f"features {shown(x)}: floats (N, D) are needed, in at least {rows} rows")
    if not (fine := x.norm(dim=1) < LARGEST).all():  # also refuses NaN
        first = (~fine).nonzero()[:5, 0].tolist()
        raise ValueError(f"features hold NaN, infinity or above {LARGEST:g}, first in rows {first}")
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))  # of float16, 0 / 0 is near


def classes(labels: Any, n: int, count: int = MOST_CLASSES) -> Tensor:
    """Return labels (n,) as int64; ValueError for all but whole numbers from 0 to `count` - 1."""
    if not dense(labels) or labels.is_floating_point() or labels.shape != (n,):
        raise ValueError(f"labels {shown(labels)}: whole numbers ({n},) are needed, one per image")
    labels = labels.long()
    if len(bad := ((labels < 0) | (labels >= count)).nonzero()):
        row = int(bad[0, 0])
        span = f"labels of {count} classes are 0 to {count - 1}"
        raise ValueError(f"label {int(labels[row])} of image {row}: {span}")
    return labels


def _task(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Return a task's features and labels, checked, and its number of classes."""
    train_x, test_x = features(train_x, rows), features(test_x)
    if (train_x.shape[1], train_x.dtype) != (test_x.shape[1], test_x.dtype):
        both = f"training features {shown(train_x)} and test features {shown(test_x)}"
        raise ValueError(f"{both}: both must come from one encoder")
    train_y, test_y = classes(train_y, len(train_x)), classes(test_y, len(test_x))
    if not torch.isin(test_y, train_y).any():
        raise ValueError("no label of the test set occurs in training: number classes alike")
    return train_x, train_y, test_x, test_y, int(max(train_y.max(), test_y.max())) + 1


@dataclass(frozen=True)
class Linear:
    """A linear classifier on standardised features: logits = W ((x - mean) / scale) + b, W (C, D)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (N, C) of features (N, D)."""
        return F.linear((x - self.mean) / self.scale, self.weight, self.bias)


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        accuracy: on all test features, from 0 to 1.
        predictions: test classes (M,).
        head: the linear classifier; None of `knn`.
        l2: the penalty that was chosen; None of `knn`.
    """

    accuracy: float
    predictions: Tensor
    head: Linear | None = None
    l2: float | None = None


def _logistic(
    x: Tensor, y: Tensor, classes: int, l2: float, start: Linear | None = None, steps: int = STEPS
) -> Linear:
    """Minimise mean CE + (l2 / 2) |W|^2 over a linear classifier by L-BFGS, from `start` or from 0."""
    mean, scale = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    z = (x - mean) / scale
    first = start or Linear(x.new_zeros(classes, x.shape[1]), x.new_zeros(classes), mean, scale)
    # (C, D) as in nn.Linear: with few classes z @ W takes several times as long on a CPU.
    weight = first.weight.clone().requires_grad_()
    bias = first.bias.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=1e-4,
    )  # fmt: skip

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(z, weight, bias), y) + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return Linear(weight.detach(), bias.detach(), mean, scale)


def linear_probe(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, seed: int = 0
) -> Probe:
    """Fit multinomial logistic regression on training features and score it on all test features.

    The L2 penalty is chosen on a held-out fifth of the *training* features, then the probe is fitted on
    all of them in at most 100 L-BFGS iterations, from the chosen fit.

    Args:
        train_x, test_x: features of one encoder, (N, D) and (M, D) float32.
        train_y, test_y: labels, (N,) and (M,) int64.
        seed: of the held-out fifth.

    Returns:
        The probe, with its accuracy from 0 to 1 and its predictions (M,).

    Raises:
        ValueError: for shapes that do not fit, NaN, or fewer than five training features.

    Example:
        >>> x, y = torch.eye(2).repeat(10, 1), torch.arange(2).repeat(10)
        >>> linear_probe(x, y, x, y).accuracy
        1.0
    """
    train_x, train_y, test_x, test_y, count = _task(train_x, train_y, test_x, test_y, 5)
    seed = fitting(seed, "seed", Seed)
    order = torch.randperm(len(train_x), generator=generator("probe", seed)).to(train_x.device)
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    scores: list[float] = []
    heads: list[Linear] = []
    for l2 in L2_GRID:  # from the strongest penalty down: each fit starts where the last one ended
        start = heads[-1] if heads else None
        heads.append(_logistic(train_x[kept], train_y[kept], count, l2, start, STEPS // 2))
        scores.append(_accuracy(heads[-1](train_x[held]).argmax(1), train_y[held]))
    best = max(range(len(L2_GRID)), key=scores.__getitem__)
    head = _logistic(train_x, train_y, count, L2_GRID[best], heads[best])
    predictions = head(test_x).argmax(1)
    return Probe(_accuracy(predictions, test_y), predictions, head, L2_GRID[best])


def _accuracy(predictions: Tensor, labels: Tensor) -> float:
    return (predictions == labels).double().mean().item()


def knn(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.1,
) -> Probe:
    """Classify by the weighted vote of the k nearest neighbours (Wu et al., CVPR 2018).

    A neighbour's weight is e^{cos / temperature}, as in MoCo's and lightly's monitors.

    Args:
        train_x, test_x: features of one encoder, (N, D) and (M, D).
        train_y, test_y: labels, (N,) and (M,).
        k: neighbours that vote, at most the training set.
        temperature: below 1, near neighbours count more.

    Returns:
        The accuracy from 0 to 1 and the predictions (M,).

    Raises:
        ValueError: for shapes that do not fit, NaN, k below 1 or a temperature of 0 or below.

    Example:
        >>> x, y = torch.eye(2).repeat(10, 1), torch.arange(2).repeat(10)
        >>> knn(x, y, torch.tensor([[0.1, 2.0]]), torch.tensor([1]), k=5).predictions
        tensor([1])
    """
    train_x, train_y, test_x, test_y, count = _task(train_x, train_y, test_x, test_y, 1)
    temperature = fitting(temperature, "temperature", Positive)
    k = min(fitting(k, "k", Count), len(train_x))
    bank = F.normalize(train_x, dim=1)
    predictions = []
    for part in F.normalize(test_x, dim=1).split(2048):
        near, index = (part @ bank.T).topk(k, dim=1, sorted=False)  # (B, k), in any order
        votes = part.new_zeros(len(part), count)
        votes.scatter_add_(1, train_y[index], ((near - 1) / temperature).exp())
        predictions.append(votes.argmax(1))
    predicted = torch.cat(predictions)
    return Probe(_accuracy(predicted, test_y), predicted)


def nearest(x: Tensor, row: int, count: int) -> Tensor:
    """Return the rows (count,) of the features nearest to `row` by cosine, itself first.

    Args:
        x: features (N, D).
        row: whose neighbours are asked for.
        count: how many, itself included.

    Returns:
        Rows, int64 (count,).

    Raises:
        ValueError: for a row or count outside N, or NaN.

    Example:
        >>> nearest(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]), row=0, count=2)
        tensor([0, 2])
    """
    unit = F.normalize(features(x), dim=1)
    row = number(row, "row", int, least=0, most=len(x) - 1)
    return (unit @ unit[row]).topk(number(count, "count", int, least=1, most=len(x))).indices


def agreement(predictions_a: Tensor, predictions_b: Tensor) -> float:
    """Return the share of inputs on which two classifiers predict the same class.

    Args:
        predictions_a, predictions_b: classes of the same inputs, (N,) each.

    Returns:
        The share, from 0 to 1.

    Raises:
        ValueError: where the numbers of predictions differ, or there are none.

    Example:
        >>> agreement(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0]))
        0.75
    """
    a, b = (tuple(getattr(p, "shape", ())) for p in (predictions_a, predictions_b))
    if a != b or len(a) != 1 or not a[0]:
        raise ValueError(f"{a} and {b} predictions: the same number is needed, at least one")
    return _accuracy(predictions_a, predictions_b)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return linear centred kernel alignment, |Y'X|_F^2 / (|X'X|_F |Y'Y|_F), in [0, 1].

    Kornblith et al. (ICML 2019), eq. 6; invariant to rotations and to a common scale.

    Args:
        x, y: features of the same N inputs, (N, D) and (N, E).

    Returns:
        The similarity, 1 for features that differ by a rotation.

    Raises:
        ValueError: where the numbers of rows differ or are below two, or for NaN.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
        >>> round(linear_cka(x, 3 * x.flip(1)), 6)
        1.0
    """
    x, y = _same_rows(features(x, 2), features(y, 2))
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    cross = (y.T @ x).square().sum()
    return (cross / ((x.T @ x).norm() * (y.T @ y).norm()).clamp(min=1e-300)).item()


def _same_rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if len(x) != len(y):
        raise ValueError(f"features {shown(x)} and {shown(y)}: the same N rows are needed")
    return x, y


def mean_cosine(x: Tensor, y: Tensor) -> float:
    """Return the mean cosine of matching rows.

    Args:
        x, y: features of the same images, (N, D) each.

    Returns:
        From -1 to 1; NaN where the dimensions differ.

    Raises:
        ValueError: for different numbers of rows, or NaN.

    Example:
        >>> mean_cosine(torch.eye(2), 3 * torch.eye(2))
        1.0
    """
    x, y = _same_rows(features(x), features(y))
    return F.cosine_similarity(x, y).mean().item() if x.shape == y.shape else float("nan")


def spread(x: Tensor) -> float:
    """Return the mean standard deviation per dimension of normalised embeddings, times sqrt(D).

    About 1 for directions spread evenly over the sphere, 0 for a collapsed encoder (SimSiam, sec. 4.1).

    Args:
        x: embeddings (N, D).

    Returns:
        From 0 to about 1.

    Raises:
        ValueError: for fewer than two rows, or NaN.

    Example:
        >>> spread(torch.ones(8, 4))
        0.0
    """
    x = features(x, 2)
    return (F.normalize(x, dim=1).std(0).mean() * x.shape[1] ** 0.5).item()


def geometry(x: Tensor) -> dict[str, float]:
    """Describe how embeddings (N, D) lie in their space.

    Args:
        x: embeddings (N, D).

    Returns:
        `norm_spread`: the norms' standard deviation over their mean. `anisotropy`: the mean cosine of
        two different rows, 0 where directions are spread evenly, 1 in a narrow cone. `effective_rank`:
        exp of the entropy of the covariance's eigenvalues (Roy & Vetterli, EUSIPCO 2007), from 1 to D.

    Raises:
        ValueError: for fewer than two rows, NaN, or zeros alone.

    Example:
        >>> x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
        >>> geometry(x)["effective_rank"] > 7
        True
    """
    x, n = features(x, 2).double(), len(x)
    if not x.any():
        raise ValueError(f"features {tuple(x.shape)} are all 0: they have no geometry")
    norms, total = x.norm(dim=1), F.normalize(x, dim=1).sum(0)
    values = torch.linalg.eigvalsh(torch.cov(x.T).reshape(x.shape[1], -1)).clamp(min=0)
    share = values / values.sum().clamp(min=1e-300)
    return {
        "norm_spread": (norms.std() / norms.mean()).item(),
        "anisotropy": ((total.square().sum() - n) / (n * (n - 1))).item(),
        "effective_rank": torch.special.entr(share).sum().exp().item(),
    }


def mean_interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of a few runs and its t-interval.

    Args:
        values: one per run.
        level: of confidence, between 0 and 1.

    Returns:
        Mean, lower and upper bound; the bounds are NaN for one run.

    Raises:
        ValueError: for no value, and for a level that is not between 0 and 1.

    Example:
        >>> print("{:.1f} [{:.1f}, {:.1f}]".format(*mean_interval([70, 72, 74])))
        72.0 [67.0, 77.0]
    """
    level = number(level, "level", above=0, below=1)
    sample = torch.tensor(list(values), dtype=torch.float64)
    if not len(sample):
        raise ValueError("an interval needs at least one value")
    if not sample.isfinite().all():
        raise ValueError(f"values {sample.tolist()}: an interval needs finite ones")
    mean = sample.mean().item()
    if len(sample) < 2:
        return mean, float("nan"), float("nan")
    from scipy.special import stdtrit  # the t quantile; scipy.stats takes a second to import

    half = stdtrit(len(sample) - 1, (1 + level) / 2) * sample.std().item() / len(sample) ** 0.5
    return mean, mean - half, mean + half
