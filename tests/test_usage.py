"""What a notebook takes: memory of its own processes alone, disk of its own artifacts, one table."""

import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

from contsteal import files
from contsteal.lab import artifacts
from contsteal.paper import durations, plan, usage

MIB = 2**20
CHILD = """
import subprocess, sys
mine = bytearray(48 * 2**20)
if len(sys.argv) > 2:
    below = subprocess.Popen([sys.executable, "-c", sys.argv[2]], stdout=subprocess.PIPE, stdin=0)
    below.stdout.readline()
print("ready", flush=True)
sys.stdin.read()
"""


def test_memory_is_that_of_named_children_and_of_theirs() -> None:
    command = [sys.executable, "-c", CHILD, "tiny/00_first", CHILD]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert usage.memory("tiny/00_first") > 96 * MIB
        assert usage.memory("tiny/01_last") == 0
    finally:
        child.communicate(b"")


def test_the_peak_is_the_most_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    seen, known = Event(), iter([3, 7, 5])

    def memory(name: str) -> int:
        asked.append(name)
        found = next(known, None)
        if found is None:
            seen.set()
        return found or 0

    monkeypatch.setattr(usage, "memory", memory)
    monkeypatch.setattr(usage, "EVERY", 0.001)
    with usage.watch("a") as peak:
        assert seen.wait(60)
    assert (peak.memory, set(asked)) == (7, {"a"})


def test_disk_is_that_of_artifacts_that_the_run_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path))

    def make(folder: Path) -> None:
        (folder / "weights").write_bytes(bytes(1000))

    for number, name in enumerate(["tiny/00_first", "tiny/01_last", "tiny/00_first"]):
        monkeypatch.setenv(artifacts.MAKER, name)
        folder = artifacts.artifact("thing", {"n": number}, ("seeds",), make, lambda told: None)
    once = 1000 + (folder / artifacts.MANIFEST).stat().st_size
    copy = tmp_path / "00_first.ipynb"
    copy.write_bytes(bytes(70))
    monkeypatch.setenv(artifacts.MAKER, "tiny/03_other")  # reads one back, and made none
    artifacts.artifact("thing", {"n": 0}, ("seeds",), make)
    assert abs(usage.disk("tiny/00_first", copy) - 2 * once - 70) <= 6, "seconds differ in length"
    assert usage.disk("tiny/03_other") == 0


def record(folder: Path, entries: dict[str, dict[str, object]]) -> list[list[str]]:
    files.write_json(folder / plan.TIMINGS, entries)
    lines = durations.table(folder).splitlines()
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines if "|" in line][2:]


def test_the_table_of_costs_in_closed_values(tmp_path: Path) -> None:
    entry = {"memory": 512 * MIB, "disk": 3 * MIB, "device": "CPU", "computed": 1}
    more = entry | {"memory": 256 * MIB, "disk": MIB // 2}
    rows = record(tmp_path, {"00_a": entry | {"seconds": 1.5}, "01_b": more | {"seconds": 2.0}})
    assert rows == [
        ["00_a", "1.5", "512", "3", "CPU"], ["01_b", "2", "256", "0.5", "CPU"],
        ["in all", "3.5", "512", "3.5", "CPU"],
    ]  # fmt: skip
    assert "a GPU's is not counted" in durations.table(tmp_path)


def test_what_an_older_run_did_not_measure_is_a_dash(tmp_path: Path) -> None:
    old = {"seconds": 4.0, "computed": 3}
    rows = record(tmp_path, {"00_a": old, "01_b": old | {"disk": MIB, "memory": MIB}})
    assert rows[0] == ["00_a", "4", "-", "-", "-"]
    assert rows[-1] == ["in all", "8", "-", "-", "-"]
    assert record(tmp_path, {"00_a": old})[0] == ["00_a", "4", "-", "-", "-"]
    assert "Memory is" not in durations.table(tmp_path)


def test_notebooks_side_by_side_have_no_peak_of_all_but_one_that_was_measured(
    tmp_path: Path,
) -> None:
    entry = {"seconds": 4.0, "memory": MIB, "disk": MIB, "device": "CPU", "at_once": 2}
    each = {"00_a": entry, "01_b": entry}
    assert len(record(tmp_path, each)) == 2
    whole = {durations.WHOLE: {"seconds": 5.0, "memory": 2 * MIB, "device": "CPU"}}
    assert record(tmp_path, each | whole)[-1] == ["in all", "5", "2", "2", "CPU"]


def test_what_was_measured_is_kept_and_what_was_read_back_is_not(tmp_path: Path) -> None:
    durations.keep(tmp_path, "00_a", {"seconds": 9.04, "memory": 5, "disk": 6}, 2)
    durations.keep(tmp_path, "00_a", {"seconds": 1.0, "memory": 1, "disk": 6}, 0)
    kept = {"seconds": 9.0, "memory": 5, "disk": 6, "computed": 2, "device": artifacts.processor()}
    assert files.read_json(tmp_path / plan.TIMINGS) == {"00_a": kept}
