"""What each defence adds to the time of an answer, and what it remembers of a user.

Run it with nothing else on the machine: `python benchmarks/defenses.py`. The victim is a ResNet-18 at
32 px, of 512 dimensions, in requests of 256 images. The bars are shares of the victim's own time.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import date

from contsteal import data, defenses, encoders, files
from contsteal.lab import artifacts, provider

BARS = {"B4B": 0.10, "": 0.05}  # by the beginning of the defence's name
CHAINS = [
    [defenses.Normalise()],
    [defenses.GaussianNoise(1.0)],
    [defenses.GaussianNoise(1.0, mean=10.0)],
    [defenses.Rounding(1)],
    [defenses.TopK(50)],
    [defenses.UserTransform("affine+pad+shuffle")],
    [defenses.B4B()],
    [defenses.PredictionPoisoning(1.0)],
    [defenses.SimilarQueries(0.5)],
    [defenses.Prada()],
    [defenses.ProofOfWork()],
]


def result() -> str:
    """Return where this device's result belongs."""
    return f"defenses_{artifacts.device().type}.csv"


def bar(name: str) -> float:
    """Return the share of the victim's time that a defence may add."""
    return next(value for start, value in BARS.items() if name.startswith(start))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, tell, store, and return how many defences miss their bar (as an exit code, at most 1)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    net = encoders.build("resnet18", 32, seed=0).to(artifacts.device()).eval()
    images = data.load("shapes", n=given.images).images.to(artifacts.device())
    table = provider.price(net, CHAINS, images, rounds=given.rounds)
    table = table.assign(bar=[bar(name) for name in table.index])
    table = table.assign(holds=table["added"] <= table["bar"])
    print(table.round(5).to_string())
    stamp = {
        "device": artifacts.processor(),
        "date": date.today().isoformat(),
        "images": given.images,
    }
    folder = artifacts.ROOT / "benchmarks" / "results"
    with files.atomic(folder / result()) as partial:
        table.reset_index().assign(**stamp).to_csv(partial, index=False, float_format="%.6g")
    return int(not table["holds"].all())


if __name__ == "__main__":
    sys.exit(main())
