"""Files of data sets: what is expected, missing, damaged; verified before use, and only once."""

import errno
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinysets import READABLE, cifar, gtsrb, make, md5, put, stl10, svhn, tar
from torchvision import datasets

from contsteal import files
from contsteal.data import torchsets
from contsteal.lab import artifacts


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of data sets."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


# ------------------------------------------------------------------------- what is expected


@pytest.mark.parametrize("name", torchsets.NAMES)
def test_every_split_is_served_by_files_with_a_checksum_and_a_size(name: str) -> None:
    files = torchsets.expected(name)
    assert {split for file in files for split in file.splits} == set(torchsets.SPLITS[name])
    assert len({file.path for file in files}) == len(files)
    for file in files:
        assert len(file.md5) == 32
        assert int(file.md5, 16) > 0
        assert file.size or "devkit" in file.path  # its size is stated in two ways
        assert all(Path(p.path).parts[0] not in ("/", "..") for p in (file, *file.parts))


def test_sizes_and_checksums_are_those_that_torchvision_states() -> None:
    (archive,) = torchsets.expected("cifar10")
    assert (archive.path, archive.size) == ("cifar-10-python.tar.gz", 170498071)
    assert archive.md5 == datasets.CIFAR10.tgz_md5
    assert ("cifar-10-batches-py/batches.meta", datasets.CIFAR10.meta["md5"], 1) in archive.parts
    assert len(archive.parts) == 7
    assert [f.splits for f in torchsets.expected("svhn")] == [("train",), ("test",), ("extra",)]
    assert {f.md5 for f in torchsets.expected("svhn")} == {
        entry[2] for entry in datasets.SVHN.split_list.values()
    }
    assert len(torchsets.expected("fashion_mnist")) == 4


def test_the_folder_is_that_of_the_variable_or_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_DIR", "")
    assert torchsets.data_dir() == artifacts.ROOT / "data"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA_DIR", "~/sets")
    assert torchsets.data_dir() == tmp_path.resolve() / "sets"


# ------------------------------------------------------------------------------- missing data


@pytest.mark.parametrize("name", READABLE)
def test_missing_data_says_where_how_large_and_what_to_do(name: str, home: Path) -> None:
    first = torchsets.expected(name)[0]
    with pytest.raises(torchsets.MissingData) as caught:
        torchsets.read(name, "train")
    told = str(caught.value)
    for part in (name, str(home), first.path, torchsets.show(first.size), first.md5, "DATA_DIR"):
        assert part in told
    assert str(home / first.path) in told
    assert "`make data PROFILE=...`" in told
    assert "`demo` needs no data set" in told


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("cifar", "train", r"unknown data set 'cifar': .*cifar10, cifar100, stl10, .*imagenet100"),
        ("cifar10", "val", r"unknown split 'val' of cifar10: choose one of train, test$"),
        ("stl10", "extra", r"unknown split 'extra' of stl10: .*train, test, unlabeled"),
        ("svhn", "unlabeled", r"'unlabeled' of svhn: .*train, test, extra"),
        ("imagenet", "test", r"imagenet is a folder .*imagenet_folder\('imagenet', 'test'\)"),
    ],
)
def test_unknown_names_and_splits_list_the_known(name: str, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchsets.read(name, split)


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "size unknown"), (999, "999 bytes"), (5148, "5.1 kB"), (2640397119, "2.6 GB")],
)
def test_sizes_are_written_for_people(size: int | None, text: str) -> None:
    assert torchsets.show(size) == text


# ------------------------------------------------------------------------------- damaged data


def touch_on_load(target: Path) -> bytes:
    """A pickle that makes a file when it is loaded."""

    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (target,)

    return pickle.dumps(Evil())


