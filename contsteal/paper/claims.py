"""The papers' claims and our own, tested on stored results: `python -m contsteal.paper.claims`.

A claim is a sentence and its source, in claims.csv, and a function that picks its two sides from a table,
in `CHECKS`. To add one, add a row there and a line here. `make check` calls this module: for one profile,
or for all whose results are stored. It ends with 1 where a stored result contradicts this repository.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isinf, isnan, nan
from pathlib import Path
from typing import Any

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
BUDGETS = ("images", "unique_inputs", "calls")
CUSTOMERS = ("legitimate", "few")  # metrics that no surrogate is trained for

Sides = tuple[DataFrame, ...]  # the rows of a and b, one per seed; or of a alone
Picked = Sides | dict[str, Sides]  # one comparison, or several by name, all of which must come out
Pick = Callable[[DataFrame], Picked]
Premise = tuple[str, Callable[[DataFrame], Sides]]


@dataclass(frozen=True)
class Criterion:
    """The bounds of a mean: of the "difference" a - b, of the "ratio" a / b, of the "value" a, or of a
    "rate", the share of seeds whose value is 1, which has the exact interval of Clopper and Pearson.

    A difference smaller than `margin` does not count as a lead: where the whole interval lies below
    `low` + `margin`, the claim fails.
    """

    of: str
    low: float = -inf
    high: float = inf
    margin: float = 0.0


# One rule for all thresholds: 0 where somebody is said to be ahead, five points where something is said
# not to matter. They are not tuned to results. Without a margin, a claim that somebody is ahead of an
# equal could never be refuted. Less than one point means nothing, since other test images would change
# it: the standard error of 70 % on 5,000 of them is 0.65 points.
AHEAD = Criterion("difference", low=0, margin=0.01)
CLEARLY_AHEAD = Criterion("difference", low=0.05)
NOT_WORSE = Criterion("difference", low=-0.05)
EQUIVALENT = Criterion("difference", low=-0.05, high=0.05)
NEARLY_ALL = Criterion("ratio", low=0.95)
RARELY = Criterion("rate", high=0.1)
MOSTLY = Criterion("rate", low=0.5)
# Of a test at 5 %: it accuses more often than one that knows nothing, and at least every second time.
DETECTS = Criterion("rate", low=0.05, margin=0.45)
# Sixteen acquittals out of sixteen leave up to 21 %: no number of encoders trained here can show 5 %.
SPARES = Criterion("rate", high=1 / 3)


@dataclass(frozen=True)
class Claim:
    """A claim that the stored results of a profile can test.

    `pick` takes the table figures/<profile>/<table>.csv and returns the sides whose `metric` must meet
    the `criterion`. Both sides must agree in `budgets` (the default ones where the table has them).
    `mean_over` averages each seed over these columns. `within` takes a's largest number of distinct
    inputs up to this part of the victim's training set. `premise` says, and picks, what must be clearly
    ahead, or there is nothing to test. `says` is this repository's own verdict, by profile, and
    `predicted` the verdict that was expected before a profile's first run, with the date.
    """

    id: str
    table: str
    source: str
    text: str
    pick: Pick
    criterion: Criterion = AHEAD
    metric: str = "accuracy"
    budgets: Sequence[str] = BUDGETS
    mean_over: Sequence[str] = ()
    within: float = 0.0
    premise: Premise | None = None
    says: Mapping[str, str] = field(default_factory=dict)
    predicted: str = "-"


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


def attacks(t: DataFrame, a: str, b: str) -> Sides:
    """Return the rows of two attacks on the main task."""
    return where(main_task(t), attack=a), where(main_task(t), attack=b)


def versus(a: str, b: str) -> Callable[[DataFrame], Sides]:
    """Return a function that picks two attacks on the main task."""
    return lambda t: attacks(t, a, b)


def pair(column: str, a: str, b: str) -> Callable[[DataFrame], Sides]:
    """Return a function that picks the rows that have one value and those that have another."""
    return lambda t: (where(t, **{column: a}), where(t, **{column: b}))


def at(budget: Callable[[DataFrame], DataFrame], a: str, b: str) -> Pick:
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
    t: DataFrame, columns: Sequence[str], sides: Callable[[DataFrame], Sides], label: str = "{}"
) -> dict[str, Sides]:
    """Return the sides in the rows of each combination of values."""
    return {label.format(name): sides(rows) for name, rows in split(t, *columns).items()}


def own(t: DataFrame, rival: str, metric: str, column: str) -> Sides:
    """Return embedding thieves, and a classifier's with their own head's `column` as the metric."""
    thieves, rivals = attacks(t, "embedding", rival)
    return thieves, rivals.assign(**{metric: rivals[column]})


def of_supervised(t: DataFrame, rival: str) -> Sides:
    """Return embedding thieves, and a rival's that attack the supervised classifier."""
    rows = where(first(t, "task"), victim="supervised", attack=rival)
    return where(main_task(t), attack="embedding"), rows


