"""Comparisons that change one thing at a time: ablations, loss tables, and where which attack wins."""

import copy
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from contsteal import encoders, evaluate, runs, steal, tables
from contsteal.b4b import B4B
from contsteal.experiment import Lab
from contsteal.tables import Job

# Knobs that are the profile's, not the attack's.
OF_LAB = ("data", "train_split", "method", "query_data", "query_split", "query_images")
AS_GIVEN = "as given"
Pairs = tuple[tuple[str, Any], ...]


def _split(lab: Lab, given: Mapping[str, Any]) -> tuple[Pairs, Pairs]:
    """Return an attack's changes, and those of the profile that differ from what it says already."""
    given = {k: v for knob in given.items() for k, v in _unfolded(*knob)}
    own = lab.settings | {"method": lab.method or lab.settings["victim"].get("method")}
    attack = sorted((k, v) for k, v in given.items() if k not in OF_LAB)
    return tuple(attack), tuple(
        sorted((k, v) for k, v in given.items() if k in OF_LAB and v != own[k])
    )


def _unfolded(knob: str, value: Any) -> Pairs:
    """Return `name@split` as a set and its split; a set without one means its `train`."""
    if knob not in ("data", "query_data"):
        return ((knob, value),)
    name, _, split = value.partition("@")
    return (knob, name), (
        "query_split" if knob == "query_data" else "train_split",
        split or "train",
    )


def of_lab(lab: Lab, **given: Any) -> dict[str, Any]:
    """Return those changes of the profile that differ from what it says already, for `lab.but`."""
    return dict(_split(lab, given)[1])


def _table(lab: Lab, points: Sequence[tuple[dict[str, Any], Job]]) -> pd.DataFrame:
    """Run the jobs side by side; return their rows, each beside what its point says of it."""
    rows = tables.run(lab, [job for _, job in points])
    said = [about for about, job in points for _ in job.tasks]
    return pd.DataFrame([about | row for about, row in zip(said, rows, strict=True)])


def ablate(
    lab: Lab,
    attack: str,
    knobs: Mapping[str, Sequence[Any]],
    queries: int,
    seeds: Sequence[int],
    task: str,
) -> pd.DataFrame:
    """Run an attack as given, then with one knob changed at a time, at the same number of queries.

    Knobs are fields of steal.Config, or the profile's data, query_data (a set, or set@split) or the
    victim's method. "Same number" is of images: more answers an image cost more. Rows
    are those of `tables.sweep` with `knob` and `value`.
    """
    settings = [(AS_GIVEN, ""), *((k, v) for k, values in knobs.items() for v in values)]
    points = []
    for (knob, value), seed in product(settings, seeds):
        changed = {} if knob == AS_GIVEN else {knob: value}
        job = Job(attack, queries, seed, (task,), (), *_split(lab, changed))
        points.append(({"knob": knob, "value": str(value)}, job))
    return _table(lab, points)


def losses(
    lab: Lab,
    attacks: Sequence[str],
    victim_data: Sequence[str],
    queries: int,
    seeds: Sequence[int],
    tasks: Sequence[str],
) -> pd.DataFrame:
    """Run every attack on the victim of each data set, which is queried with its own images."""
    points = []
    for victim, attack, seed in product(victim_data, attacks, seeds):
        changes = _split(lab, {"data": victim, "query_data": victim})
        job = Job(attack, queries, seed, tuple(tasks), (), *changes)
        points.append(({"victim": victim}, job))
    return _table(lab, points)


def elsewhere(
    lab: Lab,
    attacks: Sequence[str],
    sources: Sequence[tuple[str, str, int]],
    seeds: Sequence[int],
    tasks: Sequence[str],
) -> pd.DataFrame:
    """Run attacks on the profile's victim with queries from elsewhere: (data set, split, images)."""
    points = []
    for (name, split, images), attack, seed in product(sources, attacks, seeds):
        pool = max(images, lab.settings["query_images"])
        given = {"query_data": f"{name}@{split}", "query_images": pool}
        name = name if split == "train" else f"{name}@{split}"
        job = Job(attack, images, seed, tuple(tasks), (), *_split(lab, given))
        points.append(({"victim": lab.settings["data"], "query_data": name}, job))
    return _table(lab, points)


