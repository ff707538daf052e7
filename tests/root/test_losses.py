"""The losses against literal loops in Python floats, closed forms, scipy and lightly."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import record
from contsteal import losses

Rows = list[list[float]]
seeds = st.integers(0, 2**32 - 1)


def batch(
    n: int = 6, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Return a surrogate's and a victim's embeddings."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype) for _ in range(2)]


def cos(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def unit(row: list[float]) -> list[float]:
    return [v / math.hypot(*row) for v in row]


def slow_mse(s: Rows, t: Rows) -> float:
    gaps = [(a - b) ** 2 for x, y in zip(s, t, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(gaps) / len(gaps)


def slow_cosine(s: Rows, t: Rows) -> float:
    return 1 - sum(cos(a, b) for a, b in zip(s, t, strict=True)) / len(s)


def slow_info_nce(s: Rows, t: Rows, tau: float) -> float:
    z, n, total = s + t, len(s), 0.0
    for i in range(2 * n):
        others = sum(math.exp(cos(z[i], z[k]) / tau) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(cos(z[i], z[(i + n) % (2 * n)]) / tau) / others)
    return total / (2 * n)


def slow_paper(s: Rows, t: Rows, tau: float, negatives: str = "both") -> float:
    n, total = len(s), 0.0
    for i in range(n):
        victim = sum(math.exp(cos(s[i], t[k]) / tau) for k in range(n) if k != i)
        itself = sum(math.exp(cos(s[i], s[k]) / tau) for k in range(n) if k != i)
        kept = {"both": victim + itself, "victim": victim, "self": itself}[negatives]
        total -= math.log(math.exp(cos(s[i], t[i]) / tau) / kept)
    return total / n


def slow_cross_entropy(logits: Rows, posteriors: Rows) -> float:
    total = 0.0
    for row, p in zip(logits, posteriors, strict=True):
        log_sum = math.log(sum(math.exp(v) for v in row))
        total -= sum(q * (v - log_sum) for q, v in zip(p, row, strict=True))
    return total / len(logits)


def slow_wasserstein(s: Rows, t: Rows) -> float:
    total = 0.0
    for rows in zip(s, t, strict=True):
        positive = [[max(v, 0.0) for v in row] for row in rows]
        p, q = ([v / (sum(row) + 1e-14) for v in row] for row in positive)
        total += sum(abs(sum(p[: j + 1]) - sum(q[: j + 1])) for j in range(len(p)))
    return total / len(s)


def slow_soft_nn(s: Rows, t: Rows, tau: float) -> float:
    z, n, total = s + t, len(s), 0.0
    for i in range(2 * n):
        near = [math.exp(-(math.dist(z[i], z[k]) ** 2) / tau) for k in range(2 * n)]
        others = sum(e for k, e in enumerate(near) if k != i)
        total -= math.log(1e-9 + near[(i + n) % (2 * n)] / others)
    return total / (2 * n)


def slow_sup_con(s: Rows, t: Rows, labels: list[int], tau: float) -> float:
    z, y, total = s + t, labels + labels, 0.0
    for i in range(len(z)):
        others = sum(math.exp(cos(z[i], z[k]) / tau) for k in range(len(z)) if k != i)
        positives = [k for k in range(len(z)) if k != i and y[k] == y[i]]
        logs = [math.log(math.exp(cos(z[i], z[k]) / tau) / others) for k in positives]
        total -= tau / 0.07 * sum(logs) / len(logs)
    return total / len(z)


def slow_barlow(a: Rows, b: Rows, weight: float) -> float:
    def normalised(column: tuple[float, ...]) -> list[float]:
        mean = sum(column) / len(column)
        variance = sum((v - mean) ** 2 for v in column) / len(column)
        return [(v - mean) / math.sqrt(variance + 1e-5) for v in column]

    left, right = ([normalised(c) for c in zip(*x, strict=True)] for x in (a, b))
    total = 0.0
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            c = sum(v * w for v, w in zip(x, y, strict=True)) / len(a)
            total += (c - 1) ** 2 if i == j else weight * c**2
    return total


def slow_barlow_published(s: Rows, t: Rows, weight: float) -> float:
    half = len(s) // 2
    return slow_barlow(s[:half] + t[:half], s[half:] + t[half:], weight)


def slow_views(s: Rows, t: Rows, tau: float, form: str) -> float:
    """Sort each row's logits as the ICML code does, positives first, and take the first as target."""
    z, n, total = s + t, len(s) // 2, 0.0
    for i in range(4 * n):
        others = [k for k in range(4 * n) if k != i]
        positives = [k for k in others if k % n == i % n]
        ordered = positives + [k for k in others if k not in positives]
        logits = [cos(z[i], z[k]) / tau for k in ordered]
        log_sum = math.log(sum(math.exp(v) for v in logits))
        targets = logits[:1] if form == "published" else logits[:3]
        scale = 1.0 if form == "published" else tau / 0.07
        total -= scale * sum(v - log_sum for v in targets) / len(targets)
    return total / (4 * n)


