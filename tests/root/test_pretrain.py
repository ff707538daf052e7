"""Victim training: what it learns from, what it leaves out, and that its seed decides it."""

from dataclasses import replace

import pytest
import torch

from contsteal import augment, data, encoders, loop, methods, pretrain
from contsteal.victim import digests

TINY = pretrain.Config(
    encoder="test_resnet", epochs=2, batch=32, held_out=64, hidden=32, projection=16, queue=64,
    optimizer="adamw", lr=1e-3, key_groups=2, seed=0,
)  # fmt: skip


def digest(net: encoders.Encoder) -> str:
    return encoders.digest(net.state_dict().items())


@pytest.fixture(scope="module")
def shapes() -> data.ImageSet:
    return data.load("shapes", n=160)


@pytest.fixture
def seen(monkeypatch) -> set[bytes]:
    """Collect what reaches the augmentation, by content."""
    names, apply = set(), augment.apply

    def spy(policy, images, draws):
        names.update(digests(images))
        return apply(policy, images, draws)

    monkeypatch.setattr(augment, "apply", spy)
    return names


@pytest.mark.parametrize("method", list(methods.METHODS))
def test_every_method_trains(shapes, method):
    net, history, projector = pretrain.fit(replace(TINY, method=method), shapes)
    assert (projector is None) == (method == "supervised")
    assert projector is None or projector(torch.ones(2, net.dim)).shape[0] == 2
    start = encoders.build("test_resnet", 32, seed=TINY.seed).state_dict()
    still = [k for k, v in net.state_dict().items() if v.ndim > 1 and v.equal(start[k])]
    assert not still, "weights that were never trained"
    assert not net.training
    assert [row["epoch"] for row in history] == [1, 2]
    assert all(row["loss"] > 0 for row in history)


@pytest.mark.parametrize("method", list(methods.METHODS))
def test_the_loss_falls_on_an_easy_problem(shapes, method):
    config = replace(TINY, method=method, epochs=6, lr=3e-3, policy="none", held_out=0)
    history = pretrain.fit(config, shapes.take(slice(64)))[1]
    first = max(row["loss"] for row in history[:2])  # MoCo's queue is easy until it holds real keys
    assert history[-1]["loss"] < 0.8 * first


def test_held_out_images_are_never_trained_on(shapes, seen):
    pretrain.fit(replace(TINY, held_out=10), shapes)
    held, kept = digests(shapes.images[:10]), digests(shapes.images[10:])
    assert not seen.intersection(held)
    assert seen <= set(kept)
    assert len(seen) >= 128


def test_at_most_a_tenth_is_held_out(shapes, seen):
    pretrain.fit(replace(TINY, held_out=1000, epochs=4), shapes)
    assert seen == set(digests(shapes.images[16:]))


def test_the_monitor_looks_at_its_epochs_and_at_the_last(shapes):
    history = pretrain.fit(replace(TINY, epochs=3, monitor_every=2), shapes)[1]
    assert ["knn" in row and "spread" in row for row in history] == [False, True, True]
    assert all(0 <= row["knn"] <= 1 and row["spread"] >= 0 for row in history[1:])


def test_the_monitor_changes_nothing(shapes):
    watched, ignored = (pretrain.train(replace(TINY, monitor_every=m), shapes) for m in (1, 99))
    assert digest(watched) == digest(ignored)


def test_images_without_labels_have_a_spread_and_no_knn():
    history = pretrain.fit(TINY, data.load("patches", n=80))[1]
    assert "spread" in history[-1]
    assert "knn" not in history[-1]


def test_the_seed_alone_decides_the_weights(shapes):
    def weights(global_seed: int, **knobs) -> str:
        torch.manual_seed(global_seed)
        return digest(pretrain.train(replace(TINY, **knobs), shapes))

    assert weights(1) == weights(2)
    assert weights(1, seed=1) != weights(1)


def test_train_returns_the_encoder_of_fit_in_eval_mode(shapes):
    net = pretrain.train(TINY, shapes)
    assert isinstance(net, encoders.Encoder)
    assert not net.training
    assert net(shapes.images[:2]).shape == (2, net.dim), "the projector is left behind"


