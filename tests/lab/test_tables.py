"""Tables of the notebooks: paired differences, intervals over seeds, layouts, published numbers."""

import numpy as np
import pandas as pd
import pytest

from contsteal import evaluate
from contsteal.attacks import ATTACKS
from contsteal.lab import tables


def pairs(a: list[float], b: list[float]) -> pd.DataFrame:
    rows = [(name, s, v) for name, values in (("a", a), ("b", b)) for s, v in enumerate(values)]
    return pd.DataFrame(rows, columns=["attack", "seed", "accuracy"])


def test_a_difference_is_that_of_the_paired_differences() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=5), rng.normal(size=5)
    gap = a - b
    table = pairs(list(a), list(b))
    for level in (0.95, 0.99):
        expected = (*evaluate.mean_interval(gap, level), 5)
        assert tables.difference(table, "a", "b", level=level) == pytest.approx(expected)


def test_a_summary_has_means_intervals_costs_and_n_in_order_of_appearance() -> None:
    table = pairs([0.5, 0.6], [0.4, 0.4]).assign(images=8.0, calls=[8, 8, 16, 16], cka=np.nan)
    victim = {"attack": "victim", "seed": 0, "accuracy": 0.9}
    found = tables.summary(pd.concat([table, pd.DataFrame([victim])]), ["attack", "images"],
                           ["accuracy", "cka"])  # fmt: skip
    assert list(found.index) == [("a", 8), ("b", 8), ("victim", "-")]
    assert list(found["answers"]) == ["8", "16", "-"]
    assert list(found["accuracy"]) == ["55.0 [-8.5, 118.5]", "40.0", "90.0"]
    assert list(found["cka"]) == ["-"] * 3
    assert list(found["n"]) == [2, 2, 1]


def by_length() -> pd.DataFrame:
    """Rows of two attacks at lengths in no order, of random features and of the victim."""
    rows = [("a", 640, 0.5), ("b", 160, 0.4), ("a", 160, 0.3), ("b", 640, 0.7), ("a", 2560, 0.8),
            ("random", np.nan, 0.1), ("victim", np.nan, 0.9)]  # fmt: skip
    return pd.DataFrame(rows, columns=["attack", "steps", "accuracy"])


def test_trainings_are_split_by_length_and_references_stand_in_each() -> None:
    parts = tables.trainings(by_length())
    frame = ["random", "victim"]
    assert [list(part["attack"]) for part in parts] == [["b", "a", *frame], ["a", "b", *frame],
                                                        ["a", *frame]]  # fmt: skip
    assert [part["steps"].max() for part in parts] == [160, 640, 2560]
    assert list(tables.longest(by_length())["accuracy"]) == [0.5, 0.7, 0.1, 0.9], "both attacks"


def test_lengths_are_compared_among_rows_with_as_many_images() -> None:
    rows = [("a", 16, 2, 0.1), ("a", 16, 4, 0.2), ("a", 32, 4, 0.3), ("a", 32, 8, 0.4)]  # in epochs
    rows.append(("victim", np.nan, np.nan, 0.9))
    table = pd.DataFrame(rows, columns=["attack", "images", "steps", "accuracy"])
    found = [list(part["accuracy"]) for part in tables.trainings(table)]
    assert found == [[0.1, 0.3, 0.9], [0.2, 0.4, 0.9]]
    suspects = table.rename(columns={"attack": "suspect"})
    assert list(tables.longest(suspects)["accuracy"]) == [0.2, 0.4, 0.9]


def test_unequal_numbers_of_lengths_are_compared_by_the_steps() -> None:
    rows = [("a", 64, 320, 0.1), ("a", 1024, 320, 0.2), ("a", 1024, 640, 0.3)]
    rows.append(("b", np.nan, 640, 0.4))
    table = pd.DataFrame(rows, columns=["attack", "images", "steps", "accuracy"])
    found = [list(part["accuracy"]) for part in tables.trainings(table)]
    assert found == [[0.1, 0.2], [0.3, 0.4]]


@pytest.mark.parametrize("steps", [None, np.nan])
def test_a_table_without_lengths_is_one_training(steps: float | None) -> None:
    table = by_length().drop(columns="steps") if steps is None else by_length().assign(steps=steps)
    (part,) = tables.trainings(table)
    pd.testing.assert_frame_equal(part, table)
    pd.testing.assert_frame_equal(tables.longest(table), table)


