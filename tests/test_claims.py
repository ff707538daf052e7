"""Claims: no verdict without evidence, none from unequal budgets, and none against what is stored."""

import shutil
from collections.abc import Callable, Sequence
from math import inf, isnan
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from contsteal import steal
from contsteal.lab import artifacts, tables
from contsteal.lab.tables import ABSENT, FAILS, HOLDS, OPEN
from contsteal.paper import check, claims, matching, plan, report, verdicts
from contsteal.paper.claims import Claim
from contsteal.paper.verdicts import Verdict

HEAD = {"id": "x", "text": "A claim.", "source": "somebody", "stem": "03_attacks", "seeds": 3}
PAIR = {"a": {"attack": "embedding"}, "b": {"attack": "label"}}
STORED = ["demo", "study"]


def claim(test: str = "difference", threshold: float = 0.0, **more: Any) -> Claim:
    return Claim(**{**HEAD, "test": test, "threshold": threshold, **more})


def rows(attack: str, values: Sequence[float], **more: Any) -> list[dict[str, Any]]:
    return [
        {"attack": attack, "seed": seed, "accuracy": value, "images": 64, "unique_inputs": 64,
         "calls": 64, "task": "shapes"} | more
        for seed, value in enumerate(values)
    ]  # fmt: skip


def bare(attack: str, values: Sequence[float], **more: Any) -> list[dict[str, Any]]:
    """Floor or victim: without a budget."""
    return rows(attack, values, **{c: None for c in claims.BUDGETS}, **more)


def table(*parts: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part])


def about(found: dict[str, Sequence[float]] | Sequence[float], region: tuple[float, float]) -> str:
    found = found if isinstance(found, dict) else {"": found}
    return tables.decide(found, region, 3).verdict


# -------------------------------------------------------------------- intervals and verdicts


def test_a_verdict_shows_the_closed_t_interval() -> None:
    found = tables.decide({"": [1.0, 2.0, 3.0]}, (-1.0, inf), 3)
    half = 4.302652729749464 / 3**0.5  # t(0.975, 2) times the standard error
    assert found.verdict == HOLDS
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half))
    assert found.n == 3


@pytest.mark.parametrize(
    ("values", "region", "verdict"),
    [
        ([10, 11, 12], (0, inf), HOLDS),
        ([-10, -11, -12], (0, inf), FAILS),
        ([1, 2, 3], (0, inf), OPEN),
        ([-1, -2, -3], (0, inf), OPEN),
        ([10, 11, 12], (-inf, 0), FAILS),
        ([-0.01, 0.0, 0.01], (-0.05, 0.05), HOLDS),
        ([0.2, 0.21, 0.22], (-0.05, 0.05), FAILS),
        ([-0.2, -0.21, -0.22], (-0.05, 0.05), FAILS),
        ([0.0, 0.05, 0.1], (-0.05, 0.05), OPEN),
        ([-0.04, 0.0, 0.04], (-0.05, 0.05), OPEN),
    ],
)
def test_verdicts_of_closed_cases(
    values: list[float], region: tuple[float, float], verdict: str
) -> None:
    assert about(values, region) == verdict


@pytest.mark.parametrize("values", [[9.0], [9.0, 9.1], [-9.0, -9.1]])
def test_too_few_seeds_never_give_a_verdict(values: list[float]) -> None:
    found = tables.decide({"": values, "more": [9.0, 9.1, 9.2]}, (0, inf), 3)
    assert (found.verdict, found.few) == (OPEN, True)
    assert "of 3" in found.why


def test_what_is_equal_in_all_seeds_is_one_measurement() -> None:
    found = tables.decide({"": [0.5, 0.5, 0.5]}, (0, inf), 3)
    assert (found.verdict, found.n, found.why) == (OPEN, 1, "1 of 3 measurements")


