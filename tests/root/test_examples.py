"""The examples in the docstrings of what scripts outside may use."""

import doctest
import importlib
import pkgutil

import pytest

import contsteal

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


def test_examples_are_found() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [t for name in MODULES for t in finder.find(importlib.import_module(name))]
    assert {"contsteal.losses.info_nce", "contsteal.victim.BlackBox"} <= {
        t.name for t in examples if t.examples
    }
