"""What a provider does to answers before they leave, per user and in order.

A defence maps answers (N, D) of one user to those that leave, of the same shape but for padding.
Defences compose by being listed: `[Normalise(), Rounding(1)]` rounds unit vectors. What a defence
remembers of its users outlives a restart by `state_dict` and `load_state_dict`.
"""

from collections.abc import Callable

from contsteal.defenses.b4b import B4B, UserTransform
from contsteal.defenses.detectors import Prada, ProofOfWork, Refused, SimilarQueries
from contsteal.defenses.perturbation import (
    GaussianNoise,
    Normalise,
    PredictionPoisoning,
    Rounding,
    TopK,
)
from contsteal.defenses.state import Described, PerUser
from contsteal.victim import Defense

__all__ = [
    "B4B", "DEFENSES", "Defense", "Described", "GaussianNoise", "Normalise", "PerUser", "Prada",
    "PredictionPoisoning", "ProofOfWork", "Refused", "Rounding", "SimilarQueries", "TopK",
    "UserTransform", "build",
]  # fmt: skip

DEFENSES: dict[str, Callable[..., Defense]] = {
    "normalise": Normalise,
    "gaussian-noise": GaussianNoise,
    "rounding": Rounding,
    "top-k": TopK,
    "user-transform": UserTransform,
    "b4b": B4B,
    "similar-queries": SimilarQueries,
    "prada": Prada,
    "proof-of-work": ProofOfWork,
    "prediction-poisoning": PredictionPoisoning,
}


def build(name: str, **options: object) -> Defense:
    """Build a defence by its name in `DEFENSES`.

    Args:
        name: of the defence.
        **options: its parameters.

    Returns:
        The defence, for `victim.BlackBox(net, defenses=[...])`.

    Raises:
        ValueError: for an unknown name, and for parameters that the defence does not take.

    Example:
        >>> build("rounding", decimals=1)
        Rounding(1)
    """
    if not isinstance(name, str) or name not in DEFENSES:
        raise ValueError(f"unknown defence {name!r}: choose one of {', '.join(DEFENSES)}")
    try:
        return DEFENSES[name](**options)
    except TypeError as error:
        raise ValueError(f"defence {name!r} does not take {options}: {error}") from error
