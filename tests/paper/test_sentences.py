"""Sentences say what tables show, and no more than their seeds allow."""

import math

import pandas as pd
import pytest

from contsteal.lab import detection, tables
from contsteal.paper import figures, sentences

GOOD, NEAR = (0.2, 0.21, 0.22), (-0.02, 0.0, 0.03)
BAD = tuple(-d for d in GOOD)


def runs(shift: tuple[float, ...], **about: object) -> list[dict[str, object]]:
    return [about | {"seed": seed, "accuracy": 0.5 + d, "agreement": 0.5, "cka": 0.5}
            for seed, d in enumerate(shift)]  # fmt: skip


def duel(shift: tuple[float, ...], **about: object) -> list[dict[str, object]]:
    same = (0.0,) * len(shift)
    return runs(same, attack="embedding", **about) + runs(shift, attack="cont-steal", **about)


@pytest.mark.parametrize(
    ("shift", "sentence"),
    [
        (GOOD, "Cont-Steal is 21.0 points ahead of MSE (95 % CI 18.5 to 23.5)"),
        (BAD, "MSE is 21.0 points ahead of Cont-Steal (95 % CI 18.5 to 23.5)"),
        (NEAR, "No reliable difference between Cont-Steal and MSE (+0.3 points, 95 % CI -5.9 to 6.6)"),
        ((-0.00001,), "Cont-Steal minus MSE: 0.0 points (one seed, so no interval)"),
    ],
)  # fmt: skip
def test_a_verdict_claims_what_the_interval_excludes_and_nothing_else(shift, sentence) -> None:
    table = pd.DataFrame(duel(shift))
    assert sentences.verdict(table, "cont-steal", "embedding") == sentence
    assert sentences.verdict(table, "cont-steal", "label") == "", "it was not run"


@pytest.mark.parametrize(
    ("value", "cell"),
    [(0.146, "+15"), (-0.0097, "-1"), (0.004, "+0.4"), (-0.0004, "0.0"), (-0.006, "-0.6"), (0, "0.0")],
)  # fmt: skip
def test_a_cell_keeps_the_sign_of_a_change_below_one_point(value: float, cell: str) -> None:
    assert sentences.signed(value) == cell


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("embedding", "MSE"),
        ("embedding, shuffled", "MSE with shuffled answers"),
        ("info-nce, own views, shuffled", "InfoNCE on own views with shuffled answers"),
        ("attacker, embedding", "thief, MSE"),
        ("not known", "not known"),
        ("GaussianNoise(std=1.0, mean=5.0)", "noise, std 1.0, mean 5.0"),
        ("Normalise() + TopK(8)", "normalised + top-k 8"),
        ("B4B(lam=1e-06, alpha=1.0, beta=0.8, bits=2)", "B4B"),
        ("B4B(beta=0.8, bits=12, families=20)", "B4B, beta 0.8, bits 12, families 20"),
    ],
)
def test_attacks_and_defences_have_names(value: str, name: str) -> None:
    assert sentences.name(value) == name


def test_two_values_never_share_a_name() -> None:
    long, other = "B4B(a=1, b=2, c=3, d=4)", "B4B(a=1, b=2, c=3, d=5)"
    assert tables.names([long, "TopK(8)", "TopK(8)"]) == {long: "B4B", "TopK(8)": "top-k 8"}
    assert tables.names([long, other]) == {long: long, other: other}


def test_the_stake_is_the_victim_minus_the_best_without_it() -> None:
    levels = {"far": (0.1, 0.3, 0.2, 0.9), "near": (0.3, 0.5, 0.88, 0.9)}
    names = ("random", "labelled images", "SimCLR on the queries", "victim")
    rows = [r | {"data": data, "steps": None if k in (0, 3) else 640} for data, values in levels.items()
            for k, (name, value) in enumerate(zip(names, values, strict=True))
            for r in runs((value,) * 3, attack=name)]  # fmt: skip
    found = sentences.stake(pd.DataFrame(rows))
    assert found.title == (
        "After 640 steps without the victim, a thief is 60.0 points below it on far, 2.0 points below it "
        "on near"
    )
    assert list(found.numbers.index) == [(data, name) for data in levels for name in names]
    ahead = sentences.stake(pd.DataFrame(rows).replace({"accuracy": {1.4: 1.0}})).title
    assert ahead.endswith("20.0 points below it on far, 38.0 points above it on near")


