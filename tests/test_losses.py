"""The losses against literal loops in Python floats, closed forms and lightly."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import record
from contsteal import losses

Rows = list[list[float]]


def batch(
    n: int = 6, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Return a surrogate's and a victim's embeddings."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype) for _ in range(2)]


# ------------------------------------------------- literal references: loops over Python floats


def cos(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


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
        encoder = sum(math.exp(cos(s[i], t[k]) / tau) for k in range(n) if k != i)
        own = sum(math.exp(cos(s[i], s[k]) / tau) for k in range(n) if k != i)
        kept = {"both": encoder + own, "victim": encoder, "self": own}[negatives]
        total -= math.log(math.exp(cos(s[i], t[i]) / tau) / kept)
    return total / n


def slow_cross_entropy(logits: Rows, posteriors: Rows) -> float:
    total = 0.0
    for row, p in zip(logits, posteriors, strict=True):
        log_sum = math.log(sum(math.exp(v) for v in row))
        total -= sum(q * (v - log_sum) for q, v in zip(p, row, strict=True))
    return total / len(logits)


PAIRS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Rows, Rows], float]]] = {
    "mse": (losses.mse, slow_mse),
    "cosine": (losses.cosine, slow_cosine),
    "info_nce 0.07": (losses.info_nce, lambda s, t: slow_info_nce(s, t, 0.07)),
    "info_nce 1": (lambda s, t: losses.info_nce(s, t, 1.0), lambda s, t: slow_info_nce(s, t, 1.0)),
    "paper 0.5": (losses.cont_steal, lambda s, t: slow_paper(s, t, 0.5)),
    "paper 0.1": (lambda s, t: losses.cont_steal(s, t, 0.1), lambda s, t: slow_paper(s, t, 0.1)),
    "paper, victim negatives": (
        lambda s, t: losses.cont_steal(s, t, negatives="victim"),
        lambda s, t: slow_paper(s, t, 0.5, "victim"),
    ),
    "paper, self negatives": (
        lambda s, t: losses.cont_steal(s, t, negatives="self"),
        lambda s, t: slow_paper(s, t, 0.5, "self"),
    ),
    "code 0.5": (
        lambda s, t: losses.cont_steal(s, t, form="code"),
        lambda s, t: slow_info_nce(s, t, 0.5),
    ),
}
CONTRASTIVE = [name for name in PAIRS if name not in ("mse", "cosine")]


@pytest.mark.parametrize(("fast", "slow"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("n", [2, 7])
def test_loss_is_its_formula(fast, slow, dtype: torch.dtype, within: float, n: int) -> None:
    s, t = batch(n, seed=n, dtype=dtype)
    value = fast(s, t)
    assert value.dtype == dtype
    assert value.shape == ()
    assert value.item() == pytest.approx(slow(s.tolist(), t.tolist()), rel=within, abs=within)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_cross_entropy_is_its_formula(dtype: torch.dtype, within: float) -> None:
    logits, other = batch(dtype=dtype)
    posteriors, labels = other.softmax(1), other.argmax(1)
    one_hot = torch.eye(5)[labels].tolist()
    soft, hard = losses.cross_entropy(logits, posteriors), losses.cross_entropy(logits, labels)
    assert soft.dtype == hard.dtype == dtype
    want = slow_cross_entropy(logits.tolist(), posteriors.tolist())
    assert soft.item() == pytest.approx(want, abs=within)
    assert hard.item() == pytest.approx(slow_cross_entropy(logits.tolist(), one_hot), abs=within)


# ------------------------------------------------------------ closed forms and other libraries


@pytest.mark.parametrize(
    ("form", "value", "formula"),
    [
        ("code", 2.2397291619789, math.log(1 + 62 * math.exp(-2))),
        ("paper", 2.1271343850451, math.log(62 * math.exp(-2))),
    ],
)
def test_cont_steal_of_orthonormal_rows(form: str, value: float, formula: float) -> None:
    rows = torch.eye(32, 40, dtype=torch.float64)
    loss = losses.cont_steal(rows, rows, 0.5, form).item()
    assert loss == pytest.approx(value, abs=1e-9)
    assert loss == pytest.approx(formula, abs=1e-12)


def test_closed_forms_of_the_regressions() -> None:
    s, _ = batch()
    assert losses.mse(s, s + 3).item() == pytest.approx(9, abs=1e-12)
    assert losses.cosine(s, 2 * s).item() == pytest.approx(0, abs=1e-12)
    assert losses.cosine(s, -s).item() == pytest.approx(2, abs=1e-12)
    uniform = losses.cross_entropy(torch.zeros(4, 10), torch.arange(4))
    assert uniform.item() == pytest.approx(math.log(10), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("form", ["info_nce", "code"])
def test_agrees_with_lightly(temperature: float, form: str) -> None:
    from lightly.loss import NTXentLoss

    s, t = batch(16, 24, dtype=torch.float32)
    theirs = NTXentLoss(temperature=temperature, memory_bank_size=0)(s, t).item()
    ours = losses.cont_steal(s, t, temperature, "code")
    if form == "info_nce":
        ours = losses.info_nce(s, t, temperature)
    assert ours.item() == pytest.approx(theirs, rel=1e-6)


# --------------------------------------------------------------------------------- properties

seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", [*CONTRASTIVE, "cosine"])
@given(seed=seeds, a=st.floats(1e-3, 1e3), b=st.floats(1e-3, 1e3))
def test_scale_does_not_matter(name: str, seed: int, a: float, b: float) -> None:
    (fast, _), (s, t) = PAIRS[name], batch(seed=seed)
    each_row = torch.linspace(a, b, len(s), dtype=torch.float64)[:, None]
    assert fast(each_row * s, b * t).item() == pytest.approx(fast(s, t).item(), abs=1e-9)


@pytest.mark.parametrize("name", PAIRS)
@given(seed=seeds)
def test_only_the_pairing_of_rows_matters(name: str, seed: int) -> None:
    (fast, _), (s, t) = PAIRS[name], batch(8, seed=seed)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    value = fast(s, t).item()
    assert fast(s[order], t[order]).item() == pytest.approx(value, abs=1e-9)
    assert fast(s, t.roll(1, 0)).item() != pytest.approx(value, abs=1e-6)


@given(seed=seeds)
def test_the_code_form_is_symmetric_and_the_paper_form_is_not(seed: int) -> None:
    s, t = batch(seed=seed)
    code = [losses.cont_steal(*pair, form="code").item() for pair in ((s, t), (t, s))]
    paper = [losses.cont_steal(*pair, form="paper").item() for pair in ((s, t), (t, s))]
    assert code[0] == pytest.approx(code[1], abs=1e-12)
    assert paper[0] != pytest.approx(paper[1], abs=1e-6)


@given(seed=seeds)
def test_fewer_negatives_lower_the_paper_loss(seed: int) -> None:
    s, t = batch(seed=seed)
    both, victim, own = (
        losses.cont_steal(s, t, negatives=kept) for kept in ("both", "victim", "self")
    )
    assert max(victim, own) < both
    assert torch.equal(both, losses.cont_steal(s, t))


@pytest.mark.parametrize(("negatives", "met"), [("self", 1), ("victim", 6), ("both", 6)])
def test_with_self_negatives_a_row_meets_its_own_answer_alone(negatives: str, met: int) -> None:
    """The gradient at the surrogate's first row depends on this many of the victim's rows."""
    s, t = (x.requires_grad_() for x in batch())
    value = losses.cont_steal(s, t, negatives=negatives)
    slopes = torch.autograd.grad(value, s, create_graph=True)[0]
    reach = torch.autograd.grad(slopes[0].square().sum(), t)[0].abs().sum(1)
    assert (reach > 1e-12).sum() == met


# ---------------------------------------------------------------------- gradients, precision


@pytest.mark.parametrize("name", PAIRS)
def test_gradient_is_right_and_reaches_the_surrogate_alone(name: str) -> None:
    (fast, _), (s, t) = PAIRS[name], batch(4, 3)
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fast(x, t), s)
    fast(s, t).backward()
    assert s.grad.abs().sum() > 0
    assert t.grad is None


@pytest.mark.parametrize("name", PAIRS)
def test_a_step_down_the_gradient_lowers_the_loss(name: str) -> None:
    (fast, _), (s, t) = PAIRS[name], batch()
    s.requires_grad_()
    before = fast(s, t)
    before.backward()
    assert fast(s.detach() - 1e-4 * s.grad, t) < before


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name: str, half: torch.dtype) -> None:
    (fast, _), (s, t) = PAIRS[name], batch(16, 32, dtype=half)
    value = fast(s, t)
    assert value.dtype == torch.float32
    assert torch.equal(value, fast(s.float(), t.float()))


@pytest.mark.parametrize("name", PAIRS)
def test_autocast_does_not_lower_the_precision(name: str) -> None:
    """The training loop calls the losses inside bf16 autocast."""
    (fast, _), (s, t) = PAIRS[name], batch(16, 32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = fast(s, t)
    assert value.dtype == torch.float32
    assert torch.equal(value, fast(s, t))


def test_inputs_are_left_as_they_are() -> None:
    s, t = batch(dtype=torch.float32)
    kept = s.clone(), t.clone()
    for fast, _ in PAIRS.values():
        fast(s, t)
    assert torch.equal(s, kept[0])
    assert torch.equal(t, kept[1])


def test_a_sharp_temperature_neither_overflows_nor_underflows() -> None:
    s, t = batch(dtype=torch.float32)
    for loss in (losses.info_nce, losses.cont_steal):
        assert loss(s, t, temperature=1e-3).isfinite()


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("temperature", [0.0, -0.5, math.nan])
def test_temperature_must_be_positive(form: str, temperature: float) -> None:
    s, t = batch()
    with pytest.raises(ValueError, match=f"temperature={temperature}: it must be above 0"):
        losses.cont_steal(s, t, temperature, form)
    with pytest.raises(ValueError, match=f"temperature={temperature}: it must be above 0"):
        losses.info_nce(s, t, temperature)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shape", [(6, 4), (5, 5), (5,)])
def test_shapes_must_agree(name: str, shape: tuple[int, ...]) -> None:
    (fast, _), (s, _) = PAIRS[name], batch()
    with pytest.raises(ValueError, match=r"\(6, 5\).*one shape.*linear layer") as caught:
        fast(s, torch.ones(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_one_row_has_no_negatives(name: str) -> None:
    with pytest.raises(ValueError, match=r"a batch of 1 has no negatives.* at least 2 rows"):
        PAIRS[name][0](*batch(1))


def test_unknown_form_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"'offical'.*\"paper\" or \"code\""):
        losses.cont_steal(*batch(), form="offical")


@pytest.mark.parametrize("negatives", ["none", "Both", "victims"])
def test_unknown_negatives_name_the_known(negatives: str) -> None:
    known = rf"unknown negatives '{negatives}'.*\"both\" or \"victim\" or \"self\""
    with pytest.raises(ValueError, match=known):
        losses.cont_steal(*batch(), negatives=negatives)


@pytest.mark.parametrize("negatives", ["victim", "self"])
def test_the_code_form_has_all_negatives(negatives: str) -> None:
    known = rf"'{negatives}' of cont_steal\(form=\"code\"\): choose \"both\"$"
    with pytest.raises(ValueError, match=known):
        losses.cont_steal(*batch(), form="code", negatives=negatives)
    assert losses.cont_steal(*batch(), form="code", negatives="both") > 0


@pytest.mark.parametrize("shape", [(5,), (5, 5), (6, 3)])
def test_cross_entropy_names_both_shapes(shape: tuple[int, ...]) -> None:
    answers = torch.ones(shape).long() if len(shape) == 1 else torch.ones(shape)
    with pytest.raises(ValueError, match=r"logits \(6, 5\) do not fit answers") as caught:
        losses.cross_entropy(torch.zeros(6, 5), answers)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("count", [losses.WHOLE // 2 + 1, losses.WHOLE // 2 + 300])
def test_a_large_batch_goes_by_blocks_to_the_same_loss_and_gradient(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    s, t = torch.randn(2, count, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s.requires_grad_()
    found = losses.info_nce(s, t)
    (gradient,) = torch.autograd.grad(found, s)
    monkeypatch.setattr(losses, "WHOLE", 10**9)
    whole = losses.info_nce(s, t)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, s)[0])


def test_memory_of_blocks_is_linear_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "WHOLE", 0)
    monkeypatch.setattr(losses, "BLOCK", 32)

    def step(count: int) -> None:
        s = torch.ones(count, 8, requires_grad=True)
        losses.info_nce(s, torch.ones_like(s)).backward()

    one, two = (record.peak_mb(lambda n=n: step(n)) for n in (512, 1024))
    assert 1.8 * one < two < 2.2 * one
