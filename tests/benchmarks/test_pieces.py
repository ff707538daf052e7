"""A GPU's record in pieces: what runs when, what is kept of it, and what the next call does."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from benchmarks import gpu, pieces, record, report, training
from benchmarks.pieces import ORDER, Piece
from contsteal import files, loop
from contsteal.lab import artifacts
from contsteal.paper import notebooks

# A stand-in for `make paper`: its child takes STEPS steps in all calls together, and waits after half of
# them until there is a file beside theirs.
STEPS = 8
MAKE = f"""#!/bin/sh
sh -c '
echo $$ > "$LOG.pid"
while [ $(wc -l < "$LOG") -lt {STEPS} ]; do
  if [ $(wc -l < "$LOG") -lt {STEPS // 2} ] || [ -e "$LOG.go" ]; then echo step >> "$LOG"; fi
  sleep 0.05
done'
"""
Lines = Callable[..., list[str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of their own, the stand-in for make, and little patience."""
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "steps"))
    (tmp_path / "steps").touch()
    (tmp_path / "make").write_text(MAKE)
    (tmp_path / "make").chmod(0o755)
    return tmp_path


def steps(home: Path) -> int:
    return len((home / "steps").read_text().splitlines())


def code(text: str, name: str, seconds: float = 0.0) -> Piece:
    return Piece(name, ("-S", "-c", text), (), seconds)


