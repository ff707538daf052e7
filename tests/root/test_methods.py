"""The self-supervised methods: their losses, momentum copies, queue, stop-gradient, and heads."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.record import forced
from contsteal import augment, checkpoints, data, files, loop, pretrain
from contsteal.attacks import ATTACKS
from contsteal.methods import METHODS, Config, Head, Method, SimSiam

TINY = Config(
    encoder="conv4", epochs=2, batch=16, queue=64, hidden=24, projection=16, held_out=16,
    key_groups=1,
)  # fmt: skip
SELF_SUPERVISED = [name for name in METHODS if name != "supervised"]
Views = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def shapes() -> data.ImageSet:
    return data.load("shapes", n=96)


@pytest.fixture(scope="module")
def views(shapes: data.ImageSet) -> Views:
    one, two = (
        augment.apply("simclr", shapes.images[:16], torch.Generator().manual_seed(k))
        for k in range(2)
    )
    return one, two


def build(method: str, **changes: Any) -> Any:
    return pretrain.build(replace(TINY, method=method, **changes), 10).train()


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def step(model: Method, views: Views) -> None:
    """Take a plain gradient step on two views."""
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(model.loss(*views), trained)
    with torch.no_grad():
        for p, g in zip(trained, gradients, strict=True):
            p -= 0.1 * g


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
        pairs = [views, views[::-1]][: 2 if symmetric else 1]
        terms = [slow_moco(model.online(a), keys(b), queue, 0.2) for a, b in pairs]
    assert model.loss(*views).item() == pytest.approx(sum(terms) / len(terms), abs=1e-5)
    assert not torch.equal(model.queue, queue), "keys enter it after the loss"


def test_byol_and_simsiam_are_one_minus_cosine(views):
    one, two = views
    byol, simsiam = build("byol"), build("simsiam")
    with torch.no_grad():
        for model, goal in ((byol, byol.target.module), (simsiam, simsiam.online)):
            p, q = model.predictor(model.online(one)), model.predictor(model.online(two))
            expected = (slow_cosine(p, goal(two)) + slow_cosine(q, goal(one))) / 2
            assert model.loss(one, two).item() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_simclr_is_lightly_s(views):
    from lightly.loss import NTXentLoss

    simclr = build("simclr", temperature=0.3)
    expected = NTXentLoss(temperature=0.3)(*simclr.online(torch.cat(views)).chunk(2)).item()
    assert simclr.loss(*views).item() == pytest.approx(expected, abs=1e-5)


def test_views_do_not_depend_on_labels_unless_they_are_learnt(shapes):
    images, labels = shapes.images[:16], shapes.labels[:16]
    for method in METHODS:
        model, draws = build(method), torch.Generator()
        one, two = model.views(images, labels, draws.manual_seed(3))
        assert one.shape == (16, 3, 32, 32)
        assert torch.equal(two, labels) == (method == "supervised")
        if method != "supervised":
            blind = model.views(images, None, draws.manual_seed(3))
            assert all(map(torch.equal, blind, (one, two)))
    with pytest.raises(ValueError, match="needs labels"):
        build("supervised").views(images, None, torch.Generator())


@pytest.mark.parametrize(("method", "copy"), [("moco", "keys"), ("byol", "target")])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_a_momentum_copy_is_the_average_of_what_it_follows(views, method, copy, momentum):
    model = build(method, momentum=momentum)
    expected = flat(model.online)
    for _ in range(3):
        online = flat(model.online)  # the loss follows first, then a step is taken
        step(model, views)
        expected = momentum * expected + (1 - momentum) * online
        assert torch.allclose(flat(getattr(model, copy).module), expected, atol=1e-6)
    assert not torch.allclose(flat(model.online), expected, atol=1e-4), "it lags behind"
    model.loss(*views).backward()
    assert all(p.grad is None for p in getattr(model, copy).parameters())
    assert all(p.grad is not None for p in model.online.parameters())


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (
            "byol",
            {"momentum": -0.1},
            "momentum=-0.1: a finite number of at least 0 and of at most 1",
        ),
        ("byol", {"momentum": 1.1}, "momentum=1.1: a finite number of at least 0 and of at most 1"),
        ("moco", {"queue": 24}, "queue=24: it must hold the 32 keys of a batch of 16"),
        ("moco", {"key_groups": 0}, "key_groups=0: a whole number of at least 1"),
        ("moco", {"key_groups": 3}, "key_groups=3: it must divide batch=16"),
    ],
)
def test_impossible_settings(method, changes, message):
    with pytest.raises(ValueError, match=message):
        build(method, **changes)


@torch.no_grad()
def test_the_queue_holds_the_newest_keys_in_order(views):
    model, sent = build("moco", queue=40, symmetric=False), []
    for k in range(4):
        model.loss(views[0], views[1].roll(k, 0))
        sent.append(F.normalize(model.keys.module(views[1].roll(k, 0)), dim=1))
    newest = torch.cat(sent)[-40:]  # 64 keys have gone through a queue of 40
    assert torch.allclose(model.queue.roll(-int(model.next), 0), newest, atol=1e-5)


@torch.no_grad()
def test_keys_are_normalised_in_groups_that_share_no_batch_with_their_queries(views):
    model = build("moco", key_groups=4)
    keys, whole = model.encode(views[1]), model.keys.module(views[1])
    for k in range(4):
        assert torch.allclose(keys[k::4], model.keys.module(views[1][k::4]), atol=1e-5)
    assert not torch.allclose(keys, whole, atol=1e-3)
    model.eval()  # without batch statistics the groups change nothing, also not the order
    assert torch.allclose(model.encode(views[1]), model.keys.module(views[1]), atol=1e-5)


def test_simsiam_holds_the_other_view_still(views):
    model = build("simsiam")

    def gradients(hold: Callable[[Tensor], Tensor]) -> list[Tensor]:
        z, w = map(model.online, views)
        both = [F.cosine_similarity(model.predictor(a), hold(b)) for a, b in ((z, w), (w, z))]
        return list(torch.autograd.grad(1 - sum(both).mean() / 2, model.online.parameters()))

    ours = torch.autograd.grad(model.loss(*views), model.online.parameters())
    still, moving = gradients(Tensor.detach), gradients(lambda z: z)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, still, strict=True))
    assert not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, moving, strict=True))


def test_without_stop_gradient_simsiam_collapses_and_the_monitor_says_so(shapes, monkeypatch):
    config = replace(TINY, method="simsiam", epochs=12, optimizer="adamw", lr=3e-2)
    config = replace(config, monitor_every=12, weight_decay=1e-4)
    assert pretrain.fit(config, shapes).history[-1]["spread"] > 0.2
    loss = SimSiam.loss

    def moving(self: SimSiam, one: Tensor, two: Tensor) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "detach", lambda z: z)
            return loss(self, one, two)

    monkeypatch.setattr(SimSiam, "loss", moving)
    with pytest.warns(UserWarning, match="simsiam collapsed"):
        history = pretrain.fit(config, shapes).history
    assert history[-1]["spread"] < 0.1


# Whose backward (of nll_loss2d also the forward) on CUDA has no deterministic form: torch 2.15's list.
UNSTEADY = (
    "AdaptiveAvgPool2D", "AdaptiveMaxPool2D", "AvgPool3D", "GridSampler2D", "ReflectionPad2D",
    "UpsampleBilinear2D", "UpsampleBicubic2D", "NllLoss2D", "FractionalMaxPool2D",
)  # fmt: skip


def nodes(value: Tensor) -> set[str]:
    """Return the names of all nodes of a tensor's autograd graph."""
    names: dict[Any, str] = {}
    todo: list[Any] = [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in names:
            names[node] = node.name()
            todo += [following for following, _ in node.next_functions]
    return set(names.values())


@pytest.mark.parametrize("encoder", ["resnet10t", "conv4"])
@pytest.mark.parametrize("method", METHODS)
def test_no_method_differentiates_what_cuda_cannot_repeat(shapes, method, encoder):
    model = build(method, encoder=encoder)
    names = nodes(model(*model.views(shapes.images[:8], shapes.labels[:8], torch.Generator())))
    assert any("Convolution" in name for name in names)
    assert not [name for name in names if name.startswith(UNSTEADY)]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_differentiates_what_cuda_cannot_repeat(attack):
    recipe, g = ATTACKS[attack], torch.Generator().manual_seed(0)
    s = torch.randn(16, 4, generator=g).requires_grad_()
    t = torch.randn(8 if recipe.views == "both" else 16, 4, generator=g)
    t = {"label": t.argmax(1), "posterior": t.softmax(1)}.get(recipe.answer, t)
    more = {"labels": torch.arange(16) % 2} if recipe.labels else {}
    assert not [name for name in nodes(recipe.loss(s, t, **more)) if name.startswith(UNSTEADY)]


@pytest.mark.parametrize(("method", "backend"), [("moco", "eager"), ("byol", "none")])
def test_a_killed_training_keeps_queue_and_momentum_copy(
    shapes, tmp_path, monkeypatch, method, backend
):
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    config, seen = replace(TINY, method=method, epochs=3, batch=32), []

    def digest(checkpoint: Path | None = None) -> str:
        return files.digest(pretrain.train(config, shapes, checkpoint).state_dict().items())

    def dies(*given: Any) -> Callable[[int], loop.Row]:
        def measure(epoch: int) -> loop.Row:
            seen.append(epoch)
            if seen == [0, 1]:
                raise KeyboardInterrupt
            return {}

        return measure

    expected = digest()
    monkeypatch.setattr(pretrain, "_monitor", dies)
    with forced(backend=backend), pytest.raises(KeyboardInterrupt):
        digest(tmp_path / "c.pt")
    assert digest(tmp_path / "c.pt") == expected, "compiled steps are those of eager ones"
    assert seen == [0, 1, 1, 2], "it continued after the first epoch"
    with pytest.raises(ValueError, match="another run"):
        pretrain.train(replace(config, temperature=0.3), shapes, tmp_path / "c.pt")


def test_published_learning_rates_follow_the_batch():
    both = product(METHODS, (128, 512))
    rates = {(m, b): pretrain.schedule(Config(method=m, batch=b)).lr for m, b in both}
    assert rates["simclr", 128] == rates["byol", 128] == rates["simsiam", 512] == 0.06
    assert rates["simclr", 512] == rates["moco", 512] == pytest.approx(0.24)
    assert pretrain.schedule(Config(lr=1e-3)).lr == 1e-3


@pytest.mark.parametrize(
    ("method", "sizes"),
    [
        ("simclr", [128, 128]),
        ("moco", [128, 128] * 2),  # and those of the key encoder
        ("byol", [1024, 256, 1024, 256, 1024, 256]),
        ("simsiam", [2048, 2048, 512, 2048]),
    ],
)
def test_heads_have_the_published_sizes(method, sizes):
    model = pretrain.build(Config(method=method, encoder="conv4"), 10)
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == sizes


def test_batch_norm_stands_where_it_should():
    heads = Head(4, 8, 2), Head(4, 8, 2, last=True), Head(4, 8, 2, norm=False)
    assert [" ".join(type(m).__name__ for m in head) for head in heads] == [
        "Linear BatchNorm1d ReLU Linear",
        "Linear BatchNorm1d ReLU Linear BatchNorm1d",
        "Linear ReLU Linear",
    ]


def test_a_head_is_read_back_as_it_was_written(tmp_path):
    path, head = tmp_path / "head.safetensors", Head(6, 5, 4, last=True)
    head(torch.randn(32, 6))  # moves the running statistics
    head.save(path)
    x = torch.randn(3, 6)
    assert torch.equal(Head.load(path)(x), head.eval()(x))
    path.write_bytes(b"no head")
    with pytest.raises(checkpoints.CheckpointError, match="cannot be read"):
        Head.load(path)
