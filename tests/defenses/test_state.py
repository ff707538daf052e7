"""What every defence guarantees: names, checked parameters and answers, users apart, restarts."""

import copy
import math
import pickle
from operator import attrgetter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contsteal import defenses
from contsteal.defenses import (
    B4B,
    DEFENSES,
    GaussianNoise,
    Normalise,
    PerUser,
    Prada,
    PredictionPoisoning,
    ProofOfWork,
    Rounding,
    SimilarQueries,
    TopK,
    UserTransform,
)
from contsteal.defenses.state import identity
from contsteal.seeds import generator

ROWS = torch.randn(160, 6, generator=generator("rows"))
STREAM = [*ROWS.split(40), ROWS[:40] + 0.01]

PLAIN = {"normalise": Normalise, "rounding": lambda: Rounding(1), "top-k": lambda: TopK(3)}
SPACES = {
    kind: lambda kind=kind, **k: UserTransform(kind, **k)
    for kind in ("affine", "scale", "pad", "shuffle", "binary")
}
DRAWING = {
    "noise": lambda **k: GaussianNoise(0.5, **k),
    "poison": lambda **k: PredictionPoisoning(0.5, **k),
    "b4b": lambda **k: B4B(lam=0.1, bits=4, **k),
    "b4b of 20": lambda **k: B4B(lam=0.1, bits=4, families=20, transform="pad+shuffle", **k),
    "cosine": lambda **k: SimilarQueries(0.95, memory=100, **k),
    "l2": lambda **k: SimilarQueries(0.9, "l2", **k),
    "prada": lambda **k: Prada(0.999, **k),
}
REMEMBERING = DRAWING | {"work": ProofOfWork}
SEEDED = DRAWING | SPACES
ALL = SEEDED | REMEMBERING | PLAIN


def each(makers: dict):
    return pytest.mark.parametrize("make", makers.values(), ids=makers.keys())


def answers(defense, user: str = "ann", stream=STREAM) -> Tensor:
    return torch.cat([defense(rows, user) for rows in stream])


# ---------------------------------------------------------------------- repr, label, key

NAMES = [  # repr and label as stored tables have them
    (Normalise(), "Normalise()", "normalised"),
    (Rounding(0), "Rounding(0)", "rounding to 0 decimals"),
    (Rounding(1), "Rounding(1)", "rounding to 1 decimal"),
    (TopK(np.int64(8)), "TopK(8)", "top 8"),
    (GaussianNoise(1), "GaussianNoise(std=1.0)", "noise, std 1.0"),
    (GaussianNoise(np.float64(0.3), 5, seed=np.int64(2)),
     "GaussianNoise(std=0.3, mean=5.0, seed=2)", "noise, std 0.3, mean 5.0"),
    (PredictionPoisoning(8), "PredictionPoisoning(eps=8.0)",
     "prediction poisoning, eps 8.0"),
    (UserTransform(), "UserTransform('affine')", "user transform, affine"),
    (UserTransform("pad", seed=1), "UserTransform('pad', seed=1)", "user transform, pad"),
    (B4B(), "B4B(beta=0.8, bits=12)", "B4B, 12 bits"),
    (B4B(lam=0.1, families=20, transform="pad", padding=5),
     "B4B(lam=0.1, beta=0.8, bits=12, families=20, transform='pad', padding=5)",
     "B4B, 12 bits, lam 0.1, families 20, transform pad, padding 5"),
    (SimilarQueries(0.9),
     "SimilarQueries(threshold=0.9, measure='cosine', action='replace', mean=1000.0, std=20.0, "
     "memory=4096, share=0.5)", "similar queries, threshold 0.9"),
    (Prada(), "Prada(threshold=0.9, action='shuffle', memory=1000)", "PRADA"),
    (ProofOfWork(),
     "ProofOfWork(cost='flat', intercept=0.0, slope=0.0, base=1.0075, least=0.1, most=2948.0, "
     "hashes_per_second=1000000.0)",
     "proof of work"),
]  # fmt: skip


