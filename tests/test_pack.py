"""Packs: the same bytes however they are made, and images on disk that stand where a tensor does."""

import csv
import json
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from contsteal import data, encoders, files, pretrain
from contsteal.data import folders, packed
from contsteal.data.packed import IMAGES, JOURNAL, LABELS
from contsteal.lab import artifacts

SIZE = 8
BROKEN = ("b/05.png", "b/33.png", "c/00.png")


def tree(root: Path, classes: str = "abc", each: int = 40, size: int = 10) -> Path:
    """Write `each` random images to every class folder."""
    draws = np.random.default_rng(len(classes) + each)
    for name in classes:
        (root / name).mkdir(parents=True)
        for k in range(each):
            pixels = draws.integers(0, 256, (size, size + 3, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k:02}.png")
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three classes of 40 images, 4 blocks; three files of them are damaged."""
    root = tree(tmp_path / "source")
    for name in BROKEN:
        (root / name).write_bytes((root / name).read_bytes()[:60])
    return root


def content(home: Path) -> dict[str, bytes]:
    return {f.relative_to(home).as_posix(): f.read_bytes() for f in home.rglob("*") if f.is_file()}


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Count how often every file is decoded."""
    counts, decode = Counter(), folders.decode

    def spy(path: Path, size: int, out: np.ndarray) -> np.ndarray:
        counts[f"{path.parent.name}/{path.name}"] += 1
        return decode(path, size, out)

    monkeypatch.setattr(folders, "decode", spy)
    return counts


pytestmark = pytest.mark.filterwarnings("ignore:3 of 120 files")

# --------------------------------------------------------------------------------------- pack


def test_a_pack_holds_what_read_returns(source: Path, tmp_path: Path) -> None:
    images, labels, classes, skipped = folders.read(source, "train", SIZE)
    with pytest.warns(UserWarning, match=r"3 of 120 files in .*source.* \(b/05.png: "):
        made = packed.pack(source, tmp_path / "p", SIZE)
    got = packed.open_pack(tmp_path / "p", "train")
    assert torch.equal(got[0][torch.arange(117)], images)
    assert torch.equal(got[1], labels)
    assert got[1].dtype == torch.int64
    assert got[2] == classes
    manifest = made["train"]
    assert manifest == json.loads((tmp_path / "p/manifest.json").read_text())
    assert (manifest["count"], manifest["rows"], manifest["size"]) == (117, 120, SIZE)
    rows = {name: row for row, name, _ in manifest["skipped"]}
    assert rows == {"b/05.png": 45, "b/33.png": 73, "c/00.png": 80}
    assert {name: why for _, name, why in manifest["skipped"]} == skipped
    raw = np.fromfile(tmp_path / "p" / IMAGES, np.uint8).reshape(120, 3, SIZE, SIZE)
    assert not raw[[45, 73, 80]].any(), "a file that cannot be decoded is black"
    packed.verify(tmp_path / "p")


def test_every_split_is_packed_and_test_falls_back_to_val(tmp_path: Path) -> None:
    tree(tmp_path / "s/train", "ab", 3)
    tree(tmp_path / "s/val", "ab", 2)
    made = packed.pack(tmp_path / "s", tmp_path / "p", SIZE)
    assert {split: m["count"] for split, m in made.items()} == {"train": 6, "val": 4}
    images, labels, classes = packed.open_pack(tmp_path / "p", "test")
    assert torch.equal(images[:][torch.arange(4)], folders.read(tmp_path / "s", "val", SIZE)[0])
    assert (labels.tolist(), classes) == ([0, 0, 1, 1], ("a", "b"))
    with pytest.raises(folders.FolderError, match=r"no split 'dev' in .*p: choose .*train, val"):
        packed.open_pack(tmp_path / "p", "dev")
    packed.verify(tmp_path / "p")


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    tree(tmp_path / "s", "a", 3)
    packed.pack(tmp_path / "s/a", tmp_path / "p", SIZE)
    images, labels, classes = packed.open_pack(tmp_path / "p", "train")
    assert (len(images), labels, classes) == (3, None, ())
    with pytest.raises(folders.FolderError, match="no split 'test'"):
        packed.open_pack(tmp_path / "p", "test")


def test_files_of_other_extensions_are_told_and_not_packed(tmp_path: Path) -> None:
    for split in ("train", "val"):
        tree(tmp_path / "s" / split, "ab", 2)
    (tmp_path / "s/train/a/list.txt").touch()
    wanted = r"^1 files in .*train are no images by their names and were left out \(a/list.txt\)$"
    with pytest.warns(UserWarning, match=wanted) as told:
        made = packed.pack(tmp_path / "s", tmp_path / "p", SIZE)
    assert (len(told), made["train"]["count"]) == (1, 4)


def test_keep_packs_some_classes(tmp_path: Path) -> None:
    tree(tmp_path / "s", "abc", 2)
    packed.pack(tmp_path / "s", tmp_path / "p", SIZE, keep={"c", "a"})
    images, labels, classes = packed.open_pack(tmp_path / "p", "train")
    assert (len(images), labels.tolist(), classes) == (4, [0, 0, 1, 1], ("a", "c"))
    tree(tmp_path / "splits/train", "abc", 2)
    tree(tmp_path / "splits/val", "abd", 1)
    made = packed.pack(tmp_path / "splits", tmp_path / "q", SIZE, keep=["a", "b"])
    assert [m["count"] for m in made.values()] == [4, 2]


def test_neither_workers_nor_the_place_change_a_byte(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "elsewhere/copy")
    packed.pack(source, tmp_path / "one", SIZE, workers=1)
    packed.pack(tmp_path / "elsewhere/copy", tmp_path / "four", SIZE, workers=4)
    assert content(tmp_path / "one") == content(tmp_path / "four")
    assert content(tmp_path / "one").keys() == {IMAGES, LABELS, artifacts.MANIFEST}


def test_memory_is_bounded_by_blocks(tmp_path: Path) -> None:
    tree(tmp_path / "s", "a", 640)
    whole, block = 640 * 3 * 64**2, folders.BLOCK * 3 * 64**2
    tracemalloc.start()
    packed.pack(tmp_path / "s", tmp_path / "p", 64, workers=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * block + 600_000 < whole / 4  # two blocks, and the names of the files


# -------------------------------------------------------------------------------- interruption


KILLED = """
import os, signal, sys, time
from pathlib import Path
from contsteal import blocks, folders, pack
decode, calls = folders.decode, []
def noted():  # what the main thread has written of the two blocks that are done
    return (Path(sys.argv[2]) / pack.JOURNAL).read_text().count("sha256")
def dies(path, size, out):
    calls.append(path)
    if len(calls) > 70:
        while noted() < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(path, size, out)
folders.decode = dies
pack.pack(Path(sys.argv[1]), Path(sys.argv[2]), 8, workers=1)
"""


def test_a_killed_pack_continues_to_the_same_bytes(source: Path, tmp_path: Path, decodes) -> None:
    packed.pack(source, tmp_path / "whole", SIZE)
    half = tmp_path / "half"
    run = subprocess.run([sys.executable, "-c", KILLED, source, half], capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not (half / artifacts.MANIFEST).exists()
    with pytest.raises(packed.PackError, match=r"half is unfinished: start the same pack again"):
        packed.open_pack(half, "train")
    decodes.clear()
    packed.pack(source, half, SIZE)
    assert sum(decodes.values()) == 120 - 2 * folders.BLOCK
    assert set(decodes.values()) == {1}
    assert content(half) == content(tmp_path / "whole")


def interrupt(source: Path, home: Path, monkeypatch, after: int = 100, size: int = SIZE) -> None:
    """Pack until `after` files are decoded, then fail."""
    decode, calls = folders.decode, []

    def dies(path: Path, size: int, out: np.ndarray) -> np.ndarray:
        calls.append(path)
        if len(calls) > after:
            raise KeyboardInterrupt
        return decode(path, size, out)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "decode", dies)
        with pytest.raises(KeyboardInterrupt):
            packed.pack(source, home, size, workers=1)


def test_a_block_altered_after_a_kill_is_decoded_again(
    source: Path, tmp_path: Path, monkeypatch, decodes
) -> None:
    home = tmp_path / "p"
    packed.pack(source, tmp_path / "whole", SIZE)
    interrupt(source, home, monkeypatch)
    with (home / IMAGES).open("r+b") as file:
        file.seek(40 * 3 * SIZE**2)
        file.write(b"?")
    decodes.clear()
    packed.pack(source, home, SIZE)
    assert sum(decodes.values()) == folders.BLOCK + 120 - 3 * folders.BLOCK
    assert content(home) == content(tmp_path / "whole")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_torn_journal_costs_blocks_and_no_bytes(
    source: Path, tmp_path: Path, monkeypatch, kept: float
) -> None:
    home = tmp_path / "p"
    packed.pack(source, tmp_path / "whole", SIZE)
    interrupt(source, home, monkeypatch)
    lines = (home / JOURNAL).read_bytes()
    (home / JOURNAL).write_bytes(lines[: int(kept * len(lines))])
    interrupt(source, home, monkeypatch, 10)
    packed.pack(source, home, SIZE)
    assert content(home) == content(tmp_path / "whole")


def test_a_finished_pack_is_not_made_again(source: Path, tmp_path: Path, decodes) -> None:
    first = packed.pack(source, tmp_path / "p", SIZE)
    before = content(tmp_path / "p")
    decodes.clear()
    assert packed.pack(source, tmp_path / "p", SIZE) == first
    assert not decodes
    assert content(tmp_path / "p") == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_size_or_source_is_refused(
    source: Path, tmp_path: Path, monkeypatch, finished: bool
) -> None:
    home = tmp_path / "p"
    if finished:
        packed.pack(source, home, SIZE)
    else:
        interrupt(source, home, monkeypatch)
    with pytest.raises(packed.PackError, match=r"p holds images of 8 px, not 9: remove it"):
        packed.pack(source, home, 9)
    with pytest.raises(packed.PackError, match=r"packed from 120 files, now there are 80.*kept"):
        packed.pack(source, home, SIZE, keep=["a", "b"])
    (source / "a/07.png").write_bytes((source / "a/08.png").read_bytes() + b" ")
    with pytest.raises(packed.PackError, match=r"120 files, now there are 120, or a name or size"):
        packed.pack(source, home, SIZE)


# ------------------------------------------------------------------------------------- storage


def test_too_little_space_is_noticed_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch
) -> None:
    need = 120 * 3 * SIZE**2

    def free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=count))

    free(need - 1)
    with pytest.raises(
        files.StorageError, match=r"p needs 2.3e-05 GB and 2.3e-05 GB are free.*size"
    ):
        packed.pack(source, tmp_path / "p", SIZE)
    assert not (tmp_path / "p").exists()
    free(need)
    packed.pack(source, tmp_path / "p", SIZE)
    free(0)
    with (tmp_path / "p" / IMAGES).open("r+b") as file:  # as a disk that compresses stores it
        file.truncate(0)
        file.truncate(need)
    packed.pack(source, tmp_path / "p", SIZE)  # it is there already


