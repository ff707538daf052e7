"""What defending costs: the thieves, the customers, and the provider's time and memory."""

import copy
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from statistics import mean, median
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from contsteal import choice, data, encoders, evaluate, number
from contsteal.data import ImageSet
from contsteal.defenses import B4B, DEFENSES, Described, build
from contsteal.defenses.state import PerUser
from contsteal.lab import artifacts, sweeps, tables
from contsteal.lab.experiment import Lab, drawn, labels_of, load, pixels
from contsteal.lab.profiles import distinct
from contsteal.lab.sweeps import Attack, Job, Names, Numbers, Row, product
from contsteal.seeds import derive
from contsteal.victim import BlackBox, Defense

Chain = Sequence[Defense]
CUSTOMERS = 4  # seed of the images that paying users send; the victim's are 0, queries 1
CALIBRATION = 1000  # the first seed of customers on whom a detector or a price is calibrated
ALL = 10**6  # more images than a customer can have of a stored set
BEARABLE = 0.05  # noise that B4B's customers may get, in standard deviations of a coordinate
Senders = Mapping[str, Callable[[int], Tensor]]  # users by name: the images one sends, by seed


def chain_name(chain: Chain) -> str:
    """Return how tables call a chain of defences; the seed 0 is not part of it."""
    return " + ".join(map(repr, chain)) or "none"


def listed(values: Mapping[str, Sequence[float | Mapping[str, Any]]]) -> list[Chain]:
    """Return a chain of one defence per name and value of its first parameter: {"top-k": [8, 64]}.

    "normalise + top-k" is a chain whose last defence has the value. A table in place of a value names
    parameters: {"similar-queries": [{"threshold": 13.0, "measure": "l2"}]}. Errors: ValueError for a
    name that `defenses.DEFENSES` does not have, for no list of values, and the defences' own.
    """
    chains: list[Chain] = []
    for names, parameters in values.items():
        *first, last = names.split(" + ")
        if not isinstance(parameters, Sequence) or isinstance(parameters, str) or not parameters:
            raise ValueError(
                f"{names}={parameters!r}: a list of its first parameter's values is needed"
            )
        make = DEFENSES[choice(last, "defence", DEFENSES)]
        for value in parameters:
            own = build(last, **value) if isinstance(value, Mapping) else make(value)
            chains.append([*map(build, first), own])
    return chains


def seeded(chain: Chain, seed: int) -> tuple[Defense, ...]:
    """Return copies of the defences whose draws belong to this seed and to their place in the chain."""
    copies = tuple(copy.copy(defense) for defense in chain)
    for place, defense in enumerate(copies):
        if hasattr(defense, "seed"):  # int: a NumPy seed would be drawn from otherwise
            defense.seed += 1000 * place + int(seed)
    return copies


# ---------------------------------------------------------------- thieves and customers


def purchase(
    lab: Lab, chain: tuple[Defense, ...], task: str, seed: int = 0, classes: int = 0
) -> list[Row]:
    """Return the accuracy of paying users who fit and test a probe on defended answers, as one row.

    It is the mean over one user per set of the seed's labelled images, each new to the provider. With
    `classes` the one user's task has so many classes of the data set, drawn by `seed`.
    """
    if classes:
        user, users = "customer", [few_classes(lab, task, classes, seed)]
        keys = [list(map(lab.data_key, sides)) for sides in users]
    else:
        user, test = "legitimate", lab.images(task, "test")
        users = [(images, test) for images in lab.labelled(task, seed)]
        keys = [[key, lab.test_key(task)] for key in lab.labelled_keys(task, seed)]

    def spent() -> float:
        accuracies = []
        for sides in users:
            api = lab.api(chain)
            x, y = (api.embed(pixels(side), user=user) for side in sides)
            a, b = map(labels_of, sides)
            accuracies.append(evaluate.linear_probe(x, a, y, b).accuracy)
        return sum(accuracies) / len(accuracies)

    identity = {
        "images": keys,
        "defenses": [artifacts.object_key(defense) for defense in chain],
        "victim": lab.victim.sha256, "on": lab.machine,
    }  # fmt: skip
    code = ["contsteal.victim", "contsteal.evaluate", *artifacts.defining_modules(*chain)]
    return [{"legitimate": lab.kept("customer", identity, code, spent)}]


