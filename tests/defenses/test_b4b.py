"""B4B and its per-user spaces: closed forms, a literal count of buckets, and what undoes them."""

import itertools
import math

import numpy as np
import pytest
import torch

from contsteal import evaluate, steal
from contsteal.defenses.b4b import B4B, TRANSFORMS, UserTransform, _planes
from contsteal.seeds import generator

DIM = 16
ROWS = torch.randn(300, DIM, generator=generator("answers"))


def literal_coverage(answers: torch.Tensor, bits: int, families: int) -> list[float]:
    """The share of occupied buckets after each answer, by sets of strings."""
    planes = _planes(0, answers.shape[1], families * bits, torch.device("cpu"))
    seen, shares = [set() for _ in range(families)], []
    for row in answers:
        for family in range(families):
            part = planes[:, family * bits : (family + 1) * bits]
            seen[family].add("".join("1" if row @ part[:, j] > 0 else "0" for j in range(bits)))
        shares.append(sum(map(len, seen)) / families / 2**bits)
    return shares


@pytest.mark.parametrize("split", [1, 33, 80])
@pytest.mark.parametrize(("bits", "families"), [(1, 1), (2, 3), (6, 1), (12, 2)])
def test_coverage_counts_buckets_however_batched(bits, families, split):
    b4b, rows = B4B(bits=bits, families=families), ROWS[:80]
    expected = literal_coverage(rows, bits, families)
    covered = [b4b._visit(b4b._of("u"), part) for part in rows.split(split)]
    np.testing.assert_allclose(np.concatenate(covered), expected, rtol=0, atol=1e-12)
    assert b4b.coverage("u") == pytest.approx(expected[-1])


def test_repeats_raise_no_coverage_and_get_fresh_noise():
    b4b = B4B(lam=0.5, bits=10, transform="none")
    first = b4b(ROWS[:50], "u")
    before = b4b.coverage("u")
    again = b4b(ROWS[:50], "u")
    assert b4b.coverage("u") == before
    assert not b4b(ROWS[:50], "u").equal(again)
    assert not again.equal(first)


def test_many_bits_are_allowed_and_a_user_stays_small():
    b4b = B4B(bits=24)
    b4b(ROWS, "u")
    assert b4b.coverage("u") == pytest.approx(300 / 2**24, rel=0.02)
    assert len(b4b._users["u"].buckets) == 2**21


def test_answers_of_another_dimension_fall_into_the_same_buckets():
    b4b, alone = B4B(bits=4), B4B(bits=4)
    b4b(ROWS[:40], "ann")
    before = b4b.coverage("ann")
    assert b4b(ROWS[:40, :3], "ann").shape == (40, 3)
    alone(ROWS[:40, :3], "ann")
    assert max(before, alone.coverage("ann")) <= b4b.coverage("ann") <= 1


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
    assert B4B(beta=0.1).sigma(0.2) == B4B(beta=0.1).sigma(1.0), "beyond twice beta it stays"
    assert B4B(beta=1e-6, bits=1)(ROWS, "u").square().isfinite().all()
    assert B4B(lam=1e-6, alpha=4e5, beta=1e-6, bits=1)(ROWS, "u").square().isfinite().all()
    for lam, alpha in ((1e-200, 1e200), (1e-6, 1e16), (1e-30, 1.0)):
        with pytest.raises(ValueError, match=r"alpha\^2 / lam, would overflow"):
            B4B(lam=lam, alpha=alpha)


def test_calibration_gives_a_covering_user_the_noise_that_was_asked_for():
    for coverage, noise in ((0.04, 0.01), (0.5, 0.2)):
        fitted = B4B(bits=8, families=3).calibrated(coverage, noise)
        assert (fitted.bits, fitted.families) == (8, 3)
        exact = math.log(1e6) * coverage / math.log1p(noise / 1e-6)
        assert fitted.beta == pytest.approx(exact, rel=0.05), "two digits of it"
        assert fitted.sigma(coverage) == pytest.approx(noise, rel=1)
    for bad in ((0.0, 0.1), (0.1, 0.0), (-0.1, 0.1), (math.nan, 0.1)):
        with pytest.raises(ValueError, match=r"B4B (coverage|noise)"):
            B4B().calibrated(*bad)


