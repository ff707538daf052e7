"""The field's stealing losses against literal loops, closed forms, scipy and lightly."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_losses import Rows, batch, cos, slow_mse, slow_paper
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from contsteal import losses

Slow = Callable[..., float]

# ------------------------------------------------- literal references: loops over Python floats


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
        logs = [
            math.log(math.exp(cos(z[i], z[k]) / tau) / others)
            for k in range(len(z))
            if k != i and y[k] == y[i]
        ]
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
        assert len(positives) == 3
        targets = logits[:1] if form == "published" else logits[:3]
        scale = 1.0 if form == "published" else tau / 0.07
        total -= scale * sum(v - log_sum for v in targets) / len(targets)
    return total / (4 * n)


def unit(row: list[float]) -> list[float]:
    return [v / math.hypot(*row) for v in row]


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
    slow: Slow,
    *told: object,
    views: tuple[int, int] = (1, 1),
    **options,
) -> Case:
    """A case without labels: `options` go to the loss, what is `told` goes to its reference."""
    return Case(lambda s, t, _: loss(s, t, **options), lambda s, t, _: slow(s, t, *told), views)


TWO = (2, 2)
CASES = {
    "logits_mse": case(losses.logits_mse, slow_mse),
    "wasserstein": case(losses.wasserstein, slow_wasserstein),
    "soft_nn 100": case(losses.soft_nn, slow_soft_nn, 100.0),
    "soft_nn 1": case(losses.soft_nn, slow_soft_nn, 1.0, temperature=1.0),
    "sup_con 0.07": Case(losses.sup_con, lambda s, t, y: slow_sup_con(s, t, y, 0.07)),
    "sup_con 0.5": Case(
        lambda s, t, y: losses.sup_con(s, t, y, temperature=0.5),
        lambda s, t, y: slow_sup_con(s, t, y, 0.5),
    ),
    "barlow cross": case(losses.barlow, slow_barlow, 0.0051),
    "barlow cross 0.3": case(losses.barlow, slow_barlow, 0.3, off_diagonal=0.3),
    "barlow published": case(
        losses.barlow, slow_barlow_published, 0.0051, views=TWO, form="published"
    ),
    "barlow published 0.3": case(
        losses.barlow, slow_barlow_published, 0.3, views=TWO, form="published", off_diagonal=0.3
    ),
    "views corrected": case(losses.info_nce_views, slow_views, 0.07, "corrected", views=TWO),
    "views corrected 0.5": case(
        losses.info_nce_views, slow_views, 0.5, "corrected", views=TWO, temperature=0.5
    ),
    "views published": case(
        losses.info_nce_views, slow_views, 0.07, "published", views=TWO, form="published"
    ),
    "views published 0.5": case(
        losses.info_nce_views, slow_views, 0.5, "published",
        views=TWO, form="published", temperature=0.5,
    ),
    "stolen_encoder": case(losses.stolen_encoder, slow_stolen_encoder, 20.0, views=(2, 1)),
    "stolen_encoder 0.5": case(
        losses.stolen_encoder, slow_stolen_encoder, 0.5, views=(2, 1), weight=0.5
    ),
    "rda 0.07": case(losses.rda, slow_rda, 0.07),
    "rda 0.5": case(losses.rda, slow_rda, 0.5, temperature=0.5),
}  # fmt: skip
RAW = [name for name in CASES if name.startswith(("logits_mse", "soft_nn", "barlow"))]
SCALE_FREE = [name for name in CASES if name not in RAW]
TEMPERED = {
    "sup_con": lambda s, t, tau: losses.sup_con(s, t, torch.arange(len(s)), tau),
    "soft_nn": losses.soft_nn,
    "views corrected": losses.info_nce_views,
    "views published": lambda s, t, tau: losses.info_nce_views(s, t, tau, "published"),
    "rda": losses.rda,
}
each_case = pytest.mark.parametrize("name", CASES)
seeds = st.integers(0, 2**32 - 1)


def images(
    name: str, n: int = 6, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a case takes for n images: surrogate rows, victim rows, labels."""
    s, t = batch(2 * n, d, seed, dtype)
    there, here = CASES[name].views
    return s[: there * n].clone(), t[: here * n].clone(), torch.arange(n) % 3