def customers(
    lab: Lab, chains: Sequence[Chain], tasks: Names, seeds: Numbers, classes: int = 0
) -> pd.DataFrame:
    """Return the paying users' accuracy per defence, task and seed: of their images and the defence.

    With `classes` there is one more task: so many classes of the first one.
    """
    kinds = [(task, 0) for task in tasks] + [(tasks[0], classes)] * bool(classes)
    points = list(product(chains, kinds, seeds))
    jobs = [Job(purchase, (seeded(c, s), task, s, few)) for c, (task, few), s in points]
    rows = sweeps.run(lab, jobs)
    return pd.DataFrame([
        {"defence": chain_name(chain), "task": f"{task}, {few} classes" if few else task, "seed": seed}
        | row for (chain, (task, few), seed), row in zip(points, rows, strict=True)
    ])  # fmt: skip


@lru_cache(maxsize=32)  # to draw them takes longer than a probe
def few_classes(lab: Lab, task: str, classes: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return labelled and test images of a customer whose task has a few classes, drawn by `seed`.

    It has as many labelled images as other customers (or a fifth of its own, where those have all), and
    four times as many to test on. ValueError where the set has too few classes, or images of them.
    """
    pool = class_images(lab, task, classes, 5 * lab.settings["probe_images"] or ALL, seed)
    pool = replace(pool, labels=torch.unique(labels_of(pool), return_inverse=True)[1])
    labelled, rest = _sides(lab, pool)
    number(len(rest), f"further images of {classes} classes of {task}", int, least=1)
    return labelled, rest


def _sides(lab: Lab, pool: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return a customer's labelled images, which come first, and the others."""
    n = lab.settings["probe_images"] or len(pool) // 5
    return pool.take(slice(n)), pool.take(slice(n, None))


def class_images(lab: Lab, task: str, classes: int, count: int, seed: int) -> ImageSet:
    """Return up to `count` images of some classes of a task, which the customer `seed` sends."""
    known = len(lab.images(task, "test").classes)
    number(classes, f"classes of {task}", int, least=2, most=known)

    def draw() -> ImageSet:
        images = bought_images(lab, task, round(1.4 * count * known / classes), seed)
        chosen = data.order(known, seed)[:classes].to(lab.device)
        return images.take(torch.isin(labels_of(images), chosen).nonzero()[:count, 0])

    about = [task, "train", classes, count, seed, lab.settings["image_size"]]
    return drawn(about, draw).to(lab.device) if task in data.SOURCES else draw()


def bought_images(lab: Lab, task: str, queries: int, seed: int) -> ImageSet:
    """Return the images that the customer `seed` with a task sends: more than its labelled ones.

    Of an endless set each customer has images of its own, on which nobody trained. A stored set is cut
    into random halves, one for seeds from `CALIBRATION` on: a threshold is not tested on what it was
    chosen on. A customer sends at most half of its half, for all to differ.
    """
    size = lab.settings["image_size"]
    if task in data.ENDLESS:
        own = derive("customer", CUSTOMERS, seed)
        return data.load(task, "train", queries, own, size).to(lab.device)
    pool = load(task, "train", None, CUSTOMERS, size).to(lab.device)
    half = data.order(len(pool), CUSTOMERS).chunk(2)[seed >= CALIBRATION]
    return pool.take(half[data.order(len(half), seed)[: min(queries, len(half) // 2)]])


def calibrated(lab: Lab, defense: B4B, task: str, classes: int, seeds: Numbers) -> B4B:
    """Return B4B whose noise is bearable for customers of few classes: the assumption of its paper.

    Customers of `seeds` cover a share of the buckets; a user who covers as much gets noise of a
    twentieth of a coordinate's standard deviation.
    """
    shares, deviations = [], []
    for seed in distinct(seeds):
        watching = copy.deepcopy(defense)
        for side in few_classes(lab, task, classes, CALIBRATION + seed):
            answers = lab.api().embed(pixels(side))
            watching(answers, "customer")
            deviations.append(float(answers.std(0).mean()))
        shares.append(watching.coverage("customer"))
    return defense.calibrated(mean(shares), BEARABLE * mean(deviations))


def defended(
    lab: Lab,
    chains: Sequence[Chain],
    attacks: Names,
    queries: int,
    seeds: Numbers,
    bought: pd.DataFrame,
    steps: Numbers = (),
    adapts: str = "",
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> pd.DataFrame:
    """Run every attack under every chain of defences, beside the first task's customers.

    `steps` are lengths of training, `changes` other fields of `steal.Config`: how an attacker adapts,
    which `adapts` names. `bought` are the rows of `customers`; those of the first task are added as
    `legitimate`, those with few classes as `few`. A `kind` is tried at several `strength`s.
    """
    task, few = bought["task"].iloc[0], bought["task"].iloc[-1]
    rows = [Attack({"defence": chain_name(chain)} | strength(chain) | {"adapts": adapts},
                   attack, queries, seed, changes, seeded(chain, seed))
            for chain, attack, seed in product(chains, attacks, seeds)]  # fmt: skip
    table = sweeps.table(lab, [task], rows, steps)
    columns = {task: "legitimate"} | ({few: "few"} if few.endswith(" classes") else {})
    paid = bought.pivot(index=["defence", "seed"], columns="task", values="legitimate")
    return table.join(paid[[*columns]].rename(columns=columns), on=["defence", "seed"])


# What a thief who knows a defence does: by the kind of the defence, by name, fields of steal.Config.
AVERAGES = {"averages 4 answers": {"adapt": "average", "answers": 4}}
ADAPTING: dict[str, dict[str, dict[str, Any]]] = {
    "GaussianNoise": AVERAGES,
    "PredictionPoisoning": AVERAGES,
    "GaussianNoise with offset": {"centres": {"adapt": "centre"}} | AVERAGES,
    "Rounding": {"takes bounds": {"adapt": "bounds"}},
    "TopK": {"takes bounds": {"adapt": "bounds"}},
    "B4B": {"2 accounts": {"accounts": 2}, "6 accounts": {"accounts": 6}},
}


def adapting(
    lab: Lab,
    chains: Sequence[Chain],
    attack: str,
    queries: int,
    seeds: Numbers,
    bought: pd.DataFrame,
    steps: Numbers = (),
    prototypes: Sequence[float] = (),
) -> pd.DataFrame:
    """Run an attack that adapts to each chain's last defence (`ADAPTING`): rows of `defended`.

    RDA, whose targets are means over ten crops of an image, meets noise of the strengths `prototypes`.
    """
    anchors = _anchors(lab, queries)
    parts, rest = [pd.DataFrame()], (queries, seeds, bought, steps)
    met = False
    for chain in distinct(chains):
        kind = strength(chain)["kind"].split(" + ")[-1]
        for name, how in ADAPTING.get(kind, {}).items():
            changes = how | ({"anchors": anchors} if "accounts" in how else {})
            parts.append(defended(lab, [chain], [attack], *rest, name, changes))
        if kind == "GaussianNoise" and strength(chain)["strength"] in prototypes:
            free: list[Chain] = [] if met else [[]]  # the runs without a defence stand once
            parts.append(defended(lab, [*free, chain], ["rda"], *rest, "prototypes of RDA"))
            met = True
    return pd.concat(parts, ignore_index=True)


def strength(chain: Chain) -> Row:
    """Return the `kind` of a chain, its defences' names, and the last one's first parameter."""
    if not chain:
        return {"kind": "none", "strength": None}
    values = cast(Described, chain[-1]).parameters()
    kinds = [type(defense).__name__ for defense in chain]
    if values.get("mean"):
        kinds[-1] += " with offset"
    first = "beta" if isinstance(chain[-1], B4B) else next(iter(values), "")
    return {"kind": " + ".join(kinds), "strength": values.get(first)}


KEYS = ["defence", "party", "who"]  # of a row of the matrix


def matrix(attacked: pd.DataFrame, bought: pd.DataFrame) -> pd.DataFrame:
    """Return what each defence changes for each attack and each customer's task, paired by seed.

    Rows: `defence`, `party` ("attacker" or "customer"), `who` (attack or task), `change` of accuracy
    against no defence, with its 95 % t-interval `low`, `high`, and `n`, after the longest training, and
    `low, shorter` and `high, shorter` after the one before. Of the attackers that adapt to a defence the
    most successful stands as "adapting": against the same attack without a defence, or the first one
    where that was not run. One whose way to adapt changed nothing, in any run, has not adapted.
    """
    *shorter, longest = (_changes(rows, bought) for rows in tables.trainings(attacked))
    if not shorter:
        return longest
    spans = shorter[-1].set_index(KEYS)[["low", "high"]].add_suffix(", shorter")
    return longest.join(spans, on=KEYS)


def _changes(attacked: pd.DataFrame, bought: pd.DataFrame) -> pd.DataFrame:
    runs = attacked.dropna(subset=["defence"])
    runs = runs.assign(who=runs["attack"], value=runs["accuracy"])
    way, free = runs["adapts"].fillna(""), runs[runs["defence"] == "none"]
    paid = bought.assign(who=bought["task"], value=bought["legitimate"])
    rows = [
        _change(defence, party, str(who), own, of_who)
        for party, table in {"attacker": runs[way == ""], "customer": paid}.items()
        for who, of_who in table.groupby("who", sort=False)
        for defence, own in of_who.groupby("defence", sort=False)
        if defence != "none"
    ]
    base = {str(attack): part for attack, part in free.groupby("attack", sort=False)}
    first = next(iter(base.values()), free)
    adapted = runs[(way != "") & (runs["defence"] != "none")]
    same = ["defence", "attack", "seed", "value"]  # of runs that adapting has not changed
    for defence, own in adapted.groupby("defence", sort=False):
        ways = [_change(defence, "attacker", "adapting", part, base.get(str(attack), first))
                for (_, attack), part in own.groupby([way, "attack"])
                if len(part.merge(runs[way == ""], on=same)) < len(part)]  # fmt: skip
        rows += [max(ways, key=lambda row: row["change"])] if ways else []
    return pd.DataFrame(rows).sort_values("party", kind="stable", ignore_index=True)


def _change(defence: Any, party: str, who: str, own: pd.DataFrame, runs: pd.DataFrame) -> Row:
    """Return a row of the matrix: one's `value` under a defence minus that of `runs` without one."""
    free = runs[runs["defence"] == "none"]
    both = pd.concat([own.assign(attack="own"), free.assign(attack="free")])
    change, low, high, n = tables.difference(both, "own", "free", "value")
    return {"defence": defence, "party": party, "who": who, "change": change, "low": low,
            "high": high, "n": n}  # fmt: skip


TAKES = 0.05  # of accuracy: the least that a defence must take from every thief
COSTS = 0.01  # of accuracy: the most that it may take from a customer
WORKS, FAILS, UNDECIDED = "works", "does not work", "undecided"


def worth(stake: pd.DataFrame) -> pd.DataFrame:
    """Return a verdict on each defence of a `matrix`, with the thief and the customer who decide it.

    A defence works if it takes five points or more from every thief, an adapting one included, and one
    point or less from every customer, by the intervals; it does not if one of these lies wholly on the
    other side. It is undecided where the two lengths of training disagree, and where it might work but
    no thief has adapted to it. Rows: `defence`, `thief` who loses least, `taken`, `customer` who loses
    most, `paid`, `verdict`.
    """
    rows: list[Row] = []
    for defence, cells in stake.groupby("defence", sort=False):
        thieves, buyers = (cells[cells["party"] == party] for party in ("attacker", "customer"))
        lengths = [length for length in ("", ", shorter") if f"low{length}" in cells]
        each = {_verdict(thieves, buyers, length) for length in lengths}
        adapted = "adapting" in set(thieves["who"])
        verdict = each.pop() if len(each) == 1 else UNDECIDED
        least, most = thieves.nlargest(1, "change").iloc[0], buyers.nsmallest(1, "change").iloc[0]
        rows.append({"defence": defence, "thief": least["who"], "taken": -least["change"],
                     "customer": most["who"], "paid": -most["change"],
                     "verdict": verdict if adapted or verdict != WORKS else UNDECIDED})  # fmt: skip
    return pd.DataFrame(rows)


def _verdict(thieves: pd.DataFrame, buyers: pd.DataFrame, length: str) -> str:
    bounds = [f"low{length}", f"high{length}"]
    spans = np.concatenate([-thieves[bounds[::-1]] - TAKES, buyers[bounds] + COSTS])  # good above 0
    return WORKS if (spans[:, 0] >= 0).all() else FAILS if (spans[:, 1] < 0).any() else UNDECIDED


def b4b_users(lab: Lab, task: str, classes: int, queries: int) -> Senders:
    """Return the users of whom B4B should tell thieves: their images, by seed.

    Customers of few classes and of all, a thief with images like the victim's, and one of 2 and of 6
    accounts that share the thief's images.
    """
    shared = _anchors(lab, queries)
    return {
        f"customer, {classes} classes": lambda seed: torch.cat([
            pixels(side) for side in few_classes(lab, task, classes, seed)
        ]),
        "customer, all classes": lambda seed: pixels(bought_images(lab, task, queries, seed)),
        "thief": partial(lab.queries, queries),
        **{f"one of {n} accounts": partial(lab.queries, shared + (queries - shared) // n)
           for n in (2, 6)},
    }  # fmt: skip


def _anchors(lab: Lab, queries: int) -> int:
    """Return how many images accounts share to be mapped: three for two coordinates, or a quarter."""
    return min(3 * lab.victim.encoder.dim // 2, queries // 4)


def coverage(lab: Lab, defences: Sequence[B4B], users: Senders, seeds: Numbers) -> pd.DataFrame:
    """Return what each user's answers cover of the embedding space while they come, and the noise.

    Rows: `defence`, `user`, `seed`, `queries` so far, `coverage` from 0 to 1, the `noise` of the next
    answer, and `bearable`, the noise that customers can bear.
    """
    rows, defences = [], distinct(defences)
    for (user, images), seed in product(users.items(), seeds):
        answers = lab.api().embed(images(seed))
        about = {"seed": seed, "bearable": BEARABLE * float(answers.std(0).mean())}
        for defence in defences:
            watching, queries = copy.deepcopy(defence), 0
            for part in answers.split(max(len(answers) // 16, 1)):
                watching(part, user)
                queries, share = queries + len(part), watching.coverage(user)
                rows.append({"user": user, "queries": queries, "coverage": share,
                             "noise": float(watching.sigma(share)),
                             "defence": chain_name([defence])} | about)  # fmt: skip
    return pd.DataFrame(rows)


def over_queries(
    lab: Lab,
    defence: B4B,
    attack: str,
    task: str,
    classes: int,
    budgets: Numbers,
    seeds: Numbers,
    steps: int,
) -> pd.DataFrame:
    """Return the accuracy of a thief and of customers after so many queries, with B4B and without it.

    A thief of a budget trains on that many answers. A customer, who needs `classes` of them or all, fits
    a probe on its labelled images, which it sends first; its accuracy is that on the images between this
    budget and the one before. Rows: `user`, `queries`, `accuracy`, `defence`, `seed`.
    """
    if not budgets:
        return pd.DataFrame()
    chains: list[Chain] = [[], [defence]]
    thieves = [Attack({"user": "thief", "queries": budget, "defence": chain_name(chain)},
                      attack, budget, seed, {}, seeded(chain, seed))
               for chain, seed, budget in product(chains, seeds, budgets)]  # fmt: skip
    columns = ["user", "queries", "accuracy", "defence", "seed"]
    rows: list[Any] = sweeps.table(lab, [task], thieves, [steps])[columns].to_dict("records")
    for chain, seed in product(chains, seeds):
        about = {"defence": chain_name(chain), "seed": seed}
        served = _served(lab, seeded(chain, seed), task, classes, budgets, seed)
        rows += [about | row for row in served]
    return pd.DataFrame(rows)


def _served(
    lab: Lab, chain: Chain, task: str, classes: int, budgets: Numbers, seed: int
) -> list[Row]:
    """Return the rows of both customers of a seed."""
    kinds = {
        f"customer, {classes} classes": few_classes(lab, task, classes, seed),
        "customer, all classes": _sides(lab, bought_images(lab, task, max(budgets), seed)),
    }
    return [{"user": user} | row for user, sides in kinds.items()
            for row in _between(lab.api(chain), *sides, budgets)]  # fmt: skip


def _between(api: BlackBox, labelled: ImageSet, rest: ImageSet, budgets: Numbers) -> list[Row]:
    """Return a customer's accuracy on what it sends between one number of queries and the next."""
    x, n = api.embed(pixels(labelled), user="customer"), len(labelled)
    ends = sorted({min(budget, n + len(rest)) for budget in budgets if budget > n})
    if not ends:  # its labelled images are as many
        return []
    sizes = [end - start for start, end in pairwise([n, *ends])]
    asked = rest.take(slice(sum(sizes)))
    answers = [api.embed(part, user="customer") for part in pixels(asked).split(sizes)]
    truth = labels_of(asked)
    probe = evaluate.linear_probe(x, labels_of(labelled), torch.cat(answers), truth)
    right = (probe.predictions == truth).float().split(sizes)
    return [{"queries": end, "accuracy": float(part.mean())}
            for end, part in zip(ends, right, strict=True)]  # fmt: skip


def lost(table: pd.DataFrame) -> pd.DataFrame:
    """Return the `change` of accuracy with a table's first B4B, by `user`, `queries` and `seed`."""
    if "accuracy" not in table:
        return pd.DataFrame()
    point = ["user", "queries", "seed"]
    wide = table.pivot_table(index=point, columns="defence", values="accuracy", sort=False)
    return (wide[table["defence"].iloc[0]] - wide["none"]).rename("change").reset_index()


# -------------------------------------------------------------------------------- price


def price(
    net: encoders.Encoder, chains: Sequence[Chain], images: Tensor, rounds: int = 5
) -> pd.DataFrame:
    """Return what defending a victim costs: the median time of 1,000 answers, and memory per user.

    `seconds` are the victim's and the chain's for requests of 256 images, on this machine;
    `added` is the chain's share of the victim's. `bytes, half` is a user's state after half of the
    images, `bytes` after all: equal where memory does not grow with queries.
    """
    requests, answers = images.split(256), encoders.embed(net, images).split(256)
    alone = _median(lambda: [encoders.embed(net, request) for request in requests], rounds)
    rows = []
    for chain in distinct(chains):
        spent = _median(partial(_through, copy.deepcopy(list(chain)), answers), rounds)
        half, whole = (_bytes(chain, answers[:k]) for k in (len(answers) // 2, len(answers)))
        rows.append({"defence": chain_name(chain), "seconds": 1000 * (alone + spent) / len(images),
                     "added": spent / alone, "bytes, half": half, "bytes": whole})  # fmt: skip
    return pd.DataFrame(rows).set_index("defence")


def _through(chain: Chain, requests: Sequence[Tensor]) -> None:
    for answers in requests:
        for defense in chain:
            answers = defense(answers, "customer")


def _bytes(chain: Chain, requests: Sequence[Tensor]) -> int:
    """Return the size of what a chain remembers of one user who was given these answers."""
    fresh = copy.deepcopy(list(chain))
    _through(fresh, requests)
    return sum(defense.size("customer") for defense in fresh if isinstance(defense, PerUser))


def _median(call: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of a call, on a GPU until it is done."""

    def finished() -> None:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    finished()  # warm: secrets are drawn, memory is allocated
    return median(timeit.repeat(finished, number=1, repeat=rounds))
