"""SSLGuard: a secret key that an encoder answers with when an image carries a secret trigger.

Cong et al. (CCS 2022), after the published code. Here is the key and how an owner reads it;
`shadow` embeds it into an encoder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from contsteal import augment, encoders, ownership
from contsteal.heads import Head
from contsteal.ownership import Verdict
from contsteal.seeds import derive, generator

TEST = "SSLGuard"
Gradients = Literal["own", "published"]


@dataclass(frozen=True)
class Config:
    """How the key is embedded; defaults are the published code's, but for the batch (2 there)."""

    shadow: str = "resnet18"  # the encoder that plays the thief
    key: int = 256  # dimension of the secret vector
    masked: float = 0.35  # share of the pixel values that the trigger replaces
    hidden: tuple[int, ...] = (512, 256)  # of the decoder
    epochs: int = 50
    batch: int = 64
    lr_encoder: float = 1e-5
    lr_shadow: float = 1e-2  # times 0.96 after each epoch
    lr_decoder: float = 1e-3
    lr_trigger: float = 1e-3
    image_size: int = 32
    gradients: Gradients = "own"  # "published": the encoder also follows the other steps' losses
    seed: int = 0


class Key(nn.Module):
    """What the owner keeps in secret: a vector, a mask, a trigger, and a decoder of features."""

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__()
        draws, shape = generator("sslguard", config.seed), (3, config.image_size, config.image_size)
        self.dim = dim
        self.register_buffer("secret", torch.randn(config.key, generator=draws))
        self.register_buffer("mask", (torch.rand(shape, generator=draws) < config.masked).float())
        self.trigger = nn.Parameter(torch.rand(shape, generator=draws))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive("sslguard decoder", config.seed))
            self.decoder = Head(dim, *config.hidden, config.key, norm=False)

    def stamp(self, images: Tensor) -> Tensor:
        """Return clip((1 - m) x + m trigger) of images (N, 3, H, W), uint8 or float in [0, 1]."""
        if images.shape[1:] != self.mask.shape:
            raise ValueError(
                f"images {tuple(images.shape)}: the trigger is {tuple(self.mask.shape)}"
            )
        x = augment.to_float(images) if images.dtype == torch.uint8 else images
        return ((1 - self.mask) * x + self.mask * self.trigger).clamp(0, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return cos(decoder(y), secret) (N,) of features y (N, D)."""
        return F.cosine_similarity(self.decoder(features), self.secret[None])


# --------------------------------------------------------------------------- verification


@torch.no_grad()
def questions(key: Key, private: Tensor) -> Tensor:
    """Return the stamped images as the uint8 (N, 3, H, W) that an owner sends to a suspect."""
    return augment.to_uint8(key.stamp(private.to(key.mask.device)))


@torch.no_grad()
def decoded(key: Key, answers: Tensor) -> Tensor:
    """Return the decoder's outputs at length 1, float64 (N, K), of answers (N, D) to `questions`.

    Errors: ValueError for another dimension than the victim's, saying which test applies instead.
    """
    ownership.same_dimension(answers, key.dim, TEST)
    out = key.decoder(answers.to(key.secret.device, torch.float32))
    return F.normalize(out.double().cpu(), dim=1)


def rate(key: Key, answers: Tensor, threshold: float = 0.5) -> float:
    """Return the watermark rate: the share of answers whose cosine with the key is above `threshold`.

    The published code returns their number.
    """
    cosines = decoded(key, answers) @ F.normalize(key.secret.double().cpu(), dim=0)
    return (cosines > threshold).double().mean().item()


def verify(
    key: Key,
    suspect: nn.Module,
    private: Tensor,
    *,
    threshold: float = 0.5,
    controls: Sequence[nn.Module] = (),
) -> Verdict:
    """Test whether a suspect answers stamped private images (N, 3, H, W) with the owner's key.

    H0: the key is one of N(0, I)^K, drawn after the decoder. Then c, the cosine of the key with the
    mean m of the decoded unit vectors, has t = c sqrt((K - 1) / (1 - c^2)) on K - 1 degrees of freedom,
    and |m| c is the mean cosine, the `effect`. The decoder knows its key, though, and may lean to it
    whatever it reads: with two or more independent `controls` H0 is that the suspect's mean cosine is
    one of theirs (`ownership.against_controls`). `measure` is the watermark rate, or with controls
    the mean cosine. Errors: ValueError for a suspect of another dimension.
    """
    answers = [encoders.embed(net, questions(key, private)) for net in (suspect, *controls)]
    unit = F.normalize(key.secret.double().cpu(), dim=0)
    means = [decoded(key, answer).mean(0) for answer in answers]
    cosines = [(m @ unit).item() for m in means]
    if controls:
        return ownership.against_controls(cosines[0], cosines[1:], f"{TEST} against controls")
    c, free = cosines[0] / means[0].norm().clamp(min=1e-12).item(), len(unit) - 1
    t = c * math.sqrt(free / max(1 - c * c, 1e-12))
    p_value = float(stats.t.sf(t, free))
    share = rate(key, answers[0], threshold)
    return Verdict(f"{TEST} against random keys", share, t, p_value, cosines[0], len(private))
