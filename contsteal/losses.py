"""Stealing and self-supervised losses: pure functions of two batches of embeddings.

Throughout, `s` (N, D) are the surrogate's embeddings, `t` (N, D) the victim's answers for the same
N images; row i of one belongs to row i of the other. Gradients reach `s` alone when `t` comes from
a black box. Half-precision inputs are computed in float32, float64 stays float64.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def _pair(s: Tensor, t: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Check one batch of embeddings against another and bring both to at least float32."""
    if s.ndim != 2 or s.shape != t.shape:
        raise ValueError(
            f"surrogate {tuple(s.shape)} and victim {tuple(t.shape)} embeddings: both must be (N, D) "
            "of one shape; map a surrogate of another width to the victim's with a linear layer"
        )
    if len(s) < least:
        raise ValueError(
            f"a batch of {len(s)} has no negatives: this loss needs at least {least} rows"
        )
    kind = torch.promote_types(torch.promote_types(s.dtype, t.dtype), torch.float32)
    return s.to(kind), t.to(kind)


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: it must be above 0")
    return temperature


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Return a b' in the inputs' own precision, also inside autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def mse(s: Tensor, t: Tensor) -> Tensor:
    """Mean squared error, (1 / N D) sum (s - t)^2: the conventional embedding attack."""
    s, t = _pair(s, t)
    return F.mse_loss(s, t)


def cosine(s: Tensor, t: Tensor) -> Tensor:
    """One minus the mean cosine of matching rows, 1 - (1 / N) sum_i cos(s_i, t_i)."""
    s, t = _pair(s, t)
    return 1 - F.cosine_similarity(s, t).mean()


def cross_entropy(logits: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy of surrogate logits (N, C) with labels (N,) or posteriors (N, C): a classifier's
    stealing loss, -(1 / N) sum_i sum_c p_ic log softmax(logits_i)_c."""
    fits = answers.shape == (logits.shape if answers.ndim == 2 else logits.shape[:1])
    if logits.ndim != 2 or not fits:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit answers {tuple(answers.shape)}")
    return F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, answers)


def info_nce(s: Tensor, t: Tensor, temperature: float = 0.07) -> Tensor:
    """NT-Xent over the 2N rows z = [s; t]: mean_i -log(e^{z_i z_p(i)} / sum_{k != i} e^{z_i z_k}).

    Similarities are cosines over `temperature`; the partner p(i) stays in the denominator, and
    surrogate-surrogate, cross and victim-victim pairs are all negatives (Dziedzic et al., ICML
    2022; SimCLR's loss with the victim as second view).
    """
    s, t = _pair(s, t, least=2)
    z = F.normalize(torch.cat([s, t]), dim=1)  # (2N, D)
    logits = _products(z, z) / _positive(temperature)  # (2N, 2N)
    logits.fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(2 * len(s), device=s.device).roll(len(s)))


def cont_steal(
    s: Tensor, t: Tensor, temperature: float = 0.5, form: Literal["paper", "code"] = "paper"
) -> Tensor:
    """The Cont-Steal loss (Sha et al., CVPR 2023) in the paper's or the official code's form.

    "paper": mean_i -log(P_i / (sum_{k != i} e^{s_i t_k} + sum_{k != i} e^{s_i s_k})), anchored at
    the surrogate, the positive P_i = e^{s_i t_i} outside the denominator; cosines over
    `temperature`. "code": the official repository's loss, which is `info_nce` at temperature 0.5.
    """
    if form == "code":
        return info_nce(s, t, temperature)
    if form != "paper":
        raise ValueError(f'unknown form {form!r} of cont_steal: choose "paper" or "code"')
    s, t = _pair(s, t, least=2)
    s, t = F.normalize(s, dim=1), F.normalize(t, dim=1)
    cross, own = (
        _products(s, t) / _positive(temperature),
        _products(s, s) / temperature,
    )  # (N, N) each
    self_pair = torch.eye(len(s), dtype=torch.bool, device=s.device)
    negatives = torch.cat([cross, own], dim=1).masked_fill(self_pair.repeat(1, 2), float("-inf"))
    return (negatives.logsumexp(1) - cross.diagonal()).mean()
