"""What an owner can prove: tables of verdicts on victims, stolen, obfuscated and independent encoders."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn

from contsteal import data, encoders, files, number, pretrain
from contsteal.data import ImageSet
from contsteal.lab import artifacts, profiles, sweeps
from contsteal.lab.artifacts import Trained
from contsteal.lab.experiment import Lab, carrier_images, load, pixels, private
from contsteal.lab.profiles import Count, Data, distinct
from contsteal.lab.sweeps import Job, Numbers, Pairs, Row, product
from contsteal.ownership import inference, sslguard
from contsteal.ownership.inference import Form
from contsteal.ownership.obfuscation import OBFUSCATIONS
from contsteal.ownership.watermark import against_chance, questions, ranked, success

FIRST = 100  # seed of the first stranger's images and weights; the victim's are 0, queries 1
PUBLIC = 2  # seed of the images that nobody trains on
ASKED = 256  # training images that a test of a mark asks a suspect about
HEADS = {True: "trained head", False: "untrained head, as published"}
FORMS: tuple[Form, ...] = ("signed", "published")

Plan = Mapping[str, Any]
Thieves = Mapping[str, Plan]  # by name: fields of steal.Config, `steps` perhaps several
Test = Callable[[Lab, nn.Module], list[Row]]


# ----------------------------------------------------------------------- images and suspects


def trained_on(lab: Lab, count: int) -> Tensor:
    """Return `count` images that a lab's victim, and its mark, were trained on; ValueError for more."""
    mark = lab.watermark
    images = pixels(lab.train_images())[: mark.get("images") or None]
    if mark.get("data"):
        images = carrier_images(lab)
    images = private(images, lab.recipe)
    number(count, "images that the victim was trained on", int, least=1, most=len(images))
    return images[torch.arange(count)]  # read, where they lie on disk


def public(lab: Lab, count: int, block: int = 0) -> Tensor:
    """Return `count` images of the victim's data that nobody trains on; ValueError for more.

    Endless sets are drawn anew, and no two blocks share an image; of stored ones these are test images,
    which a probe is tested on, in another order for each block.
    """
    name, size = lab.settings["data"], lab.settings["image_size"]
    if name in data.ENDLESS:
        drawn = load(name, "train", count * (block + 1), PUBLIC, size)
        return pixels(drawn.to(lab.device))[count * block :]
    images = pixels(load(name, "test", None, PUBLIC, size))
    number(count, f"test images of {name}", int, most=len(images))
    return images[data.order(len(images), block)[:count]].to(lab.device)


class Strangers(profiles.Strict):
    """How many encoders are trained independently of the victim, by its recipe, and on what.

    `images` of `data` each, drawn anew for each encoder; "" is the victim's data set, which must be
    endless then. 0 epochs, images or batch are the victim's.
    """

    count: Count = 3
    epochs: Count = 0
    images: Count = 0
    batch: Count = 0
    data: Data = ""

    def load(self, lab: Lab, index: int) -> ImageSet:
        """Return the images of one independent encoder, none of which is the victim's.

        Errors: ValueError for the stored data that the victim was trained on.
        """
        name, size = self.data or lab.settings["data"], lab.settings["image_size"]
        count, endless = self.images or lab.settings["train_images"] or None, name in data.ENDLESS
        own = lab.settings["data"], lab.settings["train_split"]
        if (name, "train") == own and not endless:
            raise ValueError(f"strangers: the victim was trained on {name}; name other `data`")
        images = load(name, "train", count if endless else None, FIRST + index, size)
        return images.take(slice(count)).to(lab.device)


def train_independent(lab: Lab, plan: Strangers, index: int) -> Trained:
    """Train an encoder independently of the victim, on one thread, or return it where that was done."""
    if lab.recipe.method == pretrain.READY:
        raise ValueError("strangers are trained by the victim's recipe, which method "
                         f"{lab.recipe.method!r} does not know; set their count to 0")  # fmt: skip
    given = {k: getattr(plan, k) for k in ("epochs", "batch") if getattr(plan, k)}
    config = replace(lab.recipe, **profiles.lengthened(given), seed=FIRST + index)
    return lab.fit("independent", config, plan.load(lab, index))


