"""Answer by answer: closed forms, literal references, the statistics of noise and poison."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from contsteal.defenses import GaussianNoise, Normalise, PredictionPoisoning, Rounding, TopK
from contsteal.seeds import generator

ROWS = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)) * 3


def test_normalise_keeps_the_direction_and_removes_the_length():
    out = Normalise()(ROWS, "u")
    torch.testing.assert_close(out.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(out * ROWS.norm(dim=1, keepdim=True), ROWS)
    assert Normalise()(torch.zeros(1, 3), "u").equal(torch.zeros(1, 3)), "a zero has no direction"


def test_noise_has_its_mean_and_standard_deviation_and_is_gaussian():
    noise = GaussianNoise(0.7, -0.3)(torch.zeros(20_000, 10), "u").flatten()
    assert stats.kstest(noise.numpy(), "norm", (-0.3, 0.7)).pvalue > 0.01


def test_noise_is_added_to_the_answer_and_fresh_per_row_and_call():
    noise = GaussianNoise(0.5)
    zero = noise(torch.zeros_like(ROWS), "u")
    torch.testing.assert_close(GaussianNoise(0.5)(ROWS, "u"), ROWS + zero)
    assert not noise(torch.zeros_like(ROWS), "u").equal(zero)
    assert not zero[0].equal(zero[1])
    assert GaussianNoise(0.0)(ROWS, "u").equal(ROWS)
    assert GaussianNoise(0.0, mean=2.0)(ROWS, "u").equal(ROWS + 2)


@pytest.mark.parametrize("decimals", [-1, 0, 1, 2, 3])
def test_rounding_equals_numpy(decimals):
    out = Rounding(decimals)(ROWS, "u")
    np.testing.assert_allclose(out, np.round(ROWS.double().numpy(), decimals), rtol=0, atol=1e-6)
    assert (out - ROWS).abs().max() <= 0.5 * 10.0**-decimals + 1e-6


@pytest.mark.parametrize("k", [1, 3, 11, 12])
def test_top_k_equals_a_literal_loop(k):
    kept = [sorted(row)[-k:] for row in ROWS.tolist()]
    expected = [[x * (x in top) for x in row] for row, top in zip(ROWS.tolist(), kept, strict=True)]
    assert TopK(k)(ROWS, "u").equal(torch.tensor(expected))


def test_top_k_keeps_k_of_equal_values_and_at_most_all():
    assert TopK(2)(torch.ones(3, 4), "u").sum(1).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match=r"k=13.*12 coordinates"):
        TopK(13)(ROWS, "u")


# ---------------------------------------------------------------------- prediction poisoning

TARGETS = 3 * torch.randn(40, 6, generator=generator("answers")).double()


def cosine(poison: PredictionPoisoning, answers: torch.Tensor) -> torch.Tensor:
    """The cosine of a surrogate's gradient on these answers with that on the true ones."""
    at = poison.surrogate(6).double()
    return F.cosine_similarity(TARGETS - at, answers - at)


@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_the_angle_is_the_largest_one_and_the_step_is_eps(eps):
    poison = PredictionPoisoning(eps)
    out, radius = poison(TARGETS, "u"), (TARGETS - poison.surrogate(6)).norm(dim=1)
    assert radius.min() > 1
    torch.testing.assert_close((out - TARGETS).norm(dim=1), torch.full((40,), eps).double())
    torch.testing.assert_close(cosine(poison, out), (1 - (eps / radius).square()).sqrt())


def test_a_large_ball_reverses_the_gradient():
    poison = PredictionPoisoning(50.0)
    torch.testing.assert_close(cosine(poison, poison(TARGETS, "u")), -torch.ones(40).double())


def test_it_is_the_angle_between_gradients_of_a_last_layer():
    poison = PredictionPoisoning(1.0)
    out, features = poison(TARGETS, "u"), torch.randn(9, generator=generator("h")).double()
    layer = torch.outer(poison.surrogate(6).double(), features) / features.square().sum()  # Wh = F
    for i in range(5):
        weight = layer.clone().requires_grad_()
        grads = [
            torch.autograd.grad((weight @ features - y).square().mean(), weight)[0].flatten()
            for y in (TARGETS[i], out[i])
        ]
        torch.testing.assert_close(F.cosine_similarity(*grads, dim=0), cosine(poison, out)[i])


def test_directions_are_fresh_and_average_to_a_pull_towards_the_surrogate():
    poison = PredictionPoisoning(1.0)
    steps = torch.stack([poison(TARGETS[:1], "u")[0] - TARGETS[0] for _ in range(4000)])
    away = TARGETS[0] - poison.surrogate(6)
    pull = -away / away.square().sum()
    torch.testing.assert_close(steps.mean(0), pull, rtol=0, atol=4.5 / math.sqrt(4000))


def test_the_surrogate_is_one_point_per_seed_of_the_given_scale():
    point = PredictionPoisoning(1.0).surrogate(6)
    assert PredictionPoisoning(2.0).surrogate(6).equal(point)
    assert not PredictionPoisoning(1.0, seed=1).surrogate(6).equal(point)
    lengths = [PredictionPoisoning(1.0, scale=3.0, seed=s).surrogate(512).norm() for s in range(9)]
    assert sum(lengths) / 9 == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("row", [torch.zeros(1, 6), torch.zeros(1, 1)])
def test_an_answer_at_the_surrogate_stays_finite(row):
    assert PredictionPoisoning(0.5, scale=0.0)(row, "u").isfinite().all()
