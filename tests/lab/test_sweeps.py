"""Sweeps: one thing changed at a time, at equal queries, the same numbers in one process or many."""

import contextlib
import functools
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import joblib
import pandas as pd
import pytest
import torch
from distributed import LocalCluster, get_worker

from contsteal import encoders, evaluate, loop, steal
from contsteal.lab import artifacts, detection, experiment, owner, provider, sweeps, tables
from contsteal.lab.experiment import Lab


def same(rows: pd.DataFrame, lab: Lab, seed: int, nets: dict[str, encoders.Encoder]) -> None:
    """Rows have what encoders of a lab are worth with the labelled images of a seed."""
    for attack, net in nets.items():
        (row,) = rows[(rows["attack"] == attack) & (rows["seed"] == seed)].to_dict("records")
        score = lab.score(net, row["task"], seed)
        assert {name: row[name] for name in score} == score, attack


def test_a_sweep_costs_the_victim_one_forward_per_distinct_input(lab: Lab) -> None:
    fresh = Lab("smoke")
    before = fresh.answers.forwards
    table = sweeps.sweep(fresh, ["embedding", "info-nce"], [16, 32], [0], ["shapes"])
    assert fresh.answers.forwards - before == 32
    expected = [(a, n, n, n) for a in ("embedding", "info-nce") for n in (16, 32)]
    columns = ["attack", "images", "unique_inputs", "calls"]
    assert list(table[columns].itertuples(index=False, name=None)) == expected


@pytest.mark.parametrize("price", [None, 5.0])
def test_rows_say_what_they_cost(lab: Lab, price: float | None) -> None:
    own = lab if price is None else lab.but(price=price)
    rows = sweeps.sweep(own, ["cont-steal"], [16], [0], ["shapes", "shapes:texture"], answers=0)
    assert set(rows["unique_inputs"]) == set(rows["calls"]) == {32}, "in each of two epochs"
    assert set(rows["usd"]) == {32 * (price or sweeps.PRICE) / 1000}
    assert (rows["seconds"] > 0).all()
    assert set(rows["forwards"]) <= set(range(33)), "at most one forward per distinct input"


REST = {"attacks": ["embedding"], "queries": 16, "seeds": [0], "task": "shapes", "steps": [2]}
SWEEP = {"attacks": ["embedding"], "queries": [16], "seeds": [0], "tasks": ["shapes"]}
DETECTORS = {"watchers": {}, "users": {"a": None}}


@pytest.mark.parametrize(
    ("function", "given"),
    [
        *((sweeps.sweep, SWEEP | {name: 2 * values}) for name, values in SWEEP.items()),
        (sweeps.sweep, SWEEP | {"steps": [4, 4]}),
        (sweeps.without_victim, {"queries": [16], "seeds": [0], "tasks": [], "steps": [2, 2]}),
        (Lab.stamp, {"seeds": [0, 0]}),
        (sweeps.victims, REST | {"victim_seeds": [0, 0]}),
        (sweeps.victims, REST | {"victim_seeds": [0, torch.tensor(0).numpy()[()]]}),
        (sweeps.victims, REST | {"victim_seeds": [0], "seeds": [1, 1]}),
        (sweeps.references, {"tasks": ["shapes"], "seeds": [0, 0]}),
        (sweeps.train, {"methods": ["moco", "moco"], "data": []}),
        (sweeps.train, {"methods": [], "data": ["digits", "digits"]}),
        (sweeps.stake, {"data": ["shapes"] * 2, "queries": 16, "seeds": [0], "steps": [2]}),
        (sweeps.landscapes, {"methods": ["moco"] * 2, "query_data": ["shapes"], "count": 16}),
        (detection.watched, DETECTORS | {"seeds": [0, 0]}),
        (detection.refusals, DETECTORS | {"seeds": [0, 0]}),
        (owner.train_suspects, {"strangers": {"count": 0}, "marks": [{"epochs": 1}] * 2}),
        (provider.customers, {"chains": [[]], "tasks": ["shapes"] * 2, "seeds": [0]}),
        (provider.calibrated, {"defense": None, "task": "shapes", "classes": 2, "seeds": [0, 0]}),
        (provider.adapting, {"chains": [[], []], "attack": "embedding", "queries": 16, "seeds": [0],
                             "bought": pd.DataFrame()}),
        (provider.coverage, {"defences": [None, None], "users": {"a": None}, "seeds": [0]}),
    ],
)  # fmt: skip
def test_no_list_of_any_comparison_names_a_value_twice(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, function, given: dict
) -> None:
    """A repeated row would count as independent evidence; it is refused before anything runs."""
    monkeypatch.setattr(Lab, "steal", mock.Mock(side_effect=AssertionError("it runs")))
    with pytest.raises(ValueError, match=r"names .+ twice: name it once"):
        function(lab, **given)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("info-nce", {}),
        ("info-nce, own views", {"views": "surrogate"}),
        ("embedding, clean", {"views": "clean"}),
        ("cont-steal, shared views", {"views": "shared"}),
        ("embedding, independent views", {"views": "independent"}),
        ("cont-steal, anew, shuffled", {"answers": 0, "shuffled": True}),
        ("embedding, published optimizer", {"lr": 3e-4, "batch": 32, "weight_decay": 0.0}),
        ("sup-con, published optimizer", {"optimizer": "sgd", "lr": 0.05, "batch": 256}),
    ],
)
def test_a_variant_is_an_attack_with_some_of_its_knobs_changed(name: str, changes: dict) -> None:
    attack = name.split(", ")[0]
    assert experiment.variant(name) == (attack, changes)
    config = steal.Config(attack=attack, **changes)
    assert config.mode == changes.get("views", steal.ATTACKS[attack].views), "the recipe takes it"


