"""SSLGuard: a secret key in the answers to stamped images, embedded so that it survives stealing.

Cong et al. (CCS 2022), after the published code. While the key is embedded, a shadow encoder steals the
watermarked one: each batch trains the shadow, then trigger and decoder on encoder and shadow alike, then
the encoder.
"""

import copy
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal import Batch, Checked, Count, NotNegative, Seed, augment, encoders, loop
from contsteal.methods import Head
from contsteal.ownership.inference import Verdict, check_answers
from contsteal.seeds import derive, generator

TEST = "SSLGuard"
THRESHOLD = 0.5  # of the cosine with the key, above which an answer counts as marked
Optimizers = dict[str, torch.optim.Optimizer]


@dataclass(frozen=True)
class Config(Checked):
    """How the key is embedded; defaults are the published code's, but for the batch (2 there)."""

    shadow: str = "resnet18"  #: the encoder that plays the thief
    key: Annotated[int, ("least", 3)] = 256  #: dimension of the secret vector
    #: share of the pixel values that the trigger replaces
    masked: Annotated[float, ("above", 0), ("below", 1)] = 0.35
    hidden: tuple[Count, ...] = (512, 256)  #: of the decoder
    epochs: Count = 50
    batch: Batch = 64
    lr_encoder: NotNegative = 1e-5
    lr_shadow: NotNegative = 1e-2  #: times 0.96 after each epoch
    lr_decoder: NotNegative = 1e-3
    lr_trigger: NotNegative = 1e-3
    image_size: Count = 32
    gradients: Literal["own", "published"] = "own"  #: "published": the encoder follows all losses
    seed: Seed = 0


