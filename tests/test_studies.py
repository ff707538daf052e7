"""Studies: one thing changed at a time, at equal queries, and what is said of the differences."""

import numpy as np
import pandas as pd
import pytest
import torch

from contsteal import evaluate, losses
from contsteal.attacks import ATTACKS
from contsteal.defenses.b4b import B4B
from contsteal.defenses.perturbation import GaussianNoise
from contsteal.lab import inspection, provider, sweeps, tables
from contsteal.lab.experiment import Lab
from contsteal.paper import contrasts, stakes, summary


def test_an_ablation_changes_one_knob_at_equal_queries(lab: Lab) -> None:
    knobs = {"temperature": [0.1], "query_data": ["shapes", "patches"], "answers": [2]}
    table = sweeps.ablate(lab, "cont-steal", knobs, 16, [0, 1], "shapes")
    asked = [("as given", ""), ("temperature", "0.1"), ("query_data", "shapes"),
             ("query_data", "patches"), ("answers", "2")]  # fmt: skip
    assert list(dict.fromkeys(zip(table["knob"], table["value"], strict=True))) == asked
    by = table.groupby(["knob", "value"])
    assert (by["seed"].nunique() == 2).all()
    spent = by["unique_inputs"].mean()
    assert spent.pop(("answers", "2")) == 32
    assert set(spent) == {16}
    accuracy = by["accuracy"].apply(list)
    assert accuracy["query_data", "shapes"] == accuracy["as given", ""], "that is what is given"
    assert len({tuple(values) for values in by["cka"].apply(list)}) == 4


def test_a_grid_crosses_its_axes_and_counts_steps(lab: Lab) -> None:
    axes = {"images": [8, 32], "epochs": [1, 2], "query_data": ["patches"], "views": ["clean"]}
    table = sweeps.grid(lab, ["embedding", "cont-steal"], axes, [0], ["shapes"])
    assert len(table) == 8
    steps = table.groupby(["images", "epochs"])["steps"].first()
    assert steps.to_dict() == {(8, 1): 1, (8, 2): 2, (32, 1): 2, (32, 2): 4}  # batches of 8 and 16
    assert set(table["unique_inputs"]) == {8, 32}
    alone = lab.but(query_data="patches")
    row = table.query("attack == 'embedding' and images == 32 and epochs == 2").iloc[0]
    again = sweeps.sweep(alone, ["embedding"], [32], [0], ["shapes"], views="clean").iloc[0]
    assert row["accuracy"] == again["accuracy"]


def test_a_grid_over_methods_steals_other_victims(lab: Lab) -> None:
    axes = {"images": [16], "method": ["simclr", "byol"]}
    table = sweeps.grid(lab, ["embedding"], axes, [0], ["shapes"]).set_index("method")
    own = sweeps.sweep(lab, ["embedding"], [16], [0], ["shapes"]).iloc[0]
    other = sweeps.sweep(lab.but(method="byol"), ["embedding"], [16], [0], ["shapes"]).iloc[0]
    assert table.loc["simclr", "cka"] == own["cka"]
    assert table.loc["byol", "cka"] == other["cka"] != own["cka"]


def test_a_knob_that_no_attack_has_is_refused(lab: Lab) -> None:
    with pytest.raises(TypeError, match="temprature"):
        sweeps.ablate(lab, "cont-steal", {"temprature": [1.0]}, 16, [0], "shapes")


def duels(gain: dict[tuple[int, str], list[float]]) -> pd.DataFrame:
    rows = []
    for (images, data), differences in gain.items():
        for seed, d in enumerate(differences):
            at = {"images": images, "query_data": data, "epochs": 1, "steps": 1, "seed": seed,
                  "views": "clean", "method": "simclr", "task": "shapes"}  # fmt: skip
            rows += [at | {"attack": "embedding", "accuracy": 0.5}]
            rows += [at | {"attack": "cont-steal", "accuracy": 0.5 + d}]
    return pd.DataFrame(rows)


