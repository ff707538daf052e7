"""Steal an encoder: query the victim, then train a surrogate on its answers; one loop for all attacks."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal import augment, encoders, evaluate, files, loop, losses
from contsteal.attacks import ASKS_VIEWS, ATTACKS, Config, Recipe, Views
from contsteal.methods import Frozen, Head
from contsteal.seeds import derive, generator
from contsteal.victim import BlackBox, finite

__all__ = [
    "ATTACKS", "Config", "Recipe", "Result", "Views", "ask", "learn_remap",
    "left_out", "possible", "train", "view",
]  # fmt: skip

BLOCK = 128  # images whose views are drawn together
REQUEST = 8192  # images per request
KEPT = 2**29  # bytes of views that are held rather than drawn again
PROJECTION = 128  # dimension of a recreated head, as of the ICML victims' own
ViewOf = Callable[[int], Tensor]  # k -> view k of all query images, uint8 (N, 3, H, W)


@dataclass(frozen=True)
class Result:
    """A surrogate, its training history, and what its user has cost the API so far.

    Attributes:
        encoder: the surrogate, in eval mode: images (N, 3, H, W) to features (N, D).
        history: one row per epoch (loss, lr, seconds).
        unique_inputs: distinct images that were answered.
        calls: all answers.
        head: what the loss was computed behind, where the answers are not embeddings.
    """

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
    """Query a victim, then train a surrogate on its answers.

    All queries are sent before the first step: a resumed run pays what an uninterrupted one does.

    Args:
        config: the attack and its settings.
        api: the only access to the victim.
        images: the queries, uint8 (N, 3, H, W); a `Packed` for views that need no new inputs.
        checkpoint: a file to resume from and to save to.
        user: the name that the queries are counted under.
        labels: true labels (N,), for the attacks that use them.

    Returns:
        The surrogate in eval mode, its history, and what it cost in distinct inputs and answers.

    Raises:
        ValueError: before any query, for unknown names, too few images, or missing labels.
        BudgetExceeded, loop.Diverged: where the budget does not suffice, or for a NaN loss.

    Example:
        >>> from contsteal import data
        >>> api = BlackBox(encoders.build("conv4"), budget=64)
        >>> config = Config("embedding", encoder="conv4", steps=2, batch=16)
        >>> result = train(config, api, data.load("shapes", n=64).images)
        >>> result.encoder.dim, result.unique_inputs, result.calls
        (128, 64, 64)
    """
    config = config.for_images(len(encoders.check_images(images)))
    checkpoint = loop.checkpoint_file(checkpoint)
    schedule = _check(config, api, images, user, labels)
    recipe, options, view_of = config.recipe, config.options, _views(config, images)
    labels = labels if recipe.labels else None
    identity = f"{config} {files.content(images)}" if checkpoint else ""
    loop.check_owner(checkpoint, identity)
    answers = ask(config, api, images, user, view_of)  # one (N, D) per round
    net, head = _surrogate(config, answers, images.device)
    answers = [head(a) for a in answers] if head is not None and recipe.recreate else answers
    model = net if head is None else nn.Sequential(net, head)
    gaps = left_out(answers) if config.adapt == "bounds" else None
    with loop.compiled(model, images.device, schedule.total(len(images))) as forward:

        def loss(rows: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
            x, t = _batch(config, images, view_of, answers, rows, epoch, draws)
            s = forward(x)  # (P N, D) for P patches an image
            more = {} if labels is None else {"labels": labels[rows].repeat(len(t) // len(rows))}
            pairs = ((p, possible(p, t, *gaps) if gaps else t) for p in s.chunk(recipe.patches))
            return torch.stack([recipe.loss(*pair, **options, **more) for pair in pairs]).mean()

        identity = _with_answers(identity, answers, checkpoint)
        history = loop.fit(model, loss, len(images), schedule, seed=derive("steal", config.seed),
                           checkpoint=checkpoint, title=config.attack, identity=identity)  # fmt: skip
    accounts = [api.ledger.account(name) for name in _accounts(config, user, len(images))]
    distinct, calls = sum(a.unique_inputs for a in accounts), sum(a.calls for a in accounts)
    return Result(net.eval(), history, distinct, calls, head)


def _with_answers(identity: str, answers: Sequence[Tensor], checkpoint: Path | None) -> str:
    """Return a run's identity with its answers, which tell it from one on another victim or defence.

    They are paid for: a checkpoint of that other run is moved aside, with a warning, and not refused.
    """
    identity = f"{identity} {encoders.digest((str(k), a) for k, a in enumerate(answers))}"
    try:
        loop.check_owner(checkpoint, identity)
    except ValueError:
        warnings.warn(
            f"{checkpoint} is of other answers: it is moved aside, and training starts again",
            stacklevel=3,
        )
        files.move_aside(cast(Path, checkpoint))
    return identity


def _batch(
    config: Config, images: Tensor, view_of: ViewOf, answers: Sequence[Tensor],
    rows: Tensor, epoch: int, draws: torch.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what the surrogate sees in a step, float images, and the answers to compare it with."""
    k = epoch % config.rounds
    if config.mode in ("shared", "pair"):
        # The victim saw these views; drawn for a batch alone and not for a whole set, they would differ.
        seen = (2 * k, 2 * k + 1) if config.mode == "pair" else (k,)
        x = torch.cat([augment.to_float(view_of(j)[rows]) for j in seen])  # of a pair (2N, 3, H, W)
        return x, torch.cat([answers[j][rows] for j in seen])
    repeated = images[rows].repeat(config.recipe.patches, 1, 1, 1)  # (P N, 3, H, W)
    policy = "none" if config.mode == "clean" else config.policies[1]
    x = augment.apply(policy, repeated, draws)
    if config.mode == "both":
        x = torch.cat([augment.to_float(images[rows]), x])
    return x, answers[k % len(answers)][rows]  # a single one, where answers were averaged