def test_all_comparisons_must_hold_and_a_stray_among_many_is_no_refutation() -> None:
    good, stray = [10.0, 11.0, 12.0], [-6.7, -5.0, -3.3]  # high end at 95 %: -0.8; at 97.5 %: 1.1
    assert about({"a": good, "b": good}, (0, inf)) == HOLDS
    assert about(stray, (0, inf)) == FAILS
    assert about({"a": good, "b": stray}, (0, inf)) == OPEN
    assert about({"a": good, "b": [-20.0, -20.1, -20.2]}, (0, inf)) == FAILS
    shown = tables.decide({"a": good, "b": stray}, (0, inf), 3)
    assert shown.name == "b", "the comparison with the least room"


def test_a_failure_that_means_nothing_is_no_verdict() -> None:
    found = tables.decide({"": [-10, -11, -12]}, (0, inf), 3, conclusive=False)
    assert (found.verdict, found.few) == (OPEN, False)


def test_no_comparison_and_no_interval_are_refused() -> None:
    with pytest.raises(ValueError, match="0 comparisons"):
        tables.decide({}, (0, inf), 3)
    with pytest.raises(ValueError, match="of 1 seeds"):
        tables.decide({"": [1.0]}, (0, inf), 1)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=6), st.floats(-1, 1), st.floats(0, 1))
def test_a_harder_claim_never_holds_where_an_easier_one_does_not(
    values: list[float], threshold: float, more: float
) -> None:
    rank = {FAILS: 0, OPEN: 1, HOLDS: 2}
    easy, hard = (rank[about(values, (t, inf))] for t in (threshold, threshold + more))
    assert hard <= easy


# -------------------------------------------------------------------- kinds of tests

HIGH, LOW, WIDE = [0.80, 0.81, 0.82], [0.50, 0.52, 0.51], [0.40, 0.95, 0.60]


@pytest.mark.parametrize(
    ("test", "threshold", "one", "two", "verdict"),
    [
        ("difference", 0.0, HIGH, LOW, HOLDS),
        ("difference", 0.0, LOW, HIGH, FAILS),
        ("difference", 0.0, WIDE, LOW, OPEN),
        ("difference", 0.4, HIGH, LOW, FAILS),
        ("difference", -0.05, [0.50, 0.51, 0.52], [0.505, 0.51, 0.52], HOLDS),
        ("equivalence", 0.05, [0.50, 0.51, 0.52], [0.505, 0.51, 0.52], HOLDS),
        ("equivalence", 0.05, HIGH, LOW, FAILS),
        ("equivalence", 0.05, WIDE, LOW, OPEN),
        ("above", 0.7, HIGH, None, HOLDS),
        ("above", 0.9, HIGH, None, FAILS),
        ("above", 0.7, WIDE, None, OPEN),
        ("below", 0.9, HIGH, None, HOLDS),
        ("below", 0.7, HIGH, None, FAILS),
        ("below", 0.7, WIDE, None, OPEN),
    ],
)
def test_kinds_of_tests_on_closed_cases(
    test: str, threshold: float, one: list[float], two: list[float] | None, verdict: str
) -> None:
    sides = PAIR if two else {"a": PAIR["a"]}
    parts = [rows("embedding", one)] + ([rows("label", two)] if two else [])
    found = verdicts.assess(claim(test, threshold, **sides), table(*parts), 8192)
    assert found.verdict == verdict
    for seeds in (1, 2):
        few = verdicts.assess(
            claim(test, threshold, **sides), table(*(p[:seeds] for p in parts)), 8192
        )
        assert few.verdict == OPEN


@pytest.mark.parametrize(
    ("kind", "verdict"), [("victim", HOLDS), ("obfuscated", HOLDS), ("stolen", OPEN)]
)
def test_the_one_victim_of_an_owner_stands_beside_every_independent_encoder(
    kind: str, verdict: str
) -> None:
    rates = [("independent", seed, rate) for seed, rate in enumerate((0.5, 0.51, 0.49))]
    given = pd.DataFrame([(kind, 0, 0.8), *rates], columns=["kind", "seed", "wsr"])
    one = claim(metric="wsr", a={"kind": kind}, b={"kind": "independent"})
    found = verdicts.assess(one, given, 0)
    assert (found.verdict, found.n) == (verdict, 3 if verdict == HOLDS else 1)


