"""Steal an encoder: ask first, then train a surrogate on the answers; one loop for all attacks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal import augment, encoders, loop, losses
from contsteal.attacks import ASKS_VIEWS, ATTACKS, Config, Recipe, Views
from contsteal.methods import Frozen, Head
from contsteal.seeds import derive, generator
from contsteal.victim import BlackBox

__all__ = ["ATTACKS", "Config", "Recipe", "Result", "Views", "train"]


def subtract_mean(answers: Tensor) -> Tensor:
    """Return answers (N, D) less their mean, which undoes noise of any constant mean.

    The offset N(mu, std^2) of Dziedzic et al. (A.2) is the same for all answers; what distinguishes
    one image from another survives.
    """
    return answers - answers.mean(0)


def learn_remap(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (D, E) and bias (E,) that best map one account's answers to another's.

    Least squares of source (N, D) @ weight + bias on target (N, E), the two accounts' answers to the
    same N images, in float64: B4B's per-user transformations, attacked by the linear map of its paper
    (section 4). Below D + 1 images the solution of least norm. ValueError where rows do not
    match or hold NaN.
    """
    pairs = source.ndim == target.ndim == 2 and len(source) == len(target) > 0
    if not (pairs and source.isfinite().all() and target.isfinite().all()):
        raise ValueError(
            f"answers {tuple(source.shape)} and {tuple(target.shape)}: both accounts must have asked "
            "the same images, one finite row each"
        )
    centred, middle = subtract_mean(source.double()), source.double().mean(0)
    goal = target.double()
    # gelsd, the one driver for ranks below D (padding is constant), is the CPU's alone.
    solved = torch.linalg.lstsq(centred.cpu(), subtract_mean(goal).cpu(), driver="gelsd")
    weight = solved.solution.to(source.device)
    return weight.to(source.dtype), (goal.mean(0) - middle @ weight).to(source.dtype)


def remap(answers: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return answers (N, D) of one account in the other's space, (N, E)."""
    return answers @ weight + bias


def cosine_distance(answers: Tensor, truth: Tensor) -> float:
    """Return the mean of 1 - cos over rows, (N, D) each: B4B's measure of a remap, 0 at best."""
    return float(1 - F.cosine_similarity(answers.double(), truth.double()).mean())


WIDTH = 128  # of projections, as the ICML victims' own


def recreate_head(one: Tensor, two: Tensor, epochs: int, batch: int, seed: int) -> Frozen:
    """Train a projector g on answers (N, D) to two views of the same images, and freeze it.

    The loss is SimSiam's between g(one) and g(two), one side held still; Adam at 1e-3 as in the
    published code, whose own head cannot run. No query is made: the answers are paid for already.
    """
    dim = one.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        g = Head(dim, dim, WIDTH, last=True)
        predictor = Head(WIDTH, WIDTH // 4, WIDTH)
    model = nn.ModuleList([g, predictor]).to(one.device)

    def loss(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        z, w = g(one[chosen]), g(two[chosen])
        there = losses.cosine(predictor(z), w.detach())
        return (there + losses.cosine(predictor(w), z.detach())) / 2

    plan = loop.Schedule(epochs, batch, 1e-3)
    loop.fit(model, loss, len(one), plan, seed=seed, title="recreating the head")
    return Frozen(g)


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


def ask(
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
        found = [subtract_mean(a) for a in found]
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
            own = remap(own, *learn_remap(ask(common, name), target))
        found.append(own)
    return torch.cat(found)


def _shares(config: Config, sent: Tensor | range) -> Iterator[Tensor | range]:
    common = config.anchors if config.accounts > 1 else 0
    rest = len(sent) - common
    ends = [common + rest * k // config.accounts for k in range(config.accounts + 1)]
    return (sent[a:b] for a, b in pairwise(ends))


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
    seen = views(config, images)
    answers = ask(config, api, images, user, seen)
    accounts = [api.ledger.account(name) for name in users(config, user)]
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
    check(config, api, images, user)
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
        return net, recreate_head(*pairs, 2 * config.epochs, config.batch, seed)
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
