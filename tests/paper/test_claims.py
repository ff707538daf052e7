"""Claims: no verdict without evidence, none from unequal budgets, and none against what is stored."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from itertools import chain, cycle, product
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from contsteal import attacks
from contsteal.lab import artifacts, profiles, sweeps
from contsteal.paper import claims, figures
from contsteal.paper.claims import (
    ABSENT,
    CLAIMS,
    FAILS,
    HOLDS,
    OPEN,
    TESTS,
    Claim,
    Criterion,
    Finding,
    Judgement,
    Pick,
    versus,
)

AHEAD, NOT_WORSE, EQUIVALENT = TESTS["ahead"], TESTS["not worse"], TESTS["equal"]
NEARLY_ALL, RARELY, MOSTLY = TESTS["nearly all"], TESTS["rarely"], TESTS["mostly"]
DETECTS, SPARES = TESTS["detects"], TESTS["spares"]
BUDGETS = ("images", "unique_inputs", "calls")

HIGH, LOW, WIDE = [0.80, 0.81, 0.82], [0.50, 0.52, 0.51], [0.40, 0.95, 0.60]
PAIR = versus("embedding", "label")


def claim(pick: Pick = PAIR, criterion: Criterion = AHEAD, **more: Any) -> Claim:
    usual = {"metric": "accuracy", "budgets": BUDGETS, "premise": "", "says": {}}
    return Claim("x", "03_attacks", source="somebody", text="A claim.", predicted="-", pick=pick,
                 criterion=criterion, **usual | more)  # fmt: skip


def rows(attack: str, values: Sequence[float], n: float = 64, **more: Any) -> pd.DataFrame:
    return pd.DataFrame([
        {"attack": attack, "seed": seed, "accuracy": value, "images": n, "unique_inputs": n,
         "calls": n, "task": "glyphs"} | more for seed, value in enumerate(values)
    ])  # fmt: skip


def assess(one: Claim, *parts: pd.DataFrame, train_images: int = 8192) -> Finding:
    return claims.assess(one, pd.concat(parts, ignore_index=True), train_images)


def decide(samples: Any, low: float = 0.0, high: float = inf, **more: Any) -> Finding:
    samples = samples if isinstance(samples, dict) else {"": samples}
    series = {name: pd.Series(values) for name, values in samples.items()}
    return claims.decide(series, Criterion("difference", low, high), **more)


# -------------------------------------------------------------------- intervals and verdicts


def test_a_verdict_shows_the_closed_t_interval() -> None:
    finding = decide([1.0, 2.0, 3.0], low=-1)
    half = 4.302652729749464 / 3**0.5  # t(0.975, 2) times the standard error
    assert (finding.verdict, finding.n) == (HOLDS, 3)
    assert (finding.mean, finding.low, finding.high) == pytest.approx((2, 2 - half, 2 + half))


@pytest.mark.parametrize(
    ("values", "low", "high", "verdict"),
    [
        ([10, 11, 12], 0, inf, HOLDS),
        ([-10, -11, -12], 0, inf, FAILS),
        ([1, 2, 3], 0, inf, OPEN),
        ([10, 11, 12], -inf, 0, FAILS),
        ([-0.01, 0.0, 0.01], -0.05, 0.05, HOLDS),
        ([0.2, 0.21, 0.22], -0.05, 0.05, FAILS),
        ([-0.2, -0.21, -0.22], -0.05, 0.05, FAILS),
        ([0.0, 0.05, 0.1], -0.05, 0.05, OPEN),
    ],
)
def test_verdicts_of_closed_cases(values: list, low: float, high: float, verdict: str) -> None:
    assert decide(values, low, high).verdict == verdict


@pytest.mark.parametrize(
    ("values", "verdict", "why"),
    [
        ([-0.002, 0.001, 0.004], FAILS, "less than one point ahead"),
        ([0.003, 0.004, 0.005], FAILS, "less than one point ahead"),  # sure, and tiny
        ([0.006, 0.009, 0.011], OPEN, ""),  # ahead, and perhaps by less than a point
        ([-0.02, 0.001, 0.02], OPEN, ""),
        ([0.0, 0.01, 0.02], OPEN, ""),
        ([0.019, 0.02, 0.021], HOLDS, ""),
        ([-0.02, -0.019, -0.021], FAILS, ""),
    ],
)
def test_less_than_one_point_ahead_does_not_hold(
    values: list[float], verdict: str, why: str
) -> None:
    finding = claims.decide({"": pd.Series(values)}, AHEAD)
    assert (finding.verdict, finding.why) == (verdict, why)
    if why:
        expected = stats.ttest_1samp(values, 0.01).pvalue
        assert finding.p == pytest.approx(expected)
    plain = decide(values).verdict  # without a margin
    assert plain == (HOLDS if min(values) > 0.002 else FAILS if max(values) < -0.01 else OPEN)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([9.0], "1 of 3 measurements"),
        ([9.0, 9.1], "2 of 3 seeds"),
        ([-9.0, -9.1], "2 of 3 seeds"),
        ([0.5, 0.5, 0.5], "1 of 3 measurements"),  # what is equal in all seeds was measured once
    ],
)
def test_too_few_seeds_never_give_a_verdict(values: list[float], why: str) -> None:
    finding = decide({"": values, "more": [9.0, 9.1, 9.2]})
    assert (finding.verdict, finding.few, finding.why) == (OPEN, True, why)


@pytest.mark.parametrize(
    ("criterion", "hits", "n", "verdict"),
    [
        (DETECTS, 4, 5, HOLDS),
        (DETECTS, 2, 5, OPEN),  # above its level of 5 %, and less than every second
        (RARELY, 0, 40, HOLDS),
        (RARELY, 0, 20, OPEN),
        (RARELY, 2, 40, OPEN),
        (RARELY, 20, 40, FAILS),
        (MOSTLY, 10, 10, HOLDS),
        (MOSTLY, 3, 3, OPEN),
        (MOSTLY, 0, 10, FAILS),
        (DETECTS, 0, 5, OPEN),  # up to 52 %
        (DETECTS, 0, 6, FAILS),  # up to 46 %
        (SPARES, 0, 16, HOLDS),
        (SPARES, 1, 16, HOLDS),
        (SPARES, 0, 8, OPEN),
        (SPARES, 12, 16, FAILS),
    ],
)
def test_rates_are_judged_by_their_exact_interval(
    criterion: Criterion, hits: int, n: int, verdict: str
) -> None:
    values = [1.0] * hits + [0.0] * (n - hits)
    finding = claims.decide({"": pd.Series(values)}, criterion)
    interval = stats.binomtest(hits, n).proportion_ci(method="exact")
    assert (finding.verdict, finding.n, finding.mean) == (verdict, n, hits / n)
    assert (finding.low, finding.high) == pytest.approx((interval.low, interval.high))
    if verdict in (HOLDS, FAILS):
        assert finding.p <= 0.05


@given(st.integers(1, 30), st.integers(0, 30), st.floats(0.01, 0.99))
def test_an_exact_p_value_fits_its_interval(n: int, hits: int, bound: float) -> None:
    values = pd.Series([1.0] * min(hits, n) + [0.0] * (n - min(hits, n)))
    _, low, high = claims.exact_interval(values)
    p = claims.exact_p_value(values, bound)
    assert 0 < p <= 1
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == (not low <= bound <= high)


def test_all_comparisons_must_hold_and_a_stray_among_many_is_no_refutation() -> None:
    good, stray = [10.0, 11.0, 12.0], [-6.7, -5.0, -3.3]  # high end at 95 %: -0.8; at 97.5 %: 1.1
    assert decide({"a": good, "b": good}).verdict == HOLDS
    assert decide(stray).verdict == FAILS
    both = decide({"a": good, "b": stray})
    assert (both.verdict, both.name) == (OPEN, "b"), "the comparison with the least room"
    assert decide({"a": good, "b": [-20.0, -20.1, -20.2]}).verdict == FAILS


# -------------------------------------------------------------------- kinds of tests

UP = Criterion("rate", low=0.7)


@pytest.mark.parametrize(
    ("kind", "verdict", "n"), [("victim", HOLDS, 3), ("obfuscated", HOLDS, 3), ("stolen", OPEN, 1)]
)
def test_the_one_victim_stands_beside_every_seed(kind: str, verdict: str, n: int) -> None:
    rates = [("independent", seed, rate) for seed, rate in enumerate((0.5, 0.51, 0.49))]
    table = pd.DataFrame([(kind, 0, 0.8), *rates], columns=["kind", "seed", "wsr"])
    one = claim(lambda t: claims.pair("kind", kind, "independent")(t), metric="wsr")
    finding = claims.assess(one, table, 0)
    assert (finding.verdict, finding.n) == (verdict, n)
    floor = assess(claim(versus("victim", "random")), rows("random", LOW), rows("victim", [0.9]))
    assert (floor.verdict, floor.mean) == (HOLDS, pytest.approx(0.39))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((HIGH, LOW, [0.30, 0.33, 0.31]), HOLDS),
        ((LOW, HIGH, [0.30, 0.33, 0.31]), FAILS),
        ((HIGH, LOW, WIDE), OPEN),
        ((HIGH, LOW, []), ABSENT),
    ],
)
def test_an_order_holds_where_each_step_does(values: tuple, verdict: str) -> None:
    order = next(c for c in CLAIMS if c.id == "loss-order")
    names = ("soft-nn", "wasserstein", "barlow-published")
    finding = assess(order, *map(rows, names, values))
    assert finding.verdict == verdict
    assert (verdict == ABSENT) == ("wasserstein over barlow-published: no such rows" in finding.why)


@pytest.mark.parametrize(
    ("values", "n", "train_images", "verdict"),
    [
        ([0.78, 0.785, 0.79], 512, 8192, HOLDS),
        ([0.60, 0.61, 0.62], 512, 8192, OPEN),  # far below a fifth: more queries might do
        ([0.60, 0.61, 0.62], 1600, 8192, FAILS),
        ([0.78, 0.785, 0.79], 1700, 8192, ABSENT),  # more than a fifth
        ([0.78, 0.785, 0.79], 512, 0, ABSENT),
        ([0.70, 0.75, 0.80], 1600, 8192, OPEN),
    ],
)
def test_a_share_within_a_part_of_the_training_set(
    values: list[float], n: int, train_images: int, verdict: str
) -> None:
    share = claim(versus("embedding", "victim"), NEARLY_ALL)
    small = [rows("embedding", [0.5, 0.51, 0.52])] if n <= 1638 else []
    parts = *small, rows("embedding", values, n), rows("victim", [0.8], nan)
    finding = assess(share, *parts, train_images=train_images)
    assert finding.verdict == verdict
    if verdict in (HOLDS, FAILS):
        assert finding.mean == pytest.approx(sum(values) / 3 / 0.8)  # of the largest within it


def test_without_its_premise_a_claim_is_not_tested() -> None:
    harmless = claim(criterion=NOT_WORSE, premise="MSE ends 5 points above random features")
    same = rows("embedding", HIGH), rows("label", [0.80, 0.811, 0.82])
    assert assess(harmless, *same, rows("random", LOW, nan)).verdict == HOLDS
    at_floor = assess(harmless, *same, rows("random", [0.79, 0.81, 0.80], nan))
    assert at_floor.verdict == OPEN
    assert "nothing to test: it is not shown that MSE ends 5 points above random" in at_floor.why
    assert assess(harmless, *same).verdict == OPEN, "random features were not measured"


def test_unequal_budgets_are_not_compared_unless_the_claim_says_so() -> None:
    parts = rows("embedding", HIGH, calls=128, unique_inputs=128), rows("label", LOW)
    finding = assess(claim(), *parts)
    assert (finding.verdict, finding.why) == (ABSENT, "unequal unique_inputs: 128 against 64")
    assert assess(claim(budgets=["images"]), *parts).verdict == HOLDS


def test_seeds_are_paired() -> None:
    label = [0.1, 0.5, 0.9]
    ahead = rows("embedding", [v + 0.02 + 0.001 * s for s, v in enumerate(label)])
    finding = assess(claim(), ahead, rows("label", label))
    assert (finding.verdict, finding.n, finding.mean) == (HOLDS, 3, pytest.approx(0.021))
    two = assess(claim(), ahead, rows("label", label[:2]))
    assert (two.verdict, two.n) == (OPEN, 2)
    assert assess(claim(), ahead[:1], rows("label", label)[1:]).verdict == ABSENT


def test_several_rows_of_a_seed_are_refused_and_can_be_averaged() -> None:
    parts = [rows(n, v, views=w) for n, v in (("embedding", HIGH), ("label", LOW)) for w in "ab"]
    with pytest.raises(ValueError, match=r"claim 'x', 03_attacks.csv: several rows for seed = 0"):
        assess(claim(), *parts)
    mean = claim(criterion=replace(AHEAD, over=("views",)))
    assert assess(mean, *parts).verdict == HOLDS
    assert assess(mean, parts[0][1:], *parts[1:]).n == 2, "a seed that lacks a point does not count"


# -------------------------------------------------------------------- two lengths of training

FLAT = rows("random", LOW, nan)  # has no steps


def lengths(*gaps: float) -> pd.DataFrame:
    """MSE beside label stealing with these differences, after 100, 200, ... steps of training."""
    parts = []
    for k, gap in enumerate(gaps):
        for attack, level in (("embedding", 0.7 + gap), ("label", 0.7)):
            noise = (0.001, -0.001, 0.0) if attack == "label" else (0.0, 0.0, 0.001)
            parts.append(rows(attack, [level + e for e in noise], steps=100.0 * (k + 1)))
    return pd.concat(parts)


@pytest.mark.parametrize(
    ("gaps", "verdict", "why"),
    [
        ((0.1, 0.2), HOLDS, ""),
        ((-0.1, -0.2), FAILS, ""),
        ((-0.1, 0.2), OPEN, "after 100 steps: does not hold"),
        ((0.1, -0.2), OPEN, "after 100 steps: holds"),
        ((0.0, 0.2), OPEN, "after 100 steps: does not hold"),
        ((0.1, 0.0), OPEN, "less than one point ahead; after 100 steps: holds"),
        ((0.0, 0.0), FAILS, "less than one point ahead"),
        ((-0.1, 0.1, 0.2), HOLDS, ""),  # the longest two decide
        ((0.2, -0.1, 0.2), OPEN, "after 200 steps: does not hold"),
    ],
)
def test_the_longest_training_and_the_next_shorter_one_must_agree(
    gaps: tuple[float, ...], verdict: str, why: str
) -> None:
    finding = assess(claim(), lengths(*gaps), FLAT)
    assert (finding.verdict, finding.why) == (verdict, why)
    assert finding.mean == pytest.approx(gaps[-1], abs=0.001), "the longest is shown"


def test_one_length_of_training_decides_nothing_about_surrogates() -> None:
    once = lengths(0.1)
    finding = assess(claim(), once, FLAT)
    assert (finding.verdict, finding.why) == (
        OPEN, "holds after one length of training, which is not enough"
    )  # fmt: skip
    paid = once.assign(legitimate=once["accuracy"])
    assert assess(claim(metric="legitimate"), paid).verdict == HOLDS, "customers train no surrogate"
    assert assess(claim(), once.assign(steps=nan)).verdict == HOLDS, "nothing was trained"


def test_rows_without_training_stand_beside_every_length() -> None:
    floor = claim(versus("embedding", "random"))
    finding = assess(floor, lengths(0.1, 0.2), FLAT)
    assert (finding.verdict, finding.why) == (HOLDS, "")
    assert finding.mean == pytest.approx(0.9 - 0.51, abs=0.001)
    below = assess(floor, lengths(-0.4, 0.2), FLAT)
    assert (below.verdict, below.why) == (OPEN, "after 100 steps: does not hold")
    missing = rows("embedding", HIGH, steps=200.0), rows("label", LOW, steps=100.0)
    assert assess(claim(), *missing).verdict == ABSENT, "two lengths are not compared"


def test_a_length_at_which_only_some_comparisons_were_made_does_not_count() -> None:
    """On the second task 300 steps would decide alone, for both."""
    tasks = [("t", (0.1, 0.1)), ("second", (-0.1, 0.1, 0.1))]
    table = pd.concat([lengths(*gaps).assign(task=task) for task, gaps in tasks])
    of_each = claim(lambda t: claims.every(t, ["task"], versus("embedding", "label")))
    finding = assess(of_each, table)
    assert (finding.verdict, finding.why.split("; ")[-1]) == (
        OPEN,
        "after 100 steps: does not hold",
    )
    assert assess(of_each, table[table["steps"] > 100]).verdict == OPEN, "one length is left"


def test_a_classifiers_thief_may_use_its_own_head() -> None:
    one = next(c for c in CLAIMS if c.id == "embedding-label-head")
    for head, verdict in ((0.3, HOLDS), (0.99, FAILS)):
        heads = [head, head + 0.001, head - 0.001]
        label = rows("label", [0.9, 0.91, 0.92]).assign(own_head=heads)
        finding = assess(one, rows("embedding", HIGH).assign(own_head=nan), label)
        assert finding.verdict == verdict
        assert finding.mean == pytest.approx(0.81 - head)


# -------------------------------------------------------------------- many claims at once


@given(st.lists(st.integers(-1000, 1000), min_size=3, max_size=8, unique=True), st.floats(-1, 1))
def test_p_values_are_those_of_scipy_and_agree_with_the_interval(
    thousandths: list[int], bound: float
) -> None:
    values = pd.Series(thousandths) / 1000
    p = claims.p_value(values, bound)
    t = (values.mean() - bound) / (values.std() / len(values) ** 0.5)
    assert p == pytest.approx(2 * stats.t.sf(abs(t), len(values) - 1), rel=1e-6)
    _, low, high = claims.mean_interval(values)
    assert (p < 0.05) == (not low <= bound <= high)


def test_p_values_of_verdicts() -> None:
    values = pd.Series([1.0, 2.0, 3.0])
    assert claims.p_value(values, inf) == claims.p_value(values, -inf) == 0
    near, far = [10.0, 11.0, 12.0], [20.0, 20.1, 20.2]
    p = [claims.p_value(pd.Series(v), 0) for v in (near, far)]
    assert decide({"a": near, "b": far}).p == max(p), "all must hold: the weakest counts"
    low = decide({"a": near, "b": [-v for v in far]})
    assert (low.verdict, low.p) == (FAILS, pytest.approx(2 * p[1])), "one of two is enough to fail"
    assert decide([1.0, 2.0, 3.0]).p == 1, "no verdict"
    both = decide([-0.01, 0.0, 0.011], -0.05, 0.06)
    assert both.p == pytest.approx(claims.p_value(pd.Series([-0.01, 0.0, 0.011]), -0.05))


def holm(p: Sequence[float], risk: float = 0.05) -> list[bool]:
    """Holm's procedure with adjusted p-values, as textbooks write it."""
    order, adjusted, running = sorted(range(len(p)), key=lambda k: p[k]), [0.0] * len(p), 0.0
    for rank, k in enumerate(order):
        running = max(running, (len(p) - rank) * p[k])
        adjusted[k] = min(1.0, running)
    return [a <= risk for a in adjusted]