ORDER = [{"attack": name} for name in ("embedding", "label", "cosine")]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((HIGH, LOW, [0.30, 0.33, 0.31]), HOLDS),
        ((LOW, HIGH, [0.30, 0.33, 0.31]), FAILS),
        ((HIGH, LOW, WIDE), OPEN),
        ((HIGH, LOW, None), ABSENT),
    ],
)
def test_an_order_holds_where_each_step_does(values: tuple, verdict: str) -> None:
    parts = [rows(s["attack"], v) for s, v in zip(ORDER, values, strict=True) if v]
    assert verdicts.assess(claim("order", order=ORDER), table(*parts), 0).verdict == verdict


def budget(values: Sequence[float], count: int) -> list[dict[str, Any]]:
    return rows("embedding", values, images=count, unique_inputs=count, calls=count)


SHARE = claim("share", 0.95, a={"attack": "embedding"}, b={"attack": "victim"}, within=0.2)


@pytest.mark.parametrize(
    ("values", "count", "trained_on", "verdict"),
    [
        ([0.78, 0.785, 0.79], 512, 8192, HOLDS),
        ([0.60, 0.61, 0.62], 512, 8192, OPEN),  # 512 is far below a fifth: nobody asked further
        ([0.60, 0.61, 0.62], 1600, 8192, FAILS),
        ([0.78, 0.785, 0.79], 1700, 8192, ABSENT),  # more than a fifth
        ([0.78, 0.785, 0.79], 512, 0, ABSENT),
        ([0.70, 0.75, 0.80], 1600, 8192, OPEN),
    ],
)
def test_a_share_is_reached_missed_or_not_asked_for(
    values: list[float], count: int, trained_on: int, verdict: str
) -> None:
    small = budget([0.5, 0.51, 0.52], 64) if count <= 1638 else []
    found = verdicts.assess(
        SHARE, table(small, budget(values, count), bare("victim", [0.8])), trained_on
    )
    assert found.verdict == verdict
    if verdict in (HOLDS, FAILS):
        mean = sum(values) / 3 / 0.8
        assert found.mean == pytest.approx(mean), "of the largest budget within the limit"


def test_without_its_premise_a_claim_is_not_tested() -> None:
    premise = {"a": {"attack": "embedding"}, "b": {"attack": "random"}, "threshold": 0.05}
    harmless = claim(threshold=-0.05, premise=premise, **PAIR)
    same = rows("embedding", HIGH), rows("label", [0.80, 0.811, 0.82])
    floor = lambda values: bare("random", values)  # noqa: E731
    assert verdicts.assess(harmless, table(*same, floor(LOW)), 0).verdict == HOLDS
    at_floor = verdicts.assess(harmless, table(*same, floor([0.79, 0.81, 0.80])), 0)
    assert at_floor.verdict == OPEN
    assert "(embedding) is not shown to be above (random)" in at_floor.why
    assert verdicts.assess(harmless, table(*same), 0).verdict == OPEN, "no floor measured"


# -------------------------------------------------------------------- rows and pairs


def test_unequal_budgets_are_not_compared_unless_the_claim_says_so() -> None:
    cheap, dear = rows("label", LOW), rows("embedding", HIGH, calls=128, unique_inputs=128)
    found = verdicts.assess(claim(**PAIR), table(dear, cheap), 0)
    assert found.verdict == ABSENT
    assert "unequal unique_inputs: 128 against 64" in found.why
    assert verdicts.assess(claim(**PAIR, equal=["images"]), table(dear, cheap), 0).verdict == HOLDS


def test_seeds_are_paired_and_the_one_victim_stands_beside_each() -> None:
    shifted = [0.1, 0.5, 0.9]
    found = verdicts.assess(
        claim(**PAIR), table(rows("embedding", [v + 0.02 + 0.001 * s for s, v in enumerate(shifted)]),
                             rows("label", shifted)), 0,
    )  # fmt: skip
    assert (found.verdict, found.n) == (HOLDS, 3)
    assert found.mean == pytest.approx(0.021)
    gap = claim(a={"attack": "victim"}, b={"attack": "random"})
    found = verdicts.assess(gap, table(bare("random", LOW), bare("victim", [0.9])), 0)
    assert (found.verdict, found.mean) == (HOLDS, pytest.approx(0.39))
    lone = verdicts.assess(claim(**PAIR), table(rows("embedding", HIGH), rows("label", LOW)[:2]), 0)
    assert (lone.verdict, lone.n) == (OPEN, 2)


