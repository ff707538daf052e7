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

import numpy as np
import pytest
import tinysets
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from contsteal import data, encoders, files, pretrain
from contsteal.data import folders, packed
from contsteal.data.packed import IMAGES, MANIFEST, PackError, open_pack, pack

SIZE = 8
BROKEN = ("b/05.png", "b/33.png", "c/00.png")
pytestmark = pytest.mark.filterwarnings("ignore:3 of 120 files")


def tree(root: Path, classes: str = "abc", each: int = 40) -> Path:
    """Write `each` random images to every class folder."""
    for name in classes:
        for k in range(each):
            tinysets.noise_file(root / name / f"{k:02}.png", k % 256)
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
        manifest = pack(whole, tmp_path / "p", SIZE)["train"]
    got, skipped = open_pack(tmp_path / "p", "train"), [45, 73, 80]
    assert torch.equal(got[0][torch.arange(117)], images)
    assert torch.equal(got[1], labels)
    assert (got[1].dtype, got[2]) == (torch.int64, classes)
    assert manifest == json.loads((tmp_path / "p" / MANIFEST).read_text())
    assert [row for row, *_ in manifest["skipped"]] == skipped
    assert tuple(name for _, name, _ in manifest["skipped"]) == BROKEN
    raw = np.load(tmp_path / "p" / IMAGES)
    assert (raw.shape, raw.dtype) == ((120, 3, SIZE, SIZE), np.uint8)
    assert not raw[skipped].any(), "a file that cannot be decoded is black"


def test_every_split_is_packed_restricted_to_classes_and_test_falls_back_to_val(tmp_path) -> None:
    tree(tmp_path / "s/train", "abc", 3)
    tree(tmp_path / "s/val", "abd", 2)
    made = pack(tmp_path / "s", tmp_path / "p", SIZE, keep=["b", "a"])
    assert {split: m["rows"] for split, m in made.items()} == {"train": 6, "val": 4}
    images, labels, classes = open_pack(tmp_path / "p", "test")
    want = [folders.decode(tmp_path / f"s/val/{c}/{k:02}.png", SIZE) for c in "ab" for k in (0, 1)]
    assert np.array_equal(images[torch.arange(4)], want)
    assert (labels.tolist(), classes) == ([0, 0, 1, 1], ("a", "b"))
    with pytest.raises(folders.FolderError, match=r"no split 'dev' in .*p: choose .*train, val"):
        open_pack(tmp_path / "p", "dev")
    pack(tmp_path / "s/train/c", tmp_path / "flat", SIZE)
    assert open_pack(tmp_path / "flat", "train")[1:] == (None, ())


def test_neither_workers_nor_the_place_change_a_byte(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "elsewhere/copy")
    pack(source, tmp_path / "one", SIZE, workers=1)
    pack(tmp_path / "elsewhere/copy", tmp_path / "four", SIZE, workers=4)
    assert content(tmp_path / "one") == content(tmp_path / "four")
    assert content(tmp_path / "one").keys() == {IMAGES, packed.SUMS, MANIFEST}


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
    home, running = tmp_path / "packs/p", tmp_path / f"packs/.p.{os.getppid()}@{files.HOST}.partial"
    process = multiprocessing.get_context("fork").Process(target=pack_and_die, args=(whole, home))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = home.parent.iterdir()
    assert left.name == f".p.{process.pid}@{files.HOST}.partial"
    with pytest.raises(PackError, match=r"no finished pack in .*p: make one with python -m"):
        open_pack(home, "train")
    running.mkdir()
    pack(whole, home, SIZE)
    pack(whole, tmp_path / "again", SIZE)
    assert content(home) == content(tmp_path / "again")
    assert {*home.parent.iterdir()} == {home, running}, "one that still runs is left alone"


def test_a_finished_pack_is_kept_and_another_size_or_source_is_refused(
    source, tmp_path, monkeypatch
) -> None:
    home = tmp_path / "p"
    first, before = pack(source, home, SIZE), content(home)
    monkeypatch.setattr(folders, "decode", None)
    assert pack(source, home, SIZE) == first
    with pytest.raises(PackError, match=r"120 files at 8 px, and not the 120 of .* at 9 px"):
        pack(source, home, 9)
    with pytest.raises(PackError, match=r"not the 80 of .* at 8 px.*remove .* to pack"):
        pack(source, home, SIZE, keep=["a", "b"])
    (source / "a/07.png").write_bytes((source / "a/08.png").read_bytes() + b" ")
    with pytest.raises(PackError, match=r"not the 120 of .* as they are now"):
        pack(source, home, SIZE)
    assert content(home) == before


