"""The documentation site: complete, without a network, and searchable in a browser."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from copy import copy
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_output

from contsteal.paper.plots import FIGURES

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SHOWN = ("index", "losses", "defenses")  # pages of the API: the others take seconds
LEFT_OUT = [f"api/{p.name}" for p in (ROOT / "docs" / "api").glob("*.md") if p.stem not in SHOWN]
WIDGET = "application/vnd.jupyter.widget-view+json"
STEM, OTHER = "03_attacks", "04_budget"  # the only figures of the small profile


def build(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Build the site from the figures and runs of a folder, with two pages of the API."""
    site = home / "runs" / "site"
    (site / ".pages").mkdir(parents=True, exist_ok=True)
    folders = {"CONTSTEAL_RUNS": str(home / "runs"), "CONTSTEAL_FIGURES": str(home / "figures")}
    command = [
        sys.executable, "-m", "sphinx", "-b", "html", "-q", "-c", str(ROOT / "docs"),
        "-D", f"exclude_patterns={','.join(LEFT_OUT)}", *options, str(site / ".pages"), str(site),
    ]  # fmt: skip
    environment = os.environ | folders | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of a `demo` with two figures, of whose notebooks only the third was executed."""
    home = tmp_path_factory.mktemp("site")
    figures, runs = home / "figures" / "demo", home / "runs" / "demo"
    figures.mkdir(parents=True)
    runs.mkdir(parents=True)
    for path in (ROOT / "figures" / "demo").glob("*.*"):
        if path.stem in (STEM, OTHER):
            shutil.copy(path, figures)
    (figures / "summary.md").write_text(
        "# Results of the `demo` profile\n\n"
        + "".join(f"## {FIGURES[s].shows}\n\n![]({s}.png)\n\n41.5 %\n\n" for s in (STEM, OTHER))
        + "## Removed\n\n![](01_worth.png)\n"
    )
    book = nbformat.read(ROOT / "notebooks" / "03_cont_steal.ipynb", as_version=4)
    bar = new_output("display_data", {WIDGET: {"model_id": "1"}, "text/plain": "Training: 0%"})
    slider = new_output("display_data", {WIDGET: {"model_id": "2"}, "image/png": PIXEL})
    next(c for c in book.cells if c.cell_type == "code").outputs = [bar, slider]
    book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    nbformat.write(book, runs / "03_cont_steal.ipynb")
    result = build(home, "-W", "--keep-going")
    assert (result.returncode, result.stderr) == (0, "")
    return home / "runs" / "site"


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(), "html.parser")


def pages(site: Path) -> list[Path]:
    return [p for p in sorted(site.rglob("*.html")) if "_static" not in p.parts]


def test_every_page_of_the_guide_and_every_notebook_is_there(site: Path) -> None:
    names = {p.relative_to(site).with_suffix("").as_posix() for p in pages(site)}
    sources = (p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.md"))
    guide = {p.with_suffix("").as_posix() for p in sources if p.as_posix() not in LEFT_OUT}
    notebooks = {f"results/demo/{p.stem}" for p in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert guide | notebooks | {"contributing", "changelog", "results/demo/index"} <= names


def test_no_page_is_too_large_to_open(site: Path) -> None:
    assert max(page.stat().st_size for page in pages(site)) < 5e6


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for page in pages(site):
        for tag in soup(page).find_all(["script", "link", "img", "iframe", "source"]):
            address = tag.get("src") or tag.get("href") or ""
            assert not re.match(r"(https?:)?//", address), (page.name, address)
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text()), style.name


def test_every_link_leads_to_a_file_and_its_heading(site: Path) -> None:
    ids = {page: {tag["id"] for tag in soup(page).find_all(id=True)} for page in pages(site)}
    for page in ids:
        for tag in soup(page).find_all(["a", "img", "script", "link"]):
            link = tag.get("href") or tag.get("src") or ""
            if not link or re.match(r"\w+:", link):
                continue
            name, _, heading = unquote(link).partition("#")
            target = (page.parent / name.partition("?")[0]).resolve() if name else page
            assert target.is_file(), (page.name, link)
            if heading and target in ids:
                assert heading in ids[target], (page.name, link)


def test_formulas_are_drawn_by_the_browser_itself(site: Path) -> None:
    page = soup(site / "results" / "demo" / "03_cont_steal.html")
    block = page.select_one("math[display=block]")
    assert block.find("mfrac")
    assert len(page.find_all("math")) > 5
    article = copy(page.find("article"))
    for code in article.find_all(["pre", "code"]):
        code.decompose()
    assert "$" not in article.get_text()
    assert "MathJax" not in str(page)


def test_a_profile_shows_its_figures_with_their_files_and_numbers(site: Path) -> None:
    page = soup(site / "results" / "demo" / "index.html").find("article")
    assert page.find("img")["src"].endswith(f"{STEM}.png")
    assert "41.5 %" in page.get_text()
    links = [a["href"] for a in page.find_all("a")]
    for kind in ("png", "pdf", "csv"):
        assert any(link.endswith(f"{STEM}.{kind}") for link in links), kind
    assert "01_train_victim.html" in links
    assert "make figures PROFILE=demo draws this figure from its table." in page.get_text()


def test_a_notebook_says_whether_it_was_executed_and_by_which_command(site: Path) -> None:
    for stem, words in (("01_train_victim", "Not executed here"), ("03_cont_steal", "Executed by")):
        note = soup(site / "results" / "demo" / f"{stem}.html").select_one("div.admonition.note")
        assert words in note.get_text()
        assert f"make paper PROFILE=demo NB={stem[:2]}" in note.get_text()


def test_a_notebook_that_was_not_executed_shows_the_stored_figures(site: Path) -> None:
    article = soup(site / "results" / "demo" / "04_query_budget.html").find("article")
    figure = article.find("img", alt=OTHER)
    assert figure["src"].endswith(f"{OTHER}.png")
    assert "figures.publish" in figure.find_previous("pre").get_text()
    for stem in ("01_train_victim", "03_cont_steal"):  # no stored figure, and its own outputs
        page = soup(site / "results" / "demo" / f"{stem}.html")
        assert not page.find("img", alt=re.compile("^0"))


def test_the_gallery_leads_from_every_stored_figure_to_its_numbers(site: Path) -> None:
    shown = soup(site / "gallery.html").select(".gallery figure")
    assert [figure.find("code").get_text() for figure in shown] == [STEM, OTHER]
    for figure in shown:
        assert figure.find("img")["alt"] in figure.get_text()
        page, _, heading = figure.find("a")["href"].partition("#")
        assert soup(site / page).find(id=heading).find("h2")


def test_without_results_pages_say_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTSTEAL_FIGURES", str(tmp_path / "none"))
    conf = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    settings = SimpleNamespace(copy=dict)
    app = SimpleNamespace(srcdir=tmp_path, confdir=ROOT / "docs",
                          env=SimpleNamespace(mystnb_config=settings))  # fmt: skip
    conf["stage"](app)
    for name in ("gallery", "claims", "results/demo/index"):
        assert "No results are stored" in (tmp_path / f"{name}.md").read_text()
    index = (tmp_path / "index.md").read_text()
    assert "![" not in index
    assert "(not run: `make paper PROFILE=demo`)" in index
    assert (tmp_path / "results" / "demo" / "03_cont_steal.ipynb").is_file()


def test_of_a_widget_its_image_is_shown_and_nothing_else(site: Path) -> None:
    page = soup(site / "results" / "demo" / "03_cont_steal.html")
    assert len(page.select("div.cell_output img")) == 1
    assert "Training: 0%" not in page.get_text()
    assert not page.find_all("script", type=re.compile("jupyter"))


def test_notebooks_lead_to_the_one_before_and_after_and_the_first_to_all(site: Path) -> None:
    names = [f"{p.stem}.html" for p in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    links = {}
    for name in names:
        article = soup(site / "results" / "demo" / name).find("article")
        links[name] = {a["href"] for a in article.find_all("a", href=True)}
    assert set(names[1:]) <= links[names[0]]
    for before, after in pairwise(names):
        assert after in links[before]
        assert before in links[after]


def test_tables_are_generated_from_the_package(site: Path) -> None:
    from contsteal import defenses, steal

    codes = {code.get_text() for code in soup(site / "attacks.html").find_all("code")}
    assert set(steal.ATTACKS) <= codes
    text = soup(site / "defenses.html").get_text()
    assert all(d.__name__ in text for d in defenses.DEFENSES.values())
    assert "No results" not in soup(site / "claims.html").get_text()
    assert soup(site / "api" / "losses.html").find(id="contsteal.losses.cont_steal")
    rounding = soup(site / "api" / "defenses.html").find(id="contsteal.defenses.Rounding")
    assert "Rounding(decimals: int)" in rounding.get_text(), (
        "limits stand below, not in a signature"
    )


def test_the_search_index_holds_words_of_all_pages(site: Path) -> None:
    text = (site / "searchindex.js").read_text()
    index = json.loads(re.fullmatch(r"Search\.setIndex\((.+)\)", text, re.DOTALL)[1])
    for word, name in (("driver", "troubleshooting"), ("anisotropi", "results/demo/03_cont_steal")):
        numbers = index["terms"][word]  # one, or a list; words of headings stand elsewhere
        numbers = [numbers] if isinstance(numbers, int) else numbers
        assert name in [index["docnames"][k] for k in numbers]


@pytest.fixture
def page() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(offline=True, viewport={"width": 1300, "height": 1000})
        yield context.new_page()
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_a_browser_without_a_network_searches_and_finds_no_error(site: Path, page) -> None:
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    page.goto((site / "index.html").as_uri())
    page.fill("input[name=q]", "troubleshooting")
    page.press("input[name=q]", "Enter")
    page.click("#search-results a[href^='troubleshooting.html']")
    page.wait_for_selector("h1:has-text('Troubleshooting')")
    for path in (*pages(site), site / "results" / "demo" / "03_cont_steal.html"):
        page.goto(path.as_uri())
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
        assert page.evaluate(broken) == [], path.name
    formula = "document.querySelector('math[display=block]')"
    assert page.evaluate(f"{formula}.getBoundingClientRect().width") > 100
    assert errors == []
    assert [u for u in requests if not u.startswith(("file:", "data:"))] == []
