"""What a user may hand a defence by mistake: each is refused in words, or has a defined answer."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from contsteal import data, defenses, steal, victim
from contsteal.defenses import proof_of_work
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
from contsteal.lab import provider
from contsteal.ownership import inference
from contsteal.seeds import generator

ROWS = torch.randn(40, 6, generator=generator("rows"))
MAKERS = {
    "normalise": Normalise,
    "noise": lambda **k: GaussianNoise(0.5, **k),
    "rounding": lambda: Rounding(1),
    "top-k": lambda: TopK(3),
    **{
        f"space {kind}": lambda kind=kind, **k: UserTransform(kind, **k)
        for kind in ("affine", "scale", "pad", "shuffle", "binary")
    },
    "b4b": lambda **k: B4B(lam=0.1, bits=4, **k),
    "cosine": lambda **k: SimilarQueries(0.9, **k),
    "l2": lambda **k: SimilarQueries(0.9, "l2", **k),
    "prada": Prada,
    "work": ProofOfWork,
    "poison": lambda **k: PredictionPoisoning(0.5, **k),
}
DRAWING = {k: m for k, m in MAKERS.items() if k not in ("normalise", "rounding", "top-k")}


def each(makers: dict):
    return pytest.mark.parametrize("make", makers.values(), ids=makers.keys())


# -------------------------------------------------------------------------------- answers

BROKEN = {
    "one row": (ROWS[0], r"answers \(6,\): a tensor \(N, D\)"),
    "a batch of batches": (ROWS[None], r"answers \(1, 40, 6\)"),
    "no coordinate": (ROWS[:, :0], r"answers \(40, 0\)"),
    "an array": (ROWS.numpy(), "answers ndarray"),
    "nothing": (None, "answers NoneType"),
    "labels": (ROWS.long(), "answers are torch.int64"),
    "NaN": (ROWS.index_fill(0, torch.tensor(2), math.nan), "input 2 of 40 holds NaN"),
    "infinity": (ROWS.index_fill(0, torch.tensor(2), math.inf), "input 2 of 40 holds NaN"),
}


@each(MAKERS)
@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_answer_is_refused_and_leaves_no_trace(make, case):
    broken, told = BROKEN[case]
    defense = make()
    with pytest.raises(ValueError, match=told):
        defense(broken, "ann")
    assert defense(ROWS, "ann").equal(make()(ROWS, "ann"))


@each(MAKERS)
def test_no_answers_give_no_answers(make):
    defense = make()
    assert len(defense(ROWS[:0], "ann")) == 0
    assert defense(ROWS[:0], "ann").shape[1] == defense(ROWS, "ann").shape[1]


@each(MAKERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_of_the_answers_stays(make, dtype):
    out, wide = make()(ROWS.to(dtype), "ann"), make()(ROWS, "ann")
    assert out.dtype == dtype
    assert out.shape == wide.shape
    assert out.isfinite().all()


@pytest.mark.parametrize("kind", ["affine", "scale", "pad", "shuffle"])
def test_a_space_is_the_same_in_double_precision(kind):
    space = UserTransform(kind)
    torch.testing.assert_close(space(ROWS.double(), "ann").float(), space(ROWS, "ann"))


@each(MAKERS)
def test_answers_with_gradients_are_remembered_without_them(make):
    defense = make()
    defense(ROWS.clone().requires_grad_(), "ann")
    assert defense(ROWS, "ann").requires_grad is False
    if hasattr(defense, "state_dict"):
        assert not any(value.requires_grad for value in defense.state_dict().values())


def test_another_dimension_in_one_stream_has_a_defined_answer():
    """Detectors refuse it (`test_detection`); B4B counts the buckets of both."""
    b4b, alone = B4B(bits=4), B4B(bits=4)
    b4b(ROWS, "ann")
    before = b4b.coverage("ann")
    assert b4b(ROWS[:, :3], "ann").shape == (40, 3)
    alone(ROWS[:, :3], "ann")
    assert max(before, alone.coverage("ann")) <= b4b.coverage("ann") <= 1


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().flatten(1)


def test_infinity_made_by_a_defence_does_not_leave_the_api():
    api = victim.BlackBox(Pixels(), [GaussianNoise(3e38, mean=3e38)])
    with pytest.raises(ValueError, match="holds NaN or infinity: nothing was answered"):
        api.embed(data.load("shapes", n=3).images)
    assert api.ledger.calls == 0


# ---------------------------------------------------------------------------------- users


@each(DRAWING)
@pytest.mark.parametrize("user", ["", "x" * 257, "a\nb", "\ud800", None, 3, ["a"]], ids=repr)
def test_who_is_nobody_is_refused(make, user):
    with pytest.raises(ValueError, match="a name of 1 to 256 printable characters"):
        make()(ROWS, user)
    assert make()(ROWS, "x" * 256).isfinite().all()


# ------------------------------------------------------------------------------ parameters


@each(DRAWING)
@pytest.mark.parametrize("seed", [None, 1.5, "a", True])
def test_a_seed_is_a_whole_number(make, seed):
    with pytest.raises(ValueError, match=f"seed={seed!r}: a whole number is needed"):
        make(seed=seed)


@each(DRAWING)
def test_a_seed_of_numpy_is_that_number(make):
    assert repr(make(seed=np.int64(7))) == repr(make(seed=7))
    assert make(seed=np.int64(7))(ROWS, "ann").equal(make(seed=7)(ROWS, "ann"))


def test_seeds_of_numpy_make_the_chain_of_their_numbers():
    one, two = (provider.seeded([GaussianNoise(1.0)], seed)[0] for seed in (np.int64(3), 3))
    assert one(ROWS, "ann").equal(two(ROWS, "ann"))


def test_numbers_of_numpy_and_whole_numbers_have_one_name():
    assert repr(GaussianNoise(np.float64(0.5))) == repr(GaussianNoise(0.5))
    assert repr(GaussianNoise(1)) == repr(GaussianNoise(1.0))
    assert repr(TopK(np.int64(4))) == "TopK(4)"


@pytest.mark.parametrize("bad", [None, "0.5", True, [1.0]], ids=repr)
@pytest.mark.parametrize(
    ("kind", "name", "others"),
    [
        (GaussianNoise, "std", {}),
        (GaussianNoise, "mean", {"std": 1.0}),
        (B4B, "lam", {}),
        (B4B, "alpha", {}),
        (B4B, "beta", {}),
        (SimilarQueries, "threshold", {}),
        (SimilarQueries, "share", {"threshold": 0.5}),
        (SimilarQueries, "std", {"threshold": 0.5}),
        (Prada, "threshold", {}),
        (PredictionPoisoning, "eps", {}),
        (PredictionPoisoning, "scale", {"eps": 1.0}),
        (ProofOfWork, "base", {}),
        (ProofOfWork, "intercept", {}),
    ],
)
def test_what_is_no_number_is_named(kind, name, others, bad):
    with pytest.raises(ValueError, match=f"{kind.__name__} {name}=.*: a number is needed"):
        kind(**{name: bad}, **others)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: TopK(True), "k=True: a whole number of at least 1"),
        (lambda: B4B(bits=24, families=2), r"families=2, bits=24.*2\^24, 2 MB per user"),
        (lambda: B4B(transform=None), "unknown transformation 'None'"),
        (lambda: UserTransform("pad", padding=10**9), "padding=1000000000: .* from 1 to 65536"),
        (lambda: ProofOfWork(None), "unknown cost None"),
        (lambda: defenses.build([]), "unknown defence"),
    ],
)
def test_what_makes_no_sense_is_named(make, told):
    with pytest.raises(ValueError, match=told):
        make()


# ------------------------------------------------------------------------------ neighbours


def test_prices_need_costs_that_are_numbers():
    for costs in (torch.full((2, 5), math.nan), torch.zeros(0, 5)):
        with pytest.raises(ValueError, match="finite, of"):
            proof_of_work.calibrate(costs)
    with pytest.raises(ValueError, match="entropy is the cost of posteriors"):
        proof_of_work.entropy(torch.ones(1))


def test_a_threshold_needs_queries():
    for rows, share in ((ROWS[:1], 0.05), (ROWS[:0], 0.05), (ROWS, 0.0), (ROWS, 2)):
        with pytest.raises(ValueError, match=f"{len(rows)} queries, share={share}: at least 2"):
            provider.similarity(rows, share)
    with pytest.raises(ValueError, match="NaN"):
        provider.similarity(ROWS / 0)


def test_no_map_is_learnt_from_nan():
    with pytest.raises(ValueError, match="one finite row each"):
        steal.learn_remap(ROWS / 0, ROWS)
    with pytest.raises(ValueError, match="one finite row each"):
        steal.learn_remap(ROWS, ROWS[:3])


def test_a_sample_is_one_number_per_image():
    with pytest.raises(ValueError, match=r"samples \(40, 6\) and \(40, 6\)"):
        inference.welch(ROWS, ROWS)
