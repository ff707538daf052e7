"""Image encoders: build by name, save, load, and embed images in eval mode.

An encoder takes images (N, 3, H, W), uint8 or float in [0, 1], normalises them itself and returns
features (N, D).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from contsteal import backbones, checkpoints, tensorfiles
from contsteal.backbones import CIFAR_STEM, DownloadError, check
from contsteal.tensorfiles import CheckpointError

__all__ = [
    "CIFAR_STEM", "MEAN", "STD", "CheckpointError", "DownloadError", "Encoder", "as_uint8",
    "build", "check", "describe", "digest", "embed", "evaluating", "identity", "load", "save",
]  # fmt: skip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """A backbone with its input normalisation and, where asked for, a linear output layer.

    `licence` is that of its weights; `report` says what an import of foreign weights did.
    """

    def __init__(self, backbone: nn.Module, out_dim: int | None, spec: dict[str, object]) -> None:
        super().__init__()
        self.backbone, self.spec = backbone, spec
        self.licence, self.report = "own weights", None
        width = int(getattr(backbone, "head_hidden_size", backbone.num_features))
        self.projection = nn.Identity() if out_dim in (None, width) else nn.Linear(width, out_dim)
        self.dim = width if out_dim is None else out_dim
        config = timm.data.resolve_model_data_config(backbone) | spec.get("inputs", {})
        for name, value in (("mean", config["mean"]), ("std", config["std"])):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images {tuple(images.shape)}: an encoder takes (N, 3, H, W)")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}: give uint8, or floats in [0, 1]")
        x = images.to(self.mean.dtype)
        x = x / 255 if images.dtype == torch.uint8 else x
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return self.projection(self.backbone(x))  # (N, D)


def build(
    name: str,
    image_size: int = 32,
    *,
    width: float = 1.0,
    out_dim: int | None = None,
    pretrained: bool = False,
    weights: Path | str | None = None,
    inputs: Mapping[str, object] | None = None,
    seed: int = 0,
) -> Encoder:
    """Build the encoder `name`: a CIFAR-stem ResNet up to 64 px, else any timm model.

    `width` scales a ResNet's stages; `out_dim` appends a linear layer where it differs. Weights are
    drawn from `seed` alone, or timm's (`pretrained`), or a file's; `inputs` (mean, std, padding and
    relu of the CIFAR stem) are its project's. Errors: ValueError, CheckpointError, DownloadError.
    """
    if pretrained and weights is not None:
        raise ValueError(f"weights={weights} and pretrained exclude each other: give one of them")
    spec = {"name": name, "image_size": image_size, "width": width, "out_dim": out_dim}
    spec |= {"inputs": dict(inputs)} if inputs else {}  # absent by default, as in older files
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs too
        net = _draw(spec, pretrained).to(memory_format=torch.channels_last)
    return net if weights is None else _fill(net, Path(weights))


def _draw(spec: dict[str, object], pretrained: bool) -> Encoder:
    """Create the encoder of `spec` with weights from torch's generator, and try it on shapes."""
    name, size, inputs = spec["name"], spec["image_size"], spec.get("inputs", {})
    check(name, spec["width"])
    backbones.check_inputs(name, size, inputs)
    stem = {k: v for k, v in inputs.items() if k in backbones.STEM}
    backbone = backbones.create(name, size, spec["width"], pretrained=pretrained, **stem)
    net = Encoder(backbone, spec["out_dim"], spec)
    if pretrained:
        net.licence = backbone.pretrained_cfg.get("license") or "not stated"
    if not isinstance(backbone, timm.models.ResNet):  # which run at any size
        try:
            _gmac(net)
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            line = str(error).partition("\n")[0]
            raise ValueError(
                f"{name} does not run at {size} px ({line}): set another image_size, such as its "
                f"own, `image_size: {backbones.own_size(name)}`"
            ) from error
    return net


def _fill(net: Encoder, path: Path) -> Encoder:
    """Read a file of `save`, or of another project, into the encoder."""
    if path.suffix == ".safetensors" and "seal" in tensorfiles.read_safetensors(path)[1]:
        return load(path, net)
    net.report, net.licence = checkpoints.import_weights(path, net), "not stated"
    return net


