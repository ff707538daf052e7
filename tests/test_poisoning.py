"""Prediction poisoning against autograd, closed forms, and random search in the ball."""

import math

import pytest
import torch
import torch.nn.functional as F

from contsteal.defenses.perturbation import PredictionPoisoning
from contsteal.seeds import generator

ANSWERS = 3 * torch.randn(40, 6, generator=generator("answers")).double()


def cosine(poison: PredictionPoisoning, answers: torch.Tensor) -> torch.Tensor:
    at = poison.surrogate(6).double()
    return F.cosine_similarity(ANSWERS - at, answers - at)


@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_the_angle_is_the_largest_one_and_the_step_is_eps(eps):
    poison = PredictionPoisoning(eps)
    out = poison(ANSWERS, "u")
    radius = (ANSWERS - poison.surrogate(6)).norm(dim=1)
    assert radius.min() > 1
    torch.testing.assert_close((out - ANSWERS).norm(dim=1), torch.full((40,), eps).double())
    torch.testing.assert_close(cosine(poison, out), (1 - (eps / radius).square()).sqrt())


def test_no_other_step_in_the_ball_turns_the_gradient_further():
    poison = PredictionPoisoning(0.7)
    best = cosine(poison, poison(ANSWERS, "u"))
    draws = generator("search")
    for _ in range(300):
        step = F.normalize(torch.randn(40, 6, generator=draws).double(), dim=1)
        length = 0.7 * torch.rand(40, 1, generator=draws).double().sqrt()
        assert (cosine(poison, ANSWERS + length * step) >= best - 1e-12).all()


def test_a_large_ball_reverses_the_gradient():
    poison = PredictionPoisoning(50.0)
    torch.testing.assert_close(cosine(poison, poison(ANSWERS, "u")), -torch.ones(40).double())


def test_it_is_the_angle_between_gradients_of_a_last_layer():
    poison = PredictionPoisoning(1.0)
    out, features = poison(ANSWERS, "u"), torch.randn(9, generator=generator("h")).double()
    at = poison.surrogate(6).double()
    layer = torch.outer(at, features) / features.square().sum()  # so that W h = F
    for i in range(5):
        weight = layer.clone().requires_grad_()
        grads = [
            torch.autograd.grad((weight @ features - y).square().mean(), weight)[0].flatten()
            for y in (ANSWERS[i], out[i])
        ]
        expected = cosine(poison, out)[i]
        torch.testing.assert_close(F.cosine_similarity(*grads, dim=0), expected)


def test_directions_are_fresh_and_average_to_a_pull_towards_the_surrogate():
    poison = PredictionPoisoning(1.0)
    steps = torch.stack([poison(ANSWERS[:1], "u")[0] - ANSWERS[0] for _ in range(4000)])
    away = ANSWERS[0] - poison.surrogate(6)
    pull = -away / away.square().sum()
    torch.testing.assert_close(steps.mean(0), pull, rtol=0, atol=4.5 / math.sqrt(4000))


def test_the_surrogate_is_one_point_per_seed():
    assert PredictionPoisoning(1.0).surrogate(6).equal(PredictionPoisoning(2.0).surrogate(6))
    assert (
        not PredictionPoisoning(1.0, seed=1)
        .surrogate(6)
        .equal(PredictionPoisoning(1.0).surrogate(6))
    )
    lengths = [PredictionPoisoning(1.0, scale=3.0, seed=s).surrogate(512).norm() for s in range(9)]
    assert sum(lengths) / 9 == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("row", [torch.zeros(1, 6), torch.zeros(1, 1)])
def test_an_answer_at_the_surrogate_stays_finite(row):
    assert PredictionPoisoning(0.5, scale=0.0)(row, "u").isfinite().all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"eps": -1}, "eps=-1"),
        ({"eps": math.nan}, "eps=nan"),
        ({"eps": 1, "scale": -1}, "scale=-1"),
        ({"eps": 1, "scale": math.inf}, "scale=inf"),
    ],
)
def test_bad_parameters_are_named(options, told):
    with pytest.raises(ValueError, match=told):
        PredictionPoisoning(**options)
