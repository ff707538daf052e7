"""The only way to query a victim: answers are counted, cached and defended, and have no gradients."""

import hashlib
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch
from safetensors.torch import save
from torch import Tensor, nn

from contsteal import Count, Natural, checkpoints, choice, dense, encoders, files, fitting, shown
from contsteal.encoders import as_uint8

LONGEST_NAME = 256  # characters of a user's name
ANSWERING = threading.RLock()  # held from the check of a budget to its bill
STORE_LIMIT = 1 << 30  # bytes of one victim's answers on disk; later answers are not stored


class BudgetExceeded(RuntimeError):
    """A request would need more distinct inputs than its user's budget; nothing was answered."""


class Defense(Protocol):
    """Anything that maps one user's answers (N, D) to the answers that leave."""

    def __call__(self, answers: Tensor, user: str) -> Tensor: ...


def named(user: str) -> str:
    """Return a user's name; ValueError where it is empty, unprintable or longer than 256 characters."""
    if not isinstance(user, str) or not 1 <= len(user) <= LONGEST_NAME or not user.isprintable():
        needed = f"a name of 1 to {LONGEST_NAME} printable characters"
        raise ValueError(f"user {user!r:.60}: {needed} is needed")
    return user


def finite(answers: Tensor, rows: int | None = None) -> Tensor:
    """Return answers (N, D) of floats, N = 0 included; ValueError for anything else, NaN and infinity.

    `rows` is the N that is needed, where it is known.
    """
    flat = dense(answers) and answers.ndim == 2 and answers.shape[1] > 0
    if not flat or rows not in (None, len(answers)):
        needed = f"a tensor ({'N' if rows is None else rows}, D) is needed, one row per input"
        raise ValueError(f"answers {shown(answers)}: {needed}")
    if not answers.is_floating_point():
        raise ValueError(f"answers are {answers.dtype}: vectors of floats are needed, not labels")
    if not answers.isfinite().all():
        row = int((~answers.isfinite().all(1)).nonzero()[0, 0])
        raise ValueError(
            f"the answer to input {row} of {len(answers)} holds NaN or infinity: nothing was "
            "answered; look at the victim's weights and at the defences before this one"
        )
    return answers


def _leaving(answers: Tensor, rows: int) -> Tensor:
    """Return answers (N, D), N = `rows`, as float32 without gradient; ValueError as `finite`."""
    return finite(finite(answers, rows).float()).detach()


@dataclass
class Account:
    """What one user was answered: distinct inputs, by content, and all answers."""

    seen: set[bytes] = field(default_factory=set)
    calls: int = 0

    @property
    def unique_inputs(self) -> int:
        return len(self.seen)


class Ledger:
    """The accounts of all users; `unique_inputs` and `calls` are sums over them."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}

    def account(self, user: str) -> Account:
        """Return the user's account, empty at first."""
        return self.accounts.setdefault(user, Account())

    @property
    def unique_inputs(self) -> int:
        return sum(a.unique_inputs for a in tuple(self.accounts.values()))

    @property
    def calls(self) -> int:
        return sum(a.calls for a in tuple(self.accounts.values()))


def digests(images: Tensor) -> list[bytes]:
    """Return one 16-byte content hash per uint8 image."""
    size = repr(tuple(images.shape[1:])).encode()
    parts = (part.cpu().contiguous().flatten(1).numpy() for part in images.split(4096))
    rows = (row for part in parts for row in part)
    return [hashlib.blake2b(row, digest_size=16, key=size).digest() for row in rows]