@given(st.lists(st.integers(0, 100), min_size=1, max_size=12), st.data())
def test_a_family_is_corrected_as_holm_does(thousandths: list[int], data: st.DataObject) -> None:
    p = [(k + 0.3) / 1001 for k in thousandths]
    verdicts = [data.draw(st.sampled_from([HOLDS, FAILS])) for _ in p]
    given_ = [Finding(v, n=5, p=x, why="of 2") for v, x in zip(verdicts, p, strict=True)]
    extra = [Finding(ABSENT), Finding(OPEN, n=2, few=True)]  # are not tested, and do not count
    corrected = claims.correct([*extra, *given_, *extra])
    assert corrected[:2] == corrected[-2:] == extra
    kept = [f.verdict != OPEN for f in corrected[2:-2]]
    assert kept == holm(p)
    for before, after, stays in zip(given_, corrected[2:-2], kept, strict=True):
        why = f"of 2; {before.verdict} by itself, not as one of {len(p)} claims"
        assert after == (before if stays else replace(before, verdict=OPEN, why=why))


def test_what_is_open_counts_as_a_test_and_stays_open() -> None:
    family = [Finding(OPEN, n=5), Finding(HOLDS, n=5, p=0.04), Finding(OPEN, n=5, p=0.001)]
    assert claims.correct(family)[0] == family[0]
    assert claims.correct(family)[2] == family[2]
    assert [f.verdict for f in claims.correct(family)] == [OPEN] * 3
    assert claims.correct(family[1:2])[0].verdict == HOLDS
    assert claims.correct([]) == []