def per_image(order: Tensor, x: Tensor) -> Tensor:
    """Reorder the images of x, each of its views alike."""
    return torch.cat([part[order] for part in x.split(len(order))])


@each_case
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("n", [2, 5])
def test_loss_is_its_formula(name: str, dtype: torch.dtype, within: float, n: int) -> None:
    s, t, y = images(name, n, seed=n, dtype=dtype)
    value = CASES[name].fast(s, t, y)
    assert value.dtype == dtype
    assert value.shape == ()
    want = CASES[name].slow(s.tolist(), t.tolist(), y.tolist())
    assert value.item() == pytest.approx(want, rel=within, abs=within)


# ------------------------------------------------------------ closed forms and other libraries


def test_wasserstein_of_one_feature_each_is_how_far_apart_they_are() -> None:
    rows = torch.eye(8, dtype=torch.float64)
    for i, j in ((0, 0), (0, 7), (5, 2)):
        value = losses.wasserstein(3 * rows[i : i + 1], rows[j : j + 1])
        assert value.item() == pytest.approx(abs(i - j), abs=1e-12)


def test_wasserstein_counts_negative_features_as_zero() -> None:
    s, t = batch()
    s[0], t[0] = -1, -1  # no feature at all, on either side
    assert torch.equal(losses.wasserstein(s, t), losses.wasserstein(s.relu(), t.relu()))
    assert losses.wasserstein(s[:1], t[:1]) == 0


@given(seed=seeds)
def test_wasserstein_agrees_with_scipy(seed: int) -> None:
    s, t = (x.abs() for x in batch(4, 6, seed))
    pairs = zip(s.tolist(), t.tolist(), strict=True)
    theirs = [stats.wasserstein_distance(range(6), range(6), p, q) for p, q in pairs]
    assert losses.wasserstein(s, t).item() == pytest.approx(sum(theirs) / 4, abs=1e-10)


@pytest.mark.parametrize("tau", [0.5, 1.0, 100.0])
def test_soft_nn_of_orthonormal_rows(tau: float) -> None:
    rows = torch.eye(8, 10, dtype=torch.float64)
    want = -math.log(1e-9 + 1 / (1 + 14 * math.exp(-2 / tau)))
    assert losses.soft_nn(rows, rows, tau).item() == pytest.approx(want, abs=1e-12)


def test_soft_nn_of_one_point_is_a_guess_among_all_others() -> None:
    rows = torch.ones(8, 3, dtype=torch.float64)
    assert losses.soft_nn(rows, rows).item() == pytest.approx(math.log(15), abs=1e-7)


def test_soft_nn_is_finite_where_every_distance_underflows() -> None:
    """The ratio of the published code is 0 / 0 for the lonely rows and 0 for the partner out of reach."""
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


@pytest.mark.parametrize("tau", [0.07, 0.5])
@given(seed=seeds)
def test_sup_con_of_a_class_per_image_is_info_nce(tau: float, seed: int) -> None:
    s, t = batch(seed=seed)
    value = losses.sup_con(s, t, torch.arange(6), tau).item()
    assert value == pytest.approx(tau / 0.07 * losses.info_nce(s, t, tau).item(), abs=1e-10)


def test_sup_con_matches_classes_not_images() -> None:
    """Any answer of the right class is as good as the image's own."""
    s, t = batch()
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    swapped = t[[1, 0, 3, 2, 5, 4]]
    value = losses.sup_con(s, t, y).item()
    assert losses.sup_con(s, swapped, y).item() == pytest.approx(value, abs=1e-12)
    assert losses.info_nce(s, swapped).item() != pytest.approx(losses.info_nce(s, t).item())
    ones = torch.ones(6, 5, dtype=torch.float64)
    assert losses.sup_con(ones, ones, 0 * y).item() == pytest.approx(math.log(11), abs=1e-12)


