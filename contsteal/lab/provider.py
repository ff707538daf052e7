"""What defending costs: the thieves, the customers, and the provider's time and memory."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal import attacks as recipes
from contsteal import data, encoders, steal
from contsteal.defenses import DEFENSES, build, proof_of_work
from contsteal.defenses.detectors import FEWEST_QUERIES, Detector, Prada, Refused, SimilarQueries
from contsteal.defenses.state import PerUser
from contsteal.lab import sweeps, tables
from contsteal.lab.experiment import Lab, pixels
from contsteal.lab.sweeps import Job, Names, Numbers, Pairs, Row
from contsteal.seeds import derive
from contsteal.victim import BlackBox, Defense, finite

Chain = Sequence[Defense]


def chain_name(chain: Chain) -> str:
    """Return how tables call a chain of defences; the seed 0 is not part of it."""
    return " + ".join(map(repr, chain)) or "none"


def listed(values: Mapping[str, Sequence[float]]) -> list[Chain]:
    """Return a chain of one defence per name and value of its first parameter: {"top-k": [8, 64]}.

    "normalise + top-k" is a chain whose last defence has the value. Errors: ValueError for a name that
    `defenses.DEFENSES` does not have, for values that are no list, and the defences' own.
    """
    chains: list[Chain] = []
    for names, parameters in values.items():
        *first, last = names.split(" + ")
        for name in (*first, last):
            if name not in DEFENSES:
                raise ValueError(f"unknown defence {name!r}: choose one of {', '.join(DEFENSES)}")
        if not isinstance(parameters, Sequence) or isinstance(parameters, str):
            raise ValueError(f"{names}: {parameters!r} is no list of first parameters")
        make = cast(Callable[[float], Defense], DEFENSES[last])
        chains += [[*map(build, first), make(value)] for value in parameters]
    return chains


def seeded(chain: Chain, seed: int) -> tuple[Defense, ...]:
    """Return copies of the defences whose draws belong to this seed and to their place in the chain."""
    copies = tuple(copy.copy(defense) for defense in chain)
    for place, defense in enumerate(copies):
        if hasattr(defense, "seed"):
            defense.seed += 1000 * place + int(
                seed
            )  # int: a NumPy seed would be drawn from otherwise
    return copies


# ---------------------------------------------------------------- thieves and customers


@dataclass(frozen=True)
class Purchase:
    """Paying users who fit a probe on defended answers and test it on defended answers."""

    chain: tuple[Defense, ...]
    task: str
    seed: int = 0
    lab: Pairs = ()

    def run(self, lab: Lab) -> list[Row]:
        """Return one row with the users' mean accuracy."""
        return [{"legitimate": lab.legitimate(self.task, self.chain, self.seed)}]


def customers(lab: Lab, chains: Sequence[Chain], tasks: Names, seeds: Numbers) -> pd.DataFrame:
    """Return the paying users' accuracy per defence, task and seed: of their images and the defence."""
    points = list(product(chains, tasks, seeds))
    rows = sweeps.run(lab, [Purchase(seeded(c, seed), task, seed) for c, task, seed in points])
    return pd.DataFrame([
        {"defence": chain_name(chain), "task": task, "seed": seed} | row
        for (chain, task, seed), row in zip(points, rows, strict=True)
    ])  # fmt: skip


def defended(
    lab: Lab,
    chains: Sequence[Chain],
    attacks: Names,
    queries: int,
    seeds: Numbers,
    task: str,
    steps: Numbers = (),
    **changes: Any,
) -> pd.DataFrame:
    """Run every attack under every chain of defences; add the legitimate user's accuracy under it.

    `steps` are lengths of training, `changes` other fields of `steal.Config`, such as how an attacker
    adapts.
    """
    knobs = [tuple(sorted((changes | length).items())) for length in sweeps.lengths(steps)]
    points = list(product(chains, attacks, seeds, knobs))
    jobs = [
        Job(attack, queries, seed, (task,), seeded(chain, seed), knob)
        for chain, attack, seed, knob in points
    ]
    table = pd.DataFrame(sweeps.run(lab, jobs))
    table.insert(0, "defence", [chain_name(chain) for chain, *_ in points])
    honest = customers(lab, chains, [task], seeds).drop(columns="task")
    return table.merge(honest, on=["defence", "seed"], how="left", validate="many_to_one")