def test_a_sweep_over_lengths_has_a_row_for_each(lab: Lab) -> None:
    attacks = ["embedding, own views", "label"]
    table = sweeps.sweep(lab, attacks, [32], [0], ["shapes", "shapes:texture"], steps=[4, 3])
    assert list(table["attack"]) == [a for a in attacks for _ in range(4)]
    assert list(table["steps"]) == [4, 4, 3, 3] * 2
    assert list(table["task"]) == ["shapes", "shapes:texture"] * 4
    given = sweeps.sweep(lab, attacks, [32], [0], ["shapes"])
    assert list(given["steps"]) == [4, 4], "two epochs of two batches"
    four = table[(table["steps"] == 4) & (table["task"] == "shapes")]
    assert list(four["cka"]) == list(given["cka"])
    own = table["own_head"]
    assert own.notna().tolist() == [False] * 4 + [True, False] * 2, "of the victim's own task alone"
    stolen = lab.steal("label", 32, steps=4)
    assert own[4] == lab.score(stolen.encoder, "shapes", head=stolen.projector)["own_head"]
    assert (tables.longest(table)["steps"] == 4).all()


def compared(lab: Lab, way: str, steps: list[int]) -> pd.DataFrame:
    """Rows of two attacks by one of the functions that compare them, at these lengths."""
    names, seeds, tasks = ["embedding", "soft-nn"], [0], ["shapes", "shapes:texture"]
    if way == "losses":
        return sweeps.losses(lab, names, ["shapes"], 16, seeds, tasks, steps)
    if way == "elsewhere":
        return sweeps.elsewhere(lab, names, [("patches", "train", 16)], seeds, tasks, steps)
    if way == "grid":
        axes = {"images": [16], "views": ["clean", "surrogate"]}
        return sweeps.grid(lab, names, axes, seeds, tasks, steps)
    return sweeps.ablate(lab, names[0], {"lr": [1e-3]}, 16, seeds, tasks[0], steps)


@pytest.mark.parametrize("way", ["losses", "elsewhere", "grid", "ablate"])
def test_every_comparison_has_as_many_lengths_as_asked_for(lab: Lab, way: str) -> None:
    table = compared(lab, way, [3, 2])
    one = compared(lab, way, [2])
    assert len(table) == 2 * len(one)
    assert table["steps"].value_counts().to_dict() == {3: len(one), 2: len(one)}
    shorter = tables.trainings(table)[0].drop(columns=list(sweeps.VARYING))
    assert shorter.to_dict("list") == one.drop(columns=list(sweeps.VARYING)).to_dict("list")


def test_what_needs_no_victim_has_rows_without_costs(lab: Lab) -> None:
    before = lab.answers.forwards
    several = lab.but(probe_images=80, probe_draws=2)
    table = sweeps.without_victim(several, [16, 32], [0, 1], ["shapes", "shapes:texture"], [2, 3])
    assert lab.answers.forwards == before
    assert table.columns.isin(["unique_inputs", "calls", "usd", "forwards"]).sum() == 0
    point = ["attack", "images", "seed", "steps", "task"]
    expected = product(sweeps.ALONE, [16, 32], [0, 1], [2, 3], ["shapes", "shapes:texture"])
    assert list(table[point].itertuples(index=False, name=None)) == list(expected)
    for (name, method), draws in zip(sweeps.ALONE.items(), (None, 1), strict=True):
        row = table[table["attack"] == name].iloc[-1]
        net = several.alone(method, 32, seed=1, steps=3).encoder
        assert row["accuracy"] == several.score(net, "shapes:texture", 1, draws=draws)["accuracy"]
    frame = pd.concat([table, sweeps.sweep(lab, ["embedding"], [32], [0], ["shapes"], steps=[3])])
    assert set(tables.longest(frame)["attack"]) == {*sweeps.ALONE, "embedding"}


