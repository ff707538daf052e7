"""The attacks: one training loop and one table of recipes.

To add an attack, add its loss to `losses` and its row to `ATTACKS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from contsteal import augment, encoders, loop, losses
from contsteal.seeds import derive, generator
from contsteal.victim import BlackBox

Views = Literal["clean", "surrogate", "shared", "independent"]
BLOCK = 128  # images whose views are drawn together


@dataclass(frozen=True)
class Recipe:
    """One attack: its loss, the answer it asks for, its views, and where it comes from.

    Views: "clean" shows x to both; "surrogate" augments for the surrogate alone, the victim answers
    x; "shared" shows one augmented view to both; "independent" shows each its own.
    """

    loss: Callable[..., Tensor]
    answer: Literal["embedding", "label", "posterior"]
    views: Views
    temperature: float | None
    source: str
    description: str


ATTACKS: dict[str, Recipe] = {
    "label": Recipe(
        losses.cross_entropy, "label", "clean", None,
        "Cont-Steal, official code, normal_steal", "cross-entropy on the victim's predicted labels",
    ),
    "posterior": Recipe(
        losses.cross_entropy, "posterior", "clean", None,
        "knowledge distillation; Cont-Steal's official code regresses the logits instead",
        "soft cross-entropy on the victim's posteriors",
    ),
    "embedding": Recipe(
        losses.mse, "embedding", "clean", None,
        "Cont-Steal, official code, normal_steal; Dziedzic et al., Table 2", "MSE on embeddings",
    ),
    "info-nce": Recipe(
        losses.info_nce, "embedding", "clean", 0.07,
        "Dziedzic et al., ICML 2022, Table 2", "NT-Xent between surrogate and victim embeddings",
    ),
    "cont-steal": Recipe(
        partial(losses.cont_steal, form="paper"), "embedding", "independent", 0.5,
        "Sha et al., CVPR 2023, the paper's loss as followers restate it; temperature of the code",
        "contrastive, positive not in denominator",
    ),
    "cont-steal-code": Recipe(
        partial(losses.cont_steal, form="code"), "embedding", "shared", 0.5,
        "Sha et al., CVPR 2023, the official code's loss", "contrastive, NT-Xent on one shared view",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """One attack's knobs. `answers` is how often each image is answered (0: anew every epoch).

    An image under an augmented victim view is a new distinct input per answer; a clean image asked
    again is the same input and one more answer. `None` takes what the recipe says.
    """

    attack: str = "cont-steal"
    views: Views | None = None
    answers: int = 1
    temperature: float | None = None
    policy: str = "simclr"
    encoder: str = "resnet18"
    width: float = 1.0
    image_size: int = 32
    epochs: int = 100
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-4
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        if self.attack not in ATTACKS:
            raise ValueError(f"unknown attack {self.attack!r}: choose one of {', '.join(ATTACKS)}")
        return ATTACKS[self.attack]

    @property
    def rounds(self) -> int:
        """How many answers each image gets over the whole attack."""
        if self.answers < 0:
            raise ValueError(f"answers={self.answers}: 0 (anew every epoch) or a number of answers")
        return min(self.answers or self.epochs, self.epochs)

    @property
    def mode(self) -> Views:
        mode = self.views or self.recipe.views
        if mode not in get_args(Views):
            raise ValueError(f"unknown views {mode!r}: choose one of {', '.join(get_args(Views))}")
        return mode

    @property
    def tau(self) -> float | None:
        """The temperature in force; None for a loss without one."""
        own = self.recipe.temperature
        return own if own is None or self.temperature is None else self.temperature

    def distinct(self, images: int) -> int:
        """Return the distinct inputs that this attack sends for `images` query images, at most."""
        return images * (self.rounds if self.mode in ("shared", "independent") else 1)


@dataclass(frozen=True)
class Result:
    """A surrogate, how its training went, and what its user has cost the API so far in queries."""

    encoder: encoders.Encoder
    history: list[loop.Row]
    unique_inputs: int
    calls: int
    head: nn.Linear | None = None


def train(
    config: Config,
    api: BlackBox,
    images: Tensor,
    checkpoint: Path | None = None,
    user: str = "adversary",
) -> Result:
    """Steal: query `api` with uint8 images (N, 3, H, W), then train a surrogate on the answers.

    All answers are asked for before the first step, so a resumed run pays what an uninterrupted
    one does. Errors: ValueError for unknown names, fewer images than a batch or answers that the
    API does not give; victim.BudgetExceeded; loop.Diverged.
    """
    recipe, mode = config.recipe, config.mode
    _check(config, api, images, user)
    schedule = loop.Schedule(config.epochs, config.batch, config.lr, config.weight_decay)
    schedule.check(len(images))
    answers = [_ask(config, api, images, k, user) for k in range(config.rounds)]
    account = api.ledger.account(user)
    net, head = _surrogate(config, answers, images.device)
    model = nn.Sequential(net, head) if head else net
    options = {} if config.tau is None else {"temperature": config.tau}

    @lru_cache(maxsize=1)
    def seen(k: int) -> Tensor:
        """The whole view k as the victim saw it; a batch of its own would draw other parameters."""
        return _view(config, images, k)

    def loss(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        k = epoch % config.rounds
        if mode == "shared":
            x = augment.to_float(seen(k)[chosen])
        else:
            policy = "none" if mode == "clean" else config.policy
            x = augment.apply(policy, images[chosen], draws)
        return recipe.loss(model(x), answers[k][chosen], **options)

    history = loop.fit(
        model, loss, len(images), schedule, seed=derive("steal", config.seed),
        checkpoint=checkpoint, title=config.attack, identity=f"{config} {_digest(answers)}",
    )  # fmt: skip
    return Result(net.eval(), history, account.unique_inputs, account.calls, head)


def _check(config: Config, api: BlackBox, images: Tensor, user: str) -> None:
    """Refuse what would fail in training before any query is paid for."""
    encoders.check(config.encoder, config.width)
    if config.mode in ("shared", "independent"):
        api.require(config.distinct(len(images)), user)
    augment.apply(config.policy, images[:1], generator("check"))
    if config.tau is not None and not config.tau > 0:
        raise ValueError(f"temperature={config.tau}: it must be above 0")


def _view(config: Config, images: Tensor, k: int) -> Tensor:
    """Return view `k` of every image as the victim gets it.

    The view of image i depends on seed, `k` and i alone: views are drawn in whole blocks, so those of
    a smaller budget are those of a larger one, cut short.
    """
    parts = []
    for block, part in enumerate(images.split(BLOCK)):
        whole = torch.cat([part, part[:1].expand(BLOCK - len(part), -1, -1, -1)])
        draws = generator("victim view", config.seed, k, block)
        parts.append(augment.to_uint8(augment.apply(config.policy, whole, draws))[: len(part)])
    return torch.cat(parts)


def _ask(config: Config, api: BlackBox, images: Tensor, k: int, user: str) -> Tensor:
    sent = _view(config, images, k) if config.mode in ("shared", "independent") else images
    if config.recipe.answer == "embedding":
        return api.embed(sent, user=user)
    return api.classify(sent, answer=config.recipe.answer, user=user)


def _digest(answers: Sequence[Tensor]) -> str:
    """Return what tells these answers from those of another victim, defence or set of images."""
    return encoders.digest((str(k), a) for k, a in enumerate(answers))


def _surrogate(
    config: Config, answers: Sequence[Tensor], device: torch.device
) -> tuple[encoders.Encoder, nn.Linear | None]:
    """Build the surrogate: an encoder into the victim's dimension, or an encoder and a classifier."""
    embeds = config.recipe.answer == "embedding"
    seed = derive("surrogate", config.seed)
    net = encoders.build(
        config.encoder, config.image_size, width=config.width, seed=seed,
        out_dim=answers[0].shape[1] if embeds else None,
    ).to(device)  # fmt: skip
    if embeds:
        return net, None
    labels = config.recipe.answer == "label"
    classes = 1 + max(int(a.max()) for a in answers) if labels else answers[0].shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return net, nn.Linear(net.dim, classes).to(device)
