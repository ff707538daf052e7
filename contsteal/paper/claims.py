"""The papers' claims and our own, tested on stored results: `python -m contsteal.paper.claims`.

A claim is a row of claims.csv, which says what is measured and by which of the `TESTS` it is judged, and
a function that picks its two sides from a table, in `PICKS`. To add one, add a row there and a line here.
`make check` calls this module: for one profile, or for all whose results are stored. It ends with 1
where a stored result contradicts this repository.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isnan, nan
from pathlib import Path

import pandas as pd
from pandas import DataFrame, Series
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from scipy.stats import binomtest, ttest_1samp

from contsteal import defenses, files
from contsteal.evaluate import mean_interval
from contsteal.lab import artifacts, profiles, sweeps, tables
from contsteal.ownership import proportion
from contsteal.paper import sentences
from contsteal.paper.notebooks import number

LIST = Path(__file__).with_name("claims.csv")
HOLDS, FAILS, OPEN, ABSENT = "holds", "does not hold", "not enough evidence", "not measured"
CUSTOMERS = ("legitimate", "few")  # metrics that no surrogate is trained for

Sides = tuple[DataFrame, ...]  # the rows of a and b, one per seed; or of a alone
Comparisons = dict[str, Sides]  # by name, all of which must come out
PickSides = Callable[[DataFrame], Sides]
PickMany = Callable[[DataFrame], Comparisons]
Pick = PickSides | PickMany


@dataclass(frozen=True)
class Criterion:
    """The bounds of a mean: of the "difference" a - b, of the "ratio" a / b, or of a "rate", the share of
    seeds whose value is 1, which has the exact interval of Clopper and Pearson.

    A difference smaller than `margin` does not count as a lead: where the whole interval lies below
    `low` + `margin`, the claim fails. `within` takes a's largest number of distinct inputs up to this
    part of the victim's training set. `over` averages each seed over these columns.
    """

    of: str
    low: float = -inf
    high: float = inf
    margin: float = 0.0
    within: float = 0.0
    over: tuple[str, ...] = ()


SETTINGS = ("images", "query_data", "method", "views")
# One rule for all thresholds: 0 where somebody is said to be ahead, five points where something is said
# not to matter. They are not tuned to results. Without a margin, a claim that somebody is ahead of an
# equal could never be refuted. Less than one point means nothing, since other test images would change
# it: the standard error of 70 % on 5,000 of them is 0.65 points.
TESTS = {
    "ahead": Criterion("difference", low=0, margin=0.01),
    "ahead on average": Criterion("difference", low=0, margin=0.01, over=SETTINGS),
    "clearly ahead": Criterion("difference", low=0.05),
    "more": Criterion("difference", low=0),  # of what is not measured in points
    "not worse": Criterion("difference", low=-0.05),
    "equal": Criterion("difference", low=-0.05, high=0.05),
    "nearly all": Criterion("ratio", low=0.95, within=0.2),
    "rarely": Criterion("rate", high=0.1),
    "mostly": Criterion("rate", low=0.5),
    # Of a test at 5 %: it accuses more often than one that knows nothing, and at least every second time.
    "detects": Criterion("rate", low=0.05, margin=0.45),
    # Sixteen acquittals out of sixteen leave up to 21 %: no number of encoders trained here can show 5 %.
    "spares": Criterion("rate", high=1 / 3),
}


@dataclass(frozen=True)
class Claim:
    """A claim that the stored results of a profile can test.

    `pick` takes the table figures/<profile>/<table>.csv and returns the sides whose `metric` must meet
    the `criterion`. Both sides must agree in those of the `budgets` that the table has. `premise` says
    what must be clearly ahead (`PREMISES`), or there is nothing to test. `says` is this repository's own
    verdict, by profile, and `predicted` the verdict that was expected before a profile's first run, with
    the date.
    """

    id: str
    table: str
    metric: str
    criterion: Criterion
    budgets: Sequence[str]
    premise: str
    source: str
    text: str
    predicted: str
    says: Mapping[str, str]
    pick: Pick


# ------------------------------------------------------------------------------ picking rows


def where(t: DataFrame, **values: object) -> DataFrame:
    """Return the rows that have these values."""
    for column, value in values.items():
        t = t[t[column] == value]
    return t


def like(rows: DataFrame, t: DataFrame, *columns: str) -> DataFrame:
    """Return the rows of t that have the values of other rows."""
    return where(t, **{column: rows[column].iloc[0] for column in columns})


def first(t: DataFrame, column: str) -> DataFrame:
    """Return the rows of the value that a table lists first: of the main task, victim or head."""
    return t[t[column].isin(t[column].dropna().unique()[:1])]


def main_task(t: DataFrame) -> DataFrame:
    """Return the rows of the main task and, where there are several, of the main victim."""
    return first(first(t, "victim") if "victim" in t else t, "task")


def pair(column: str, a: str, b: str) -> PickSides:
    """Return a function that picks the rows that have one value and those that have another."""
    return lambda t: (where(t, **{column: a}), where(t, **{column: b}))


def versus(a: str, b: str) -> PickSides:
    """Return a function that picks two attacks on the main task."""
    return lambda t: pair("attack", a, b)(main_task(t))


def at(budget: Callable[[DataFrame], DataFrame], a: str, b: str) -> PickMany:
    """Return a function that picks two attacks on the main task at the largest or smallest budget."""
    return lambda t: every(budget(main_task(t).dropna(subset=["calls"])), ["images"], versus(a, b),
                           "{} images")  # fmt: skip


def largest(t: DataFrame) -> DataFrame:
    """Return the rows of the largest budget."""
    return where(t, images=t["images"].max())


def smallest(t: DataFrame) -> DataFrame:
    """Return the rows of the smallest budget."""
    return where(t, images=t["images"].min())


def extremes(t: DataFrame) -> Sides:
    """Return the rows of the largest budget and of the smallest."""
    return largest(t), smallest(t)


def alone(t: DataFrame) -> Sides:
    """Return one side: of suspects who are judged by themselves."""
    return (t,)


def split(t: DataFrame, *columns: str) -> dict[str, DataFrame]:
    """Return the rows of each combination of values, by its name."""
    groups = t.groupby(list(columns), sort=False)
    return {", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values): rows
            for values, rows in groups}  # fmt: skip


def every(
    t: DataFrame, columns: Sequence[str], sides: PickSides = alone, label: str = "{}"
) -> Comparisons:
    """Return the sides in the rows of each combination of values."""
    return {label.format(name): sides(rows) for name, rows in split(t, *columns).items()}


def own(t: DataFrame, metric: str, column: str) -> Sides:
    """Return embedding thieves, and label thieves with their own head's `column` as the metric."""
    thieves, rivals = versus("embedding", "label")(t)
    return thieves, rivals.assign(**{metric: rivals[column]})


