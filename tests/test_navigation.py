"""Links between notebooks: made from their list, the same twice, and true in this repository."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from contsteal.paper import navigation, plan


def write(folder: Path, stem: str, *cells: str) -> None:
    nbformat.write(
        new_notebook(cells=[new_markdown_cell(c) for c in cells]), folder / f"{stem}.ipynb"
    )


def last(folder: Path, stem: str) -> str:
    return nbformat.read(folder / f"{stem}.ipynb", as_version=4).cells[-1].source


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(plan, "NOTEBOOKS", tmp_path)
    write(tmp_path, "00_a", "# A: begin\n\ntext", "list", "Exercise.\n\nNext: [gone](x.ipynb).")
    write(tmp_path, "01_b", "# B, the middle", "Exercise.")
    write(tmp_path, "02_c", "# The end?", "Back: to the future is a film.\n\nExercise.")
    book = nbformat.read(tmp_path / "00_a.ipynb", as_version=4)
    book.cells[1].metadata["tags"] = [navigation.CONTENTS]
    nbformat.write(book, tmp_path / "00_a.ipynb")
    return tmp_path


def test_links_lead_back_and_on_and_contents_list_all(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    navigation.main()
    assert last(desk, "00_a") == "Exercise.\n\nNext: [01, B](01_b.ipynb)."
    middle = "Exercise.\n\nBack: [00, A](00_a.ipynb). Next: [02, The end?](02_c.ipynb)."
    assert last(desk, "01_b") == middle
    film = "Back: to the future is a film.\n\nExercise.\n\n"
    assert last(desk, "02_c") == film + "Back: [01, B](01_b.ipynb)."
    listed = nbformat.read(desk / "00_a.ipynb", as_version=4).cells[1].source.splitlines()
    assert listed[2:] == ["- [00](00_a.ipynb) A: begin", "- [01](01_b.ipynb) B, the middle",
                          "- [02](02_c.ipynb) The end?"]  # fmt: skip
    capsys.readouterr()
    before = {p.name: p.stat().st_mtime_ns for p in desk.iterdir()}
    navigation.main()
    assert capsys.readouterr().out == ""
    assert {p.name: p.stat().st_mtime_ns for p in desk.iterdir()} == before


def test_a_new_notebook_is_linked_by_its_neighbours(desk: Path) -> None:
    navigation.main()
    write(desk, "01b_new", "# New", "Exercise.")
    navigation.main()
    assert last(desk, "01_b").endswith("Next: [01, New](01b_new.ipynb).")
    assert last(desk, "02_c").endswith("Back: [01, New](01b_new.ipynb).")


@pytest.mark.parametrize("stem", plan.notebooks())
def test_the_links_of_this_repository_are_the_generated_ones(stem: str) -> None:
    path = plan.NOTEBOOKS / f"{stem}.ipynb"
    assert navigation.linked(stem) == nbformat.read(path, as_version=4), "run `make format`"


def test_the_first_notebook_lists_all_others() -> None:
    book = nbformat.read(plan.NOTEBOOKS / f"{plan.notebooks()[0]}.ipynb", as_version=4)
    tagged = [c for c in book.cells if navigation.CONTENTS in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all(f"]({stem}.ipynb)" in tagged[0].source for stem in plan.notebooks())