def test_losses_are_compared_at_equal_views() -> None:
    about = {"task": "t", "unique_inputs": 8, "calls": 8}
    cells = (("clean", GOOD), ("own views", NEAR), ("shared views", GOOD))
    rows = [
        r | about | {"attack": f"{r['attack']}, {views}"}
        for views, shift in cells
        for r in duel(shift)
    ]
    rows = [r for r in rows if r["attack"] != "cont-steal, shared views"]
    rows += runs((0.3,), attack="victim", **about)
    found = sentences.views(pd.DataFrame(rows))
    assert found.title == ("At equal views, Cont-Steal's loss is reliably ahead of MSE's on 1 of 2 kinds "
                           "of views, behind on none")  # fmt: skip
    assert found.details == ("on clean images: +21.0 points (95 % CI 18.5 to 23.5); "
                             "on own views: +0.3 points (95 % CI -5.9 to 6.6)")  # fmt: skip
    assert [*found.numbers["n"]] == [3] * 5, "each loss and each kind of views has a row"


def test_the_headline_is_counted_per_victim() -> None:
    about = {"task": "t", "unique_inputs": 8, "calls": 8}
    gaps = ((0, GOOD), (3, NEAR))
    rows = [r | about | {"victim_seed": seed} for seed, gap in gaps for r in duel(gap)]
    found = sentences.victims(pd.DataFrame(rows))
    assert found.title == "Cont-Steal is reliably ahead of MSE on 1 of 2 victims, behind on none"
    assert found.details.startswith("victim 0: +21.0 points (95 % CI 18.5 to 23.5); victim 3: +0.3")
    alone = pd.DataFrame([r for r in rows if r["victim_seed"] == 0])
    title = "Cont-Steal is 21.0 points ahead of MSE (95 % CI 18.5 to 23.5)"
    assert sentences.victims(alone).title == title
    fig = figures.draw("03_victims", pd.DataFrame(rows))
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["victim 0", "victim 3"]


@pytest.mark.parametrize(
    "victim", [0.8, 0.45]
)  # also where the victim is below the best without it
def test_controls_say_which_attacks_steal_nothing(victim: float) -> None:
    levels = {"info-nce, own views": 0.7, "info-nce, own views, shuffled": 0.4, "broken": 0.2,
              "random": 0.1, "labelled images": 0.5, "victim": victim}  # fmt: skip
    about = {"task": "t", "unique_inputs": 8, "calls": 8}
    rows = [r for name, level in levels.items()
            for r in runs((level, level + 0.01, level - 0.01), attack=name, **about)]  # fmt: skip
    found = sentences.control(pd.DataFrame(rows))
    broken = "InfoNCE on own views with shuffled answers"
    assert found.title == ("Shuffling the victim's answers changes the accuracy of InfoNCE on own views "
                           "by -30.0 points (95 % CI -30.0 to -30.0)")  # fmt: skip
    above = "Above the best that needs no victim: InfoNCE on own views"
    assert found.details == f"{above}; not above it: {broken}, broken"


def test_the_attack_that_leads_is_named_for_each_length_of_training() -> None:
    about = {"task": "t", "unique_inputs": 8, "calls": 8}
    rows = [r | about | {"steps": 10} for r in duel(BAD)]
    rows += [r | about | {"steps": 20} for r in duel(GOOD)]
    frame = runs((0.5,), attack="victim") + runs((0.5,) * 3, attack="random")
    rows += [r | about | {"steps": None} for r in frame]
    found = sentences.steps(pd.DataFrame(rows))
    assert found.title == "The most accurate thief is MSE after 10 steps, Cont-Steal after 20 steps"
    assert [*found.numbers["n"]] == [3, 3, 3, 3, 1, 3]


