"""The self-supervised methods: their losses, momentum copies, queue and stop-gradient."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal import augment, data, encoders, loop, methods, pretrain
from contsteal.methods import Config, Head

TINY = Config(
    encoder="test_resnet",
    epochs=2,
    batch=16,
    queue=64,
    hidden=24,
    projection=16,
    held_out=16,
    key_groups=1,
)
SELF_SUPERVISED = ("simclr", "moco", "byol", "simsiam")


@pytest.fixture(scope="module")
def shapes() -> data.ImageSet:
    return data.load("shapes", n=96)


@pytest.fixture(scope="module")
def views(shapes: data.ImageSet) -> tuple[Tensor, Tensor]:
    return tuple(
        augment.apply("simclr", shapes.images[:16], torch.Generator().manual_seed(k))
        for k in range(2)
    )


def build(method: str, **changes: object) -> methods.Method:
    model = pretrain.build(replace(TINY, method=method, **changes), 10)
    return model.train()


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def moved(model: methods.Method, views: tuple[Tensor, Tensor], steps: int = 1) -> methods.Method:
    """Take plain gradient steps on two views."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for _ in range(steps):
        gradients = torch.autograd.grad(model.loss(*views), trained)
        with torch.no_grad():
            for p, g in zip(trained, gradients, strict=True):
                p -= 0.1 * g
    return model


# --------------------------------------------------------------------- losses, literally


def unit(rows: Tensor) -> list[list[float]]:
    return F.normalize(rows.double(), dim=1).tolist()


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_moco(q: Tensor, k: Tensor, queue: Tensor, tau: float) -> float:
    total, negatives = 0.0, unit(queue)
    for a, b in zip(unit(q), unit(k), strict=True):
        right = math.exp(dot(a, b) / tau)
        total -= math.log(right / (right + sum(math.exp(dot(a, n) / tau) for n in negatives)))
    return total / len(q)


def slow_cosine(p: Tensor, z: Tensor) -> float:
    return 1 - sum(dot(a, b) for a, b in zip(unit(p), unit(z), strict=True)) / len(p)


@pytest.mark.parametrize("symmetric", [True, False])
def test_moco_is_its_equation(views, symmetric):
    model = build("moco", symmetric=symmetric, temperature=0.2)
    queue, keys = model.queue.clone(), model.keys.module
    with torch.no_grad():
        pairs = [(views[0], views[1]), (views[1], views[0])][: 2 if symmetric else 1]
        terms = [slow_moco(model.project(a), keys(b), queue, 0.2) for a, b in pairs]
    assert model.loss(*views).item() == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_byol_and_simsiam_are_one_minus_cosine(views):
    one, two = views
    byol, simsiam = build("byol"), build("simsiam")
    with torch.no_grad():
        for model, goal in ((byol, byol.target.module), (simsiam, simsiam.project)):
            p, q = model.predictor(model.project(one)), model.predictor(model.project(two))
            expected = (slow_cosine(p, goal(two)) + slow_cosine(q, goal(one))) / 2
            assert model.loss(one, two).item() == pytest.approx(expected, abs=1e-5)


def test_the_losses_are_those_of_lightly(views):
    from lightly.loss import NegativeCosineSimilarity, NTXentLoss

    one, two = views
    with torch.no_grad():
        simclr = build("simclr", temperature=0.3)
        z, w = simclr.project(torch.cat(views)).chunk(2)
        oracle = NTXentLoss(temperature=0.3)(z, w).item()
        assert simclr.loss(one, two).item() == pytest.approx(oracle, abs=1e-5)
        moco = build("moco", symmetric=False, temperature=0.3)
        bank = NTXentLoss(temperature=0.3, memory_bank_size=(64, 16))
        bank.memory_bank.bank = moco.queue.clone()
        bank.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
        oracle = bank(moco.project(one), moco.keys.module(two)).item()
        assert moco.loss(one, two).item() == pytest.approx(oracle, abs=1e-5)
        byol = build("byol")
        p, q = byol.predictor(byol.project(one)), byol.predictor(byol.project(two))
        d = NegativeCosineSimilarity()
        oracle = (d(p, byol.target.module(two)) + d(q, byol.target.module(one))).item() / 2
        assert byol.loss(one, two).item() == pytest.approx(1 + oracle, abs=1e-5)


