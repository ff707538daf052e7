"""The runner: strict parameters, reasons, rename on success, a failed notebook fails again."""

import json
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from contsteal import files
from contsteal.data import folders, packed
from contsteal.lab import artifacts, profiles
from contsteal.paper import durations, execute, needs, paper, plan

SETTINGS = "about: test\ncommon: {data: shapes}\n"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two tiny notebooks and a profile, in the place of the repository's."""
    (tmp_path / "profiles").mkdir()
    monkeypatch.setattr(plan, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(profiles, "PROFILES", tmp_path / "profiles")
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path / "figures"))
    profile(tmp_path)
    notebook(tmp_path, "00_first", "1 + 1")
    notebook(tmp_path, "01_last", "2 + 2")
    return tmp_path


def profile(desk: Path, extra: str = "") -> None:
    (desk / "profiles" / "tiny.yaml").write_text(SETTINGS + extra)


def notebook(desk: Path, stem: str, *code: str) -> None:
    book = new_notebook(
        cells=[new_code_cell(c) for c in ("profile = 'demo'\nlr = 0.1\nn = [1]", *code)]
    )
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(book, desk / f"{stem}.ipynb")


def write_csv(name: str, text: str) -> str:
    return (
        "from contsteal import runs\n"
        f"runs.write_text(runs.figures_dir() / profile / {name!r}, {text!r})"
    )


def record(desk: Path, stem: str) -> dict:
    return json.loads((desk / "runs" / "tiny" / f"{stem}.json").read_text())


def reasons(**options: object) -> dict[str, str | None]:
    return {t.stem: t.reason for t in plan.tasks("tiny", **options)}


def test_parameters_are_the_defaults_with_the_profile(desk: Path) -> None:
    profile(desk, "notebooks:\n  00_first: {lr: 1.0e-3, n: [2, 3]}\n")
    assert plan.parameters("00_first", "tiny") == {"profile": "tiny", "lr": 0.001, "n": [2, 3]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{learning_rate: 0.1}", r"no parameter 'learning_rate'; it has profile, lr, n"),
        ("{lr: 1e-3}", r"lr='1e-3' is str, the default 0.1 is float; YAML reads 1e-3 as text"),
        ("{n: 3}", r"n=3 is int, the default \[1\] is list"),
        ("{n: [a]}", r"n=\['a'\] is list"),
        ("{lr: true}", r"lr=True is bool"),
    ],
)
def test_misspelt_and_mistyped_parameters_are_refused(desk: Path, given: str, message: str) -> None:
    profile(desk, f"notebooks:\n  00_first: {given}\n")
    with pytest.raises(ValueError, match=message):
        plan.parameters("00_first", "tiny")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notebook: {}\n", r"tiny.yaml: no parameter 'notebook'; it has about, common, notebooks"),
        ("common: {dta: shapes}\n", r"tiny.yaml, common: no parameter 'dta'"),
        ("common: {victim: {lr: 1e-3}}\n", r"tiny.yaml, victim: lr='1e-3' is str.*write 1.0e-3"),
        ("common: {surrogate: {epoch: 3}}\n", r"tiny.yaml, surrogate: no parameter 'epoch'"),
        ("common: [\n", r"tiny.yaml is not YAML"),
        ("- 1\n", r"a section 'common' is needed"),
    ],
)
def test_a_profile_is_checked_too(desk: Path, text: str, message: str) -> None:
    common = "" if "common" in text or text.startswith("-") else "common: {data: shapes}\n"
    (desk / "profiles" / "tiny.yaml").write_text(common + text)
    with pytest.raises(ValueError, match=message):
        profiles.profile("tiny")


def test_empty_lists_are_refused(desk: Path) -> None:
    profile(desk, "notebooks:\n  00_first: {n: []}\n")
    with pytest.raises(ValueError, match=r"n=\[\].*at least one value is needed"):
        plan.parameters("00_first", "tiny")


def test_parameters_of_a_notebook_that_does_not_exist_are_refused(desk: Path) -> None:
    profile(desk, "notebooks:\n  00_frist: {lr: 0.1}\n")
    with pytest.raises(ValueError, match=r"unknown notebook '00_frist'.*00_first, 01_last"):
        plan.tasks("tiny")


