"""What stateful defences share: one small record per user that outlives a restart, and checks."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from contsteal.seeds import derive

Record = TypeVar("Record")


@dataclass
class Answered:
    """How often a user was answered: what a defence needs to draw anew each time."""

    calls: int = 0


def finite(answers: Tensor) -> Tensor:
    """Return answers (N, D) as they are; ValueError where one holds NaN or infinity."""
    if not answers.isfinite().all():
        row = int((~answers.isfinite().all(1)).nonzero()[0, 0])
        raise ValueError(
            f"the answer to input {row} of {len(answers)} holds NaN or infinity: nothing was "
            "answered; look at the victim's weights and at the defences before this one"
        )
    return answers


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


class PerUser(Generic[Record]):
    """A defence that remembers a dataclass of numbers, lists and tensors of each user.

    Users share nothing. `state_dict` holds tensors only, so that safetensors can keep it.
    """

    record: type[Record]

    def __init__(self) -> None:
        self._users: dict[str, Record] = {}

    def _of(self, user: str) -> Record:
        """Return what is remembered of a user, to be changed in place."""
        if user not in self._users:
            self._users[user] = self.record()
        return self._users[user]

    def _seen(self, user: str) -> Record:
        """Return what is remembered of a user, to be read: who never asked leaves no trace."""
        return self._users.get(user) or self.record()

    def forget(self, user: str) -> None:
        """Forget a user: the verdict, and all that led to it."""
        self._users.pop(user, None)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is remembered of all users, as tensors by `field/user`."""
        state = {"defence": torch.tensor(derive(repr(self)))}
        for user, mine in self._users.items():
            state |= {f"{f.name}/{user}": _packed(getattr(mine, f.name)) for f in fields(mine)}
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
        saved = {key: value for key, value in state.items() if key != "defence"}
        wanted = [f.name for f in fields(self.record)]
        users = dict.fromkeys(key.partition("/")[2] for key in saved)
        if missing := {f"{name}/{user}" for user in users for name in wanted} ^ saved.keys():
            raise ValueError(
                f"the state lacks, or should not hold, {min(missing)!r}: save it again"
            )
        self._users = {u: self._read({n: saved[f"{n}/{u}"] for n in wanted}) for u in users}

    def _read(self, saved: dict[str, Tensor]) -> Record:
        mine = self.record()
        for name, value in saved.items():
            plain = not isinstance(getattr(mine, name), Tensor)
            setattr(mine, name, value.tolist() if plain else value.clone())
        return mine
