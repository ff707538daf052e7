"""The papers' claims and our own, tested on stored results: `python -m contsteal.paper.claims`.

A claim is a sentence, its source, and a function that picks the two sides from a table. To add one, add a
`Claim` to `CLAIMS`. `make check` calls this module: for one profile, or for all whose results are stored.
It ends with 1 where a stored result contradicts this repository.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isinf, isnan, nan
from pathlib import Path

import pandas as pd
from pandas import DataFrame, Series
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.stats import binom, ttest_1samp

from contsteal import defenses, files
from contsteal.evaluate import mean_interval
from contsteal.lab import artifacts, profiles, sweeps, tables
from contsteal.ownership import proportion
from contsteal.paper import sentences
from contsteal.paper.notebooks import number

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
    ahead, or there is nothing to test. `says` is this repository's own verdict, by
    profile.
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


def at(budget: Callable[[DataFrame], DataFrame], a: str, b: str) -> Pick:
    """Return a function that picks two attacks on the main task at the largest or smallest budget."""
    return lambda t: {
        f"{images} images": attacks(rows, a, b)
        for images, rows in split(budget(main_task(t).dropna(subset=["calls"])), "images").items()
    }


def largest(t: DataFrame) -> DataFrame:
    """Return the rows of the largest budget."""
    return where(t, images=t["images"].max())


def smallest(t: DataFrame) -> DataFrame:
    """Return the rows of the smallest budget."""
    return where(t, images=t["images"].min())


def split(t: DataFrame, *columns: str) -> dict[str, DataFrame]:
    """Return the rows of each combination of values, by its name."""
    return {
        ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values): rows
        for values, rows in t.groupby(list(columns), sort=False)
    }


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


def mse(t: DataFrame, **values: object) -> DataFrame:
    """Return the rows of the conventional attack, which does not adapt, that have these values."""
    rows = where(main_task(t), attack="embedding", **values)
    return rows[rows["adapts"].isna()]


def defended(t: DataFrame, *kinds: str) -> dict[str, DataFrame]:
    """Return the rows of the conventional attack under each defence of these kinds, by its name."""
    return split(mse(t)[mse(t)["kind"].isin(kinds)], "defence")


def b4b(t: DataFrame, published: bool) -> dict[str, DataFrame]:
    """Return the rows of the conventional attack under B4B, as published or calibrated."""
    each = defended(t, "B4B")
    return {d: rows for d, rows in each.items() if (rows["strength"] == BETA).all() == published}


def adapted(t: DataFrame, how: str, *kinds: str) -> dict[str, Sides]:
    """Pair MSE that adapts to each defence of these kinds with MSE that does not."""
    each = where(main_task(t), attack="embedding", adapts=how)
    return {d: (where(each, defence=d), rows) for d, rows in defended(t, *kinds).items()
            if d in set(each["defence"])}  # fmt: skip


def against_none(each: Mapping[str, DataFrame], t: DataFrame) -> dict[str, Sides]:
    """Pair the rows under each defence with those of MSE without one: what is left."""
    return {name: (rows, mse(t, defence="none")) for name, rows in each.items()}


def harmed(each: Mapping[str, DataFrame], t: DataFrame) -> dict[str, Sides]:
    """Pair the rows of MSE without a defence with those under each: what is lost."""
    return {name: (mse(t, defence="none"), rows) for name, rows in each.items()}


def kinds(t: DataFrame, a: str, b: str = "independent") -> Sides:
    """Return the rows of two kinds of encoders that an owner examines."""
    return where(t, kind=a), where(t, kind=b)


def each(rows: DataFrame, *columns: str) -> dict[str, Sides]:
    """Return one side for each combination of values: of suspects who are judged one by one."""
    return {name: (suspects,) for name, suspects in split(rows, *columns).items()}


def carriers(t: DataFrame, a: str, b: str) -> Sides:
    """Return the rows of two thieves of a victim whose mark other images carry."""
    thieves = largest(where(t, head=CARRIED, kind="stolen"))
    return where(thieves, suspect=a), where(thieves, suspect=b)


def inherited(t: DataFrame) -> dict[str, Sides]:
    """Pair the first thief of the marked victim with the same of the victim before marking, by head."""
    each = {head: where(rows, kind="stolen before") for head, rows in split(t, "head").items()}
    thieves = where(t, kind="stolen")
    return {head: (like(before, thieves, "head", "suspect", "images"), before)
            for head, before in each.items() if len(before)}  # fmt: skip


def equal_coverage(t: DataFrame, a: str, b: str) -> Sides:
    """Return the rows of two users of the first B4B after the most queries that both have sent."""
    t = first(t, "defence").rename(columns={"user": "who"})
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

# fmt: off
SHA = "Sha et al., CVPR 2023"
ICML = "Dziedzic et al., ICML 2022"
B4B = "Dubiński et al. (B4B), NeurIPS 2023"
INFERENCE = "Dziedzic et al. (Dataset Inference for Self-Supervised Models), NeurIPS 2022, Table 1"
SSLGUARD = "Cong et al. (SSLGuard), CCS 2022"
OURS = "this repository"
CODE = "the official code changes loss and augmentation at once"

# A defence cannot fail to stop an attack that is no better than random features: hence the premises.
MSE_STEALS = ("MSE ends 5 points above random features", versus("embedding", "random"))
INFO_NCE_STEALS = ("InfoNCE ends 5 points above random features", versus("info-nce", "random"))
OFFSET = "GaussianNoise with offset"
BETA = defenses.B4B().beta  # as published
FEW = "customer, few classes"
SHUFFLED = "info-nce, own views, shuffled"
BROKEN = ("cont-steal, no learning", "cont-steal, temperature 100")
RIGHT_ANSWERS_STEAL = ("the same attack with the right answers ends 5 points above random features",
                       versus("info-nce, own views", "random"))
UNDEFENDED_STEALS = ("MSE without a defence ends 5 points above random features",
                     lambda t: (mse(t, defence="none"), where(main_task(t), attack="random")))
MARKED = ("the victim's own rate is 5 points above that of independent encoders",
          lambda t: kinds(first(t, "head"), "victim"))
NO_VICTIM = ("random", *sweeps.ALONE)
CARRIED = "trained head, carried by digits"
VIEWS = ("clean", "own views", "shared views", "independent views")
SETTINGS = ("images", "query_data", "method", "views")

CLAIMS = [
    # what there is to steal
    Claim("victim-floor", "03_attacks", f"{SHA}, abstract",
          "The victim's features solve the main task better than random features.",
          versus("victim", "random")),
    Claim("victim-floor-tasks", "02_conventional", f"{SHA}, abstract",
          "The victim's features are better than random ones on every downstream task.",
          lambda t: {task: (where(rows, attack="victim"), where(rows, attack="random"))
                     for task, rows in split(t, "task").items()}),

    Claim("worth-stealing", "03_steps", f"{OURS}, notebook 03",
          "The victim's features are better than what a thief trains without it for as many steps as the "
          "attacks: SimCLR on the queries alone, and supervision with the labelled images.",
          lambda t: without_answers(t, "victim"), budgets=[],
          says={"demo": HOLDS, "study": HOLDS}),
    Claim("answers-matter", "03_steps", f"{OURS}, notebook 03",
          "InfoNCE on the surrogate's own views steals more than a thief gets without the victim.",
          lambda t: without_answers(t, "info-nce, own views"), budgets=[],
          says={"demo": HOLDS, "study": HOLDS}),
    Claim("answers-matter-mse", "03_steps", f"{OURS}, notebook 03",
          "MSE steals more than a thief gets without the victim.",
          lambda t: without_answers(t, "embedding"), budgets=[]),

    Claim("nothing-to-steal", "01_stake", f"{OURS}, notebook 01",
          "On shapes SimCLR on the query images alone comes within 5 points of the victim.",
          lambda t: attacks(where(t, data="shapes"), "SimCLR on the queries", "victim"),
          NOT_WORSE, budgets=[]),
    Claim("nothing-to-steal-labels", "01_stake", f"{OURS}, notebook 01",
          "On shapes supervision with the labelled images alone comes within 5 points of the victim.",
          lambda t: attacks(where(t, data="shapes"), "labelled images", "victim"),
          NOT_WORSE, budgets=[]),

    # conventional attacks
    Claim("embedding-label", "02_conventional", f"{SHA}, abstract; {ICML}, Table 4",
          "An embedding thief gets a better main task than a label thief (encoders are more "
          "vulnerable than classifiers).", versus("embedding", "label")),
    Claim("embedding-label-head", "02_conventional", f"{SHA}, abstract; {ICML}, Table 4",
          "An embedding thief, with a probe of its own, gets a better main task than a label thief "
          "with the head it was trained with.", lambda t: own(t, "label", "accuracy", "own_head")),
    Claim("embedding-posterior", "02_conventional", f"{SHA}, abstract",
          "An embedding thief gets a better main task than a posterior thief.",
          versus("embedding", "posterior"),
          says={"study": FAILS}),
    Claim("embedding-label-agreement", "02_conventional", f"{SHA}, abstract",
          "An embedding thief agrees with the victim more often than a label thief, each by a new "
          "probe.",
          versus("embedding", "label"), metric="agreement"),
    Claim("embedding-label-served", "02_readings", f"{SHA}, abstract",
          "An embedding thief's probe agrees with the victim's more often than a label thief's own "
          "classifier agrees with the provider's.",
          lambda t: own(t, "label", "agreement", "own_agreement"), metric="agreement"),
    Claim("embedding-label-elsewhere", "02_conventional", f"{ICML}, Table 4",
          "On tasks that its classifier was not made for, an embedding thief is ahead of a label "
          "thief.",
          lambda t: {task: attacks(rows, "embedding", "label")
                     for task, rows in split(t.drop(main_task(t).index), "task").items()}),
    Claim("embedding-label-supervised", "02_readings", f"{SHA}, abstract",
          "An embedding thief gets a larger share of its victim's accuracy than a label thief who "
          "attacks a classifier on an encoder that was trained with supervision.",
          lambda t: of_supervised(t, "label"), metric="share"),
    Claim("embedding-posterior-supervised", "02_readings", f"{SHA}, abstract",
          "An embedding thief gets a larger share of its victim's accuracy than a posterior thief who "
          "attacks a classifier on an encoder that was trained with supervision.",
          lambda t: of_supervised(t, "posterior"), metric="share"),
    Claim("embedding-label-cka", "03_attacks", f"{OURS}, notebook 02",
          "An embedding thief's features are more like the victim's (linear CKA) than a label thief's.",
          versus("embedding", "label"), metric="cka"),

    # losses
    Claim("contrastive-mse", "02_losses", f"{ICML}, Table 2",
          "Contrastive losses (InfoNCE, soft nearest neighbours) steal better than MSE.",
          lambda t: {loss: attacks(t, loss, "embedding") for loss in ("info-nce", "soft-nn")}),
    Claim("contrastive-mse-cka", "02_losses", f"{OURS}, after {ICML}, Table 2",
          "Contrastive losses (InfoNCE, soft nearest neighbours) copy the features more closely "
          "(linear CKA) than MSE.",
          lambda t: {loss: attacks(t, loss, "embedding") for loss in ("info-nce", "soft-nn")},
          metric="cka"),
    Claim("info-nce-mse", "03_views", f"{ICML}, Table 2",
          "InfoNCE steals better than MSE on clean images.",
          versus("info-nce, clean", "embedding, clean")),
    Claim("info-nce-mse-own", "03_steps", f"{OURS}, after {ICML}, Table 2",
          "InfoNCE steals better than MSE where the surrogate sees its own views.",
          versus("info-nce, own views", "embedding, own views")),
    Claim("loss-order", "02_losses", f"{ICML}, Table 2",
          "Soft nearest neighbours steal better than Wasserstein, and Wasserstein better than "
          "Barlow as published.",
          lambda t: {"soft-nn over wasserstein": attacks(t, "soft-nn", "wasserstein"),
                     "wasserstein over barlow-published": attacks(t, "wasserstein", "barlow-published")},
          budgets=["images"]),  # Barlow sends two views of each
    Claim("wasserstein-mse", "02_losses", f"{ICML}, Table 2",
          "The Wasserstein loss steals worse than MSE.", versus("embedding", "wasserstein")),
    Claim("wasserstein-cka", "02_losses", f"{OURS}, after {ICML}, Table 2",
          "The Wasserstein loss leaves features as near to the victim's as random ones, within 5 "
          "points of linear CKA.", versus("wasserstein", "random"), EQUIVALENT, metric="cka",
          premise=MSE_STEALS),
    Claim("barlow-mse", "02_losses", f"{ICML}, Table 2",
          "The Barlow loss as published fails, and steals worse than MSE with the same images.",
          versus("embedding", "barlow-published"), budgets=["images"]),  # Barlow sends two views of each
    Claim("barlow-cka", "02_losses", f"{OURS}; surrogate and victim never meet in that form",
          "The Barlow loss as published leaves features as near to the victim's as random ones, "
          "within 5 points of linear CKA.", versus("barlow-published", "random"), EQUIVALENT,
          metric="cka", premise=MSE_STEALS),
    Claim("barlow-corrected", "02_losses", f"{OURS}, losses.barlow",
          "The corrected Barlow loss copies the features more closely (linear CKA) than the "
          "published form.", versus("barlow", "barlow-published"), metric="cka"),
    Claim("direct-recreate", "02_losses", f"{ICML}, Table 1",
          "Stealing embeddings directly is at most 5 points worse than with a recreated head.",
          versus("info-nce", "recreate-head"), NOT_WORSE, budgets=["images"],
          premise=INFO_NCE_STEALS),  # the head is learnt from two views of each
    Claim("direct-access", "02_losses", f"{ICML}, Table 1",
          "Stealing embeddings directly is at most 5 points worse than stealing the head's output.",
          versus("info-nce", "access-head"), NOT_WORSE, premise=INFO_NCE_STEALS),
    Claim("rda-cont-steal", "02_losses", "Wu et al. (RDA), ECCV 2024, abstract",
          "RDA, with ten answers to each image, steals better than Cont-Steal with as many images.",
          versus("rda", "cont-steal"), budgets=["images"]),
    Claim("own-queries", "02_elsewhere", f"{ICML}, Table 3",
          "Queries from the victim's own data steal better than as many from any other data.",
          own_and_other_queries),

    # Cont-Steal
    Claim("cont-steal-mse", "03_victims", f"{SHA}, abstract",
          "Cont-Steal steals better than the conventional embedding attack (MSE).",
          lambda t: attacks(first(t, "victim_seed"), "cont-steal", "embedding"),
          says={"demo": HOLDS, "study": HOLDS}),
    Claim("cont-steal-victims", "03_victims", f"{SHA}, abstract",
          "Cont-Steal is ahead of MSE on each of at least three victims of one recipe.",
          lambda t: {f"victim {seed}": attacks(rows, "cont-steal", "embedding") for seed, rows
                     in split(t, "victim_seed").items() if t["victim_seed"].nunique() > 2}),
    Claim("cont-steal-mse-own", "03_steps", f"{OURS}, notebook 03; {CODE}",
          "Cont-Steal steals better than MSE whose surrogate sees its own views.",
          versus("cont-steal", "embedding, own views")),
    Claim("cont-steal-code-mse", "03_steps", f"{SHA}, abstract and official code",
          "Cont-Steal in the form of the official code steals better than MSE.",
          versus("cont-steal-code", "embedding")),
    Claim("published-optimizer", "03_steps", f"{SHA}, abstract and official code",
          "With the optimizer of the official code, its form of Cont-Steal steals better than MSE.",
          versus("cont-steal-code, published optimizer", "embedding, published optimizer")),
    Claim("info-nce-views-mse", "03_steps", f"{ICML}, Table 2; {CODE}",
          "InfoNCE on the surrogate's own views steals better than the conventional attack (MSE).",
          versus("info-nce, own views", "embedding"),
          says={"demo": HOLDS, "study": HOLDS}),
    Claim("loss-alone", "03_views", f"{SHA}, abstract; {CODE}",
          "At equal views, whichever they are, Cont-Steal's loss steals better than MSE.",
          lambda t: at_views(t, "cont-steal", "embedding", *VIEWS)),
    Claim("loss-alone-clean", "03_views", f"{SHA}, abstract; {CODE}",
          "Without augmentation Cont-Steal's loss steals better than MSE.",
          lambda t: at_views(t, "cont-steal", "embedding", "clean")),
    Claim("loss-alone-own", "03_views", f"{SHA}, abstract; {CODE}",
          "Where the surrogate sees its own views, Cont-Steal's loss steals better than MSE.",
          lambda t: at_views(t, "cont-steal", "embedding", "own views")),
    Claim("augmentation-alone", "03_steps", f"{OURS}, notebook 03; {CODE}",
          "Augmentation alone (the surrogate's own views) makes MSE steal better.",
          versus("embedding, own views", "embedding"),
          says={"demo": HOLDS, "study": HOLDS}),
    Claim("augmentation-cont-steal", "03_views", f"{OURS}, notebook 03; {CODE}",
          "Cont-Steal's loss steals better on the surrogate's own views than on the independent ones "
          "that are published, at as many queries.",
          versus("cont-steal, own views", "cont-steal, independent views")),
    Claim("settings-every", "03_boundary", f"{SHA}, abstract",
          "Cont-Steal is ahead of MSE in every setting (queries, query data, victim, views).",
          lambda t: {setting: attacks(rows, "cont-steal", "embedding")
                     for setting, rows in split(main_task(t), *SETTINGS).items()}),
    Claim("settings-mean", "03_boundary", f"{SHA}, abstract",
          "Cont-Steal is ahead of MSE on average over settings (queries, query data, victim, views).",
          versus("cont-steal", "embedding"), mean_over=SETTINGS),
    Claim("negatives-victim", "03_ablations", f"{SHA}, the loss",
          "Cont-Steal needs the victim's other answers as negatives.",
          lambda t: (where(main_task(t), knob="as given"),
                     where(main_task(t), knob="negatives", value="self"))),
    Claim("negatives-self", "03_ablations", f"{SHA}, the loss",
          "Cont-Steal needs the surrogate's own other vectors as negatives.",
          lambda t: (where(main_task(t), knob="as given"),
                     where(main_task(t), knob="negatives", value="victim"))),
    Claim("control", "03_control", f"{OURS}, notebook 03, the control",
          "A thief who trains on shuffled answers ends at most 5 points above random features.",
          versus("random", SHUFFLED), NOT_WORSE, premise=RIGHT_ANSWERS_STEAL),
    Claim("control-cka", "03_control", f"{OURS}, notebook 03, the control",
          "A thief who trains on shuffled answers ends at most 5 points of linear CKA nearer to "
          "the victim than random features.", versus("random", SHUFFLED), NOT_WORSE, metric="cka",
          premise=RIGHT_ANSWERS_STEAL),

    Claim("broken-attacks", "03_control", f"{OURS}, notebook 03, the controls",
          "An attack with shuffled answers, or with next to no learning, ends below supervision with the "
          "labelled images, without the victim.",
          lambda t: {a: attacks(t, "labelled images", a) for a in (SHUFFLED, BROKEN[0])}, budgets=[],
          says={"study": HOLDS}),
    Claim("flat-loss", "03_control", f"{OURS}, notebook 03, the controls",
          "Cont-Steal with a temperature of 100 ends below supervision with the labelled images, without "
          "the victim.", versus("labelled images", BROKEN[1]), budgets=[],
          says={"study": FAILS}),

    # queries
    Claim("fifth-mse", "04_budget", f"{ICML}, abstract",
          "With fewer distinct queries than a fifth of the victim's training set, MSE reaches 95 % "
          "of the victim.", versus("embedding", "victim"), NEARLY_ALL, within=0.2),
    Claim("fifth-cont-steal", "04_budget", f"{ICML}, abstract; {SHA}, abstract",
          "With fewer distinct queries than a fifth of the victim's training set, Cont-Steal "
          "reaches 95 % of the victim.", versus("cont-steal", "victim"), NEARLY_ALL, within=0.2),
    Claim("more-queries", "04_budget", f"{ICML}, Tables 7 and 9",
          "More queries steal more, the largest budget more than the smallest.",
          lambda t: {attack: (largest(rows), smallest(rows))
                     for attack in ("embedding", "cont-steal")
                     for rows in [where(main_task(t), attack=attack)]}, budgets=[]),
    Claim("few-mse", "04_budget", f"{ICML}, Table 7",
          "With few queries MSE is ahead of contrastive stealing.",
          at(smallest, "embedding", "cont-steal")),
    Claim("many-contrastive", "04_budget", f"{ICML}, Table 7",
          "With many queries contrastive stealing is ahead of MSE.",
          at(largest, "cont-steal", "embedding")),
    Claim("fresh-views", "04_budget", f"{SHA}, official code, which asks in every epoch",
          "Asking for new views in every epoch steals more than asking once, with as many images.",
          at(largest, "cont-steal, anew", "cont-steal"), budgets=["images"]),

    # defences
    Claim("noise-thief", "05a_defenses", f"{ICML}, Table 10",
          "Zero-mean noise takes at most 5 points from a thief.",
          lambda t: against_none(defended(t, "GaussianNoise"), t), NOT_WORSE,
          premise=UNDEFENDED_STEALS),
    Claim("noise-customer", "05a_defenses", f"{B4B}, Table 6",
          "Zero-mean noise harms the legitimate user.",
          lambda t: harmed(defended(t, "GaussianNoise"), t), metric="legitimate"),
    Claim("offset-thief", "05a_defenses", f"{ICML}, Table 10",
          "Noise with a constant offset harms a thief who trains with MSE.",
          lambda t: harmed(defended(t, OFFSET), t)),
    Claim("rounding-thief", "05a_defenses", "Liu et al. (StolenEncoder), CCS 2022, abstract",
          "Rounding and top-k take at most 5 points from a thief.",
          lambda t: against_none(defended(t, "Rounding", "TopK"), t), NOT_WORSE,
          premise=UNDEFENDED_STEALS),
    Claim("rounding-customer", "05a_defenses", "the ICML paper's authors, blog of February 2023",
          "Rounding and top-k harm the legitimate user.",
          lambda t: harmed(defended(t, "Rounding", "TopK"), t), metric="legitimate"),
    Claim("poisoning-thief", "05a_defenses", "Orekondy et al., ICLR 2020, for classifiers",
          "Prediction poisoning harms a thief.",
          lambda t: harmed(defended(t, "PredictionPoisoning"), t)),
    Claim("poisoning-customer", "05a_defenses", f"{ICML}, appendix E.1, without an experiment",
          "Prediction poisoning harms the legitimate user, too.",
          lambda t: harmed(defended(t, "PredictionPoisoning"), t), metric="legitimate"),
    Claim("averaging", "05a_defenses", f"{OURS}, notebook 05a",
          "A thief who averages four answers to each image gets more through fresh noise and poisoning.",
          lambda t: adapted(t, "averages 4 answers", "GaussianNoise", "PredictionPoisoning"),
          budgets=["images", "unique_inputs"]),
    Claim("centring", "05a_defenses", f"{OURS}, notebook 05a",
          "A thief who subtracts the mean answer gets more through noise with an offset.",
          lambda t: adapted(t, "centres", OFFSET)),
    Claim("bounds", "05a_defenses", f"{OURS}, notebook 05a",
          "A thief who takes truncated answers as bounds gets more through top-k.",
          lambda t: adapted(t, "takes bounds", "TopK")),
    Claim("b4b-published", "05a_defenses", f"{OURS}, notebook 05a",
          "With the published constants B4B takes at most 5 points from a thief with so few queries.",
          lambda t: against_none(b4b(t, published=True), t), NOT_WORSE, premise=UNDEFENDED_STEALS),
    Claim("b4b-thief", "05a_defenses", f"{B4B}, Table 1",
          "B4B, calibrated on customers of few classes, harms a thief with one account.",
          lambda t: harmed(b4b(t, published=False), t)),
    Claim("b4b-few", "05a_defenses", f"{B4B}, Table 1",
          "B4B, so calibrated, takes at most 5 points from customers of few classes.",
          lambda t: against_none(b4b(t, published=False), t), NOT_WORSE, metric="few"),
    Claim("b4b-customer", "05a_defenses", f"{B4B}, Table 1",
          "B4B, so calibrated, takes at most 5 points from customers of all classes.",
          lambda t: against_none(b4b(t, published=False), t), NOT_WORSE, metric="legitimate"),
    Claim("two-accounts", "05a_defenses", f"{B4B}, Table 1",
          "Two accounts, mapped onto each other, get more through B4B than one, with as many images.",
          lambda t: adapted(t, "2 accounts", "B4B"), budgets=["images"]),  # both ask the anchors
    Claim("six-accounts", "05a_defenses", f"{OURS}, notebook 05a",
          "Six accounts lose at most 5 points to B4B.",
          lambda t: against_none(split(where(main_task(t), attack="embedding", adapts="6 accounts"),
                                       "defence"), t),
          NOT_WORSE, budgets=["images"], premise=UNDEFENDED_STEALS),
    Claim("b4b-coverage", "05a_coverage", f"{B4B}, Figure 3",
          "A thief covers more of the embedding space than a customer of few classes with as many "
          "queries.", lambda t: equal_coverage(t, "thief", FEW), metric="coverage", budgets=[]),

    # detectors: customers and thieves who send as many images
    Claim("views-similar", "05b_detectors", f"{ICML}, section 5.3",
          "Similar queries, on projections and calibrated on customers, flag most thieves who send "
          "several views of each image.",
          lambda t: flagged(t, "thief, four views", "similar projections, calibrated"), MOSTLY,
          metric="flagged"),
    Claim("single-images", "05b_detectors", f"{ICML}, section 5.3",
          "Calibrated on customers, neither similar queries nor PRADA flag more than a tenth of the "
          "thieves who send single images.",
          lambda t: flagged(t, "thief, single images", "calibrated"), RARELY, metric="flagged"),
    Claim("prada-natural", "05b_detectors", f"{ICML}, section 5.3",
          "PRADA at its published setting flags at most a tenth of the thieves who send one view of each "
          "image.",
          lambda t: flagged(t[~t["user"].str.contains("views")], "thief", "PRADA, W < 0.9"), RARELY,
          metric="flagged"),
    Claim("published-settings", "05b_detectors", f"{OURS}, notebook 05b",
          "Similar queries (cosine 0.5, or L2 13, of the ICML paper) and PRADA (W below 0.9) each flag "
          "at most a tenth of the customers.",
          lambda t: flagged(t[~t["detector"].str.contains("calibrated")], "customer"), RARELY,
          metric="flagged"),
    Claim("calibrated-customers", "05b_detectors", f"{OURS}, notebook 05b",
          "Calibrated on some customers, each detector flags at most a tenth of all, those with other "
          "tasks included.", lambda t: flagged(t, "customer", "calibrated"), RARELY, metric="flagged"),
    Claim("price-thief", "05b_detectors", "Dziedzic et al., ICLR 2022, abstract",
          "Proof of work charges each kind of thief more than a customer who sends as many images.",
          lambda t: bills(t, "thief, single images", "thief, four views", "thief, photographs"),
          metric="statistic"),
    Claim("price-photographs", "05b_detectors", "Dziedzic et al., ICLR 2022, Table 2, Knockoff",
          "Proof of work charges a thief with images unlike a customer's more than a customer.",
          lambda t: bills(t, "thief, photographs"), metric="statistic"),
    Claim("new-account", "05b_refused", f"{OURS}, notebook 05b",
          "A refused thief with several views who goes on under new names steals more than one who "
          "stops.",
          lambda t: ends(t, "four views, all answers", "four views, stops"), budgets=[]),
    Claim("refused-too-late", "05b_refused", f"{OURS}, notebook 05b",
          "A thief with several views has more than without the victim when it is refused.",
          lambda t: {f"{d}, {alone}": sides for alone in NO_VICTIM
                     for d, sides in ends(t, "four views, stops", alone).items()}, budgets=[]),
    Claim("views-needless", "05b_refused", f"{OURS}, notebook 05b",
          "With as many answers, single images steal more than several views of a quarter as many.",
          lambda t: ends(t, "single images, all answers", "four views, all answers"), budgets=["calls"]),

    # the owner's proofs; an independent encoder has no budget
    Claim("watermark-victim", "05c_watermark",
          f"{ICML}, section 5.1, which gives no rate of the victim itself",
          "A marked victim reads its watermark more often than independent encoders do.",
          lambda t: {head: kinds(rows, "victim") for head, rows in split(t, "head").items()},
          metric="wsr"),
    Claim("watermark-transfers", "05c_watermark", f"{ICML}, section 5.1, Tables 5 and 17",
          "The watermark accuses thieves with the most queries, whose rate is significantly above that "
          "of independent encoders.",
          lambda t: each(largest(where(t, kind="stolen")), "head", "suspect"), DETECTS,
          metric="accused"),
    Claim("watermark-inherited", "05c_watermark", f"{OURS}, notebook 05c",
          "A thief of the marked victim takes over more of the mark than the same thief of the victim "
          "before marking, whose coordinates the head reads, too.", inherited, metric="wsr"),
    Claim("watermark-few", "05c_watermark", f"{ICML}, Table 17, whose least budget is 10,000",
          "The watermark accuses thieves with the fewest queries.",
          lambda t: each(smallest(where(first(t, "head"), kind="stolen")), "suspect"), DETECTS,
          metric="accused"),
    Claim("watermark-carrier", "05c_watermark", f"{OURS}, notebook 05c",
          "Of a mark that other images carry, a thief who queries with these takes over more than one "
          "who queries with the victim's data.",
          lambda t: carriers(t, "embedding, digits", "embedding"), metric="wsr"),
    Claim("watermark-carrier-turned", "05c_watermark", f"{OURS}, notebook 05c",
          "A thief who queries with these images and turns them takes over more than one who does not.",
          lambda t: carriers(t, "embedding, digits, turned", "embedding, digits"), metric="wsr"),
    Claim("watermark-queries", "05c_watermark", f"{ICML}, Table 17",
          "More queries pass on more of the watermark, the largest budget more than the smallest.",
          lambda t: {thief: (largest(rows), smallest(rows)) for thief, rows
                     in split(where(first(t, "head"), kind="stolen"), "suspect").items()},
          metric="wsr", budgets=[]),
    Claim("watermark-turned", "05c_watermark", f"{ICML}, Table 17, attackers with rotation",
          "A thief who rotates the images in training takes over more of the watermark than one "
          "who does not, at every budget.",
          lambda t: {images: (where(rows, suspect="embedding, turned"), where(rows, suspect="embedding"))
                     for images, rows in split(where(first(t, "head"), kind="stolen"), "images").items()},
          metric="wsr"),
    Claim("watermark-hidden", "05c_watermark",
          f"{OURS}, notebook 05c; the owner's head reads features in the victim's order",
          "A thief who shuffles or mixes the features hides the watermark, to at most 5 points "
          "above independent encoders.",
          lambda t: {how: (where(first(t, "head"), kind="independent"),
                           where(first(t, "head"), kind="obfuscated", suspect=how))
                     for how in ("shuffle", "affine")}, NOT_WORSE, metric="wsr", premise=MARKED),
    Claim("inference-victim", "05c_inference", INFERENCE,
          "Dataset inference accuses a victim that memorised its training set.",
          lambda t: (where(t, form="signed", kind="victim"),), DETECTS, metric="accused"),
    Claim("inference-stolen", "05c_inference", INFERENCE,
          "Dataset inference accuses the thieves of a victim that memorised.",
          lambda t: each(largest(where(t, form="signed", kind="stolen")), "suspect"), DETECTS,
          metric="accused"),
    Claim("inference-obfuscated", "05c_inference", INFERENCE,
          "Dataset inference accuses copies of the victim whose features are shuffled, padded or mixed.",
          lambda t: each(where(t, form="signed", kind="obfuscated"), "suspect"), DETECTS,
          metric="accused"),
    Claim("inference-independent", "05c_inference", INFERENCE,
          "Dataset inference accuses fewer than one in three independent encoders.",
          lambda t: each(where(t, kind="independent"), "form"), SPARES, metric="accused"),
    Claim("guard-victim", "05c_sslguard", SSLGUARD,
          "A victim with a secret key answers it with a higher cosine than independent encoders do.",
          lambda t: kinds(t, "victim"), metric="cosine"),
    Claim("guard-transfers", "05c_sslguard", SSLGUARD,
          "SSLGuard's key accuses thieves: their cosine is significantly above that of independent "
          "encoders.",
          lambda t: each(largest(where(t, kind="stolen")), "suspect"), DETECTS, metric="accused"),
]
# fmt: on


# Verdicts expected before a profile's first run on its data; a changed expectation is a new line.
PREDICTIONS = [
    ("2026-11-28", HOLDS, (
        "victim-floor", "worth-stealing", "answers-matter", "answers-matter-mse", "embedding-label",
        "embedding-label-head", "embedding-posterior", "embedding-label-elsewhere", "info-nce-views-mse",
        "loss-alone-own", "augmentation-cont-steal", "more-queries", "wasserstein-mse", "barlow-mse",
        "own-queries", "control-cka", "noise-customer",
    )),
    ("2026-11-28", FAILS, (
        "cont-steal-mse", "cont-steal-code-mse", "loss-alone", "loss-alone-clean", "augmentation-alone",
        "settings-every", "fifth-mse", "fifth-cont-steal", "few-mse",
    )),
    # of rows that were added later
    ("2026-11-28", HOLDS, (
        "nothing-to-steal", "rda-cont-steal", "direct-recreate", "direct-access", "barlow-corrected",
        "broken-attacks", "flat-loss",
    )),
    ("2026-11-28", FAILS, ("negatives-self",)),
    ("2026-11-29", HOLDS, ("embedding-label-supervised", "embedding-label-served")),
    ("2026-11-29", FAILS, ("embedding-posterior-supervised", "published-optimizer")),
    # of thieves that adapt, poisoning and a calibrated B4B
    ("2026-11-29", HOLDS, (
        "poisoning-thief", "poisoning-customer", "bounds", "b4b-published", "b4b-thief", "two-accounts",
        "six-accounts",
    )),
    ("2026-11-29", HOLDS, ("views-similar", "price-photographs", "views-needless")),
    ("2026-11-29", FAILS, (
        "prada-natural", "published-settings", "calibrated-customers", "price-thief",
    )),
    ("2026-11-29", OPEN, ("new-account", "refused-too-late")),
    # of the owner's proofs, after marks and recipes had been chosen on victims and on seed 0
    ("2026-11-29", HOLDS, (
        "watermark-victim", "watermark-transfers", "watermark-carrier", "watermark-queries",
        "watermark-turned", "watermark-hidden", "inference-victim", "inference-obfuscated",
        "inference-independent", "guard-victim", "guard-transfers",
    )),
    ("2026-11-29", OPEN, ("watermark-few", "inference-stolen")),
    ("2026-11-29", HOLDS, ("watermark-inherited",)),
    # of twice the length, after 2,560 steps had been seen; and of ten seeds, after five
    ("2026-11-29", FAILS, ("cont-steal-mse-own", "contrastive-mse", "fresh-views")),
]  # fmt: skip


def predicted(claim: Claim) -> str:
    """Return the verdict that was expected of a claim, with the date, or "-"."""
    said = [f"{verdict} ({day})" for day, verdict, ids in PREDICTIONS if claim.id in ids]
    return said[-1] if said else "-"


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
    rate = proportion(int(values.sum()), len(values), level)
    return rate.rate, rate.low, rate.high


def exact_p_value(values: Series, bound: float) -> float:
    """Return the two-sided p-value of the share of values that are 1 against a bound.

    It is twice the smaller tail, which fits the interval; 0 for a bound outside [0, 1].
    """
    if not 0 <= bound <= 1:
        return 0.0
    hits, n = int(values.sum()), len(values)
    tail = min(binom.cdf(hits, n, bound), binom.sf(hits - 1, n, bound))
    return float(min(1.0, 2 * tail))


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
    one length alone, a verdict might be about the length, and there is not enough evidence.
    """
    trained = tables.trainings(table)[::-1]
    findings = [_assess(claim, rows, train_images) for rows in trained]
    measured = [k for k, finding in enumerate(findings) if finding.verdict != ABSENT]
    if not measured:
        return findings[0]
    finding = findings[measured[0]]
    if finding.verdict not in (HOLDS, FAILS) or not _of_surrogates(claim, trained[measured[0]]):
        return finding
    if len(measured) == 1:
        return finding.open(f"{finding.verdict} after one length of training, which is not enough")
    if (shorter := findings[measured[1]].verdict) != finding.verdict:
        return finding.open(f"after {trained[measured[1]]['steps'].max():g} steps: {shorter}")
    return finding