@pytest.mark.parametrize(("defense", "text", "label"), NAMES)
def test_names(defense, text, label):
    assert repr(defense) == text
    assert defense.label == label
    assert defense.key.startswith(f"{type(defense).__module__}.{type(defense).__name__}(")


CHANGES = [
    (GaussianNoise, {"std": 1.0}, {"std": 2.0, "mean": 1.0}),
    (Rounding, {"decimals": 0}, {"decimals": 1}),
    (TopK, {"k": 4}, {"k": 5}),
    (PredictionPoisoning, {"eps": 0.5}, {"eps": 0.6, "scale": 2.0}),
    (UserTransform, {"transform": "pad"}, {"transform": "shuffle", "padding": 65}),
    (B4B, {"transform": "pad"},
     {"lam": 1e-5, "alpha": 2.0, "beta": 0.7, "bits": 11, "families": 20, "padding": 65}),
    (SimilarQueries, {"threshold": 0.5},
     {"threshold": 0.4, "measure": "l2", "action": "record", "mean": 0.0, "std": 1.0, "memory": 9,
      "share": 0.4, "projection": nn.Linear(6, 2)}),
    (Prada, {}, {"threshold": 0.8, "action": "refuse", "memory": 9}),
    (ProofOfWork, {},
     {"cost": "entropy", "intercept": 1.0, "slope": 0.5, "base": 1.01, "least": 0.2, "most": 9.0}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "given", "changes"), CHANGES)
def test_every_parameter_is_part_of_every_name(kind, given, changes):
    plain = kind(**given)
    for name, value in changes.items():
        changed = kind(**given | {name: value})
        for text in (repr, attrgetter("label"), attrgetter("key")):
            assert text(changed) != text(plain), name
    if hasattr(plain, "seed"):
        other = kind(**given, seed=7)
        assert repr(other).endswith("seed=7)")
        assert other.key != plain.key
        assert other.label == plain.label


@each(ALL)
def test_the_repr_builds_it_again(make):
    defense = make(seed=2) if make in SEEDED.values() else make()
    again = eval(repr(defense), vars(defenses))
    assert (repr(again), again.key) == (repr(defense), defense.key)
    assert answers(again).equal(answers(defense))


def test_modules_are_named_by_layers_and_weights_and_functions_are_refused():
    first = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    same = copy.deepcopy(first)
    assert identity(first) == identity(same)
    assert identity(nn.Sequential(first[0], nn.Tanh())) != identity(first)
    with torch.no_grad():
        same[0].weight[0, 0] += 1
    assert identity(first) != identity(same)
    for text in (repr, attrgetter("key")):
        assert identity(first) in text(SimilarQueries(0.5, projection=first))
    for nameless in (nn.functional.relu, [].append, 3):
        with pytest.raises(ValueError, match="no name to store results under"):
            SimilarQueries(0.5, projection=nameless)


# -------------------------------------------------------------------------- build, parameters


def test_build_by_name():
    given = {kind: options for kind, options, _ in CHANGES}
    for name, kind in DEFENSES.items():
        options = given.get(kind, {})
        assert repr(defenses.build(name, **options)) == repr(kind(**options))
    for unknown in ("topk", []):
        with pytest.raises(ValueError, match=r"unknown defence.*gaussian-noise, .*, prada"):
            defenses.build(unknown, k=1)
    for options in ({"n": 3}, {}, {"k": 3, "std": 1}):
        with pytest.raises(ValueError, match="'top-k' does not take"):
            defenses.build("top-k", **options)


