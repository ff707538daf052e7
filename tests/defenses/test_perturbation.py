"""Defences: closed forms, literal references, the statistics of the noise, and bad parameters."""

import math

import numpy as np
import pytest
import torch

from contsteal import defenses
from contsteal.defenses.b4b import B4B, UserTransform
from contsteal.defenses.detectors import Prada, SimilarQueries
from contsteal.defenses.perturbation import (
    GaussianNoise,
    Normalise,
    PredictionPoisoning,
    Rounding,
    TopK,
)
from contsteal.defenses.proof_of_work import ProofOfWork

ANSWERS = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)) * 3
ALL = [Normalise(), GaussianNoise(0.5), Rounding(1), TopK(3)]


@pytest.mark.parametrize("defense", ALL, ids=repr)
def test_shape_and_dtype_stay_and_the_input_is_left_alone(defense):
    before = ANSWERS.clone()
    out = defense(ANSWERS, "u")
    assert out.shape == ANSWERS.shape
    assert out.dtype == ANSWERS.dtype
    assert ANSWERS.equal(before)
    assert not out.equal(ANSWERS)
    assert eval(repr(defense), vars(defenses)).__class__ is defense.__class__


def test_normalise_keeps_the_direction_and_removes_the_length():
    out = Normalise()(ANSWERS, "u")
    torch.testing.assert_close(out.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(out * ANSWERS.norm(dim=1, keepdim=True), ANSWERS)
    assert Normalise()(torch.zeros(1, 3), "u").equal(torch.zeros(1, 3)), "a zero has no direction"


def test_noise_has_the_mean_and_spread_that_were_asked_for():
    n, std, mean = 200_000, 0.7, -0.3
    noise = GaussianNoise(std, mean)(torch.zeros(n // 10, 10), "u").double()
    assert abs(noise.mean().item() - mean) < 4.5 * std / math.sqrt(n)
    assert abs(noise.std().item() - std) < 4.5 * std / math.sqrt(2 * n)
    inside = ((noise - mean).abs() < std).double().mean().item()
    assert abs(inside - 0.6827) < 4.5 * math.sqrt(0.6827 * 0.3173 / n), "it is Gaussian"


def test_noise_is_added_to_the_answer():
    zero = GaussianNoise(0.5)(torch.zeros_like(ANSWERS), "u")
    torch.testing.assert_close(GaussianNoise(0.5)(ANSWERS, "u"), ANSWERS + zero)
    assert GaussianNoise(0.0)(ANSWERS, "u").equal(ANSWERS)
    assert GaussianNoise(0.0, mean=2.0)(ANSWERS, "u").equal(ANSWERS + 2)


def test_noise_is_fresh_per_call_and_repeats_with_its_seed():
    def answers(seed: int, users: str) -> list[torch.Tensor]:
        noise = GaussianNoise(1.0, seed=seed)
        return [noise(ANSWERS, user) for user in users]

    first, second, other = answers(0, "aab")
    assert not first.equal(second), "fresh per call"
    assert not first.equal(other), "another user, other noise"
    assert all(x.equal(y) for x, y in zip(answers(0, "aab"), (first, second, other), strict=True))
    assert answers(0, "baa")[1].equal(first), "what others ask does not matter"
    assert not answers(1, "a")[0].equal(first)
    assert not first[0].sub(ANSWERS[0]).equal(first[1] - ANSWERS[1]), "every row has its own"


def test_noise_does_not_read_the_global_generator():
    torch.manual_seed(0)
    first = GaussianNoise(1.0)(ANSWERS, "u")
    torch.manual_seed(1)
    assert GaussianNoise(1.0)(ANSWERS, "u").equal(first)


@pytest.mark.parametrize("decimals", [-1, 0, 1, 2, 3])
def test_rounding_equals_numpy(decimals):
    expected = np.round(ANSWERS.double().numpy(), decimals)
    out = Rounding(decimals)(ANSWERS, "u")
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=1e-6)
    assert (out - ANSWERS).abs().max() <= 0.5 * 10.0**-decimals + 1e-6


@pytest.mark.parametrize("k", [1, 3, 11, 12])
def test_top_k_equals_a_literal_loop(k):
    expected = torch.zeros_like(ANSWERS)
    for i, row in enumerate(ANSWERS.tolist()):
        for j in sorted(range(12), key=lambda j: -row[j])[:k]:
            expected[i, j] = row[j]
    assert TopK(k)(ANSWERS, "u").equal(expected)


def test_top_k_keeps_k_of_equal_values():
    assert TopK(2)(torch.ones(3, 4), "u").sum(1).tolist() == [2, 2, 2]


def test_the_order_of_a_chain_matters():
    row = torch.tensor([[3.0, 4.0]])
    assert Rounding(0)(Normalise()(row, "u"), "u").equal(torch.tensor([[1.0, 1.0]]))
    torch.testing.assert_close(Normalise()(Rounding(0)(row, "u"), "u"), torch.tensor([[0.6, 0.8]]))


BAD = [
    ("gaussian-noise", {"std": -0.1}, "std=-0.1"),
    ("gaussian-noise", {"std": math.nan}, "std=nan"),
    ("gaussian-noise", {"std": math.inf}, "std=inf"),
    ("gaussian-noise", {"std": 0.1, "mean": math.nan}, "mean=nan"),
    ("rounding", {"decimals": 1.5}, r"decimals=1\.5"),
    ("rounding", {"decimals": 13}, "decimals=13"),
    ("rounding", {"decimals": math.nan}, "decimals=nan"),
    ("top-k", {"k": 0}, "k=0"),
    ("top-k", {"k": -3}, "k=-3"),
    ("top-k", {"k": 1.5}, r"k=1\.5"),
]


@pytest.mark.parametrize(("name", "options", "told"), BAD)
def test_bad_parameters_are_named(name, options, told):
    with pytest.raises(ValueError, match=told):
        defenses.DEFENSES[name](**options)


def test_top_k_above_the_dimension():
    with pytest.raises(ValueError, match=r"k=13.*12 coordinates"):
        TopK(13)(ANSWERS, "u")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("normalise", {}, Normalise()),
        ("gaussian-noise", {"std": 0.3, "mean": 1}, GaussianNoise(0.3, 1)),
        ("rounding", {"decimals": 2}, Rounding(2)),
        ("top-k", {"k": 4}, TopK(4)),
        ("user-transform", {"transform": "pad"}, UserTransform("pad")),
        ("b4b", {"lam": 0.1, "beta": 0.5, "seed": 3}, B4B(0.1, beta=0.5, seed=3)),
        ("similar-queries", {"threshold": 0.9}, SimilarQueries(0.9)),
        ("prada", {"classes": "argmax"}, Prada(classes="argmax")),
        ("proof-of-work", {"base": 1.1}, ProofOfWork(base=1.1)),
        ("prediction-poisoning", {"eps": 0.5}, PredictionPoisoning(0.5)),
    ],
)
def test_build_by_name(name, options, expected):
    built = defenses.build(name, **options)
    assert repr(built) == repr(expected)
    assert built(ANSWERS, "u").equal(expected(ANSWERS, "u"))


