"""A profile's experiments: each computed once, resumed, never paid twice; the tables made of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from contsteal import defenses, evaluate, files, loop, steal
from contsteal.lab import artifacts, profiles, provider, sweeps, tables
from contsteal.lab.experiment import Lab
from contsteal.paper import report


def folders_of(kind: str) -> list[Path]:
    return sorted((artifacts.runs_dir() / "artifacts").glob(f"{kind}-*"))


def test_the_victim_is_trained_once_and_read_back_the_same(lab: Lab) -> None:
    first = lab.victim
    again = Lab("smoke").victim
    assert again.sha256 == first.sha256
    assert len(folders_of("victim")) == 1
    assert list(first.history["epoch"]) == [1, 2]


def test_a_training_says_why_it_runs(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    _ = lab.victim
    capsys.readouterr()
    lab.train("victim", lr=0.002)
    assert capsys.readouterr().out == "computing victim: lr: 0.003 -> 0.002\n"
    lab.train("victim", lr=0.002)
    assert capsys.readouterr().out == ""  # read back


def test_queries_are_nested_prefixes_and_disjoint_from_all_other_images(lab: Lab) -> None:
    few, many = lab.queries(16, seed=1), lab.queries(64, seed=1)
    assert torch.equal(few, many[:16])
    assert not torch.equal(few, lab.queries(16, seed=2))
    known = [lab.train_images(), lab.images("shapes"), lab.images("shapes", "test")]
    seen = {i.numpy().tobytes() for s in known for i in s.images}
    assert not seen & {i.numpy().tobytes() for i in lab.queries(128)}
    with pytest.raises(ValueError, match=r"999 queries: the pool of this profile has 128"):
        lab.queries(999)


def test_a_sweep_costs_the_victim_one_forward_per_distinct_input(lab: Lab) -> None:
    fresh = Lab("smoke")
    before = fresh.answers.forwards
    sweeps.sweep(fresh, ["embedding", "info-nce"], [16, 32], [0], ["shapes"])
    assert fresh.answers.forwards - before == 32


def test_rows_carry_both_budgets(lab: Lab) -> None:
    anew = sweeps.sweep(lab, ["cont-steal"], [16], [0], ["shapes"], answers=0)
    once = sweeps.sweep(lab, ["cont-steal"], [16], [0], ["shapes"])
    assert anew[["unique_inputs", "calls"]].to_numpy().tolist() == [[32, 32]]  # two epochs
    assert once[["unique_inputs", "calls"]].to_numpy().tolist() == [[16, 16]]


def test_equal_attacks_under_other_words_are_one_artifact(lab: Lab) -> None:
    lab.steal("embedding", 16)
    before = len(folders_of("attack"))
    lab.steal("embedding", 16, views="clean")
    assert len(folders_of("attack")) == before
    lab.steal("embedding", 16, views="surrogate")
    assert len(folders_of("attack")) == before + 1


def test_workers_give_the_numbers_of_a_single_process(lab: Lab) -> None:
    alone = sweeps.sweep(lab, ["embedding", "label"], [16], [0], ["shapes"])
    for folder in [*folders_of("attack"), *folders_of("score")]:
        files.shutil.rmtree(folder)
    crowd, victims = Lab("smoke"), len(folders_of("victim"))
    crowd.settings["workers"] = 2
    torch.set_num_threads(
        2
    )  # workers have one thread: that must not make them train their own victim
    found = sweeps.sweep(crowd, ["embedding", "label"], [16], [0], ["shapes"])
    varying = list(sweeps.VARYING)
    pd.testing.assert_frame_equal(found.drop(columns=varying), alone.drop(columns=varying))
    torch.set_num_threads(1)
    assert len(folders_of("victim")) == victims


def test_an_interrupted_victim_continues_and_ends_the_same(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lab.train("victim", epochs=3, seed=5)
    files.shutil.rmtree(max(folders_of("victim"), key=lambda f: f.stat().st_mtime))
    real, seen = loop._epoch, []

    def dying(*arguments: object) -> float:
        epoch = arguments[-1]
        if epoch == 2 and "died" not in seen:
            seen.append("died")
            raise KeyboardInterrupt
        seen.append(epoch)
        return real(*arguments)

    monkeypatch.setattr(loop, "_epoch", dying)
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        lab.train("victim", epochs=3, seed=5)
    resumed = lab.train("victim", epochs=3, seed=5)
    assert seen == [0, 1, "died", 2]  # what was done before the kill is not repeated
    assert resumed.sha256 == whole.sha256


def test_an_altered_artifact_is_moved_aside_and_made_again(lab: Lab) -> None:
    before = lab.steal("embedding", 32)
    folder = max(folders_of("attack"), key=lambda f: f.stat().st_mtime)
    blob = bytearray((folder / "encoder.safetensors").read_bytes())
    blob[-1] ^= 1
    (folder / "encoder.safetensors").write_bytes(blob)
    with pytest.warns(UserWarning, match="not what was written"):
        after = lab.steal("embedding", 32)
    assert after.sha256 == before.sha256
    assert list(folder.parent.glob(f"{folder.name}.corrupt-*"))


def test_shuffled_answers_steal_nothing(lab: Lab) -> None:
    """The control that must fail: answers of other images leave embeddings far from the victim's."""
    honest, shuffled = (
        lab.score(lab.steal("embedding", 128, epochs=30, shuffled=s).encoder, "shapes")
        for s in (False, True)
    )
    assert shuffled["cka"] < honest["cka"] - 0.1


