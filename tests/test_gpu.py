"""What must hold on a CUDA GPU; run with `pytest -m gpu` where there is one.

Names with "compiled" or "graphs" are of tests that compile, which takes minutes: `make record` runs them
last. These tests use no fixture of conftest.py, whose packages a GPU machine may lack. Where
GPU_TESTS_ON names a device, as `make record` sets it, no test is skipped: "cpu" rehearses them there with
a small encoder and a compiler that only traces; "cuda" fails where no GPU is visible.
"""

import os

import pytest
import torch

from benchmarks.record import forced
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

ON = os.environ.get("GPU_TESTS_ON")
DEVICE = torch.device(ON or "cuda")
CUDA = DEVICE.type == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (ON or torch.cuda.is_available()), reason="no CUDA GPU is visible"),
]

# SMALL compiles in a fraction of a ResNet-18's time.
LARGE, SMALL, BACKEND = (
    ("resnet18", "resnet10t", "inductor") if CUDA else (*["test_resnet"] * 2, "eager")
)
IMAGES = 320 if CUDA else 64


def config(method, **changes):
    given = {"encoder": LARGE, "epochs": 2, "batch": 32, "held_out": 0, "queue": 64}
    return pretrain.Config(method, **given | changes)


def trained(method, **changes):
    """Train on some images; return the digest of the weights and the losses."""
    fitted = pretrain.fit(config(method, **changes), data.load("shapes", n=IMAGES).to(DEVICE))
    assert next(fitted.encoder.parameters()).device.type == DEVICE.type
    state = files.digest(fitted.encoder.state_dict().items())
    return state, [row["loss"] for row in fitted.history]


@pytest.mark.parametrize("policy", augment.POLICIES)
def test_a_view_is_the_same_view_on_every_device(policy):
    images = data.load("shapes", n=64).images
    here = augment.apply(policy, images, seeds.generator("view"))
    there = augment.apply(policy, images.to(DEVICE), seeds.generator("view")).cpu()
    # Single pixels of a nearest-neighbour rotation may fall on the other side of an edge.
    assert ((here - there).abs() > 2 / 255).float().mean() < 0.005


@pytest.mark.parametrize("form", ["paper", "code"])
def test_losses_agree_with_the_cpu(form):
    s, t = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    there = losses.cont_steal(s.to(DEVICE), t.to(DEVICE), form=form).cpu()
    assert torch.allclose(there, losses.cont_steal(s, t, form=form), rtol=1e-4)


def test_train_steal_and_probe_on_the_gpu():
    images = data.load("shapes", n=640).to(DEVICE)
    net = pretrain.train(config("simclr", batch=128), images).to(DEVICE)
    api = victim.BlackBox(net, budget=256)
    attack = steal.Config(attack="cont-steal", encoder=LARGE, epochs=3, batch=64)
    result = steal.train(attack, api, data.load("shapes", n=256, seed=1).to(DEVICE).images)
    assert (result.unique_inputs, result.calls) == (256, 256)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    x = encoders.embed(result.encoder, images.images)
    assert x.device.type == DEVICE.type
    probe = evaluate.linear_probe(x[:512], images.labels[:512], x[512:], images.labels[512:])
    assert probe.accuracy > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_exact_runs_are_equal_bit_by_bit(method):
    with forced(mode="exact"):
        assert trained(method) == trained(method)


@pytest.mark.parametrize("attack", steal.ATTACKS)
def test_every_attack_runs_in_exact_mode(attack):
    images = data.load("shapes", n=64).to(DEVICE)
    net = encoders.build(SMALL).to(DEVICE).eval()
    head = torch.nn.Linear(net.dim, 10).to(DEVICE).requires_grad_(False)
    projector = Head(net.dim, net.dim, 64).to(DEVICE).eval()
    given = steal.Config(attack, encoder=SMALL, epochs=2, batch=32)

    def stolen():
        api = victim.BlackBox(net, head=head, projector=projector)
        result = steal.train(given, api, images.images, labels=images.labels)
        return files.digest(result.encoder.state_dict().items())

    with forced(mode="exact"):
        assert stolen() == stolen()


@pytest.mark.filterwarnings("error:.*runs eagerly")
@pytest.mark.parametrize(
    ("method", "encoder", "precision"),
    [
        *((m, SMALL, "bf16") for m in METHODS),
        *((m, LARGE, "bf16") for m in ["simclr"] if CUDA),
        ("simclr", SMALL, "fp32"),
    ],
)
def test_compiled_steps_learn_what_eager_ones_learn(method, encoder, precision):
    with forced(backend="none", precision=precision):
        expected = trained(method, encoder=encoder)[1]
    with forced(backend=BACKEND, precision=precision):
        assert trained(method, encoder=encoder)[1] == pytest.approx(expected, rel=0.03)


@pytest.mark.filterwarnings("error:.*runs eagerly")
@pytest.mark.parametrize("method", METHODS)
def test_gradients_and_statistics_of_compiled_steps(method):
    """Three steps without learning: gradients of the last and running statistics equal eager ones."""
    images, labels = data.load("shapes", n=32).images.to(DEVICE), torch.arange(32).to(DEVICE) % 10

    def run(backend):
        model = pretrain.build(config(method, encoder=SMALL), 10).to(DEVICE).train()
        with (
            forced(backend=backend, precision="fp32"),
            loop.compiled(model.loss, images.device, 3) as compare,
        ):
            for step in range(3):
                model.zero_grad()
                compare(*model.views(images, labels, seeds.generator("step", step))).backward()
            grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return grads, [b.clone() for b in model.encoder.buffers()]

    for compiled, eager in zip(run(BACKEND), run("none"), strict=True):
        for a, b in zip(compiled, eager, strict=True):
            assert (a - b).abs().max() <= 0.02 * b.abs().max().clamp_min(1e-6)


def test_the_memory_of_cuda_graphs_is_given_back():
    reserved = []
    for _ in range(2):
        with forced(backend=BACKEND):
            trained("simclr")
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert not CUDA or torch.cuda.max_memory_allocated() > 0
    assert reserved[1] <= reserved[0] + 2**24


@pytest.mark.parametrize(("steps", "compiles"), [(6543, True), (6542, False)])
def test_the_card_s_own_record_decides_from_when_steps_are_captured(
    steps, compiles, tmp_path, monkeypatch
):
    rows = [{"work": loop.PAYS, "value": 6543.0}]
    files.write_json(tmp_path / f"{loop.card()}.json", {"rows": rows})
    monkeypatch.setattr(loop, "RECORDS", tmp_path)
    model = torch.nn.Linear(4, 2).to(DEVICE)
    with loop.compiled(model, torch.device("cuda"), steps) as network:
        assert isinstance(network, loop.Compiled) == compiles
