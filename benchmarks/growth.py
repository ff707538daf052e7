"""How cost grows: queries, attacks on one victim, seeds, the dimension of embeddings, and the batch.

Each quantity grows alone, seconds and peak memory are measured at each size, and a slope is fitted in
log-log over the three largest: 1 is linear, 2 quadratic, 0 free. Queries go through a black box whose
encoder is one linear layer, so that hashing, accounts and storage are what is seen. Attacks share one
victim and one set of answers; seeds draw views of their own, so each asks the victim again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tracemalloc import get_traced_memory, start, stop

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor, nn

from benchmarks import record
from benchmarks.record import US, Row
from contsteal import data, encoders, losses, steal
from contsteal.lab import artifacts
from contsteal.victim import AnswerCache, BlackBox

REQUEST = 8192  # images in a request, as an attack sends them
TURNS = 3
IMAGES, BATCH = 256, 64  # of an attack on attacks and seeds
LOSS_BATCH, LOSS_DIM = 256, 128  # what stands still while the other grows
CLEAN = ("cont-steal-code", "embedding", "info-nce", "cosine")  # run again, by turns
MARK = {"color": "#0072B2", "marker": "o"}


class Linear(nn.Module):
    """The smallest encoder: one linear layer on the pixels, uint8 (N, 3, 32, 32) to (N, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 64)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.float().flatten(1))


def ask(count: int) -> None:
    """Send `count` images of noise through a new black box, a request at a time."""
    device = artifacts.device()
    api = BlackBox(Linear().to(device))
    draws = torch.Generator(device).manual_seed(0)
    for first in range(0, count, REQUEST):
        size = (min(REQUEST, count - first), 3, 32, 32)
        api.embed(torch.randint(256, size, dtype=torch.uint8, device=device, generator=draws))


def _attacks(changes: Sequence[dict[str, object]]) -> int:
    """Run attacks that share one victim and its answers; return the victim's forward passes."""
    device = artifacts.device()
    images = data.load("shapes", n=IMAGES).images.to(device)
    shared = AnswerCache(encoders.build("test_resnet", seed=0).to(device))
    common = {"encoder": "test_resnet", "epochs": 1, "batch": BATCH}
    for change in changes:
        steal.train(steal.Config(**common | change), BlackBox(shared), images)
    return shared.forwards


def attacks(count: int) -> int:
    """Run `count` attacks on the clean answers of one victim; return its forward passes."""
    return _attacks([{"attack": CLEAN[k % len(CLEAN)], "views": "clean"} for k in range(count)])


def seeds(count: int) -> int:
    """Run one attack with `count` seeds, each with its own view; return the victim's forward passes."""
    return _attacks([{"attack": CLEAN[0], "views": "shared", "seed": k} for k in range(count)])


def loss(batch: int, dim: int) -> None:
    """Take the contrastive loss of a batch and its gradient."""
    s = torch.ones(batch, dim, device=artifacts.device(), requires_grad=True)
    losses.info_nce(s, torch.ones_like(s)).backward()


def step(batch: int) -> None:
    """Train the demo's surrogate for one step on a batch, black box and answers included."""
    device = artifacts.device()
    images = torch.zeros(batch, 3, 32, 32, dtype=torch.uint8, device=device)
    own = steal.Config("cont-steal-code", views="clean", encoder="resnet10t", width=0.5, epochs=1,
                       batch=batch)  # fmt: skip
    steal.train(own, BlackBox(Linear().to(device)), images)


@dataclass(frozen=True)
class Quantity:
    """What grows: its name, what one size does, and the sizes of a test, on a CPU and on a GPU."""

    name: str
    do: Callable[[int], object]
    tiny: tuple[int, ...]
    cpu: tuple[int, ...]
    gpu: tuple[int, ...]

    def sizes(self, tiny: bool) -> tuple[int, ...]:
        """Return the sizes for this device; the smallest ones where `tiny`."""
        if tiny:
            return self.tiny
        return self.gpu if artifacts.device().type == "cuda" else self.cpu


QUANTITIES = (
    Quantity("queries", ask, (50, 100, 200), (1000, 10_000, 100_000),
             (1000, 10_000, 100_000, 1_000_000)),
    Quantity("attacks", attacks, (1, 2), (1, 2, 4, 8), (1, 2, 4, 8, 16)),
    Quantity("seeds", seeds, (1, 2), (1, 2, 4, 8), (1, 2, 4, 8, 16)),
    Quantity("dimension", partial(loss, LOSS_BATCH), (16, 32), (128, 512, 2048, 8192),
             (128, 512, 2048, 8192, 32_768)),
    Quantity("batch of the loss", partial(loss, dim=LOSS_DIM), (16, 32), (64, 256, 1024, 4096),
             (256, 1024, 4096, 16_384)),
    Quantity("batch of a step", step, (2, 4), (32, 128, 512), (32, 128, 512, 2048)),
)  # fmt: skip


