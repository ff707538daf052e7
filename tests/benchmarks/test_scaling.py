"""What workers and maps cost: the rule for GPUs that are shared, the figure, and that both run tiny."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks import mapped, scaling
from contsteal.lab import artifacts


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
