"""The notebooks as their users have them: Run All in JupyterLab, in a real browser, at smoke size.

`make test` opens the first notebook and, on the tables of two figures, the last one. All of them, one
after another on one server, with the artifacts of `make paper PROFILE=smoke` where it was run before:

    CONTSTEAL_NOTEBOOKS=all CONTSTEAL_RUNS=runs .venv/bin/python -m pytest tests/docs/test_jupyterlab.py
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from contsteal import files
from contsteal.lab import artifacts
from contsteal.paper import notebooks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVERY = os.environ.get("CONTSTEAL_NOTEBOOKS") == "all"
FIRST, *BETWEEN, LAST = notebooks.stems()
STEMS = [FIRST, *(BETWEEN if EVERY else []), LAST]

OPEN = """async path => {
    const panel = await jupyterapp.commands.execute('docmanager:open', {path});
    await panel.context.ready;
    await panel.sessionContext.ready;
}"""
RUN = "() => jupyterapp.commands.execute('notebook:run-all-cells')"
BOOK = "() => jupyterapp.shell.currentWidget.context.model.toJSON()"
CLOSE = "() => jupyterapp.shell.currentWidget.sessionContext.shutdown()"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the notebooks at smoke size, and two figures' tables as if smoke had made them."""
    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    shutil.copy(artifacts.ROOT / "Makefile", home)
    for stem in notebooks.stems():
        book = nbformat.read(notebooks.NOTEBOOKS / f"{stem}.ipynb", as_version=4)
        cell = next(c for c in book.cells if "parameters" in c.metadata.get("tags", []))
        values = notebooks.parameters(stem, "smoke")
        cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
        nbformat.write(book, home / "notebooks" / f"{stem}.ipynb")
    for stem in ("03_attacks", "05a_matrix"):
        stored, folder = artifacts.ROOT / "figures" / "demo", home / "figures" / "smoke"
        stamp = files.read_json(stored / f"{stem}.json") | {"profile": "smoke"}
        for part in ("code", "seal"):  # those of the demo: without them the table is an older one
            stamp.pop(part, None)
        files.write_json(folder / f"{stem}.json", stamp)
        shutil.copy(stored / f"{stem}.csv", folder)
    return home


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    """Where `make lab` leads on that folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs = os.environ.get("CONTSTEAL_RUNS", "runs") if EVERY else home / "runs"
    own = {"CONTSTEAL_FIGURES": str(home / "figures"), "CONTSTEAL_RUNS": str(Path(runs).resolve()),
           "PYTHONPATH": str(artifacts.ROOT), "OMP_NUM_THREADS": "1"}  # fmt: skip
    own |= {f"JUPYTER{name}": str(home / "jupyter") for name in
            ("_CONFIG_DIR", "_DATA_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")}  # fmt: skip
    options = "--no-browser --allow-root --IdentityProvider.token= "
    options += f"--ServerApp.port={port} --LabApp.expose_app_in_browser=True"
    server = subprocess.Popen(
        ["make", "lab", f"PYTHON={sys.executable}", f"LAB={options}"], cwd=home,
        env={k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFL"))} | own,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield redirected(f"http://127.0.0.1:{port}/", server)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def redirected(start: str, server: subprocess.Popen[bytes]) -> str:
    """Return where an address leads once the server answers."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(start) as reply:
                return reply.url
        except OSError:
            assert server.poll() is None
            time.sleep(0.1)
    raise TimeoutError(start)


@pytest.fixture(scope="module")
def page(address: str) -> Iterator:
    """JupyterLab in the browser, with the errors of its console."""
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
        page.set_default_timeout(120_000)
        page.complaints = complaints = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(address)
        page.wait_for_function("() => window.jupyterapp?.restored.then(() => true)")
        yield page
        browser.close()


@pytest.fixture(scope="module", params=STEMS)
def opened(request: pytest.FixtureRequest, page) -> Iterator:
    """The page with one notebook, all cells of which were run."""
    page.evaluate(OPEN, f"notebooks/{request.param}.ipynb")
    page.evaluate(RUN)
    page.stem = request.param
    yield page
    page.evaluate(CLOSE)


def test_make_lab_opens_the_first_notebook(address: str) -> None:
    assert address.endswith("/lab/tree/notebooks/00_start_here.ipynb")


def test_run_all_leaves_no_error(opened) -> None:
    cells = [c for c in opened.evaluate(BOOK)["cells"] if c["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    errors = [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert errors == []
    assert all(cell["execution_count"] for cell in cells if cell["source"])
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert opened.complaints == [], opened.complaints[:3]


def test_the_table_of_contents_has_every_heading(opened) -> None:
    opened.evaluate("() => jupyterapp.commands.execute('toc:show-panel')")
    opened.wait_for_selector(".jp-tocItem-content")
    shown = opened.locator(".jp-tocItem-content").all_inner_texts()
    book = nbformat.read(notebooks.NOTEBOOKS / f"{opened.stem}.ipynb", as_version=4)
    lines = [
        line for c in book.cells if c.cell_type == "markdown" for line in c.source.splitlines()
    ]
    headings = [line.lstrip("# ") for line in lines if line.startswith("#")]
    assert {heading for heading in headings if heading} <= set(shown)


@pytest.mark.parametrize("opened", [FIRST], indirect=True, scope="module")
def test_the_picture_of_embeddings_on_a_circle_moves(opened) -> None:
    cells = opened.evaluate(BOOK)["cells"]
    place = next(k for k, cell in enumerate(cells) if "<iframe" in str(cell.get("outputs")))
    opened.evaluate("k => jupyterapp.shell.currentWidget.content.scrollToItem(k)", place)
    picture = opened.frame_locator(".jp-OutputArea-output iframe")
    for number in ("1", "2"):
        picture.locator("#step").click()
        assert f"Step {number}." in picture.locator("#state").inner_text()
