"""The panel over stored results, and the solutions of the first notebook's exercises."""

import base64
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

from contsteal.lab import artifacts
from contsteal.paper import explore, plan, style


def titles(attack: str, images: float, defence: str) -> list[str]:
    budgets, defended, _ = explore.tables(explore.STORED / "demo")
    fig = explore.picture(budgets, defended, attack, images, defence)
    found = [ax.get_title(loc="left") for ax in fig.axes]
    plt.close(fig)
    return found


def test_the_panel_offers_what_is_stored_and_redraws_when_a_choice_changes() -> None:
    plt.close("all")  # what other tests left open
    panel = explore.Panel("demo")
    budgets, defended, _ = explore.tables(explore.STORED / "demo")
    assert [n for _, n in panel.images.options] == sorted(set(budgets["images"].dropna()))
    assert set(panel.attack.options) == set(budgets["attack"]) - set(style.REFERENCES)
    assert set(panel.defence.options) == set(defended["defence"].dropna()) - {"none"}
    seen = {bytes(panel.image.value)}
    for choice in (panel.images, panel.attack, panel.defence):
        choice.index = 1 if choice.index == 0 else 0
        seen.add(bytes(panel.image.value))
    assert len(seen) == 4
    assert plt.get_fignums() == [], "the notebook would show them a second time"


def test_where_widgets_do_not_run_there_is_a_picture() -> None:
    panel = explore.Panel("demo")
    bundle = panel._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == panel.image.value
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bytes(panel.image.value).startswith(b"\x89PNG")


def test_the_titles_say_what_the_tables_hold() -> None:
    budgets, defended, _ = explore.tables(explore.STORED / "demo")
    rows = budgets[(budgets["attack"] == "cont-steal") & (budgets["images"] == 64)]
    left, right = titles("cont-steal", 64.0, "TopK(8)")
    assert left.startswith(f"cont-steal, 64 images: {100 * rows['accuracy'].mean():.1f} % [")
    assert left.endswith("64 answers, 0.06 US dollars")
    means = defended[defended["attack"] == "embedding"].groupby("defence")["legitimate"].mean()
    assert f"customer {100 * (means['TopK(8)'] - means['none']):+.1f} points" in right


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (("theft", 64.0, "TopK(8)"), r"no attack 'theft'.*'embedding'"),
        (("embedding", 65.0, "TopK(8)"), r"no number of images 65.0.*64.0"),
        (("embedding", 64.0, "TopK(9)"), r"no defence 'TopK\(9\)'.*TopK\(8\)"),
    ],
)
def test_what_is_not_stored_is_refused(choice: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        titles(*choice)


def test_a_profile_without_results_is_refused() -> None:
    with pytest.raises(ValueError, match=r"04_budget.csv is missing: run notebook 04"):
        explore.Panel("paper")


def test_the_exercises_can_be_solved_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first notebook's own cells, at the size of `smoke`, then each hidden solution."""
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path))
    monkeypatch.delenv("CONTSTEAL_FIGURES", raising=False)
    book = nbformat.read(plan.NOTEBOOKS / "00_start_here.ipynb", as_version=4)
    code = [c.source for c in book.cells if c.cell_type == "code"]
    desk = {}
    for source in code:
        exec(source, desk)
        if source is code[0]:
            desk |= plan.parameters("00_start_here", "smoke")
    solutions = re.findall(
        r"<details><summary>Solution</summary>\n\n```python\n(.+?)```.+?</details>",
        book.cells[-1].source, re.DOTALL,
    )  # fmt: skip
    assert len(solutions) == len(re.findall(r"^\d\. ", book.cells[-1].source, re.MULTILINE)) == 3
    capsys.readouterr()
    for solution in solutions:
        exec(solution, desk)
    single, mean, inputs, calls = capsys.readouterr().out.splitlines()[-1].split()
    noise = [float(re.search(r"[\d.]+", n)[0]) for n in (single, mean)]
    assert noise[0] / noise[1] == pytest.approx(15**0.5, rel=0.1), "it falls with the root"
    assert (int(inputs), int(calls)) == (32, 16 * 32)
    assert artifacts.publish_dir() == tmp_path / "interactive", "stored figures are not touched"