def test_what_is_at_stake_is_measured_with_a_victim_of_each_data_set(lab: Lab) -> None:
    own = lab.but(train_split="test", query_split="test")  # which another set does not take over
    table = sweeps.stake(own, ["shapes", "glyphs"], 16, [0, 1], [2])
    other = {"data": "glyphs", "query_data": "glyphs"}
    labs = {"shapes": own, "glyphs": lab.but(**other)}
    assert list(table["data"].unique()) == list(labs)
    for name, one in labs.items():
        rows = table[table["data"] == name]
        assert len(rows) == 2 * 2 + 2 + 2, "two without a victim, random features, the victim"
        assert set(rows["task"]) == {name}
        alone = one.alone("simclr", 16, 0, 2).encoder
        same(rows, one, 0, {"victim": one.victim.encoder, "SimCLR on the queries": alone})
    assert labs["glyphs"].victim.sha256 != own.victim.sha256


def test_victims_of_one_recipe_differ_in_their_seed(lab: Lab) -> None:
    table = sweeps.victims(lab, [0, 5], ["embedding"], 16, [0, 1], "shapes", [2])
    assert list(table["victim_seed"]) == [0] * 6 + [5] * 6, "attacks, random features, the victim"
    assert sweeps.victims(lab, [], ["embedding"], 16, [0], "shapes", [2]).empty
    other = lab.but(victim=lab.settings["victim"] | {"seed": 5})
    assert other.victim.sha256 != lab.victim.sha256
    for seed, one in ((0, lab), (5, other)):
        stolen = one.steal("embedding", 16, 1, steps=2).encoder
        rows = table[table["victim_seed"] == seed]
        same(rows, one, 1, {"victim": one.victim.encoder, "embedding": stolen})


def test_a_supervised_classifier_is_attacked_beside_the_victim_s(lab: Lab) -> None:
    attacks = {"victim": ["label", "embedding"], "supervised": ["label"]}
    table = sweeps.classifiers(lab, attacks, 16, [0, 1], ["shapes", "shapes:texture"], [2])
    assert list(table["victim"].unique()) == ["simclr", "supervised"]
    assert len(table) == (2 + 1) * 2 * 2 + 2 * (2 + 2) * 2, "attacks, random features and victims"
    other = lab.but(victim=lab.settings["supervised"])
    assert other.victim.sha256 == lab.train("supervised").sha256
    rows = table[(table["victim"] == "supervised") & (table["task"] == "shapes")]
    stolen = other.steal("label", 16, 1, steps=2).encoder
    same(rows, other, 1, {"victim": other.victim.encoder, "label": stolen})
    accuracy, share = (rows.set_index(["attack", "seed"])[name] for name in ("accuracy", "share"))
    assert share["label", 1] == accuracy["label", 1] / accuracy["victim", 1]
    assert (share["victim"] == 1).all()