def test_the_lead_is_given_with_the_fewest_and_the_most_images() -> None:
    rows = [r | {"images": images, "unique_inputs": images, "calls": images}
            for images, shift in ((8, GOOD), (16, NEAR), (32, BAD)) for r in duel(shift)]  # fmt: skip
    found = sentences.budget(pd.DataFrame(rows))
    assert found.title == ("Cont-Steal's lead over MSE is +21.0 points (95 % CI 18.5 to 23.5) with 8 "
                           "queries, -21.0 points (95 % CI -23.5 to -18.5) with 32 queries")  # fmt: skip
    assert "With 16 images: No reliable difference between Cont-Steal on augmented" in found.details
    assert sentences.budget(pd.DataFrame(runs(GOOD, attack="x", images=8))).details == ""


def test_controls_have_no_share_of_the_way() -> None:
    levels = {"random": 0.1, "labelled images": 0.3, "cont-steal": 0.5, "cont-steal, shuffled": 0.1,
              "label": 0.2, "victim": 0.7}  # fmt: skip
    rows = [{"attack": a, "task": "t", "seed": 0, "accuracy": v, "unique_inputs": 8, "calls": 8}
            for a, v in levels.items()]  # fmt: skip
    table = pd.DataFrame(rows).assign(agreement=0.5, knn=0.5, cka=0.5, cosine=0.5)
    shares = sentences.attacks(table).numbers["share of the way"]
    assert list(shares) == ["control", "control", 50, "control", -25, 100]


RATES = pd.DataFrame([
    {"attack": attack, "rate": rate, "seed": seed, "loss": loss + 3 * seed}
    for attack, losses in (("embedding", (0.3, 0.1, 0.2)), ("cont-steal, own views", (4, 5, 6)))
    for rate, loss in zip((0.001, 0.003, 0.01), losses, strict=True)
    for seed in (0, 1)
])  # fmt: skip


def test_the_best_learning_rate_of_an_attack_has_the_least_mean_loss_and_is_named() -> None:
    assert sentences.best_rates(RATES) == {"embedding": 0.003, "cont-steal, own views": 0.001}
    lucky = (RATES["rate"] == 0.01) & (RATES["seed"] == 0) & (RATES["attack"] == "embedding")
    once = RATES.assign(loss=RATES["loss"].mask(lucky, 0.05))
    assert sentences.best_rates(once)["embedding"] == 0.003, "the mean counts, not the best seed"
    found = sentences.rates(RATES)
    assert found.title.endswith(
        "is least at a learning rate of 0.001 or 0.003, depending on the attack"
    )
    assert [*found.numbers.columns] == ["0.001", "0.003", "0.01"]
    assert found.numbers.loc["MSE"].tolist() == pytest.approx([1.8, 1.6, 1.7])


def knobs(*shifts: tuple[float, ...]) -> pd.DataFrame:
    rows = runs((0.0,) * 3, knob="as given", value=None)
    rows += [r for i, shift in enumerate(shifts) for r in runs(shift, knob="lr", value=i / 10)]
    return pd.DataFrame(rows)


def test_reliable_ablations_are_counted_and_each_is_given_with_its_interval() -> None:
    found = sentences.ablations(knobs(GOOD, NEAR, BAD, BAD))
    assert found.title == ("Of 4 changes to Cont-Steal, one at a time, 1 reliably raises its accuracy, "
                           "and 2 reliably lowers it")  # fmt: skip
    assert "lr: 0.1: +0.3 points (95 % CI -5.9 to 6.6); lr: 0.2: -21.0" in found.details
    assert list(found.numbers["n"]) == [3] * 5, "knobs of numbers alone stay apart"
    once = sentences.ablations(knobs(GOOD).query("seed == 0"))
    assert "none reliably raises" in once.title, "one seed has no interval"