@dataclass(frozen=True)
class Suspect:
    """One encoder to be examined, by what makes it.

    `kind` is "victim"; "profile", another lab's victim; "unmarked", the victim before it was marked;
    "obfuscated", the victim's own weights behind a map of `obfuscation`; "stolen", by an attack's
    `changes` on the query `images`, of other data where they name `query_data`; "stolen before", by an
    attack on the victim before it was marked; or "independent", trained by the plan `strangers`.
    """

    kind: str
    name: str
    seed: int = 0
    images: int | None = None
    changes: Pairs = ()
    strangers: Strangers = field(default_factory=Strangers)

    def find(self, lab: Lab) -> tuple[nn.Module, Row]:
        """Return the encoder, made where need be, and what its rows say of it.

        `lab` is the one whose victim was attacked. The rows of a surrogate have its `steps` of training.
        """
        if self.kind.startswith("stolen"):
            elsewhere = sweeps.of_lab(lab, **dict(self.changes))
            knobs = {k: v for k, v in self.changes if k not in sweeps.OF_LAB}
            attacked = lab.but(**elsewhere)
            attacked = attacked.but(watermark={}) if self.kind == "stolen before" else attacked
            stolen = attacked.steal(queries=cast(int, self.images), seed=self.seed, **knobs)
            return stolen.encoder, self.about | {"steps": stolen.queries["steps"]}
        if self.kind == "independent":
            net = train_independent(lab, self.strangers, self.seed).encoder
        elif self.kind == "unmarked":
            net = lab.train("victim", lab.method).encoder
        else:
            net = lab.victim.encoder
        other = OBFUSCATIONS[self.name](net) if self.kind == "obfuscated" else net
        return other, self.about | {"steps": None}

    @property
    def about(self) -> Row:
        """What each of its rows says of it."""
        return {"kind": self.kind, "suspect": self.name, "seed": self.seed, "images": self.images}


def examine(lab: Lab, suspect: Suspect, test: Test) -> list[Row]:
    """Return a test's rows of a suspect, made where need be, each beside what identifies it."""
    net, about = suspect.find(lab)
    mark = lab.victim.mark  # of dimensions that the owner's head or key reads
    if mark is not None and net.dim != mark.dim:
        no = f"does not apply: {net.dim} features, the owner reads {mark.dim}"
        return [about | {"applies": no}]
    with artifacts.single_thread():
        return [about | row for row in test(lab, net)]


def train_suspect(lab: Lab, suspect: Suspect) -> list[Row]:
    """Train an independent encoder, or a lab's victim with its mark; no row."""
    suspect.find(lab)
    return []


def _independent(strangers: Plan) -> list[Suspect]:
    plan = profiles.validated(Strangers, strangers, "strangers")
    return [Suspect("independent", "independent", k, strangers=plan) for k in range(plan.count)]


def train_suspects(lab: Lab, strangers: Plan, marks: Sequence[Plan]) -> None:
    """Train the independent encoders, and marks into the victim, side by side."""
    victim = Suspect("victim", "victim")
    jobs = [Job(train_suspect, (victim,), (("watermark", mark),), True) for mark in distinct(marks)]
    jobs += [Job(train_suspect, (suspect,)) for suspect in _independent(strangers)]
    sweeps.run(lab, jobs)


def _thieves(kind: str, thieves: Thieves, budgets: Numbers, seeds: Numbers) -> list[Suspect]:
    """Return the thieves, by budget, seed and length of training."""
    suspects = []
    for (name, attack), images, seed in product(thieves.items(), budgets, seeds):
        given = {k: v for k, v in attack.items() if k != "steps"}
        for length in sweeps.lengths(attack.get("steps", ())):
            knobs = tuple(sorted((given | length).items()))
            suspects.append(Suspect(kind, name, seed, images, knobs))
    return suspects


def _everybody(
    thieves: Thieves, budgets: Numbers, seeds: Numbers, strangers: Plan, victims: Numbers = (0,)
) -> list[Suspect]:
    """Return victims and obfuscated copies of their seeds, thieves, and independent encoders."""
    known = [("victim", "victim"), *(("obfuscated", name) for name in OBFUSCATIONS)]
    suspects = [Suspect(*known_as, seed) for known_as in known for seed in victims]
    stolen = _thieves("stolen", thieves, budgets, seeds)
    return suspects + stolen + _independent(strangers)


def _examine_marked(
    lab: Lab, mark: Plan, test: Test, measure: str, thieves: Thieves, budgets: Numbers, seeds: Numbers,
    strangers: Plan,
) -> pd.DataFrame:  # fmt: skip
    """Run a test on everybody around a marked victim, and on it before marking, side by side.

    The first thief, at the largest budget, also steals the victim before marking: what it has of the
    mark is no inheritance of it, but of coordinates that marking has left alone. Beside the verdicts
    against the independent encoders stand, for marked and unmarked victim, accuracy and agreement on
    the main task: a legitimate user's price.
    """
    suspects = [Suspect("unmarked", "before marking")]
    suspects += _everybody(thieves, budgets, seeds, strangers)
    suspects += _thieves("stolen before", _first(thieves), [max(budgets)], seeds)
    jobs = [Job(examine, (suspect, test), (("watermark", mark),)) for suspect in suspects]
    table = _judged(pd.DataFrame(sweeps.run(lab, jobs)), measure)
    nets = {"victim": lab.but(watermark=mark).victim, "unmarked": lab.train("victim", lab.method)}
    task = (lab.settings["data"],)
    jobs = [Job(sweeps.score_rows, ({"kind": k}, v.encoder, task)) for k, v in nets.items()]
    worth = pd.DataFrame(sweeps.run(lab, jobs))[["kind", "accuracy", "agreement"]]
    return table.merge(worth, on="kind", how="left")


