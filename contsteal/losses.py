"""Stealing and self-supervised losses: pure functions of two batches of embeddings.

Throughout, `surrogate` (N, D) are the embeddings of the thief's encoder and `target` (N, D) the victim's
answers to the same N images; row i of one belongs to row i of the other. Gradients reach the surrogate
alone where the target comes from a black box. Half-precision inputs are computed in float32, float64
stays float64. In formulas s_i and t_i are rows of surrogate and target, z = [s; t] the 2N rows of both.
Every loss raises ValueError for shapes that differ, too few rows, or a temperature of 0 or below.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 512  # rows that are compared with all others at a time
WHOLE = 2048  # rows up to which all pairs are kept at once: 16 MB, no slower than blocks

# ------------------------------------------------------------------------------------ regression


def mse(surrogate: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, (1 / N D) sum (s - t)^2: the conventional embedding attack.

    Args:
        surrogate, target: embeddings of the same images, (N, D) each.

    Returns:
        A scalar.

    Raises:
        ValueError: for shapes that differ.

    Example:
        >>> mse(torch.zeros(2, 3), torch.full((2, 3), 2.0))
        tensor(4.)
    """
    return F.mse_loss(*_pair(surrogate, target))


def cosine(surrogate: Tensor, target: Tensor) -> Tensor:
    """One minus the mean cosine of matching rows, 1 - (1 / N) sum_i cos(s_i, t_i).

    The surrogate's loss in SSLGuard's code (Cong et al., CCS 2022).

    Args:
        surrogate, target: embeddings of the same images, (N, D) each.

    Returns:
        A scalar from 0 to 2.

    Raises:
        ValueError: for shapes that differ.

    Example:
        >>> cosine(torch.eye(2), 5 * torch.eye(2))
        tensor(0.)
    """
    return 1 - F.cosine_similarity(*_pair(surrogate, target)).mean()


def wasserstein(surrogate: Tensor, target: Tensor) -> Tensor:
    """Mean over rows of sum_j |CDF_s(j) - CDF_t(j)|, j the feature index (Dziedzic et al., ICML 2022).

    A row x is read as the distribution relu(x) / (sum + 1e-14): negative coordinates count as 0 and get
    no gradient. The order of the features matters, a row's scale does not.

    Args:
        surrogate, target: embeddings of the same images, (N, D) each.

    Returns:
        A scalar from 0 to D - 1.

    Raises:
        ValueError: for shapes that differ.

    Example:
        >>> wasserstein(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 7.0]]))
        tensor(2.)
    """
    s, t = _pair(surrogate, target)
    p, q = (x / (x.sum(1, keepdim=True) + 1e-14) for x in (F.relu(s), F.relu(t)))
    return (p.cumsum(1) - q.cumsum(1)).abs().sum(1).mean()


def stolen_encoder(surrogate: Tensor, target: Tensor, weight: float = 20.0) -> Tensor:
    """StolenEncoder (Liu et al., CCS 2022): mean_i |s_i - t_i| + weight mean_i |s'_i - t_i|.

    Rows are normalised to length 1. Distances are not squared and have gradient 0 at 0. The published
    code sums over the batch: N times this.

    Args:
        surrogate: embeddings of [clean; augmented] images, (2N, D).
        target: answers to the clean images alone, (N, D).
        weight: of the augmented images' term.

    Returns:
        A scalar.

    Raises:
        ValueError: unless the surrogate has twice as many rows as the target.

    Example:
        >>> clean, augmented = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> stolen_encoder(torch.cat([clean, augmented]), clean, weight=1.0)
        tensor(1.4142)
    """
    if target.ndim != 2 or surrogate.shape != (2 * len(target), target.shape[1]):
        raise ValueError(
            f"surrogate {tuple(surrogate.shape)} and victim {tuple(target.shape)} embeddings: the "
            "surrogate's must be (2N, D) = [clean; augmented], the victim's (N, D)"
        )
    s, t = (F.normalize(x, dim=1) for x in _pair(surrogate, torch.cat([target, target])))
    clean, augmented = torch.linalg.vector_norm(s - t, dim=1).chunk(2)  # (N,) each
    return clean.mean() + weight * augmented.mean()


