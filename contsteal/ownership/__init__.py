"""What an owner can prove afterwards: dataset inference, watermarks, and how thieves hide."""

from contsteal.ownership import sslguard, watermark
from contsteal.ownership.inference import (
    Verdict,
    against_controls,
    dataset_inference,
    least_excess,
    least_gap,
    mixture_scores,
    proportion,
    welch,
)
from contsteal.ownership.obfuscation import OBFUSCATIONS

__all__ = [
    "OBFUSCATIONS", "Verdict", "against_controls", "dataset_inference", "least_excess", "least_gap",
    "mixture_scores", "proportion", "sslguard", "watermark", "welch",
]  # fmt: skip
