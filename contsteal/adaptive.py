"""What a thief who knows the defence does to answers: pure functions on tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
