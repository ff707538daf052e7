"""What must hold on a CUDA GPU; run with `pytest -m gpu` where there is one."""

import warnings

import pytest
import torch

from contsteal import (
    augment,
    data,
    encoders,
    evaluate,
    losses,
    pretrain,
    seeds,
    steal,
    victim,
)
from contsteal.methods import METHODS, Head
from contsteal.replay import Call, Calls
from contsteal.speed import LAUNCH_BOUND, accelerated, forced

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is visible"),
]


@pytest.mark.parametrize("policy", augment.POLICIES)
def test_a_view_is_the_same_view_on_every_device(policy: str) -> None:
    images = data.load("shapes", n=64).images
    here = augment.apply(policy, images, seeds.generator("view"))
    there = augment.apply(policy, images.cuda(), seeds.generator("view")).cpu()
    # Single pixels of a nearest-neighbour rotation may fall on the other side of an edge.
    assert ((here - there).abs() > 2 / 255).float().mean() < 0.005


@pytest.mark.parametrize("form", ["paper", "code"])
def test_losses_agree_with_the_cpu(form: str) -> None:
    s, t = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    there = losses.cont_steal(s.cuda(), t.cuda(), form=form).cpu()
    assert torch.allclose(there, losses.cont_steal(s, t, form=form), rtol=1e-4)


def test_train_steal_and_probe_on_the_gpu() -> None:
    images = data.load("shapes", n=640).to("cuda")
    net = pretrain.train(pretrain.Config(encoder="resnet18", epochs=2, batch=128), images)
    api = victim.BlackBox(net, budget=256)
    config = steal.Config(attack="cont-steal", epochs=3, batch=64)
    result = steal.train(config, api, data.load("shapes", n=256, seed=1).to("cuda").images)
    assert (result.unique_inputs, result.calls) == (256, 256)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    x = encoders.embed(result.encoder, images.images)
    assert x.is_cuda
    probe = evaluate.linear_probe(x[:512], images.labels[:512], x[512:], images.labels[512:])
    assert probe.accuracy > 0.1


# -------------------------------------------------------------------------- exact and fast


def config(method: str, **changes) -> pretrain.Config:
    given = {"encoder": "resnet18", "epochs": 2, "batch": 32, "held_out": 0, "queue": 64}
    return pretrain.Config(method, **given | changes)


def trained(method: str, **changes) -> tuple[str, list[float]]:
    """Train on 320 images; return the digest of the weights and the losses."""
    images = data.load("shapes", n=320).to("cuda")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*runs eagerly")
        warnings.filterwarnings("error", message=".*AccumulateGrad")
        found = pretrain.fit(config(method, **changes), images)
    state = encoders.digest(found.encoder.state_dict().items())
    return state, [row["loss"] for row in found.history]


@pytest.mark.parametrize("method", METHODS)
def test_exact_runs_are_equal_bit_by_bit(method: str) -> None:
    with forced(mode="exact"):
        assert trained(method) == trained(method)


@pytest.mark.parametrize("attack", steal.ATTACKS)
def test_every_attack_runs_in_exact_mode(attack: str) -> None:
    images = data.load("shapes", n=64).to("cuda")
    net = encoders.build("resnet10t").cuda().eval()
    head = torch.nn.Linear(net.dim, 10).cuda().requires_grad_(False)
    projector = Head(net.dim, net.dim, 64).cuda().eval()
    given = steal.Config(attack, encoder="resnet10t", epochs=2, batch=32)

    def stolen() -> str:
        api = victim.BlackBox(net, head=head, projector=projector)
        result = steal.train(given, api, images.images, labels=images.labels)
        return encoders.digest(result.encoder.state_dict().items())

    with forced(mode="exact"):
        assert stolen() == stolen()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_replayed_steps_learn_what_eager_ones_learn(method: str, precision: str) -> None:
    with forced("eager", precision=precision):
        expected = trained(method)[1]
    with forced("graph", precision=precision):
        assert trained(method)[1] == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("method", ["simclr", "byol"])  # one call a step, and two beside a copy's
def test_compiled_steps_learn_what_eager_ones_learn(method: str) -> None:
    with forced("eager"):
        expected = trained(method)[1]
    with forced("compile"):
        assert trained(method)[1] == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("method", ["simclr", "moco", "byol", "simsiam"])
def test_gradients_and_statistics_of_replayed_steps(method: str) -> None:
    """Three steps without learning: gradients of the last and running statistics equal eager ones."""
    images = data.load("shapes", n=32).to("cuda").images

    def run(form: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        model = pretrain.build(config(method), 10).cuda().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with forced(form, precision="fp32"), accelerated(model, optimizer) as pace:
            for step in range(3):
                optimizer.zero_grad()
                model(images, None, seeds.generator("step", step)).backward()
                optimizer.step()
            assert any(calls.made for calls in pace.calls) == (form == "graph")
            grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return grads, [b.clone() for b in model.encoder.buffers()]

    for found, expected in zip(run("graph"), run("eager"), strict=True):
        for a, b in zip(found, expected, strict=True):
            scale = b.abs().max().clamp_min(1e-6)
            assert (a - b).abs().max() <= 0.02 * scale


def test_small_batches_are_replayed_and_their_memory_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded, record = [], Calls.graph

    def graph(self: Calls, call: Call, times: int) -> None:
        recorded.append((call.shape[0], times))
        record(self, call, times)

    monkeypatch.setattr(Calls, "graph", graph)
    trained("simclr", batch=LAUNCH_BOUND // 2)
    assert not recorded
    trained("byol")
    assert recorded == [(32, 2), (32, 2)]
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    trained("byol")
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**24
