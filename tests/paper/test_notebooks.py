"""Notebooks as a graph: strict parameters, reasons, rename on success, failure, kills, two at once."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import joblib
import nbformat
import psutil
import pytest
import tinysets
import torch
from nbformat.v4 import new_code_cell, new_notebook

from contsteal import data, files, pretrain
from contsteal.data import torchsets
from contsteal.lab import artifacts, inspection, profiles
from contsteal.paper import notebooks

FIRST, LAST = "00_first", "01_last"
SMOKE = profiles.profile("smoke")["common"]
WRITE = """
from pathlib import Path
import os
folder = Path(os.environ["CONTSTEAL_FIGURES"]) / profile
folder.mkdir(parents=True, exist_ok=True)
(folder / "00_numbers.csv").write_text("a\\n1\\n")
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two tiny notebooks and a profile, in the place of the repository's."""
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(profiles, "PROFILES", tmp_path / "notebooks" / "profiles")
    for name in ("runs", "figures"):
        monkeypatch.setenv(f"CONTSTEAL_{name.upper()}", str(tmp_path / name))
    for name in ("CONTSTEAL_MODE", "CONTSTEAL_PRECISION", "MAKEFLAGS"):
        monkeypatch.delenv(name, raising=False)
    write_profile(tmp_path)
    write_notebook(tmp_path, FIRST, "1 + 1")
    write_notebook(tmp_path, LAST, "2 + 2")
    return tmp_path


def write_profile(desk: Path, extra: str = "", **common: object) -> None:
    """Write the profile; `common` are settings that differ from those of `smoke`."""
    path = desk / "notebooks" / "profiles" / "tiny.yaml"
    whole = {k: v for k, v in SMOKE.items() if k != "at_once"} | common
    path.write_text(f"about: test\ncommon: {json.dumps(whole)}\n{extra}\n")


def write_notebook(desk: Path, stem: str, *code: str) -> None:
    cells = ["profile = 'demo'\nlr = 0.1\nn = [1]", *code]
    book = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    book.cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book.metadata["kernelspec"] = kernel
    nbformat.write(book, desk / "notebooks" / f"{stem}.ipynb")


def reasons(*only: str, force: bool = False) -> dict[str, str]:
    return {task.stem: task.reason for task in notebooks.tasks("tiny", only, force)}


def command(*arguments: str) -> int:
    return notebooks.main([*arguments, "--profile", "tiny"])


def run(capsys: pytest.CaptureFixture[str], *only: str) -> int:
    """Do what `make paper` does, one notebook after another; return the exit code."""
    todo = notebooks.prepare("tiny", only, False)
    copies = sorted(word for word in todo if word.endswith(".ipynb"))
    capsys.readouterr()
    return next((code for copy in copies if (code := notebooks.main(["execute", copy]))), 0)


# ------------------------------------------------------------------------- what must run


def test_parameters_are_the_defaults_with_the_profile(desk: Path) -> None:
    write_profile(desk, f"notebooks:\n  {FIRST}: {{lr: 1.0e-3, n: [2, 3]}}\n")
    assert notebooks.parameters(FIRST, "tiny") == {"profile": "tiny", "lr": 0.001, "n": [2, 3]}


@pytest.mark.parametrize(
    ("given", "message"),
    [("{learning_rate: 0.1}", ": unknown parameter 'learning_rate': choose one of profile, lr, n"),
     ("{n: []}", ": n=[] should have at least 1 item")],
)  # fmt: skip
def test_misspelt_and_mistyped_parameters_are_refused_before_anything_runs(
    desk: Path, capsys: pytest.CaptureFixture[str], given: str, message: str
) -> None:
    write_profile(desk, f"notebooks:\n  {LAST}: {given}\n")
    assert command("paper") == 1
    assert f"error: tiny.yaml, {LAST}{message}" in capsys.readouterr().err
    assert not (desk / "runs").exists()