def slow_stolen_encoder(s: Rows, t: Rows, weight: float) -> float:
    n, total = len(t), 0.0
    for i in range(n):
        total += math.dist(unit(s[i]), unit(t[i])) + weight * math.dist(unit(s[n + i]), unit(t[i]))
    return total / n


def slow_rda(s: Rows, p: Rows, tau: float) -> float:
    aligned = 0.0
    for a, b in zip(s, p, strict=True):
        aligned += math.log((1 + cos(a, b)) / math.dist(unit(a), unit(b)) ** 2)
    return slow_paper(s, p, tau) - aligned / len(s)


class Case(NamedTuple):
    """A loss of n images in `views` of s and of t, and its reference; both take (s, t, labels)."""

    fast: Callable[[Tensor, Tensor, Tensor], Tensor]
    slow: Callable[[Rows, Rows, list[int]], float]
    views: tuple[int, int] = (1, 1)


def case(
    loss: Callable[..., Tensor],
    slow: Callable[..., float],
    *parameters: object,
    views: tuple[int, int] = (1, 1),
    **options: object,
) -> Case:
    """A case without labels: `options` go to the loss, `parameters` to its reference."""
    return Case(
        lambda s, t, _: loss(s, t, **options), lambda s, t, _: slow(s, t, *parameters), views
    )


VIEWS, TWO = losses.info_nce_views, (2, 2)
CASES = {
    "mse": case(losses.mse, slow_mse),
    "cosine": case(losses.cosine, slow_cosine),
    "info_nce": case(losses.info_nce, slow_info_nce, 0.07),
    "info_nce 1": case(losses.info_nce, slow_info_nce, 1.0, temperature=1.0),
    "paper": case(losses.cont_steal, slow_paper, 0.5),
    "paper 0.1": case(losses.cont_steal, slow_paper, 0.1, temperature=0.1),
    "paper, victim": case(losses.cont_steal, slow_paper, 0.5, "victim", negatives="victim"),
    "paper, self": case(losses.cont_steal, slow_paper, 0.5, "self", negatives="self"),
    "code": case(losses.cont_steal, slow_info_nce, 0.5, form="code"),
    "wasserstein": case(losses.wasserstein, slow_wasserstein),
    "soft_nn": case(losses.soft_nn, slow_soft_nn, 100.0),
    "soft_nn 1": case(losses.soft_nn, slow_soft_nn, 1.0, temperature=1.0),
    "sup_con": Case(losses.sup_con, partial(slow_sup_con, tau=0.07)),
    "sup_con 0.5": Case(partial(losses.sup_con, temperature=0.5), partial(slow_sup_con, tau=0.5)),
    "barlow": case(losses.barlow, slow_barlow, 0.0051),
    "barlow 0.3": case(losses.barlow, slow_barlow, 0.3, off_diagonal=0.3),
    "barlow published": case(
        losses.barlow, slow_barlow_published, 0.3, views=TWO, form="published", off_diagonal=0.3
    ),
    "views": case(VIEWS, slow_views, 0.07, "corrected", views=TWO),
    "views 0.5": case(VIEWS, slow_views, 0.5, "corrected", views=TWO, temperature=0.5),
    "views published": case(VIEWS, slow_views, 0.07, "published", views=TWO, form="published"),
    "stolen_encoder": case(losses.stolen_encoder, slow_stolen_encoder, 20.0, views=(2, 1)),
    "stolen_encoder 0.5": case(
        losses.stolen_encoder, slow_stolen_encoder, 0.5, views=(2, 1), weight=0.5
    ),
    "rda": case(losses.rda, slow_rda, 0.07),
    "rda 0.5": case(losses.rda, slow_rda, 0.5, temperature=0.5),
}
TEMPERED: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "info_nce": losses.info_nce,
    "paper": losses.cont_steal,
    "code": partial(losses.cont_steal, form="code"),
    "sup_con": lambda s, t, tau: losses.sup_con(s, t, torch.arange(len(s)), tau),
    "soft_nn": losses.soft_nn,
    "views": VIEWS,
    "views published": partial(VIEWS, form="published"),
    "rda": losses.rda,
}
each_case = pytest.mark.parametrize("name", CASES)


