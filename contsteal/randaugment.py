"""RandAugment(2, 14) as the official Cont-Steal code uses it, on batches of uint8 images."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

Draw = torch.Generator


def _solarize_add(images: Tensor, sign: int, g: Draw) -> Tensor:
    return torch.where(images < 128, (images.int() + 51).clamp(max=255).to(torch.uint8), images)


def _cutout(images: Tensor, sign: int, g: Draw) -> Tensor:
    """Cover a square of 18.7 px around a point of the image with the policy's gray."""
    n, _, height, width = images.shape
    centre = torch.rand(n, 2, generator=g) * torch.tensor([height, width])
    low = (centre - 18.7 / 2).clamp(min=0).floor().to(images.device)
    high = torch.minimum(low + 18.7, torch.tensor([height, width], device=images.device))
    y = torch.arange(height, device=images.device)[None, :, None]
    x = torch.arange(width, device=images.device)[None, None, :]
    inside = (y >= low[:, :1, None]) & (y <= high[:, :1, None])
    inside = inside & (x >= low[:, 1:, None]) & (x <= high[:, 1:, None])
    colour = torch.tensor([125, 123, 114], dtype=torch.uint8, device=images.device)
    return torch.where(inside[:, None], colour.view(1, 3, 1, 1), images)


def _shear(axis: int) -> Callable[[Tensor, int, Draw], Tensor]:
    degrees = math.degrees(math.atan(0.14))

    def op(images: Tensor, sign: int, g: Draw) -> Tensor:
        shear = [0.0, 0.0]
        shear[axis] = sign * degrees
        return TF.affine(images, 0.0, [0, 0], 1.0, shear, center=[0.0, 0.0])

    return op


def _translate(axis: int) -> Callable[[Tensor, int, Draw], Tensor]:
    def op(images: Tensor, sign: int, g: Draw) -> Tensor:
        shift = [0, 0]
        shift[axis] = sign * 47
        return TF.affine(images, 0.0, shift, 1.0, [0.0, 0.0])

    return op


# The 16 operations of the package that the official code uses, at its magnitude 14 of 30: value =
# low + (high - low) 14 / 30. Posterize keeps 1 bit; translation is +-46.7 pixels, so an image of
# 32 px is shifted out of the frame and nothing of it is left.
RANDAUGMENT: dict[str, Callable[[Tensor, int, Draw], Tensor]] = {
    "autocontrast": lambda x, sign, g: TF.autocontrast(x),
    "equalize": lambda x, sign, g: TF.equalize(x),
    "invert": lambda x, sign, g: TF.invert(x),
    "rotate": lambda x, sign, g: TF.rotate(x, 14.0 * sign),
    "posterize": lambda x, sign, g: TF.posterize(x, 1),
    "solarize": lambda x, sign, g: TF.solarize(x, 119.5),
    "solarize_add": _solarize_add,
    "color": lambda x, sign, g: TF.adjust_saturation(x, 0.94),
    "contrast": lambda x, sign, g: TF.adjust_contrast(x, 0.94),
    "brightness": lambda x, sign, g: TF.adjust_brightness(x, 0.94),
    "sharpness": lambda x, sign, g: TF.adjust_sharpness(x, 0.94),
    "shear_x": _shear(0),
    "shear_y": _shear(1),
    "cutout": _cutout,
    "translate_x": _translate(0),
    "translate_y": _translate(1),
}


def rand_ops(images: Tensor, g: Draw, count: int = 2) -> Tensor:
    """Apply `count` operations of RANDAUGMENT to each uint8 image, drawn per image with repetition.

    The images that drew one operation and sign form one group, so a round is at most 32 batched calls.
    """
    out = images.clone()
    for _ in range(count):
        drawn = torch.randint(2 * len(RANDAUGMENT), (len(images),), generator=g)
        for index in drawn.unique().tolist():
            op = list(RANDAUGMENT.values())[index // 2]
            group = (drawn == index).nonzero()[:, 0].to(images.device)
            out[group] = op(out[group], 1 if index % 2 else -1, g)
    return out