def test_a_killed_training_continues_to_the_same_weights(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    whole = pretrain.train(TINY, shapes)

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "_monitor", dies)  # it runs after the last epoch
        with pytest.raises(KeyboardInterrupt):
            pretrain.train(TINY, shapes, tmp_path / "c.pt")
    resumed = pretrain.train(TINY, shapes, tmp_path / "c.pt")
    assert digest(resumed) == digest(whole)


@pytest.mark.parametrize("other", [{"method": "supervised"}, {"temperature": 0.1}])
def test_a_checkpoint_of_another_config_is_refused(shapes, tmp_path, monkeypatch, other):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    pretrain.train(TINY, shapes, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="another run"):
        pretrain.train(replace(TINY, **other), shapes, tmp_path / "c.pt")


def test_a_diverging_run_says_so(shapes):
    with pytest.raises(loop.Diverged, match="epoch 1, step"):
        pretrain.train(replace(TINY, lr=1e30), shapes)


def test_an_unknown_method_lists_the_known_ones(shapes):
    with pytest.raises(ValueError, match=r"'simclear'.*simclr, moco, byol, simsiam, supervised"):
        pretrain.train(replace(TINY, method="simclear"), shapes)


def test_supervised_needs_labels():
    with pytest.raises(ValueError, match="labels"):
        pretrain.train(replace(TINY, method="supervised"), data.load("patches", n=64))


def test_fewer_images_than_a_batch(shapes):
    with pytest.raises(ValueError, match="18 images are fewer than one batch of 32"):
        pretrain.train(TINY, shapes.take(slice(20)))


def test_supervised_on_unlabelled_images_with_classes(shapes):
    with pytest.raises(ValueError, match="'supervised' needs labels, shapes has none"):
        pretrain.train(replace(TINY, method="supervised"), replace(shapes, labels=None))


# ----------------------------------------------------------------------- ready encoders


def test_a_ready_encoder_is_read_from_its_file_and_not_trained(shapes, tmp_path):
    made = encoders.build("test_resnet", seed=7)
    encoders.save(made, tmp_path / "made.safetensors")
    config = replace(TINY, method="ready", weights=str(tmp_path / "made.safetensors"))
    net, history, projector = pretrain.fit(config, shapes)
    assert projector is None
    assert history == []
    assert digest(net) == digest(made)
    assert not net.training


def test_a_ready_encoder_can_be_the_hub_s(shapes, monkeypatch):
    asked = {}
    monkeypatch.setattr(encoders, "build", lambda *a, **k: asked.update(k) or torch.nn.Identity())
    inputs = {"mean": [0.5] * 3, "std": [0.5] * 3}
    pretrain.fit(replace(TINY, method="ready", weights="timm", inputs=inputs), shapes)
    assert asked["pretrained"] is True
    assert asked["inputs"] == inputs
    assert "weights" not in asked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ready"}, "weights=None: method 'ready' needs 'timm' or a file"),
        (
            {"method": "ready", "weights": "gone.pth"},
            r"weights='gone.pth' .*gone.pth is none.: method",
        ),
        ({"weights": "timm"}, "method 'simclr' trains its own; set method: ready"),
        ({"method": "reday"}, "choose one of simclr, moco, byol, simsiam, supervised, ready"),
    ],
)
def test_weights_and_method_must_fit(shapes, changes, message):
    with pytest.raises(ValueError, match=message):
        pretrain.fit(replace(TINY, **changes), shapes)


def test_the_origin_of_a_ready_encoder_is_its_content(tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in ("one", "two", "same")]
    for seed, file in enumerate(files[:2]):
        encoders.save(encoders.build("test_resnet", seed=seed), file)
    files[2].write_bytes(files[0].read_bytes())
    config = replace(TINY, method="ready")
    one, two, same = (pretrain.origin(replace(config, weights=str(file))) for file in files)
    assert one == same != two
    assert pretrain.origin(replace(config, weights="timm")) == "timm"
    assert pretrain.origin(TINY) is None
