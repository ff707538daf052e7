"""B4B and its per-user spaces: closed forms, a literal count of buckets, and what undoes them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contsteal import steal
from contsteal.defenses.b4b import B4B, UserTransform, _planes
from contsteal.seeds import generator

DIM = 16
ANSWERS = torch.randn(300, DIM, generator=generator("answers"))
CPU = torch.device("cpu")


def literal_coverage(answers: torch.Tensor, bits: int, families: int, seed: int = 0) -> list[float]:
    """The share of occupied buckets after each answer, by sets of strings."""
    planes = _planes(seed, answers.shape[1], families * bits, CPU)
    seen, told = [set() for _ in range(families)], []
    for row in answers:
        for family in range(families):
            own = planes[:, family * bits : (family + 1) * bits]
            seen[family].add("".join("1" if row @ own[:, j] > 0 else "0" for j in range(bits)))
        told.append(sum(map(len, seen)) / families / 2**bits)
    return told


# ------------------------------------------------------------------------------- coverage


@pytest.mark.parametrize(("bits", "families"), [(1, 1), (2, 3), (6, 1), (12, 2)])
def test_coverage_counts_buckets(bits, families):
    b4b, rows = B4B(bits=bits, families=families), ANSWERS[:80]
    expected = literal_coverage(rows, bits, families)
    np.testing.assert_allclose(b4b._visit(b4b._of("u"), rows), expected, rtol=0, atol=1e-12)
    assert b4b.coverage("u") == pytest.approx(expected[-1])
    assert 0 < b4b.coverage("u") <= 1


@given(cuts=st.lists(st.integers(1, 299), max_size=6, unique=True))
def test_coverage_does_not_depend_on_the_batches(cuts):
    whole, parts = B4B(bits=6), B4B(bits=6)
    at_once = whole._visit(whole._of("u"), ANSWERS)
    split = ANSWERS.tensor_split(sorted(cuts))
    np.testing.assert_array_equal(
        np.concatenate([parts._visit(parts._of("u"), part) for part in split]), at_once
    )
    assert (np.diff(at_once) >= 0).all(), "coverage never falls"


def test_repeats_cost_nothing():
    b4b = B4B(bits=10)
    b4b(ANSWERS[:50], "u")
    before = b4b.coverage("u")
    b4b(ANSWERS[:50].repeat(3, 1), "u")
    assert b4b.coverage("u") == before


def test_many_bits_are_allowed_and_a_user_stays_small():
    b4b = B4B(bits=24)
    b4b(ANSWERS, "u")
    assert b4b.coverage("u") == pytest.approx(300 / 2**24, rel=0.02)
    assert len(b4b.state_dict()["buckets"]) == 2**21


# ---------------------------------------------------------------------------------- noise


def test_sigma_is_the_papers():
    paper = B4B(lam=1e-6, alpha=1.0, beta=0.8)
    assert paper.sigma(0.0) == 0
    assert paper.sigma(0.8) == pytest.approx(1 - 1e-6, rel=1e-12)
    for coverage in np.linspace(0.05, 1, 20):
        literal = 1e-6 * (math.exp(math.log(1.0 / 1e-6) * coverage / 0.8) - 1)
        assert paper.sigma(coverage) == pytest.approx(literal, rel=1e-12)
    for coverage, known in ((0.2, 3.1e-5), (0.4, 1e-3), (0.6, 0.032), (0.7, 0.18), (0.8, 1.0)):
        assert paper.sigma(coverage) == pytest.approx(known, rel=0.03)
    assert B4B(alpha=1000.0, beta=0.6).sigma(0.6) == pytest.approx(1000, rel=1e-6)


def test_an_answer_gets_the_noise_of_its_coverage():
    rows = torch.randn(40_000, 4, generator=generator("many"))
    b4b = B4B(lam=0.1, alpha=0.5, beta=0.7, bits=1, transform="none")
    noise = (b4b(rows, "u") - rows).double()
    changed = literal_coverage(rows[:50], 1, 1).index(1.0)  # from here on both buckets are known
    sigma = 0.1 * (5 ** (1 / 0.7) - 1)
    assert abs(noise[changed:].std().item() / sigma - 1) < 4.5 / math.sqrt(2 * 160_000)
    assert abs(noise.mean().item()) < 4.5 * sigma / math.sqrt(160_000)
    first = torch.cat([
        (B4B(0.1, 0.5, 0.7, 1, transform="none", seed=s)(rows[:1], "u") - rows[:1]) for s in range(2000)
    ])  # fmt: skip
    half = 0.1 * (5 ** (0.5 / 0.7) - 1)
    assert abs(first.double().std().item() / half - 1) < 4.5 / math.sqrt(2 * 8000)


def test_noise_is_fresh_in_every_call():
    b4b = B4B(lam=0.5, alpha=1.0, bits=1, transform="none")
    b4b(ANSWERS, "u")
    assert not b4b(ANSWERS, "u").equal(b4b(ANSWERS, "u"))


def test_who_saw_little_gets_almost_the_truth():
    out = B4B(transform="none")(ANSWERS[:20], "u")
    torch.testing.assert_close(out, ANSWERS[:20], rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------- spaces


def test_every_transformation_is_what_it_says():
    def own(kind: str) -> torch.Tensor:
        return UserTransform(kind, padding=3)(ANSWERS, "ann")

    at_zero = UserTransform("affine")(torch.cat([torch.zeros(1, DIM), torch.eye(DIM)]), "ann")
    weight, bias = at_zero[1:] - at_zero[0], at_zero[0]
    torch.testing.assert_close(own("affine"), ANSWERS @ weight + bias, rtol=1e-4, atol=1e-5)
    assert weight.abs().max() <= (3 / DIM) ** 0.5
    assert bias.abs().max() <= 1
    slope = (own("scale")[0] - own("scale")[1]) / (ANSWERS[0] - ANSWERS[1])
    torch.testing.assert_close(own("scale") - own("scale")[0], slope * (ANSWERS - ANSWERS[0]))
    assert own("pad").shape == (300, DIM + 3)
    assert own("pad")[:, :DIM].equal(ANSWERS)
    assert own("pad")[:, DIM:].equal(own("pad")[:1, DIM:].expand(300, -1))
    assert own("shuffle").sort(1).values.equal(ANSWERS.sort(1).values)
    assert not own("shuffle").equal(ANSWERS)
    assert set(own("binary").unique().tolist()) == {0.0, 1.0}
    assert own("none").equal(ANSWERS)


def test_binary_is_the_side_of_a_plane_through_a_point_of_the_cube():
    draws = generator("disguise", 0, "ann", 0, "binary")
    normals = torch.randn(DIM, DIM, generator=draws)
    points = torch.rand(DIM, DIM, generator=draws)
    out = UserTransform("binary")(ANSWERS[:20], "ann")
    for i in range(20):
        for j in range(DIM):
            side = sum((ANSWERS[i, k] - points[k, j]) * normals[k, j] for k in range(DIM))
            assert out[i, j] == float(side > 0)


def test_lengths_stay_under_affine():
    out = UserTransform("affine")(ANSWERS * 100, "ann")
    assert out.norm(dim=1).mean() / (ANSWERS * 100).norm(dim=1).mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["affine", "scale", "pad", "shuffle", "binary", "pad+shuffle"])
def test_a_space_belongs_to_one_user_and_seed(kind):
    first = UserTransform(kind)(ANSWERS, "ann")
    assert UserTransform(kind)(ANSWERS, "ann").equal(first)
    assert not UserTransform(kind)(ANSWERS, "bob").equal(first)
    assert not UserTransform(kind, seed=1)(ANSWERS, "ann").equal(first)


def test_b4b_adds_the_noise_before_the_map():
    plain = B4B(lam=0.5, alpha=1.0, bits=2, transform="none")(ANSWERS, "u")
    out = B4B(lam=0.5, alpha=1.0, bits=2, transform="affine+pad", padding=5)(ANSWERS, "u")
    assert out.equal(UserTransform("affine+pad", padding=5)(plain, "u"))


@pytest.mark.parametrize("kind", ["affine", "scale", "pad+shuffle", "affine+pad+shuffle"])
def test_shared_queries_undo_linear_spaces(kind):
    b4b = B4B(transform=kind)
    ann, bob = b4b(ANSWERS, "ann"), b4b(ANSWERS, "bob")
    weight, bias = steal.learn_remap(bob[:100], ann[:100])
    mapped = steal.remap(bob[100:], weight, bias)
    assert steal.cosine_distance(mapped, ann[100:]) < 1e-4
    assert steal.cosine_distance(bob[100:], ann[100:]) > 0.1


def test_binary_spaces_resist_a_linear_map():
    b4b = B4B(transform="binary")
    weight, bias = steal.learn_remap(b4b(ANSWERS, "bob")[:200], ANSWERS[:200])
    mapped = steal.remap(b4b(ANSWERS, "bob")[200:], weight, bias)
    assert steal.cosine_distance(mapped, ANSWERS[200:]) > 0.1


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lam": 0.0}, r"lam=0\.0: above 0"),
        ({"lam": -1e-6}, "lam=-1e-06"),
        ({"lam": math.nan}, "lam=nan"),
        ({"alpha": 1e-6}, "alpha=1e-06: above lam=1e-06"),
        ({"alpha": math.inf}, "alpha=inf"),
        ({"beta": 0.0}, "beta=0"),
        ({"beta": -0.5}, r"beta=-0\.5"),
        ({"beta": 0.01}, r"beta=0\.01: at least 0\.173"),
        ({"bits": 0}, "bits=0"),
        ({"bits": 25}, "bits=25: a whole number from 1 to 24"),
        ({"bits": 12.0}, r"bits=12\.0"),
        ({"families": 0}, "families=0"),
        ({"padding": 0}, "padding=0"),
        ({"transform": "rotate"}, "'rotate'.*affine, scale, pad, shuffle, binary.*'none'"),
        ({"transform": "affine+"}, "unknown transformation ''"),
    ],
)
def test_bad_parameters_are_named(options, told):
    with pytest.raises(ValueError, match=told):
        B4B(**options)


def test_the_least_beta_is_still_finite():
    b4b = B4B(beta=0.18, bits=1, transform="none")
    assert b4b(ANSWERS, "u").isfinite().all()


def test_padding_nothing_is_refused():
    with pytest.raises(ValueError, match="padding=0"):
        UserTransform("pad", padding=0)
