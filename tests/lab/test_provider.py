"""The provider's side: customers, the matrix of who pays, detectors on users, and the price."""

import copy
import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from contsteal import defenses, encoders, evaluate
from contsteal.defenses.detectors import SimilarQueries
from contsteal.lab import provider, sweeps
from contsteal.lab.experiment import Lab
from contsteal.victim import BlackBox

NOISE, ROUND = [defenses.GaussianNoise(2.0)], [defenses.Rounding(1)]


def rows_of(images: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in images}


def bought_by(defences: dict[str, float], task: str = "t", spread: float = 0.0) -> list[dict]:
    """Return what customers of three seeds get under each defence."""
    return [{"defence": d, "task": task, "seed": s, "legitimate": v + spread * s}
            for d, v in defences.items() for s in (0, 1, 2)]  # fmt: skip


def by_hand(lab: Lab, chain: provider.Chain, task: str, seed: int) -> float:
    test, each = lab.images(task, "test"), []
    for images in lab.labelled(task, seed):
        api = lab.api(chain)  # a new user of a provider who remembers nobody
        x, y = (api.embed(side.images, user="legitimate") for side in (images, test))
        each.append(evaluate.linear_probe(x, images.labels, y, test.labels).accuracy)
    return sum(each) / len(each)


def test_what_a_customer_gets_is_read_back_for_the_same_defence_alone(
    lab: Lab, monkeypatch
) -> None:
    first = provider.customers(lab, [NOISE], ["shapes"], [0], classes=3)
    monkeypatch.setattr(evaluate, "linear_probe", None)
    pd.testing.assert_frame_equal(provider.customers(lab, [NOISE], ["shapes"], [0], 3), first)
    for other in ([defenses.GaussianNoise(0.21)], NOISE * 2):
        with pytest.raises(TypeError, match="not callable"):
            provider.customers(lab, [other], ["shapes"], [0])


def test_customers_of_each_seed_have_images_and_draws_of_their_own(lab: Lab) -> None:
    table = provider.customers(lab, [[], NOISE], ["shapes", "digits"], [0, 1])
    assert len(table) == 2 * 2 * 2
    wide = table.pivot_table(index=["defence", "task"], columns="seed", values="legitimate")
    assert wide.loc[("none", "shapes"), 1] == by_hand(lab, (), "shapes", 1)
    assert wide.loc[("none", "shapes"), 0] != wide.loc[("none", "shapes"), 1]
    seeded, name = provider.seeded(NOISE, 1), provider.chain_name(NOISE)
    assert wide.loc[(name, "digits"), 1] == by_hand(lab, seeded, "digits", 1)


def test_an_undefended_customer_is_worth_what_the_victim_is(lab: Lab) -> None:
    several = lab.but(probe_images=40, probe_draws=2)
    victim = [several.score(several.victim.encoder, "shapes", s)["accuracy"] for s in range(8)]
    paid = [provider.purchase(several, (), "shapes", s)[0]["legitimate"] for s in range(8)]
    assert paid == pytest.approx(victim, abs=0.02)
    assert max(victim) - min(victim) > 0.04, "or the seeds would prove nothing"


def test_seeds_of_a_chain_differ_by_place_and_the_given_defences_stay() -> None:
    chain = [defenses.GaussianNoise(1.0), defenses.Rounding(0), defenses.GaussianNoise(1.0)]
    copies = provider.seeded(chain, np.int64(3))
    assert [copies[k].seed for k in (0, 2)] == [3, 2003]
    assert type(copies[0].seed) is int
    assert (chain[0].seed, provider.chain_name([])) == (0, "none")


