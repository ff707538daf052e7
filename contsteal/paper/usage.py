"""What a notebook's run takes beside time: the memory of its processes, the disk of what it keeps."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import psutil

from contsteal import files
from contsteal.lab import artifacts

EVERY = 0.5  # seconds between two looks: a peak between them is missed


@dataclass
class Peak:
    """The most bytes seen so far."""

    memory: int = 0


def argument(name: str) -> str:
    """Return the argument of a kernel that names its run, for `memory` and the artifacts it makes."""
    line = f"__import__('os').environ.update({artifacts.MAKER}={name!r})"
    return f"--IPKernelApp.exec_lines={line}"


def memory(name: str = "") -> int:
    """Return the resident bytes, now, of this process's children whose command has `name` in it.

    Their own children count, the workers of a notebook. Pages that processes share, such as torch's
    code, count in each of them. GPU memory does not count.
    """
    found = 0
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if name in " ".join(child.cmdline()):
                found += sum(_resident(p) for p in [child, *child.children(recursive=True)])
    return found


def _resident(process: psutil.Process) -> int:
    with suppress(psutil.Error):  # it has ended meanwhile
        return process.memory_info().rss
    return 0


@contextmanager
def watch(name: str = "") -> Iterator[Peak]:
    """Yield the peak of `memory(name)`, measured every half second until the block ends."""
    peak, ended = Peak(), Event()

    def look() -> None:
        while not ended.wait(EVERY):
            peak.memory = max(peak.memory, memory(name))

    looking = Thread(target=look, daemon=True)
    looking.start()
    try:
        yield peak
    finally:
        ended.set()
        looking.join()


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def disk(name: str, *others: Path) -> int:
    """Return the bytes of the artifacts that the run `name` made, now or before, and of other files.

    What several notebooks share counts for the one that made it first.
    """
    made = (artifacts.runs_dir() / "artifacts").glob(f"*/{artifacts.MANIFEST}")
    own = [f.parent for f in made if (files.read_json(f) or {}).get("by") == name]
    return sum(size(path) for path in (*own, *others))
