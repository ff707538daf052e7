"""Image encoders: build by name, save, load, and embed images in eval mode.

An encoder takes images (N, 3, H, W), uint8 or float in [0, 1], normalises them itself and returns
features (N, D).
"""

import difflib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

CIFAR_STEM = ("resnet18", "resnet34", "resnet50")  # 3 x 3 first convolution up to 64 px
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class CheckpointError(ValueError):
    """A weight file that is damaged, altered, or of another architecture."""


class Encoder(nn.Module):
    """A backbone with its input normalisation and, where asked for, a linear output layer."""

    def __init__(self, backbone: nn.Module, out_dim: int | None, spec: dict[str, object]) -> None:
        super().__init__()
        self.backbone, self.spec = backbone, spec
        width = int(backbone.num_features)
        self.projection = nn.Identity() if out_dim in (None, width) else nn.Linear(width, out_dim)
        self.dim = width if out_dim is None else out_dim
        config = timm.data.resolve_model_data_config(backbone)
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
    seed: int = 0,
) -> Encoder:
    """Build the encoder `name`: a CIFAR-stem ResNet up to 64 px, else any timm model.

    `width` scales the channels of a ResNet's stages. `out_dim` appends a linear layer where the
    features have another dimension. Weights are drawn from `seed` alone. Errors: ValueError for a
    name that timm does not know (with the nearest ones) or a width that does not apply.
    """
    check(name, width)
    options = {} if width == 1.0 else {"channels": _channels(name, width)}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs too
        backbone = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
        if name in CIFAR_STEM and image_size <= 64:
            if pretrained:
                raise ValueError(
                    f"{name} at {image_size} px has a CIFAR stem: no pretrained weights fit"
                )
            channels = backbone.conv1.out_channels
            backbone.conv1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
            nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
            backbone.maxpool = nn.Identity()
        spec = {"name": name, "image_size": image_size, "width": width, "out_dim": out_dim}
        return Encoder(backbone, out_dim, spec).to(memory_format=torch.channels_last)


def check(name: str, width: float = 1.0) -> None:
    """Raise ValueError for a name that timm does not know (with the nearest) or an unfit width."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4)
        raise ValueError(f"unknown encoder {name!r}: nearest names are {', '.join(near) or 'none'}")
    if width != 1.0:
        _channels(name, width)


def _channels(name: str, width: float) -> tuple[int, ...]:
    if "resnet" not in name or name.startswith("test_"):
        raise ValueError(f"width={width} of {name}: only ResNets have a width; leave it at 1.0")
    channels = tuple(int(c * width) for c in (64, 128, 256, 512))
    if width <= 0 or min(channels) < 8 or any(c % 8 for c in channels):
        raise ValueError(f"width={width} of {name}: 64 x width must be a multiple of 8")
    return channels


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 over names, shapes and bytes of named tensors, in name order."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        value = tensor.detach().cpu().contiguous()
        total.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _seal(sha: str, spec: str) -> str:
    return hashlib.sha256(f"{sha} {spec}".encode()).hexdigest()


def save(net: Encoder, path: Path, **metadata: str | int | float) -> str:
    """Write weights as safetensors with their architecture and `metadata`; return their sha256."""
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    sha = digest(state.items())
    spec = json.dumps(net.spec)
    header = {k: str(v) for k, v in metadata.items()}
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
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): train or fetch it again"
        ) from error
    sha = digest(state.items())
    if header.get("sha256") != sha or header.get("seal") != _seal(sha, header.get("spec", "")):
        raise CheckpointError(f"{path} does not have the sha256 it was saved with: it was altered")
    net = build(**json.loads(header["spec"])) if into is None else into
    own = net.state_dict()
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "misshapen": sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape),
    }
    if any(problems.values()):
        told = "; ".join(f"{len(v)} {k}: {', '.join(v[:4])}" for k, v in problems.items() if v)
        raise CheckpointError(f"{path} is {header['spec']}, which does not fit {net.spec}: {told}")
    net.load_state_dict(state)
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
    images = as_uint8(images)
    modes, device = [(m, m.training) for m in net.modules()], next(net.parameters()).device
    net.eval()
    try:
        parts = [net(part.to(device)).float() for part in images.split(batch)]
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(parts)