def test_several_rows_of_a_seed_are_refused_and_can_be_averaged() -> None:
    both = [rows(n, v, task=t) for n, v in (("embedding", HIGH), ("label", LOW)) for t in "ab"]
    with pytest.raises(ValueError, match=r"claim 'x', 03_attacks.csv: several rows for seed = 0"):
        verdicts.assess(claim(**PAIR), table(*both), 0)
    mean = claim(**PAIR, mean_over=["task"])
    assert verdicts.assess(mean, table(*both), 0).verdict == HOLDS
    holed = table(*both).drop(index=0)  # seed 0 lacks one task
    assert verdicts.assess(mean, holed, 0).n == 2


FILTERS = [
    ({"task": "first"}, ["a"]), ({"task": "other"}, ["b", "c"]), ({"task": "each"}, ["a", "b", "c"]),
    ({"task": ["c", "a"]}, ["c", "a"]), ({"task": ["a", "z"]}, []), ({"task": "/a|b/"}, ["a", "b"]),
    ({"task": "z"}, []), ({"task": None}, ["null"]), ({"count": 64}, ["a", "b"]),
    ({"count": "largest"}, ["c"]), ({"count": "smallest", "task": "/b|c/"}, ["b", "c"]),
]  # fmt: skip


@pytest.mark.parametrize(("filters", "wanted"), FILTERS)
def test_what_filters_mean(filters: dict[str, Any], wanted: list[str]) -> None:
    whole = pd.DataFrame({"task": ["a", "b", "c", None], "count": [64.0, 64.0, 512.0, None]})
    found = [
        list(part["task"].fillna("null")) for _, part in matching.expand(whole, filters, whole)
    ]
    assert [task for part in found for task in part] == wanted


def test_floor_and_victim_are_no_side_unless_asked_for() -> None:
    queries = [
        rows("embedding", HIGH, query_data="shapes"),
        rows("embedding", LOW, query_data="digits"),
    ]
    whole = table(*queries, bare("random", LOW, query_data=None))
    own = claim(where={"attack": "each"}, a={"query_data": "first"}, b={"query_data": "other"})
    found = verdicts.assess(own, whole, 0)
    assert (found.verdict, found.name) == (HOLDS, "embedding, digits")


# -------------------------------------------------------------------- the list of claims

GOOD = HEAD | {"test": "difference", "threshold": 0, **PAIR}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"colour": 1}, r"claim 1 \(x\): no field 'colour'; a claim has id, text"),
        ({"test": "magic"}, r"unknown test 'magic': choose one of difference"),
        ({"threshold": "0"}, r"threshold='0' must be int or float"),
        ({"seeds": 1}, r"seeds=1: an interval needs at least 2"),
        ({"seeds": 2.5}, r"seeds=2.5 must be int"),
        ({"text": ""}, r"text='' must be str, and not empty"),
        ({"b": {}}, r"'difference' compares a, b .*given are a"),
        ({"order": [{}, {}]}, r"given are a, b, order"),
        ({"test": "above"}, r"'above' compares a "),
        ({"test": "equivalence"}, r"threshold=0: a margin is above 0"),
        ({"test": "share"}, r"`within` belongs to the test 'share'"),
        ({"within": 0.5}, r"`within` belongs to the test 'share'"),
        ({"premise": {"a": {}}}, r"premise=.*: it has a, b and threshold"),
        ({"says": {"moon": HOLDS}}, r"says: unknown profile 'moon': choose one of .*demo"),
        ({"says": {"demo": "perhaps"}}, r"says, demo: 'perhaps' is no verdict: choose holds"),
        ({"says": {"demo": ABSENT}}, r"is no verdict"),
    ],
)
def test_bad_claims_are_refused_with_their_place(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([GOOD | change]))
    with pytest.raises(ValueError, match=told):
        claims.load(path)


