"""Proof of work: puzzles that are solved, prices in closed form, and who pays more."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contsteal.defenses import proof_of_work
from contsteal.defenses.proof_of_work import ProofOfWork, Puzzle
from contsteal.seeds import generator

ANSWERS = torch.randn(200, 5, generator=generator("answers"))


def first_coordinate(answers: torch.Tensor) -> torch.Tensor:
    return answers[:, 0].abs()


def wrong_shape(answers: torch.Tensor) -> torch.Tensor:
    return answers[:2, 0]


# -------------------------------------------------------------------------------- puzzles


def test_a_puzzle_is_solved_and_the_solution_holds():
    puzzle = ProofOfWork(hashes_per_second=4096, seed=3).puzzle("ann")
    assert puzzle.bits == 12
    number = proof_of_work.solve(puzzle)
    assert proof_of_work.solves(puzzle, number)
    assert not any(proof_of_work.solves(puzzle, smaller) for smaller in range(number))
    other = ProofOfWork(hashes_per_second=4096, seed=3).puzzle("bob")
    assert other.challenge != puzzle.challenge


def test_a_solution_is_worth_one_batch():
    paid = ProofOfWork()
    before = paid.puzzle("ann")
    paid(ANSWERS[:64], "ann")
    assert paid.puzzle("ann").challenge != before.challenge


def test_zero_bits_are_counted_literally():
    for number in range(300):
        text = proof_of_work.hashlib.sha1(f"c:{number}".encode()).hexdigest()
        bits = "".join(f"{int(digit, 16):04b}" for digit in text)
        zeros = len(bits) - len(bits.lstrip("0"))
        assert proof_of_work.solves(Puzzle("c", zeros), number)
        assert not proof_of_work.solves(Puzzle("c", zeros + 1), number)


def test_a_bit_more_is_twice_the_work():
    tries = [proof_of_work.solve(Puzzle(f"challenge {i}", 5)) + 1 for i in range(400)]
    assert abs(sum(tries) / 400 - 32) < 4.5 * 32 / math.sqrt(400)
    assert proof_of_work.solve(Puzzle("free", 0)) == 0


def test_this_machine_can_be_timed():
    assert 1e3 < proof_of_work.hash_rate(2000) < 1e9


# --------------------------------------------------------------------------------- prices


def test_the_price_is_the_papers():
    paid = ProofOfWork("entropy", intercept=1.0, slope=0.5)
    for cost, queries in ((0.0, 0), (30.0, 10), (2.0, 400), (6.0, 10)):
        assert paid.price(cost, queries) == pytest.approx(1.0075 ** abs(cost - 1 - 0.5 * queries))
    assert paid.price(1e9, 0) == pytest.approx(2948)
    assert ProofOfWork("entropy", least=5.0).price(0, 0) == pytest.approx(5)
    assert ProofOfWork(hashes_per_second=1e6).puzzle("u").bits == 20


def test_a_bill_equals_a_literal_loop():
    paid = ProofOfWork(first_coordinate, intercept=2.0, slope=0.3, base=1.05)
    cost = seconds = 0.0
    for count, row in enumerate(ANSWERS.double(), 1):
        cost += abs(row[0].item())
        seconds += min(max(1.05 ** abs(cost - 2 - 0.3 * count), 0.1), 2948) / 64
    for part in ANSWERS.split([1, 70, 129]):
        assert paid(part, "u").equal(part)
    assert paid.bill("u") == pytest.approx(seconds, rel=1e-5)


@given(cuts=st.lists(st.integers(1, 199), max_size=5, unique=True))
def test_a_bill_does_not_depend_on_the_batches(cuts):
    whole, parts = ProofOfWork(first_coordinate, base=1.1), ProofOfWork(first_coordinate, base=1.1)
    whole(ANSWERS, "u")
    for part in ANSWERS.tensor_split(sorted(cuts)):
        parts(part, "u")
    assert parts.bill("u") == pytest.approx(whole.bill("u"))


def test_the_flat_price_is_a_second_per_64():
    paid = ProofOfWork(slope=3.0)
    paid(ANSWERS, "u")
    assert paid.bill("u") == pytest.approx(200 / 64)
    assert paid.bill("nobody") == 0
    assert paid.statement("u") == (
        "user 'u' owes 3.1 s of work for 200 answers; the next 64 cost 1.00 s, 20 zero bits"
    )


def test_customers_calibrate_and_thieves_pay():
    def posteriors(sharpness: float, who: int) -> torch.Tensor:
        logits = torch.randn(2000, 10, generator=generator("logits", who))
        return (sharpness * logits).softmax(1)

    customers = torch.stack(
        [proof_of_work.entropy(posteriors(5, who)).cumsum(0) for who in range(8)]
    )
    intercept, slope = proof_of_work.calibrate(customers)
    paid = ProofOfWork("entropy", intercept, slope)
    paid(posteriors(5, 9), "customer")
    paid(posteriors(1, 9), "thief")
    flat = 2000 / 64
    assert paid.bill("customer") < 2 * flat
    assert paid.bill("thief") > 100 * flat


def test_calibration_finds_a_line():
    line = 3 + 0.25 * torch.arange(1, 50).double()
    assert proof_of_work.calibrate(torch.stack([line + 1, line - 1])) == pytest.approx((3, 0.25))
    with pytest.raises(ValueError, match=r"\(3, 1\).*at least 2 queries"):
        proof_of_work.calibrate(torch.zeros(3, 1))


def test_entropy_in_closed_form():
    rows = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(proof_of_work.entropy(rows), torch.tensor([0.0, math.log(4)]))


@pytest.mark.parametrize("rows", [torch.ones(2, 3), torch.tensor([[1.5, -0.5]])])
def test_entropy_of_embeddings_is_refused(rows):
    with pytest.raises(ValueError, match="cost='flat'"):
        ProofOfWork("entropy")(rows, "u")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cost": "pate"}, "'pate': choose 'flat', 'entropy'"),
        ({"cost": lambda x: x}, "no name of its own"),
        ({"base": 0.99}, r"base=0\.99"),
        ({"base": math.nan}, "base=nan"),
        ({"least": 0.0}, r"least=0\.0"),
        ({"least": 10.0, "most": 1.0}, r"most=1\.0"),
        ({"most": math.inf}, "most=inf"),
        ({"slope": math.nan}, "slope=nan"),
        ({"hashes_per_second": 0}, "hashes_per_second=0"),
    ],
)
def test_bad_parameters_are_named(options, told):
    with pytest.raises(ValueError, match=told):
        ProofOfWork(**options)


def test_a_cost_of_another_shape_is_refused_and_not_billed():
    paid = ProofOfWork(wrong_shape)
    with pytest.raises(ValueError, match=r"wrong_shape returned \(2,\): \(200,\)"):
        paid(ANSWERS, "u")
    assert paid.bill("u") == 0