def of_supervised(rival: str) -> PickSides:
    """Return a function that picks embedding thieves, and a rival that attacks supervised victims."""
    return lambda t: (where(main_task(t), attack="embedding"),
                      where(first(t, "task"), victim="supervised", attack=rival))  # fmt: skip


def without_answers(attack: str) -> PickMany:
    """Return a function that pairs an attack with all that a thief gets without the victim's answers."""
    return lambda t: {name: versus(attack, name)(t) for name in NO_VICTIM}


def at_views(*views: str) -> PickMany:
    """Return a function that pairs Cont-Steal with MSE at equal views, of those that the table has."""
    return lambda t: {v: versus(f"cont-steal, {v}", f"embedding, {v}")(t) for v in views
                      if f"cont-steal, {v}" in set(t["attack"])}  # fmt: skip


def contrastive(t: DataFrame) -> Comparisons:
    """Pair the ICML paper's contrastive losses with MSE."""
    return {loss: versus(loss, "embedding")(t) for loss in ("info-nce", "soft-nn")}


def negatives(left: str) -> PickSides:
    """Return a function that pairs Cont-Steal as given with the negatives of one side alone."""
    return lambda t: (where(main_task(t), knob="as given"),
                      where(main_task(t), knob="negatives", value=left))  # fmt: skip


def defended(t: DataFrame, *kinds: str, adapts: str = "") -> dict[str, DataFrame]:
    """Return the rows of MSE under each defence of these kinds, by default of MSE that does not adapt."""
    rows = main_task(t).assign(adapts=t["adapts"].astype(object).fillna(""))
    rows = where(rows, attack="embedding", adapts=adapts)
    published = (rows["kind"] == "B4B") & (rows["strength"] == BETA)
    return split(rows[rows["kind"].mask(published, PUBLISHED).isin(kinds)], "defence")


def undefended(t: DataFrame) -> DataFrame:
    """Return the rows of MSE without a defence."""
    return defended(t, "none").get("none", t.iloc[:0])


def harmed(*kinds: str) -> PickMany:
    """Return a function that pairs MSE without a defence with MSE under each: what is lost."""
    return lambda t: {d: (undefended(t), rows) for d, rows in defended(t, *kinds).items()}


def spared(*kinds: str, adapts: str = "") -> PickMany:
    """Return a function that pairs MSE under each defence with MSE without one: what is left."""
    return lambda t: {d: (rows, undefended(t))
                      for d, rows in defended(t, *kinds, adapts=adapts).items()}  # fmt: skip


def adapted(adapts: str, *kinds: str) -> PickMany:
    """Return a function that pairs MSE that adapts to each defence with MSE that does not."""
    return lambda t: {d: (rows, defended(t, *kinds)[d])
                      for d, rows in defended(t, *kinds, adapts=adapts).items()}  # fmt: skip


def carriers(a: str, b: str) -> PickSides:
    """Return a function that picks two thieves of a victim whose mark other images carry."""
    carried = "trained head, carried by digits"
    return lambda t: pair("suspect", a, b)(largest(where(t, head=carried, kind="stolen")))


