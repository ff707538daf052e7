"""The forms of a SimCLR step, as in benchmarks/gpu.py, at other encoders and batches."""

from dataclasses import replace

from benchmarks import gpu, record
from benchmarks.record import US, Row
from contsteal import loop
from contsteal.lab import artifacts

# 32 images leave a GPU idle between launches; ResNet-34 is the larger surrogate of `paper`.
POINTS = (("resnet18", 128), ("resnet18", 32), ("resnet34", 256))
TINY = (("test_resnet", 4),)


def measure(tiny: bool) -> list[Row]:
    """Return the rows of a CUDA GPU; without one none, or where `tiny` those of a tiny encoder."""
    if artifacts.device().type != "cuda" and not tiny:
        return []
    rows: list[Row] = []
    for encoder, batch in TINY if tiny else POINTS:
        size = (gpu.TINY if tiny else gpu.GPU)._replace(encoder=encoder, batch=batch)
        found, pays = gpu.forms(size)
        name = f"{loop.PAYS}, {encoder}, batch {batch}"
        rows += [replace(row, part="forms") for row in found]
        rows.append(record.row("forms", name, US, "steps", [pays]))
    return rows
