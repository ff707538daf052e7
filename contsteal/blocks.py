"""Many rows in blocks, done in parallel and given back in order."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm.auto import tqdm

from contsteal import runs

BLOCK = 32  # rows that a worker takes at a time
T = TypeVar("T")


def parallel(do: Callable[[slice], T], n: int, title: str, workers: int = 0) -> Iterator[T]:
    """Yield `do(rows)` for blocks of the rows 0..n-1, in order, with a progress bar.

    Threads, one a core by default: Pillow, sha256 and files release the interpreter's lock.
    """
    parts = [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
    pool = ThreadPoolExecutor(workers or runs.cores())
    try:
        with tqdm(total=n, desc=title, unit=" images", leave=False) as bar:
            for part, result in zip(parts, pool.map(do, parts), strict=True):
                bar.update(part.stop - part.start)
                yield result
    finally:
        pool.shutdown(cancel_futures=True)