def inherited(t: DataFrame) -> Comparisons:
    """Pair the first thief of the marked victim with the same of the victim before marking, by head."""
    thieves, before = where(t, kind="stolen"), split(where(t, kind="stolen before"), "head")
    return {head: (like(rows, thieves, "head", "suspect", "images"), rows)
            for head, rows in before.items()}  # fmt: skip


def equal_coverage(t: DataFrame) -> Sides:
    """Return a thief and a customer of few classes before the first B4B, after as many queries."""
    t = first(t, "defence").dropna(subset=["coverage"])
    sides = where(t, user="thief"), t[t["user"].str.fullmatch(r"customer, \d+ classes")]
    sent = min(side["queries"].max() for side in sides)
    away = [(side["queries"] - sent).abs().groupby(side["seed"]) for side in sides]
    return tuple(side.loc[each.idxmin()] for side, each in zip(sides, away, strict=True))


def flagged(t: DataFrame, user: str, detector: str = "") -> Comparisons:
    """Return the users whose kind begins with a name, by the detectors whose name has a word in it.

    Each user counts once, whatever kind and seed: a rate is of all of them. A price flags nobody.
    """
    rows = t[t["user"].str.startswith(user) & t["detector"].str.contains(detector, regex=False)]
    return {d: (each.assign(seed=range(len(each))),) for d, each in split(rows, "detector").items()
            if each["flagged"].notna().all()}  # fmt: skip


def bills(t: DataFrame, thief: str) -> Comparisons:
    """Pair what thieves whose kind begins with a name owe in proof of work with what the customers owe
    whom a table lists first.
    """  # fmt: skip
    owed = t[t["detector"].str.contains("proof of work")]
    thieves = owed[owed["user"].str.startswith(thief)]
    return every(thieves, ["user"], lambda rows: (rows, first(owed, "user")))


def ends(a: str, b: str) -> PickMany:
    """Return a function that pairs how two thieves end, for each detector that refuses them."""
    return lambda t: {d: versus(a, b)(pd.concat([rows, t[t["detector"].isna()]]))
                      for d, rows in split(t, "detector").items()}  # fmt: skip


def own_and_other_queries(t: DataFrame) -> Comparisons:
    """Pair the queries that a table lists first, the victim's own, with each other source."""
    own = first(main_task(t), "query_data")
    others = split(main_task(t).drop(own.index), "attack", "images", "query_data")
    return {name: (like(rows, own, "attack", "images"), rows) for name, rows in others.items()}


# ------------------------------------------------------------------------------ the claims

VICTIM_AND_OTHERS = pair("kind", "victim", "independent")
OFFSET = "GaussianNoise with offset"
BETA, PUBLISHED = defenses.B4B().beta, "B4B as published"
SHUFFLED = "info-nce, own views, shuffled"
NO_VICTIM = ("random", *sweeps.ALONE)
HIDING = ("shuffle", "affine")  # of features, which the owner's head reads in the victim's order

# A defence cannot fail to stop an attack that is no better than random features.
PREMISES: dict[str, PickSides] = {
    "MSE ends 5 points above random features": versus("embedding", "random"),
    "InfoNCE ends 5 points above random features": versus("info-nce", "random"),
    "the same attack with the right answers ends 5 points above random features":
        versus("info-nce, own views", "random"),
    "MSE without a defence ends 5 points above random features":
        lambda t: (undefended(t), where(main_task(t), attack="random")),
    "the victim's own rate is 5 points above that of independent encoders":
        lambda t: VICTIM_AND_OTHERS(first(t, "head")),
}  # fmt: skip

