"""Proof of work: puzzles that are solved, prices in closed form, and who pays more."""

import hashlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contsteal.defenses import detectors
from contsteal.defenses.detectors import ProofOfWork, Puzzle
from contsteal.seeds import generator

ROWS = torch.randn(200, 5, generator=generator("answers"))


def posteriors(sharpness: float, user: int) -> torch.Tensor:
    logits = torch.randn(2000, 10, generator=generator("logits", user))
    return (sharpness * logits).softmax(1)


def test_a_puzzle_is_solved_and_belongs_to_one_user_and_batch():
    defense = ProofOfWork(hashes_per_second=4096, seed=3)
    puzzle = defense.puzzle("ann")
    assert puzzle.bits == 12
    number = detectors.solve(puzzle)
    assert detectors.solves(puzzle, number)
    assert not any(detectors.solves(puzzle, smaller) for smaller in range(number))
    defense(ROWS[:64], "ann")
    challenges = {puzzle.challenge, *(defense.puzzle(user).challenge for user in ("ann", "bob"))}
    assert len(challenges) == 3


def test_zero_bits_are_counted_literally():
    for number in range(300):
        text = hashlib.sha1(f"c:{number}".encode()).hexdigest()
        bits = "".join(f"{int(digit, 16):04b}" for digit in text)
        zeros = len(bits) - len(bits.lstrip("0"))
        assert detectors.solves(Puzzle("c", zeros), number)
        assert not detectors.solves(Puzzle("c", zeros + 1), number)


def test_the_price_is_the_papers():
    defense = ProofOfWork("entropy", intercept=1.0, slope=0.5)
    for cost, queries in ((0.0, 0), (30.0, 10), (2.0, 400), (6.0, 10)):
        expected = 1.0075 ** abs(cost - 1 - 0.5 * queries)
        assert defense.price(cost, queries) == pytest.approx(expected)
    assert defense.price(1e9, 0) == pytest.approx(2948)
    assert ProofOfWork("entropy", least=5.0).price(0, 0) == pytest.approx(5)


@given(cuts=st.lists(st.integers(1, 199), max_size=5, unique=True))
def test_a_bill_equals_a_literal_loop_however_queries_are_batched(cuts):
    defense, rows = ProofOfWork("entropy", intercept=2.0, slope=0.3, base=1.05), ROWS.softmax(1)
    cost = seconds = 0.0
    for count, row in enumerate(rows.tolist(), 1):
        cost -= sum(p * math.log(p) for p in row)
        seconds += min(max(1.05 ** abs(cost - 2 - 0.3 * count), 0.1), 2948) / 64
    for part in rows.tensor_split(sorted(cuts)):
        assert defense(part, "u").equal(part)
    assert defense.bill("u") == pytest.approx(seconds, rel=1e-5)


def test_the_flat_price_is_a_second_per_64():
    defense = ProofOfWork(slope=3.0)
    defense(ROWS, "u")
    assert defense.bill("u") == pytest.approx(200 / 64)
    assert defense.bill("nobody") == 0


def test_customers_calibrate_and_thieves_pay():
    costs = [detectors.entropy(posteriors(5, user)).cumsum(0) for user in range(8)]
    defense = ProofOfWork("entropy", *detectors.price_line(torch.stack(costs)))
    defense(posteriors(5, 9), "customer")
    defense(posteriors(1, 9), "thief")
    flat = 2000 / 64
    assert defense.bill("customer") < 2 * flat
    assert defense.bill("thief") > 100 * flat


def test_calibration_finds_a_line():
    line = 3 + 0.25 * torch.arange(1, 50).double()
    assert detectors.price_line(torch.stack([line + 1, line - 1])) == pytest.approx((3, 0.25))
    for costs in (torch.zeros(3, 1), torch.full((2, 5), math.nan), torch.zeros(0, 5)):
        with pytest.raises(ValueError, match=r"costs .*: finite \(customers, 2 or more quer"):
            detectors.price_line(costs)


def test_entropy_in_closed_form():
    rows = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4])
    torch.testing.assert_close(detectors.entropy(rows), torch.tensor([0.0, math.log(4)]))


@pytest.mark.parametrize("rows", [torch.ones(2, 3), torch.tensor([[1.5, -0.5]]), torch.ones(1)])
def test_entropy_of_embeddings_is_refused(rows):
    with pytest.raises(ValueError, match=r"cost='entropy' needs posteriors.*cost='flat'"):
        detectors.entropy(rows)
