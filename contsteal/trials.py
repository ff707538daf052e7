"""What an owner can prove: tables of verdicts on victims, stolen, obfuscated and independent encoders."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from contsteal import encoders, independent, ownership, runs, settings, sslguard, suspects, tables
from contsteal.experiment import Lab
from contsteal.ownership import Verdict
from contsteal.speed import named
from contsteal.suspects import Row, Suspect, Thieves, Trial
from contsteal.trained import IMAGES, NETS
from contsteal.watermark import against_chance, questions, ranked, success

Plan = Mapping[str, Any]
Changes = tuple[tuple[str, Any], ...]
HEADS = {True: "trained head", False: "untrained head, as published"}
FORMS = ("signed", "published")
INFERRING = (*IMAGES, *NETS, "independent", "ownership", "trials")
GAP = 'dataset inference, "{}"'


def train(lab: Lab, how: Plan, marks: Sequence[Plan] = ()) -> pd.DataFrame:
    """Train the independent encoders, and marks into the victim, side by side; return their seconds."""
    jobs = [suspects.Training(Suspect("victim", "victim"), tuple(mark.items())) for mark in marks]
    jobs += map(suspects.Training, suspects.strangers(independent.plan(dict(how))))
    return pd.DataFrame(tables.run(lab, jobs), columns=["kind", "suspect", "seed", "seconds"])


def _examine(
    lab: Lab,
    test: Callable[[Lab, nn.Module], list[Row]],
    thieves: Thieves,
    budgets: Sequence[int],
    seeds: Sequence[int],
    how: Plan,
    there: Changes = (),
) -> pd.DataFrame:
    """Run a test on victim, obfuscated copies, stolen and independent encoders, one process per core."""
    found = [Suspect("victim", "victim"), *[Suspect("unmarked", "before marking")] * bool(there)]
    found += [*suspects.copies(), *suspects.stolen(thieves, budgets, seeds)]
    found += suspects.strangers(independent.plan(dict(how)))
    return pd.DataFrame(tables.run(lab, [Trial(s, test, there) for s in found]))


# ---------------------------------------------------------------------- rotation watermark


def watermark(
    lab: Lab,
    marks: Sequence[Plan],
    thieves: Thieves,
    budgets: Sequence[int],
    seeds: Sequence[int],
    how: Plan,
    images: int = 256,
) -> pd.DataFrame:
    """Measure the watermark success rate of every suspect, for each way to mark the victim.

    `marks` are settings `watermark`; `images` of the training images are asked, turned twice. Rows have
    `wsr` in [0, 1] and p-values: `p_chance` (exact binomial), `p_controls` (a t-test whose unit is the
    encoder; an independent one against the others), `p_paper` (answers against those of one independent
    encoder, Dziedzic et al., ICML 2022, table 5) and `p_rank` (`watermark.ranked`, of area `auc`). The
    first mark meets thieves of all `budgets`, the others of the largest. A suspect that the head cannot
    read has `applies` other than "yes". Rows of victims have accuracy and agreement on the main task.
    """
    train(lab, how, marks)
    parts = []
    for place, mark in enumerate(map(dict, marks)):
        asked = [max(budgets)] if place else budgets
        crowd = thieves, asked, seeds, how
        found = _marked(lab, mark, partial(_rotation, images), "wsr", *crowd)
        parts.append(found.assign(**_about(lab, mark)))
    return pd.concat(parts, ignore_index=True)


def _marked(
    lab: Lab, mark: Plan, test: Callable[[Lab, nn.Module], list[Row]], measure: str, *crowd: Any
) -> pd.DataFrame:
    """Examine everybody around a marked victim (`_examine`), against controls, with the mark's price."""
    there = (("watermark", mark),)
    return _priced(lab, _judged(_examine(lab, test, *crowd, there), measure), there)


def _about(lab: Lab, mark: Plan) -> Row:
    """Return what a table says of a mark: its head, and how it came into the victim."""
    plan = settings.watermark(dict(mark))
    tuned = "tuned into the victim" if plan["start"] == "victim" else "trained from the start"
    count = plan["images"] or len(lab.train_images())
    epochs = f"{plan['epochs']} epoch{'s' * (plan['epochs'] > 1)}"
    on = f", carried by {plan['data']}" if plan["data"] else ""
    mark = f"{tuned}, {epochs} of {count} images{on}"
    return {"head": HEADS[plan["trained_head"]], "mark": mark}


def _rotation(images: int, there: Lab, net: nn.Module) -> list[Row]:
    """Return how a suspect's answers to turned training images are read by the owner's head."""
    mark = there.victim.mark
    if net.dim != mark.dim:
        return [_not_read(net, mark.dim)]
    sent = questions(independent.trained_on(there, images))
    answers = encoders.embed(net, sent)
    right, order = success(mark, answers), ranked(mark, answers)
    carriers = there.settings["watermark"].get("data") or "training"
    told = f"{images} {carriers} images that the mark was trained on, each turned twice"
    return [{
        "applies": "yes", "wsr": right.mean().item(), "right": int(right.sum()), "answers": len(right),
        "p_chance": against_chance(right).p_value, "auc": order.measure, "p_rank": order.p_value,
        "on": told,
    }]  # fmt: skip


