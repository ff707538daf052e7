"""The contrastive loss, forward and backward: time and peak memory, against the broadcast form."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import record
from benchmarks.record import US, Row
from contsteal import losses, runs

DIM = 512
TEMPERATURE = 0.5
BROADCAST_MB = 8_000  # the broadcast form is left out where it would take more


def broadcast(s: Tensor, t: Tensor) -> Tensor:
    """NT-Xent as it is often written: cosines of all pairs by broadcasting (2B, 2B, D)."""
    z = torch.cat([s, t])
    cosines = F.cosine_similarity(z.unsqueeze(1), z.unsqueeze(0), dim=2) / TEMPERATURE
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    return F.cross_entropy(
        cosines.masked_fill(own, float("-inf")),
        torch.arange(len(z), device=z.device).roll(len(s)),
    )


def packaged(s: Tensor, t: Tensor) -> Tensor:
    """The package's own form."""
    return losses.cont_steal(s, t, TEMPERATURE, form="code")


def measure(tiny: bool) -> list[Row]:
    """Return batches per second and peak memory of both forms, by batch size."""
    sizes = (32, 64) if tiny else (32, 128, 512, 2048, 8192)
    return [r for batch in sizes for r in _at(batch, turns=1 if tiny else 7)]


def _at(batch: int, turns: int) -> list[Row]:
    draws = torch.Generator().manual_seed(batch)
    s, t = (torch.randn(batch, DIM, generator=draws).to(runs.device()) for _ in range(2))
    s.requires_grad_()
    forms = {US: packaged, "broadcast": broadcast}
    if 3 * (2 * batch) ** 2 * DIM * 4e-6 > BROADCAST_MB:
        forms.pop("broadcast")
    ways = {
        who: lambda form=form: torch.autograd.grad(form(s, t), s) for who, form in forms.items()
    }
    peaks = {who: record.peak_mb(do) for who, do in ways.items()}
    timed = record.by_turns(ways, turns if batch < 8192 else 3)
    return [
        record.row("losses", f"B = {batch}", who, "batches", [1 / one for one in taken], peaks[who])
        for who, taken in timed.items()
    ]