def _of_surrogates(claim: Claim, table: DataFrame) -> bool:
    """Say whether a claim is about trained surrogates, and not about the victim or its customers."""
    if "steps" not in table or claim.metric in CUSTOMERS:
        return False
    picked = claim.pick(table)
    comparisons = picked.values() if isinstance(picked, dict) else [picked]
    return any(rows["steps"].notna().any() for sides in comparisons for rows in sides)


def _assess(claim: Claim, table: DataFrame, train_images: int) -> Finding:
    picked = claim.pick(table)
    comparisons = picked if isinstance(picked, dict) else {"": picked}
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
    path, stamp = folder / f"{stem}.csv", folder / f"{stem}.json"
    again = f"run notebook {number(stem)} again"
    if not path.is_file():
        return None
    facts = files.read_json(stamp)
    if not isinstance(facts, dict) or "profile" not in facts:
        raise ValueError(f"{stamp} is missing or damaged: {again}")
    if facts["profile"] != folder.name:
        raise ValueError(f"{path} holds results of the profile {facts['profile']!r}: {again}")
    artifacts.check_table(path, facts)
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
        finding = Finding(ABSENT, why=f"no {path.name}")
        try:
            if table is not None:
                if not pd.api.types.is_numeric_dtype(table[claim.metric]):
                    message = f"column {claim.metric!r} holds values that are no numbers"
                    raise ValueError(f"{path}: {message}")
                finding = assess(claim, table, train_images)
        except KeyError as error:
            message = f"{path}: no column {error}, which claim {claim.id!r} reads"
            raise ValueError(message) from error
        findings.append(finding)
    for family in {number(claim.table) for claim in claims}:  # those of one notebook
        places = [k for k, claim in enumerate(claims) if number(claim.table) == family]
        for place, finding in zip(places, correct([findings[k] for k in places]), strict=True):
            findings[place] = finding
    return [Judgement(c, profile, f) for c, f in zip(claims, findings, strict=True)]