def test_workers_give_the_numbers_of_a_single_process(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = artifacts.runs_dir() / "artifacts"
    attacks = ["embedding", "label"]
    alone = sweeps.sweep(lab.but(workers=1), attacks, [16], [0], ["shapes"])
    for folder in [*kept.glob("attack-*"), *kept.glob("score-*")]:
        shutil.rmtree(folder)
    victims = len(list(kept.glob("victim-*")))
    assert "computing attack" not in capsys.readouterr().out, "nobody watches where bars are off"
    monkeypatch.delenv(loop.QUIET)
    torch.set_num_threads(2)  # workers have one: that must not make them train their own victim
    try:
        together = sweeps.sweep(lab.but(workers=2), attacks, [16], [0], ["shapes"])
    finally:
        torch.set_num_threads(1)
    varying = list(sweeps.VARYING)
    pd.testing.assert_frame_equal(together.drop(columns=varying), alone.drop(columns=varying))
    assert len(list(kept.glob("victim-*"))) == victims
    lines = capsys.readouterr().out.splitlines()
    assert {"computing attack (2)", "computing score (2)"} <= {*lines}, "each kind is said once"


def test_what_was_computed_before_is_read_without_any_process(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process takes seconds to start; what is missing still gets processes of its own."""
    two, given = lab.but(workers=2), (["embedding", "label"], [16], [0, 1], ["shapes"])
    first, asked = sweeps.sweep(lab, *given), []

    def asking(lab: Lab, jobs: list[sweeps.Job], workers: int) -> Iterator[Any]:
        asked.append(len(jobs))
        yield from map(functools.partial(sweeps._run, lab), jobs)

    monkeypatch.setattr(sweeps, "_side_by_side", asking)
    pd.testing.assert_frame_equal(sweeps.sweep(two, *given), first)
    assert asked == []
    more = sweeps.sweep(two, ["embedding"], [16], [7, 0, 8], ["shapes"])
    assert asked == [2], "the other one was kept"
    assert more["seed"].to_list() == [7, 0, 8], "rows keep their order"


def count_threads(lab: Lab, name: str) -> list[sweeps.Row]:
    """Return how many threads computed, from the artifact where that was counted before."""
    return [{"threads": lab.kept("threads", name, [], torch.get_num_threads)}]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_has_one_thread_wherever_it_runs(lab: Lab, workers: int) -> None:
    """A row must not depend on whether its job was the only one that was not kept."""
    names = [f"{workers} workers, {which}" for which in ("kept", "not kept")]
    count_threads(lab, names[0])
    torch.set_num_threads(2)
    try:
        each = [sweeps.Job(count_threads, (name,), trains=True) for name in names]
        assert sweeps.run(lab.but(workers=workers), each) == 2 * [{"threads": 1}]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_references_frame_a_table(lab: Lab) -> None:
    frame = sweeps.references(lab, ["shapes"], [0, 1])
    assert list(frame["attack"]) == ["random", "random", "victim", "victim"]
    assert list(frame["seed"]) == [0, 1, 0, 1]
    assert frame["accuracy"].iloc[3] == lab.score(lab.victim.encoder, "shapes", 1)["accuracy"]
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


def test_a_grid_crosses_its_axes(lab: Lab) -> None:
    """Sets, victims and lengths are those that its axes name; a small pool of queries is enlarged."""
    axes = {"images": [8, 160], "epochs": [1, 2], "method": ["byol"], "views": ["clean"]}
    table = sweeps.grid(lab, ["embedding", "cont-steal"], axes, [0], ["shapes"])
    assert len(table) == 8
    steps = table.groupby(["images", "epochs"])["steps"].first()
    assert steps.to_dict() == {(8, 1): 1, (8, 2): 2, (160, 1): 10, (160, 2): 20}  # of 8 and 16
    assert set(table["unique_inputs"]) == {8, 160}
    row = table.query("attack == 'embedding' and images == 160 and epochs == 2").iloc[0]
    other = lab.but(method="byol", query_images=160)
    again = sweeps.sweep(other, ["embedding"], [160], [0], ["shapes"], views="clean").iloc[0]
    assert row["cka"] == again["cka"]
    stepped = lab.but(surrogate=lab.settings["surrogate"] | {"steps": 5})
    lengths = [sweeps.grid(stepped, ["embedding"], {"images": [32], axis: [2 * n]}, [0], ["shapes"])
               for n, axis in enumerate(("epochs", "steps"), 1)]  # fmt: skip
    assert [table["steps"].item() for table in lengths] == [4, 4]
    assert lengths[0]["cka"].item() == lengths[1]["cka"].item()


@pytest.mark.parametrize("attack", ["embedding", "info-nce, own views", "label", "posterior"])
def test_a_learning_rate_is_judged_by_the_attacks_own_loss_on_later_queries(
    lab: Lab, attack: str
) -> None:
    table = sweeps.search_rates(lab, [attack], [1e-3, 1e-2], 64, [0], 4)
    assert list(table["rate"]) == [1e-3, 1e-2]
    assert set(zip(table["images"], table["held_out"], strict=True)) == {(48, 16)}
    for rate, loss in zip(table["rate"], table["loss"], strict=True):
        stolen = lab.steal(attack, 48, 0, lr=rate, steps=4)
        rest, recipe = lab.queries(64)[48:], steal.ATTACKS[attack.split(", ")[0]]
        outputs = encoders.embed(stolen.encoder, rest)
        if recipe.answer == "embedding":
            answers = encoders.embed(lab.victim.encoder, rest)
        else:
            outputs = stolen.projector(outputs)
            answers = lab.api().classify(rest, answer=recipe.answer)
        options = {"temperature": recipe.temperature} if recipe.temperature else {}
        assert loss == pytest.approx(recipe.loss(outputs, answers, **options).item(), rel=1e-3)


def test_encoders_are_trained_at_once_and_read_back_the_same(lab: Lab) -> None:
    fresh = lab.but(train_images=256)
    sweeps.train(fresh, ["simclr", "byol"], ["shapes", "glyphs"])
    kept = artifacts.runs_dir() / "artifacts"
    count = len(list(kept.iterdir()))
    there = [fresh.train(method=name).sha256 for name in ("simclr", "byol")]
    there.append(fresh.train("supervised").sha256)
    there.append(fresh.but(data="glyphs", query_data="glyphs").victim.sha256)
    assert len(set(there)) == 4
    assert len(list(kept.iterdir())) == count, "nothing was trained again"


def test_what_needs_no_victim_is_trained_beside_the_victim(lab: Lab) -> None:
    fresh = lab.but(train_images=224)
    kept = artifacts.runs_dir() / "artifacts"
    before = {kind: len(list(kept.glob(f"{kind}-*"))) for kind in ("victim", "alone")}
    sweeps.train(fresh, [], (), alone=(32, [3, 4], [2, 3]))
    assert len(list(kept.glob("alone-*"))) == before["alone"] + 2 * 2 * 2
    assert len(list(kept.glob("victim-*"))) == before["victim"], "no victim was needed"
    sweeps.without_victim(fresh, [32], [3, 4], ["shapes"], [2, 3])
    assert len(list(kept.glob("alone-*"))) == before["alone"] + 2 * 2 * 2, "and they are read back"


def test_losses_and_other_queries_name_victim_and_query_set(lab: Lab) -> None:
    """A set may name its split."""
    rows = sweeps.losses(lab, ["embedding", "soft-nn"], ["shapes"], 16, [0], ["shapes"])
    assert list(rows["victim"]) == ["shapes"] * 2
    sources = [("shapes", "train", 16), ("shapes", "test", 16), ("digits", "test", 200)]
    far = sweeps.elsewhere(lab, ["embedding"], sources, [0], ["shapes"])
    assert list(far["query_data"]) == ["shapes", "shapes@test", "digits@test"]
    assert list(far["unique_inputs"]) == [16, 16, 200], "more than the profile's own pool"
    tests = lab.but(query_split="test")
    stolen = tests.steal("embedding", 16).encoder
    assert list(far["cka"])[:2] == [rows["cka"].iloc[0], lab.score(stolen, "shapes")["cka"]]
    given = {"query_data": "patches", "query_split": "test"}
    assert sweeps.of_lab(lab, query_data="shapes") == {}
    assert sweeps.of_lab(lab, query_data="patches@test") == sweeps.of_lab(lab, **given) == given
    changes = {"query_data": "patches", "query_split": "train"}
    assert sweeps.of_lab(tests, query_data="patches") == changes, "a set has splits of its own"


def test_landscapes_are_the_victims_geometry_on_the_queries(lab: Lab) -> None:
    table = sweeps.landscapes(lab, ["simclr", "byol"], ["shapes", "patches"], 16)
    assert len(table) == 4
    other = lab.but(method="byol", query_data="patches")
    expected = evaluate.geometry(encoders.embed(other.victim.encoder, other.queries(16)))
    row = table.query("method == 'byol' and query_data == 'patches'").iloc[0]
    assert row[list(expected)].to_dict() == pytest.approx(expected, rel=1e-4)


def test_a_worker_ends_when_its_kernel_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads what it computes, and the next run would wait for its artifacts."""
    parents, sent = iter([7, 1]), []
    ended = threading.Event()

    def kill(*given: int) -> None:
        sent.append(given)
        ended.set()

    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    sweeps._end_with(7)
    assert ended.wait(10)
    assert sent == [(os.getpid(), signal.SIGTERM)]


# ------------------------------------------------------------- workers: processes, GPUs, machines


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_once(lab: Lab, flag: str, *given: Any) -> list[sweeps.Row]:
    """Run an attack; in the middle of the first one of all, be killed."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileExistsError), open(flag, "x"):
            stack.enter_context(mock.patch.object(loop, "fit", die))
        return sweeps.steal_rows(lab, *given)


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[LocalCluster]:
    """A scheduler and two workers on loopback."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


def test_dask_workers_give_the_bytes_of_a_single_process_also_when_one_is_killed(
    lab: Lab, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A scheduler and two workers on loopback; every run is recorded once, in all three ways."""
    kept, flag = artifacts.runs_dir() / "artifacts", tmp_path / "died"
    given = [
        (attack, 16, seed, ("shapes",)) for attack in ("embedding", "label") for seed in (0, 1)
    ]
    plain = [sweeps.Job(sweeps.steal_rows, one) for one in given]
    deadly = [sweeps.Job(dies_once, (str(flag), *one)) for one in given]

    def csv(jobs: list[sweeps.Job]) -> str:
        for folder in [*kept.glob("attack-*"), *kept.glob("score-*")]:
            shutil.rmtree(folder)
        table = pd.DataFrame(sweeps.run(lab, jobs)).drop(columns=list(sweeps.VARYING))
        assert [len(list(kept.glob(f"{kind}-*"))) for kind in ("attack", "score")] == [4, 4]
        assert not list(kept.glob(".*")), "nothing is left of the one that was killed"
        return table.to_csv()

    alone = csv(plain)
    monkeypatch.setenv(sweeps.SCHEDULER, cluster.scheduler_address)
    with cluster.get_client() as client:
        before = client.run(os.getpid)
    assert csv(plain) == alone
    assert not flag.exists()
    assert csv(deadly) == alone
    assert flag.exists()
    with cluster.get_client() as client:
        assert client.run(os.getpid) != before
    assert not list(artifacts.runs_dir().glob(".shared-*"))


def pause_fraction(lab: Lab) -> list[sweeps.Row]:
    return [{"fraction": get_worker().memory_manager.memory_pause_fraction}]


def set_allowed_failures(count: int, dask_scheduler: Any) -> None:
    dask_scheduler.allowed_failures = count


def test_a_run_that_ends_its_worker_each_time_ends_the_sweep_and_the_others_are_kept(
    lab: Lab, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run does whose worker has too little memory, which Dask then ends; it must not pause it."""
    monkeypatch.setenv(sweeps.SCHEDULER, cluster.scheduler_address)
    steals = sweeps.Job(sweeps.steal_rows, ("embedding", 16, 5, ("shapes",)))
    looks, dies = (sweeps.Job(function, (), trains=True) for function in (pause_fraction, die))
    assert sweeps.run(lab, [looks]) == [{"fraction": 1.0}]
    with cluster.get_client() as client:
        client.run_on_scheduler(set_allowed_failures, 0)
        with pytest.raises(RuntimeError, match=r"ended its worker 1 times, .* memory is too small"):
            sweeps.run(lab, [steals, dies])
        client.run_on_scheduler(set_allowed_failures, 3)
    monkeypatch.delenv(sweeps.SCHEDULER)
    monkeypatch.setattr(steal, "train", mock.Mock(side_effect=AssertionError("it was kept")))
    assert len(sweeps.sweep(lab, ["embedding"], [16], [5], ["shapes"])) == 1


def look_at(folder: str) -> None:
    artifacts.runs_dir = lambda: Path(folder)


def test_a_worker_with_another_runs_folder_is_refused_and_nothing_is_recorded(
    lab: Lab, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(sweeps.SCHEDULER, cluster.scheduler_address)
    runs = artifacts.runs_dir()
    with cluster.get_client() as client:
        client.wait_for_workers(2)
        blind = next(iter(client.scheduler_info()["workers"]))
        client.run(look_at, str(tmp_path), workers=[blind])
        kept = set(runs.rglob("*"))
        message = f"^the worker {blind} does not see {tmp_path}/.shared-"
        with pytest.raises(RuntimeError, match=message):
            sweeps.sweep(lab, ["embedding"], [16], [6], ["shapes"])
        client.run(look_at, str(runs), workers=[blind])
    assert set(runs.rglob("*")) == kept
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"token": ".shared-gone"},
            r"does not see .*/\.shared-gone: results are .* CONTSTEAL_RUNS",
        ),
        ({"facts": (("torch", "1.0"),)}, r"has torch 2\..*, here 1.0: install"),
        ({"facts": (("code", "old"), ("numpy", "1"))}, r"has code \w{16}, here old; numpy 2"),
        ({"facts": (("settings", "old"),)}, r"has settings \w{16}, here old: install the same"),
    ],
)
def test_a_worker_that_differs_is_refused_before_any_run(
    lab: Lab, changes: dict[str, Any], message: str
) -> None:
    worker = mock.Mock(**{"address": "w", "state.nthreads": 1})
    with mock.patch.dict(os.environ):
        with pytest.raises(RuntimeError, match=f"^the worker w {message}"):
            sweeps._join(sweeps._order(lab, **changes), worker)
        order = sweeps._order(lab, facts=sweeps._facts(lab))
        sweeps._join(order, worker)
        worker.state.nthreads = 4
        with pytest.raises(RuntimeError, match="has 4 threads: start it with --nthreads 1"):
            sweeps._join(order, worker)


