"""The linear probe's fit against scikit-learn's, on the same features with the same penalties tried."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks import record
from benchmarks.record import US, Row
from contsteal import data, encoders, evaluate
from contsteal.lab import artifacts


def features(n: int, size: int) -> tuple[Tensor, Tensor]:
    """Return features (2 n, D) of an untrained ResNet on `shapes`, and labels: n to fit, n to test."""
    net = encoders.build("resnet10t", size, width=0.5, seed=0).to(artifacts.device()).eval()
    images = data.load("shapes", n=2 * n).to(artifacts.device())
    return encoders.embed(net, images.images), images.labels


def peer(x: np.ndarray, y: np.ndarray) -> float:
    """Choose the penalty on a held-out fifth, fit on all, and score on the second half: as ours does."""
    n = len(x) // 2
    scaler = StandardScaler().fit(x[:n])
    train, test, labels = scaler.transform(x[:n]), scaler.transform(x[n:]), y[:n]
    kept = n - n // 5
    models = {}
    for l2 in evaluate.L2_GRID:
        models[l2] = _model(l2, kept, evaluate.STEPS // 2).fit(train[:kept], labels[:kept])
    scores = {l2: m.score(train[kept:], labels[kept:]) for l2, m in models.items()}
    best = max(scores, key=scores.__getitem__)
    return _model(best, n, evaluate.STEPS).fit(train, labels).score(test, y[n:])


def _model(l2: float, n: int, steps: int) -> LogisticRegression:
    """Return the same objective in scikit-learn's terms: C = 1 / (n l2) where the loss is a mean."""
    return LogisticRegression(C=1 / (n * l2), max_iter=steps, tol=1e-4)


def measure(tiny: bool) -> list[Row]:
    """Return seconds of choosing the penalty, fitting and scoring; and the accuracies they reach."""
    x, y = features(64 if tiny else 2048, 32)
    n = len(x) // 2
    own_x, own_y = x.float().cpu().numpy(), y.cpu().numpy()

    def ours() -> float:
        return evaluate.linear_probe(x[:n], y[:n], x[n:], y[n:]).accuracy

    def theirs() -> float:
        with warnings.catch_warnings():  # neither side iterates to the end
            warnings.simplefilter("ignore", ConvergenceWarning)
            return peer(own_x, own_y)

    ways = {US: ours, "scikit-learn": theirs}
    rows = record.compare("probe", "fit", ways, 1, "s", turns=1 if tiny else 5)
    return rows + [
        record.row("probe", "accuracy reached", who, "share", [do()]) for who, do in ways.items()
    ]
