"""The repository itself: notebooks in the house style, one environment, a README that is true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from contsteal.lab import artifacts, profiles
from contsteal.paper import plan

ROOT = artifacts.ROOT
STEMS = plan.notebooks()


def read(stem: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)


def code_cells(stem: str) -> list[str]:
    return [c.source for c in read(stem).cells if c.cell_type == "code"]


def test_there_are_seven_notebooks() -> None:
    assert [s[:2] for s in STEMS] == ["00", "01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("stem", STEMS)
def test_house_style(stem: str) -> None:
    book, code = read(stem), code_cells(stem)
    lengths = sorted(len(c.splitlines()) for c in code)
    assert lengths[-1] <= 15
    assert lengths[len(lengths) // 2] <= 6
    assert len(book.cells) - len(code) > len(code)
    functions = [n for c in code for n in ast.walk(ast.parse(c)) if isinstance(n, ast.FunctionDef)]
    assert all(f.end_lineno - f.lineno < 6 for f in functions)
    text = "\n".join(c.source for c in book.cells if c.cell_type == "markdown")
    for part in ("**Claim", "**Expected", "How to read", "What would falsify", "Exercise"):
        assert part in text, part


@pytest.mark.parametrize("stem", STEMS)
def test_notebooks_are_stripped_and_have_a_plain_kernel(stem: str) -> None:
    book = read(stem)
    assert book.metadata.kernelspec == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in book.cells)
    assert "papermill" not in book.metadata


@pytest.mark.parametrize("stem", STEMS)
def test_defaults_are_the_demo_profile_and_every_parameter_is_explained(stem: str) -> None:
    assert plan.parameters(stem, "demo") == plan.defaults(stem)
    assert plan.defaults(stem)["profile"] == "demo"
    cell = next(c for c in read(stem).cells if "parameters" in c.metadata.get("tags", []))
    assert all("#" in line for line in cell.source.splitlines())


@pytest.mark.parametrize("stem", STEMS)
def test_links_lead_to_files(stem: str) -> None:
    for cell in read(stem).cells:
        for target in re.findall(r"\]\(([^)#]+)\)", cell.source):
            assert target.startswith("http") or (ROOT / "notebooks" / target).exists(), target


@pytest.mark.parametrize("profile", [p.stem for p in profiles.PROFILES.glob("*.yaml")])
def test_every_profile_has_checked_parameters(profile: str) -> None:
    assert len(plan.tasks(profile)) == len(STEMS)


def test_environment_pyproject_and_lock_belong_together() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    wanted = [Requirement(r) for r in re.findall(r'^  "([^"]+)",$', text, re.MULTILINE)]
    locked = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            locked.setdefault(pin.name.lower(), []).append(next(iter(pin.specifier)).version)
    assert len(wanted) > 20
    for need in wanted:
        versions = locked[need.name.lower()]
        assert all(need.specifier.contains(v) for v in versions), need
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert conda["channels"] == ["conda-forge"]
    assert {"pip": ["--editable .[dev]"]} in conda["dependencies"]
    python = next(d for d in conda["dependencies"] if str(d).startswith("python"))
    assert f'requires-python = "{python.removeprefix("python")}"' in text


def test_imports_of_the_package_are_declared() -> None:
    declared = (ROOT / "pyproject.toml").read_text()
    known = {
        "yaml": "pyyaml",
        "sklearn": "scikit-learn",
        "traitlets": "ipykernel",
        "PIL": "torchvision",
    }
    for path in (ROOT / "contsteal").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [])  # fmt: skip
            for top in {n.split(".")[0] for n in names} - {"contsteal", *sys.stdlib_module_names}:
                assert f'"{known.get(top, top)}' in declared, f"{path.name}: {top}"


def test_arrows_run_one_way() -> None:
    """`similarity`, `runs`, `seeds` and the like know nobody; nothing imports in a circle."""
    imports: dict[str, set[str]] = {}
    for path in (ROOT / "contsteal").glob("*.py"):
        body = ast.parse(path.read_text()).body
        found = [n for n in body if isinstance(n, ast.ImportFrom) and n.module]
        whole = {a.name for n in found if n.module == "contsteal" for a in n.names}
        parts = {n.module.split(".")[1] for n in found if n.module.startswith("contsteal.")}
        imports[path.stem] = whole | parts
    leaves = {"similarity", "runs", "seeds", "tensorfiles", "randaugment"}
    assert all(not imports[leaf] for leaf in leaves)
    assert imports["losses"] == {"similarity"}
    order: list[str] = []
    while len(order) < len(imports):
        free = [m for m, needs in imports.items() if m not in order and needs <= set(order)]
        assert free, f"a circle among {set(imports) - set(order)}"
        order += free


def test_files_and_functions_stay_small() -> None:
    for path in (ROOT / "contsteal").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 250, path.name


def test_readme_shows_the_committed_results_and_links_to_files() -> None:
    text = (ROOT / "README.md").read_text()
    assert figures.readme() in text
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_readme_example_runs(tmp_path: Path) -> None:
    code = re.findall(
        r"```python\n(from contsteal import data.+?)```",
        (ROOT / "README.md").read_text(),
        re.DOTALL,
    )
    small = code[0].replace("4096", "600").replace("512", "160").replace("epochs=20", "epochs=1")
    small = small.replace('attack="cont-steal"', 'attack="cont-steal", epochs=1').replace(
        "resnet10t", "test_resnet"
    )
    run = subprocess.run(
        [sys.executable, "-c", small], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.stdout.strip() == "160 160", run.stderr


def test_make_without_a_target_prints_help() -> None:
    told = subprocess.run(["make"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for command in ("paper", "plan", "check", "test", "lab"):
        assert re.search(rf"^  {command} ", told, re.MULTILINE), command
