"""The batched augmentations against torchvision, one image at a time, and what policies promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from contsteal import augment

seeds = st.integers(0, 2**32 - 1)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(n: int = 6, size: int = 32, seed: int = 0) -> Tensor:
    """Return uint8 noise with flat patches, so that kinks and ties of every operation are met."""
    images = torch.randint(0, 256, (n, 3, size, size), generator=draws(seed), dtype=torch.uint8)
    images[:, :, :8, :8] = torch.tensor([0, 255, 40], dtype=torch.uint8).view(3, 1, 1)
    images[:, :, 8:12, :8] = 200
    images[:, :, 12:16, :8] = 0
    return images


def each(op, images: Tensor, *parameters: Tensor) -> Tensor:
    """Apply torchvision's `op(image, *its parameters)` to one image after the other."""
    columns = zip(images, *(p.tolist() for p in parameters), strict=True)
    return torch.stack([op(*column) for column in columns])


def close(a: Tensor, b: Tensor, within: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=within)


# ----------------------------------------------------------------------------- number formats


def test_uint8_and_float_are_inverse() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    x = augment.to_float(every)
    assert x.dtype == torch.float32
    close(x, every.double().div(255).float(), 1e-7)
    assert torch.equal(augment.to_uint8(x), every)
    x = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.7]).view(1, 1, 1, 6)
    assert augment.to_uint8(x).flatten().tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("policy", augment.POLICIES)
@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
    ],
    ids=["float", "one image", "gray", "channels last"],
)
def test_wrong_images_are_refused(policy: str, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"uint8 of shape \(N, 3, H, W\) is expected") as caught:
        augment.apply(policy, images, draws())
    assert f"{tuple(images.shape)}"[1:-1].split(", ", 1)[1] in str(caught.value)
    assert str(images.dtype) in str(caught.value)


def test_unknown_policy_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"'simcrl'.*none, simclr, upright, randaugment"):
        augment.apply("simcrl", pixels(), draws())


# ----------------------------------------------------------------------------------- geometry


@given(
    seed=seeds, size=st.sampled_from([8, 32, 96]), low=st.floats(0.08, 1.0), share=st.floats(0, 1)
)
def test_boxes_are_whole_pixels_inside_the_image(seed, size, low, share) -> None:
    high = low + (1 - low) * share
    boxes = augment.draw_boxes(64, size, draws(seed), (low, high))
    corner, extent = boxes[:, :2], boxes[:, 2:]
    assert boxes.shape == (64, 4)
    assert torch.equal(boxes, boxes.round())
    assert corner.min() >= 0
    assert extent.min() >= 1
    assert (corner + extent).max() <= size
    height, wide = extent[(extent < size).any(1)].T  # the rest may be the fallback, the whole image
    slack = 0.5 * (height + wide) + 0.25  # rounding moves each side by half a pixel at most
    assert (height * wide >= low * size**2 - slack).all()
    assert (height * wide <= high * size**2 + slack).all()
    assert ((wide + 0.5) / (height - 0.5) >= 3 / 4).all()


def test_boxes_have_the_distribution_of_random_resized_crop() -> None:
    boxes = augment.draw_boxes(20_000, 224, draws(), (0.2, 0.6)).double()
    top, left, height, width = boxes.unbind(1)
    area, log_ratio = height * width / 224**2, (width / height).log()
    assert area.mean().item() == pytest.approx(0.4, abs=0.005)  # uniform in (0.2, 0.6)
    assert area.std().item() == pytest.approx(0.4 / math.sqrt(12), abs=0.005)
    assert log_ratio.mean().item() == pytest.approx(0, abs=0.01)  # uniform in +-log(4/3)
    assert log_ratio.std().item() == pytest.approx(math.log(4 / 3) / math.sqrt(3), abs=0.01)
    place = torch.cat([top / (224 - height).clamp(min=1), left / (224 - width).clamp(min=1)])
    assert place.mean().item() == pytest.approx(0.5, abs=0.02)
    assert place.min() == 0
    assert place.max() == 1


