"""Titles say what tables show, and no more than their seeds allow."""

import pandas as pd
import pytest

from contsteal.lab import artifacts
from contsteal.paper import contrasts, report, style, titles

GOOD, NEAR = (0.2, 0.21, 0.22), (-0.02, 0.0, 0.03)


def runs_of(shift: tuple[float, ...], **about: object) -> list[dict[str, object]]:
    return [about | {"seed": seed, "accuracy": 0.5 + d} for seed, d in enumerate(shift)]


def duel(shift: tuple[float, ...], **about: object) -> list[dict[str, object]]:
    same = (0.0,) * len(shift)
    return runs_of(same, attack="embedding", **about) + runs_of(shift, attack="cont-steal", **about)


def test_a_title_claims_what_the_interval_excludes_and_nothing_else() -> None:
    clean, augmented = duel(GOOD, views="clean"), duel(NEAR, views="augmented")
    told = titles.two_by_two(pd.DataFrame(clean + augmented))
    assert told.startswith("cont-steal minus embedding: clean +21.0 [18.5, 23.5], augmented +0.3 [")
    assert told.endswith("surely ahead in 1 of 2, behind in 0")
    assert titles.two_by_two(pd.DataFrame(augmented)).endswith("no sure difference")
    one = pd.DataFrame(duel((0.4,), views="clean"))
    assert titles.two_by_two(one).endswith("clean +40.0, one seed proves nothing")


def knobs(*shifts: tuple[float, ...]) -> pd.DataFrame:
    rows = runs_of((0.0, 0.0, 0.0), knob="as given", value=None)
    return pd.DataFrame(rows + [
        row for i, shift in enumerate(shifts) for row in runs_of(shift, knob="lr", value=str(i))
    ])  # fmt: skip


def test_ablations_are_counted_and_a_sure_one_is_named() -> None:
    harm = tuple(-d for d in GOOD)
    told = titles.ablations(knobs(GOOD, NEAR, harm, harm))
    assert told.endswith(
        "4 changes one at a time: 1 surely helps (lr 0), 2 surely harm, 1 cannot be told"
    )
    alone = titles.ablations(knobs(harm))
    assert alone == (
        "Cont-Steal with lr 0: -21.0 [-23.5, -18.5] points, surely ahead in 0 of 1, behind in 1"
    )


def losses(*shifts: tuple[float, ...]) -> pd.DataFrame:
    about = {"task": "shapes", "victim": "v", "images": 8, "unique_inputs": 8}
    rows = [r for i, s in enumerate(shifts) for r in runs_of(s, attack=f"loss {i}", **about)]
    return pd.DataFrame(rows)


def test_best_and_worst_of_many_losses_need_more_than_those_of_two() -> None:
    low, high = (0.0, 0.0, 0.0), (0.08, 0.1, 0.12)
    middle = (0.05, 0.05, 0.05)
    assert "loss 1 beats loss 0 (+10.0 points, 3 seeds)" in titles.losses(losses(low, high))
    many = titles.losses(losses(low, high, *[middle] * 6))
    assert (
        many
        == "Best and worst of 8 losses: loss 1 cannot be told from loss 0 (+10.0 points, 3 seeds)"
    )


def lands(gains: list[float]) -> pd.DataFrame:
    places = range(len(gains))
    return pd.DataFrame({
        "gain": gains, "effective_rank": places, "anisotropy": [i % 2 for i in places],
        "norm_spread": [(3 * i) % 7 for i in places],
    })  # fmt: skip


def test_a_correlation_needs_points_and_is_corrected_for_three_measures() -> None:
    few = titles.geometry(lands([0.1, 0.2]), contrasts.METRICS)
    assert few.startswith("2 of the 5 victims")
    rising = titles.geometry(lands([0.1 * i for i in range(8)]), contrasts.METRICS)
    assert rising == "Effective rank (+1.00) surely goes with Cont-Steal's gain over MSE, n 8"
    mixed = titles.geometry(lands([0.3, 0.1, 0.2, 0.35, 0.0, 0.15]), contrasts.METRICS)
    assert mixed.startswith("None of 3 measures surely goes")


def test_neighbours_on_a_map_are_counted() -> None:
    rows = [(0, 0, "a"), (1, 0, "a"), (10, 0, "a"), (11, 0, "b")]
    table = pd.DataFrame(rows, columns=["x", "y", "label"]).assign(encoder="victim")
    assert titles.neighbours(table).endswith("of the same class: victim 50 %")


def test_defences_are_counted_by_whom_they_surely_hurt() -> None:
    rows = []
    for name, thief, user in (("none", (0.0,) * 3, 0.0), ("TopK(2)", tuple(-d for d in GOOD), -0.1),
                              ("Rounding(0)", NEAR, 0.0)):  # fmt: skip
        rows += [r | {"legitimate": 0.8 + user} for r in runs_of(thief, attack="x", defence=name)]
    told = titles.defended(pd.DataFrame(rows))
    assert told == "Of 2 defences, surely take: 1 from x, 1 from the paying user"


def test_coverage_is_compared_after_equal_queries_alone() -> None:
    rows = [("a", 8, 0.1), ("a", 16, 0.2), ("b", 8, 0.9), ("c", 16, 0.3)]
    table = pd.DataFrame(rows, columns=["user", "queries", "coverage"])
    assert titles.coverage(table) == "Covered after 16 queries: a 20 %, c 30 %"


def test_a_collapse_is_told() -> None:
    table = pd.DataFrame(
        {"method": ["x", "y"], "epoch": [2, 2], "knn": [0.5, 0.1], "spread": [1, 0]}
    )
    assert titles.training(table).endswith("x 50 % in 2, y 10 % in 2; y collapsed")


@pytest.mark.parametrize("stem", report.FIGURES)
def test_every_stored_figure_has_a_title_that_fits(stem: str) -> None:
    table, _ = style.read(artifacts.ROOT / "figures" / "demo", stem)
    title = report.draw(stem, style.as_read(table)).get_suptitle()
    assert title
    assert len(title.splitlines()) <= 2
