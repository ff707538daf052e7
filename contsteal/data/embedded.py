"""Embedded data sets: images that a program draws or scikit-learn ships, without a download.

`glyphs` are procedural scenes of random closed curves, the main testbed: at equal, short lengths of
training, answers teach a thief more than it could learn without the victim. `shapes` are procedural
scenes with three label sets (shape, colour, texture), `digits` are scikit-learn's handwritten digits,
`patches` are unlabelled crops of scikit-learn's photographs.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal.seeds import generator

BLOCK = 1024  # images drawn per generator: any prefix of a set is the same set, cut short
V, U = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(32) - 15.5, indexing="ij")  # pixels
DEFAULT = 4096  # images of an endless set where no number is given
COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")
TEXTURES = tuple(f"{width} {angle}°" for width in ("coarse", "fine") for angle in (0, 45, 90, 135))


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    angles = [2 * math.pi * k / 3 + math.pi / 2 for k in range(3)]
    return torch.stack([x * math.cos(a) + y * math.sin(a) for a in angles]).amax(0) - 0.5


def _cross(x: Tensor, y: Tensor) -> Tensor:
    wide = torch.maximum(x.abs() - 1, y.abs() - 0.3)
    return torch.minimum(wide, torch.maximum(x.abs() - 0.3, y.abs() - 1))


# Negative inside, positive outside, in units of the shape's radius.
OUTLINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda x, y: torch.hypot(x, y) - 1,
    "square": lambda x, y: torch.maximum(x.abs(), y.abs()) - 0.8,
    "triangle": _triangle,
    "ring": lambda x, y: (torch.hypot(x, y) - 0.75).abs() - 0.25,
    "cross": _cross,
    "star": lambda x, y: torch.hypot(x, y) - (0.65 + 0.35 * torch.cos(5 * torch.atan2(y, x))),
    "diamond": lambda x, y: (1.5 * x.abs() + y.abs() - 1) / 1.8,
    "crescent": lambda x, y: torch.maximum(torch.hypot(x, y) - 1, 0.8 - torch.hypot(x - 0.5, y)),
    "bar": lambda x, y: torch.maximum(x.abs() - 1, y.abs() - 0.35),
    "half disc": lambda x, y: torch.maximum(torch.hypot(x, y) - 1, -y),
}


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """HSV to RGB: channel n is v - v s clip(min(k, 4 - k), 0, 1) with k = (n + 6 h) mod 6."""
    k = (torch.tensor([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    return value[:, None] - (value * saturation)[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def _stripes(u: Tensor, v: Tensor, angle: Tensor, frequency: Tensor, phase: Tensor) -> Tensor:
    along = u * angle.cos()[:, None, None] + v * angle.sin()[:, None, None]
    return 0.5 + 0.5 * torch.sin(frequency[:, None, None] * along + phase[:, None, None])


def _cover(label: Tensor, u: Tensor, v: Tensor, pose: Tensor) -> Tensor:
    """Return the share of each pixel that the shape covers, (N, H, W) in [0, 1]."""
    turn, dx, dy, radius = (p[:, None, None] for p in pose.unbind(1))
    x = ((u - dx) * turn.cos() + (v - dy) * turn.sin()) / radius
    y = ((v - dy) * turn.cos() - (u - dx) * turn.sin()) / radius
    cover = torch.empty_like(x)
    for kind, outline in enumerate(OUTLINES.values()):
        chosen = label == kind
        cover[chosen] = (0.5 - outline(x[chosen], y[chosen]) * radius[chosen]).clamp(0, 1)
    return cover


def _scenes(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw BLOCK scenes: uint8 (BLOCK, 3, 32, 32) and labels (BLOCK, 3): shape, colour, texture."""
    label = torch.randint(10, (BLOCK,), generator=g)
    normal, uniform = torch.randn(BLOCK, 3, generator=g), torch.rand(BLOCK, 13, generator=g)
    turn, radius = 0.6 * uniform[:, 0] - 0.3, 9 + 6 * uniform[:, 3]  # rad, pixels
    dx, dy = 4 * uniform[:, 1] - 2, 4 * uniform[:, 2] - 2
    pose = torch.stack([turn, dx, dy, radius], 1)  # (BLOCK, 4)
    hue = (0.1 * label + 0.25 * normal[:, 0]) % 1
    angle = (label % 5) * math.pi / 5 + 0.5 * normal[:, 1]
    frequency = torch.where(label < 5, 0.6, 1.1) + 0.25 * normal[:, 2]  # rad per pixel
    inside = _stripes(U, V, angle, frequency, 6.3 * uniform[:, 4])  # (BLOCK, 32, 32)
    behind = _stripes(U, V, 3.2 * uniform[:, 5], 0.4 + uniform[:, 6], 6.3 * uniform[:, 7])
    ink = _rgb(hue, 0.6 + 0.3 * uniform[:, 8], 0.7 + 0.3 * uniform[:, 9])  # (BLOCK, 3)
    paper = _rgb(uniform[:, 10], 0.3 * uniform[:, 11], 0.25 + 0.15 * uniform[:, 12])
    cover = _cover(label, U, V, pose)[:, None]
    scene = cover * ink[:, :, None, None] * (0.45 + 0.55 * inside[:, None])
    scene = scene + (1 - cover) * paper[:, :, None, None] * (0.2 + 0.8 * behind[:, None])
    scene = scene + 0.10 * torch.randn(scene.shape, generator=g)
    colour = (6 * hue).round().long() % 6
    texture = 4 * (frequency > 0.85) + (4 * angle / math.pi).round().long() % 4
    pixels = (scene.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels, torch.stack([label, colour, texture], 1)


def _drawn(
    name: str, scenes: Callable[[torch.Generator], tuple[Tensor, Tensor]], column: int,
    n: int | None, split: str, seed: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Draw blocks of scenes and return the first n with one column of their labels."""
    n = n or DEFAULT
    blocks = [scenes(generator(name, split, seed, b)) for b in range(-(-n // BLOCK))]
    images, labels = (torch.cat(part)[:n] for part in zip(*blocks, strict=True))
    return images, labels[:, column]


@cache
def _all_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # scikit-learn takes seconds to import

    raw = load_digits()
    gray = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16
    wide = F.interpolate(gray, size=32, mode="bilinear", align_corners=False)
    images = (wide.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8)
    return images, torch.tensor(raw.target, dtype=torch.int64)


def _digits(n: int | None, split: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits at 32 px; the test split is the same fifth under every seed."""
    images, labels = _all_digits()
    parts = torch.randperm(len(images), generator=generator("digits")).split(len(images) // 5)
    chosen = parts[0] if split == "test" else torch.cat(parts[1:])
    chosen = chosen[torch.randperm(len(chosen), generator=generator("digits", split, seed))]
    return images[chosen], labels[chosen]


def _crop(photo: Tensor, g: torch.Generator) -> Tensor:
    side = int(torch.randint(32, 129, (1,), generator=g))
    top = int(torch.randint(photo.shape[1] - side + 1, (1,), generator=g))
    left = int(torch.randint(photo.shape[2] - side + 1, (1,), generator=g))
    crop = photo[None, :, top : top + side, left : left + side].float()
    return F.interpolate(crop, size=32, mode="bilinear", antialias=True, align_corners=False)[0]


def _patches(n: int | None, split: str, seed: int) -> tuple[Tensor, None]:
    """Return crops of 32 to 128 px from two photographs, resized to 32 px."""
    from sklearn.datasets import load_sample_images

    photos = [torch.tensor(p).permute(2, 0, 1) for p in load_sample_images().images]
    g, which = generator("patches", split, seed), generator("patches-photo", split, seed)
    indices = torch.randint(len(photos), (n or DEFAULT,), generator=which)
    crops = [_crop(photos[i], g) for i in indices.tolist()]
    return torch.stack(crops).round().clamp(0, 255).to(torch.uint8), None


# ---------------------------------------------------------------------------------- glyphs

GLYPHS = 20  # classes
GLYPH_CLASSES = tuple(f"glyph {k}" for k in range(GLYPHS))
SYMMETRIES = ("2-fold", "3-fold", "4-fold", "5-fold or more")
HARMONICS = torch.arange(2, 8)  # of a curve's radius around its centre


def _curves(n: int, g: torch.Generator) -> Tensor:
    """Draw coefficients of n closed curves, complex (n, 6): r(t) = 1 + Re sum_k c_k exp(-i k t)."""
    return torch.complex(*(torch.randn(2, n, len(HARMONICS), generator=g) * 0.56 / HARMONICS))


@cache
def _glyph_classes() -> Tensor:
    return _curves(GLYPHS, generator("glyphs", "classes"))


def _radius(curves: Tensor, direction: Tensor) -> Tensor:
    """Return the radius of curves (N, 6) in directions exp(i t) (N, ...), at least a tenth."""
    shape = (len(curves), *[1] * (direction.ndim - 1))
    power, radius = direction, torch.ones(direction.shape)
    for coefficient in curves.unbind(1):
        power = power * direction
        radius = radius + (coefficient.view(shape).conj() * power).real
    return radius.clamp(min=0.1)


def _fill(curves: Tensor, centre: Tensor, turn: Tensor, scale: Tensor, stretch: Tensor) -> Tensor:
    """Return the share of each pixel inside curves of a size in pixels, (N, 32, 32) in [0, 1]."""
    x = (U - centre[:, 0, None, None]) * stretch[:, None, None]
    y = (V - centre[:, 1, None, None]) / stretch[:, None, None]
    point = torch.complex(x, y) * torch.polar(torch.ones_like(turn), -turn)[:, None, None]
    distance = point.abs().clamp(min=1e-6)
    edge = scale[:, None, None] * _radius(curves, point / distance)
    return (0.5 + edge - distance).clamp(0, 1)


def _glyph_scenes(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw BLOCK scenes: uint8 (BLOCK, 3, 32, 32) and labels (BLOCK, 2): glyph, symmetry."""
    label = torch.randint(GLYPHS, (BLOCK,), generator=g)
    uniform = torch.rand(BLOCK, 15, generator=g)
    jitter = torch.complex(*(0.04 * torch.randn(2, BLOCK, len(HARMONICS), generator=g)))
    curves = _glyph_classes()[label] + jitter
    signed = 2 * uniform - 1
    scale = 8 + 3 * uniform[:, 0]  # pixels
    glyph = _fill(curves, 3 * signed[:, 1:3], 0.4 * signed[:, 3], scale, 1 + 0.1 * signed[:, 4])
    clutter = _fill(
        _curves(BLOCK, g), 14 * signed[:, 5:7], math.pi * signed[:, 7], 2 + uniform[:, 8],
        torch.ones(BLOCK),
    )  # fmt: skip
    ink, paper = 0.2 + 0.8 * uniform[:, 9:12], 0.35 * uniform[:, 12:15]
    speck = torch.rand(BLOCK, 3, generator=g)
    coarse = torch.randn(BLOCK, 3, 6, 6, generator=g)
    noise = F.interpolate(coarse, size=32, mode="bicubic", align_corners=False)
    scene = paper[..., None, None] + 0.08 * noise
    for colour, cover in ((speck, clutter), (ink, glyph)):
        scene = torch.lerp(scene, colour[..., None, None].expand_as(scene), cover[:, None])
    scene = scene + 0.03 * torch.randn(scene.shape, generator=g)
    pixels = (scene.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels, torch.stack([label, _symmetry(_glyph_classes())[label]], 1)


def _symmetry(curves: Tensor) -> Tensor:
    """Return the order of the strongest harmonic of curves (N, 6), less two, at most 3: (N,)."""
    return curves.abs().argmax(1).clamp(max=len(SYMMETRIES) - 1)


class Source(NamedTuple):
    """An embedded set: `read(n, split, seed)` returns images and labels or None; its classes."""

    read: Callable[[int | None, str, int], tuple[Tensor, Tensor | None]]
    classes: tuple[str, ...]


SOURCES: dict[str, Source] = {
    "glyphs": Source(partial(_drawn, "glyphs", _glyph_scenes, 0), GLYPH_CLASSES),
    "glyphs:symmetry": Source(partial(_drawn, "glyphs", _glyph_scenes, 1), SYMMETRIES),
    "shapes": Source(partial(_drawn, "shapes", _scenes, 0), tuple(OUTLINES)),
    "shapes:colour": Source(partial(_drawn, "shapes", _scenes, 1), COLOURS),
    "shapes:texture": Source(partial(_drawn, "shapes", _scenes, 2), TEXTURES),
    "digits": Source(_digits, tuple("0123456789")),
    "patches": Source(_patches, ()),
}
ENDLESS = tuple(name for name in SOURCES if name != "digits")  # as many images as are asked for
