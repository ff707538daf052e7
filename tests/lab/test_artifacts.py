"""Artifacts: keyed by settings and code, written whole or not at all, never trusted when damaged."""

import errno
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import contsteal
from contsteal import files
from contsteal.defenses.b4b import B4B
from contsteal.defenses.perturbation import GaussianNoise
from contsteal.lab import artifacts

CONFIG = {"epochs": 3, "lr": 0.1}
CODE = ["contsteal.losses"]
ATTACK = ("contsteal.steal", "contsteal.evaluate")  # what `Lab.steal` names
VICTIM, MARKED = ("contsteal.pretrain",), ("contsteal.ownership.watermark",)
SCORE = ("contsteal.evaluate", "contsteal.loop", "contsteal.encoders")  # what `Lab.score` names


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Send every artifact of these tests to a temporary folder."""
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, which is parsed once for all tests."""
    ignored = shutil.ignore_patterns("__pycache__")
    copy = tmp_path_factory.mktemp("copy") / "contsteal"
    return Path(shutil.copytree(artifacts.PACKAGE, copy, ignore=ignored))


@pytest.fixture
def package(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let keys follow the copy, whose files may be changed: they are restored."""
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in copied.rglob("*.py")}
    monkeypatch.setattr(artifacts, "PACKAGE", copied)
    yield copied
    for file in {*copied.rglob("*.py")} - before.keys():
        file.unlink()
    for file, (content, changed) in before.items():
        if file.stat().st_mtime_ns != changed:
            file.write_bytes(content)
            os.utime(file, ns=(changed, changed))


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


# --------------------------------------------------------------------------- keys of code


def edit(file: Path, text: str = "\nEDITED = 1\n") -> None:
    """Change a file so that no clock's resolution hides it."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    file.write_text((file.read_text() if file.exists() else "") + text)
    while file.stat().st_mtime_ns == before:
        file.touch()


KINDS = {"attack": ATTACK, "victim": VICTIM, "score": SCORE, "marked": MARKED,
         "b4b": (*ATTACK, "contsteal.defenses.b4b"),
         "noise": (*ATTACK, "contsteal.defenses.perturbation")}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("losses.py", {"attack", "victim", "marked", "b4b", "noise"}),
        ("augment.py", {"attack", "victim", "marked", "b4b", "noise"}),
        ("steal.py", {"attack", "b4b", "noise"}),
        ("attacks.py", {"attack", "b4b", "noise"}),
        ("encoders.py", set(KINDS)),
        ("evaluate.py", set(KINDS)),
        ("__init__.py", set(KINDS)),
        ("defenses/b4b.py", {"b4b"}),
        ("defenses/state.py", {"b4b", "noise"}),
        ("defenses/perturbation.py", {"noise"}),
        ("defenses/__init__.py", {"b4b", "noise"}),
        ("ownership/watermark.py", {"marked"}),
        ("ownership/inference.py", {"marked"}),
        ("ownership/sslguard.py", set()),
        ("paper/figures.py", set()),
        ("lab/tables.py", set()),
    ],
)
def test_an_edit_changes_the_keys_of_what_runs_it_and_no_other(
    package: Path, file: str, changed: set[str]
) -> None:
    before = {kind: artifacts.sources(*modules) for kind, modules in KINDS.items()}
    edit(package / file)
    after = {kind: artifacts.sources(*modules) for kind, modules in KINDS.items()}
    assert {kind for kind in KINDS if before[kind] != after[kind]} == changed


@pytest.mark.parametrize(
    "line",
    [
        "from contsteal import extra",
        "import contsteal.extra",
        "import contsteal.extra as other",
        "from contsteal.extra import VALUE",
        "from contsteal.extra import *",
        "from . import extra",
        "from .extra import VALUE",
        "def f():\n    from contsteal import extra",
        "if False:\n    import contsteal.extra",
        "from contsteal.data import extra",
        "from .data import extra",
        "from .data.extra import VALUE",
    ],
)
def test_every_form_of_import_is_followed(package: Path, line: str) -> None:
    """A new loss in a file of its own, imported by the table of attacks, is the usual case."""
    extra = package / ("data" if "data" in line else "") / "extra.py"
    edit(extra, "VALUE = 1\n")
    edit(package / "attacks.py", f"\n{line}\n")
    before = artifacts.sources(*ATTACK)
    edit(extra, "VALUE = 2\n")
    assert artifacts.sources(*ATTACK) != before