@pytest.mark.parametrize(
    ("alone", "start"),
    [((), 0.2), (("own",), 0.3), (("own", "labels"), 0.5), (("labels", "absent"), 0.5)],
)
def test_shares_are_parts_of_the_way_from_the_best_without_a_victim(
    alone: tuple[str, ...], start: float
) -> None:
    runs = {"random": (0.1, 0.3), "own": (0.2, 0.4), "labels": (0.5,), "worse": (0.0, 0.2),
            "a": (0.6, 0.8), "victim": (0.9,)}  # fmt: skip
    rows = [(name, value) for name, values in runs.items() for value in values]
    table = pd.DataFrame(rows, columns=["attack", "accuracy"])
    found = tables.shares(table, alone)
    assert list(found.index) == list(runs)
    for name, values in runs.items():
        share = 100 * (sum(values) / len(values) - start) / (0.9 - start)
        assert found[name] == pytest.approx(share, abs=0.051)
    assert found["victim"] == 100


def test_there_is_no_way_to_a_victim_that_is_not_ahead() -> None:
    rows = [("random", 0.1), ("own", 0.6), ("a", 0.5), ("victim", 0.6)]
    found = tables.shares(pd.DataFrame(rows, columns=["attack", "accuracy"]), ["own"])
    assert found.isna().all()


def test_gains_are_paired_means_with_intervals_at_each_point() -> None:
    given = {(8, "a"): [0.1, 0.11, 0.09], (8, "b"): [-0.1, -0.11, -0.09], (16, "a"): [0.2, -0.2, 0]}
    table = pd.concat(
        pairs([0.5 + d for d in gaps], [0.5] * 3).assign(images=images, query_data=data)
        for (images, data), gaps in given.items()
    )
    found = tables.gains(table, "a", "b").set_index(["query_data", "images"])
    assert len(found) == 3
    for (images, data), gaps in given.items():
        row = found.loc[(data, images), ["gain", "low", "high", "n"]].tolist()
        assert row == pytest.approx((*evaluate.mean_interval(gaps), 3))


def loss_table(
    victim: str, images: int, tasks: tuple[str, ...] = ("cifar10", "stl10")
) -> pd.DataFrame:
    row = {"victim": victim, "attack": "embedding", "images": images, "accuracy": 0.7, "seed": 0,
           "unique_inputs": images, "calls": images}  # fmt: skip
    return pd.DataFrame([row | {"task": task} for task in tasks])


def test_published_numbers_stand_beside_the_same_data_and_budget_only() -> None:
    assert tables.published(loss_table("shapes", 9000)).empty
    assert tables.published(loss_table("cifar10", 512)).empty
    wide = tables.layout(loss_table("cifar10", 9000))
    assert wide.loc["MSE", ("cifar10", "cifar10")] == "70.0"
    theirs = wide.loc["MSE, ICML 2022 Tables 1 and 2"]
    assert theirs.tolist() == ["-", "-", "75.5", "64.8"]
    ceiling = wide.loc["victim, ICML 2022 Tables 1 and 2"].tolist()
    assert ceiling == ["-", "-", "79.0", "67.9"], "the published ceiling, whatever was sent"


def test_published_numbers_are_percentages_of_known_attacks() -> None:
    known = pd.read_csv(tables.PUBLISHED, comment="#")
    point = ["victim", "query_data", "images", "attack", "task", "source"]
    assert not known.duplicated(point).any()
    assert known["accuracy"].between(10, 100).all()
    assert set(known["attack"]) <= {*ATTACKS, "victim"}


def test_a_layout_names_query_sets_where_there_are_several() -> None:
    one = loss_table("v", 8, ("t",)).assign(query_data="own")
    far = loss_table("v", 80, ("t",)).assign(query_data="far")
    victim = {"victim": "v", "attack": "victim", "task": "t", "accuracy": 0.9, "seed": 0}
    wide = tables.layout(pd.concat([one, far, pd.DataFrame([victim])], ignore_index=True))
    assert list(wide.index) == ["MSE, 8 own", "MSE, 80 far", "victim"]
    assert list(wide["answers"]) == ["8", "80", "-"], "references are asked nothing"
    assert list(tables.layout(one).index) == ["MSE"]


