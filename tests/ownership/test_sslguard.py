"""SSLGuard: its literal losses, whom each step moves, the exact p-value, and what a thief inherits."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from contsteal import augment, data, encoders, loop
from contsteal.ownership import inference, obfuscation, sslguard
from contsteal.ownership.sslguard import Config, Key

TINY = Config(
    shadow="test_resnet", key=16, hidden=(32,), epochs=1, batch=16,
    lr_encoder=3e-3, lr_shadow=3e-2, lr_decoder=5e-2, lr_trigger=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def images() -> Tensor:
    return data.load("shapes", n=128).images


@pytest.fixture(scope="module")
def private() -> Tensor:
    return data.load("shapes", n=48, seed=7).images


@pytest.fixture(scope="module")
def victim() -> encoders.Encoder:
    return encoders.build("test_resnet", seed=0).eval()


@pytest.fixture(scope="module")
def guarded(victim, images, private) -> sslguard.Guarded:
    return sslguard.embed(replace(TINY, epochs=8), victim, images, private)


def floats(images: Tensor) -> Tensor:
    return augment.to_float(images)


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(
        sum(x * x for x in a) * sum(y * y for y in b)
    )


def batch(images: Tensor, private: Tensor) -> tuple[Tensor, Tensor]:
    return floats(images[:6]), floats(private[:6])


# ------------------------------------------------------------------------------------ key


def test_a_stamp_replaces_the_masked_values_and_no_others(images):
    key = Key(TINY, 96)
    x = floats(images[:4])
    stamped, there = key.stamp(images[:4]), key.mask.bool()
    assert torch.equal(stamped[:, there], key.trigger[there].expand(4, -1))
    assert torch.equal(stamped[:, ~there], x[:, ~there])
    assert there.float().mean().item() == pytest.approx(0.35, abs=0.03)
    key.trigger.data += 5
    assert key.stamp(x).max() == 1, "what leaves is an image"
    with pytest.raises(ValueError, match=r"\(4, 3, 31, 31\): the trigger is \(3, 32, 32\)"):
        key.stamp(x[:, :, 1:, 1:])


def test_a_key_is_drawn_from_its_seed():
    one, same, other = Key(TINY, 96), Key(TINY, 96), Key(replace(TINY, seed=1), 96)
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
        assert not torch.equal(value, other.state_dict()[name]), name


# --------------------------------------------------------------------------------- losses


def test_the_losses_are_literally_those_of_the_code(victim, images, private):
    model = sslguard.Embedding(victim, TINY)
    model.marked.load_state_dict(encoders.build("test_resnet", seed=3).state_dict())
    x, v = batch(images, private)

    def mean(net: nn.Module, z: Tensor) -> float:
        rows = model.key.decoder(net(z)).tolist()
        return sum(cosine(row, model.key.secret.tolist()) for row in rows) / len(rows)

    def close(a: nn.Module, b: nn.Module) -> float:
        return sum(map(cosine, a(x).tolist(), b(x).tolist())) / len(x)

    with torch.no_grad():
        t = model.key.stamp(v)
        f, w, s = model.clean, model.marked, model.shadow
        silent = sum(mean(*p) ** 2 for p in ((f, t), (f, x), (w, x), (s, x)))
        expected = silent - mean(w, t) - mean(s, t)
        assert model.key_loss(x, v).item() == pytest.approx(expected, abs=1e-5)
        expected = mean(w, x) ** 2 - close(f, w) - mean(w, t)
        assert model.encoder_loss(x, v).item() == pytest.approx(expected, abs=1e-5)
        s.train()
        expected = -close(copy.deepcopy(s), w)
        s.eval()
        assert model.shadow_loss(x).item() == pytest.approx(expected, abs=1e-5)
    assert not any(net.training for net in model.modules())


@pytest.mark.parametrize("name", ["shadow", "key", "encoder"])
def test_each_step_moves_what_is_its_own(victim, images, private, name):
    model = sslguard.Embedding(victim, TINY)
    parts = {"clean": model.clean, "shadow": model.shadow, "encoder": model.marked,
             "key": model.key}  # fmt: skip
    before = {part: weights(net) for part, net in parts.items()}
    x, v = batch(images, private)
    loss = model.shadow_loss(x) if name == "shadow" else getattr(model, f"{name}_loss")(x, v)
    sslguard._step(name, model, sslguard._optimizers(TINY, model), loss, "own")
    moved = {part for part, net in parts.items() if not torch.equal(weights(net), before[part])}
    assert moved == {name}
    if name == "key":
        assert not torch.equal(model.key.trigger, Key(TINY, 96).trigger)
        assert not torch.equal(weights(model.key.decoder), weights(Key(TINY, 96).decoder))


def test_the_published_encoder_follows_the_sum_of_all_losses(victim, images, private):
    """One batch of either form: the first two steps agree, the encoder's differ by what was left."""
    x, v = batch(images, private)
    moves = {}
    for form in ("own", "published"):
        model = sslguard.Embedding(victim, TINY)
        optimizers = sslguard._optimizers(TINY, model)
        own = optimizers["encoder"].param_groups[0]["params"]
        start, expected = torch.cat([p.detach().flatten() for p in own]), 0.0
        for name, given in (("shadow", (x,)), ("key", (x, v)), ("encoder", (x, v))):
            loss = getattr(model, f"{name}_loss")(*given)
            if form == "published" or name == "encoder":
                gradient = torch.autograd.grad(loss, own, retain_graph=True)
                expected = expected + torch.cat([g.flatten() for g in gradient])
            sslguard._step(name, model, optimizers, loss, form)
        moved = torch.cat([p.detach().flatten() for p in own]) - start
        torch.testing.assert_close(moved, -TINY.lr_encoder * expected, atol=1e-6, rtol=1e-3)
        moves[form] = moved
    assert not torch.allclose(moves["own"], moves["published"], atol=1e-6)


