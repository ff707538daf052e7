"""Verdicts on a suspect encoder, the statistics behind them, and dataset inference.

Every test is one-sided: its null hypothesis is that the suspect is independent of the victim, and a
small p-value speaks against that. A p-value is over images. How often independently *trained* encoders
are accused is another question: `against_controls` compares with such encoders, and `proportion` gives
the rate of false accusations among them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contsteal import choice, dense, encoders, evaluate, number, shown
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

    def accuses(self, alpha: float = ALPHA) -> bool:
        """Return whether the null hypothesis is rejected at the level `alpha`."""
        return self.p_value <= alpha


def proportion(hits: int, trials: int, level: float = 0.95) -> tuple[float, float, float]:
    """Return hits / trials with the exact interval of Clopper and Pearson (Biometrika, 1934).

    Args:
        hits, trials: counts.
        level: of confidence, between 0 and 1.

    Returns:
        The share of hits from 0 to 1, and the lower and upper bound.

    Raises:
        ValueError: for no trial, more hits than trials, or a level outside (0, 1).

    Example:
        None of 20 independent encoders accused still leaves a rate of up to 17 %.

        >>> rate, low, high = proportion(0, 20)
        >>> rate, round(high, 3)
        (0.0, 0.168)
    """
    from scipy import stats

    trials = number(trials, "trials", int, least=1, most=2**53)
    hits = number(hits, "hits", int, least=0, most=trials)
    level = number(level, "level", above=0, below=1)
    interval = stats.binomtest(hits, trials).proportion_ci(level, method="exact")
    return hits / trials, float(interval.low), float(interval.high)


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

    suspect, null = (number(n, "samples", int, least=2, most=2**53) for n in (suspect, null))
    alpha = number(alpha, "alpha", above=0, below=1)
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


def check_answers(answers: Tensor, dim: int, test: str) -> Tensor:
    """Return answers (N, `dim`), N at least 1; ValueError names the test that applies to others."""
    answers = evaluate.features(answers)
    if answers.shape[1] != dim:
        raise ValueError(f"{test} needs answers of the victim's {dim} coordinates, not "
                         f"{tuple(answers.shape)}: use ownership.dataset_inference, which takes "
                         "any")  # fmt: skip
    return answers


# ---------------------------------------------------------------------- dataset inference


def split(images: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cut the owner's private training images into halves: to fit the mixture, and to test on."""
    order = torch.randperm(len(images), generator=generator("dataset inference", seed))
    return images[order[: len(order) // 2]], images[order[len(order) // 2 :]]


def dataset_inference(
    suspect: nn.Module, private: Tensor, public: Tensor, *, form: Form = "signed", seed: int = 0,
    **options: Any,
) -> Verdict:  # fmt: skip
    """Test whether a suspect finds the victim's training images likelier than unseen ones.

    H0: E log p(private) <= E log p(public), p a mixture of Gaussians fitted to other private images.
    Dziedzic et al. (NeurIPS 2022), section 3. Images are not augmented.

    Args:
        suspect: images (N, 3, H, W) to features (N, D) of any dimension.
        private: the victim's training images, (N, 3, H, W); half of them fits the mixture.
        public: images of the same distribution that no encoder was trained on, (M, 3, H, W).
        form: as of `welch`.
        seed: of the halves and the mixture.
        **options: as of `mixture_scores`.

    Returns:
        The verdict; its `measure` is the gap of the mean log-likelihoods in nats. Its p-value is over
        images.

    Raises:
        ValueError: as `mixture_scores`.

    Example:
        >>> from contsteal import data
        >>> private, public = (data.load("shapes", n=64, seed=s).images for s in (0, 1))
        >>> stranger = encoders.build("conv4")
        >>> dataset_inference(stranger, private, public, components=2).accuses()
        False
    """
    fitted, tested = split(encoders.check_images(private), seed)
    features = [encoders.embed(suspect, part) for part in (fitted, tested, public)]
    scores = mixture_scores(*features, seed=seed, **options)
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

    train, *tested = _normalised([fitted, private, public], standardise)
    options = {"covariance_type": covariance, "reg_covar": ridge, "max_iter": 1000}
    start = derive("mixture", seed) % 2**32
    try:
        mixture = GaussianMixture(components, random_state=start, **options).fit(train)
    except ValueError as error:
        given = f"components={components!r}, covariance={covariance!r}, ridge={ridge!r}"
        raise ValueError(f"{given} do not fit {len(train)} features: {error}") from error
    inside, outside = (torch.from_numpy(mixture.score_samples(part)) for part in tested)
    return inside, outside


def _normalised(parts: Sequence[Tensor], standardise: bool) -> list[np.ndarray]:
    """Return float64 features of length 1, standardised before by the first part's statistics."""
    wide = [evaluate.features(x).double().cpu() for x in parts]
    if len({x.shape[1] for x in wide}) > 1:
        shapes = ", ".join(map(shown, parts))
        raise ValueError(f"features {shapes}: three sets (N, D) of one encoder are needed")
    if standardise:
        mean, scale = wide[0].mean(0), wide[0].std(0, correction=0).clamp(min=1e-6)
        wide = [(x - mean) / scale for x in wide]
    return [F.normalize(x, dim=1).numpy() for x in wide]