def grid(
    lab: Lab,
    attacks: Sequence[str],
    axes: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    tasks: Sequence[str],
) -> pd.DataFrame:
    """Run attacks on every point of a grid; `axes` are knobs as in `ablate`, and `images`.

    All attacks of a point see the same images. Rows have the axes' columns; where `epochs` is one of
    them, also `steps`, the optimizer's steps of the training.
    """
    batch = lab.settings["surrogate"].get("batch", steal.Config.batch)
    points = []
    for values in product(*axes.values()):
        at = dict(zip(axes, values, strict=True))
        size = min(batch, at["images"])
        told = {"steps": at["epochs"] * (at["images"] // size)} if "epochs" in at else {}
        knobs = {k: v for k, v in at.items() if k != "images"} | {"batch": size}
        for attack, seed in product(attacks, seeds):
            job = Job(attack, at["images"], seed, tuple(tasks), (), *_split(lab, knobs))
            points.append((at | told, job))
    return _table(lab, points)


POINT = ("method", "query_data", "views", "images", "epochs", "steps")


def gains(table: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Return a's minus b's accuracy at each point of a `grid`: mean, 95 % t-interval, n."""
    rows, axes = [], [c for c in POINT if c in table]
    for at, found in table.groupby(axes, sort=False):
        mean, low, high, n = tables.difference(found, a, b)
        rows.append(dict(zip(axes, at, strict=True))
                    | {"gain": mean, "low": low, "high": high, "n": n})  # fmt: skip
    return pd.DataFrame(rows)


def landscapes(
    lab: Lab, methods: Sequence[str], query_data: Sequence[str], count: int
) -> pd.DataFrame:
    """Describe the victims' embeddings of query images (`evaluate.geometry`), per method and data."""
    rows = []
    for method, name in product(methods, query_data):
        there = lab.but(**dict(_split(lab, {"method": method, "query_data": name})[1]))
        images = there.queries(count)
        with runs.single_thread():
            found = evaluate.geometry(encoders.embed(there.victim.encoder, images))
        rows.append({"method": method, "query_data": name} | found)
    return pd.DataFrame(rows)


def coverage(defense: B4B, users: Mapping[str, Tensor], step: int) -> pd.DataFrame:
    """Return how much of the embedding space each user's answers (N, D) cover, every `step` answers.

    Rows have the user, `queries`, `coverage` from 0 to 1 and the `noise` that it brings (B4B).
    """
    rows = []
    for name, answers in users.items():
        watching, asked = copy.deepcopy(defense), 0
        for part in answers.split(step):
            watching(part, name)
            asked += len(part)
            share = watching.coverage(name)
            noise = float(watching.sigma(share))
            rows.append({"user": name, "queries": asked, "coverage": share, "noise": noise})
    return pd.DataFrame(rows)


COSTS = {"unique_inputs": "distinct inputs", "calls": "answers"}


def layout(table: pd.DataFrame) -> pd.DataFrame:
    """Return a loss table as the ICML paper lays it out: a row per loss, a column per victim and task.

    Before them stands what a run sends: not all losses cost the same. Published numbers (`published`)
    have rows of their own, where there are any of the same data.
    """
    rows = table.assign(attack=_named(table))
    cells = rows.groupby(["attack", "victim", "task"], sort=False)["accuracy"].agg(_cell)
    wide = cells.unstack(["victim", "task"]).reindex(rows["attack"].unique())
    spent = rows.groupby("attack")[["unique_inputs", "calls"]].mean()
    for place, (cost, label) in enumerate(COSTS.items()):
        wide.insert(place, (label, ""), spent[cost].map("{:g}".format, na_action="ignore"))
    told = published(table)
    if told.empty:
        return wide.fillna("-")
    names = _named(told) + ", " + told["source"]
    theirs = told.assign(attack=names, accuracy=told["accuracy"].map("{:.1f}".format))
    theirs = theirs.pivot(index="attack", columns=["victim", "task"], values="accuracy")
    return pd.concat([wide, theirs]).fillna("-")


def _named(table: pd.DataFrame) -> pd.Series:
    """Return attacks with what they were queried with, where a table tells several sets apart."""
    if (
        "query_data" not in table
        or len(table[["query_data", "images"]].dropna().drop_duplicates()) < 2
    ):
        return table["attack"]
    sent = ", " + table["images"].map("{:g}".format) + " " + table["query_data"].fillna("")
    return table["attack"] + sent.where(table["query_data"].fillna("") != "", "")


def _cell(values: pd.Series) -> str:
    mean, low, high = evaluate.mean_interval(values)
    return f"{100 * mean:.1f}" + ("" if np.isnan(low) else f" +- {50 * (high - low):.1f}")


def published(table: pd.DataFrame) -> pd.DataFrame:
    """Return published accuracies (in %) on a table's victims, tasks and numbers of queries."""
    known = pd.read_csv(runs.PACKAGE / "published.csv", comment="#")
    sent = table["query_data"] if "query_data" in table else table["victim"]
    ours = set(zip(table["victim"], sent, table["images"], table["task"], strict=True))
    theirs = zip(known["victim"], known["query_data"], known["images"], known["task"], strict=True)
    found = known[[point in ours for point in theirs]]
    ceiling = known[(known["attack"] == "victim") & known["victim"].isin(found["victim"])]
    ceiling = ceiling[ceiling["task"].isin(found["task"])]
    return pd.concat([found, ceiling]).drop_duplicates().reset_index(drop=True)


def reached(table: pd.DataFrame, share: float, trained_on: int) -> pd.DataFrame:
    """Return per attack the smallest measured budget with `share` of the victim's accuracy.

    Per seed, then mean and 95 % t-interval, in distinct inputs and as a share of the `trained_on`
    images of the victim. An attack that misses it in a seed has no budget: the table says how often.
    """
    goal = share * table.loc[table["attack"] == "victim", "accuracy"].mean()
    rows = {}
    runs_of = table.dropna(subset=["unique_inputs"])
    for name, found in runs_of.groupby("attack", sort=False):
        hits = found[found["accuracy"] >= goal].groupby("seed")["unique_inputs"].min()
        n = found["seed"].nunique()
        mean, low, high = evaluate.mean_interval(hits) if len(hits) == n else [np.nan] * 3
        rows[name] = {"seeds that reach it": f"{len(hits)} of {n}", "distinct inputs": mean,
                      "low": low, "high": high, "share of training set": mean / trained_on}  # fmt: skip
    return pd.DataFrame(rows).T