def test_a_detector_that_does_not_exist_is_refused_before_anything_runs(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the profile, and in the notebook as somebody opens it, before a victim is trained."""
    shutil.copy(artifacts.ROOT / "notebooks/05b_detectors.ipynb", desk / "notebooks")
    own = {"refusing": ["similar, cosine > 0.6"]}
    write_profile(desk, f"notebooks: {{05b_detectors: {json.dumps(own)}}}")
    assert command("paper") == 1
    message = (
        r"unknown detector 'similar, cosine > 0.6': choose one of similar, cosine > 0.5, .* < 0.9"
    )
    assert re.search(f"05b_detectors: {message}", capsys.readouterr().err)
    first = notebooks._code_cells("05b_detectors")[1]["source"]
    with pytest.raises(ValueError, match=message):
        exec(first, notebooks.defaults("05b_detectors") | {"profile": "tiny"} | own)
    assert not (desk / "runs").exists()


def test_unknown_names_list_the_known(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("huge", "../tiny", str(desk / "notebooks" / "profiles" / "tiny")):
        assert notebooks.main(["plan", "--profile", name]) == 1
        assert f"unknown profile {name!r:.60}: choose one of tiny" in capsys.readouterr().err
    assert command("plan", "--only", "07") == 1
    assert f"unknown notebook '07': choose one of {FIRST}, {LAST}" in capsys.readouterr().err
    write_profile(desk, "notebooks:\n  00_frist: {lr: 0.1}\n")
    assert command("plan") == 1
    assert "unknown notebook '00_frist'" in capsys.readouterr().err


def test_a_notebook_without_parameters_is_refused(desk: Path) -> None:
    book = nbformat.read(desk / "notebooks" / f"{FIRST}.ipynb", as_version=4)
    book.cells[0].metadata["tags"] = []
    nbformat.write(book, desk / "notebooks" / f"{FIRST}.ipynb")
    with pytest.raises(ValueError, match="has 0 cells tagged 'parameters'"):
        notebooks.tasks("tiny")


def test_only_and_force_choose_what_runs(desk: Path) -> None:
    assert reasons("01") == {LAST: "never run"}
    assert reasons(force=True) == {FIRST: "forced", LAST: "forced"}


def test_a_run_is_followed_by_none_until_something_changes(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change is one word, and taking it back is as if nothing had been."""

    def book(*code: str) -> None:
        write_notebook(desk, FIRST, WRITE, *code)

    book("assert lr == 0.1")
    assert run(capsys) == 0
    none = {FIRST: "", LAST: ""}
    assert reasons() == none
    assert run(capsys) == 0

    table, numbers = desk / "figures" / "tiny" / "00_numbers.csv", "a\n1\n"
    expected = "expectations: [{encoder: a, task: b, metric: knn, low: 0.5}]"
    changes: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("parameters", lambda: write_profile(desk, f"notebooks: {{{FIRST}: {{lr: 0.2}}}}"),
         lambda: write_profile(desk)),
        ("settings", lambda: write_profile(desk, data="digits"), lambda: write_profile(desk)),
        ("settings", lambda: write_profile(desk, expected), lambda: write_profile(desk)),
        ("code", lambda: book("3"), lambda: book("assert lr == 0.1")),
        ("outputs", lambda: table.write_text("a\n2\n"), lambda: table.write_text(numbers)),
        ("outputs", table.unlink, lambda: table.write_text(numbers)),
        ("machine", lambda: monkeypatch.setenv("CONTSTEAL_MODE", "exact"),
         lambda: monkeypatch.delenv("CONTSTEAL_MODE")),
    ]  # fmt: skip
    for word, change, back in changes:
        change()
        last = word if word in ("settings", "machine") else "tables"
        said = notebooks.CHANGED if word == "outputs" else f"{word} changed"
        assert reasons() == {FIRST: said, LAST: f"{last} changed"}
        back()
        assert reasons() == none, word
    (desk / "figures" / "tiny" / "extra.csv").write_text("b\n1\n")
    assert reasons() == {FIRST: "", LAST: "tables changed"}
    (desk / "figures" / "tiny" / "extra.csv").unlink()
    for name in ("runs", "figures"):  # as to another machine
        shutil.copytree(desk / name, desk / "elsewhere" / name, copy_function=shutil.copyfile)
        shutil.rmtree(desk / name)
        monkeypatch.setenv(f"CONTSTEAL_{name.upper()}", str(desk / "elsewhere" / name))
    assert reasons() == none


