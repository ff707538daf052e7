"""A GPU's record in pieces: what runs when, what is kept of it, and what the next call does."""

import errno
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from benchmarks import (
    attack,
    bars,
    fidelity,
    gpu,
    growth,
    pieces,
    record,
    report,
    stealing,
    training,
)
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
    """Runs and figures of their own, and the stand-in for make."""
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path / "figures"))
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
        pieces.tests("tests", "losses_agree", 1.0),
        code("print('it cannot be'); raise SystemExit(1)", "failing"),
        code("print('a bar is missed'); raise SystemExit(3)", "rates"),
        code("", "long", 1e6),
    ]
    monkeypatch.setattr(pieces, "pieces", lambda profiles, tiny: wanted)
    monkeypatch.setattr(
        notebooks,
        "tasks",
        lambda *_: [SimpleNamespace(reason="never" if steps(home) < STEPS else "", key={})],
    )
    monkeypatch.setattr(notebooks, "finish", lambda profile, since: print(f"summary of {profile}"))
    files.write_text(home / "figures" / "smoke" / "03_attacks.csv", "accuracy\n")

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
    short = {"smoke 03": 1.5}  # the time is over in the middle of the notebook
    monkeypatch.setattr(pieces, "run", lambda p, limit, s: run(p, short.pop(p.name, limit), s))
    lines = call(1)
    assert begun(lines) == ["smoke 03", "tests", "failing", "rates"]
    assert steps(home) == STEPS // 2
    assert not psutil.pid_exists(int((home / "steps.pid").read_text()))  # make's child ended, too
    assert {"summary of smoke", "done: tests, rates", "left: smoke 03, long, failing"} < {*lines}
    assert any(line.startswith("failed: failing; all that") for line in lines)
    # It was stopped without having kept anything.
    assert "goes on with smoke 03, for which it needs SECONDS=2" in lines[-2]
    state = files.read_json(home / "runs" / "record.json")
    outcomes = {name: one["outcome"] for name, one in state["pieces"].items()}
    assert outcomes == dict(zip(outcomes, ["failed", "done", "stopped", "done"], strict=True))
    assert "2 passed" in state["pieces"]["tests"]["last lines"][-1]
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
    assert again["seconds"] > state["pieces"]["smoke 03"]["seconds"] > 1.5

    with tarfile.open(home / "runs" / pieces.ARCHIVE) as tar:
        names = {*tar.getnames()}
        tar.extractall(home / "clone", filter="data")
    logs = {f"runs/record/{name}.log" for name in ("smoke_03", "tests", "failing", "rates")}
    folders = {"runs/record", "figures/smoke"}
    assert names == logs | folders | {"runs/record.json", "figures/smoke/03_attacks.csv"}
    # Another machine, to which no executed notebook came along.
    monkeypatch.setenv("CONTSTEAL_RUNS", str(home / "clone" / "runs"))
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(home / "clone" / "figures"))
    monkeypatch.setattr(notebooks, "tasks", lambda *_: [SimpleNamespace(reason="never", key={})])
    assert begun(call(1)) == ["failing"]
    with tarfile.open(home / "clone" / "runs" / pieces.ARCHIVE) as tar:
        assert {*tar.getnames()} == names
    (home / "clone" / "figures" / "smoke" / "03_attacks.csv").write_text("another\n")
    monkeypatch.setattr(pieces, "run", lambda piece, limit, state: ("done", 1.0, []))
    assert begun(call(0)) == ["smoke 03", "failing"]


def test_what_failed_comes_after_what_did_not(
    home: Path, call: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "run", lambda piece, limit, state: ("done", 1.0, []))
    failed = {"outcome": "failed", "key": "", "seconds": 1.0}
    files.write_json(home / "runs" / "record.json", {"pieces": {"smoke 03": failed}})
    assert begun(call(0)) == ["tests", "failing", "rates", "smoke 03"]