def frame(profile: str, judgements: Sequence[Judgement] | None = None) -> DataFrame:
    """Return the verdicts of a profile as a table: claim, verdict, effect with interval, n, source."""
    rows = [
        {"claim": j.claim.text, "verdict": j.finding.verdict,
         "predicted": predicted(j.claim), "effect": j.effect,
         "n": j.finding.n or "-", "decided by": j.finding.why or "-", "source": j.claim.source}
        for j in (judge(profile) if judgements is None else judgements)
    ]  # fmt: skip
    return DataFrame(rows)


def counted(judgements: Sequence[Judgement]) -> str:
    """Say how many claims got which verdict."""
    count = Counter(j.finding.verdict for j in judgements)
    decided = f"{len(judgements)} claims: {count[HOLDS]} hold, {count[FAILS]} do not hold"
    return f"{decided}, for {count[OPEN]} there is not enough evidence, {count[ABSENT]} are not measured"


def markdown(profile: str, short: bool = False) -> list[str]:
    """Return how many claims got which verdict, and their table; `short` keeps what is decided."""
    judgements = judge(profile)
    lead = "The papers' claims and our own, tested on these results (`make check`): "
    lead += f"{counted(judgements)}."
    table = frame(profile, judgements)
    if short:
        table = table[table["verdict"].isin([HOLDS, FAILS])].drop(columns="decided by")
    return [lead] if table.empty else [lead, table.to_markdown(index=False)]