def test_an_answer_gets_the_noise_of_its_coverage():
    rows = torch.randn(40_000, 4, generator=generator("many"))
    options = {"lam": 0.1, "alpha": 0.5, "beta": 0.7, "bits": 1, "transform": "none"}
    b4b = B4B(**options)
    noise = (b4b(rows, "u") - rows).double()
    changed = literal_coverage(rows[:50], 1, 1).index(1.0)  # from here on both buckets are known
    sigma = 0.1 * (5 ** (1 / 0.7) - 1)
    assert abs(noise[changed:].std().item() / sigma - 1) < 4.5 / math.sqrt(2 * 160_000)
    assert abs(noise.mean().item()) < 4.5 * sigma / math.sqrt(160_000)
    first = [B4B(**options, seed=s)(rows[:1], "u") - rows[:1] for s in range(2000)]
    half = 0.1 * (5 ** (0.5 / 0.7) - 1)
    assert abs(torch.cat(first).double().std().item() / half - 1) < 4.5 / math.sqrt(2 * 8000)


# --------------------------------------------------------------------------------- spaces


def test_every_transformation_is_what_it_says():
    out = {kind: UserTransform(kind, padding=3)(ROWS, "ann") for kind in (*TRANSFORMS, "none")}
    at_zero = UserTransform("affine")(torch.cat([torch.zeros(1, DIM), torch.eye(DIM)]), "ann")
    weight, bias = at_zero[1:] - at_zero[0], at_zero[0]
    torch.testing.assert_close(out["affine"], ROWS @ weight + bias, rtol=1e-4, atol=1e-5)
    assert weight.abs().max() <= (3 / DIM) ** 0.5
    assert bias.abs().max() <= 1
    slope = (out["scale"][0] - out["scale"][1]) / (ROWS[0] - ROWS[1])
    torch.testing.assert_close(out["scale"] - out["scale"][0], slope * (ROWS - ROWS[0]))
    assert out["pad"].shape == (300, DIM + 3)
    assert out["pad"][:, :DIM].equal(ROWS)
    assert out["pad"][:, DIM:].equal(out["pad"][:1, DIM:].expand(300, -1))
    assert out["shuffle"].sort(1).values.equal(ROWS.sort(1).values)
    assert not out["shuffle"].equal(ROWS)
    assert set(out["binary"].unique().tolist()) == {0.0, 1.0}
    assert out["none"].equal(ROWS)


def test_binary_is_the_side_of_a_plane_through_a_point_of_the_cube():
    draws = generator("disguise", 0, "ann", 0, "binary")
    normals, points = torch.randn(DIM, DIM, generator=draws), torch.rand(DIM, DIM, generator=draws)
    out = UserTransform("binary")(ROWS[:20], "ann")
    for i, j in itertools.product(range(20), range(DIM)):
        side = sum((ROWS[i, k] - points[k, j]) * normals[k, j] for k in range(DIM))
        assert out[i, j] == float(side > 0)


def test_lengths_stay_under_affine():
    out = UserTransform("affine")(ROWS * 100, "ann")
    assert out.norm(dim=1).mean() / (ROWS * 100).norm(dim=1).mean() == pytest.approx(1, abs=0.1)


def test_b4b_adds_the_noise_before_the_map():
    plain = B4B(lam=0.5, alpha=1.0, bits=2, transform="none")(ROWS, "u")
    out = B4B(lam=0.5, alpha=1.0, bits=2, transform="affine+pad", padding=5)(ROWS, "u")
    assert out.equal(UserTransform("affine+pad", padding=5)(plain, "u"))


@pytest.mark.parametrize(
    ("kind", "linear"),
    [("affine", 1), ("scale", 1), ("pad+shuffle", 1), ("affine+pad+shuffle", 1), ("binary", 0)],
)
def test_shared_queries_undo_linear_spaces_and_no_others(kind, linear):
    b4b = B4B(transform=kind)
    ann, bob = b4b(ROWS, "ann"), b4b(ROWS, "bob")
    target = ann if linear else ROWS
    mapped = steal.learn_remap(bob[:200], target[:200])(bob[200:])
    distance = 1 - evaluate.mean_cosine(mapped, target[200:])
    assert distance < 1e-4 if linear else distance > 0.1
    assert 1 - evaluate.mean_cosine(bob[200:], ann[200:]) > 0.1