def test_a_worker_that_ends_while_it_joins_is_said(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mock.MagicMock()
    client.__enter__.return_value = client
    client.run.side_effect = OSError("Stream is closed")
    monkeypatch.setattr("distributed.Client", lambda *_, **__: client)
    monkeypatch.setenv(sweeps.SCHEDULER, "tcp://127.0.0.1:1")
    with pytest.raises(RuntimeError, match="ended while it joined, most often for want of memory"):
        sweeps.sweep(lab, ["embedding"], [16], [0], ["shapes"])
    assert not list(artifacts.runs_dir().glob(".shared-*"))


@pytest.mark.parametrize("given", ["abc", "-2", "0", "1.5", ""])
def test_an_odd_number_of_workers_is_refused_by_name(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv(sweeps.WORKERS, given)
    with pytest.raises(ValueError, match=f"CONTSTEAL_WORKERS='?{given}'?: a whole number of"):
        sweeps.sweep(lab, ["embedding"], [16], [0], ["shapes"])


@pytest.mark.parametrize(
    ("address", "missing", "why"),
    [
        ("tcp://127.0.0.1:1", None, "Timed out"),
        ("tcp://127.0.0.1:1", "distributed", r"halted.*pip install 'contsteal\[cluster\]'"),
        ("garbage", "distributed.Client", "missing port number"),  # with which it would wait
    ],
)
def test_a_scheduler_that_cannot_be_reached_is_said_at_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, address: str, missing: str | None, why: str
) -> None:
    monkeypatch.setenv(sweeps.SCHEDULER, address)
    monkeypatch.setattr(sweeps, "PATIENCE", 0.2)
    if missing == "distributed":
        monkeypatch.setitem(sys.modules, "distributed", None)
    elif missing:
        monkeypatch.setattr(missing, mock.Mock(side_effect=AssertionError("it waits")))
    monkeypatch.setattr(Lab, "train", mock.Mock(side_effect=AssertionError("a victim is trained")))
    message = f"DASK_SCHEDULER_ADDRESS='{address}': no scheduler with a worker.*{why}"
    with pytest.raises(RuntimeError, match=message):
        sweeps.sweep(lab.but(train_images=65), ["embedding"], [16], [0], ["shapes"])


@pytest.mark.parametrize(
    ("device", "visible", "given", "cards", "count"),
    [
        ("cpu", None, None, [], 9),
        ("mps", None, None, [], 1),
        ("cuda", None, None, ["0", "1", "2"], 6),
        ("cuda", "4,7,9", None, ["4", "7", "9"], 6),
        ("cuda:1", "4,7,9", None, ["7"], 2),
        ("cuda", None, "5", ["0", "1", "2"], 5),
    ],
)
def test_every_card_has_as_many_runs_at_once_as_were_measured_to_fill_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, given: str | None,
    cards: list[str], count: int,
) -> None:  # fmt: skip
    """Two surrogates fill a card; there are three of them, all made up."""
    free = Lab("smoke", surrogate=lab.settings["surrogate"] | {"encoder": "resnet18"})
    del free.settings["workers"]
    free.device = torch.device(device)
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), (sweeps.WORKERS, given)):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 9)
    rows = [{"work": f"{sweeps.SHARING}, resnet18", "value": 2.0}]
    monkeypatch.setattr(loop.files, "read_json", lambda path: {"rows": rows})
    assert sweeps.cards(free) == cards
    assert sweeps._processes(free) == count
    assert sweeps._processes(lab) == 1, "as its profile says"
    rows.clear()
    assert sweeps._processes(free) == {6: 3, 2: 1}.get(count, count), (
        "one where nothing is measured"
    )


