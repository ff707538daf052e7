"""What defences share: a description by their parameters, checks of these, and a record per user."""

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from contsteal import Checked, files
from contsteal.seeds import generator
from contsteal.victim import named

# ------------------------------------------------------------------------- parameters


def identity(module: object) -> str:
    """Name a `torch.nn.Module` by its layers and weights.

    ValueError for a function, of which two could share a name, and so a stored result.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"{module!r} has no name to store results under: give a torch.nn.Module")
    weights = files.digest(module.state_dict().items())
    return f"{type(module).__name__}:{files.key([repr(module), weights])}"


class Described(Checked):
    """A defence whose `repr`, `label` and `key` follow from its constructor's parameters.

    A subclass keeps each parameter in an attribute of the same name, and needs no more than these and
    `__call__(answers, user)`. Dataclasses refuse, with a ValueError, what their annotations exclude.

    Example:
        >>> class Clip(Described):
        ...     def __init__(self, limit: float) -> None:
        ...         self.limit = limit
        ...     def __call__(self, answers: Tensor, user: str) -> Tensor:
        ...         return answers.clamp(-self.limit, self.limit)
        >>> Clip(0.5), Clip(0.5)(torch.tensor([[1.0, -2.0]]), "user")
        (Clip(limit=0.5), tensor([[ 0.5000, -0.5000]]))
    """

    title: str = ""  # the label's beginning; "{bits}" is replaced by that parameter
    optional: ClassVar[tuple[str, ...]] = ("seed",)  # left out of `repr` at their defaults
    positional: ClassVar[tuple[str, ...]] = ()  # written without their name in `repr`

    def parameters(self) -> dict[str, Any]:
        """Return the values of the parameters by name, modules as their `identity`."""
        values = {name: getattr(self, name) for name in self._defaults()}
        return {k: identity(v) if callable(v) else v for k, v in values.items()}

    @property
    def label(self) -> str:
        """The name in tables: title and parameters other than the defaults, without the seed."""
        title, values = self.title or type(self).__name__, self.parameters()
        defaults = self._defaults()
        inside = [name for name in values if name == "seed" or f"{{{name}}}" in title]
        shown = [f"{k} {v}" for k, v in values.items() if k not in inside and v != defaults[k]]
        return ", ".join([title.format(**values), *shown])

    @property
    def key(self) -> str:
        """The name in caches: module, class and every parameter."""
        values = ", ".join(f"{name}={value!r}" for name, value in self.parameters().items())
        return f"{type(self).__module__}.{type(self).__qualname__}({values})"

    def __repr__(self) -> str:
        values, defaults = self.parameters(), self._defaults()
        shown = [
            repr(value) if name in self.positional else f"{name}={value!r}"
            for name, value in values.items()
            if name not in self.optional or value != defaults[name]
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _defaults(self) -> dict[str, Any]:
        return {k: v.default for k, v in inspect.signature(type(self)).parameters.items()}


# ---------------------------------------------------------------------------- memory


@dataclass
class Answered:
    """How often a user was answered: what a defence needs to draw anew each time."""

    calls: int = 0


def fresh_draws(record: Answered, purpose: str, seed: int, user: str) -> torch.Generator:
    """Return the generator for a user's next answer, a new one in each call, and count the call."""
    draws = generator(purpose, seed, user, record.calls)
    record.calls += 1
    return draws


R = TypeVar("R")


class PerUser(Described, Generic[R]):
    """A defence that remembers a `record` of each user; users share nothing.

    To outlive a restart it is pickled, with its parameters and all records: by `pickle.dumps`.
    Subclasses name their record, a dataclass of numbers, lists of numbers and tensors (N,) or (N, D), and
    change what `_of(user)` returns.
    """

    record: type[R]

    @cached_property
    def _users(self) -> dict[str, R]:
        return {}

    def _of(self, user: str) -> R:
        """Return a user's record, to be changed in place; ValueError for an invalid name."""
        return self._users.setdefault(named(user), self.record())

    def _seen(self, user: str) -> R:
        """Return a user's record, to be read: an unknown user's is empty and not kept."""
        return self._users.get(user) or self.record()

    def forget(self, user: str) -> None:
        """Delete a user's record, a detector's verdict included."""
        self._users.pop(user, None)

    def size(self, user: str) -> int:
        """Return the bytes of a user's record, without the name."""
        values = vars(self._seen(user)).values()
        return sum((v if isinstance(v, Tensor) else np.asarray(v)).nbytes for v in values)
