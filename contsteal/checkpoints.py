"""Weights of other projects, imported into our encoders key by key.

They wrap the same ResNets and ViTs in other names: solo-learn (`backbone.`), lightly (`backbone.0.` ...,
children by number), MoCo (`module.encoder_q.`), SimSiam (`module.encoder.`), the code of the ICML 2022
paper (`backbone.`), torchvision and timm (plain).
"""

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from contsteal import dense, files

TABLES = ("state_dict", "model")  # where a checkpoint keeps its weights, if not at the top
LISTED = 12  # keys named in an error
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


class CheckpointError(ValueError):
    """A weight file that is damaged, altered, or of another architecture."""


class Report(NamedTuple):
    """The record of an import: the file, where in it the encoder stands, and what became of its keys.

    Attributes:
        path, sha256: the file.
        layout: where in it the encoder stands.
        used: how many tensors were taken.
        left_out: reasons, and the keys that each left out.
        notes: what was changed, and what the file does not state.
    """

    path: Path
    sha256: str
    layout: str
    used: int
    left_out: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.path} (sha256 {self.sha256}): {self.used} tensors from {self.layout}"]
        lines += [f"left out, {reason}: {_listed(keys)}" for reason, keys in self.left_out.items()]
        return "\n".join([*lines, *self.notes])


def import_weights(path: Path, net: Any) -> Report:
    """Fill the backbone of an encoder from another project's file, every key accounted for.

    Heads and momentum copies are left out and reported.

    Args:
        path: a file of `torch.save` or safetensors.
        net: an `encoders.Encoder`; unchanged after an error.

    Returns:
        The record of the import.

    Raises:
        CheckpointError: for a damaged file, Python objects, and keys unknown, missing or misshapen.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from contsteal import encoders
        >>> net = encoders.build("resnet18", width=0.125)
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "weights.pth"
        ...     torch.save({"state_dict": net.backbone.state_dict()}, path)
        ...     import_weights(path, net).used == len(net.backbone.state_dict())
        True
    """
    table, place, others = read_table(path)
    own = net.backbone.state_dict()
    match = _match(table, own)
    weights, notes = _batch_norm({name: table[key] for name, key in match.used.items()}, own)
    layout = f"{place or 'the top'}: {match.prefix}*"
    if problem := _problem(weights, match.unexpected, net) or _activation(match, net.backbone):
        raise CheckpointError(f"{path} ({layout}) does not fit {net.spec}: {problem}")
    net.backbone.load_state_dict(weights)
    left_out = match.left_out | ({"not weights": others} if others else {})
    if "momentum copy" in left_out:
        notes += [f"the file holds two encoders: {match.prefix}* is the trained one, and was taken"]
    mean, std = ([round(v, 4) for v in x.flatten().tolist()] for x in (net.mean, net.std))
    note = f"the file states no normalisation: the encoder uses mean {mean}, std {std}"
    stem = getattr(net.backbone, "conv1", None)
    if isinstance(stem, nn.Conv2d) and stem.kernel_size == (3, 3):
        note += f", and pads its stem by {stem.padding[0]} (solo-learn's CIFAR ResNets by 2)"
    notes.append(f"{note}; where its project differs, build with inputs={{...}}")
    return Report(path, files.sha256(path), layout, len(match.used), left_out, tuple(notes))


def read_table(path: Path) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Return the weights in a file, the entry that holds them ("" for the top), and the other entries.

    Raises CheckpointError for a file without weights, and for NaN.
    """
    tree: Any = read_safetensors(path)[0] if path.suffix == ".safetensors" else unpickle(path)
    tree = tree if isinstance(tree, dict) else {type(tree).__name__: None}
    name = next((name for name in TABLES if isinstance(tree.get(name), dict)), "")
    weights = tree[name] if name else tree
    is_table = all(isinstance(k, str) and dense(v) for k, v in weights.items())
    if not weights or not is_table:
        raise CheckpointError(
            f"{path} holds {_listed(map(str, tree)) or 'nothing'}, and no table of weights at the "
            f"top or under {' or '.join(TABLES)}: save the weights there"
        )
    if bad := [k for k, v in weights.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise CheckpointError(f"{path} holds NaN or infinity in {_listed(bad)}: fetch it again")
    return weights, name, tuple(str(k) for k in tree if name and k != name)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file, or raise CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise CheckpointError(f"{path} cannot be read ({error}): fetch it again") from error


def write_sealed(path: Path, state: Mapping[str, Tensor], **facts: Any) -> None:
    """Write tensors and JSON-like facts about them as safetensors, with a `seal` over both."""
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    header = files.sealed({"facts": json.dumps(facts), "sha256": files.digest(state.items())})
    with files.atomic(path) as partial:
        partial.write_bytes(save(state, metadata=header))  # a full disk is an OSError here


def read_sealed(path: Path, fact: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `write_sealed` wrote, `fact` among it; CheckpointError for any other file."""
    state, header = read_safetensors(path)
    if files.sealed(header) != header or header["sha256"] != files.digest(state.items()):
        raise CheckpointError(f"{path} was altered after it was saved: save or fetch it again")
    facts = json.loads(header["facts"])
    if fact not in facts:
        raise CheckpointError(f"{path} holds no {fact}: save it again")
    return state, facts


def unpickle(path: Path) -> Any:
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
        line = str(error).partition("\n")[0] or type(error).__name__
        if "weights_only" in line:  # torch's advice to read it unsafely
            line = "no table of weights as torch.save writes it"
        raise CheckpointError(f"{path} cannot be read ({line}): fetch it again") from None


