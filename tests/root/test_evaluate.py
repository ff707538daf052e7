"""Probes and similarities against scikit-learn, scipy, loops and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from contsteal import evaluate

Task = tuple[Tensor, Tensor, Tensor, Tensor]
seeds = st.integers(0, 2**32 - 1)


def clusters(n: int = 600, d: int = 16, classes: int = 4, noise: float = 1.5) -> Task:
    """Return overlapping clusters of unequal scale: train x, y, test x, y."""
    g = torch.Generator().manual_seed(0)
    centres, scale = torch.randn(classes, d, generator=g), torch.logspace(-2, 2, d)
    y = torch.randint(classes, (n,), generator=g)
    x = (centres[y] + noise * torch.randn(n, d, generator=g)) * scale + 5
    half = n // 2
    return x[:half], y[:half], x[half:], y[half:]


def digits() -> Task:
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return x[:900], y[:900], x[900:], y[900:]


def features(n: int = 40, d: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("task", [clusters, digits])
def test_linear_probe_is_scikit_learns_logistic_regression(task) -> None:
    x, y, test_x, test_y = task()
    probe = evaluate.linear_probe(x, y, test_x, test_y)
    scaler = StandardScaler().fit(x.double().numpy())
    theirs = LogisticRegression(C=1 / (len(x) * probe.l2), max_iter=5000, tol=1e-8)
    theirs.fit(scaler.transform(x.double().numpy()), y.numpy())
    z = scaler.transform(test_x.double().numpy())
    assert probe.accuracy == pytest.approx(theirs.score(z, test_y.numpy()), abs=0.01)
    ours = probe.head(test_x).log_softmax(1).double()
    want = torch.tensor(theirs.predict_log_proba(z))
    assert (ours - want).abs().mean() < 0.02 * want.abs().mean()
    assert (probe.predictions.numpy() == theirs.predict(z)).mean() > 0.99
    assert probe.accuracy == (probe.predictions == test_y).double().mean().item()


@pytest.mark.parametrize("l2", evaluate.L2_GRID)
def test_the_fit_is_at_the_minimum_of_the_stated_objective(l2: float) -> None:
    x, y, _, _ = clusters()
    head = evaluate._logistic(x, y, 4, l2)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    weight, bias = head.weight.double().requires_grad_(), head.bias.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(z @ weight.T + bias, y)
    (loss + l2 / 2 * (weight**2).sum()).backward()
    assert weight.grad.abs().max() < 3e-4
    assert bias.grad.abs().max() < 3e-4


def test_nothing_is_chosen_on_test_data() -> None:
    x, y, test_x, test_y = clusters()
    probe = evaluate.linear_probe(x, y, test_x, test_y)
    for other_x, other_y in ((test_x, 3 - test_y), (test_x[:5] * 100, test_y[:5])):
        again = evaluate.linear_probe(x, y, other_x, other_y)
        assert again.l2 == probe.l2
        assert torch.equal(again.head.weight, probe.head.weight)
        assert torch.equal(again.head.bias, probe.head.bias)
        assert torch.equal(again.head.mean, x.mean(0))


def test_the_penalty_is_chosen_by_held_out_accuracy() -> None:
    """Noise in many dimensions wants a strong penalty, a small difference of two a weak one."""
    g = torch.Generator().manual_seed(0)
    y, u = torch.randint(2, (500,), generator=g), torch.randn(500, generator=g)
    gap = torch.stack([u, u + 0.1 * y], dim=1)
    weak = evaluate.linear_probe(gap, y, gap, y)
    assert weak.l2 <= 1e-3
    assert weak.accuracy == 1
    assert evaluate.linear_probe(*clusters(120, 200, noise=6.0)).l2 == 1e-1


def test_the_probe_does_not_depend_on_scale_dead_features_or_the_global_generator() -> None:
    x, y, test_x, test_y = clusters()
    torch.manual_seed(0)
    probe = evaluate.linear_probe(x, y, test_x, test_y)
    torch.manual_seed(1)
    assert torch.equal(probe.predictions, evaluate.linear_probe(x, y, test_x, test_y).predictions)
    scaled = evaluate.linear_probe(1000 * x, y, 1000 * test_x, test_y)
    assert evaluate.agreement(scaled.predictions, probe.predictions) > 0.99
    wide = [torch.cat([part, torch.full((300, 1), 0.3)], 1) for part in (x, test_x)]
    dead = evaluate.linear_probe(wide[0], y, wide[1], test_y)
    assert dead.accuracy == pytest.approx(probe.accuracy, abs=0.01)


def slow_knn(x: Tensor, y: Tensor, test_x: Tensor, k: int, temperature: float) -> list[int]:
    predictions = []
    for query in test_x.tolist():
        cosines = []
        for row, label in zip(x.tolist(), y.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            cosines.append((dot / math.hypot(*query) / math.hypot(*row), label))
        votes: dict[int, float] = {}
        for cosine, label in sorted(cosines, reverse=True)[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(cosine / temperature)
        predictions.append(max(votes, key=votes.__getitem__))
    return predictions


@pytest.mark.parametrize("k", [1, 5, 50, 1000])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_is_the_weighted_vote(k: int, temperature: float) -> None:
    x, y, test_x, test_y = clusters(200, 8)
    x, test_x = x - 5, test_x - 5
    probe = evaluate.knn(x, y, test_x, test_y, k=k, temperature=temperature)
    assert probe.predictions.tolist() == slow_knn(x, y, test_x, k, temperature)
    assert probe.accuracy == (probe.predictions == test_y).double().mean().item()


@given(seed=seeds, row=st.integers(0, 39), count=st.integers(1, 40))
def test_nearest_orders_rows_by_cosine_from_itself_on(seed: int, row: int, count: int) -> None:
    x = features(seed=seed)
    cosines = torch.nn.functional.cosine_similarity(x, x[row : row + 1])
    want = sorted(range(40), key=lambda i: -cosines[i].item())[:count]
    assert evaluate.nearest(x, row, count).tolist() == want
    assert want[0] == row


def test_agreement_counts_equal_predictions() -> None:
    a, b = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 1, 0, 3, 0])
    assert evaluate.agreement(a, b) == evaluate.agreement(b, a) == 0.6
    assert evaluate.agreement(a, a) == 1


def slow_cka(x: Tensor, y: Tensor) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of the linear kernels, with centring matrices."""
    n = len(x)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n

    def hsic(a: Tensor, b: Tensor) -> float:
        return torch.trace(a @ a.T @ centre @ b @ b.T @ centre).item() / (n - 1) ** 2

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