def test_an_ablation_of_no_knob_is_said_without_a_warning(recwarn) -> None:
    found = sentences.ablations(knobs().astype({"value": float}))
    assert (found.details, list(found.numbers["n"]), recwarn.list) == ("", [3], [])


def losses(*shifts: tuple[float, ...], victim: str = "v") -> list[dict[str, object]]:
    about = {"task": "t", "victim": victim, "images": 8, "unique_inputs": 8, "calls": 8}
    rows = [r for i, s in enumerate(shifts) for r in runs(s, attack=f"loss {i}", **about)]
    return rows + runs((0.5,) * 3, attack="dear", **about | {"unique_inputs": 16})


def test_best_and_worst_of_many_losses_need_more_than_those_of_two() -> None:
    low, high, middle = (0.0, 0.0, 0.0), (0.08, 0.1, 0.12), (0.05, 0.05, 0.05)
    two = sentences.losses(pd.DataFrame(losses(low, high)))
    of = "attacks with equal queries, "
    gap = "the best, loss 1, is 10.0 points ahead of the worst, loss 0 ("
    assert two.title.startswith(f"Of the 2 {of}{gap}")
    many = sentences.losses(pd.DataFrame(losses(low, high, *[middle] * 6))).title
    assert many.startswith(f"Of the 8 {of}no reliable difference between the best, loss 1, and the "
                           "worst, loss 0 (+10.0 points, corrected 95 % CI -")  # fmt: skip
    both = sentences.losses(pd.DataFrame(losses(low, high) + losses(high, low, victim="w")))
    assert both.title.startswith("Of the 2 attacks on v with")
    assert both.details.startswith("Of the 2 attacks on w with")
    assert "dear" not in both.text, "two queries an image are no equal budget"


def test_query_sets_are_compared_at_one_number_of_images() -> None:
    about = {"victim": "v", "task": "t", "attack": "x"}
    rows = [
        r | {"unique_inputs": n, "calls": n}
        for data, n, shift in (("own", 8, GOOD), ("far", 8, (0.0,) * 3), ("far", 80, (0.4,) * 3))
        for r in runs(shift, query_data=data, images=n, **about)
    ]
    table = pd.DataFrame(rows)
    found = sentences.queries(table)
    gap = "21.0 points ahead of stealing with as many far (95 % CI 18.5 to 23.5)"
    assert found.title == f"Stealing with 8 images of own is {gap}"
    assert list(found.numbers.index) == ["x, 8 own", "x, 8 far", "x, 80 far"]
    third = table[table["query_data"] == "far"].assign(query_data="near", accuracy=0.9)
    title = sentences.queries(pd.concat([table, third])).title
    assert title == ("A thief with 8 images of own is reliably more accurate than with as many of 1 of 2 "
                     "other sets, and less accurate than with those of 1")  # fmt: skip
    weak = third.assign(accuracy=0.1)
    title = sentences.queries(pd.concat([table, weak])).title
    assert title.endswith("with as many of 2 of 2 other sets"), "and no word of none"


def test_settings_of_a_grid_are_counted_and_averaged_along_its_axes() -> None:
    about = {"epochs": 1, "steps": 1, "views": "clean", "method": "simclr", "task": "t"}
    rows = [
        r
        for images, data, shift in ((8, "a", GOOD), (8, "b", BAD), (16, "a", NEAR))
        for r in duel(shift, images=images, query_data=data, **about)
    ]
    found = sentences.boundary(pd.DataFrame(rows))
    assert found.title.startswith(
        "At equal views, Cont-Steal's loss is reliably ahead of MSE's on 1 of 3 settings, behind on 1"
    )
    assert found.numbers["gain"].tolist() == pytest.approx([21, -21, 0.3])


