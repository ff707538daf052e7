"""What an owner can prove: tables of verdicts on victims, stolen, obfuscated and independent encoders."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from contsteal import data, encoders, files, pretrain
from contsteal.lab import artifacts, profiles, sweeps
from contsteal.lab.artifacts import Trained
from contsteal.lab.experiment import Lab, own_carriers, private
from contsteal.loop import mode_labels
from contsteal.ownership import inference, sslguard
from contsteal.ownership.inference import Verdict
from contsteal.ownership.obfuscation import OBFUSCATIONS
from contsteal.ownership.watermark import against_chance, questions, ranked, success

FIRST = 100  # seed of the first stranger's images and weights; the victim's are 0, queries 1
PUBLIC = 2  # seed of the images that nobody trains on


@dataclass(frozen=True)
class Strangers:
    """How many encoders are trained independently of the victim, by its recipe, and on what.

    `images` of `data` and `split` each, drawn anew for each encoder; "" is the victim's data set, which
    must be endless then. 0 epochs, images or batch are the victim's.
    """

    count: int = 3
    epochs: int = 0
    images: int = 0
    batch: int = 0
    data: str = ""
    split: str = "train"


def trained_on(lab: Lab, count: int) -> Tensor:
    """Return `count` images that a lab's victim, and its mark, were trained on; ValueError for more."""
    mark = profiles.watermark(lab.settings.get("watermark", {}))
    images = lab.train_images().images[: mark.get("images") or None]
    if mark.get("data"):
        images = own_carriers(lab, mark)
    own = private(images, profiles.config(lab.settings, "victim", lab.method))
    if not 1 <= count <= len(own):
        raise ValueError(f"{count} images to test on: victim and mark were trained on {len(own)}")
    return own[torch.arange(count)]  # read, where they lie on disk


def public(lab: Lab, count: int) -> Tensor:
    """Return `count` images of the victim's data that nobody trains on; ValueError for more.

    Endless sets are drawn anew; of stored ones these are test images, which a probe is tested on.
    """
    name, size = lab.settings["data"], lab.settings["image_size"]
    if name in data.ENDLESS:
        return data.load(name, "train", count, PUBLIC, size).images.to(lab.device)
    found = data.load(name, "test", None, PUBLIC, size).images
    if count > len(found):
        raise ValueError(f"{count} public images: {name} has {len(found)} test images")
    return found[torch.arange(count)].to(lab.device)


def plan(given: dict[str, Any]) -> Strangers:
    """Return how independent encoders are trained; ValueError for a name or type that is not known."""
    profiles.check(given, {f.name: f.default for f in fields(Strangers)}, "strangers")
    return Strangers(**given)


def images_of(lab: Lab, how: Strangers, index: int) -> data.ImageSet:
    """Return the images of one independent encoder, none of which is the victim's.

    Errors: ValueError for the stored data and split that the victim was trained on.
    """
    name, size = how.data or lab.settings["data"], lab.settings["image_size"]
    own = lab.settings["data"], lab.settings["train_split"]
    if name not in data.ENDLESS and (name, how.split) == own:
        raise ValueError(
            f"strangers: {name}, split {how.split!r}, is what the victim was trained on, and cannot "
            "be drawn anew: name other `data` or another `split`"
        )
    count = how.images or lab.settings["train_images"] or None
    if name in data.ENDLESS:
        return data.load(name, how.split, count, FIRST + index, size).to(lab.device)
    return data.load(name, how.split, None, FIRST + index, size).take(slice(count)).to(lab.device)


def train_independent(lab: Lab, how: Strangers, index: int) -> Trained:
    """Train an encoder independently of the victim, on one thread, or return it where that was done."""
    own = profiles.config(lab.settings, "victim", lab.method)
    if own.method == pretrain.READY:
        raise ValueError(
            f"strangers of a victim of method {own.method!r}: its recipe is not known; count: 0 does "
            "without them"
        )
    given = {k: getattr(how, k) for k in ("epochs", "batch") if getattr(how, k)}
    config = replace(own, **given, seed=FIRST + index)
    images = images_of(lab, how, index)
    identity = asdict(config) | {"images": lab._data_key(images), "on": lab._machine}
    identity["origin"] = pretrain.origin(config)

    def make(folder: Path) -> None:
        with artifacts.single_thread():
            made = pretrain.fit(config, images, artifacts.work_dir(folder) / "last.pt")
        artifacts.write(folder, made.encoder, made.history, {}, made.projector)

    def tell(why: str) -> None:  # each has images and weights of its own
        lab.told.append("computing independent")

    code = ("contsteal.pretrain",)
    return artifacts.read(artifacts.artifact("independent", identity, code, make, tell), lab.device)