class AnswerStore:
    """Clean answers of one network on disk, by the request they were computed for.

    A request is a list of distinct inputs by digest. It is stored and found whole: an answer then never
    depends on what else a batch held, nor on which process came first. `folder` belongs to one network on
    one kind of machine; after `limit` bytes nothing more is stored.
    """

    def __init__(self, folder: Path, limit: int = STORE_LIMIT) -> None:
        self.folder, self.limit = folder, limit

    def get(self, names: Sequence[bytes]) -> Tensor | None:
        """Return the answers (N, D) in the order of `names`, or None where they are not stored.

        A damaged file, or one of another network or request, is moved aside: its answers are computed
        again.
        """
        file = self._file(names)
        if not file.exists():
            return None
        with suppress(checkpoints.CheckpointError, KeyError):
            tensors, header = checkpoints.read_safetensors(file)
            if header["seal"] == self._seal(file, tensors["answers"]):
                return tensors["answers"]
        remedy = "it is moved aside and computed again"
        warnings.warn(f"{file} does not hold this victim's answers: {remedy}", stacklevel=2)
        files.move_aside(file)
        return None

    def put(self, names: Sequence[bytes], answers: Tensor) -> None:
        """Store the answers to a request, unless the limit is reached."""
        answers, file = answers.cpu().contiguous(), self._file(names)
        data = save({"answers": answers}, metadata={"seal": self._seal(file, answers)})
        if self.size() + len(data) > self.limit:
            return
        with files.atomic(file) as partial:
            partial.write_bytes(data)

    def size(self) -> int:
        """Return how many bytes are stored."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))

    def _seal(self, file: Path, answers: Tensor) -> str:
        """Return a sha256 over the names of folder and file, which stand for the network and the request,
        and over the shape, the type and the bytes of the answers."""
        return files.digest([(f"{self.folder.name}/{file.name}", answers)])

    def _file(self, names: Sequence[bytes]) -> Path:
        return self.folder / f"{hashlib.sha256(b''.join(names)).hexdigest()[:32]}.safetensors"


class AnswerCache:
    """A frozen network that is never run twice on one input; share it between black boxes.

    `forwards` counts the images that the network was really run on in this process; `store` shares
    answers with other processes. Black boxes answer one request at a time, in all threads.
    """

    def __init__(self, net: nn.Module, store: AnswerStore | None = None) -> None:
        if not isinstance(net, nn.Module):
            kind = type(net).__name__
            raise ValueError(f"a victim is a torch.nn.Module or an AnswerCache, not of kind {kind}")
        self.net, self.store, self.forwards = net, store, 0
        self._row: dict[bytes, int] = {}
        self._rows = torch.empty(0)

    def __call__(self, images: Tensor, names: Sequence[bytes]) -> Tensor:
        """Return clean embeddings (N, D) in float32 of uint8 images with their `digests`."""
        new = {name: i for i, name in enumerate(names) if name not in self._row}
        if new:
            fresh, start = self._fresh(images, new), len(self._row)
            end = start + len(fresh)
            if start and fresh.shape[1] != self._rows.shape[1]:
                widths = f"{fresh.shape[1]} coordinates, but earlier ones {self._rows.shape[1]}"
                raise ValueError(f"these images have {widths}: send images of one size")
            if end > len(self._rows):  # doubling keeps the cost of growth linear
                grown = fresh.new_empty(max(end, 2 * len(self._rows)), fresh.shape[1])
                grown[:start] = self._rows[:start] if start else 0
                self._rows = grown
            self._rows[start:end] = fresh
            self._row |= {name: start + i for i, name in enumerate(new)}
        return self._rows[[self._row[name] for name in names]]

    def _fresh(self, images: Tensor, new: dict[bytes, int]) -> Tensor:
        """Read the answers to new inputs, or compute and store them."""
        if self.store and (stored := self.store.get(list(new))) is not None:
            return stored.to(encoders.device_of(self.net))
        answers = finite(encoders.embed(self.net, images[list(new.values())]), len(new))
        self.forwards += len(new)
        if self.store:
            self.store.put(list(new), answers)
        return answers


class BlackBox:
    """A victim behind an API: it answers, counts what it answered, and gives away nothing else.

    Args:
        net: the victim, or its `AnswerCache`, which several black boxes may share. Any module from uint8
            images (N, 3, H, W) to features (N, D) does.
        defenses: change every vector that leaves, in order.
        budget: distinct inputs (by content) that each user may send; None is unlimited.
        head: features (N, D) to logits (N, C), which `classify` uses.
        projector: features (N, D) to projections (N, P), which `project` gives.

    Attributes:
        ledger: what was answered: `ledger.unique_inputs` distinct images, `ledger.calls` answers in all,
            and `ledger.account(user)` has both of one user.
        budget: as given.

    Raises:
        ValueError: for a budget that is no whole number of at least 1, for what is no network, and for
            defences, a head or a projector that cannot be called.

    Example:
        >>> api = BlackBox(encoders.build("conv4"), budget=8)
        >>> answers = api.embed(torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
        >>> answers.shape, api.ledger.unique_inputs, api.ledger.calls
        (torch.Size([4, 128]), 1, 4)
    """

    def __init__(
        self,
        net: nn.Module | AnswerCache,
        defenses: Sequence[Defense] = (),
        budget: int | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
        projector: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        parts: list[object] = [part for part in (head, projector) if part is not None]
        parts += defenses if isinstance(defenses, Sequence) else [None]
        if not all(map(callable, parts)):
            raise ValueError(
                f"defenses={defenses!r:.60}, head={head!r:.60}, projector={projector!r:.60}: a list of "
                "defences is needed, and functions of tensors"
            )
        self._answers = net if isinstance(net, AnswerCache) else AnswerCache(net)
        self._defenses, self._head, self._projector = tuple(defenses), head, projector
        self.budget, self.ledger = fitting(budget, "budget", Count | None), Ledger()

    @torch.no_grad()
    def embed(self, images: Tensor, user: str = "adversary") -> Tensor:
        """Return embeddings (N, D) float32, defended, without gradients; padding changes D.

        Args:
            images: (N, 3, H, W), uint8 or floats in [0, 1], which are rounded to 8 bits.
            user: who is billed.

        Raises:
            ValueError: for what is no image or no user's name, and for NaN in an answer.
            BudgetExceeded, defenses.Refused: before any answer leaves.
        """
        return self._answer(images, user, None)

    @torch.no_grad()
    def classify(
        self,
        images: Tensor,
        answer: Literal["label", "posterior", "logits"] = "label",
        user: str = "adversary",
    ) -> Tensor:
        """Return labels (N,) int64, posteriors or raw logits (N, C) float32, defended.

        Defences act on the logits where these are the answer, else on the posterior.

        Args:
            images: (N, 3, H, W), uint8 or floats in [0, 1].
            answer: "label", "posterior" or "logits".
            user: who is billed.

        Raises:
            ValueError: where the victim has no head or does not give this answer; else as `embed`.

        Example:
            >>> api = BlackBox(encoders.build("conv4"), head=nn.Linear(128, 10))
            >>> api.classify(torch.zeros(4, 3, 32, 32), "posterior").shape
            torch.Size([4, 10])
        """
        choice(answer, "answer", ("label", "posterior", "logits"))
        head = self._head
        if head is None:
            raise ValueError(
                f"this API gives embeddings only, no {answer}s: build BlackBox with head=..., or "
                "use an attack on embeddings"
            )
        if answer == "logits":
            return self._answer(images, user, head)
        # Defences perturb: make rows non-negative with sum 1 again, uniform where nothing is left.
        values = self._answer(images, user, lambda x: finite(head(x), len(x)).softmax(1))
        values = values.clamp(min=0)
        values[values.sum(1) == 0] = 1
        posterior = values / values.sum(1, keepdim=True).clamp(min=1e-12)
        return posterior if answer == "posterior" else posterior.argmax(1)

    @torch.no_grad()
    def project(self, images: Tensor, user: str = "adversary") -> Tensor:
        """Return projections z = g(f(x)) (N, P) float32, defended: what the victim's loss compared.

        Args:
            images: (N, 3, H, W), uint8 or floats in [0, 1].
            user: who is billed.

        Raises:
            ValueError: where the provider does not give away its projector's output; else as `embed`.
        """
        if self._projector is None:
            raise ValueError(
                "this API gives no projections: build BlackBox with projector=..., or use an attack "
                "on embeddings; a victim that is supervised or ready has no projector"
            )
        return self._answer(images, user, self._projector)

    def require(self, count: int, user: str = "adversary") -> None:
        """Check that a user's budget has room for so many new distinct inputs, and bill nothing.

        Args:
            count: new distinct inputs.
            user: whose budget is meant.

        Raises:
            BudgetExceeded: where they would not fit.
        """
        count = fitting(count, "count", Natural)
        self._check_budget(self.ledger.account(named(user)).unique_inputs, count, user)

    def _check_budget(self, used: int, count: int, user: str) -> None:
        if self.budget is not None and used + count > self.budget:
            raise BudgetExceeded(
                f"user {user!r} needs {used + count} distinct inputs, and the budget is {self.budget} "
                f"({used} used): nothing was answered; send fewer images or views, or raise the budget"
            )

    def _answer(self, images: Tensor, user: str, head: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Check the budget, answer, and only then bill: a request that fails is not billed."""
        images = as_uint8(images)
        names = digests(images)
        with ANSWERING:  # nobody may spend what is checked here before it is billed
            account = self.ledger.account(named(user))
            self._check_budget(account.unique_inputs, len(set(names) - account.seen), user)
            answers = self._defended(self._answers(images, names), user, head)
            account.seen.update(names)
            account.calls += len(names)
        return answers

    def _defended(
        self, clean: Tensor, user: str, head: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Return what leaves in place of clean answers (N, D): a row of float32 for each of them."""
        answers = _leaving(head(clean), len(clean)) if head else clean
        width = answers.shape[1]
        for defense in self._defenses:  # what one has seen stays seen where a later one refuses
            answers = _leaving(defense(answers, user), len(clean))
        if head is not None and answers.shape[1] != width:
            made = f"defences made {width} classes into {answers.shape[1]} coordinates"
            raise ValueError(f"{made}: use padding for embeddings only")
        return answers