def lands(gains: list[float]) -> pd.DataFrame:
    places = range(len(gains))
    return pd.DataFrame({
        "gain": gains, "effective_rank": places, "anisotropy": [i % 2 for i in places],
        "norm_spread": [(3 * i) % 7 for i in places], "method": "x", "query_data": "y",
    })  # fmt: skip


def test_a_correlation_needs_points_and_is_corrected_for_three_measures() -> None:
    assert sentences.geometry(lands([0.1, 0.2])).title.endswith("; this table has 2")
    rising = sentences.geometry(lands([0.1 * i for i in range(8)])).title
    assert rising.startswith("Effective rank (+1.00) reliably correlates with Cont-Steal's gain")
    mixed = sentences.geometry(lands([0.3, 0.1, 0.2, 0.35, 0.0, 0.15])).title
    assert mixed == "None of 3 measures reliably correlates with Cont-Steal's gain over MSE (n = 6)"


def test_a_collapse_is_named() -> None:
    last = {"method": ["x", "y"], "epoch": [2, 2], "knn": [0.5, 0.1], "spread": [1, 0]}
    title = sentences.training(pd.DataFrame(last)).title
    assert title.endswith("x 50 %, y 10 %; collapsed: y")


@pytest.mark.parametrize(
    ("wanted", "holds", "measured"),
    [
        ({"encoder": "simclr", "metric": "accuracy", "low": 0.8}, "yes", "80.0 %"),
        ({"encoder": "simclr", "metric": "accuracy", "low": 0.801}, "NO", "80.0 %"),
        ({"encoder": "byol", "metric": "knn", "high": 0.39}, "NO", "40.0 %"),
        ({"encoder": "byol", "metric": "knn", "low": 0.3, "high": 0.4}, "yes", "40.0 %"),
        ({"encoder": "moco", "metric": "knn"}, "not run", "-"),
    ],
)
def test_an_expectation_holds_or_does_not(wanted, holds, measured) -> None:
    worth = pd.DataFrame([
        {"encoder": "simclr", "task": "shapes", "accuracy": 0.8, "knn": 0.6},
        {"encoder": "byol", "task": "shapes", "accuracy": 0.5, "knn": 0.4},
    ])  # fmt: skip
    row = sentences.judge(worth, [wanted | {"task": "shapes", "source": "here"}]).iloc[0]
    assert (row["holds"], row["measured"], row["source"]) == (holds, measured, "here")
    assert sentences.judge(worth, []).empty


# ----------------------------------------------------------------------------- defences


def test_defences_are_counted_by_whom_they_reliably_harm() -> None:
    rows = []
    for defence, thief, user in (("none", (0.0,) * 3, 0.0), ("TopK(2)", BAD, -0.1),
                                 ("Rounding(0)", NEAR, 0.0)):  # fmt: skip
        about = {"attack": "x", "defence": defence, "adapts": math.nan}
        rows += [r | {"legitimate": 0.8 + user} for r in runs(thief, **about)]
    wise = {"attack": "x", "defence": "TopK(2)", "adapts": "takes bounds"}
    rows += [r | {"legitimate": 0.7} for r in runs((0.0, 0.01, 0.02), **wise)]
    found = sentences.defenses(pd.DataFrame(rows))
    assert "x, takes bounds, against top-k 2: +2" in found.details
    assert found.title == ("Of 2 defences, 1 reliably lower the accuracy of x, 1 that of customers")