def test_claims_of_one_notebook_are_corrected_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path))
    ahead = [0.02, 0.03, 0.05, 0.02, 0.06]
    assert 0.05 / 6 < claims.p_value(pd.Series(ahead), 0) < 0.05 / 2
    table = pd.concat([rows("embedding", [0.5 + d for d in ahead]), rows("label", [0.5] * 5)])
    for stem in ("03_attacks", "03_views", "04_budget"):
        table.to_csv(tmp_path / "demo" / f"{stem}.csv", index=False)
        (tmp_path / "demo" / f"{stem}.json").write_text('{"profile": "demo"}')

    def verdicts(*stems: str) -> list[str]:
        family = [replace(claim(), id=str(k), table=stem) for k, stem in enumerate(stems)]
        return [j.finding.verdict for j in claims.judge("demo", family)]

    assert verdicts("03_attacks") == [HOLDS]
    assert verdicts("04_budget", *["03_attacks"] * 6) == [HOLDS] + [OPEN] * 6
    assert verdicts(*["03_attacks", "03_views"] * 3, "04_budget") == [OPEN] * 6 + [HOLDS]


# -------------------------------------------------------------------- the list of claims


TASKS, KNOBS = ["glyphs", "digits"], ["as given", "negatives"]
BROKEN = ("cont-steal, no learning", "cont-steal, temperature 100")
CARRIED = "trained head, carried by digits"
VIEWS = ("clean", "own views", "shared views", "independent views")
ALL = [*attacks.ATTACKS, *claims.NO_VICTIM, "victim", "cont-steal, anew", "info-nce, own views",
       "embedding, own views", claims.SHUFFLED, *BROKEN, "embedding, published optimizer",
       "cont-steal-code, published optimizer"]  # fmt: skip
