"""Plots: what stands in the cells, at the ends of lines and in the panel of the first notebook."""

import re
from itertools import combinations, pairwise

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from contsteal import steal
from contsteal.lab import artifacts, detection, provider
from contsteal.paper import figures, plots, sentences


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def stored(stem: str) -> pd.DataFrame:
    return figures.read(artifacts.ROOT / "figures" / "demo", stem)[0]


@pytest.mark.parametrize(("shared", "labels"), [(True, [0, 2]), (False, [2, 2])])
def test_floor_and_ceiling_are_labelled_once_per_scale(shared: bool, labels: list[int]) -> None:
    table = pd.DataFrame({"attack": ["random", "victim"], "accuracy": [0.4, 0.8]})
    _, axes = plots.canvas(1, 2, sharey=shared)
    for ax in axes[0]:
        plots.frame(ax, table, "accuracy", vertical=False)
    assert [len(ax.texts) for ax in axes[0]] == labels
    assert [t.get_text() for t in axes[0][1].texts] == ["random\n40 %", "victim\n80 %"]
    assert [[line.get_ydata()[0] for line in ax.lines] for ax in axes[0]] == [[0.4, 0.8]] * 2


@pytest.mark.parametrize("vertical", [True, False])
def test_labels_of_near_lines_stand_apart_on_an_axis_that_shows_the_floor(vertical: bool) -> None:
    levels = {"random": 0.1, "labelled images": 0.66, "SimCLR on the queries": 0.4, "victim": 0.7}
    table = pd.DataFrame(levels.items(), columns=["attack", "accuracy"])
    fig, ((ax,),) = plots.canvas()
    plots.frame(ax, table, "accuracy", vertical)
    assert [t.get_text() for t in ax.texts] == ["random\n10 %", "no victim\n66 %", "victim\n70 %"]
    low, _ = ax.get_xlim() if vertical else ax.get_ylim()
    assert low <= 0.1 if vertical else low == 0, "curves begin at zero"
    fig.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_the_matrix_shows_every_change_and_bold_where_it_is_reliable() -> None:
    table = stored("05a_matrix")
    fig = figures.draw("05a_matrix", table)
    shown = provider.worth(table)["verdict"]
    size = len(shown) * table["who"].nunique()
    texts, verdicts = fig.axes[0].texts[:size], fig.axes[0].texts[size:]
    cells = {(t.get_text(), t.get_weight() == "bold") for t in texts if t.get_text() != "not run"}
    bold = (table["low"] > 0) | (table["high"] < 0)
    assert cells == set(zip(table["change"].map(sentences.signed), bold, strict=True))
    assert sum(t.get_text() == "not run" for t in texts) == size - len(table)
    assert [t.get_text() for t in verdicts] == list(shown)


def test_the_map_shows_every_setting_once() -> None:
    table = stored("03_boundary")
    gains = figures.FIGURES["03_boundary"].summarise(table).numbers["gain"]
    fig = figures.draw("03_boundary", table)
    cells = [float(t.get_text()) for ax in fig.axes for t in ax.texts]
    assert len(cells) == len(gains)
    assert max(cells) == round(gains.max())
    assert min(cells) == round(gains.min())


def test_settings_in_which_nothing_was_stolen_are_grey() -> None:
    cells = {(8, "clean"): 0.4, (16, "clean"): 0.6, (8, "surrogate"): 0.5, (16, "surrogate"): 0.51}
    point = {"query_data": "glyphs", "method": "simclr", "steps": 4}
    rows = [point | {"images": images, "views": views, "attack": attack, "accuracy": accuracy + extra}
            for (images, views), accuracy in cells.items()
            for attack, extra in (("embedding", -0.1), ("cont-steal", 0.0))]  # fmt: skip
    rows += [{"attack": name, "accuracy": 0.5} for name in ("random", "labelled images")]
    table = pd.concat([pd.DataFrame(rows).assign(seed=seed, task="t") for seed in (0, 1)])
    fig = figures.draw("03_boundary", table)
    grey = [[not cell for cell in ax.collections[1].get_array().mask.flat] for ax in fig.axes]
    assert grey == [[True, False]] * 2, "8 images: 0.4 and 0.5 are not above 0.5"
    assert "In 2 settings neither is above" in sentences.boundary(table).details