def test_defences_are_listed_by_name_and_first_parameter() -> None:
    chains = provider.listed({"top-k": [8, 64], "normalise + rounding": [0]})
    assert [[type(d).__name__ for d in chain] for chain in chains] == [
        ["TopK"], ["TopK"], ["Normalise", "Rounding"],
    ]  # fmt: skip
    assert [chain[0].k for chain in chains[:2]] == [8, 64]
    assert provider.listed({}) == []
    (chain,) = provider.listed({"normalise + gaussian-noise": [{"std": 0.5, "mean": 2.0}]})
    assert provider.chain_name(chain) == "Normalise() + GaussianNoise(std=0.5, mean=2.0)"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unit + rounding": [1]}, "unknown defence 'unit'"),
        ({"top-kk": [8]}, "unknown defence 'top-kk': choose one of .*gaussian"),
        ({"rounding": 1}, "rounding=1: a list of its first parameter's values"),
        ({"rounding": []}, r"rounding=\[\]: a list of its first parameter's values"),
        ({"rounding": "12"}, "rounding='12': a list of its first parameter's values"),
        ({"top-k": [0]}, "TopK"),
        ({"top-k": [{"n": 8}]}, "'top-k' does not take"),
    ],
)
def test_impossible_lists_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        provider.listed(values)


def test_defended_rows_name_defence_attack_length_and_what_customers_get(lab: Lab) -> None:
    chains = [[], [defenses.Normalise(), defenses.TopK(2)]]
    bought = provider.customers(lab, chains, ["shapes"], [0, 1], classes=3)
    table = provider.defended(lab, chains, ["embedding"], 16, [0, 1], bought, steps=[2, 3])
    assert list(table["defence"]) == ["none"] * 4 + [provider.chain_name(chains[1])] * 4
    assert list(table["steps"]) == [2, 3] * 4
    assert list(table["kind"][::4]) == ["none", "Normalise + TopK"]
    assert table["strength"].iloc[4] == 2
    paid = bought.set_index(["task", "defence", "seed"])["legitimate"]
    for column, task in (("legitimate", "shapes"), ("few", "shapes, 3 classes")):
        expected = [paid[task, row.defence, row.seed] for row in table.itertuples()]
        assert table[column].tolist() == expected
    short = provider.defended(lab, chains, ["embedding"], 16, [0, 1], bought, steps=[2])
    assert list(short["cka"]) == list(table["cka"][::2])
    assert table["cka"][0] != table["cka"][1]


def test_each_defence_meets_the_thief_who_knows_it(lab: Lab) -> None:
    offset = defenses.GaussianNoise(0.1, mean=1.0)
    chains = [[], [defenses.GaussianNoise(1.0)], [defenses.TopK(2)], [offset], [defenses.B4B(bits=4)],
              [defenses.Normalise(), defenses.Rounding(1)],
              [defenses.Normalise(), defenses.GaussianNoise(1.0)]]  # fmt: skip
    bought = provider.customers(lab, chains, ["shapes"], [0])
    table = provider.adapting(lab, chains, "embedding", 16, [0], bought, prototypes=[1.0])
    assert list(zip(table["kind"], table["adapts"], strict=True)) == [
        ("GaussianNoise", "averages 4 answers"), ("none", "prototypes of RDA"),
        ("GaussianNoise", "prototypes of RDA"), ("TopK", "takes bounds"),
        ("GaussianNoise with offset", "centres"), ("GaussianNoise with offset", "averages 4 answers"),
        ("B4B", "2 accounts"),
        ("B4B", "6 accounts"), ("Normalise + Rounding", "takes bounds"),
        ("Normalise + GaussianNoise", "averages 4 answers"),
        ("Normalise + GaussianNoise", "prototypes of RDA"),
    ], "RDA without a defence stands once"  # fmt: skip
    paid = table.set_index("adapts")[["unique_inputs", "calls"]]
    assert paid.loc["averages 4 answers"].to_numpy().tolist() == [[16, 64]] * 3
    assert paid.loc["2 accounts"].tolist() == [16 + 4, 16 + 4], "both ask a quarter"
    assert paid.loc["6 accounts"].tolist() == [16 + 5 * 4] * 2
    assert provider.adapting(lab, [[]], "embedding", 16, [0], bought).empty


