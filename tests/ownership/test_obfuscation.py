"""Obfuscations: each is its affine map, can be undone, and is drawn from its seed."""

import math

import pytest
import torch

from contsteal import data, encoders
from contsteal.ownership import obfuscation

IMAGES = data.load("shapes", n=8).images


def test_each_obfuscation_is_its_map(tiny):
    plain = encoders.embed(tiny, IMAGES)
    shuffled = encoders.embed(obfuscation.shuffle(tiny), IMAGES)
    assert torch.equal(shuffled.sort(1).values, plain.sort(1).values)
    assert not torch.equal(shuffled, plain)
    assert torch.equal(encoders.embed(obfuscation.scale(tiny, -4.0), IMAGES), -4 * plain)
    padded = encoders.embed(obfuscation.pad(tiny, extra=3), IMAGES)
    assert padded.shape == (8, tiny.dim + 3)
    assert torch.equal(padded.norm(dim=1).round(decimals=4), plain.norm(dim=1).round(decimals=4))
    assert (padded == 0).all(0).sum() == 3 + (plain == 0).all(0).sum()
    both = obfuscation.shuffle(obfuscation.scale(tiny, 2.0))
    assert torch.equal(encoders.embed(both, IMAGES), 2 * shuffled), "obfuscations stack"


@pytest.mark.parametrize("name", obfuscation.OBFUSCATIONS)
def test_an_obfuscation_can_be_undone(tiny, name):
    net = obfuscation.OBFUSCATIONS[name](tiny)
    answers = encoders.embed(net, IMAGES).double()
    back = (answers - net.bias) @ torch.linalg.pinv(net.weight.double()).T
    torch.testing.assert_close(back.float(), encoders.embed(tiny, IMAGES), atol=1e-2, rtol=1e-2)
    assert net.dim == answers.shape[1]


@pytest.mark.parametrize("make", [obfuscation.shuffle, obfuscation.affine, obfuscation.pad])
def test_obfuscations_are_drawn_from_their_seed(tiny, make):
    one, same, other = (encoders.embed(make(tiny, seed=s), IMAGES) for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_impossible_obfuscations(tiny):
    for factor in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"factor={factor}"):
            obfuscation.scale(tiny, factor)
    with pytest.raises(ValueError, match="extra=0"):
        obfuscation.pad(tiny, extra=0)
    with pytest.raises(ValueError, match="does not take the encoder's 96 features"):
        obfuscation.Obfuscated(tiny, torch.eye(3), torch.zeros(3))
