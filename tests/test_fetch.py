"""Fetching data sets from servers on this machine: resumed, checksummed, from the next if need be."""

import errno
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tinysets import cifar, fashion_mnist, gtsrb, md5, put, svhn
from torchvision import datasets

from contsteal import files
from contsteal.data import torchsets
from contsteal.lab import artifacts


@dataclass
class Server:
    """What a server on 127.0.0.1 serves, how it misbehaves, and what it was asked for."""

    port: int
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True  # whether it can continue
    breaks_after: int | None = None  # bytes of an answer after which it hangs up
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    sent: int = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request as told."""
        path, wanted = handler.path[1:], handler.headers.get("Range")
        self.asked.append((path, wanted))
        if path not in self.files:
            return handler.send_error(404)
        content, start = self.files[path], 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        body = content[start:][: self.breaks_after]
        handler.wfile.write(body)
        self.sent += len(body)


def serve() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(http.server_port)
    Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    http.shutdown()
    http.server_close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data sets that does not exist yet."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "data"


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serve()


@pytest.fixture
def other() -> Iterator[Server]:
    yield from serve()


TRAIN = "train_32x32.mat"


@pytest.fixture
def content(home: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The bytes of SVHN's training file, a data set of one file here, served by `server`."""
    source = tmp_path / "source"
    svhn(source, monkeypatch, "train")
    split_list = {"train": datasets.SVHN.split_list["train"]}
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)
    server.files[TRAIN] = (source / TRAIN).read_bytes()
    monkeypatch.setitem(torchsets.SIZES, TRAIN, len(server.files[TRAIN]))
    monkeypatch.setitem(torchsets.MIRRORS, TRAIN, (server.url(TRAIN),))
    return server.files[TRAIN]


def mirrors(monkeypatch: pytest.MonkeyPatch, *urls: str) -> None:
    monkeypatch.setitem(torchsets.MIRRORS, TRAIN, urls)


def nobody() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/{TRAIN}"


# ------------------------------------------------------------------------------- whole data sets


def hand_over(home: Path, source: Path, server: Server, patch: pytest.MonkeyPatch) -> None:
    """Serve what lies in a folder under the paths it has there."""
    for path in [p for p in source.rglob("*") if p.is_file()]:
        name = path.relative_to(source).as_posix()
        server.files[name] = path.read_bytes()
        patch.setitem(torchsets.SIZES, path.name, len(server.files[name]))
        patch.setitem(torchsets.MIRRORS, name, (server.url(name),))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "gtsrb"])