def test_missing_packages_are_named_and_the_rest_is_done(
    call: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_installed", lambda name: name not in ("papermill", "ipykernel"))
    monkeypatch.setattr(pieces, "run", lambda piece, limit, state: ("done", 1.0, []))
    monkeypatch.setattr(pieces.shutil, "which", lambda name: None)
    lines = call(1)
    assert begun(lines) == ["tests", "failing", "rates"]
    assert lines[-4].startswith("Notebooks need make, ipykernel, papermill, which this machine or ")
    assert "pip install ipykernel papermill`; without" in lines[-3]
    assert "goes on with long, for which it needs SECONDS=1000020 or more" in lines[-2]


def asleep(name: str = "slow") -> Piece:
    return code("import time; print('slow', flush=True); time.sleep(60)", name, 1.0)


def test_tests_and_benchmarks_do_without_what_a_gpu_machine_lacks() -> None:
    lacking = ["ipykernel", "lightly", "nbclient", "nbformat", "papermill", "pydantic"]
    given = pieces.pieces(["synthetic"], tiny=False)
    parts = [piece.command[3] for piece in given if piece.command[:2] == ("-m", "benchmarks")]
    modules = [*(f"benchmarks.{part}" for part in parts), "benchmarks.pieces", "tests.test_gpu"]
    text = f"import sys, importlib; sys.modules |= dict.fromkeys({lacking}); "
    text += f"[importlib.import_module(name) for name in {modules}]"
    subprocess.run([sys.executable, "-c", text], cwd=artifacts.ROOT, check=True)


@pytest.mark.parametrize(("kept", "needs"), [(True, pieces.LEAST), (False, 300.0)])
def test_a_notebook_that_kept_nothing_needs_more_time_too(
    kept: bool, needs: float, home: Path
) -> None:
    book, state, since = Piece("smoke 03", notebook=("smoke", "03")), {"pieces": {}}, time.time()
    file = home / "runs" / "artifacts" / "victim-1.work" / "last.pt"
    files.write_text(file, "")
    os.utime(file, (since + (1 if kept else -1),) * 2)
    pieces.note(book, state, "stopped", since, 200.0)
    assert book.needs(state) == needs


def killed(
    state: pieces.State, seconds: float, born: float | None = None
) -> subprocess.Popen[bytes]:
    """Return what a call that was killed has left: a process that runs on, and a note of it."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"],
                               start_new_session=True)  # fmt: skip
    threading.Thread(target=process.wait, daemon=True).start()  # as init does
    born = psutil.Process(process.pid).create_time() if born is None else born
    state["running"] = {"piece": "slow", "pid": process.pid, "born": born, "seconds": seconds}
    return process


def test_what_a_killed_call_has_left_is_ended_and_comes_last(home: Path) -> None:
    state: pieces.State = {"pieces": {}}
    slow, process = asleep(), killed(state, 40.0)
    pieces.clear([slow], state)
    assert process.wait(1) == -signal.SIGTERM
    assert "running" not in state
    assert (state["pieces"]["slow"]["outcome"], slow.needs(state)) == ("killed", 60.0)
    assert slow.later(state)
    assert not Piece("slow", notebook=("smoke", "03")).later(state)
    other = killed(state, 40.0, born=1.0)  # the number was given to another process
    pieces.clear([slow], state)
    assert other.poll() is None
    other.kill()


def test_a_terminated_call_keeps_what_it_has(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [code("", "first"), asleep(), code("", "after")]
    monkeypatch.setattr(pieces, "pieces", lambda profiles, tiny: wanted)
    monkeypatch.setattr(pieces, "BEAT", 0.1)

    def end() -> None:
        while "slow" not in str(files.read_json(pieces.state_file()) or {}):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    assert pieces.main(["--profile", "smoke", "--to", str(home / "out")]) == 0
    said = capsys.readouterr().out
    assert "done: first\nleft: slow, after\n" in said
    state = files.read_json(pieces.state_file())["pieces"]
    assert (state["slow"]["outcome"], state["slow"]["vain"]) == ("interrupted", 0.0)
    assert "after" not in state
    assert (home / "out" / pieces.ARCHIVE).exists()


def test_two_calls_do_not_run_at_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pieces.alone():
        assert pieces.main(["--profile", "smoke"]) == 1
    assert capsys.readouterr().err == "error: another `make record` runs here: wait for its end\n"


@pytest.mark.parametrize(
    ("problem", "said"),
    [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")],
)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_disk_that_takes_nothing_is_an_error_in_one_sentence(
    problem: int, said: str, when: str, home: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def full(path: Path, text: str) -> int:
        raise OSError(problem, os.strerror(problem), str(path))

    monkeypatch.setattr(pieces, "pieces", lambda *_, **__: [code("", "first")])
    if when == "before":
        monkeypatch.setattr(Path, "write_text", full)
    else:
        monkeypatch.setattr(pieces, "run", lambda *_: monkeypatch.setattr(Path, "write_text", full)
                            or ("done", 1.0, []))  # fmt: skip
    assert pieces.main(["--profile", "smoke"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert f"cannot be written ({said}): free space, give permission" in line


def test_a_machine_that_forgets_gives_its_victims_in_parts(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pieces, "LARGEST", 2**20 + 4096)
    for name in ("victim-1/encoder", "victim-2.work/last", "attack-1/encoder"):
        files.write_text(home / "runs" / "artifacts" / name, "x" * 9000)
    pieces.logs().mkdir()
    files.write_text(home / "out" / f"{pieces.VICTIMS}.7", "of before")
    pieces.keep({"pieces": {}}, [], home / "out")
    parts = [home / "out" / f"{pieces.VICTIMS}.{number}" for number in range(5)]
    assert {*(home / "out").iterdir()} == {home / "out" / pieces.ARCHIVE, *parts}
    with tarfile.open(fileobj=io.BytesIO(b"".join(map(Path.read_bytes, parts)))) as tar:
        assert "runs/artifacts/victim-1/encoder" in tar.getnames()
        assert len(tar.getnames()) == 2
    assert "too much for a repository" not in capsys.readouterr().out


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
    assert {"benchmark forms", "paper 00 06", "tests of compiled steps"} < {*names}
    assert len({*names}) == len(names)
    assert all(piece.seconds + pieces.GRACE <= 540 for piece in given)
    tiny = [piece.notebook[1] for piece in pieces.pieces(["smoke"], tiny=True) if piece.notebook]
    assert " ".join(tiny) == " ".join(ORDER)
    known = {notebooks.number(stem) for stem in notebooks.stems()}
    assert {number for numbers in ORDER for number in numbers.split()} == known
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


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, list[float]] | Exception]:
    """A faked timer: what a trial returns or raises by backend. Steps of 10 images, 0.1 s when eager."""
    times = {"none": (1.0, [100.0]), "eager": (41.0, [200.0])}

    def own(*_: object, **more: object) -> SimpleNamespace:
        def timed(turns: int, least: float) -> tuple[float, list[float]]:
            if isinstance(found := times[loop.BACKEND], Exception):
                raise found
            return found

        model = SimpleNamespace(encoder=torch.nn.Linear(1, 1))
        return SimpleNamespace(timed=timed, step=lambda: None, model=model)

    monkeypatch.setattr(training, "own", own)
    return times


class Crashed(SimpleNamespace):
    """A step that no compiler takes: `Compiled` warns, and goes on eagerly."""

    def timed(self, turns: int, least: float) -> tuple[float, list[float]]:
        if loop.BACKEND != "none":
            step = loop.Compiled(torch.nn.Identity(), "eager")
            step.run = self.crash
            step(torch.zeros(1))
        return 1.0, [100.0]

    def crash(self, *_: object) -> None:
        raise RuntimeError("Failed to find C compiler\nfirst of many lines")


def test_a_form_that_crashes_is_left_out_and_never_pays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "own", lambda *_, **__: Crashed())
    rows, pays = gpu.forms(gpu.TINY)
    assert [r.who for r in rows] == [who for who in gpu.FORMS if who != gpu.COMPILED]
    assert pays == gpu.NEVER
    assert capsys.readouterr().out == (
        "simclr step, test_resnet, batch 8: compiled is left out, because it failed: a step could not be "
        "compiled (Failed to find C compiler)\n"
    )


@pytest.mark.parametrize(("compiled", "used"), [(200.0, True), (90.0, False), (None, False)])
def test_the_slower_form_is_not_used_afterwards(
    compiled: float | None, used: bool, timer: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forms are timed once, into the card's record; a long training there follows it."""
    timer["eager"] = (41.0, [compiled]) if compiled else RuntimeError("out of memory")
    monkeypatch.setattr(loop, "RECORDS", tmp_path)
    monkeypatch.setattr(loop, "card", lambda: "a-card")
    monkeypatch.setattr(loop, "find_spec", lambda name: True)
    pays = gpu.forms(gpu.TINY._replace(batch=10))[1]
    row = record.row("gpu", loop.PAYS, record.US, "steps", [pays])
    record.store("gpu", [row], tmp_path / "a-card.json")
    for steps, compiles in ((801, used), (799, False)):
        with loop.compiled(torch.nn.Identity(), torch.device("cuda"), steps) as step:
            assert isinstance(step, loop.Compiled) == compiles


def test_a_card_s_record_says_from_when_its_trainings_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "RECORDS", tmp_path)
    monkeypatch.setattr(loop, "card", lambda: "a-card")
    assert loop.measured(loop.PAYS, loop.COMPILE_FROM) == loop.COMPILE_FROM
    rows = [record.row("gpu", f"{loop.PAYS}, resnet34, batch 256", record.US, "steps", [9.0]),
            record.row("gpu", loop.PAYS, record.US, "steps", [6543.0])]  # fmt: skip
    record.store("gpu", rows, tmp_path / "a-card.json")
    assert loop.measured(loop.PAYS, loop.COMPILE_FROM) == 6543.0
    (tmp_path / "a-card.json").write_text("{")
    assert loop.measured(loop.PAYS, loop.COMPILE_FROM) == loop.COMPILE_FROM