# In the order of claims.csv.
PICKS: dict[str, Pick] = {
    # what there is to steal
    "victim-floor": versus("victim", "random"),
    "victim-floor-tasks": lambda t: every(t, ["task"], versus("victim", "random")),
    "worth-stealing": without_answers("victim"),
    "answers-matter": without_answers("info-nce, own views"),
    "answers-matter-mse": without_answers("embedding"),
    "nothing-to-steal": lambda t: versus("SimCLR on the queries", "victim")(where(t, data="shapes")),
    "nothing-to-steal-labels": lambda t: versus("labelled images", "victim")(where(t, data="shapes")),
    # conventional attacks
    "embedding-label": versus("embedding", "label"),
    "embedding-label-head": lambda t: own(t, "accuracy", "own_head"),
    "embedding-posterior": versus("embedding", "posterior"),
    "embedding-label-agreement": versus("embedding", "label"),
    "embedding-label-served": lambda t: own(t, "agreement", "own_agreement"),
    "embedding-label-elsewhere":
        lambda t: every(t.drop(main_task(t).index), ["task"], versus("embedding", "label")),
    "embedding-label-supervised": of_supervised("label"),
    "embedding-posterior-supervised": of_supervised("posterior"),
    "embedding-label-cka": versus("embedding", "label"),
    # losses
    "contrastive-mse": contrastive,
    "contrastive-mse-cka": contrastive,
    "info-nce-mse": versus("info-nce, clean", "embedding, clean"),
    "info-nce-mse-own": versus("info-nce, own views", "embedding, own views"),
    "loss-order":  # Barlow sends two views of each image
        lambda t: {"soft-nn over wasserstein": versus("soft-nn", "wasserstein")(t),
                   "wasserstein over barlow-published": versus("wasserstein", "barlow-published")(t)},
    "wasserstein-mse": versus("embedding", "wasserstein"),
    "wasserstein-cka": versus("wasserstein", "random"),
    "barlow-mse": versus("embedding", "barlow-published"),
    "barlow-cka": versus("barlow-published", "random"),
    "barlow-corrected": versus("barlow", "barlow-published"),
    "direct-recreate": versus("info-nce", "recreate-head"),  # learnt from two views of each image
    "direct-access": versus("info-nce", "access-head"),
    "rda-cont-steal": versus("rda", "cont-steal"),
    "own-queries": own_and_other_queries,
    # Cont-Steal
    "cont-steal-mse": lambda t: versus("cont-steal", "embedding")(first(t, "victim_seed")),
    "cont-steal-victims":
        lambda t: every(t, ["victim_seed"], versus("cont-steal", "embedding"), "victim {}")
        if t["victim_seed"].nunique() > 2 else {},
    "cont-steal-mse-own": versus("cont-steal", "embedding, own views"),
    "cont-steal-code-mse": versus("cont-steal-code", "embedding"),
    "published-optimizer":
        versus("cont-steal-code, published optimizer", "embedding, published optimizer"),
    "info-nce-views-mse": versus("info-nce, own views", "embedding"),
    "loss-alone": at_views("clean", "own views", "shared views", "independent views"),
    "loss-alone-clean": at_views("clean"),
    "loss-alone-own": at_views("own views"),
    "augmentation-alone": versus("embedding, own views", "embedding"),
    "augmentation-cont-steal": versus("cont-steal, own views", "cont-steal, independent views"),
    "settings-every": lambda t: every(main_task(t), SETTINGS, versus("cont-steal", "embedding")),
    "settings-mean": versus("cont-steal", "embedding"),
    "negatives-victim": negatives("self"),
    "negatives-self": negatives("victim"),
    "control": versus("random", SHUFFLED),
    "control-cka": versus("random", SHUFFLED),
    "broken-attacks": lambda t: {attack: versus("labelled images", attack)(t)
                                 for attack in (SHUFFLED, "cont-steal, no learning")},
    "flat-loss": versus("labelled images", "cont-steal, temperature 100"),
    # queries
    "fifth-mse": versus("embedding", "victim"),
    "fifth-cont-steal": versus("cont-steal", "victim"),
    "more-queries": lambda t: {attack: extremes(where(main_task(t), attack=attack))
                               for attack in ("embedding", "cont-steal")},
    "few-mse": at(smallest, "embedding", "cont-steal"),
    "many-contrastive": at(largest, "cont-steal", "embedding"),
    "fresh-views": at(largest, "cont-steal, anew", "cont-steal"),
    # defences
    "noise-thief": spared("GaussianNoise"),
    "noise-customer": harmed("GaussianNoise"),
    "offset-thief": harmed(OFFSET),
    "rounding-thief": spared("Rounding", "TopK"),
    "rounding-customer": harmed("Rounding", "TopK"),
    "poisoning-thief": harmed("PredictionPoisoning"),
    "poisoning-customer": harmed("PredictionPoisoning"),
    "averaging": adapted("averages 4 answers", "GaussianNoise", "PredictionPoisoning"),
    "centring": adapted("centres", OFFSET),
    "bounds": adapted("takes bounds", "TopK"),
    "b4b-published": spared(PUBLISHED),
    "b4b-thief": harmed("B4B"),
    "b4b-few": spared("B4B"),
    "b4b-customer": spared("B4B"),
    "two-accounts": adapted("2 accounts", "B4B"),  # both ask the anchors
    "six-accounts": spared("B4B", adapts="6 accounts"),
    "b4b-coverage": equal_coverage,
    # detectors: customers and thieves who send as many images
    "views-similar": lambda t: flagged(t, "thief, four views", "similar projections, calibrated"),
    "single-images": lambda t: flagged(t, "thief, single images", "calibrated"),
    "prada-natural": lambda t: flagged(t[~t["user"].str.contains("views")], "thief", "PRADA, W < 0.9"),
    "published-settings": lambda t: flagged(t[~t["detector"].str.contains("calibrated")], "customer"),
    "calibrated-customers": lambda t: flagged(t, "customer", "calibrated"),
    "price-thief": lambda t: bills(t, "thief"),
    "price-photographs": lambda t: bills(t, "thief, photographs"),
    "new-account": ends("four views, all answers", "four views, stops"),
    "refused-too-late":
        lambda t: {f"{d}, {without}": sides for without in NO_VICTIM
                   for d, sides in ends("four views, stops", without)(t).items()},
    "views-needless": ends("single images, all answers", "four views, all answers"),
    # the owner's proofs; an independent encoder has no budget
    "watermark-victim": lambda t: every(t, ["head"], VICTIM_AND_OTHERS),
    "watermark-transfers": lambda t: every(largest(where(t, kind="stolen")), ["head", "suspect"]),
    "watermark-inherited": inherited,
    "watermark-few": lambda t: every(smallest(where(first(t, "head"), kind="stolen")), ["suspect"]),
    "watermark-carrier": carriers("embedding, digits", "embedding"),
    "watermark-carrier-turned": carriers("embedding, digits, turned", "embedding, digits"),
    "watermark-queries":
        lambda t: every(where(first(t, "head"), kind="stolen"), ["suspect"], extremes),
    "watermark-turned":
        lambda t: every(where(first(t, "head"), kind="stolen"), ["images"],
                        pair("suspect", "embedding, turned", "embedding")),
    "watermark-hidden":
        lambda t: every(where(first(t, "head"), kind="obfuscated").query("suspect in @HIDING"),
                        ["suspect"], lambda rows: (where(first(t, "head"), kind="independent"), rows)),
    "inference-victim": lambda t: alone(where(t, form="signed", kind="victim")),
    "inference-stolen": lambda t: every(largest(where(t, form="signed", kind="stolen")), ["suspect"]),
    "inference-obfuscated": lambda t: every(where(t, form="signed", kind="obfuscated"), ["suspect"]),
    "inference-independent": lambda t: every(where(t, kind="independent"), ["form"]),
    "guard-victim": VICTIM_AND_OTHERS,
    "guard-transfers": lambda t: every(largest(where(t, kind="stolen")), ["suspect"]),
}  # fmt: skip