@pytest.mark.parametrize("name", [*HEAD, "test", "threshold"])
def test_a_missing_field_is_told(name: str, tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([{k: v for k, v in GOOD.items() if k != name}]))
    with pytest.raises(ValueError, match=f"field '{name}' is missing"):
        claims.load(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "is not YAML"),
        ("a: 1", "a list of claims is needed"),
        ("[]", "a list of claims is needed"),
        ("- 3", r"claim 1 \(\?\): 3 is no mapping"),
        (yaml.safe_dump([GOOD, GOOD]), r"claim 2 \(x\): another claim has this id"),
    ],
)
def test_a_damaged_list_is_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        claims.load(path)


@pytest.mark.parametrize("found", claims.load(), ids=lambda c: c.id)
def test_every_claim_reads_what_there_is(found: Claim) -> None:
    assert found.stem in report.FIGURES
    assert found.text.endswith(".")
    sides = [found.where, found.a, found.b, *found.order]
    sides += [found.premise.get("a", {}), found.premise.get("b", {})]
    asked = [s["attack"] for s in sides if "attack" in s]
    names = {n for one in asked for n in (one if isinstance(one, list) else [one])}
    known = {*steal.ATTACKS, "random", "victim", "each"}
    assert {n.split(",")[0] for n in names} <= known
    for profile in STORED:
        path = artifacts.ROOT / "figures" / profile / f"{found.stem}.csv"
        if path.is_file():
            matching.require(pd.read_csv(path), found, path)


def test_a_changed_list_makes_the_last_notebook_run_again() -> None:
    assert "claims.yaml" in plan.inputs("06_figures", "smoke")["package"]


# -------------------------------------------------------------------- stored results


@pytest.fixture(scope="module")
def stored() -> dict[str, list[Verdict]]:
    return {profile: verdicts.judge(profile) for profile in STORED}


def test_what_the_repository_says_is_what_its_results_say(stored: dict[str, list[Verdict]]) -> None:
    said = [v for found in stored.values() for v in found if v.says]
    assert len(said) > 20
    wrong = {(v.profile, v.claim.id): (v.says, v.finding.verdict) for v in said}
    assert not {k: v for k, v in wrong.items() if v[0] != v[1]}


def test_every_claim_is_measured_somewhere_if_its_table_is(
    stored: dict[str, list[Verdict]],
) -> None:
    for one, two in zip(*stored.values(), strict=True):
        unstored = all(v.finding.why == f"no {v.claim.stem}.csv" for v in (one, two))
        assert unstored or {one.finding.verdict, two.finding.verdict} != {ABSENT}, one.claim.id


def test_a_verdict_has_seeds_and_an_interval_on_its_side(stored: dict[str, list[Verdict]]) -> None:
    for v in (v for found in stored.values() for v in found if v.finding.verdict in (HOLDS, FAILS)):
        low, high = tables.REGIONS[v.claim.test](v.claim.threshold)
        assert v.finding.n >= v.claim.seeds
        inside = low < v.finding.low <= v.finding.high < high
        assert inside == (v.finding.verdict == HOLDS), v.claim.id


@pytest.mark.parametrize("profile", STORED)
def test_summaries_show_the_verdicts(profile: str) -> None:
    text = (artifacts.ROOT / "figures" / profile / "summary.md").read_text()
    assert "\n\n".join(verdicts.markdown(profile)) in text


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the demo's stored tables that may be tampered with."""
    for path in (artifacts.ROOT / "figures" / "demo").iterdir():
        if path.suffix in (".csv", ".json"):
            (tmp_path / "demo").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "demo")
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path))
    return tmp_path / "demo"


def tamper(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_csv(path)).to_csv(path, index=False)


def test_stored_results_contradict_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == 0
    told = capsys.readouterr().out
    assert "no stored result contradicts" in told
    assert "demo: " in told
    assert "study: " in told
    assert "\x1b" not in told
    assert not [line for line in told.splitlines() if line != line.rstrip()]


