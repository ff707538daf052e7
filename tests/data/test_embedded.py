"""The embedded data sets: what a name, a split, a seed and n promise."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from contsteal import data, files
from contsteal.data import embedded

units = st.floats(0, 1, width=32)
STORED = {  # of 300 images with seed 3, as they were when the first results were stored
    ("glyphs", "train"): "192acfa52949d0896ff38cc59e7945963efb813078165bd8d2e2977e1be0ac4b",
    ("glyphs", "test"): "0c6d1cf0ef370f37fd13c3a74e8139e0fa379f4df0f20114efd9c5f05d8578fe",
    ("glyphs:symmetry", "test"): "24bf029d17d0ab1e98b9d7539b006a08a8dd319ee40b6734299b496b91e3cb05",
    ("shapes", "train"): "4fe544cb81278f8782bbb05db04268ddfb877bf3cb72b487a72d79e344ca83f2",
    ("shapes", "test"): "f269a8a77de154064d40dc25a3602321ac4c0e58c89b4f205958a78050bb36f3",
    ("shapes:colour", "train"): "f4980ea36c5ace62b276c60b7ddaa0993655e68c337c74b21632e9ed12d634af",
    ("shapes:texture", "test"): "6fff9f883a3d07652c8120787c2a1d20e5a6ee80a0143ffd85f58b4fc84c98e9",
    ("digits", "train"): "19a8e1acfc458bfdbb652d7c0d29277530c4cad5932db50d96e5665b680f9e18",
    ("digits", "test"): "8b9dfb2b226e269fc662f8fb5cd1e16bd70f66761a2123d7c0de766c2ec49a2d",
    ("patches", "train"): "e7826cd8158eb954c0429a532b165b4ccf8a93ed70c904d2236df4ca99c215da",
}


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize(("name", "split"), STORED)
def test_images_and_labels_are_those_of_the_stored_results(name: str, split: str) -> None:
    got = data.load(name, split, n=300, seed=3)
    tensors = {"images": got.images} | ({} if got.labels is None else {"labels": got.labels})
    assert files.digest(tensors.items()) == STORED[name, split]


@pytest.mark.parametrize(
    ("name", "n", "more"),
    [
        ("shapes", 100, 2000),
        ("shapes", 1023, 1025),
        ("glyphs", 100, 1500),
        ("glyphs", 1023, 1025),
        ("patches", 1, 3),
        ("digits", 50, None),
    ],
)
def test_fewer_images_are_a_prefix_of_more(name: str, n: int, more: int | None) -> None:
    torch.manual_seed(n)  # what ran before must not matter
    few = data.load(name, n=n, seed=3)
    torch.manual_seed(0)
    many = data.load(name, n=more, seed=3)
    assert torch.equal(few.images, many.images[:n])
    if few.labels is not None:
        assert torch.equal(few.labels, many.labels[:n])


@pytest.mark.parametrize(("name", "chance"), [("shapes", 0), ("glyphs", 0), ("patches", 3)])
def test_splits_and_seeds_are_other_images(name: str, chance: int) -> None:
    """Two of some 10^8 crops of the photographs may coincide by chance; scenes never do."""
    sets = [rows(data.load(name, s, n=1000, seed=k).images) for s in data.SPLITS for k in (0, 1)]
    assert min(len(images) for images in sets) >= 1000 - chance
    assert all(len(a & b) <= chance for a, b in itertools.combinations(sets, 2))


@pytest.mark.parametrize(
    ("scenes", "most"), [("shapes", (0.15, 0.4, 0.75)), ("glyphs", (0.25, 0.65))]
)
def test_label_sets_share_their_images_and_have_all_classes(
    scenes: str, most: tuple[float, ...]
) -> None:
    """Shares of classes, in units of 1 / classes, may lie below 1 by `most`."""
    sets = {name: data.load(name, n=4096) for name in data.SOURCES if name.startswith(scenes)}
    for shown, gap in zip(sets.values(), most, strict=True):
        assert torch.equal(shown.images, sets[scenes].images)
        shares = shown.labels.bincount(minlength=len(shown.classes)) * len(shown.classes) / 4096
        assert (1 - shares).max() < gap


def radius(curve: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The radius of a curve, complex (6,), at angles t (N,): 1 + sum_k a_k cos kt + b_k sin kt."""
    terms = [c.real * np.cos(k * t) + c.imag * np.sin(k * t) for k, c in enumerate(curve, 2)]
    return 1 + np.sum(terms, axis=0)


def some_curves(n: int) -> Tensor:
    return embedded._curves(n, torch.Generator().manual_seed(5))


def test_the_symmetry_of_a_curve_is_the_peak_of_its_radius_in_fourier_space() -> None:
    curves, t = some_curves(200), np.arange(64) * 2 * np.pi / 64
    spectrum = np.abs(np.fft.rfft([radius(curve, t) for curve in curves.numpy()]))
    assert spectrum[:, 1].max() < 1e-3 > spectrum[:, 8:].max()
    order = spectrum[:, 1:].argmax(1) + 1
    assert set(order) >= {2, 3, 4, 5, 7}, "also beyond 5, which share a class"
    assert embedded._symmetry(curves).tolist() == (order.clip(max=5) - 2).tolist()


@pytest.mark.parametrize("split", data.SPLITS)
@pytest.mark.parametrize("seed", [0, 7])
def test_symmetry_is_a_function_of_the_glyph_in_every_split(split: str, seed: int) -> None:
    names = ("glyphs", "glyphs:symmetry")
    glyph, symmetry = (data.load(name, split, n=1024, seed=seed).labels for name in names)
    pairs = set(zip(glyph.tolist(), symmetry.tolist(), strict=True))
    known = embedded._symmetry(embedded._glyph_classes()).tolist()
    assert pairs == set(enumerate(known)), "each glyph has one symmetry, and all are drawn"
    assert set(known) == {0, 1, 2, 3}


def test_digits_are_scikit_learns_and_the_split_is_disjoint_and_complete() -> None:
    train, test = (data.load("digits", split, seed=2) for split in data.SPLITS)
    assert (len(train), len(test)) == (1438, 359)
    both, labels = torch.cat([train.images, test.images]), torch.cat([train.labels, test.labels])
    for seed in (0, 2):
        assert not rows(train.images) & rows(data.load("digits", "test", seed=seed).images)
    assert torch.equal(both[:, 0], both[:, 2])
    raw = load_digits()
    assert labels.bincount().tolist() == np.bincount(raw.target).tolist()
    # 8 px of 4 levels a quarter: the mean of every 4 x 4 block is near the original pixel.
    small = both[:, 0].float().unfold(1, 4, 4).unfold(2, 4, 4).mean((3, 4)) / 255 * 16
    nearest = torch.cdist(small.flatten(1), torch.tensor(raw.data, dtype=torch.float32)).argmin(1)
    assert (torch.tensor(raw.target)[nearest] == labels).double().mean() > 0.99


@pytest.mark.parametrize("size", [8, 33, 64])
@pytest.mark.parametrize("name", ["shapes", "digits"])
def test_image_size_resizes(name: str, size: int) -> None:
    small, full = data.load(name, n=5, image_size=size), data.load(name, n=5)
    assert (small.images.shape, small.images.dtype) == ((5, 3, size, size), torch.uint8)
    want = TF.resize(full.images, [size, size], antialias=True)
    assert (small.images.int() - want.int()).abs().max() <= 1
    assert torch.equal(small.labels, full.labels)