def test_coverage_is_compared_after_as_many_queries_as_thief_and_customer_send() -> None:
    rows = [("customer, a", 8, 0.1), ("customer, a", 16, 0.2), ("thief", 8, 0.4), ("thief", 24, 0.6),
            ("customer, b", 24, 0.9), ("c", 8, 0.3)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["user", "queries", "coverage"])
    table = table.assign(noise=0.0, defence="D")
    other = table.assign(defence="E", coverage=1.0)
    found = sentences.coverage(pd.concat([table, other]))
    assert found.title == ("With 16 queries a thief reaches 50.0 % of B4B's buckets, a customer of a "
                           "20.0 %, a customer of b 90.0 %")  # fmt: skip
    assert found.numbers["queries"].tolist() == [16, 24, 24, 8], "c sends fewer"
    assert not found.details, "no accuracy was measured"
    runs = [("thief", 24, d, s, a) for s in (0, 1) for d, a in (("D", 0.4), ("none", 0.7))]
    served = pd.DataFrame(runs, columns=["user", "queries", "defence", "seed", "accuracy"])
    harmed = sentences.coverage(pd.concat([table, other, served]))
    assert harmed.title == found.title
    assert harmed.details.endswith(
        "this B4B: thief after 24 queries: -30.0 points (95 % CI -30.0 to -30.0)"
    )
    fewer = sentences.coverage(table[(table["user"] != "thief") | (table["queries"] < 24)]).title
    assert fewer.startswith("With 8 queries a thief reaches 40.0 % of B4B's buckets, a")


def stake() -> pd.DataFrame:
    cells = [("D", "attacker", "embedding", -0.2), ("D", "attacker", "adapting", -0.1),
             ("D", "customer", "shapes", 0.0),
             ("E", "attacker", "embedding", 0.0), ("E", "customer", "shapes", -0.08)]  # fmt: skip
    table = pd.DataFrame(cells, columns=["defence", "party", "who", "change"])
    return table.assign(low=table["change"] - 0.01, high=table["change"] + 0.01, n=3)


def test_the_matrix_names_what_harms_thieves_and_what_harms_customers() -> None:
    found = sentences.matrix(stake())
    limits = "take at least 5 points from every thief and at most 1 from every customer"
    assert found.title == f"Of 2 defences, 1 {limits.replace('take', 'takes', 1)}"
    assert found.numbers["verdict"].to_dict() == {"D": "works", "E": "does not work"}
    open_ = stake().assign(low=-0.3)
    open_ = sentences.matrix(open_).title
    assert open_ == f"Of 2 defences, none {limits.replace('take', 'takes', 1)} (1 undecided)"
    assert found.numbers.loc["D", "thief, MSE"] == "-20.0 [-21.0, -19.0]"


def test_the_best_means_of_each_kind_are_named() -> None:
    rows = [("P", "perturbation", None, None, "works"), ("Q", "perturbation", None, None, "undecided"),
            ("D", "detector", 0.5, 0.4, None), ("E", "detector", 0.4, 0.0, None),
            ("W", "proof", 1.0, 0.25, None), ("X", "proof", None, 0.0, None)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["means", "kind", "thieves", "others", "verdict"])
    assert sentences.parties(table).title == (
        "1 of 2 perturbations work. The best detector (E) flags 40 % of thieves, 0 % of customers. "
        "The best proof (W) accuses 100 % of thieves, 25 % of others"
    )
    memorised = sentences.parties(table.replace("W", "dataset inference, signed")).title
    assert "proof (dataset inference on victims that memorise) accuses" in memorised
    useless = table.assign(others=1.0).iloc[:4]
    text = "1 of 2 perturbations work. No detector separates all thieves from customers"
    assert sentences.parties(useless).title == text
    alone = sentences.parties(table.iloc[:2]).title
    assert alone == "1 of 2 perturbations work"


def test_detectors_are_counted_and_need_no_verdict() -> None:
    limits = {"W": 1, "all": 0, "none": 9}
    rows = [{"detector": d, "user": u, "seed": s, "statistic": v, "flagged": float(v > limit)}
            for d, limit in limits.items() for u, v in (("customer", 0.5), ("thief", 2.0))
            for s in (0, 1)]  # fmt: skip
    table = pd.DataFrame(rows)
    found = sentences.detectors(table)
    assert found.title == "The best detector (W) flags 2 of 2 thieves and 0 of 2 customers"
    assert found.numbers.loc[("W", "customer"), "flagged"] == "0.0 % [0, 84]"
    bills = sentences.detectors(table.assign(flagged=math.nan))
    assert set(bills.numbers["flagged"]) == {"-"}