CHANGES = [
    (B4B, {}, ["lam=1e-05", "alpha=2.0", "beta=0.7", "bits=11", "families=20", "transform='pad'"]),
    (B4B, {"transform": "pad"}, ["padding=65"]),
    (UserTransform, {}, ["transform='shuffle'"]),
    (UserTransform, {"transform": "pad"}, ["padding=65"]),
    (
        SimilarQueries,
        {"threshold": 0.5},
        ["measure='l2'", "action='record'", "mean=0.0", "std=1.0", "memory=9", "share=0.4"],
    ),
    (Prada, {}, ["threshold=0.8", "classes='argmax'", "action='refuse'", "memory=9"]),
    (PredictionPoisoning, {"eps": 0.5}, ["scale=2.0"]),
    (ProofOfWork, {}, ["cost='entropy'", "intercept=1.0", "slope=0.5", "base=1.01", "least=0.2"]),
]


@pytest.mark.parametrize(("make", "given", "changes"), CHANGES)
def test_results_are_kept_by_a_repr_that_tells_every_parameter(make, given, changes):
    for change in changes:
        changed = eval(f"make(**{{**given, **dict({change})}})", {"make": make, "given": given})
        assert repr(changed) != repr(make(**given))
        assert change.split("=")[1] in repr(changed)


def test_build_lists_the_known_names():
    with pytest.raises(ValueError, match=r"'topk'.*normalise, gaussian-noise.*, prada, proof"):
        defenses.build("topk", k=1)


@pytest.mark.parametrize("options", [{"n": 3}, {}, {"k": 3, "std": 1}])
def test_build_with_a_wrong_option(options):
    with pytest.raises(ValueError, match="'top-k' does not take"):
        defenses.build("top-k", **options)