def test_without_lightly_its_bar_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    rows = gpu.peer(gpu.TINY, 0)
    assert "not measured: no lightly" in capsys.readouterr().out
    (bar,) = (bar for bar in bars.load() if (bar.device, bar.over) == ("cuda", "lightly"))
    assert bar.verdict(rows) == "not measured: no lightly"
    assert bar.verdict([]) == "not measured"
    assert report.changes(rows, rows) == ["gpu | simclr step | lightly: not installed, new"]
    assert "not installed" in report.measured(rows)
    assert bars.missed(rows, "cuda") == []


def test_every_bar_of_a_gpu_has_a_row_of_its_record(
    timer: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all faked that takes time: what the parts call their rows must be what the bars ask for."""
    timer["inductor"] = timer["eager"]
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "device", lambda: torch.device("cuda"))
        patch.setattr(gpu, "matmul_rate", lambda side, least: 1e15)
        patch.setattr(gpu, "find_spec", lambda name: True)
        patch.setattr(training, "Lightly", lambda *_: SimpleNamespace(epoch=lambda: None))
        rows = gpu.measure(tiny=False)
    for name, found in (("cached", [1.0]), ("fresh", 1.0), ("answers", 1.0)):
        monkeypatch.setattr(stealing, name, lambda *_, found=found: found)
    rows += stealing.measure(tiny=False)
    for name in ("work", "ours"):
        monkeypatch.setattr(attack, name, lambda *_, **__: SimpleNamespace(_replace=lambda **_: 0))
    rows.append(attack.large(*attack.GPU))
    run = SimpleNamespace(run=lambda seed, *_, **__: (50.0 + seed, None))
    monkeypatch.setattr(fidelity, "setting", lambda tiny: run)
    monkeypatch.setattr(fidelity, "differing", lambda *_: 0)
    monkeypatch.setattr(loop, "precision", lambda device: "bf16")
    rows += fidelity.measure(tiny=False)
    monkeypatch.setattr(growth, "QUANTITIES", [replace(growth.QUANTITIES[0], do=lambda size: 0)])
    rows += growth.measure(tiny=True)
    whole = {"pieces": {pieces._title("synthetic", n): {"outcome": "done", "seconds": 9.0}
                        for n in ORDER}}  # fmt: skip
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "write", lambda: None)
    pieces.store_whole("synthetic", whole)
    rows += record.rows_of(record.read(record.path()))
    asked = [bar for bar in bars.load() if bar.device == "cuda"]
    assert len(asked) > 10
    assert [bar.text for bar in asked if bar.measured(rows) is None] == []
