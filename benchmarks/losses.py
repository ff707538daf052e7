"""The contrastive loss, forward and backward: time and peak memory, against the broadcast form."""

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import record
from benchmarks.record import US, Row
from contsteal import losses
from contsteal.lab import artifacts

DIM = 512
TEMPERATURE = 0.5
TURNS = {32: 7, 128: 7, 512: 2, 2048: 5, 8192: 2}  # by batch: some take half a minute on a CPU


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


def room() -> float:
    """Return the MB of memory that are free on the device."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] / 1e6
    return psutil.virtual_memory().available / 1e6


def measure(tiny: bool) -> list[Row]:
    """Return batches per second and peak memory of both forms, by batch size."""
    return [r for batch in list(TURNS)[: 2 if tiny else None] for r in _at(batch, tiny)]


def _at(batch: int, tiny: bool) -> list[Row]:
    draws = torch.Generator().manual_seed(batch)
    s, t = (torch.randn(batch, DIM, generator=draws).to(artifacts.device()) for _ in range(2))
    s.requires_grad_()
    forms = {US: packaged, "broadcast": broadcast}
    if 6 * (2 * batch) ** 2 * DIM * 4e-6 > 0.8 * room():  # six tensors of (2B, 2B, D) live at once
        forms.pop("broadcast")
    ways = {
        who: lambda form=form: torch.autograd.grad(form(s, t), s) for who, form in forms.items()
    }
    peaks = {who: record.peak_mb(do) for who, do in ways.items()}
    timed = record.by_turns(ways, 1 if tiny else TURNS[batch])
    return [
        record.row("losses", f"B = {batch}", who, "batches", [1 / one for one in taken], peaks[who])
        for who, taken in timed.items()
    ]
