"""What workers and maps cost: the rule for GPUs that are shared, the figure, and that both run tiny."""

import os
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import mapped, record, scaling
from contsteal import loop
from contsteal.lab import artifacts, sweeps
from contsteal.lab.experiment import Lab


@pytest.mark.parametrize(
    ("rates", "count"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 1.05, 4: 3.0}, 1),
        ({1: 1.0, 2: 1.9, 4: 2.4, 8: 2.5, 16: 2.6}, 4),
        ({1: 1.0, 2: 1.9, 4: 3.5}, 4),
        ({1: 1.0, 2: 0.7}, 1),
    ],
)
def test_a_card_is_full_where_twice_as_many_gain_less_than_a_tenth(
    rates: dict[int, float], count: int
) -> None:
    assert scaling.fills(rates) == count


def test_a_card_is_measured_once_and_later_sweeps_fill_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two cards are made up, and how long they take; processes get the first of them alone."""
    seen, taken = [], iter([3.0, 3.0, 3.0, 6.0])

    def cards(lab: Lab) -> list[str]:
        return os.environ["CUDA_VISIBLE_DEVICES"].split(",")

    def seconds(lab: Lab, jobs: list[sweeps.Job]) -> float:
        sweeps.run(lab, jobs)
        seen.append((len(jobs), lab.settings["workers"], *sweeps.cards(lab)))
        return next(taken)

    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path))
    for where, name, value in (
        (sweeps, "cards", cards), (loop, "card", lambda: "made-up"), (loop, "RECORDS", tmp_path),
        (record, "RESULTS", tmp_path), (scaling, "seconds", seconds), (scaling, "QUERIES", 32),
        (scaling, "LENGTH", {"steps": 2, "batch": 16}),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, value)
    for most, fill in ((3, 2), (16, 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        assert scaling.main(["--share", "conv4", "--most", str(most)]) == 0
        assert seen == [(2, 1, "4"), (4, 2, "4")], "more than two would be slower, or not asked for"
        assert capsys.readouterr().out.splitlines()[-1].startswith(f"{fill} fill the card")
        assert loop.measured(f"{sweeps.SHARING}, conv4", 0) == fill
        monkeypatch.setattr(sweeps, "run", lambda lab, jobs: [])
        seen.clear()
    assert len(record.read(record.path())["rows"]) == 1


def test_without_a_gpu_there_is_no_card_to_share(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        scaling.main(["--share", "conv4"])
    assert "--share measures a GPU, and there is none here" in capsys.readouterr().err


def test_the_stored_measurements_of_scaling_hold_their_bars() -> None:
    folder = artifacts.ROOT / "benchmarks" / "results"
    table = pd.read_csv(folder / "scaling_cpu.csv")
    naps = table[table["runs of"] == "naps"]
    assert naps["workers"].to_list() == [1, 2, 4, 8]
    assert (naps["overhead_ms"] <= scaling.BAR).all()
    left, right = scaling.draw(table).axes
    assert left.lines[0].get_xdata().tolist() == right.lines[0].get_xdata().tolist() == [1, 2, 4, 8]
    onmap = pd.read_csv(folder / "mapped_cpu.csv")
    assert (onmap["share"] >= mapped.SHARE).all()
    assert (onmap["mapped_mb"] <= mapped.GROWTH).all()


def test_a_map_is_measured_beside_the_same_images_in_memory(tmp_path: Path) -> None:
    mapped.main(
        ["--n", "600", "--size", "32", "--steps", "2", "--turns", "1", "--out", str(tmp_path)]
    )
    table = pd.read_csv(tmp_path / "mapped_cpu.csv")
    assert table["work"].to_list() == ["training", "answering"]
    assert (table["images"] == 600).all()
    share = (table["mapped_per_s"] / table["memory_per_s"]).to_list()
    assert share == pytest.approx(table["share"].to_list(), rel=1e-4)