@pytest.mark.parametrize(("cards", "taken"), [
    (["4", "7"], ["4", "7", "4", "7"]), (["4"], [None] * 4), ([], [None] * 4),
])  # fmt: skip
def test_processes_take_turns_with_the_cards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cards: list[str], taken: list[str | None]
) -> None:
    """One card is what CONTSTEAL_DEVICE says already."""
    monkeypatch.setattr(sweeps, "_end_with", lambda parent: None)
    seen = []
    for _ in taken:
        with mock.patch.dict(os.environ):
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            sweeps._settle(1, cards, str(tmp_path))
            seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert seen == taken


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_process_has_the_seat_of_one_that_was_replaced(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")

    def seat() -> int | None:
        process = fork.Process(target=lambda: os._exit(sweeps._seat(str(tmp_path))))
        process.start()
        process.join()
        return process.exitcode

    assert [seat(), seat(), sweeps._seat(str(tmp_path)), seat()] == [0, 0, 0, 1]


def card_of_process(lab: Lab, folder: str) -> list[sweeps.Row]:
    """Say which card this process sees, as soon as another process is there to say so, too."""
    lab.kept("card", [folder, os.getpid()], [], lambda: 0)  # what was kept needs no process
    Path(folder, str(os.getpid())).touch()
    end = time.monotonic() + 60
    while len(os.listdir(folder)) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    return [{"card": os.environ.get("CUDA_VISIBLE_DEVICES")}]


def test_all_cards_of_a_machine_are_used_without_any_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two cards are made up; the processes that a sweep starts for them are real."""
    for name in ("CUDA_VISIBLE_DEVICES", sweeps.WORKERS, sweeps.SCHEDULER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    free = Lab("smoke")
    del free.settings["workers"]
    free.device = torch.device("cuda")
    job = sweeps.Job(card_of_process, (str(tmp_path),), trains=True)
    assert {row["card"] for row in sweeps.run(free, [job] * 2)} == {"0", "1"}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_the_artifact_of_two_processes_is_the_one_that_is_read_later(
    lab: Lab, together: Callable[..., list[Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    fresh = lab.but(train_images=192)
    for _ in range(2):
        together(sweeps.train_together, fresh, "victim")
    fresh.messages.clear()
    trained = fresh.train("victim")
    assert not fresh.messages, "nothing is computed"
    made, read = capfd.readouterr().out.splitlines()
    assert made.startswith("computing victim")
    assert made.endswith(f": victim {trained.sha256[:12]}")
    assert read == f"read: victim {trained.sha256[:12]}"


def stopped(lab: Lab) -> None:
    """Train a victim, and be interrupted in the second epoch."""
    ends = mock.patch.object(loop, "_epoch", side_effect=[1.0, KeyboardInterrupt])
    with ends, pytest.raises(KeyboardInterrupt):
        sweeps.train_together(lab, "victim")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_training_of_two_processes_is_continued_by_a_single_one(
    lab: Lab, together: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    fresh = lab.but(train_images=208)
    together(stopped, fresh)
    trained = fresh.train("victim")
    assert trained.history["loss"].iloc[0] == 1.0, "as the two have left it"
    assert trained.history["epoch"].tolist() == [1, 2]


KNOWN = ", ".join(experiment.VARIANTS)
LENGTH = "a whole number of at least 1 is needed"


def swept(attack: str = "embedding", steps: Any = ()) -> tuple[Any, ...]:
    return sweeps.sweep, [attack], [16], [0], ["shapes"], steps


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((sweeps.stake, [], 16, [0], [2]), r"data=\[\]: at least one data set is needed"),
        ((sweeps.classifiers, {}, 16, [0], ["shapes"], [2]), r"victims=\{\}: name victim or sup"),
        ((sweeps.classifiers, {"ceiling": ["label"]}, 16, [0], ["shapes"], [2]),
         "unknown victim 'ceiling': choose one of victim, supervised"),
        ((sweeps.without_victim, [16], [0], ["shapes"], []), "at least one length of training is"),
        ((sweeps.without_victim, [16], [0], ["shapes"], [0]), f"steps=0: {LENGTH}"),
        (swept(steps=100), "steps=100: a list of lengths is needed"),
        *((swept(steps=odd), LENGTH) for odd in ([-1], "12", [2.5], ["3"])),
        *(((sweeps.ablate, "embedding", {knob: [4]}, 16, [0], "shapes", [2, 3]),
           rf"steps=\[2, 3\]: '{knob}' is a knob already") for knob in ("steps", "epochs")),
        ((sweeps.ablate, "cont-steal", {"temprature": [1.0]}, 16, [0], "shapes"),
         "an attack 'temprature': choose"),
        (swept("info-nce, own view"), f"unknown variant 'own view': choose one of {KNOWN}$"),
        (swept("embedding, clean, blurred"), f"unknown variant 'blurred': choose one of {KNOWN}$"),
        (swept("embedding, "), f"unknown variant '': choose one of {KNOWN}$"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(lab: Lab, call: tuple[Any, ...], message: str) -> None:
    function, *given = call
    with pytest.raises(ValueError, match=message):
        function(lab, *given)


@pytest.mark.parametrize(("rank", "said"), [("0", "3 processes cannot share 64 images"), ("2", 2)])
def test_processes_that_cannot_share_a_batch_are_refused_once_and_before_they_meet(
    monkeypatch: pytest.MonkeyPatch, rank: str, said: str | int
) -> None:
    for name, value in (("WORLD_SIZE", "3"), ("RANK", rank)):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as refused:  # no LOCAL_RANK, and no address to meet at
        sweeps.main(["--profile", "smoke"])
    code = refused.value.code
    assert code == said if rank == "2" else str(code).startswith(str(said))


def test_torchrun_with_more_processes_than_cards_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(artifacts, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="process 2 of 1 GPUs: one a GPU"):
        sweeps.main(["--profile", "smoke"])
