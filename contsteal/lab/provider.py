"""What defending costs: the thieves, the customers, and the provider's time and memory."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Protocol, cast

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal import attacks as recipes
from contsteal import data, encoders, steal
from contsteal.defenses import DEFENSES, build, proof_of_work
from contsteal.defenses.state import PerUser
from contsteal.lab import sweeps, tables
from contsteal.lab.experiment import Lab, pixels
from contsteal.lab.sweeps import Job, Names, Numbers, Pairs, Row
from contsteal.victim import Defense, finite

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


class Detector(Protocol):
    """A defence with a verdict on each user, such as those of `defenses.detectors`."""

    def __call__(self, answers: Tensor, user: str) -> Tensor: ...
    def statistic(self, user: str) -> float: ...
    def flagged(self, user: str) -> bool: ...


CUSTOMERS = 4  # seed of the images that paying users send; the victim's are 0, queries 1
CALIBRATION = 1000  # the first seed of customers on whom a detector or a price is calibrated
Senders = Mapping[str, Callable[[int], Tensor]]  # users by name: the images one sends, by seed


def senders(lab: Lab, tasks: Names, queries: int) -> dict[str, Callable[[int], Tensor]]:
    """Return users who send up to `queries` images each: customers with their tasks' images, and thieves.

    One thief sends images like the victim's, one four views of a quarter as many, one photographs.
    """
    encoder, size = lab.settings["surrogate"]["encoder"], lab.settings["image_size"]
    config = recipes.Config(attack="cont-steal", encoder=encoder, image_size=size)
    other = lab.but(query_data="patches", query_images=max(queries, lab.settings["query_images"]))

    def views(seed: int) -> Tensor:
        images = lab.queries(queries // 4, seed)
        return torch.cat([steal.view(config, images, k) for k in range(4)])

    return {f"customer, {task}": partial(_bought, lab, task, queries) for task in tasks} | {
        "thief, single images": partial(lab.queries, queries),
        "thief, four views": views,
        "thief, photographs": partial(other.queries, queries),
    }


def _bought(lab: Lab, task: str, queries: int, seed: int) -> Tensor:
    """Return the images that a customer sends.

    At seeds from `CALIBRATION` on they are drawn from one half of the customer's images, before it from
    the other half: a threshold is not tested on what it was chosen on. A set with fewer than twice the
    images asked for is not cut: take none such as the first, which is calibrated on.
    """
    pool = customer_images(lab, task, 2 * queries)
    held = len(pool) // 2 if len(pool) >= 2 * queries else 0
    if seed >= CALIBRATION:
        return pool[data.order(held or len(pool), seed)[:queries]]
    return pool[held + data.order(len(pool) - held, seed)[:queries]]


def customer_images(lab: Lab, task: str, count: int) -> Tensor:
    """Return up to `count` images that a customer with a task sends: more than its labelled ones.

    Of endless sets they are drawn anew, so nobody trained on them.
    """
    drawn = count if task in data.ENDLESS else None
    images = data.load(task, "train", drawn, CUSTOMERS, lab.settings["image_size"])
    return pixels(images.take(slice(count)).to(lab.device))


def watched(
    lab: Lab, watchers: Mapping[str, Detector], users: Senders, seeds: Numbers
) -> pd.DataFrame:
    """Show each detector the answers to each user's images; each time it starts afresh.

    Rows: `detector`, `user`, `seed`, `queries`, the detector's `statistic` and whether it `flagged`.
    """
    rows = []
    for (user, images), seed in product(users.items(), seeds):
        answers = lab.api().embed(images(seed))
        for name, watcher in watchers.items():
            fresh = copy.deepcopy(watcher)
            fresh(answers, user)
            rows.append({"detector": name, "user": user, "seed": seed, "queries": len(answers),
                         "statistic": fresh.statistic(user), "flagged": fresh.flagged(user)})  # fmt: skip
    return pd.DataFrame(rows)


def bills(lab: Lab, users: Senders, seeds: Numbers, calibration: Sequence[int]) -> pd.DataFrame:
    """Return what each user would owe in proof of work, in seconds: rows as those of `watched`.

    The cost is the entropy of the posteriors, and its line that of the first user, a customer, at the
    seeds `calibration`. A price accuses nobody: `flagged` is empty.
    """

    def posteriors(user: str, seed: int) -> Tensor:
        return lab.api().classify(users[user](seed), "posterior")

    customer = next(iter(users))
    costs = [proof_of_work.entropy(posteriors(customer, s)).cumsum(0) for s in calibration]
    intercept, slope = proof_of_work.calibrate(torch.stack(costs))
    rows = []
    for user, seed in product(users, seeds):
        bill = proof_of_work.ProofOfWork("entropy", intercept, slope)
        queries = len(bill(posteriors(user, seed), user))
        rows.append({"detector": "proof of work, s", "user": user, "seed": seed, "queries": queries,
                     "statistic": bill.bill(user), "flagged": None})  # fmt: skip
    return pd.DataFrame(rows)


def similarity(answers: Tensor, share: float = 0.05) -> float:
    """Return the cosine that `share` of a customer's queries (N, D) exceed with an earlier one.

    The threshold that `defenses.SimilarQueries` needs: chosen on customers, never on thieves. Errors:
    ValueError for fewer than 2 queries, a share outside (0, 1), answers with NaN.
    """
    if len(answers) < 2 or not 0 < share < 1:
        raise ValueError(f"{len(answers)} queries, share={share}: at least 2 queries are needed, and a "
                         "share between 0 and 1")  # fmt: skip
    unit = F.normalize(finite(answers), dim=1)
    earlier = torch.ones(len(unit), len(unit), device=unit.device).tril(-1) > 0
    nearest = (unit @ unit.T).masked_fill(~earlier, -1).amax(1)[1:]
    return float(nearest.quantile(1 - share))


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
