"""What every defence with a memory owes: seeds, restarts, sybils, many users, and no NaN."""

import copy
import math
import re

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from contsteal import defenses
from contsteal.defenses import DEFENSES
from contsteal.defenses.b4b import B4B, UserTransform
from contsteal.defenses.detectors import Prada, SimilarQueries
from contsteal.defenses.perturbation import GaussianNoise, PredictionPoisoning
from contsteal.defenses.proof_of_work import ProofOfWork
from contsteal.defenses.state import PerUser, identity
from contsteal.lab import artifacts
from contsteal.seeds import generator
from contsteal.victim import finite

ROWS = torch.randn(160, 6, generator=generator("rows"))
STREAM = [*ROWS.split(40), ROWS[:40] + 0.01]

MAKERS = {
    "noise": lambda **k: GaussianNoise(0.5, **k),
    "b4b": lambda **k: B4B(lam=0.1, bits=4, **k),
    "b4b of 20": lambda **k: B4B(lam=0.1, bits=4, families=20, transform="pad+shuffle", **k),
    "similar": lambda **k: SimilarQueries(0.95, memory=100, **k),
    "prada": lambda **k: Prada(0.999, **k),
    "prada per class": lambda **k: Prada(0.999, classes="argmax", **k),
    "poison": lambda **k: PredictionPoisoning(0.5, **k),
}
EVERY = MAKERS | {"work": ProofOfWork, "space": lambda **k: UserTransform("binary", **k)}
REMEMBERING = MAKERS | {"work": ProofOfWork}


def each(makers: dict):
    return pytest.mark.parametrize("make", makers.values(), ids=makers.keys())


def answers(defense, user: str = "ann", stream=STREAM) -> torch.Tensor:
    return torch.cat([defense(rows, user) for rows in stream])


@each(EVERY)
def test_equal_seeds_give_equal_answers(make):
    torch.manual_seed(0)
    first = answers(make())
    torch.manual_seed(1)
    assert answers(make()).equal(first)
    assert answers(make(seed=0)).equal(first)


@each(MAKERS | {"space": EVERY["space"]})
def test_seeds_and_users_change_the_draws_and_the_repr_tells_the_seed(make):
    first = answers(make())
    assert not answers(make(seed=1)).equal(first)
    assert not answers(make(), "bob").equal(first)
    assert "seed" not in repr(make())
    assert repr(make(seed=7)).endswith("seed=7)")


@each(EVERY)
def test_a_seed_set_later_is_the_seed(make):
    """`tables` gives copies of a chain their seeds."""
    later = copy.copy(make())
    later.seed += 5
    assert repr(later) == repr(make(seed=5))
    assert answers(copy.deepcopy(later)).equal(answers(make(seed=5)))


@each(EVERY)
def test_the_repr_builds_it_again_and_the_input_stays(make):
    defense, before = make(seed=2), ROWS.clone()
    again = eval(repr(defense), vars(defenses))
    assert repr(again) == repr(defense)
    assert answers(again).equal(answers(defense))
    assert ROWS.equal(before)


@each(EVERY)
def test_what_others_ask_does_not_matter(make):
    alone, crowded, told = make(), make(), []
    for rows in STREAM:
        crowded(rows.flip(0), "bob")
        told.append(crowded(rows, "ann"))
        crowded(rows * 2, "sybil of ann")
    assert torch.cat(told).equal(answers(alone))


@each(REMEMBERING)
@pytest.mark.parametrize("cut", [0, 1, 4])
def test_a_restart_changes_nothing(make, cut):
    whole, first, second = make(), make(), make()
    for defense in (whole, first):
        answers(defense, "bob/ünal", STREAM[:2])
        for rows in STREAM[:cut]:
            defense(rows, "ann")
    second.load_state_dict(load(save(first.state_dict())))
    for user in ("ann", "bob/ünal", "new"):
        assert answers(second, user, STREAM[cut:]).equal(answers(whole, user, STREAM[cut:]))
    left, right = second.state_dict(), whole.state_dict()
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value.dtype == right[key].dtype or not value.numel(), key
        assert value.equal(right[key].to(value.dtype)), key


@each(REMEMBERING)
def test_a_saved_state_is_no_view_of_the_living_one(make):
    defense = make()
    defense(ROWS, "ann")
    saved = defense.state_dict()
    kept = {key: value.clone() for key, value in saved.items()}
    again = make()
    again.load_state_dict(saved)
    for one in (defense, again):
        one(-ROWS, "ann")
    assert all(value.equal(kept[key]) for key, value in saved.items())


