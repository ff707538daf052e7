"""The links from notebook to notebook and their contents, made from the list of notebooks.

`python -m contsteal.navigation` is what `make format` calls after a notebook came, went or was renamed.
"""

import re
import sys

import nbformat
from nbformat import NotebookNode

from contsteal.paper import plan

CONTENTS = "contents"  # the tag of the cell that lists all notebooks
LINKS = ("Back: ", "Next: ")


def title(stem: str) -> str:
    """Return a notebook's heading, the first line of its first cell."""
    book = nbformat.read(plan.NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    return book.cells[0].source.partition("\n")[0].removeprefix("# ")


def _link(stem: str) -> str:
    """Return a link by number and heading; what follows its first colon or comma is left out."""
    return f"[{stem[:2]}, {re.split('[:,]', title(stem))[0]}]({stem}.ipynb)"


def links(stem: str) -> str:
    """Return the last line of a notebook: where to go back to, and where on."""
    known = plan.notebooks()
    at = known.index(stem)
    around = (known[at - 1] if at else None, known[at + 1] if at + 1 < len(known) else None)
    sides = zip(LINKS, around, strict=True)
    return " ".join(f"{word}{_link(other)}." for word, other in sides if other)


def contents() -> str:
    """Return the list of all notebooks by number and heading."""
    rows = [f"- [{stem[:2]}]({stem}.ipynb) {title(stem)}" for stem in plan.notebooks()]
    return "\n".join(["## The way through", "", *rows])


def linked(stem: str) -> NotebookNode:
    """Return a notebook with its links, and its contents where a cell is tagged so, made anew."""
    book = nbformat.read(plan.NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    for cell in book.cells:
        if CONTENTS in cell.metadata.get("tags", []):
            cell.source = contents()
    told = book.cells[-1].source.rstrip().split("\n\n")
    if told[-1].startswith(LINKS):
        told.pop()
    book.cells[-1].source = "\n\n".join([*told, links(stem)])
    return book


def main() -> int:
    """Write every notebook's links and contents where they are others than stand there."""
    for stem in plan.notebooks():
        path, made = plan.NOTEBOOKS / f"{stem}.ipynb", linked(stem)
        if made != nbformat.read(path, as_version=4):
            nbformat.write(made, path)
            print(f"{path.name}: links made anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