def _first(thieves: Thieves) -> Thieves:
    return dict(list(thieves.items())[:1])


# ---------------------------------------------------------------------- rotation watermark


def watermark(
    lab: Lab,
    marks: Sequence[Plan],
    thieves: Thieves,
    budgets: Numbers,
    seeds: Numbers,
    strangers: Plan,
) -> pd.DataFrame:
    """Measure the watermark success rate of every suspect, for each way to mark the victim.

    `marks` are settings `watermark`; `ASKED` of the training images are asked, turned twice. Rows have
    `wsr` in [0, 1] and p-values: `p_chance` (exact binomial), `p_controls` (a t-test whose unit is the
    encoder; an independent one against the others), `p_paper` (answers against those of one independent
    encoder, Dziedzic et al., ICML 2022, table 5) and `p_rank` (`watermark.ranked`, of area `auc`);
    `accused` is 1 where `p_controls` is significant, and `detectable` the least excess over `controls`
    independent encoders that would be. The first mark meets all thieves, the others the first thief at
    the largest budget. A suspect that the head cannot read has `applies` other than "yes". Rows of
    victims have accuracy and agreement on the main task.
    """
    train_suspects(lab, strangers, marks)
    parts = []
    for mark in map(dict, marks):
        table = _examine_marked(lab, mark, _rotation, "wsr", thieves, budgets, seeds, strangers)
        thieves, budgets = _first(thieves), [max(budgets)]
        plan = profiles.watermark(mark)
        head = HEADS[plan["trained_head"]]
        head += f", carried by {plan['data']}" if plan["data"] else ""
        start = "tuned into the victim" if plan["start"] == "victim" else "trained from the start"
        epochs = f"{plan['epochs']} epoch{'s' * (plan['epochs'] > 1)}"
        shown = plan["images"] or len(lab.train_images())
        parts.append(table.assign(head=head, mark=f"{start}, {epochs} of {shown} images"))
    return pd.concat(parts, ignore_index=True)


def _rotation(lab: Lab, net: nn.Module) -> list[Row]:
    """Return how a suspect's answers to turned training images are read by the owner's head."""
    answers = encoders.embed(net, questions(trained_on(lab, ASKED)))
    right, order = success(lab.victim.mark, answers), ranked(lab.victim.mark, answers)
    carriers = lab.watermark["data"] or "training"
    return [{
        "applies": "yes", "wsr": right.mean().item(), "right": int(right.sum()), "answers": len(right),
        "p_chance": against_chance(right).p_value, "auc": order.measure, "p_rank": order.p_value,
        "on": f"{ASKED} {carriers} images that the mark was trained on, each turned twice",
    }]  # fmt: skip


