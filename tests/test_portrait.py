"""What notebook 01 shows of victims: views, curves, rates, worth, and whether expectations hold."""

from pathlib import Path

import pandas as pd
import pytest

from contsteal import encoders
from contsteal.lab import estimate, inspection, profiles
from contsteal.lab.artifacts import Trained
from contsteal.lab.experiment import Lab
from contsteal.paper import summary


@pytest.fixture(scope="module")
def trained(lab: Lab) -> dict[str, Trained]:
    return {name: lab.train(method=name) for name in ("simclr", "byol")}


def test_another_method_is_another_victim_and_its_own_name_is_none(lab, trained):
    assert trained["simclr"].sha256 == lab.victim.sha256
    assert trained["byol"].sha256 != lab.victim.sha256


def test_views_stand_under_their_image(lab):
    sheet = inspection.view_sheet(lab, 4)
    assert list(sheet["set"]) == ["image"] * 4 + ["one view"] * 4 + ["another"] * 4
    assert sheet["pixels"].nunique() == 12
    assert (sheet["label"].iloc[4:] == "").all()
    assert inspection.view_sheet(lab, 4).equals(sheet)


def test_curves_have_every_epoch_of_every_method_and_no_seconds(lab, trained):
    curves = inspection.histories(trained)
    epochs = profiles.config(lab.settings).epochs
    assert list(curves["method"]) == ["simclr"] * epochs + ["byol"] * epochs
    assert "seconds" not in curves
    assert curves["spread"].notna().all()


def test_a_ready_victim_is_scored_and_has_no_curve(lab, trained, tmp_path, monkeypatch):
    file = tmp_path / "theirs.safetensors"
    theirs = encoders.build("test_resnet", seed=9)
    encoders.save(theirs, file)
    other = Lab("smoke")
    other.settings = lab.settings | {
        "victim": {"method": "ready", "encoder": "test_resnet", "weights": str(file)}
    }
    ready = other.train()
    assert ready.sha256 == encoders.identity(theirs) == other.victim.sha256
    curves = inspection.histories({"ready": ready, "byol": trained["byol"]})
    assert set(curves["method"]) == {"byol"}
    assert inspection.rates(other, {"ready": ready}).empty
    assert other.steal("embedding", 16).queries["unique_inputs"] == 16


def test_rates_are_views_over_the_median_epoch(lab, trained, monkeypatch):
    monkeypatch.setattr(estimate, "matmul_rate", lambda: 1e12)
    rates = inspection.rates(lab, trained)
    seconds = trained["byol"].history["seconds"]
    views = 2 * 256  # of 320 images 32 are held out, and the last 32 fill no batch of 64
    assert rates.loc["byol", "views per second"] == round(views / seconds.median())
    assert rates.loc["byol", "seconds"] == round(seconds.sum(), 1)
    flops = 6 * 4098048 * views / seconds.median()  # 4,098,048 MAC: of test_resnet at 32 px
    assert rates.loc["byol", "share of matmul rate"] == f"{flops / 1e12:.1%}"


def test_the_matmul_rate_is_a_rate():
    assert 1e8 < estimate.matmul_rate(0.05) < 1e16


def test_worth_has_every_encoder_on_every_task(lab, trained):
    nets = {"random": lab.random(), "simclr": trained["simclr"].encoder}
    worth = inspection.worth(lab, nets, ["shapes", "shapes:texture"])
    assert len(worth) == 4
    known = lab.score(nets["simclr"], "shapes:texture")
    row = worth.query("encoder == 'simclr' and task == 'shapes:texture'").iloc[0]
    assert row["accuracy"] == known["accuracy"]
    assert row["knn"] == known["knn"]


WORTH = pd.DataFrame([
    {"encoder": "simclr", "task": "shapes", "accuracy": 0.8, "knn": 0.6},
    {"encoder": "byol", "task": "shapes", "accuracy": 0.5, "knn": 0.4},
])  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "holds", "measured"),
    [
        ({"encoder": "simclr", "metric": "accuracy", "low": 0.8}, "yes", "80.0 %"),
        ({"encoder": "simclr", "metric": "accuracy", "low": 0.801}, "NO", "80.0 %"),
        ({"encoder": "byol", "metric": "knn", "high": 0.39}, "NO", "40.0 %"),
        ({"encoder": "byol", "metric": "knn", "low": 0.3, "high": 0.4}, "yes", "40.0 %"),
        ({"encoder": "moco", "metric": "knn"}, "not run", "-"),
    ],
)
def test_an_expectation_holds_or_does_not(asked, holds, measured):
    found = summary.judge(WORTH, [asked | {"task": "shapes", "source": "here"}]).iloc[0]
    assert (found["holds"], found["measured"], found["source"]) == (holds, measured, "here")


def test_a_profile_without_expectations_judges_nothing():
    assert summary.judge(WORTH, []).empty


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ("{encoder: simclr, tusk: shapes}", "expectation 1: no parameter 'tusk'"),
        ("{encoder: simclr, low: high}", "expectation 1: low='high' is str"),
        ("{encoder: simclr, task: shapes}", "expectation 1: encoder, task and metric"),
        ("{encoder: a, task: b, metric: knm}", "metric .accuracy or knn. are needed"),
    ],
)
def test_a_misspelt_expectation_is_refused(tmp_path: Path, monkeypatch, wrong, match):
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    (tmp_path / "p.yaml").write_text(f"common: {{data: shapes}}\nexpectations:\n  - {wrong}\n")
    with pytest.raises(ValueError, match=match):
        profiles.profile("p")


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ("methods: {bjol: {}}", "methods: no parameter 'bjol'; it has simclr, moco, byol"),
        ("methods: {byol: {momentun: 0.9}}", "methods, byol: no parameter 'momentun'"),
        ("victim: {lr: 1e-3}", "victim: lr='1e-3' is str.*1.0e-3"),
        ("victim: {temperature: warm}", "victim: temperature='warm' is str"),
    ],
)
def test_a_misspelt_victim_is_refused(tmp_path: Path, monkeypatch, wrong, match):
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    (tmp_path / "p.yaml").write_text(f"common:\n  data: shapes\n  {wrong}\n")
    with pytest.raises(ValueError, match=match):
        profiles.profile("p")