def test_flagged_users_have_filled_dots() -> None:
    table = stored("05b_detectors")
    fig = figures.draw("05b_detectors", table)
    faces = [face for ax in fig.axes for dots in ax.collections for face in dots.get_facecolor()]
    filled = sum(tuple(face[:3]) != (1, 1, 1) for face in faces)
    assert (len(faces), filled) == (len(table), (table["flagged"] == True).sum())  # noqa: E712


def test_a_roc_panel_has_every_curve_and_the_verdicts_of_detectors() -> None:
    seen = [("customer", 0.1, 0), ("customer", 0.6, 1), ("thief, x", 0.5, 0), ("thief, x", 0.9, 1)]
    watch = pd.DataFrame(seen, columns=["user", "statistic", "flagged"]).assign(detector="D")
    table = detection.roc(pd.concat([watch, watch.assign(detector="bill", flagged=None)]))
    fig = figures.draw("05b_roc", table)
    (panel,) = fig.axes
    curves = [line for line in panel.lines if len(line.get_xdata()) == 5]
    assert [list(line.get_ydata()) for line in curves] == [[0, 0.5, 0.5, 1, 1]] * 2
    (verdicts,) = panel.collections
    assert verdicts.get_offsets().tolist() == [[0.5, 0.5]]
    names = [t.get_text() for t in fig.legends[0].get_texts()]
    assert names == ["chance", "D", "bill", "at a detector's own threshold"]


def test_refused_users_have_filled_dots_and_the_mean_of_their_accounts() -> None:
    table = pd.DataFrame({"detector": "D", "user": ["customer", "thief", "thief"], "seed": [0, 0, 1],
                          "queries": 100, "answers": [100, 40, 100], "accounts": [1, 3, 1],
                          "answered": 100, "refusals": [0, 2, 0]})  # fmt: skip
    (panel, *_) = figures.draw("05b_accounts", table).axes
    filled = [tuple(face[:3]) != (1, 1, 1) for face in panel.collections[0].get_facecolor()]
    assert filled == [False, True, False]
    assert {t.get_text() for t in panel.texts} == {"accounts", "1", "2"}


@pytest.mark.parametrize(
    ("detector", "statistics", "border"),
    [("W", (0.1, 0.4, 0.6), 0.5), ("PRADA", (0.9, 0.8, 0.6), 0.7), ("W", (0.6, 0.4, 0.1), None)],
)
def test_the_side_on_which_a_detector_flags_is_shaded(detector, statistics, border) -> None:
    table = pd.DataFrame({"detector": detector, "user": ["customer", "thief", "thief"], "seed": [0, 0, 1],
                          "statistic": statistics, "flagged": [0, 0, 1]})  # fmt: skip
    (panel, *_) = figures.draw("05b_detectors", table).axes
    drawn = [line.get_xdata()[0] for line in panel.lines]
    assert drawn == ([] if border is None else [pytest.approx(border)])
    assert len(panel.patches) == len(drawn), "none where verdict and statistic disagree"
    everybody = figures.draw("05b_detectors", table.assign(flagged=1)).axes[0]
    low, high = everybody.get_xlim()
    assert abs(everybody.patches[0].get_width()) == pytest.approx(high - low)


def drawn(fig: Figure) -> dict[str, Line2D]:
    """The lines of the legend's names, each by the colour that it has there."""
    legend, *_ = fig.legends or [ax.get_legend() for ax in fig.axes if ax.get_legend()]
    names = {h.get_color(): t.get_text() for h, t in zip(legend.legend_handles, legend.get_texts(),
                                                         strict=True)}  # fmt: skip
    lines = (line for line in fig.axes[0].lines if len(line.get_xdata()) > 1)
    return {names[line.get_color()]: line for line in lines if line.get_color() in names}


def trained(attack: str, *means: float) -> pd.DataFrame:
    """Two seeds of an attack, after 100, 200, ... steps, with these mean accuracies."""
    rows = [(attack, 100.0 * (k + 1), seed, mean + 0.02 * seed - 0.01)
            for k, mean in enumerate(means) for seed in (0, 1)]  # fmt: skip
    return pd.DataFrame(rows, columns=["attack", "steps", "seed", "accuracy"]).assign(
        task="glyphs", unique_inputs=64, calls=64, agreement=0.5
    )


