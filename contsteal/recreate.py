"""Recreate a victim's projection head from its answers (Dziedzic et al., ICML 2022, Algorithm 2)."""

import torch
from torch import Tensor, nn

from contsteal import loop, losses
from contsteal.heads import Frozen, Head

WIDTH = 128  # of projections, as the ICML victims' own


def head(one: Tensor, two: Tensor, epochs: int, batch: int, seed: int) -> Frozen:
    """Train a projector g on answers (N, D) to two views of the same images, and freeze it.

    The loss is SimSiam's between g(one) and g(two), one side held still; Adam at 1e-3 as in the
    published code, whose own head cannot run. No query is made: the answers are paid for already.
    """
    dim = one.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        g = Head(dim, dim, WIDTH, last=True)
        predictor = Head(WIDTH, WIDTH // 4, WIDTH)
    model = nn.ModuleList([g, predictor]).to(one.device)

    def loss(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        z, w = g(one[chosen]), g(two[chosen])
        there = losses.cosine(predictor(z), w.detach())
        return (there + losses.cosine(predictor(w), z.detach())) / 2

    plan = loop.Schedule(epochs, batch, 1e-3)
    loop.fit(model, loss, len(one), plan, seed=seed, title="recreating the head")
    return Frozen(g)