def cross_entropy(logits: Tensor, answers: Tensor) -> Tensor:
    """A classifier's stealing loss, -(1 / N) sum_i sum_c p_ic log softmax(logits_i)_c.

    Args:
        logits: of the surrogate, (N, C).
        answers: the victim's labels (N,) or posteriors (N, C).

    Returns:
        A scalar.

    Raises:
        ValueError: for answers that do not fit the logits, and on a CPU for labels beyond the classes.

    Example:
        >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2]))
        tensor(1.3863)
    """
    shapes = logits.shape, logits.shape[:1]
    if logits.ndim != 2 or not logits.numel() or answers.shape not in shapes:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit answers {tuple(answers.shape)}")
    if answers.is_floating_point() != (answers.ndim == 2) or answers.dtype == torch.bool:
        kinds = "posteriors (N, C) are floats, labels (N,) whole numbers"
        raise ValueError(f"answers {tuple(answers.shape)} of {answers.dtype}: {kinds}")
    answers = answers if answers.is_floating_point() else answers.long()
    logits = logits.float() if logits.dtype != torch.float64 else logits
    try:  # by default the label -100 would be left out
        return F.cross_entropy(logits, answers, ignore_index=-(2**31))
    except IndexError as error:  # on a CPU, which looks at each label
        span = f"{int(answers.min())} to {int(answers.max())}"
        raise ValueError(f"labels from {span}: classes 0 to {logits.shape[1] - 1} exist") from error


# ----------------------------------------------------------------------------------- contrastive


def cont_steal(
    surrogate: Tensor,
    target: Tensor,
    temperature: float = 0.5,
    form: Literal["paper", "code"] = "paper",
    negatives: Literal["both", "victim", "self"] = "both",
) -> Tensor:
    """The Cont-Steal loss (Sha et al., CVPR 2023), in the paper's or the official code's form.

    "paper": mean_i -log(e^{s_i t_i} / (sum_{k != i} e^{s_i t_k} + sum_{k != i} e^{s_i s_k})), with the
    positive outside the denominator. "code": the official repository's loss, which is `info_nce`.

    Args:
        surrogate, target: embeddings of the same images, (N, D) each, N at least 2.
        temperature: divides the cosines; 0.5 in the official code.
        form: "paper" or "code".
        negatives: of the paper's form, which sum of the denominator is kept: the victim's (t_k), the
            surrogate's own (s_k), or both.

    Returns:
        A scalar; the paper's form may be below 0.

    Raises:
        ValueError: for shapes that differ, one row, a temperature of 0, an unknown form or negatives.

    Example:
        Orthogonal embeddings that match: the N - 1 others of each side have cosine 0.

        >>> cont_steal(torch.eye(32), torch.eye(32))  # ln(62 e^-2)
        tensor(2.1271)
        >>> cont_steal(torch.eye(32), torch.eye(32), form="code")  # ln(1 + 62 e^-2)
        tensor(2.2397)
    """
    _known("form", form, "cont_steal", "paper", "code")
    allowed = ("both", "victim", "self") if form == "paper" else ("both",)
    _known("negatives", negatives, f'cont_steal(form="{form}")', *allowed)
    if form == "code":
        return info_nce(surrogate, target, temperature)
    s, t = (F.normalize(x, dim=1) for x in _pair(surrogate, target, least=2))
    to_target = products(s, t) / positive(temperature)  # (N, N)
    to_self = products(s, s) / positive(temperature)  # (N, N)
    kept = {"both": [to_target, to_self], "victim": [to_target], "self": [to_self]}[negatives]
    others = torch.cat([x.clone().fill_diagonal_(float("-inf")) for x in kept], dim=1)
    return (others.logsumexp(1) - to_target.diagonal()).mean()


