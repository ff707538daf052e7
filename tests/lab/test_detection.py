"""Detectors on users: statistics, rates, refusals and the price of a proof of work."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contsteal import data, defenses, steal
from contsteal.defenses import detectors
from contsteal.defenses.detectors import Prada, Refused, SimilarQueries
from contsteal.lab import detection, provider
from contsteal.lab.experiment import Lab


def rows_of(images: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in images}


def test_detectors_see_each_user_for_the_first_time_and_flag_repeats_alone(lab: Lab) -> None:
    pool = lab.images("shapes", "test").images
    users = {
        "customer": lambda seed: pool[seed : seed + 120],
        "thief": lambda seed: pool[seed : seed + 60].repeat(2, 1, 1, 1),
    }
    similar = SimilarQueries(0.999999, action="record", share=0.4)
    watchers = {"similar": similar, "prada": Prada(action="record")}
    rows = detection.watched(lab, watchers, users, [0, 1]).set_index(["detector", "user", "seed"])
    assert rows.loc[("similar", "thief", 1), "statistic"] >= 0.5, "every second query is a repeat"
    assert rows.loc["similar"]["flagged"].tolist() == [False, False, True, True]
    assert watchers["similar"].statistic("thief") == 0, "the given detector has seen nobody"
    assert list(rows) == ["queries", "statistic", "flagged"]
    lab.messages.clear()
    again = detection.watched(lab, watchers, users, [0, 1]).set_index(["detector", "user", "seed"])
    assert again.equals(rows)
    assert not lab.messages, "what was found is read back"


def test_users_send_what_their_names_say(lab: Lab) -> None:
    users = detection.senders(lab, ["shapes", "digits"], 16, few=[2])
    customers = ["customer, shapes", "customer, digits", "customer, shapes, 2 classes"]
    assert list(users)[:3] == customers
    few = provider.class_images(lab, "shapes", 2, 16, 1)
    assert torch.equal(users["customer, shapes, 2 classes"](1), few.images)
    assert torch.equal(users["thief, single images"](1), lab.queries(16, 1))
    views = users["thief, four views"](0)
    assert len(rows_of(views)) == len(views) == 16
    assert not rows_of(views) & rows_of(lab.queries(128))
    patches = lab.but(query_data="patches").queries(16, 2)
    assert torch.equal(users["thief, photographs"](2), patches)


def test_a_thief_sends_the_views_that_its_attack_asks_for(lab: Lab) -> None:
    sent, seen = detection.senders(lab, ["shapes"], 64)["thief, four views"](1), []

    class Api:
        def embed(self, images: torch.Tensor, user: str) -> torch.Tensor:
            seen.append(images)
            return images.flatten(1).float()

    given = {k: v for k, v in lab.settings["surrogate"].items() if k in ("encoder", "policy")}
    steal.ask(steal.Config("cont-steal", answers=4, seed=1, **given), Api(), lab.queries(16, 1))
    assert torch.equal(sent, torch.cat(seen))


def test_customers_have_images_of_their_own_on_which_nobody_trained(lab: Lab) -> None:
    users = detection.senders(lab, ["shapes", "digits"], 400)
    each = [rows_of(users["customer, shapes"](seed)) for seed in (0, 1, 1000, 1001)]
    assert list(map(len, each)) == [400] * 4
    assert len(set.union(*each)) == 4 * 400 > lab.settings["probe_images"]
    assert not set.union(*each) & (rows_of(lab.train_images().images) | rows_of(lab.queries(128)))


def test_customers_images_are_kept_where_they_take_long_to_draw_and_not_on_a_card(lab: Lab) -> None:
    users = detection.senders(lab, ["shapes", "digits"], 160, few=[2])
    again = {name: images(0) is images(0) for name, images in users.items() if "customer" in name}
    assert again == {"customer, shapes": True, "customer, digits": False,
                     "customer, shapes, 2 classes": True}  # fmt: skip


def test_a_detector_is_not_tested_on_the_images_it_was_calibrated_on(lab: Lab) -> None:
    sent = partial(provider.bought_images, lab, "digits", 4000)
    calibrating, tested = (
        [rows_of(sent(s).images) for s in seeds] for seeds in (range(1000, 1009), range(9))
    )
    pool = rows_of(data.load("digits", "train", image_size=32).images)
    assert not set.union(*calibrating) & set.union(*tested)
    assert set.union(*calibrating) | set.union(*tested) <= pool
    assert all(len(one) <= len(pool) // 4 + 1 for one in tested), "half of a half: all differ"
    assert len(set(map(frozenset, tested))) == 9


class Forgetful(SimilarQueries):
    """A planted leak: it forgets its user after every request, as the published code does."""

    def _observe(self, record: Any, answers: torch.Tensor) -> torch.Tensor:
        record.recent = torch.empty(0)
        return super()._observe(record, answers)


class Constant:
    """A detector that says the same of everybody."""

    action = "record"

    def __init__(self, verdict: bool) -> None:
        self.verdict = verdict

    def __call__(self, answers: torch.Tensor, user: str) -> torch.Tensor:
        if self.action == "refuse" and self.verdict:
            raise Refused(user)
        return answers

    def statistic(self, user: str) -> float:
        return 0.5

    def flagged(self, user: str) -> bool:
        return self.verdict


@pytest.fixture(scope="module")
def repeats(lab: Lab) -> dict[str, Any]:
    """A customer with 192 images, and a thief who sends 96 of them twice, round by round."""
    pool = data.load("shapes", "train", 400, 77, 32).images
    return {
        "customer": lambda seed: pool[seed : seed + 192],
        "thief": lambda seed: pool[seed : seed + 96].repeat(2, 1, 1, 1),
    }


@pytest.mark.parametrize(("kind", "caught"), [(SimilarQueries, True), (Forgetful, False)])
def test_a_detector_that_forgets_repeats_is_found_out(
    lab: Lab, repeats: dict, kind: type[SimilarQueries], caught: bool
) -> None:
    watcher = kind(0.999999, action="record", share=0.3)
    seen = detection.watched(lab, {"similar": watcher}, repeats, [0, 1])
    flags = seen.groupby("user")["flagged"].sum()
    assert (flags["customer"], flags["thief"]) == (0, 2 * caught)
    assert detection.roc(seen)["auc"].iloc[0] == (1 if caught else 0.5)


@pytest.mark.parametrize("verdict", [True, False])
def test_a_detector_that_says_the_same_of_everybody_is_on_the_diagonal(
    lab: Lab, repeats: dict, verdict: bool
) -> None:
    seen = detection.watched(lab, {"same": Constant(verdict)}, repeats, [0, 1, 2])
    curve = detection.roc(seen).set_index("at")
    assert set(curve["auc"]) == {0.5}
    assert curve.loc["verdict", ["fpr", "tpr"]].tolist() == [verdict, verdict]
    assert curve.loc["curve", ["fpr", "tpr"]].to_numpy().tolist() == [[0, 0], [1, 1]]


@given(
    thieves=st.lists(st.integers(0, 5), min_size=1, max_size=9),
    customers=st.lists(st.integers(0, 5), min_size=1, max_size=9),
)
def test_the_area_is_that_of_all_pairs(thieves: list[int], customers: list[int]) -> None:
    wins = 0.0
    for thief in thieves:
        for customer in customers:
            wins += 1.0 if thief > customer else 0.5 if thief == customer else 0.0
    area = wins / len(thieves) / len(customers)
    users = [("thief", v) for v in thieves] + [("customer", v) for v in customers]
    watch = pd.DataFrame(users, columns=["user", "statistic"]).assign(detector="d", flagged=np.nan)
    curve = detection.roc(watch)
    assert curve["auc"].tolist() == pytest.approx([area] * len(curve))
    assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(area)
    low = detection.roc(watch.assign(detector="PRADA"))
    assert low["auc"].iloc[0] == pytest.approx(1 - area), "a low W is suspicious"


def test_nobody_is_no_user_to_watch_bill_or_refuse(lab: Lab) -> None:
    known = {"customer": lambda seed: lab.images("shapes").images[:32]}
    calls = (partial(detection.watched, lab, {}), partial(detection.refusals, lab, {}),
             partial(detection.bills, lab, customers=known, calibration=[0]))  # fmt: skip
    for call in calls:
        for users, seeds, count in (({}, [0], "0 users, 1 seeds"), (known, [], "1 users, 0 seeds")):
            with pytest.raises(ValueError, match=f"{count}: at least one of each is needed"):
                call(users=users, seeds=seeds)
    for customers, calibration in (({}, [0]), (known, [])):
        with pytest.raises(ValueError, match="at least one of each is needed"):
            detection.bills(lab, known, [0], customers, calibration)
        with pytest.raises(ValueError, match="at least one of each is needed"):
            detection.calibrated(lab, customers, calibration)


def test_a_user_is_judged_where_it_was_most_suspicious(lab: Lab) -> None:
    """Repeats first, then 200 other images: the share of similar queries falls again."""
    pool = data.load("shapes", "train", 300, 78, 32).images
    user = {"thief": lambda seed: torch.cat([pool[:64].repeat(2, 1, 1, 1), pool[64:264]])}
    watcher = SimilarQueries(0.999999, action="record", share=0.4)
    (row,) = detection.watched(lab, {"similar": watcher}, user, [0]).to_dict("records")
    assert row["statistic"] >= 0.5 > 64 / 328
    assert row["flagged"] == 1
    (acted,) = detection.refusals(lab, {"similar": watcher}, user, [0]).to_dict("records")
    assert acted["refusals"] > 0, "who was flagged would have been refused"


def test_calibrated_detectors_flag_none_of_the_customers_they_were_calibrated_on(lab: Lab) -> None:
    users = detection.senders(lab, ["shapes", "digits"], 160)
    known = {user: sent for user, sent in users.items() if user.startswith("customer")}
    head, seeds = lab.victim.projector, range(1000, 1004)
    watchers = detection.calibrated(lab, known, seeds, head)
    names = ("similar projections", "similar embeddings", "PRADA")
    assert list(watchers) == [f"{name}, calibrated" for name in names]
    seen = detection.watched(lab, watchers, known, seeds)
    assert seen["flagged"].sum() == 0
    for name, rows in seen.groupby("detector"):
        watcher = watchers[name]
        limit = watcher.threshold if name.startswith("PRADA") else watcher.share
        assert limit in rows["statistic"].to_numpy(), "the most suspicious of them is the limit"
    assert "similar projections, calibrated" not in detection.calibrated(lab, known, seeds)


def test_the_bill_is_that_of_a_line_calibrated_on_customers(lab: Lab) -> None:
    """All are billed for as many answers, those of whoever sends fewest."""
    sure, unsure = lab.images("shapes").images[:64], lab.images("digits").images[:64]
    users = {"customer": lambda seed: sure[:40], "long": lambda seed: sure,
             "other": lambda seed: unsure.flip(0)}  # fmt: skip
    known = {"customer": lambda seed: sure, "short": lambda seed: unsure[:32]}
    table = detection.bills(lab, users, [0], known, calibration=[1])
    posteriors = lab.api().classify(sure, "posterior")
    costs = [detectors.entropy(posteriors).cumsum(0)[:32]]
    costs.append(detectors.entropy(lab.api().classify(unsure[:32], "posterior")).cumsum(0))
    bill = defenses.ProofOfWork("entropy", *detectors.price_line(torch.stack(costs)))
    bill(posteriors[:40], "u")
    owed = table.set_index("user")["statistic"]
    assert owed["customer"] == owed["long"] == pytest.approx(bill.bill("u"))
    assert owed["other"] != owed["customer"]
    assert set(table["queries"]) == {40}
    assert table["flagged"].isna().all()


def test_the_similarity_threshold_leaves_the_share_of_customers_queries() -> None:
    answers = torch.randn(801, 8, generator=torch.Generator().manual_seed(0)).split([401, 400])
    nearest: list[float] = []
    for one in answers:
        unit = torch.nn.functional.normalize(one, dim=1).numpy()
        nearest += [max(unit[i] @ unit[j] for j in range(i)) for i in range(1, len(unit))]
    above = np.mean(np.array(nearest) > detection.similarity(answers))
    assert above == pytest.approx(detection.SHARE, abs=0.003)
    with pytest.raises(ValueError, match="NaN"):
        detection.similarity([answers[0] / 0])


def test_published_detectors_are_named_by_their_thresholds(lab: Lab) -> None:
    """Those of answers have no head, and a calibrated one is known before it is made."""
    head, thresholds = torch.nn.Identity(), {"cosine": [0.5], "l2": [13.0], "l2 of answers": [18]}
    watchers = detection.published(thresholds, head)
    assert [*watchers] == ["similar, cosine > 0.5", "similar, L2 < 13", "similar, L2 of answers < 18",
                           "PRADA, W < 0.9"]  # fmt: skip
    heads = [getattr(watcher, "projection", None) is not None for watcher in watchers.values()]
    assert heads == [True, True, False, False]
    users = {"customer": lambda seed: lab.queries(40, seed)}
    for projection in (None, head):
        made = detection.calibrated(lab, users, [0], projection)
        method = "simclr" if projection else "ready"
        detection.check_names([*made, *watchers], thresholds, method)
    unknown = (
        "unknown detector 'similar projections, calibrated': choose one of PRADA, W < 0.9, sim"
    )
    with pytest.raises(ValueError, match=unknown):
        detection.check_names(["similar projections, calibrated"], {}, "ready")


# ------------------------------------------------------------------- thieves who are refused


def literal_accounts(answers: torch.Tensor, share: float) -> list[int]:
    """The answers of each account under SimilarQueries that knows equal rows alone."""
    accounts: list[int] = [0]
    seen: set[bytes] = set()
    similar, queries = 0, 0
    requests = list(answers.split(32))
    while requests:
        rows = [row.numpy().tobytes() for row in requests[0]]
        for row in rows:
            similar, queries = similar + (row in seen), queries + 1
            seen.add(row)
        if queries >= 100 and similar / queries > share:
            accounts.append(0)
            seen, similar, queries = set(), 0, 0
            continue
        accounts[-1] += len(requests.pop(0))
    return accounts


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_a_refused_user_goes_on_under_new_names_until_all_is_answered(
    lab: Lab, repeats: dict, share: float
) -> None:
    watcher = SimilarQueries(0.999999, action="record", share=share)
    table = detection.refusals(lab, {"similar": watcher}, repeats, [0]).set_index("user")
    expected = literal_accounts(repeats["thief"](0), share)
    thief = table.loc["thief"]
    assert (thief["answers"], thief["accounts"]) == (expected[0], len(expected))
    assert thief["refusals"] == len(expected) - 1 == (share < 0.5)
    assert table.loc["customer", ["answers", "accounts", "refusals"]].tolist() == [192, 1, 0]
    assert (table["answered"] == table["queries"]).all()


def test_views_over_accounts_are_missed_and_a_hopeless_user_gives_up(
    lab: Lab, repeats: dict
) -> None:
    watchers = {"similar": SimilarQueries(0.999999, share=0.05), "all": Constant(True)}
    users = {"split": lambda seed: repeats["thief"](seed).chunk(2)}
    table = detection.refusals(lab, watchers, users, [0]).set_index("detector")
    assert table.loc["similar", ["answers", "accounts", "refusals"]].tolist() == [96, 2, 0]
    assert table.loc["all", ["answers", "answered"]].tolist() == [0, 0]


def test_a_refused_thief_trains_on_what_one_account_got(lab: Lab) -> None:
    row = {"detector": "d", "seed": 0, "queries": 64, "accounts": 3, "answered": 64}
    seen = pd.DataFrame([row | {"user": "thief, single images", "answers": 32},
                         row | {"user": "thief, four views", "answers": 40},
                         row | {"user": "thief, four views", "answers": 0, "answered": 0},
                         row | {"user": "customer, shapes", "answers": 32}])  # fmt: skip
    attacks = {"single images": "embedding", "four views": "cont-steal"}
    table = detection.refused(lab, seen, attacks, "shapes", [8, 9])
    got = table[table["steps"] == 8].set_index("attack")[["images", "calls", "answers", "accounts"]]
    assert got.to_dict("split")["index"] == [
        "single images, stops", "single images, all answers", "four views, stops",
        "four views, all answers",
    ]  # fmt: skip
    expected = [[32, 32, 32, 1], [64, 64, 64, 3], [16, 32, 40, 1], [16, 64, 64, 3]]
    assert got.to_numpy().tolist() == expected
    alone = lab.score(lab.steal("embedding", 32, 0, steps=8).encoder, "shapes", 0)
    assert table["accuracy"].iloc[0] == alone["accuracy"]
    assert len(table) == 8


def test_nobody_watched_and_too_few_queries_are_refused() -> None:
    watch = pd.DataFrame(
        {"detector": ["D"], "user": ["thief, x"], "statistic": [1.0], "flagged": [0.0]}
    )
    for table in (watch, watch.iloc[:0]):
        with pytest.raises(ValueError, match="no customer was watched"):
            detection.roc(table)
    for answers in ([], [torch.ones(1, 4)]):
        with pytest.raises(ValueError, match=r"queries of each customer=.*of at least 2"):
            detection.similarity(answers)