def _judged(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Add the verdicts against independent encoders: NaN where there are too few of them."""
    independent = table[table["kind"] == "independent"]
    rows: list[dict[str, float]] = []
    for place, row in table.iterrows():
        others = independent.drop(index=cast(int, place), errors="ignore")
        rows.append(found := {"controls": float(len(others))})
        if row["applies"] != "yes":
            continue
        with suppress(ValueError):  # too few of them, or all the same
            p = inference.against_controls(row[measure], others[measure]).p_value
            found |= {"p_controls": p, "accused": float(p <= inference.ALPHA),
                      "detectable": inference.least_excess(others[measure])}  # fmt: skip
        if "right" in table and len(others):
            other = others.iloc[row["seed"] % len(others) if place in independent.index else 0]
            mine, theirs = ((torch.arange(int(side["answers"])) < int(side["right"])).double()
                            for side in (row, other))  # fmt: skip
            with suppress(ValueError):
                found["p_paper"] = inference.welch(mine, theirs).p_value
    columns = ["p_controls", "p_paper", "accused", "detectable", "controls"]
    return table.join(pd.DataFrame(rows, index=table.index).reindex(columns=columns).astype(float))


# ----------------------------------------------------------------------- dataset inference


def dataset_inference(
    lab: Lab,
    thieves: Thieves,
    budgets: Numbers,
    seeds: Numbers,
    strangers: Plan,
    images: int = 1024,
    train_images: int = 0,
    victim: Plan | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Ask of every suspect whether the victim's training images are likelier to it than fresh ones.

    Args:
        lab: of the profile's victim.
        thieves: of the victim of their own seed.
        budgets: numbers of query images.
        seeds: of the victims' weights and batches, of the thieves, and of the test: each cuts the same
            training images into other halves, and takes fresh images of its own.
        strangers: how independent encoders are trained, by default as the victim.
        images: of the victim's that fit the mixture; as many others are tested against as many `public`.
        train_images: of the victim's; 0 is the profile's number.
        victim: what of the profile's recipe is changed for a victim that memorises, one for each seed;
            no image is held out unless it says so. The profile's own is then examined too, as the kind
            "profile". None: that one is the victim.
        **options: those of `inference.mixture_scores`.

    Returns:
        A row per suspect and form of the test: `gap` in nats, `effect` (Cohen's d), `p`, `accused` (1 or
        0), and `detectable`, the least effect that would be.
    """
    suspects = _everybody(thieves, budgets, seeds, strangers, seeds)
    if victim is not None:
        who = f"{lab.recipe.method}, {len(lab.train_images())} images"
        suspects += [Suspect("profile", who, seed) for seed in seeds]
    jobs, trained = [], []
    for s in suspects:
        changes: dict[str, Any] = {}  # of a lab whose victim memorises
        if victim is not None and s.kind != "profile":  # where images are few, none is held out
            recipe = lab.settings["victim"] | {"held_out": 0} | profiles.lengthened(dict(victim))
            changes = {"train_images": train_images or lab.settings["train_images"],
                       "victim": recipe | {"seed": s.seed}}  # fmt: skip
        test = partial(_inference, images, options, s.seed)
        jobs.append(Job(examine, (s, test), tuple(changes.items())))
        if s.kind in ("victim", "independent"):
            trained.append(Job(train_suspect, (s,), tuple(changes.items()), True))
    sweeps.run(lab, trained)
    return pd.DataFrame(sweeps.run(lab, jobs))


def _inference(images: int, options: Plan, seed: int, lab: Lab, net: nn.Module) -> list[Row]:
    """Return the verdicts in both forms, from the artifact where this suspect was examined before."""
    seen, fresh = trained_on(lab, 2 * images), public(lab, images, seed)
    identity = {
        "net": encoders.digest(net.state_dict().items()), "images": [*map(files.content, (seen, fresh))],
        "options": dict(options), "seed": seed, "on": lab.machine,
    }  # fmt: skip

    def verdicts() -> dict[str, Row]:
        parts = [encoders.embed(net, part) for part in (*inference.split(seen, seed), fresh)]
        scores = inference.mixture_scores(*parts, **options, seed=seed)
        return {form: vars(inference.welch(*scores, form=form)) for form in FORMS}

    found = lab.kept("inference", identity, ["contsteal.ownership.inference"], verdicts)
    on = f"{images} training images to fit, {images} to test, against {images} of nobody's"
    least = inference.least_gap(images, images)
    return [
        {"form": form, "gap": v["measure"], "effect": v["effect"], "p": v["p_value"],
         "accused": float(v["p_value"] <= inference.ALPHA), "detectable": least, "on": on}
        for form, v in found.items()
    ]  # fmt: skip


# --------------------------------------------------------------------------------- SSLGuard


def guard(
    lab: Lab, mark: Plan, thieves: Thieves, budgets: Numbers, seeds: Numbers, strangers: Plan
) -> pd.DataFrame:
    """Measure SSLGuard's rate of every suspect, whose victim carries the key by the setting `mark`.

    `rate` is the share of `ASKED` stamped training images whose answer has a cosine above 1/2 with the
    key, `cosine` the mean one; `p_keys` is against random keys, `p_controls` against the independent
    encoders, with `accused` and `detectable` as in `watermark`. Rows of victims have accuracy and
    agreement on the main task.
    """
    mark = {"kind": "sslguard"} | dict(mark)
    train_suspects(lab, strangers, [mark])
    table = _examine_marked(lab, mark, _key, "cosine", thieves, budgets, seeds, strangers)
    return table.drop(columns="p_paper")


def _key(lab: Lab, net: nn.Module) -> list[Row]:
    """Return how a suspect's answers to stamped training images agree with the owner's key."""
    verdict = sslguard.verify(lab.victim.mark, net, trained_on(lab, ASKED))
    return [{
        "applies": "yes", "rate": verdict.measure, "cosine": verdict.effect, "p_keys": verdict.p_value,
        "on": f"{ASKED} training images of the victim, stamped",
    }]  # fmt: skip
