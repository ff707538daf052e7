"""Packs: the same bytes however they are made, and images on disk that stand where a tensor does."""

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
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
from contsteal.data.packed import IMAGES, LABELS, MANIFEST, pack

SIZE = 8
BROKEN = ("b/05.png", "b/33.png", "c/00.png")
pytestmark = pytest.mark.filterwarnings("ignore:3 of 120 files")


def tree(root: Path, classes: str = "abc", each: int = 40) -> Path:
    """Write `each` random images to every class folder."""
    draws = np.random.default_rng(len(classes) + each)
    for name in classes:
        (root / name).mkdir(parents=True)
        for k in range(each):
            pixels = draws.integers(0, 256, (10, 13, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k:02}.png")
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 40 images; three files of them are damaged."""
    root = tree(tmp_path_factory.mktemp("source") / "source")
    for name in BROKEN:
        (root / name).write_bytes((root / name).read_bytes()[:60])
    return root


@pytest.fixture
def source(whole: Path, tmp_path: Path) -> Path:
    """A copy of the three classes, to change."""
    return Path(shutil.copytree(whole, tmp_path / "source"))


def content(home: Path) -> dict[str, bytes]:
    return {f.relative_to(home).as_posix(): f.read_bytes() for f in home.rglob("*") if f.is_file()}


# --------------------------------------------------------------------------------------- pack


def test_a_pack_holds_what_read_returns(whole: Path, tmp_path: Path) -> None:
    images, labels, classes = folders.read(whole, "train", SIZE)
    with pytest.warns(UserWarning, match=r"3 of 120 files in .*source.* \(b/05.png: "):
        made = pack(whole, tmp_path / "p", SIZE)
    got = packed.open_pack(tmp_path / "p", "train")
    assert torch.equal(got[0][torch.arange(117)], images)
    assert torch.equal(got[1], labels)
    assert (got[1].dtype, got[2]) == (torch.int64, classes)
    manifest = made["train"]
    assert manifest == json.loads((tmp_path / "p" / MANIFEST).read_text())
    assert (manifest["count"], manifest["rows"], manifest["size"]) == (117, 120, SIZE)
    rows = {name: row for row, name, _ in manifest["skipped"]}
    assert rows == {"b/05.png": 45, "b/33.png": 73, "c/00.png": 80}
    raw = np.load(tmp_path / "p" / IMAGES)
    assert (raw.shape, raw.dtype) == ((120, 3, SIZE, SIZE), np.uint8)
    assert not raw[[45, 73, 80]].any(), "a file that cannot be decoded is black"


def test_every_split_is_packed_and_test_falls_back_to_val(tmp_path: Path) -> None:
    tree(tmp_path / "s/train", "ab", 3)
    tree(tmp_path / "s/val", "ab", 2)
    made = pack(tmp_path / "s", tmp_path / "p", SIZE)
    assert {split: m["count"] for split, m in made.items()} == {"train": 6, "val": 4}
    images, labels, classes = packed.open_pack(tmp_path / "p", "test")
    assert torch.equal(images[:][torch.arange(4)], folders.read(tmp_path / "s", "val", SIZE)[0])
    assert (labels.tolist(), classes) == ([0, 0, 1, 1], ("a", "b"))
    with pytest.raises(folders.FolderError, match=r"no split 'dev' in .*p: choose .*train, val"):
        packed.open_pack(tmp_path / "p", "dev")


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    pack(tree(tmp_path / "s", "a", 3) / "a", tmp_path / "p", SIZE)
    images, labels, classes = packed.open_pack(tmp_path / "p", "train")
    assert (len(images), labels, classes) == (3, None, ())


def test_keep_packs_some_classes(tmp_path: Path) -> None:
    tree(tmp_path / "splits/train", "abc", 2)
    tree(tmp_path / "splits/val", "abd", 1)
    made = pack(tmp_path / "splits", tmp_path / "q", SIZE, keep=["b", "a"])
    assert [m["count"] for m in made.values()] == [4, 2]
    assert packed.open_pack(tmp_path / "q", "train")[2] == ("a", "b")


def test_neither_workers_nor_the_place_change_a_byte(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "elsewhere/copy")
    pack(source, tmp_path / "one", SIZE, workers=1)
    pack(tmp_path / "elsewhere/copy", tmp_path / "four", SIZE, workers=4)
    assert content(tmp_path / "one") == content(tmp_path / "four")
    assert content(tmp_path / "one").keys() == {IMAGES, LABELS, MANIFEST}


def test_memory_is_that_of_a_few_images(tmp_path: Path) -> None:
    tree(tmp_path / "s", "a", 640)
    pack(tree(tmp_path / "t", "a", 2), tmp_path / "first", 64)  # what is imported stays
    tracemalloc.start()
    pack(tmp_path / "s", tmp_path / "p", 64, workers=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 640 * 3 * 64**2 / 4


# -------------------------------------------------------------------------------- interruption


def pack_and_die(source: Path, home: Path) -> None:
    """Pack until 70 files are decoded, then kill this process."""
    decode, calls = folders.decode, []

    def dies(path: Path, size: int) -> np.ndarray:
        calls.append(path)
        if len(calls) > 70:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(path, size)

    folders.decode = dies
    pack(source, home, SIZE)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_killed_pack_leaves_nothing_that_opens_and_goes_with_the_next(whole, tmp_path):
    home = tmp_path / "packs" / "p"
    process = multiprocessing.get_context("fork").Process(target=pack_and_die, args=(whole, home))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = home.parent.iterdir()
    assert left.name.startswith(".p.")
    with pytest.raises(packed.PackError, match=r"no finished pack in .*p: make one with python -m"):
        packed.open_pack(home, "train")
    pack(whole, home, SIZE)
    pack(whole, tmp_path / "again", SIZE)
    assert content(home) == content(tmp_path / "again")
    assert list(home.parent.iterdir()) == [home]


def test_a_running_pack_is_left_alone(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / f".p.{os.getppid()}.partial"
    other.mkdir()
    pack(whole, tmp_path / "p", SIZE)
    assert other.exists()


def test_a_finished_pack_is_not_made_again(whole: Path, tmp_path: Path, monkeypatch) -> None:
    first = pack(whole, tmp_path / "p", SIZE)
    before = content(tmp_path / "p")
    monkeypatch.setattr(folders, "decode", None)
    assert pack(whole, tmp_path / "p", SIZE) == first
    assert content(tmp_path / "p") == before


def test_another_size_or_source_is_refused(source: Path, tmp_path: Path) -> None:
    home = tmp_path / "p"
    pack(source, home, SIZE)
    with pytest.raises(packed.PackError, match=r"120 files at 8 px, asked for are 120 at 9 px"):
        pack(source, home, 9)
    with pytest.raises(packed.PackError, match=r"asked for are 80 at 8 px.*or remove it"):
        pack(source, home, SIZE, keep=["a", "b"])
    (source / "a/07.png").write_bytes((source / "a/08.png").read_bytes() + b" ")
    with pytest.raises(packed.PackError, match=r"or a name or size among them changed"):
        pack(source, home, SIZE)


# ------------------------------------------------------------------------------------- storage


def test_too_little_space_is_noticed_before_anything_is_written(
    whole, tmp_path, monkeypatch
) -> None:
    def free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=count))

    free(120 * 3 * SIZE**2 - 1)
    with pytest.raises(files.StorageError, match=r"needs 2.3e-05 GB and 2.3e-05 GB are free"):
        pack(whole, tmp_path / "p", SIZE)
    assert not (tmp_path / "p").exists()
    free(120 * 3 * SIZE**2)
    pack(whole, tmp_path / "p", SIZE)
    free(0)
    pack(whole, tmp_path / "p", SIZE)  # it is there already


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(whole: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 3 * SIZE**2, hard))  # no file may be larger
    try:
        with pytest.raises(files.StorageError, match=r"p cannot be written .*large.*pack again"):
            pack(whole, tmp_path / "p", SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_storage_error(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(files.StorageError, match=r"file/p cannot be written .*File exists"):
        pack(whole, tmp_path / "file/p", SIZE)


# ---------------------------------------------------------------------------------- bad folders


def test_what_cannot_be_packed_says_why(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size=7, workers=-1: give at least 8 pixels"):
        pack(source, tmp_path / "p", 7)
    with pytest.raises(ValueError, match=r"size=8, workers=0: .*1 worker"):
        pack(source, tmp_path / "p", SIZE, workers=0)
    with pytest.raises(ValueError, match=r"source/p lies in .*source"):
        pack(source, source / "p", SIZE)
    with pytest.raises(folders.FolderError, match="not a folder"):
        pack(tmp_path / "nowhere", tmp_path / "p", SIZE)
    with pytest.raises(folders.FolderError, match="no class folders d"):
        pack(source, tmp_path / "p", SIZE, keep=["d"])
    (source / "a/x.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"No such file.*a/x.png"):
        pack(source, tmp_path / "p", SIZE)
    (tmp_path / "s").mkdir()
    (tmp_path / "s/1.jpg").write_text("no image")
    with pytest.raises(folders.FolderError, match=r"1 of 1 files .*not an image.*no image is left"):
        pack(tmp_path / "s", tmp_path / "p", SIZE)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "s"}


# --------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def home(whole: Path) -> Path:
    """A pack of 117 images at 32 px."""
    pack(whole, whole.parent / "p", 32)
    return whole.parent / "p"


@pytest.fixture(scope="module")
def tensor(whole: Path) -> Tensor:
    return folders.read(whole, "train", 32)[0]


@pytest.fixture
def spoilt(home: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(home, tmp_path / "spoilt"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def reverse_classes(path: Path) -> None:
    manifest = json.loads(path.read_text())
    files.write_json(path, manifest | {"classes": manifest["classes"][::-1]})


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (LABELS, flip, r"labels.npy is not what was written: remove .*spoilt and pack it again"),
        (LABELS, Path.unlink, r"labels.npy is not what was written"),
        (MANIFEST, flip, r"manifest.json is not what was written"),
        (MANIFEST, reverse_classes, r"manifest.json is not what was written"),
        (MANIFEST, Path.unlink, r"no finished pack in"),
        (IMAGES, Path.unlink, r"images.npy is missing or truncated \(.*: remove .*spoilt and pack it"),
        (IMAGES, lambda path: path.write_bytes(b""), r"images.npy is missing or truncated"),
        (IMAGES, lambda path: os.truncate(path, 300_000), r"images.npy is missing or truncated"),
        (IMAGES, lambda path: np.save(path, np.zeros((120, 3, 8, 8), "u1")), r"images.npy is not what"),
    ],
)  # fmt: skip
def test_damage_is_noticed_when_a_pack_is_opened(
    spoilt: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(spoilt / name)
    with pytest.raises(packed.PackError, match=message):
        packed.open_pack(spoilt, "train")


def test_images_truncated_after_opening_are_an_error(spoilt: Path) -> None:
    images = packed.open_pack(spoilt, "train")[0]
    os.truncate(spoilt / IMAGES, 300_000)
    with pytest.raises(packed.PackError, match=r"images.npy is missing or truncated"):
        images[torch.tensor([116, 3])]


def test_other_pixels_in_files_of_the_same_size_have_another_key(tmp_path: Path) -> None:
    keys = []
    for value in (1, 2):
        (tmp_path / f"s{value}").mkdir()
        Image.new("RGB", (9, 9), (value, 0, 0)).save(tmp_path / f"s{value}/1.bmp")
        pack(tmp_path / f"s{value}", tmp_path / f"p{value}", SIZE)
        keys.append(packed.open_pack(tmp_path / f"p{value}", "train")[0].key)
    assert keys[0] != keys[1]


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
    for index in (117, torch.tensor([0, 117]), -118, (0, 1)):
        with pytest.raises(IndexError):
            images[index]
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


def test_a_view_is_small_to_send_and_reads_the_same(images: packed.Packed, tensor: Tensor) -> None:
    sent = pickle.dumps(images[3:9])
    assert len(sent) < 3 * 32**2
    assert torch.equal(pickle.loads(sent)[torch.arange(6)], tensor[3:9])


def test_views_have_keys_of_their_images(images: packed.Packed, home: Path) -> None:
    again = packed.open_pack(home, "train")[0]
    assert again.key == images.key == images[:].key == images.to("meta").key
    assert len({images.key, images[1:].key, images[::3].key}) == 3


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
def test_training_is_that_on_the_tensor(home: Path, tensor: Tensor) -> None:
    images, labels, classes = packed.open_pack(home, "train")
    config = pretrain.Config("simclr", encoder="test_resnet", epochs=1, batch=32, held_out=10)
    sets = [data.ImageSet(source, labels, "x", "train", classes) for source in (images, tensor)]
    one, two = (pretrain.train(config, images).state_dict().items() for images in sets)
    assert files.digest(one) == files.digest(two)


# --------------------------------------------------------------------------------- command line


def test_the_command_packs_and_reports(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "chosen.txt").write_text("b\na\n")
    keep = ["--keep", tmp_path / "chosen.txt", "--workers", "2"]
    command = [sys.executable, "-m", "contsteal.data.packed", whole, tmp_path / "p", "--size", "8"]
    done = subprocess.run([*command, *keep], capture_output=True, text=True)
    assert done.stdout == "train: 78 images of 2 classes at 8 px, 2 files skipped\n"
    assert done.returncode == 0
    assert "2 of 80 files" in done.stderr
    assert "RuntimeWarning" not in done.stderr, "the package must not import its own command"
    assert packed.open_pack(tmp_path / "p", "train")[2] == ("a", "b")


def test_the_command_says_what_the_problem_is(tmp_path: Path, capsys) -> None:
    assert packed.main([str(tmp_path / "nowhere"), str(tmp_path / "p")]) == 1
    assert f"error: {tmp_path}/nowhere is not a folder" in capsys.readouterr().err
    assert packed.main([str(tmp_path), str(tmp_path / "p"), "--keep", str(tmp_path / "x")]) == 1
    assert "No such file" in capsys.readouterr().err