def test_the_budget_that_reaches_a_goal_lies_on_the_line_between_two_budgets() -> None:
    runs = {("a", 0): {10: 0.4, 40: 0.8, 80: 0.7}, ("a", 1): {10: 0.61, 40: 0.2, 80: 0.9},
            ("b", 0): {10: 0.9, 20: 0.9}, ("b", 1): {10: 0.1, 20: 0.2}, ("single", 0): {40: 0.9},
            ("victim", 0): {np.nan: 0.8}}  # fmt: skip
    table = pd.DataFrame([
        {"attack": attack, "seed": seed, "images": n, "unique_inputs": n, "accuracy": accuracy}
        for (attack, seed), budgets in runs.items() for n, accuracy in list(budgets.items())[::-1]
    ])  # fmt: skip
    found = tables.reached(table, 0.75, trained_on=100)
    assert found.loc["a", "seeds that reach it"] == "2 of 2"
    assert found.loc["a", "at the smallest budget"] == 1
    crossings = [10 * 4**0.5, 10]  # half way; and the smallest budget, which is enough
    assert found.loc["a", "distinct inputs"] == pytest.approx(sum(crossings) / 2)
    bounds = list(found.loc["a", ["low", "high"]])
    assert bounds == pytest.approx(list(evaluate.mean_interval(pd.Series(crossings))[1:]))
    assert found.loc["a", "share of training set"] == pytest.approx(sum(crossings) / 200)
    assert found.loc["b", "seeds that reach it"] == "1 of 2"
    assert np.isnan(found.loc["b", "distinct inputs"])
    assert list(found.index) == ["a", "b"], "a single budget has no line, the victim no budget"


def test_readings_compare_an_embedding_thief_with_each_classifier_s_thief() -> None:
    measured = ["accuracy", "own_head", "agreement", "share", "own_agreement"]
    columns = ["victim", "attack", "task", *measured, "seed"]
    rows = [
        ("simclr", "label", "a", 0.50, 0.55, 0.60, 0.70, 0.65),
        ("simclr", "label", "b", 0.40, np.nan, 0.50, 0.60, np.nan),
        ("simclr", "embedding", "a", 0.60, np.nan, 0.80, 0.90, np.nan),
        ("simclr", "embedding", "b", 0.70, np.nan, 0.60, 0.80, np.nan),
        ("supervised", "label", "a", 0.90, 0.99, 0.95, 0.95, 0.97),
    ]
    both = pd.DataFrame([(*row, seed) for seed in (0, 1) for row in rows], columns=columns)
    both["accuracy"] += 0.01 * both["seed"]
    both["own_head"] += 0.01 * both["seed"]
    table = tables.readings(both)
    gains = table.groupby("reading", sort=False)["gain"].mean()
    assert gains.to_dict() == pytest.approx({
        "accuracy on a, with new probes": 0.1, "accuracy on b, with new probes": 0.3,
        "agreement with the victim, with new probes": 0.2,
        "accuracy on a, the rival with its own classifier": 0.05,
        "agreement with the victim, the rival with its own classifier": 0.15,
        "share of its victim's accuracy, the rival's victim is supervised": -0.05,
    })  # fmt: skip
    assert set(table["attack"]) == {"label"}, "no posterior thief was run"
    assert table.groupby("reading").size().eq(2).all()
    assert tables.readings(both[both["attack"] == "embedding"]).empty, "no rival"
    elsewhere = tables.readings(both.drop(columns=["own_head", "own_agreement"]))
    assert elsewhere["reading"].nunique() == 4, "the provider's classifier serves none of the tasks"


def test_a_goal_is_a_share_of_what_the_victim_reaches_with_the_same_labelled_images() -> None:
    rows = [("a", s, n, n, accuracy) for s in (0, 1) for n, accuracy in ((10, 0.4), (40, 0.8))]
    rows += [("victim", 0, np.nan, np.nan, 0.8), ("victim", 1, np.nan, np.nan, 0.4)]
    table = pd.DataFrame(rows, columns=["attack", "seed", "images", "unique_inputs", "accuracy"])
    found = tables.reached(table, 1.0, trained_on=100).loc["a"]
    assert found["distinct inputs"] == pytest.approx((40 + 10) / 2)
    assert found["at the smallest budget"] == 1