def test_relative_imports_start_at_the_package_of_their_file(package: Path) -> None:
    edit(package / "data" / "extra.py", "from ..losses import mse\n")
    edit(package / "data" / "__init__.py", "\nfrom . import extra\nfrom .. import seeds\n")
    named = {"contsteal.data.extra", "contsteal.losses", "contsteal.seeds"}
    assert named <= artifacts.closure("contsteal.data")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("# why\ndef f():\n    return g(\n        1,\n        2,\n    )\n", True),
        ('"""A module."""\n\n\ndef f():\n    """Return g."""\n    return g(1, 2)\n', True),
        ("def f():\n    return g(1, 3)\n", False),
        ("def f():\n    'text'\n    'text'\n    return g(1, 2)\n", False),
    ],
)
def test_comments_layout_and_docstrings_are_no_change(
    tmp_path: Path, text: str, same: bool
) -> None:
    edit(tmp_path / "a.py", "def f():\n    return g(1, 2)\n")
    edit(tmp_path / "b.py", text)
    keys = {artifacts.source_key(tmp_path / name) for name in ("a.py", "b.py")}
    assert (len(keys) == 1) == same


def test_an_unknown_module_has_no_key() -> None:
    with pytest.raises(FileNotFoundError, match="no_such_module"):
        artifacts.sources("contsteal.no_such_module")


# ------------------------------------------------------------------ defences and their code


