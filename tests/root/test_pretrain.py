"""Victim training: what it learns from, what it leaves out, and that its seed decides it."""

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import distributed as dist

from benchmarks.record import forced
from contsteal import augment, data, encoders, files, loop, methods, pretrain
from contsteal.seeds import generator
from contsteal.victim import digests

TINY = pretrain.Config(
    encoder="conv4", epochs=2, batch=32, held_out=64, hidden=32, projection=16, queue=64,
    optimizer="adamw", lr=1e-3, key_groups=2, seed=0,
)  # fmt: skip


def digest(net: torch.nn.Module) -> str:
    return files.digest(net.state_dict().items())


@pytest.fixture(scope="module")
def shapes() -> data.ImageSet:
    return data.load("shapes", n=160)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Collect what reaches the augmentation, by content."""
    names, apply = set(), augment.apply

    def spy(policy: str, images: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
        names.update(digests(images))
        return apply(policy, images, draws)

    monkeypatch.setattr(augment, "apply", spy)
    return names


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_learns_an_easy_problem(shapes, method):
    config = replace(TINY, method=method, epochs=6, lr=3e-3, policy="none", held_out=0)
    net, history, projector = pretrain.fit(config, shapes.take(slice(64)))
    assert (projector is None) == (method == "supervised")
    assert projector is None or projector(torch.ones(2, net.dim)).shape == (2, 16)
    assert not net.training
    assert net(shapes.images[:2]).shape == (2, net.dim), "the projector is left behind"
    start = encoders.build("conv4", 32, seed=TINY.seed).state_dict()
    assert not [k for k, v in net.state_dict().items() if v.ndim > 1 and v.equal(start[k])]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    first = max(row["loss"] for row in history[:2])  # MoCo's queue is easy until it holds real keys
    assert 0 < history[-1]["loss"] < 0.8 * first


@pytest.mark.parametrize(("held_out", "epochs", "count"), [(10, 2, 10), (1000, 4, 16)])
def test_held_out_images_are_never_trained_on(shapes, seen, held_out, epochs, count):
    pretrain.fit(replace(TINY, held_out=held_out, epochs=epochs), shapes)
    assert seen <= set(digests(shapes.images[count:])), "at most a tenth is held out"
    assert len(seen) >= 128


def test_the_monitor_measures_its_epochs_and_the_last(shapes):
    config = replace(TINY, epochs=99, steps=9, monitor_every=2)  # four steps an epoch
    history = pretrain.fit(config, shapes).history
    assert ["knn" in row and "spread" in row for row in history] == [False, True, True]
    assert all(0 <= row["knn"] <= 1 and row["spread"] >= 0 for row in history[1:])
    without = pretrain.fit(TINY, data.load("patches", n=80)).history[-1]  # has no labels
    assert "spread" in without
    assert "knn" not in without


def test_the_seed_alone_decides_the_weights(shapes):
    def weights(global_seed: int, **changes: Any) -> str:
        torch.manual_seed(global_seed)
        return digest(pretrain.train(replace(TINY, **changes), shapes))

    first = weights(1)
    assert weights(2) == weights(1, monitor_every=99) == first, "the monitor changes nothing"
    assert weights(1, seed=1) != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "simclear"}, r"'simclear'.*simclr, moco, byol, simsiam, supervised, ready"),
        ({"batch": 59}, "58 images are fewer than one batch of 59"),
        ({"method": "supervised"}, "'supervised' needs labels"),
        ({"steps": -2}, "steps=-2: a whole number of at least 0"),
        ({"monitor_every": 0}, "monitor_every=0: a whole number of at least 1"),
        ({"method": "ready"}, "weights=None is no file: 'ready' needs one, or 'timm'"),
        ({"method": "ready", "weights": "gone.pth"}, "weights='gone.pth' is no file"),
        ({"weights": "timm"}, "method 'simclr' trains its own weights; leave both out"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, changes, message):
    with pytest.raises(ValueError, match=message):
        pretrain.fit(replace(TINY, **changes), replace(shapes.take(slice(64)), labels=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": -torch.ones(64, dtype=torch.int64)},
            "label -1 of image 0: labels of 10 classes",
        ),
        ({"labels": torch.full((64,), 10)}, "label 10 of image 0: labels of 10 classes are 0 to 9"),
        ({"labels": torch.zeros(64)}, "float32: whole numbers"),
        ({"labels": torch.zeros(63, dtype=torch.int64)}, r"labels \(63,\)"),
        ({"images": torch.zeros(64, 3, 32, 0, dtype=torch.uint8)}, r"images \(64, 3, 32, 0\)"),
        ({"images": None}, "images of kind NoneType"),
    ],
)
def test_images_and_labels_that_cannot_be_trained_on(shapes, changes, message):
    with pytest.raises(ValueError, match=message):
        pretrain.fit(replace(TINY, method="supervised"), replace(shapes.take(slice(64)), **changes))
    with pytest.raises(ValueError, match="images of kind Tensor: an ImageSet is needed"):
        pretrain.fit(TINY, shapes.images)


def test_a_trained_encoder_and_its_projector_are_adopted(shapes):
    trained = pretrain.fit(replace(TINY, method="byol"), shapes)
    method: Any = pretrain.build(replace(TINY, method="byol", seed=1), 10)
    pretrain.adopt(method, trained)
    assert digest(method.encoder) == digest(trained.encoder)
    assert digest(method.target.module) == digest(method.online)
    other = pretrain.build(replace(TINY, method="byol", projection=8), 10)
    with pytest.raises(ValueError, match="the trained network does not fit"):
        pretrain.adopt(other, trained)


def test_a_ready_encoder_is_read_from_its_file_and_known_by_its_content(shapes, tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("one", "two", "same")]
    nets = [encoders.build("conv4", seed=seed) for seed in range(2)]
    for net, path in zip(nets, paths[:2], strict=True):
        encoders.save(net, path)
    paths[2].write_bytes(paths[0].read_bytes())
    configs = [replace(TINY, method="ready", weights=str(path)) for path in paths]
    net, history, projector = pretrain.fit(configs[0], shapes)
    assert (history, projector, net.training) == ([], None, False)
    assert digest(net) == digest(nets[0])
    one, two, same = map(pretrain.origin, configs)
    assert one == same != two
    assert pretrain.origin(replace(TINY, method="ready", weights="timm")) == "timm"
    assert pretrain.origin(TINY) is None


def test_a_ready_encoder_can_be_the_hub_s(shapes, monkeypatch):
    given: dict[str, Any] = {}
    monkeypatch.setattr(encoders, "build", lambda *a, **k: given.update(k) or torch.nn.Identity())
    inputs = {"mean": [0.5] * 3, "std": [0.5] * 3}
    pretrain.fit(replace(TINY, method="ready", weights="timm", inputs=inputs), shapes)
    assert given == {"width": 1.0, "inputs": inputs, "pretrained": True, "weights": None}


# ------------------------------------------------------------------------- several processes


def gradients(shapes: data.ImageSet) -> dict[str, torch.Tensor]:
    """The loss of every method on one batch, and the gradient of every weight."""
    found = {}
    for method in methods.METHODS:
        model: Any = pretrain.build(replace(TINY, method=method, batch=16), 10).train()
        compare = pretrain.share(model) if loop.several() else model
        loss = compare(*model.views(shapes.images[:16], shapes.labels[:16], generator("step")))
        loss.backward()
        found[method] = loss.detach()
        found |= {f"{method} {k}": p.grad for k, p in model.named_parameters() if p.requires_grad}
        found |= {f"{method} {k}": b.clone() for k, b in model.named_buffers()}
    return found


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_two_processes_have_the_loss_and_the_gradients_of_one(shapes, together):
    """Also the statistics of batch norm, and MoCo's queue, whose keys pass in groups."""
    alone = gradients(shapes)
    for found in together(gradients, shapes):
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize(("begun_by", "ended_by"), [(1, 2), (2, 1)])
def test_a_training_goes_on_with_another_number_of_processes(
    shapes, together, tmp_path, monkeypatch, begun_by, ended_by
):
    config, saved = replace(TINY, epochs=3, lr=1e-4), tmp_path / "last.pt"
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    calls, apply = [], augment.apply

    def interrupted(*given: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 6:  # in the second epoch of four steps
            raise KeyboardInterrupt
        return apply(*given)

    def train() -> tuple[list[loop.Row], dict[str, torch.Tensor]]:
        second = loop.several() and dist.get_rank()  # which has no file
        net, history, _ = pretrain.fit(config, shapes, None if second else saved)
        return history, net.state_dict()

    def begin() -> None:
        with mock.patch.object(augment, "apply", interrupted), pytest.raises(KeyboardInterrupt):
            train()

    by = {1: lambda function: [function()], 2: together}
    with forced(precision="fp32"):
        whole = pretrain.fit(config, shapes)
        by[begun_by](begin)
        first = torch.load(saved)["history"]
        ended = by[ended_by](train)
    assert len(first) == 1
    for history, weights in ended:
        assert history[:1] == first, "of the file"
        assert [row["loss"] for row in history] == pytest.approx([r["loss"] for r in whole.history])
        for name, value in whole.encoder.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("batch", [4, 2])
def test_processes_that_cannot_share_a_batch_are_refused(monkeypatch, batch):
    monkeypatch.setattr(pretrain.dist, "get_world_size", lambda: 3)
    model = pretrain.build(replace(TINY, batch=batch), 10)
    with pytest.raises(ValueError, match=f"3 processes cannot share {batch} rows of a batch"):
        pretrain.share(model)