def info_nce(surrogate: Tensor, target: Tensor, temperature: float = 0.07) -> Tensor:
    """NT-Xent with the victim as second view: mean_i -log(e^{z_i z_p(i)} / sum_{k != i} e^{z_i z_k}).

    The partner p(i) stays in the denominator; surrogate-surrogate, cross and victim-victim pairs are
    all negatives (Dziedzic et al., ICML 2022; SimCLR, Chen et al., ICML 2020).

    Args:
        surrogate, target: embeddings of the same images, (N, D) each, N at least 2.
        temperature: divides the cosines.

    Returns:
        A scalar.

    Raises:
        ValueError: for shapes that differ, one row, or a temperature of 0 or below.

    Example:
        >>> info_nce(torch.eye(2), torch.eye(2), temperature=1.0)
        tensor(0.5514)
    """
    s, t = _pair(surrogate, target, least=2)
    partner = torch.arange(2 * len(s), device=s.device).roll(len(s))
    return nt_xent(torch.cat([s, t]), partner, temperature)


def info_nce_views(
    surrogate: Tensor,
    target: Tensor,
    temperature: float = 0.07,
    form: Literal["corrected", "published"] = "corrected",
) -> Tensor:
    """InfoNCE of two views of each image, z = [S1; S2; V1; V2] (4N, D).

    "corrected" averages a row's three positives, its image's other rows, outside the log: `sup_con`
    with the image's index as label. "published", the ICML 2022 code, puts positives first, in row
    order, and takes column 0 as the target: S1 -> S2, S2 -> S1, V1 -> S1, V2 -> S1. The other two
    act as negatives: a surrogate's anchor is drawn to its other view and driven from the victim's.

    Args:
        surrogate, target: embeddings of [view 1; view 2], (2N, D) each.
        temperature: divides the cosines.
        form: "corrected" or "published".

    Returns:
        A scalar.

    Raises:
        ValueError: for shapes that differ, an odd number of rows or fewer than four, a temperature of 0
            or below, or an unknown form.

    Example:
        >>> s = torch.eye(4)
        >>> info_nce_views(s, s) < info_nce_views(s, s.roll(1, 0))
        tensor(True)
    """
    _known("form", form, "info_nce_views", "corrected", "published")
    s, t = _pair(surrogate, target, least=4)
    image = torch.arange(_half(len(s)), device=s.device)
    if form == "corrected":
        return sup_con(s, t, image.repeat(2), temperature)
    partner = torch.cat([image + len(image), image, image, image])
    return nt_xent(torch.cat([s, t]), partner, temperature)


def sup_con(
    surrogate: Tensor, target: Tensor, labels: Tensor | None, temperature: float = 0.07
) -> Tensor:
    """Supervised contrastive loss over z = [s; t] (Khosla et al., NeurIPS 2020; ICML 2022's form).

    mean_i -(temperature / 0.07) mean_{p in P(i)} log(e^{z_i z_p} / sum_{k != i} e^{z_i z_k}): P(i)
    are all other rows of i's label, so classes are matched, not images.

    Args:
        surrogate, target: embeddings of the same images, (N, D) each, N at least 2.
        labels: the images' TRUE labels, (N,).
        temperature: divides the cosines.

    Returns:
        A scalar.

    Raises:
        ValueError: for shapes that differ, one row, a temperature of 0 or below, or missing labels.

    Example:
        >>> sup_con(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), temperature=1.0)
        tensor(7.8778)
    """
    s, t = _pair(surrogate, target, least=2)
    if labels is None or labels.shape != (len(s),):
        given = None if labels is None else tuple(labels.shape)
        raise ValueError(f"labels {given}: sup_con needs the true label of each of {len(s)} images")
    label = labels.to(s.device).repeat(2)
    same = (label[:, None] == label).fill_diagonal_(False)  # (2N, 2N)
    logits = cosines(torch.cat([s, t]), temperature)  # (2N, 2N)
    pull = logits.masked_fill(~same, 0).sum(1) / same.sum(1)
    return temperature / 0.07 * (logits.logsumexp(1) - pull).mean()


