"""A victim's answers on disk: one notebook's are the next one's, and each worker's."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from contsteal import runs

CODE = ("backbones", "encoders")  # a change of one computes the answers again
LIMIT = 1 << 30  # bytes of one victim's answers; what comes later is computed where it is needed


class Shelf:
    """Clean answers of one network, kept by the request they were computed for, up to `limit` bytes.

    A request is a list of distinct inputs by digest. It is kept and found whole: an answer then never
    depends on what else a batch held, nor on which process came first.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit

    @classmethod
    def of(cls, victim: str, machine: Sequence[str]) -> "Shelf":
        """Return the shelf of a victim by its `encoders.identity`, on what rounds as `machine` does."""
        made_by = {"victim": victim, "on": list(machine), "code": runs.sources(*CODE)}
        return cls(runs.runs_dir() / "answers" / runs.key(made_by))

    def get(self, names: Sequence[bytes]) -> Tensor | None:
        """Return the answers (N, D) in the order of `names`, or None where they are not kept.

        A damaged file is moved aside: its answers are computed again.
        """
        file = self._file(names)
        try:
            return load_file(file)["answers"]
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, OSError):
            runs.move_aside(file)
            return None

    def put(self, names: Sequence[bytes], answers: Tensor) -> None:
        """Keep the answers to a request, unless the shelf is full."""
        data = save({"answers": answers.cpu().contiguous()})
        if self.bytes() + len(data) > self.limit:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with runs.atomic(self._file(names)) as partial:
            partial.write_bytes(data)

    def bytes(self) -> int:
        """Return how much is kept."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))

    def _file(self, names: Sequence[bytes]) -> Path:
        return self.folder / f"{hashlib.sha256(b''.join(names)).hexdigest()[:32]}.safetensors"
