"""Claims: no verdict without evidence, none from unequal budgets, and none against what is stored."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contsteal import attacks
from contsteal.lab import artifacts, profiles
from contsteal.paper import claims, figures
from contsteal.paper.claims import (
    ABSENT,
    AHEAD,
    BUDGETS,
    CLAIMS,
    EQUIVALENT,
    FAILS,
    HOLDS,
    NEARLY_ALL,
    NOT_WORSE,
    OPEN,
    Claim,
    Criterion,
    Finding,
    Judgement,
    Picked,
    versus,
)  # fmt: skip

STORED = ["demo", "study"]
HIGH, LOW, WIDE = [0.80, 0.81, 0.82], [0.50, 0.52, 0.51], [0.40, 0.95, 0.60]
PAIR = versus("embedding", "label")


def claim(
    pick: Callable[[pd.DataFrame], Picked] = PAIR, criterion: Criterion = AHEAD, **more: Any
) -> Claim:
    return Claim("x", "03_attacks", "somebody", "A claim.", pick, criterion, **more)


def rows(attack: str, values: Sequence[float], n: float = 64, **more: Any) -> pd.DataFrame:
    return pd.DataFrame([
        {"attack": attack, "seed": seed, "accuracy": value, "images": n, "unique_inputs": n,
         "calls": n, "task": "shapes"} | more for seed, value in enumerate(values)
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


def test_all_comparisons_must_hold_and_a_stray_among_many_is_no_refutation() -> None:
    good, stray = [10.0, 11.0, 12.0], [-6.7, -5.0, -3.3]  # high end at 95 %: -0.8; at 97.5 %: 1.1
    assert decide({"a": good, "b": good}).verdict == HOLDS
    assert decide(stray).verdict == FAILS
    both = decide({"a": good, "b": stray})
    assert (both.verdict, both.name) == (OPEN, "b"), "the comparison with the least room"
    assert decide({"a": good, "b": [-20.0, -20.1, -20.2]}).verdict == FAILS


def test_a_failure_that_is_not_conclusive_is_no_verdict() -> None:
    finding = decide([-10, -11, -12], conclusive=False)
    assert (finding.verdict, finding.few) == (OPEN, False)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=6), st.floats(-1, 1), st.floats(0, 1))
def test_a_harder_claim_never_holds_where_an_easier_one_does_not(
    values: list[float], threshold: float, more: float
) -> None:
    rank = {FAILS: 0, OPEN: 1, HOLDS: 2}
    easy, hard = (rank[decide(values, low).verdict] for low in (threshold, threshold + more))
    assert hard <= easy


# -------------------------------------------------------------------- kinds of tests

UP = Criterion("value", low=0.7)
DOWN = Criterion("value", high=0.7)


def alone(t: pd.DataFrame) -> Picked:
    return (t[t["attack"] == "embedding"],)


@pytest.mark.parametrize(
    ("criterion", "one", "two", "verdict"),
    [
        (AHEAD, HIGH, LOW, HOLDS),
        (AHEAD, LOW, HIGH, FAILS),
        (NOT_WORSE, [0.50, 0.51, 0.52], [0.505, 0.51, 0.52], HOLDS),
        (EQUIVALENT, [0.50, 0.51, 0.52], [0.505, 0.51, 0.52], HOLDS),
        (EQUIVALENT, WIDE, LOW, OPEN),
        (UP, HIGH, None, HOLDS),
        (UP, WIDE, None, OPEN),
        (DOWN, HIGH, None, FAILS),
    ],
)
def test_kinds_of_tests(criterion: Criterion, one: list, two: list | None, verdict: str) -> None:
    compared = claim(PAIR if two else alone, criterion)
    for seeds, expected in ((3, verdict), (2, OPEN), (1, OPEN)):
        parts = rows("embedding", one[:seeds]), rows("label", (two or LOW)[:seeds])
        assert assess(compared, *parts).verdict == expected


@pytest.mark.parametrize(
    ("kind", "verdict", "n"), [("victim", HOLDS, 3), ("obfuscated", HOLDS, 3), ("stolen", OPEN, 1)]
)
def test_the_one_victim_stands_beside_every_seed(kind: str, verdict: str, n: int) -> None:
    rates = [("independent", seed, rate) for seed, rate in enumerate((0.5, 0.51, 0.49))]
    table = pd.DataFrame([(kind, 0, 0.8), *rates], columns=["kind", "seed", "wsr"])
    finding = claims.assess(claim(lambda t: claims.kinds(t, kind), metric="wsr"), table, 0)
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
    share = claim(versus("embedding", "victim"), NEARLY_ALL, within=0.2)
    small = [rows("embedding", [0.5, 0.51, 0.52])] if n <= 1638 else []
    parts = *small, rows("embedding", values, n), rows("victim", [0.8], nan)
    finding = assess(share, *parts, train_images=train_images)
    assert finding.verdict == verdict
    if verdict in (HOLDS, FAILS):
        assert finding.mean == pytest.approx(sum(values) / 3 / 0.8)  # of the largest within it


def test_without_its_premise_a_claim_is_not_tested() -> None:
    harmless = claim(criterion=NOT_WORSE, premise=claims.MSE_STEALS)
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
    mean = claim(mean_over=["views"])
    assert assess(mean, *parts).verdict == HOLDS
    assert assess(mean, parts[0][1:], *parts[1:]).n == 2, "a seed that lacks a point does not count"


# -------------------------------------------------------------------- the list of claims


TASKS, KNOBS = ["shapes", "digits"], ["as given", "negatives"]
ALL = [*attacks.ATTACKS, "random", "victim", "embedding, shuffled", "cont-steal, anew"]
NOISE, OFFSET = "GaussianNoise(std=1.0)", "GaussianNoise(std=1.0, mean=5.0)"
DEFENCES = ["none", NOISE, OFFSET, "Rounding(0)", "TopK(8)", "B4B(bits=8)"]
SUSPECTS = {"victim": "victim", "independent": "independent", "embedding": "stolen",
            "embedding, turned": "stolen", "shuffle": "obfuscated", "pad": "obfuscated",
            "affine": "obfuscated"}  # fmt: skip


def grid(**values: Sequence[Any]) -> pd.DataFrame:
    """Every combination of values for three seeds, on two tasks; without budgets where none is spent."""
    values |= {"task": TASKS} if "attack" in values or "encoder" in values else {}
    table = pd.DataFrame(product(*values.values(), range(3)), columns=[*values, "seed"])
    table = table.assign(**{c: table.get("images", 64.0) for c in BUDGETS})
    free = table.get("attack", table["seed"]).isin(["random", "victim"])
    return table.assign(**{c: table[c].mask(free) for c in BUDGETS}).drop_duplicates()


def suspects(**values: Sequence[Any]) -> pd.DataFrame:
    table = grid(suspect=[*SUSPECTS], images=[64, 256], **values)
    table = table.assign(kind=table["suspect"].map(SUSPECTS))
    return table.query("kind == 'stolen' or images == 64")


BOTH = ["embedding", "cont-steal"]
TABLES = dict.fromkeys(("02_conventional", "02_losses", "03_attacks", "03_control"), grid(attack=ALL)) | {
    "01_worth": grid(encoder=["random", "simclr", "byol", "supervised"]),
    "02_elsewhere": grid(attack=BOTH, query_data=["shapes", "patches"]),
    "03_two_by_two": grid(attack=BOTH, views=["clean", "augmented"]),
    "03_boundary": grid(attack=BOTH, images=[64, 256], epochs=[9], query_data=["shapes", "patches"],
                        method=["simclr", "byol"], views=["clean"]),
    "03_ablations": grid(attack=["cont-steal"], knob=KNOBS, value=["self", "victim"]).query(
        "knob == 'negatives' or value == 'self'"),
    "04_budget": grid(attack=ALL, images=[64, 1600]),
    "05_defenses": grid(attack=["embedding", "random"], defence=DEFENCES).query(
        "attack == 'embedding' or defence == 'none'"),
    "05_adaptive": grid(attack=["embedding"], defence=DEFENCES,
                        adapts=[None, "averages", "centres", "two accounts"]),
    "05_coverage": grid(user=["customer", "thief", "one of two accounts"], queries=[64, 128]),
    "05_watermark": suspects(head=["trained", "untrained"]),
    "05_inference": suspects(form=["signed", "published"]),
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
        a, b = (side.index for side in one.premise[1](table))
        levels[a], levels[b] = levels[a].fillna(9), levels[b].fillna(1)
    noise = np.random.default_rng(0).normal(0, 0.001, len(table))
    return table.assign(**{one.metric: levels.fillna(0) + noise})


@pytest.mark.parametrize("one", CLAIMS, ids=lambda c: c.id)
def test_every_claim_can_hold_and_can_fail(one: Claim) -> None:
    good, bad = {AHEAD: (0.3, -0.3), NOT_WORSE: (0.3, -0.3), EQUIVALENT: (0.0, 0.3),
                 NEARLY_ALL: (0.0, -3.0)}.get(one.criterion, (0.3, 0.01))  # fmt: skip
    train_images = 8192
    for gap, verdict in ((good, HOLDS), (bad, FAILS)):
        finding = claims.assess(one, arranged(one, gap), train_images)
        assert finding.verdict == verdict, finding
    nothing = TABLES[one.table].iloc[:0].assign(**{one.metric: pd.Series(dtype=float)})
    assert claims.assess(one, nothing, train_images).verdict == ABSENT


def test_the_list_is_well_formed() -> None:
    assert len({c.id for c in CLAIMS}) == len(CLAIMS) >= 58
    for one in CLAIMS:
        assert one.table in figures.FIGURES, one.id
        assert one.text.endswith(".")
        assert one.source
        assert set(one.says) <= set(profiles.names())
        assert set(one.says.values()) <= {HOLDS, FAILS, OPEN}
        assert bool(one.within) == (one.criterion.of == "ratio")


# -------------------------------------------------------------------- stored results


@pytest.fixture(scope="module")
def stored() -> dict[str, list[Judgement]]:
    return {profile: claims.judge(profile) for profile in STORED}


def test_stored_verdicts_are_what_the_repository_says(stored: dict[str, list[Judgement]]) -> None:
    for one, two in zip(*stored.values(), strict=True):
        assert {one.finding.verdict, two.finding.verdict} != {ABSENT}, one.claim.id
        for j in (one, two):
            assert j.says in ("", j.finding.verdict), j.claim.id
            bounds = j.claim.criterion
            if j.finding.verdict in (HOLDS, FAILS):
                inside = bounds.low < j.finding.low <= j.finding.high < bounds.high
                assert inside == (j.finding.verdict == HOLDS)
                assert j.finding.n >= claims.SEEDS


def test_frame_markdown_and_count_agree(stored: dict[str, list[Judgement]]) -> None:
    lead, table = claims.markdown("demo")
    short = claims.markdown("demo", short=True)
    assert len(claims.frame("demo", stored["demo"])) == table.count("\n") - 1 == len(CLAIMS)
    assert claims.counted(stored["demo"]) in lead == short[0]
    assert "decided by" in table.splitlines()[0]
    assert "decided by" not in short[1]
    decided = [j for j in stored["demo"] if j.finding.verdict in (HOLDS, FAILS)]
    assert short[1].count("\n") - 1 == len(decided)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the demo's stored tables that may be tampered with."""
    folder = tmp_path / "demo"
    folder.mkdir()
    for path in (artifacts.ROOT / "figures" / "demo").glob("*.[cj]s*"):
        shutil.copy(path, folder)
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path))
    return folder


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
    assert all(text in out for text in ("no stored result contradicts", "demo: 58", "study: 58"))
    assert "\x1b" not in out