def test_steps_are_drawn_as_the_mean_of_each_attack_after_each_length() -> None:
    frame = [
        trained(name, level).assign(steps=None)
        for name, level in (("random", 0.2), ("victim", 0.9))
    ]
    table = pd.concat([trained("embedding", 0.5, 0.6, 0.61), trained("cont-steal", 0.4, 0.6, 0.7),
                       *frame], ignore_index=True)  # fmt: skip
    fig = figures.draw("03_steps", table)
    lines = drawn(fig)
    assert lines.keys() == {"MSE", "Cont-Steal"}
    for name, means in (("MSE", [0.5, 0.6, 0.61]), ("Cont-Steal", [0.4, 0.6, 0.7])):
        assert list(lines[name].get_xdata()) == [100, 200, 300]
        assert list(lines[name].get_ydata()) == pytest.approx(means)
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["100", "200", "300"]


def test_views_are_drawn_after_the_longest_training_with_a_dot_per_seed() -> None:
    views = ("own views", "clean")
    runs = [trained(f"{loss}, {view}", 0.1, level) for view in views
            for loss, level in (("embedding", 0.5), ("cont-steal", 0.6))]  # fmt: skip
    fig = figures.draw("03_views", pd.concat(runs, ignore_index=True))
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["own views", "clean images"]
    labels = [t.get_text() for t in fig.axes[0].get_yticklabels()]  # of all panels
    assert labels == ["MSE", "Cont-Steal"]
    for ax in fig.axes:
        places = [x for dots in ax.collections for x, _ in dots.get_offsets()]
        assert sorted(places) == pytest.approx([0.49, 0.51, 0.59, 0.61])


@pytest.mark.parametrize("stem", list(figures.FIGURES))
def test_a_figure_shows_the_longest_training_unless_it_is_about_lengths(stem: str) -> None:
    rows = [("embedding", 4, 0.2), ("embedding", 8, 0.3), ("victim", None, 0.9)]
    table = pd.DataFrame(rows, columns=["attack", "steps", "accuracy"])
    shown = figures.FIGURES[stem].shown(table)
    assert list(shown["accuracy"]) == ([0.2, 0.3, 0.9] if stem == "03_steps" else [0.3, 0.9])


def test_titles_and_numbers_of_a_figure_are_of_the_longest_training() -> None:
    table = pd.concat([trained("embedding", 0.5, 0.5), trained("label", 0.6, 0.4)])
    found = figures.FIGURES["02_conventional"].summarise(table)
    assert found.title.startswith("After 200 steps: MSE is 10.0 points ahead of label stealing")
    assert list(found.numbers["n"]) == [2, 2]


def test_rates_are_shown_by_the_mean_loss_of_each_attack_and_the_least_is_bold() -> None:
    losses = {"embedding": (0.3, 0.1, 0.2), "cont-steal": (4.0, 5.0, 8.0)}
    rows = [(attack, rate, seed, loss + seed) for attack, each in losses.items()
            for rate, loss in zip((0.001, 0.01, 0.1), each, strict=True) for seed in (0, 1)]  # fmt: skip
    fig = figures.draw("03_rates", pd.DataFrame(rows, columns=["attack", "rate", "seed", "loss"]))
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.texts] == ["0.8", "0.6", "0.7", "4.5", "5.5", "8.5"]
    assert [t.get_text() for t in ax.texts if t.get_weight() == "bold"] == ["0.6", "4.5"]
    shades = ax.collections[0].get_array().flatten()
    assert list(shades) == pytest.approx([1, 0, 0.5, 0, 0.25, 1])


def test_neighbours_on_a_map_are_counted() -> None:
    rows = [(0, 0, "a"), (1, 0, "a"), (10, 0, "a"), (11, 0, "b")]
    assert sentences.same_class(pd.DataFrame(rows, columns=["x", "y", "label"])) == 0.5


