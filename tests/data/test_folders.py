"""Image folders: what is listed, what a file decodes to, and what is refused, with the reason."""

import os
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from contsteal.data import folders
from contsteal.data.folders import FolderError, Unreadable


def picture(width: int = 40, height: int = 30, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A smooth random image: JPEG and resizing change it little."""
    draws = np.random.default_rng(seed).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    image = Image.fromarray(draws, "RGBA").resize((width, height), Image.Resampling.BICUBIC)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(path, **options)
    return path


def tree(root: Path, *names: str) -> Path:
    """Write a small image of its own to every name."""
    for seed, name in enumerate(names):
        save(root / name, picture(12, 10, seed))
    return root


def by_hand(path: Path, side: int, bits: int, colours: int, rows: bytes) -> Path:
    """Write a PNG that Pillow would not write; `colours` is 0 for gray and 2 for RGB."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, bits, colours, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for body in (header, b"IDAT" + zlib.compress(rows), b"IEND"):
        png += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(png)
    return path


def damaged(root: Path) -> dict[str, str]:
    """Write files that cannot be decoded; return what the reason of each has to say."""
    frames = [picture(seed=k) for k in range(3)]
    save(root / "animated.gif", frames[0], save_all=True, append_images=frames[1:])
    save(root / "animated.webp", frames[0], save_all=True, append_images=frames[1:])
    save(root / "cmyk.jpg", picture(mode="CMYK"))
    save(root / "deep.png", Image.fromarray(np.full((9, 9), 40_000, np.uint16)))
    save(root / "float.tif", Image.fromarray(np.full((9, 9), 0.5, np.float32)))
    (root / "deep.ppm").write_bytes(b"P6 2 2 65535\n" + bytes(24))
    (root / "note.jpg").write_text("this is not an image")
    (root / "empty.png").touch()
    for name in ("cut.jpg", "cut.png", "cut.webp"):
        whole = save(root / name, picture(200, 150)).read_bytes()
        (root / name).write_bytes(whole[: len(whole) // 2])
    reasons = dict.fromkeys(("animated.gif", "animated.webp"), r"animated \(3 frames\)")
    reasons |= dict.fromkeys(("cut.jpg", "cut.png", "cut.webp"), "damaged")
    reasons |= dict.fromkeys(("note.jpg", "empty.png"), "^not an image$")
    reasons |= dict.fromkeys(("deep.png", "deep.ppm", "float.tif"), "more than 8 bits")
    return reasons | {"cmyk.jpg": "CMYK"}


def reference(image: Image.Image, size: int) -> np.ndarray:
    """What torchvision makes of an upright RGB image."""
    steps = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    return np.asarray(steps(image.convert("RGB"))).transpose(2, 0, 1)


def gap(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


# ------------------------------------------------------------------------- listing and splits


@pytest.mark.parametrize(
    ("written", "files", "labels", "classes"),
    [
        (["b/2.png", "b/1.jpg", "a/9.png", "a b/x.png", "b/d-/1.gif", "b/d/e/0.PNG"],
         ["a/9.png", "a b/x.png", "b/1.jpg", "b/2.png", "b/d/e/0.PNG", "b/d-/1.gif"],
         [0, 1, 2, 2, 2, 2], ("a", "a b", "b")),
        (["10.png", "9.JPEG", "1.webp"], ["1.webp", "10.png", "9.JPEG"], None, ()),
        (["a/1.png", "a/._1.png", "a/.cache/2.png", ".git/3.png", ".4.png"], ["a/1.png"], [0], ("a",)),
    ],
)  # fmt: skip
def test_files_are_sorted_and_class_folders_are_labels(tmp_path, written, files, labels, classes):
    got = folders.listing(tree(tmp_path, *written))
    assert [f.as_posix() for f in got.files] == files
    assert (None if got.labels is None else got.labels.tolist()) == labels
    assert got.labels is None or got.labels.dtype == torch.int64
    assert got.classes == classes


def test_links_are_followed_and_keep_restricts_to_class_folders(tmp_path: Path) -> None:
    root = tree(tmp_path / "store", "cat/1.png", "dog/2.png", "pet/3.png").with_name("chosen")
    (root / "pet").mkdir(parents=True)
    (root / "cat").symlink_to(tmp_path / "store/cat")
    (root / "pet/dogs").symlink_to(tmp_path / "store/dog")
    (root / "pet/a.png").symlink_to(tmp_path / "store/cat/1.png")
    files = [f.as_posix() for f in folders.listing(root).files]
    assert files == ["cat/1.png", "pet/a.png", "pet/dogs/2.png"]
    got = folders.listing(tmp_path / "store", keep=["pet", "cat"])
    assert (got.classes, got.labels.tolist()) == (("cat", "pet"), [0, 1])
    with pytest.raises(FolderError, match=r"no class folders d in .*: it has cat, dog, pet"):
        folders.listing(tmp_path / "store", keep=["cat", "d"])


@pytest.mark.parametrize(
    ("link", "target"),
    [("a/loop", "a"), ("a/loop", "."), ("a/loop", "b"), ("a/x/loop", "a"), ("c", "b"), ("c", ".")],
)
def test_a_folder_that_a_link_leads_to_twice_is_refused(
    tmp_path: Path, link: str, target: str
) -> None:
    """Its images would be listed many times, without end, or under another class's label."""
    tree(tmp_path, "a/1.png", "b/1.png", "a/x/2.png")
    (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(FolderError, match=r"a link leads to .* again: .* remove the link$"):
        folders.listing(tmp_path)


def test_a_loop_beside_the_splits_ends(tmp_path: Path) -> None:
    tree(tmp_path, "train/1.png")
    for name in ("one", "two"):
        (tmp_path / "notes" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "notes" / name).symlink_to(tmp_path / "notes")
    with pytest.raises(FolderError, match="notes/one again: its images"):
        folders.splits(tmp_path)


def test_names_need_not_be_utf_8_and_are_shown_so_that_they_can_be_stored(tmp_path: Path) -> None:
    files = folders.listing(tree(tmp_path, "a/1.png", "a/\udce9.png")).files
    assert len(files) == 2
    (tmp_path / "a/\udce9.png").write_text("no image")
    with pytest.warns(UserWarning, match=r"1 of 2 files .* skipped \(a/\\udce9.png") as caught:
        assert len(folders.read(tmp_path, "train", 8)[0]) == 1
    str(caught[0].message).encode()
    tree(tmp_path, "\udce8/1.png")
    with pytest.raises(FolderError, match=r"class folder \\udce8 of .*: rename it"):
        folders.listing(tmp_path)


def test_files_of_other_extensions_are_warned_about_and_hidden_ones_are_not(tmp_path: Path) -> None:
    tree(tmp_path, "train/a/1.png", "train/b/deep/2.png", "test/a/1.png", "test/b/1.png")
    for name in ("labels.csv", "a/notes.txt", "a/.DS_Store", "b/deep/x.heic", "b/.git/config"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).touch()
    wanted = r"^3 files in .*train .* name .* out \(a/notes.txt, b/deep/x.heic, labels.csv\)$"
    with pytest.warns(UserWarning, match=wanted) as caught:
        images = folders.read(tmp_path, "train", 8)[0]
    assert (len(caught), len(images)) == (1, 2)
    with pytest.warns(UserWarning, match=r"^2 files in .*\(a/notes.txt, labels.csv\)$"):
        folders.listing(tmp_path / "train", keep=["a"])
    with warnings.catch_warnings(action="error"):
        folders.read(tmp_path, "test", 8)


def test_split_folders_are_found_and_test_falls_back_to_val(tmp_path: Path) -> None:
    tree(tmp_path, "train/a/1.png", "train/b/1.png", "val/1.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/list.txt").touch()
    places = folders.splits(tmp_path)
    assert places == {"train": tmp_path / "train", "val": tmp_path / "val"}
    assert folders.choose(tmp_path, "test", places) == tmp_path / "val"
    assert folders.choose(tmp_path, "test", places | {"test": tmp_path}) == tmp_path
    assert folders.read(tmp_path, "train", 8)[1].tolist() == [0, 1]
    assert folders.read(tmp_path, "test", 8)[1] is None, "a split without class folders"
    assert folders.splits(tmp_path / "train") == {"train": tmp_path / "train"}


@pytest.mark.parametrize(
    ("written", "split", "message"),
    [
        ([], "train", r"no image in .*: add files that end in .*\.jpeg, \.jpg, \.png"),
        (["a/1.png", "c/"], "train", r"have no image: c; remove"),
        (["a/1.png", "b/1.png", "c/", "stray.png"], "train",
         r"holds images \(stray.png\) and folders \(a, b and 1 more\): move the images or"),
        (["a/1.png"], "test", r"no split 'test' in .*choose one of train$"),
        (["train/1.png", "val/1.png"], "dev", r"no split 'dev' in .*choose one of train, val$"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"], "train",
         r"train lacks the other splits' classes: c$"),
        (["bus/1.png", "plane/1.png", "train/1.png"], "train",
         r"images in bus, plane beside the splits train: move them into a split"),
    ],
)  # fmt: skip
def test_what_is_not_laid_out_as_classes_and_splits_is_refused(tmp_path, written, split, message):
    for name in written:
        (tmp_path / name).mkdir(parents=True) if name[-1] == "/" else save(tmp_path / name)
    with pytest.raises(FolderError, match=message):
        folders.read(tmp_path, split, 8)


def test_what_is_no_folder_or_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "text.txt").touch()
    for name in ("nowhere", "text.txt"):
        wanted = rf"{name} is not a folder: put images into train/CLASS/"
        with pytest.raises(FolderError, match=wanted):
            folders.read(tmp_path / name, "train", 8)

    def walk(top, onerror, **_):
        onerror(PermissionError(13, "Permission denied", str(top)))
        return iter(())

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(FolderError, match=r"cannot be listed \(Permission denied\)"):
        folders.listing(tmp_path)


# ------------------------------------------------------------------------------------- decode


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 50))
def test_decoding_is_resize_and_centre_crop_of_torchvision(tmp_path_factory, w, h, size) -> None:
    image = picture(w, h, seed=w)
    path = save(tmp_path_factory.getbasetemp() / "lossless.png", image)
    got = folders.decode(path, size)
    assert (got.shape, got.dtype) == ((3, size, size), np.uint8)
    assert got.flags.c_contiguous
    assert gap(got, reference(image, size)) <= 1  # the last bit of a float


@pytest.mark.parametrize(("width", "height"), [(400, 300), (301, 517), (1300, 800)])
def test_large_jpegs_are_decoded_small_and_nearly_the_same(
    tmp_path, monkeypatch, width, height
) -> None:
    path = save(tmp_path / "large.jpg", picture(width, height), quality=95)
    with Image.open(path) as whole:
        want = reference(whole, 32)
    sizes, rgb = [], folders._rgb
    monkeypatch.setattr(folders, "_rgb", lambda image: sizes.append(image.size) or rgb(image))
    assert gap(folders.decode(path, 32), want) <= 6
    assert 64 <= min(sizes[0]) < 128, "at a power of two below, but no smaller than twice the size"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"turned{suffix}", picture(40, 20), exif=exif)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
    assert (upright.size == (40, 20)) == (orientation < 5)
    assert gap(folders.decode(path, 10), reference(upright, 10)) <= 1


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [("L", suffix, 1) for suffix in (".png", ".bmp", ".tif", ".gif", ".ppm")]
    + [("L", ".jpg", 16), ("L", ".webp", 16), ("P", ".png", 1), ("RGBA", ".png", 2), ("LA", ".png", 2)],
)  # fmt: skip
def test_gray_palettes_and_transparency_become_rgb_over_white(
    tmp_path: Path, mode: str, suffix: str, tolerance: int
) -> None:
    image = picture().quantize(16) if mode == "P" else picture(mode="RGBA").convert(mode)
    pixels = np.asarray(image.convert("RGBA")).astype(float)
    alpha = pixels[..., 3:] / 255
    white = (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    got = folders.decode(save(tmp_path / f"x{suffix}", image), 30)
    assert gap(got, reference(Image.fromarray(white), 30)) <= tolerance


def test_a_transparent_colour_is_white_and_a_camera_preview_no_animation(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    assert (folders.decode(save(tmp_path / "p.gif", image, transparency=1), 8) == 255).all()
    assert (folders.decode(save(tmp_path / "q.gif", image), 8)[0] == 200).all()
    previews = {"format": "MPO", "save_all": True, "append_images": [picture(seed=1)]}
    path = save(tmp_path / "mpo.jpg", picture(), **previews)
    with Image.open(path) as file:
        assert (file.format, file.n_frames) == ("MPO", 2)
        assert gap(folders.decode(path, 30), reference(file, 30)) <= 1


def test_what_cannot_be_decoded_has_a_reason(tmp_path: Path) -> None:
    for name, reason in damaged(tmp_path).items():
        with pytest.raises(Unreadable, match=reason) as caught:
            folders.decode(tmp_path / name, 8)
        assert str(tmp_path) not in str(caught.value), "a pack must not depend on where it was made"


def test_sixteen_bits_are_not_silently_cut(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "x.png", 4, 16, 2, (b"\0" + bytes(24)) * 4)
    with pytest.raises(Unreadable, match="more than 8 bits"):
        folders.decode(path, 8)
    with Image.open(path) as image:
        assert (image.mode, image.size) == ("RGB", (4, 4)), "Pillow reads it, and cuts it"


@pytest.mark.parametrize("side", [8193, 14_000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    """A PNG of a kilobyte may have 10^8 pixels; of the second size Pillow itself opens none."""
    path = by_hand(tmp_path / "bomb.png", side, 8, 0, bytes(99))
    monkeypatch.setattr(folders, "_rgb", lambda image: pytest.fail("it is decoded"))
    with pytest.raises(Unreadable, match="more than 67,108,864 pixels"):
        folders.decode(path, 8)


def test_a_pipe_with_an_image_s_name_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(Unreadable, match="not a file"):
        folders.decode(tmp_path / "x.png", 8)


def test_a_failing_disk_is_no_damaged_image(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(FolderError, match=r"gone.png cannot be read \(No such file"):
        folders.decode(tmp_path / "gone.png", 8)

    def fails(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(FolderError, match=r"x.png cannot be read \(Input/output error\)"):
        folders.decode(save(tmp_path / "x.png"), 8)


@given(st.data())
def test_damaged_bytes_give_an_image_or_a_reason(tmp_path_factory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    kind = data.draw(st.sampled_from([".jpg", ".png", ".gif", ".bmp", ".tif", ".webp", ".ppm"]))
    path = save(folder / f"hit{kind}")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(Unreadable):
            assert folders.decode(path, 8).shape == (3, 8, 8)


# --------------------------------------------------------------------------------------- read


def decoded(root: Path, *names: str) -> Tensor:
    return torch.from_numpy(np.stack([folders.decode(root / name, 8) for name in names]))


def test_skipped_files_are_warned_about_and_shift_no_label(tmp_path: Path) -> None:
    reasons = damaged(tmp_path / "b")
    with pytest.raises(FolderError, match=r"11 of 11 files .* no image is left"):
        folders.read(tmp_path / "b", "train", 8)
    names = ["a/1.png", "b/aaa.png", "b/zzz.png", "c/1.png"]
    files = folders.listing(tree(tmp_path, *names)).files
    warning = r"11 of 15 files in .* skipped \(b/animated.gif: animated.* and 8 more\)"
    with pytest.warns(UserWarning, match=warning):
        skipped, _ = folders.decode_all(tmp_path, files, np.empty((15, 3, 8, 8), np.uint8))
    assert {files[row].as_posix() for row in skipped} == {f"b/{name}" for name in reasons}
    with pytest.warns(UserWarning, match=warning):
        images, labels, classes = folders.read(tmp_path, "train", 8)
    assert torch.equal(images, decoded(tmp_path, *names))
    assert (labels.tolist(), classes) == ([0, 1, 1, 2], ("a", "b", "c"))


def test_a_set_larger_than_memory_points_to_packs(tmp_path: Path) -> None:
    tree(tmp_path, "1.png")
    with pytest.raises(FolderError, match=r"does not fit in memory: run `python -m .*50000000`"):
        folders.read(tmp_path, "train", 50_000_000)