NOISE, OFFSET = "GaussianNoise(std=1.0)", "GaussianNoise(std=1.0, mean=5.0)"
POISON, PUBLISHED, FITTED = "PredictionPoisoning(eps=1.0)", "B4B(beta=0.8)", "B4B(beta=0.1)"
KINDS = {"none": "none", NOISE: "GaussianNoise", OFFSET: claims.OFFSET, "Rounding(0)": "Rounding",
         "TopK(8)": "TopK", POISON: "PredictionPoisoning", PUBLISHED: "B4B", FITTED: "B4B"}  # fmt: skip
ADAPTS = {NOISE: ["averages 4 answers"], POISON: ["averages 4 answers"], OFFSET: ["centres"],
          "TopK(8)": ["takes bounds"], FITTED: ["2 accounts", "6 accounts"]}  # fmt: skip
SUSPECTS = {"victim": "victim", "independent": "independent", "embedding": "stolen",
            "embedding, turned": "stolen", "embedding, digits": "stolen",
            "embedding, digits, turned": "stolen", "shuffle": "obfuscated",
            "pad": "obfuscated", "affine": "obfuscated", "before": "stolen before"}  # fmt: skip


def grid(**values: Sequence[Any]) -> pd.DataFrame:
    """Every combination of values for three seeds, on two tasks; without budgets where none is spent."""
    values |= {"task": TASKS} if "attack" in values else {}
    table = pd.DataFrame(product(*values.values(), range(3)), columns=[*values, "seed"])
    table = table.assign(**{c: table.get("images", 64.0) for c in BUDGETS})
    free = table.get("attack", table["seed"]).isin([*claims.NO_VICTIM, "victim"])
    table = table.assign(**{c: table[c].mask(free) for c in BUDGETS}).drop_duplicates()
    if "attack" in table:  # what learns from the query images has their number, and sends none
        table["images"] = table["images"].mask(table["attack"].isin(sweeps.ALONE), 8.0)
    return table.assign(own_head=nan, own_agreement=nan) if "attack" in table else table


