"""What a thief does to defended answers: what is undone exactly, and what is refused."""

import pytest
import torch

from contsteal import steal
from contsteal.defenses.perturbation import GaussianNoise
from contsteal.seeds import generator

ANSWERS = torch.randn(60, 8, generator=generator("answers"))


def test_the_mean_takes_an_offset_with_it():
    shifted = GaussianNoise(0.0, mean=10.0)(ANSWERS, "u")
    torch.testing.assert_close(
        steal.subtract_mean(shifted), steal.subtract_mean(ANSWERS), rtol=0, atol=1e-5
    )
    assert steal.subtract_mean(shifted).mean(0).abs().max() < 1e-5


def test_a_remap_is_the_least_squares_solution():
    target = torch.randn(60, 3, generator=generator("target"))
    weight, bias = steal.learn_remap(ANSWERS, target)
    rows = torch.cat([ANSWERS, torch.ones(60, 1)], 1).double()
    literal = torch.linalg.solve(rows.T @ rows, rows.T @ target.double())
    torch.testing.assert_close(torch.cat([weight, bias[None]]), literal.float())


def test_a_map_is_found_from_enough_shared_queries_only():
    weight, bias = torch.randn(8, 8, generator=generator("w")), torch.ones(8)
    target = steal.remap(ANSWERS, weight, bias)
    enough = steal.learn_remap(ANSWERS[:9], target[:9])
    torch.testing.assert_close(enough[0], weight, rtol=1e-3, atol=1e-3)
    few = steal.learn_remap(ANSWERS[:5], target[:5])
    torch.testing.assert_close(steal.remap(ANSWERS[:5], *few), target[:5], rtol=1e-3, atol=1e-3)
    assert steal.cosine_distance(steal.remap(ANSWERS, *few), target) > 0.05


def test_constant_coordinates_do_no_harm():
    padded = torch.cat([ANSWERS, torch.full((60, 4), 2.5)], 1)
    mapped = steal.remap(padded, *steal.learn_remap(padded, ANSWERS))
    torch.testing.assert_close(mapped, ANSWERS, rtol=1e-4, atol=1e-4)


def test_cosine_distance():
    assert steal.cosine_distance(ANSWERS, 3 * ANSWERS) == pytest.approx(0, abs=1e-12)
    assert steal.cosine_distance(ANSWERS, -ANSWERS) == pytest.approx(2)
    assert steal.cosine_distance(torch.tensor([[1.0, 0]]), torch.tensor([[0, 1.0]])) == 1


@pytest.mark.parametrize("rows", [0, 59])
def test_answers_to_other_images_are_refused(rows):
    with pytest.raises(ValueError, match="the same images"):
        steal.learn_remap(ANSWERS[:rows], ANSWERS[: rows and 60])
