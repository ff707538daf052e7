"""In a real browser: JupyterLab runs the first notebook, its panel moves, and pages need no network."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Page, sync_playwright

from contsteal.lab import artifacts
from contsteal.paper import plan, site

CHROMIUM = next((p for n in ("chromium", "chromium-browser") if (p := shutil.which(n))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
FIRST = "00_start_here"
BOOK = "[...jupyterapp.shell.widgets('main')][0]"
CELLS = f"{BOOK}.content.widgets.filter(c => c.model.type === 'code')"
QUIET = {"fetchNews": "false", "checkForUpdates": False}  # no question, no request, when it opens


@pytest.fixture
def page() -> Iterator[Page]:
    """One page of the system's own browser: nothing is downloaded for the tests."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        found = browser.new_page(viewport={"width": 1300, "height": 1000})
        found.set_default_timeout(60_000)
        yield found
        browser.close()


@pytest.fixture
def asked(page: Page) -> list[str]:
    """Every address that the page asks for."""
    found: list[str] = []
    page.on("request", lambda request: found.append(request.url))
    return found


@pytest.fixture
def errors(page: Page) -> list[str]:
    """What the page's console and scripts complain of."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda told: found.append(told.text) if told.type == "error" else None)
    return found


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with the first notebook at the size of `smoke`, beside its own settings."""
    (tmp_path / "books").mkdir()
    book = nbformat.read(plan.NOTEBOOKS / f"{FIRST}.ipynb", as_version=4)
    cell = next(c for c in book.cells if "parameters" in c.metadata.get("tags", []))
    small = plan.parameters(FIRST, "smoke")
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in small.items())
    nbformat.write(book, tmp_path / "books" / f"{FIRST}.ipynb")
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(QUIET))
    return tmp_path


@pytest.fixture
def lab(desk: Path) -> Iterator[str]:
    """The address of a JupyterLab of its own, on loopback, that shows the folder of notebooks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{k}_DIR": str(desk / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")}
    environment = os.environ | own | {
        "JUPYTERLAB_SETTINGS_DIR": str(desk / "settings"), "CONTSTEAL_RUNS": str(desk / "runs"),
        "JUPYTERLAB_WORKSPACES_DIR": str(desk / "workspaces"), "PYTHONPATH": str(artifacts.ROOT),
        "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1",
    }  # fmt: skip
    environment.pop("CONTSTEAL_FIGURES", None)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
        f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=",
        f"--ServerApp.root_dir={desk / 'books'}", "--ServerApp.port_retries=0",
    ]  # fmt: skip
    with (desk / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, server, desk / "lab.log")
            yield address
        finally:
            server.terminate()
            server.wait(20)


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"{address}/api"):
                return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
    raise TimeoutError(log.read_text())


def test_the_first_notebook_runs_in_jupyterlab_and_its_slider_moves_the_picture(
    page: Page, asked: list[str], lab: str, desk: Path
) -> None:
    page.goto(f"{lab}/lab/tree/{FIRST}.ipynb")
    page.wait_for_function(f"window.jupyterapp && {BOOK}?.context?.isReady")
    page.wait_for_function(f"{BOOK}.sessionContext.session?.kernel?.status === 'idle'")
    page.evaluate(f"jupyterapp.shell.activateById({BOOK}.id)")
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
    page.wait_for_function(f"{CELLS}.every(c => c.model.executionCount)")
    outputs = page.evaluate(f"{CELLS}.map(c => c.model.outputs.toJSON()).flat()")
    assert [o for o in outputs if o["output_type"] == "error"] == []
    printed = "".join(o.get("text", "") for o in outputs)
    assert "agreement with the victim" in printed
    assert "customer" in printed

    last = f"{CELLS}.at(-1).node"
    page.evaluate(f"{last}.scrollIntoView({{block: 'center'}})")
    shown = f"{last}.querySelector('.widget-image')?.src"
    page.wait_for_function(f"{last}.querySelector('.noUi-handle') && {shown}")
    before, seen = page.evaluate(shown), page.screenshot(path=desk / "before.png")
    page.evaluate(f"{last}.querySelector('.noUi-handle').focus()")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"{shown} !== {json.dumps(before)}")
    assert page.evaluate(f"{last}.querySelector('.widget-readout').textContent") == "192"
    assert page.screenshot(path=desk / "after.png") != seen
    strangers = [u for u in asked if not u.startswith((lab, "data:", "blob:", "about:"))]
    assert strangers == []


def test_pages_load_without_errors_and_without_a_network(
    page: Page,
    asked: list[str],
    errors: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    shutil.copy(plan.NOTEBOOKS / "03_cont_steal.ipynb", tmp_path / "runs" / "demo")
    assert site.main(["--profile", "demo"]) == 0
    for path in sorted(site.site_dir().rglob("*.html")):
        page.goto(path.as_uri())
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
        assert page.evaluate(broken) == [], path.name
        assert page.evaluate("document.body.innerText.length") > 300
        page.screenshot(path=tmp_path / f"{path.stem}.png")
    assert errors == []
    assert [u for u in asked if not u.startswith(("file:", "data:"))] == []


def test_an_error_on_the_console_and_an_address_are_seen(
    page: Page, asked: list[str], errors: list[str], tmp_path: Path
) -> None:
    bad = "<script>console.error('told'); undefined.thing</script><img src='http://127.0.0.1:9/x.png'>"
    (tmp_path / "bad.html").write_text(bad)
    page.goto((tmp_path / "bad.html").as_uri())
    assert "told" in errors
    assert any("undefined" in e for e in errors)
    assert "http://127.0.0.1:9/x.png" in asked