Thieves = Mapping[str, Mapping[str, Any]]
Row = dict[str, Any]
KINDS = ("victim", "unmarked", "obfuscated", "stolen", "independent")


@dataclass(frozen=True)
class Suspect:
    """One encoder to be examined, by what makes it; `kind` is one of KINDS.

    "unmarked" is the victim before it was marked, "obfuscated" the victim's own weights behind a map of
    `obfuscate`. A stolen one has the query `images` and an attack's `changes`.
    """

    kind: str
    name: str
    seed: int = 0
    images: int | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    how: Strangers = field(default_factory=Strangers)

    def find(self, lab: Lab, there: Lab) -> nn.Module:
        """Return the encoder; `there` is the lab whose victim was attacked, `lab` the unmarked one."""
        if self.kind == "stolen":
            return there.steal(queries=self.images, seed=self.seed, **dict(self.changes)).encoder
        if self.kind == "independent":
            return train_independent(lab, self.how, self.seed).encoder
        if self.kind == "unmarked":
            return lab.train("victim", lab.method).encoder
        net = there.victim.encoder
        return OBFUSCATIONS[self.name](net) if self.kind == "obfuscated" else net

    @property
    def about(self) -> Row:
        """What each of its rows says of it."""
        return {"kind": self.kind, "suspect": self.name, "seed": self.seed, "images": self.images}


@dataclass(frozen=True)
class Trial:
    """One suspect, made where need be, and a test of it; `lab` holds changes of the settings."""

    suspect: Suspect
    test: Callable[[Lab, nn.Module], list[Row]]
    lab: tuple[tuple[str, Any], ...] = ()

    def run(self, lab: Lab) -> tuple[list[Row], list[str]]:
        """Return the test's rows, each beside what tells the suspect, and what was computed and why."""
        there = lab.but(**dict(self.lab))
        net = self.suspect.find(lab, there)
        with artifacts.single_thread():
            rows = self.test(there, net)
        told = [reason for one in {id(x): x for x in (lab, there)}.values() for reason in one.told]
        lab.told, there.told = [], []
        return [self.suspect.about | row for row in rows], told


@dataclass(frozen=True)
class Training:
    """What trials need first, run beside others: an independent encoder, or a victim's mark."""

    suspect: Suspect
    mark: tuple[tuple[str, Any], ...] = ()
    lab: tuple[tuple[str, Any], ...] = ()

    def run(self, lab: Lab) -> tuple[list[Row], list[str]]:
        """Train, or read back; return the seconds that it took."""
        there = lab.but(watermark=dict(self.mark)) if self.mark else lab
        own = self.suspect
        made = there.victim if self.mark else train_independent(lab, own.how, own.seed)
        told, there.told = there.told, []
        return [self.suspect.about | {"seconds": made.seconds}], told


def strangers(how: Strangers) -> Iterator[Suspect]:
    """Yield the independent encoders; ValueError for a count below 0."""
    if how.count < 0:
        raise ValueError(f"{how.count} independent encoders: 0 or more are needed")
    return (Suspect("independent", "independent", k, how=how) for k in range(how.count))


def stolen(thieves: Thieves, budgets: Sequence[int], seeds: Sequence[int]) -> Iterator[Suspect]:
    """Yield a surrogate per thief, budget and seed; a thief's changes name its `attack`."""
    for (name, changes), images, seed in product(thieves.items(), budgets, seeds):
        yield Suspect("stolen", name, seed, images, tuple(sorted(changes.items())))