def without_answers(t: DataFrame, attack: str) -> dict[str, Sides]:
    """Pair an attack with everything that a thief gets without the victim's answers."""
    return {name: attacks(t, attack, name) for name in NO_VICTIM}


def at_views(t: DataFrame, a: str, b: str, *views: str) -> dict[str, Sides]:
    """Pair two losses at equal views, those of `views` that the table has."""
    known = set(t["attack"])
    return {v: attacks(t, f"{a}, {v}", f"{b}, {v}") for v in views if f"{a}, {v}" in known}


def contrastive(t: DataFrame) -> dict[str, Sides]:
    """Pair the ICML paper's contrastive losses with MSE."""
    return {loss: attacks(t, loss, "embedding") for loss in ("info-nce", "soft-nn")}


def negatives(left: str) -> Callable[[DataFrame], Sides]:
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


def harmed(*kinds: str) -> Pick:
    """Return a function that pairs MSE without a defence with MSE under each: what is lost."""
    return lambda t: {d: (undefended(t), rows) for d, rows in defended(t, *kinds).items()}


def spared(*kinds: str, adapts: str = "") -> Pick:
    """Return a function that pairs MSE under each defence with MSE without one: what is left."""
    return lambda t: {d: (rows, undefended(t))
                      for d, rows in defended(t, *kinds, adapts=adapts).items()}  # fmt: skip


def adapted(adapts: str, *kinds: str) -> Pick:
    """Return a function that pairs MSE that adapts to each defence with MSE that does not."""
    return lambda t: {d: (rows, defended(t, *kinds)[d])
                      for d, rows in defended(t, *kinds, adapts=adapts).items()}  # fmt: skip


def carriers(a: str, b: str) -> Callable[[DataFrame], Sides]:
    """Return a function that picks two thieves of a victim whose mark other images carry."""
    return lambda t: pair("suspect", a, b)(largest(where(t, head=CARRIED, kind="stolen")))


def inherited(t: DataFrame) -> dict[str, Sides]:
    """Pair the first thief of the marked victim with the same of the victim before marking, by head."""
    each = {head: where(rows, kind="stolen before") for head, rows in split(t, "head").items()}
    thieves = where(t, kind="stolen")
    return {head: (like(before, thieves, "head", "suspect", "images"), before)
            for head, before in each.items() if len(before)}  # fmt: skip


def equal_coverage(t: DataFrame, a: str, b: str) -> Sides:
    """Return the rows of two users of the first B4B after the most queries that both have sent."""
    t = first(t, "defence").dropna(subset=["coverage"]).rename(columns={"user": "who"})
    t = t.assign(who=t["who"].str.replace(r"\d+", "few", regex=True))
    one, two = (where(t, who=user) for user in (a, b))
    sent = min(one["queries"].max(), two["queries"].max())
    away = [(side["queries"] - sent).abs().groupby(side["seed"]).idxmin() for side in (one, two)]
    return one.loc[away[0]], two.loc[away[1]]


def flagged(t: DataFrame, user: str, detector: str = "") -> dict[str, Sides]:
    """Return the users whose kind begins with a name, by the detectors whose name has a word in it.

    Each user counts once, whatever kind and seed: a rate is of all of them. A price flags nobody.
    """
    rows = t[t["user"].str.startswith(user) & t["detector"].str.contains(detector, regex=False)]
    return {d: (each.assign(seed=range(len(each))),) for d, each in split(rows, "detector").items()
            if each["flagged"].notna().all()}  # fmt: skip


def bills(t: DataFrame, *thieves: str) -> dict[str, Sides]:
    """Pair what thieves owe in proof of work with what the customers owe whom a table lists first."""
    owed = t[t["detector"].str.contains("proof of work")]
    known = set(owed["user"])
    return {who: (where(owed, user=who), first(owed, "user")) for who in thieves if who in known}


