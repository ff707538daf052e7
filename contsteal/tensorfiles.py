"""Files of tensors, read without running anything that is in them."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

TABLES = ("state_dict", "model")  # where a checkpoint keeps its weights, if not at the top
LISTED = 12  # keys named in an error


class CheckpointError(ValueError):
    """A weight file that is damaged, altered, or of another architecture."""


def some(keys: Iterable[str]) -> str:
    """Join the first dozen of sorted keys, and count the others."""
    keys = sorted(keys)
    rest = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return ", ".join(keys[:LISTED]) + rest


def misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Name the keys that are missing, unexpected or misshapen in `state`; "" where all fit."""
    shapes = {k: (tuple(state[k].shape), tuple(own[k].shape)) for k in own.keys() & state.keys()}
    misshapen = sorted(k for k, (theirs, ours) in shapes.items() if theirs != ours)
    kinds = (own.keys() - state.keys(), state.keys() - own.keys(), misshapen)
    problems = zip(("missing", "unexpected", "misshapen"), kinds, strict=True)
    told = [f"{len(keys)} {kind}: {some(keys)}" for kind, keys in problems if keys]
    for key in misshapen[:1]:
        told.append("{} is {} in the file and {} in the network".format(key, *shapes[key]))
    return "; ".join(told)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file, or raise CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): train or fetch it again"
        ) from error


def _unpickle(path: Path) -> object:
    """Read tensors and plain values, and argparse's record of options; refuse all other classes."""
    try:
        if zipfile.is_zipfile(path):  # torch does not compare the checksums
            with zipfile.ZipFile(path) as archive:
                if (broken := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"the checksum of {broken} is wrong")
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the reader
        named = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and named:
            raise CheckpointError(
                f"{path} holds Python objects ({named[1]}), which may run code when they are read: "
                "nothing was loaded. If you trust it, load it in the project that wrote it, and "
                "save its weights alone: torch.save({'state_dict': net.state_dict()}, 'new.pth')"
            ) from None
        line = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} cannot be read ({line}): fetch it again") from error


def read_table(path: Path) -> tuple[dict[str, Tensor], str, list[str]]:
    """Return the table of weights in any file, where in it that stands, and what stands beside it.

    Errors: CheckpointError for a damaged file, Python objects in it, no such table, or NaN.
    """
    tree = read_safetensors(path)[0] if path.suffix == ".safetensors" else _unpickle(path)
    tree = tree if isinstance(tree, dict) else {type(tree).__name__: None}
    at = next((name for name in TABLES if isinstance(tree.get(name), dict)), "")
    state = tree[at] if at else tree
    if not state or not all(isinstance(k, str) and torch.is_tensor(v) for k, v in state.items()):
        raise CheckpointError(
            f"{path} holds {some(map(str, tree)) or 'nothing'}: a table of weights alone is "
            f"looked for at the top, and under {' and '.join(TABLES)}; save it as one of these"
        )
    if wrong := [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise CheckpointError(f"{path} holds NaN or infinity in {some(wrong)}: fetch it again")
    return state, at, [str(k) for k in tree if at and k != at]
