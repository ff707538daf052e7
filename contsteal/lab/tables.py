"""What a few seeds say: means with intervals, paired differences, and the tables of the notebooks."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from contsteal import evaluate

SAME = 1e-9  # values of all seeds nearer than this are one measurement, repeated
POINT = ("method", "query_data", "views", "images", "epochs", "steps")
COSTS = {"unique_inputs": "distinct inputs", "calls": "answers"}
PUBLISHED = Path(__file__).with_name("published.csv")
Difference = tuple[float, float, float, int]  # mean, bounds of the interval, number of pairs
NAMES = {  # of attacks, methods and suspects
    "label": "label stealing", "posterior": "posterior stealing", "embedding": "MSE", "mse": "MSE",
    "cosine": "cosine loss", "info-nce": "InfoNCE", "soft-nn": "soft nearest neighbours",
    "sup-con": "SupCon", "wasserstein": "Wasserstein", "barlow": "Barlow",
    "barlow-published": "Barlow (published code)", "cont-steal": "Cont-Steal",
    "cont-steal-code": "Cont-Steal (official code)", "stolen-encoder": "StolenEncoder", "rda": "RDA",
    "recreate-head": "recreated head", "access-head": "outputs of the head", "simclr": "SimCLR",
    "moco": "MoCo", "byol": "BYOL", "simsiam": "SimSiam", "shuffle": "victim, shuffled",
    "scale": "victim, scaled", "affine": "victim, mixed", "pad": "victim, padded",
    "before marking": "victim before marking", "independent": "independent encoders",
    "attacker": "thief", "patches": "photographs",
}  # fmt: skip
VARIANTS = {  # what follows the name of an attack
    "clean": " on clean images", "own views": " on own views", "shared views": " on shared views",
    "independent views": " on independent views", "shuffled": " with shuffled answers",
    "anew": " asked anew", "code": " (official code)", "no learning": " without learning",
    "stops": ", stops if refused", "all answers": ", goes on if refused",
}  # fmt: skip
DEFENCES = {"GaussianNoise": "noise", "Rounding": "rounding", "TopK": "top-k",
            "PredictionPoisoning": "poisoning", "Normalise": "normalised"}  # fmt: skip


def name(value: object) -> str:
    """Return how figures, tables and sentences call an attack, a method, a suspect or a defence."""
    text = re.sub(r"(\w+)\(([^()]*)\)", _defence, str(value))
    first, *rest = text.split(", ")
    words = (VARIANTS.get(word, f", {NAMES.get(word, word)}") for word in rest)
    return NAMES.get(first, first) + "".join(words)


def _defence(match: re.Match[str]) -> str:
    """Name a defence with its parameters; of more than three none fits into a figure."""
    kind, given = match.groups()
    values = given.split(", ") if given and given.count(",") < 3 else []
    shown = (f", {v.replace('=', ' ')}" if "=" in v else f" {v}" for v in values)
    return DEFENCES.get(kind, kind) + "".join(shown)


def names(values: Iterable[Any]) -> dict[Any, str]:
    """Return the name of each value, and the value itself where two would have the same name."""
    short = {value: name(value) for value in values}
    taken = list(short.values())
    return {v: text if taken.count(text) == 1 else str(v) for v, text in short.items()}


def summary(table: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Return mean, 95 % t-interval over seeds and n of each metric per group, in order of appearance.

    One run, or equal ones, have no interval; floor and victim have no views, budget or defence.
    """

    def line(values: pd.Series) -> str:
        if values.isna().any():
            return "-" if values.isna().all() else "nan"
        mean, low, high = evaluate.mean_interval(values)
        interval = f" [{100 * low:.1f}, {100 * high:.1f}]" if high - low > SAME else ""
        return f"{100 * mean:.1f}{interval}"

    def words(values: pd.Series) -> pd.Series:
        known: dict[Any, Any] = names(v for v in values.unique() if isinstance(v, str))
        known |= {v: int(v) for v in values.unique() if isinstance(v, float) and v.is_integer()}
        return values.map(lambda v: "-" if pd.isna(v) else known.get(v, v))

    table = table.assign(**{column: words(table[column]) for column in by})
    groups = table.groupby(list(by), sort=False)
    costs = COSTS | {"usd": "US dollars"}
    spent = groups[[c for c in costs if c in table]].mean().round(3).rename(columns=costs)
    spent = spent.map(lambda cost: "-" if pd.isna(cost) else f"{cost:g}")
    return spent.join(groups[list(metrics)].agg(line)).assign(n=groups.size())


