"""Encoders as artifacts: written with their history, read back with their sha256."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from contsteal import encoders, heads, loop, runs
from contsteal.heads import Head

# Modules whose source decides an artifact's content: a change of one computes it again.
IMAGES = ("blocks", "data", "folders", "packed", "scaled", "seeds", "synthetic", "torchsets")
NETS = ("backbones", "checkpoints", "encoders", "tensorfiles")
LEARNING = ("augment", "experiment", "heads", "losses", "loop", "methods", "randaugment", "trained")
TRAINING = (*IMAGES, *NETS, *LEARNING, "replay", "speed")
DEFENDING = ("b4b", "defenses", "detection", "disguise", "poisoning", "prada", "remember", "work")
ATTACKING = (
    "adaptive",
    "ask",
    "evaluate",
    "pretrain",
    "recipes",
    "recreate",
    "shelf",
    "steal",
    "victim",
)
STEALING = (*TRAINING, *DEFENDING, *ATTACKING)
SCORING = (*IMAGES, *NETS, "evaluate", "experiment")
HEAD = "projector.safetensors"
UNTRAINED = ("epoch", "loss", "lr", "seconds")  # columns of a history without epochs


@dataclass(frozen=True)
class Trained:
    """An encoder read back from its artifact, its history per epoch, its `encoders.identity`, the seconds
    it took, what it cost in queries, and the projector that its own loss was computed behind."""

    encoder: encoders.Encoder
    history: pd.DataFrame
    sha256: str
    seconds: float
    queries: dict[str, int]
    projector: Head | None = None


def read(folder: Path, device: torch.device) -> Trained:
    """Return what `write` has left in an artifact's folder, the encoder in eval mode on `device`."""
    net = encoders.load(folder / "encoder.safetensors").to(device).eval()
    manifest, head = runs.read_json(folder / runs.MANIFEST) or {}, folder / HEAD
    return Trained(
        net, pd.read_csv(folder / "history.csv"), encoders.identity(net),
        manifest["seconds"], runs.read_json(folder / "queries.json") or {},
        heads.read(head).to(device) if head.exists() else None,
    )  # fmt: skip


def write(
    folder: Path,
    net: encoders.Encoder,
    history: list[loop.Row],
    queries: dict[str, int],
    projector: Head | None = None,
) -> None:
    """Write an encoder, its history (empty for one not trained here), its queries and projector."""
    encoders.save(net, folder / "encoder.safetensors", epochs=len(history))
    table = pd.DataFrame(history) if history else pd.DataFrame(columns=list(UNTRAINED))
    table.to_csv(folder / "history.csv", index=False)
    runs.write_json(folder / "queries.json", queries)
    if projector is not None:
        projector.write(folder / HEAD)
