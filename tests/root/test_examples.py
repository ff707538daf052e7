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
    module, spaces = importlib.import_module(name), doctest.NORMALIZE_WHITESPACE
    assert not doctest.testmod(module, optionflags=spaces).failed


REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "api"


def listed() -> dict[str, list[str]]:
    """Return the public names of each module: those that the reference shows."""
    text = "\n".join(path.read_text() for path in sorted(REFERENCE.glob("*.md")))
    found = re.findall(r"automodule:: contsteal\.(\S+)\n +:members: (.+)", text)
    return {module: names.split(", ") for module, names in found}


def resolve(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"contsteal.{module}"), name)


PUBLIC = [(module, name) for module, names in listed().items() for name in names]
FUNCTIONS = [(m, n) for m, n in PUBLIC if inspect.isfunction(resolve(m, n))]
PROMISED = {  # the classes that scripts outside make
    ("pretrain", "Config"), ("steal", "Config"), ("victim", "BlackBox"), ("loop", "Schedule"),
    *(("defenses", defense.__name__) for defense in defenses.DEFENSES.values()),
}  # fmt: skip


def undocumented(documented: Callable[..., Any], sections: tuple[str, ...] = ()) -> list[str]:
    """Return the parameters and sections that a docstring lacks.

    A function that returns something says so, and one that raises an error says when.
    """
    text, code = inspect.getdoc(documented) or "", inspect.getsource(documented)
    returned = inspect.signature(documented).return_annotation
    returns = inspect.isfunction(documented) and returned not in (None, "None")
    sections += ("Return",) * returns + ("Raises:",) * ("    raise " in code)
    arguments = text.partition("Args:\n")[2].partition("\n\n")[0]
    named = ",".join(re.findall(r"^ {4}(\S[^:]*):", arguments, re.MULTILINE))
    parameters = set(inspect.signature(documented).parameters) - {"self"}
    known = {name.strip(" *") for name in named.split(",")}
    return sorted(parameters - known) + [section for section in sections if section not in text]


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_every_public_function_is_documented_with_an_example(module: str, name: str) -> None:
    documented = resolve(module, name)
    assert undocumented(documented) == []
    example = inspect.getdoc(documented).partition("Example:\n")[2]
    other = re.fullmatch(r" +See `(\w+)`\.", example)
    assert ">>> " in (inspect.getdoc(resolve(module, other[1])) if other else example)


def test_the_door_to_a_victim_is_documented() -> None:
    box = resolve("victim", "BlackBox")
    assert undocumented(box, ("Raises:",)) == []
    for name in ("embed", "classify", "project", "require"):
        assert undocumented(getattr(box, name), ("Raises:",)) == []


@pytest.mark.parametrize(("module", "name"), sorted(PROMISED))
def test_classes_that_scripts_make_have_an_example(module: str, name: str) -> None:
    assert ">>> " in inspect.getdoc(resolve(module, name)).partition("Example:\n")[2]


def test_the_reference_shows_what_exists_and_what_scripts_rely_on() -> None:
    for module, name in PUBLIC:
        assert inspect.getdoc(resolve(module, name)), name
    assert set(PUBLIC) >= PROMISED
    names = "mse cosine wasserstein info_nce cont_steal soft_nn sup_con barlow stolen_encoder rda"
    promised = {"data": "load", "losses": names, "encoders": "build", "pretrain": "train",
                "steal": "train", "evaluate": "linear_probe knn agreement linear_cka"}  # fmt: skip
    assert {(m, n) for m, names in promised.items() for n in names.split()} <= set(FUNCTIONS)