# ----------------------------------------------------------------- what cannot be packed


def test_a_full_disk_is_a_storage_error_before_anything_is_decoded(
    whole, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(folders, "decode", None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 3 * SIZE**2, hard))  # no file may be larger
    try:
        with pytest.raises(files.StorageError, match=r"p cannot be written .*large.*free space"):
            pack(whole, tmp_path / "p", SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(files.StorageError, match=r"file/p cannot be written .*File exists"):
        pack(whole, tmp_path / "file/p", SIZE)


@pytest.mark.parametrize(
    ("src", "dst", "options", "message"),
    [
        ("source", "p", {"size": 7}, "size=7: a whole number of at least 8"),
        ("source", "p", {"workers": 0}, "workers=0: a whole number of at least 1"),
        ("source", "source/p", {}, r"source/p lies in .*source"),
        ("nowhere", "p", {}, "not a folder"),
        ("source", "p", {"keep": ["d"]}, "no class folders d"),
        ("text", "p", {}, r"1 of 1 files .*not an image.*no image is left"),
    ],
)
def test_what_cannot_be_packed_says_why(source, tmp_path, src, dst, options, message) -> None:
    files.write_text(tmp_path / "text/1.jpg", "no image")
    with pytest.raises(ValueError, match=message):
        pack(tmp_path / src, tmp_path / dst, **{"size": SIZE} | options)
    (source / "a/x.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"No such file.*a/x.png"):
        pack(source, tmp_path / "p", SIZE)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "text"}


# --------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def home(whole: Path) -> Path:
    """A pack of 117 images at 32 px."""
    pack(whole, whole.parent / "p", 32)
    return whole.parent / "p"


@pytest.fixture(scope="module")
def tensor(whole: Path) -> Tensor:
    return folders.read(whole, "train", 32)[0]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def recount(path: Path) -> None:
    files.write_json(path, json.loads(path.read_text()) | {"classes": {"a": 60, "b": 60}})


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (MANIFEST, flip, r"manifest.json was damaged or altered: remove .*spoilt and pack it again"),
        (MANIFEST, recount, r"manifest.json was damaged or altered"),
        (MANIFEST, Path.unlink, r"no finished pack in"),
        (packed.SUMS, flip, r"sums.npy was damaged or altered: remove .*spoilt and pack it again"),
        (packed.SUMS, Path.unlink, r"sums.npy is missing"),
        (IMAGES, Path.unlink, r"images.npy is missing or truncated \(.*: remove .*spoilt and pack it"),
        (IMAGES, lambda path: path.write_bytes(b""), r"images.npy is missing or truncated"),
        (IMAGES, lambda path: os.truncate(path, 300_000), r"images.npy is missing or truncated"),
        (IMAGES, lambda path: np.save(path, np.zeros((120, 3, 8, 8), "u1")), r"images.npy was damaged"),
    ],
)  # fmt: skip
def test_damage_is_noticed_when_a_pack_is_opened_or_read(
    home: Path, tmp_path: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    spoilt = Path(shutil.copytree(home, tmp_path / "spoilt"))
    images = open_pack(spoilt, "train")[0]
    damage(spoilt / name)
    with pytest.raises(PackError, match=message):
        open_pack(spoilt, "train")
    if "truncated" in message:
        with pytest.raises(PackError, match=message):
            images[torch.tensor([116, 3])]


@pytest.mark.parametrize("size", [9, 16])  # whose rows are no whole number of eight bytes, and are
def test_a_flipped_bit_of_an_image_is_noticed_when_it_is_read(
    source: Path, tmp_path: Path, size: int
) -> None:
    pack(source, tmp_path / "p", size)
    images, file = open_pack(tmp_path / "p", "train")[0], tmp_path / "p" / IMAGES
    content = bytearray(file.read_bytes())
    content[-3 * size**2 - 1] ^= 4  # of the last image but one
    file.write_bytes(content)
    images[[0, 116]], open_pack(tmp_path / "p", "train")
    with pytest.raises(PackError, match=r"images.npy was damaged or altered in row 118: remove"):
        images[[0, 115]]


# --------------------------------------------------------------------------------------- Packed


@pytest.fixture(scope="module")
def images(home: Path) -> packed.Packed:
    return open_pack(home, "train")[0]


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


def test_single_images_and_masks_are_read_and_what_does_not_fit_is_refused(images, tensor) -> None:
    mask = torch.arange(117) % 5 == 0
    for index in (-2, torch.tensor(7), mask):
        assert torch.equal(images[index], tensor[index])
    assert torch.equal(torch.stack(list(images[:9])), tensor[:9])
    for got, want in zip(images.split(50), tensor.split(50), strict=True):
        assert torch.equal(got, want)
    for index in (117, torch.tensor([0, 117]), -118, (0, 1), torch.tensor([0.5])):
        with pytest.raises(IndexError):
            images[index]


def test_a_view_is_small_to_send_and_reads_the_same(images: packed.Packed, tensor: Tensor) -> None:
    moved = images.to("meta")
    assert moved[:5].rows(torch.tensor([1, 2])).device.type == "meta"
    assert moved[torch.tensor([1, 2])].device.type == "meta"
    assert images.device.type == "cpu"
    sent = pickle.dumps(images[3:9])
    assert len(sent) < 3 * 32**2
    assert torch.equal(pickle.loads(sent)[torch.arange(6)], tensor[3:9])


def test_keys_are_those_of_the_pixels_and_the_rows(images, home: Path, tmp_path: Path) -> None:
    again = open_pack(home, "train")[0]
    assert again.key == images.key == images[:].key == images.to("meta").key
    assert len({images.key, images[1:].key, images[::3].key}) == 3
    for value in (1, 2):  # files of the same name and size
        (tmp_path / f"s{value}").mkdir()
        Image.new("RGB", (9, 9), (value, 0, 0)).save(tmp_path / f"s{value}/1.bmp")
        pack(tmp_path / f"s{value}", tmp_path / f"p{value}", SIZE)
    assert len({open_pack(tmp_path / p, "train")[0].key for p in ("p1", "p2")}) == 2


def test_reading_takes_the_memory_of_the_answer(images: packed.Packed) -> None:
    index = torch.randperm(117).repeat(20)
    tracemalloc.start()
    images[index]
    peak = tracemalloc.get_traced_memory()[1]  # of numpy; the answer itself is torch's
    tracemalloc.stop()
    assert peak < 0.2 * len(index) * 3 * 32**2


@pytest.mark.filterwarnings("ignore:.* collapsed")
def test_embedding_and_training_are_those_on_the_tensor(home, tensor, tiny) -> None:
    images, labels, classes = open_pack(home, "train")
    assert torch.equal(encoders.embed(tiny, images, 32), encoders.embed(tiny, tensor, 32))
    config = pretrain.Config("simclr", encoder="test_resnet", epochs=1, batch=32, held_out=10)
    sets = [data.ImageSet(source, labels, "x", "train", classes) for source in (images, tensor)]
    one, two = (pretrain.train(config, images).state_dict().items() for images in sets)
    assert files.digest(one) == files.digest(two)


# --------------------------------------------------------------------------------- command line


def test_the_command_packs_and_reports(whole: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "chosen.txt").write_text("b\na\n")
    keep = ["--keep", tmp_path / "chosen.txt", "--workers", "2"]
    command = [sys.executable, "-m", "contsteal.data.packed", whole, tmp_path / "p", "--size", "8"]
    done = subprocess.run([*command, *keep], capture_output=True, text=True, check=True)
    assert done.stdout == "train: 78 images of 2 classes at 8 px, 2 files skipped\n"
    assert "2 of 80 files" in done.stderr
    assert "RuntimeWarning" not in done.stderr, "the package must not import its own command"
    assert open_pack(tmp_path / "p", "train")[2] == ("a", "b")
    assert packed.main([str(tmp_path / "nowhere"), str(tmp_path / "p")]) == 1
    assert f"error: {tmp_path}/nowhere is not a folder" in capsys.readouterr().err
    assert packed.main([str(tmp_path), str(tmp_path / "p"), "--keep", str(tmp_path / "x")]) == 1
    assert "No such file" in capsys.readouterr().err