CLAIMS = [
    Claim(row["id"], row["table"], row["metric"], TESTS[row["test"]], row["budgets"].split(", "),
          row["premise"], row["source"], row["claim"], row["predicted"] or "-",
          {profile: row[profile] for profile in ("demo", "study") if row[profile]}, PICKS[row["id"]])
    for row in pd.read_csv(LIST, dtype=str, keep_default_na=False).to_dict("records")
]  # fmt: skip


# ------------------------------------------------------------------------------ statistics

SEEDS = 3  # fewer give no verdict
RISK = 0.05  # of an interval that misses the mean, over all comparisons of a claim
NEAR = 0.9  # a ratio that is missed at less than this part of the limit may yet be reached
ONE_FOR_ALL = ("victim", "obfuscated")  # the one victim, as it is and as a thief may disguise it


@dataclass(frozen=True)
class Finding:
    """A verdict, and the comparison that decides it with its 95 % t-interval (NaN for one seed).

    `few` says that there were too few seeds; `p` is the p-value of a verdict that is one.
    """

    verdict: str
    mean: float = nan
    low: float = nan
    high: float = nan
    n: int = 0
    name: str = ""
    why: str = ""
    few: bool = False
    p: float = 1.0

    def open(self, why: str) -> "Finding":
        """Return this finding without its verdict, for one more reason."""
        return replace(self, verdict=OPEN, why="; ".join(filter(None, (self.why, why))))


def p_value(values: Series, bound: float) -> float:
    """Return the two-sided p-value of a t-test of the mean against a bound, 0 for an infinite one."""
    return float(ttest_1samp(values, bound).pvalue)


def exact_interval(values: Series, level: float = 0.95) -> tuple[float, float, float]:
    """Return the share of values that are 1 and its interval (Clopper and Pearson, 1934)."""
    return proportion(int(values.sum()), len(values), level)


def exact_p_value(values: Series, bound: float) -> float:
    """Return the two-sided p-value of the share of values that are 1 against a bound.

    It is twice the smaller tail, which fits the interval; 0 for a bound outside [0, 1].
    """
    if not 0 <= bound <= 1:
        return 0.0
    hits, n = int(values.sum()), len(values)
    tails = (binomtest(hits, n, bound, side).pvalue for side in ("less", "greater"))
    return float(min(1.0, 2 * min(tails)))