def suspects(**values: Sequence[Any]) -> pd.DataFrame:
    table = grid(suspect=[*SUSPECTS], images=[64, 256], **values)
    table = table.assign(kind=table["suspect"].map(SUSPECTS))
    table["suspect"] = table["suspect"].replace("before", "embedding")
    budget = np.where(table["kind"] == "stolen before", 256, 64)
    return table[(table["kind"] == "stolen") | (table["images"] == budget)]


def defended() -> pd.DataFrame:
    """Thieves under each defence, as they are and adapting to it."""
    table = grid(
        attack=["embedding", "random"],
        defence=[*KINDS],
        adapts=[None, *chain.from_iterable(ADAPTS.values())],
    )
    pairs = zip(table["defence"], table["adapts"], strict=True)
    table = table[[pd.isna(how) or how in ADAPTS.get(defence, []) for defence, how in pairs]]
    table = table.query("attack == 'embedding' or (defence == 'none' and adapts.isna())")
    strengths = table["defence"].map({PUBLISHED: claims.BETA, FITTED: 0.1})
    return table.assign(kind=table["defence"].map(KINDS), strength=strengths)


USERS = ["customer, glyphs", "customer, digits", "thief, single images", "thief, four views",
         "thief, photographs"]  # fmt: skip
DETECTORS = ["similar, cosine > 0.5", "PRADA, W < 0.9", "similar projections, calibrated",
             "PRADA, calibrated", "proof of work, seconds"]  # fmt: skip
