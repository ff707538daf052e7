"""Batched augmentation: every image of a batch draws its own parameters, on the images' device.

A policy maps uint8 images (N, 3, H, W) to a view, float images of that shape in [0, 1]. Its operations
take such float images and parameters (N,), one per image; at equal parameters they agree with
torchvision's. Parameters are drawn from an explicit CPU generator: a view is defined by its seed alone.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Draw = torch.Generator


def to_float(images: Tensor) -> Tensor:
    """Scale images from 0 to 255 into [0, 1].

    Args:
        images: uint8 (N, 3, H, W).

    Returns:
        float32 (N, 3, H, W).

    Raises:
        ValueError: for another shape or dtype.

    Example:
        >>> to_float(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).unique()
        tensor([1.])
    """
    _check(images)
    return images.float().div_(255)


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [0, 1] to 8 bits, as an image service receives them.

    Args:
        images: floats (N, 3, H, W); what lies outside [0, 1] is clipped.

    Returns:
        uint8 (N, 3, H, W).

    Example:
        >>> to_uint8(torch.tensor([0.0, 0.5, 1.0]))
        tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return (images * 255).round_().clamp_(0, 255).to(torch.uint8)


def _check(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.layout != torch.strided:
        raise ValueError(f"images of kind {type(images).__name__}: a dense tensor is expected")
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        given = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"images {given}: uint8 of shape (N, 3, H, W) is expected")


# -------------------------------------------------------------------------------------- geometry


def draw_boxes(n: int, size: int, g: Draw, scale: tuple[float, float]) -> Tensor:
    """Draw crop boxes (top, left, height, width) in pixels, (n, 4), as RandomResizedCrop does.

    The share of the area is uniform in `scale`, the log aspect in log(3/4) to log(4/3). A box that does
    not fit into `size` x `size` is redrawn up to ten times, then becomes the whole image.
    """
    tries = torch.rand(10, n, 2, generator=g, dtype=torch.float64)
    area = size * size * (scale[0] + (scale[1] - scale[0]) * tries[..., 0])
    aspect = torch.exp((2 * tries[..., 1] - 1) * math.log(4 / 3))
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()  # (10, n)
    fits = ((width <= size) & (height <= size) & (width >= 1) & (height >= 1)).double()
    any_fits, first = fits.max(0)  # the first try that fits
    drawn = torch.stack([height, width], -1)[first, torch.arange(n)]  # (n, 2)
    extent = torch.where(any_fits[:, None] > 0, drawn, float(size))
    corner = (torch.rand(n, 2, generator=g, dtype=torch.float64) * (size - extent + 1)).floor()
    return torch.cat([corner, extent], 1).float()


def crop_resize(images: Tensor, boxes: Tensor, flip: Tensor) -> Tensor:
    """Cut `boxes` (N, 4) of `draw_boxes`, resize them to the images' size, mirror where `flip` (N,)."""
    size = images.shape[-1]
    boxes, flip = boxes.to(images.device), flip.to(images.device)
    top, left, height, width = (b[:, None] for b in boxes.unbind(1))
    step = (torch.arange(size, device=images.device) + 0.5) / size
    across = torch.where(flip[:, None], 1 - step, step)
    # Samples stay inside the box: what lies beyond its edge must not bleed into the crop.
    y = torch.clamp(top + step * height - 0.5, min=top, max=top + height - 1)
    x = torch.clamp(left + across * width - 0.5, min=left, max=left + width - 1)
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)  # (N, H, H, 2)
    grid = (2 * grid + 1) / size - 1
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


