"""The pages: no network, formulas as pictures, widgets as pictures, and what was not run is told."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from contsteal.lab import artifacts
from contsteal.paper import formulas, plan, site

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A demo with two figures and its summary, of whose notebooks only the third was run."""
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path / "runs"))
    (tmp_path / "figures" / "demo").mkdir(parents=True)
    for name in ("01_worth", "03_attacks"):
        for path in (artifacts.ROOT / "figures" / "demo").glob(f"{name}.*"):
            shutil.copy(path, tmp_path / "figures" / "demo")
    shutil.copy(artifacts.ROOT / "figures" / "demo" / plan.SUMMARY, tmp_path / "figures" / "demo")
    book = nbformat.read(plan.NOTEBOOKS / "03_cont_steal.ipynb", as_version=4)
    cell = next(c for c in book.cells if c.cell_type == "code")
    cell.outputs = [new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})]
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    nbformat.write(book, tmp_path / "runs" / "demo" / "03_cont_steal.ipynb")
    return tmp_path / "runs" / "site"


def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(), "html.parser")


def test_every_page_is_small_and_loads_nothing_from_a_network(desk: Path) -> None:
    assert site.main(["--profile", "demo"]) == 0
    pages = sorted(desk.rglob("*.html"))
    stems = [f"demo/{s}.html" for s in plan.notebooks()]
    assert [p.relative_to(desk).as_posix() for p in pages] == [
        *stems,
        "demo/index.html",
        "index.html",
    ]
    for page in pages:
        assert page.stat().st_size < 5 * 2**20
        for tag in soup(page).find_all(["script", "link", "img", "iframe"]):
            source = tag.get("src") or tag.get("href") or ""
            assert not re.match(r"(https?:)?//", source), (page.name, source[:80])
        assert "@import" not in page.read_text()


def test_every_link_leads_to_a_file(desk: Path) -> None:
    summary = artifacts.figures_dir() / "demo" / plan.SUMMARY
    shown = [p for p in summary.read_text().split("\n\n") if not p.startswith("![")]
    worth = "![worth](01_worth.png)"
    summary.write_text("\n\n".join([*shown, worth]))
    site.main(["--profile", "demo"])
    for page in desk.rglob("*.html"):
        for tag in soup(page).find_all(["a", "img"]):
            target = (tag.get("href") or tag.get("src")).partition("#")[0]
            if not target.startswith(("http", "data:")):
                assert (page.parent / target).exists(), (page.name, target)
    links = [a["href"] for a in soup(desk / "demo" / "index.html").find_all("a")]
    assert {"01_worth.png", "01_worth.pdf", "01_worth.csv"} <= set(links)


def test_what_was_not_run_is_told_with_its_command(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.main([])
    assert "without outputs of 00_start_here, 01_train_victim, " in capsys.readouterr().out
    text = soup(desk / "demo" / "index.html").get_text()
    assert "make paper PROFILE=demo NB=01" in text
    assert "NB=03" not in text
    page = soup(desk / "demo" / "01_train_victim.html").find("p", class_="banner")
    assert "Not run here" in page.get_text()
    assert "make paper PROFILE=demo NB=01" in page.get_text()
    assert (
        "Not run" not in soup(desk / "demo" / "03_cont_steal.html").find(class_="banner").get_text()
    )
    assert "make paper PROFILE=study" in soup(desk / "index.html").get_text()


def test_the_numbers_are_there(desk: Path) -> None:
    site.main([])
    summary = (artifacts.figures_dir() / "demo" / plan.SUMMARY).read_text()
    numbers = re.findall(r"\| (\d\d\.\d \[[^|]+\]) ", summary)
    text = soup(desk / "demo" / "index.html").get_text()
    assert len(numbers) > 20
    assert all(n in text for n in numbers)


def test_formulas_are_pictures_with_their_source_as_text(desk: Path) -> None:
    site.main([])
    page = soup(desk / "demo" / "03_cont_steal.html")
    shown = page.find_all("img", class_="formula")
    assert r"\tau = 0.5" in {i["alt"] for i in shown}
    assert all(i["src"].startswith("data:image/svg+xml;base64,") for i in shown)
    assert len(page.select("p.formula img")) == 1, "the one that stands alone"
    assert "$" not in "".join(c.get_text() for c in page.select(".jp-MarkdownCell"))


def test_a_link_to_a_file_that_is_no_page_names_it_instead() -> None:
    told = site.markdown(
        "[licence](../LICENSE), [next](01_train_victim.ipynb#x), [all](../index.html)"
    )
    assert "licence (<code>LICENSE</code>)" in told
    links = [a["href"] for a in BeautifulSoup(told, "html.parser").find_all("a")]
    assert links == ["01_train_victim.html#x", "../index.html"]


def test_every_formula_of_the_notebooks_can_be_set() -> None:
    found = []
    for stem in plan.notebooks():
        for cell in nbformat.read(plan.NOTEBOOKS / f"{stem}.ipynb", as_version=4).cells:
            if cell.cell_type == "markdown":
                found += re.findall(
                    r'<code class="formula">(.+?)</code>', site.markdown(cell.source)
                )
    assert found == []


def test_a_formula_that_cannot_be_set_is_shown_as_it_is_written() -> None:
    given = r"\begin{aligned} a &< b \end{aligned}"
    with pytest.raises(ValueError, match=r"aligned|begin|Unknown"):
        formulas.picture(given)
    assert "&amp;&lt; b" in formulas.html(given, display=True)


def test_a_formula_stands_on_the_line_and_is_the_same_twice() -> None:
    depth = [float(re.search(r"vertical-align:(-?[\d.]+)em", formulas.picture(f))[1])
             for f in ("a", "a_{b_c}")]  # fmt: skip
    assert depth[1] < depth[0] <= 0
    assert formulas.picture(r"\frac{a}{b}") == formulas.picture("\\frac{a}{b}")
    assert formulas.picture(r"\frac{a}{b}") != formulas.picture(r"\frac{a}{b}", display=True)


def test_of_a_widget_its_picture_is_shown_and_a_bar_without_one_is_left_out(tmp_path: Path) -> None:
    widget = {site.WIDGET: {"model_id": "1"}, "text/plain": "Training: 0%"}
    outputs = [new_output("display_data", d) for d in (widget, widget | {"image/png": PIXEL})]
    cell = new_code_cell("bar", outputs=outputs)
    book = new_notebook(
        cells=[new_markdown_cell("# One < two"), cell], metadata={"widgets": {"x": {}}}
    )
    nbformat.write(book, tmp_path / "a.ipynb")
    page = BeautifulSoup(site.notebook(tmp_path / "a.ipynb", "<b>top</b>"), "html.parser")
    assert "Training" not in page.get_text()
    assert page.find_all("script") == []
    assert [i["alt"] for i in page.find_all("img")] == ["Figure drawn by code cell 1"]
    assert (page.title.get_text(), page.find("p", class_="banner").b.get_text()) == (
        "One < two",
        "top",
    )


def test_a_profile_without_results_is_refused(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.main(["--profile", "study"]) == 1
    assert (
        "`make paper PROFILE=study` makes them; there are some of: demo" in capsys.readouterr().out
    )
    assert not desk.exists()
