"""Every command of the documents runs: in a copy of the repository, at the size of `smoke`, offline."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from contsteal.lab import artifacts
from contsteal.paper import plan, report

ROOT = artifacts.ROOT
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")
LEFT_OUT = {"runs", ".git", ".venv", "study", "__pycache__", ".pytest_cache", ".ruff_cache"}
# Each command as it is written, what is run for it (once), and what it must say; in this order.
COMMANDS = {
    "make paper": ("make paper PROFILE=smoke", r"\[7/7\] 06_figures: done"),
    "make paper PROFILE=smoke": ("", "summary.md"),
    "make paper PROFILE=study": ("make paper PROFILE=smoke NB=03", "03_cont_steal: up to date"),
    "make paper NB=03": ("make paper PROFILE=smoke NB=03", "03_cont_steal: up to date"),
    "make paper NB=01": ("make paper PROFILE=smoke NB=03", "03_cont_steal: up to date"),
    "make paper MODE=exact": ("make paper PROFILE=smoke NB=00 MODE=exact", "00_start_here: done"),
    "make plan": ("make plan PROFILE=smoke", "00_start_here: runs, machine changed: exact mode"),
    "make check": ("make check PROFILE=demo", "not enough evidence"),
    "make figures": ("make figures PROFILE=smoke", "smoke"),
    "make html": ("make html PROFILE=smoke", "index.html"),
    "make format": ("", "left unchanged"),
    "python -m contsteal.data pack SRC DST --size 256": (
        "python -m contsteal.data pack photos packed --size 16", "4 images",
    ),
    "python -m contsteal.data pack": ("python -m contsteal.data pack --help", "--size"),
    "python -m benchmarks --only augmentation training": (
        "python -m benchmarks --tiny --only augmentation", "images/s",
    ),
    ".venv/bin/python -m torch.utils.collect_env": ("", "CUDA"),
}  # fmt: skip
# What needs a network or gigabytes says what is missing; only a plan is none the worse for it.
REFUSED = {
    "make data PROFILE=paper": ("", "cifar"),
    "make plan PROFILE=paper": ("make plan PROFILE=paper NB=06", "missing: cifar10"),
    "DATA_DIR=/my/data make paper PROFILE=paper": ("", "/my/data"),
}
# Run by other means: CI itself; the test below that opens it; tests of every script and part.
ELSEWHERE = {"make test", "make setup", "make lab", "make bench"}


def told(name: str) -> set[str]:
    """Return every command that a document shows, in a block or in a line."""
    text = (ROOT / name).read_text()
    blocks = "\n".join(re.findall(r"```bash\n(.+?)```", text, re.DOTALL)).splitlines()
    lines = re.findall(r"`([^`\n]+)`", re.sub(r"```.+?```", "", text, flags=re.DOTALL))
    lines = [c for c in lines if re.match(r"(\w+=\S+ )*(make|(\S*/)?python) ", c)]
    return {line.split("#")[0].strip() for line in [*blocks, *lines]} - {""}


def test_every_command_of_the_documents_is_run() -> None:
    shown = set.union(*(told(name) for name in DOCUMENTS))
    assert shown == COMMANDS.keys() | REFUSED.keys() | ELSEWHERE


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the repository, with this environment in the place of the one that make builds."""
    home = tmp_path / "contsteal"
    shutil.copytree(ROOT, home, ignore=lambda _, names: LEFT_OUT & set(names))
    (home / ".venv").symlink_to(sys.prefix)
    (home / "photos").mkdir()
    return home


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a user of the copy whose network is dead."""
    own = {
        k: v for k, v in os.environ.items() if not k.startswith(("CONTSTEAL_", "MAKE", "MFLAGS"))
    }
    dead = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    more = {"PYTHON": sys.executable, "PYTHONPATH": str(home), "PATH": path, "no_proxy": ""}
    return own | dead | more | {"DATA_DIR": str(home / "data"), "OMP_NUM_THREADS": "1"}


def run(command: str, home: Path) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", command], cwd=home, env=environment(home), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_the_commands_run_one_after_another(copy: Path) -> None:
    for k in range(4):
        Image.new("RGB", (20, 20), (60 * k, 0, 0)).save(copy / "photos" / f"{k}.png")
    every = COMMANDS | REFUSED
    ran = {c: run(c, copy) for c in dict.fromkeys(small or c for c, (small, _) in every.items())}
    for shown, (small, wanted) in every.items():
        code, said = ran[small or shown]
        assert (code == 0) == (shown not in REFUSED or "make plan" in shown), f"{shown}: {said}"
        assert re.search(wanted, said), f"{shown}: {said}"
    made = {p.name for p in (copy / "figures" / "smoke").iterdir()}
    assert {f"{s}.{kind}" for s in report.FIGURES for kind in ("pdf", "png", "csv")} <= made
    assert {"summary.md", "03_attacks.json", "contact_sheet.pdf"} <= made
    assert {f"{s}.ipynb" for s in plan.notebooks()} <= {
        p.name for p in (copy / "runs" / "smoke").iterdir()
    }


def test_make_lab_opens_the_first_notebook(copy: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--no-browser --allow-root --ServerApp.port={port} --IdentityProvider.token="
    server = subprocess.Popen(
        shlex.split(f"make lab LAB='{options}'"), cwd=copy, env=environment(copy),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        opened = address(f"http://127.0.0.1:{port}/", server)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)
    assert opened.endswith("/lab/tree/notebooks/00_start_here.ipynb")


def address(start: str, server: subprocess.Popen[bytes]) -> str:
    """Return where an address leads once the server answers."""
    for _ in range(300):
        try:
            with urllib.request.urlopen(start) as reply:
                return reply.url
        except OSError:
            assert server.poll() is None
            time.sleep(0.1)
    raise TimeoutError(start)


def test_make_bench_calls_scripts_that_are_there() -> None:
    code, said = run("make -n bench", ROOT)
    lines = said.splitlines()
    assert (code, len(lines)) == (0, 3), said
    for line in lines:
        assert run(f"{line} --help", ROOT)[0] == 0, line
