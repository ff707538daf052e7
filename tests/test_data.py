"""The embedded data sets: what a name, a split, a seed and n promise."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from contsteal import data
from contsteal.data import embedded

SHAPE_SETS = ("shapes", "shapes:colour", "shapes:texture")
units = st.floats(0, 1, width=32)


@pytest.mark.parametrize("split", data.SPLITS)
@pytest.mark.parametrize("name", data.SOURCES)
def test_every_set_keeps_its_form(name: str, split: str) -> None:
    got = data.load(name, split, n=60, seed=1)
    assert (got.images.shape, got.images.dtype) == ((60, 3, 32, 32), torch.uint8)
    assert (got.name, got.split, len(got)) == (name, split, 60)
    assert got.images.float().std() > 20  # there is something to see
    if name == "patches":
        assert got.labels is None
        assert got.classes == ()
    else:
        assert (got.labels.shape, got.labels.dtype) == ((60,), torch.int64)
        assert 0 <= got.labels.min() <= got.labels.max() < len(got.classes)
        assert len(set(got.classes)) == len(got.classes)


@pytest.mark.parametrize(("n", "more"), [(100, 2000), (1, 3), (1023, 1025), (1024, 1024)])
@pytest.mark.parametrize("name", ["shapes", "patches"])
def test_fewer_images_are_a_prefix_of_more(name: str, n: int, more: int) -> None:
    torch.manual_seed(n)  # what ran before must not matter
    few = data.load(name, n=n, seed=3)
    torch.manual_seed(more)
    many = data.load(name, n=more, seed=3)
    assert torch.equal(few.images, many.images[:n])
    if few.labels is not None:
        assert torch.equal(few.labels, many.labels[:n])


def test_fewer_digits_are_a_prefix_of_all() -> None:
    few, everything = data.load("digits", n=50), data.load("digits")
    assert torch.equal(few.images, everything.images[:50])
    assert torch.equal(few.labels, everything.labels[:50])


@pytest.mark.parametrize("name", ["shapes", "patches"])
def test_endless_sets_have_4096_images_by_default(name: str) -> None:
    assert len(data.load(name)) == 4096


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize(("name", "chance"), [("shapes", 0), ("patches", 3)])
def test_splits_and_seeds_are_other_images(name: str, chance: int) -> None:
    """Two of some 10^8 crops of the photographs may coincide by chance; scenes never do."""
    sets = [rows(data.load(name, s, n=1000, seed=k).images) for s in data.SPLITS for k in (0, 1)]
    assert min(len(images) for images in sets) >= 1000 - chance
    for a, b in itertools.combinations(sets, 2):
        assert len(a & b) <= chance


def test_label_sets_share_their_images() -> None:
    shape, colour, texture = (data.load(name, n=300) for name in SHAPE_SETS)
    assert torch.equal(shape.images, colour.images)
    assert torch.equal(shape.images, texture.images)
    assert [len(s.classes) for s in (shape, colour, texture)] == [10, 6, 8]
    assert not torch.equal(shape.labels, colour.labels)
    assert not torch.equal(shape.labels, texture.labels)


@pytest.mark.parametrize(("name", "share"), [("shapes", 0.15), ("shapes:colour", 0.4)])
def test_classes_are_roughly_uniform(name: str, share: float) -> None:
    got = data.load(name, n=4096)
    counts = got.labels.bincount(minlength=len(got.classes)) * len(got.classes) / 4096
    assert (counts - 1).abs().max() < share, counts.tolist()


def test_every_texture_is_common() -> None:
    got = data.load("shapes:texture", n=4096)
    assert got.labels.bincount(minlength=8).min() > 4096 / 8 / 4


def test_colour_labels_name_the_colour_of_the_shape() -> None:
    """The middle of the image is nearly always shape: its hue is the label's, within a sixth."""
    got = data.load("shapes:colour", n=1000)
    middle = got.images[:, :, 12:20, 12:20].double().mean((2, 3)) / 255
    hue = torch.tensor([colorsys.rgb_to_hsv(*pixel)[0] for pixel in middle.tolist()])
    gap = (6 * hue - got.labels + 3) % 6 - 3
    assert (gap.abs() < 0.75).double().mean() > 0.85


def test_digits_are_scikit_learns_and_the_split_is_disjoint_and_complete() -> None:
    train, test = (data.load("digits", split, seed=2) for split in data.SPLITS)
    assert (len(train), len(test)) == (1438, 359)
    both = torch.cat([train.images, test.images])
    assert len(rows(both)) == len(rows(embedded._digits()[0]))
    assert not rows(train.images) & rows(test.images)
    raw = load_digits()
    counts = torch.cat([train.labels, test.labels]).bincount()
    assert counts.tolist() == torch.tensor(raw.target).bincount().tolist()
    # 8 px of 4 levels a quarter: the mean of every 4 x 4 block is near the original pixel.
    small = both[:, 0].float().unfold(1, 4, 4).unfold(2, 4, 4).mean((3, 4)) / 255 * 16
    nearest = torch.cdist(small.flatten(1), torch.tensor(raw.data, dtype=torch.float32)).argmin(1)
    labels = torch.cat([train.labels, test.labels])
    assert (torch.tensor(raw.target)[nearest] == labels).double().mean() > 0.99