@pytest.fixture
def call(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lines:
    """Calls the command: a notebook, the real GPU tests, a failure, rates, and one that never fits."""
    wanted = [
        Piece("smoke 03", seconds=0.0, notebook=("smoke", "03")),
        pieces.tests("tests", "not compiled and not graphs", 1.0),
        code("print('it cannot be'); raise SystemExit(1)", "failing"),
        code("print('a bar is missed'); raise SystemExit(3)", "rates"),
        code("", "long", 1e6),
    ]
    monkeypatch.setattr(pieces, "pieces", lambda profiles, tiny: wanted)
    monkeypatch.setattr(
        notebooks,
        "tasks",
        lambda *_: [SimpleNamespace(reason="never" if steps(home) < STEPS else "")],
    )
    monkeypatch.setattr(notebooks, "finish", lambda profile, since: print(f"summary of {profile}"))

    def main(status: int) -> list[str]:
        assert pieces.main(["--profile", "smoke", "--seconds", "300"]) == status
        return capsys.readouterr().out.splitlines()

    return main


def begun(lines: list[str]) -> list[str]:
    return [line.partition(":")[0] for line in lines if " begins, " in line]


def test_a_record_is_made_in_several_calls(
    home: Path, call: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pieces.run
    short = {"smoke 03": 3.0}  # the time is over in the middle of the notebook
    monkeypatch.setattr(pieces, "run", lambda p, limit: run(p, short.pop(p.name, limit)))
    lines = call(1)
    assert begun(lines) == ["smoke 03", "tests", "failing", "rates"]
    assert steps(home) == STEPS // 2
    assert not psutil.pid_exists(int((home / "steps.pid").read_text()))  # make's child ended, too
    assert {"summary of smoke", "done: tests, rates", "left: smoke 03, failing, long"} < {*lines}
    assert "goes on with smoke 03, for which it needs SECONDS=20 or more" in lines[-1]
    state = files.read_json(home / "runs" / "record.json")
    outcomes = {name: one["outcome"] for name, one in state["pieces"].items()}
    assert outcomes == dict(zip(outcomes, ["failed", "done", "stopped", "done"], strict=True))
    assert "skipped" in state["pieces"]["tests"]["last lines"][-1]
    assert state["pieces"]["rates"]["last lines"] == ["a bar is missed"]
    assert {"device", "python", "torch", "CUDA"} < state["versions"].keys()

    (home / "steps.go").touch()
    lines = call(1)
    assert begun(lines) == ["smoke 03", "failing"]  # what is finished is not repeated
    assert steps(home) == STEPS  # it went on
    assert "    it cannot be" in lines
    assert "done: smoke 03, tests, rates" in lines
    again = files.read_json(home / "runs" / "record.json")["pieces"]["smoke 03"]
    assert again["outcome"] == "done"
    assert again["seconds"] > state["pieces"]["smoke 03"]["seconds"] > 3


def test_what_failed_comes_after_what_did_not(
    home: Path, call: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "run", lambda piece, limit: ("done", 1.0, []))
    failed = {"outcome": "failed", "key": "", "seconds": 1.0}
    files.write_json(home / "runs" / "record.json", {"pieces": {"smoke 03": failed}})
    assert begun(call(0)) == ["tests", "failing", "rates", "smoke 03"]


def test_missing_packages_are_named_and_the_rest_is_done(
    call: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_installed", lambda name: name not in ("papermill", "ipykernel"))
    monkeypatch.setattr(pieces, "run", lambda piece, limit: ("done", 1.0, []))
    lines = call(1)
    assert begun(lines) == ["tests", "failing", "rates"]
    assert lines[-2].startswith("Notebooks need ipykernel, papermill, which ")
    assert "pip download --dest wheels" in lines[-2]
    assert "goes on with long, for which it needs SECONDS=1000020 or more" in lines[-1]


def test_a_piece_that_was_stopped_needs_more_time_than_it_had(tmp_path: Path) -> None:
    slow = code("import time; print('slow', flush=True); time.sleep(60)", "slow", 1.0)
    state: pieces.State = {"pieces": {}, "versions": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTSTEAL_RUNS", str(tmp_path))
        outcome, took, said = pieces.run(slow, 0.5)
    assert (outcome, said) == ("stopped", ["slow"])
    assert 0.5 <= took < 5
    assert slow.needs(state) == 1.0
    state["pieces"]["slow"] = {"outcome": "stopped", "seconds": 200.0}
    assert slow.needs(state) == 300.0
    assert not slow.finished(state)


def test_a_piece_is_finished_for_its_code_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "part.py"
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    monkeypatch.setattr(pieces, "versions", lambda: {"driver": "1"})
    source.write_text("from contsteal import losses\n")
    piece = Piece("part", ("part.py",), ("part.py",))
    state = {"pieces": {"part": {"outcome": "done", "key": piece.key(), "seconds": 1.0}}}
    assert piece.finished(state)
    source.write_text("from contsteal import losses  # why\n")
    os.utime(source, ns=(1, 1))
    assert piece.finished(state)
    source.write_text("from contsteal import augment\n")
    assert not piece.finished(state)
    source.write_text("from contsteal import losses\n")
    monkeypatch.setattr(pieces, "versions", lambda: {"driver": "2"})
    assert not piece.finished(state)


def test_pieces_come_in_the_order_of_their_value_and_each_fits_into_a_call() -> None:
    given = pieces.pieces(["synthetic", "paper"], tiny=False)
    names = [piece.name for piece in given]
    assert names[:5] == ["tests", "benchmark gpu", "benchmark stealing", "synthetic 03",
                         "benchmark attack"]  # fmt: skip
    assert len({*names}) == len(names)
    assert all(piece.seconds + pieces.GRACE <= 540 for piece in given)
    known = {notebooks.number(stem) for stem in notebooks.stems()}
    assert {number for number in ORDER if number} <= known
    assert given[3].line()[2:4] == ["paper", "PROFILE=synthetic"]
    assert all(path.is_file() for piece in given for name in piece.code
               if (path := artifacts.ROOT / name))  # fmt: skip


@pytest.mark.parametrize(
    ("given", "options"),
    [("", "auto --seconds 540"), ("PROFILE=smoke SECONDS=7", "smoke --seconds 7")],
)
def test_make_record_calls_them(given: str, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    command = f"make -n --no-print-directory record PYTHON=python3 {given}"
    printed = subprocess.run(
        command.split(), cwd=artifacts.ROOT, capture_output=True, text=True
    ).stdout
    assert printed.strip() == f"python3 -m benchmarks.pieces --profile {options}"


def test_without_a_gpu_a_profile_must_be_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces.torch.cuda, "is_available", lambda: False)
    assert pieces.main([]) == 1
    assert "`make record PROFILE=smoke` rehearses" in capsys.readouterr().err


def test_a_profile_s_seconds_are_those_of_all_its_notebooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "write", lambda: None)
    one = {"outcome": "done", "seconds": 2.0}
    state = {"pieces": {pieces._title("synthetic", number): dict(one) for number in ORDER}}
    state["pieces"]["synthetic 03"]["outcome"] = "stopped"
    pieces.store_whole("synthetic", state)
    assert not record.path().exists()
    state["pieces"]["synthetic 03"]["outcome"] = "done"
    pieces.store_whole("synthetic", state)
    (row,) = record.rows_of(record.read(record.path()))
    assert (row.work, row.value) == ("synthetic, all notebooks", 2.0 * len(ORDER))


# --------------------------------------------------------------------- the forms of a step


@pytest.mark.parametrize(("compiled", "pays"), [(200.0, 800.0), (100.0, gpu.NEVER)])
def test_compiling_pays_from_the_step_that_its_seconds_are_saved(
    compiled: float, pays: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes 40 s; steps of 10 images take 0.1 s, compiled ones half of it, or as long."""

    def own(*_: object, **more: object) -> SimpleNamespace:
        kind = loop._forced["backend"]
        timed = (1.0, [100.0]) if kind == "none" else (41.0, [compiled])
        return SimpleNamespace(timed=lambda turns, least: timed)

    monkeypatch.setattr(training, "own", own)
    rows, found = gpu.forms("resnet18", 10, gpu.TINY)
    assert found == pytest.approx(pays)
    assert [r.who for r in rows] == list(gpu.FORMS)
    assert {r.value for r in rows} == {200.0, 2 * compiled}


def test_a_card_s_record_says_from_when_its_trainings_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "RECORDS", tmp_path)
    monkeypatch.setattr(loop, "card", lambda: "a-card")
    assert loop.compile_from() == loop.COMPILE_FROM
    rows = [record.row("gpu", f"{loop.PAYS}, resnet34, batch 256", record.US, "steps", [9.0]),
            record.row("gpu", loop.PAYS, record.US, "steps", [6543.0])]  # fmt: skip
    record.store("gpu", rows, tmp_path / "a-card.json")
    assert loop.compile_from() == 6543.0
    (tmp_path / "a-card.json").write_text("{")
    assert loop.compile_from() == loop.COMPILE_FROM


def test_without_lightly_its_comparison_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert gpu.peer("resnet18", 8, 1) == []
    assert "lightly is not installed" in capsys.readouterr().out
