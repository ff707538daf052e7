"""The docstrings of what scripts outside may use: complete, and with examples that run."""

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import contsteal
from contsteal import defenses

INNER = ("contsteal.lab", "contsteal.paper")
MODULES = [
    module.name
    for module in pkgutil.walk_packages(contsteal.__path__, "contsteal.")
    if not module.name.startswith(INNER)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    result = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert not result.failed


PROMISED = {  # what scripts rely on
    "data": "load",
    "losses": "mse cosine wasserstein info_nce cont_steal soft_nn sup_con barlow stolen_encoder rda",
    "encoders": "build save embed",
    "pretrain": "Config train",
    "victim": "BlackBox BlackBox.classify",
    "steal": "Config train",
    "defenses": " ".join(defense.__name__ for defense in defenses.DEFENSES.values()),
    "evaluate": "linear_probe knn agreement linear_cka mean_interval",
    "ownership": "dataset_inference against_controls welch proportion",
    "ownership.watermark": "fit",
    "ownership.sslguard": "embed",
}
NAMES = [f"{module}.{name}" for module, names in PROMISED.items() for name in names.split()]
REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "api"


def resolve(name: str) -> Any:
    parts = name.split(".")
    place = 2 if parts[0] == "ownership" and len(parts) == 3 else 1
    found = importlib.import_module(".".join(["contsteal", *parts[:place]]))
    for part in parts[place:]:
        found = getattr(found, part)
    return found


def listed() -> dict[str, list[str]]:
    """Return the names that the reference shows of each module."""
    text = "\n".join(path.read_text() for path in sorted(REFERENCE.glob("*.md")))
    found = re.findall(r"automodule:: contsteal\.(\S+)\n +:members: (.+)", text)
    return {module: names.split(", ") for module, names in found}


def undocumented(documented: Callable[..., Any], sections: tuple[str, ...]) -> list[str]:
    """Return the parameters and sections that a docstring lacks."""
    text = inspect.getdoc(documented) or ""
    arguments = text.partition("Args:\n")[2].partition("\n\n")[0]
    named = ",".join(re.findall(r"^ {4}(\S[^:]*):", arguments, re.MULTILINE))
    parameters = set(inspect.signature(documented).parameters) - {"self"}
    known = {name.strip(" *") for name in named.split(",")}
    return sorted(parameters - known) + [section for section in sections if section not in text]


@pytest.mark.parametrize("name", NAMES)
def test_what_scripts_rely_on_is_documented_with_an_example(name: str) -> None:
    documented = resolve(name)
    if inspect.isclass(documented) and name != "victim.BlackBox":  # its fields say what they are
        assert "Example:" in inspect.getdoc(documented)
    else:
        wanted = ("Raises:", "Example:") + (() if inspect.isclass(documented) else ("Return",))
        assert undocumented(documented, wanted) == []


def test_a_docstring_without_a_parameter_or_section_is_seen() -> None:
    def function(one: int, two: int) -> int:
        """Return one.

        Args:
            one: a number.
        """
        return one + two

    assert undocumented(function, ("Raises:",)) == ["two", "Raises:"]


@pytest.mark.parametrize("module", listed())
def test_the_reference_shows_names_that_exist_and_are_documented(module: str) -> None:
    found = importlib.import_module(f"contsteal.{module}")
    for name in listed()[module]:
        assert inspect.getdoc(getattr(found, name)), name


def test_the_reference_shows_what_scripts_rely_on() -> None:
    shown = {f"{module}.{name}" for module, names in listed().items() for name in names}
    assert {name.removesuffix(".classify") for name in NAMES} <= shown


def test_every_example_is_one_that_runs() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [t for name in MODULES for t in finder.find(importlib.import_module(name))]
    run = {t.name for t in examples if t.examples}
    assert {f"contsteal.{name}" for name in NAMES if "losses" in name} <= run
    assert "contsteal.victim.BlackBox" in run