def test_no_seed_moves_a_test_digit_into_training() -> None:
    test, train = data.load("digits", "test", seed=0), data.load("digits", "train", seed=1)
    assert not set(rows(test.images)) & set(rows(train.images))
    assert not torch.equal(test.images, data.load("digits", "test", seed=1).images)


def test_gray_images_become_rgb() -> None:
    red, green, blue = data.load("digits", n=100).images.unbind(1)
    assert torch.equal(red, green)
    assert torch.equal(red, blue)


def test_patches_come_from_both_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = load_sample_images()
    raw.images = [np.full_like(raw.images[0], 10), np.full_like(raw.images[1], 200)]
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: raw)
    values, counts = data.load("patches", n=400).images.unique(return_counts=True)
    assert values.tolist() == [10, 200]
    assert 0.4 < counts[0] / counts.sum() < 0.6


@pytest.mark.parametrize("split", data.SPLITS)
def test_patches_are_crops_of_the_photographs(split: str) -> None:
    """A crop is no wider than 128 px, so its colours vary less than those of both photographs."""
    photos = torch.tensor(np.stack(load_sample_images().images)).float()
    images = data.load("patches", split, n=400).images.float()
    assert images.std((2, 3)).mean() < photos.std((1, 2)).mean()
    assert images.mean((2, 3)).std(0).min() > 10  # but one crop differs from another


# ------------------------------------------------------------------------------ image size


@pytest.mark.parametrize("size", [8, 33, 64])
@pytest.mark.parametrize("name", ["shapes", "digits", "patches"])
def test_image_size_resizes(name: str, size: int) -> None:
    small, full = data.load(name, n=5, image_size=size), data.load(name, n=5)
    assert (small.images.shape, small.images.dtype) == ((5, 3, size, size), torch.uint8)
    want = TF.resize(full.images, [size, size], antialias=True)
    assert (small.images.int() - want.int()).abs().max() <= 1
    if full.labels is not None:
        assert torch.equal(small.labels, full.labels)


# ---------------------------------------------------------------------------------- colours


@given(st.tuples(units, units, units))
def test_rgb_is_that_of_colorsys(hsv: tuple[float, float, float]) -> None:
    got = embedded._rgb(*torch.tensor([hsv], dtype=torch.float32).unbind(1))[0]
    assert got.tolist() == pytest.approx(colorsys.hsv_to_rgb(*hsv), abs=2e-6)


# ------------------------------------------------------------------------------------ order


@given(st.integers(1, 500), st.integers(0, 2**32))
def test_order_is_one_permutation_of_a_seed(n: int, seed: int) -> None:
    order = data.order(n, seed)
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, data.order(n, seed))


def test_order_depends_on_the_seed_and_is_no_identity() -> None:
    assert not torch.equal(data.order(100, 0), data.order(100, 1))
    assert not torch.equal(data.order(100, 0), torch.arange(100))


# --------------------------------------------------------------------------------- ImageSet


@pytest.mark.parametrize(
    "chosen", [torch.tensor([5, 0, 5]), slice(2, 7), torch.arange(20) % 3 == 0]
)
@pytest.mark.parametrize("name", ["shapes", "patches"])
def test_take_keeps_images_and_labels_together(name: str, chosen: Tensor | slice) -> None:
    whole = data.load(name, n=20)
    part = whole.take(chosen)
    assert torch.equal(part.images, whole.images[chosen])
    if whole.labels is not None:
        assert torch.equal(part.labels, whole.labels[chosen])
    assert (part.name, part.split, part.classes) == (whole.name, whole.split, whole.classes)
    assert (part.labels is None) == (whole.labels is None)
    assert len(whole) == 20


@pytest.mark.parametrize("name", ["shapes", "patches"])
def test_to_moves_images_and_labels(name: str) -> None:
    moved = data.load(name, n=3).to("meta")
    assert moved.images.device.type == "meta"
    assert moved.labels is None or moved.labels.device.type == "meta"


# --------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "shape"}, r"'shape'.*shapes, shapes:colour, .*digits, patches"),
        ({"name": "digits", "split": "val"}, r"'val' of digits.*train, test"),
        ({"name": "shapes", "n": 0}, r"n=0 images of shapes.*at least 1"),
        ({"name": "patches", "n": -3}, r"n=-3 images of patches.*at least 1"),
        ({"name": "digits", "n": 1439}, r"1438 train images, 1439.*fewer"),
        ({"name": "digits", "split": "test", "n": 360}, r"359 test images, 360.*fewer"),
        ({"name": "shapes", "n": 1, "image_size": 7}, r"image_size=7: at least 8"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(**options)