def test_a_module_that_a_notebook_imports_counts_and_others_do_not(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`losses` is imported by the first notebook alone, `seeds` by what it imports or by none."""
    write_notebook(desk, FIRST, "from contsteal import losses")

    def package() -> dict[str, str]:
        return {task.stem: task.key["package"] for task in notebooks.tasks("tiny")}

    before, real = package(), artifacts.source_key
    edited = lambda path: "new" if path.name == "losses.py" else real(path)  # noqa: E731
    monkeypatch.setattr(artifacts, "source_key", edited)
    after = package()
    assert (before[FIRST] != after[FIRST], before[LAST] != after[LAST]) == (True, False)


def test_parameters_reach_the_notebook_in_their_order(desk: Path, capsys) -> None:
    """A table whose rows follow a parameter must not depend on how it was passed."""
    path = desk / "notebooks" / f"{FIRST}.ipynb"
    path.write_text(path.read_text().replace("n = [1]", "n = {'b4b': 0}"))
    write_profile(desk, f"notebooks: {{{FIRST}: {{n: {{b4b: 1, rounding: 0}}}}}}")
    assert run(capsys) == 0
    write_profile(desk, f"notebooks: {{{FIRST}: {{n: {{rounding: 0, b4b: 1}}}}}}")
    assert reasons()[FIRST] == "parameters changed", "another order"
    assert run(capsys) == 0
    executed = (desk / "runs" / "tiny" / f"{FIRST}.ipynb").read_text()
    assert executed.count('{\\"rounding\\": 0, \\"b4b\\": 1}') == 1
    assert executed.count("lr = 0.1") == 1, "what the profile leaves as it is stands there once"


def test_weights_of_ready_victims_count(desk: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    victim = {"method": "ready", "encoder": "test_resnet", "weights": str(weights)}
    write_profile(desk, victim=victim)
    torch.save({"a": torch.zeros(1)}, weights)
    before = notebooks.tasks("tiny")[0].key
    torch.save({"a": torch.ones(1)}, weights)
    after = notebooks.tasks("tiny")[0].key
    assert {part for part in before if before[part] != after[part]} == {"weights"}


def test_results_that_a_notebook_no_longer_has_go(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = desk / "figures" / "tiny"
    write_notebook(desk, FIRST, WRITE)
    assert run(capsys, "00") == 0
    for name in ("00_old.csv", "00_old.json", "01_other.csv", "summary.md"):
        (folder / name).write_text("kept from another run")
    write_notebook(desk, FIRST, WRITE, "1")
    assert run(capsys, "00") == 0
    assert {p.name for p in folder.iterdir()} >= {"00_numbers.csv", "01_other.csv", "summary.md"}
    assert not list(folder.glob("00_old.*"))


# ------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("code", "messages"),
    [
        ("raise RuntimeError('no')", [f"{FIRST}, code cell 2", "RuntimeError: no"]),
        ("import os; os._exit(1)", ["the kernel died"]),
    ],
)
def test_a_failing_notebook_shows_its_cell_keeps_its_copy_and_fails_again(
    desk: Path, capsys: pytest.CaptureFixture[str], code: str, messages: list[str]
) -> None:
    write_notebook(desk, FIRST, code)
    for _ in range(2):
        assert run(capsys, "00") == 1
        printed = capsys.readouterr().err
        assert all(message in printed for message in messages)
        assert (desk / "runs" / "tiny" / f"{FIRST}.partial.ipynb").is_file()
        assert not (desk / "runs" / "tiny" / f"{FIRST}.ipynb").exists()
    assert reasons()[FIRST] == "stopped before its end"


LOST = "Kernel died before replying to kernel_info"


@pytest.mark.parametrize(
    ("errors", "starts"), [([], 1), ([LOST], 2), ([LOST] * 2, 2), (["out of memory"], 1)]
)
def test_a_kernel_that_lost_its_port_to_another_and_no_other_is_started_once_more(
    desk: Path, monkeypatch: pytest.MonkeyPatch, errors: list[str], starts: int
) -> None:
    begun = []

    def execute(*_: object, **__: object) -> None:
        begun.append(1)
        if len(begun) <= len(errors):
            raise RuntimeError(errors[0])

    monkeypatch.setattr("papermill.execute_notebook", execute)
    with pytest.raises(RuntimeError) if len(errors) == starts else nullcontext():
        notebooks._execute(FIRST, desk / "partial.ipynb", {})
    assert len(begun) == starts


def test_without_widgets_bars_are_text_and_one_sentence_says_why() -> None:
    """As in a kernel without ipywidgets, at the speed of a script."""
    code = (
        "import sys, IPython\nsys.modules |= {'ipywidgets': None, 'ipykernel.zmqshell': sys}\n"
        "from contsteal import data, loop, pretrain\n"
        "recipe = pretrain.Config('simclr', 'conv4', steps=2, batch=16)\n"
        "print(pretrain.train(recipe, data.load('shapes', n=64)).dim, loop.tqdm.__module__)"
    )
    own = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"}
    done = subprocess.run([sys.executable, "-c", code], cwd=artifacts.ROOT, text=True, env=own,
                          capture_output=True)  # fmt: skip
    assert done.stdout.split() == ["128", "tqdm.asyncio"], done.stderr
    assert done.stderr.count("Please update jupyter and ipywidgets.") == 1
    assert "Traceback" not in done.stderr


def test_a_damaged_mark_copy_or_record_is_not_taken_for_what_was_written(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_profile(desk, f"notebooks: {{{FIRST}: {{n: [20, 3]}}}}")
    assert run(capsys, "00") == 0
    executed = desk / "runs" / "tiny" / f"{FIRST}.ipynb"
    mark, record = executed.parent / ".keys" / FIRST, executed.with_suffix(".json")
    for text in (mark.read_text().replace("20", "21"), "{", "[]"):
        mark.write_text(text)
        assert notebooks.main(["execute", str(executed)]) == 1
        assert f"error: {mark} is missing or damaged: run" in capsys.readouterr().err
    assert reasons("00") == {FIRST: ""}
    copy, facts = executed.read_text(), record.read_text()
    executed.write_text(copy.replace('"2"', '"3"'))  # what 1 + 1 is
    assert reasons("00") == {FIRST: notebooks.CHANGED}
    executed.write_text(copy)
    assert reasons("00") == {FIRST: ""}
    altered = facts.replace('"seconds": ', '"seconds": 8')
    assert altered != facts
    for text in ("[]", "{", '{"key": {}}', altered):
        record.write_text(text)
        assert reasons("00") == {FIRST: notebooks.CHANGED}


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CONTSTEAL_FIGURES", "file", "cannot be written"),
        ("CONTSTEAL_RUNS", "file", "cannot be written"),
        ("CONTSTEAL_RUNS", "a b", "set CONTSTEAL_RUNS to a path of plain characters"),
        ("CONTSTEAL_MODE", "exakt", "exakt"),
    ],
)
def test_settings_that_cannot_work_are_named(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys, variable: str, value: str, message: str
) -> None:
    (desk / "file").write_text("not a folder")
    monkeypatch.setenv(variable, value if value == "exakt" else str(desk / value))
    assert command("paper") == 1
    assert message in capsys.readouterr().err


# -------------------------------------------------------------------------- data and profile


def test_missing_data_is_said_before_any_notebook_runs(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_DIR", str(desk / "data"))
    monkeypatch.setattr(torchsets, "fetch", refuse("cifar10 could not be fetched"))
    write_profile(desk, data="cifar10")
    assert command("paper") == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[1].startswith(f"fetching cifar10, 0.2 GB, into {desk}/data; the profile `synth")
    assert lines[2] == "cifar10 could not be fetched"
    assert re.search("cifar10 is not complete.*170.5 MB.*make data", printed.err)
    assert not (desk / "runs" / "tiny").exists()
    assert command("plan") == 0
    assert "missing: cifar10 is not complete" in capsys.readouterr().out


def test_make_data_fetches_what_a_profile_and_its_notebooks_read_and_says_what_is_missing(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []
    monkeypatch.setenv("DATA_DIR", str(desk / "data"))
    monkeypatch.setattr(torchsets, "fetch", lambda *given: asked.append(given))
    monkeypatch.setattr(torchsets, "verify", lambda name, splits: None)
    monkeypatch.setattr(data, "require", lambda name, splits, size: exec(f"raise ValueError('{size}')")
                        if name.startswith("folder") else desk)  # fmt: skip
    write_profile(desk, data="folder:/x", image_size=16, query_data="svhn")
    assert command("data") == 1
    assert asked == [("svhn", {"train"})]
    printed = capsys.readouterr()
    assert "svhn: present" in printed.out
    assert "error: folder:/x: missing: 16" in printed.err


def refuse(message: str) -> Callable[..., object]:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    return fails


@pytest.mark.parametrize(
    ("device", "missing", "chosen", "words"),
    [
        ("cpu", {}, "demo", "no CUDA GPU"),
        ("cuda", {"cifar10": "no"}, "synthetic", "make data PROFILE=paper` fetches cifar10"),
        ("cuda", {"victim": "no"}, "synthetic", "fetches victim"),
        ("cuda", {"gtsrb": "no"}, "paper", "gtsrb cannot be had, so only 02, 03, 04, 05a"),
        ("cuda", {}, "paper", "so are the papers' data"),
    ],
)
def test_auto_looks_at_the_hardware_and_the_data(
    monkeypatch: pytest.MonkeyPatch, device: str, missing: dict[str, str], chosen: str, words: str
) -> None:
    """With a GPU it fetches what it can, and says what it lacks: CIFAR-10 all notebooks, GTSRB one."""
    tried, ran = [], []
    monkeypatch.setattr(artifacts, "device", lambda: torch.device(device))
    monkeypatch.setattr(artifacts, "processor", lambda: device)
    monkeypatch.setattr(notebooks, "missing_data", lambda name: missing)
    monkeypatch.setattr(notebooks, "obtain", tried.append)
    monkeypatch.setattr(notebooks, "paper", lambda *given: ran.append(given))
    profile, why, able = notebooks.choose_profile("auto")
    assert (profile, tried) == (chosen, [])
    assert words in why
    numbers = ["02", "03", "04", "05a", "05b", "05c"] if "gtsrb" in missing else []
    assert [notebooks.number(stem) for stem in able] == numbers
    assert notebooks.main(["paper"]) == 0
    assert (ran, tried) == ([(chosen, able, False)], ["paper"] * (device == "cuda"))


def test_what_lacks_is_fetched_set_by_set_until_there_is_no_network(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first line says what, how large and where; after a first failure no other set is tried."""
    monkeypatch.setenv("DATA_DIR", str(desk / "data"))
    write_profile(desk, data="cifar10", query_data="svhn")
    asked: list[tuple[str, set[str]]] = []
    monkeypatch.setattr(torchsets, "fetch", lambda *given: asked.append(given))
    notebooks.obtain("tiny")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"fetching cifar10, svhn, 0.4 GB, into {desk / 'data'}; ")
    assert [name for name, _ in asked] == ["cifar10", "svhn"]
    monkeypatch.setattr(torchsets, "fetch", refuse("no network\n\nlong remedy"))
    notebooks.obtain("tiny")
    assert capsys.readouterr().out.splitlines()[1:] == ["no network"]
    archive = desk / "data" / "cifar-10-python.tar.gz"
    tinysets.put(archive, b"another")
    assert command("data") == 1
    assert f"not as published, delete it: {archive}. no network\n" in capsys.readouterr().out
    write_profile(desk)
    notebooks.obtain("tiny")
    assert capsys.readouterr().out == "", "nothing lacks"


