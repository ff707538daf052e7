"""The speed record: turns, memory, bars and tables, on closed values; every part runs at a tiny size."""

import importlib
import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import attack, bars, losses, record, report
from benchmarks.bars import Bar
from benchmarks.record import US, Row
from contsteal.losses import cont_steal


def row(who: str = US, value: float = 10.0, **changes: object) -> Row:
    given = {"part": "p", "work": "w", "who": who, "unit": "images", "value": value}
    return Row(**{**given, "low": 0.9 * value, "high": 1.1 * value, "turns": 3, **changes})


def test_ways_take_turns_and_nobody_always_comes_first() -> None:
    seen: list[str] = []
    ways = {name: lambda name=name: seen.append(name) for name in "abc"}
    taken = record.by_turns(ways, turns=3)
    assert seen == [*"abc", *"abc", *"bca", *"cab"]  # the first three warm up
    assert {name: len(times) for name, times in taken.items()} == {"a": 3, "b": 3, "c": 3}
    with pytest.raises(ValueError, match="turns=0"):
        record.by_turns(ways, 0)


def test_a_rate_is_the_median_over_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 4.0, 2.0])
    monkeypatch.setattr(record, "seconds", lambda do: next(times))
    (one,) = record.compare("p", "w", {US: lambda: None}, 8, "images", 3)
    assert (one.value, one.low, one.high, one.turns) == (4.0, 2.0, 8.0, 3)


def test_peak_memory_counts_what_lives_at_once() -> None:
    a = torch.ones(500, 500)  # 1 MB
    assert record.peak_mb(lambda: a @ a) == pytest.approx(1.0)
    assert record.peak_mb(lambda: (a @ a) @ a) == pytest.approx(2.0)

    def one_after_the_other() -> None:
        for _ in range(5):
            _ = (a @ a).sum().item()

    assert record.peak_mb(one_after_the_other) < 2.1
    assert record.peak_mb(lambda: a.view(-1)) <= 1.0


@pytest.mark.parametrize(
    ("bar", "rows", "factor", "verdict"),
    [
        (Bar("t", "p", "w", over="peer", at_least=2), [row(), row("peer", 4.0)], 2.5, "holds"),
        (Bar("t", "p", "w", over="peer", at_least=3), [row(), row("peer", 4.0)], 2.5, "missed"),
        (Bar("t", "p", "w", over="peer", at_least=3),
         [row(unit="s", value=2.0), row("peer", 8.0, unit="s")], 4.0, "holds"),
        (Bar("t", "p", "w", over="peer", of="peak_mb", at_least=50),
         [row(peak_mb=2.0), row("peer", peak_mb=80.0)], 40.0, "missed"),
        (Bar("t", "p", "w", at_most=15), [row(unit="s", value=20.0)], 20.0, "missed"),
        (Bar("t", "p", "w", at_least=9), [row()], 10.0, "holds"),
        (Bar("t", "p", "w"), [row()], 10.0, "no bar"),
        (Bar("t", "p", "other", at_least=1), [row()], None, "not measured"),
        (Bar("t", "p", "w", over="peer", at_least=1), [row()], None, "not measured"),
    ],
)  # fmt: skip
def test_a_bar_is_a_factor_over_a_peer_or_a_value(
    bar: Bar, rows: list[Row], factor: float | None, verdict: str
) -> None:
    assert bar.measured(rows) == (None if factor is None else pytest.approx(factor))
    assert bar.verdict(rows) == verdict


def test_stored_bars_belong_to_parts_that_exist(tmp_path: Path) -> None:
    assert {bar.part for bar in bars.load()} <= {*command.PARTS, "pieces"}
    wrong = tmp_path / "bars.yaml"
    wrong.write_text("- {text: t, part: p, work: w, atleast: 3}\n")
    with pytest.raises(ValueError, match=r"entry 1: unknown fields \['atleast'\]"):
        bars.load(wrong)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (None, row(), "new"),
        (row(), row(value=10.2), "same (1.02 x)"),
        (row(), row(value=11.5), "same (1.15 x)"),  # the spreads overlap
        (row(), row(value=20.0), "faster (2.00 x)"),
        (row(), row(value=5.0), "SLOWER (0.50 x)"),
        (row(unit="s"), row(unit="s", value=20.0), "SLOWER (0.50 x)"),
    ],
)
def test_a_change_is_what_lies_beyond_both_spreads(old: Row | None, new: Row, told: str) -> None:
    assert report.change(old, new) == told


def test_a_record_keeps_other_parts_and_replaces_its_own(tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    record.store("p", [row(), row("peer")], file)
    record.store("q", [row(part="q", value=123456.789)], file)
    record.store("p", [row(value=3.0)], file)
    rows = record.rows_of(record.read(file))
    assert {r.name: r.value for r in rows} == {("q", "w", US): 123500.0, ("p", "w", US): 3.0}
    assert set(record.read(file)["parts"]) == {"p", "q"}


def test_tables_go_between_the_marks_and_nowhere_else(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    record.store("p", [row(), row("peer", 4.0)], tmp_path / "cpu.json")
    report.write(readme, tmp_path)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "2.5 x" in text
    assert "Nothing is measured on a GPU yet" in text
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="needs the lines"):
        report.write(readme, tmp_path)


def test_a_missed_bar_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = [
        row(part="augmentation", work="simclr"),
        row("kornia", 9.0, part="augmentation", work="simclr"),
    ]
    part = importlib.import_module("benchmarks.augmentation")
    monkeypatch.setattr(part, "measure", lambda tiny: slow)
    monkeypatch.setattr(record, "path", lambda: tmp_path / "cpu.json")
    monkeypatch.setattr(record, "device", lambda: "cpu")
    monkeypatch.setattr(report, "write", lambda: None)
    assert command.main(["--only", "augmentation"]) == bars.MISSED
    assert "augmentation of SimCLR against kornia" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "cpu.json").read_text())["rows"]) == 2
    assert command.main(["--only", "augmentation", "--tiny"]) == 0


def test_the_broadcast_form_is_the_packages_loss() -> None:
    s, t = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(losses.broadcast(s, t), cont_steal(s, t, 0.5, form="code"))


def test_a_second_attack_on_the_same_queries_adds_no_forward_pass() -> None:
    given = attack.work(32, 2, 32, "test_resnet", 1.0)
    assert attack.second(given, 16, 2) == 0


@pytest.mark.parametrize("part", ["losses", "probe", "stealing", "startup", "gpu"])
def test_a_part_runs_at_a_tiny_size(part: str) -> None:
    rows = importlib.import_module(f"benchmarks.{part}").measure(True)
    assert rows
    assert {r.part for r in rows} == {part}
    assert len({r.name for r in rows}) == len(rows)
    assert all(r.low <= r.value <= r.high for r in rows)
