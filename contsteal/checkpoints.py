"""Weights of other projects, imported into our encoders key by key.

They wrap the same ResNets and ViTs in other names: solo-learn (`backbone.`), lightly (`backbone.0.`
..., children by number), MoCo (`module.encoder_q.`), SimSiam (`module.encoder.`), the code of the
ICML 2022 paper (`backbone.`), torchvision and timm (plain).
"""

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

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


WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")  # around every key: DDP, compile, Lightning
# The trained encoder, first match first: MoCo and lightly's DINO keep two, and train this one.
ONLINE = ("encoder_q", "base_encoder", "query_backbone", "student_backbone", "backbone", "encoder")
COPIED = ("query_backbone.", "student_backbone.")  # beside these, `backbone.` is the slow copy
MOMENTUM = re.compile(r"encoder_k|(\w+_)?(momentum|teacher|target|key)(_\w+)?")
HEAD = re.compile(
    r"(\w+_)?(projector|projection|predictor|prediction|classifier|prototypes|queue|head|criterion)"
    r"(_\w+|\d+)?|fc|linear|heads|dummy_param|mask_token|decoder(_\w+)?"
)
CHILDREN = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")  # of a ResNet, in order


@dataclass(frozen=True)
class Report:
    """What an import took from a file, what it left out, and what the file could not say.

    `left_out` maps a reason to keys of the file; `sha256` is that of the file's bytes.
    """

    path: Path
    sha256: str
    layout: str
    used: int
    left_out: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        out = [f"{self.path} (sha256 {self.sha256}): {self.used} tensors from {self.layout}"]
        out += [f"left out, {why}: {some(keys)}" for why, keys in self.left_out.items()]
        return "\n".join([*out, *self.notes])


def _wrapper(keys: list[str]) -> str:
    """Return the wrappers that all keys begin with, one after another."""
    prefix = ""
    while found := [w for w in WRAPPERS if all(k.startswith(prefix + w) for k in keys)]:
        prefix += found[0]
    return prefix


def _rename(keys: list[str]) -> list[str]:
    """Return timm's names of a branch's keys: children by number, and CIFAR ResNets' shortcuts."""
    split = [k.partition(".") for k in keys]
    numbers = sorted({first for first, _, _ in split if first.isdecimal()}, key=int)
    parts = dict(zip(numbers, CHILDREN, strict=False))  # layers without weights have no number
    names = [parts.get(first, first) + dot + rest for first, dot, rest in split]
    return [n.replace(".shortcut.", ".downsample.") for n in names]


