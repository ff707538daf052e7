"""Detectors at work: whom they flag, what is left to a thief who is refused, and proof of work."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal import attacks as recipes
from contsteal import choice, data, files, number, pretrain, steal
from contsteal.data import ImageSet
from contsteal.defenses import detectors
from contsteal.defenses.detectors import FEWEST_QUERIES, Detector, Prada, Refused, SimilarQueries
from contsteal.lab import artifacts, sweeps
from contsteal.lab.experiment import Lab, pixels
from contsteal.lab.provider import Senders, bought_images, class_images
from contsteal.lab.sweeps import Job, Names, Numbers, Row, product
from contsteal.victim import BlackBox, finite

Watcher = Detector[Any]
Watchers = Mapping[str, Watcher]  # by name
Detect = Callable[[Watcher, Sequence[Tensor], Sequence[Tensor]], Row]  # of images and their answers
Head = nn.Module | None  # answers (N, D) to projections, of a victim that has it
Streams = Mapping[str, Callable[[int], Tensor | Sequence[Tensor]]]
REQUEST = 32  # images in a request: a detector has a verdict after each
VIEWS = 4  # of each image, that a thief with several views sends
BELOW_ONE = math.nextafter(1, 0)  # the largest threshold of W and of shares
LOW = "PRADA"  # names of detectors that suspect users with a low statistic begin with it
SHARE = 0.05  # of customers' queries that count as similar
CALIBRATED = ("similar projections", "similar embeddings", LOW)  # detectors of `calibrated`


def published(thresholds: Mapping[str, Sequence[float]], head: Head = None) -> dict[str, Watcher]:
    """Return detectors at published settings, by name.

    `thresholds` are {"cosine": [0.5], "l2": [13.0]} between what the victim's `head` makes of answers;
    "l2 of answers" compares the answers themselves, as all do without a head. PRADA has its own.
    """
    watchers: dict[str, Watcher] = {}
    for kind, values in thresholds.items():
        measure: Any
        measure, _, answers = kind.partition(" of ")
        title = f"similar, {kind.replace('l2', 'L2')} {'<' if measure == 'l2' else '>'}"
        for value in values:
            watcher = SimilarQueries(value, measure, None if answers else head, "record")
            watchers[f"{title} {value:g}"] = watcher
    return watchers | {f"{LOW}, W < 0.9": Prada(0.9, action="record")}


def check_names(names: Names, thresholds: Mapping[str, Sequence[float]], method: str) -> None:
    """Raise ValueError for a name of no detector, `published` or `calibrated`, with those that exist.

    A victim by a `method` that leaves no head has no projections to compare.
    """
    bare = method in ("supervised", pretrain.READY)
    known = [*published(thresholds), *(f"{name}, calibrated" for name in CALIBRATED[bare:])]
    for name in names:
        choice(name, "detector", known)


def senders(
    lab: Lab, tasks: Names, queries: int, few: Numbers = ()
) -> dict[str, Callable[[int], Tensor]]:
    """Return users who send up to `queries` images each: customers with their tasks' images, and thieves.

    `few` are numbers of classes: of each a customer with images of so many classes of the first task.
    One thief sends images like the victim's, one four views of a quarter as many, one photographs.
    """
    other = lab.but(query_data="patches", query_images=max(queries, lab.settings["query_images"]))

    def views(seed: int) -> Tensor:
        """Return what Cont-Steal with four answers sends: a view of all images after the other."""
        images = lab.queries(queries // VIEWS, seed)
        config = lab.attack_config("cont-steal", len(images), seed)
        return torch.cat([steal.view(config, images, k) for k in range(VIEWS)])

    def customer(task: str, *classes: int) -> Callable[[int], Tensor]:
        draw: Callable[..., ImageSet] = class_images if classes else bought_images

        def images(seed: int) -> Tensor:
            return pixels(draw(lab, task, *classes, queries, seed))

        # Each detector asks again for what takes long to draw; a stored set would fill a card.
        return lru_cache(128)(images) if task in data.ENDLESS else images

    return {
        **{f"customer, {task}": customer(task) for task in tasks},
        **{f"customer, {tasks[0]}, {n} classes": customer(tasks[0], n) for n in few},
        "thief, single images": partial(lab.queries, queries),
        "thief, four views": views,
        "thief, photographs": partial(other.queries, queries),
    }  # fmt: skip


def watched(lab: Lab, watchers: Watchers, users: Senders, seeds: Numbers) -> pd.DataFrame:
    """Show each detector the answers to each user's images, 32 after 32; each time it starts afresh.

    Rows: `detector`, `user`, `seed`, `queries`, whether the user was `flagged` (0 or 1) after any
    request, which is when a detector that acts would refuse, and the `statistic` where it was most
    suspicious: from the 100th query on, before which nobody is judged.
    """

    def watch(watcher: Watcher, parts: Sequence[Tensor], answers: Sequence[Tensor]) -> Row:
        seen, flagged = _suspicion(watcher, answers[0])
        worst = min(seen) if isinstance(watcher, Prada) else max(seen)
        return {"queries": len(answers[0]), "statistic": worst, "flagged": float(flagged)}

    return _each_user(lab, "watched", watchers, users, seeds, watch)


def _each_user(
    lab: Lab, kind: str, watchers: Watchers, users: Streams, seeds: Numbers, detect: Detect
) -> pd.DataFrame:
    """Return a row for what each detector finds in each user's images, read back where that was done.

    `detect` gets the detector, the images and their answers, by the names that a user sends under.
    """
    code = ["contsteal.victim", *artifacts.defining_modules(*watchers.values())]
    identity = {
        "detectors": {name: artifacts.object_key(watcher) for name, watcher in watchers.items()},
        "victim": lab.victim.sha256, "on": lab.machine,
    }  # fmt: skip

    def find(parts: Sequence[Tensor]) -> Any:
        def found() -> dict[str, Row]:
            answers = [lab.api().embed(part) for part in parts]  # at once: requests are small
            return {name: detect(one, parts, answers) for name, one in watchers.items()}

        sent = {"images": [files.content(part) for part in parts]}
        return lab.kept(kind, identity | sent, code, found)

    rows = []
    for user, seed, sent in _sent(users, seeds):
        found = find([sent] if hasattr(sent, "split") else list(sent))  # images also on disk
        rows += [{"detector": name, "user": user, "seed": seed} | found[name] for name in watchers]
    return pd.DataFrame(rows)


def _sent(users: Mapping[str, Callable[[int], Any]], seeds: Numbers) -> Iterator[Any]:
    """Yield user, seed and what it sends, one after the other; ValueError where there is nobody."""
    if not users or not len(seeds):
        raise ValueError(f"{len(users)} users, {len(seeds)} seeds: at least one of each is needed")
    for (user, images), seed in product(users.items(), seeds):
        yield user, seed, images(seed)


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
    lab: Lab, customers: Senders, seeds: Numbers, projection: Head = None
) -> dict[str, Watcher]:
    """Return detectors that flag whoever is more suspicious than each of these customers.

    Of m customers and one more of the same kind, the latter is flagged with a probability of at most
    1 / (m + 1). `SimilarQueries` first needs the cosine that `SHARE` of their queries exceed.
    """
    answers = [lab.api().embed(images) for *_, images in _sent(customers, seeds)]
    watchers: dict[str, Watcher] = {}
    with torch.no_grad():
        heads = {"projections": projection} if projection else {}
        for space, head in {**heads, "embeddings": None}.items():
            points = answers if head is None else [head(a) for a in answers]
            watcher = SimilarQueries(similarity(points), projection=head, action="record")
            watcher.share = min(max(max(_suspicion(watcher, a)[0]) for a in answers), BELOW_ONE)
            watchers[f"similar {space}, calibrated"] = watcher
    lowest = min(min(_suspicion(Prada(action="record"), a)[0]) for a in answers)
    return watchers | {f"{LOW}, calibrated": Prada(min(lowest, BELOW_ONE), action="record")}


def similarity(answers: Sequence[Tensor]) -> float:
    """Return the cosine that `SHARE` of customers' queries, (N, D) each, exceed with an earlier one.

    The threshold that `defenses.SimilarQueries` needs: chosen on customers, never on thieves. Errors:
    ValueError for fewer than 2 queries, answers with NaN.
    """
    number(min(map(len, answers), default=0), "queries of each customer", int, least=2)
    nearest = []
    for one in answers:
        unit = F.normalize(finite(one), dim=1)
        earlier = torch.ones(len(unit), len(unit), device=unit.device).tril(-1) > 0
        nearest.append((unit @ unit.T).masked_fill(~earlier, -1).amax(1)[1:])
    return float(np.quantile(torch.cat(nearest).cpu().numpy(), 1 - SHARE))


def bills(
    lab: Lab, users: Senders, seeds: Numbers, customers: Senders, calibration: Numbers
) -> pd.DataFrame:
    """Return what each user would owe in proof of work, in seconds: rows as those of `watched`.

    The cost is the entropy of the posteriors, and its line that of `customers` at the seeds
    `calibration`. All are billed for as many answers, those of whoever sends fewest. A price accuses
    nobody: `flagged` is empty.
    """

    def posteriors(images: Tensor) -> Tensor:
        return lab.api().classify(images, "posterior")

    costs = [detectors.entropy(posteriors(images)).cumsum(0)
             for *_, images in _sent(customers, calibration)]  # fmt: skip
    fewest = min(map(len, costs))
    intercept, slope = detectors.price_line(torch.stack([cost[:fewest] for cost in costs]))
    rows = []
    asked = [(user, seed, posteriors(images)) for user, seed, images in _sent(users, seeds)]
    queries = min(len(answers) for *_, answers in asked)
    for user, seed, answers in asked:
        bill = detectors.ProofOfWork("entropy", intercept, slope)
        bill(answers[:queries], user)
        rows.append({"detector": "proof of work, seconds", "user": user, "seed": seed, "queries": queries,
                     "statistic": bill.bill(user), "flagged": np.nan})  # fmt: skip
    return pd.DataFrame(rows)


def roc(watch: pd.DataFrame) -> pd.DataFrame:
    """Return each detector's ROC curve for each kind of thief against all customers, as rows of points.

    `watch` is of `watched` and `bills`. `at` is "curve" for the points of the statistic, every threshold
    there is, and "verdict" for the detector's own. Beside `fpr` and `tpr` stand the curve's area `auc`,
    Mann and Whitney's U over the number of pairs, and how many `customers` and `thieves` were watched.
    ValueError for a table of nobody, or without a customer.
    """
    if watch.empty or watch["user"].str.startswith("thief").all():
        raise ValueError("no customer was watched: an ROC curve needs customers and thieves")
    from sklearn.metrics import auc, roc_curve  # scikit-learn takes seconds to import

    rows = []
    for detector, seen in watch.groupby("detector", sort=False):
        sign = -1 if str(detector).startswith(LOW) else 1
        seen = seen.assign(suspicion=sign * seen["statistic"])
        honest = seen[~seen["user"].str.startswith("thief")]
        for user, thieves in seen.drop(honest.index).groupby("user", sort=False):
            both = pd.concat([thieves, honest])["suspicion"]
            is_thief = np.arange(len(both)) < len(thieves)
            points = roc_curve(is_thief, both, drop_intermediate=False)[:2]
            same = {"detector": detector, "user": user, "customers": len(honest),
                    "thieves": len(thieves), "auc": auc(*points)}  # fmt: skip
            rows += [same | {"at": "curve", "fpr": fpr, "tpr": tpr}
                     for fpr, tpr in zip(*points, strict=True)]  # fmt: skip
            if seen["flagged"].notna().all():
                fpr, tpr = (side["flagged"].mean() for side in (honest, thieves))
                rows.append(same | {"at": "verdict", "fpr": fpr, "tpr": tpr})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------- thieves who are refused


def refusals(lab: Lab, watchers: Watchers, users: Streams, seeds: Numbers) -> pd.DataFrame:
    """Send each user's images through an API that refuses whom its detector flags.

    A refused user goes on under a new name, with the request that was refused; of several tensors each
    is sent under a name of its own. Rows: `detector`, `user`, `seed`, `queries`, the `answers` that the
    first account got, and the `accounts` that all `answered` images took. A user whose new account is
    refused at its first request gives up. `refusals` counts the accounts that were refused.
    """

    def refuse(watcher: Watcher, parts: Sequence[Tensor], answers: Sequence[Tensor]) -> Row:
        fresh = copy.deepcopy(watcher)
        fresh.action = "refuse"
        got, refused = _persist(lab.api([fresh]), parts)
        return {"queries": sum(map(len, parts)), "answers": got[0], "accounts": len(got),
                "answered": sum(got), "refusals": refused}  # fmt: skip

    return _each_user(lab, "refused", watchers, users, seeds, refuse)


def _persist(api: BlackBox, parts: Sequence[Tensor]) -> tuple[list[int], int]:
    """Send all images, under a new name after each refusal; return answers by account, and refusals."""
    got: list[int] = []
    refusals = 0
    for part in parts:
        got.append(0)
        for request in part.split(REQUEST):
            for last in (False, True):
                try:
                    api.embed(request, f"account {len(got)}")
                    got[-1] += len(request)
                    break
                except Refused:
                    refusals += 1
                    if last:
                        return got, refusals
                    got.append(0)
    return got, refusals


def refused(
    lab: Lab, seen: pd.DataFrame, attacks: Mapping[str, str], task: str, steps: Numbers
) -> pd.DataFrame:
    """Train what a refused thief ends with: a surrogate on one account's answers, and one on all.

    `seen` is of `refusals`; `attacks` names what thieves in it train, as {"four views": "cont-steal"}.
    A thief with several views sends one view of all images after the other, and trains on the whole
    rounds that it got. Rows as those of `sweeps.sweep`, with `detector`, `answers`, `accounts`; `attack`
    names the thief and how it ends: it "stops", or has "all answers", as without a detector.
    """
    named = seen.assign(thief=seen["user"].str.removeprefix("thief, "))
    rows = named[named["thief"].isin([*attacks])].to_dict("records")
    largest = lab.settings["surrogate"].get("batch", recipes.Config.batch)
    jobs, about = [], []
    for row, stops, length in product(rows, (True, False), sweeps.lengths(steps)):
        thief, answers = row["thief"], row["answers" if stops else "queries"]
        if not (answers if stops else row["answered"] == answers):
            continue
        images = min(row["queries"] // (VIEWS if "views" in thief else 1), answers)
        changes = {"answers": answers // images, "batch": min(largest, images)} | length
        knobs = tuple(sorted(changes.items()))
        given = attacks[thief], images, row["seed"], (task,), (), knobs
        jobs.append(Job(sweeps.steal_rows, given))
        about.append({"attack": f"{thief}, {'stops' if stops else 'all answers'}",
                      "detector": row["detector"], "answers": answers,
                      "accounts": 1 if stops else row["accounts"]})  # fmt: skip
    done = sweeps.run(lab, jobs)
    return pd.DataFrame([run | facts for run, facts in zip(done, about, strict=True)])
