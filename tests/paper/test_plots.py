"""Plots: what stands in the cells, at the ends of lines and in the panel of the first notebook."""

import re

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest

from contsteal.lab import artifacts
from contsteal.paper import figures, plots, sentences


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def stored(stem: str, profile: str = "demo") -> pd.DataFrame:
    return figures.read(artifacts.ROOT / "figures" / profile, stem)[0]


@pytest.mark.parametrize(("shared", "labels"), [(True, [0, 2]), (False, [2, 2])])
def test_floor_and_ceiling_are_labelled_once_per_scale(shared: bool, labels: list[int]) -> None:
    table = pd.DataFrame({"attack": ["random", "victim"], "accuracy": [0.4, 0.8]})
    _, axes = plots.canvas(1, 2, sharey=shared)
    for ax in axes[0]:
        plots.frame(ax, table, "accuracy", vertical=False)
    assert [len(ax.texts) for ax in axes[0]] == labels
    assert [t.get_text() for t in axes[0][1].texts] == ["random\n40 %", "victim\n80 %"]
    assert [[line.get_ydata()[0] for line in ax.lines] for ax in axes[0]] == [[0.4, 0.8]] * 2


def test_the_matrix_shows_every_change_and_bold_where_it_is_reliable() -> None:
    table = stored("05_matrix", "study")
    fig = figures.draw("05_matrix", table)
    cells = {(t.get_text(), t.get_weight() == "bold") for t in fig.axes[0].texts}
    bold = (table["low"] > 0) | (table["high"] < 0)
    change = (100 * table["change"]).round().astype(int).map("{:+d}".format)
    assert cells == set(zip(change, bold, strict=True))
    assert len(fig.axes[0].texts) == len(table)


def test_the_map_shows_every_setting_once() -> None:
    table = stored("03_boundary", "study")
    gains = sentences.boundary(table).numbers["gain"]
    fig = figures.draw("03_boundary", table)
    cells = [int(t.get_text()) for ax in fig.axes for t in ax.texts]
    assert len(cells) == len(gains)
    assert max(cells) == round(gains.max())
    assert min(cells) == round(gains.min())


def test_flagged_users_have_filled_dots() -> None:
    table = stored("05_detectors")
    fig = figures.draw("05_detectors", table)
    dots = [dot for ax in fig.axes for dot in ax.collections]
    filled = sum(tuple(dot.get_facecolor()[0]) != (1, 1, 1, 1) for dot in dots)
    assert (len(dots), filled) == (len(table), (table["flagged"] == True).sum())  # noqa: E712


def test_neighbours_on_a_map_are_counted() -> None:
    rows = [(0, 0, "a"), (1, 0, "a"), (10, 0, "a"), (11, 0, "b")]
    assert plots.same_class(pd.DataFrame(rows, columns=["x", "y", "label"])) == 0.5


def test_a_line_has_its_methods_colour_and_no_two_names_share_one() -> None:
    colours = plots.palette(["customer", "cont-steal", "thief"])
    assert colours["Cont-Steal"] == plots.COLOURS["cont-steal"]
    assert len(set(colours.values())) == 3


def test_a_choice_shows_its_bill_and_both_parties() -> None:
    budgets, defended = stored("04_budget"), stored("05_defenses")
    left, right = plots.choice(budgets, defended, "cont-steal", 64.0, "TopK(8)").axes
    assert left.get_title(loc="left") == "Cont-Steal: 64 answers, 0.06 US dollars"
    heights = [bar.get_height() for bars in right.containers for bar in bars]
    means = defended.groupby("defence")[["accuracy", "legitimate"]].mean()
    expected = [*means.loc["none"], *means.loc["TopK(8)"]]
    assert heights[:4] == pytest.approx(expected)
    assert [t.get_text() for t in right.get_legend().get_texts()] == ["none", "top-k 8"]


def test_the_first_notebooks_exercises_can_be_solved_as_shown(
    tmp_path, monkeypatch, capsys
) -> None:
    """The notebook's own cells, small, then each hidden solution."""
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path))
    monkeypatch.delenv("CONTSTEAL_FIGURES", raising=False)
    book = nbformat.read(artifacts.ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    desk: dict[str, object] = {}
    for source in (cell.source for cell in book.cells if cell.cell_type == "code"):
        exec(source, desk)
        if source.startswith("profile ="):
            desk |= {"profile": "smoke", "images": 320, "epochs": 1, "queries": 32}
    text = book.cells[-1].source
    solution = r"<details><summary>Solution</summary>\n\n```python\n(.+?)```.+?</details>"
    solutions = re.findall(solution, text, re.DOTALL)
    assert len(solutions) == len(re.findall(r"^\d\. ", text, re.MULTILINE)) == 3
    capsys.readouterr()
    for code in solutions:
        exec(code, desk)
    single, mean, inputs, calls = capsys.readouterr().out.splitlines()[-1].split()
    noise = [float(re.search(r"[\d.]+", n)[0]) for n in (single, mean)]
    assert noise[0] / noise[1] == pytest.approx(15**0.5, rel=0.1), "it falls with the root"
    assert (int(inputs), int(calls)) == (32, 16 * 32)
    assert artifacts.publish_dir() == tmp_path / "interactive", "stored figures are not touched"