@given(seed=seeds, d=st.integers(1, 12), scale=st.floats(1e-3, 1e3))
def test_cka_closed_forms(seed: int, d: int, scale: float) -> None:
    x, y = features(seed=seed), features(d=d, seed=seed ^ 1)
    value = evaluate.linear_cka(x, y)
    rotation, _ = torch.linalg.qr(features(7, 7, seed))
    assert 0 <= value < 1
    assert value == pytest.approx(slow_cka(x, y), abs=1e-10)
    assert value == pytest.approx(evaluate.linear_cka(y, x), abs=1e-12)
    assert evaluate.linear_cka(x, x) == pytest.approx(1, abs=1e-12)
    assert evaluate.linear_cka(x, scale * x @ rotation + 3) == pytest.approx(1, abs=1e-10)
    assert evaluate.linear_cka(scale * x @ rotation, y - 2) == pytest.approx(value, abs=1e-10)
    assert evaluate.linear_cka(x, x * torch.logspace(-2, 2, 7)) < 0.95, "not to any linear map"


def test_mean_cosine() -> None:
    x = torch.eye(4)
    assert evaluate.mean_cosine(x, 3 * x) == pytest.approx(1)
    assert evaluate.mean_cosine(x, x.roll(1, 0)) == pytest.approx(0)
    assert math.isnan(evaluate.mean_cosine(x, torch.ones(4, 3)))


@pytest.mark.parametrize("d", [8, 128])
def test_spread_is_one_on_the_sphere_and_zero_when_collapsed(d: int) -> None:
    x = features(5000, d)
    assert evaluate.spread(x) == pytest.approx(1, abs=0.02)
    assert evaluate.spread(100 * x) == pytest.approx(evaluate.spread(x), abs=1e-9)
    assert evaluate.spread(x[:1].expand(100, -1)) == pytest.approx(0, abs=1e-9)
    assert evaluate.spread(x[:1] * torch.rand(100, 1)) == pytest.approx(0, abs=1e-6)


@given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=9).filter(lambda v: np.std(v) > 1e-6),
    st.floats(0.5, 0.999),
)
def test_mean_interval_is_scipys(values: list[float], level: float) -> None:
    mean, low, high = evaluate.mean_interval(values, level)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    want = stats.t.interval(level, len(values) - 1, np.mean(values), stats.sem(values))
    assert (low, high) == pytest.approx(want, rel=1e-9, abs=1e-9)


def test_mean_interval_of_one_value_has_no_bounds() -> None:
    mean, low, high = evaluate.mean_interval([0.5])
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)
    assert evaluate.mean_interval(iter([1.0, 1.0])) == (1, 1, 1)
    with pytest.raises(ValueError, match="at least one value"):
        evaluate.mean_interval([])


