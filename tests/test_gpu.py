"""What must hold on a CUDA GPU; run with `pytest -m gpu` where there is one."""

import pytest
import torch

from contsteal import augment, data, encoders, evaluate, losses, pretrain, seeds, steal, victim

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
