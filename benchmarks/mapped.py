"""What a set on disk costs beside the same set in memory: `python -m benchmarks.mapped`.

SimCLR of the smallest encoder and its answers over noise, by turns, the images behind a memory map and in
memory. Rates are images per second of processor time, so that other work on the machine does not count;
memory is what the process grows by at its peak, images in memory not counted.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

from benchmarks import record
from contsteal import encoders, files, pretrain, steal, victim
from contsteal.data import ImageSet
from contsteal.data.packed import IMAGES, MANIFEST, SUMS, open_pack, sums
from contsteal.lab import artifacts

SHARE, GROWTH = 0.8, 500  # at least, of the rate in memory; at most, MB
BATCH = 256


def noise(home: Path, n: int, size: int) -> None:
    """Write a pack of noise."""
    images = np.lib.format.open_memmap(home / IMAGES, "w+", np.uint8, (n, 3, size, size))
    draws = np.random.default_rng(0)
    each = []
    for part in np.array_split(images, max(1, n // 5000)):
        part[:] = draws.integers(0, 256, part.shape, dtype=np.uint8)
        each.append(sums(part))
    images.flush()
    np.save(home / SUMS, np.concatenate(each))
    facts = {"rows": n, "size": size, "skipped": [], "classes": {}, "source": "", "pixels": "noise",
             "sums": files.sha256(home / SUMS)}  # fmt: skip
    files.write_json(home / MANIFEST, files.sealed(facts))


def train(images: Any, steps: int) -> int:
    """Train SimCLR; return how many images it has seen."""
    size = images.shape[-1]
    config = pretrain.Config("simclr", "conv4", image_size=size, steps=steps, batch=BATCH, held_out=0,
                             optimizer="adamw", lr=1e-3)  # fmt: skip
    pretrain.train(config, ImageSet(images, None, "noise", "train", ()))
    return steps * BATCH


def answer(images: Any, net: encoders.Encoder) -> int:
    """Send all images to a victim, as an attack does; return how many."""
    config = steal.Config("embedding", encoder="conv4", image_size=images.shape[-1])
    steal.ask(config, victim.BlackBox(net), images)
    return len(images)


def watched(do: Callable[[], int]) -> tuple[float, float]:
    """Return images per second of processor time, and the MB that the process grows by at its peak."""
    me, done, peak = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], me.memory_info().rss)

    before, start = me.memory_info().rss, time.process_time()
    thread = threading.Thread(target=watch)
    thread.start()
    count = do()
    done.set()
    thread.join()
    return count / (time.process_time() - start), (peak[0] - before) / 1e6


def measure(n: int, size: int, steps: int, turns: int) -> pd.DataFrame:
    """Return a row for training and for answering: both rates, their share, and the growth of each."""
    net, rows = encoders.build("conv4", size), []
    with tempfile.TemporaryDirectory() as home, artifacts.single_thread():
        noise(Path(home), n, size)
        mapped, *_ = open_pack(Path(home), "train")
        works = {"training": lambda x: train(x, steps), "answering": lambda x: answer(x, net)}
        for do in works.values():
            do(mapped[: 2 * BATCH])  # code into memory
        for work, do in works.items():
            over_map = [watched(lambda do=do: do(mapped)) for _ in range(turns)]
            held = torch.from_numpy(np.load(Path(home, IMAGES)))
            inside = [watched(lambda do=do, held=held: do(held)) for _ in range(turns)]
            del held
            (fast, more), (known, less) = (
                map(max, zip(*x, strict=True)) for x in (over_map, inside)
            )
            rows.append({"work": work, "images": n, "pixels": size, "mapped_per_s": fast,
                         "memory_per_s": known, "share": fast / known, "mapped_mb": more,
                         "memory_mb": less})  # fmt: skip
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, store, and return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mapped", description=__doc__)
    parser.add_argument("--n", type=int, default=100_000, help="images (100000)")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side (64)")
    parser.add_argument("--steps", type=int, default=60, help="of a training (60)")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder to write")
    given = parser.parse_args(arguments)
    table = measure(given.n, given.size, given.steps, given.turns)
    print(table.round(2).to_string(index=False))
    table = table.assign(device=artifacts.processor(), torch=torch.__version__)
    with files.atomic(given.out / "mapped_cpu.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.6g")
    return int(table["share"].min() < SHARE or table["mapped_mb"].max() > GROWTH)


if __name__ == "__main__":
    raise SystemExit(main())