@pytest.mark.parametrize("fit", [evaluate.linear_probe, evaluate.knn])
@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda x: x.index_fill(0, torch.tensor(7), math.nan), r"NaN, .*, first in rows \[7\]"),
        (
            2,
            lambda x: x.index_fill(0, torch.tensor(7), math.inf),
            r"infinity .*, first in rows \[7\]",
        ),
        (1, lambda y: y[:-1], r"labels \(19,\) torch.int64: whole numbers \(20,\)"),
        (2, lambda x: x[:, :1], "4.*1"),  # these would even broadcast against a head of four
        (2, lambda x: x[:, :3], "4.*3"),
        (2, lambda x: x.double(), "float32 and test features .*float64"),
        (0, lambda x: x.long(), "features .*int64: floats"),
        (2, lambda x: x[:0], r"features \(0, 4\)"),
        (0, lambda x: x[:, :0], r"features \(20, 0\)"),
        (0, lambda x: x.numpy(), "features of kind ndarray"),
        (2, lambda x: x.to_sparse(), "features of kind Tensor"),
        (0, lambda x: x * 1e30, "above 1e.15"),
        (1, lambda y: y.float(), "labels .*float32: whole numbers"),
        (3, lambda y: None, "labels of kind NoneType"),
        (1, lambda y: y - 9, r"label -\d of image 0: labels of 1048576 classes are 0 to 1048575"),
        (3, lambda y: y + 2**40, r"label \d+ of image 0"),
        (3, lambda y: y + 9, "no label of the test set occurs in training"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(fit, index: int, change, message: str) -> None:
    task = list(clusters(40, 4))
    task[index] = change(task[index])
    with pytest.raises(ValueError, match=message):
        fit(*task)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
@pytest.mark.parametrize("fit", [evaluate.linear_probe, evaluate.knn])
def test_labels_of_any_whole_type_and_features_with_gradients_are_taken(fit, kind) -> None:
    x, y, test_x, test_y = clusters(40, 4)
    want = fit(x, y, test_x, test_y)
    got = fit(x.requires_grad_(), y.to(kind), test_x, test_y.to(kind))
    assert got.predictions.equal(want.predictions)
    assert got.accuracy == want.accuracy


NOT_A_NUMBER = [
    lambda x: evaluate.spread(x[:1]),
    lambda x: evaluate.mean_cosine(x * math.nan, x),
    lambda x: evaluate.mean_cosine(x, x[:5]),
    lambda x: evaluate.linear_cka(x[:1], x[:1]),
    lambda x: evaluate.linear_cka(x * 1e200, x),
    lambda x: evaluate.linear_cka(None, x),
    lambda x: evaluate.geometry(x * math.nan),
    lambda x: evaluate.geometry(x * 0),
    lambda x: evaluate.geometry(x[:1]),
    lambda x: evaluate.geometry(x[0]),
    lambda x: evaluate.linear_cka(x, x[:-1]),
    lambda x: evaluate.linear_cka(x[:, 0], x),
    lambda x: evaluate.agreement(x[:3, 0], x[:4, 0]),
    lambda x: evaluate.nearest(x, 40, 3),
    lambda x: evaluate.nearest(x, 0, 41),
    lambda x: evaluate.agreement(x[:0, 0], x[:0, 0]),
    lambda x: evaluate.agreement([1], [1]),
    lambda x: evaluate.mean_interval([1.0, math.nan]),
    lambda x: evaluate.mean_interval([1.0, 2.0], level=2),
    lambda x: evaluate.linear_probe(x, x[:, 0].long().abs(), x, x[:, 0].long().abs(), seed=None),
]


@pytest.mark.parametrize("measure", NOT_A_NUMBER)
def test_what_would_be_no_number_is_refused(measure) -> None:
    with pytest.raises(ValueError, match=r"needed|hold|same|geometry|finite"):
        measure(features())


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"k": -1}, {"k": 1.5}, {"temperature": 0.0}, {"temperature": math.inf}]
)
def test_knn_without_a_vote_is_refused(options: dict[str, float]) -> None:
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        evaluate.knn(*clusters(40, 4), **options)


@pytest.mark.parametrize(
    ("rows", "norm_spread", "anisotropy", "rank"),
    [
        (torch.cat([torch.eye(4), -torch.eye(4)]), 0, -1 / 7, 4),  # one opposite among seven
        (torch.tensor([[1.0, 0.0], [3.0, 0.0]]), 2**0.5 / 2, 1, 1),
    ],
)
def test_the_geometry_of_known_shapes(rows, norm_spread, anisotropy, rank) -> None:
    want = {"norm_spread": norm_spread, "anisotropy": anisotropy, "effective_rank": rank}
    assert evaluate.geometry(rows) == pytest.approx(want)


def test_the_geometry_is_its_definition() -> None:
    x = features(30)
    unit = [row / row.norm() for row in x.double()]
    cosines = [float(a @ b) for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j]
    values = np.linalg.eigvalsh(np.cov(x.double().numpy().T))
    share = values / values.sum()
    geometry = evaluate.geometry(x)
    assert geometry["anisotropy"] == pytest.approx(sum(cosines) / len(cosines))
    assert geometry["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    turned = x.double() @ torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))[0]
    assert evaluate.geometry(turned) == pytest.approx(
        geometry, rel=1e-6
    )  # rotations change nothing


def test_zeros_in_half_precision_have_no_spread_and_no_nan() -> None:
    zeros = torch.zeros(4, 3, dtype=torch.float16)
    assert evaluate.spread(zeros) == evaluate.mean_cosine(zeros, torch.ones(4, 3)) == 0
