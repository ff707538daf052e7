"""Verdicts, false-positive rates and dataset inference: closed forms, scipy, properties, bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from contsteal import data, encoders
from contsteal.ownership import inference, obfuscation
from contsteal.ownership.inference import Verdict

seeds = st.integers(0, 2**32 - 1)


def normal(n: int, d: int, seed: int, mean: float = 0.0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return mean + torch.randn(n, d, generator=draws, dtype=torch.float64)


def verdict(p_value: float) -> Verdict:
    return Verdict("t", 0.0, 0.0, p_value, 0.0, 2)


# ------------------------------------------------------------------ rates and their interval


@given(st.integers(1, 60), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95]))
def test_clopper_pearson_is_the_set_of_rates_that_no_tail_rejects(n, share, level):
    hits = round(share * n)
    found, tail = inference.proportion(hits, n, level), (1 - level) / 2
    assert found.low <= found.rate == hits / n <= found.high
    if hits:
        assert stats.binom.sf(hits - 1, n, found.low) == pytest.approx(tail, rel=1e-3)
    else:
        assert found.low == 0
        assert found.high == pytest.approx(1 - tail ** (1 / n), rel=1e-6)
    if hits < n:
        assert stats.binom.cdf(hits, n, found.high) == pytest.approx(tail, rel=1e-3)
    else:
        assert found.high == 1


def test_false_positives_count_the_accused():
    found = inference.false_positives([verdict(p) for p in (0.04, 0.05, 0.051, 0.9)])
    assert (found.hits, found.trials, found.rate) == (2, 4, 0.5)
    strict = inference.false_positives([verdict(0.04)], alpha=0.01)
    assert strict.hits == 0
    assert inference.exceed([0.1, 0.6, 0.5], threshold=0.5).rate == pytest.approx(2 / 3)


@pytest.mark.parametrize(("hits", "trials", "level"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95),
                                                       (1, 2, 1.0), (0, 0, 0.95)])  # fmt: skip
def test_impossible_rates(hits, trials, level):
    with pytest.raises(ValueError, match=f"{hits} of {trials} at level {level}"):
        inference.proportion(hits, trials, level)


# -------------------------------------------------------------------------------- t-tests


@given(st.integers(2, 30), st.integers(2, 30), seeds, st.floats(-2, 2))
def test_welch_is_its_equation(n, m, seed, shift):
    a, b = (normal(n, 1, seed) + shift).flatten(), 2 * normal(m, 1, seed + 1).flatten()
    va, vb = a.var().item() / n, b.var().item() / m
    t = (a.mean() - b.mean()).item() / math.sqrt(va + vb)
    df = (va + vb) ** 2 / (va**2 / (n - 1) + vb**2 / (m - 1))
    found = inference.welch(a, b)
    assert found.statistic == pytest.approx(t)
    assert found.p_value == pytest.approx(stats.t.sf(t, df), rel=1e-6)
    assert found.samples == n + m


def test_the_effect_is_cohens_d():
    a, b = torch.tensor([3.0, 5.0, 7.0]), torch.tensor([1.0, 2.0, 3.0])
    found = inference.welch(a, b)
    assert found.measure == 3
    assert found.effect == pytest.approx(3 / math.sqrt((4 + 1) / 2))


@given(seeds)
def test_a_signed_test_never_accuses_in_the_wrong_direction_but_the_published_one_does(seed):
    low, high = normal(60, 1, seed).flatten(), normal(60, 1, seed + 1, mean=3.0).flatten()
    right, wrong = inference.welch(high, low), inference.welch(low, high)
    assert right.p_value < 1e-6
    assert wrong.p_value == pytest.approx(1 - right.p_value)
    assert not wrong.accuses()
    published = [inference.welch(*pair, form="published") for pair in ((high, low), (low, high))]
    assert published[0].p_value == pytest.approx(published[1].p_value)
    assert all(v.accuses() for v in published)


def test_the_published_form_pools_the_variances():
    a, b = normal(9, 1, 0).flatten(), 5 * normal(30, 1, 1).flatten()
    expected = stats.ttest_ind(a.numpy(), b.numpy()).pvalue / 2
    assert inference.welch(a, b, form="published").p_value == pytest.approx(expected)
    assert inference.welch(a, b).p_value != pytest.approx(expected)


def test_p_values_of_the_null_are_uniform():
    p = [inference.welch(*normal(24, 1, k).flatten().chunk(2)).p_value for k in range(400)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    sets = [normal(5, 1, k).flatten().tolist() for k in range(400)]
    p = [inference.against_controls(x, rest).p_value for x, *rest in sets]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_p_values_of_dataset_inference_are_uniform_where_nobody_was_trained():
    """Training, test and fresh features of one distribution: an independent encoder's."""

    def p_value(k: int) -> float:
        parts = (islands(60, 3 * k + j, noise=0.2) for j in range(3))
        return inference.mixture_test(*parts, components=2, covariance="diag").p_value

    assert stats.kstest([p_value(k) for k in range(150)], "uniform").pvalue > 0.01


