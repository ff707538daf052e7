"""The attacks, a row each with its loss, answer, views and source, and the settings of a run.

To add an attack, write its loss (in `losses` or a module of its own) and add its row to `ATTACKS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Literal

from torch import Tensor

from contsteal import Batch, Checked, Count, Natural, NotNegative, Positive, Seed, choice, losses

Answer = Literal["embedding", "projection", "label", "posterior", "logits"]
Views = Literal["clean", "surrogate", "shared", "independent", "both", "pair", "prototype"]
Adaptation = Literal["none", "average", "centre", "bounds"]
# Under these views each answer is to a new augmentation, so it costs a new distinct input.
ASKS_VIEWS = ("shared", "independent", "pair", "prototype")


@dataclass(frozen=True)
class Recipe:
    """One attack: its loss, the answer it asks for, what both sides see, and its source.

    `views` says what the two networks see of an image x. "clean": both x. "surrogate": the surrogate a
    view, the victim x. "shared": both one view. "independent": each a view of its own. "both": the
    surrogate x and a view, the victim x. "pair": both two shared views, stacked (2N). "prototype": the
    surrogate a view, the victim several, whose normalised answers are averaged.
    """

    loss: Callable[..., Tensor]  #: surrogate's and victim's vectors (N, D) to a scalar
    answer: Answer  #: what the victim is asked for
    views: Views
    temperature: float | None  #: of the loss; None where it has none
    source: str  #: the publication, and where in it
    description: str  #: the loss in a few words, for tables
    answers: int = 1  #: how often each image is answered
    policies: tuple[str, str] = ("simclr", "simclr")  #: augmentations for victim and surrogate
    patches: int = 1  #: views of the surrogate's per step
    labels: bool = False  #: whether the loss takes the true labels of the queries
    fixed: bool = False  #: whether the loss is defined for these views alone
    negatives: bool = False  #: whether some of the loss's negatives can be left out
    recreate: bool = False  #: whether a head, learnt from the answers, stands before the loss


ICML = "Dziedzic et al., ICML 2022"
CODE = "Cont-Steal, official code, normal_steal"
ATTACKS: dict[str, Recipe] = {
    "label": Recipe(
        losses.cross_entropy, "label", "clean", None, CODE,
        "cross-entropy on the victim's predicted labels",
    ),
    "posterior": Recipe(
        losses.cross_entropy, "posterior", "clean", None, "knowledge distillation",
        "soft cross-entropy on the victim's posteriors",
    ),
    "posterior-logits": Recipe(
        losses.mse, "logits", "clean", None, CODE, "MSE on the victim's raw logits",
    ),
    "embedding": Recipe(
        losses.mse, "embedding", "clean", None, f"{CODE}; {ICML}, Table 2", "MSE on embeddings",
    ),
    "cosine": Recipe(
        losses.cosine, "embedding", "clean", None, "SSLGuard (Cong et al., CCS 2022)",
        "one minus cosine",
    ),
    "info-nce": Recipe(
        losses.info_nce, "embedding", "clean", 0.07, f"{ICML}, Table 2",
        "NT-Xent between surrogate and victim embeddings",
    ),
    "info-nce-2": Recipe(
        partial(losses.info_nce_views, form="corrected"), "embedding", "pair", 0.07,
        f"{ICML}, two views, corrected", "NT-Xent over two views, all three positives", fixed=True,
    ),
    "info-nce-2-published": Recipe(
        partial(losses.info_nce_views, form="published"), "embedding", "pair", 0.07,
        f"{ICML}, two views, the code's form", "NT-Xent over two views, two positives as negatives",
        fixed=True,
    ),
    "soft-nn": Recipe(
        losses.soft_nn, "embedding", "clean", 100.0, f"{ICML}, Table 2",
        "soft nearest neighbours on raw embeddings",
    ),
    "sup-con": Recipe(
        losses.sup_con, "embedding", "pair", 0.07, f"{ICML}, Table 2; uses true labels",
        "contrastive between classes, not images: needs labels", labels=True,
    ),
    "wasserstein": Recipe(
        losses.wasserstein, "embedding", "clean", None, f"{ICML}, Table 2",
        "distance of cumulated coordinates, in their arbitrary order",
    ),
    "barlow": Recipe(
        partial(losses.barlow, form="cross"), "embedding", "pair", None, f"{ICML}, corrected",
        "cross-correlation of surrogate and victim near identity",
    ),
    "barlow-published": Recipe(
        partial(losses.barlow, form="published"), "embedding", "pair", None,
        f"{ICML}, Table 2, the code's form", "correlation of views: surrogate and victim never meet",
        fixed=True,
    ),
    "cont-steal": Recipe(
        partial(losses.cont_steal, form="paper"), "embedding", "independent", 0.5,
        "Sha et al., CVPR 2023, the paper's loss as followers restate it; temperature of the code",
        "contrastive, positive not in denominator", negatives=True,
    ),
    "cont-steal-code": Recipe(
        partial(losses.cont_steal, form="code"), "embedding", "shared", 0.5,
        "Sha et al., CVPR 2023, the official code's loss", "contrastive, NT-Xent on one shared view",
    ),
    "recreate-head": Recipe(
        partial(losses.info_nce_views, form="corrected"), "embedding", "pair", 0.07,
        f"{ICML}, Algorithm 2, Table 1", "NT-Xent behind a head that is learnt from the answers",
        fixed=True, recreate=True,
    ),
    "access-head": Recipe(
        losses.info_nce, "projection", "clean", 0.07, f"{ICML}, Table 1",
        "NT-Xent between projections: the API gives away its head's output",
    ),
    "stolen-encoder": Recipe(
        losses.stolen_encoder, "embedding", "both", None, "StolenEncoder (Liu et al., CCS 2022)",
        "unsquared distance of clean and augmented images to the clean answer", fixed=True,
    ),
    "rda": Recipe(
        losses.rda, "embedding", "prototype", 0.07, "RDA (Wu et al., ECCV 2024)",
        "contrastive and aligned to the mean answer of ten crops", answers=10,
        policies=("patch90", "patch75"), patches=5,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Config(Checked):
    """The settings of one attack; `None` takes what the recipe says.

    An image under an augmented victim view is a new distinct input per answer; a clean image sent again
    is the same input and one more answer.

    Raises:
        ValueError: for a value of another type or range; each property below names its own.

    Example:
        >>> config = Config("info-nce", views="surrogate", steps=640, batch=64)
        >>> config.tau, config.for_images(1024).epochs, config.distinct(1024)
        (0.07, 40, 1024)
    """

    attack: str = "cont-steal"  #: a row of ATTACKS
    views: Views | None = None
    answers: Natural | None = None  #: how often each image is answered; 0: anew in every epoch
    temperature: Positive | None = None
    policy: str | None = None  #: one augmentation for victim and surrogate
    negatives: Literal["both", "victim", "self"] = "both"  #: of Cont-Steal's loss
    encoder: str = "resnet18"
    width: Positive = 1.0
    image_size: Count = 32
    epochs: Count = 100  #: where `steps` is 0
    steps: Natural = 0  #: of the optimizer, however many the query images
    batch: Batch = 128
    lr: Positive = 1e-3
    weight_decay: NotNegative = 1e-4
    optimizer: str = "adamw"  #: or "sgd", with momentum 0.9
    seed: Seed = 0  #: of views, first weights and batches
    shuffled: bool = False  #: a control: each image is given the answer to another one
    output_layer: bool = True  #: a linear layer into the victim's space ends every surrogate
    #: "average" and "centre" the answers before training, or take from rounded and truncated ones
    #: only the "bounds" that they are
    adapt: Adaptation = "none"
    accounts: Count = 1  #: that share the queries, each defended as a user of its own
    anchors: Natural = 128  #: images that every account sends, to map its answers to the first's

    def for_images(self, n: int) -> "Config":
        """Return this config with the epochs that its `steps` need on `n` query images."""
        if not self.steps or n < self.batch:
            return self
        return replace(self, epochs=ceil(self.steps / (n // self.batch)))

    @property
    def recipe(self) -> Recipe:
        """The attack's row; ValueError for an unknown name lists the known ones."""
        return ATTACKS[choice(self.attack, "attack", ATTACKS)]

    @property
    def mode(self) -> Views:
        """The views in force; ValueError for those that the loss cannot take."""
        own = self.recipe.views
        mode = self.views or own
        if mode != own and self.recipe.fixed:
            raise ValueError(f"views={mode!r} of {self.attack}: its loss needs views={own!r}")
        if mode != own and mode == "both":
            raise ValueError(f"views='both' of {self.attack}: only stolen-encoder takes them")
        return mode

    @property
    def rounds(self) -> int:
        """How often each image (or pair of its views) is answered over the whole attack."""
        answers = self.recipe.answers if self.answers is None else self.answers
        if self.mode == "prototype":  # averaged over all of them, however many epochs there are
            return max(answers, 1)
        if answers and self.adapt == "average":
            return answers
        return min(answers or self.epochs, self.epochs)

    @property
    def tau(self) -> float | None:
        """The temperature in force; None for a loss without one."""
        default = self.recipe.temperature
        return default if default is None or self.temperature is None else self.temperature

    @property
    def options(self) -> dict[str, object]:
        """The loss's keyword arguments; ValueError for negatives that it does not have."""
        if self.negatives != "both" and not self.recipe.negatives:
            able = ", ".join(name for name, recipe in ATTACKS.items() if recipe.negatives)
            raise ValueError(f"negatives={self.negatives!r} of {self.attack}: only {able} has them")
        options: dict[str, object] = {} if self.tau is None else {"temperature": self.tau}
        return options | ({"negatives": self.negatives} if self.recipe.negatives else {})

    @property
    def policies(self) -> tuple[str, str]:
        """The augmentations of the victim's and of the surrogate's views."""
        return self.recipe.policies if self.policy is None else (self.policy, self.policy)

    def distinct(self, images: int) -> int:
        """Return the distinct inputs that this attack sends for so many query images, at most."""
        per_round = 2 if self.mode == "pair" else 1
        return images * per_round * (self.rounds if self.mode in ASKS_VIEWS else 1)