def soft_nn(surrogate: Tensor, target: Tensor, temperature: float = 100.0) -> Tensor:
    """Soft nearest neighbours over z = [s; t]: mean_i -log(1e-9 + e_ip(i) / sum_{k != i} e_ik).

    e_ij = exp(-|z_i - z_j|^2 / temperature) on raw features, p(i) the partner, in float64 as in the
    source (Dziedzic et al., ICML 2022). The ratio is a softmax, so it stays finite where the
    source's divides 0 by 0; a partner out of reach costs log 1e9 and has no gradient.

    Args:
        surrogate, target: embeddings of the same images, (N, D) each, N at least 2.
        temperature: divides squared distances, in the units of the embeddings.

    Returns:
        A scalar.

    Raises:
        ValueError: for shapes that differ, one row, or a temperature of 0 or below.

    Example:
        >>> soft_nn(torch.eye(2), torch.eye(2), temperature=2.0)
        tensor(0.5514)
    """
    s, t = _pair(surrogate, target, least=2)
    z = torch.cat([s, t]).double()
    squares = z.square().sum(1)
    distances = squares[:, None] + squares - 2 * products(z, z)  # (2N, 2N)
    shares = (-distances / positive(temperature)).fill_diagonal_(float("-inf")).softmax(1)
    partner = torch.cat([shares.diagonal(len(s)), shares.diagonal(-len(s))])  # (2N,)
    return -(1e-9 + partner).log().mean().to(s.dtype)


def barlow(
    surrogate: Tensor,
    target: Tensor,
    off_diagonal: float = 0.0051,
    form: Literal["cross", "published"] = "cross",
) -> Tensor:
    """Barlow Twins: sum_i (C_ii - 1)^2 + off_diagonal sum_{i != j} C_ij^2, C a correlation (D, D).

    "cross": C = BN(s)' BN(t) / N (biased batch norm, eps 1e-5). "published", the ICML 2022 code: C =
    BN([s_1; t_1])' BN([s_2; t_2]) / N of the first and second half of the batch, which are two views
    only if it is [view 1; view 2]. Surrogate and victim never meet in that form: permuting the victim's
    pairs (i, i + N / 2) changes nothing.

    Args:
        surrogate, target: embeddings of the same images, (N, D) each, N at least 2.
        off_diagonal: weight of the redundancy term.
        form: "cross" or "published".

    Returns:
        A scalar.

    Raises:
        ValueError: for shapes that differ, one row, an odd number in the published form, an unknown form.

    Example:
        Features that do not vary together, in both encoders:

        >>> square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> barlow(square, square).round(decimals=2), barlow(square, -square).round(decimals=2)
        (tensor(0.), tensor(8.))
    """
    _known("form", form, "barlow", "cross", "published")
    s, t = _pair(surrogate, target, least=2)
    if form == "published":
        n = _half(len(s))
        s, t = torch.cat([s[:n], t[:n]]), torch.cat([s[n:], t[n:]])
    a, b = (F.batch_norm(x, None, None, training=True) for x in (s, t))
    c = products(a.T, b.T) / len(a)  # (D, D)
    return (c.diagonal() - 1).square().sum() + off_diagonal * c.square().fill_diagonal_(0).sum()


def rda(surrogate: Tensor, prototypes: Tensor, temperature: float = 0.07) -> Tensor:
    """RDA (Wu et al., ECCV 2024): mean_i `cont_steal`_i - log[(1 + cos(s_i, p_i)) / |s_i - p_i|^2].

    The first term is Cont-Steal's in the paper's form, with prototypes as the victim's rows; all rows
    are normalised to length 1 (the source leaves p, a mean of unit vectors, shorter). Below 1e-8 the
    two quantities in the log count as 1e-8, without gradient: where s_i equals p_i the log is log 2e8.

    Args:
        surrogate: embeddings (N, D), N at least 2.
        prototypes: means of the victim's normalised answers to several views, (N, D).
        temperature: divides the cosines of the first term.

    Returns:
        A scalar; it may be below 0.

    Raises:
        ValueError: for shapes that differ, one row, or a temperature of 0 or below.

    Example:
        >>> prototypes = torch.eye(2)
        >>> rda(torch.eye(2), prototypes) < rda(torch.eye(2).flip(0), prototypes)
        tensor(True)
    """
    s, p = (F.normalize(x, dim=1) for x in _pair(surrogate, prototypes))
    toward = (1 + (s * p).sum(1)).clamp_min(1e-8)
    away = (s - p).square().sum(1).clamp_min(1e-8)
    return cont_steal(s, p, temperature) - (toward / away).log().mean()