def contradictions(judgements: Sequence[Judgement]) -> list[str]:
    """Say where this repository gives another verdict than its results, or one that they cannot give.

    Nothing contradicts too few seeds, rows that were not measured, or "not enough evidence".
    """
    known = ((j, j.claim.says.get(j.profile)) for j in judgements)
    return [
        f"{j.profile}, claim {j.claim.id}: the repository says '{says}', its results say "
        f"'{j.finding.verdict}' ({j.effect}, {j.finding.n} seeds): correct `says` in claims.py and "
        "the text, or find what went wrong"
        for j, says in known if says in (HOLDS, FAILS)
        and j.finding.verdict not in (says, ABSENT) and not j.finding.few
    ]  # fmt: skip


# settings in which profiles must agree to be compared
ALIKE = ("data", "probe_images", "probe_draws", "victim", "surrogate")


def disagreements(by_profile: Mapping[str, Sequence[Judgement]]) -> list[str]:
    """Say which claims hold in one profile and not in another with the same data and encoders."""
    decided: dict[tuple[str, str], dict[str, list[str]]] = {}
    for profile, judgements in by_profile.items():
        common = profiles.profile(profile)["common"]
        alike = repr([common.get(name) for name in ALIKE])
        for j in judgements:
            if j.finding.verdict in (HOLDS, FAILS):
                verdicts = decided.setdefault((alike, j.claim.id), {})
                verdicts.setdefault(j.finding.verdict, []).append(profile)
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
    """Print the verdicts of some profiles as a table, and return 1 for a contradiction."""
    if not names:
        console.print("no results are stored: `make paper` makes some")
        return 0
    by_profile = {profile: judge(profile) for profile in names}
    colours = {HOLDS: "green", FAILS: "red", OPEN: "yellow", ABSENT: "dim"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("claim", "verdict", "effect", "n", "profile", "source"):
        ratio = {"claim": 4, "effect": 2, "source": 2}.get(name)
        table.add_column(name, ratio=ratio, overflow="fold")
    for j in (j for judgements in by_profile.values() for j in judgements):
        n, verdict = str(j.finding.n or "-"), j.finding.verdict
        text, *rest = map(escape, (j.claim.text, j.effect, n, j.profile, j.claim.source))
        table.add_row(text, f"[{colours[verdict]}]{verdict}[/]", *rest)
    console.print(table)
    problems = []
    for profile, judgements in by_profile.items():
        console.print(f"{profile}: {counted(judgements)}")
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