def describe(net: Encoder) -> dict[str, object]:
    """Return what a table of encoders needs to say about one.

    `parameters` are in millions, `features` their dimension, `image_size` in pixels; `gmac` counts
    10^9 multiply-adds of products and convolutions per image. `licence` is that of the weights.
    """
    return {
        "name": net.spec["name"],
        "licence": net.licence,
        "parameters": sum(p.numel() for p in net.parameters()) / 1e6,
        "features": net.dim,
        "image_size": net.spec["image_size"],
        "mean": [round(v, 6) for v in net.mean.flatten().tolist()],  # held in float32
        "std": [round(v, 6) for v in net.std.flatten().tolist()],
        "gmac": _gmac(net),
    }


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Hold the network in eval mode, then put every layer back into its own mode."""
    modes = [(m, m.training) for m in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _gmac(net: Encoder) -> float:
    """Count 10^9 multiply-adds on one image of the encoder's size, from shapes alone."""
    weights = {k: v.to("meta") for k, v in (*net.named_parameters(), *net.named_buffers())}
    image = torch.zeros(1, 3, net.spec["image_size"], net.spec["image_size"], device="meta")
    with evaluating(net), torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(net, weights, (image,))
    return counter.get_total_flops() / 2e9  # it counts a multiply-add as two


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 over names, shapes and bytes of named tensors, in name order."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        value = tensor.detach().cpu().contiguous()
        total.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def identity(net: Encoder) -> str:
    """Return what tells an encoder from others: weights, architecture, and how it reads its inputs."""
    spec = json.dumps(net.spec, sort_keys=True)
    return hashlib.sha256(f"{digest(net.state_dict().items())} {spec}".encode()).hexdigest()


def _seal(sha: str, spec: str) -> str:
    return hashlib.sha256(f"{sha} {spec}".encode()).hexdigest()


def save(net: Encoder, path: Path, **metadata: str | int | float) -> str:
    """Write weights as safetensors with their architecture and `metadata`; return their sha256."""
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    sha = digest(state.items())
    spec = json.dumps(net.spec)
    header = {"licence": net.licence} | {k: str(v) for k, v in metadata.items()}
    header |= {"spec": spec, "sha256": sha, "seal": _seal(sha, spec)}
    partial = path.with_suffix(".partial")
    partial.write_bytes(serialize(state, metadata=header))  # a full disk is an OSError here
    partial.replace(path)
    return sha


def load(path: Path, into: Encoder | None = None) -> Encoder:
    """Read an encoder written by `save`; every key must fit, and the hash must be the stored one.

    Without `into` the architecture is built as the file names it. Errors: CheckpointError naming
    the file and what is missing, unexpected, misshapen or altered.
    """
    state, header = tensorfiles.read_safetensors(path)
    sha = digest(state.items())
    if header.get("sha256") != sha or header.get("seal") != _seal(sha, header.get("spec", "")):
        raise CheckpointError(f"{path} does not have the sha256 it was saved with: it was altered")
    net = build(**json.loads(header["spec"])) if into is None else into
    told = tensorfiles.misfit(net.state_dict(), state)
    if json.loads(header["spec"]).get("inputs") != json.loads(json.dumps(net.spec)).get("inputs"):
        told = told or "the same weights with other inputs are another network"
    if told:
        raise CheckpointError(f"{path} is {header['spec']}, which does not fit {net.spec}: {told}")
    net.load_state_dict(state)
    net.licence = header.get("licence", net.licence)
    return net


def as_uint8(images: Tensor) -> Tensor:
    """Return images as a service receives them: 8 bits a channel, (N, 3, H, W).

    Floats must lie in [0, 1] and are rounded to 8 bits. Errors: ValueError for another shape,
    dtype or range, or no image at all.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"images {tuple(images.shape)}: at least one of shape (3, H, W) is needed")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}: give uint8, or floats in [0, 1]")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise ValueError(
            f"float images range from {low:.3g} to {high:.3g}: they must lie in [0, 1]; "
            "do not normalise them, the encoder does"
        )
    return (images * 255).round().to(torch.uint8)


@torch.no_grad()
def embed(net: nn.Module, images: Tensor, batch: int = 512) -> Tensor:
    """Return features (N, D) in float32, the network in eval mode and left in its former mode.

    Errors: ValueError for images of another shape, dtype or range than `as_uint8` takes.
    """
    images, device = as_uint8(images), next(net.parameters()).device
    with evaluating(net):
        return torch.cat([net(part.to(device)).float() for part in images.split(batch)])