def test_a_box_that_never_fits_is_the_whole_image() -> None:
    boxes = augment.draw_boxes(5, 32, draws(), (4.0, 5.0))
    assert boxes.tolist() == [[0, 0, 32, 32]] * 5


@given(seed=seeds)
def test_crop_resize_is_torchvisions_resized_crop(seed: int) -> None:
    x = augment.to_float(pixels(seed=seed % 7))
    boxes = augment.draw_boxes(len(x), 32, draws(seed), (0.08, 1.0))
    flip = torch.rand(len(x), generator=draws(seed)) < 0.5

    def one(image: Tensor, top: float, left: float, height: float, width: float, flip: bool):
        box = (int(top), int(left), int(height), int(width))
        out = TF.resized_crop(image, *box, [32, 32], antialias=True)
        return TF.horizontal_flip(out) if flip else out

    close(augment.crop_resize(x, boxes, flip), each(one, x, *boxes.unbind(1), flip), 2e-5)


def test_shift_crop_is_torchvisions_pad_and_crop() -> None:
    x = augment.to_float(pixels(9))
    offset = torch.tensor([[0, 0], [8, 8], [4, 4], [0, 8], [8, 0], [3, 5], [1, 7], [2, 2], [6, 4]])
    flip = torch.arange(9) % 2 == 1

    def one(image: Tensor, top: int, left: int, flip: bool) -> Tensor:
        out = TF.crop(TF.pad(image, [4]), top, left, 32, 32)
        return TF.horizontal_flip(out) if flip else out

    out = augment.shift_crop(x, offset, flip)
    assert torch.equal(out, each(one, x, *offset.unbind(1), flip))
    assert torch.equal(out[2], x[2])  # an offset of `padding` moves nothing


# ------------------------------------------------------------------------------------- colour


@pytest.mark.parametrize(
    ("ours", "theirs", "neutral"),
    [
        (augment.brightness, TF.adjust_brightness, 1.0),
        (augment.contrast, TF.adjust_contrast, 1.0),
        (augment.saturation, TF.adjust_saturation, 1.0),
        (augment.hue, TF.adjust_hue, 0.0),
    ],
)
def test_colours_are_torchvisions(ours, theirs, neutral: float) -> None:
    x = augment.to_float(pixels(8))
    factor = torch.tensor([0.0, 0.2, 0.6, 0.94, 1.0, 1.4, 1.8, 3.0])
    factor = factor if neutral else factor / 3 - 0.5
    close(ours(x, factor), each(theirs, x, factor))
    close(ours(x, torch.full((8,), neutral)), x, 1e-6)


@pytest.mark.parametrize(("size", "kernel"), [(32, 3), (64, 7), (224, 23)])
def test_blur_is_torchvisions(size: int, kernel: int) -> None:
    x = augment.to_float(pixels(4, size))
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0])
    close(
        augment.blur(x, sigma),
        each(lambda i, s: TF.gaussian_blur(i, [kernel] * 2, [s, s]), x, sigma),
    )


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_grayscale_and_jitter_touch_a_share_p(p: float) -> None:
    x = augment.to_float(pixels(1, 8)).expand(2000, -1, -1, -1)
    for op in (augment.grayscale, augment.jitter):
        touched = (op(x, draws(), p=p) != x).flatten(1).any(1).float().mean().item()
        assert touched == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 2000) + 1e-9)


def test_gray_is_torchvisions() -> None:
    x = augment.to_float(pixels())
    close(augment.luminance(x), TF.rgb_to_grayscale(x), 1e-6)
    close(augment.grayscale(x, draws(), p=1.0), TF.rgb_to_grayscale(x, num_output_channels=3), 1e-6)


def test_jitter_stays_within_its_strength() -> None:
    """On gray images contrast, saturation and hue are identities, so brightness is seen alone."""
    x = torch.full((4000, 3, 2, 2), 0.5)
    factor = augment.jitter(x, draws(), p=1.0).mean((1, 2, 3)) / 0.5
    assert factor.min().item() == pytest.approx(0.6, abs=0.01)
    assert factor.max().item() == pytest.approx(1.4, abs=0.01)
    assert factor.mean().item() == pytest.approx(1, abs=0.02)