def ends(t: DataFrame, a: str, b: str) -> dict[str, Sides]:
    """Pair how two thieves end, for each detector that refuses them."""
    known = split(t.dropna(subset=["detector"]), "detector")
    frame = t[t["detector"].isna()]
    return {name: attacks(pd.concat([rows, frame]), a, b) for name, rows in known.items()}


def own_and_other_queries(t: DataFrame) -> Picked:
    """Pair the queries that a table lists first, the victim's own, with each other source."""
    own = first(main_task(t), "query_data")
    others = split(main_task(t).drop(own.index), "attack", "images", "query_data")
    return {name: (like(rows, own, "attack", "images"), rows) for name, rows in others.items()}


# ------------------------------------------------------------------------------ the claims

VICTIM_AND_OTHERS = pair("kind", "victim", "independent")
# A defence cannot fail to stop an attack that is no better than random features: hence the premises.
MSE_STEALS = ("MSE ends 5 points above random features", versus("embedding", "random"))
INFO_NCE_STEALS = ("InfoNCE ends 5 points above random features", versus("info-nce", "random"))
OFFSET = "GaussianNoise with offset"
BETA, PUBLISHED = defenses.B4B().beta, "B4B as published"
FEW = "customer, few classes"
SHUFFLED = "info-nce, own views, shuffled"
BROKEN = ("cont-steal, no learning", "cont-steal, temperature 100")
RIGHT_ANSWERS_STEAL = ("the same attack with the right answers ends 5 points above random features",
                       versus("info-nce, own views", "random"))  # fmt: skip
UNDEFENDED_STEALS = ("MSE without a defence ends 5 points above random features",
                     lambda t: (undefended(t), where(main_task(t), attack="random")))  # fmt: skip
MARKED = ("the victim's own rate is 5 points above that of independent encoders",
          lambda t: VICTIM_AND_OTHERS(first(t, "head")))  # fmt: skip
NO_VICTIM = ("random", *sweeps.ALONE)
CARRIED = "trained head, carried by digits"
VIEWS = ("clean", "own views", "shared views", "independent views")
SETTINGS = ("images", "query_data", "method", "views")
HIDING = ("shuffle", "affine")  # of features, which the owner's head reads in the victim's order


def checked(
    pick: Pick, criterion: Criterion = AHEAD, metric: str = "", **more: Any
) -> dict[str, Any]:
    """Return how a claim is tested; a rate is of what is flagged or, of encoders, accused."""
    usual = {"rate": "accused" if criterion in (DETECTS, SPARES) else "flagged"}
    metric = metric or usual.get(criterion.of, "accuracy")
    return {"pick": pick, "criterion": criterion, "metric": metric} | more