def _surrogate(
    config: Config, answers: Sequence[Tensor], device: torch.device
) -> tuple[encoders.Encoder, nn.Module | None]:
    """Build the surrogate, with a linear layer into the victim's space, and the head before the loss."""
    answer, seed = config.recipe.answer, derive("surrogate", config.seed)
    make = partial(encoders.build, config.encoder, config.image_size, width=config.width, seed=seed)
    dim, vectors = answers[0].shape[-1], answer == "embedding"
    # Without an output layer a network that ends in a ReLU could not express answers below zero.
    net = make(out_dim=dim if vectors and config.output_layer else None)
    if vectors and net.dim != dim:
        net = make(out_dim=dim)
    net = net.to(device)
    if config.recipe.recreate:
        pairs = torch.cat(list(answers[0::2])), torch.cat(list(answers[1::2]))
        return net, recreate_head(*pairs, 2 * config.epochs, config.batch, seed)
    if vectors:
        return net, None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if answer == "projection":  # SimCLR's head: the attacker does not know the victim's
            return net, Head(net.dim, net.dim, dim, norm=False).to(device)
        # The layer is a head here: another task's probe is fitted on what lies below it.
        classes = 1 + max(int(a.max()) for a in answers) if answer == "label" else dim
        return net, Head(net.dim, classes).to(device)