def test_a_data_set_is_fetched_unpacked_and_then_read(
    name: str,
    home: Path,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "source"
    if name == "fashion_mnist":
        fashion_mnist(source, monkeypatch)
    elif name == "gtsrb":
        gtsrb(source, monkeypatch, "archive")
    else:
        source.mkdir()
        cifar(name, source, monkeypatch, "archive")
    hand_over(home, source, server, monkeypatch)
    assert torchsets.main([name]) == 0
    told = capsys.readouterr().out
    for file in torchsets.expected(name):
        assert f"  {file.path}: {torchsets.show(file.size)}\n" in told
    assert told.index("are free") < told.index(f"{name}: complete in {home}")
    assert sorted(path for path, _ in server.asked) == sorted(server.files)
    before = {p: p.stat().st_mtime_ns for p in home.rglob("*") if p.name != torchsets.VERIFIED}
    for split in torchsets.SPLITS[name]:
        assert len(torchsets.read(name, split)[0])
    after = {p: p.stat().st_mtime_ns for p in home.rglob("*") if p.name != torchsets.VERIFIED}
    assert before == after  # reading writes nothing


def test_what_is_complete_is_not_fetched_again(
    content: bytes, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert torchsets.main(["svhn"]) == 0
    assert torchsets.main(["svhn", "svhn"]) == 0
    assert server.asked == [(TRAIN, None)]
    assert capsys.readouterr().out.count("to fetch into") == 1


def test_what_was_fetched_is_not_hashed_again(
    content: bytes, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchsets, "calculate_md5", lambda _: pytest.fail("hashed again"))
    torchsets.fetch(["svhn"])
    assert len(torchsets.read("svhn", "train")[0]) == 4


def test_progress_counts_every_byte(
    content: bytes, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[tuple[dict, list[int]]] = []

    class Bar:
        def __init__(self, **options: object) -> None:
            bars.append((options, []))

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, n: int) -> None:
            bars[-1][1].append(n)

    monkeypatch.setattr(torchsets, "tqdm", Bar)
    put(home / f"{TRAIN}.part", content[:100])
    torchsets.fetch(["svhn"])
    ((options, steps),) = bars
    assert (options["total"], options["initial"], options["unit"]) == (len(content), 100, "B")
    assert options["desc"] == TRAIN
    assert sum(steps) == len(content) - 100


# ------------------------------------------------------------------------------------- resuming


def test_a_partial_download_is_continued_where_it_ends(
    content: bytes, home: Path, server: Server
) -> None:
    put(home / f"{TRAIN}.part", content[:1000])
    torchsets.fetch(["svhn"])
    assert server.asked == [(TRAIN, "bytes=1000-")]
    assert server.sent == len(content) - 1000
    assert (home / TRAIN).read_bytes() == content
    assert not (home / f"{TRAIN}.part").exists()


def test_a_whole_partial_file_needs_no_server(content: bytes, home: Path, server: Server) -> None:
    put(home / f"{TRAIN}.part", content)
    torchsets.fetch(["svhn"])
    assert server.asked == []
    assert (home / TRAIN).read_bytes() == content


@pytest.mark.parametrize("partial", [b"", b"x" * 500])
def test_a_server_that_cannot_continue_starts_over(
    partial: bytes, content: bytes, home: Path, server: Server
) -> None:
    server.ranges = False
    put(home / f"{TRAIN}.part", partial)
    torchsets.fetch(["svhn"])
    assert len(server.asked) == 1
    assert (home / TRAIN).read_bytes() == content


def test_a_server_that_breaks_off_is_asked_for_the_rest(
    content: bytes, home: Path, server: Server
) -> None:
    server.breaks_after = 3000
    torchsets.fetch(["svhn"])
    starts = range(3000, len(content), 3000)
    assert server.asked == [(TRAIN, None)] + [(TRAIN, f"bytes={n}-") for n in starts]
    assert (home / TRAIN).read_bytes() == content


@pytest.mark.parametrize(("ranges", "breaks_after"), [(True, 0), (False, 700)])
def test_a_server_that_gives_nothing_more_is_left_for_the_next(
    ranges: bool,
    breaks_after: int,
    content: bytes,
    home: Path,
    server: Server,
    other: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.ranges, server.breaks_after = ranges, breaks_after
    other.files = {"copy": content}
    mirrors(monkeypatch, server.url(TRAIN), other.url("copy"))
    put(home / f"{TRAIN}.part", content[:700])
    torchsets.fetch(["svhn"])
    assert len(server.asked) == 1
    assert other.asked == [("copy", "bytes=700-")]
    assert (home / TRAIN).read_bytes() == content


def test_what_was_continued_wrongly_is_fetched_from_its_first_byte(
    content: bytes, home: Path, server: Server
) -> None:
    put(home / f"{TRAIN}.part", bytes(500))
    torchsets.fetch(["svhn"])
    assert server.asked == [(TRAIN, "bytes=500-"), (TRAIN, None)]
    assert (home / TRAIN).read_bytes() == content


def test_too_much_is_thrown_away(content: bytes, home: Path, server: Server) -> None:
    put(home / f"{TRAIN}.part", content + b"more")
    torchsets.fetch(["svhn"])
    assert server.asked == [(TRAIN, None)]
    assert (home / TRAIN).read_bytes() == content


def test_an_answer_that_starts_elsewhere_is_refused(
    content: bytes, home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BaseHTTPRequestHandler.send_header

    def lies(self: BaseHTTPRequestHandler, name: str, value: str) -> None:
        real(self, name, "bytes 0-9/10" if name == "Content-Range" else value)

    monkeypatch.setattr(BaseHTTPRequestHandler, "send_header", lies)
    put(home / f"{TRAIN}.part", content[:50])
    with pytest.raises(torchsets.FetchError, match=r"asked for bytes 50-, got bytes 0-9/10"):
        torchsets.fetch(["svhn"])
    assert (home / f"{TRAIN}.part").read_bytes() == content[:50]


def test_a_stop_by_hand_keeps_what_has_arrived(
    content: bytes,
    home: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(url: str, part: Path, have: int, file: torchsets.File) -> None:
        part.write_bytes(content[:80])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torchsets, "_receive", stopped)
        assert torchsets.main(["svhn"]) == 130
    assert "kept and continued" in capsys.readouterr().err
    assert torchsets.main(["svhn"]) == 0
    assert server.asked == [(TRAIN, "bytes=80-")]


# ------------------------------------------------------------------------------------- mirrors


def test_servers_are_tried_in_order_until_the_checksum_is_right(
    content: bytes, home: Path, server: Server, other: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    other.files = {
        "changed": content[:-1] + bytes([content[-1] ^ 1]),
        "page": b"<html>",
        "unasked": b"",
    }
    names = ("gone", "page", "changed")
    mirrors(
        monkeypatch,
        nobody(), *(other.url(name) for name in names), server.url(TRAIN), other.url("unasked"),
    )  # fmt: skip
    torchsets.fetch(["svhn"])
    assert other.asked == [(name, None) for name in names]
    assert (home / TRAIN).read_bytes() == content


def test_every_failure_is_told_with_its_address(
    content: bytes, home: Path, other: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    other.files = {"changed": wrong, "page": b"<html>"}
    urls = [nobody(), *(other.url(name) for name in ("gone", "page", "changed"))]
    mirrors(monkeypatch, *urls)
    with pytest.raises(torchsets.FetchError) as caught:
        torchsets.fetch(["svhn"])
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert "refused" in next(line for line in lines if line.startswith(urls[0]))
    assert f"{urls[1]}: HTTP Error 404: Not Found" in lines
    assert f"{urls[2]}: its file has 6 bytes, not {len(content)}" in lines
    assert f"{urls[3]}: md5 {md5(wrong)}, expected {md5(content)}: not the published file" in lines
    assert list(home.iterdir()) == []


def test_without_a_network_the_message_says_all_that_is_needed(
    content: bytes,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mirrors(monkeypatch, first := nobody(), second := nobody())
    put(home / f"{TRAIN}.part", content[:1500])
    assert torchsets.main(["svhn"]) == 1
    told = capsys.readouterr().err
    for part in (first, second, f"by hand at {home / TRAIN} (md5 {md5(content)})", "DATA_DIR",
                 "`demo` needs no data set", "1.5 kB are kept"):  # fmt: skip
        assert part in told


def test_one_set_that_fails_does_not_stop_the_others(
    content: bytes, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(torchsets.MIRRORS, "cifar-10-python.tar.gz", (nobody(),))
    with pytest.raises(
        torchsets.FetchError, match=r"cifar-10-python\.tar\.gz \(170.5 MB\) could not"
    ):
        torchsets.fetch(["cifar10", "svhn"])
    assert (home / TRAIN).read_bytes() == content


@pytest.mark.parametrize("name", [n for n in torchsets.NAMES if n not in torchsets.FOLDERS])
def test_every_published_file_has_servers_and_a_size(name: str) -> None:
    for file in torchsets.expected(name):
        assert file.size > 0
        urls = torchsets.MIRRORS[file.path]
        assert len(set(urls)) == len(urls)
        assert all(Path(file.path).name in url.split("/")[-1] for url in urls)
        assert all(url.startswith(("https://", "http://")) for url in urls)


def test_the_official_servers_are_among_them_and_cifars_are_last() -> None:
    assert torchsets.MIRRORS["cifar-10-python.tar.gz"][-1] == datasets.CIFAR10.url
    assert len(torchsets.MIRRORS["cifar-10-python.tar.gz"]) > 1
    assert torchsets.MIRRORS["cifar-100-python.tar.gz"][-1] == datasets.CIFAR100.url
    assert torchsets.MIRRORS["stl10_binary.tar.gz"][0] == datasets.STL10.url
    for url, name, _ in datasets.SVHN.split_list.values():
        assert torchsets.MIRRORS[name][0] == url


# ------------------------------------------------------------------------ disk and bad requests


def test_too_little_space_is_told_before_anything_is_asked_for(
    content: bytes, home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = torchsets.shutil.disk_usage(home.parent)
    free = len(content) - 101
    monkeypatch.setattr(torchsets.shutil, "disk_usage", lambda _: usage._replace(free=free))
    need = torchsets.show(len(content) - 100)
    put(home / f"{TRAIN}.part", content[:100])
    with pytest.raises(files.StorageError, match=rf"{need} are needed.*free space.*DATA_DIR"):
        torchsets.fetch(["svhn"])
    assert server.asked == []
    put(home / f"{TRAIN}.part", content[:101])  # one byte fewer to fetch: now it fits
    torchsets.fetch(["svhn"])


def test_an_archive_needs_space_for_what_is_in_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = torchsets.shutil.disk_usage(home.parent)
    monkeypatch.setattr(torchsets.shutil, "disk_usage", lambda _: usage._replace(free=300_000_000))
    with pytest.raises(files.StorageError, match=r"300.0 MB free, 511.5 MB are needed"):
        torchsets.fetch(["cifar10"])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_refuses_is_no_failure_of_servers(
    code: int, content: bytes, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(code, "refused")

    monkeypatch.setattr(torchsets, "_receive", refuses)
    with pytest.raises(files.StorageError, match=rf"{TRAIN}\.part cannot be written.*DATA_DIR"):
        torchsets.fetch(["svhn"])


def test_a_folder_that_cannot_be_made_is_named(home: Path) -> None:
    home.write_text("a file where the folder should be")
    with pytest.raises(files.StorageError, match=rf"{home} cannot be made.*DATA_DIR"):
        torchsets.fetch(["svhn"])


def test_a_damaged_file_placed_by_hand_is_left_for_its_owner_to_delete(
    content: bytes, home: Path, server: Server
) -> None:
    put(home / TRAIN, content[:-9])
    with pytest.raises(
        torchsets.FetchError, match=rf"md5 {md5(content[:-9])}, expected {md5(content)}"
    ):
        torchsets.fetch(["svhn"])
    assert server.asked == []
    assert (home / TRAIN).read_bytes() == content[:-9]


def test_imagenet_is_never_asked_for(
    content: bytes, home: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert torchsets.main(["imagenet100", "svhn"]) == 1
    shown = capsys.readouterr()
    assert "register at image-net.org" in shown.err
    assert "imagenet/train has 0 of 100" in shown.err
    assert server.asked == [(TRAIN, None)]
    for split in ("train", "val"):
        for wnid in torchsets.imagenet100_wnids():
            (home / "imagenet100" / split / wnid).mkdir(parents=True)
    assert torchsets.main(["imagenet100"]) == 0
    assert f"imagenet100: complete in {home}" in capsys.readouterr().out


def test_an_unknown_name_is_refused_before_anything_is_fetched(
    content: bytes, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert torchsets.main(["svhn", "mnist"]) == 1
    assert "unknown data set 'mnist': choose one of cifar10, " in capsys.readouterr().err
    assert server.asked == []


def test_it_is_a_command(home: Path) -> None:
    command = [sys.executable, "-m", "contsteal.fetch", "shapes"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=artifacts.ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("unknown data set 'shapes'")
    assert not home.exists()
