"""Whole attacks, growth and fidelity in the speed record: what they count, and that they run tiny."""

import importlib
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks import attack, bars, fidelity, growth, literal, record
from benchmarks.bars import Bar
from benchmarks.record import US, Row
from contsteal import data, encoders, losses


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of their own, on a machine without a GPU."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "device", lambda: "cpu")
    return tmp_path


@pytest.mark.parametrize(
    ("low", "high", "outside", "verdict"),
    [(-1, 3, 0, "holds"), (0, 0, 0, "holds"), (0.5, 3, 0.5, "missed"), (-3, -0.5, 0.5, "missed")],
)
def test_an_interval_is_judged_by_whether_it_holds_0(
    low: float, high: float, outside: float, verdict: str
) -> None:
    rows = [Row("p", "w", US, "points", (low + high) / 2, low, high, 3)]
    bar = Bar("t", "p", "w", of="outside", at_most=0)
    assert (bar.measured(rows), bar.verdict(rows)) == (outside, verdict)


@pytest.mark.parametrize("n", [2, 33])
def test_the_literal_loss_is_the_package_s(n: int) -> None:
    g = torch.Generator().manual_seed(n)
    s, t = (torch.randn(n, 24, generator=g, requires_grad=True) for _ in range(2))
    own, theirs = losses.cont_steal(s, t, 0.5, form="code"), literal.loss(s, t)
    torch.testing.assert_close(theirs, own)
    gradients = [torch.autograd.grad(x, s)[0] for x in (own, theirs)]
    torch.testing.assert_close(*gradients)


def test_the_literal_attack_pays_what_the_published_one_does(tiny: encoders.Encoder) -> None:
    images = data.load("shapes", n=40).images
    victim, seen = encoders.build("test_resnet", seed=3), []
    start = next(tiny.parameters()).detach().clone()
    before = {k: v.clone() for k, v in victim.state_dict().items()}
    victim.register_forward_pre_hook(lambda net, given: seen.append(given[0]))
    net = literal.steal(victim, tiny, images, epochs=2, batch=16)
    assert [len(x) for x in seen] == [16] * 4  # asked in every step, incomplete batches dropped
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))
    assert all(p.grad is not None for p in victim.parameters())  # backward ran through it
    assert all(torch.equal(v, before[k]) for k, v in victim.state_dict().items())
    assert not net.training
    assert not torch.equal(next(net.parameters()), start)


def test_the_literal_head_learns(tiny: encoders.Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(literal, "LR", 0.03)
    label = torch.arange(64) % 2
    images = torch.full((64, 3, 32, 32), 20, dtype=torch.uint8) + 200 * label.view(-1, 1, 1, 1)
    easy = data.ImageSet(images.to(torch.uint8), label, "easy", "train", ("dark", "light"))
    assert literal.evaluate(tiny, tiny.eval(), easy, easy, epochs=3, batch=8) == 1
    assert literal.evaluate(tiny, tiny, easy, easy, epochs=0, batch=8) == 0


def test_new_views_cost_as_many_answers_as_the_literal_form() -> None:
    given = attack.work(32, 3, 40, "test_resnet", 1.0)
    assert attack.config(given, 16, 0).distinct(32) == 32 * 3
    assert attack.config(given, 16, 0).policies[0] == "randaugment"


def test_cached_answers_train_the_same_weights_as_new_ones() -> None:
    given = fidelity.setting(tiny=True)
    (one, a), (other, b) = (given.run(0, again=again) for again in (False, True))
    assert (one, fidelity.differing(a, b)) == (other, 0)
    apart = given.run(1)[1]
    assert fidelity.differing(a, apart) > 0


def test_views_one_by_one_are_drawn_from_the_given_generator() -> None:
    images = data.load("shapes", n=6).images
    views = [fidelity.one_by_one(images, torch.Generator().manual_seed(k)) for k in (0, 0, 1)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert views[0].shape == (6, 3, 32, 32)
    assert (views[0].min() >= 0) & (views[0].max() <= 1)


def test_a_difference_is_paired_and_has_a_t_interval() -> None:
    found = fidelity.difference("w", [3.0, 5.0, 7.0], [2.0, 3.0, 4.0])
    assert (found.value, found.turns) == (2.0, 3)
    half = 4.302653 / 3**0.5  # the t quantile of two degrees of freedom, deviation 1
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))


def test_slopes_are_exponents() -> None:
    assert growth.slope([1, 10, 100], [3, 300, 30_000]) == pytest.approx(2)
    assert growth.slope([9, 1, 10, 100], [7, 5, 5, 5]) == pytest.approx(0)


def test_growth_is_drawn_and_kept(home: Path) -> None:
    rows = [record.row("growth", f"{q.name} = {n:,}", US, "s", [n * 1e-3], 2.0 * n)
            for q in growth.QUANTITIES for n in q.cpu]  # fmt: skip
    rows.append(record.row("growth", "slope over queries", US, "slope", [1.0]))
    growth.write(rows, home)
    assert {"growth_cpu.png", "growth_cpu.pdf", "growth_cpu.csv"} <= {
        p.name for p in home.iterdir()
    }
    table = growth.table(rows)
    assert len(table) == len(rows) - 1
    assert table["size"].max() == 100_000
    titles = [ax.get_title(loc="left") for ax in growth.draw(table).axes]
    assert titles == ["slope 1.00"] * 2 * len(growth.QUANTITIES)


@pytest.mark.parametrize("part", ["growth", "fidelity", "attack"])
def test_every_part_runs_tiny(part: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = attack.work
    monkeypatch.setattr(
        attack, "work", lambda queries, *_: work(queries, 1, 16, "test_resnet", 1.0)
    )
    monkeypatch.setattr(attack, "BATCHES", {"": 32})
    rows = importlib.import_module(f"benchmarks.{part}").measure(True)
    assert rows
    assert {r.part for r in rows} == {part}
    assert len({r.name for r in rows}) == len(rows)
    assert all(r.value >= 0 for r in rows if r.unit not in ("points", "slope"))
    assert not list(home.glob("*.json"))
    asked = {bar.work for bar in bars.load() if (bar.part, bar.device) == (part, "cpu")}
    assert {r.work for r in rows} & asked