@each(REMEMBERING)
def test_a_state_of_another_defence_is_refused(make):
    defense = make()
    defense(ROWS, "ann")
    state = defense.state_dict()
    with pytest.raises(ValueError, match=r"was not saved by .*seed=3.*build the defence"):
        make(seed=3).load_state_dict(state)
    with pytest.raises(ValueError, match="was not saved by"):
        make().load_state_dict({})
    field = next(iter(vars(make().record())))
    lacking = {k: v for k, v in state.items() if k != field}
    with pytest.raises(ValueError, match=f"the state lacks, or should not hold, '{field}'"):
        make().load_state_dict(lacking)
    with pytest.raises(ValueError, match="'more'"):
        make().load_state_dict(state | {"more": torch.zeros(1)})
    with pytest.raises(ValueError, match=rf"values of '{field}', needed are 1 and .*damaged"):
        make().load_state_dict(state | {field: state[field].repeat(2)})
    with pytest.raises(ValueError, match="needed are 2"):
        make().load_state_dict(state | {"users": torch.tensor([97, 10, 98], dtype=torch.uint8)})


@each(REMEMBERING)
def test_to_forget_a_user_is_to_start_again(make):
    defense, first = make(), answers(make())
    answers(defense)
    defense.forget("ann")
    assert answers(defense).equal(first)
    defense.forget("nobody")


@each({name: make for name, make in REMEMBERING.items() if name != "noise"})
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_answers_with_nan_leave_no_trace(make, bad):
    defense, broken = make(), ROWS.clone()
    broken[7, 2] = bad
    with pytest.raises(ValueError, match="input 7 of 160 holds NaN or infinity"):
        defense(broken, "ann")
    assert answers(defense).equal(answers(make()))


@pytest.mark.parametrize(
    ("make", "most"),
    [(GaussianNoise, 8), (B4B, 600), (ProofOfWork, 24), (PredictionPoisoning, 8)],
)
def test_a_user_takes_constant_memory(make, most):
    defense = make(0.1) if make in (GaussianNoise, PredictionPoisoning) else make()
    users = 300
    for _ in range(3):
        for i in range(users):
            defense(ROWS[i % 150 : i % 150 + 9], f"user {i}")
        assert sum(defense.size(f"user {i}") for i in range(users)) <= users * most


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda: SimilarQueries(0.9, memory=50), 50 * 6 * 4 + 24),
        (lambda: Prada(memory=50), 50 * (6 * 4 + 16) + 5009 * 16 + 60),
    ],
)
def test_detectors_remember_no_more_than_they_say(make, most):
    defense = make()
    for seed in range(12):
        defense(torch.randn(500, 6, generator=generator("many", seed)), "ann")
    assert defense.size("ann") <= most


@each(REMEMBERING)
def test_a_state_has_as_many_tensors_for_many_users_as_for_one(make):
    few, many, again = make(), make(), make()
    few(ROWS[:3], "one")
    for i in range(300):
        many(ROWS[i % 150 : i % 150 + 1 + i % 3], f"user {i}")
    state = load(save(many.state_dict()))
    assert len(state) == len(few.state_dict())
    again.load_state_dict(state)
    for i in (0, 7, 299):
        name = f"user {i}"
        assert again.size(name) == many.size(name) > 0
        assert again(ROWS[:5], name).equal(many(ROWS[:5], name))


def test_a_hundred_thousand_users_outlive_a_restart():
    defense, again = B4B(bits=4, transform="none"), B4B(bits=4, transform="none")
    defense(ROWS[:3], "any")
    names = [f"{i:0240}" for i in range(100_000)]
    defense._users |= dict.fromkeys(names, defense._users["any"])
    again.load_state_dict(load(save(defense.state_dict())))  # reads no header above 100 MB
    assert list(again._users) == ["any", *names]
    assert again.coverage(names[-1]) == defense.coverage("any") > 0


def test_every_defence_with_a_memory_is_tested_here():
    remembering = {kind for kind in DEFENSES.values() if issubclass(kind, PerUser)}
    assert {type(make()) for make in REMEMBERING.values()} == remembering
    assert set(EVERY) - set(REMEMBERING) == {"space"}


def test_results_are_made_again_when_a_defence_changes():
    def needs(module: str) -> set[str]:
        text = (artifacts.ROOT / "contsteal" / f"{module}.py").read_text()
        own = set(re.findall(r"^from contsteal\.(\w+) import", text, re.MULTILINE))
        return {module}.union(*map(needs, own))

    assert needs("defenses") <= set(artifacts.STEALING)


# -------------------------------------------------------------------------------- helpers


def test_finite_lets_numbers_pass():
    assert finite(ROWS) is ROWS


def test_a_module_is_named_by_layers_and_weights():
    first = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    same = copy.deepcopy(first)
    assert identity(first) == identity(same)
    assert identity(nn.Sequential(first[0], nn.Tanh())) != identity(first)
    with torch.no_grad():
        same[0].weight[0, 0] += 1
    assert identity(first) != identity(same)
    assert identity(torch.nn.functional.relu) == "torch.nn.functional.relu"
