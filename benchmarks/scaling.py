"""What more workers cost and gain: sweeps of tiny attacks on a Dask cluster of this machine.

Run it with nothing else on the machine: `python -m benchmarks.scaling`. Three kinds of runs: attacks of
the smoke profile, which compute; naps, which only wait, so that all time beyond them is overhead; and
naps of which one kills its worker. On a GPU, `--share ENCODER` finds how many surrogates fill a card
instead, and keeps it in the card's record, where sweeps read it.
"""

import argparse
import contextlib
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import psutil
from distributed import LocalCluster
from matplotlib.figure import Figure

from benchmarks import record
from contsteal.lab import artifacts, sweeps
from contsteal.lab.experiment import Lab
from contsteal.lab.sweeps import Job, Row
from contsteal.paper import figures, plots

NAP = 0.25  # seconds
BAR = 100.0  # milliseconds of overhead per run
QUERIES, LENGTH = 2048, {"steps": 500, "batch": 128}  # of an attack that shares a card
GAIN = 1.1  # what twice as many surrogates on a card must gain to be worth their memory


def nap(lab: Lab, flag: str = "") -> list[Row]:
    """Wait for NAP seconds; where `flag` names a file that is not there, make it and kill the worker."""
    time.sleep(NAP)
    if flag:
        with contextlib.suppress(FileExistsError), open(flag, "x"):
            os.kill(os.getpid(), signal.SIGKILL)
    return []


def attacks(count: int, first: int) -> list[Job]:
    """Return so many attacks, each with a seed of its own from `first` on."""
    return [Job(sweeps.steal_rows, ("embedding", 32, first + k, ("shapes",))) for k in range(count)]


def seconds(lab: Lab, jobs: Sequence[Job]) -> float:
    """Return how long jobs take from the first to the last."""
    start = time.perf_counter()
    sweeps.run(lab, jobs)
    return time.perf_counter() - start