def test_gains_are_paired_means_with_intervals_and_counted() -> None:
    given = {(8, "a"): [0.1, 0.11, 0.09], (8, "b"): [-0.1, -0.11, -0.09], (16, "a"): [0.2, -0.2, 0]}
    table = duels(given)
    found = tables.gains(table, "cont-steal", "embedding").set_index(["images", "query_data"])
    for at, differences in given.items():
        expected = evaluate.mean_interval(differences)
        assert found.loc[at, ["gain", "low", "high"]].tolist() == pytest.approx(expected)
        assert found.loc[at, "n"] == 3
    told, numbers = summary.boundary(table)
    assert told == (
        "Cont-Steal is ahead of MSE in 1 of 3 settings, behind in 1, and cannot be told from it in 1"
    )
    assert numbers["n"].tolist() == [3, 3, 3]
    assert numbers["gain"].tolist() == pytest.approx([10, -10, 0])
    levels = summary.levels(tables.gains(table, "cont-steal", "embedding"))
    assert levels.replace("-0.0", "+0.0") == "query_data: a +5.0, b -10.0; images: 8 +0.0, 16 +0.0"


def test_the_map_shows_every_point_once() -> None:
    table = duels({(8, "a"): [0.1, 0.12], (16, "a"): [0.2, 0.1], (8, "b"): [0, 0.1]})
    found = tables.gains(table, "cont-steal", "embedding")
    fig = contrasts.boundary_map(found, "title")
    shown = sorted(t.get_text() for ax in fig.axes for t in ax.texts)
    assert shown == ["+11", "+15", "+5"]


def test_a_loss_table_has_a_row_per_loss_and_a_column_per_victim_and_task(lab: Lab) -> None:
    rows = sweeps.losses(lab, ["embedding", "soft-nn"], ["shapes"], 16, [0, 1], ["shapes"])
    frame = sweeps.references(lab, ["shapes"], [0, 1]).assign(victim="shapes")
    wide = tables.layout(pd.concat([rows, frame], ignore_index=True))
    assert list(wide.index) == ["embedding", "soft-nn", "random", "victim"]
    columns = [("distinct inputs", ""), ("answers", ""), ("shapes", "shapes")]
    assert list(wide.columns) == columns
    assert list(wide["answers"]) == ["16", "16", "-", "-"], "references are asked nothing"
    mean, low, high = evaluate.mean_interval(rows.query("attack == 'soft-nn'")["accuracy"])
    assert wide.iloc[1, 2] == f"{100 * mean:.1f} +- {50 * (high - low):.1f}"
    assert "+-" not in wide.iloc[3, 2], "the victim is one"


def test_published_numbers_stand_beside_the_same_data_and_count_only() -> None:
    def table(victim: str, images: int) -> pd.DataFrame:
        at = {"victim": victim, "attack": "embedding", "images": images, "accuracy": 0.7,
              "unique_inputs": images, "calls": images}  # fmt: skip
        return pd.DataFrame([at | {"task": task, "seed": 0} for task in ("cifar10", "stl10")])

    assert tables.published(table("shapes", 9000)).empty
    assert tables.published(table("cifar10", 512)).empty
    wide = tables.layout(table("cifar10", 9000))
    assert wide.loc["embedding", ("cifar10", "cifar10")] == "70.0"
    told = wide.loc["embedding, ICML 2022 Tables 1 and 2"]
    assert told.tolist() == ["-", "-", "75.5", "64.8"]
    ceiling = wide.loc["victim, ICML 2022 Tables 1 and 2"].tolist()
    assert ceiling == ["-", "-", "79.0", "67.9"], "the published ceiling, whatever was sent"


def test_published_numbers_are_those_of_the_sources() -> None:
    known = pd.read_csv(sweeps.runs.PACKAGE / "published.csv", comment="#")
    assert not known.duplicated(
        ["victim", "query_data", "images", "attack", "task", "source"]
    ).any()
    assert known["accuracy"].between(10, 100).all()
    pass

    assert set(known["attack"]) <= {*ATTACKS, "victim"}