# In the order of claims.csv.
CHECKS: dict[str, dict[str, Any]] = {
    # what there is to steal
    "victim-floor": checked(versus("victim", "random")),
    "victim-floor-tasks": checked(lambda t: every(t, ["task"], versus("victim", "random"))),
    "worth-stealing": checked(lambda t: without_answers(t, "victim"), budgets=[]),
    "answers-matter": checked(lambda t: without_answers(t, "info-nce, own views"), budgets=[]),
    "answers-matter-mse": checked(lambda t: without_answers(t, "embedding"), budgets=[]),
    "nothing-to-steal": checked(
        lambda t: attacks(where(t, data="shapes"), "SimCLR on the queries", "victim"),
        NOT_WORSE, budgets=[]),
    "nothing-to-steal-labels": checked(
        lambda t: attacks(where(t, data="shapes"), "labelled images", "victim"), NOT_WORSE, budgets=[]),
    # conventional attacks
    "embedding-label": checked(versus("embedding", "label")),
    "embedding-label-head": checked(lambda t: own(t, "label", "accuracy", "own_head")),
    "embedding-posterior": checked(versus("embedding", "posterior")),
    "embedding-label-agreement": checked(versus("embedding", "label"), metric="agreement"),
    "embedding-label-served": checked(
        lambda t: own(t, "label", "agreement", "own_agreement"), metric="agreement"),
    "embedding-label-elsewhere": checked(
        lambda t: every(t.drop(main_task(t).index), ["task"], versus("embedding", "label"))),
    "embedding-label-supervised": checked(lambda t: of_supervised(t, "label"), metric="share"),
    "embedding-posterior-supervised": checked(lambda t: of_supervised(t, "posterior"), metric="share"),
    "embedding-label-cka": checked(versus("embedding", "label"), metric="cka"),
    # losses
    "contrastive-mse": checked(contrastive),
    "contrastive-mse-cka": checked(contrastive, metric="cka"),
    "info-nce-mse": checked(versus("info-nce, clean", "embedding, clean")),
    "info-nce-mse-own": checked(versus("info-nce, own views", "embedding, own views")),
    "loss-order": checked(
        lambda t: {"soft-nn over wasserstein": attacks(t, "soft-nn", "wasserstein"),
                   "wasserstein over barlow-published": attacks(t, "wasserstein", "barlow-published")},
        budgets=["images"]),  # Barlow sends two views of each
    "wasserstein-mse": checked(versus("embedding", "wasserstein")),
    "wasserstein-cka": checked(
        versus("wasserstein", "random"), EQUIVALENT, metric="cka", premise=MSE_STEALS),
    "barlow-mse": checked(versus("embedding", "barlow-published"), budgets=["images"]),
    "barlow-cka": checked(
        versus("barlow-published", "random"), EQUIVALENT, metric="cka", premise=MSE_STEALS),
    "barlow-corrected": checked(versus("barlow", "barlow-published"), metric="cka"),
    "direct-recreate": checked(  # the head is learnt from two views of each
        versus("info-nce", "recreate-head"), NOT_WORSE, budgets=["images"], premise=INFO_NCE_STEALS),
    "direct-access": checked(versus("info-nce", "access-head"), NOT_WORSE, premise=INFO_NCE_STEALS),
    "rda-cont-steal": checked(versus("rda", "cont-steal"), budgets=["images"]),
    "own-queries": checked(own_and_other_queries),
    # Cont-Steal
    "cont-steal-mse": checked(lambda t: attacks(first(t, "victim_seed"), "cont-steal", "embedding")),
    "cont-steal-victims": checked(
        lambda t: every(t, ["victim_seed"], versus("cont-steal", "embedding"), "victim {}")
        if t["victim_seed"].nunique() > 2 else {}),
    "cont-steal-mse-own": checked(versus("cont-steal", "embedding, own views")),
    "cont-steal-code-mse": checked(versus("cont-steal-code", "embedding")),
    "published-optimizer": checked(
        versus("cont-steal-code, published optimizer", "embedding, published optimizer")),
    "info-nce-views-mse": checked(versus("info-nce, own views", "embedding")),
    "loss-alone": checked(lambda t: at_views(t, "cont-steal", "embedding", *VIEWS)),
    "loss-alone-clean": checked(lambda t: at_views(t, "cont-steal", "embedding", "clean")),
    "loss-alone-own": checked(lambda t: at_views(t, "cont-steal", "embedding", "own views")),
    "augmentation-alone": checked(versus("embedding, own views", "embedding")),
    "augmentation-cont-steal": checked(versus("cont-steal, own views", "cont-steal, independent views")),
    "settings-every": checked(
        lambda t: every(main_task(t), SETTINGS, versus("cont-steal", "embedding"))),
    "settings-mean": checked(versus("cont-steal", "embedding"), mean_over=SETTINGS),
    "negatives-victim": checked(negatives("self")),
    "negatives-self": checked(negatives("victim")),
    "control": checked(versus("random", SHUFFLED), NOT_WORSE, premise=RIGHT_ANSWERS_STEAL),
    "control-cka": checked(
        versus("random", SHUFFLED), NOT_WORSE, metric="cka", premise=RIGHT_ANSWERS_STEAL),
    "broken-attacks": checked(
        lambda t: {a: attacks(t, "labelled images", a) for a in (SHUFFLED, BROKEN[0])}, budgets=[]),
    "flat-loss": checked(versus("labelled images", BROKEN[1]), budgets=[]),
    # queries
    "fifth-mse": checked(versus("embedding", "victim"), NEARLY_ALL, within=0.2),
    "fifth-cont-steal": checked(versus("cont-steal", "victim"), NEARLY_ALL, within=0.2),
    "more-queries": checked(
        lambda t: {attack: extremes(where(main_task(t), attack=attack))
                   for attack in ("embedding", "cont-steal")}, budgets=[]),
    "few-mse": checked(at(smallest, "embedding", "cont-steal")),
    "many-contrastive": checked(at(largest, "cont-steal", "embedding")),
    "fresh-views": checked(at(largest, "cont-steal, anew", "cont-steal"), budgets=["images"]),
    # defences
    "noise-thief": checked(spared("GaussianNoise"), NOT_WORSE, premise=UNDEFENDED_STEALS),
    "noise-customer": checked(harmed("GaussianNoise"), metric="legitimate"),
    "offset-thief": checked(harmed(OFFSET)),
    "rounding-thief": checked(spared("Rounding", "TopK"), NOT_WORSE, premise=UNDEFENDED_STEALS),
    "rounding-customer": checked(harmed("Rounding", "TopK"), metric="legitimate"),
    "poisoning-thief": checked(harmed("PredictionPoisoning")),
    "poisoning-customer": checked(harmed("PredictionPoisoning"), metric="legitimate"),
    "averaging": checked(
        adapted("averages 4 answers", "GaussianNoise", "PredictionPoisoning"),
        budgets=["images", "unique_inputs"]),
    "centring": checked(adapted("centres", OFFSET)),
    "bounds": checked(adapted("takes bounds", "TopK")),
    "b4b-published": checked(spared(PUBLISHED), NOT_WORSE, premise=UNDEFENDED_STEALS),
    "b4b-thief": checked(harmed("B4B")),
    "b4b-few": checked(spared("B4B"), NOT_WORSE, metric="few"),
    "b4b-customer": checked(spared("B4B"), NOT_WORSE, metric="legitimate"),
    "two-accounts": checked(adapted("2 accounts", "B4B"), budgets=["images"]),  # both ask the anchors
    "six-accounts": checked(
        spared("B4B", adapts="6 accounts"), NOT_WORSE, budgets=["images"], premise=UNDEFENDED_STEALS),
    "b4b-coverage": checked(lambda t: equal_coverage(t, "thief", FEW), metric="coverage", budgets=[]),
    # detectors: customers and thieves who send as many images
    "views-similar": checked(
        lambda t: flagged(t, "thief, four views", "similar projections, calibrated"), MOSTLY),
    "single-images": checked(lambda t: flagged(t, "thief, single images", "calibrated"), RARELY),
    "prada-natural": checked(
        lambda t: flagged(t[~t["user"].str.contains("views")], "thief", "PRADA, W < 0.9"), RARELY),
    "published-settings": checked(
        lambda t: flagged(t[~t["detector"].str.contains("calibrated")], "customer"), RARELY),
    "calibrated-customers": checked(lambda t: flagged(t, "customer", "calibrated"), RARELY),
    "price-thief": checked(
        lambda t: bills(t, "thief, single images", "thief, four views", "thief, photographs"),
        metric="statistic"),
    "price-photographs": checked(lambda t: bills(t, "thief, photographs"), metric="statistic"),
    "new-account": checked(
        lambda t: ends(t, "four views, all answers", "four views, stops"), budgets=[]),
    "refused-too-late": checked(
        lambda t: {f"{d}, {alone}": sides for alone in NO_VICTIM
                   for d, sides in ends(t, "four views, stops", alone).items()}, budgets=[]),
    "views-needless": checked(
        lambda t: ends(t, "single images, all answers", "four views, all answers"), budgets=["calls"]),
    # the owner's proofs; an independent encoder has no budget
    "watermark-victim": checked(lambda t: every(t, ["head"], VICTIM_AND_OTHERS), metric="wsr"),
    "watermark-transfers": checked(
        lambda t: every(largest(where(t, kind="stolen")), ["head", "suspect"], alone), DETECTS),
    "watermark-inherited": checked(inherited, metric="wsr"),
    "watermark-few": checked(
        lambda t: every(smallest(where(first(t, "head"), kind="stolen")), ["suspect"], alone), DETECTS),
    "watermark-carrier": checked(carriers("embedding, digits", "embedding"), metric="wsr"),
    "watermark-carrier-turned": checked(
        carriers("embedding, digits, turned", "embedding, digits"), metric="wsr"),
    "watermark-queries": checked(
        lambda t: every(where(first(t, "head"), kind="stolen"), ["suspect"], extremes),
        metric="wsr", budgets=[]),
    "watermark-turned": checked(
        lambda t: every(where(first(t, "head"), kind="stolen"), ["images"],
                        pair("suspect", "embedding, turned", "embedding")), metric="wsr"),
    "watermark-hidden": checked(
        lambda t: every(where(first(t, "head"), kind="obfuscated").query("suspect in @HIDING"),
                        ["suspect"], lambda rows: (where(first(t, "head"), kind="independent"), rows)),
        NOT_WORSE, metric="wsr", premise=MARKED),
    "inference-victim": checked(lambda t: alone(where(t, form="signed", kind="victim")), DETECTS),
    "inference-stolen": checked(
        lambda t: every(largest(where(t, form="signed", kind="stolen")), ["suspect"], alone), DETECTS),
    "inference-obfuscated": checked(
        lambda t: every(where(t, form="signed", kind="obfuscated"), ["suspect"], alone), DETECTS),
    "inference-independent": checked(
        lambda t: every(where(t, kind="independent"), ["form"], alone), SPARES),
    "guard-victim": checked(VICTIM_AND_OTHERS, metric="cosine"),
    "guard-transfers": checked(
        lambda t: every(largest(where(t, kind="stolen")), ["suspect"], alone), DETECTS),
}  # fmt: skip


