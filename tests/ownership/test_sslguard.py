"""SSLGuard: its literal losses, what each step moves, the exact p-value, and what a thief inherits."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from contsteal import augment, data, encoders, loop
from contsteal.ownership import inference, obfuscation, sslguard
from contsteal.ownership.sslguard import Config, Key, KeyEmbedding

TINY = Config(
    shadow="test_resnet", key=16, hidden=(32,), epochs=1, batch=16,
    lr_encoder=3e-3, lr_shadow=3e-2, lr_decoder=5e-2, lr_trigger=1.0,
)  # fmt: skip
IMAGES = data.load("shapes", n=128).images
PRIVATE = data.load("shapes", n=48, seed=7).images
X, V = augment.to_float(IMAGES[:6]), augment.to_float(PRIVATE[:6])
STEPS = (("shadow", (X,)), ("key", (X, V)), ("encoder", (X, V)))


@pytest.fixture(scope="module")
def victim() -> encoders.Encoder:
    return encoders.build("test_resnet", seed=0).eval()


@pytest.fixture(scope="module")
def guarded(victim) -> sslguard.Guarded:
    return sslguard.embed(replace(TINY, epochs=8), victim, IMAGES, PRIVATE)


def flat(parameters) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


def same_state(a: nn.Module, b: nn.Module) -> list[bool]:
    return [torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(),
                                              strict=True)]  # fmt: skip


def test_a_stamp_replaces_the_masked_values_and_no_others():
    key, x = Key(TINY, 96), augment.to_float(IMAGES[:4])
    stamped, masked = key.stamp(IMAGES[:4]), key.mask.bool()
    assert torch.equal(stamped[:, masked], key.trigger[masked].expand(4, -1))
    assert torch.equal(stamped[:, ~masked], x[:, ~masked])
    assert masked.float().mean().item() == pytest.approx(0.35, abs=0.03)
    key.trigger.data += 5
    assert key.stamp(x).max() == 1, "what leaves is an image"
    with pytest.raises(ValueError, match=r"\(4, 3, 31, 31\): the trigger's size \(3, 32, 32\)"):
        key.stamp(x[:, :, 1:, 1:])


def test_a_key_is_drawn_from_its_seed():
    assert all(same_state(Key(TINY, 96), Key(TINY, 96)))
    assert not any(same_state(Key(TINY, 96), Key(replace(TINY, seed=1), 96)))


# ------------------------------------------------------------------------ losses and steps


def literal_cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_the_losses_are_literally_those_of_the_code(victim):
    model = KeyEmbedding(victim, TINY)
    model.marked.load_state_dict(encoders.build("test_resnet", seed=3).state_dict())

    def mean(net: nn.Module, z: Tensor) -> float:
        rows = model.key.decoder(net(z)).tolist()
        return sum(literal_cosine(row, model.key.secret.tolist()) for row in rows) / len(rows)

    def close(a: nn.Module, b: nn.Module) -> float:
        return sum(map(literal_cosine, a(X).tolist(), b(X).tolist())) / len(X)

    with torch.no_grad():
        t = model.key.stamp(V)
        f, w, s = model.clean, model.marked, model.shadow
        silent = sum(mean(*p) ** 2 for p in ((f, t), (f, X), (w, X), (s, X)))
        expected = silent - mean(w, t) - mean(s, t)
        assert model.key_loss(X, V).item() == pytest.approx(expected, abs=1e-5)
        expected = mean(w, X) ** 2 - close(f, w) - mean(w, t)
        assert model.encoder_loss(X, V).item() == pytest.approx(expected, abs=1e-5)
        expected = -close(copy.deepcopy(s).train(), w)
        assert model.shadow_loss(X).item() == pytest.approx(expected, abs=1e-5)
    assert not any(net.training for net in model.modules())


@pytest.mark.parametrize(("name", "batch"), STEPS)
def test_each_step_moves_its_own_weights(victim, name, batch):
    model = KeyEmbedding(victim, TINY)
    parts = {"clean": model.clean, "shadow": model.shadow, "encoder": model.marked,
             "key": model.key}  # fmt: skip
    before = {part: flat(net.parameters()) for part, net in parts.items()}
    loss = getattr(model, f"{name}_loss")(*batch)
    sslguard._step(name, model, sslguard._optimizers(TINY, model), loss, "own")
    moved = {p for p, net in parts.items() if not torch.equal(flat(net.parameters()), before[p])}
    assert moved == {name}
    if name == "key":
        fresh = Key(TINY, 96)
        assert not torch.equal(model.key.trigger, fresh.trigger)
        assert not any(same_state(model.key.decoder, fresh.decoder))


def test_the_published_encoder_follows_the_sum_of_all_losses(victim):
    """One batch of either form: the first two steps agree, the encoder's differ by what was left."""
    moves = {}
    for form in ("own", "published"):
        model = KeyEmbedding(victim, TINY)
        optimizers = sslguard._optimizers(TINY, model)
        parameters = optimizers["encoder"].param_groups[0]["params"]
        start, expected = flat(parameters), 0.0
        for name, batch in STEPS:
            loss = getattr(model, f"{name}_loss")(*batch)
            if form == "published" or name == "encoder":
                expected = expected + flat(torch.autograd.grad(loss, parameters, retain_graph=True))
            sslguard._step(name, model, optimizers, loss, form)
        moves[form] = flat(parameters) - start
        torch.testing.assert_close(moves[form], -TINY.lr_encoder * expected, atol=1e-6, rtol=1e-3)
    assert not torch.allclose(moves["own"], moves["published"], atol=1e-6)


