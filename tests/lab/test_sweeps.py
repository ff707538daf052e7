"""Sweeps: one thing changed at a time, at equal queries, the same numbers in one process or many."""

import shutil

import pandas as pd
import pytest
import torch

from contsteal import encoders, evaluate, steal
from contsteal.defenses.b4b import B4B
from contsteal.lab import artifacts, sweeps
from contsteal.lab.experiment import Lab


def test_a_sweep_costs_the_victim_one_forward_per_distinct_input(lab: Lab) -> None:
    fresh = Lab("smoke")
    before = fresh.answers.forwards
    table = sweeps.sweep(fresh, ["embedding", "info-nce"], [16, 32], [0], ["shapes"])
    assert fresh.answers.forwards - before == 32
    assert list(zip(table["attack"], table["images"], strict=True)) == [
        ("embedding", 16), ("embedding", 32), ("info-nce", 16), ("info-nce", 32)
    ]  # fmt: skip


def test_rows_say_what_they_cost(lab: Lab) -> None:
    anew = sweeps.sweep(lab, ["cont-steal"], [16], [0], ["shapes"], answers=0)
    once = sweeps.sweep(lab, ["cont-steal"], [16], [0], ["shapes"])
    assert anew[["unique_inputs", "calls"]].to_numpy().tolist() == [[32, 32]], "two epochs"
    assert once[["unique_inputs", "calls"]].to_numpy().tolist() == [[16, 16]]
    rows = sweeps.sweep(lab, ["info-nce"], [24], [0], ["shapes", "shapes:texture"], answers=2)
    assert set(rows["usd"]) == {48 * sweeps.PRICE / 1000}
    assert (rows["seconds"] > 0).all()
    assert set(rows["forwards"]) <= set(range(25)), "at most one forward per distinct input"
    dear = sweeps.sweep(lab.but(price=5.0), ["info-nce"], [24], [0], ["shapes"], answers=2)
    assert set(dear["usd"]) == {48 * 5.0 / 1000}


def test_workers_give_the_numbers_of_a_single_process(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = artifacts.runs_dir() / "artifacts"
    attacks = ["embedding", "label"]
    alone = sweeps.sweep(lab.but(workers=1), attacks, [16], [0], ["shapes"])
    for folder in [*kept.glob("attack-*"), *kept.glob("score-*")]:
        shutil.rmtree(folder)
    victims = len(list(kept.glob("victim-*")))
    capsys.readouterr()
    torch.set_num_threads(2)  # workers have one: that must not make them train their own victim
    try:
        together = sweeps.sweep(lab.but(workers=2), attacks, [16], [0], ["shapes"])
    finally:
        torch.set_num_threads(1)
    varying = list(sweeps.VARYING)
    pd.testing.assert_frame_equal(together.drop(columns=varying), alone.drop(columns=varying))
    assert len(list(kept.glob("victim-*"))) == victims
    lines = capsys.readouterr().out.splitlines()
    counts = {
        kind: sum(int(x[-2]) for x in lines if f" {kind}:" in x) for kind in ("attack", "score")
    }
    assert counts == {"attack": 2, "score": 2}, "what was computed is said once per reason"


def test_references_frame_a_table(lab: Lab) -> None:
    frame = sweeps.references(lab, ["shapes"], [0, 1])
    assert list(frame["attack"]) == ["random", "random", "victim"]
    assert frame["agreement"].iloc[-1] == 1.0
    assert frame["cka"].iloc[-1] == pytest.approx(1.0)


def test_views_of_a_small_budget_are_those_of_a_large_one(lab: Lab) -> None:
    config = steal.Config(attack="cont-steal", seed=3)
    images = lab.queries(128, seed=3).repeat(2, 1, 1, 1)
    whole = steal.view(config, images, 1)
    assert torch.equal(steal.view(config, images[:40], 1), whole[:40])
    assert not torch.equal(whole[:128], whole[128:]), "equal images, other places, other views"


def test_an_ablation_changes_one_knob_at_equal_queries(lab: Lab) -> None:
    knobs = {"temperature": [0.1], "query_data": ["shapes", "patches"], "answers": [2]}
    table = sweeps.ablate(lab, "cont-steal", knobs, 16, [0, 1], "shapes")
    settings = [("as given", ""), ("temperature", "0.1"), ("query_data", "shapes"),
                ("query_data", "patches"), ("answers", "2")]  # fmt: skip
    assert list(dict.fromkeys(zip(table["knob"], table["value"], strict=True))) == settings
    by = table.groupby(["knob", "value"])
    assert (by["seed"].nunique() == 2).all()
    spent = by["unique_inputs"].mean()
    assert spent.pop(("answers", "2")) == 32
    assert set(spent) == {16}
    accuracy = by["accuracy"].apply(list)
    assert accuracy["query_data", "shapes"] == accuracy["as given", ""], "that is what is given"
    assert len({tuple(values) for values in by["cka"].apply(list)}) == 4
    with pytest.raises(TypeError, match="temprature"):
        sweeps.ablate(lab, "cont-steal", {"temprature": [1.0]}, 16, [0], "shapes")


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
    labs = {"simclr": lab, "byol": lab.but(method="byol")}
    expected = {
        name: sweeps.sweep(one, ["embedding"], [16], [0], ["shapes"])["cka"].item()
        for name, one in labs.items()
    }
    assert table["cka"].to_dict() == expected
    assert expected["simclr"] != expected["byol"]


def test_a_set_may_name_its_split(lab: Lab) -> None:
    axes = {"images": [8], "query_data": ["shapes@test"]}
    table = sweeps.grid(lab, ["embedding"], axes, [0], ["shapes"])
    other = lab.but(query_split="test")
    row = sweeps.sweep(other, ["embedding"], [8], [0], ["shapes"], batch=8).iloc[0]
    assert table["cka"].item() == row["cka"]
    assert set(table["query_data"]) == {"shapes@test"}
    assert sweeps.of_lab(lab, query_data="shapes") == {}
    changes = {"query_data": "patches", "query_split": "train"}
    assert sweeps.of_lab(other, query_data="patches") == changes, "a set has splits of its own"
    given = {"query_data": "patches", "query_split": "test"}
    assert sweeps.of_lab(lab, **given) == given


def test_losses_and_other_queries_name_victim_and_query_set(lab: Lab) -> None:
    rows = sweeps.losses(lab, ["embedding", "soft-nn"], ["shapes"], 16, [0], ["shapes"])
    assert list(rows["victim"]) == ["shapes"] * 2
    sources = [("shapes", "train", 16), ("digits", "test", 200)]
    far = sweeps.elsewhere(lab, ["embedding"], sources, [0], ["shapes"])
    assert list(far["query_data"]) == ["shapes", "digits@test"]
    assert list(far["unique_inputs"]) == [16, 200], "more than the profile's own pool"
    assert far["cka"].iloc[0] == rows["cka"].iloc[0]


def test_landscapes_are_the_victims_geometry_on_the_queries(lab: Lab) -> None:
    table = sweeps.landscapes(lab, ["simclr", "byol"], ["shapes", "patches"], 16)
    assert len(table) == 4
    other = lab.but(method="byol", query_data="patches")
    expected = evaluate.geometry(encoders.embed(other.victim.encoder, other.queries(16)))
    row = table.query("method == 'byol' and query_data == 'patches'").iloc[0]
    assert row[list(expected)].to_dict() == pytest.approx(expected, rel=1e-4)


def test_coverage_is_b4b_s_own_after_every_step() -> None:
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
    noise = watch.sigma(table["coverage"].to_numpy()).tolist()
    assert table["noise"].tolist() == pytest.approx(noise)
