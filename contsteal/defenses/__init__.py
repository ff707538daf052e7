"""What a provider does to answers before they leave, per user and in order.

A defence maps answers (N, D) of one user to those that leave, of the same shape but for padding.
Defences compose by being listed: `[Normalise(), Rounding(1)]` rounds unit vectors. What a defence
remembers of its users is pickled with it, and so outlives a restart.
"""

import re
from collections.abc import Callable

from contsteal import choice
from contsteal.defenses import b4b, detectors, perturbation
from contsteal.defenses.b4b import *  # noqa: F403 each module says what it offers
from contsteal.defenses.detectors import *  # noqa: F403
from contsteal.defenses.perturbation import *  # noqa: F403
from contsteal.defenses.state import Described, PerUser
from contsteal.victim import Defense

__all__ = ["DEFENSES", "Defense", "Described", "PerUser", "build"]
__all__ += [name for module in (perturbation, b4b, detectors) for name in module.__all__]

# Every defence by its class's name: "top-k" is TopK.
DEFENSES: dict[str, Callable[..., Defense]] = {
    re.sub("(?<=[a-z])(?=[A-Z])", "-", name).lower(): globals()[name]
    for name in __all__[5:]
    if issubclass(globals()[name], Described)
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
    make = DEFENSES[choice(name, "defence", DEFENSES)]
    try:
        return make(**options)
    except TypeError as error:
        raise ValueError(f"defence {name!r} does not take {options}: {error}") from error