def test_a_customer_of_few_classes_has_a_task_of_their_own(lab: Lab) -> None:
    n = lab.settings["probe_images"]
    train, test = provider.few_classes(lab, "shapes", 3, 0)
    other, _ = provider.few_classes(lab, "shapes", 3, 1)
    assert len(train) == n < len(test) <= 4 * n
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == {0, 1, 2}
    known = [rows_of(part.images) for part in (train, test, other)]
    assert not known[0] & known[1]
    assert known[0] != known[2], "each seed has classes and images of its own"
    for classes in (1, 11):
        with pytest.raises(ValueError, match=f"shapes={classes}: .* at least 2 and of at most 10"):
            provider.few_classes(lab, "shapes", classes, 0)
    with pytest.raises(ValueError, match=r"classes of patches=2: .* at most 0"):
        provider.few_classes(lab, "patches", 2, 0)


def test_b4b_is_calibrated_on_customers_who_get_a_twentieth_of_the_spread(lab: Lab) -> None:
    fitted = provider.calibrated(lab, defenses.B4B(bits=6), "shapes", 3, [0, 1])
    tested = [provider.few_classes(lab, "shapes", 3, seed) for seed in (0, 1)]
    known = [provider.few_classes(lab, "shapes", 3, provider.CALIBRATION + seed) for seed in (0, 1)]
    sent = [set.union(*(rows_of(side.images) for pair in pairs for side in pair))
            for pairs in (tested, known)]  # fmt: skip
    assert not sent[0] & sent[1], "it is not tested on what it was calibrated on"
    seen, spread = defenses.B4B(bits=6), []
    for k, pair in enumerate(known):
        for side in pair:
            answers = lab.api().embed(side.images)
            seen(answers, f"customer {k}")
            spread.append(float(answers.std(0).mean()))
    covered = (seen.coverage("customer 0") + seen.coverage("customer 1")) / 2
    assert repr(fitted) == repr(seen.calibrated(covered, 0.05 * sum(spread) / len(spread)))
    users = provider.b4b_users(lab, "shapes", 3, 64)
    table = provider.coverage(lab, [fitted, defenses.B4B(bits=6)], users, [0, 1])
    own = table[(table["user"] == "customer, 3 classes") & (table["defence"] == repr(fitted))]
    last = own[own["queries"] == own.groupby("seed")["queries"].transform("max")]
    assert last["bearable"].mean() / 5 < last["noise"].median() < 5 * last["bearable"].mean()
    assert fitted.sigma(0.5 * last["coverage"].mean()) < 0.1 * last["bearable"].mean()
    ends = table.groupby("user")["queries"].max()
    assert (ends["thief"], ends["one of 2 accounts"]) == (64, 16 + 24)
    assert ends["one of 6 accounts"] == 16 + 8


def test_coverage_is_b4b_s_own_after_every_step(lab: Lab) -> None:
    guard, images = defenses.B4B(bits=4, transform="none"), lab.images("shapes", "test").images
    users = {"a": lambda seed: images[:48], "b": lambda seed: images[:4].repeat(12, 1, 1, 1)}
    table = provider.coverage(lab, [guard], users, [0])
    assert list(table["queries"]) == [*range(3, 49, 3)] * 2
    watch = copy.deepcopy(guard)
    watch(lab.api().embed(images[:48]), "a")
    last = table.groupby("user")["coverage"].last()
    assert last["a"] == watch.coverage("a") > last["b"]
    assert last["b"] <= 4 / 16, "four inputs repeated cover no more than four buckets"
    assert guard.coverage("a") == 0, "the given defence has seen nobody"
    noise = watch.sigma(table["coverage"].to_numpy()).tolist()
    assert table["noise"].tolist() == pytest.approx(noise)