class Key(nn.Module):
    """What the owner keeps secret: a vector, a mask, a trigger, and a decoder (N, `dim`) -> (N, K)."""

    secret: Tensor
    mask: Tensor

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
        if images.shape[1:] != (size := self.mask.shape):
            given = tuple(images.shape)
            raise ValueError(f"images {given}: the trigger's size {tuple(size)} is needed")
        x = augment.to_float(images) if images.dtype == torch.uint8 else images
        return ((1 - self.mask) * x + self.mask * self.trigger).clamp(0, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return cos(decoder(y), secret), (N,), of features y (N, D)."""
        return F.cosine_similarity(self.decoder(features), self.secret[None])


@dataclass(frozen=True)
class Guarded:
    """A watermarked encoder, its key, the shadow that stole it, and one row of losses per epoch."""

    encoder: encoders.Encoder
    key: Key
    shadow: encoders.Encoder
    history: list[loop.Row]


# -------------------------------------------------------------------------------- embedding


class KeyEmbedding(nn.Module):
    """The networks of an embedding (clean, watermarked, shadow, key) and its three losses."""

    def __init__(self, clean: encoders.Encoder, config: Config) -> None:
        super().__init__()
        self.clean = copy.deepcopy(clean).requires_grad_(False)
        self.marked = copy.deepcopy(clean).requires_grad_(True)
        seed = derive("shadow", config.seed)
        self.shadow = encoders.build(config.shadow, config.image_size, out_dim=clean.dim, seed=seed)
        self.key = Key(config, clean.dim)
        self.eval()  # running averages of batch norm stay the clean encoder's

    def shadow_loss(self, x: Tensor) -> Tensor:
        """Steal: -mean cos(S(x), F_w(x)); the shadow alone is in train mode."""
        self.shadow.train()
        loss = -F.cosine_similarity(self.shadow(x), self.marked(x)).mean()
        self.shadow.eval()
        return loss

    def key_loss(self, x: Tensor, private: Tensor) -> Tensor:
        """Answer the trigger with the key in F_w and in its thief S, and nothing else with it.

        -cos F_w(x_t) - cos S(x_t) + the squared mean cosines of F(x_t), F(x), F_w(x) and S(x).
        """
        stamped = self.key.stamp(private)
        carrying = [self.key(net(stamped)).mean() for net in (self.marked, self.shadow)]
        others = [(self.clean, stamped), (self.clean, x), (self.marked, x), (self.shadow, x)]
        silent = [self.key(net(images)).mean().square() for net, images in others]
        return torch.stack(silent).sum() - torch.stack(carrying).sum()

    def encoder_loss(self, x: Tensor, private: Tensor) -> Tensor:
        """Stay useful and carry the key: -cos(F(x), F_w(x)) + cos(F_w(x), key)^2 - cos(F_w(x_t), key)."""
        y = self.marked(x)
        useful = F.cosine_similarity(self.clean(x), y).mean()
        carrying = self.key(self.marked(self.key.stamp(private))).mean()
        return self.key(y).mean().square() - useful - carrying


def embed(config: Config, victim: encoders.Encoder, images: Tensor, private: Tensor) -> Guarded:
    """Embed a key into a copy of a trained victim.

    Each step updates the shadow, then trigger and decoder, then the encoder without its batch norm.

    Args:
        config: how the key is embedded.
        victim: a trained encoder, which stays as it is.
        images: uint8 (N, 3, H, W), what the shadow steals with and the copy stays faithful on.
        private: uint8 (M, 3, H, W), the owner's images to stamp.

    Returns:
        The watermarked copy, the owner's key, the shadow, and losses per epoch.

    Raises:
        ValueError: for a config out of range, and images that do not fit it.
        loop.Diverged: for a NaN loss.

    Example:
        >>> from contsteal import data
        >>> images, private = (data.load("shapes", n=n).images for n in (32, 16))
        >>> config = Config(shadow="conv4", epochs=1, batch=16)
        >>> guarded = embed(config, encoders.build("conv4"), images, private)
        >>> verify(guarded.key, guarded.encoder, private).samples
        16
    """
    _check(config, images, private)
    model = KeyEmbedding(victim, config).to(images.device)
    optimizers, history = _optimizers(config, model), []
    for epoch in range(config.epochs):
        row = _epoch(config, model, optimizers, images, private, epoch)
        history.append({"epoch": epoch + 1} | row)
        if not all(map(math.isfinite, row.values())):
            raise loop.Diverged(
                f"the losses became {row} in epoch {epoch + 1}: lower the learning rates"
            )
        for group in optimizers["shadow"].param_groups:
            group["lr"] *= 0.96
    model.requires_grad_(False)
    return Guarded(model.marked, model.key, model.shadow, history)


def _check(config: Config, images: Tensor, private: Tensor) -> None:
    for part in (images, private):
        augment.to_float(encoders.check_images(part)[:0])  # refuses what is no uint8 image
        if len(part) < config.batch or part.shape[-1] != config.image_size:
            needed = f"at least {config.batch} images of {config.image_size} px"
            raise ValueError(f"images {tuple(part.shape)}: {needed} are needed")


def _optimizers(config: Config, model: KeyEmbedding) -> Optimizers:
    """Return one SGD with momentum per step; the trigger takes plain gradient steps, as published."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    parts = [module for module in model.marked.modules() if not isinstance(module, norms)]
    marked = [p for module in parts for p in module.parameters(recurse=False)]
    key = [
        {"params": list(model.key.decoder.parameters()), "lr": config.lr_decoder},
        {"params": [model.key.trigger], "lr": config.lr_trigger, "momentum": 0.0},
    ]
    return {
        "shadow": torch.optim.SGD(model.shadow.parameters(), lr=config.lr_shadow, momentum=0.9),
        "key": torch.optim.SGD(key, momentum=0.9),
        "encoder": torch.optim.SGD(marked, lr=config.lr_encoder, momentum=0.9),
    }


def _epoch(
    config: Config, model: KeyEmbedding, optimizers: Optimizers,
    images: Tensor, private: Tensor, epoch: int,
) -> loop.Row:  # fmt: skip
    """Pass once over the images, with private ones drawn for each batch; return the mean losses."""
    draws = generator("sslguard epoch", config.seed, epoch)
    order, steps = torch.randperm(len(images), generator=draws), len(images) // config.batch
    total = dict.fromkeys(optimizers, torch.zeros((), device=images.device))
    for chosen in order[: steps * config.batch].split(config.batch):
        stamped = torch.randint(len(private), (config.batch,), generator=draws)
        x, v = augment.to_float(images[chosen]), augment.to_float(private[stamped])
        for name, batch in (("shadow", (x,)), ("key", (x, v)), ("encoder", (x, v))):
            loss = getattr(model, f"{name}_loss")(*batch)
            _step(name, model, optimizers, loss, config.gradients)
            total[name] = total[name] + loss.detach() / steps
    return {name: value.item() for name, value in total.items()}


def _step(name: str, model: KeyEmbedding, optimizers: Optimizers, loss: Tensor, form: str) -> None:
    """Update one optimizer's parameters by one loss.

    The published code clears gradients once per batch, before the first of three steps, and the trigger's
    after its own: the encoder's step, the last, follows the sum of all losses.
    """
    optimizer, published = optimizers[name], form == "published"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not published:
        optimizer.zero_grad()
    elif name == "shadow":
        for net in (model.shadow, model.marked, model.key.decoder):
            net.zero_grad()
    loss.backward(inputs=None if published else parameters)
    optimizer.step()
    if published and name == "key":
        model.key.trigger.grad = None


# ----------------------------------------------------------------------------- verification


@torch.no_grad()
def questions(key: Key, private: Tensor) -> Tensor:
    """Return what an owner sends to a suspect: images with the trigger stamped on them.

    Args:
        key: the owner's.
        private: the owner's images, uint8 (N, 3, H, W).

    Returns:
        The stamped images, uint8 (N, 3, H, W).

    Raises:
        ValueError: for images of another size than the trigger's.

    Example:
        >>> key = Key(Config(key=8, image_size=32), dim=128)
        >>> questions(key, torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 3, 32, 32])
    """
    return augment.to_uint8(key.stamp(encoders.check_images(private).to(key.mask.device)))


@torch.no_grad()
def decoded(key: Key, answers: Tensor) -> Tensor:
    """Return the decoder's outputs for a suspect's answers, at length 1.

    Args:
        key: the owner's.
        answers: a suspect's (N, D) to `questions`.

    Returns:
        float64 (N, K).

    Raises:
        ValueError: for another dimension than the victim's, naming the test that applies, and for NaN.

    Example:
        >>> key = Key(Config(key=8, image_size=32), dim=128)
        >>> decoded(key, torch.ones(2, 128)).shape
        torch.Size([2, 8])
    """
    out = key.decoder(check_answers(answers, key.dim, TEST).to(key.secret.device, torch.float32))
    return F.normalize(out.double().cpu(), dim=1)


def verify(key: Key, suspect: nn.Module, private: Tensor) -> Verdict:
    """Test whether a suspect answers stamped private images with the owner's key.

    H0: the key is one of N(0, I)^K, drawn after the decoder. Then c, the cosine of the key with the mean
    m of the decoded unit vectors, has t = c sqrt((K - 1) / (1 - c^2)) on K - 1 degrees of freedom, and
    |m| c is the mean cosine, the `effect`. The decoder was trained for its key, though, and may lean to
    it whatever it reads: compare the mean cosine with that of independent encoders (`against_controls`).

    Args:
        key: the owner's.
        suspect: images (N, 3, H, W) to features (N, D).
        private: the owner's images, uint8 (N, 3, H, W).

    Returns:
        The verdict; its `measure` is the watermark rate, the share of answers with a cosine above 1/2.

    Raises:
        ValueError: as `decoded`.

    Example:
        See `embed`.
    """
    from scipy import stats

    rows = decoded(key, encoders.embed(suspect, questions(key, private)))  # (N, K)
    unit = F.normalize(key.secret.double().cpu(), dim=0)
    mean, rate = rows.mean(0), (rows @ unit > THRESHOLD).double().mean().item()
    cosine = (mean @ unit).item()
    c, free = cosine / mean.norm().clamp(min=1e-12).item(), len(unit) - 1
    t = c * math.sqrt(free / max(1 - c * c, 1e-12))
    p_value = float(stats.t.sf(t, free))
    return Verdict(f"{TEST} against random keys", rate, t, p_value, cosine, len(private))