def test_a_lab_under_other_settings_is_the_same_one_each_time(lab: Lab) -> None:
    other = lab.but(query_data="patches")
    assert other is lab.but(query_data="patches")
    assert other.victim.sha256 == lab.victim.sha256
    assert not torch.equal(other.queries(8), lab.queries(8))
    assert lab.but() is lab
    byol = lab.but(method="byol")
    assert byol.victim.sha256 == lab.train(method="byol").sha256 != lab.victim.sha256
    assert lab.settings["query_data"] == "shapes", "the lab itself is as it was"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_date": "patches"}, "changes of smoke: no parameter 'query_date'"),
        ({"query_data": 3}, "query_data=3 is int"),
        ({"method": "simclear"}, "method 'simclear': choose one of simclr, moco"),
    ],
)
def test_other_settings_are_checked(lab: Lab, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lab.but(**changes)


def test_rows_say_what_they_cost(lab: Lab) -> None:
    rows = sweeps.sweep(lab, ["info-nce"], [24], [0], ["shapes", "shapes:texture"], answers=2)
    assert set(rows["usd"]) == {48 * sweeps.PRICE / 1000}
    assert (rows["seconds"] > 0).all()
    assert set(rows["forwards"]) <= set(range(25)), "at most one forward per distinct input"
    dear = Lab("smoke")
    dear.settings["price"] = 5.0
    again = sweeps.sweep(dear, ["info-nce"], [24], [0], ["shapes"], answers=2)
    assert set(again["usd"]) == {48 * 5.0 / 1000}


def test_costs_are_means_over_runs_and_not_over_tasks(lab: Lab, tmp_path: Path) -> None:
    rows = sweeps.sweep(lab, ["embedding"], [16, 32], [0], ["shapes", "shapes:texture"])
    frame = sweeps.references(lab, ["shapes"], [0])
    found = report.costs("00_costs", pd.concat([rows, frame]), lab.stamp([0]))
    assert list(found.index) == ["embedding"]
    assert found.loc["embedding", "unique_inputs"] == 24
    assert found.loc["embedding", "usd"] == round(24 * sweeps.PRICE / 1000, 2)
    stored = files.read_json(artifacts.publish_dir() / "smoke" / "00_costs.json")
    assert stored["rows"]["embedding"]["calls"] == 24


def test_what_varies_is_not_stored(lab: Lab) -> None:
    rows = sweeps.sweep(lab, ["embedding"], [16], [0], ["shapes"])
    table = pd.concat([rows, sweeps.references(lab, ["shapes"], [0])])
    report.publish("02_conventional", table, lab.stamp([0]))
    stored = pd.read_csv(artifacts.publish_dir() / "smoke" / "02_conventional.csv")
    assert not set(sweeps.VARYING) & set(stored)
    assert "usd" in stored


def test_defences_start_afresh_for_every_attack(lab: Lab) -> None:
    noise = [defenses.GaussianNoise(1.0)]
    answers = [lab.api(noise).embed(lab.queries(16)) for _ in range(2)]
    assert torch.equal(*answers)


def test_a_legitimate_user_pays_for_a_ruinous_defence(lab: Lab) -> None:
    assert lab.legitimate("shapes", [defenses.GaussianNoise(1e4)]) < lab.legitimate("shapes")


def test_defended_rows_name_defence_attack_and_honest_accuracy(lab: Lab) -> None:
    chains = [[], [defenses.Normalise(), defenses.TopK(2)]]
    table = provider.defended(lab, chains, ["embedding"], 16, [0, 1], "shapes")
    assert list(table["defence"]) == ["none"] * 2 + ["Normalise() + TopK(2)"] * 2
    assert table.groupby("defence")["legitimate"].nunique().eq(1).all()  # neither draws anything


def test_references_frame_a_table(lab: Lab) -> None:
    frame = sweeps.references(lab, ["shapes"], [0, 1])
    assert list(frame["attack"]) == ["random", "random", "victim"]
    assert frame["agreement"].iloc[-1] == 1.0
    assert frame["cka"].iloc[-1] == pytest.approx(1.0)


def test_verdict_is_paired_by_seed_and_says_only_what_holds() -> None:
    def table(a: list[float], b: list[float]) -> pd.DataFrame:
        rows = [("a", s, v) for s, v in enumerate(a)] + [("b", s, v) for s, v in enumerate(b)]
        return pd.DataFrame(rows, columns=["attack", "seed", "accuracy"])

    # Seeds differ by far more than the attacks do: only the paired difference sees it.
    assert tables.verdict(table([0.5, 0.7, 0.9], [0.48, 0.681, 0.879]), "a", "b").startswith(
        "a beats b: +2.0"
    )
    assert "a loses to b" in tables.verdict(table([0.1, 0.2, 0.3], [0.4, 0.51, 0.6]), "a", "b")
    assert "a cannot be told from b" in tables.verdict(
        table([0.1, 0.9, 0.3], [0.4, 0.5, 0.6]), "a", "b"
    )
    assert "one seed proves nothing" in tables.verdict(table([0.9], [0.1]), "a", "b")


def test_difference_is_the_paired_t_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=5), rng.normal(size=5)
    rows = [("a", s, v) for s, v in enumerate(a)] + [("b", s, v) for s, v in enumerate(b)]
    table = pd.DataFrame(rows, columns=["attack", "seed", "accuracy"])
    assert tables.difference(table, "a", "b") == pytest.approx((*evaluate.mean_interval(a - b), 5))