def test_the_smallest_budget_that_reaches_the_goal() -> None:
    def row(attack: str, seed: int, budget: float, accuracy: float) -> dict:
        return {"attack": attack, "seed": seed, "unique_inputs": budget, "accuracy": accuracy}

    table = pd.DataFrame([
        row("a", 0, 10, 0.5), row("a", 0, 20, 0.8), row("a", 0, 40, 0.9),
        row("a", 1, 10, 0.7), row("a", 1, 20, 0.7), row("a", 1, 40, 0.8),
        row("b", 0, 10, 0.9), row("b", 1, 10, 0.1),
        row("victim", 0, np.nan, 0.8),
    ])  # fmt: skip
    found = tables.reached(table, 0.95, trained_on=100)
    assert found.loc["a", "seeds that reach it"] == "2 of 2"
    assert found.loc["a", "distinct inputs"] == 30
    assert found.loc["a", "share of training set"] == 0.3
    assert found.loc["b", "seeds that reach it"] == "1 of 2"
    assert np.isnan(found.loc["b", "distinct inputs"])
    assert "victim" not in found.index


def test_landscapes_are_the_victims_geometry_on_the_queries(lab: Lab) -> None:
    found = sweeps.landscapes(lab, ["simclr", "byol"], ["shapes", "patches"], 16)
    assert len(found) == 4
    other = lab.but(method="byol", query_data="patches")
    x = sweeps.encoders.embed(other.victim.encoder, other.queries(16))
    row = found.query("method == 'byol' and query_data == 'patches'").iloc[0]
    for name, value in evaluate.geometry(x).items():
        assert row[name] == pytest.approx(value, rel=1e-4)


def test_pulls_are_the_losses_positives_and_negatives() -> None:
    found = inspection.pulls({"ours": losses.cont_steal, "mse": losses.mse}, n=3)
    for name, rows in found.groupby("loss"):
        for r in rows.itertuples():
            own, partner = r.anchor == r.other, r.other == "t" + r.anchor[1:]
            if partner:
                assert r.pull > 0
            elif own or name == "mse":
                assert r.pull == 0
            else:
                assert r.pull < 0
    assert len(found) == 2 * 3 * 6


def test_a_pull_is_the_loss_s_derivative_by_one_cosine() -> None:
    z = torch.eye(6, dtype=torch.float64)
    found = inspection.pulls({"x": losses.cont_steal}, n=3).set_index(["anchor", "other"])["pull"]
    for j, other in ((1, "s2"), (3, "t1"), (5, "t3")):
        values = []
        for step in (1e-5, -1e-5):
            s = z[:3].clone()
            s[0] += step * z[j]
            values.append(losses.cont_steal(s, z[3:]).item())
        assert found["s1", other] == pytest.approx(-(values[0] - values[1]) / 2e-5, abs=1e-6)


# ------------------------------------------------------------------- what is said of tables


def losses_table(**changes: object) -> pd.DataFrame:
    rows = []
    for victim, (good, bad) in {"a": (0.9, 0.1), "b": (0.1, 0.9)}.items():
        for seed in (0, 1):
            at = {"victim": victim, "task": "t", "seed": seed, "images": 8, "calls": 8,
                  "agreement": 0.5}  # fmt: skip
            rows += [at | {"attack": "x", "accuracy": good + 0.01 * seed, "unique_inputs": 8}]
            rows += [at | {"attack": "y", "accuracy": bad, "unique_inputs": 8}]
            rows += [at | {"attack": "dear", "accuracy": 1.0, "unique_inputs": 16}]
    return pd.DataFrame(rows)


def test_losses_are_compared_per_victim_and_at_equal_budgets() -> None:
    told, _ = summary.losses(losses_table())
    first, second = told.split("; ")
    assert first.startswith("a: x ")
    assert " y: " in first
    assert second.startswith("b: y ")
    assert "dear" not in told