def matrix(attacked: pd.DataFrame, bought: pd.DataFrame) -> pd.DataFrame:
    """Return what each defence changes for each attack and each customer's task, paired by seed.

    Rows: `defence`, `party` ("attacker" or "customer"), `who` (attack or task), `change` of accuracy
    against no defence, with its 95 % t-interval `low`, `high`, and `n`.
    """
    sides = [
        ("attacker", attacked.dropna(subset=["defence"]), "attack", "accuracy"),
        ("customer", bought, "task", "legitimate"),
    ]
    rows = []
    for party, table, column, metric in sides:
        for who, runs in table.groupby(column, sort=False):
            by_defence = runs.assign(attack=runs["defence"])
            for defence in (d for d in runs["defence"].unique() if d != "none"):
                change, low, high, n = tables.difference(by_defence, defence, "none", metric)
                rows.append({"defence": defence, "party": party, "who": who, "change": change,
                             "low": low, "high": high, "n": n})  # fmt: skip
    return pd.DataFrame(rows)


# --------------------------------------------------------------------------- detection


Watcher = Detector[Any]
CUSTOMERS = 4  # seed of the images that paying users send; the victim's are 0, queries 1
CALIBRATION = 1000  # the first seed of customers on whom a detector or a price is calibrated
REQUEST = 32  # images in a request: a detector has a verdict after each
VIEWS = 4  # of each image, that a thief with several views sends
BELOW_ONE = math.nextafter(1, 0)  # the largest threshold of W and of shares
LOW = "PRADA"  # names of detectors that suspect users with a low statistic begin with it
Senders = Mapping[str, Callable[[int], Tensor]]  # users by name: the images one sends, by seed