def decide(samples: Mapping[str, Series], criterion: Criterion, conclusive: bool = True) -> Finding:
    """Return the verdict on a claim from the values by seed of each comparison that it makes.

    Of rates, which are shares of 0 and 1, intervals and p-values are exact (Clopper and Pearson).
    It does not hold where the interval of one comparison, at the level 1 - 0.05/k for k comparisons
    (Bonferroni: one may stray by chance), lies outside the bounds, or below the lower one and its margin;
    else it holds where the 95 % t-intervals of all lie between the bounds, and no mean is within the
    margin. Anything else, a failure that is not `conclusive`, or too few seeds is not enough evidence.
    The finding shows the comparison with the least room between its mean and the bounds.
    """
    low, high, exact = criterion.low, criterion.high, criterion.of == "rate"
    least = low + criterion.margin
    interval, p_of = (exact_interval, exact_p_value) if exact else (mean_interval, p_value)
    findings = []
    for name, values in samples.items():
        n = 1 if values.max() - values.min() < tables.SAME and not exact else len(values)
        findings.append(Finding(OPEN, *interval(values), n=n, name=name))
    findings.sort(key=lambda f: min(f.mean - low, high - f.mean))
    worst, count = findings[0], min(f.n for f in findings)
    if count < SEEDS:
        unit = "seeds" if count > 1 else "measurements"
        return replace(worst, why=f"{count} of {SEEDS} {unit}", few=True)
    for finding in findings if conclusive else ():
        values = samples[finding.name]
        _, lower, upper = interval(values, 1 - RISK / len(samples))
        if upper < least or lower > high:
            p = len(samples) * p_of(values, high if lower > high else least)
            why = "less than one point ahead" if low <= upper < least and not exact else ""
            return replace(finding, verdict=FAILS, p=p, why=why)
    if all(low < f.low and f.high < high and f.mean >= least for f in findings):
        p = max(p_of(values, bound) for values in samples.values() for bound in (low, high))
        return replace(worst, verdict=HOLDS, p=p)
    return worst


def correct(findings: Sequence[Finding]) -> list[Finding]:
    """Correct the verdicts of a family for their number (Holm, 1979).

    The smallest of m p-values must be at most RISK / m, the next at most RISK / (m - 1), and so on; after
    the first that is not, nothing is decided. What was not measured does not count.
    """
    corrected = list(findings)
    tested = [k for k, f in enumerate(findings) if f.verdict != ABSENT and not f.few]
    open_from_here = False
    for rank, k in enumerate(sorted(tested, key=lambda k: findings[k].p)):
        finding = findings[k]
        open_from_here |= finding.p > RISK / (len(tested) - rank)
        if open_from_here and finding.verdict in (HOLDS, FAILS):
            why = f"{finding.verdict} by itself, not as one of {len(tested)} claims"
            corrected[k] = finding.open(why)
    return corrected


class NotComparable(ValueError):
    """Two sides lack rows or common seeds, or were measured at unequal budgets."""


def by_seed(claim: Claim, sides: Sides) -> Series:
    """Return a claim's metric by seed, of two sides their difference or ratio, or raise NotComparable.

    The same seed means the same queries, first weights and batches for both sides; a table without seeds
    has one. Where a criterion averages over points, a seed counts only with every point measured.
    """
    index = ["seed", *claim.criterion.over]
    indexed = [rows.assign(seed=rows.get("seed", 0)).set_index(index) for rows in sides]
    for rows in indexed:
        if rows.empty:
            raise NotComparable("no such rows")
        if rows.index.has_duplicates:
            again = f"{', '.join(index)} = {rows.index[rows.index.duplicated()][0]}"
            place = f"claim {claim.id!r}, {claim.table}.csv"
            raise ValueError(f"{place}: several rows for {again}; pick one of them")
    values = indexed[0][claim.metric]
    if len(indexed) == 2:
        a, b = indexed
        a, b = _beside(a, b), _beside(b, a)
        _check_budgets(a, b, claim.budgets)
        one, two = a[claim.metric], b[claim.metric]
        values = one / two if claim.criterion.of == "ratio" else one - two
    values = values.dropna()  # also of seeds that one side lacks
    if claim.criterion.over and len(values):
        values = values.unstack(list(claim.criterion.over)).dropna().mean(axis=1)
    if values.empty:
        raise NotComparable("no seed has values of all sides")
    return values


def _beside(a: DataFrame, b: DataFrame) -> DataFrame:
    """Return rows, or the one victim beside each row of the other side."""
    one = len(a) == 1 and a.filter(["attack", "kind"]).isin(ONE_FOR_ALL).any(axis=None)
    return a.iloc[[0] * len(b)].set_axis(b.index) if one else a


def _check_budgets(a: DataFrame, b: DataFrame, budgets: Sequence[str]) -> None:
    for column in (name for name in budgets if name in a):
        one, two = a[column].align(b[column], join="inner")
        apart = (one - two).abs() > 1e-6  # NaN, of random features and the victim, is never apart
        if apart.any():
            unequal = f"{one[apart].iloc[0]:g} against {two[apart].iloc[0]:g}"
            raise NotComparable(f"unequal {column}: {unequal}")


def assess(claim: Claim, table: DataFrame, train_images: int) -> Finding:
    """Return what a table says about a claim; `train_images` is what the victim was trained on.

    Of trained surrogates the longest training and the next shorter one must agree: otherwise, and with
    one length alone, a verdict might be about the length, and there is not enough evidence. A length at
    which only some of the comparisons were made does not count.
    """
    trained = [(rows, _comparisons(claim, rows)) for rows in tables.trainings(table)[::-1]]
    most = max(len(made) for _, made in trained)
    trained = [each for each in trained if len(each[1]) == most]
    findings = [(_assess(claim, *each, train_images), *each) for each in trained]
    measured = [each for each in findings if each[0].verdict != ABSENT]
    if not measured:
        return findings[0][0]
    (finding, _, comparisons), *others = measured
    if finding.verdict not in (HOLDS, FAILS) or not _of_surrogates(claim, comparisons):
        return finding
    if not others:
        return finding.open(f"{finding.verdict} after one length of training, which is not enough")
    shorter, rows, _ = others[0]
    if shorter.verdict != finding.verdict:
        return finding.open(f"after {rows['steps'].max():g} steps: {shorter.verdict}")
    return finding