def memory(do: Callable[[], object]) -> float:
    """Return the MB that a call takes at most: tensors, and Python's objects, whose peaks are added."""
    start()
    try:
        return record.peak_mb(do) + get_traced_memory()[1] / 1e6
    finally:
        stop()


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent k of value = c size^k over the three largest sizes, by least squares."""
    logs = np.log(np.asarray(sizes[-3:], float)), np.log(np.asarray(values[-3:], float))
    return float(np.polyfit(*logs, 1)[0])


def grow(quantity: Quantity, tiny: bool) -> list[Row]:
    """Return a row of seconds and peak memory for each size, and the slope over them."""
    rows, sizes = [], quantity.sizes(tiny)
    quantity.do(sizes[0])  # warms up
    for size in sizes:
        do = partial(quantity.do, size)
        values = [record.seconds(do) for _ in range(1 if tiny else TURNS)]
        rows.append(
            record.row("growth", f"{quantity.name} = {size:,}", US, "s", values, memory(do))
        )
    found = slope(sizes, [r.value for r in rows])
    return [*rows, record.row("growth", f"slope over {quantity.name}", US, "slope", [found])]


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return one line per size: quantity, size, seconds, their spread, and peak MB."""
    found = []
    for r in rows:
        name, _, size = r.work.partition(" = ")
        if size:
            found.append({"quantity": name, "size": int(size.replace(",", "")), "seconds": r.value,
                          "low": r.low, "high": r.high, "peak_mb": r.peak_mb})  # fmt: skip
    return pd.DataFrame(found)


def draw(measured: pd.DataFrame) -> Figure:
    """Draw seconds and, beside them, peak memory against each quantity, with the fitted slopes."""
    from contsteal.paper import plots

    groups = list(measured.groupby("quantity", sort=False))
    fig, axes = plots.canvas((len(groups) + 1) // 2, 4, height=1.7 * ((len(groups) + 1) // 2))
    pairs = np.asarray(axes).reshape(-1, 2)
    for pair, (name, rows) in zip(pairs, groups, strict=False):
        for ax, column in zip(pair, ("seconds", "peak_mb"), strict=True):
            _panel(ax, rows["size"].to_list(), rows[column].to_list(), name)
        pair[0].fill_between(
            rows["size"], rows["low"], rows["high"], color=MARK["color"], alpha=0.2
        )
        pair[0].set_ylabel("seconds")
        pair[1].set_ylabel("peak MB")
    for pair in pairs[len(groups) :]:
        for ax in pair:
            ax.axis("off")
    return fig


def _panel(ax: Axes, sizes: list[int], values: list[float], name: str) -> None:
    ax.plot(sizes, values, **MARK)
    ax.set(xscale="log", yscale="log", xlabel=name)
    ax.set_xticks(sizes, [f"{size:.0e}".replace("e+0", "e") if size >= 1e4 else str(size)
                          for size in sizes], size=6, rotation=30)  # fmt: skip
    ax.set_xticks([], minor=True)
    middle = float(np.sqrt(min(values) * max(values)))
    ax.set_ylim(min(ax.get_ylim()[0], middle / 2), max(ax.get_ylim()[1], 2 * middle))
    between = (1, 2, 5) if max(values) < 200 * min(values) else (1,)  # labels must not touch
    ax.yaxis.set_major_locator(LogLocator(subs=between, numticks=6))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_title(f"slope {slope(sizes, values):.2f}")


def measure(tiny: bool) -> list[Row]:
    """Return the rows of every quantity; where they are stored, so are a figure and its table."""
    rows = [r for quantity in QUANTITIES for r in grow(quantity, tiny)]
    if record.is_stored(tiny):
        try:
            write(rows, record.RESULTS)
        except ModuleNotFoundError as error:  # rates need fewer packages than figures
            print(f"the figure of growth is not drawn: {error}")
    return rows


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write the figure as PNG and PDF, with its table and stamp, named after the device."""
    from contsteal.paper import figures

    kept = figures.as_read(table(rows))
    stamp = artifacts.stamp("benchmark", "shapes and noise", "0")
    figures.save(draw(kept), folder, f"growth_{record.device()}", kept, stamp)