def test_an_attack_has_one_colour_and_its_variants_differ_in_dashes() -> None:
    each = {attack: plots.COLOURS[attack] for attack in steal.ATTACKS}
    shared = [(a, b) for a, b in combinations(each, 2) if each[a] == each[b]]
    assert all(b.startswith(a) for a, b in shared), "but for other forms of one loss"
    colours = plots.palette(["one", "cont-steal", "two", "cont-steal, own views"])
    assert (
        colours["Cont-Steal"] == colours["Cont-Steal on own views"] == plots.COLOURS["cont-steal"]
    )
    assert len(set(colours.values())) == 3, "others have the next that is free"
    both = pd.concat([trained("cont-steal", 0.4, 0.5), trained("cont-steal, own views", 0.2, 0.3)])
    one, other = (figures.draw("03_steps", both).axes[0].lines[k] for k in (0, 1))
    assert one.get_color() == other.get_color()
    assert one.get_linestyle() != other.get_linestyle()


def test_every_figure_with_dots_or_cells_says_what_they_mean() -> None:
    marks = dict.fromkeys(["03_attacks", "03_views", "02_readings"], "a seed, mean, 95 % interval")
    marks["05a_matrix"] = "good for the provider, bad, 95 % interval excludes 0"
    marks["05b_detectors"] = "flagged, not flagged, side on which users are flagged"
    marks["05b_accounts"] = "was refused, was not refused, accounts for all answers"
    marks["05c_inference"] = "accused, not accused, victim, its copies and thieves, took nothing"
    for stem, labels in marks.items():
        (key,) = figures.draw(stem, stored(stem)).legends
        assert ", ".join(text.get_text() for text in key.get_texts()) == labels


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
            desk |= {"profile": "smoke", "images": 320, "steps": 4, "queries": 32}
    text = book.cells[-1].source
    solution = r"<details><summary>Solution</summary>\n\n```python\n(.+?)```.+?</details>"
    solutions = re.findall(solution, text, re.DOTALL)
    assert len(solutions) == len(re.findall(r"^\d\. ", text, re.MULTILINE)) == 3
    capsys.readouterr()
    for code in solutions:
        exec(code, desk)
    single, mean, inputs, calls = map(float, capsys.readouterr().out.split()[-4:])
    assert single / mean == pytest.approx(16**0.5, rel=0.1), "it falls with the root"
    assert (inputs, calls) == (32, 17 * 32)
    assert artifacts.publish_dir() == tmp_path / "interactive", "stored figures are not touched"


def test_a_curve_of_defences_begins_at_the_same_attack_and_seeds_without_a_defence() -> None:
    each = [("none", "embedding", "", 4, 0.3), ("none", "rda", "prototypes", 2, 0.6),
            ("GaussianNoise", "embedding", "", 2, 0.2), ("B4B", "embedding", "", 4, 0.1),
            ("GaussianNoise", "rda", "prototypes", 2, 0.4),
            ("GaussianNoise", "embedding", "averages", 2, 0.25)]  # fmt: skip
    rows = [(kind, kind, attack, adapts, s, 0.5 + 0.1 * s, accuracy + 0.1 * s)
            for kind, attack, adapts, seeds, accuracy in each for s in range(seeds)]  # fmt: skip
    names = ["kind", "defence", "attack", "adapts", "seed", "legitimate", "accuracy"]
    frame = pd.DataFrame({"attack": ["random", "victim"], "seed": 0, "accuracy": [0.1, 0.9]})
    table = pd.concat([pd.DataFrame(rows, columns=names), frame], ignore_index=True)
    figure = plots.defence_curves(table.assign(task="glyphs", steps=2, strength=1.0), "")
    lines = [(ax.get_title(loc="left").partition(" ")[0], line) for ax in figure.axes
             for line in ax.lines if len(line.get_xydata()) > 1]  # fmt: skip
    starts = {(kind, line.get_label()): line.get_xydata()[0].round(2).tolist()
              for kind, line in lines if not str(line.get_label()).startswith("_")}  # fmt: skip
    assert starts == {
        ("noise", "MSE"): [0.55, 0.35], ("noise", "RDA that adapts"): [0.55, 0.65],
        ("noise", "MSE that adapts"): [0.55, 0.35], ("B4B", "MSE"): [0.65, 0.45],
    }  # fmt: skip