def test_barlow_of_uncorrelated_and_of_equal_features() -> None:
    signs = [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    rows = torch.tensor(signs, dtype=torch.float64)
    off_by = (1 - 1 / (1 + 1e-5)) ** 2
    assert losses.barlow(rows, rows).item() == pytest.approx(3 * off_by, abs=1e-18)
    twice = rows[:, [0, 0]]
    want = 2 * off_by + 2 * 0.0051 / (1 + 1e-5) ** 2
    assert losses.barlow(twice, twice).item() == pytest.approx(want, abs=1e-15)
    assert losses.barlow(twice, -twice, 0.0).item() == pytest.approx(8, abs=1e-3)


def test_barlow_agrees_with_lightly() -> None:
    from lightly.loss import BarlowTwinsLoss

    s, t = batch(16, 24, dtype=torch.float32)
    theirs = BarlowTwinsLoss(lambda_param=0.0051)(s, t).item()
    assert losses.barlow(s, t).item() == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    ("form", "twins", "stolen"),
    [("published", 1 / 2, 1), ("corrected", 1 / 3, 1)],
)
def test_info_nce_views_of_orthonormal_rows(form: str, twins: float, stolen: float) -> None:
    """Where both encoders ignore the augmentation but never meet, a row has one positive at cosine 1
    and two at 0: its first in half of the published rows, one of three in the corrected."""
    tau, rows = 0.07, torch.eye(8, 10, dtype=torch.float64)
    s, t = rows[:4].repeat(2, 1), rows[4:].repeat(2, 1)
    apart = math.log(math.exp(1 / tau) + 14) - twins / tau
    assert losses.info_nce_views(s, t, tau, form).item() == pytest.approx(apart, abs=1e-12)
    met = math.log(3 * math.exp(1 / tau) + 12) - stolen / tau
    assert losses.info_nce_views(s, s, tau, form).item() == pytest.approx(met, abs=1e-12)


@pytest.mark.parametrize("tau", [0.07, 0.5])
@given(seed=seeds)
def test_corrected_views_are_sup_con_with_the_images_as_classes(tau: float, seed: int) -> None:
    s, t = batch(8, seed=seed)
    value = losses.info_nce_views(s, t, tau).item()
    assert value == losses.sup_con(s, t, torch.arange(4).repeat(2), tau).item()
    views = [torch.cat([x[4:], x[:4]]) for x in (s, t)]  # the views have no order
    assert losses.info_nce_views(*views, tau).item() == pytest.approx(value, abs=1e-12)
    published = [losses.info_nce_views(*x, tau, "published").item() for x in ((s, t), views)]
    assert published[0] != pytest.approx(published[1], abs=1e-6)


def test_stolen_encoder_of_equal_opposite_and_orthogonal_rows() -> None:
    _, t = batch()
    rows = torch.eye(4, 8, dtype=torch.float64)
    for s, goal, want in (
        ((t, t), t, 0.0),
        ((-t, t), t, 2.0),
        ((t, -t), t, 40.0),
        ((rows.roll(4, 1), rows), rows, math.sqrt(2)),
    ):
        value = losses.stolen_encoder(torch.cat(s), 3 * goal).item()
        assert value == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_rda_of_orthogonal_equal_and_opposite_rows(tau: float) -> None:
    rows = torch.eye(4, 8, dtype=torch.float64)
    apart = losses.rda(rows, rows.roll(4, 1), tau).item()
    assert apart == pytest.approx(math.log(6) + math.log(2), abs=1e-12)
    for p, aligned in ((rows, math.log(2 / 1e-8)), (-rows, math.log(1e-8 / 4))):
        want = losses.cont_steal(rows, p, tau).item() - aligned
        assert losses.rda(rows, p, tau).item() == pytest.approx(want, abs=1e-12)


def test_closed_form_of_logits_mse() -> None:
    logits, _ = batch()
    assert losses.logits_mse(logits, logits - 3).item() == pytest.approx(9, abs=1e-12)


# --------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", SCALE_FREE)
@given(seed=seeds, a=st.floats(1e-2, 1e2), b=st.floats(1e-2, 1e2))
def test_scale_does_not_matter(name: str, seed: int, a: float, b: float) -> None:
    s, t, y = images(name, seed=seed)
    each_row = torch.linspace(a, b, len(s), dtype=torch.float64)[:, None]
    value = CASES[name].fast(each_row * s, b * t, y).item()
    assert value == pytest.approx(CASES[name].fast(s, t, y).item(), abs=1e-7)