def test_a_defence_of_a_user_s_module_is_keyed_by_its_file(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = package.parent / "my_defence.py"
    edit(file, "from contsteal.defenses.state import Described\n\n\nclass Mine:\n    std = 1.0\n")
    monkeypatch.syspath_prepend(str(package.parent))
    module = __import__("my_defence")
    modules = artifacts.defining_modules(module.Mine())
    assert modules == ["my_defence"]
    assert "contsteal.defenses.state" in artifacts.closure(*modules), "what it imports counts, too"
    before = artifacts.sources(*modules)
    edit(file)
    assert artifacts.sources(*modules) != before
    del sys.modules["my_defence"]


def test_bases_count_and_python_s_own_modules_do_not() -> None:
    modules = ["contsteal", "contsteal.defenses.b4b", "contsteal.defenses.state"]
    assert artifacts.defining_modules(B4B(bits=4)) == modules
    assert artifacts.defining_modules(lambda answers, user: answers) == [__name__]
    assert artifacts.defining_modules(functools.partial(print)) == []


def test_defences_are_told_apart_by_key_repr_or_content() -> None:
    assert artifacts.object_key(GaussianNoise(1.0)) == artifacts.object_key(GaussianNoise(1.0))
    assert artifacts.object_key(GaussianNoise(1.0)) != artifacts.object_key(GaussianNoise(2.0))

    class Named:
        key = "mine"

    class Plain:
        def __init__(self, std: float) -> None:
            self.std = std

    assert artifacts.object_key(Named()).endswith(".mine")
    keys = [artifacts.object_key(Plain(std)) for std in (1.0, 1.0, 2.0)]
    assert keys[0] == keys[1] != keys[2], "not by address, which another process may use again"


def test_a_class_of_a_notebook_is_keyed_by_its_code() -> None:
    def defence(body: str) -> type:
        names: dict[str, object] = {"__name__": "__main__"}
        named = "class D:\n    def __repr__(self): return 'D()'\n"
        exec(f"{named}    def __call__(self): {body}", names)
        return names["D"]  # type: ignore[return-value]

    one, other = defence("return 1"), defence("return 2")
    assert artifacts.defining_modules(one()) == []
    assert artifacts.object_key(one()) == artifacts.object_key(one())
    assert artifacts.object_key(one()) != artifacts.object_key(other())


# ------------------------------------------------------------------------------ artifacts


def test_an_artifact_is_computed_once(make: Make, root: Path) -> None:
    first = artifacts.artifact("probe", CONFIG, CODE, make)
    again = artifacts.artifact("probe", dict(reversed(CONFIG.items())), CODE, make)
    assert (first, make.times) == (again, 1)
    assert first.parent == root / "artifacts"
    assert (first / "weights.bin").read_bytes() == b"weights" * 100
    assert artifacts.damage(first) is None
    manifest = json.loads((first / artifacts.MANIFEST).read_text())
    assert (manifest["kind"], manifest["config"]) == ("probe", CONFIG)
    assert set(manifest["files"]) == {"weights.bin", "rows.json"}


def test_nothing_is_made_where_only_what_was_kept_is_asked_for(make: Make, root: Path) -> None:
    with artifacts.only_kept(), pytest.raises(artifacts.NotKept, match=r"^probe-"):
        artifacts.artifact("probe", CONFIG, CODE, make)
    made = artifacts.artifact("probe", CONFIG, CODE, make)
    with artifacts.only_kept():
        assert artifacts.artifact("probe", CONFIG, CODE, make) == made
        (made / "weights.bin").write_bytes(b"damaged")
        with pytest.raises(artifacts.NotKept, match=r"weights.bin was altered$"):
            artifacts.artifact("probe", CONFIG, CODE, make)
    assert made.exists(), "who makes it again says that it was damaged, and moves it aside"
    with pytest.warns(UserWarning, match="moved aside"):
        artifacts.artifact("probe", CONFIG, CODE, make)
    assert make.times == 2, "afterwards all is made again"


@pytest.mark.parametrize(
    ("kind", "config", "code"),
    [
        ("probes", CONFIG, CODE),
        ("probe", CONFIG | {"lr": 0.2}, CODE),
        ("probe", CONFIG | {"seed": 0}, CODE),
        ("probe", CONFIG, ["contsteal.losses", "contsteal.loop"]),
        ("probe", CONFIG, []),
    ],
)
def test_another_identity_is_another_artifact_even_in_its_folder(
    make: Make, kind: str, config: dict, code: list[str]
) -> None:
    messages: list[str] = []
    folder = artifacts.artifact("probe", CONFIG, CODE, make, messages.append)
    other = artifacts.artifact(kind, config, code, lambda f: write(f, "foreign"), messages.append)
    assert messages == ["computing probe", f"computing {kind}"]
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    assert artifacts.damage(folder) is None, "it is whole"
    with pytest.warns(UserWarning, match="belongs to another artifact; moved aside"):
        assert artifacts.artifact("probe", CONFIG, CODE, make) == folder
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "rows.json", "weights.bin"]
    (folder / ".DS_Store").write_text("of a file manager")
    assert artifacts.artifact("probe", CONFIG, CODE, make) == folder
    assert make.times == 2


def test_the_module_of_make_counts_without_its_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makes = []
    for text in ("import a", "import a", "import b"):
        edit(tmp_path / "maker.py", f"import json\n\n\ndef make(folder):\n    {text} as x\n")
        module = type(sys)("maker")
        module.__file__ = str(tmp_path / "maker.py")
        monkeypatch.setitem(sys.modules, "maker", module)
        exec("def make(folder): ...", module.__dict__)
        makes.append(artifacts.artifact("probe", CONFIG, [], module.make))
        (tmp_path / "maker.py").write_text("")
    assert makes[0] == makes[1] != makes[2]


def edit_manifest(folder: Path, **changes: object) -> None:
    manifest = files.read_json(folder / artifacts.MANIFEST)
    files.write_json(folder / artifacts.MANIFEST, manifest | changes)


