"""Write `tables.md`: where each published table stands among the profiles' results.

`python docs/tables.py` writes it from the section `tables` of the profiles; a test compares.
"""

import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Self

import pandas as pd
from pydantic import Field, model_validator
from tabulate import tabulate

from contsteal.lab import artifacts, profiles, tables
from contsteal.paper import figures, notebooks

PAGE = Path(__file__).with_name("tables.md")
SIZES = ("queries", "losses_split", "steps", "seeds")  # parameters that are shown
INTRODUCTION = """# Published tables

Each table of the ICML paper (Dziedzic et al., 2022) and each setting of Cont-Steal (Sha et al., CVPR
2023) that we know of, with the profile and the notebook that have its rows. `make paper PROFILE=paper`
runs them all, `make paper PROFILE=paper NB=02` those of one notebook, and `make plan PROFILE=paper` says
what that takes. Published values are accuracies of linear probes in percent, in the order of the tasks,
where a row does not say otherwise; they are printed where we have read them. "Here" is the mean of the
stored results of that very profile. This page is generated from the section `tables` of the
[profiles](../notebooks/profiles) by `python docs/tables.py`.
"""
NOTHING = "*Left out*: "


class Published(profiles.Strict):
    """A published table: where its rows stand among this profile's results, and how they differ.

    `where` (of all rows) and `rows` name values of columns of the table behind `figure`; a list means
    that there is a row for each. `read` has published values that are no accuracies of a probe. A table
    without `rows` says why they are `missing`.
    """

    table: str
    title: str
    figure: str = ""
    where: dict[str, Any] = Field({})
    rows: dict[str, dict[str, Any]] = Field({})
    read: dict[str, str] = Field({})
    differs: str = ""
    missing: str = ""

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        if not (self.rows and self.figure and self.differs) and not self.missing:
            needed = "rows, figure and differs are needed, or why they are missing"
            raise ValueError(needed)
        if unknown := sorted(self.read.keys() - self.rows.keys()):
            raise ValueError(f"read names no row: {unknown[0]!r}")
        return self


def conditions(where: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the columns and values of every row that a description with lists stands for."""
    lists = [value if isinstance(value, list) else [value] for value in where.values()]
    for values in product(*lists):
        yield dict(zip(where, values, strict=True))


def select(table: pd.DataFrame, where: dict[str, Any]) -> pd.DataFrame:
    """Return the rows of a table with these values; null stands for an empty cell."""
    for column, value in where.items():
        cells = table[column]
        same = cells == value if value not in (None, "") else cells.isna() | (cells == "")
        table = table[same]
    return table


@cache
def _accuracies() -> pd.DataFrame:
    return pd.read_csv(tables.PUBLISHED, comment="#")


def published(where: dict[str, Any], victim: str, tasks: list[str]) -> str:
    """Return the published accuracies of a row, in the order of the tasks, "" where there are none."""
    known = _accuracies()
    known = known[known["victim"] == where.get("victim", victim)]
    parts = []
    for point in conditions(where):
        own = known[known["attack"] == point.get("attack")]
        if point.get("attack") != "victim":
            query = point.get("query_data") or where.get("victim", victim)
            own = own[(own["query_data"] == query) & (own["images"] == point.get("images"))]
        own = own.drop_duplicates("task").set_index("task")["accuracy"]
        cells = [f"{own[task]:g}" for task in tasks if task in own.index]
        count = f"{point['images']:,}: " if isinstance(where.get("images"), list) else ""
        parts += [count + " / ".join(cells)] if cells else []
    return "; ".join(parts)


def here(profile: str, figure: str, where: dict[str, Any]) -> str:
    """Return the mean accuracies of a profile's own results, by task, or that it has not been run."""
    folder = artifacts.ROOT / "figures" / profile
    if not (folder / f"{figure}.csv").is_file():
        return "not run"
    rows = tables.longest(figures.read(folder, figure)[0])
    found = pd.concat([select(rows, point) for point in conditions(where)])
    if "accuracy" not in found or "task" not in found:
        return f"{len(found)} rows"
    means = found.groupby("task", sort=False)["accuracy"].mean()
    return " / ".join(f"{100 * value:.1f}" for value in means)


def section(profile: str, settings: dict[str, Any], entry: dict[str, Any]) -> str:
    """Return a published table's part of the page."""
    title = f"## {entry['table']}: {entry['title']}"
    if "missing" in entry:
        return f"{title}\n\n{NOTHING}{entry['missing']}."
    figure = entry["figure"]
    stem = next(s for s in notebooks.stems() if notebooks.number(s) == notebooks.number(figure))
    values = notebooks.parameters(stem, profile)
    sizes = ", ".join(f"{name} {values[name]}" for name in SIZES if name in values)
    tasks = values.get("tasks", [settings["data"]])
    rows = []
    for name, own in entry["rows"].items():
        where = entry.get("where", {}) | own
        value = entry.get("read", {}).get(name, "")
        if not value and entry["table"].startswith("ICML"):  # whose accuracies are stored
            value = published(where, settings["data"], tasks)
        columns = ", ".join(f"{k} {_shown(v)}" for k, v in where.items())
        cells = name, columns, value or "no number read", here(profile, figure, where)
        rows.append([cell.replace("|", "\\|") for cell in cells])
    head = ["row", f"in `{figure}`", "published", "here"]
    table = tabulate(rows, head, tablefmt="github", disable_numparse=True)
    about = f"Profile `{profile}`, notebook {notebooks.number(stem)}: {sizes}."
    about += f" Tasks: {', '.join(tasks)}."
    return f"{title}\n\n{about} What differs: {entry['differs']}.\n\n{table}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " or ".join(map(_shown, value))
    return "empty" if value in (None, "") else f"`{value}`"


def page() -> str:
    """Return the page."""
    known = {name: profiles.profile(name) for name in profiles.names()}
    entries = [(name, entry) for name, own in known.items() for entry in own.get("tables", [])]
    for name, entry in entries:
        profiles.validated(Published, entry, f"{name}.yaml, {entry.get('table')}")
    parts = [section(n, known[n]["common"], e) for n, e in sorted(entries, key=_place)]
    return "\n\n".join([INTRODUCTION.rstrip("\n"), *parts]) + "\n"


def _place(named: tuple[str, dict[str, Any]]) -> tuple[bool, int]:
    """Return where a table stands: those of the ICML paper first, by number; the others as listed."""
    table = named[1]["table"]
    return not table.startswith("ICML"), int(re.findall("^ICML (\\d+)|$", table)[0] or 0)


if __name__ == "__main__":
    PAGE.write_text(page())
