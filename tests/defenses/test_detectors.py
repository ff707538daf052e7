"""Detectors against literal loops, on streams of customers and thieves, and at the API's door."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import shapiro
from torch import Tensor, nn

from contsteal.defenses.detectors import Prada, Refused, SimilarQueries
from contsteal.seeds import generator
from contsteal.victim import BlackBox

CENTRES = torch.randn(120, 10, generator=generator("centres"))
VIEWS = CENTRES.repeat_interleave(2, 0) + 0.1 * torch.randn(240, 10, generator=generator("views"))


def literal_similar(points: Tensor, measure: str, threshold: float, memory: int) -> list[bool]:
    hits = []
    for i in range(len(points)):
        before = points[max(0, i - memory) : i]
        if measure == "l2":
            near = (before - points[i]).norm(dim=1) < threshold
        else:
            near = before @ points[i] / before.norm(dim=1) / points[i].norm() > threshold
        hits.append(bool(near.any()))
    return hits


def replaced(detector: SimilarQueries, points: Tensor, user: str = "u") -> list[bool]:
    return (detector(points, user)[:, 0] > 500).tolist()


# -------------------------------------------------------------------------- similar queries


@pytest.mark.parametrize(("measure", "threshold"), [("l2", 2.5), ("cosine", 0.6)])
@pytest.mark.parametrize("memory", [1, 7, 1000])
@given(cuts=st.lists(st.integers(1, 239), max_size=5, unique=True))
def test_similar_equals_a_literal_loop_however_batched(measure, threshold, memory, cuts):
    expected = literal_similar(VIEWS, measure, threshold, memory)
    assert 0 < sum(expected) < 240
    detector = SimilarQueries(threshold, measure, memory=memory)
    parts = VIEWS.tensor_split(sorted(cuts))
    assert [hit for part in parts for hit in replaced(detector, part)] == expected
    assert detector.statistic("u") == pytest.approx(sum(expected) / 240)
    assert replaced(SimilarQueries(0.9), VIEWS[[0, 0]]) == [False, True]


def test_a_large_request_is_compared_in_blocks():
    rows = torch.randn(2100, 3, generator=generator("large"))
    detector = SimilarQueries(0.05, "l2", memory=50)
    assert replaced(detector, rows) == literal_similar(rows, "l2", 0.05, 50)


def test_similar_answers_become_noise_and_others_stay():
    out = SimilarQueries(0.9, mean=1000.0, std=20.0)(VIEWS, "u")
    hits = out[:, 0] > 500
    assert out[~hits].equal(VIEWS[~hits])
    noise, n = out[hits].double(), out[hits].numel()
    assert abs(noise.mean().item() - 1000) < 4.5 * 20 / math.sqrt(n)
    assert abs(noise.std().item() - 20) < 4.5 * 20 / math.sqrt(2 * n)


def test_two_views_are_flagged_and_one_view_is_not():
    detector = SimilarQueries(0.9, action="record", share=0.4)
    assert detector(VIEWS, "thief").equal(VIEWS)
    detector(CENTRES, "customer")
    detector(VIEWS[:50], "beginner")
    assert detector.flagged("thief")
    assert not detector.flagged("customer")
    assert not detector.flagged("beginner"), "no verdict on fewer than 100 queries"
    assert detector.statistic("nobody") == 0
    for half in (0, 1):
        detector(VIEWS[half::2], f"sybil {half}")
        assert not detector.flagged(f"sybil {half}"), "views split over two accounts are missed"


@pytest.mark.parametrize(
    "detector", [Prada(action="record"), SimilarQueries(0.5, "l2", action="record")]
)
def test_answers_of_half_precision_are_compared_too(detector):
    assert detector(VIEWS.half(), "u").dtype == torch.float16
    assert detector(VIEWS, "u").equal(VIEWS)


def test_a_projection_is_what_is_compared():
    head = nn.Linear(10, 2)
    with torch.no_grad():
        expected = literal_similar(head(VIEWS), "l2", 0.01, 1000)
    detector = SimilarQueries(0.01, "l2", head)
    assert replaced(detector, VIEWS) == expected
    assert detector._users["u"].recent.shape == (240, 2)
    assert not detector._users["u"].recent.requires_grad
    nn.init.zeros_(head.weight)
    assert replaced(detector, VIEWS, "later") == expected, "the detector's copy cannot be changed"


# ------------------------------------------------------------------------------------ PRADA


def literal_prada(answers: np.ndarray, threshold: float) -> list[tuple]:
    """The published rule, one query at a time."""
    members, gaps, limit, distances = [answers[0]], [0.0], 0.0, []
    w, flagged, verdicts = 1.0, False, []
    for count, row in enumerate(answers):
        if count:
            least = min(np.sqrt(((row - member) ** 2).sum()) for member in members)
            distances.append(least)
            if least > limit:
                members.append(row)
                gaps.append(least)
                limit = max(limit, np.mean(gaps) - np.std(gaps))
        if count % 10 == 0:
            pool = np.array(distances)
            if len(pool):
                pool = pool[abs(pool - pool.mean()) < 3 * pool.std()]
            if len(pool) > 100:
                w = shapiro(pool).statistic
                flagged = w < threshold
        verdicts.append((len(members), w, flagged))
    return verdicts


def natural(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 30, generator=generator("natural", seed))


def crafted(n: int) -> Tensor:
    """Each image is followed by small steps away from it, as synthetic attacks send them."""
    steps = 0.01 * torch.randn(n, 30, generator=generator("steps"))
    return natural(n // 4).repeat_interleave(4, 0) + steps


@pytest.mark.parametrize("stream", [natural, crafted])
def test_prada_equals_the_literal_rule(stream):
    rows = stream(400)
    expected = literal_prada(rows.double().numpy(), 0.9)
    prada, place = Prada(action="record"), 0
    for part in rows.split([1, 10, 33, 256, 100]):
        assert prada(part, "u").equal(part)
        place += len(part)
        size, w, flagged = expected[place - 1]
        assert len(prada._users["u"].members) == size
        assert prada.statistic("u") == pytest.approx(w, abs=1e-5)
        assert prada.flagged("u") == flagged
    assert flagged == (stream is crafted)


def test_prada_shuffles_the_three_largest_of_a_thief_only():
    prada = Prada()
    rows = crafted(400)
    assert prada(natural(400, 1), "customer").equal(natural(400, 1))
    out = prada(rows, "thief")
    changed = (out != rows).any(1)
    assert not changed[:100].any(), "no test before 100 distances"
    assert changed[-100:].float().mean() == pytest.approx(5 / 6, abs=0.15)
    assert out.sort(1).values.equal(rows.sort(1).values)
    beyond = rows.topk(3).indices
    assert out.scatter(1, beyond, 0).equal(rows.scatter(1, beyond, 0))


def test_a_set_that_is_full_stops_growing():
    prada = Prada(action="record", memory=20)
    prada(natural(300), "u")
    assert len(prada._users["u"].members) == len(prada._users["u"].member_distances) == 20
    assert prada.statistic("u") < 1, "and is still compared with"


def test_one_image_again_and_again_is_no_verdict():
    prada = Prada()
    prada(natural(1).repeat(300, 1), "u")
    assert not prada.flagged("u")
    assert prada.statistic("u") == 1


# -------------------------------------------------------------------------------- the door


class Direct(nn.Module):
    """An encoder whose answers are the first pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return images.float().flatten(1)[:, :30] - 128