def moco(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """MoCo's loss (He et al., CVPR 2020, eq. 1), a cross-entropy with negatives from a queue.

    mean_i -log(e^{q_i k_i} / (e^{q_i k_i} + sum_j e^{q_i n_j})).

    Args:
        query, key: projections of two views, (N, D) each; give keys without gradients.
        queue: negatives n, (K, D).
        temperature: divides the cosines.

    Returns:
        A scalar.

    Raises:
        ValueError: for shapes that differ, or a temperature of 0 or below.

    Example:
        >>> q = torch.eye(2, 4)
        >>> moco(q, q, queue=-q) < moco(q, -q, queue=q)
        tensor(True)
    """
    q, k = (F.normalize(x, dim=1) for x in _pair(query, key))
    if queue.ndim != 2 or not len(queue) or queue.shape[1] != q.shape[1]:
        raise ValueError(f"queue {tuple(queue.shape)}: rows of {q.shape[1]} are needed")
    matching = (q * k).sum(1, keepdim=True)  # (N, 1)
    negatives = products(q, F.normalize(queue.to(q.dtype), dim=1))  # (N, K)
    logits = torch.cat([matching, negatives], dim=1) / positive(temperature)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


# ----------------------------------------------------------------------------- similarities of rows


def products(a: Tensor, b: Tensor) -> Tensor:
    """Return a b' in the inputs' own precision, also inside autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def cosines(z: Tensor, temperature: float) -> Tensor:
    """Return the cosines of all pairs of rows over `temperature`, -inf for a row with itself."""
    z = F.normalize(z, dim=1)
    return (products(z, z) / positive(temperature)).fill_diagonal_(float("-inf"))


def nt_xent(z: Tensor, partner: Tensor, temperature: float) -> Tensor:
    """Return mean_i -log(e^{z_i z_p(i)} / sum_{k != i} e^{z_i z_k}) of rows z (R, D), partners p (R,).

    Above WHOLE rows it goes by blocks: memory is linear in R, not quadratic, and second derivatives do
    not exist.
    """
    if len(z) <= WHOLE:
        return F.cross_entropy(cosines(z, temperature), partner)
    with torch.autocast(z.device.type, enabled=False):
        return _BlockwiseNTXent.apply(F.normalize(z, dim=1), partner, positive(temperature))


class _BlockwiseNTXent(torch.autograd.Function):
    """`nt_xent` of unit rows z; its gradient is computed on the way, while a block is at hand.

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


# ---------------------------------------------------------------------------------------- checks


def positive(temperature: float) -> float:
    """Return the temperature; ValueError unless it is above 0, and such that float32 can divide by it."""
    if not 1e-9 <= temperature <= 1e9:
        raise ValueError(f"temperature={temperature}: it must be above 0, from 1e-9 to 1e9")
    return temperature


def _pair(s: Tensor, t: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Check one batch of embeddings against another and bring both to at least float32."""
    if s.ndim != 2 or s.shape != t.shape or not s.shape[1]:
        raise ValueError(
            f"surrogate {tuple(s.shape)} and victim {tuple(t.shape)} embeddings: both must be (N, D) "
            "of one shape; map a surrogate of another width to the victim's with a linear layer"
        )
    if len(s) < least:
        raise ValueError(f"a batch of {len(s)} has no negatives: at least {least} rows are needed")
    dtype = torch.promote_types(torch.promote_types(s.dtype, t.dtype), torch.float32)
    return s.to(dtype), t.to(dtype)


def _half(rows: int) -> int:
    if rows % 2:
        raise ValueError(f"a batch of {rows} rows cannot be [view 1; view 2]: give an even number")
    return rows // 2


def _known(what: str, value: str, place: str, *choices: str) -> None:
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r} of {place}: choose one of {', '.join(choices)}")