def test_unknown_profile_lists_the_known() -> None:
    with pytest.raises(
        ValueError,
        match=r"unknown profile 'huge': choose one of demo, imagenet, paper, smoke, study, synthetic",
    ):
        profiles.profile("huge")


def test_views_of_a_small_budget_are_those_of_a_large_one(lab: Lab) -> None:
    config = steal.Config(attack="cont-steal", seed=3)
    images = lab.queries(128, seed=3).repeat(2, 1, 1, 1)
    whole = steal.view(config, images, 1)
    assert torch.equal(steal.view(config, images[:40], 1), whole[:40])
    assert not torch.equal(whole[:128], whole[128:])  # equal images, other places, other views


def test_asking_clean_images_anew_changes_the_bill_and_nothing_else(lab: Lab) -> None:
    once, anew = (lab.steal("embedding", 16, answers=k) for k in (1, 0))
    assert anew.sha256 == once.sha256
    spent = [(f.queries["unique_inputs"], f.queries["calls"]) for f in (once, anew)]
    assert spent == [(16, 16), (16, 32)]


def test_a_sweep_says_in_a_line_per_kind_what_was_computed_and_why() -> None:
    many = [f"computing attack: seed: {k} -> {k + 1}, images: 3c -> {k}f" for k in range(40)]
    told = ["computing attack: never computed", *many, "computing score: its code changed"]
    assert sweeps.reasons([*told, "computing independent", "computing independent"]) == [
        "computing attack: never computed (1), new settings (40)",
        "computing score: its code changed (1)",
        "computing independent (2)",
    ]
    changed = "computing attack: lr: 0.003 -> 0.002"
    assert sweeps.reasons([changed, changed]) == [f"{changed} (2)"]
    assert sweeps.reasons([]) == []