class Match(NamedTuple):
    """The encoder's prefix in a file, timm's names to its keys, and the other keys.

    `left_out` maps a reason to known parts; `unexpected` are keys of no known part.
    """

    prefix: str
    used: dict[str, str]
    left_out: dict[str, tuple[str, ...]]
    unexpected: tuple[str, ...]


def _match(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Match:
    """Find the encoder `own`, under timm's names, among a file's keys."""
    outer = _wrapper(list(weights))
    inner = {key.removeprefix(outer): key for key in weights}
    online = next((f"{p}." for p in ONLINE if any(k.startswith(f"{p}.") for k in inner)), "")
    branch = [k for k in inner if k.startswith(online)]
    prefix = online + _wrapper([k.removeprefix(online) for k in branch])
    names = dict(zip(branch, _timm_names([k.removeprefix(prefix) for k in branch]), strict=True))
    used: dict[str, str] = {}
    others: dict[str, list[str]] = {"momentum copy": [], "head": [], "unexpected": []}
    for short, key in inner.items():
        name = names.get(short, "")
        if name in own and name not in used:
            used[name] = key
            continue
        first = (name or short).partition(".")[0]
        if MOMENTUM.fullmatch(first) or (online in COPIED and first == "backbone"):
            others["momentum copy"].append(key)
        else:
            others["head" if HEAD.fullmatch(first) else "unexpected"].append(key)
    unexpected = tuple(others.pop("unexpected"))
    left_out = {reason: tuple(keys) for reason, keys in others.items() if keys}
    return Match(outer + prefix, used, left_out, unexpected)


def _wrapper(keys: list[str]) -> str:
    """Return the wrappers that all keys begin with, one after another."""
    prefix = ""
    while shared := [w for w in WRAPPERS if all(k.startswith(prefix + w) for k in keys)]:
        prefix += shared[0]
    return prefix


def _timm_names(keys: list[str]) -> list[str]:
    """Return timm's names of a branch's keys: children by number, and CIFAR ResNets' shortcuts."""
    split = [k.partition(".") for k in keys]
    numbers = sorted({first for first, _, _ in split if first.isdecimal()}, key=int)
    children = dict(zip(numbers, CHILDREN, strict=False))  # a layer without weights has no number
    names = [children.get(first, first) + dot + rest for first, dot, rest in split]
    return [n.replace(".shortcut.", ".downsample.") for n in names]


def _batch_norm(
    chosen: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors with statistics as timm keeps them, and notes on what was changed."""
    counts = [k for k in own if k.endswith(".num_batches_tracked") and k not in chosen]  # old files
    averaged = {}  # lightly's split batch norm keeps k x C statistics
    for name, value in chosen.items():
        layer, _, kind = name.rpartition(".")
        size, weight = own[name].numel(), chosen.get(f"{layer}.weight", value)
        parts, rest = divmod(value.numel(), size)
        if kind.startswith("running_") and weight.numel() == size and parts > 1 and not rest:
            averaged[name] = value.view(parts, size).mean(0)  # as it does itself in eval mode
    notes = [f"{len(counts)} num_batches_tracked are not in the file: kept"] if counts else []
    notes += [f"{len(averaged)} statistics of split batch norm are averaged"] if averaged else []
    return {**chosen, **averaged, **{k: own[k] for k in counts}}, notes


def _listed(keys: Iterable[str]) -> str:
    """Join the first dozen of sorted keys, and count the others."""
    keys = sorted(keys)
    rest = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return ", ".join(keys[:LISTED]) + rest


def misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Return the keys that are missing, unexpected or misshapen in `state`; "" where all fit."""
    shapes = {k: (tuple(state[k].shape), tuple(own[k].shape)) for k in own.keys() & state.keys()}
    misshapen = sorted(k for k, (theirs, ours) in shapes.items() if theirs != ours)
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    problems = [f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in kinds.items() if keys]
    for key in misshapen[:1]:
        problems.append("{} is {} in the file and {} in the network".format(key, *shapes[key]))
    return "; ".join(problems)


def _problem(weights: Mapping[str, Tensor], unexpected: Iterable[str], net: Any) -> str:
    """Return what of the file does not fit the network, and what to look at; "" where all fits."""
    if isinstance(net.projection, nn.Linear):
        return "an output layer cannot be imported: build without out_dim"
    own = net.backbone.state_dict()
    extra = {f"{k} twice" if k in own else k: torch.empty(0) for k in unexpected}
    problem = misfit(own, {**weights, **extra})
    if "misshapen" not in problem:
        return problem
    hint = "image_size decides a ResNet's stem and a transformer's tokens, width its channels"
    return f"{problem}; {hint}"


def _activation(match: Match, backbone: Any) -> str:
    """Compare the ReLU behind the stem with a file that numbers its layers; "" where they agree."""
    keys = [match.used.get(k, "") for k in ("bn1.weight", "layer1.0.conv1.weight")]
    children = [key.removeprefix(match.prefix).partition(".")[0] for key in keys]
    if not all(child.isdecimal() for child in children):
        return ""
    # nn.Sequential numbers a ReLU too. Where lightly builds one from its own ResNet, whose ReLU is a
    # function, the stem has none.
    relu = int(children[1]) - int(children[0]) > 1
    if relu != isinstance(backbone.act1, nn.Identity):
        return ""
    stem = "a ReLU" if relu else "no ReLU"
    return f"by its numbers, its stem has {stem}: build with inputs={{'relu': {relu}}}"
