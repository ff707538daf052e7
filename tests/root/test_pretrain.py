"""Victim training: what it learns from, what it leaves out, and that its seed decides it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from contsteal import augment, data, encoders, files, loop, methods, pretrain
from contsteal.victim import digests

TINY = pretrain.Config(
    encoder="test_resnet", epochs=2, batch=32, held_out=64, hidden=32, projection=16, queue=64,
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
    start = encoders.build("test_resnet", 32, seed=TINY.seed).state_dict()
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
    history = pretrain.fit(replace(TINY, epochs=3, monitor_every=2), shapes).history
    assert ["knn" in row and "spread" in row for row in history] == [False, True, True]
    assert all(0 <= row["knn"] <= 1 and row["spread"] >= 0 for row in history[1:])


def test_images_without_labels_have_a_spread_and_no_knn():
    history = pretrain.fit(TINY, data.load("patches", n=80)).history
    assert "spread" in history[-1]
    assert "knn" not in history[-1]


def test_the_seed_alone_decides_the_weights(shapes):
    def weights(global_seed: int, **changes: Any) -> str:
        torch.manual_seed(global_seed)
        return digest(pretrain.train(replace(TINY, **changes), shapes))

    first = weights(1)
    assert weights(2) == weights(1, monitor_every=99) == first, "the monitor changes nothing"
    assert weights(1, seed=1) != first


def test_a_killed_training_continues_to_the_same_weights(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    whole = pretrain.train(TINY, shapes)
    embed = encoders.embed

    def dies(net: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        if (tmp_path / "c.pt").exists():  # in the monitor, after the second epoch
            raise KeyboardInterrupt
        return embed(net, images)

    with monkeypatch.context() as patch:
        patch.setattr(encoders, "embed", dies)
        with pytest.raises(KeyboardInterrupt):
            pretrain.train(TINY, shapes, tmp_path / "c.pt")
    assert digest(pretrain.train(TINY, shapes, tmp_path / "c.pt")) == digest(whole)
    with pytest.raises(ValueError, match="another run"):
        pretrain.train(replace(TINY, temperature=0.1), shapes, tmp_path / "c.pt")


def test_a_diverging_run_says_so(shapes):
    with pytest.raises(loop.Diverged, match="epoch 1, step"):
        pretrain.train(replace(TINY, lr=1e30), shapes)


UNLABELLED = data.load("shapes", n=64), data.load("patches", n=64)


@pytest.mark.parametrize(
    ("changes", "images", "message"),
    [
        (
            {"method": "simclear"},
            UNLABELLED[0],
            r"'simclear'.*simclr, moco, byol, simsiam, supervised, ready",
        ),
        ({}, UNLABELLED[0].take(slice(20)), "18 images are fewer than one batch of 32"),
        ({"method": "supervised"}, UNLABELLED[1], "'supervised' needs labels, patches has none"),
        (
            {"method": "supervised"},
            replace(UNLABELLED[0], labels=None),
            "'supervised' needs labels, shapes has none",
        ),
        ({"monitor_every": 0}, UNLABELLED[0], "monitor_every must be >= 1"),
        ({"method": "ready"}, UNLABELLED[0], "weights=None: method 'ready' needs 'timm' or a file"),
        (
            {"method": "ready", "weights": "gone.pth"},
            UNLABELLED[0],
            r"weights='gone.pth' .*gone.pth does not exist.: method",
        ),
        ({"weights": "timm"}, UNLABELLED[0], "method 'simclr' trains its own; set method: ready"),
    ],
)
def test_what_does_not_fit_is_refused(changes, images, message):
    with pytest.raises(ValueError, match=message):
        pretrain.fit(replace(TINY, **changes), images)


def test_a_trained_encoder_and_its_projector_are_adopted(shapes):
    trained = pretrain.fit(replace(TINY, method="byol"), shapes)
    method: Any = pretrain.build(replace(TINY, method="byol", seed=1), 10)
    pretrain.adopt(method, trained)
    assert digest(method.encoder) == digest(trained.encoder)
    assert digest(method.target.module) == digest(method.online)
    other = pretrain.build(replace(TINY, method="byol", projection=8), 10)
    with pytest.raises(ValueError, match="the trained network does not fit"):
        pretrain.adopt(other, trained)


# ----------------------------------------------------------------------- ready encoders


def test_a_ready_encoder_is_read_from_its_file_and_not_trained(shapes, tmp_path):
    made = encoders.build("test_resnet", seed=7)
    encoders.save(made, tmp_path / "made.safetensors")
    config = replace(TINY, method="ready", weights=str(tmp_path / "made.safetensors"))
    net, history, projector = pretrain.fit(config, shapes)
    assert (history, projector, net.training) == ([], None, False)
    assert digest(net) == digest(made)


def test_a_ready_encoder_can_be_the_hub_s(shapes, monkeypatch):
    given: dict[str, Any] = {}
    monkeypatch.setattr(encoders, "build", lambda *a, **k: given.update(k) or torch.nn.Identity())
    inputs = {"mean": [0.5] * 3, "std": [0.5] * 3}
    pretrain.fit(replace(TINY, method="ready", weights="timm", inputs=inputs), shapes)
    assert given == {"width": 1.0, "inputs": inputs, "pretrained": True}


def test_the_origin_of_a_ready_encoder_is_its_content(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("one", "two", "same")]
    for seed, path in enumerate(paths[:2]):
        encoders.save(encoders.build("test_resnet", seed=seed), path)
    paths[2].write_bytes(paths[0].read_bytes())
    config = replace(TINY, method="ready")
    one, two, same = (pretrain.origin(replace(config, weights=str(path))) for path in paths)
    assert one == same != two
    assert pretrain.origin(replace(config, weights="timm")) == "timm"
    assert pretrain.origin(TINY) is None