def trainings(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Return a table's rows by the length of training, the shortest first.

    Where training is set in epochs, a larger number of query images trains for more steps: with as many
    lengths for each number of images, lengths are compared by their rank. Rows without training (random
    features, the victim) stand in each.
    """
    if "steps" not in table or table["steps"].isna().all():
        return [table]
    length = table["steps"]
    if "images" in table:
        each = length.groupby(table["images"].fillna(-1))
        if len({count for count in each.nunique() if count}) == 1:
            length = each.rank("dense")
    return [table[length.isna() | (length == n)] for n in sorted(length.dropna().unique())]


def longest(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the longest training that most attacks have had: they stand side by side."""
    each = trainings(table)
    if len(each) == 1:
        return table
    who = "attack" if "attack" in table else "suspect"
    most = max(rows[who].nunique() for rows in each)
    return next(rows for rows in reversed(each) if rows[who].nunique() == most)


def readings(table: pd.DataFrame) -> pd.DataFrame:
    """Return by how much an embedding thief is ahead of each classifier's thief, by what is compared.

    `table` is `sweeps.classifiers`'s, its first victim the one whose encoder and classifier are attacked.
    Rows: `reading`, the rival `attack`, `seed` and `gain`, of a share of 1. Of another victim, whose task
    may be easier, what counts is the `share` of its own accuracy.
    """
    first, main = table["victim"].iloc[0], table["task"].iloc[0]
    ours, rows = table[table["victim"] == first], []
    compared = [(f"accuracy on {task}, with new probes", ours, task, "accuracy", "accuracy")
                for task in table["task"].unique()]  # fmt: skip
    agreement, own = "agreement with the victim", "the rival with its own classifier"
    compared += [(f"{agreement}, with new probes", ours, main, "agreement", "agreement")]
    if "own_head" in table:
        compared += [(f"accuracy on {main}, {own}", ours, main, "accuracy", "own_head"),
                     (f"{agreement}, {own}", ours, main, "agreement", "own_agreement")]  # fmt: skip
    for victim in table["victim"].unique()[1:]:
        label = f"share of its victim's accuracy, the rival's victim is {victim}"
        compared.append((label, table[table["victim"] == victim], main, "share", "share"))
    for reading, theirs, task, metric, their_metric in compared:
        mine = ours[(ours["attack"] == "embedding") & (ours["task"] == task)]
        for rival in ("label", "posterior"):
            runs = theirs[(theirs["attack"] == rival) & (theirs["task"] == task)]
            gains = mine.set_index("seed")[metric] - runs.set_index("seed")[their_metric]
            rows += [{"reading": reading, "attack": rival, "seed": seed, "gain": gain}
                     for seed, gain in gains.dropna().items()]  # fmt: skip
    return pd.DataFrame(rows, columns=["reading", "attack", "seed", "gain"])


def difference(
    table: pd.DataFrame, a: str, b: str, metric: str = "accuracy", level: float = 0.95
) -> Difference:
    """Return mean, t-interval (95 %, or `level`) and n of a's minus b's metric, paired by seed."""
    wide = table.pivot_table(index="seed", columns="attack", values=metric)
    pairs = (wide[a] - wide[b]).dropna()
    return *evaluate.mean_interval(pairs, level), len(pairs)


def shares(table: pd.DataFrame, alone: Iterable[str]) -> pd.Series:
    """Return each attack's share of the way from the best that needs no victim to the victim, in percent.

    `alone` names, beside random features, what needs none. All are mean accuracies of `table`, which has
    one task and one length of training. NaN where the victim is not ahead: there is no way to go.
    """
    means = table.groupby("attack", sort=False)["accuracy"].mean()
    start = floor(table, alone)
    way = means["victim"] - start
    return (100 * (means - start) / (way if way > 0 else np.nan)).round(1)


def floor(table: pd.DataFrame, alone: Iterable[str]) -> float:
    """Return the best mean accuracy of random features and `alone`, which need no victim, or NaN."""
    rows = table[table["attack"].isin(["random", *alone])]
    return float(rows.groupby("attack")["accuracy"].mean().max())


def gains(table: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Return a's minus b's accuracy at each point of a `grid`: mean, 95 % t-interval, n.

    `best` is the mean accuracy of the better one.
    """
    rows, axes = [], [column for column in POINT if column in table]
    for point, runs in table.groupby(axes, sort=False):
        gap = zip(("gain", "low", "high", "n"), difference(runs, a, b), strict=True)
        best = runs.groupby("attack")["accuracy"].mean().max()
        rows.append(dict(zip(axes, point, strict=True)) | dict(gap) | {"best": best})
    return pd.DataFrame(rows)


def layout(table: pd.DataFrame) -> pd.DataFrame:
    """Return a loss table as the ICML paper lays it out: a row per loss, a column per victim and task.

    Before them stands what a run sends: not all losses cost the same. Published numbers (`published`)
    of the same data have rows of their own.
    """
    rows = table.assign(attack=_named(table))
    cells = rows.groupby(["attack", "victim", "task"], sort=False)["accuracy"].agg(_cell)
    wide = cells.unstack(["victim", "task"]).reindex(rows["attack"].unique())
    spent = rows.groupby("attack")[list(COSTS)].mean()
    for place, (cost, label) in enumerate(COSTS.items()):
        wide.insert(place, (label, ""), spent[cost].map("{:,.0f}".format, na_action="ignore"))
    known = published(table)
    theirs = known.assign(attack=_named(known) + ", " + known["source"],
                          accuracy=known["accuracy"].map("{:.1f}".format))  # fmt: skip
    theirs = theirs.pivot(index="attack", columns=["victim", "task"], values="accuracy")
    return pd.concat([wide, theirs]).fillna("-")


def _named(table: pd.DataFrame) -> pd.Series:
    """Return names of attacks, with what they were queried with where a table has several query sets."""
    attack, sets = table["attack"].map(name), table.reindex(columns=["query_data", "images"])
    if len(sets.dropna().drop_duplicates()) < 2:
        return attack
    sent = table["query_data"].map(name, na_action="ignore").fillna("")
    return attack + (", " + table["images"].map("{:g}".format) + " " + sent).where(sent != "", "")


def _cell(values: pd.Series) -> str:
    mean, low, high = evaluate.mean_interval(values)
    return f"{100 * mean:.1f}" + ("" if np.isnan(low) else f" ± {50 * (high - low):.1f}")


def published(table: pd.DataFrame) -> pd.DataFrame:
    """Return published accuracies (in %) on a table's victims, tasks and numbers of queries."""
    known = pd.read_csv(PUBLISHED, comment="#")
    point = ["victim", "query_data", "images", "task"]
    if "query_data" not in table:
        table = table.assign(query_data=table["victim"])
    same = known.merge(table[point].dropna().drop_duplicates())
    ceiling = known[known["attack"] == "victim"].merge(same[["victim", "task"]])
    return pd.concat([same, ceiling]).drop_duplicates().reset_index(drop=True)


def reached(table: pd.DataFrame, share: float, trained_on: int) -> pd.DataFrame:
    """Return per attack the budget at which it has `share` of the victim's accuracy.

    Per seed where the line between the measured budgets, over the logarithm of distinct inputs, first
    meets the goal, a share of what the victim reaches with the same labelled images; then mean and 95 %
    t-interval, in distinct inputs and as a share of the `trained_on` images of the victim. A seed whose
    smallest budget is enough counts with that budget, which is an upper bound: the table says how many
    do. An attack that misses the goal in a seed has no budget, and one with a single budget no line.
    """
    goals = share * table[table["attack"] == "victim"].groupby("seed")["accuracy"].mean()
    rows = {}
    for attack, runs in table.dropna(subset=["unique_inputs"]).groupby("attack", sort=False):
        if runs["images"].nunique() < 2:
            continue
        each = runs.groupby("seed")
        budgets = pd.Series([_crossing(run, goals.get(s, goals.mean())) for s, run in each])
        hits, n = budgets.notna().sum(), len(budgets)
        first = (budgets <= each["unique_inputs"].min().to_numpy()).sum()
        mean, low, high = evaluate.mean_interval(budgets) if hits == n else [np.nan] * 3
        rows[name(attack)] = {"seeds that reach it": f"{hits} of {n}", "at the smallest budget": first,
                      "distinct inputs": mean, "low": low, "high": high,
                      "share of training set": mean / trained_on}  # fmt: skip
    return pd.DataFrame(rows).T


def _crossing(run: pd.DataFrame, goal: float) -> float:
    """Return the distinct inputs at which one seed's accuracy first meets a goal, NaN for nowhere."""
    run = run.sort_values("unique_inputs")
    inputs, accuracy = run["unique_inputs"].to_numpy(float), run["accuracy"].to_numpy(float)
    if not (enough := accuracy >= goal).any():
        return np.nan
    if (k := int(enough.argmax())) == 0:
        return float(inputs[0])
    part = (goal - accuracy[k - 1]) / (accuracy[k] - accuracy[k - 1])
    return float(inputs[k - 1] * (inputs[k] / inputs[k - 1]) ** part)