def swapped(table: pd.DataFrame) -> pd.DataFrame:
    names = {"label": "embedding", "embedding": "label"}
    return table.assign(attack=table["attack"].replace(names))


BAD = [
    (tamper("02_conventional", swapped),
     "demo, claim embedding-label: the repository says 'does not hold', its results say 'holds'"),
    (tamper("01_worth", lambda t: t.assign(accuracy=0.5)),
     "supervised on shapes, accuracy: expected 95 to 100 %, measured 50.0 %"),
    (tamper("03_attacks", lambda t: t.drop(columns="cka")),
     "03_attacks.csv: no column 'cka', which claim 'embedding-label-cka' reads"),
    (tamper("03_boundary", lambda t: t.drop(columns="views")), "03_boundary.csv: no column 'views'"),
    (tamper("03_attacks", lambda t: t.iloc[:0]), "03_attacks.csv has no rows: run notebook 03 again"),
    (tamper("03_attacks", lambda t: t.assign(accuracy="high")),
     "03_attacks.csv: column 'accuracy' holds values that are no numbers"),
    (tamper("03_attacks", lambda t: pd.concat([t, t])), "several rows for seed = 0"),
    (write("03_attacks.csv", ""), "03_attacks.csv is no table"),
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
    tamper("02_conventional", lambda t: t[t["seed"] == 0])(copy)
    tamper("03_attacks", lambda t: t[t["attack"] != "embedding"])(copy)
    (copy / "02_losses.csv").unlink()
    assert claims.main(["--profile", "demo"]) == 0
    assert "not measured" in capsys.readouterr().out


@pytest.mark.parametrize(("says", "contradicts"), [(HOLDS, True), (FAILS, True), (OPEN, False)])
def test_more_said_than_shown_is_a_contradiction(says: str, contradicts: bool) -> None:
    one = next(c for c in CLAIMS if c.id == "cont-steal-mse")
    (judgement,) = claims.judge("demo", [replace(one, says={"demo": says})])
    assert judgement.finding.verdict == OPEN
    assert bool(claims.contradictions([judgement])) == contradicts


def test_unknown_profiles_and_nothing_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert claims.main(["--profile", "moon"]) == 1
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path))
    assert claims.main([]) == 0
    out = capsys.readouterr().out
    assert "unknown profile 'moon'" in out
    assert "no results are stored: make paper" in out


@pytest.mark.parametrize(
    ("criterion", "metric", "finding", "effect"),
    [
        (AHEAD, "accuracy", Finding(HOLDS, 0.123, 0.1, 0.15, 3), "+12.3 points [10.0, 15.0]"),
        (UP, "accuracy", Finding(HOLDS, 0.123, 0.1, 0.15, 3), "12.3 % [10.0, 15.0]"),
        (NEARLY_ALL, "bits", Finding(HOLDS, 0.123, 0.1, 0.15, 3), "12.3 % [10.0, 15.0]"),
        (UP, "bits", Finding(HOLDS, 0.123, 0.1, 0.15, 3), "0.123 [0.1, 0.15]"),
        (AHEAD, "accuracy", Finding(OPEN, 0.123, nan, nan, 1), "+12.3 points"),
        (AHEAD, "accuracy", Finding(ABSENT), "-"),
    ],
)
def test_effects_in_their_unit(
    criterion: Criterion, metric: str, finding: Finding, effect: str
) -> None:
    one = claim(criterion=criterion, metric=metric)
    assert Judgement(one, "demo", finding).effect == effect
