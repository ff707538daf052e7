"""Estimates of time and memory: proportional to the work, counted as autograd keeps it."""

from dataclasses import replace

import pytest
import torch

from contsteal import methods, pretrain
from contsteal.lab import estimate, profiles

TINY = pretrain.Config(
    encoder="test_resnet", epochs=3, batch=32, hidden=32, projection=16, queue=64
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SECONDS", 0.02)


@pytest.mark.parametrize("method", methods.METHODS)
def test_views_are_epochs_times_whole_batches_times_views(method: str) -> None:
    found = estimate.training(replace(TINY, method=method), images=100)
    assert found.views == 3 * 96 * (1 if method == "supervised" else 2)
    assert found.seconds == pytest.approx(found.views / found.rate)
    assert found.rate > 0


def test_weights_gradients_and_momentum_are_counted() -> None:
    net = pretrain.build(TINY, 10)
    weights = 4 * sum(p.numel() for p in net.parameters())
    buffers = sum(b.numel() * b.element_size() for b in net.buffers())
    trial = estimate.Trial(TINY, torch.device("cpu"))
    trial.step()
    assert trial.state() == pytest.approx(3 * weights + buffers, rel=0.01)  # SGD has one momentum


def test_activations_are_what_autograd_keeps() -> None:
    trial = estimate.Trial(TINY, torch.device("cpu"))
    x = torch.randn(50, 8, requires_grad=True)
    trial.step = lambda: (x.exp() * 3).sum().backward()  # exp keeps its result; the rest is scalars
    assert trial.activations() == 4 * x.numel()


def test_memory_grows_with_the_batch_also_where_a_smaller_one_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "CPU_BATCH", 16)
    small, large = (estimate.training(replace(TINY, batch=b), 256).memory for b in (64, 128))
    assert 1.5 < large / small < 2.1


def test_a_profile_is_estimated_method_by_method_and_says_so(capsys) -> None:
    found = estimate.profile("smoke", ["simclr", "byol"])
    assert [e.name.split()[0] for e in found] == ["simclr", "byol", "supervised"]
    views = 2 * 256 * 2  # epochs x whole batches of 64 among 288 images x views
    assert found[0].views == views
    assert str(found[0]).startswith(f"simclr test_resnet: {views:,} views at ")


def test_another_method_brings_its_own_settings() -> None:
    common = profiles.profile("smoke")["common"]
    assert profiles.config(common).method == "simclr"
    byol = profiles.config(common, method="byol")
    assert (byol.method, byol.hidden) == ("byol", common["methods"]["byol"]["hidden"])
    assert byol.epochs == common["victim"]["epochs"]
    assert profiles.config(common, "supervised").method == "supervised"


def test_the_victims_own_method_has_settings_and_knobs_are_not_inherited() -> None:
    common = {"image_size": 32, "victim": {"method": "byol", "temperature": 0.1, "epochs": 3},
              "methods": {"byol": {"hidden": 7}, "moco": {"queue": 9}}}  # fmt: skip
    assert profiles.config(common).hidden == 7
    moco = profiles.config(common, method="moco")
    assert (moco.temperature, moco.queue, moco.epochs) == (None, 9, 3)
    assert profiles.config(common, method="byol").temperature == 0.1


def test_ready_encoders_take_no_time() -> None:
    assert estimate.profile("imagenet", ["ready"]) == []
