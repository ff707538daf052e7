"""Steal an encoder: ask first, then train a surrogate on the answers; one loop for all attacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from contsteal import ask, augment, encoders, loop, recreate
from contsteal.heads import Head
from contsteal.recipes import ATTACKS, Config, Recipe, Views
from contsteal.seeds import derive, generator
from contsteal.victim import BlackBox

__all__ = ["ATTACKS", "Config", "Recipe", "Result", "Views", "train"]
Batch = Callable[[Tensor, int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Result:
    """A surrogate, how its training went, and what its user has cost the API so far in queries."""

    encoder: encoders.Encoder
    history: list[loop.Row]
    unique_inputs: int
    calls: int
    head: nn.Module | None = None


def train(
    config: Config,
    api: BlackBox,
    images: Tensor,
    checkpoint: Path | None = None,
    user: str = "adversary",
    labels: Tensor | None = None,
) -> Result:
    """Steal: query `api` with uint8 images (N, 3, H, W), then train a surrogate on the answers.

    Images may be `packed.Packed` for attacks on clean images or views of the surrogate's own; the
    victim's views of all images are held in memory.

    All answers are asked for before the first step, so a resumed run pays what an uninterrupted
    one does. `labels` (N,) are the true ones, for the attacks that use them. Errors: ValueError for
    unknown names, fewer images than a batch, missing labels or answers that the API does not give;
    victim.BudgetExceeded; loop.Diverged.
    """
    _check(config, api, images, user, labels)
    schedule = loop.Schedule(config.epochs, config.batch, config.lr, config.weight_decay)
    schedule.check(len(images))
    seen = ask.views(config, images)
    answers = ask.answers(config, api, images, user, seen)
    accounts = [api.ledger.account(name) for name in ask.users(config, user)]
    net, head = _surrogate(config, answers, images.device)
    if config.recipe.recreate:
        answers = [head(a) for a in answers]
    model = nn.Sequential(net, head) if head else net
    history = loop.fit(
        model, _loss(config, model, images, answers, labels, seen), len(images), schedule,
        seed=derive("steal", config.seed), checkpoint=checkpoint, title=config.attack,
        identity=f"{config} {_digest(answers)}",
    )  # fmt: skip
    distinct, calls = (sum(getattr(a, k) for a in accounts) for k in ("unique_inputs", "calls"))
    return Result(net.eval(), history, distinct, calls, head)


def _loss(
    config: Config,
    model: nn.Module,
    images: Tensor,
    answers: list[Tensor],
    labels: Tensor | None,
    seen: Callable[[int], Tensor],
) -> loop.Loss:
    """Return the loss of a batch, given its indices: what the surrogate sees, against the answers."""
    recipe, batch, options = config.recipe, _batches(config, images, answers, seen), config.options

    def loss(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        x, t = batch(chosen, epoch, draws)
        more = {"labels": labels[chosen].repeat(len(t) // len(chosen))} if recipe.labels else {}
        s = model(x)
        parts = s.split(len(s) // recipe.patches)
        return torch.stack([recipe.loss(part, t, **options, **more) for part in parts]).mean()

    return loss


def _batches(
    config: Config, images: Tensor, answers: list[Tensor], seen: Callable[[int], Tensor]
) -> Batch:
    """Return what makes a batch: the surrogate's input, and the victim's answers to compare it with.

    `seen` gives whole views as the victim saw them: a batch of its own would draw other parameters.
    """
    mode, rounds, own = config.mode, config.rounds, config.policies[1]

    def batch(chosen: Tensor, epoch: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        k = epoch % rounds
        if mode == "pair":
            both = (2 * k, 2 * k + 1)
            x = torch.cat([augment.to_float(seen(j)[chosen]) for j in both])
            return x, torch.cat([answers[j][chosen] for j in both])
        if mode == "shared":
            return augment.to_float(seen(k)[chosen]), answers[k][chosen]
        many = images[chosen].repeat(config.recipe.patches, 1, 1, 1)
        x = augment.apply("none" if mode == "clean" else own, many, draws)
        x = torch.cat([augment.to_float(images[chosen]), x]) if mode == "both" else x
        return x, answers[k % len(answers)][chosen]  # one, where they were averaged

    return batch


def _check(config: Config, api: BlackBox, images: Tensor, user: str, labels: Tensor | None) -> None:
    """Refuse what would fail in training before any query is paid for."""
    encoders.check(config.encoder, config.width)
    _ = config.options
    ask.check(config, api, images, user)
    one = next(iter(images.split(1)))  # also of a set on disk
    for policy in config.policies:
        augment.apply(policy, one, generator("check"))
    if config.tau is not None and not config.tau > 0:
        raise ValueError(f"temperature={config.tau}: it must be above 0")
    if config.recipe.labels and (labels is None or len(labels) != len(images)):
        given = "none" if labels is None else f"{len(labels)}"
        raise ValueError(
            f"attack {config.attack!r} uses the true labels of the {len(images)} query images, "
            f"given are {given}: give labels=..., or take an attack without them"
        )


def _digest(answers: Sequence[Tensor]) -> str:
    """Return what tells these answers from those of another victim, defence or set of images."""
    return encoders.digest((str(k), a) for k, a in enumerate(answers))


def _surrogate(
    config: Config, answers: Sequence[Tensor], device: torch.device
) -> tuple[encoders.Encoder, nn.Module | None]:
    """Build the surrogate: an encoder into the victim's dimension, and the head its loss is behind."""
    recipe, seed = config.recipe, derive("surrogate", config.seed)
    net = encoders.build(
        config.encoder, config.image_size, width=config.width, seed=seed,
        out_dim=answers[0].shape[1] if recipe.answer == "embedding" else None,
    ).to(device)  # fmt: skip
    if recipe.recreate:
        pairs = torch.cat(answers[0::2]), torch.cat(answers[1::2])
        return net, recreate.head(*pairs, 2 * config.epochs, config.batch, seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = _head(recipe.answer, answers, net.dim)
    return net, None if head is None else head.to(device)


def _head(answer: str, answers: Sequence[Tensor], dim: int) -> nn.Module | None:
    """Return what stands between the surrogate's features and answers that are no embeddings."""
    if answer == "embedding":
        return None
    if answer == "projection":  # SimCLR's head: the attacker does not know the victim's
        return Head(dim, dim, answers[0].shape[1], norm=False)
    seen = 1 + max(int(a.max()) for a in answers) if answer == "label" else answers[0].shape[1]
    return nn.Linear(dim, seen)