def copies() -> Iterator[Suspect]:
    """Yield the victim's weights behind each obfuscation."""
    return (Suspect("obfuscated", name) for name in OBFUSCATIONS)


Plan = Mapping[str, Any]
Changes = tuple[tuple[str, Any], ...]
HEADS = {True: "trained head", False: "untrained head, as published"}
FORMS = ("signed", "published")
GAP = 'dataset inference, "{}"'


def train_suspects(lab: Lab, how: Plan, marks: Sequence[Plan] = ()) -> pd.DataFrame:
    """Train the independent encoders, and marks into the victim, side by side; return their seconds."""
    jobs = [Training(Suspect("victim", "victim"), tuple(mark.items())) for mark in marks]
    jobs += map(Training, strangers(plan(dict(how))))
    return pd.DataFrame(sweeps.run(lab, jobs), columns=["kind", "suspect", "seed", "seconds"])


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
    found += [*copies(), *stolen(thieves, budgets, seeds)]
    found += strangers(plan(dict(how)))
    return pd.DataFrame(sweeps.run(lab, [Trial(s, test, there) for s in found]))


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
    train_suspects(lab, how, marks)
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
    plan = profiles.watermark(dict(mark))
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
    sent = questions(trained_on(there, images))
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
            found["p_controls"] = _p(inference.against_controls, row[measure], others[measure])
        if row["applies"] == "yes" and "right" in table and len(others):
            other = others.iloc[row["seed"] % len(others) if at in alone.index else 0]
            found["p_paper"] = _p(inference.welch, _answers(row), _answers(other))
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
    rows = sweeps.run(lab, [sweeps.Exam({"kind": k}, v.encoder, (task,)) for k, v in nets.items()])
    worth = pd.DataFrame(rows).assign(suspect=lambda t: t["kind"])[
        ["kind", "accuracy", "agreement"]
    ]
    return table.merge(worth, on="kind", how="left")


# ----------------------------------------------------------------------- dataset inference


def dataset_inference(
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
    train_suspects(lab, how)
    return _examine(lab, partial(_inference, images, options), thieves, budgets, seeds, how)


def _inference(images: int, options: Plan, there: Lab, net: nn.Module) -> list[Row]:
    """Return the verdicts in both forms, from the artifact where this suspect was examined before."""
    own = trained_on(there, 2 * images)
    fresh = public(there, images)
    shown = {"net": net.state_dict(), "own": {"": own}, "fresh": {"": fresh}}
    identity = {k: encoders.digest(v.items()) for k, v in shown.items()}
    identity |= {"options": dict(options), "device": ", ".join([str(there.device), *mode_labels()])}

    def make(folder: Path) -> None:
        parts = [encoders.embed(net, part) for part in (*inference.split(own), fresh)]
        scores = inference.mixture_scores(*parts, **options)
        verdicts = {form: inference.welch(*scores, GAP, form) for form in FORMS}
        files.write_json(folder / "verdicts.json", {k: vars(v) for k, v in verdicts.items()})

    def tell(why: str) -> None:  # a suspect is told from others by its weights, which say nothing
        there.told.append("computing dataset inference")

    folder = artifacts.artifact(
        "inference", identity, ("contsteal.ownership.inference",), make, tell
    )
    told = f"{images} training images to fit, {images} to test, against {images} of nobody's"
    return [
        {"form": form, "gap": v["measure"], "effect": v["effect"], "p": v["p_value"], "on": told}
        for form, v in sorted(files.read_json(folder / "verdicts.json").items(), reverse=True)
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
    train_suspects(lab, how, [mark])
    crowd = thieves, budgets, seeds, how
    return _marked(lab, mark, partial(_key, images), "cosine", *crowd).drop(columns="p_paper")


def _key(images: int, there: Lab, net: nn.Module) -> list[Row]:
    key = there.victim.mark
    if net.dim != key.dim:
        return [_not_read(net, key.dim)]
    found = sslguard.verify(key, net, trained_on(there, images))
    told = f"{images} training images of the victim, stamped"
    return [{"applies": "yes", "rate": found.measure, "cosine": found.effect,
             "p_keys": found.p_value, "on": told}]  # fmt: skip