def test_kinds_of_queries_are_compared_at_one_number_of_images() -> None:
    rows = [
        {"victim": "v", "task": "t", "seed": s, "attack": "x", "query_data": d, "images": n,
         "unique_inputs": n, "calls": n, "accuracy": a}
        for s in (0, 1)
        for d, n, a in (("own", 8, 0.5), ("far", 8, 0.4), ("far", 80, 0.9))
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    told, wide = summary.elsewhere(table)
    assert told == "own beats far: +10.0 points, 2 seeds, 8 images"
    assert list(wide.index) == ["x, 8 own", "x, 8 far", "x, 80 far"]
    assert summary.elsewhere(table[table["query_data"] == "own"])[0] == "one set with 8 images"
    third = table[table["query_data"] == "far"].assign(query_data="near", accuracy=0.5)
    told, _ = summary.elsewhere(pd.concat([table, third]))
    assert told == "own beats 1 of 2 other sets and loses to 0, 8 images each"


def test_knobs_of_numbers_alone_stay_apart() -> None:
    rows = [
        {"knob": k, "value": v, "seed": s, "accuracy": a, "agreement": a, "cka": a, "attack": "x"}
        for s in (0, 1)
        for k, v, a in (
            ("as given", None, 0.5),
            ("temperature", 0.07, 0.6),
            ("temperature", 0.1, 0.4),
        )
    ]
    told, by = summary.ablations(pd.DataFrame(rows))
    assert told == "temperature 0.07: +10.0 points; temperature 0.1: -10.0 points."
    assert list(by["n"]) == [2, 2, 2]


def test_a_study_of_no_knob_is_told_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    rows = [
        {"knob": "as given", "value": None, "seed": s, "attack": "x"}
        | dict.fromkeys(("accuracy", "agreement", "cka"), 0.5)
        for s in (0, 1)
    ]
    table = pd.DataFrame(rows).astype({"value": float})
    told, by = summary.ablations(table)
    assert (told, list(by["n"])) == ("", [2])
    assert not recwarn.list


def test_a_set_may_name_its_split(lab: Lab) -> None:
    table = sweeps.grid(
        lab, ["embedding"], {"images": [8], "query_data": ["shapes@test"]}, [0], ["shapes"]
    )
    other = lab.but(query_split="test")
    row = sweeps.sweep(other, ["embedding"], [8], [0], ["shapes"], batch=8).iloc[0]
    assert table.iloc[0]["cka"] == row["cka"]
    assert set(table["query_data"]) == {"shapes@test"}
    assert sweeps.of_lab(lab, query_data="shapes") == {}
    unlabelled = lab.but(query_split="test")
    assert sweeps.of_lab(unlabelled, query_data="patches") == {
        "query_data": "patches",
        "query_split": "train",
    }, "another set does not have this one's splits"


# ----------------------------------------------------------------------------- defences


def test_coverage_is_b4b_s_own_after_every_step() -> None:
    pass

    torch.manual_seed(0)
    guard, answers = B4B(bits=4, transform="none"), torch.randn(24, 6)
    table = sweeps.coverage(guard, {"a": answers, "b": answers[:4].repeat(6, 1)}, step=8)
    assert list(table["queries"]) == [8, 16, 24] * 2
    watch = B4B(bits=4, transform="none")
    watch(answers, "a")
    last = table.groupby("user")["coverage"].last()
    assert last["a"] == watch.coverage("a")
    assert last["b"] <= 4 / 16, "four inputs repeated cover no more than four buckets"
    assert guard.coverage("a") == 0, "the given defence has seen nobody"
    assert table["noise"].tolist() == pytest.approx(
        watch.sigma(table["coverage"].to_numpy()).tolist()
    )


def test_adapting_is_compared_with_not_adapting_under_the_same_defence(lab: Lab) -> None:
    rows = [
        {"defence": d, "adapts": h, "seed": s, "attack": "embedding", "accuracy": a + 0.1 * s,
         "agreement": 0.5}
        for s in (0, 1)
        for d, h, a in (("D", None, 0.4), ("D", "averages", 0.5), ("E", None, 0.3), ("E", "maps", 0.1))
    ]  # fmt: skip
    rows.append({"defence": None, "adapts": None, "seed": 0, "attack": "victim", "accuracy": 0.9})
    told, by = stakes.adapted(pd.DataFrame(rows))
    assert told == "D, averages: +10.0 points; E, maps: -20.0 points."
    assert list(by.index) == ["D, as is", "D, averages", "E, as is", "E, maps", "victim"]


def test_a_defended_attack_can_adapt(lab: Lab) -> None:
    pass

    noisy = [[GaussianNoise(1.0)]]
    plain = provider.defended(lab, noisy, ["embedding"], 16, [0], "shapes")
    wise = provider.defended(
        lab, noisy, ["embedding"], 16, [0], "shapes", adapt="average", answers=3
    )
    assert (plain["calls"].item(), wise["calls"].item()) == (16, 48)
    assert wise["unique_inputs"].item() == 16
    assert plain["cka"].item() != wise["cka"].item()
    assert plain["legitimate"].item() == wise["legitimate"].item()
