"""What must hold on a CUDA GPU; run with `pytest -m gpu` where there is one.

Names with "compiled" or "graphs" are of tests that compile, which takes minutes: `make record` runs them
last. These tests use no fixture of conftest.py, whose packages a GPU machine may lack.
"""

import pytest
import torch

from contsteal import (
    augment,
    data,
    encoders,
    evaluate,
    files,
    loop,
    losses,
    pretrain,
    seeds,
    steal,
    victim,
)
from contsteal.methods import METHODS, Head

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is visible"),
]

SMALL = "resnet10t"  # compiles in a fraction of a ResNet-18's time


def config(method, **changes):
    given = {"encoder": "resnet18", "epochs": 2, "batch": 32, "held_out": 0, "queue": 64}
    return pretrain.Config(method, **given | changes)


def trained(method, **changes):
    """Train on 320 images; return the digest of the weights and the losses."""
    fitted = pretrain.fit(config(method, **changes), data.load("shapes", n=320).to("cuda"))
    state = files.digest(fitted.encoder.state_dict().items())
    return state, [row["loss"] for row in fitted.history]


@pytest.mark.parametrize("policy", augment.POLICIES)
def test_a_view_is_the_same_view_on_every_device(policy):
    images = data.load("shapes", n=64).images
    here = augment.apply(policy, images, seeds.generator("view"))
    there = augment.apply(policy, images.cuda(), seeds.generator("view")).cpu()
    # Single pixels of a nearest-neighbour rotation may fall on the other side of an edge.
    assert ((here - there).abs() > 2 / 255).float().mean() < 0.005


@pytest.mark.parametrize("form", ["paper", "code"])
def test_losses_agree_with_the_cpu(form):
    s, t = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    there = losses.cont_steal(s.cuda(), t.cuda(), form=form).cpu()
    assert torch.allclose(there, losses.cont_steal(s, t, form=form), rtol=1e-4)


def test_train_steal_and_probe_on_the_gpu():
    images = data.load("shapes", n=640).to("cuda")
    net = pretrain.train(config("simclr", batch=128), images)
    api = victim.BlackBox(net, budget=256)
    attack = steal.Config(attack="cont-steal", epochs=3, batch=64)
    result = steal.train(attack, api, data.load("shapes", n=256, seed=1).to("cuda").images)
    assert (result.unique_inputs, result.calls) == (256, 256)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    x = encoders.embed(result.encoder, images.images)
    assert x.is_cuda
    probe = evaluate.linear_probe(x[:512], images.labels[:512], x[512:], images.labels[512:])
    assert probe.accuracy > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_exact_runs_are_equal_bit_by_bit(method):
    with loop.forced(mode="exact"):
        assert trained(method) == trained(method)


@pytest.mark.parametrize("attack", steal.ATTACKS)
def test_every_attack_runs_in_exact_mode(attack):
    images = data.load("shapes", n=64).to("cuda")
    net = encoders.build(SMALL).cuda().eval()
    head = torch.nn.Linear(net.dim, 10).cuda().requires_grad_(False)
    projector = Head(net.dim, net.dim, 64).cuda().eval()
    given = steal.Config(attack, encoder=SMALL, epochs=2, batch=32)

    def stolen():
        api = victim.BlackBox(net, head=head, projector=projector)
        result = steal.train(given, api, images.images, labels=images.labels)
        return files.digest(result.encoder.state_dict().items())

    with loop.forced(mode="exact"):
        assert stolen() == stolen()


@pytest.mark.filterwarnings("error:.*runs eagerly")
@pytest.mark.parametrize(
    ("method", "encoder", "precision"),
    [
        *((m, SMALL, "bf16") for m in METHODS),
        ("simclr", "resnet18", "bf16"),
        ("simclr", SMALL, "fp32"),
    ],
)
def test_compiled_steps_learn_what_eager_ones_learn(method, encoder, precision):
    with loop.forced(backend="none", precision=precision):
        expected = trained(method, encoder=encoder)[1]
    with loop.forced(backend="inductor", precision=precision):
        assert trained(method, encoder=encoder)[1] == pytest.approx(expected, rel=0.03)


@pytest.mark.filterwarnings("error:.*runs eagerly")
@pytest.mark.parametrize("method", METHODS)
def test_gradients_and_statistics_of_compiled_steps(method):
    """Three steps without learning: gradients of the last and running statistics equal eager ones."""
    images, labels = data.load("shapes", n=32).images.cuda(), torch.arange(32).cuda() % 10

    def run(backend):
        model = pretrain.build(config(method, encoder=SMALL), 10).cuda().train()
        with (
            loop.forced(backend=backend, precision="fp32"),
            loop.compiled(model.loss, images.device, 3) as compare,
        ):
            for step in range(3):
                model.zero_grad()
                compare(*model.views(images, labels, seeds.generator("step", step))).backward()
            grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return grads, [b.clone() for b in model.encoder.buffers()]

    for compiled, eager in zip(run("inductor"), run("none"), strict=True):
        for a, b in zip(compiled, eager, strict=True):
            assert (a - b).abs().max() <= 0.02 * b.abs().max().clamp_min(1e-6)


def test_the_memory_of_cuda_graphs_is_given_back():
    reserved = []
    for _ in range(2):
        with loop.forced(backend="inductor"):
            trained("simclr")
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[1] <= reserved[0] + 2**24


@pytest.mark.parametrize(("steps", "compiles"), [(6543, True), (6542, False)])
def test_the_card_s_own_record_decides_from_when_steps_are_captured(
    steps, compiles, tmp_path, monkeypatch
):
    rows = [{"work": loop.PAYS, "value": 6543.0}]
    files.write_json(tmp_path / f"{loop.card()}.json", {"rows": rows})
    monkeypatch.setattr(loop, "RECORDS", tmp_path)
    model = torch.nn.Linear(4, 2).cuda()
    with loop.compiled(model, torch.device("cuda"), steps) as network:
        assert isinstance(network, loop.Compiled) == compiles