def test_against_controls_is_the_t_of_one_more_encoder():
    found = inference.against_controls(0.9, [0.5, 0.6, 0.4])
    t = 0.4 / (0.1 * math.sqrt(4 / 3))
    assert found.statistic == pytest.approx(t)
    assert found.p_value == pytest.approx(1 / 2 - t / (2 * math.sqrt(2 + t * t)))  # closed, df = 2
    assert (found.measure, found.effect, found.samples) == (0.9, pytest.approx(4.0), 3)
    assert inference.against_controls(0.1, [0.5, 0.6, 0.4]).p_value > 0.9


def test_bad_samples():
    two = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=r"1 controls: .* at least 2 encoders"):
        inference.against_controls(0.5, [0.5])
    with pytest.raises(ValueError, match=r"all 2 controls measure 0\.5: without spread"):
        inference.against_controls(0.5, [0.5, 0.5])
    with pytest.raises(ValueError, match="1 and 2 samples: a t-test needs two"):
        inference.welch(two[:1], two)
    with pytest.raises(ValueError, match="which are not all the same"):
        inference.welch(torch.ones(4), torch.ones(4))
    with pytest.raises(ValueError, match="NaN or infinity"):
        inference.welch(torch.tensor([0.0, math.nan]), two)
    with pytest.raises(ValueError, match="unknown form 'two-sided': choose"):
        inference.welch(two, two, form="two-sided")


# ---------------------------------------------------------------------- dataset inference


def islands(n: int, seed: int, centres: int = 4, noise: float = 0.02) -> Tensor:
    """Return features near a few unit vectors, as an encoder has them of images it was trained on."""
    middle = torch.eye(8, dtype=torch.float64)[:centres]
    draws = torch.Generator().manual_seed(seed)
    chosen = torch.randint(centres, (n,), generator=draws)
    return middle[chosen] + noise * normal(n, 8, seed)


def test_memorised_features_are_accused_and_others_are_not():
    fitted, private = islands(200, 0), islands(120, 1)
    seen = inference.mixture_test(fitted, private, islands(120, 2, noise=0.2), components=4)
    same = inference.mixture_test(fitted, private, islands(120, 2), components=4)
    assert seen.p_value < 1e-10 < 0.01 < same.p_value
    assert seen.effect > 1 > abs(same.effect)
    assert seen.samples == 240


def test_the_private_side_is_the_likelier_one():
    fitted, far = islands(200, 0), islands(120, 1, noise=0.2)
    wrong = inference.mixture_test(fitted, far, islands(120, 2), components=4)
    assert wrong.p_value > 0.999
    assert wrong.measure < 0
    published = inference.mixture_test(fitted, far, islands(120, 2), components=4, form="published")
    assert published.p_value < 1e-6, "the published form accuses in the wrong direction"


def test_one_component_is_the_gaussian_of_the_sample():
    fitted, private, public = islands(100, 0), islands(40, 1), islands(40, 2)
    unit = [nn.functional.normalize(x, dim=1).numpy() for x in (fitted, private, public)]
    ridge = 1e-3
    cov = torch.from_numpy(unit[0]).T.cov(correction=0).numpy() + ridge * torch.eye(8).numpy()
    density = stats.multivariate_normal(unit[0].mean(0), cov)
    gap = density.logpdf(unit[1]).mean() - density.logpdf(unit[2]).mean()
    found = inference.mixture_test(fitted, private, public, components=1, ridge=ridge)
    assert found.measure == pytest.approx(gap, rel=1e-6)


@given(seeds, st.floats(0.01, 100))
def test_no_order_and_no_scale_of_the_features_hides_the_training_set(seed, factor):
    parts = [islands(80, 0), islands(60, 1), islands(60, 2, noise=0.1)]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    plain = inference.mixture_test(*parts, components=4)
    turned = inference.mixture_test(*(factor * x[:, order] for x in parts), components=4)
    assert turned.statistic == pytest.approx(plain.statistic, rel=1e-4)