def senders(
    lab: Lab, tasks: Names, queries: int, few: Numbers = ()
) -> dict[str, Callable[[int], Tensor]]:
    """Return users who send up to `queries` images each: customers with their tasks' images, and thieves.

    `few` are numbers of classes: of each a customer with images of so many classes of the first task.
    One thief sends images like the victim's, one four views of a quarter as many, one photographs.
    """
    other = lab.but(query_data="patches", query_images=max(queries, lab.settings["query_images"]))
    given = {k: v for k, v in lab.settings["surrogate"].items() if k in ("encoder", "policy")}

    def views(seed: int) -> Tensor:
        """Return what Cont-Steal with four answers sends: a view of all images after the other."""
        config = recipes.Config(
            "cont-steal", seed=seed, image_size=lab.settings["image_size"], **given
        )
        images = lab.queries(queries // VIEWS, seed)
        return torch.cat([steal.view(config, images, k) for k in range(VIEWS)])

    return {
        **{f"customer, {task}": partial(customer_images, lab, task, queries) for task in tasks},
        **{f"customer, {tasks[0]}, {n} classes": cache(partial(_narrow, lab, tasks[0], queries, n))
           for n in few},
        "thief, single images": partial(lab.queries, queries),
        "thief, four views": views,
        "thief, photographs": partial(other.queries, queries),
    }  # fmt: skip


def customer_images(lab: Lab, task: str, queries: int, seed: int) -> Tensor:
    """Return the images that the customer `seed` with a task sends: more than its labelled ones.

    Of an endless set each customer has images of its own, on which nobody trained. A stored set is cut
    into random halves, one for seeds from `CALIBRATION` on: a threshold is not tested on what it was
    chosen on. A customer sends at most half of its half, for all to differ.
    """
    return pixels(_bought(lab, task, queries, seed))


def _bought(lab: Lab, task: str, queries: int, seed: int) -> data.ImageSet:
    size = lab.settings["image_size"]
    if task in data.ENDLESS:
        own = derive("customer", CUSTOMERS, seed)
        return data.load(task, "train", queries, own, size).to(lab.device)
    pool = data.load(task, "train", None, CUSTOMERS, size).to(lab.device)
    half = data.order(len(pool), CUSTOMERS).chunk(2)[seed >= CALIBRATION]
    return pool.take(half[data.order(len(half), seed)[: min(queries, len(half) // 2)]])


def _narrow(lab: Lab, task: str, queries: int, classes: int, seed: int) -> Tensor:
    """Return up to `queries` images of some classes of a task, drawn by the seed."""
    known = len(data.load(task, "train", 1, CUSTOMERS, lab.settings["image_size"]).classes)
    images = _bought(lab, task, queries * known // classes, seed)
    chosen = data.order(known, seed)[:classes].to(lab.device)
    return pixels(images)[torch.isin(cast(Tensor, images.labels), chosen)]


def watched(
    lab: Lab, watchers: Mapping[str, Watcher], users: Senders, seeds: Numbers
) -> pd.DataFrame:
    """Show each detector the answers to each user's images, 32 after 32; each time it starts afresh.

    Rows: `detector`, `user`, `seed`, `queries`, whether the user was `flagged` (0 or 1) after any
    request, which is when a detector that acts would refuse, and the `statistic` where it was most
    suspicious: from the 100th query on, before which nobody is judged.
    """
    rows = []
    for (user, images), seed in product(users.items(), seeds):
        answers = lab.api().embed(images(seed))
        for name, watcher in watchers.items():
            seen, flagged = _suspicion(watcher, answers)
            worst = min(seen) if name.startswith(LOW) else max(seen)
            rows.append({"detector": name, "user": user, "seed": seed, "queries": len(answers),
                         "statistic": worst, "flagged": float(flagged)})  # fmt: skip
    return pd.DataFrame(rows)


def _suspicion(watcher: Watcher, answers: Tensor) -> tuple[list[float], bool]:
    """Return a fresh detector's statistics of a user after each request, and whether it ever flags."""
    fresh, statistics, flagged = copy.deepcopy(watcher), [], False
    fresh.action = "record"
    for part in answers.split(REQUEST):
        fresh(part, "user")
        statistics.append(fresh.statistic("user"))
        flagged |= fresh.flagged("user")
    judged = statistics[-(-FEWEST_QUERIES // REQUEST) - 1 :]
    return judged or statistics[-1:], flagged


def calibrated(
    lab: Lab,
    customers: Senders,
    seeds: Numbers,
    projection: Callable[[Tensor], Tensor] | None = None,
    share: float = 0.05,
) -> dict[str, Watcher]:
    """Return detectors that flag whoever is more suspicious than each of these customers.

    Of m customers and one more of the same kind, the latter is flagged with a probability of at most
    1 / (m + 1). `SimilarQueries` first needs the cosine that `share` of their queries exceed. Errors: as
    `similarity`.
    """
    answers = [lab.api().embed(images(s)) for images in customers.values() for s in seeds]
    watchers: dict[str, Watcher] = {}
    with torch.no_grad():
        heads = {"projections": projection} if projection else {}
        for space, head in {**heads, "embeddings": None}.items():
            points = answers if head is None else [head(a) for a in answers]
            watcher = SimilarQueries(similarity(points, share), projection=head, action="record")
            watcher.share = min(max(max(_suspicion(watcher, a)[0]) for a in answers), BELOW_ONE)
            watchers[f"similar {space}, calibrated"] = watcher
    lowest = min(min(_suspicion(Prada(action="record"), a)[0]) for a in answers)
    return watchers | {f"{LOW}, calibrated": Prada(min(lowest, BELOW_ONE), action="record")}


def similarity(answers: Sequence[Tensor], share: float = 0.05) -> float:
    """Return the cosine that `share` of customers' queries, (N, D) each, exceed with an earlier one.

    The threshold that `defenses.SimilarQueries` needs: chosen on customers, never on thieves. Errors:
    ValueError for fewer than 2 queries, a share outside (0, 1), answers with NaN.
    """
    fewest = min(map(len, answers), default=0)
    if fewest < 2 or not 0 < share < 1:
        raise ValueError(f"{fewest} queries, share={share}: at least 2 queries of each customer are "
                         "needed, and a share between 0 and 1")  # fmt: skip
    nearest = []
    for one in answers:
        unit = F.normalize(finite(one), dim=1)
        earlier = torch.ones(len(unit), len(unit), device=unit.device).tril(-1) > 0
        nearest.append((unit @ unit.T).masked_fill(~earlier, -1).amax(1)[1:])
    return float(np.quantile(torch.cat(nearest).cpu().numpy(), 1 - share))


def bills(
    lab: Lab, users: Senders, seeds: Numbers, customers: Senders, calibration: Numbers
) -> pd.DataFrame:
    """Return what each user would owe in proof of work, in seconds: rows as those of `watched`.

    The cost is the entropy of the posteriors, and its line that of `customers` at the seeds
    `calibration`. A price accuses nobody: `flagged` is empty.
    """

    def posteriors(images: Tensor) -> Tensor:
        return lab.api().classify(images, "posterior")

    sent = [images(seed) for images in customers.values() for seed in calibration]
    costs = [proof_of_work.entropy(posteriors(images)).cumsum(0) for images in sent]
    fewest = min(map(len, costs))
    intercept, slope = proof_of_work.calibrate(torch.stack([cost[:fewest] for cost in costs]))
    rows = []
    for (user, images), seed in product(users.items(), seeds):
        bill = proof_of_work.ProofOfWork("entropy", intercept, slope)
        queries = len(bill(posteriors(images(seed)), user))
        rows.append({"detector": "proof of work, seconds", "user": user, "seed": seed, "queries": queries,
                     "statistic": bill.bill(user), "flagged": np.nan})  # fmt: skip
    return pd.DataFrame(rows)


def auc(thieves: Sequence[float], customers: Sequence[float]) -> float:
    """Return the area under the ROC curve: how often a thief's value is above a customer's.

    Ties count half. This is Mann and Whitney's U over the number of pairs: (R - n (n + 1) / 2) / (n m),
    with R the sum of the n thieves' ranks among all. ValueError for an empty side.
    """
    n, m = len(thieves), len(customers)
    if not n or not m:
        raise ValueError(f"{n} thieves, {m} customers: at least one of each is needed")
    ranks = pd.Series([*thieves, *customers], dtype=float).rank()
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def roc(watch: pd.DataFrame) -> pd.DataFrame:
    """Return each detector's ROC curve for each kind of thief against all customers, as rows of points.

    `watch` is of `watched` and `bills`. `at` is "curve" for the points of the statistic, every threshold
    there is, and "verdict" for the detector's own. Beside `fpr` and `tpr` stand the curve's `auc` and
    how many `customers` and `thieves` were watched.
    """
    rows = []
    for detector, seen in watch.groupby("detector", sort=False):
        sign = -1 if str(detector).startswith(LOW) else 1
        seen = seen.assign(suspicion=sign * seen["statistic"])
        honest = seen[~seen["user"].str.startswith("thief")]
        for user, thieves in seen.drop(honest.index).groupby("user", sort=False):
            same = {"detector": detector, "user": user, "customers": len(honest),
                    "thieves": len(thieves),
                    "auc": auc(list(thieves["suspicion"]), list(honest["suspicion"]))}  # fmt: skip
            both = pd.concat([thieves, honest])["suspicion"].unique()
            for limit in [np.inf, *sorted(both, reverse=True)]:
                fpr, tpr = ((side["suspicion"] >= limit).mean() for side in (honest, thieves))
                rows.append(same | {"at": "curve", "fpr": fpr, "tpr": tpr})
            if seen["flagged"].notna().all():
                fpr, tpr = (side["flagged"].mean() for side in (honest, thieves))
                rows.append(same | {"at": "verdict", "fpr": fpr, "tpr": tpr})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------- thieves who are refused

Streams = Mapping[str, Callable[[int], Tensor | Sequence[Tensor]]]


def refusals(
    lab: Lab, watchers: Mapping[str, Watcher], users: Streams, seeds: Numbers
) -> pd.DataFrame:
    """Send each user's images through an API that refuses whom its detector flags.

    A refused user goes on under a new name, with the request that was refused; of several tensors each
    is sent under a name of its own. Rows: `detector`, `user`, `seed`, `queries`, the `answers` that the
    first account got, and the `accounts` that all `answered` images took. A user whose new account is
    refused at its first request gives up. `refusals` counts the accounts that were refused.
    """
    rows = []
    for (user, images), seed in product(users.items(), seeds):
        sent = images(seed)
        parts = [sent] if isinstance(sent, Tensor) else list(sent)
        lab.api().embed(torch.cat(parts))  # at once, and cached: requests are small
        for name, watcher in watchers.items():
            fresh = copy.deepcopy(watcher)
            fresh.action = "refuse"
            got = _persist(lab.api([fresh]), parts)
            rows.append({"detector": name, "user": user, "seed": seed, "queries": sum(map(len, parts)),
                         "answers": got[0], "accounts": len(got), "answered": sum(got),
                         "refusals": len(got) - len(parts)})  # fmt: skip
    return pd.DataFrame(rows)


def _persist(api: BlackBox, parts: Sequence[Tensor]) -> list[int]:
    """Send all images, under a new name after each refusal; return the answers of each account."""
    got: list[int] = []
    for part in parts:
        got.append(0)
        for request in part.split(REQUEST):
            try:
                api.embed(request, f"account {len(got)}")
            except Refused:
                got.append(0)
                try:
                    api.embed(request, f"account {len(got)}")
                except Refused:
                    return got
            got[-1] += len(request)
    return got


def refused(
    lab: Lab,
    seen: pd.DataFrame,
    attacks: Mapping[str, str],
    task: str,
    steps: Numbers,
) -> pd.DataFrame:
    """Train what a refused thief ends with: a surrogate on one account's answers, and one on all.

    `seen` is of `refusals`; `attacks` names what thieves in it train, as {"four views": "cont-steal"}.
    A thief with several views sends one view of all images after the other, and trains on the whole
    rounds that it got. Rows as those of `sweeps.sweep`, with `detector`, `answers`, `accounts`; `attack`
    names the thief and how it ends: it "stops", or has "all answers", as without a detector.
    """
    named = seen.assign(thief=seen["user"].str.removeprefix("thief, "))
    rows = named[named["thief"].isin([*attacks])].to_dict("records")
    points = [
        (row, end, length)
        for row, end, length in product(rows, ("stops", "all answers"), sweeps.lengths(steps))
        if (row["answers"] if end == "stops" else row["answered"] == row["queries"])
    ]
    jobs = [
        _training(lab, attacks[row["thief"]], row, end == "stops", task, length)
        for row, end, length in points
    ]
    about = [
        {"attack": f"{row['thief']}, {end}", "detector": row["detector"],
         "answers": row["answers" if end == "stops" else "answered"],
         "accounts": 1 if end == "stops" else row["accounts"]} for row, end, _ in points
    ]  # fmt: skip
    done = sweeps.run(lab, jobs)
    return pd.DataFrame([run | facts for run, facts in zip(done, about, strict=True)])


def _training(
    lab: Lab, attack: str, row: Mapping[Any, Any], stops: bool, task: str, length: dict[str, int]
) -> Job:
    """Return the attack on a thief's answers: how many images, and how often each was answered."""
    answers = row["answers" if stops else "queries"]
    images = min(row["queries"] // (VIEWS if "views" in row["thief"] else 1), answers)
    batch = lab.settings["surrogate"].get("batch", recipes.Config.batch)
    changes = {"answers": answers // images, "batch": min(batch, images)} | length
    return Job(attack, images, row["seed"], (task,), (), tuple(sorted(changes.items())))


# -------------------------------------------------------------------------------- price


def price(
    net: encoders.Encoder,
    chains: Sequence[Chain],
    images: Tensor,
    batch: int = 256,
    rounds: int = 5,
) -> pd.DataFrame:
    """Return what defending a victim costs: the median time of 1,000 answers, and memory per user.

    `seconds` are the victim's and the chain's for requests of `batch` images, on this machine;
    `added` is the chain's share of the victim's. `bytes, half` is a user's state after half of the
    images, `bytes` after all: equal where memory does not grow with queries.
    """
    requests, answers = images.split(batch), encoders.embed(net, images).split(batch)
    alone = _median(lambda: [encoders.embed(net, request) for request in requests], rounds)
    rows = []
    for chain in chains:
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
    call()  # warm: secrets are drawn, memory is allocated
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[rounds // 2]