def _sort(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[str, dict[str, str], dict[str, tuple[str, ...]]]:
    """Return the prefix of the encoder, its keys by timm's names, and the others by reason.

    A key that is no part of the network and of no known other part goes under "unexpected".
    """
    outer = _wrapper(list(state))
    inner = {key.removeprefix(outer): key for key in state}
    online = next((f"{p}." for p in ONLINE if any(k.startswith(f"{p}.") for k in inner)), "")
    branch = [k for k in inner if k.startswith(online)]
    prefix = online + _wrapper([k.removeprefix(online) for k in branch])
    names = dict(zip(branch, _rename([k.removeprefix(prefix) for k in branch]), strict=True))
    used: dict[str, str] = {}
    rest: dict[str, list[str]] = {"momentum copy": [], "head": [], "unexpected": []}
    for short, key in inner.items():
        name = names.get(short, short)
        first = name.partition(".")[0]
        if short in names and name in own and name not in used:
            used[name] = key
        elif MOMENTUM.fullmatch(first) or (online in COPIED and first == "backbone"):
            rest["momentum copy"].append(key)
        else:
            rest["head" if HEAD.fullmatch(first) else "unexpected"].append(key)
    return outer + prefix, used, {why: tuple(keys) for why, keys in rest.items() if keys}


def _batch_norm(
    chosen: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors with statistics as timm keeps them, and notes on what was changed.

    Old files lack the counts of batches; lightly's split batch norm keeps k x C statistics.
    """
    counts = [k for k in own if k.endswith(".num_batches_tracked") and k not in chosen]
    split = {}
    for name, value in chosen.items():
        stem, _, kind = name.rpartition(".")
        size, weight = own[name].numel(), chosen.get(f"{stem}.weight", value)
        parts, odd = divmod(value.numel(), size)
        if kind.startswith("running_") and weight.numel() == size and parts > 1 and not odd:
            split[name] = value.view(parts, size).mean(0)  # what it does itself for eval mode
    notes = [f"{len(counts)} num_batches_tracked are not in the file: kept"] if counts else []
    notes += [f"{len(split)} statistics of split batch norm are averaged"] if split else []
    return {**chosen, **split, **{k: own[k] for k in counts}}, notes


def _hints(chosen: Mapping[str, Tensor], net: nn.Module) -> str:
    """Say which image_size or width of `encoders.build` would fit a file that does not."""
    told, shapes = [], {}
    for key, ours in net.backbone.state_dict().items():
        theirs = chosen.get(key, ours)
        if theirs.shape != ours.shape and theirs.ndim == ours.ndim:
            shapes[key] = theirs.shape, ours.shape
    theirs, ours = shapes.get("conv1.weight", ((), ()))
    if theirs[2:] != ours[2:]:
        size = "32 (up to 64 px)" if theirs[-1] == 3 else "224 (above 64 px)"
        told.append(f"resnet18, resnet34 and resnet50 have this stem at image_size: {size}")
    first, mine = shapes.get("layer1.0.conv1.weight", ((0,), (0,)))
    if theirs[:1] != ours[:1]:
        told.append(f"no width fits: at any width timm's stem has {ours[0]} channels")
    elif first[0] != mine[0]:
        told.append(f"width: {first[0] / 64:g} fits its channels")
    if "pos_embed" in shapes and isinstance(net.backbone, timm.models.VisionTransformer):
        (_, tokens, _), (_, here, _) = shapes["pos_embed"]
        side = max(0, tokens - here + net.backbone.patch_embed.num_patches) ** 0.5
        size = side * net.backbone.patch_embed.patch_size[0]
        told.append(f"image_size: {size:g} fits its tokens")
    if any(k.startswith("projection.") for k in net.state_dict()):
        told.append("an output layer cannot be imported: build without out_dim")
    return "".join(f"; {hint}" for hint in told)


def _unsaid(net: nn.Module) -> list[str]:
    """Say how the encoder treats images where a file of weights cannot."""
    mean, std = ([round(v, 4) for v in x.flatten().tolist()] for x in (net.mean, net.std))
    told = f"the file states no normalisation: the encoder uses mean {mean}, std {std}"
    stem = getattr(net.backbone, "conv1", None)
    if getattr(stem, "kernel_size", None) == (3, 3):
        told += f", and pads its stem by {stem.padding[0]} (solo-learn's CIFAR ResNets by 2)"
    return [f"{told}; where its project differs, build with inputs={{...}}"]


def _activation(prefix: str, used: Mapping[str, str], net: nn.Module) -> str:
    """Compare the ReLU behind the stem with a file that numbers its layers; "" where they agree.

    nn.Sequential numbers a ReLU too. Where lightly builds one from its own ResNet, whose ReLU is a
    function, the stem has none.
    """
    found = [used.get(k, "").removeprefix(prefix) for k in ("bn1.weight", "layer1.0.conv1.weight")]
    numbers = [int(n) for n in (key.partition(".")[0] for key in found) if n.isdecimal()]
    wanted = len(numbers) < 2 or numbers[1] - numbers[0] > 1
    if len(numbers) < 2 or wanted != isinstance(net.backbone.act1, nn.Identity):
        return ""
    has = "a ReLU" if wanted else "no ReLU"
    return f"by its numbers, its stem has {has}: build with inputs={{'relu': {wanted}}}"


def import_weights(path: Path, net: nn.Module) -> Report:
    """Fill the backbone of an `Encoder` from another project's file, every key accounted for.

    Heads and momentum copies are left out and reported. Errors: CheckpointError for a damaged file,
    Python objects in it, keys that are unknown, missing or misshapen; `net` is unchanged then.
    """
    state, table, beside = read_table(path)
    own = net.backbone.state_dict()
    prefix, used, rest = _sort(state, own)
    chosen, notes = _batch_norm({name: state[key] for name, key in used.items()}, own)
    odd = {k if k not in chosen else f"{k} twice": state[k] for k in rest.pop("unexpected", ())}
    own |= {k: v for k, v in net.state_dict().items() if not k.startswith("backbone.")}
    layout = f"{table or 'the top'}: {prefix}*"
    if told := misfit(own, chosen | odd) or _activation(prefix, used, net):
        raise CheckpointError(
            f"{path} ({layout}) does not fit {net.spec}: {told}{_hints(chosen, net)}"
        )
    net.backbone.load_state_dict(chosen)
    if "momentum copy" in rest:
        notes.append(f"the file holds two encoders: {prefix}* is the trained one, and was taken")
    rest |= {"not weights": tuple(beside)} if beside else {}
    with path.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    return Report(path, sha, layout, len(used), rest, (*notes, *_unsaid(net)))