def test_accuracy_over_queries_is_that_of_what_was_sent_so_far(lab: Lab) -> None:
    lab = lab.but(probe_images=32)
    guard, budgets = defenses.B4B(bits=4, beta=0.1, families=2), [24, 64, 120]
    table = provider.over_queries(lab, guard, "embedding", "shapes", 3, budgets, [1], 2)
    runs = {(d, u): rows.set_index("queries")["accuracy"]
            for (d, u), rows in table.groupby(["defence", "user"])}  # fmt: skip
    chain = provider.seeded([guard], 1)
    for name, defences in (("none", ()), (repr(guard), chain)):
        for budget in budgets:
            (row,) = sweeps.steal_rows(
                lab, "embedding", budget, 1, ("shapes",), defences, (("steps", 2),)
            )
            assert runs[name, "thief"][budget] == row["accuracy"]
    labelled, rest = provider.few_classes(lab, "shapes", 3, 1)
    n, every = len(labelled), provider.bought_images(lab, "shapes", 120, 1)
    assert list(runs["none", "customer, 3 classes"].index) == [64, 120], (
        "24 are no more than labels"
    )
    assert len(rest) == 128
    assert list(runs["none", "customer, all classes"].index) == [64, 120]
    net = lab.victim.encoder
    x, y = encoders.embed(net, every.images), every.labels
    assert y is not None
    right = (evaluate.linear_probe(x[:n], y[:n], x[n:], y[n:]).predictions == y[n:]).float()
    expected = [float(right[: 64 - n].mean()), float(right[64 - n :].mean())]
    assert runs["none", "customer, all classes"].tolist() == pytest.approx(expected)
    lost = provider.lost(
        pd.concat([table[table["defence"] != "none"], table[table["defence"] == "none"]])
    )
    own = lost[lost["user"] == "customer, all classes"].set_index("queries")["change"]
    with_it = runs[repr(guard), "customer, all classes"]
    assert (own == with_it - runs["none", "customer, all classes"]).all()
    assert with_it[120] < runs["none", "customer, all classes"][120], "so much noise costs accuracy"
    few = provider.over_queries(lab, guard, "embedding", "shapes", 3, [24], [1], 2)
    assert set(few["user"]) == {"thief"}, "customers send as many to be labelled"
    assert provider.over_queries(lab, guard, "embedding", "shapes", 3, [], [1], 2).empty


def test_the_matrix_holds_paired_changes_for_every_attack_and_customer() -> None:
    attacked = pd.DataFrame([
        {"defence": d, "attack": a, "seed": s, "accuracy": base + 0.01 * s, "adapts": ""}
        for a in ("embedding", "cont-steal")
        for d, base in (("none", 0.6), ("D", 0.4), ("E", 0.6))
        for s in (0, 1, 2)
    ] + [{"attack": "victim", "seed": 0, "accuracy": 0.9}])  # fmt: skip
    bought = []
    for task in ("shapes", "digits"):
        bought += bought_by({"none": 0.8, "D": 0.8}, task) + bought_by({"E": 0.7}, task, 0.02)
    table = provider.matrix(attacked, pd.DataFrame(bought))
    assert len(table) == 2 * (2 + 2)
    cell = table.set_index(["defence", "party", "who"])
    assert cell.loc[("D", "attacker", "embedding"), "change"] == pytest.approx(-0.2)
    assert cell.loc[("D", "customer", "digits"), ["change", "n"]].tolist() == [0, 3]
    half = 4.302653 * 0.02 / math.sqrt(3)  # t of 2 degrees of freedom
    row = cell.loc[("E", "customer", "shapes"), ["change", "low", "high", "n"]].tolist()
    assert row == pytest.approx([-0.08, -0.08 - half, -0.08 + half, 3])


def test_the_best_of_the_adapting_thieves_is_compared_with_the_first_attack() -> None:
    def changes(*runs: tuple[str, str, str, float]) -> pd.Series:
        rows = [{"defence": d, "attack": a, "adapts": how, "seed": s, "accuracy": v}
                for d, a, how, v in runs for s in (0, 1, 2)]  # fmt: skip
        bought = pd.DataFrame(bought_by({"none": 0.8, "D": 0.8}))
        return provider.matrix(pd.DataFrame(rows), bought).set_index("who")["change"]

    runs = (("none", "embedding", "", 0.6), ("D", "embedding", "", 0.3),
            ("D", "embedding", "averages", 0.4), ("D", "rda", "crops", 0.55))  # fmt: skip
    found = changes(*runs)
    assert found.to_dict() == pytest.approx({"embedding": -0.3, "adapting": -0.05, "t": 0.0})
    found = changes(*runs, ("none", "rda", "crops", 0.8))
    assert found["adapting"] == pytest.approx(-0.2), "against the same attack where it was run"