# -------------------------------------------------------------------------------- RandAugment


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


# The package behind the official code, at magnitude 14 of 30: (image, sign) in Pillow's terms.
PILLOW = {
    "autocontrast": lambda x, sign: ImageOps.autocontrast(x),
    "equalize": lambda x, sign: ImageOps.equalize(x),
    "invert": lambda x, sign: ImageOps.invert(x),
    "rotate": lambda x, sign: x.rotate(sign * 14),
    "posterize": lambda x, sign: ImageOps.posterize(x, 1),
    "solarize": lambda x, sign: ImageOps.solarize(x, 256 * 14 / 30),
    "solarize_add": lambda x, sign: x.point(lambda v: v + 110 * 14 // 30 if v < 128 else v),
    "color": lambda x, sign: ImageEnhance.Color(x).enhance(0.94),
    "contrast": lambda x, sign: ImageEnhance.Contrast(x).enhance(0.94),
    "brightness": lambda x, sign: ImageEnhance.Brightness(x).enhance(0.94),
    "sharpness": lambda x, sign: ImageEnhance.Sharpness(x).enhance(0.94),
    "shear_x": lambda x, sign: affine(x, 1, sign * 0.14, 0, 0, 1, 0),
    "shear_y": lambda x, sign: affine(x, 1, 0, 0, sign * 0.14, 1, 0),
    "translate_x": lambda x, sign: affine(x, 1, 0, sign * 100 * 14 / 30, 0, 1, 0),
    "translate_y": lambda x, sign: affine(x, 1, 0, 0, 0, 1, sign * 100 * 14 / 30),
}


def test_the_sixteen_operations_leave_their_input_alone() -> None:
    assert augment.RANDAUGMENT.keys() == PILLOW.keys() | {"cutout"}
    x = pixels() // 2 + 40
    kept = x.clone()
    for name, op in augment.RANDAUGMENT.items():
        out = op(x, 1, draws())
        assert (out.shape, out.dtype) == (x.shape, x.dtype), name
        assert not torch.equal(out, x), f"{name} does nothing"
        assert torch.equal(x, kept), f"{name} changes its input"


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", PILLOW)
def test_operations_are_pillows(name: str, sign: int) -> None:
    """At 64 px, where translation leaves content; equal up to one gray level in 99 % of pixels.

    Which of both directions a sign means is free: it is drawn with equal odds.
    """
    x = pixels(4, 64)
    out = augment.RANDAUGMENT[name](x, sign, draws()).int()
    shares = []
    for way in (-1, 1):
        pillow = each(lambda i, w=way: TF.pil_to_tensor(PILLOW[name](TF.to_pil_image(i), w)), x)
        shares.append(((out - pillow.int()).abs() <= 1).float().mean().item())
    assert max(shares) > 0.99, shares


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_signed_operations_go_both_ways(name: str) -> None:
    there, back = (augment.RANDAUGMENT[name](pixels(size=64), s, draws()) for s in (-1, 1))
    assert (there != back).float().mean() > 0.5


@given(seed=seeds, size=st.sampled_from([32, 48]))
def test_cutout_covers_one_gray_rectangle(seed: int, size: int) -> None:
    x = torch.zeros(20, 3, size, size, dtype=torch.uint8)
    out = augment.RANDAUGMENT["cutout"](x, 1, draws(seed))
    for image in out:
        covered = image[0] > 0
        height, width = covered.any(1).sum().item(), covered.any(0).sum().item()
        assert covered.sum() == height * width  # a rectangle
        bottom, right = (covered.nonzero().amax(0) + 1).tolist()
        for extent, end in ((height, bottom), (width, right)):  # 18.7 px, cut at the far edge
            assert (9 if end == size else 18) <= extent <= 20
        assert (image[:, covered] == torch.tensor([125, 123, 114])[:, None]).all()
    assert len({tuple(image[0].nonzero()[0].tolist()) for image in out}) > 10


def test_operations_are_drawn_uniformly_with_repetition() -> None:
    """One round on single-colour images: 1/16 of them are inverted, 2/16 translated away."""
    x = torch.tensor([250, 20, 90], dtype=torch.uint8).view(1, 3, 1, 1).repeat(8000, 1, 32, 32)
    out = augment.rand_ops(x, draws(), count=1).flatten(2)
    constant = (out == out[..., :1]).all(2).all(1)
    colour = out[:, :, 0]
    within = 4 * math.sqrt(1 / 16 * 15 / 16 / 8000)
    inverted = constant & (colour == torch.tensor([5, 235, 165])).all(1)
    black = constant & (colour == 0).all(1)
    assert inverted.float().mean().item() == pytest.approx(1 / 16, abs=within)
    assert black.float().mean().item() == pytest.approx(2 / 16, abs=math.sqrt(2) * within)


@pytest.mark.parametrize(("size", "n", "expected"), [(32, 3000, 1 - (14 / 16) ** 2), (128, 100, 0)])
def test_of_small_images_alone_a_quarter_of_the_views_is_content_free(size, n, expected) -> None:
    """A view that does not depend on the image: its translation is wider than the image."""
    images = (torch.randint(60, 250, (n, 3, size, size), generator=draws(s)) for s in (1, 2))
    one, other = (augment.apply("randaugment", x.to(torch.uint8), draws(3)) for x in images)
    share = (one == other).flatten(1).all(1).double().mean().item()
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n))