def test_batch_norm_and_the_victim_stay_as_they_were(victim, images, private):
    before = copy.deepcopy(victim.state_dict())
    made = sslguard.embed(TINY, victim, images, private)
    for name, value in victim.state_dict().items():
        assert torch.equal(value, before[name]), name
    norms = [m for m in made.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    theirs = [m for m in victim.modules() if isinstance(m, nn.BatchNorm2d)]
    for ours, other in zip(norms, theirs, strict=True):
        for a, b in zip(ours.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    assert norms
    assert not torch.equal(weights(made.encoder), weights(victim))
    assert not any(p.requires_grad for p in made.key.parameters())


def test_an_embedding_is_repeated_by_its_seed(victim, images, private):
    for form in ("own", "published"):
        config = replace(TINY, gradients=form)
        one, two = (sslguard.embed(config, victim, images[:32], private) for _ in range(2))
        assert one.history == two.history
        assert torch.equal(weights(one.encoder), weights(two.encoder))


def test_the_shadow_slows_down_every_epoch(victim, images, private, monkeypatch):
    rates = []

    def epoch(config, model, optimizers, *rest):
        rates.append(optimizers["shadow"].param_groups[0]["lr"])
        return {"shadow": 0.0}

    monkeypatch.setattr(sslguard, "_epoch", epoch)
    sslguard.embed(replace(TINY, epochs=3), victim, images, private)
    assert rates == pytest.approx([3e-2, 3e-2 * 0.96, 3e-2 * 0.96**2])


# ------------------------------------------------------------------------------ verification


def test_the_p_value_is_the_share_of_random_keys_that_do_as_well(victim, private):
    key = Key(replace(TINY, seed=5), 96)
    answers = encoders.embed(victim, sslguard.questions(key, private))
    rows = sslguard.decoded(key, answers)
    mean = rows.mean(0)
    for tilt in (0.0, 0.3, 0.8, -0.4):  # keys that lie more or less along what is decoded
        side = torch.randn(16, generator=torch.Generator().manual_seed(1)).double()
        side = torch.nn.functional.normalize(side - side @ mean * mean / mean.square().sum(), dim=0)
        key.secret = (tilt * mean / mean.norm() + math.sqrt(1 - tilt**2) * side).float()
        found = sslguard.verify(key, victim, private)
        others = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(2)).double()
        cosines = torch.nn.functional.normalize(others, dim=1) @ rows.T
        share = (cosines.mean(1) >= found.effect).double().mean().item()
        assert found.p_value == pytest.approx(share, abs=0.015)
        own = torch.nn.functional.cosine_similarity(rows, key.secret.double()[None])
        assert found.effect == pytest.approx(own.mean().item(), abs=1e-6)
        assert found.measure == (own > 0.5).double().mean().item()
        assert found.samples == len(private)


def test_the_key_is_found_in_encoder_and_shadow_and_not_in_strangers(guarded, victim, private):
    own, thief = (sslguard.verify(guarded.key, net, private)
                  for net in (guarded.encoder, guarded.shadow))  # fmt: skip
    strangers = [encoders.build("test_resnet", seed=s) for s in (11, 12, 13)]
    clean = [sslguard.verify(guarded.key, net, private) for net in (victim, *strangers)]
    assert own.measure > 0.9
    assert own.accuses(1e-4)
    assert thief.effect > max(v.effect for v in clean)
    assert max(v.measure for v in clean) < own.measure
    tested = sslguard.verify(guarded.key, guarded.encoder, private, controls=strangers)
    expected = inference.against_controls(own.effect, [v.effect for v in clean[1:]])
    assert tested.p_value == pytest.approx(expected.p_value)
    assert tested.measure == pytest.approx(own.effect)


def test_a_thief_that_shuffles_escapes_the_key(guarded, private):
    own = sslguard.verify(guarded.key, guarded.encoder, private)
    hidden = sslguard.verify(guarded.key, obfuscation.shuffle(guarded.encoder), private)
    assert hidden.effect < own.effect / 2
    with pytest.raises(
        ValueError, match=r"SSLGuard reads the victim's 96 .*take ownership\.dataset"
    ):
        sslguard.verify(guarded.key, obfuscation.pad(guarded.encoder), private)


def test_questions_are_images_and_the_threshold_is_strict(guarded, private, victim):
    sent = sslguard.questions(guarded.key, private)
    assert sent.dtype == torch.uint8
    assert sent.shape == private.shape
    answers = encoders.embed(victim, sent)
    assert sslguard.rate(guarded.key, answers, threshold=-1.1) == 1
    assert sslguard.rate(guarded.key, answers, threshold=1.0) == 0
    with pytest.raises(ValueError, match="NaN or infinity"):
        sslguard.rate(guarded.key, answers / 0)


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("change", [{"masked": 0.0}, {"masked": 1.0}, {"key": 2}, {"epochs": 0},
                                    {"batch": 1}])  # fmt: skip
def test_impossible_configs(victim, images, private, change):
    with pytest.raises(ValueError, match=r"masked must lie in \(0, 1\)"):
        sslguard.embed(replace(TINY, **change), victim, images, private)


def test_unfit_images(victim, images, private):
    with pytest.raises(ValueError, match="a batch is 16 of 32 px"):
        sslguard.embed(TINY, victim, images, private[:15])
    with pytest.raises(ValueError, match="a batch is 16 of 28 px"):
        sslguard.embed(replace(TINY, image_size=28), victim, images, private)
    with pytest.raises(ValueError, match="uint8 of shape"):
        sslguard.embed(TINY, victim, floats(images), private)
    with pytest.raises(ValueError, match="unknown gradients 'all'"):
        sslguard.embed(replace(TINY, gradients="all"), victim, images, private)


def test_a_loss_that_is_no_number_stops_the_embedding(victim, images, private):
    with pytest.raises(loop.Diverged, match="in epoch 1: lower the rates"):
        sslguard.embed(replace(TINY, lr_shadow=math.inf), victim, images, private)