def test_half_a_data_set_is_said_before_any_notebook_runs(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder is there, one of its files is not, and another one is not the published one."""
    monkeypatch.setenv("DATA_DIR", str(desk / "data"))
    tinysets.make("cifar10", desk / "data", monkeypatch)
    write_profile(desk, data="cifar10")
    assert notebooks.missing_data("tiny", whole=True) == {}
    batch = desk / "data" / "cifar-10-batches-py" / "data_batch_3"
    for damage in (lambda: batch.write_bytes(b"another"), batch.unlink):
        damage()
        assert command("paper") == 1
        message = capsys.readouterr().err
        assert re.search("cifar10 (train|test) is damaged or incomplete", message)
        assert f"delete {batch.parent} and run `make data" in message
        assert not (desk / "runs" / "tiny").exists()


@pytest.mark.parametrize(
    ("victim", "message"),
    [
        ({"weights": "gone.pt"}, "gone.pt' is no file"),
        ({"weights": "stem.pt", "encoder": "resnet18"}, "stem.pt"),
        (
            {"weights": "timm", "encoder": "test_resnet.r160_in1k"},
            "not in the cache of the Hugging",
        ),
    ],
)
def test_weights_that_cannot_be_read_are_refused_before_anything_runs(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys, victim: dict[str, object], message: str
) -> None:
    """Those of a file that is gone, of ImageNet's stem for CIFAR's, and of timm where it has none."""
    import timm

    known = timm.create_model("resnet18", num_classes=0)
    torch.save({"state_dict": known.state_dict()}, desk / "stem.pt")
    monkeypatch.setattr(artifacts, "ROOT", desk)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(desk / "hub"))
    ready = {"method": "ready", "encoder": "test_resnet"} | victim
    write_profile(desk, victim=ready)
    assert command("paper") == 1
    printed = capsys.readouterr()
    assert re.search(f"victim of tiny.yaml: .*{message}", printed.err, re.DOTALL)
    assert not (desk / "runs" / "tiny").exists()
    assert command("plan") == 0
    assert "missing: victim of tiny.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("lies", [False, True])
def test_weights_of_timm_are_looked_for_on_disk_and_fetched_by_make_data(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lies: bool
) -> None:
    """A plan asks no network: it looks into the hub's cache, and reads what lies there."""
    read: list[str] = []
    found = str(desk / "model.safetensors") if lies else None
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: found)
    monkeypatch.setattr(pretrain, "ready", lambda config: read.append(config.encoder))
    ready = {"method": "ready", "encoder": "test_resnet", "weights": "timm"}
    write_profile(desk, victim=ready)
    assert list(notebooks.missing_data("tiny")) == ([] if lies else ["victim"])
    assert read == ["test_resnet"] * lies
    assert command("data") == (0 if lies else 1)
    assert "victim: the weights of test_resnet are present" in capsys.readouterr().out
    assert len(read) == 1 + 2 * lies