HARMS = {
    "altered": lambda f: (f / "weights.bin").write_bytes(b"Weights" * 100),
    "truncated": lambda f: (f / "weights.bin").write_bytes(b"weights" * 99),
    "missing": lambda f: (f / "rows.json").unlink(),
    "no manifest": lambda f: (f / artifacts.MANIFEST).unlink(),
    "half a manifest": lambda f: (f / artifacts.MANIFEST).write_text('{"files": {"we'),
    "empty manifest": lambda f: (f / artifacts.MANIFEST).write_text("{}"),
    "edited manifest": lambda f: edit_manifest(f, seconds=0),
    "unsealed manifest": lambda f: edit_manifest(f, seal=None),
    "foreign file": lambda f: (f / "projector.safetensors").write_bytes(b"x"),
    "folder for a file": lambda f: ((f / "rows.json").unlink(), (f / "rows.json").mkdir()),
    "odd manifest": lambda f: (f / artifacts.MANIFEST).write_text("[1]"),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_a_damaged_artifact_is_moved_aside_and_computed_again(
    make: Make, harm, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = artifacts.artifact("probe", CONFIG, CODE, make)
    harm(folder)
    with pytest.warns(UserWarning, match="moved aside, it is computed again"):
        again = artifacts.artifact("probe", CONFIG, CODE, make)
    assert (again, make.times) == (folder, 2)
    assert capsys.readouterr().out == 2 * "computing probe\n"
    assert artifacts.damage(folder) is None
    (aside,) = folder.parent.glob(f"{folder.name}.corrupt-*")
    assert artifacts.damage(aside), "what was damaged is kept to look at"


@pytest.mark.parametrize(
    "config", [{"a": float("nan")}, {1: 2, 10: (3, Path("x"))}, {"ü": None, "b": {"c": [0.1]}}]
)
def test_a_config_is_known_again_whatever_it_holds(make: Make, config: dict) -> None:
    for _ in range(2):
        artifacts.artifact("probe", config, CODE, make)
    assert make.times == 1


def test_a_failure_leaves_no_artifact_but_its_checkpoints(make: Make, root: Path) -> None:
    def fail(folder: Path) -> None:
        work = artifacts.work_dir(folder)
        work.mkdir()
        (work / "c.pt").write_text("epoch 3")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        artifacts.artifact("probe", CONFIG, CODE, fail)
    (work,) = (root / "artifacts").iterdir()
    resumed, messages = [], []

    def resume(folder: Path) -> None:
        resumed.append((artifacts.work_dir(folder) / "c.pt").read_text())
        make(folder)

    folder = artifacts.artifact("probe", CONFIG, CODE, resume, messages.append)
    assert (resumed, messages) == (["epoch 3"], ["computing probe"])
    assert work == artifacts.work_dir(folder)
    assert list((root / "artifacts").iterdir()) == [folder], "a finished one needs no checkpoint"


@pytest.mark.parametrize("kinds", [("probe", "train"), ("lr0.1", "lr0.2")])
def test_every_artifact_has_its_own_work_dir(make: Make, kinds: tuple[str, ...]) -> None:
    folders = [artifacts.artifact(kind, CONFIG, CODE, make) for kind in kinds]
    work = {artifacts.work_dir(folder) for folder in folders}
    assert len(work | set(folders)) == 4


# ----------------------------------------------------------------- storage, other processes


def test_a_full_disk_a_file_in_the_way_and_missing_data(make: Make, root: Path) -> None:
    def fill(folder: Path) -> None:
        make(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(files.StorageError, match="No space left"):
        artifacts.artifact("probe", CONFIG, CODE, fill)
    assert not list((root / "artifacts").iterdir())
    with pytest.raises(FileNotFoundError, match="/no/such/images"):  # not blamed on the disk
        artifacts.artifact("probe", CONFIG, CODE, lambda _: Path("/no/such/images").read_bytes())
    shutil.rmtree(root)
    root.write_text("a file")
    with pytest.raises(files.StorageError, match=rf"{root}.*CONTSTEAL_RUNS"):
        artifacts.artifact("probe", CONFIG, CODE, make)


def write(folder: Path, text: str) -> None:
    (folder / "a").write_text(text)


def test_what_another_process_made_meanwhile_is_kept_for_its_readers() -> None:
    folder = artifacts.artifact("probe", CONFIG, CODE, lambda f: write(f, "theirs"))
    theirs = folder.rename(folder.with_name("theirs"))

    def slow(partial: Path) -> None:
        write(partial, "mine")
        theirs.rename(folder)  # the other process is done first

    assert artifacts.artifact("probe", CONFIG, CODE, slow) == folder
    assert (folder / "a").read_text() == "theirs"


def test_an_artifact_that_another_process_makes_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = artifacts.artifact("probe", CONFIG, CODE, lambda f: write(f, "theirs"))
    aside = folder.rename(folder.with_name("aside"))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    partial = folder.with_name(f".{folder.name}.{child.pid}@{files.HOST}.partial")
    partial.mkdir()

    def finish(seconds: float) -> None:
        aside.rename(folder)
        partial.rmdir()

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.time, "sleep", finish)
        again = artifacts.artifact("probe", CONFIG, CODE, lambda _: pytest.fail("made twice"))
    child.kill()
    child.communicate()
    assert (again / "a").read_text() == "theirs"


def test_what_a_process_of_another_time_left_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = artifacts.artifact("probe", CONFIG, CODE, lambda f: write(f, "x"))
    shutil.rmtree(folder)
    # Process 1 lives, as another one; of another machine's nobody here can say whether it lives.
    left, theirs = (folder.with_name(f".{folder.name}.1@{h}.partial") for h in (files.HOST, "far"))
    left.mkdir()
    theirs.mkdir()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: time.time() + 100)
    artifacts.artifact("probe", CONFIG, CODE, lambda f: write(f, "x"))
    assert not left.exists()
    assert theirs.exists()


# --------------------------------------------------------------------- places and stamps


def test_the_environment_says_where_results_go_and_which_device_computes(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert artifacts.runs_dir() == root
    assert artifacts.publish_dir() == root / "interactive"
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path / "figures"))
    assert artifacts.figures_dir() == artifacts.publish_dir() == tmp_path / "figures"
    monkeypatch.delenv("CONTSTEAL_RUNS")
    monkeypatch.delenv("CONTSTEAL_FIGURES")
    assert artifacts.runs_dir() == artifacts.ROOT / "runs"
    assert artifacts.figures_dir() == artifacts.ROOT / "figures"
    monkeypatch.setenv("CONTSTEAL_DEVICE", "cpu")
    assert artifacts.device() == torch.device("cpu")
    monkeypatch.setenv("CONTSTEAL_DEVICE", "")
    assert artifacts.device().type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:3", "meta", "cuda:-1", "CPU"])