# ------------------------------------------------------------- momentum, queue, gradients


@pytest.mark.parametrize(("method", "copy"), [("moco", "keys"), ("byol", "target")])
def test_a_momentum_copy_is_the_average_of_what_it_follows(views, method, copy):
    model = build(method, momentum=0.9)
    expected = flat(model.online)
    for _ in range(3):
        online = flat(model.online)  # the loss follows first, then a step is taken
        moved(model, views)
        expected = 0.9 * expected + 0.1 * online
        assert torch.allclose(flat(getattr(model, copy).module), expected, atol=1e-6)
    assert not torch.allclose(flat(model.online), expected, atol=1e-4), "it lags behind"


@pytest.mark.parametrize(("method", "copy"), [("moco", "keys"), ("byol", "target")])
def test_no_gradient_reaches_a_momentum_copy(views, method, copy):
    model = build(method)
    model.loss(*views).backward()
    assert all(p.grad is None for p in getattr(model, copy).parameters())
    assert all(p.grad is not None for p in model.online.parameters())


def test_momentum_of_one_stands_still_and_of_zero_keeps_up(views):
    still, quick = (build("byol", momentum=m) for m in (1.0, 0.0))
    start, before = flat(still.target), None
    for _ in range(2):
        moved(still, views)
        before = flat(quick.online)
        moved(quick, views)
    assert torch.equal(flat(still.target), start)
    assert torch.equal(flat(quick.target.module), before)


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_impossible_momentum(momentum):
    with pytest.raises(ValueError, match=f"momentum={momentum}: it must be between 0 and 1"):
        build("byol", momentum=momentum)


def test_the_queue_holds_the_newest_keys_in_order(views):
    model = build("moco", queue=40, symmetric=False)
    sent = []
    for k in range(4):
        with torch.no_grad():
            model.loss(views[0], views[1].roll(k, 0))
            sent.append(F.normalize(model.keys.module(views[1].roll(k, 0)), dim=1))
    newest = torch.cat(sent)[-40:]  # 64 keys have gone through a queue of 40
    held = model.queue.roll(-int(model.next), 0)
    assert torch.allclose(held, newest, atol=1e-5)


def test_keys_enter_the_queue_after_the_loss(views):
    model = build("moco", momentum=1.0)
    queue = model.queue.clone()
    with torch.no_grad():
        first = model.loss(*views).item()
        assert not torch.equal(model.queue, queue)
        model.queue.copy_(queue)
        assert model.loss(*views).item() == pytest.approx(first, abs=1e-6)


def test_a_queue_that_cannot_hold_a_batch():
    with pytest.raises(ValueError, match="queue=24: it must hold the 32 keys of a batch of 16"):
        build("moco", queue=24)


def test_keys_are_normalised_in_groups_that_share_no_batch_with_their_queries(views):
    model = build("moco", key_groups=4)
    with torch.no_grad():
        keys = model.encode(views[1])
        for k in range(4):
            alone = model.keys.module(views[1][k::4])
            assert torch.allclose(keys[k::4], alone, atol=1e-5)
        whole = model.keys.module(views[1])
    assert not torch.allclose(keys, whole, atol=1e-3)
    model.eval()
    with torch.no_grad():
        same = torch.allclose(model.encode(views[1]), model.keys.module(views[1]), atol=1e-5)
    assert same, "without batch statistics the groups change nothing, also not the order"


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_must_divide_the_batch(groups):
    with pytest.raises(ValueError, match=f"key_groups={groups}: it must divide batch=16"):
        build("moco", key_groups=groups)


def test_simsiam_holds_the_other_view_still(views):
    model, (one, two) = build("simsiam"), views
    z, w = model.project(one), model.project(two)
    there, back = (
        1 - F.cosine_similarity(model.predictor(a), b).mean() for a, b in ((z, w), (w, z))
    )
    both = torch.autograd.grad((there + back) / 2, model.online.parameters(), retain_graph=True)
    own = torch.autograd.grad(model.loss(one, two), model.online.parameters())
    z, w = model.project(one), model.project(two)
    still = [
        1 - F.cosine_similarity(model.predictor(a), b.detach()).mean() for a, b in ((z, w), (w, z))
    ]
    expected = torch.autograd.grad(sum(still) / 2, model.online.parameters())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(own, expected, strict=True))
    assert not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(own, both, strict=True))


