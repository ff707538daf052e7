"""The page of published tables: current, without a gap, and with rows that the profiles really have."""

import sys
from typing import Any

import pandas as pd
import pytest

from contsteal import defenses
from contsteal.lab import artifacts, profiles, provider
from contsteal.paper import notebooks
from contsteal.paper.plots import FIGURES

sys.path.append(str(artifacts.ROOT / "docs"))
import tables  # docs/tables.py

ENTRIES = [(name, entry) for name in ("paper", "imagenet")
           for entry in profiles.profile(name)["tables"]]  # fmt: skip
PLAIN = ("victim", "task", "query_data", "method", "images", "attack", "encoder")
DETECTORS = {"similar, L2 <": "l2", "similar, L2 of answers <": "l2 of answers",
             "similar, cosine >": "cosine"}  # fmt: skip


def flat(value: object) -> set[Any]:
    """Return all that a parameter holds; lists of mixed kinds, such as [set, split, images], too."""
    if isinstance(value, dict):
        return set(value) | {x for inner in value.values() for x in flat(inner)}
    return {x for inner in value for x in flat(inner)} if isinstance(value, list) else {value}


def defended(values: dict[str, Any]) -> set[str]:
    """Return the names of the defences that notebook 05a runs, and of none."""
    *deviations, mean = values["offset"]
    shifted = [[defenses.GaussianNoise(std, mean=mean)] for std in deviations]
    return {provider.chain_name(c) for c in [[], *provider.listed(values["strengths"]), *shifted]}


def test_the_stored_page_is_current() -> None:
    assert tables.PAGE.read_text() == tables.page(), "run `python docs/tables.py`"


def test_every_published_table_has_a_row_or_a_reason() -> None:
    named = " ".join(entry["table"] for _, entry in ENTRIES)
    icml = {*range(1, 20)}
    assert icml <= {int(n) for n in named.replace(",", " ").split() if n.isdigit()}
    page = tables.PAGE.read_text()
    assert not [cell for cell in ("| |", "|  |", "nan") if cell in page]


@pytest.mark.parametrize(("profile", "entry"), [e for e in ENTRIES if "figure" in e[1]],
                         ids=[e["table"] for _, e in ENTRIES if "figure" in e])  # fmt: skip
def test_rows_are_those_of_their_profile(profile: str, entry: dict[str, Any]) -> None:
    """What a row names stands in the parameters of its notebook: taking it out there fails here."""
    figure = entry["figure"]
    assert figure in FIGURES
    stem = next(s for s in notebooks.stems() if notebooks.number(s) == notebooks.number(figure))
    values = notebooks.parameters(stem, profile)
    common = profiles.profile(profile)["common"]
    known = flat(values) | flat(common) | {"embedding", "victim", "clean", "surrogate"}
    for own in entry["rows"].values():
        for point in tables.conditions(entry.get("where", {}) | own):
            for column, value in point.items():
                if column in PLAIN:
                    of_set = set(str(value).split("@"))  # a set and its split
                    assert value is None or value in known or of_set <= known, (column, value)
                elif column == "suspect" and point["kind"] == "stolen":
                    attack, *rest = value.split(", ")
                    assert value in known or {attack, *rest} <= known | {"turned"}, value
                elif column == "defence":
                    assert value in defended(values), value
                elif column == "knob":
                    assert point["value"] in {str(v) for v in values["knobs"][value]}
                elif column == "detector":
                    name, _, limit = value.rpartition(" ")
                    assert float(limit) in values["thresholds"][DETECTORS[name]]


def test_a_number_of_one_paper_stands_in_no_table_of_another() -> None:
    """Of Cont-Steal none could be read, though its rows have the attacks of the ICML paper's."""
    for profile, entry in ENTRIES:
        if entry["table"].startswith("Cont-Steal") and "rows" in entry:
            section = tables.section(profile, profiles.profile(profile)["common"], entry)
            assert section.count("| no number read ") == len(entry["rows"])


def test_rows_are_chosen_by_their_columns() -> None:
    rows = [("a", 1, 0.5, ""), ("a", 2, 0.7, None), ("b", 1, 0.9, "x")]
    table = pd.DataFrame(rows, columns=["attack", "images", "accuracy", "adapts"])
    assert list(tables.select(table, {"attack": "a", "adapts": ""})["images"]) == [1, 2]
    points = tables.conditions({"attack": ["a", "b"], "images": 1})
    assert [len(tables.select(table, point)) for point in points] == [1, 1]
    assert tables.select(table, {"adapts": "y"}).empty


def test_published_accuracies_stand_in_the_order_of_the_tasks() -> None:
    where = {"victim": "cifar10", "query_data": "svhn", "attack": "soft-nn", "images": [500, 50000]}
    expected = "500: 28.2 / 39.3; 50,000: 67.7 / 70.9"
    assert tables.published(where, "cifar10", ["svhn", "gtsrb", "cifar10"]) == expected
    assert tables.published({"attack": "rda", "images": 9000}, "cifar10", ["cifar10"]) == ""
