"""A reproducible companion to Cont-Steal (Sha et al., CVPR 2023) and to defences against it.

Importing this package loads none of its modules: `from contsteal import losses, steal, victim`. What they
share are the checks of parameters below.
"""

import operator
import sys
from collections.abc import Iterable
from dataclasses import fields
from math import inf
from numbers import Integral, Real
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

__version__ = "0.1.0"

LIMITS = {
    "least": ("of at least", operator.ge),
    "most": ("of at most", operator.le),
    "above": ("above", operator.gt),
    "below": ("below", operator.lt),
}
Natural = Annotated[int, ("least", 0)]
Count = Annotated[int, ("least", 1)]
Batch = Annotated[int, ("least", 2)]
Share = Annotated[float, ("least", 0), ("most", 1)]
Seed = Annotated[int, ("least", -(2**63)), ("most", 2**63 - 1)]  # what torch takes
Positive = Annotated[float, ("above", 0)]
NotNegative = Annotated[float, ("least", 0)]


def number(value: Any, name: str, kind: type = float, /, **limits: float) -> Any:
    """Return a parameter as a finite float, or an int, within LIMITS; ValueError with its `name`."""
    numeric = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    inside = numeric and all(LIMITS[word][1](value, bound) for word, bound in limits.items())
    largest = sys.float_info.max if isinstance(value, int) else inf  # 10**400 is no float
    if not inside or not abs(value) <= largest or abs(value) == inf:
        span = " and ".join(f"{LIMITS[word][0]} {bound:g}" for word, bound in limits.items())
        needed = f"a {'whole' if kind is int else 'finite'} number {span}".strip()
        raise ValueError(f"{name}={value!r:.60}: {needed} is needed")
    return kind(value)


def choice(value: Any, name: str, known: Iterable[str]) -> str:
    """Return a parameter that is one of the `known` words; ValueError lists them otherwise."""
    words = list(known)
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"unknown {name} {value!r:.60}: choose one of {', '.join(words)}")
    return value


def fitting(value: Any, name: str, hint: Any) -> Any:
    """Return a parameter as its annotation says: a number, a word of a Literal, a bool, a text, a tuple
    of these, or None.

    Raises ValueError, with its `name`, for any other value; other annotations allow everything.
    """
    kind, *others = get_args(hint) if NoneType in get_args(hint) else (hint,)
    if value is None and others:
        return None
    base = getattr(kind, "__origin__", kind)  # float of Annotated[float, limits]
    if base in (int, float):
        return number(value, name, base, **dict(getattr(kind, "__metadata__", ())))
    if base is Literal:
        return choice(value, name, get_args(kind))
    if get_origin(kind) is tuple:  # of any length: tuple[int, ...]
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name}={value!r:.60}: a list is needed")
        return tuple(fitting(part, name, get_args(kind)[0]) for part in value)
    if base in (bool, str) and not isinstance(value, base):
        needed = "True or False" if base is bool else "a text"
        raise ValueError(f"{name}={value!r:.60}: {needed} is needed")
    return value


class Checked:
    """A dataclass whose fields are `fitting` their annotations, or refused with a ValueError."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            name = f"{type(self).__name__} {field.name}"
            value = fitting(getattr(self, field.name), name, field.type)
            object.__setattr__(self, field.name, value)


def dense(value: Any) -> bool:
    """Return whether this is a tensor of real numbers: none that is sparse, nested or "meta"."""
    odd = ("is_meta", "is_nested", "is_quantized")
    real = str(getattr(value, "layout", "")) == "torch.strided" and not value.dtype.is_complex
    return real and not any(getattr(value, name) for name in odd)


def shown(value: Any) -> str:
    """Return what an error says of a tensor, its shape and type; of anything else, what it is."""
    kind = f"of kind {type(value).__name__}"
    return f"{tuple(value.shape)} {value.dtype}" if dense(value) else kind