ENDS = ["single images, all answers", "four views, stops", "four views, all answers"]


def users(seeds: int) -> pd.DataFrame:
    """So many users of each kind before each detector; the last of them, a price, flags nobody."""
    rows = product(DETECTORS, USERS, range(seeds))
    table = pd.DataFrame(rows, columns=["detector", "user", "seed"])
    priced = table["detector"] == DETECTORS[-1]
    return table.assign(statistic=0.5, flagged=priced.map({True: nan, False: 0.0}))


BOTH = ["embedding", "cont-steal"]
OF_ATTACKS = ("02_conventional", "02_losses", "03_attacks", "03_steps", "03_control")
TABLES = dict.fromkeys(OF_ATTACKS, grid(attack=ALL)) | {
    "01_stake": grid(attack=[*claims.NO_VICTIM, "victim"], data=["glyphs", "shapes"]).query(
        f"task == {TASKS[0]!r}"),
    "02_elsewhere": grid(attack=BOTH, query_data=["glyphs", "patches"]),
    "02_readings": grid(attack=["label", "posterior", "embedding"], victim=["simclr", "supervised"]),
    "03_victims": grid(attack=[*BOTH, "random", "victim"], victim_seed=[0, 1, 2]),
    "03_views": grid(
        attack=[f"{loss}, {views}" for loss in (*BOTH, "info-nce") for views in VIEWS]),
    "03_boundary": grid(attack=BOTH, images=[64, 256], query_data=["glyphs", "patches"],
                        method=["simclr", "byol"], views=["clean", "surrogate"]),
    "03_ablations": grid(attack=["cont-steal"], knob=KNOBS, value=["self", "victim"]).query(
        "knob == 'negatives' or value == 'self'"),
    "04_budget": grid(attack=ALL, images=[64, 1600]),
    "05a_defenses": defended(),
    "05a_coverage": grid(user=["customer, 3 classes", "thief"], queries=[64, 128], defence=[FITTED])
    .assign(coverage=0.5),
    "05b_detectors": users(40),
    "05b_refused": grid(attack=[*ENDS, *claims.NO_VICTIM, "victim"]).query(
        f"task == {TASKS[0]!r}").assign(detector=lambda t: np.where(t["attack"].isin(ENDS), "D", None)),
    "05c_watermark": suspects(head=["trained", "untrained", CARRIED]).query(
        f"not suspect.str.contains('digits') or head == '{CARRIED}' and images == 256"),
    "05c_sslguard": suspects(),
    "05c_inference": suspects(form=["signed", "published"]),
}  # fmt: skip


def arranged(one: Claim, gap: float) -> pd.DataFrame:
    """A table in which each side a lies `gap` above its b, and a above b in the claim's premise."""
    table = TABLES[one.table].reset_index(drop=True)
    levels = pd.Series(nan, index=table.index)
    picked = one.pick(table)
    for sides in picked.values() if isinstance(picked, dict) else [picked]:
        assert all(len(side) >= 3 for side in sides), one.id
        if len(sides) == 1:
            levels[sides[0].index] = gap
            continue
        a, b = (side.index for side in sides)
        top = levels.loc[a[0]] if levels[a].notna().all() else levels.fillna(5).loc[b[0]] + gap
        levels[a], levels[b] = top, top - gap
    if one.premise:
        a, b = (side.index for side in claims.PREMISES[one.premise](table))
        levels[a], levels[b] = levels[a].fillna(9), levels[b].fillna(1)
    if one.criterion.of == "rate":  # hits or none; a price has neither
        return table.assign(**{one.metric: table[one.metric] * 0 + gap})
    noise = np.random.default_rng(0).normal(0, 0.001, len(table))
    heads = ["own_head", "own_agreement"] if "own_head" in table else []
    return table.assign(**dict.fromkeys([one.metric, *heads], levels.fillna(0) + noise))


def counted(one: Claim, hits: int) -> pd.DataFrame:
    """A table with eighteen seeds, of which so many have a 1 throughout."""
    table = TABLES[one.table]
    copies = [table.assign(seed=table["seed"] + 3 * k) for k in range(6)]
    many = pd.concat(copies, ignore_index=True)
    return many.assign(**{one.metric: (many["seed"] < hits).astype(float)})


@pytest.mark.parametrize("one", CLAIMS, ids=lambda c: c.id)
def test_every_claim_can_hold_and_can_fail(one: Claim) -> None:
    good, bad = {EQUIVALENT: (0.0, 0.3), NEARLY_ALL: (0.0, -3.0), MOSTLY: (1.0, 0.0), RARELY: (0.0, 1.0),
                 DETECTS: (18, 0), SPARES: (0, 18)}.get(one.criterion, (0.3, -0.3))  # fmt: skip
    counts = one.criterion in (DETECTS, SPARES)
    table = counted if counts else arranged
    for value, verdict in ((good, HOLDS), (bad, FAILS), *[(6, OPEN)] * counts):
        finding = claims.assess(one, table(one, value), 8192)
        assert finding.verdict == verdict, finding
    assert claims.assess(one, table(one, good).iloc[:0], 8192).verdict == ABSENT


