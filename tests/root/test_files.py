"""Files are written whole or not at all; hashes depend on content alone."""

import errno
import hashlib
import re
from pathlib import Path

import pytest
import torch

from contsteal import files


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_write_replaces_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    files.write_text(path, "old")
    with files.atomic(path) as partial:
        partial.write_text("new")
        assert partial.parent == path.parent
        assert path.read_text() == "old", "the old file stays until the end of the block"
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("crash", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("folder", [False, True])
def test_a_crash_inside_leaves_the_old_file(tmp_path, crash, folder):
    path = tmp_path / "a"
    path.write_text("old")

    def write_half() -> None:
        with files.atomic(path) as partial:
            if folder:
                partial.mkdir()
            (partial / "part" if folder else partial).write_text("hal")
            raise crash

    with pytest.raises(crash):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("method", "number"),
    [("mkdir", errno.EACCES), ("mkdir", errno.EROFS), ("replace", errno.ENOSPC)],
)
def test_what_cannot_be_written_names_path_and_remedy(tmp_path, monkeypatch, method, number):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(number, "refused", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, method, refuse)
        message = f"{re.escape(str(path))} cannot be written.*free space.*CONTSTEAL_RUNS"
        with pytest.raises(files.StorageError, match=message):
            files.write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("1000 requested and 10 written"), "1000 requested and 10 written"),
    ],
)
def test_a_full_disk_is_named_whatever_its_writer_says(tmp_path, error: Exception, reason: str):
    path = tmp_path / "a.pt"
    path.write_text("old")
    message = rf"a\.pt cannot be written \(.*{reason}"
    with pytest.raises(files.StorageError, match=message), files.atomic(path):
        raise error
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("size mismatch"),
        files.StorageError("/elsewhere cannot be written"),
        ValueError("no number"),
    ],
)
def test_another_error_is_not_blamed_on_the_disk(tmp_path, error: Exception):
    with pytest.raises(type(error), match=re.escape(str(error))), files.atomic(tmp_path / "a"):
        raise error


def test_a_folder_that_cannot_be_made_or_cleared_is_named(tmp_path, monkeypatch):
    with pytest.raises(files.StorageError, match=r"/proc/x/a\.txt cannot be written"):
        files.write_text(Path("/proc/x/a.txt"), "new")
    gone = files.move_aside(tmp_path / "moved by another process")
    assert not gone.exists()

    def refuse(self: Path, to: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(files.StorageError, match=r"cannot be moved aside \(Permission denied"):
        files.move_aside(tmp_path / "damaged")


def test_a_missing_input_is_not_blamed_on_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError, match="images"), files.atomic(tmp_path / "a"):
        (tmp_path / "images").read_bytes()


def test_json_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"b": [1, 2.5, None], "a": "ü", "path": Path("x")})
    assert files.read_json(path) == {"a": "ü", "b": [1, 2.5, None], "path": "x"}
    path.write_text('{"b": [1, 2')
    assert files.read_json(path) is None
    assert files.read_json(tmp_path / "none.json") is None


def test_hashes_depend_on_content_and_not_on_order(tmp_path):
    assert files.key({"a": 1, "b": 2}) == files.key({"b": 2, "a": 1})
    assert files.key({"a": 1}) != files.key({"a": 2})
    assert re.fullmatch("[0-9a-f]{16}", files.key(Path("x")))
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_digest_is_that_of_names_shapes_types_and_bytes():
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor(3, dtype=torch.int64)
    expected = hashlib.sha256()
    for text, value in (("a(1, 2)torch.float32", x), ("b()torch.int64", y)):
        expected.update(text.encode() + value.numpy().tobytes())
    assert files.digest([("b", y), ("a", x)]) == expected.hexdigest()
    assert files.digest([("a", x.t().contiguous().t()), ("b", y)]) == expected.hexdigest()
