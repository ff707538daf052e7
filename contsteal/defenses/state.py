"""What stateful defences share: one small record per user that outlives a restart, and checks."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from contsteal.seeds import derive
from contsteal.victim import named

Record = TypeVar("Record")


@dataclass
class Answered:
    """How often a user was answered: what a defence needs to draw anew each time."""

    calls: int = 0


def whole(value: int, told: str, least: float = -math.inf, most: float = math.inf) -> int:
    """Return a parameter as an int; ValueError, beginning with `told`, for another type or range.

    NumPy's integers become Python's: draws and results are kept by how a seed is written.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= most:
        span = f" from {least} to {most}" if most < math.inf else f" of at least {least}"
        raise ValueError(
            f"{told}={value!r}: a whole number{span if least > -math.inf else ''} is needed"
        )
    return int(value)


def real(value: float, told: str) -> float:
    """Return a parameter as a float; ValueError, beginning with `told`, for what is no number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{told}={value!r}: a number is needed")
    return float(value)


def earlier(kept: Tensor, points: Tensor) -> Tensor:
    """Return the rows kept of a user, on the device of new ones (N, D); ValueError for another D."""
    if not len(kept):
        return points[:0]
    if kept.shape[1] != points.shape[1]:
        raise ValueError(
            f"this user's earlier answers have {kept.shape[1]} coordinates, these {points.shape[1]}: "
            "give embeddings, posteriors and logits a defence each"
        )
    return kept.to(points)


def identity(function: Callable[[Tensor], Tensor]) -> str:
    """Name a function by where it stands, a module by its layers and weights, for a `repr`.

    Results are kept by the repr of their defences, so ValueError where two functions could have one
    name: lambdas, functions inside functions, methods, and objects without a name.
    """
    if isinstance(function, nn.Module):
        digest = hashlib.sha256(repr(function).encode())
        for name, values in function.state_dict().items():
            digest.update(name.encode() + values.detach().cpu().contiguous().numpy().tobytes())
        return f"{type(function).__name__}:{digest.hexdigest()[:16]}"
    name = getattr(function, "__qualname__", "<no name>")
    if "<" in name or hasattr(function, "__self__"):  # a method acts by its object's state, too
        raise ValueError(
            f"{function!r} has no name of its own, which results are kept by: give a function at "
            "the top of a module, or a torch.nn.Module"
        )
    return f"{function.__module__}.{name}"


def _packed(value: int | float | list | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().clone()
    one = next(iter(value), 0) if isinstance(value, list) else value
    return torch.tensor(value, dtype=torch.float64 if isinstance(one, float) else None)


def _joined(parts: list[Tensor]) -> Tensor:
    """Return all values in one row; what is empty has no type that the others should take."""
    full = [part.flatten() for part in parts if part.numel()]
    return torch.cat(full) if full else torch.empty(0)


def _shapes(parts: list[Tensor]) -> Tensor:
    """Return (U, 2) shapes of at most two dimensions, -1 where there is none."""
    return torch.tensor([[*p.shape, -1, -1][:2] for p in parts], dtype=torch.int64).view(-1, 2)


def _parted(joined: Tensor, shapes: Tensor, users: int, name: str) -> list[Tensor]:
    """Undo `_joined`; ValueError where values, shapes and users do not belong together."""
    sizes = shapes.abs().prod(1).tolist()
    if len(shapes) != users or sum(sizes) != len(joined):
        raise ValueError(
            f"the state has {len(shapes)} users and {len(joined)} values of {name!r}, needed are "
            f"{users} and {sum(sizes)}: it is damaged, save it again"
        )
    dims = [[size for size in shape if size >= 0] for shape in shapes.tolist()]
    return [part.view(d) for part, d in zip(joined.split(sizes), dims, strict=True)]


class PerUser(Generic[Record]):
    """A defence that remembers a dataclass of numbers, lists and tensors (N,) or (N, D) of each user.

    Users share nothing. `state_dict` holds tensors only, so that safetensors can keep it.
    """

    record: type[Record]

    def __init__(self) -> None:
        self._users: dict[str, Record] = {}

    def _of(self, user: str) -> Record:
        """Return what is remembered of a user, to be changed in place."""
        if named(user) not in self._users:
            self._users[user] = self.record()
        return self._users[user]

    def _seen(self, user: str) -> Record:
        """Return what is remembered of a user, to be read: who never asked leaves no trace."""
        return self._users.get(user) or self.record()

    def forget(self, user: str) -> None:
        """Forget a user: the verdict, and all that led to it."""
        self._users.pop(user, None)

    def size(self, user: str) -> int:
        """Return the bytes that are remembered of a user, the name not counted."""
        mine = self._seen(user)
        return sum(_packed(getattr(mine, f.name)).nbytes for f in fields(mine))

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is remembered of all users, joined: two tensors a field, however many users.

        One tensor per user would not do: safetensors reads no header of 10^5 users' fields.
        """
        names = "\n".join(self._users).encode()  # names are printable: none holds a line break
        state = {
            "defence": torch.tensor(derive(repr(self))),
            "users": torch.from_numpy(np.frombuffer(names, np.uint8).copy()),
        }
        for f in fields(self.record):
            parts = [_packed(getattr(mine, f.name)) for mine in self._users.values()]
            state |= {f.name: _joined(parts), f"{f.name}, shapes": _shapes(parts)}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace what is remembered by a `state_dict` of an equal defence.

        Errors: ValueError where the defence or its parameters differ, or something is missing.
        """
        if "defence" not in state or int(state["defence"]) != derive(repr(self)):
            raise ValueError(
                f"the state was not saved by {self!r}: build the defence with the parameters and "
                "the seed it had when it was saved"
            )
        wanted = [f.name for f in fields(self.record)]
        known = {"defence", "users", *wanted, *(f"{name}, shapes" for name in wanted)}
        if missing := known ^ state.keys():
            raise ValueError(
                f"the state lacks, or should not hold, {min(missing)!r}: save it again"
            )
        users = state["users"].numpy().tobytes().decode()
        users = users.split("\n") if users else []
        found = [_parted(state[n], state[f"{n}, shapes"], len(users), n) for n in wanted]
        self._users = {
            user: self._read(dict(zip(wanted, mine, strict=True)))
            for user, *mine in zip(users, *found, strict=True)
        }

    def _read(self, saved: dict[str, Tensor]) -> Record:
        mine = self.record()
        for name, value in saved.items():
            plain = not isinstance(getattr(mine, name), Tensor)
            setattr(mine, name, value.tolist() if plain else value.clone())
        return mine