TRAINS = """
from contsteal.lab import experiment, sweeps
lab = experiment.Lab(profile)
rows = sweeps.sweep(lab, ["embedding"], [64], [0], ["shapes"])
"""


def test_a_disk_without_room_for_the_plan_is_refused_before_anything_runs(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two conv4 of 0.4 MB, what they were answered, and 2.4 MB of images."""
    write_notebook(desk, FIRST, TRAINS)
    for free, code in ((4 * 10**6, 0), (10**6, 1)):
        usage = shutil.disk_usage(desk)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        assert bool(
            notebooks.lacks_space(notebooks.work(notebooks.tasks("tiny")).values())
        ) == bool(code)
    assert command("paper") == 1
    message = r"runs needs 0.00\d+ GB more and has 0.001 GB: set CONTSTEAL_RUNS"
    assert re.search(message, capsys.readouterr().err)
    assert command("plan") == 0
    assert "too little space: " in capsys.readouterr().out


def test_a_plan_counts_trainings_answers_hours_disk_and_memory(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second notebook finds done what the first one does; nothing of it is trained or read."""
    write_profile(desk, data="shapes")
    write_notebook(desk, FIRST, TRAINS)
    write_notebook(desk, LAST, TRAINS)
    assert command("plan") == 0
    _, first, last, whole = capsys.readouterr().out.splitlines()
    cost = r"{}: never run; (\d) trainings, (\d+) answers of the victim, 0 min, 0.0 GB of disk, .*memory"
    assert re.fullmatch(" *" + cost.format(FIRST), first).groups() == ("2", str(64 + 40 + 160))
    assert re.fullmatch(" *" + cost.format(LAST), last).groups() == ("0", "0")
    assert re.search("in all, an estimate for .*: . min, 0.0 GB of disk .85 GFLOP/s", whole)
    assert not (desk / "runs").exists()
    drawn, again = (work.drawn for work in notebooks.work(notebooks.tasks("tiny")).values())
    images = sum(SMOKE[f"{part}_images"] for part in ("train", "query", "probe", "test"))
    assert sum(drawn.values()) == 3 * 32**2 * images, "those of embedded sets are kept"
    assert not again


def test_the_plan_of_the_papers_is_made_in_seconds_and_knows_every_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Seconds are of this process alone: the machine may do other things."""
    for name in ("CONTSTEAL_RUNS", "CONTSTEAL_FIGURES", "DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    start = time.process_time()
    notebooks.plan("paper", (), False)
    assert time.process_time() - start < 10
    lines = capsys.readouterr().out.splitlines()
    for stem, line in zip(notebooks.stems(), lines, strict=False):
        assert re.fullmatch(
            rf"  {stem}: never run; .*\d (min|h)( on a CPU|, .* of memory)", line
        ), line
    assert "NVIDIA H200" in lines[9]


def test_the_arithmetic_of_demo_is_what_demo_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """All notebooks, on as many cores, within a factor of 2: machines of this name differ by 1.65."""
    took = files.read_json(artifacts.ROOT / "figures" / "demo" / notebooks.TIMINGS)
    machine = inspection.CORE
    chosen = [notebooks.Task(s, Path(), notebooks.parameters(s, "demo"), {}, "never")
              for s in notebooks.stems()]  # fmt: skip
    costs = notebooks.work(chosen)
    seconds = sum(cost.seconds(machine) + machine.start for cost in costs.values())
    seconds += notebooks.WITHOUT_LAB * (len(chosen) - len(costs))
    assert 1 / 2 < seconds / 2 / took[notebooks.WHOLE]["seconds"] < 2


def test_plan_starts_with_profile_device_and_why_and_shows_stored_times(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {FIRST: {"seconds": 61.2, "device": "a CPU"}}
    files.write_json(desk / "figures" / "tiny" / notebooks.TIMINGS, files.sealed(times))
    assert command("plan") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"profile tiny on {artifacts.processor()}: asked for",
        f"  {FIRST}: never run, 61 s on a CPU", f"  {LAST}: never run",
    ]  # fmt: skip
    assert not (desk / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("", (["-j2"], 2)), ("s -- PROFILE=demo", (["-j2"], 2)), ("kj", (["-j2"], 2)),
     (" -j8 --jobserver-auth=3,4", ([], 8)), (" -j1", ([], 1)), ("s -j --jobserver-auth=3,4", ([], 5))],
)  # fmt: skip
def test_jobs_are_the_profiles_unless_make_was_given_some(
    monkeypatch: pytest.MonkeyPatch, flags: str, expected: tuple[list[str], int]
) -> None:
    monkeypatch.setenv("MAKEFLAGS", flags)
    assert notebooks._jobs(2, 5) == expected


def test_the_longest_notebook_starts_first(desk: Path) -> None:
    def order() -> list[str]:
        words = notebooks.prepare("tiny", (), False)
        return [Path(word).stem for word in words if word.endswith(".ipynb")]

    write_profile(desk, data="shapes")
    write_notebook(desk, FIRST, TRAINS)
    assert order() == [FIRST, LAST], "without a time it is the one that trains"
    write_notebook(desk, FIRST)
    write_notebook(desk, LAST, TRAINS)
    assert order() == [LAST, FIRST]
    times = {FIRST: {"seconds": 61.0, "device": "a CPU"}, LAST: {"seconds": 9.0, "device": "a CPU"}}
    files.write_json(desk / "figures" / "tiny" / notebooks.TIMINGS, files.sealed(times))
    assert order() == [FIRST, LAST]


# -------------------------------------------------------------------------------- durations


@pytest.mark.parametrize(
    ("started", "made_at", "expected"), [(11.0, 15.0, 3.0), (11.0, 5.0, 99.0), (9.0, 15.0, 99.0)]
)
def test_a_cold_run_of_all_replaces_times_and_any_other_run_adds_those_that_were_not_known(
    desk: Path, started: float, made_at: float, expected: float
) -> None:
    """Cold: every notebook began, and every artifact was made, after the run began."""
    figures, runs = desk / "figures" / "tiny", desk / "runs"
    old = {"seconds": 99.0, "device": "CPU"}
    files.write_json(figures / notebooks.TIMINGS, files.sealed({LAST: old, "09_gone": old}))
    for stem in (FIRST, LAST):
        record = {"seconds": 3.0, "device": "CPU", "started": started}
        files.write_json(runs / "tiny" / f"{stem}.json", files.sealed(record))
    manifest = runs / "artifacts" / "attack-1" / "manifest.json"
    files.write_json(manifest, {})
    os.utime(manifest, (made_at, made_at))
    notebooks.finish("tiny", since=10.0)
    times = notebooks._read(figures / notebooks.TIMINGS)
    assert (times[FIRST]["seconds"], times[LAST]["seconds"]) == (3.0, expected)
    assert set(times) == {FIRST, LAST, *[notebooks.WHOLE] * (expected == 3.0)}


def test_a_summary_that_cannot_be_written_is_said(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table that no notebook of this run made, here another profile's: the summary is an older one."""
    folder = desk / "figures" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("csv", "json"):
        shutil.copy(artifacts.ROOT / "figures" / "demo" / f"01_training.{kind}", folder)
    with pytest.raises(ValueError, match=r"01_training.csv .*: run notebook 01 again"):
        notebooks.finish("tiny", since=1.0)
    assert "what was found" not in capsys.readouterr().out


def test_the_table_of_times_in_closed_values(tmp_path: Path) -> None:
    assert notebooks.timings_table(tmp_path) == "No durations are recorded."
    times = {"b": {"seconds": 30.0}, "a": {"seconds": 20.5}, notebooks.WHOLE: {"seconds": 40.0}}
    times = {name: about | {"device": "CPU"} for name, about in times.items()}
    files.write_json(tmp_path / notebooks.TIMINGS, files.sealed(times))
    table = "| notebook | seconds | device |\n| a | 20.5 | CPU |\n| b | 30 | CPU |\n| in all | 40 | CPU |"
    assert plain(notebooks.timings_table(tmp_path)).startswith(f"{table}\n")


def plain(table: str) -> str:
    return re.sub(" +", " ", re.sub(r"\|[-:|]+\|\n", "", table))


@pytest.mark.parametrize(
    "damaged",
    ["[]", "{", '"a"', "{}", '{"00_first": {"seconds": 61.0}}',
     '{"00_first": {"seconds": 61.0}, "seal": "0"}'],
)  # fmt: skip
def test_damaged_times_count_as_not_measured(
    desk: Path, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    files.write_text(desk / "figures" / "tiny" / notebooks.TIMINGS, damaged)
    assert notebooks.timings_table(desk / "figures" / "tiny") == "No durations are recorded."
    assert command("plan") == 0
    assert f"{FIRST}: never run\n" in capsys.readouterr().out
    assert len(notebooks.prepare("tiny", (), False)) > 2
    notebooks.finish("tiny", since=1.0)
    assert notebooks._read(desk / "figures" / "tiny" / notebooks.TIMINGS) == {}


# --------------------------------------------------------------------------------- by make

STAGED = ("00_first", "01_victim", "02_third", "03_fourth", "04_figures")
NOTE = """
import os
with open({log!r}, "a") as log:
    log.write({stem!r} + os.environ.get("OMP_NUM_THREADS", "") + " ")
"""
MEET = """
import pathlib, time
pathlib.Path({mine!r}).touch()
for _ in range(600):
    if pathlib.Path({other!r}).exists(): break
    time.sleep(0.1)
else: raise RuntimeError("alone")
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository of five tiny notebooks, of which two may run side by side."""
    root = artifacts.ROOT
    shutil.copytree(root / "contsteal", tmp_path / "contsteal")
    shutil.copy(root / "Makefile", tmp_path)
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    write_profile(tmp_path, at_once=2)
    for stem in STAGED:
        write_notebook(tmp_path, stem, NOTE.format(log=str(tmp_path / "log"), stem=stem[:2]))
    return tmp_path


def make(home: Path, *options: str) -> subprocess.Popen[str]:
    apart = ("CONTSTEAL_", "MAKE", "MFLAGS", "OMP_NUM_THREADS")
    own = {k: v for k, v in os.environ.items() if not k.startswith(apart)}
    return subprocess.Popen(
        ["make", "paper", "PROFILE=tiny", f"PYTHON={sys.executable}", *options], cwd=home, text=True,
        env=own | {"PYTHONPATH": str(home)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored if tests run by `&`
    )  # fmt: skip


def test_make_runs_the_graph_side_by_side_twice_at_once_each_notebook_once(copy: Path) -> None:
    """The second and third wait for each other: one after the other they would never end."""
    shared = NOTE.format(log=str(copy / "log"), stem="02")
    places = [str(copy / name) for name in "ab"]
    for stem, mine, other in ((STAGED[2], *places), (STAGED[3], *reversed(places))):
        meet = MEET.format(mine=mine, other=other)
        write_notebook(copy, stem, meet, shared.replace("02", stem[:2]))
    both = [make(copy), make(copy)]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    share = str(max(1, joblib.cpu_count() // 2))
    words = (copy / "log").read_text().split()
    assert sorted(words[:4]) == [f"{n}{share}" for n in ("00", "01", "02", "03")]
    assert words.index(f"01{share}") < min(words.index(f"{n}{share}") for n in ("02", "03"))
    assert words[4:] == ["04"]
    for process in printed:
        assert process.startswith(f"profile tiny on {artifacts.processor()}: asked for\n")
    assert "".join(printed).count(": done in") == 5
    times = notebooks._read(copy / "figures" / "tiny" / notebooks.TIMINGS)
    assert times.keys() == {*STAGED, notebooks.WHOLE}
    again = make(copy)
    assert "nothing to do" in again.communicate()[0]


def test_after_a_failure_no_notebook_begins_that_needs_a_victim(copy: Path) -> None:
    write_notebook(copy, STAGED[1], "raise RuntimeError('no')")
    process = make(copy)
    printed = process.communicate()[0]
    assert process.returncode == 2
    assert "RuntimeError: no" in printed
    log = (copy / "log").read_text().split() if (copy / "log").exists() else []
    assert [word[:2] for word in log] in ([], ["00"])


@pytest.mark.parametrize(
    ("number", "to"), [(signal.SIGINT, "all"), (signal.SIGTERM, "make"), (signal.SIGKILL, "runner")]
)
def test_an_interrupt_ends_kernels_and_leaves_nothing_half_done(
    copy: Path, number: signal.Signals, to: str
) -> None:
    """Ctrl-C reaches all processes of the terminal, `kill` one of them."""
    for stem in STAGED[2:4]:
        write_notebook(copy, stem, f"open('{copy}/pid{stem}', 'w').write(str(__import__('os').getpid()))",
                       "import time; time.sleep(600)")  # fmt: skip
    process = make(copy, "NB=02 03")
    pids = [copy / f"pid{stem}" for stem in STAGED[2:4]]
    while not all(path.exists() and path.read_text() for path in pids):
        assert process.poll() is None
        time.sleep(0.1)
    kernels = [psutil.Process(int(path.read_text())) for path in pids]
    everybody = psutil.Process(process.pid).children(recursive=True)
    if to == "runner":  # and what executes one of the notebooks
        for each in (psutil.Process(process.pid).children()[0], kernels[0].parent()):
            each.send_signal(number)
    else:
        (os.killpg if to == "all" else os.kill)(process.pid, number)
    assert psutil.wait_procs(everybody, timeout=20)[1] == []
    printed = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == (2 if to == "runner" else -number)
    if to != "runner":  # of which make says that it was killed
        assert len(printed) == 5, printed
        assert printed[3] == "interrupted: `make paper` continues from the last checkpoints"
        assert printed[4].startswith("make: *** ")
    home = copy / "runs" / "tiny"
    assert all("partial" in path.name for path in home.glob("*.ipynb"))
    assert json.loads((home / ".keys" / STAGED[2]).read_text())["reason"] == "never run"
    assert (
        notebooks._reason(home / f"{STAGED[2]}.ipynb", {}, copy / "figures")
        == "stopped before its end"
    )
