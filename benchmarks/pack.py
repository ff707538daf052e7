"""How near packing comes to the limit of decoding alone, on all cores, and in how much memory.

Run it with nothing else on the machine: `python benchmarks/pack.py`. The limit is the same decoder in
the same pool of threads with the results dropped; what packing adds is hashing and writing.
The pack of a turn fits the page cache and is removed: the disk's own speed is not in the rate.
"""

import argparse
import csv
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path

import joblib
import numpy as np
from PIL import Image

from contsteal.data import folders, packed
from contsteal.lab import artifacts

BAR = 0.9  # of the decode limit
RESULT = artifacts.ROOT / "benchmarks" / "results" / "pack_cpu.csv"


def each(do: Callable[[int], object], n: int) -> None:
    """Call `do` for 0 to n - 1 on all cores, in threads as packing does."""
    joblib.Parallel(n_jobs=-1, prefer="threads")(joblib.delayed(do)(k) for k in range(n))


def write_jpegs(folder: Path, n: int, width: int = 500, height: int = 375) -> None:
    """Write JPEGs as large as ImageNet's are on average: smooth shapes with noise, quality 90."""
    folder.mkdir(parents=True)

    def write(k: int) -> None:
        draws = np.random.default_rng(k)
        coarse = Image.fromarray(draws.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + draws.normal(0, 12, smooth.shape).astype(np.float32)
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{k:06}.jpg", quality=90)

    each(write, n)


def decode(folder: Path, size: int) -> None:
    """Decode every file and drop the result."""
    files = folders.listing(folder).files
    each(lambda k: folders.decode(folder / files[k], size), len(files))


def rate(n: int, do: Callable[[], object]) -> float:
    """Return images per second."""
    start = time.perf_counter()
    do()
    return n / (time.perf_counter() - start)


def peak() -> float:
    """Return the largest resident memory of this process or a child of it so far, in MB."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return max(resource.getrusage(w).ru_maxrss for w in who) / unit


def turn(source: Path, home: Path, n: int, size: int, swapped: bool) -> tuple[float, float]:
    """Return the rates of decoding and of packing, measured one after the other, and remove the pack."""
    rates = {}
    for name in ("pack", "decode") if swapped else ("decode", "pack"):
        do = (
            partial(decode, source, size)
            if name == "decode"
            else partial(packed.pack, source, home, size)
        )
        rates[name] = rate(n, do)
    shutil.rmtree(home)
    return rates["decode"], rates["pack"]


def measure(n: int, size: int, repeats: int, work: Path) -> dict[str, str | int | float]:
    """Decode and pack in turns; return medians of the rates and of their ratios, and the memory."""
    source = work / "source"
    write_jpegs(source, n)
    decode(source, size)  # files into the page cache, code into memory
    before = peak()
    pairs = [turn(source, work / "pack", n, size, k % 2 == 1) for k in range(repeats)]
    decoded, written = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "device": artifacts.processor(), "date": date.today().isoformat(), "n": n, "size": size,
        "source": "500 x 375 JPEG, quality 90", "repeats": repeats, "cores": joblib.cpu_count(),
        "decode_per_s": round(decoded, 1), "pack_per_s": round(written, 1),
        "ratio": round(statistics.median(b / a for a, b in pairs), 3),
        "rss_before_mb": round(before), "rss_peak_mb": round(peak()),
        "pack_mb": round(n * 3 * size**2 / 1e6),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, store it, and return 1 where packing is below the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=4096, help="images (4096)")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side (256)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of decoding and packing (5)")
    parser.add_argument("--out", type=Path, default=RESULT, help="CSV to write")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as work:
        row = measure(given.n, given.size, given.repeats, Path(work))
    for name, value in row.items():
        print(f"{name:>14}  {value}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("w", newline="") as file:
        table = csv.DictWriter(file, row, lineterminator="\n")
        table.writeheader()
        table.writerow(row)
    print(f"packing at {row['ratio']:.1%} of the decode limit (bar: {BAR:.0%}); {given.out}")
    return 0 if row["ratio"] >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