@pytest.mark.parametrize("batch", ["data_batch_3", "test_batch", "batches.meta"])
def test_no_pickle_is_opened_before_its_checksum_is_right(
    batch: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that has the size and the time of a file that was verified before."""
    cifar("cifar10", home, monkeypatch, "extracted")
    torchsets.read("cifar10", "train")
    file = home / "cifar-10-batches-py" / batch
    before, good = file.stat(), file.read_bytes()
    evil = touch_on_load(tmp_path / "executed").ljust(len(good), b"\0")[: len(good)]
    file.write_bytes(evil)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    with pytest.raises(
        torchsets.CorruptData, match=f"{batch}.*md5 {md5(evil)}, expected {md5(good)}"
    ):
        torchsets.read("cifar10", "train")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("keep", [0, 1, 0.5])
@pytest.mark.parametrize("name", READABLE)
def test_an_incomplete_archive_is_refused_with_both_checksums(
    name: str, keep: float, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(name, home, monkeypatch)
    file = torchsets.expected(name)[0]
    path = home / file.path
    whole = path.read_bytes()
    half = whole[: int(keep * len(whole))] if keep < 1 else whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes(half)
    with pytest.raises(torchsets.CorruptData) as caught:
        torchsets.read(name, "train")
    told = str(caught.value)
    assert f"md5 {md5(half)}, expected {file.md5}" in told
    assert str(path) in told
    assert "Delete it and fetch it again with `make data PROFILE=...`" in told


@pytest.mark.parametrize("name", ["cifar10", "stl10", "gtsrb"])
def test_what_is_lost_of_an_unpacked_archive_is_unpacked_again(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(name, home, monkeypatch)
    wanted = torchsets.read(name, "train")[0]
    lost = next(home.glob(torchsets.expected(name)[0].parts[0].path))
    lost.unlink()
    assert torch.equal(torchsets.read(name, "train")[0], wanted)
    assert lost.exists()
    assert not list(home.rglob(".*.gz.*"))  # no temporary folder stays


def test_a_full_disk_leaves_nothing_half_unpacked(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar("cifar10", home, monkeypatch, "archive")

    def fails(source: Path, target: str) -> None:
        put(Path(target) / "cifar-10-batches-py" / "data_batch_1", b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torchsets, "extract_archive", fails)
        with pytest.raises(files.StorageError, match=r"No space.*DATA_DIR"):
            torchsets.read("cifar10", "train")
    assert [p.name for p in home.iterdir() if p.is_dir()] == []
    assert len(torchsets.read("cifar10", "train")[0]) == 15


def test_nothing_is_unpacked_outside_of_the_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar("cifar10", home, monkeypatch, "extracted")
    shutil.rmtree(home / "cifar-10-batches-py")
    evil = tar("../..", {"escaped": b"x"})
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", put(home / "cifar-10-python.tar.gz", evil))
    with pytest.raises(tarfile.FilterError):
        torchsets.read("cifar10", "train")
    assert not list(home.parent.rglob("escaped"))


def test_an_archive_without_what_it_should_hold_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gtsrb(home, monkeypatch, "archive")
    (first, *rest) = torchsets.GTSRB
    monkeypatch.setattr(torchsets, "GTSRB", ((*first[:4], 5), *rest))
    with pytest.raises(torchsets.CorruptData, match=r"ppm: 4 files, 5 were expected.*delete"):
        torchsets.read("gtsrb", "train")


def test_a_damaged_sign_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gtsrb(home, monkeypatch, "extracted")
    path = home / "gtsrb" / "GTSRB" / "Training" / "00001" / "00003_00000.ppm"
    for content in (path.read_bytes()[:-100], b"P6\n2", b"", b"no image"):
        path.write_bytes(content)
        with pytest.raises(torchsets.CorruptData, match=r"image 3 of gtsrb train.*delete"):
            torchsets.read("gtsrb", "train")


def test_a_list_of_signs_that_ends_early_is_noticed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gtsrb(home, monkeypatch, "extracted")
    path = home / "gtsrb" / "GT-final_test.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(torchsets.CorruptData, match=r"lists 1 images of 2.*GT-final_test.csv"):
        torchsets.read("gtsrb", "test")


@given(st.binary(min_size=1, max_size=50), st.data())
def test_any_changed_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    home = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(home))
        (home / "file").write_bytes(content)
        torchsets.verify(home / "file", md5(content))
        at = data.draw(st.integers(0, len(content) - 1))
        other = content[at] ^ data.draw(st.integers(1, 255))
        (home / "file").write_bytes(content[:at] + bytes([other]) + content[at + 1 :])
        os.utime(home / "file", (1, 1))
        with pytest.raises(torchsets.CorruptData, match=md5(content)):
            torchsets.verify(home / "file", md5(content))


# ------------------------------------------------------------------ verified once, remembered


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed from now on."""
    names: list[str] = []
    real = torchsets.calculate_md5

    def counting(path: Path) -> str:
        names.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(torchsets, "calculate_md5", counting)
    return names


def test_a_large_file_is_hashed_once_until_it_changes(
    home: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]
) -> None:
    again = "torchvision.datasets.stl10.check_integrity"
    monkeypatch.setattr(again, lambda *_: pytest.fail("torchvision hashes everything again"))
    stl10(home, monkeypatch, "extracted")
    torchsets.read("stl10", "train")
    files = {f"{split}_{kind}.bin" for split in ("train", "test") for kind in "Xy"}
    assert set(hashed) == files | {"unlabeled_X.bin"}
    assert len(hashed) == 5
    hashed.clear()
    torchsets.read("stl10", "test")
    assert hashed == []
    os.utime(home / "stl10_binary" / "test_X.bin", (5, 5))
    torchsets.read("stl10", "test")
    assert hashed == ["test_X.bin"]


@pytest.mark.parametrize("notes", ["", "[1, 2]", '{"train_32x32.mat": 3}', "\0"])
def test_damaged_notes_mean_hashing_again(
    notes: str, home: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]
) -> None:
    svhn(home, monkeypatch, "train")
    (home / torchsets.VERIFIED).write_text(notes)
    torchsets.read("svhn", "train")
    torchsets.read("svhn", "train")
    assert hashed == ["train_32x32.mat"]


def test_notes_do_not_hold_for_another_checksum(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    svhn(home, monkeypatch, "train")
    torchsets.read("svhn", "train")
    url, path, _ = datasets.SVHN.split_list["train"]
    other = datasets.SVHN.split_list | {"train": [url, path, "0" * 32]}
    monkeypatch.setattr(datasets.SVHN, "split_list", other)
    with pytest.raises(torchsets.CorruptData, match=f"expected {'0' * 32}"):
        torchsets.read("svhn", "train")


def test_a_folder_that_cannot_be_written_is_read_all_the_same(
    home: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]
) -> None:
    def refuses(path: Path, value: object) -> None:
        raise files.StorageError(f"{path} cannot be written")

    monkeypatch.setattr(files, "write_json", refuses)
    svhn(home, monkeypatch, "test")
    for _ in range(2):
        assert len(torchsets.read("svhn", "test")[0]) == 4
    assert hashed == ["test_32x32.mat"] * 2
