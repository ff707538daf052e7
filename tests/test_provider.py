"""The provider's side: customers, the matrix of who pays, detectors on users, and the price."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from contsteal import defenses, steal
from contsteal.defenses import proof_of_work
from contsteal.defenses.detectors import Prada, SimilarQueries
from contsteal.lab import provider
from contsteal.lab.experiment import Lab
from contsteal.paper import report, stakes

NOISE, ROUND = [defenses.GaussianNoise(2.0)], [defenses.Rounding(1)]


def test_customers_of_a_defence_that_draws_nothing_are_measured_once(lab, monkeypatch) -> None:
    asked, real = [], Lab.legitimate

    def counted(self, task, chain):
        asked.append((task, repr(chain)))
        return real(self, task, chain)

    monkeypatch.setattr(Lab, "legitimate", counted)
    table = provider.customers(lab, [[], NOISE, ROUND], ["shapes", "digits"], [0, 1])
    assert len(table) == 3 * 2 * 2
    assert len(asked) == len(set(asked)) == 2 * (1 + 2 + 1)
    wide = table.pivot_table(index=["defence", "task"], columns="seed", values="legitimate")
    assert (wide.loc["none", 0] == wide.loc["none", 1]).all()
    assert wide.loc[("none", "shapes"), 0] == real(lab, "shapes")
    own = provider.seeded(NOISE, 1)
    assert wide.loc[("GaussianNoise(std=2.0)", "digits"), 1] == real(lab, "digits", own)


def test_seeds_of_a_chain_differ_by_place_and_the_given_defences_stay() -> None:
    chain = [
        defenses.GaussianNoise(1.0),
        defenses.Rounding(0),
        defenses.GaussianNoise(1.0),
    ]
    own = provider.seeded(chain, 3)
    assert [d.seed for d in (own[0], own[2])] == [3, 2003]
    assert (chain[0].seed, provider.name(chain)) == (0, " + ".join(map(repr, chain)))
    assert provider.name([]) == "none"


def test_defences_are_listed_by_name_and_first_parameter() -> None:
    chains = provider.listed({"top-k": [8, 64], "prediction-poisoning": [2.0]})
    assert [provider.name(c) for c in chains] == [
        "TopK(8)", "TopK(64)", "PredictionPoisoning(eps=2.0, scale=1.0)",
    ]  # fmt: skip
    assert provider.listed({}) == []
    unit = provider.listed({"normalise + rounding": [0, 1]})
    assert [provider.name(c) for c in unit] == [
        "Normalise() + Rounding(0)", "Normalise() + Rounding(1)",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="unknown defence 'unit'"):
        provider.listed({"unit + rounding": [1]})
    with pytest.raises(ValueError, match="rounding: 1 is no list"):
        provider.listed({"rounding": 1})
    with pytest.raises(ValueError, match="unknown defence 'top-kk': choose one of normalise"):
        provider.listed({"top-kk": [8]})
    with pytest.raises(ValueError, match="TopK k=0"):
        provider.listed({"top-k": [0]})


def attacked() -> pd.DataFrame:
    rows = [
        {"defence": d, "attack": a, "seed": s, "accuracy": base + 0.01 * s}
        for a in ("embedding", "cont-steal")
        for d, base in (("none", 0.6), ("D", 0.4), ("E", 0.6))
        for s in (0, 1, 2)
    ]
    return pd.DataFrame([*rows, {"attack": "victim", "seed": 0, "accuracy": 0.9}])


def bought() -> pd.DataFrame:
    return pd.DataFrame([
        {"defence": d, "task": t, "seed": s, "legitimate": v + spread * s}
        for d, v, spread in (("none", 0.8, 0.0), ("D", 0.8, 0.0), ("E", 0.7, 0.02))
        for t in ("shapes", "digits")
        for s in (0, 1, 2)
    ])  # fmt: skip


def test_the_matrix_holds_paired_changes_for_every_attack_and_customer() -> None:
    table = provider.matrix(attacked(), bought())
    assert len(table) == 2 * (2 + 2)
    cell = table.set_index(["defence", "party", "who"])
    assert cell.loc[("D", "attacker", "embedding"), "change"] == pytest.approx(-0.2)
    assert cell.loc[("D", "customer", "digits"), "change"] == 0
    gone = cell.loc[("E", "customer", "shapes")]
    half = 4.302653 * 0.02 / math.sqrt(3)  # t of 2 degrees of freedom
    assert (gone["change"], gone["n"]) == (pytest.approx(-0.08), 3)
    assert gone["low"] == pytest.approx(-0.08 - half)
    told, shown = stakes.matrix(table)
    assert told == (
        "D surely take from every attack; E surely take from a customer; D do the first and not the "
        "second."
    )
    assert list(shown.index) == ["D", "E"]
    assert stakes.outcome(table).startswith(
        "1 of 2 defences surely take from every attack, 1 of them"
    )


def test_one_table_holds_what_all_three_parties_pay() -> None:
    stake = provider.matrix(attacked(), bought())
    bill = pd.DataFrame({"seconds": [0.25, 1 / 3, 1.0], "added": 0.5, "bytes, half": 8, "bytes": 16},
                        index=["D", "E", "watcher"])  # fmt: skip
    rows = [
        {"head": "h", "kind": k, "accuracy": a, "mark": "5 epochs"}
        for k, a in (("victim", 0.82), ("unmarked", 0.85), ("stolen", math.nan))
    ]
    whole = stakes.parties(stake, bill, pd.DataFrame(rows))
    assert list(whole.index) == ["D", "E", "watcher", "watermark, h"]
    assert whole.loc["D", "attacker embedding"] == "-20.0 points"
    assert whole.loc["D", "s per 1,000 answers"] == "0.25"
    assert whole.loc["watcher", "attacker embedding"] == "-"
    assert whole.loc["watcher", "bytes per user"] == "16"
    assert whole.loc["watermark, h", "customer shapes"] == "-3.0 points"
    assert whole.loc["watermark, h", "training"] == "5 epochs"
    assert whole.loc["watermark, h", "customer digits"] == "-"
    assert list(stakes.parties(stake, bill).index) == ["D", "E", "watcher"]
    assert set(stakes.parties(stake, bill)["training"]) == {"none"}


def test_matrix_and_detectors_are_drawn_from_their_tables() -> None:
    fig = report.draw("05_matrix", provider.matrix(attacked(), bought()))
    cells = [t.get_text() for t in fig.axes[0].texts]
    assert cells.count("-20") == 2
    assert cells.count("+0") == 4
    seen = pd.DataFrame([
        {"detector": "W", "user": u, "seed": s, "queries": 9, "statistic": v, "flagged": v > 1}
        for u, v in (("customer", 0.5), ("thief", 2.0))
        for s in (0, 1)
    ])  # fmt: skip
    fig = report.draw("05_detectors", seen)
    fills = [line.get_markerfacecolor() for line in fig.axes[0].lines]
    assert fills == ["white"] * 2 + ["#D55E00"] * 2
    told, shown = stakes.detected(seen)
    assert told == "W flags thief 2 of 2 times."
    assert (
        stakes.flagged(seen)
        == "Detectors flag thieves 2 of 2 times, customers 0 of 2 times (filled dots)"
    )
    assert shown.loc[("W", "customer"), "flagged"] == "0 % [0, 84]"


def test_detectors_see_each_user_for_the_first_time_and_flag_repeats_alone(lab) -> None:
    users = {
        "customer": lambda seed: lab.images("shapes").images[seed : seed + 120],
        "thief": lambda seed: lab.images("shapes").images[seed : seed + 60].repeat(2, 1, 1, 1),
    }
    watchers = {
        "similar": SimilarQueries(0.999999, action="record", share=0.4),
        "prada": Prada(action="record"),
    }
    table = provider.watched(lab, watchers, users, [0, 1])
    rows = table.set_index(["detector", "user", "seed"])
    assert rows.loc[("similar", "thief", 1), "statistic"] >= 0.5, "every second query is a repeat"
    assert rows.loc["similar"]["flagged"].tolist() == [False, False, True, True]
    assert watchers["similar"].statistic("thief") == 0, "the given detector has seen nobody"


def test_users_send_what_their_names_say(lab) -> None:
    users = provider.senders(lab, ["shapes", "digits"], 16)
    assert list(users)[:2] == ["customer, shapes", "customer, digits"]
    own = {row.numpy().tobytes() for row in lab.images("digits").images}
    assert {row.numpy().tobytes() for row in users["customer, digits"](3)} <= own
    assert torch.equal(users["thief, single images"](1), lab.queries(16, 1))
    four = users["thief, four views"](0)
    assert len({row.numpy().tobytes() for row in four}) == len(four) == 16
    assert all(len(images(0)) == 16 for images in users.values())
    assert not torch.equal(users["customer, shapes"](0), users["customer, shapes"](1))


def test_who_is_calibrated_on_is_not_who_is_tested(lab) -> None:
    users = provider.senders(lab, ["shapes", "digits"], 64)
    calibrating, tested = (
        {row.numpy().tobytes() for seed in seeds for row in users["customer, shapes"](seed)}
        for seeds in (range(1000, 1005), range(5))
    )
    assert len(calibrating) == len(tested) == 80, "each has half of the images"
    assert not calibrating & tested


def test_what_draws_nothing_is_measured_once() -> None:
    cell = provider.matrix(attacked(), bought()).set_index(["defence", "party", "who"])
    assert cell.loc[("D", "customer", "digits"), "n"] == 1
    assert cell.loc[("E", "customer", "digits"), "n"] == 3


def test_the_bill_of_calibrated_customers_is_the_least_and_that_of_others_higher(lab) -> None:
    sure, unsure = lab.images("shapes").images[:64], lab.images("digits").images[:64]
    users = {"customer": lambda seed: sure, "other": lambda seed: unsure.flip(0)}
    table = provider.bills(lab, users, [0], calibration=[1])
    owed = table.set_index("user")["statistic"]
    posteriors = lab.api().classify(sure, "posterior")
    costs = proof_of_work.entropy(posteriors).cumsum(0)
    bill = defenses.ProofOfWork("entropy", *proof_of_work.calibrate(costs[None]))
    bill(posteriors, "u")
    assert owed["customer"] == pytest.approx(bill.bill("u"))
    assert owed["other"] != owed["customer"]
    assert table["flagged"].isna().all()
    report.draw("05_detectors", table)
    assert stakes.detected(table)[0] == "no detector flags anybody."


def test_the_similarity_threshold_leaves_the_share_asked_for_of_a_customer_s_queries() -> None:
    answers = torch.randn(401, 8, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(answers, dim=1).numpy()
    nearest = [max(unit[i] @ unit[j] for j in range(i)) for i in range(1, len(unit))]
    for share in (0.05, 0.25):
        above = np.mean(np.array(nearest) > provider.similarity(answers, share))
        assert above == pytest.approx(share, abs=0.003)


def test_the_price_counts_memory_that_grows_and_memory_that_does_not(lab) -> None:
    chains = [[], [defenses.B4B(bits=6)], [SimilarQueries(0.9, action="record")]]
    images = lab.images("shapes").images[:96]
    table = provider.price(lab.victim.encoder, chains, images, batch=16, rounds=1)
    free, buckets, similar = (table.iloc[k] for k in range(3))
    assert (free["bytes"], free["bytes, half"]) == (0, 0)
    assert buckets["bytes"] == buckets["bytes, half"] == 2**6 // 8 + 16, "two counts besides"
    dim = lab.victim.encoder.dim
    assert similar["bytes"] - similar["bytes, half"] == 48 * 4 * dim
    assert (table["seconds"] > 0).all()
    assert (table["added"].iloc[1:] > 0).all()


def test_a_thief_who_sends_views_sends_views_of_few_images(lab) -> None:
    config = steal.Config(attack="cont-steal", image_size=32)
    images = lab.queries(8)
    sent = provider.views(config, images, 3)
    assert sent.shape == (24, 3, 32, 32)
    assert len({row.numpy().tobytes() for row in sent}) == 24
    assert torch.equal(provider.views(config, images[:4], 3)[4:8], sent[8:12])
