"""The repository itself: notebooks in the house style, one environment, thin rooms, true documents."""

import ast
import builtins
import os
import re
import runpy
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from contsteal.lab import artifacts, profiles
from contsteal.paper import figures, notebooks

ROOT = artifacts.ROOT
STEMS = notebooks.stems()
MODULES = sorted((ROOT / "contsteal").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(stem: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)


def links(text: str) -> list[str]:
    """Return the links of a text to files, not those to the web or to GitHub's page of the workflow."""
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    return [target for target in found if not target.startswith(("http", "../../actions/"))]


def test_no_link_into_a_machine_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True)
    assert not [line for line in listed.stdout.splitlines() if line.startswith("120000")]


# ------------------------------------------------------------------------------- notebooks


def test_notebooks_have_the_numbers_of_their_order() -> None:
    numbers = ["00", "01", "02", "03", "04", "05a", "05b", "05c", "06"]
    assert [notebooks.number(stem) for stem in STEMS] == numbers


@pytest.mark.parametrize("stem", STEMS)
def test_house_style(stem: str) -> None:
    book = read(stem)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    parameters = [c.source for c in book.cells if "parameters" in c.metadata.get("tags", [])]
    lengths = sorted(len(cell.splitlines()) for cell in code if cell not in parameters)
    assert lengths[-1] <= 15
    assert lengths[len(lengths) // 2] <= 6
    assert len(book.cells) - len(code) >= len(code)
    assert len(code) <= 25
    functions = [n for c in code for n in ast.walk(ast.parse(c)) if isinstance(n, ast.FunctionDef)]
    assert all(f.end_lineno - f.lineno < 6 for f in functions)
    text = "\n".join(c.source for c in book.cells if c.cell_type == "markdown")
    assert "**Claim" in text or "**Question" in text
    for part in ("**Expected", "How to read", "What we found", "falsify", "Exercise", "Solution"):
        assert part in text, part
    for target in links("\n".join(cell.source for cell in book.cells)):
        assert (ROOT / "notebooks" / target).exists(), target


@pytest.mark.parametrize("stem", STEMS)
def test_solutions_of_exercises_use_only_what_their_notebook_defines(stem: str) -> None:
    book = read(stem)
    text = "\n".join(c.source for c in book.cells if c.cell_type == "markdown")
    known = {*dir(builtins)}
    for source in [
        *(c.source for c in book.cells if c.cell_type == "code"),
        *re.findall(r"```python\n(.+?)```", text, re.DOTALL),
    ]:
        nodes = list(ast.walk(ast.parse(source)))
        names = [n for n in nodes if isinstance(n, ast.Name)]
        known |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
        known |= {n.arg for n in nodes if isinstance(n, ast.arg)}
        known |= {n.asname or n.name for n in nodes if isinstance(n, ast.alias)}
        known |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ExceptHandler)}
        assert {n.id for n in names} <= known, source


@pytest.mark.parametrize("stem", STEMS)
def test_notebooks_are_stripped_and_have_a_plain_kernel(stem: str) -> None:
    book, kernel = read(stem), {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert book.metadata.kernelspec == kernel
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in book.cells)
    assert "papermill" not in book.metadata


@pytest.mark.parametrize("stem", STEMS)
def test_defaults_are_the_demo_profile_and_every_parameter_is_explained(stem: str) -> None:
    assert notebooks.parameters(stem, "demo") == notebooks.defaults(stem)
    assert notebooks.defaults(stem)["profile"] == "demo"
    cell = next(c for c in read(stem).cells if "parameters" in c.metadata.get("tags", []))
    lines = cell.source.splitlines()
    for parameter in ast.parse(cell.source).body:
        assert "#" in "".join(lines[parameter.lineno - 1 : parameter.end_lineno]), parameter


@pytest.mark.parametrize("profile", profiles.names())
def test_every_profile_has_checked_parameters(profile: str) -> None:
    assert [task.stem for task in notebooks.tasks(profile)] == STEMS


# ----------------------------------------------------------------------------- the package


def functions() -> Iterator[tuple[str, int]]:
    """Yield every function of the package with its number of lines, without its docstring."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.stem}.{node.name}", span(node) - documented_lines(node)


def test_the_package_has_few_modules_and_a_small_root() -> None:
    root = [path for path in MODULES if path.parent == ROOT / "contsteal"]
    assert len(MODULES) <= 45
    assert len(root) <= 14
    assert sum(map(code_lines, root)) <= 3080


def span(node: ast.stmt) -> int:
    return node.end_lineno - node.lineno + 1


def documented_lines(node: ast.AST) -> int:
    """Count the lines of all docstrings in a module, class or function."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [n for n in ast.walk(node) if isinstance(n, documented)]
    return sum(span(n.body[0]) for n in nodes if ast.get_docstring(n) is not None)