@pytest.mark.parametrize(
    ("how", "late", "verdict"),
    [("", -0.3, provider.UNDECIDED), ("idle", -0.3, provider.UNDECIDED),
     ("knows", -0.3, provider.WORKS), ("knows", -0.02, provider.UNDECIDED)],
)  # fmt: skip
def test_a_verdict_needs_both_lengths_and_a_thief_who_adapts(
    how: str, late: float, verdict: str
) -> None:
    rows = [{"defence": d, "attack": "embedding", "adapts": a, "seed": s, "steps": n,
             "accuracy": 0.7 + 0.001 * s + (change if d == "D" else 0) + 0.01 * (a == "knows")}
            for n, change in ((8, -0.3), (16, late)) for s in (0, 1, 2)
            for d, a in (("none", ""), ("D", ""), *[("D", how)] * bool(how))]  # fmt: skip
    bought = pd.DataFrame(bought_by({"none": 0.8, "D": 0.8}))
    stake = provider.matrix(pd.DataFrame(rows), bought)
    assert provider.worth(stake)["verdict"].item() == verdict


@pytest.mark.parametrize(
    ("thief", "customer", "verdict"),
    [
        ((-0.09, -0.05), (-0.01, 0.02), provider.WORKS),
        ((-0.09, -0.049), (-0.01, 0.02), provider.UNDECIDED),
        ((-0.09, -0.05), (-0.011, 0.02), provider.UNDECIDED),
        ((-0.049, 0.0), (-0.01, 0.02), provider.FAILS),
        ((-0.5, -0.4), (-0.05, -0.011), provider.FAILS),
    ],
)
def test_a_defence_works_where_both_intervals_say_so(
    thief: tuple[float, float], customer: tuple[float, float], verdict: str
) -> None:
    sides = {"attacker": thief, "customer": customer}
    who = {"attacker": "adapting", "customer": "customer"}
    rows = [{"defence": "D", "party": party, "who": who[party], "change": sum(span) / 2, "low": span[0],
             "high": span[1], "n": 3} for party, span in sides.items()]  # fmt: skip
    kept = [{"defence": "D", "party": "attacker", "who": "other", "change": -0.8, "low": -0.9,
             "high": -0.7, "n": 3}]  # fmt: skip
    row = provider.worth(pd.DataFrame(rows + kept)).iloc[0]
    assert (row["verdict"], row["thief"], row["customer"]) == (verdict, "adapting", "customer")


def test_the_price_counts_memory_that_grows_and_memory_that_does_not(lab: Lab) -> None:
    chains = [[], [defenses.B4B(bits=6)], [SimilarQueries(0.9, action="record")]]
    images = lab.train_images().images.repeat(2, 1, 1, 1)[:512]  # two requests
    table = provider.price(lab.victim.encoder, chains, images, rounds=1)
    free, buckets, similar = (table.iloc[k] for k in range(3))
    assert (free["bytes"], free["bytes, half"]) == (0, 0)
    assert buckets["bytes"] == buckets["bytes, half"] == 2**6 // 8 + 16, "two counts besides"
    assert similar["bytes"] - similar["bytes, half"] == 256 * 4 * lab.victim.encoder.dim
    assert (table["seconds"] > 0).all()
    assert (table["added"].iloc[1:] > 0).all()


# --------------------------------------------------------------------- planted defences


def centred(images: torch.Tensor) -> torch.Tensor:
    """Return the pixels (N, 192) of uint8 images (N, 3, 8, 8), from -1/2 to 1/2."""
    return images.flatten(1) / 255 - 0.5


