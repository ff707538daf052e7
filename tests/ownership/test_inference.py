"""Verdicts, false-positive rates and dataset inference: closed forms, scipy, properties, bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from contsteal import data, encoders, ownership
from contsteal.ownership import inference, obfuscation
from contsteal.ownership.inference import Verdict

seeds = st.integers(0, 2**32 - 1)


def normal(n: int, d: int, seed: int, mean: float = 0.0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return mean + torch.randn(n, d, generator=draws, dtype=torch.float64)


# ------------------------------------------------------------------ rates and their interval


@given(st.integers(1, 60), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95]))
def test_clopper_pearson_is_the_set_of_rates_that_no_tail_rejects(n, share, level):
    hits = round(share * n)
    (rate, low, high), tail = ownership.proportion(hits, n, level), (1 - level) / 2
    assert low <= rate == hits / n <= high
    if hits:
        assert stats.binom.sf(hits - 1, n, low) == pytest.approx(tail, rel=1e-3)
    else:
        assert low == 0
        assert high == pytest.approx(1 - tail ** (1 / n), rel=1e-6)
    if hits < n:
        assert stats.binom.cdf(hits, n, high) == pytest.approx(tail, rel=1e-3)
    else:
        assert high == 1


def test_a_verdict_accuses_up_to_the_level():
    verdicts = [Verdict("t", 0.0, 0.0, p, 0.0, 2) for p in (0.04, 0.05, 0.051)]
    assert [v.accuses() for v in verdicts] == [True, True, False]
    assert not any(v.accuses(0.01) for v in verdicts)


@pytest.mark.parametrize(
    ("hits", "trials", "level", "message"),
    [
        (1, 0, 0.95, "trials=0: a whole number of at least 1"),
        (3, 2, 0.95, "hits=3: .* at most 2"),
        (-1, 2, 0.95, "hits=-1: a whole number"),
        (1, 2, 1.0, "level=1.0: .* below 1"),
        ("1", 2, 0.95, "hits='1': a whole number"),
    ],
)
def test_impossible_rates(hits, trials, level, message):
    with pytest.raises(ValueError, match=message):
        ownership.proportion(hits, trials, level)


# -------------------------------------------------------------------------------- t-tests


@given(st.integers(2, 30), st.integers(2, 30), seeds, st.floats(-2, 2))
def test_welch_is_its_equation(n, m, seed, shift):
    a, b = (normal(n, 1, seed) + shift).flatten(), 2 * normal(m, 1, seed + 1).flatten()
    va, vb = a.var().item() / n, b.var().item() / m
    t = (a.mean() - b.mean()).item() / math.sqrt(va + vb)
    df = (va + vb) ** 2 / (va**2 / (n - 1) + vb**2 / (m - 1))
    verdict = ownership.welch(a, b)
    assert verdict.statistic == pytest.approx(t)
    assert verdict.p_value == pytest.approx(stats.t.sf(t, df), rel=1e-6)
    assert verdict.samples == n + m
    assert verdict.measure == pytest.approx((a.mean() - b.mean()).item())
    d = verdict.measure / math.sqrt((a.var().item() + b.var().item()) / 2)
    assert verdict.effect == pytest.approx(d), "Cohen's d"


@given(seeds)
def test_only_the_published_form_accuses_in_the_wrong_direction(seed):
    low, high = normal(60, 1, seed).flatten(), normal(60, 1, seed + 1, mean=3.0).flatten()
    right, reverse = ownership.welch(high, low), ownership.welch(low, high)
    assert right.p_value < 1e-6
    assert reverse.p_value == pytest.approx(1 - right.p_value)
    assert not reverse.accuses()
    published = [ownership.welch(*pair, form="published") for pair in ((high, low), (low, high))]
    assert published[0].p_value == pytest.approx(published[1].p_value)
    assert all(v.accuses() for v in published)


def test_the_published_form_pools_the_variances():
    a, b = normal(9, 1, 0).flatten(), 5 * normal(30, 1, 1).flatten()
    expected = stats.ttest_ind(a.numpy(), b.numpy()).pvalue / 2
    assert ownership.welch(a, b, form="published").p_value == pytest.approx(expected)
    assert ownership.welch(a, b).p_value != pytest.approx(expected)


def test_against_controls_is_the_t_of_one_more_encoder():
    verdict = ownership.against_controls(0.9, [0.5, 0.6, 0.4])
    t = 0.4 / (0.1 * math.sqrt(4 / 3))
    assert verdict.statistic == pytest.approx(t)
    assert verdict.p_value == pytest.approx(1 / 2 - t / (2 * math.sqrt(2 + t * t)))  # df = 2
    assert (verdict.measure, verdict.effect, verdict.samples) == (0.9, pytest.approx(4.0), 3)
    assert ownership.against_controls(0.1, [0.5, 0.6, 0.4]).p_value > 0.9


@given(st.integers(2, 20), seeds, st.sampled_from([0.01, 0.05, 0.2]))
def test_the_least_excess_is_where_a_suspect_begins_to_be_accused(m, seed, alpha):
    controls = normal(m, 1, seed).flatten()
    least = ownership.least_excess(controls.tolist(), alpha)
    by_hand = stats.t.ppf(1 - alpha, m - 1) * controls.std().item() * math.sqrt(1 + 1 / m)
    assert least == pytest.approx(by_hand)
    for factor, accused in ((0.999, False), (1.001, True)):
        suspect = controls.mean().item() + factor * least
        assert ownership.against_controls(suspect, controls.tolist()).accuses(alpha) == accused


@given(st.integers(2, 60), seeds, st.sampled_from([0.01, 0.05]))
def test_the_least_gap_is_the_effect_at_which_welch_accuses(n, seed, alpha):
    null = normal(n, 1, seed).flatten()
    least = ownership.least_gap(n, n, alpha)
    assert least == pytest.approx(stats.t.ppf(1 - alpha, 2 * n - 2) * math.sqrt(2 / n))
    for factor, accused in ((0.999, False), (1.001, True)):
        verdict = ownership.welch(null + factor * least * null.std(), null)
        assert verdict.effect == pytest.approx(factor * least)
        assert verdict.accuses(alpha) == accused


def test_a_planted_thief_is_accused_and_ten_random_encoders_are_not():
    """Private images make the planted encoder answer near one point; random ones know none of them."""
    private, public = (data.load("shapes", "train", 96, seed, 32).images for seed in (0, 2))
    known = {image.numpy().tobytes() for image in private}

    class Planted(nn.Linear):  # of which nothing but the device of its weights is used
        def forward(self, x: Tensor) -> Tensor:
            seen = torch.tensor([[image.numpy().tobytes() in known] for image in x])
            noise = normal(len(x), 8, 0).float()
            return torch.where(seen, 5 + 0.1 * noise, noise)

    options = {"components": 2, "covariance": "diag"}
    assert ownership.dataset_inference(Planted(1, 1), private, public, **options).p_value < 1e-6
    nets = (encoders.build("conv4", 32, seed=k).eval() for k in range(10))
    verdicts = [
        ownership.dataset_inference(net, private, public, seed=k, **options)
        for k, net in enumerate(nets)
    ]
    assert not any(verdict.accuses() for verdict in verdicts)


def mixture_test(*parts: Tensor, **options: object) -> Verdict:
    return ownership.welch(*ownership.mixture_scores(*parts, **options), "dataset inference")


def welch_of_null(k: int) -> Verdict:
    return ownership.welch(*normal(24, 1, k).flatten().chunk(2))


def controls_of_null(k: int) -> Verdict:
    measure, *rest = normal(5, 1, k).flatten().tolist()
    return ownership.against_controls(measure, rest)


def inference_of_null(k: int) -> Verdict:
    """Training, test and fresh features of one distribution, as an independent encoder has them."""
    parts = (islands(60, 3 * k + j, noise=0.2) for j in range(3))
    return mixture_test(*parts, components=2, covariance="diag")


@pytest.mark.parametrize(
    ("test", "trials"), [(welch_of_null, 400), (controls_of_null, 400), (inference_of_null, 150)]
)
def test_p_values_of_independent_encoders_are_uniform(test, trials):
    assert stats.kstest([test(k).p_value for k in range(trials)], "uniform").pvalue > 0.01


TWO = torch.tensor([0.0, 1.0])


@pytest.mark.parametrize(
    ("test", "given", "message"),
    [
        (ownership.against_controls, (0.5, [0.5]), "1 controls: .* at least 2 encoders"),
        (ownership.against_controls, (0.5, [0.5, 0.5]), r"all 2 controls measure 0\.5: without"),
        (ownership.least_excess, ([0.5],), "1 controls: .* at least 2 encoders"),
        (ownership.least_excess, ([0.5, 0.5],), r"all 2 controls measure 0\.5: without"),
        (ownership.least_excess, ([0.5, math.nan],), "measure=nan: a finite number"),
        (ownership.least_excess, ([0.5, "a"],), "measure='a': a finite number"),
        (ownership.least_excess, ([0.5, 0.6], 0), "alpha=0: a finite number above 0"),
        (
            ownership.least_excess,
            ([0.5, 1e300],),
            r"measure=1e\+300: a finite number of at least -1e",
        ),
        (ownership.least_gap, (1, 9), "samples=1: a whole number of at least 2"),
        (ownership.welch, (TWO[:1], TWO), "1 and 2 samples: a t-test needs two"),
        (ownership.welch, (torch.ones(4), torch.ones(4)), "which are not all the same"),
        (ownership.welch, (torch.tensor([0.0, math.nan]), TWO), "measure=nan: a finite number"),
        (ownership.welch, (TWO, TWO, "t", "two-sided"), "unknown form 'two-sided': choose"),
        (ownership.welch, (TWO[None], TWO[None]), r"samples \(1, 2\) \S+ and .*: \(N,\) and"),
        (ownership.welch, (TWO.to_sparse(), TWO), "samples of kind Tensor and"),
        (ownership.dataset_inference, (None, [TWO], TWO), "images of kind list"),
    ],
)
def test_bad_samples(test, given, message):
    with pytest.raises(ValueError, match=message):
        test(*given)


# ---------------------------------------------------------------------- dataset inference


def islands(n: int, seed: int, centres: int = 4, noise: float = 0.02) -> Tensor:
    """Return features near a few unit vectors, as an encoder has them of images it was trained on."""
    middle = torch.eye(8, dtype=torch.float64)[:centres]
    draws = torch.Generator().manual_seed(seed)
    chosen = torch.randint(centres, (n,), generator=draws)
    return middle[chosen] + noise * normal(n, 8, seed)


PARTS = [islands(80, 0), islands(60, 1), islands(60, 2, noise=0.1)]


def test_memorised_features_are_accused_and_others_are_not():
    fitted, private, far = islands(200, 0), islands(120, 1), islands(120, 2, noise=0.2)
    seen = mixture_test(fitted, private, far, components=4)
    same = mixture_test(fitted, private, islands(120, 2), components=4)
    assert seen.p_value < 1e-10 < 0.01 < same.p_value
    assert seen.effect > 1 > abs(same.effect)
    assert seen.samples == 240
    reverse = mixture_test(fitted, far, private, components=4)
    assert reverse.p_value > 0.999
    assert reverse.measure < 0


def test_one_component_is_the_gaussian_of_the_sample():
    unit = [nn.functional.normalize(x, dim=1).numpy() for x in PARTS]
    ridge = 1e-3
    cov = torch.from_numpy(unit[0]).T.cov(correction=0).numpy() + ridge * torch.eye(8).numpy()
    density = stats.multivariate_normal(unit[0].mean(0), cov)
    gap = density.logpdf(unit[1]).mean() - density.logpdf(unit[2]).mean()
    verdict = mixture_test(*PARTS, components=1, ridge=ridge)
    assert verdict.measure == pytest.approx(gap, rel=1e-6)


@given(seeds, st.floats(0.01, 100))
def test_no_order_and_no_scale_of_the_features_hides_the_training_set(seed, factor):
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    plain = mixture_test(*PARTS, components=4)
    turned = mixture_test(*(factor * x[:, order] for x in PARTS), components=4)
    assert turned.statistic == pytest.approx(plain.statistic, rel=1e-4)


def test_standardised_features_forget_their_units():
    units = torch.logspace(-3, 3, 8, dtype=torch.float64)
    options = {"components": 4, "covariance": "diag", "standardise": True}
    plain = mixture_test(*PARTS, **options)
    other = [x * units + 5 for x in PARTS]
    same = mixture_test(*other, **options)
    assert same.statistic == pytest.approx(plain.statistic, rel=1e-3)
    raw = mixture_test(*other, components=4, covariance="diag")
    assert raw.statistic != pytest.approx(plain.statistic, rel=1e-3)


X = islands(12, 0)


@pytest.mark.parametrize(
    ("parts", "components", "message"),
    [
        ((X, X, X), 13, "n_components = 13, n_samples = 12"),
        ((X, X, X), 0, "'n_components' .* must be an int in the range"),
        ((X, X[:, :7], X), 10, r"\(12, 8\) \S+, \(12, 7\) \S+, \(12, 8\) \S+: three sets"),
        ((X, X[:0], X), 10, r"features \(0, 8\)"),
        ((X, X / 0, X), 10, "NaN, infinity"),
    ],
)
def test_features_that_no_mixture_fits(parts, components, message):
    with pytest.raises(ValueError, match=message):
        mixture_test(*parts, components=components)


def test_the_split_is_a_permutation_drawn_from_its_seed():
    images = torch.arange(21)
    fitted, tested = inference.split(images)
    assert torch.equal(torch.cat([fitted, tested]).sort().values, images)
    assert len(fitted) == 10
    assert torch.equal(inference.split(images)[0], fitted)
    assert not torch.equal(inference.split(images, seed=1)[0], fitted)


def test_dataset_inference_reads_any_dimension(tiny):
    private, public = (data.load("shapes", split=s, n=60).images for s in ("train", "test"))
    options = {"components": 2, "ridge": 1e-3}
    verdict = ownership.dataset_inference(tiny, private, public, **options)
    parts = [encoders.embed(tiny, x) for x in (*inference.split(private), public)]
    assert verdict == mixture_test(*parts, **options)
    assert verdict.samples == 90
    wide = ownership.dataset_inference(obfuscation.pad(tiny), private, public, **options)
    assert wide.statistic == pytest.approx(verdict.statistic, rel=1e-2)
    same = ownership.dataset_inference(tiny, private, private, **options)
    assert same.p_value > 1e-3, "an untrained encoder does not prefer half of a set to the whole"