CLAIMS = [
    Claim(row["id"], row["table"], row["source"], row["claim"], **CHECKS[row["id"]],
          predicted=row["predicted"] or "-",
          says={profile: row[profile] for profile in ("demo", "study") if row[profile]})
    for row in pd.read_csv(LIST, dtype=str, keep_default_na=False).to_dict("records")
]  # fmt: skip


# ------------------------------------------------------------------------------ statistics

SEEDS = 3  # fewer give no verdict
RISK = 0.05  # of an interval that misses the mean, over all comparisons of a claim
SAME = 1e-9  # values of all seeds nearer than this are one measurement, repeated
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
    return 0.0 if isinf(bound) else float(ttest_1samp(values, bound).pvalue)


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
    interval, p_of = (exact_interval, exact_p_value) if exact else (mean_interval, p_value)
    findings = []
    for name, values in samples.items():
        n = 1 if values.max() - values.min() < SAME and not exact else len(values)
        findings.append(Finding(OPEN, *interval(values), n=n, name=name))
    findings.sort(key=lambda f: min(f.mean - low, high - f.mean))
    worst, count = findings[0], min(f.n for f in findings)
    if count < SEEDS:
        unit = "seeds" if count > 1 else "measurements"
        return replace(worst, why=f"{count} of {SEEDS} {unit}", few=True)
    for finding in findings if conclusive else ():
        values = samples[finding.name]
        _, lower, upper = interval(values, 1 - RISK / len(samples))
        if upper < low + criterion.margin or lower > high:
            p = len(samples) * p_of(values, high if lower > high else low + criterion.margin)
            near = upper >= low and lower <= high and not exact
            why = "less than one point ahead" if near else ""
            return replace(finding, verdict=FAILS, p=p, why=why)
    least = low + criterion.margin
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
    """Return the difference, ratio or value of a claim's metric by seed, or raise NotComparable.

    The same seed means the same queries, first weights and batches for both sides; a table without seeds
    has one. With `mean_over`, a seed counts only with every point measured.
    """
    index = ["seed", *claim.mean_over]
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
        a, b = _aligned(*indexed)
        _check_budgets(claim, a, b)
        one, two = a[claim.metric], b[claim.metric]
        values = one / two if claim.criterion.of == "ratio" else one - two
    if claim.mean_over and len(values):
        values = values.unstack(list(claim.mean_over)).dropna().mean(axis=1)
    if values.dropna().empty:
        raise NotComparable("no seed has values of all sides")
    return values.dropna()


