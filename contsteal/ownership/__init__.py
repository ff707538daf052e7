"""What an owner can prove afterwards: dataset inference, watermarks, and how thieves hide."""

from contsteal.ownership import sslguard, watermark
from contsteal.ownership.inference import (
    Rate,
    Verdict,
    against_controls,
    dataset_inference,
    false_positives,
    least_excess,
    least_gap,
    mixture_scores,
    mixture_test,
    proportion,
    welch,
)
from contsteal.ownership.obfuscation import OBFUSCATIONS

__all__ = [
    "OBFUSCATIONS", "Rate", "Verdict", "against_controls", "dataset_inference", "false_positives",
    "least_excess", "least_gap", "mixture_scores", "mixture_test", "proportion", "sslguard",
    "watermark", "welch",
]  # fmt: skip