@pytest.mark.parametrize("name", RAW)
@given(seed=seeds)
def test_scale_matters_to_the_losses_on_raw_features(name: str, seed: int) -> None:
    s, t, y = images(name, seed=seed)
    each_row = torch.linspace(1, 3, len(s), dtype=torch.float64)[:, None]
    value = CASES[name].fast(each_row * s, t, y).item()
    assert value != pytest.approx(CASES[name].fast(s, t, y).item(), abs=1e-6)


@given(seed=seeds)
def test_barlow_does_not_mind_scale_and_origin_of_a_feature(seed: int) -> None:
    s, t = batch(16, seed=seed)
    value = losses.barlow(torch.linspace(1, 9, 5) * s + 3, t).item()
    assert value == pytest.approx(losses.barlow(s, t).item(), abs=1e-3)


@each_case
@given(seed=seeds)
def test_only_the_pairing_of_rows_matters(name: str, seed: int) -> None:
    s, t, y = images(name, 8, seed=seed)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    value = CASES[name].fast(s, t, y).item()
    together = CASES[name].fast(per_image(order, s), per_image(order, t), y[order]).item()
    assert together == pytest.approx(value, abs=1e-9)
    if not name.startswith("barlow published"):
        wrong = CASES[name].fast(s, per_image(torch.arange(8).roll(1), t), y).item()
        assert wrong != pytest.approx(value, abs=1e-6)


@given(seed=seeds)
def test_published_barlow_never_compares_surrogate_and_victim(seed: int) -> None:
    """Whichever victim pair goes with an image, the loss and its gradient are the same."""
    s, t = batch(16, seed=seed)
    s.requires_grad_()
    paired = per_image(torch.arange(8).roll(3), t)
    for form, meets in (("published", False), ("cross", True)):
        value, other = (losses.barlow(s, x, form=form) for x in (t, paired))
        slope, turned = (torch.autograd.grad(x, s)[0] for x in (value, other))
        assert torch.allclose(value, other, rtol=1e-12) is not meets
        assert torch.allclose(slope, turned, rtol=1e-9, atol=1e-12) is not meets


@each_case
@given(seed=seeds)
def test_a_common_order_of_features_matters_to_wasserstein_alone(name: str, seed: int) -> None:
    s, t, y = images(name, d=8, seed=seed)
    value, order = CASES[name].fast(s, t, y).item(), torch.tensor([3, 0, 7, 1, 5, 2, 6, 4])
    alone = CASES[name].fast(s[:, order], t, y).item()
    both = CASES[name].fast(s[:, order], t[:, order], y).item()
    assert alone != pytest.approx(value, abs=1e-6)
    assert (both == pytest.approx(value, abs=1e-9)) is (name != "wasserstein")


# ---------------------------------------------------------------------- gradients, precision


@each_case
def test_gradient_is_right_and_reaches_the_surrogate_alone(name: str) -> None:
    s, t, y = images(name, 4, 3)
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CASES[name].fast(x, t, y), s)
    CASES[name].fast(s, t, y).backward()
    assert s.grad.abs().sum() > 0
    assert t.grad is None


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
def test_a_step_down_the_gradient_lowers_the_loss(name: str) -> None:
    s, t, y = images(name)
    s.requires_grad_()
    before = CASES[name].fast(s, t, y)
    before.backward()
    assert CASES[name].fast(s.detach() - 1e-5 * s.grad, t, y) < before


@each_case
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name: str, half: torch.dtype) -> None:
    s, t, y = images(name, 16, 32, dtype=half)
    value = CASES[name].fast(s, t, y)
    assert value.dtype == torch.float32
    assert torch.equal(value, CASES[name].fast(s.float(), t.float(), y))
    exact = CASES[name].fast(*images(name, 16, 32)).item()
    assert value.item() == pytest.approx(exact, rel=0.02)