def _aligned(a: DataFrame, b: DataFrame) -> tuple[DataFrame, DataFrame]:
    """Return both sides with the same seeds and points, the one victim beside each of them."""
    one, two = (len(rows) == 1 and any(rows[column].iloc[0] in ONE_FOR_ALL
                                       for column in ("attack", "kind") if column in rows)
                for rows in (a, b))  # fmt: skip
    if one:
        return a.iloc[[0] * len(b)].set_axis(b.index), b
    if two:
        return a, b.iloc[[0] * len(a)].set_axis(a.index)
    both = a.index.intersection(b.index)
    return a.loc[both], b.loc[both]


def _check_budgets(claim: Claim, a: DataFrame, b: DataFrame) -> None:
    for column in claim.budgets:
        if claim.budgets is BUDGETS and column not in a:
            continue
        one, two = a[column].astype(float), b[column].astype(float)
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
    trained = [(rows, made) for rows, made in trained if len(made) == most]
    findings = [_assess(claim, *each, train_images) for each in trained]
    measured = [k for k, finding in enumerate(findings) if finding.verdict != ABSENT]
    if not measured:
        return findings[0]
    finding = findings[measured[0]]
    if finding.verdict not in (HOLDS, FAILS) or not _of_surrogates(claim, *trained[measured[0]]):
        return finding
    if len(measured) == 1:
        return finding.open(f"{finding.verdict} after one length of training, which is not enough")
    if (shorter := findings[measured[1]].verdict) != finding.verdict:
        return finding.open(f"after {trained[measured[1]][0]['steps'].max():g} steps: {shorter}")
    return finding