class Linear(nn.Module):
    """A victim in miniature: images (N, 3, 8, 8) to a secret linear map of their pixels, (N, 24)."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(192, 24, generator=draws) / 192**0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return centred(images) @ self.weight


class Nothing(defenses.Described):
    """A defence with a name that does nothing."""

    def __call__(self, answers: torch.Tensor, user: str) -> torch.Tensor:
        return answers


class Trap(defenses.Described):
    """Users who ask more than 400 times are answered by a random network from then on."""

    leaks: bool = False  # whether an answer that was given before is given again as it is

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self.known: set[bytes] = set()

    def __call__(self, answers: torch.Tensor, user: str) -> torch.Tensor:
        names = [row.numpy().tobytes() for row in answers]
        repeated = torch.tensor([name in self.known for name in names])
        self.known |= set(names)
        count = self.asked.get(user, 0) + torch.arange(1, len(answers) + 1)
        self.asked[user] = int(count[-1])
        draws = torch.Generator().manual_seed(1)
        other = 10 * answers @ torch.randn(answers.shape[1], answers.shape[1], generator=draws)
        caught = (count > 400) & ~(repeated & self.leaks)
        return torch.where(caught[:, None], other.roll(1, 0), answers)


class LeakyTrap(Trap):
    leaks = True


def least_squares_thief(api: BlackBox, images: torch.Tensor, times: int) -> torch.Tensor:
    """Return the map (192, 24) that fits the median of `times` answers to each image."""
    each = torch.stack([api.embed(images, user="thief") for _ in range(times)])
    answers = each.median(0)[0]
    return torch.linalg.lstsq(centred(images), answers).solution


def planted(chain: provider.Chain, seed: int) -> list[dict[str, Any]]:
    """Run a thief, one who asks three times, and a customer of a linear victim under a defence."""
    victim, draws = Linear(), torch.Generator().manual_seed(100 + seed)
    sets = [
        torch.randint(0, 256, (n, 3, 8, 8), generator=draws, dtype=torch.uint8)
        for n in (96, 300, 900)
    ]
    known, test, queries = sets
    truth = [encoders.embed(victim, part)[:, :4].argmax(1) for part in (known, test)]
    api, name = BlackBox(victim, [copy.deepcopy(d) for d in chain]), provider.chain_name(chain)

    def probed(features: Callable[[torch.Tensor], torch.Tensor]) -> float:
        x, y = features(known), features(test)
        return evaluate.linear_probe(x, truth[0], y, truth[1]).accuracy

    rows: list[dict[str, Any]] = []
    for adapts, times in (("", 1), ("median", 3)):
        fresh = BlackBox(victim, [copy.deepcopy(d) for d in chain])
        copied = least_squares_thief(fresh, queries, times)
        accuracy = probed(lambda images, w=copied: centred(images) @ w)
        rows.append({"defence": name, "attack": "embedding", "adapts": adapts, "seed": seed,
                     "accuracy": accuracy})  # fmt: skip
    paid = probed(lambda images: api.embed(images, user="customer"))
    return [row | {"legitimate": paid, "task": "t"} for row in rows]


def test_a_planted_defence_that_works_is_called_so_and_a_useless_or_leaking_one_is_not() -> None:
    chains: list[provider.Chain] = [[], [Nothing()], [Trap()], [LeakyTrap()]]
    runs = product(chains, range(5))
    table = pd.DataFrame([row for chain, seed in runs for row in planted(chain, seed)])
    adapted = table[(table["adapts"] == "") | (table["defence"] != "none")]
    bought = table[table["adapts"] == ""].drop(columns=["attack", "adapts", "accuracy"])
    verdicts = provider.worth(provider.matrix(adapted, bought)).set_index("defence")
    assert verdicts["verdict"].to_dict() == {
        "Nothing()": provider.FAILS, "Trap()": provider.WORKS, "LeakyTrap()": provider.FAILS,
    }  # fmt: skip
    assert verdicts.loc["LeakyTrap()", "thief"] == "adapting", "it stops who asks once"
    assert verdicts.loc["Trap()", "paid"] == 0
