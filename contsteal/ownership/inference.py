"""Verdicts on a suspect encoder, the statistics behind them, and dataset inference.

Every test is one-sided: its null hypothesis is that the suspect is independent of the victim, and a
small p-value speaks against that. A p-value is over images. How often independently *trained* encoders
are accused is another question, which `false_positives` and `against_controls` answer.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal import Count, NotNegative, Seed, choice, dense, encoders, fitting, number, shown
from contsteal.seeds import derive, generator

Form = Literal["signed", "published"]
ALPHA = 0.05  # at which a test accuses


@dataclass(frozen=True)
class Verdict:
    """The result of one test of one suspect; a large statistic and a small p-value accuse."""

    test: str
    measure: float  #: what tables show, in the test's unit: a share of images from 0 to 1, or nats
    statistic: float  #: what `p_value` belongs to
    p_value: float  #: one-sided; the null hypothesis is an independent suspect
    effect: float  #: distance from the null: a difference of shares, or standard deviations
    samples: int  #: observations behind the p-value

    def __post_init__(self) -> None:
        values = self.measure, self.statistic, self.p_value, self.effect
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{self.test}: the numbers given are too large, or too alike")

    def accuses(self, alpha: float = ALPHA) -> bool:
        """Return whether the null hypothesis is rejected at the level `alpha`."""
        return self.p_value <= alpha


@dataclass(frozen=True)
class Rate:
    """A share of trials from 0 to 1 and its Clopper-Pearson interval."""

    rate: float
    low: float
    high: float
    hits: int
    trials: int


def proportion(hits: int, trials: int, level: float = 0.95) -> Rate:
    """Return hits / trials with the exact interval of Clopper and Pearson (Biometrika, 1934).

    Args:
        hits, trials: counts.
        level: of confidence, between 0 and 1.

    Raises:
        ValueError: for no trial, more hits than trials, or a level outside (0, 1).

    Example:
        >>> rate = proportion(0, 20)
        >>> rate.rate, round(rate.high, 3)
        (0.0, 0.168)
    """
    from scipy import stats

    hits = number(hits, "hits", int, least=0)
    trials = number(trials, "trials", int, least=1, most=2**53)
    if hits > trials or not 0 < (level := number(level, "level")) < 1:
        raise ValueError(f"{hits} of {trials} at level {level}: 0 <= hits <= trials >= 1 is needed, "
                         "and a level in (0, 1)")  # fmt: skip
    interval = stats.binomtest(hits, trials).proportion_ci(level, method="exact")
    return Rate(hits / trials, float(interval.low), float(interval.high), hits, trials)


def false_positives(verdicts: Iterable[Verdict], alpha: float = ALPHA, level: float = 0.95) -> Rate:
    """Return how often verdicts on *independently trained* encoders accuse at the level `alpha`.

    None of 20 accused still leaves up to 17 % at 95 % confidence: one p-value proves no such rate.

    Args:
        verdicts: one per encoder.
        alpha: the level of the test.
        level: of the interval.

    Returns:
        The rate and its exact interval.

    Raises:
        ValueError: for no verdict, or a level outside (0, 1).

    Example:
        >>> verdicts = [against_controls(0.5, [0.4, 0.5, 0.6])] * 20
        >>> round(false_positives(verdicts).high, 2)
        0.17
    """
    accused = [verdict.accuses(alpha) for verdict in verdicts]
    return proportion(sum(accused), len(accused), level)


def against_controls(measure: float, controls: Iterable[float], test: str = "controls") -> Verdict:
    """Test H0: a suspect's measure is that of one more independently trained encoder.

    t = (x - mean) / (s sqrt(1 + 1/m)) with m - 1 degrees of freedom, over the measures of m controls.
    The encoder is the unit, so a head that happens to lean one way accuses nobody. The verdict's `effect`
    is in the controls' standard deviations.

    Args:
        measure: of the suspect.
        controls: of independently trained encoders, at least two.
        test: the verdict's name.

    Returns:
        The verdict.

    Raises:
        ValueError: for fewer than two controls, controls that are all the same, NaN or infinity.

    Example:
        >>> against_controls(0.8, [0.49, 0.50, 0.52, 0.48]).accuses()
        True
    """
    from scipy import stats

    sample, x = _spread(controls), float(_finite([measure])[0])
    spread, gap, m = sample.std().item(), x - sample.mean().item(), len(sample)
    t = gap / (spread * math.sqrt(1 + 1 / m))
    return Verdict(test, x, t, float(stats.t.sf(t, m - 1)), gap / spread, m)


def least_excess(controls: Iterable[float], alpha: float = ALPHA) -> float:
    """Return by how much a suspect must exceed the mean of m controls for `against_controls` to accuse.

    It is t(1 - alpha, m - 1) s sqrt(1 + 1/m): a suspect whose true excess is just that is accused every
    second time.

    Args:
        controls: measures of m independently trained encoders.
        alpha: the level of the test.

    Returns:
        The excess, in the unit of the measure.

    Raises:
        ValueError: as `against_controls`.

    Example:
        >>> least_excess([0.4, 0.5, 0.6]) > least_excess([0.49, 0.5, 0.51])
        True
    """
    from scipy import stats

    sample, alpha = _spread(controls), number(alpha, "alpha", above=0, below=1)
    m = len(sample)
    return float(stats.t.isf(alpha, m - 1)) * sample.std().item() * math.sqrt(1 + 1 / m)


def least_gap(suspect: int, null: int, alpha: float = ALPHA) -> float:
    """Return the Cohen's d above which `welch` accuses.

    It is t(1 - alpha, n + m - 2) sqrt(1/n + 1/m), exact where both sides vary alike.

    Args:
        suspect, null: numbers of images n and m on both sides.
        alpha: the level of the test.

    Raises:
        ValueError: for fewer than two images on a side.

    Example:
        >>> round(least_gap(100, 100), 3)
        0.234
    """
    from scipy import stats

    suspect, null = (number(n, "samples", int, most=2**53) for n in (suspect, null))
    alpha = number(alpha, "alpha", above=0, below=1)
    if min(suspect, null) < 2:
        raise ValueError(f"{suspect} and {null} samples: a t-test needs two or more on both sides")
    return float(stats.t.isf(alpha, suspect + null - 2)) * math.sqrt(1 / suspect + 1 / null)


def _spread(controls: Iterable[float]) -> Tensor:
    """Return the measures of controls, float64 (m,); ValueError where they have no spread."""
    sample = _finite(controls)
    if len(sample) < 2:
        raise ValueError(f"{len(sample)} controls: their spread needs at least 2 encoders, trained "
                         "independently of the victim")  # fmt: skip
    if sample.std().item() == 0:
        raise ValueError(f"all {len(sample)} controls measure {sample[0].item()}: without spread no "
                         "t-test is defined; measure them on more images")  # fmt: skip
    return sample


def welch(suspect: Tensor, null: Tensor, test: str = "welch", form: Form = "signed") -> Verdict:
    """Test H0: mean(suspect) <= mean(null) by Welch's t.

    The verdict's `measure` is the gap of the means, its `effect` Cohen's d, the gap over the root of the
    mean variance.

    Args:
        suspect, null: one number per image, (N,) and (M,).
        test: the verdict's name.
        form: "signed", or "published", the dataset inference code's: equal variances, and half of the
            *two-sided* p, so that a gap in the wrong direction accuses too.

    Returns:
        The verdict.

    Raises:
        ValueError: for fewer than two samples, NaN or infinity, no variance at all, an unknown form.

    Example:
        >>> low, high = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([8.0, 9.0, 10.0])
        >>> welch(low, high).accuses(), welch(low, high, form="published").accuses()
        (False, True)
    """
    from scipy import stats

    choice(form, "form", ("signed", "published"))
    if not (dense(suspect) and dense(null) and suspect.ndim == null.ndim == 1):
        raise ValueError(f"samples {shown(suspect)} and {shown(null)}: (N,) and (M,) are "
                         "needed, one number per image")  # fmt: skip
    a, b = _finite(suspect.double().tolist()), _finite(null.double().tolist())
    if min(len(a), len(b)) < 2 or not (a.var() + b.var() > 0):
        raise ValueError(f"{len(a)} and {len(b)} samples: a t-test needs two or more on both sides, "
                         "which are not all the same")  # fmt: skip
    published, side = form == "published", "two-sided" if form == "published" else "greater"
    result = stats.ttest_ind(a.numpy(), b.numpy(), equal_var=published, alternative=side)
    p_value = float(result.pvalue) / (2 if published else 1)
    gap = (a.mean() - b.mean()).item()
    d = gap / ((a.var() + b.var()) / 2).sqrt().item()
    return Verdict(test, gap, float(result.statistic), p_value, d, len(a) + len(b))


def _finite(values: Iterable[float]) -> Tensor:
    span = {"least": -1e100, "most": 1e100}  # squares of what lies beyond overflow
    return torch.tensor([number(v, "measure", **span) for v in values], dtype=torch.float64)


def check_answers(answers: Tensor, dim: int, test: str) -> None:
    """Refuse answers that are not (N, `dim`), naming the test that applies, or hold NaN or infinity."""
    if not dense(answers) or not answers.is_floating_point():
        raise ValueError(f"answers {shown(answers)}: vectors of floats (N, {dim}) are needed")
    if answers.ndim != 2 or answers.shape[1] != dim:
        raise ValueError(f"{test} needs answers of the victim's {dim} coordinates, not "
                         f"{tuple(answers.shape)}: use ownership.dataset_inference, which takes "
                         "any")  # fmt: skip
    if not answers.isfinite().all():
        raise ValueError("the suspect's answers hold NaN or infinity")


# ---------------------------------------------------------------------- dataset inference


def split(images: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cut the owner's private training images into halves: to fit the mixture, and to test on."""
    if not isinstance(images, Tensor) or not dense(images) or not images.ndim:
        raise ValueError(f"images {shown(images)}: a dense tensor is needed")
    order = torch.randperm(len(images), generator=generator("dataset inference", seed))
    return images[order[: len(order) // 2]], images[order[len(order) // 2 :]]


def dataset_inference(
    suspect: nn.Module, private: Tensor, public: Tensor, *, seed: int = 0, **options: Any
) -> Verdict:
    """Test whether a suspect finds the victim's training images likelier than unseen ones.

    Dziedzic et al. (NeurIPS 2022), section 3. Images are not augmented.

    Args:
        suspect: images (N, 3, H, W) to features (N, D) of any dimension.
        private: the victim's training images, (N, 3, H, W); half of them fits the mixture.
        public: images of the same distribution that no encoder was trained on, (M, 3, H, W).
        seed: of the halves and the mixture.
        **options: as of `mixture_test`.

    Returns:
        The verdict; its p-value is over images.

    Raises:
        ValueError: as `mixture_scores`.

    Example:
        >>> from contsteal import data
        >>> private, public = (data.load("shapes", n=64, seed=s).images for s in (0, 1))
        >>> stranger = encoders.build("conv4")
        >>> dataset_inference(stranger, private, public, components=2).accuses()
        False
    """
    fitted, tested = split(private, seed)
    features = [encoders.embed(suspect, part) for part in (fitted, tested, public)]
    return mixture_test(*features, seed=seed, **options)


def mixture_test(
    fitted: Tensor, private: Tensor, public: Tensor, *, form: Form = "signed", **options: Any
) -> Verdict:
    """Test H0: E log p(private) <= E log p(public), p a mixture of Gaussians.

    The verdict's `measure` is the gap of the mean log-likelihoods in nats.

    Args:
        fitted, private, public: features of one encoder, as of `mixture_scores`.
        form: as of `welch`.
        **options: as of `mixture_scores`.

    Returns:
        The verdict.

    Raises:
        ValueError: as `mixture_scores`.

    Example:
        >>> draws = torch.Generator().manual_seed(0)
        >>> fitted, private, public = (torch.randn(64, 4, generator=draws) for _ in range(3))
        >>> mixture_test(fitted, private, public, components=2).samples
        128
    """
    scores = mixture_scores(fitted, private, public, **options)
    return welch(*scores, test="dataset inference", form=form)


def mixture_scores(
    fitted: Tensor, private: Tensor, public: Tensor, *, components: int = 10,
    covariance: Literal["full", "diag"] = "full", standardise: bool = False, ridge: float = 1e-6,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the log-likelihoods in nats, (M,) and (K,), of private and public features.

    All features are normalised to length 1. The paper takes 10 full components (CIFAR-10, SVHN), or 50
    diagonal ones on standardised features (ImageNet).

    Args:
        fitted: features of private images that the mixture is fitted to, (N, D).
        private: features of other private images, (M, D).
        public: features of images outside the training set, (K, D).
        components: Gaussians in the mixture.
        covariance: "full" or "diag".
        standardise: whether to standardise features first, by mean and deviation of `fitted`.
        ridge: added to each variance.
        seed: of the mixture's start.

    Returns:
        Both float64, one number per image.

    Raises:
        ValueError: for fewer features than components, shapes that do not fit, NaN or infinity.

    Example:
        >>> draws = torch.Generator().manual_seed(0)
        >>> x = torch.randn(64, 4, generator=draws)
        >>> [scores.shape[0] for scores in mixture_scores(x, x[:8], x[:4], components=2)]
        [8, 4]
    """
    from sklearn.mixture import GaussianMixture  # takes seconds to import

    train, *tested = _normalised(
        [fitted, private, public], fitting(standardise, "standardise", bool)
    )
    if fitting(components, "components", Count) > len(train):
        raise ValueError(f"{components} components for {len(train)} features: give more images or "
                         "fewer components")  # fmt: skip
    choice(covariance, "covariance", ("full", "diag"))
    ridge, seed = fitting(ridge, "ridge", NotNegative), fitting(seed, "seed", Seed)
    options = {"covariance_type": covariance, "reg_covar": ridge, "max_iter": 1000}
    mixture = GaussianMixture(components, random_state=derive("mixture", seed) % 2**32, **options)
    try:
        mixture.fit(train)
    except ValueError as error:  # whose advice is of scikit-learn's own parameters
        raise ValueError(f"{components} components do not fit {len(train)} features with ridge={ridge}: "
                         "take fewer components, or a larger ridge") from error  # fmt: skip
    inside, outside = (torch.from_numpy(mixture.score_samples(part)) for part in tested)
    return inside, outside


def _normalised(parts: Sequence[Tensor], standardise: bool) -> list[np.ndarray]:
    """Return float64 features of length 1, standardised before by the first part's statistics."""
    first = parts[0]
    fine = [dense(x) and x.is_floating_point() and x.ndim == 2 and x.numel() for x in parts]
    if not all(fine) or any(x.shape[1:] != first.shape[1:] for x in parts):
        shapes = ", ".join(map(shown, parts))
        raise ValueError(f"features {shapes}: three sets (N, D) of one encoder are needed")
    if not all(x.isfinite().all() for x in parts):
        raise ValueError("features hold NaN or infinity")
    wide = [x.detach().double().cpu() for x in parts]
    if standardise:
        mean, scale = wide[0].mean(0), wide[0].std(0, correction=0).clamp(min=1e-6)
        wide = [(x - mean) / scale for x in wide]
    return [F.normalize(x, dim=1).numpy() for x in wide]