def test_each_user_counts_once_whatever_its_kind() -> None:
    one = next(c for c in CLAIMS if c.id == "published-settings")
    table = users(20)
    odd = (table["user"] == "customer, digits") & (table["detector"] == "PRADA, W < 0.9")
    finding = claims.assess(one, table.assign(flagged=table["flagged"].mask(odd, 1.0)), 8192)
    assert (finding.verdict, finding.mean, finding.n) == (FAILS, 0.5, 40)


@pytest.mark.parametrize(
    ("victims", "verdict"), [([0], ABSENT), ([0, 1], ABSENT), ([0, 1, 2], HOLDS)]
)
def test_a_claim_about_victims_needs_three_of_them(victims: list[int], verdict: str) -> None:
    one = next(c for c in CLAIMS if c.id == "cont-steal-victims")
    table = arranged(one, 0.3)
    assert claims.assess(one, table[table["victim_seed"].isin(victims)], 8192).verdict == verdict


def test_the_list_is_well_formed() -> None:
    assert len({c.id for c in CLAIMS}) == len(CLAIMS) >= 65
    assert {c.id for c in CLAIMS} == claims.PICKS.keys()
    for one in CLAIMS:
        assert one.table in figures.FIGURES, one.id
        assert one.text.endswith(".")
        assert one.source
        assert set(one.says) <= set(profiles.names())
        assert set(one.says.values()) <= {HOLDS, FAILS, OPEN}
        assert bool(one.criterion.within) == (one.criterion.of == "ratio")
        assert (one.criterion.margin == 0.01) <= (one.metric != "statistic"), "which is no share"
        assert one.premise in {"", *claims.PREMISES}
        assert {*one.budgets} <= {"", *BUDGETS}


def test_a_prediction_is_a_verdict_with_its_date() -> None:
    said = [one.predicted for one in CLAIMS if one.predicted != "-"]
    assert said
    verdict = rf"({HOLDS}|{FAILS}|{OPEN}) \((\d{{4}}-\d\d-\d\d)(, [^)]+)?\)"
    for text in said:
        assert re.fullmatch(rf"{verdict}(; {verdict})*", text), text
        days = [date.fromisoformat(day) for _, day, _ in re.findall(verdict, text)]
        assert days == sorted(set(days)), "a changed expectation follows the one before"


# -------------------------------------------------------------------- stored results