def _of_surrogates(claim: Claim, comparisons: Comparisons) -> bool:
    """Say whether a claim is about trained surrogates, and not about the victim or its customers."""
    rows = pd.concat([side for sides in comparisons.values() for side in sides])
    return claim.metric not in CUSTOMERS and "steps" in rows and bool(rows["steps"].notna().any())


def _comparisons(claim: Claim, table: DataFrame) -> Comparisons:
    picked = claim.pick(table)
    return picked if isinstance(picked, dict) else {"": picked}


def _assess(claim: Claim, table: DataFrame, comparisons: Comparisons, train_images: int) -> Finding:
    """Return what the rows of one length of training say."""
    if not comparisons:
        return Finding(ABSENT, why=f"{claim.table}.csv has no such rows")
    conclusive, notes = True, []
    if claim.criterion.within:
        limit = int(claim.criterion.within * train_images)
        spent = pd.concat([a["unique_inputs"] for a, *_ in comparisons.values()])
        most = float(spent[spent <= limit].max())
        comparisons = {n: (where(a, unique_inputs=most), *b) for n, (a, *b) in comparisons.items()}
        conclusive = most >= NEAR * limit
        notes = [f"at {most:g} of at most {limit} distinct inputs"]
    samples, missing = {}, []
    for name, sides in comparisons.items():
        try:
            samples[name] = by_seed(claim, sides)
        except NotComparable as error:
            missing.append(f"{name}: {error}".removeprefix(": "))
    if missing:
        return Finding(ABSENT, why="; ".join(missing))
    finding = decide(samples, claim.criterion, conclusive)
    many = f"of {len(samples)} comparisons" if len(samples) > 1 else ""
    why = "; ".join(filter(None, (finding.name, many, *notes, finding.why)))
    finding = replace(finding, why=why)
    if claim.premise:
        premise = replace(claim, criterion=TESTS["clearly ahead"], premise="")
        sides = PREMISES[claim.premise](table)
        if _assess(premise, table, {"": sides}, train_images).verdict != HOLDS:
            return finding.open(f"nothing to test: it is not shown that {claim.premise}")
    return finding


# ------------------------------------------------------------------------------ stored results


@dataclass(frozen=True)
class Judgement:
    """What the results of one profile say about one claim."""

    claim: Claim
    profile: str
    finding: Finding

    @property
    def effect(self) -> str:
        """The effect that decides, with its interval, in points, in percent, or as it is."""
        finding, of = self.finding, self.claim.criterion.of
        if isnan(finding.mean):
            return "-"
        percent = self.claim.metric != "statistic"  # which is no share: a price
        scale, form = (100, ".1f") if percent else (1, ".3g")
        sign, unit = ("+", " points") if of == "difference" else ("", " %")
        text = f"{scale * finding.mean:{sign}{form}}{unit if percent else ''}"
        if isnan(finding.low) or finding.n < 2:
            return text
        return f"{text} [{scale * finding.low:{form}}, {scale * finding.high:{form}}]"


def read(folder: Path, stem: str) -> DataFrame | None:
    """Return a stored table, None where there is none; ValueError for a damaged or foreign one."""
    path, stamp = folder / f"{stem}.csv", files.read_json(folder / f"{stem}.json")
    again = f"run notebook {number(stem)} again"
    if not path.is_file():
        return None
    if not isinstance(stamp, dict) or "profile" not in stamp:
        raise ValueError(f"{path.with_suffix('.json')} is missing or damaged: {again}")
    if stamp["profile"] != folder.name:
        raise ValueError(f"{path} holds results of the profile {stamp['profile']!r}: {again}")
    artifacts.check_table(path, stamp)
    return pd.read_csv(path)


def judge(profile: str, claims: Sequence[Claim] = CLAIMS) -> list[Judgement]:
    """Return the verdict on every claim from a profile's stored results.

    Raises ValueError, naming file and column, for tables that were altered or lack a column.
    """
    folder = artifacts.figures_dir() / profile
    train_images = profiles.profile(profile)["common"].get("train_images", 0)
    stored = {stem: read(folder, stem) for stem in dict.fromkeys(c.table for c in claims)}
    findings = []
    for claim in claims:
        table, path = stored[claim.table], folder / f"{claim.table}.csv"
        try:
            findings.append(Finding(ABSENT, why=f"no {path.name}") if table is None
                            else assess(claim, table, train_images))  # fmt: skip
        except KeyError as error:
            message = f"{path}: no column {error}, which claim {claim.id!r} reads"
            raise ValueError(message) from error
    for family in {number(claim.table) for claim in claims}:  # those of one notebook
        places = [k for k, claim in enumerate(claims) if number(claim.table) == family]
        for place, finding in zip(places, correct([findings[k] for k in places]), strict=True):
            findings[place] = finding
    return [Judgement(c, profile, f) for c, f in zip(claims, findings, strict=True)]