def test_a_result_that_contradicts_the_repository_fails(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "02_conventional.csv"
    names = {"label": "embedding", "embedding": "label"}
    tamper(path, lambda t: t.assign(attack=t["attack"].replace(names)))
    assert check.main(["--profile", "demo"]) == 1
    told = capsys.readouterr().out
    assert (
        "demo, claim embedding-label: the repository says 'does not hold', its results say" in told
    )


def test_an_expectation_that_is_missed_fails(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(copy / "01_worth.csv", lambda t: t.assign(accuracy=0.5))
    assert check.main(["--profile", "demo"]) == 1
    assert "supervised on shapes, accuracy: expected 95 to 100 %, measured 50.0 %" in (
        capsys.readouterr().out
    )


def test_too_few_seeds_or_rows_contradict_nobody(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(copy / "02_conventional.csv", lambda t: t[t["seed"] == 0])
    tamper(copy / "03_attacks.csv", lambda t: t[t["attack"] != "embedding"])
    (copy / "02_losses.csv").unlink()
    assert check.main(["--profile", "demo"]) == 0
    assert "not measured" in capsys.readouterr().out


def test_more_said_than_shown_is_a_contradiction(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = yaml.safe_load(claims.PATH.read_text())
    entry = next(c for c in listed if c["id"] == "cont-steal-mse")
    path = tmp_path / "claims.yaml"
    for said, code in ((HOLDS, 1), (OPEN, 0)):
        entry["says"] = {"demo": said}
        path.write_text(yaml.safe_dump(listed))
        with monkeypatch.context() as patch:
            patch.setattr(claims.load, "__defaults__", (path,))
            assert check.main(["--profile", "demo"]) == code


def damaged(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: tamper(f / "03_attacks.csv", lambda t: t.drop(columns="cka")),
         "03_attacks.csv: no column 'cka', which claim 'embedding-label-cka' reads"),
        (lambda f: tamper(f / "03_attacks.csv", lambda t: t.iloc[:0]), "03_attacks.csv has no rows"),
        (lambda f: tamper(f / "03_attacks.csv", lambda t: t.assign(accuracy="high")),
         "column 'accuracy' holds values that are no numbers"),
        (damaged("03_attacks.csv", ""), "03_attacks.csv is no table"),
        (lambda f: (f / "03_attacks.json").unlink(), "03_attacks.json is missing or damaged"),
        (damaged("03_attacks.json", "{"), "03_attacks.json is missing or damaged"),
        (damaged("03_attacks.json", '{"profile": "study"}'),
         "holds results of the profile 'study', the folder those of 'demo'"),
    ],
)  # fmt: skip
def test_damaged_or_mixed_results_are_refused(
    damage: Callable[[Path], None], told: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy)
    assert check.main(["--profile", "demo"]) == 1
    assert told in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"run notebook 03 again|which claim|no numbers"):
        verdicts.judge("demo")


def test_an_unknown_profile_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--profile", "moon"]) == 1
    assert "unknown profile 'moon'" in capsys.readouterr().out


def test_nothing_stored_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path))
    assert check.main([]) == 0
    assert "no results are stored: make paper" in capsys.readouterr().out


def test_effects_are_told_in_their_unit() -> None:
    found = tables.Finding(HOLDS, 0.123, 0.1, 0.15, 3)
    shown = {
        "difference": "+12.3 points [10.0, 15.0]",
        "above": "12.3 % [10.0, 15.0]",
        "share": "12.3 % [10.0, 15.0]",
    }
    for test, text in shown.items():
        assert Verdict(claim(test), "demo", found).effect == text
    assert Verdict(claim("above", metric="bits"), "demo", found).effect == "0.123 [0.1, 0.15]"
    one = tables.Finding(OPEN, 0.123, float("nan"), float("nan"), 1)
    assert Verdict(claim(), "demo", one).effect == "+12.3 points"
    assert Verdict(claim(), "demo", tables.Finding(ABSENT)).effect == "-"
    assert isnan(tables.Finding(ABSENT).mean)