def measure(counts: Sequence[int], runs: int) -> list[Row]:
    """Return a row for each kind of runs and number of workers, which grows; 0 is this process."""
    plain = Job(nap, (), trains=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ["CONTSTEAL_RUNS"] = home
        lab, deadly = Lab("smoke"), Job(nap, (str(Path(home, "killed")),), trains=True)
        sweeps.run(lab, attacks(1, first=runs))  # the victim, and code into memory
        rows = [_row("attacks", 0, runs, seconds(lab, attacks(runs, 0)))]
        with LocalCluster(0, threads_per_worker=1, dashboard_address=None) as cluster:
            os.environ[sweeps.SCHEDULER] = cluster.scheduler_address
            for count in counts:
                cluster.scale(count)
                cluster.wait_for_workers(count)
                sweeps.run(lab, [plain] * count)  # each imports the package and builds its lab
                kinds = {"naps": [plain] * runs, "attacks": attacks(runs, count * runs + 1)}
                if count == 2:
                    kinds["naps and a lost worker"] = [
                        *kinds["naps"][1:9],
                        deadly,
                        *kinds["naps"][9:],
                    ]
                for kind, jobs in kinds.items():
                    rows.append(_row(kind, count, runs, seconds(lab, jobs)))
                with cluster.get_client() as client:
                    rows[-1]["worker_mb"] = max(client.run(_memory).values())
        del os.environ[sweeps.SCHEDULER]
    return rows


def _memory() -> float:
    return psutil.Process().memory_info().rss / 1e6


def _row(kind: str, workers: int, runs: int, taken: float) -> Row:
    each = 1000 * (taken * workers / runs - NAP) if kind == "naps" else float("nan")
    return {"runs of": kind, "workers": workers, "runs": runs, "seconds": taken,
            "overhead_ms": each, "worker_mb": float("nan"), "load": os.getloadavg()[0]}  # fmt: skip


def draw(table: pd.DataFrame) -> Figure:
    """Draw the overhead of a run, and the memory of a worker, against the number of workers."""
    fig, axes = plots.canvas(1, 2, height=2.4)
    (left, right), most = axes[0], table["worker_mb"].max()
    naps, held = table[table["runs of"] == "naps"], table[table["worker_mb"].notna()]
    left.plot(naps["workers"], naps["overhead_ms"], marker="o", color="#0072B2")
    left.axhline(BAR, color="#555555", linestyle=":")
    left.annotate("at most", (1, BAR), xytext=(0, 2), textcoords="offset points", fontsize=6)
    left.set(ylabel="ms per run", ylim=(0, 1.2 * BAR), title="Overhead of a run that only waits")
    right.plot(held["workers"], held["worker_mb"], marker="o", color="#0072B2")
    right.set(ylabel="MB", ylim=(0, 1.2 * most), title="Memory of the largest worker")
    for ax in (left, right):
        ax.set(xscale="log", xlabel="workers")
        ax.set_xticks(naps["workers"], [str(n) for n in naps["workers"]])
        ax.set_xticks([], minor=True)
    return fig


def fills(rates: dict[int, float]) -> int:
    """Return how many surrogates fill a card, by the runs a second of 1, 2, 4, ... of them at once."""
    best = 1
    for count, rate in sorted(rates.items()):
        if rate < GAIN * rates[best] and count > 1:
            break
        best = count
    return best


def share(encoder: str, most: int) -> None:
    """Measure how many surrogates of a kind fill a card, and keep it in the record of the card.

    It ends at the first number that gains too little: more of them could also exceed its memory.
    """
    rates: dict[int, float] = {}
    seeds = itertools.count()
    with tempfile.TemporaryDirectory() as home:
        os.environ["CONTSTEAL_RUNS"] = home
        for count in (2**k for k in range(most.bit_length())):
            changes = {"surrogate": {"encoder": encoder, "lr": 1e-3, **LENGTH}, "workers": count}
            lab = Lab("smoke", query_images=QUERIES, **changes)
            given = [("embedding", QUERIES, next(seeds), ()) for _ in range(3 * count)]
            jobs = [Job(sweeps.steal_rows, one) for one in given]
            sweeps.run(lab, jobs[:count])  # processes, and the victim
            rates[count] = 2 * count / seconds(lab, jobs[count:])
            print(f"{count} at once: {rates[count]:.3f} attacks a second", flush=True)
            if fills(rates) < count:
                break
    work = f"{sweeps.SHARING}, {encoder}"
    row = record.row("sharing", work, record.US, "surrogates", [float(fills(rates))])
    stored = record.rows_of(record.read(record.path()))
    record.store("sharing", [r for r in stored if r.part == "sharing" and r.work != work] + [row])
    print(f"{fills(rates)} fill the card: sweeps of {encoder} start as many for each, from now on")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and store a table and its figure; return 1 where a run has too much overhead."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--runs", type=int, default=64, help="runs of a sweep (64)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--share", metavar="ENCODER", help="how many surrogates fill this GPU")
    parser.add_argument("--most", type=int, default=16, help="surrogates on a GPU at most (16)")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder to write")
    given = parser.parse_args(arguments)
    os.environ.pop(sweeps.SCHEDULER, None)
    if given.share:
        cards = sweeps.cards(Lab("smoke"))
        if not cards:
            parser.error("--share measures a GPU, and there is none here: a CPU has a run per core")
        if len(cards) > 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = cards[0]  # all that the processes will see
        share(given.share, given.most)
        return 0
    table = figures.as_read(pd.DataFrame(measure(given.workers, given.runs)))
    print(table.round(3).to_string(index=False))
    stamp = artifacts.stamp("benchmark", "shapes", "0")
    figures.save(draw(table), given.out, f"scaling_{record.device()}", table, stamp)
    return int(table["overhead_ms"].max() > BAR)


if __name__ == "__main__":
    raise SystemExit(main())