THRESHOLD = {"threshold": 0.5}
BAD = [
    (GaussianNoise, {"std": -0.1}, r"GaussianNoise std=-0\.1: a finite number of at least 0"),
    (Rounding, {"decimals": 13}, "decimals=13: a whole number of at least -6 and of at most 12"),
    (TopK, {"k": 0}, "k=0: a whole number of at least 1"),
    (PredictionPoisoning, {"eps": 1, "scale": -1}, "scale=-1"),
    (UserTransform, {"transform": "pad", "padding": 0}, "padding=0"),
    (UserTransform, {"transform": "pad", "padding": 10**9}, "padding=1000000000.* at most 65536"),
    (B4B, {"lam": 0.0}, r"lam=0\.0: a finite number above 0"),
    (B4B, {"alpha": 1e-6}, r"lam=1e-06, alpha=1e-06: a finite number above 1e-06"),
    (B4B, {"bits": 25}, "bits=25: a whole number of at least 1 and of at most 24"),
    (B4B, {"bits": 24, "families": 2}, r"families=2, bits=24.*2\^24, which takes 2 MB"),
    (B4B, {"transform": "rotate"}, "'rotate'.*affine, scale, pad, shuffle, binary.*'none'"),
    (SimilarQueries, {"threshold": 1.0}, r"'cosine', threshold=1\.0: .* above -1 and below 1"),
    (SimilarQueries, {"threshold": 0.0, "measure": "l2"}, r"'l2', threshold=0\.0: .* above 0 is"),
    (SimilarQueries, THRESHOLD | {"measure": "l1"}, "'l1': choose one of l2, cosine"),
    (SimilarQueries, THRESHOLD | {"action": "shuffle"}, "'shuffle'.*replace, refuse, record"),
    (SimilarQueries, THRESHOLD | {"std": -1}, "std=-1"),
    (SimilarQueries, THRESHOLD | {"memory": 0}, "memory=0"),
    (SimilarQueries, THRESHOLD | {"share": 1.0}, r"share=1\.0: .* at least 0 and below 1"),
    (Prada, {"threshold": 0}, "threshold=0"),
    (Prada, {"action": "replace"}, "'replace'.*shuffle, refuse, record"),
    (ProofOfWork, {"cost": "pate"}, "'pate': choose one of flat, entropy"),
    (ProofOfWork, {"cost": None}, "unknown ProofOfWork cost None"),
    (ProofOfWork, {"base": 0.99}, r"base=0\.99"),
    (ProofOfWork, {"least": 0.0}, r"least=0\.0"),
    (ProofOfWork, {"hashes_per_second": 0}, "hashes_per_second=0"),
    (ProofOfWork, {"least": 10.0, "most": 1.0}, r"least=10\.0, most=1\.0"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BAD)
def test_bad_parameters_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize("bad", [None, "0.5", True, [1.0], math.nan, math.inf], ids=repr)
@pytest.mark.parametrize(("kind", "given", "changes"), CHANGES)
def test_what_is_no_number_is_named(kind, given, changes, bad):
    for name, value in (given | changes).items():
        if isinstance(value, int | float):
            number = "a finite number" if isinstance(value, float) else "a whole number"
            with pytest.raises(ValueError, match=f"{kind.__name__} .*{name}=.*: {number}"):
                kind(**given | {name: bad})


@each(SEEDED)
def test_a_seed_is_a_whole_number_which_may_be_set_later(make):
    for bad in (None, 1.5, "a", True):
        with pytest.raises(ValueError, match=f"seed={bad!r}: a whole number is needed"):
            make(seed=bad)
    later = copy.copy(make())
    later.seed += 5  # the experiments give copies of a chain their seeds
    five = make(seed=np.int64(5))
    assert repr(later) == repr(five) == repr(make(seed=5))
    assert answers(copy.deepcopy(later)).equal(answers(five))


# -------------------------------------------------------------------------------- answers

BROKEN = {
    "one row": (ROWS[0], r"answers \(6,\) torch.float32: a tensor \(N, D\) is needed"),
    "no coordinate": (ROWS[:, :0], r"answers \(160, 0\)"),
    "an array": (ROWS.numpy(), "answers of kind ndarray"),
    "labels": (ROWS.long(), "answers are torch.int64"),
    "NaN": (ROWS.index_fill(0, torch.tensor(2), math.nan), "input 2 of 160 holds NaN"),
}


@each(ALL)
@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_answer_is_refused_and_leaves_no_trace(make, case):
    broken, message = BROKEN[case]
    defense = make()
    with pytest.raises(ValueError, match=message):
        defense(broken, "ann")
    assert answers(defense).equal(answers(make()))


@each(ALL)
def test_shape_and_type_stay_and_neither_input_nor_gradients_are_kept(make):
    defense, before = make(), ROWS.clone()
    defense(ROWS.clone().requires_grad_(), "ann")
    wide = defense(ROWS, "ann")
    assert ROWS.equal(before)
    assert not wide.requires_grad
    assert wide.shape[1] == 6 or "pad" in repr(make())
    assert make()(ROWS[:0], "ann").shape == (0, wide.shape[1])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        out = make()(ROWS.to(dtype), "ann")
        assert out.dtype == dtype
        assert out.shape == wide.shape
        assert out.isfinite().all()


# ----------------------------------------------------------------------- draws and users


@each(DRAWING | SPACES)
def test_draws_follow_from_seed_and_user_alone(make):
    torch.manual_seed(0)
    first = answers(make())
    torch.manual_seed(1)
    assert answers(make(seed=0)).equal(first)
    assert not answers(make(seed=1)).equal(first)
    assert not answers(make(), "bob").equal(first)


@each(REMEMBERING | SPACES)
def test_other_users_change_nothing(make):
    alone, shared, out = make(), make(), []
    for rows in STREAM:
        shared(rows.flip(0), "bob")
        out.append(shared(rows, "ann"))
        shared(rows * 2, "sybil of ann")
    assert torch.cat(out).equal(answers(alone))


@each(REMEMBERING | SPACES)
def test_users_need_a_name(make):
    for user in ("", "x" * 257, "a\nb", "\ud800", None, 3, ["a"]):
        with pytest.raises(ValueError, match="a name of 1 to 256 printable characters"):
            make()(ROWS, user)
    assert make()(ROWS, "x" * 256).isfinite().all()


# --------------------------------------------------------------------------------- memory


def test_every_defence_with_a_memory_is_tested_here():
    remembering = {kind for kind in DEFENSES.values() if issubclass(kind, PerUser)}
    assert {type(make()) for make in REMEMBERING.values()} == remembering


@each(REMEMBERING)
@pytest.mark.parametrize("cut", [0, 1, 4])
def test_a_restart_changes_nothing(make, cut):
    whole, first = make(), make()
    for defense in (whole, first):
        answers(defense, "bob/ünal", STREAM[:2])
        for rows in STREAM[:cut]:
            defense(rows, "ann")
    second = pickle.loads(pickle.dumps(first))
    assert (repr(second), second.key) == (repr(first), first.key)
    for user in ("ann", "bob/ünal", "new"):
        assert answers(second, user, STREAM[cut:]).equal(answers(whole, user, STREAM[cut:]))
        assert second.size(user) == whole.size(user)


@each(REMEMBERING)
def test_a_forgotten_user_starts_again(make):
    defense, first = make(), answers(make())
    answers(defense)
    defense.forget("ann")
    assert answers(defense).equal(first)
    defense.forget("nobody")


@pytest.mark.parametrize(
    ("defense", "most"),
    [
        (GaussianNoise(0.1), 8),
        (B4B(), 600),
        (ProofOfWork(), 24),
        (PredictionPoisoning(0.1), 8),
        (SimilarQueries(0.9, memory=50), 50 * 6 * 4 + 24),
        (Prada(memory=50), 50 * (6 * 4 + 8) + 5009 * 8 + 60),
    ],
    ids=repr,
)
def test_a_user_takes_no_more_memory_than_said(defense, most):
    for seed in range(12):
        defense(torch.randn(500, 6, generator=generator("many", seed)), "ann")
    assert 0 < defense.size("ann") <= most