def test_a_device_that_this_machine_does_not_have(name: str, monkeypatch) -> None:
    monkeypatch.setenv("CONTSTEAL_DEVICE", name)
    with pytest.raises(ValueError, match=f"unknown CONTSTEAL_DEVICE '{name}': choose one of cpu"):
        artifacts.device()


def test_a_stamp_says_where_a_number_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTSTEAL_DEVICE", "cpu")
    monkeypatch.setenv(artifacts.NOTEBOOK, "03_cont_steal 1a2b")
    stamp = artifacts.stamp("demo", "shapes", "0, 1, 2")
    code, libraries = stamp.pop("code"), stamp.pop("libraries")
    assert stamp == {
        "profile": "demo", "data": "shapes", "seeds": "0, 1, 2", "torch": torch.__version__,
        "device": artifacts.processor(), "date": date.today().isoformat(),
        "notebook": "03_cont_steal 1a2b",
    }  # fmt: skip
    assert stamp["device"].endswith(" threads")
    assert code.startswith(contsteal.__version__)
    assert f"numpy {np.__version__}" in libraries.split(", ")


def test_code_of_another_content_or_commit_is_another_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.py").write_text("1")
    monkeypatch.setattr(artifacts, "PACKAGE", tmp_path)
    one, two = artifacts.code_version.__wrapped__(), artifacts.code_version.__wrapped__()
    (tmp_path / "a.py").write_text("2")
    assert (one == two, one == artifacts.code_version.__wrapped__()) == (True, False)
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)  # which is no repository
    assert len(artifacts.code_version.__wrapped__().split()) == 2