@pytest.mark.parametrize("form", ["own", "published"])
def test_an_embedding_repeats_and_leaves_victim_and_batch_norm_alone(victim, form):
    before, config = copy.deepcopy(victim), replace(TINY, gradients=form)
    one, two = (sslguard.embed(config, victim, IMAGES[:32], PRIVATE) for _ in range(2))
    assert one.history == two.history
    assert all(same_state(one.encoder, two.encoder))
    assert all(same_state(victim, before))
    for ours, theirs in zip(one.encoder.modules(), victim.modules(), strict=True):
        if isinstance(ours, nn.BatchNorm2d):
            assert all(same_state(ours, theirs))
    assert not torch.equal(flat(one.encoder.parameters()), flat(victim.parameters()))
    assert not any(p.requires_grad for p in one.key.parameters())


def test_the_shadow_slows_down_every_epoch(victim, monkeypatch):
    rates = []

    def epoch(config, model, optimizers, *rest):
        rates.append(optimizers["shadow"].param_groups[0]["lr"])
        return {"shadow": 0.0}

    monkeypatch.setattr(sslguard, "_epoch", epoch)
    sslguard.embed(replace(TINY, epochs=3), victim, IMAGES, PRIVATE)
    assert rates == pytest.approx([3e-2, 3e-2 * 0.96, 3e-2 * 0.96**2])


# ------------------------------------------------------------------------------ verification


@pytest.mark.parametrize("tilt", [0.0, 0.3, 0.8, -0.4])  # how far the key lies along the answers
def test_the_p_value_is_the_share_of_random_keys_that_do_as_well(victim, tilt):
    key = Key(replace(TINY, seed=5), 96)
    rows = sslguard.decoded(key, encoders.embed(victim, sslguard.questions(key, PRIVATE)))
    mean = rows.mean(0)
    side = torch.randn(16, generator=torch.Generator().manual_seed(1)).double()
    side = normalize(side - side @ mean * mean / mean.square().sum(), dim=0)
    key.secret = (tilt * mean / mean.norm() + math.sqrt(1 - tilt**2) * side).float()
    verdict = sslguard.verify(key, victim, PRIVATE)
    others = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(2)).double()
    cosines = (normalize(others, dim=1) @ rows.T).mean(1)
    share = (cosines >= verdict.effect).double().mean().item()
    assert verdict.p_value == pytest.approx(share, abs=0.015)
    cosines = cosine_similarity(rows, key.secret.double()[None])
    assert verdict.effect == pytest.approx(cosines.mean().item(), abs=1e-6)
    assert verdict.measure == (cosines > 0.5).double().mean().item()
    assert verdict.samples == len(PRIVATE)