def test_frame_markdown_and_count_agree() -> None:
    findings = [Finding(v, 0.1, 0.05, 0.15, 5, why="a reason") for v in (HOLDS, FAILS, OPEN)]
    judgements = [Judgement(c, "demo", f) for c, f in zip(CLAIMS, cycle(findings), strict=False)]
    (lead, table), short = claims.markdown(judgements), claims.markdown(judgements, short=True)
    frame = claims.frame(judgements)
    columns = ["claim", "verdict", "predicted", "effect", "n", "decided by", "source"]
    assert [*frame.columns] == columns
    assert frame["predicted"].tolist() == [c.predicted for c in CLAIMS]
    assert len(frame) == table.count("\n") - 1 == len(CLAIMS)
    hold, fail, _ = ([*frame["verdict"]].count(verdict) for verdict in (HOLDS, FAILS, OPEN))
    assert f": {len(CLAIMS)} claims: {hold} hold, {fail} do not hold, for " in lead
    assert short[0] == lead
    assert short[1].count("\n") - 1 == hold + fail, "the short table has what is decided"
    assert "a reason" in table
    assert "a reason" not in short[1], "and no reasons"
    assert len(claims.markdown(judgements[2:3], short=True)) == 1, "nothing is decided"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the demo's stored tables that may be tampered with.

    Whatever the demo's numbers are, in one table here a label thief is ahead of an embedding thief, and
    the repository says so.
    """
    folder = tmp_path / "demo"
    folder.mkdir()
    for path in (artifacts.ROOT / "figures" / "demo").glob("*.[cj]s*"):
        shutil.copy(path, folder)
    for path in folder.glob("*.json"):  # a seal would find the changes before any claim does
        stamp = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in stamp.items() if k not in ("code", "seal")}))
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path))
    levels = {"label": [0.9, 0.91, 0.92], "posterior": HIGH, "embedding": LOW}
    parts = [
        rows(attack, values, steps=steps, task=task, agreement=values[0], own_head=values[0])
        for attack, values in levels.items()
        for steps, task in product((320, 640), TASKS)
    ]
    pd.concat(parts).to_csv(folder / "02_conventional.csv", index=False)
    place = next(k for k, c in enumerate(CLAIMS) if c.id == "embedding-label")
    kept = CLAIMS[place]
    CLAIMS[place] = replace(kept, says={"demo": FAILS})
    yield folder
    CLAIMS[place] = kept


Damage = Callable[[Path], object]


def tamper(stem: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Damage:
    return lambda folder: change(pd.read_csv(folder / f"{stem}.csv")).to_csv(
        folder / f"{stem}.csv", index=False
    )


def write(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


Capture = pytest.CaptureFixture[str]


def test_stored_results_contradict_nothing(capsys: Capture) -> None:
    assert claims.main([]) == 0
    out = capsys.readouterr().out
    assert "no stored result contradicts" in out
    assert f"{len(CLAIMS)} claims: " in out
    assert "\x1b" not in out


def swapped(table: pd.DataFrame) -> pd.DataFrame:
    names = {"label": "embedding", "embedding": "label"}
    return table.assign(attack=table["attack"].replace(names))


BAD = [
    (tamper("02_conventional", swapped),
     "demo, claim embedding-label: the repository says 'does not hold', its results say 'holds'"),
    (tamper("01_worth", lambda t: t[t["task"] == t["task"].iloc[0]].assign(accuracy=0.5, task="glyphs")),
     "supervised on glyphs, accuracy: expected 80 to 100 %, measured 50.0 %"),
    (tamper("03_attacks", lambda t: t.drop(columns="cka")),
     "03_attacks.csv: no column 'cka', which claim 'embedding-label-cka' reads"),
    (tamper("03_boundary", lambda t: t.drop(columns="views")), "03_boundary.csv: no column 'views'"),
    (tamper("03_attacks", lambda t: pd.concat([t, t])), "several rows for seed = 0"),
    (write("03_attacks.json", "{"), "03_attacks.json is missing or damaged"),
    (write("03_attacks.json", '{"profile": "study"}'), "holds results of the profile 'study'"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_contradictions_and_bad_tables_fail(
    damage: Damage, message: str, copy: Path, capsys: Capture
) -> None:
    damage(copy)
    assert claims.main(["--profile", "demo"]) == 1
    assert message in capsys.readouterr().out


def test_too_few_seeds_or_rows_contradict_nothing(copy: Path, capsys: Capture) -> None:
    tamper("02_conventional", lambda t: swapped(t[t["seed"] < 2]))(copy)
    tamper("03_attacks", lambda t: t[t["attack"] != "embedding"])(copy)
    for stem in ("01_worth", "02_readings"):
        (copy / f"{stem}.csv").unlink()
    assert claims.main(["--profile", "demo"]) == 0
    assert "not measured" in capsys.readouterr().out


@pytest.mark.parametrize("says", [HOLDS, FAILS, OPEN, ""])
@pytest.mark.parametrize(
    "finding",
    [Finding(OPEN, n=5), Finding(HOLDS, n=5), Finding(OPEN, n=2, few=True), Finding(ABSENT)],
)
def test_more_said_than_shown_is_a_contradiction(says: str, finding: Finding) -> None:
    contradicts = says in (HOLDS, FAILS) and finding.n == 5 and finding.verdict != says
    one = claim(says={"demo": says, "paper": HOLDS} if says else {})
    judgement = Judgement(one, "demo", finding)
    assert bool(claims.contradictions([judgement])) == contradicts


@pytest.mark.parametrize(
    ("verdicts", "disagree"),
    [
        ({"demo": HOLDS, "study": FAILS}, True),
        ({"demo": FAILS, "study": HOLDS}, True),
        ({"demo": HOLDS, "study": HOLDS}, False),
        ({"demo": HOLDS, "study": OPEN}, False),
        ({"demo": ABSENT, "study": FAILS}, False),
        ({"demo": HOLDS, "paper": FAILS}, False),  # other data
        ({"demo": HOLDS, "synthetic": FAILS}, False),  # the same data, other encoders
    ],
)
def test_profiles_on_the_same_data_do_not_decide_a_claim_in_opposite_ways(
    verdicts: dict[str, str], disagree: bool
) -> None:
    given = {n: [Judgement(claim(), n, Finding(verdict, n=5))] for n, verdict in verdicts.items()}
    found = claims.disagreements(given)
    assert len(found) == disagree
    if disagree:
        holds = next(name for name, verdict in verdicts.items() if verdict == HOLDS)
        assert found[0].startswith(f"claim x: 'holds' in {holds}, 'does not hold' in ")


def test_unknown_profiles_and_nothing_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert claims.main(["--profile", "moon"]) == 1
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path))
    assert claims.main([]) == 0
    out = capsys.readouterr().out
    assert "unknown profile 'moon'" in out
    assert "no results are stored: `make paper`" in out


@pytest.mark.parametrize(
    ("criterion", "metric", "finding", "effect"),
    [
        (AHEAD, "accuracy", Finding(HOLDS, 0.123, 0.1, 0.15, 3), "+12.3 points [10.0, 15.0]"),
        (UP, "accuracy", Finding(HOLDS, 0.123, 0.1, 0.15, 3), "12.3 % [10.0, 15.0]"),
        (NEARLY_ALL, "accuracy", Finding(HOLDS, 0.123, 0.1, 0.15, 3), "12.3 % [10.0, 15.0]"),
        (UP, "statistic", Finding(HOLDS, 0.123, 0.1, 0.15, 3), "0.123 [0.1, 0.15]"),
        (AHEAD, "accuracy", Finding(OPEN, 0.123, nan, nan, 1), "+12.3 points"),
        (AHEAD, "accuracy", Finding(ABSENT), "-"),
    ],
)
def test_effects_in_their_unit(
    criterion: Criterion, metric: str, finding: Finding, effect: str
) -> None:
    one = claim(criterion=criterion, metric=metric)
    assert Judgement(one, "demo", finding).effect == effect
