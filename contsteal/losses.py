"""Stealing and self-supervised losses: pure functions of two batches of embeddings.

Throughout, `s` (N, D) are the surrogate's embeddings, `t` (N, D) the victim's answers for the same
N images; row i of one belongs to row i of the other. Gradients reach `s` alone when `t` comes from
a black box. Half-precision inputs are computed in float32, float64 stays float64.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 512  # rows that are compared with all others at a time
WHOLE = 2048  # rows up to which all pairs are kept at once: 16 MB, no slower than blocks


def products(a: Tensor, b: Tensor) -> Tensor:
    """Return a b' in the inputs' own precision, also inside autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def positive(temperature: float) -> float:
    """Return the temperature; ValueError unless it is above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: it must be above 0")
    return temperature


def cosines(z: Tensor, temperature: float) -> Tensor:
    """Return the cosines of all pairs of rows over `temperature`, -inf for a row with itself."""
    z = F.normalize(z, dim=1)
    return (products(z, z) / positive(temperature)).fill_diagonal_(float("-inf"))


def nt_xent(z: Tensor, partner: Tensor, temperature: float) -> Tensor:
    """Return mean_i -log(e^{z_i z_p(i)} / sum_{k != i} e^{z_i z_k}) of rows z (R, D), partners p (R,).

    Above WHOLE rows it goes by blocks: memory is linear in R, not quadratic, and a gradient of the
    gradient does not exist.
    """
    if len(z) <= WHOLE:
        return F.cross_entropy(cosines(z, temperature), partner)
    with torch.autocast(z.device.type, enabled=False):
        return _Blocks.apply(F.normalize(z, dim=1), partner, positive(temperature))


class _Blocks(torch.autograd.Function):
    """`cross_entropy` of unit rows z; its gradient is made on the way, while a block is at hand.

    With L = (1 / R) sum_i (logsumexp_j l_ij - l_ip(i)), l_ij = z_i z_j / T and G = softmax(l) - 1_p:
    dL/dz = (G + G') z / (R T).
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, partner: Tensor, temperature: float) -> Tensor:
        total, gradient = z.new_zeros(()), torch.zeros_like(z)
        for first in range(0, len(z), BLOCK):
            rows, target = z[first : first + BLOCK], partner[first : first + BLOCK, None]
            logits = (rows @ z.T).div_(temperature)  # (BLOCK, R)
            logits.diagonal(first).fill_(float("-inf"))
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - logits.gather(1, target)).sum()
            g = logits.sub_(norm).exp_()
            g.scatter_add_(1, target, torch.full_like(norm, -1))
            gradient[first : first + BLOCK].addmm_(g, z)
            gradient.addmm_(g.T, rows)
        ctx.save_for_backward(gradient.div_(len(z) * temperature))
        return total / len(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return up * gradient, None, None


Barlow = Literal["cross", "published"]
Views = Literal["corrected", "published"]


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


def _half(rows: int) -> int:
    if rows % 2:
        raise ValueError(f"a batch of {rows} rows is not [view 1; view 2]: give an even number")
    return rows // 2


def _known(what: str, value: str, place: str, *choices: str) -> None:
    if value not in choices:
        known = " or ".join(f'"{c}"' for c in choices)
        raise ValueError(f"unknown {what} {value!r} of {place}: choose {known}")


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


def logits_mse(logits: Tensor, answers: Tensor) -> Tensor:
    """Mean squared error of raw logits (N, C): the "posterior" attack of Cont-Steal's official code."""
    if logits.ndim != 2 or logits.shape != answers.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit answers {tuple(answers.shape)}")
    return mse(logits, answers)


def info_nce(s: Tensor, t: Tensor, temperature: float = 0.07) -> Tensor:
    """NT-Xent over the 2N rows z = [s; t]: mean_i -log(e^{z_i z_p(i)} / sum_{k != i} e^{z_i z_k}).

    Similarities are cosines over `temperature`; the partner p(i) stays in the denominator, and
    surrogate-surrogate, cross and victim-victim pairs are all negatives (Dziedzic et al., ICML
    2022; SimCLR's loss with the victim as second view).
    """
    s, t = _pair(s, t, least=2)
    partner = torch.arange(2 * len(s), device=s.device).roll(len(s))
    return nt_xent(torch.cat([s, t]), partner, temperature)


def info_nce_views(
    s: Tensor, t: Tensor, temperature: float = 0.07, form: Views = "corrected"
) -> Tensor:
    """InfoNCE of two views: s and t are (2N, D) = [view 1; view 2], z = [S1; S2; V1; V2] (4N, D).

    "corrected" averages a row's three positives, its image's other rows, outside the log: `sup_con`
    with the image's index as label. "published", the ICML 2022 code, puts positives first, in row
    order, and takes column 0 as the target: S1 -> S2, S2 -> S1, V1 -> S1, V2 -> S1. The other two
    act as negatives: a surrogate's anchor is drawn to its other view and driven from the victim's.
    """
    _known("form", form, "info_nce_views", "corrected", "published")
    s, t = _pair(s, t, least=4)
    image = torch.arange(_half(len(s)), device=s.device)
    if form == "corrected":
        return sup_con(s, t, image.repeat(2), temperature)
    partner = torch.cat([image + len(image), image, image, image])
    return nt_xent(torch.cat([s, t]), partner, temperature)


def sup_con(s: Tensor, t: Tensor, labels: Tensor | None, temperature: float = 0.07) -> Tensor:
    """Supervised contrastive loss over the 2N rows z = [s; t], from the images' TRUE labels (N,).

    mean_i -(temperature / 0.07) mean_{p in P(i)} log(e^{z_i z_p} / sum_{k != i} e^{z_i z_k}): P(i)
    are all other rows of i's label, so classes are matched, not images (Khosla et al., NeurIPS
    2020; Dziedzic et al., ICML 2022). Similarities as in `info_nce`.
    """
    s, t = _pair(s, t, least=2)
    got = None if labels is None else tuple(labels.shape)
    if got != (len(s),):
        raise ValueError(f"labels {got}: sup_con needs the true label of each of {len(s)} images")
    label = labels.to(s.device).repeat(2)
    positive = (label[:, None] == label).fill_diagonal_(False)
    logits = cosines(torch.cat([s, t]), temperature)  # (2N, 2N)
    pull = logits.masked_fill(~positive, 0).sum(1) / positive.sum(1)
    return temperature / 0.07 * (logits.logsumexp(1) - pull).mean()


def soft_nn(s: Tensor, t: Tensor, temperature: float = 100.0) -> Tensor:
    """Soft nearest neighbour over z = [s; t]: mean_i -log(1e-9 + e_ip(i) / sum_{k != i} e_ik).

    e_ij = exp(-|z_i - z_j|^2 / temperature) on raw features, p(i) the partner, in float64 as in the
    source (Dziedzic et al., ICML 2022). The ratio is a softmax, so it stays finite where the
    source's divides 0 by 0; a partner out of reach costs log 1e9 and has no gradient.
    """
    s, t = _pair(s, t, least=2)
    z = torch.cat([s, t]).double()
    squares = z.square().sum(1)
    distances = squares[:, None] + squares - 2 * products(z, z)  # (2N, 2N)
    shares = (-distances / positive(temperature)).fill_diagonal_(float("-inf")).softmax(1)
    partner = torch.cat([shares.diagonal(len(s)), shares.diagonal(-len(s))])
    return -(1e-9 + partner).log().mean().to(s.dtype)


def wasserstein(s: Tensor, t: Tensor) -> Tensor:
    """Mean over rows of sum_j |CDF_s(j) - CDF_t(j)|, j the feature index (Dziedzic et al., ICML 2022).

    A row x is the distribution relu(x) / (sum + 1e-14): negative coordinates count as 0 and get no
    gradient (a ReLU encoder has none). The order of the features matters, a row's scale does not.
    """
    p, q = (x / (x.sum(1, keepdim=True) + 1e-14) for x in map(F.relu, _pair(s, t)))
    return (p.cumsum(1) - q.cumsum(1)).abs().sum(1).mean()


def barlow(s: Tensor, t: Tensor, off_diagonal: float = 0.0051, form: Barlow = "cross") -> Tensor:
    """Barlow Twins: sum_i (C_ii - 1)^2 + off_diagonal sum_{i != j} C_ij^2; BN: biased, eps 1e-5.

    "cross": C = BN(s)' BN(t) / N. "published", the ICML 2022 code: C = BN([s_1; t_1])' BN([s_2;
    t_2]) / N of the first and second half of the batch, which are two views if it is [view 1;
    view 2] and other images if not. Surrogate and victim never meet in that: permuting the victim's
    pairs (i, i + N / 2) changes nothing.
    """
    _known("form", form, "barlow", "cross", "published")
    s, t = _pair(s, t, least=2)
    if form == "published":
        n = _half(len(s))
        s, t = torch.cat([s[:n], t[:n]]), torch.cat([s[n:], t[n:]])
    a, b = (F.batch_norm(x, None, None, training=True) for x in (s, t))
    c = products(a.T, b.T) / len(a)
    return (c.diagonal() - 1).square().sum() + off_diagonal * c.square().fill_diagonal_(0).sum()


def stolen_encoder(s: Tensor, t: Tensor, weight: float = 20.0) -> Tensor:
    """StolenEncoder: mean_i |s_i - t_i| + weight mean_i |s'_i - t_i| of l2-normalised rows.

    s is (2N, D) = [clean; augmented s'], t (N, D) answers the clean images alone. Distances are
    not squared and have gradient 0 at 0 (Liu et al., CCS 2022, whose code sums: N times this).
    """
    if t.ndim != 2 or s.shape != (2 * len(t), t.shape[1]):
        raise ValueError(
            f"surrogate {tuple(s.shape)} and victim {tuple(t.shape)} embeddings: the surrogate's "
            "must be (2N, D) = [clean; augmented], the victim's (N, D)"
        )
    s, t = (F.normalize(x, dim=1) for x in _pair(s, torch.cat([t, t])))
    clean, augmented = torch.linalg.vector_norm(s - t, dim=1).chunk(2)
    return clean.mean() + weight * augmented.mean()


def rda(s: Tensor, p: Tensor, temperature: float = 0.07) -> Tensor:
    """RDA (Wu et al., ECCV 2024): mean_i `cont_steal`_i - log[(1 + cos(s_i, p_i)) / |s_i - p_i|^2].

    The first term is Cont-Steal's in the paper's form, with prototypes p (N, D) as the victim's
    rows; all rows are l2-normalised (the source leaves p, a mean of unit vectors, shorter than 1).
    Below 1e-8, 1 + cos and |s_i - p_i|^2 count as 1e-8, without gradient: where s_i equals p_i the
    log is log 2e8, not infinite.
    """
    s, p = (F.normalize(x, dim=1) for x in _pair(s, p))
    toward = (1 + (s * p).sum(1)).clamp_min(1e-8)
    away = (s - p).square().sum(1).clamp_min(1e-8)
    return cont_steal(s, p, temperature) - (toward / away).log().mean()


def moco(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """MoCo's loss: mean_i -log(e^{q_i k_i} / (e^{q_i k_i} + sum_j e^{q_i n_j})).

    He et al. (CVPR 2020), eq. 1. Similarities are cosines over `temperature`; queries and keys are
    (N, D), the queue of negatives n is (K, D). Give keys without gradients: they are targets.
    """
    query, key = (F.normalize(x, dim=1) for x in _pair(query, key))
    matching = (query * key).sum(1, keepdim=True)  # (N, 1)
    negatives = products(query, F.normalize(queue.to(query.dtype), dim=1))  # (N, K)
    logits = torch.cat([matching, negatives], dim=1) / positive(temperature)
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def cont_steal(
    s: Tensor,
    t: Tensor,
    temperature: float = 0.5,
    form: Literal["paper", "code"] = "paper",
    negatives: Literal["both", "victim", "self"] = "both",
) -> Tensor:
    """The Cont-Steal loss (Sha et al., CVPR 2023) in the paper's or the official code's form.

    "paper": mean_i -log(P_i / (sum_{k != i} e^{s_i t_k} + sum_{k != i} e^{s_i s_k})), anchored at
    the surrogate, the positive P_i = e^{s_i t_i} outside the denominator; cosines over
    `temperature`. `negatives` keeps both sums, or the "victim" sum (t_k) or "self" sum (s_k) alone.
    "code": the official repository's loss, which is `info_nce` at temperature 0.5.
    """
    _known("form", form, "cont_steal", "paper", "code")
    allowed = ("both", "victim", "self") if form == "paper" else ("both",)
    _known("negatives", negatives, f'cont_steal(form="{form}")', *allowed)
    if form == "code":
        return info_nce(s, t, temperature)
    s, t = (F.normalize(x, dim=1) for x in _pair(s, t, least=2))
    cross, own = (products(s, x) / positive(temperature) for x in (t, s))  # (N, N) each
    kept = {"both": [cross, own], "victim": [cross], "self": [own]}[negatives]
    others = torch.cat([x.clone().fill_diagonal_(float("-inf")) for x in kept], dim=1)
    return (others.logsumexp(1) - cross.diagonal()).mean()
