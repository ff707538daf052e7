"""Measure speed, side by side with peers: `python -m benchmarks`, or only some parts of it."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from benchmarks import bars, record, report

# From the shortest to the longest; a part is a module with `measure(tiny) -> rows`.
PARTS = (
    "losses",
    "probe",
    "augmentation",
    "training",
    "stealing",
    "startup",
    "gpu",
    "forms",
    "growth",
    "fidelity",
    "attack",
    "demo",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts, print each change against what was stored, store it; MISSED for a missed bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
                        help=f"some of {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--tiny", action="store_true",
                        help="sizes that test the code; stored in $CONTSTEAL_RESULTS alone")  # fmt: skip
    given = parser.parse_args(arguments)
    old = record.rows_of(record.read(record.path()))
    for part in given.only:
        rows = importlib.import_module(f"benchmarks.{part}").measure(given.tiny)
        print("\n".join(report.changes(old, rows)), flush=True)
        if rows and record.is_stored(given.tiny):
            record.store(part, rows)
    if record.is_stored(given.tiny):
        report.write()
    if given.tiny:
        return 0
    on = "cpu" if record.device() == "cpu" else "cuda"
    short = bars.missed(record.rows_of(record.read(record.path())), on)
    for bar in short:
        print(f"misses its bar of {bar.asked}: {bar.text}")
    return bars.MISSED if short else 0


if __name__ == "__main__":
    sys.exit(main())