def test_a_roc_is_told_by_its_area_and_its_verdict_by_exact_rates() -> None:
    seen = [("customer, a", 0.1, 0), ("customer, b", 0.6, 1), ("thief, x", 0.5, 0)]
    seen.append(("thief, x", 0.9, 1))
    watch = pd.DataFrame(seen, columns=["user", "statistic", "flagged"]).assign(detector="D")
    price = watch.assign(detector="bill", flagged=math.nan)
    found = sentences.roc(detection.roc(pd.concat([watch, price])))
    assert found.title.startswith(
        "To the best detector, a thief looks more suspicious than a customer"
    )
    assert found.title.endswith(" (chance: 50 %): 75 % (x)")
    assert found.numbers.loc[("D", "thief, x")].tolist() == [0.75, *["50.0 % [1, 99]"] * 2]
    assert found.numbers.loc[("bill", "thief, x")].tolist() == [0.75, "-", "-"]


def test_refusals_are_counted_and_what_a_thief_ends_with_is_said() -> None:
    users = [("customer, a", 0, 1, 96), ("thief, four views", 2, 3, 32)]
    users.append(("thief, single images", 0, 1, 96))
    table = pd.DataFrame(users, columns=["user", "refusals", "accounts", "answers"])
    found = sentences.accounts(table.assign(detector="D", queries=96, answered=96, seed=0))
    assert found.title == "Detectors refuse a thief in 1 of 2 runs, and a customer in 0 of 1"
    assert found.numbers.loc[("D", "thief, four views"), "accounts"] == 3
    ends = [("single images, stops", 96, 1, 0.6), ("four views, stops", 32, 1, 0.4),
            ("four views, all answers", 96, 3, 0.5)]  # fmt: skip
    rows = pd.DataFrame(ends, columns=["attack", "answers", "accounts", "accuracy"])
    victim = pd.DataFrame([{"attack": "victim", "accuracy": 0.9}])
    found = sentences.refused(pd.concat([rows.assign(detector="D"), victim]))
    assert found.title == ("A thief that is refused because it sends four views per image reaches 40 % "
                           "if it stops (32 answers) and 50 % if it goes on (96 answers)")  # fmt: skip
    assert found.numbers.index.tolist()[-1] == ("-", "victim")


# ---------------------------------------------------------------------------- ownership


def suspects(**columns: list[float]) -> pd.DataFrame:
    """Rows of suspects of every kind, two of each but the victims, with a column per measure."""
    names = [("victim", "victim"), ("unmarked", "before marking"), *[("stolen", "embedding")] * 2,
             *[("independent", "independent")] * 2]  # fmt: skip
    about = pd.DataFrame(names, columns=["kind", "suspect"])
    return about.assign(seed=[0, 0, 0, 1, 0, 1], images=[None, None, 16, 32, None, None], **columns)


def owned() -> pd.DataFrame:
    rates = {"wsr": [0.8, 0.52, 0.53, 0.6, 0.49, 0.51], "accuracy": [0.7, 0.72, *[None] * 4],
             "accused": [1, 0, 0, 1, 0, 0]}  # fmt: skip
    p_values = dict.fromkeys(("p_chance", "p_rank", "p_paper", "auc"), [0.02] * 6)
    table = suspects(**rates, **p_values, p_controls=[0.5] * 6)
    return table.assign(applies="yes", on="all", mark="tuned", head="trained", detectable=0.09,
                        controls=2)  # fmt: skip


def test_the_watermark_is_described_by_its_verdicts_its_rates_and_its_price() -> None:
    found = sentences.watermark(owned())
    assert found.title == ("The watermark (trained) accuses 1 of 1 thieves (32 queries), 0 of 1 thieves "
                           "(16 queries), "
                           "0 of 2 independent encoders")  # fmt: skip
    assert found.details == ("An excess of 9 points over the mean of 2 independent ones is accused: the "
                             "smallest effect that this test can see")  # fmt: skip
    assert found.numbers["accused"].tolist()[2:4] == ["0.0 % [0, 98]", "100.0 % [3, 100]"]
    few = owned().assign(accused=float("nan"), detectable=float("nan"))
    alone = sentences.watermark(few[lambda t: t["kind"] != "independent"])
    assert "accuses nobody: too few independent encoders" in alone.title
    assert "smallest effect" not in alone.details