def code_lines(path: Path) -> int:
    """Count the lines of a module without those of its docstrings."""
    text = path.read_text()
    return len(text.splitlines()) - documented_lines(ast.parse(text))


def test_docstrings_are_not_counted_as_code(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('"""One."""\n\ndef f():\n    """Two\n    three."""\n    return "four"\n')
    assert code_lines(path) == 3


def test_functions_are_short() -> None:
    lengths = dict(functions())
    assert {name: n for name, n in lengths.items() if n > 50} == {}
    assert statistics.median(lengths.values()) <= 10


def test_imports_of_the_package_are_declared() -> None:
    named = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cluster"]]
    declared = {re.split("[><=]", name)[0] for name in named}
    packages = {"yaml": "pyyaml", "sklearn": "scikit-learn", "traitlets": "ipykernel",
                "IPython": "ipykernel", "huggingface_hub": "timm", "PIL": "torchvision",
                "pydantic_core": "pydantic"}  # fmt: skip
    for path in MODULES:
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            names |= {a.name for a in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
        for top in {name.split(".")[0] for name in names} - {"contsteal", *sys.stdlib_module_names}:
            assert packages.get(top, top) in declared, f"{path.name}: {top}"


def test_without_the_repository_the_package_steals_and_the_lab_says_what_it_needs(
    tmp_path: Path,
) -> None:
    """What a wheel unpacks: the folder of the package alone."""
    shutil.copytree(ROOT / "contsteal", tmp_path / "contsteal")
    code = """
from contsteal import data, defenses, encoders, evaluate, losses, ownership, pretrain, steal, victim
images = data.load("shapes", n=32).images
api = victim.BlackBox(encoders.build("test_resnet"), [defenses.Rounding(1)], budget=32)
result = steal.train(steal.Config(encoder="test_resnet", epochs=1, batch=16), api, images)
print(result.unique_inputs, data.data_dir())
from contsteal.lab.experiment import Lab
Lab("demo")
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True,
                          capture_output=True)  # fmt: skip
    assert done.stdout.split() == ["32", str(tmp_path / "data")], done.stderr
    last = done.stderr.splitlines()[-1]
    assert "unknown profile 'demo'" in last
    assert "clone of the repository" in last


# ------------------------------------------------------------------ environment and citation


@pytest.mark.parametrize("module", ["losses", "augment", "seeds", "files"])
def test_modules_that_stand_alone_import_nothing_of_ours(module: str) -> None:
    text = (ROOT / "contsteal" / f"{module}.py").read_text()
    assert not re.search(r"^\s*(from|import) contsteal", text, re.M)  # not even the package itself


def test_environment_pyproject_and_lock_belong_together() -> None:
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    locked: dict[str, list[str]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            locked.setdefault(pin.name.lower(), []).append(next(iter(pin.specifier)).version)
    for need in map(Requirement, wanted):
        versions = locked[need.name.lower()]
        assert all(need.specifier.contains(version) for version in versions), need
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert conda["channels"] == ["conda-forge"]
    assert {"pip": ["--editable .[dev]"]} in conda["dependencies"]
    assert f"python{PROJECT['requires-python']}" in conda["dependencies"]


def test_the_citation_has_what_its_schema_asks_for_and_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"message", "title"} < cited.keys()
    for work in cited["references"]:
        assert {"type", "title", "authors"} < work.keys()
        assert work["url"].endswith(work["identifiers"][0]["value"].removeprefix("arXiv:"))
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert cited["authors"] == [{"name": "The contsteal authors"}]
    assert "The contsteal authors" in (ROOT / "LICENSE").read_text()


# ------------------------------------------------------------------------------- documents

DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md",
             *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]  # fmt: skip
# Each command as it is written, what is run for it (once), and what it must print; in this order.
COMMANDS = {
    "make paper": ("make paper PROFILE=smoke", "06_figures: done in"),
    "make paper PROFILE=smoke": ("", "summary.md"),
    "make paper NB=03": ("make paper PROFILE=smoke NB=03", "nothing to do"),
    "make paper PROFILE=smoke NB=02": ("make paper PROFILE=smoke NB=03", "nothing to do"),
    "make paper PROFILE=smoke NB=05a": ("make paper PROFILE=smoke NB=03", "nothing to do"),
    "make paper NB=05a": ("make paper PROFILE=smoke NB=03", "nothing to do"),
    "make paper NB=01": ("make paper PROFILE=smoke NB=03", "nothing to do"),
    "make paper PYTHON=python3": ("make paper PROFILE=smoke NB=03", "nothing to do"),
    "make -j2 paper": ("make -j2 paper PROFILE=smoke NB=03", "nothing to do"),
    "make paper MODE=exact": ("make plan PROFILE=smoke NB=00 MODE=exact", "00_start_here: machine"),
    "make plan": ("make plan PROFILE=smoke", "06_figures: up to date"),
    "make plan PROFILE=synthetic": ("", "in all"),
    "make check": ("make check PROFILE=demo", "not enough evidence"),
    "make check PROFILE=synthetic": ("make check PROFILE=demo", "not enough evidence"),
    "make figures": (  # of one notebook: all others were drawn above
        "mkdir -p few/smoke && cp figures/smoke/00* few/smoke && "
        "CONTSTEAL_FIGURES=few make figures PROFILE=smoke", "smoke",
    ),
    "make format": ("", "left unchanged"),
    "python -m contsteal.data.packed SRC DST --size 256": (
        "python -m contsteal.data.packed photos packed --size 16", "4 images",
    ),
    ".venv/bin/python -m pytest -q tests/root/test_losses.py": (
        ".venv/bin/python -m pytest -q tests/root/test_losses.py -k closed_forms", "passed",
    ),
    "python -m benchmarks --only augmentation training": (
        "python -m benchmarks --tiny --only augmentation", "images/s",
    ),
}  # fmt: skip
# What needs a network or gigabytes says what is missing; only a plan is none the worse for it.
REFUSED = {
    "make data PROFILE=paper": ("", "cifar"),
    "make paper PROFILE=paper": ("make paper PROFILE=paper NB=02", "cifar10"),
    "make paper PROFILE=paper NB=02": ("", "cifar10"),
    "make plan PROFILE=paper": ("make plan PROFILE=paper NB=06", "missing: cifar10"),
    "DATA_DIR=/my/data make paper PROFILE=paper": ("", "/my/data"),
}
# Run by other means: CI itself; tests of JupyterLab, of every script, of the site, and of torch.
ELSEWHERE = {"make test", "make setup", "make lab", "make bench", "make html", "make lint", "make soak",
             "make record", "make record SECONDS=540", "python docs/tables.py",
             "make record TO=FOLDER", "make record SECONDS=500 TO=out PYTHON=python3",
             "make record PROFILE=smoke", "CONTSTEAL_WORKERS=4 make paper PROFILE=study",
             "DASK_SCHEDULER_ADDRESS=tcp://192.0.2.10:8786 make paper PROFILE=study",
             ".venv/bin/python -m torch.utils.collect_env",
             "python -m benchmarks.scaling", "python -m benchmarks.mapped",
             "python -m benchmarks.scaling --share resnet18"}  # fmt: skip
LEFT_OUT = {"runs", ".git", ".venv", "study", ".pytest_cache", ".ruff_cache", ".mypy_cache"}


def commands(name: str) -> set[str]:
    """Return every command that a document shows, in a block or in a line."""
    text = (ROOT / name).read_text()
    blocks = "\n".join(re.findall(r"```bash\n(.+?)```", text, re.DOTALL)).splitlines()
    lines = re.findall(r"`([^`\n]+)`", re.sub(r"```.+?```", "", text, flags=re.DOTALL))
    lines = [
        c for c in [*blocks, *lines] if re.match(r"(\w+=\S+ )*(make|(\S*/)?python3?) [^<]*$", c)
    ]
    return {line.split("#")[0].strip() for line in lines} - {""}


def test_every_command_of_the_documents_is_run() -> None:
    shown = set.union(*(commands(name) for name in DOCUMENTS))
    assert shown == COMMANDS.keys() | REFUSED.keys() | ELSEWHERE


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the repository, with this environment in the place of the one that make builds."""
    home = tmp_path / "contsteal"
    shutil.copytree(ROOT, home, ignore=lambda _, names: LEFT_OUT & set(names))
    (home / ".venv").symlink_to(sys.prefix)
    (home / "photos").mkdir()
    for k in range(4):
        Image.new("RGB", (20, 20), (60 * k, 0, 0)).save(home / "photos" / f"{k}.png")
    return home


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a user of the copy whose network is dead."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("CONTSTEAL_", "MAKE", "MFL"))}
    dead = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    more = {"PYTHON": sys.executable, "PYTHONPATH": str(home), "PATH": path, "no_proxy": ""}
    return own | dead | more | {"DATA_DIR": str(home / "data"), "OMP_NUM_THREADS": "1"}


def run(command: str, home: Path) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", command], cwd=home, env=environment(home), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_the_commands_run_one_after_another(copy: Path) -> None:
    every, done = COMMANDS | REFUSED, {}
    for shown, (small, wanted) in every.items():
        command = small or shown
        done[command] = done.get(command) or run(command, copy)
        code, printed = done[command]
        assert (code == 0) == (shown not in REFUSED or "make plan" in shown), f"{shown}: {printed}"
        assert re.search(wanted, printed), f"{shown}: {printed}"
    made = {path.name for path in (copy / "figures" / "smoke").iterdir()}
    drawn = {s for s in figures.FIGURES if s != "03_geometry"}  # too few points for a correlation
    assert {f"{s}.{kind}" for s in drawn for kind in ("pdf", "png")} <= made
    assert {f"{s}.csv" for s in figures.FIGURES} <= made
    assert {"summary.md", "timings.json"} <= made
    assert (copy / "few" / "smoke" / "contact_sheet.png").is_file()
    executed = copy / "runs" / "smoke"
    assert {f"{stem}.ipynb" for stem in STEMS} <= {path.name for path in executed.iterdir()}
    for stem in STEMS:
        page = (executed / f"{stem}.ipynb").read_text()
        for word in ("it/s", '"computing ', ">NaN<", '"name": "stderr"'):
            assert word not in page, f"{stem}: no bars, logs, gaps or warnings to read"


def test_make_bench_calls_scripts_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed = run("make -n bench", ROOT)
    lines = printed.splitlines()
    assert (code, len(lines)) == (0, 3), printed
    assert lines[-1].endswith("-m benchmarks")  # a documented command, run above
    for line in lines[:-1]:
        monkeypatch.setattr(sys, "argv", [line.split()[-1], "--help"])
        with pytest.raises(SystemExit, match=r"^0$"):
            runpy.run_path(str(ROOT / line.split()[-1]), run_name="__main__")


def test_make_alone_lists_the_commands() -> None:
    code, printed = run("make", ROOT)
    assert code == 0
    listed = {*re.findall(r"^  (\w+) ", printed, re.MULTILINE)}
    assert {"paper", "plan", "data", "figures", "html", "check", "test", "record", "lab"} <= listed


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_paths_of_documents_lead_to_files(name: str) -> None:
    text, home = (ROOT / name).read_text(), (ROOT / name).parent
    for target in links(text):
        assert (home / target).exists(), target
    for target in re.findall(r"`((?:contsteal|tests|notebooks|docs)/[\w/]*(?:\.\w+)?)`", text):
        assert (ROOT / target).exists(), target
    for module in re.findall(r"python -m (contsteal[.\w]*)", text):
        assert ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file(), module


def test_the_diffs_of_contributing_apply_and_do_what_they_say(tmp_path: Path) -> None:
    for name in ("contsteal", "notebooks", "docs", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    diffs = re.findall(r"```diff\n(.+?)```", text, re.DOTALL)
    assert (len(diffs), len(text.splitlines()) < 250) == (6, True)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    for diff in diffs:
        done = subprocess.run(["git", "apply", "-"], input=diff, text=True, capture_output=True,
                              cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
    code = """
import pandas as pd
from contsteal import data, defenses, encoders, pretrain, steal, victim
from contsteal.lab import provider
from contsteal.lab.experiment import Lab
from contsteal.paper import figures
images = data.load("noise", n=32, seed=1).images
assert images.shape == (32, 3, 32, 32) and data.load("noise", n=8, seed=1).labels is None
walls = [defenses.build("clip", limit=0.125)]
api = victim.BlackBox(encoders.build("test_resnet"), walls, budget=32)
assert api.embed(images).abs().max() == 0.125
config = steal.Config(attack="huber", encoder="test_resnet", epochs=1, batch=16)
assert steal.train(config, api, images).unique_inputs == 32
method = pretrain.Config("barlow", "test_resnet", epochs=1, batch=16, hidden=32, projection=32)
pretrain.train(method, data.load("noise", n=32))
fig = figures.draw("03_similarity", pd.DataFrame({"cka": [0.1, 0.2], "agreement": [0.3, 0.4]}))
assert fig.axes[0].get_ylabel()
lab, clipped = Lab("smoke"), [[defenses.Clip(0.1)]]
thief = 16, [0], provider.customers(lab, clipped, ["shapes"], [0])
plain = provider.defended(lab, clipped, ["embedding"], *thief).iloc[0]
adapted = provider.adapting(lab, clipped, "embedding", *thief).iloc[0]
assert (plain["adapts"], adapted["adapts"]) == ("", "looks beyond")
assert plain["cka"] != adapted["cka"]
print("complete")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, text=True, capture_output=True, cwd=tmp_path)
    assert done.stdout.strip().endswith("complete"), done.stderr
    # What tests ask of every row of a table holds for those that were added.
    every = "build_by_name or part_of_every_name or scripts_make or reference"
    files = "tests/defenses/test_state.py tests/root/test_examples.py"
    code, printed = run(f"python -m pytest -q -k '{every}' {files}", tmp_path)
    assert code == 0, printed
    assert "passed" in printed