def test_standardised_features_forget_their_units():
    parts = [islands(80, 0), islands(60, 1), islands(60, 2, noise=0.1)]
    units = torch.logspace(-3, 3, 8, dtype=torch.float64)
    options = {"components": 4, "covariance": "diag", "standardise": True}
    plain = inference.mixture_test(*parts, **options)
    other = inference.mixture_test(*(x * units + 5 for x in parts), **options)
    assert other.statistic == pytest.approx(plain.statistic, rel=1e-3)
    raw = inference.mixture_test(*(x * units + 5 for x in parts), components=4, covariance="diag")
    assert raw.statistic != pytest.approx(plain.statistic, rel=1e-3)


def test_features_that_no_mixture_fits():
    x = islands(12, 0)
    with pytest.raises(ValueError, match=r"13 components and 12 features .*: fewer features than"):
        inference.mixture_test(x, x, x, components=13)
    with pytest.raises(ValueError, match=r"\(12, 8\), \(12, 7\), \(12, 8\): three sets"):
        inference.mixture_test(x, x[:, :7], x)
    with pytest.raises(ValueError, match="three sets"):
        inference.mixture_test(x, x[:0], x)
    with pytest.raises(ValueError, match="NaN or infinity"):
        inference.mixture_test(x, x / 0, x)


def test_the_split_is_a_permutation_drawn_from_its_seed():
    images = torch.arange(21)
    fitted, tested = inference.split(images)
    assert torch.equal(torch.cat([fitted, tested]).sort().values, images)
    assert len(fitted) == 10
    assert torch.equal(inference.split(images)[0], fitted)
    assert not torch.equal(inference.split(images, seed=1)[0], fitted)


def test_dataset_inference_reads_any_dimension(tiny):
    private, public = (data.load("shapes", split=s, n=60).images for s in ("train", "test"))
    found = inference.dataset_inference(tiny, private, public, components=2, ridge=1e-3)
    wide = inference.dataset_inference(
        obfuscation.pad(tiny), private, public, components=2, ridge=1e-3
    )
    parts = [encoders.embed(tiny, x) for x in (*inference.split(private), public)]
    assert found == inference.mixture_test(*parts, components=2, ridge=1e-3)
    assert found.samples == 90
    assert wide.statistic == pytest.approx(found.statistic, rel=1e-2)
    same = inference.dataset_inference(tiny, private, private, components=2, ridge=1e-3)
    assert same.p_value > 1e-3, "an untrained encoder does not prefer half of a set to the whole"


# ------------------------------------------------------------------------- obfuscation


def test_each_obfuscation_is_its_affine_map(tiny):
    images = data.load("shapes", n=8).images
    plain = encoders.embed(tiny, images)
    shuffled = encoders.embed(obfuscation.shuffle(tiny), images)
    assert torch.equal(shuffled.sort(1).values, plain.sort(1).values)
    assert not torch.equal(shuffled, plain)
    assert torch.equal(encoders.embed(obfuscation.scale(tiny, -4.0), images), -4 * plain)
    padded = encoders.embed(obfuscation.pad(tiny, extra=3), images)
    assert padded.shape == (8, tiny.dim + 3)
    assert torch.equal(padded.norm(dim=1).round(decimals=4), plain.norm(dim=1).round(decimals=4))
    assert (padded == 0).all(0).sum() == 3 + (plain == 0).all(0).sum()


@pytest.mark.parametrize("name", obfuscation.OBFUSCATIONS)
def test_an_obfuscation_can_be_undone(tiny, name):
    images = data.load("shapes", n=8).images
    net = obfuscation.OBFUSCATIONS[name](tiny)
    answers = encoders.embed(net, images).double()
    back = (answers - net.bias) @ torch.linalg.pinv(net.weight.double()).T
    torch.testing.assert_close(back.float(), encoders.embed(tiny, images), atol=1e-2, rtol=1e-2)
    assert net.dim == answers.shape[1]


def test_obfuscations_stack_and_draw_from_their_seed(tiny):
    images = data.load("shapes", n=4).images
    both = obfuscation.shuffle(obfuscation.scale(tiny, 2.0))
    assert torch.equal(
        encoders.embed(both, images), 2 * encoders.embed(obfuscation.shuffle(tiny), images)
    )
    for make in (obfuscation.shuffle, obfuscation.affine):
        one, same, other = (encoders.embed(make(tiny, seed=s), images) for s in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_impossible_obfuscations(tiny):
    for factor in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"factor={factor}"):
            obfuscation.scale(tiny, factor)
    with pytest.raises(ValueError, match="extra=0"):
        obfuscation.pad(tiny, extra=0)
    with pytest.raises(ValueError, match="does not take the encoder's 96 features"):
        obfuscation.Obfuscated(tiny, torch.eye(3), torch.zeros(3))