def test_the_key_is_described_by_its_verdicts_and_its_price() -> None:
    keyed = owned().drop(columns=["head", "wsr"])
    keyed = keyed.assign(cosine=[0.9, 0.1, 0.3, 0.5, 0.1, -0.1], rate=0.5)
    found = sentences.guard(keyed)
    assert found.title == ("SSLGuard's key accuses 1 of 1 thieves (32 queries), 0 of 1 thieves (16 "
                           "queries), 0 of 2 independent encoders")  # fmt: skip
    assert found.details.startswith("An excess of 0.09 in cosine over the mean of 2 independent")
    assert found.numbers["cosine"].tolist() == [0.9, 0.1, 0.3, 0.5, 0.0]
    rates = sentences.false_positive_rates(keyed.assign(p_keys=0.5))
    assert ("SSLGuard, against random keys", "") in rates.index


def test_accusations_and_false_positives_are_counted() -> None:
    p = [0.01, 0.01, 0.2, 0.5, 0.04, 0.4]
    signed = suspects(effect=[0.3] * 6, p=p, accused=[float(x <= 0.05) for x in p])
    signed = signed.assign(gap=1.0, on="all", detectable=0.15)
    inferred = pd.concat([signed.assign(form=form) for form in ("signed", "published")])
    found = sentences.dataset_inference(inferred)
    thieves = "0 of 1 thieves (32 queries), 0 of 1 thieves (16 queries)"
    others = f"1 of 1 unmarked victims, {thieves}, 1 of 2 independent encoders"
    assert found.title == f"Dataset inference accuses 1 of 1 victims, {others}"
    main = inferred[inferred["kind"] == "victim"].assign(kind="profile", accused=0)
    beside = sentences.dataset_inference(pd.concat([inferred, main])).title
    assert beside == ("Dataset inference accuses 1 of 1 memorising victims, "
                      f"{others}, 0 of 1 tests of the main victim")  # fmt: skip
    assert "An effect above 0.15 standard deviations" in found.details
    rates = sentences.false_positive_rates(owned(), inferred)
    row = rates.loc[("dataset inference", "published")]
    assert row.tolist() == [1, 2, "50.0 % [1, 99]"]
    assert rates.loc[("watermark, against chance", "trained"), "accused"] == 2
    none = sentences.false_positive_rates(owned()[lambda t: t["kind"] != "independent"])
    assert set(none["rate [95 % interval]"]) == {"-"}
    assert set(none["of"]) == {0}


def test_readings_count_where_the_embedding_thief_leads_and_where_it_trails() -> None:
    rows = [
        {"victim": "simclr", "attack": attack, "task": "a", "seed": seed, "accuracy": value + 0.01 * seed,
         "agreement": 0.5 + 0.1 * seed * (attack == "label")}
        for attack, value in (("embedding", 0.6), ("label", 0.5), ("posterior", 0.7)) for seed in range(3)
    ]  # fmt: skip
    table = pd.DataFrame(rows).assign(share=1.0)
    found = sentences.readings(table)
    thief = "The thief of embeddings (MSE) is reliably ahead of thieves of labels or posteriors on"
    assert found.title == f"{thief} 1 of 4 comparisons, behind on 1"
    lead = found.numbers.loc["label stealing, accuracy on a, with new probes"]
    assert lead.tolist() == ["+10.0 points (95 % CI 10.0 to 10.0)", 3]
    alone = sentences.readings(table[table["attack"] == "embedding"])
    assert alone.title.startswith(f"{thief} 0 of 0 comparisons")