def recreate_head(one: Tensor, two: Tensor, epochs: int, batch: int, seed: int) -> Frozen:
    """Recreate a victim's projection head from its answers (Dziedzic et al., ICML 2022, Algorithm 2).

    The loss is SimSiam's between g(one) and g(two); Adam at 1e-3 as in the published code, whose own
    head cannot run. No query is made: the answers are paid for already.

    Args:
        one, two: answers (N, D) to two views of the same images.
        epochs, batch: length of the training, and rows per step.
        seed: of the head's first weights and the batches.

    Returns:
        The projector g, (N, D) to (N, 128), without gradient for its weights.

    Example:
        >>> one, two = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
        >>> recreate_head(one, two, epochs=1, batch=8, seed=0)(one).shape
        torch.Size([16, 128])
    """
    dim = one.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        g = Head(dim, dim, PROJECTION, last=True)
        predictor = Head(PROJECTION, PROJECTION // 4, PROJECTION)
    model = nn.ModuleList([g, predictor]).to(one.device)

    def loss(rows: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        z, w = g(one[rows]), g(two[rows])  # (B, 128) each
        first = losses.cosine(predictor(z), w.detach())
        return (first + losses.cosine(predictor(w), z.detach())) / 2

    schedule = loop.Schedule(epochs, batch, 1e-3)
    loop.fit(model, loss, len(one), schedule, seed=seed, title="recreating the head")
    return Frozen(g)


# ------------------------------------------------------------------------------------- queries


def ask(
    config: Config,
    api: BlackBox,
    images: Tensor,
    user: str = "adversary",
    view_of: ViewOf | None = None,
) -> list[Tensor]:
    """Return the victim's answers as the attacker uses them, one (N, D) per round and view.

    They are averaged, centred or shuffled where the config says so.

    Args:
        config: the attack and its settings.
        api: the only access to the victim.
        images: the queries, uint8 (N, 3, H, W).
        user: the name that the queries are counted under.
        view_of: the views to send, where the caller needs them again.

    Returns:
        One tensor (N, D) per round and view.

    Raises:
        BudgetExceeded: where the budget does not suffice.

    Example:
        >>> from contsteal import victim
        >>> images = torch.zeros(16, 3, 32, 32, dtype=torch.uint8)
        >>> config = Config("embedding", steps=1, batch=16)
        >>> [a.shape for a in ask(config, victim.BlackBox(encoders.build("conv4")), images)]
        [torch.Size([16, 128])]
    """
    config = config.for_images(len(encoders.check_images(images)))
    view_of = view_of or _views(config, images)
    answers = []
    for k in range(_count(config)):
        sent = view_of(k) if config.mode in ASKS_VIEWS else images
        answers.append(_ask_by_accounts(config, api, sent, user))
    if config.mode == "prototype":
        answers = [torch.stack([F.normalize(a, dim=1) for a in answers]).mean(0)]
    if config.adapt == "average":
        answers = [torch.stack(answers).mean(0)]
    if config.adapt == "centre":  # the offset of Dziedzic et al. (ICML 2022, A.2) is one for all
        answers = [a - a.mean(0) for a in answers]
    if config.shuffled:
        order = torch.randperm(len(images), generator=generator("shuffled", config.seed))
        answers = [a[order.to(a.device)] for a in answers]
    return answers


def view(config: Config, images: Tensor, k: int) -> Tensor:
    """Return view `k` of every image as the victim gets it, uint8 (N, 3, H, W).

    The view of image i depends on seed, `k` and i alone: views are drawn in whole blocks, so those of
    a smaller budget are a prefix of those of a larger one.

    Args:
        config: whose policy and seed draw the views.
        images: uint8 (N, 3, H, W).
        k: number of the view, from 0.

    Returns:
        uint8 (N, 3, H, W).

    Example:
        >>> view(Config("cont-steal"), torch.zeros(4, 3, 32, 32, dtype=torch.uint8), 0).shape
        torch.Size([4, 3, 32, 32])
    """
    parts = []
    for block, part in enumerate(images.split(BLOCK)):
        whole = torch.cat([part, part[:1].expand(BLOCK - len(part), -1, -1, -1)])
        draws = generator("victim view", config.seed, k, block)
        parts.append(augment.to_uint8(augment.apply(config.policies[0], whole, draws))[: len(part)])
    return torch.cat(parts)


def _views(config: Config, images: Tensor) -> ViewOf:
    """Return `view` as a function of k alone, which keeps all views where they fit into KEPT bytes."""
    fits = _count(config) * math.prod(images.shape) <= KEPT
    # Else it keeps the last two: a view is drawn when it is sent, and again in each epoch.
    return lru_cache(None if fits else 2)(partial(view, config, images))


def _count(config: Config) -> int:
    return config.rounds * (2 if config.mode == "pair" else 1)


def _accounts(config: Config, user: str, n: int) -> dict[str, slice]:
    """Return the accounts and the rows that each sends alone: all `n`, less the anchors of several."""
    anchors = config.anchors if config.accounts > 1 else 0
    ends = [anchors + (n - anchors) * k // config.accounts for k in range(config.accounts + 1)]
    names = [user, *(f"{user} {k + 1}" for k in range(1, config.accounts))]
    return {name: slice(a, b) for name, (a, b) in zip(names, pairwise(ends), strict=True)}


def _request(config: Config, api: BlackBox, images: Tensor, user: str) -> Tensor:
    """Send images as one user, REQUEST at a time: a set on disk is never in memory as a whole."""
    answer = config.recipe.answer
    send: Callable[..., Tensor] = api.embed
    if answer == "projection":
        send = api.project
    elif answer != "embedding":
        send = partial(api.classify, answer=answer)
    return torch.cat([send(part, user=user) for part in images.split(REQUEST)])


def _ask_by_accounts(config: Config, api: BlackBox, sent: Tensor, user: str) -> Tensor:
    """Return all answers in the space of the first account; those of the others are mapped there."""
    if config.accounts == 1:
        return _request(config, api, sent, user)
    # Every account sends the anchors, from which the map is learnt, and a share of the other images:
    # more distinct inputs in all, and fewer per account.
    anchors = sent[: config.anchors]
    target = _request(config, api, anchors, user)
    parts = [target]
    for name, rows in _accounts(config, user, len(sent)).items():
        answers = _request(config, api, sent[rows], name)
        if name != user:
            answers = learn_remap(_request(config, api, anchors, name), target)(answers)
        parts.append(answers)
    return torch.cat(parts)


# -------------------------------------------------------------------------- adapting to a defence


def left_out(answers: Sequence[Tensor]) -> tuple[float, bool]:
    """Return what rounding and truncation have taken from answers, as the answers show it.

    Args:
        answers: one (N, D) per round.

    Returns:
        Half of the step from 1e-6 to 1e6 that all coordinates are multiples of, 0 where there is none;
        then whether zeros stand for what was not sent: nine answers in ten have as many other
        coordinates, and fewer than are ever sent.

    Example:
        >>> left_out([torch.tensor([[0.1, 0.3], [0.2, 0.9]])])
        (0.05, False)
    """
    values = torch.cat(list(answers)).double()

    def multiples(decimals: int) -> bool:
        scaled = values * 10.0**decimals
        # What is far below 1 is no multiple of it.
        whole = 1e-3 * min(1.0, float(scaled.abs().max()))
        return whole > 0 and bool((scaled - scaled.round()).abs().max() <= whole)

    half = next((0.5 * 10.0**-decimals for decimals in range(-6, 7) if multiples(decimals)), 0.0)
    sent = (values != 0).sum(1)
    usual = int(sent.mode().values)
    live = int((values != 0).any(0).sum())
    return half, usual < live and bool((sent == usual).double().mean() >= 0.9)


def possible(surrogate: Tensor, answers: Tensor, half: float, truncated: bool) -> Tensor:
    """Return the vectors (N, D) closest to the surrogate's that can have given these answers.

    What was left out teaches nothing: there the surrogate's own value is taken as the answer, up to the
    smallest coordinate that was sent.

    Args:
        surrogate: its embeddings (N, D).
        answers: rounded or truncated ones to the same images, (N, D).
        half, truncated: those of `left_out`.

    Returns:
        The targets (N, D) of the surrogate's loss.

    Example:
        >>> possible(torch.tensor([[0.12, 0.5]]), torch.tensor([[0.1, 0.3]]), 0.05, truncated=False)
        tensor([[0.1200, 0.3500]])
    """
    low, high = answers - half, answers + half
    if truncated:
        missing = answers == 0
        least = answers.masked_fill(missing, torch.inf).amin(1, keepdim=True)  # (N, 1)
        low, high = low.masked_fill(missing, -torch.inf), torch.where(missing, least + half, high)
    return surrogate.detach().float().maximum(low).minimum(high)


def learn_remap(source: Tensor, target: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit the linear map from one account's answers to another's (B4B, NeurIPS 2023, section 4).

    Least squares in float64; below D + 1 images the solution of least norm.

    Args:
        source, target: two accounts' answers to the same N images, (N, D) and (N, E).

    Returns:
        The map, from (M, D) to (M, E).

    Raises:
        ValueError: where rows do not match or hold NaN.

    Example:
        >>> x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        >>> remap = learn_remap(x, 3 * x + 1)
        >>> torch.allclose(remap(x), 3 * x + 1, atol=1e-4)
        True
    """
    if len(finite(source)) != len(finite(target)) or not len(source):
        given = f"answers {tuple(source.shape)} and {tuple(target.shape)}"
        raise ValueError(f"{given}: both accounts must have sent the same images")
    x, y = source.double(), target.double()
    # gelsd, the one driver for ranks below D (padding is constant), exists on the CPU alone.
    centred = ((rows - rows.mean(0)).cpu() for rows in (x, y))
    weight = torch.linalg.lstsq(*centred, driver="gelsd").solution.to(source.device)
    bias = y.mean(0) - x.mean(0) @ weight
    return lambda answers: answers @ weight.to(answers.dtype) + bias.to(answers.dtype)


# ----------------------------------------------------------------- refusals before any query is paid


def _check(
    config: Config, api: BlackBox, images: Tensor, user: str, labels: Tensor | None
) -> loop.Schedule:
    """Return the schedule; refuse whatever would fail later, before any query is paid for."""
    if not isinstance(api, BlackBox):
        raise ValueError(f"api of kind {type(api).__name__}: a BlackBox is needed")
    _ = config.options  # refuses negatives that the loss does not have
    _check_adaptation(config, len(images))
    if config.mode in ASKS_VIEWS or len(images) > REQUEST or config.accounts > 1:
        anchors = config.anchors if config.accounts > 1 else 0
        for name, rows in _accounts(config, user, len(images)).items():
            api.require(config.distinct(rows.stop - rows.start + anchors), name)
    one = next(iter(images.split(1)))  # also of a set on disk
    for policy in config.policies:
        augment.apply(policy, one, generator("check"))
    if config.recipe.labels:
        evaluate.classes(labels, len(images))
    schedule = loop.Schedule(
        config.epochs, config.batch, config.lr, config.weight_decay, optimizer=config.optimizer,
        steps=config.steps,
    )  # fmt: skip
    schedule.check(len(images))
    loop.mode_labels()  # refuses unknown modes
    # Not the surrogate itself: the answers decide how wide its last layer is.
    trial = encoders.build(config.encoder, config.image_size, width=config.width).to(one.device)
    schedule.build(trial)
    if one.shape[2:] != (config.image_size, config.image_size):
        try:
            encoders.embed(trial, one)
        except Exception as error:  # of any architecture
            given, size = (
                f"{config.encoder} with image_size={config.image_size}",
                tuple(one.shape[2:]),
            )
            raise ValueError(
                f"{given} does not run on images of {size} px: set image_size"
            ) from error
    return schedule


def _check_adaptation(config: Config, n: int) -> None:
    """Refuse ways to adapt that the attack's answers, or `n` images, do not allow."""
    if config.adapt == "none" and config.accounts == 1:
        return
    if config.recipe.answer not in ("embedding", "projection"):
        given = f"adapt={config.adapt!r}, accounts={config.accounts} of {config.attack}"
        raise ValueError(f"{given}: only answers that are vectors can be averaged or mapped")
    if config.adapt == "average" and config.mode in ("shared", "independent", "pair"):
        remedy = "answers to different views differ; use views='clean' or 'surrogate'"
        raise ValueError(f"adapt='average' of views={config.mode!r}: {remedy}")
    if config.adapt == "average" and config.rounds < 2:
        raise ValueError(f"adapt='average' with answers={config.answers}: set 2 or more, or 0 for one an "
                         "epoch")  # fmt: skip
    if config.accounts > 1 and (config.anchors < 1 or n - config.anchors < config.accounts - 1):
        given = f"accounts={config.accounts}, anchors={config.anchors} of {n} images"
        raise ValueError(f"{given}: each further account sends the anchors and an image of its own")
