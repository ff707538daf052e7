"""Embed SSLGuard's key into an encoder while a shadow steals it, so that the key survives stealing.

Cong et al. (CCS 2022), after the published code: each batch trains the shadow, then trigger and
decoder on encoder and shadow alike, then the encoder. `sslguard` reads the key afterwards.
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal import augment, encoders, loop
from contsteal.seeds import derive, generator
from contsteal.sslguard import Config, Key

Optimizers = dict[str, torch.optim.Optimizer]


@dataclass(frozen=True)
class Guarded:
    """A watermarked encoder, its key, the shadow that stole it, and one row of losses per epoch."""

    encoder: encoders.Encoder
    key: Key
    shadow: encoders.Encoder
    history: list[loop.Row]


class Embedding(nn.Module):
    """The four networks of an embedding and its three losses: clean, marked, shadow, and the key."""

    def __init__(self, clean: encoders.Encoder, config: Config) -> None:
        super().__init__()
        self.clean = copy.deepcopy(clean).requires_grad_(False)
        self.marked = copy.deepcopy(clean).requires_grad_(True)
        self.shadow = encoders.build(
            config.shadow, config.image_size, out_dim=clean.dim, seed=derive("shadow", config.seed)
        )
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
        found = [self.key(net(stamped)).mean() for net in (self.marked, self.shadow)]
        others = [(self.clean, stamped), (self.clean, x), (self.marked, x), (self.shadow, x)]
        silent = [self.key(net(images)).mean().square() for net, images in others]
        return torch.stack(silent).sum() - torch.stack(found).sum()

    def encoder_loss(self, x: Tensor, private: Tensor) -> Tensor:
        """Stay useful and carry the key: -cos(F(x), F_w(x)) + cos(F_w(x), key)^2 - cos(F_w(x_t), key)."""
        y = self.marked(x)
        useful = F.cosine_similarity(self.clean(x), y).mean()
        marked = self.key(self.marked(self.key.stamp(private))).mean()
        return self.key(y).mean().square() - useful - marked


def embed(config: Config, victim: encoders.Encoder, images: Tensor, private: Tensor) -> Guarded:
    """Embed a key into a copy of a trained victim, which itself is left as it is.

    `images` (N, 3, H, W) uint8 are what the shadow steals with and the marked encoder stays faithful
    on; `private` (M, 3, H, W) are the owner's, which are stamped and kept for verification. Each step
    updates the shadow, then trigger and decoder, then the encoder, batch norm excepted; x has
    `batch` images. Errors: ValueError for sizes that do not fit; loop.Diverged for a NaN loss.
    """
    _check(config, victim, images, private)
    model = Embedding(victim, config).to(images.device)
    optimizers = _optimizers(config, model)
    history = []
    for epoch in range(config.epochs):
        draws = generator("sslguard epoch", config.seed, epoch)
        row = _epoch(config, model, optimizers, images, private, draws)
        history.append({"epoch": epoch + 1} | row)
        if not all(map(math.isfinite, row.values())):
            raise loop.Diverged(f"the losses became {row} in epoch {epoch + 1}: lower the rates")
        for group in optimizers["shadow"].param_groups:
            group["lr"] *= 0.96
    model.requires_grad_(False)
    return Guarded(model.marked, model.key, model.shadow, history)


def _check(config: Config, victim: encoders.Encoder, images: Tensor, private: Tensor) -> None:
    if config.gradients not in ("own", "published"):
        raise ValueError(f'unknown gradients {config.gradients!r}: choose "own" or "published"')
    if not 0 < config.masked < 1 or config.key < 3 or config.epochs < 1 or config.batch < 2:
        raise ValueError(f"{config}: masked must lie in (0, 1), key be 3 or more, epochs 1 or more "
                         "and batch 2 or more")  # fmt: skip
    for part in (images, private):
        augment.to_float(part[:0])
        if len(part) < config.batch or part.shape[-1] != config.image_size:
            raise ValueError(
                f"images {tuple(part.shape)}: a batch is {config.batch} of {config.image_size} px"
            )


def _optimizers(config: Config, model: Embedding) -> Optimizers:
    """Return one SGD with momentum per step; the trigger takes plain gradient steps, as published."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    marked = [
        p
        for module in model.marked.modules()
        if not isinstance(module, norms)
        for p in module.parameters(recurse=False)
    ]
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
    config: Config,
    model: Embedding,
    optimizers: Optimizers,
    images: Tensor,
    private: Tensor,
    draws: torch.Generator,
) -> loop.Row:
    """Pass once over the images, the private ones drawn anew for each batch; return the mean losses."""
    order, steps = torch.randperm(len(images), generator=draws), len(images) // config.batch
    total = dict.fromkeys(optimizers, torch.zeros((), device=images.device))
    for chosen in order[: steps * config.batch].split(config.batch):
        mine = torch.randint(len(private), (config.batch,), generator=draws)
        x, v = augment.to_float(images[chosen]), augment.to_float(private[mine])
        for name, given in (("shadow", (x,)), ("key", (x, v)), ("encoder", (x, v))):
            loss = getattr(model, f"{name}_loss")(*given)
            _step(name, model, optimizers, loss, config.gradients)
            total[name] = total[name] + loss.detach() / steps
    return {name: value.item() for name, value in total.items()}


def _step(name: str, model: Embedding, optimizers: Optimizers, loss: Tensor, form: str) -> None:
    """Update one optimizer's own parameters by one loss.

    The published code clears the gradients once per batch, before the first of the three steps, so the
    encoder's last step follows the sum of all losses; the trigger it clears after the trigger's step.
    """
    optimizer, published = optimizers[name], form == "published"
    own = [p for group in optimizer.param_groups for p in group["params"]]
    if not published:
        optimizer.zero_grad()
    elif name == "shadow":
        for net in (model.shadow, model.marked, model.key.decoder):
            net.zero_grad()
    loss.backward(inputs=None if published else own)
    optimizer.step()
    if published and name == "key":
        model.key.trigger.grad = None
