"""What an attacker sends and makes of the answers: views, requests, accounts, adaptation."""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal import adaptive, augment
from contsteal.recipes import ASKS_VIEWS, Config
from contsteal.seeds import generator
from contsteal.victim import BlackBox

BLOCK = 128  # images whose views are drawn together
REQUEST = 8192  # images sent at once
KEPT = 2**29  # bytes of views that are held rather than drawn again


def users(config: Config, user: str) -> list[str]:
    """Return the names of the accounts that an attacker uses."""
    return [user, *(f"{user} {k + 1}" for k in range(1, config.accounts))]


def view(config: Config, images: Tensor, k: int) -> Tensor:
    """Return view `k` of every image as the victim gets it.

    The view of image i depends on seed, `k` and i alone: views are drawn in whole blocks, so those of
    a smaller budget are those of a larger one, cut short.
    """
    parts = []
    for block, part in enumerate(images.split(BLOCK)):
        whole = torch.cat([part, part[:1].expand(BLOCK - len(part), -1, -1, -1)])
        draws = generator("victim view", config.seed, k, block)
        parts.append(augment.to_uint8(augment.apply(config.policies[0], whole, draws))[: len(part)])
    return torch.cat(parts)


def views(config: Config, images: Tensor) -> Callable[[int], Tensor]:
    """Return what gives view `k` of every image, drawn once where all views fit into KEPT bytes.

    Otherwise the last two are held: a view is drawn when it is sent, and again in each epoch.
    """
    count = config.rounds * (2 if config.mode == "pair" else 1)
    fits = count * math.prod(images.shape) <= KEPT
    return lru_cache(None if fits else 2)(partial(view, config, images))


def check(config: Config, api: BlackBox, images: Tensor, user: str) -> None:
    """Refuse, before any query is paid for, what the budget or the attack cannot do."""
    vectors = config.recipe.answer in ("embedding", "projection")
    if (config.adapt != "none" or config.accounts > 1) and not vectors:
        raise ValueError(
            f"adapt={config.adapt!r}, accounts={config.accounts} of {config.attack}: only answers that "
            "are vectors can be averaged, centred or mapped"
        )
    if config.adapt == "average" and config.mode in ("shared", "independent", "pair"):
        raise ValueError(
            f"adapt='average' of views {config.mode!r}: answers to different views differ by more than "
            "noise; take views 'clean' or 'surrogate'"
        )
    if config.adapt == "average" and config.rounds < 2:
        raise ValueError(f"adapt='average' with answers={config.answers}: at least 2, or 0 for as many "
                         "as there are epochs")  # fmt: skip
    shares = len(images) - config.anchors
    if config.accounts > 1 and (config.anchors < 1 or shares < config.accounts - 1):
        raise ValueError(
            f"accounts={config.accounts}, anchors={config.anchors} of {len(images)} images: every "
            "further account asks the anchors and at least one image of its own"
        )
    if config.mode in ASKS_VIEWS or len(images) > REQUEST:
        for name, share in zip(
            users(config, user), _shares(config, range(len(images))), strict=True
        ):
            api.require(config.distinct(len(share) + (config.accounts > 1) * config.anchors), name)


def answers(
    config: Config, api: BlackBox, images: Tensor, user: str,
    seen: Callable[[int], Tensor] | None = None,
) -> list[Tensor]:  # fmt: skip
    """Return the victim's answers to every view, one tensor (N, D) each, as the attacker uses them.

    `seen` are the `views` of these images where they are needed again.
    """
    seen = seen or views(config, images)
    rounds = range(config.rounds * (2 if config.mode == "pair" else 1))
    found = []
    for k in rounds:
        sent = seen(k) if config.mode in ASKS_VIEWS else images
        found.append(_by_accounts(config, _asker(config, api), sent, user))
    if config.mode == "prototype":
        found = [torch.stack([F.normalize(a, dim=1) for a in found]).mean(0)]
    if config.adapt == "average":
        found = [torch.stack(found).mean(0)]
    if config.adapt == "centre":
        found = [adaptive.subtract_mean(a) for a in found]
    if config.shuffled:
        order = torch.randperm(len(images), generator=generator("shuffled", config.seed))
        found = [a[order.to(a.device)] for a in found]
    return found


def _asker(config: Config, api: BlackBox) -> Callable[[Tensor, str], Tensor]:
    """Return what sends images as one user, in requests of a size: sets on disk are never read whole."""
    kind = config.recipe.answer
    named = {"embedding": api.embed, "projection": api.project}
    one = named.get(kind, partial(api.classify, answer=kind))

    def ask(images: Tensor, user: str) -> Tensor:
        return torch.cat([one(part, user=user) for part in images.split(REQUEST)])

    return ask


def _by_accounts(
    config: Config, ask: Callable[[Tensor, str], Tensor], sent: Tensor, user: str
) -> Tensor:
    """Return all answers in the space of the first account; the others are mapped there.

    Every account asks the first `anchors` images, from which the map is learnt (least squares), and
    a share of the rest: more distinct inputs in all, and fewer per account.
    """
    if config.accounts == 1:
        return ask(sent, user)
    common = sent[: config.anchors]
    target = ask(common, user)
    found = [target]
    for name, share in zip(users(config, user), _shares(config, sent), strict=True):
        own = ask(share, name)
        if name != user:
            own = adaptive.remap(own, *adaptive.learn_remap(ask(common, name), target))
        found.append(own)
    return torch.cat(found)


def _shares(config: Config, sent: Tensor | range) -> Iterator[Tensor | range]:
    common = config.anchors if config.accounts > 1 else 0
    rest = len(sent) - common
    ends = [common + rest * k // config.accounts for k in range(config.accounts + 1)]
    return (sent[a:b] for a, b in pairwise(ends))