def pictures(n: int, copies: int = 1) -> Tensor:
    some = torch.randint(256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator("pictures"))
    copied = some.repeat_interleave(copies, 0)
    copied[:, 0, 0, 0] += torch.arange(copies, dtype=torch.uint8).repeat(n)
    return copied


@pytest.mark.parametrize(
    "detector", [SimilarQueries(0.9, action="refuse"), Prada(action="refuse")], ids=repr
)
def test_who_is_refused_gets_no_answer_and_no_bill(detector):
    api, thefts = BlackBox(Direct(), [detector]), pictures(100, copies=4)
    with pytest.raises(Refused, match=r"user 'thief' is refused.*nothing was answered.*forget"):
        api.embed(thefts, user="thief")
    assert api.ledger.account("thief").calls == 0
    queries = detector._users["thief"].queries
    with pytest.raises(Refused):
        api.embed(pictures(1), user="thief")
    assert detector._users["thief"].queries == queries
    assert api.embed(pictures(200), user="customer").shape == (200, 30)
    detector.forget("thief")
    assert api.embed(pictures(1), user="thief").shape == (1, 30)


@pytest.mark.parametrize("detector", [SimilarQueries(0.9), Prada()], ids=repr)
def test_one_detector_is_for_one_kind_of_answer(detector):
    detector(VIEWS, "u")
    with pytest.raises(ValueError, match="10 coordinates, these 5"):
        detector(VIEWS[:, :5], "u")