def test_the_key_is_found_in_encoder_and_shadow_and_not_in_strangers(guarded, victim):
    strangers = [encoders.build("test_resnet", seed=s) for s in (11, 12, 13)]
    nets = (guarded.encoder, guarded.shadow, victim, *strangers)
    own, thief, *clean = (sslguard.verify(guarded.key, net, PRIVATE) for net in nets)
    assert own.measure > 0.9
    assert own.accuses(1e-4)
    assert thief.effect > max(v.effect for v in clean)
    assert max(v.measure for v in clean) < own.measure
    assert inference.against_controls(own.effect, [v.effect for v in clean[1:]]).accuses()


def test_a_thief_that_shuffles_escapes_the_key(guarded):
    own = sslguard.verify(guarded.key, guarded.encoder, PRIVATE)
    hidden = sslguard.verify(guarded.key, obfuscation.shuffle(guarded.encoder), PRIVATE)
    assert hidden.effect < own.effect / 2
    with pytest.raises(ValueError, match=r"SSLGuard needs .* the victim's 96 .*ownership\.dataset"):
        sslguard.verify(guarded.key, obfuscation.pad(guarded.encoder), PRIVATE)


def test_questions_are_images_and_answers_are_decoded_to_unit_vectors(guarded, victim):
    sent = sslguard.questions(guarded.key, PRIVATE)
    assert sent.dtype == torch.uint8
    assert sent.shape == PRIVATE.shape
    answers = encoders.embed(victim, sent)
    lengths = sslguard.decoded(guarded.key, answers).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    with pytest.raises(ValueError, match="NaN, infinity"):
        sslguard.decoded(guarded.key, answers / 0)


@pytest.mark.parametrize(
    ("change", "images", "private", "message"),
    [
        ({"masked": 0.0}, IMAGES, PRIVATE, "masked=0.0: a finite number above 0 and below 1"),
        ({"masked": 1.0}, IMAGES, PRIVATE, "masked=1.0: a finite number above 0 and below 1"),
        ({"key": 2}, IMAGES, PRIVATE, "key=2: a whole number of at least 3"),
        ({"epochs": 0}, IMAGES, PRIVATE, "epochs=0: a whole number of at least 1"),
        ({"batch": 1}, IMAGES, PRIVATE, "batch=1: a whole number of at least 2"),
        ({"lr_shadow": math.inf}, IMAGES, PRIVATE, "lr_shadow=inf: a finite number"),
        ({"hidden": (8, 0)}, IMAGES, PRIVATE, "hidden=0: a whole number of at least 1"),
        ({"gradients": "all"}, IMAGES, PRIVATE, "unknown Config gradients 'all'"),
        ({"hidden": 8}, IMAGES, PRIVATE, "hidden=8: a list is needed"),
        ({}, None, PRIVATE, "images of kind NoneType"),
        ({"image_size": 28}, IMAGES, PRIVATE, "at least 16 images of 28 px"),
        ({}, IMAGES, PRIVATE[:15], "at least 16 images of 32 px"),
        ({}, augment.to_float(IMAGES), PRIVATE, "uint8 of shape"),
    ],
)
def test_impossible_embeddings(victim, change, images, private, message):
    with pytest.raises(ValueError, match=message):
        sslguard.embed(replace(TINY, **change), victim, images, private)


def test_a_loss_that_is_no_number_stops_the_embedding(victim):
    with pytest.raises(loop.Diverged, match="in epoch 1: lower the learning rates"):
        sslguard.embed(replace(TINY, lr_shadow=1e30), victim, IMAGES, PRIVATE)