def _of_surrogates(claim: Claim, table: DataFrame, comparisons: dict[str, Sides]) -> bool:
    """Say whether a claim is about trained surrogates, and not about the victim or its customers."""
    if "steps" not in table or claim.metric in CUSTOMERS:
        return False
    return any(rows["steps"].notna().any() for sides in comparisons.values() for rows in sides)


def _comparisons(claim: Claim, table: DataFrame) -> dict[str, Sides]:
    picked = claim.pick(table)
    return picked if isinstance(picked, dict) else {"": picked}


def _assess(
    claim: Claim, table: DataFrame, comparisons: dict[str, Sides], train_images: int
) -> Finding:
    if not comparisons:
        return Finding(ABSENT, why=f"{claim.table}.csv has no such rows")
    conclusive, notes = True, []
    if claim.within:  # at a's largest number of distinct inputs up to the limit
        limit = int(claim.within * train_images)
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
    points = claim.metric in SHARES  # a margin is in points
    criterion = claim.criterion if points else replace(claim.criterion, margin=0.0)
    finding = decide(samples, criterion, conclusive)
    many = f"of {len(samples)} comparisons" if len(samples) > 1 else ""
    why = "; ".join(filter(None, (finding.name, many, *notes, finding.why)))
    finding = replace(finding, why=why)
    text, pick = claim.premise or ("", None)
    if pick is None or _shown(claim, pick(table)):
        return finding
    return finding.open(f"nothing to test: it is not shown that {text}")


def _shown(claim: Claim, sides: Sides) -> bool:
    """Say whether a premise holds: what was not measured does not show it."""
    try:
        values = by_seed(replace(claim, criterion=CLEARLY_AHEAD), sides)
    except NotComparable:
        return False
    return decide({"": values}, CLEARLY_AHEAD).verdict == HOLDS


# ------------------------------------------------------------------------------ stored results

# metrics from 0 to 1, shown in percent
SHARES = ("accuracy", "agreement", "knn", "cka", "cosine", "legitimate", "few", "coverage", "wsr",
          "share", "flagged", "accused")  # fmt: skip


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
        percent = self.claim.metric in SHARES or of == "ratio"
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
    try:
        table = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} is no table: {error}; {again}") from error
    if table.empty:
        raise ValueError(f"{path} has no rows: {again}")
    return table


def judge(profile: str, claims: Sequence[Claim] = CLAIMS) -> list[Judgement]:
    """Return the verdict on every claim from a profile's stored results.

    Raises ValueError, naming file and column, for tables that are damaged or lack a column or rows.
    """
    folder = artifacts.figures_dir() / profile
    train_images = profiles.profile(profile)["common"].get("train_images", 0)
    stored = {stem: read(folder, stem) for stem in dict.fromkeys(c.table for c in claims)}
    findings = []
    for claim in claims:
        table, path = stored[claim.table], folder / f"{claim.table}.csv"
        if table is None:
            findings.append(Finding(ABSENT, why=f"no {path.name}"))
            continue
        try:
            if not pd.api.types.is_numeric_dtype(table[claim.metric]):
                raise ValueError(
                    f"{path}: column {claim.metric!r} holds values that are no numbers"
                )
            findings.append(assess(claim, table, train_images))
        except KeyError as error:
            message = f"{path}: no column {error}, which claim {claim.id!r} reads"
            raise ValueError(message) from error
    families = [number(claim.table) for claim in claims]  # those of one notebook
    for family in set(families):
        places = [k for k, name in enumerate(families) if name == family]
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