def test_without_stop_gradient_simsiam_collapses_and_the_monitor_says_so(shapes, monkeypatch):
    config = replace(
        TINY, method="simsiam", epochs=30, optimizer="adamw", lr=1e-2, weight_decay=1e-4
    )
    kept = pretrain.fit(config, shapes)[1]
    assert kept[-1]["spread"] > 0.2
    monkeypatch.setattr(methods.SimSiam, "still", lambda self, z: z)
    with pytest.warns(UserWarning, match="simsiam collapsed"):
        history = pretrain.fit(config, shapes)[1]
    assert history[-1]["spread"] < 0.1
    assert history[-1]["loss"] < kept[-1]["loss"], "collapse solves the loss"


# ------------------------------------------------------------------- training and recipes


@pytest.mark.parametrize("method", SELF_SUPERVISED)
def test_labels_change_nothing(shapes, method):
    config = replace(TINY, method=method)
    blind = replace(shapes, labels=None)
    nets = [pretrain.train(config, images) for images in (shapes, blind)]
    one, two = (encoders.digest(net.state_dict().items()) for net in nets)
    assert one == two


@pytest.mark.parametrize("method", ["moco", "byol"])
def test_a_killed_training_keeps_queue_and_momentum_copy(shapes, tmp_path, monkeypatch, method):

    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    config = replace(TINY, method=method, epochs=3)
    whole = pretrain.train(config, shapes)
    monitor, seen = pretrain._monitor, []

    def dies(*given):
        def look(epoch):
            seen.append(epoch)
            if epoch == 1 and seen.count(1) == 1:
                raise KeyboardInterrupt
            return monitor(*given)(epoch)

        return look

    monkeypatch.setattr(pretrain, "_monitor", dies)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(config, shapes, tmp_path / "c.pt")
    resumed = pretrain.train(config, shapes, tmp_path / "c.pt")
    assert seen == [0, 1, 1, 2], "it continued after the first epoch"
    assert encoders.digest(resumed.state_dict().items()) == encoders.digest(
        whole.state_dict().items()
    )


def test_published_learning_rates_follow_the_batch():
    rates = {
        (m, b): pretrain.schedule(Config(method=m, batch=b)).lr
        for m in methods.METHODS
        for b in (128, 512)
    }
    assert rates["simclr", 128] == rates["byol", 128] == rates["simsiam", 512] == 0.06
    assert rates["simclr", 512] == rates["moco", 512] == pytest.approx(0.24)
    assert pretrain.schedule(Config(lr=1e-3)).lr == 1e-3


def test_heads_have_the_published_sizes():
    sizes = {
        method: [m.out_features for m in pretrain.build(
            Config(method=method, encoder="test_resnet"), 10).modules()
            if isinstance(m, nn.Linear)]
        for method in SELF_SUPERVISED
    }  # fmt: skip
    dim = encoders.build("test_resnet").dim
    assert sizes["simclr"] == [dim, 128]
    assert sizes["moco"] == [dim, 128] * 2, "and those of the key encoder"
    assert sizes["byol"] == [1024, 256, 1024, 256, 1024, 256]
    assert sizes["simsiam"] == [2048, 2048, 512, 2048]


def test_batch_norm_stands_where_it_should():
    kinds = [type(m).__name__ for m in Head(4, 8, 2)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [type(m).__name__ for m in Head(4, 8, 2, last=True)][-1] == "BatchNorm1d"
    assert [type(m).__name__ for m in Head(4, 8, 2, norm=False)] == ["Linear", "ReLU", "Linear"]


def test_an_unknown_optimizer_lists_the_known_ones(shapes):
    with pytest.raises(ValueError, match="unknown optimizer 'lars': choose one of adamw, sgd"):
        pretrain.train(replace(TINY, optimizer="lars"), shapes)