def frame(judgements: Sequence[Judgement]) -> DataFrame:
    """Return verdicts as a table: claim, verdict, effect with interval, n, source."""
    return DataFrame([
        {"claim": j.claim.text, "verdict": j.finding.verdict, "predicted": j.claim.predicted,
         "effect": j.effect, "n": j.finding.n or "-", "decided by": j.finding.why or "-",
         "source": j.claim.source} for j in judgements
    ])  # fmt: skip


def markdown(judgements: Sequence[Judgement], short: bool = False) -> list[str]:
    """Return how many claims got which verdict, and their table; `short` keeps what is decided."""
    count = Counter(j.finding.verdict for j in judgements)
    lead = (f"The papers' claims and our own, tested on these results (`make check`): {len(judgements)} "
            f"claims: {count[HOLDS]} hold, {count[FAILS]} do not hold, for {count[OPEN]} there is not "
            f"enough evidence, {count[ABSENT]} are not measured.")  # fmt: skip
    table = frame(judgements)
    if short:
        table = table[table["verdict"].isin([HOLDS, FAILS])].drop(columns="decided by")
    tables = [] if table.empty else [table.to_markdown(index=False)]
    return [lead, *tables]


def contradictions(judgements: Sequence[Judgement]) -> list[str]:
    """Say where this repository gives another verdict than its results, or one that they cannot give.

    Nothing contradicts too few seeds, rows that were not measured, or "not enough evidence".
    """
    return [
        f"{j.profile}, claim {j.claim.id}: the repository says '{says}', its results say "
        f"'{j.finding.verdict}' ({j.effect}, {j.finding.n} seeds): correct it in claims.csv and "
        "the text, or find what went wrong"
        for j in judgements if (says := j.claim.says.get(j.profile)) in (HOLDS, FAILS)
        and j.finding.verdict not in (says, ABSENT) and not j.finding.few
    ]  # fmt: skip


# settings in which profiles must agree to be compared
ALIKE = ("data", "probe_images", "probe_draws", "victim", "surrogate")


def disagreements(by_profile: Mapping[str, Sequence[Judgement]]) -> list[str]:
    """Say which claims hold in one profile and not in another with the same data and encoders."""
    decided: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for profile, judgements in by_profile.items():
        common = profiles.profile(profile)["common"]
        alike = repr([common.get(name) for name in ALIKE])
        for j in judgements:
            if j.finding.verdict in (HOLDS, FAILS):
                decided[alike, j.claim.id][j.finding.verdict].append(profile)
    return [
        f"claim {claim}: '{HOLDS}' in {', '.join(found[HOLDS])}, '{FAILS}' in {', '.join(found[FAILS])}: "
        "train longer, or with more seeds"
        for (_, claim), found in decided.items() if len(found) > 1
    ]  # fmt: skip


def missed_expectations(profile: str) -> list[str]:
    """Say what the profile expects of its encoders and what did not come out."""
    table = read(artifacts.figures_dir() / profile, "01_worth")
    expectations = profiles.profile(profile).get("expectations") or []
    met = [] if table is None else sentences.judge(table, expectations).to_dict("records")
    return [
        f"{profile}: {r['encoder']} on {r['task']}, {r['metric']}: expected {r['expected']}, measured "
        f"{r['measured']}" for r in met if r["holds"] == "NO"
    ]  # fmt: skip


# ------------------------------------------------------------------------------ the command


def check(names: Sequence[str], console: Console) -> int:
    """Print the verdicts of some profiles as tables, and return 1 for a contradiction."""
    if not names:
        console.print("no results are stored: `make paper` makes some")
        return 0
    by_profile = {profile: judge(profile) for profile in names}
    problems = []
    for profile, judgements in by_profile.items():
        console.print(Markdown("\n\n".join([f"# {profile}", *markdown(judgements)])))
        problems += missed_expectations(profile) + contradictions(judgements)
    problems += disagreements(by_profile)
    for problem in problems:
        console.print(f"[bold red]contradiction:[/] {escape(problem)}", soft_wrap=True)
    if not problems:
        console.print("no stored result contradicts what this repository says")
    return int(bool(problems))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, print the verdicts, and return 1 for a contradiction or bad input."""
    parser = argparse.ArgumentParser(prog="contsteal.paper.claims", description=__doc__)
    parser.add_argument("--profile", default="auto", help="a profile; auto: all that have results")
    profile, folder = parser.parse_args(arguments).profile, artifacts.figures_dir()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    stored = [name for name in profiles.names() if any((folder / name).glob("*.csv"))]
    try:
        return check(stored if profile == "auto" else [profile], console)
    except ValueError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