def _not_read(net: nn.Module, dim: int) -> Row:
    return {"applies": f"does not apply: {net.dim} features, the owner reads {dim}"}


def _judged(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Add the p-values against independent encoders: NaN where there are too few of them."""
    alone = table[table["kind"] == "independent"]
    rows = []
    for at, row in table.iterrows():
        others, found = alone.drop(index=at, errors="ignore"), {}
        if row["applies"] == "yes":
            found["p_controls"] = _p(ownership.against_controls, row[measure], others[measure])
        if row["applies"] == "yes" and "right" in table and len(others):
            other = others.iloc[row["seed"] % len(others) if at in alone.index else 0]
            found["p_paper"] = _p(ownership.welch, _answers(row), _answers(other))
        rows.append(found)
    judged = pd.DataFrame(rows, index=table.index).reindex(columns=["p_controls", "p_paper"])
    return table.join(judged.astype(float))


def _p(test: Callable[..., Verdict], *given: Any) -> float:
    """Return a test's p-value, NaN where samples are too few or all the same."""
    try:
        return test(*given).p_value
    except ValueError:
        return math.nan


def _answers(row: pd.Series) -> Tensor:
    return (torch.arange(int(row["answers"])) < int(row["right"])).double()


def _priced(lab: Lab, table: pd.DataFrame, there: Changes) -> pd.DataFrame:
    """Add what marked and unmarked victim are worth on the main task: a legitimate user's price."""
    nets = {"victim": lab.but(**dict(there)).victim, "unmarked": lab.train("victim", lab.method)}
    task = lab.settings["data"]
    rows = tables.run(lab, [tables.Exam({"kind": k}, v.encoder, (task,)) for k, v in nets.items()])
    worth = pd.DataFrame(rows).assign(suspect=lambda t: t["kind"])[
        ["kind", "accuracy", "agreement"]
    ]
    return table.merge(worth, on="kind", how="left")


# ----------------------------------------------------------------------- dataset inference


def inference(
    lab: Lab,
    thieves: Thieves,
    budgets: Sequence[int],
    seeds: Sequence[int],
    how: Plan,
    images: int = 1024,
    **options: Any,
) -> pd.DataFrame:
    """Ask of every suspect whether the victim's training images are likelier to it than fresh ones.

    `images` of the training images fit the mixture, as many others are tested against as many public
    ones (`independent.public`); `options` are those of `ownership.mixture_scores`. A row per suspect and
    form of the test: `gap` in nats, `effect` (Cohen's d), `p`.
    """
    train(lab, how)
    return _examine(lab, partial(_inference, images, options), thieves, budgets, seeds, how)


def _inference(images: int, options: Plan, there: Lab, net: nn.Module) -> list[Row]:
    """Return the verdicts in both forms, from the artifact where this suspect was examined before."""
    own = independent.trained_on(there, 2 * images)
    fresh = independent.public(there, images)
    shown = {"net": net.state_dict(), "own": {"": own}, "fresh": {"": fresh}}
    identity = {k: encoders.digest(v.items()) for k, v in shown.items()}
    identity |= {"options": dict(options), "device": ", ".join([str(there.device), *named()])}

    def make(folder: Path) -> None:
        parts = [encoders.embed(net, part) for part in (*ownership.split(own), fresh)]
        scores = ownership.mixture_scores(*parts, **options)
        verdicts = {form: ownership.welch(*scores, GAP, form) for form in FORMS}
        runs.write_json(folder / "verdicts.json", {k: vars(v) for k, v in verdicts.items()})

    def tell(why: str) -> None:  # a suspect is told from others by its weights, which say nothing
        there.told.append("computing dataset inference")

    folder = runs.artifact("inference", identity, INFERRING, make, tell)
    told = f"{images} training images to fit, {images} to test, against {images} of nobody's"
    return [
        {"form": form, "gap": v["measure"], "effect": v["effect"], "p": v["p_value"], "on": told}
        for form, v in sorted(runs.read_json(folder / "verdicts.json").items(), reverse=True)
    ]


# --------------------------------------------------------------------------------- SSLGuard


def guard(
    lab: Lab,
    mark: Plan,
    thieves: Thieves,
    budgets: Sequence[int],
    seeds: Sequence[int],
    how: Plan,
    images: int = 256,
) -> pd.DataFrame:
    """Measure SSLGuard's rate of every suspect, whose victim carries the key by the setting `mark`.

    `rate` is the share of `images` stamped training images whose answer has a cosine above 1/2 with the
    key, `cosine` the mean one; `p_keys` is against random keys, `p_controls` against the independent
    encoders. Rows of victims have accuracy and agreement on the main task.
    """
    mark = {"kind": "sslguard"} | dict(mark)
    train(lab, how, [mark])
    crowd = thieves, budgets, seeds, how
    return _marked(lab, mark, partial(_key, images), "cosine", *crowd).drop(columns="p_paper")


def _key(images: int, there: Lab, net: nn.Module) -> list[Row]:
    key = there.victim.mark
    if net.dim != key.dim:
        return [_not_read(net, key.dim)]
    found = sslguard.verify(key, net, independent.trained_on(there, images))
    told = f"{images} training images of the victim, stamped"
    return [{"applies": "yes", "rate": found.measure, "cosine": found.effect,
             "p_keys": found.p_value, "on": told}]  # fmt: skip