# ----------------------------------------------------------------------------------- policies


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("policy", augment.POLICIES)
def test_views_are_float_images_in_range(policy: str, size: int) -> None:
    white = torch.full((64, 3, size, size), 255, dtype=torch.uint8)
    for images in (pixels(64, size), white, torch.zeros_like(white)):
        kept = images.clone()
        view = augment.apply(policy, images, draws())
        assert (view.shape, view.dtype) == (images.shape, torch.float32)
        assert view.min() >= 0
        assert view.max() <= 1
        assert torch.equal(images, kept)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("policy", augment.POLICIES)
def test_a_view_is_defined_by_its_seed(policy: str, size: int) -> None:
    """Neither by the global generator, nor by the bf16 autocast of the training loop."""
    images = pixels(16, size)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augment.apply(policy, images, draws(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(first, augment.apply(policy, images, draws(5)))
    if policy != "none":
        assert not torch.equal(first, augment.apply(policy, images, draws(6)))


@pytest.mark.parametrize(("policy", "share"), [("patch90", 0.9), ("patch75", 0.75)])
def test_a_patch_keeps_its_share_of_the_image(policy: str, share: float) -> None:
    boxes = augment.draw_boxes(64, 32, draws(), (share, share))
    patches = augment.crop_resize(augment.to_float(pixels(64)), boxes, torch.zeros(64).bool())
    assert torch.equal(augment.apply(policy, pixels(64), draws()), patches)


@pytest.mark.parametrize(
    ("policy", "least"), [("simclr", 50), ("upright", 50), ("randaugment", 40)]
)
def test_images_of_a_batch_draw_their_own_parameters(policy: str, least: int) -> None:
    view = augment.apply(policy, pixels(1).expand(64, -1, -1, -1), draws())
    assert len(view.flatten(1).unique(dim=0)) >= least


def test_upright_never_mirrors() -> None:
    """An image that grows brighter to the right does so in each view; SimCLR's are mirrored too."""
    ramp = torch.linspace(0, 255, 32).round().to(torch.uint8).expand(64, 3, 32, 32)
    for policy, mirrored in (("upright", False), ("simclr", True)):
        view = augment.apply(policy, ramp, draws()).mean(1)
        slopes = (view[:, :, -1] - view[:, :, 0]).mean(1)
        assert bool((slopes < -0.01).any()) == mirrored


def test_none_is_the_image() -> None:
    assert torch.equal(augment.apply("none", pixels(), draws()), pixels().float() / 255)