def test_a_resumed_pack_needs_space_for_the_rest_alone(tmp_path: Path, monkeypatch) -> None:
    source, home = tree(tmp_path / "s", "a", 96), tmp_path / "p"
    interrupt(source, home, monkeypatch, 64, size=64)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50 * 3 * 64**2))
    packed.pack(source, home, 64)
    assert len(packed.open_pack(home, "train")[0]) == 96


def test_a_full_disk_is_a_storage_error_and_keeps_what_was_done(
    source: Path, tmp_path: Path, monkeypatch
) -> None:
    home = tmp_path / "p"
    interrupt(source, home, monkeypatch, 100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 3 * SIZE**2, hard))  # no file may be larger
    try:
        with pytest.raises(
            files.StorageError, match=r"p cannot be written .*large.*same pack again"
        ):
            packed.pack(source, home, SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    packed.pack(source, home, SIZE)
    packed.verify(home)


def test_a_place_that_cannot_be_written_is_a_storage_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(files.StorageError, match=r"file/p cannot be written .*Not a directory"):
        packed.pack(source, tmp_path / "file/p", SIZE)


def test_a_manifest_that_cannot_be_written_is_a_storage_error(
    source: Path, tmp_path: Path, monkeypatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(files.StorageError, match=r"p cannot be written .*No space left"):
            packed.pack(source, tmp_path / "p", SIZE)
    packed.pack(source, tmp_path / "p", SIZE)
    packed.verify(tmp_path / "p")


# ---------------------------------------------------------------------------------- bad folders


def test_what_cannot_be_packed_says_why(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size=7, workers=None: at least 8 pixels"):
        packed.pack(source, tmp_path / "p", 7)
    with pytest.raises(ValueError, match=r"size=8, workers=0: .*1 worker"):
        packed.pack(source, tmp_path / "p", SIZE, workers=0)
    with pytest.raises(ValueError, match=r"source/p lies in .*source"):
        packed.pack(source, source / "p", SIZE)
    with pytest.raises(folders.FolderError, match="not a folder"):
        packed.pack(tmp_path / "nowhere", tmp_path / "p", SIZE)
    with pytest.raises(folders.FolderError, match="no class folders d"):
        packed.pack(source, tmp_path / "p", SIZE, keep=["d"])
    tree(tmp_path / "s/train", "ab", 1)
    tree(tmp_path / "s/test", "a", 1)
    with pytest.raises(folders.FolderError, match=r"test lacks class folders of others: b"):
        packed.pack(tmp_path / "s", tmp_path / "p", SIZE)
    assert not (tmp_path / "p").exists()


def test_a_folder_of_unreadable_files_makes_no_pack(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for k in range(3):
        (tmp_path / f"s/{k}.jpg").write_text("no image")
    with pytest.raises(folders.FolderError, match=r"3 of 3 files .*not an image.*no image is left"):
        packed.pack(tmp_path / "s", tmp_path / "p", SIZE)
    with pytest.raises(packed.PackError, match="unfinished"):
        packed.open_pack(tmp_path / "p", "train")


def test_a_file_that_vanishes_is_no_skipped_file(tmp_path: Path) -> None:
    tree(tmp_path / "s", "a", 3)
    (tmp_path / "s/a/x.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(folders.FolderError, match=r"x.png cannot be read \(No such file"):
        packed.pack(tmp_path / "s", tmp_path / "p", SIZE)


# --------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 117 images at 32 px."""
    root = tmp_path_factory.mktemp("packs")
    source = tree(root / "source", size=32)
    for name in BROKEN:
        (source / name).write_bytes((source / name).read_bytes()[:60])
    packed.pack(source, root / "p", 32)
    return root / "p"


@pytest.fixture(scope="module")
def tensor(home: Path) -> Tensor:
    return folders.read(home.parent / "source", "train", 32)[0]


@pytest.fixture
def spoilt(home: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(home, tmp_path / "spoilt"))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_verify_names_the_altered_rows(spoilt: Path) -> None:
    packed.verify(spoilt)
    flip(spoilt / IMAGES, 70 * 3 * 32**2)
    packed.open_pack(spoilt, "train")
    with pytest.raises(
        packed.PackError, match=r"not what was written in 1 blocks \(rows 64-95\): rem"
    ):
        packed.verify(spoilt)


def test_truncated_images_are_noticed_when_opened_and_when_read(spoilt: Path) -> None:
    images = packed.open_pack(spoilt, "train")[0]
    with (spoilt / IMAGES).open("r+b") as file:
        file.truncate(100 * 3 * 32**2 + 5)
    with pytest.raises(packed.PackError, match=r"images.bin has 307205 bytes of 368640; remove"):
        packed.open_pack(spoilt, "train")
    with pytest.raises(packed.PackError, match=r"images.bin was truncated: pack the folder again"):
        images[torch.tensor([116, 3])]
    assert images[torch.tensor([5, 3])].shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (LABELS, r"labels.npy is not what was written; remove the folder and pack it again"),
        (artifacts.MANIFEST, r"manifest.json is not what was written"),
        (IMAGES, r"images.bin has 0 bytes of 368640"),
    ],
)
def test_altered_and_missing_files_are_named(spoilt: Path, name: str, message: str) -> None:
    if name != IMAGES:
        text = (spoilt / name).read_bytes()
        (spoilt / name).write_bytes(text.replace(b'"count": 117', b'"count": 118'))
        flip(spoilt / name, -9)
        with pytest.raises(packed.PackError, match=message):
            packed.open_pack(spoilt, "train")
    (spoilt / name).unlink()
    message = "no pack in" if name == artifacts.MANIFEST else message
    with pytest.raises(packed.PackError, match=message):
        packed.open_pack(spoilt, "train")


def test_an_edited_manifest_is_noticed(spoilt: Path) -> None:
    manifest = json.loads((spoilt / artifacts.MANIFEST).read_text())
    manifest["classes"].reverse()
    files.write_json(spoilt / artifacts.MANIFEST, manifest)
    with pytest.raises(packed.PackError, match=r"manifest.json is not what was written"):
        packed.open_pack(spoilt, "train")


def test_a_pack_of_another_format_is_refused(spoilt: Path, monkeypatch) -> None:
    monkeypatch.setattr(packed, "FORMAT", "contsteal pack 2")
    with pytest.raises(
        packed.PackError, match=r"'contsteal pack 1, .*', read are 'contsteal pack 2'"
    ):
        packed.open_pack(spoilt, "train")


def test_no_pack_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(packed.PackError, match=r"no pack in .*: make one with .*data pack"):
        packed.open_pack(tmp_path, "train")


# --------------------------------------------------------------------------------------- Packed


@pytest.fixture(scope="module")
def images(home: Path) -> packed.Packed:
    return packed.open_pack(home, "train")[0]


def test_it_looks_like_the_tensor(images: packed.Packed, tensor: Tensor) -> None:
    for name in ("shape", "ndim", "dtype", "device"):
        assert getattr(images, name) == getattr(tensor, name), name
    assert len(images) == len(tensor)
    assert not images.is_floating_point()
    assert encoders.as_uint8(images) is images


indices = st.lists(st.integers(-117, 116), max_size=40)
slices = st.builds(slice, *[st.none() | st.integers(-130, 130)] * 2, st.sampled_from([None, 1, 3]))


@given(index=indices, form=st.sampled_from([torch.tensor, np.array, list]))
def test_an_index_reads_what_it_would_of_the_tensor(images, tensor, index, form) -> None:
    options = {} if form is list else {"dtype": torch.int64 if form is torch.tensor else np.int64}
    got = images[form(index, **options)]
    assert torch.equal(got, tensor[torch.tensor(index, dtype=torch.int64)])
    assert got.is_contiguous()


@given(slices, indices, slices)
def test_views_of_views_read_the_same(images, tensor, one: slice, index, two: slice) -> None:
    view, want = images[one], tensor[one]
    assert isinstance(view, packed.Packed)
    assert view.shape == want.shape
    places = torch.tensor([i % len(want) for i in index] if len(want) else [], dtype=torch.int64)
    view, want = view.rows(places)[two], want[places][two]
    assert torch.equal(view[torch.arange(len(want))], want)


@given(st.integers(0, 117), st.integers(1, 130))
def test_split_reads_batches_in_order(images, tensor, n: int, batch: int) -> None:
    got, want = list(images[:n].split(batch)), tensor[:n].split(batch) if n else ()
    assert [len(part) for part in got] == [len(part) for part in want]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_single_images_and_masks(images: packed.Packed, tensor: Tensor) -> None:
    assert torch.equal(images[-2], tensor[-2])
    assert torch.equal(images[torch.tensor(7)], tensor[7])
    mask = torch.arange(117) % 5 == 0
    assert torch.equal(images[mask], tensor[mask])
    assert torch.equal(torch.stack(list(images[:9])), tensor[:9])


def test_indices_that_do_not_fit_are_refused(images: packed.Packed) -> None:
    for wrong in (117, torch.tensor([0, 117]), -118, (0, 1)):
        with pytest.raises(IndexError):
            images[wrong]
    with pytest.raises(IndexError, match=r"shape \(2, 2\): give a slice or one dimension"):
        images[torch.zeros(2, 2, dtype=torch.int64)]
    with pytest.raises(IndexError):
        images[torch.tensor([0.5])]


def test_to_says_where_what_is_read_goes(images: packed.Packed) -> None:
    moved = images.to("meta")
    assert moved.device.type == "meta"
    assert moved[:5].rows(torch.tensor([1, 2])).device.type == "meta"
    assert moved[torch.tensor([1, 2])].device.type == "meta"
    assert images.device.type == "cpu"


def test_rows_are_read_in_the_order_of_the_file(images: packed.Packed, tensor: Tensor) -> None:
    places, row = [], 3 * 32**2

    class Spy:
        def open(self, mode: str) -> "Spy":
            self.file = images._file.open(mode)
            return self

        def __enter__(self) -> "Spy":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def seek(self, place: int) -> None:
            self.file.seek(place)

        def readinto(self, out: np.ndarray) -> int:
            places.append((self.file.tell() // row, out.nbytes // row))
            return self.file.readinto(out)

    spied = packed.Packed(Spy(), 32, images._rows)
    index = torch.tensor([30, 7, 8, 9, 2, 7, 31])
    assert torch.equal(spied[index], tensor[index])
    assert places == [(2, 1), (7, 1), (7, 1), (8, 2), (30, 1), (31, 1)]
    places.clear()
    list(spied[20:60].split(40))
    assert places == [(20, 25), (46, 15)], "one read, but for the row of a damaged file"


def test_reading_takes_the_memory_of_the_answer(images: packed.Packed) -> None:
    index = torch.randperm(117).repeat(20)
    tracemalloc.start()
    images[index]
    peak = tracemalloc.get_traced_memory()[1]  # of numpy; the answer itself is torch's
    tracemalloc.stop()
    assert peak < 0.2 * len(index) * 3 * 32**2


# ---------------------------------------------------------------------------- in the code base


def test_embeddings_are_those_of_the_tensor(images, tensor, tiny: encoders.Encoder) -> None:
    assert torch.equal(encoders.embed(tiny, images, 32), encoders.embed(tiny, tensor, 32))


@pytest.mark.filterwarnings("ignore:.* collapsed")
@pytest.mark.parametrize("method", ["simclr", "supervised"])
def test_training_is_that_on_the_tensor(home: Path, tensor: Tensor, method: str) -> None:
    images, labels, classes = packed.open_pack(home, "train")
    config = pretrain.Config(method=method, encoder="test_resnet", epochs=2, batch=32, held_out=10)
    on_disk = data.ImageSet(images, labels, "folder", "train", classes)
    one, two = (pretrain.fit(config, s) for s in (on_disk, replace(on_disk, images=tensor)))
    assert encoders.digest(one[0].state_dict().items()) == encoders.digest(
        two[0].state_dict().items()
    )
    assert [row["loss"] for row in one[1]] == [row["loss"] for row in two[1]]
    assert [row["knn"] for row in one[1][-1:]] == [row["knn"] for row in two[1][-1:]]


# --------------------------------------------------------------------------------- command line


def test_the_command_packs_and_reports(source: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "chosen.txt").write_text("b\na\n")
    keep = ["--keep", str(tmp_path / "chosen.txt")]
    with pytest.warns(UserWarning, match="2 of 80 files"):
        assert packed.main([str(source), str(tmp_path / "p"), "--size", "8", *keep]) == 0
    assert capsys.readouterr().out == "train: 78 images of 2 classes at 8 px, 2 files skipped\n"
    assert packed.open_pack(tmp_path / "p", "train")[2] == ("a", "b")


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys) -> None:
    assert packed.main([str(tmp_path / "nowhere"), str(tmp_path / "p")]) == 1
    assert "error: " in (told := capsys.readouterr().err)
    assert "nowhere is not a folder" in told


def test_the_benchmark_measures_and_stores(tmp_path: Path, capsys) -> None:
    run = runpy.run_path(str(artifacts.ROOT / "benchmarks" / "pack.py"))["main"]
    out = tmp_path / "results/pack_cpu.csv"
    assert run(["--n", "40", "--size", "16", "--repeats", "2", "--out", str(out)]) in (0, 1)
    (row,) = csv.DictReader(out.open())
    assert (row["n"], row["size"], row["repeats"]) == ("40", "16", "2")
    assert float(row["pack_per_s"]) > 0 < float(row["decode_per_s"])
    assert 0 < int(row["rss_before_mb"]) <= int(row["rss_peak_mb"])
    assert "of the decode limit (bar: 90%)" in capsys.readouterr().out