@each_case
def test_autocast_does_not_lower_the_precision(name: str) -> None:
    s, t, y = images(name, 16, 32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = CASES[name].fast(s, t, y)
    assert value.dtype == torch.float32
    assert torch.equal(value, CASES[name].fast(s, t, y))


@each_case
def test_inputs_are_left_as_they_are(name: str) -> None:
    given_rows = images(name, dtype=torch.float32)
    kept = [x.clone() for x in given_rows]
    CASES[name].fast(*given_rows)
    assert all(torch.equal(x, y) for x, y in zip(given_rows, kept, strict=True))


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            self.elements = max(self.elements, x.numel() if isinstance(x, Tensor) else 0)
        return out


@each_case
def test_no_tensor_is_larger_than_the_pairs_of_rows_or_of_features(name: str) -> None:
    s, t, y = images(name, 16, 64, dtype=torch.float32)
    s.requires_grad_()
    with Largest() as noted:
        CASES[name].fast(s, t, y).backward()
    rows = len(s) + len(t)
    assert 0 < noted.elements <= max(rows**2, rows * 64, 64**2)


@pytest.mark.parametrize("name", TEMPERED)
def test_a_sharp_temperature_neither_overflows_nor_underflows(name: str) -> None:
    s, t = batch(dtype=torch.float32)
    assert TEMPERED[name](s, t, 1e-3).isfinite()


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", TEMPERED)
@pytest.mark.parametrize("temperature", [0.0, -0.5, math.nan])
def test_temperature_must_be_positive(name: str, temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature={temperature}: it must be above 0"):
        TEMPERED[name](*batch(), temperature)


OWN_SHAPES = ("logits_mse", "stolen_encoder")  # these say what they need in words of their own
PAIRED = [name for name in CASES if not name.startswith(OWN_SHAPES)]


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("shape", [(6, 4), (5, 5), (5,)])
def test_shapes_must_agree(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(6, 5\).*one shape.*linear layer") as caught:
        CASES[name].fast(batch()[0], torch.ones(shape), torch.arange(6))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(6,), (5, 5), (6, 3)])
def test_logits_mse_names_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits \(6, 5\) do not fit answers") as caught:
        losses.logits_mse(torch.zeros(6, 5), torch.ones(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(6, 5), (3, 4), (2, 5), (3,), ()])
def test_stolen_encoder_needs_two_views_for_one_answer(shape: tuple[int, ...]) -> None:
    needs = r"surrogate \(6, 5\).*\(2N, D\) = \[clean; augmented\], the victim's \(N, D\)"
    with pytest.raises(ValueError, match=needs) as caught:
        losses.stolen_encoder(torch.ones(6, 5), torch.ones(shape))
    assert f"victim {shape}" in str(caught.value)


@pytest.mark.parametrize("name", [n for n in PAIRED if not n.startswith(("views", "wasserstein"))])
def test_one_row_has_no_negatives(name: str) -> None:
    with pytest.raises(ValueError, match=r"a batch of 1 has no negatives.* at least 2 rows"):
        CASES[name].fast(*batch(1), torch.arange(1))


@pytest.mark.parametrize("form", ["corrected", "published"])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_two_views_of_one_image_have_no_negatives(form: str, rows: int) -> None:
    with pytest.raises(ValueError, match=rf"a batch of {rows} has no negatives.* at least 4 rows"):
        losses.info_nce_views(*batch(rows), form=form)


@pytest.mark.parametrize("name", ["views corrected", "views published", "barlow published"])
def test_an_odd_batch_is_not_two_views(name: str) -> None:
    with pytest.raises(ValueError, match=r"a batch of 5 rows is not \[view 1; view 2\].* even"):
        CASES[name].fast(*batch(5), torch.arange(5))
    assert losses.barlow(*batch(5)).isfinite()


def test_unknown_forms_name_the_known() -> None:
    with pytest.raises(ValueError, match=r"'Cross' of barlow: choose \"cross\" or \"published\""):
        losses.barlow(*batch(), form="Cross")
    known = r"'correct' of info_nce_views: choose \"corrected\" or \"published\""
    with pytest.raises(ValueError, match=known):
        losses.info_nce_views(*batch(), form="correct")


@pytest.mark.parametrize("shape", [None, (5,), (12,), (6, 1), ()])
def test_sup_con_needs_a_label_per_image(shape: tuple[int, ...] | None) -> None:
    labels = None if shape is None else torch.zeros(shape, dtype=torch.long)
    with pytest.raises(ValueError, match="sup_con needs the true label of each of 6 images") as e:
        losses.sup_con(*batch(), labels)
    assert f"labels {shape}:" in str(e.value)
