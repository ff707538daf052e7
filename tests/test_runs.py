"""Artifacts: written whole or not at all, computed once, and never trusted when damaged."""

import errno
import json
import re
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from threading import Thread

import pytest
import torch

from contsteal import files
from contsteal.lab import artifacts

CONFIG = {"epochs": 3, "lr": 0.1}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """Send every artifact of these tests to a temporary folder."""
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


class Make:
    """Write two files, and count how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        (folder / "weights.bin").write_bytes(b"weights" * 100)
        files.write_json(folder / "rows.json", {"accuracy": 0.5})


@pytest.fixture
def make() -> Make:
    return Make()


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if ".partial" in p.name]


# ------------------------------------------------------------------------- atomic writes


def test_a_write_replaces_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    files.write_text(path, "old")
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("crash", [RuntimeError, KeyboardInterrupt])
def test_a_crash_inside_leaves_the_old_file(tmp_path, crash):
    def write_half(path: Path) -> None:
        with files.atomic(path) as partial:
            partial.write_text("hal")
            raise crash

    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(crash):
        write_half(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_partial_file_lies_beside_and_the_old_one_stays_until_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.atomic(path) as partial:
        partial.write_text("new")
        assert partial.parent == path.parent
        assert partial != path
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_json_goes_there_and_back(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": "ü"})
    assert files.read_json(tmp_path / "a.json") == {"a": "ü", "b": [1, 2.5, None]}
    (tmp_path / "a.json").write_text('{"b": [1, 2')
    assert files.read_json(tmp_path / "a.json") is None
    assert files.read_json(tmp_path / "none.json") is None


# ----------------------------------------------------------------------------- artifacts


def test_an_artifact_is_computed_once(make, root):
    first = artifacts.artifact("probe", CONFIG, ("losses",), make)
    again = artifacts.artifact("probe", dict(reversed(CONFIG.items())), ("losses",), make)
    assert first == again
    assert make.times == 1
    assert first.parent == root / "artifacts"
    assert first.name.startswith("probe-")
    assert (first / "weights.bin").read_bytes() == b"weights" * 100
    assert artifacts.damage(first) is None
    manifest = json.loads((first / artifacts.MANIFEST).read_text())
    assert manifest["kind"] == "probe"
    assert manifest["config"] == CONFIG
    assert set(manifest["files"]) == {"weights.bin", "rows.json"}


HARMS = {
    "altered": lambda f: (f / "weights.bin").write_bytes(b"Weights" * 100),
    "truncated": lambda f: (f / "weights.bin").write_bytes(b"weights" * 99),
    "missing": lambda f: (f / "rows.json").unlink(),
    "no manifest": lambda f: (f / artifacts.MANIFEST).unlink(),
    "half a manifest": lambda f: (f / artifacts.MANIFEST).write_text('{"files": {"we'),
    "empty manifest": lambda f: (f / artifacts.MANIFEST).write_text("{}"),
    "odd manifest": lambda f: (f / artifacts.MANIFEST).write_text("[1]"),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_a_damaged_artifact_is_moved_aside_and_computed_again(make, harm):
    folder = artifacts.artifact("probe", CONFIG, ("losses",), make)
    harm(folder)
    assert artifacts.damage(folder)
    with pytest.warns(UserWarning, match="moved aside, computing it again"):
        again = artifacts.artifact("probe", CONFIG, ("losses",), make)
    assert again == folder
    assert make.times == 2
    assert artifacts.damage(folder) is None
    (aside,) = folder.parent.glob(f"{folder.name}.corrupt-*")
    assert artifacts.damage(aside), "what was damaged is kept to look at"


@pytest.mark.parametrize(
    ("kind", "config", "code"),
    [
        ("probes", CONFIG, ("losses",)),
        ("probe", CONFIG | {"lr": 0.2}, ("losses",)),
        ("probe", CONFIG | {"seed": 0}, ("losses",)),
        ("probe", CONFIG, ("losses", "loop")),
        ("probe", CONFIG, ()),
    ],
)
def test_another_identity_is_another_artifact(make, kind, config, code):
    first = artifacts.artifact("probe", CONFIG, ("losses",), make)
    assert artifacts.artifact(kind, config, code, make) != first
    assert make.times == 2


def test_a_changed_source_is_another_artifact(make, tmp_path, monkeypatch):
    for name in ("used", "unused"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
    monkeypatch.setattr(artifacts, "PACKAGE", tmp_path)
    first = artifacts.artifact("probe", CONFIG, ("used",), make)
    (tmp_path / "unused.py").write_text("x = 2\n")
    assert artifacts.artifact("probe", CONFIG, ("used",), make) == first
    (tmp_path / "used.py").write_text("x = 2\n")
    assert artifacts.artifact("probe", CONFIG, ("used",), make) != first
    assert make.times == 2


def test_comments_and_layout_are_no_change_of_source(tmp_path, monkeypatch):
    def key_of(text: str) -> str:
        (tmp_path / "a.py").write_text(text)
        return artifacts.sources("a")

    monkeypatch.setattr(artifacts, "PACKAGE", tmp_path)
    assert key_of("x = f(1, 2)\n") == key_of("# why\nx = f(\n    1,\n    2,\n)\n")
    assert key_of("x = f(1, 2)\n") != key_of("x = f(1, 3)\n")


def test_an_unknown_module_has_no_key():
    with pytest.raises(FileNotFoundError, match="no_such_module"):
        artifacts.sources("no_such_module")


def test_whole_artifacts_are_counted(make):
    assert artifacts.count_artifacts() == 0
    folder = artifacts.artifact("probe", CONFIG, ("losses",), make)
    artifacts.artifact("probe", CONFIG, ("loop",), make)
    assert artifacts.count_artifacts() == 2
    files.move_aside(folder)
    assert artifacts.count_artifacts() == 1, "what was moved aside does not count"


def test_a_config_may_hold_paths(make):
    folder = artifacts.artifact("probe", {"data": Path("images")}, ("losses",), make)
    assert artifacts.artifact("probe", {"data": Path("images")}, ("losses",), make) == folder
    assert make.times == 1


def test_a_failure_leaves_no_artifact_but_its_checkpoints(make, root):
    def fails(folder: Path) -> None:
        work = artifacts.work_dir(folder)
        work.mkdir()
        (work / "c.pt").write_text("epoch 3")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        artifacts.artifact("probe", CONFIG, ("losses",), fails)
    (work,) = (root / "artifacts").iterdir()
    assert (work / "c.pt").read_text() == "epoch 3"
    read = []

    def continues(folder: Path) -> None:
        read.append((artifacts.work_dir(folder) / "c.pt").read_text())
        make(folder)

    folder = artifacts.artifact("probe", CONFIG, ("losses",), continues)
    assert read == ["epoch 3"]
    assert work == artifacts.work_dir(folder)
    assert not work.exists()
    assert list((root / "artifacts").iterdir()) == [folder]


@pytest.mark.parametrize("kinds", [("probe", "train"), ("lr0.1", "lr0.2")])
def test_every_artifact_has_its_own_work_dir(make, kinds):
    folders = [artifacts.artifact(kind, CONFIG, ("losses",), make) for kind in kinds]
    assert artifacts.work_dir(folders[0]) != artifacts.work_dir(folders[1])
    assert not {artifacts.work_dir(f) for f in folders} & set(folders)


# -------------------------------------------------------------------------------- errors


def refuses(monkeypatch, method: str, number: int) -> None:
    def fails(self, *args, **kwargs):
        raise OSError(number, "refused", str(self))

    monkeypatch.setattr(Path, method, fails)


@pytest.mark.parametrize(
    ("method", "number"),
    [("mkdir", errno.EACCES), ("mkdir", errno.EROFS), ("replace", errno.ENOSPC)],
)
def test_a_folder_that_cannot_be_written(make, root, monkeypatch, method, number):
    path = root.parent / "a.txt"
    path.write_text("old")
    refuses(monkeypatch, method, number)
    told = f"{re.escape(str(path))} cannot be written.*CONTSTEAL_RUNS"
    with pytest.raises(files.StorageError, match=told):
        files.write_text(path, "new")
    with pytest.raises(files.StorageError, match=f"{re.escape(str(root))}.*CONTSTEAL_RUNS"):
        artifacts.artifact("probe", CONFIG, ("losses",), make)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert not leftovers(path.parent)


def test_a_full_disk_in_the_middle_of_an_artifact(root, make):
    def fills(folder: Path) -> None:
        make(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(files.StorageError, match="No space left"):
        artifacts.artifact("probe", CONFIG, ("losses",), fills)
    assert not list((root / "artifacts").iterdir())


def test_a_file_where_the_folder_should_be(make, root):
    root.write_text("a file")
    with pytest.raises(files.StorageError, match=f"{re.escape(str(root))}.*CONTSTEAL_RUNS"):
        artifacts.artifact("probe", CONFIG, ("losses",), make)
    with pytest.raises(files.StorageError):
        files.write_text(root / "a.txt", "text")
    assert root.read_text() == "a file"


def test_missing_data_is_not_blamed_on_the_disk(root):
    def reads(folder: Path) -> None:
        Path("/no/such/images").read_bytes()

    with pytest.raises(FileNotFoundError, match="/no/such/images"):
        artifacts.artifact("probe", CONFIG, ("losses",), reads)


# --------------------------------------------------------------------- places and stamps


def test_the_environment_says_where_runs_go(root, monkeypatch, tmp_path):
    assert artifacts.runs_dir() == root
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path / "figures"))
    assert artifacts.figures_dir() == tmp_path / "figures"
    monkeypatch.delenv("CONTSTEAL_RUNS")
    monkeypatch.delenv("CONTSTEAL_FIGURES")
    assert artifacts.runs_dir() == artifacts.ROOT / "runs"
    assert artifacts.figures_dir() == artifacts.ROOT / "figures"


def test_the_environment_says_which_device(monkeypatch):
    monkeypatch.setenv("CONTSTEAL_DEVICE", "cpu")
    assert artifacts.device() == torch.device("cpu")


def test_a_key_depends_on_content_and_not_on_order():
    assert files.key({"a": 1, "b": 2}) == files.key({"b": 2, "a": 1})
    assert files.key({"a": 1}) != files.key({"a": 2})
    assert re.fullmatch("[0-9a-f]{16}", files.key("x"))


def test_a_stamp_says_where_a_number_comes_from(monkeypatch):
    monkeypatch.setenv("CONTSTEAL_DEVICE", "cpu")
    stamp = artifacts.stamp("demo", "shapes", "0, 1, 2")
    assert stamp["profile"] == "demo"
    assert stamp["data"] == "shapes"
    assert stamp["seeds"] == "0, 1, 2"
    assert stamp["device"] == artifacts.processor()
    assert "threads" in stamp["device"]
    assert stamp["torch"] == torch.__version__
    assert stamp["date"] == date.today().isoformat()


def test_what_another_process_made_meanwhile_is_kept_for_its_readers(root):
    folder = artifacts.artifact(
        "probe", CONFIG, ("losses",), lambda f: (f / "a").write_text("theirs")
    )
    theirs = folder.with_name("theirs")
    folder.rename(theirs)

    def slow(partial: Path) -> None:
        (partial / "a").write_text("mine")
        theirs.rename(folder)  # the other process is done first

    assert artifacts.artifact("probe", CONFIG, ("losses",), slow) == folder
    assert (folder / "a").read_text() == "theirs"


def test_an_artifact_that_another_process_makes_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path))
    made = artifacts.artifact(
        "thing", {"a": 1}, (), lambda folder: (folder / "a").write_text("theirs")
    )
    aside = made.rename(tmp_path / "aside")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    partial = made.with_name(f".{made.name}.{child.pid}.partial")
    partial.mkdir()

    def finish():
        time.sleep(0.5)
        aside.rename(made)
        partial.rmdir()

    Thread(target=finish).start()
    try:
        again = artifacts.artifact("thing", {"a": 1}, (), lambda folder: pytest.fail("made twice"))
    finally:
        child.kill()
    assert again == made
    assert (made / "a").read_text() == "theirs"


def test_what_a_process_of_another_time_left_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path))
    made = artifacts.artifact("thing", {"a": 1}, (), lambda folder: (folder / "a").write_text("x"))
    shutil.rmtree(made)
    left = made.with_name(
        f".{made.name}.1.partial"
    )  # number 1 lives, and is older than this folder
    left.mkdir()
    monkeypatch.setattr(files.psutil.Process, "create_time", lambda self: time.time() + 100)
    artifacts.artifact("thing", {"a": 1}, (), lambda folder: (folder / "a").write_text("x"))
    assert not left.exists()