def test_unknown_profile_and_notebook_list_the_known(desk: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown profile 'huge': choose one of tiny"):
        plan.choose("huge")
    with pytest.raises(ValueError, match=r"unknown notebook '07'.*00_first, 01_last"):
        plan.tasks("tiny", only=["07"])


def test_only_and_force_choose_what_runs(desk: Path) -> None:
    assert list(reasons(only=["01"])) == ["01_last"]
    assert set(reasons(force=True).values()) == {"forced"}


def test_a_notebook_runs_in_the_mode_that_is_asked_for(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook(desk, "00_first", "import os; assert os.environ['CONTSTEAL_MODE'] == 'exact'")
    monkeypatch.setenv("CONTSTEAL_MODE", "exakt")
    assert paper.main(["run", "--profile", "tiny"]) == 1
    monkeypatch.setenv("CONTSTEAL_MODE", "exact")
    assert paper.main(["run", "--profile", "tiny", "--only", "00"]) == 0
    monkeypatch.delenv("CONTSTEAL_MODE")
    assert reasons()["00_first"] == "machine changed: exact mode: asked for -> None"


def test_a_run_is_followed_by_up_to_date_until_something_changes(desk: Path) -> None:
    notebook(desk, "00_first", write_csv("00_numbers.csv", "a\n1\n"))
    paper.run(plan.tasks("tiny"))
    assert set(reasons().values()) == {None}
    assert (desk / "runs" / "tiny" / "00_first.ipynb").is_file()
    assert record(desk, "00_first")["outputs"].keys() == {"00_numbers.csv"}

    (desk / "figures" / "tiny" / "00_numbers.csv").write_text("a\n2\n")
    assert reasons()["00_first"] == "00_numbers.csv is missing or was altered"
    (desk / "figures" / "tiny" / "00_numbers.csv").write_text("a\n1\n")
    profile(desk, "notebooks:\n  00_first: {lr: 0.2}\n")
    assert reasons()["00_first"] == "parameters changed: lr: 0.1 -> 0.2"
    profile(desk)
    notebook(desk, "00_first", "'other code'")
    assert reasons() == {"00_first": "code cells changed", "01_last": "notebooks before it run"}


def test_the_last_notebook_runs_again_when_a_table_changes(desk: Path) -> None:
    notebook(desk, "00_first", write_csv("00_numbers.csv", "a\n1\n"))
    paper.run(plan.tasks("tiny"))
    (desk / "figures" / "tiny" / "extra.csv").write_text("b\n1\n")
    assert reasons()["01_last"] is not None


def test_a_package_change_is_a_reason_that_names_the_file(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper.run(plan.tasks("tiny"))
    real = artifacts.source_key
    monkeypatch.setattr(
        artifacts, "source_key", lambda p: "changed" if p.name == "losses.py" else real(p)
    )
    assert reasons()["00_first"] == "package changed: losses.py"


def test_a_failing_notebook_shows_its_cell_keeps_its_copy_and_fails_again(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook(desk, "00_first", "raise RuntimeError('out of paper')")
    for _ in range(2):
        assert paper.main(["run", "--profile", "tiny"]) == 1
        told = capsys.readouterr().out
        assert "00_first, code cell 2" in told
        assert "RuntimeError: out of paper" in told
        assert (desk / "runs" / "tiny" / "00_first.partial.ipynb").is_file()
        assert not (desk / "runs" / "tiny" / "00_first.ipynb").exists()
    assert reasons()["00_first"] == "did not finish last time"


def test_parameters_reach_the_notebook(desk: Path) -> None:
    profile(desk, "notebooks:\n  00_first: {lr: 0.25}\n")
    notebook(desk, "00_first", "assert (profile, lr, n) == ('tiny', 0.25, [1])")
    execute.execute(plan.tasks("tiny")[0])


def test_bad_profile_on_the_command_line_is_an_error_not_a_traceback(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert paper.main(["plan", "--profile", "huge"]) == 1
    assert "unknown profile 'huge'" in capsys.readouterr().out


def test_runs_folder_that_cannot_be_written_is_named(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "file").write_text("not a folder")
    monkeypatch.setenv("CONTSTEAL_RUNS", str(desk / "file"))
    assert paper.main(["run", "--profile", "tiny"]) == 1
    told = capsys.readouterr().out
    assert "cannot be written" in told
    assert "CONTSTEAL_RUNS" in told


def test_plan_runs_nothing_and_first_line_says_profile_device_and_why(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert paper.main(["plan", "--profile", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("profile tiny on ")
    assert lines[0].endswith("asked for")
    assert "00_first: runs, never run" in lines[1]
    assert not (desk / "runs").exists()


def test_auto_takes_the_demo_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "device", lambda: torch.device("cpu"))
    assert plan.choose("auto") == ("demo", "no CUDA GPU is visible")
    monkeypatch.setattr(artifacts, "device", lambda: torch.device("cuda"))
    assert plan.choose("auto")[0] != "demo"


def test_a_run_that_only_read_artifacts_back_does_not_change_the_duration(desk: Path) -> None:
    task = plan.tasks("tiny")[0]
    for seconds, computed, kept in ((9.0, 5, 9.0), (2.0, 0, 9.0), (4.0, 3, 9.0), (8.0, 5, 8.0)):
        durations.keep(task.figures, task.stem, {"seconds": seconds}, computed)
        assert plan.expected("tiny") == {"00_first": kept}


def test_what_a_notebook_takes_is_measured_and_its_artifacts_bear_its_name(desk: Path) -> None:
    made = (
        "from contsteal import runs\n"
        "def make(folder): (folder / 'zeros').write_bytes(bytes(2**20))\n"
        "folder = runs.artifact('thing', 1, ('seeds',), make)\n"
        "assert runs.read_json(folder / 'manifest.json')['by'] == 'tiny/00_first'\n"
        "import time; time.sleep(1)"  # seen at least once
    )
    notebook(desk, "00_first", made)
    paper.run(plan.tasks("tiny", only=["00"]))
    found, kept = record(desk, "00_first"), files.read_json(desk / "figures/tiny" / plan.TIMINGS)
    assert 2**20 < found["disk"] < 2**20 + 2**15
    assert found["memory"] > 2**24
    assert {k: kept["00_first"][k] for k in ("disk", "memory")} == {
        k: found[k] for k in ("disk", "memory")
    }


def test_a_damaged_record_is_a_reason(desk: Path) -> None:
    paper.run(plan.tasks("tiny"))
    (desk / "runs" / "tiny" / "00_first.json").write_text("[]")
    assert reasons()["00_first"] == "its record is damaged"


def test_a_dead_kernel_is_told(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook(desk, "00_first", "import os; os._exit(1)")
    assert paper.main(["run", "--profile", "tiny"]) == 1
    assert "the kernel died" in capsys.readouterr().out


def test_explorers_do_not_overwrite_stored_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CONTSTEAL_FIGURES", raising=False)
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path))
    assert artifacts.publish_dir() == tmp_path / "interactive"
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path / "kept"))
    assert artifacts.publish_dir() == tmp_path / "kept"


def test_data_of_a_profile_is_checked_before_any_notebook_runs(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_DIR", str(desk / "data"))
    (desk / "profiles" / "tiny.yaml").write_text("common: {data: cifar10, query_data: shapes}\n")
    notebook(desk, "00_first", "tasks = ['stl10']")
    assert needs.datasets("tiny") == ["cifar10"]
    assert paper.main(["run", "--profile", "tiny"]) == 1
    told = capsys.readouterr().out
    assert "cifar10 is not complete" in told
    assert "make data PROFILE=..." in told
    assert not (desk / "runs" / "tiny").exists(), "nothing was started"
    assert paper.main(["plan", "--profile", "tiny"]) == 0
    assert "missing: cifar10, cifar-10-python.tar.gz (170.5 MB)" in capsys.readouterr().out


def test_make_data_fetches_the_profiles_sets_and_no_others(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(paper.fetch, "main", lambda names: asked.append(names) or 0)
    (desk / "profiles" / "tiny.yaml").write_text("common: {data: svhn, query_data: stl10}\n")
    assert paper.main(["data", "--profile", "tiny"]) == 0
    assert asked[-1] == ["stl10", "svhn"]


def test_make_data_fetches_the_split_that_a_profile_reads_and_refuses_others(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(paper.fetch, "main", lambda names: asked.append(names) or 0)
    monkeypatch.setenv("DATA_DIR", str(desk / "data"))
    path = desk / "profiles" / "tiny.yaml"
    path.write_text("common: {data: stl10, train_split: unlabeled, query_data: svhn}\n")
    assert paper.main(["data", "--profile", "tiny"]) == 0
    path.write_text("common: {data: stl10, query_data: svhn, query_split: extra}\n")
    assert paper.main(["data", "--profile", "tiny"]) == 0
    assert asked == [["stl10", "svhn"], ["stl10", "svhn", "--all"]]
    capsys.readouterr()
    assert paper.main(["plan", "--profile", "tiny"]) == 0
    assert "missing: svhn, extra_32x32.mat (1.3 GB)" in capsys.readouterr().out
    path.write_text("common: {data: stl10, query_data: svhn, query_split: train+extra}\n")
    assert {f.path for name, f in needs.files("tiny") if name == "svhn"} >= {"extra_32x32.mat"}
    path.write_text("common: {data: stl10, query_data: svhn, query_split: unlabeled}\n")
    for command in ("data", "plan", "run"):
        assert paper.main([command, "--profile", "tiny"]) == 1
        assert "unknown split 'unlabeled' of svhn" in capsys.readouterr().out
    assert len(asked) == 2


def images(root: Path, *splits: str) -> Path:
    """Write an image of each of two classes to every split."""
    for name in (f"{s}/{c}" for s in splits for c in "ab"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(root / name / "0.png")
    return root


def test_make_data_says_where_sets_lie_that_nothing_fetches(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_DIR", str(desk / "data"))
    mine, small = images(desk / "mine", "train", "val"), desk / "data" / "imagenet-16"
    for home in (desk / "packed", small):
        packed.pack(mine, home, 16)
    common = f"{{data: imagenet, image_size: 16, query_data: 'folder:{mine}', query_split: val}}"
    (desk / "profiles" / "tiny.yaml").write_text(f"common: {common}\n")
    notebook(desk, "02_tasks", f"tasks = ['shapes', 'packed:{desk / 'packed'}']")
    book = nbformat.read(desk / "02_tasks.ipynb", as_version=4)
    book.cells[0].source += "\n" + book.cells.pop().source
    nbformat.write(book, desk / "02_tasks.ipynb")
    monkeypatch.setattr(folders, "decode", None)  # looking does not decode
    assert paper.main(["data", "--profile", "tiny"]) == 0
    told = capsys.readouterr().out.splitlines()[1:]
    assert sorted(told) == sorted([
        f"imagenet: present in {small}", f"folder:{mine}: present in {mine}",
        f"packed:{desk / 'packed'}: present in {desk / 'packed'}",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("imagenet", ["image-net.org", "ILSVRC2012_img_train.tar", "{data}/imagenet and",
                      "pack {data}/imagenet {data}/imagenet-32 --size 32"]),
        ("imagenet100", ["0 of 100", "pack {data}/imagenet {data}/imagenet100-32 --size 32 --keep "]),
        ("folder:{desk}/x", ["x is not a folder", "into {desk}/x/train/CLASS/",
                             "pack {desk}/x {desk}/x-32 --size 32 and name packed:{desk}/x-32"]),
        ("packed:{desk}/x y", ["no pack in {desk}/x y", "pack FOLDER '{desk}/x y' --size 32"]),
        ("folder:{desk}/flat", ["no split 'test' in {desk}/flat: choose one of train"]),
        ("packed:{desk}/small", ["packed at 16 px, asked for are 32: set image_size to 16"]),
    ],
)  # fmt: skip
def test_make_data_fetches_what_it_can_and_says_what_must_be_put_by_hand(
    name: str,
    parts: list[str],
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(paper.fetch, "main", lambda names: asked.append(names) or 0)
    monkeypatch.setenv("DATA_DIR", str(desk / "data"))
    images(desk / "flat", ".")
    packed.pack(images(desk / "source", "train", "test"), desk / "small", 16)
    name = name.format(desk=desk)
    common = {"data": name, "image_size": 32, "query_data": "svhn"}
    (desk / "profiles" / "tiny.yaml").write_text(json.dumps({"common": common}))
    assert paper.main(["data", "--profile", "tiny"]) == 1
    assert asked == [["svhn"]]
    told = capsys.readouterr().out
    for part in (f"{name}: missing: ", *parts):
        assert part.format(desk=desk, data=desk / "data") in told


def test_stages_put_the_victim_first_and_the_figures_last(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stems = ["00_a", "01_b", "02_c", "03_d", "04_e"]
    monkeypatch.setattr(plan, "notebooks", lambda: stems)
    tasks = [plan.Task(s, "tiny", "x", None) for s in stems]
    found = [[t.stem for t in stage] for stage in plan.stages(tasks)]
    assert found == [["01_b"], ["00_a", "02_c", "03_d"], ["04_e"]]
    assert [[t.stem for t in s] for s in plan.stages(tasks[3:])] == [["03_d"], ["04_e"]]


STAGED = ("00_first", "01_victim", "02_third", "03_fourth", "04_figures")


def staged(desk: Path, **codes: str) -> None:
    """Write five notebooks of which the first, third and fourth may run side by side."""
    (desk / "profiles" / "tiny.yaml").write_text("common: {data: shapes, at_once: 2}\n")
    (desk / "01_last.ipynb").unlink()
    for stem in STAGED:
        notebook(desk, stem, codes.get(f"n{stem[:2]}", "1"))


def test_notebooks_of_a_stage_run_side_by_side(desk: Path) -> None:
    """Each of two notebooks waits for the other's file: one after the other they would never end."""
    code = (
        "import os, pathlib, time\n"
        f"here = pathlib.Path({str(desk)!r})\n"
        "(here / 'f{mine}').write_text(os.environ['CONTSTEAL_WORKERS'])\n"
        "for _ in range(600):\n"
        "    if (here / 'f{other}').exists(): break\n"
        "    time.sleep(0.1)\n"
        "else: raise RuntimeError('alone')"
    )
    alone = "import os; assert 'CONTSTEAL_WORKERS' not in os.environ"
    both = [code.format(mine=mine, other=other) for mine, other in ((0, 1), (1, 0))]
    staged(desk, n00=both[0], n02=both[1], n01=alone, n04=alone)
    assert paper.main(["run", "--profile", "tiny"]) == 0
    assert all(record(desk, stem)["status"] == "ok" for stem in STAGED)
    assert (desk / "f0").read_text() == str(max(1, artifacts.cores() // 2))
    timings = files.read_json(desk / "figures" / "tiny" / plan.TIMINGS)
    assert set(timings) == {*STAGED, durations.WHOLE}
    assert {n for n in timings if timings[n].get("at_once") == 2} == {STAGED[0], *STAGED[2:4]}
    alone = sum(timings[n]["seconds"] for n in (STAGED[1], STAGED[-1]))
    assert timings[durations.WHOLE]["seconds"] > alone
    assert "seconds overlap" in durations.table(desk / "figures" / "tiny")


@pytest.mark.parametrize("at_once", [1, 2])
def test_after_a_failure_no_other_notebook_begins(desk: Path, at_once: int) -> None:
    wait = "import time; time.sleep(2)"
    staged(desk, n00=wait, n02=wait, n03="raise RuntimeError('no')")
    (desk / "profiles" / "tiny.yaml").write_text(f"common: {{data: shapes, at_once: {at_once}}}\n")
    assert paper.main(["run", "--profile", "tiny"]) == 1
    begun = sorted(p.stem for p in (desk / "runs" / "tiny").glob("*.json"))
    assert begun == list(STAGED[:4] if at_once == 1 else STAGED[1:4]), (
        "those of unknown length in reverse"
    )


def test_an_interrupt_ends_the_notebooks_that_run_side_by_side(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged(desk, n02="import time; time.sleep(600)", n03="import time; time.sleep(600)")

    def interrupted(running: list) -> None:
        while len(list((desk / "runs" / "tiny").glob("*.partial.ipynb"))) < 2:
            time.sleep(0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr(paper, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        paper.main(["run", "--profile", "tiny"])
    assert {s: record(desk, s)["status"] for s in STAGED[1:4]} == {
        STAGED[1]: "ok", STAGED[2]: "unfinished", STAGED[3]: "unfinished",
    }  # fmt: skip


def test_the_longest_notebook_of_a_stage_begins_first(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(
        paper, "_run", lambda tasks, todo, at_once, crowded, task: begun.append(task.stem)
    )
    stage = [plan.Task(s, "tiny", "x", t) for s, t in (("a", 3.0), ("b", 9.0), ("c", 5.0))]
    paper._side_by_side(stage, [*stage], 1, stage)
    assert begun == ["b", "c", "a"]


def test_time_left_counts_notebooks_that_share_the_machine_once(desk: Path) -> None:
    staged(desk)
    tasks = [
        plan.Task(s, "tiny", "x", seconds)
        for s, seconds in zip(STAGED, (8, 60, 20, 20, 5), strict=True)
    ]
    assert durations.left(tasks) == "about 1:53"
    assert durations.left(tasks, 2) == "about 1:29"
    assert durations.left([replace(t, seconds=None) for t in tasks]) == "time unknown"


def test_changed_expectations_are_a_reason_to_run(desk: Path) -> None:
    before = plan.inputs("01_last", "tiny")
    asked = "expectations: [{encoder: a, task: b, metric: knn, low: 0.5}]\n"
    (desk / "profiles" / "tiny.yaml").write_text(SETTINGS + asked)
    assert plan.inputs("01_last", "tiny") != before