def shift_crop(images: Tensor, offset: Tensor, flip: Tensor, padding: int = 4) -> Tensor:
    """Pad with black, cut at `offset` (N, 2) in [0, 2 padding], mirror where `flip` (N,)."""
    n, _, height, width = images.shape
    offset, flip = offset.to(images.device), flip.to(images.device)
    wide = F.pad(images, (padding,) * 4)
    rows = offset[:, :1] + torch.arange(height, device=images.device)  # (N, H)
    columns = torch.arange(width, device=images.device).expand(n, -1)
    columns = offset[:, 1:] + torch.where(flip[:, None], width - 1 - columns, columns)
    batch = torch.arange(n, device=images.device)[:, None, None]
    return wide[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate square images (N, 3, H, H) counter-clockwise by `degrees` (N,), bilinear, black outside."""
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"images {tuple(images.shape)}: only square ones can be rotated")
    angle = torch.deg2rad(degrees.to(images))
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


# ---------------------------------------------------------------------------------------- colour


def luminance(images: Tensor) -> Tensor:
    """Return the gray image (N, 1, H, W) with ITU-R 601 weights."""
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale by `factor` (N,); 1 leaves an image as it is."""
    return _blend(images, 0.0, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Move towards (below 1) or away from (above 1) the image's mean gray by `factor` (N,)."""
    return _blend(images, luminance(images).mean((1, 2, 3), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Move towards (below 1) or away from (above 1) the gray image by `factor` (N,)."""
    return _blend(images, luminance(images), factor)


def _blend(images: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    weight = factor.view(-1, 1, 1, 1)
    return (weight * images + (1 - weight) * other).clamp_(0, 1)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue by `shift` (N,), a share of the colour circle; keep HSV saturation and value."""
    red, green, blue = images.unbind(1)
    top, low = images.amax(1), images.amin(1)
    chroma = top - low
    divisor = torch.where(chroma == 0, 1.0, chroma)
    angle = torch.where(
        top == red,
        (green - blue) / divisor,
        torch.where(top == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )  # in sixths of the circle
    angle = angle + 6 * shift.view(-1, 1, 1)
    k = (angle[:, None] + angle.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)) % 6
    return top[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def jitter(images: Tensor, g: Draw, p: float = 0.8) -> Tensor:
    """Jitter the colours of a share `p` of the images by (0.4, 0.4, 0.4, 0.1).

    Factors are drawn per image, the order of the four operations per batch (torchvision draws it per
    image: a deviation that saves 12 of 16 passes over the batch).
    """
    n = len(images)
    steps: list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = [
        *((op, _uniform(n, 1 - 0.4, 1 + 0.4, g)) for op in (brightness, contrast, saturation)),
        (hue, _uniform(n, -0.1, 0.1, g)),
    ]
    chosen, out = torch.rand(n, generator=g) < p, images
    for index in torch.randperm(4, generator=g).tolist():
        op, factor = steps[index]
        out = op(out, factor.to(images.device))
    return _where(chosen, out, images)


def grayscale(images: Tensor, g: Draw, p: float = 0.2) -> Tensor:
    """Replace a share `p` of the images by their gray form."""
    chosen = torch.rand(len(images), generator=g) < p
    return _where(chosen, luminance(images).expand_as(images), images)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur by a Gaussian of `sigma` (N,) pixels; the kernel spans a tenth of the image's side."""
    n, _, height, width = images.shape
    reach = max(1, width // 20)
    offset = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offset / sigma.to(images.device)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)  # (3N, K)
    flat = F.pad(images, (reach,) * 4, mode="reflect").reshape(1, 3 * n, height + 2 * reach, -1)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=3 * n)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=3 * n)
    return flat.clamp_(0, 1).reshape(n, 3, height, width)


def _uniform(n: int, low: float, high: float, g: Draw) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=g)


def _where(chosen: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    return torch.where(chosen.to(images.device).view(-1, 1, 1, 1), changed, images)


# ----------------------------------------------------------------------------------- RandAugment

Operation = Callable[[Tensor, int, Draw], Tensor]  # uint8 images, sign -1 or 1, draws


def _vision() -> Any:
    """Return torchvision's functional forms, imported at their first use, which takes a second."""
    from torchvision.transforms.v2 import functional

    return functional


def _affine(x: Tensor, shift: Sequence[int] = (0, 0), shear: Sequence[float] = (0, 0)) -> Tensor:
    return _vision().affine(x, 0.0, list(shift), 1.0, list(map(float, shear)), center=[0.0, 0.0])


def _cutout(images: Tensor, sign: int, g: Draw) -> Tensor:
    """Cover a square of 18.7 px around a point of the image with the policy's gray."""
    n, _, height, width = images.shape
    centre = torch.rand(n, 2, generator=g) * torch.tensor([height, width])
    low = (centre - 18.7 / 2).clamp(min=0).floor().to(images.device)  # (N, 2)
    high = torch.minimum(low + 18.7, torch.tensor([height, width], device=images.device))
    y = torch.arange(height, device=images.device)[None, :, None]
    x = torch.arange(width, device=images.device)[None, None, :]
    inside = (y >= low[:, :1, None]) & (y <= high[:, :1, None])
    inside = inside & (x >= low[:, 1:, None]) & (x <= high[:, 1:, None])  # (N, H, W)
    colour = torch.tensor([125, 123, 114], dtype=torch.uint8, device=images.device)
    return torch.where(inside[:, None], colour.view(1, 3, 1, 1), images)


SHEAR = math.degrees(math.atan(0.14))
# The 16 operations of the package that the official code uses, at its magnitude 14 of 30: value =
# low + (high - low) 14 / 30. Posterize keeps 1 bit; a shift is +-46.7 pixels, so an image of 32 px
# leaves the frame and nothing of it remains.
RANDAUGMENT: dict[str, Operation] = {
    "autocontrast": lambda x, sign, g: _vision().autocontrast(x),
    "equalize": lambda x, sign, g: _vision().equalize(x),
    "invert": lambda x, sign, g: _vision().invert(x),
    "rotate": lambda x, sign, g: _vision().rotate(x, 14.0 * sign),
    "posterize": lambda x, sign, g: _vision().posterize(x, 1),
    "solarize": lambda x, sign, g: _vision().solarize(x, 119.5),
    "solarize_add": lambda x, sign, g: torch.where(x < 128, x + 51, x),
    "color": lambda x, sign, g: _vision().adjust_saturation(x, 0.94),
    "contrast": lambda x, sign, g: _vision().adjust_contrast(x, 0.94),
    "brightness": lambda x, sign, g: _vision().adjust_brightness(x, 0.94),
    "sharpness": lambda x, sign, g: _vision().adjust_sharpness(x, 0.94),
    "shear_x": lambda x, sign, g: _affine(x, shear=(sign * SHEAR, 0)),
    "shear_y": lambda x, sign, g: _affine(x, shear=(0, sign * SHEAR)),
    "cutout": _cutout,
    "translate_x": lambda x, sign, g: _affine(x, shift=(47 * sign, 0)),
    "translate_y": lambda x, sign, g: _affine(x, shift=(0, 47 * sign)),
}


def rand_ops(images: Tensor, g: Draw, count: int = 2) -> Tensor:
    """Apply `count` operations of RANDAUGMENT to each uint8 image, drawn per image with repetition.

    Images that drew the same operation and sign form a group: a round is at most 32 batched calls.
    """
    operations, out = list(RANDAUGMENT.values()), images.clone()
    for _ in range(count):
        drawn = torch.randint(2 * len(operations), (len(images),), generator=g)
        for index in drawn.unique().tolist():
            group = (drawn == index).nonzero()[:, 0].to(images.device)
            out[group] = operations[index // 2](out[group], 1 if index % 2 else -1, g)
    return out


# -------------------------------------------------------------------------------------- policies


def none(images: Tensor, g: Draw) -> Tensor:
    """The image as it is."""
    return to_float(images)


def simclr(images: Tensor, g: Draw) -> Tensor:
    """SimCLR's policy for small images: crop (0.2, 1), flip, jitter, gray; blur from 64 px."""
    out, n, size = to_float(images), len(images), images.shape[-1]
    boxes = draw_boxes(n, size, g, scale=(0.2, 1.0))
    out = crop_resize(out, boxes, torch.rand(n, generator=g) < 0.5)
    out = grayscale(jitter(out, g), g)
    if size >= 64:
        sigma = _uniform(n, 0.1, 2.0, g)
        out = _where(torch.rand(n, generator=g) < 0.5, blur(out, sigma), out)
    return out


def upright(images: Tensor, g: Draw) -> Tensor:
    """SimCLR's policy for things with a handedness: crop (0.4, 1), jitter, gray, and no flip."""
    return grayscale(jitter(patch(images, g, 0.4, 1.0), g), g)


def randaugment(images: Tensor, g: Draw) -> Tensor:
    """The official Cont-Steal code's policy: RandAugment(2, 14), crop with padding 4, flip.

    At 32 px a share 1 - (14/16)^2 = 23.4 % of the views holds no image content: one of their two
    operations shifted them out of the frame.
    """
    _check(images)
    n = len(images)
    out = to_float(rand_ops(images, g))
    offset = torch.randint(9, (n, 2), generator=g)
    return shift_crop(out, offset, torch.rand(n, generator=g) < 0.5)


def rotation(images: Tensor, g: Draw) -> Tensor:
    """The image rotated by U[0, 360) degrees: what a thief of a rotation watermark adds."""
    return rotate(to_float(images), 360 * torch.rand(len(images), generator=g))


def patch(images: Tensor, g: Draw, least: float, most: float) -> Tensor:
    """A crop of a share of the image's area, resized; RDA's patches have a fixed one, 0.9 or 0.75."""
    boxes = draw_boxes(len(images), images.shape[-1], g, scale=(least, most))
    return crop_resize(to_float(images), boxes, torch.zeros(len(images), dtype=torch.bool))


POLICIES: dict[str, Callable[[Tensor, Draw], Tensor]] = {
    "none": none,
    "simclr": simclr,
    "upright": upright,
    "randaugment": randaugment,
    "rotation": rotation,
    "patch90": partial(patch, least=0.9, most=0.9),
    "patch75": partial(patch, least=0.75, most=0.75),
}


def apply(policy: str, images: Tensor, g: Draw) -> Tensor:
    """Return one view of each image, also inside autocast.

    Args:
        policy: a name of POLICIES.
        images: uint8 (N, 3, H, W).
        g: CPU generator of the draws.

    Returns:
        The views, float32 (N, 3, H, W) in [0, 1], on the images' device.

    Raises:
        ValueError: for an unknown policy, or other images.

    Example:
        >>> draws = torch.Generator().manual_seed(0)
        >>> apply("simclr", torch.zeros(4, 3, 32, 32, dtype=torch.uint8), draws).shape
        torch.Size([4, 3, 32, 32])
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown augmentation {policy!r}: choose one of {', '.join(POLICIES)}")
    with torch.autocast(images.device.type, enabled=False):
        return POLICIES[policy](images, g)