def images(
    name: str, n: int = 6, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a case takes for n images: surrogate rows, victim rows, labels."""
    s, t = batch(2 * n, d, seed, dtype)
    of_s, of_t = CASES[name].views
    return s[: of_s * n].clone(), t[: of_t * n].clone(), torch.arange(n) % 3


def per_image(order: Tensor, x: Tensor) -> Tensor:
    """Reorder the images of x, each of its views alike."""
    return torch.cat([part[order] for part in x.split(len(order))])


@each_case
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("n", [2, 7])
def test_loss_is_its_formula(name: str, dtype: torch.dtype, within: float, n: int) -> None:
    s, t, y = images(name, n, seed=n, dtype=dtype)
    value = CASES[name].fast(s, t, y)
    assert (value.dtype, value.shape) == (dtype, ())
    want = CASES[name].slow(s.tolist(), t.tolist(), y.tolist())
    assert value.item() == pytest.approx(want, rel=within, abs=within)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_cross_entropy_is_its_formula(dtype: torch.dtype, within: float) -> None:
    logits, other = batch(dtype=dtype)
    posteriors, labels = other.softmax(1), other.argmax(1)
    one_hot = torch.eye(5)[labels]
    for answers, literal in ((posteriors, posteriors), (labels, one_hot)):
        value = losses.cross_entropy(logits, answers)
        want = slow_cross_entropy(logits.tolist(), literal.tolist())
        assert value.dtype == dtype
        assert value.item() == pytest.approx(want, abs=within)


# ------------------------------------------------------------ closed forms and other libraries

EYE = torch.eye(8, 10, dtype=torch.float64)
SIGNS = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
ONES = torch.ones(6, 5, dtype=torch.float64)
OFF = 1 / (1 + 1e-5)  # a feature's correlation with itself, through batch norm's eps
CLOSED: dict[str, tuple[Callable[[], Tensor], float]] = {
    "mse": (lambda: losses.mse(ONES, ONES + 3), 9),
    "cosine of equal rows": (lambda: losses.cosine(EYE, 2 * EYE), 0),
    "cosine of opposite rows": (lambda: losses.cosine(EYE, -EYE), 2),
    "cross-entropy, uniform": (lambda: losses.cross_entropy(0 * EYE, torch.arange(8)), math.log(10)),
    "code": (lambda: losses.cont_steal(EYE, EYE, 0.5, "code"), math.log(1 + 14 * math.exp(-2))),
    "paper": (lambda: losses.cont_steal(EYE, EYE, 0.5), math.log(14 * math.exp(-2))),
    "wasserstein, same": (lambda: losses.wasserstein(3 * EYE[:1], EYE[:1]), 0),
    "wasserstein, far": (lambda: losses.wasserstein(3 * EYE[:1], EYE[7:]), 7),
    "wasserstein, near": (lambda: losses.wasserstein(EYE[5:6], EYE[2:3]), 3),
    "wasserstein, negative": (lambda: losses.wasserstein(-ONES, -ONES), 0),
    "soft_nn": (lambda: losses.soft_nn(EYE, EYE, 0.5), -math.log(1e-9 + 1 / (1 + 14 * math.exp(-4)))),
    "soft_nn of one point": (lambda: losses.soft_nn(ONES, ONES), -math.log(1e-9 + 1 / 11)),
    "sup_con of one point": (lambda: losses.sup_con(ONES, ONES, torch.zeros(6)), math.log(11)),
    "barlow, uncorrelated": (lambda: losses.barlow(SIGNS, SIGNS), 3 * (1 - OFF) ** 2),
    "barlow, equal features": (
        lambda: losses.barlow(SIGNS[:, [0, 0]], SIGNS[:, [0, 0]]),
        2 * (1 - OFF) ** 2 + 2 * 0.0051 * OFF**2,
    ),
    "stolen_encoder, equal": (lambda: losses.stolen_encoder(EYE.repeat(2, 1), 3 * EYE), 0),
    "stolen_encoder, clean opposite": (lambda: losses.stolen_encoder(torch.cat([-EYE, EYE]), EYE), 2),
    "stolen_encoder, view opposite": (lambda: losses.stolen_encoder(torch.cat([EYE, -EYE]), EYE), 40),
    "rda, orthogonal": (lambda: losses.rda(EYE[:4], EYE[4:], 0.07), math.log(6) + math.log(2)),
    "rda, equal": (lambda: losses.rda(EYE, EYE) - losses.cont_steal(EYE, EYE, 0.07), -math.log(2 / 1e-8)),
    "rda, opposite": (
        lambda: losses.rda(EYE, -EYE) - losses.cont_steal(EYE, -EYE, 0.07), math.log(4 / 1e-8)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("value", "want"), CLOSED.values(), ids=CLOSED)
def test_closed_forms(value: Callable[[], Tensor], want: float) -> None:
    assert value().item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(("form", "twins"), [("published", 1 / 2), ("corrected", 1 / 3)])
def test_info_nce_views_of_orthonormal_rows(form: str, twins: float) -> None:
    """Where both encoders ignore the augmentation but never meet, a row has one positive at cosine 1
    and two at 0: its first in half of the published rows, one of three in the corrected."""
    tau, s, t = 0.07, EYE[:4].repeat(2, 1), EYE[4:].repeat(2, 1)
    apart = math.log(math.exp(1 / tau) + 14) - twins / tau
    assert VIEWS(s, t, tau, form).item() == pytest.approx(apart, abs=1e-12)
    met = math.log(3 * math.exp(1 / tau) + 12) - 1 / tau
    assert VIEWS(s, s, tau, form).item() == pytest.approx(met, abs=1e-12)


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_agrees_with_lightly(tau: float) -> None:
    from lightly.loss import BarlowTwinsLoss, NTXentLoss

    s, t = batch(16, 24, dtype=torch.float32)
    theirs = NTXentLoss(temperature=tau, memory_bank_size=0)(s, t).item()
    assert losses.info_nce(s, t, tau).item() == pytest.approx(theirs, rel=1e-6)
    assert losses.cont_steal(s, t, tau, "code").item() == pytest.approx(theirs, rel=1e-6)
    barlow = BarlowTwinsLoss(lambda_param=tau)(s, t).item()
    assert losses.barlow(s, t, tau).item() == pytest.approx(barlow, rel=1e-5)


@given(seed=seeds)
def test_wasserstein_agrees_with_scipy(seed: int) -> None:
    s, t = (x.abs() for x in batch(4, 6, seed))
    pairs = zip(s.tolist(), t.tolist(), strict=True)
    theirs = [stats.wasserstein_distance(range(6), range(6), p, q) for p, q in pairs]
    assert losses.wasserstein(s, t).item() == pytest.approx(sum(theirs) / 4, abs=1e-10)


def test_soft_nn_is_finite_where_every_distance_underflows() -> None:
    """The ratio of the published code is 0 / 0 for lonely rows and 0 for a partner out of reach."""
    near = 1e4 * torch.eye(3, dtype=torch.float64)
    lonely = losses.soft_nn(near, near + torch.tensor([1.0, 0, 0]), 0.001)
    assert lonely.item() == pytest.approx(0, abs=1e-8)
    cluster = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    value = losses.soft_nn(cluster, cluster.detach() + 1e4)
    assert value.item() == pytest.approx(math.log(1e9), abs=1e-12)
    assert torch.autograd.grad(value, cluster)[0].isfinite().all()


@given(seed=seeds)
def test_soft_nn_measures_distances_in_float64(seed: int) -> None:
    """Far from the origin |a|^2 + |b|^2 - 2 ab cancels: float32 would keep no digit of it."""
    s, t = ((64 * x).round() / 64 for x in batch(seed=seed, dtype=torch.float32))
    moved = losses.soft_nn(s + 4096, t + 4096, 1.0).item()
    assert moved == pytest.approx(losses.soft_nn(s, t, 1.0).item(), rel=1e-6)


# --------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("tau", [0.07, 0.5])
@given(seed=seeds)
def test_sup_con_of_a_class_per_image_is_info_nce(tau: float, seed: int) -> None:
    s, t = batch(8, seed=seed)
    value = losses.sup_con(s, t, torch.arange(8), tau).item()
    assert value == pytest.approx(tau / 0.07 * losses.info_nce(s, t, tau).item(), abs=1e-10)
    corrected = VIEWS(s, t, tau).item()
    assert corrected == losses.sup_con(s, t, torch.arange(4).repeat(2), tau).item()
    swapped = [x.roll(4, 0) for x in (s, t)]  # view 2 before view 1
    assert VIEWS(*swapped, tau).item() == pytest.approx(corrected, abs=1e-12)
    published = [VIEWS(*x, tau, "published").item() for x in ((s, t), swapped)]
    assert published[0] != pytest.approx(published[1], abs=1e-6)


@each_case
@given(seed=seeds)
def test_only_the_pairing_of_rows_matters(name: str, seed: int) -> None:
    s, t, y = images(name, 8, seed=seed)
    loss, order = CASES[name].fast, torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    value = loss(s, t, y).item()
    together = loss(per_image(order, s), per_image(order, t), y[order]).item()
    assert together == pytest.approx(value, abs=1e-9)
    if name != "barlow published":
        apart = loss(s, per_image(torch.arange(8).roll(1), t), y).item()
        assert apart != pytest.approx(value, abs=1e-6)


@given(seed=seeds)
def test_published_barlow_never_compares_surrogate_and_victim(seed: int) -> None:
    """Whichever victim pair goes with an image, the loss and its gradient are the same."""
    s, t = batch(16, seed=seed)
    s.requires_grad_()
    permuted = per_image(torch.arange(8).roll(3), t)
    for form, meets in (("published", False), ("cross", True)):
        value, other = (losses.barlow(s, x, form=form) for x in (t, permuted))
        slope, turned = (torch.autograd.grad(x, s)[0] for x in (value, other))
        assert torch.allclose(value, other, rtol=1e-12) is not meets
        assert torch.allclose(slope, turned, rtol=1e-9, atol=1e-12) is not meets


# ----------------------------------------------------------------- gradients, precision, memory


@each_case
def test_gradient_is_right_leads_downhill_and_reaches_the_surrogate_alone(name: str) -> None:
    s, t, y = images(name, 4, 3)
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CASES[name].fast(x, t, y), s)
    s, t, y = images(name)
    s.requires_grad_()
    before = CASES[name].fast(s, t, y)
    before.backward()
    assert s.grad.abs().sum() > 0
    assert t.grad is None
    assert CASES[name].fast(s.detach() - 1e-5 * s.grad, t, y) < before


def without_first(x: Tensor) -> Tensor:
    return torch.cat([0 * x[:1], x[1:]])


EDGES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "equal": lambda s, t: (t.repeat(len(s) // len(t), 1), t),
    "opposite": lambda s, t: (-t.repeat(len(s) // len(t), 1), t),
    "zero row": lambda s, t: (without_first(s), t),
    "zero answer": lambda s, t: (s, without_first(t)),
    "zero row and answer": lambda s, t: (without_first(s), without_first(t)),
    "all zero": lambda s, t: (0 * s, 0 * t),
}


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("edge", EDGES)
def test_gradient_is_finite_at_the_edges(name: str, dtype: torch.dtype, edge: str) -> None:
    s, t, y = images(name, dtype=dtype)
    s, t = EDGES[edge](s, t)
    s.requires_grad_()
    value = CASES[name].fast(s, t, y)
    value.backward()
    assert value.isfinite()
    assert s.grad.isfinite().all()


@each_case
def test_half_precision_and_autocast_are_computed_in_float32(name: str) -> None:
    """The training loop calls the losses inside bf16 autocast."""
    exact = CASES[name].fast(*images(name, 16, 32)).item()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        s, t, y = images(name, 16, 32, dtype=dtype)
        value = CASES[name].fast(s, t, y)
        assert value.dtype == torch.float32
        assert torch.equal(value, CASES[name].fast(s.float(), t.float(), y))
        assert value.item() == pytest.approx(exact, rel=0.02)
        if dtype == torch.float32:
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(value, CASES[name].fast(s, t, y))


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            self.elements = max(self.elements, x.numel() if isinstance(x, Tensor) else 0)
        return out


@each_case
def test_inputs_are_kept_and_no_tensor_is_larger_than_the_pairs_of_rows_or_features(name) -> None:
    s, t, y = images(name, 16, 64, dtype=torch.float32)
    kept = s.clone(), t.clone()
    s.requires_grad_()
    with Largest() as noted:
        CASES[name].fast(s, t, y).backward()
    rows = len(s) + len(t)
    assert 0 < noted.elements <= max(rows**2, rows * 64, 64**2)
    assert torch.equal(s, kept[0])
    assert torch.equal(t, kept[1])


@pytest.mark.parametrize("count", [losses.WHOLE // 2 + 1, losses.WHOLE // 2 + 300])
def test_a_large_batch_goes_by_blocks_to_the_same_loss_and_gradient(count, monkeypatch) -> None:
    s, t = torch.randn(2, count, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s.requires_grad_()
    blocks = losses.info_nce(s, t)
    (gradient,) = torch.autograd.grad(blocks, s)
    monkeypatch.setattr(losses, "WHOLE", 10**9)
    whole = losses.info_nce(s, t)
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, s)[0])


def test_memory_of_blocks_is_linear_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "WHOLE", 0)
    monkeypatch.setattr(losses, "BLOCK", 32)

    def step(count: int) -> None:
        s = torch.ones(count, 8, requires_grad=True)
        losses.info_nce(s, torch.ones_like(s)).backward()

    one, two = (record.peak_mb(lambda n=n: step(n)) for n in (512, 1024))
    assert 1.8 * one < two < 2.2 * one


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", TEMPERED)
def test_temperature_must_be_positive_and_may_be_sharp(name: str) -> None:
    assert TEMPERED[name](*batch(dtype=torch.float32), 1e-3).isfinite()
    for temperature in (0.0, -0.5, math.nan):
        with pytest.raises(ValueError, match=f"temperature={temperature}: it must be above 0"):
            TEMPERED[name](*batch(), temperature)


PAIRED = [name for name in CASES if not name.startswith("stolen_encoder")]  # of words of its own
ALONE = ("mse", "cosine", "wasserstein", "views")  # one row suffices, or is too few for two views


@pytest.mark.parametrize("name", PAIRED)
def test_shapes_must_agree_and_one_row_has_no_negatives(name: str) -> None:
    for shape in ((6, 4), (5, 5), (5,)):
        with pytest.raises(ValueError, match=r"\(6, 5\).*one shape.*linear layer") as caught:
            CASES[name].fast(batch()[0], torch.ones(shape), torch.arange(6))
        assert str(shape) in str(caught.value)
    if not name.startswith(ALONE):
        with pytest.raises(ValueError, match=r"a batch of 1 has no negatives.* at least 2 rows"):
            CASES[name].fast(*batch(1), torch.arange(1))


S, T = batch()
ODD, FEW = (
    r"a batch of 5 rows cannot be \[view 1; view 2\].* even",
    "no negatives.* at least 4 rows",
)
UNFIT, LABELS = r"logits \(6, 5\) do not fit answers ", "sup_con needs the true label of each of 6"
HALF = r".*\(2N, D\) = \[clean; augmented\], the victim's \(N, D\)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.cont_steal(S, T, form="offical"), "'offical'.* of paper, code"),
        (lambda: losses.barlow(S, T, form="X"), "form 'X' of barlow: .* cross, published"),
        (lambda: VIEWS(S, T, form="X"), "of info_nce_views: .*corrected, published"),
        (lambda: losses.cont_steal(S, T, negatives="X"), "of both, victim, self"),
        (lambda: losses.cont_steal(S, T, 1.0, "code", "self"), r'form="code"\): .*of both$'),
        (lambda: VIEWS(*batch(3)), f"a batch of 3 has {FEW}"),
        (lambda: VIEWS(*batch(1), form="published"), f"a batch of 1 has {FEW}"),
        (lambda: VIEWS(*batch(5)), ODD),
        (lambda: VIEWS(*batch(5), form="published"), ODD),
        (lambda: losses.barlow(*batch(5), form="published"), ODD),
        (lambda: losses.sup_con(S, T, None), f"labels None: {LABELS}"),
        (lambda: losses.sup_con(S, T, torch.zeros(12)), rf"labels \(12,\): {LABELS}"),
        (lambda: losses.sup_con(S, T, torch.zeros(6, 1)), rf"labels \(6, 1\): {LABELS}"),
        (lambda: losses.cross_entropy(S, torch.ones(6, 3)), rf"{UNFIT}\(6, 3\)"),
        (lambda: losses.cross_entropy(S, torch.ones(5).long()), rf"{UNFIT}\(5,\)"),
        (lambda: losses.stolen_encoder(S, S), rf"\(6, 5\) and victim \(6, 5\){HALF}"),
        (lambda: losses.stolen_encoder(S, T[:3, :4]), rf"\(6, 5\) and victim \(3, 4\){HALF}"),
        (lambda: losses.stolen_encoder(S, T[0, 0]), rf"\(6, 5\) and victim \(\){HALF}"),
        *((lambda shape=shape: losses.moco(S, T, torch.ones(shape)),
           r"queue \(.*: rows of 5 are needed") for shape in [(8, 3), (0, 5), (5,)]),
        (lambda: losses.info_nce(S, T, 1e300), "temperature"),
        (lambda: losses.soft_nn(S, T, math.inf), "temperature"),
        (lambda: losses.mse(S[:, :0], T[:, :0]), "embeddings"),
        (lambda: losses.cross_entropy(S[:, :0], T[:, :0]), "logits"),
        (lambda: losses.cross_entropy(S, T.bool()), "answers"),
        (lambda: losses.cross_entropy(S, T[:, 0]), "answers"),
        (lambda: losses.cross_entropy(S[:3, :3], torch.arange(1, 4)), "from 1 to 3: cl"),
        (lambda: losses.cross_entropy(S[:1], torch.tensor([-100])), "from -100 to"),
    ],
)  # fmt: skip
def test_what_a_loss_cannot_take_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
