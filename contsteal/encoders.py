"""Image encoders: build by name, save, load, and embed images in eval mode.

An encoder takes images (N, 3, H, W), uint8 or float in [0, 1], normalises them itself and returns
features (N, D). timm is imported where it is used, since that takes seconds.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from contsteal import Count, Positive, Seed, checkpoints, choice, dense, fitting, number, shown
from contsteal.checkpoints import CheckpointError
from contsteal.files import digest

CIFAR_STEM = ("resnet18", "resnet34", "resnet50")  # 3 x 3 first convolution up to 64 px
INPUTS = {"mean": tuple[float, ...], "std": tuple[Positive, ...]}  # how a project treats images
# In these projects' CIFAR stems differ.
STEM_INPUTS = {"padding": Annotated[int, ("least", 0), ("most", 64)], "relu": bool}
RESAMPLED = ("timm.models.vision_transformer", "timm.models.eva")  # DINOv2, MAE; DINOv3
SMALL = "conv4"  # the one network that is not timm's


class DownloadError(RuntimeError):
    """Pretrained weights that could not be fetched."""


class Conv4(nn.Sequential):
    """Four 3 x 3 convolutions at stride 2 and the mean over what is left: fast at 32 px on a CPU."""

    # As timm's networks say how they shrink images and how they are given them.
    feature_info = ({"reduction": 16},)
    pretrained_cfg: ClassVar = {"mean": (0.5,) * 3, "std": (0.25,) * 3}

    def __init__(self, *channels: int) -> None:
        layers: list[nn.Module] = []
        for a, b in pairwise((3, *channels)):
            convolution = nn.Conv2d(a, b, 3, 2, 1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.num_features = channels[-1]


class Encoder(nn.Module):
    """A backbone with its input normalisation and, where asked for, a linear output layer.

    It takes images (N, 3, H, W), uint8 or floats in [0, 1], and returns features (N, D); made by `build`.

    Attributes:
        spec: the arguments of `build` that describe it.
        dim: dimension D of the features.
        licence: of the weights.
        report: the record of an import of foreign weights, else None.
    """

    backbone: Any  # a module; its layers are those of its architecture
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, out_dim: int | None, spec: dict[str, Any]) -> None:
        super().__init__()
        self.backbone, self.spec = backbone, spec
        self.licence = "own weights"
        self.report: checkpoints.Report | None = None
        width = int(getattr(backbone, "head_hidden_size", self.backbone.num_features))
        self.dim = width if out_dim is None else out_dim
        self.projection = nn.Identity() if out_dim is None else nn.Linear(width, self.dim)
        config = self.backbone.pretrained_cfg | spec.get("inputs", {})
        for name in ("mean", "std"):
            value = torch.tensor(config[name]).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape) if isinstance(images, Tensor) else ()
        if len(shape) != 4 or shape[1] != 3 or 0 in shape[2:]:
            raise ValueError(f"images {shown(images)}: an encoder takes (N, 3, H, W)")
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
    inputs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Encoder:
    """Build an encoder: `conv4` for CPUs, a ResNet with a CIFAR stem up to 64 px, or any timm model.

    Args:
        name: "conv4", or of the architecture in timm, with a tag for weights.
        image_size: side in pixels. Up to 64, ResNet-18, 34 and 50 get CIFAR's stem (3 x 3, stride 1, no
            pooling); networks that take images of one size are made for this one.
        width: factor on the channels of conv4 or of a ResNet's stages.
        out_dim: features' dimension of a linear layer that is appended; None appends none.
        pretrained: take timm's weights.
        weights: a file of `save`, or of another project.
        inputs: how that project treats images: mean, std, and padding and relu of the CIFAR stem.
        seed: of the first weights, which depend on nothing else.

    Returns:
        The encoder, images (N, 3, H, W) to features (N, D), on the CPU and in train mode.

    Raises:
        ValueError: for unknown names, values of another type, and for what does not fit together.
        CheckpointError: for a file that does not fit.
        DownloadError: for pretrained weights that cannot be had.

    Example:
        >>> net = build("conv4", image_size=32, out_dim=64)
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 64])
    """
    if pretrained and weights is not None:
        raise ValueError(f"weights={weights} and pretrained exclude each other: give one of them")
    spec = _spec(name, image_size, width, out_dim, inputs)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed GPUs too.
        torch.default_generator.manual_seed(fitting(seed, "seed", Seed))
        net = _draw(spec, pretrained).to(memory_format=torch.channels_last)
    _check_runs(net)
    if weights is None:
        return net
    path = Path(fitting(str(weights) if isinstance(weights, Path) else weights, "weights", str))
    if path.suffix == ".safetensors" and "seal" in checkpoints.read_safetensors(path)[1]:
        return load(path, net)
    net.report, net.licence = checkpoints.import_weights(path, net), "not stated"
    return net


def _spec(
    name: str, image_size: int, width: float, out_dim: int | None, inputs: Any = None
) -> dict[str, Any]:
    """Return what describes an encoder; ValueError for what is unknown or of another type."""
    check(name, width)
    image_size = fitting(image_size, "image_size", Count)
    spec = {"name": name, "image_size": image_size, "width": float(width),
            "out_dim": fitting(out_dim, "out_dim", Count | None)}  # fmt: skip
    return spec | ({"inputs": _fitting_inputs(name, image_size, inputs)} if inputs else {})


def _fitting_inputs(name: str, image_size: int, given: Any) -> dict[str, Any]:
    """Return how a project treats images; ValueError for what is unknown or of another type."""
    if not isinstance(given, Mapping):
        raise ValueError(f"inputs={given!r:.60}: names and values are needed, such as mean")
    known = INPUTS | (STEM_INPUTS if _has_cifar_stem(name, image_size) else {})
    place = f"input of {name} at {image_size} px"
    kept = {k: fitting(v, f"inputs: {k}", known[choice(k, place, known)]) for k, v in given.items()}
    for key in INPUTS:
        if len(kept.get(key, "RGB")) != 3:
            raise ValueError(f"inputs: {key}={kept[key]}: three numbers are needed")
    return kept


def _draw(spec: dict[str, Any], pretrained: bool) -> Encoder:
    """Create the encoder of `spec` with weights from torch's generator, or timm's."""
    name, image_size, inputs = spec["name"], spec["image_size"], spec.get("inputs", {})
    if pretrained:
        _check_pretrained(name, image_size, spec["width"])
    if name == SMALL:
        return Encoder(Conv4(*_channels(name, spec["width"])), spec["out_dim"], spec)
    backbone: Any = _create(name, image_size, spec["width"], pretrained)
    if _has_cifar_stem(name, image_size):
        channels = backbone.conv1.out_channels
        backbone.conv1 = nn.Conv2d(3, channels, 3, 1, inputs.get("padding", 1), bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        backbone.maxpool = nn.Identity()
        backbone.act1 = backbone.act1 if inputs.get("relu", True) else nn.Identity()
    net = Encoder(backbone, spec["out_dim"], spec)
    if pretrained:
        net.licence = backbone.pretrained_cfg.get("license") or "not stated"
    return net


def _has_cifar_stem(name: str, image_size: int) -> bool:
    return name in CIFAR_STEM and image_size <= 64


def _channels(name: str, width: float) -> tuple[int, ...]:
    """Return the channels of conv4 or of a ResNet's stages; ValueError for an unfit width."""
    if name != SMALL and ("resnet" not in name or name.startswith("test_")):
        raise ValueError(f"width={width} of {name}: only {SMALL} and ResNets have one; set 1.0")
    own = (16, 32, 64, 128) if name == SMALL else (64, 128, 256, 512)  # at width 1
    channels = tuple(int(c * width) for c in own)
    if any(c < 8 or c % 8 for c in channels):
        raise ValueError(f"width={width} of {name}: {own[0]} x width must be a multiple of 8")
    return channels


def _create(name: str, image_size: int, width: float, pretrained: bool) -> nn.Module:
    """Create timm's network without its classifier, or say what prevents it."""
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {} if width == 1.0 else {"channels": _channels(name, width)}
    if config and config.fixed_input_size and config.input_size[-1] != image_size:
        options["img_size"] = image_size
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:  # of timm, of its hub, or of any architecture
        line = f"{type(error).__name__}: {error}".partition("\n")[0]
        if not pretrained:
            raise ValueError(f"{name} cannot be built with {options} ({line})") from error
        raise DownloadError(
            f"the weights of {name} could not be fetched ({line}). Without a network, fetch "
            f"model.safetensors of {config.hf_hub_id} from the Hugging Face hub elsewhere, and build "
            "with `weights: PATH` in place of `pretrained: true`"
        ) from None  # a stack of the hub's errors would hide what to do


def check(name: str, width: float = 1.0) -> None:
    """Check an encoder's name and width without building it.

    Raises:
        ValueError: for a name that timm does not know (with the nearest ones), or an unfit width.
    """
    fitting(name, "encoder", str), fitting(width, "width", Positive)
    if name == SMALL:
        _channels(name, width)
        return
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [SMALL, *timm.list_models()], n=4)
        raise ValueError(f"unknown encoder {name!r}: nearest names are {', '.join(near) or 'none'}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        raise ValueError(f"unknown weights {name!r}: timm has {tags or 'none'}") from None
    if width != 1.0:
        _channels(name, width)


def _check_pretrained(name: str, image_size: int, width: float) -> None:
    """Raise ValueError where timm has no weights for this size and width."""
    import timm

    config = None if name == SMALL else timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ValueError(f"{name}: timm has no pretrained weights; set `pretrained: false`")
    if _has_cifar_stem(name, image_size):
        raise ValueError(
            f"{name} at {image_size} px has a CIFAR stem: no pretrained weights fit; build it above "
            f"64 px, or name a tag, which keeps the 7 x 7 stem: {name}.{config.tag}"
        )
    if width != 1.0:
        raise ValueError(f"width={width} of {name}: no pretrained weights fit; leave it at 1.0")
    own_size = config.input_size[-1]
    if config.fixed_input_size and own_size != image_size and not _resamples(name, image_size):
        reason = f"its pretrained weights do not fit; set `image_size: {own_size}`"
        raise ValueError(f"{name} at {image_size} px: {reason}")


def _resamples(name: str, image_size: int) -> bool:
    """Whether timm fits a vision transformer's positions to this size: whole patches, 224 px or more."""
    import timm

    home = timm.model_entrypoint(name.partition(".")[0]).__module__
    patch = re.search(r"patch(\d+)", name)
    whole = patch is not None and image_size % int(patch[1]) == 0
    return home in RESAMPLED and whole and image_size >= 224


def _check_runs(net: Encoder) -> None:
    """Raise ValueError for images that the network cannot run on, or that shrink to one pixel."""
    name, size = net.spec["name"], net.spec["image_size"]
    stages = getattr(net.backbone, "feature_info", None) or [{"reduction": 1}]
    needs = 1 if _has_cifar_stem(name, size) else stages[-1]["reduction"]
    # With one pixel a stride of 2 has nothing left to see before the last stage, and oneDNN's bfloat16
    # gradient of such a convolution is uninitialised memory (torch 2.15, on a CPU).
    if size < needs:
        raise ValueError(
            f"{name} at {size} px: it needs images of at least {needs} px; set `image_size: "
            f"{needs}`, or take one of {', '.join(CIFAR_STEM)}, whose CIFAR stem takes smaller ones"
        )
    if type(net.backbone).__name__ in ("Conv4", "ResNet"):  # which run at any size
        return
    try:
        _gmac(net)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        line = str(error).partition("\n")[0]
        raise ValueError(
            f"{name} does not run at {size} px ({line}): set another image_size, such as its own, "
            f"`image_size: {net.backbone.pretrained_cfg['input_size'][-1]}`"
        ) from error


def stored(name: str) -> bool:
    """Return whether timm's weights of an encoder lie in the hub's cache, so that no network is needed.

    Args:
        name: of the architecture in timm, with the tag of its weights.

    Raises:
        ValueError: for a name that timm does not know.
    """
    import timm
    from huggingface_hub import try_to_load_from_cache

    check(name)
    config: Any = timm.get_pretrained_cfg(name)
    if not config or not config.hf_hub_id:
        return False
    names = "model.safetensors", "pytorch_model.bin"
    return any(isinstance(try_to_load_from_cache(config.hf_hub_id, name), str) for name in names)


def describe(net: Encoder) -> dict[str, Any]:
    """Return what a table of encoders says about one.

    Args:
        net: an encoder of `build`.

    Returns:
        `licence` of the weights; `parameters` in millions; `features`, their dimension; `gmac`, 10^9
        multiply-adds of products and convolutions per image.

    Example:
        >>> describe(build("conv4"))["features"]
        128
    """
    return {
        "licence": net.licence,
        "parameters": sum(p.numel() for p in net.parameters()) / 1e6,
        "features": net.dim,
        "gmac": _gmac(net),
    }


def _gmac(net: Encoder) -> float:
    """Count 10^9 multiply-adds on one image of the encoder's size, from shapes alone."""
    from torch.utils.flop_counter import FlopCounterMode

    weights = {k: v.to("meta") for k, v in (*net.named_parameters(), *net.named_buffers())}
    image = torch.zeros(1, 3, net.spec["image_size"], net.spec["image_size"], device="meta")
    with evaluating(net), torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(net, weights, (image,))
    return counter.get_total_flops() / 2e9  # it counts a multiply-add as two


def identity(net: Encoder) -> str:
    """Return a sha256 over an encoder's weights, architecture, and how it reads its inputs.

    Args:
        net: an encoder of `build`.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> identity(build("conv4")) == identity(build("conv4", seed=1))
        False
    """
    parts = digest(net.state_dict().items()), json.dumps(net.spec, sort_keys=True)
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def save(net: Encoder, path: Path) -> None:
    """Write weights as safetensors with their architecture.

    Args:
        net: an encoder of `build`.
        path: the file to write; its folder is made.

    Raises:
        files.StorageError: where the file cannot be written; an older one is kept then.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save(build("conv4"), Path(folder) / "victim.safetensors")
        ...     load(Path(folder) / "victim.safetensors").dim
        128
    """
    checkpoints.write_sealed(path, net.state_dict(), encoder=net.spec, licence=net.licence)


def load(path: Path, into: Encoder | None = None) -> Encoder:
    """Read an encoder written by `save`; every key must fit, and the hash must be the stored one.

    Args:
        path: the file.
        into: an encoder to fill; None builds the architecture that the file names.

    Returns:
        The encoder, with the file's weights and licence.

    Raises:
        CheckpointError: with the file, and what is missing, unexpected, misshapen or altered.

    Example:
        See `save`.
    """
    state, facts = checkpoints.read_sealed(path, "encoder")
    spec = _spec(**facts["encoder"])
    net = build(**spec) if into is None else into
    problem = checkpoints.misfit(net.state_dict(), state)
    if spec.get("inputs") != net.spec.get("inputs"):
        problem = problem or "the same weights with other inputs are another network"
    if problem:
        raise CheckpointError(f"{path} is {spec}, which does not fit {net.spec}: {problem}")
    net.load_state_dict(state)
    net.licence = facts["licence"]
    return net


@torch.no_grad()
def embed(net: nn.Module, images: Tensor, batch: int = 512) -> Tensor:
    """Embed images with a frozen network: in eval mode, without gradients, left in its former mode.

    Args:
        net: an encoder, or any module from images (N, 3, H, W) to features (N, D).
        images: (N, 3, H, W), uint8 or floats in [0, 1].
        batch: images at a time.

    Returns:
        Features (N, D) in float32, on the network's device.

    Raises:
        ValueError: for images of another shape, dtype or range than `as_uint8` takes.

    Example:
        >>> embed(build("conv4"), torch.zeros(3, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([3, 128])
    """
    images, device = as_uint8(images), device_of(net)
    parts = images.split(number(batch, "batch", int, least=1))
    with evaluating(net):
        return torch.cat([_features(net, part.to(device)) for part in parts])


def _features(net: nn.Module, images: Tensor) -> Tensor:
    out = net(images)
    if not dense(out) or not out.is_floating_point() or out.shape[:-1] != images.shape[:1]:
        needed = f"floats ({len(images)}, D) are needed"
        raise ValueError(f"the network makes {shown(out)} of {len(images)} images: {needed}")
    return out.float()


def device_of(net: nn.Module) -> torch.device:
    """Return the device of a network's weights, the CPU for one without weights."""
    return next((x.device for x in (*net.parameters(), *net.buffers())), torch.device("cpu"))


def check_images(images: Tensor) -> Tensor:
    """Return images (N, 3, H, W) in memory or on disk; ValueError for all else, none, or no pixel."""
    usable = dense(images) if isinstance(images, Tensor) else hasattr(images, "split")
    shape = tuple(getattr(images, "shape", ())) if usable else ()
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        needed = "a tensor of at least one of shape (3, H, W) is needed"
        raise ValueError(f"images {shown(images)}: {needed}")
    return images


def as_uint8(images: Tensor) -> Tensor:
    """Return images as a service receives them: 8 bits a channel, (N, 3, H, W).

    Args:
        images: (N, 3, H, W), uint8 or floats in [0, 1], which are rounded to 8 bits.

    Raises:
        ValueError: for another shape, dtype or range, or no image at all.
    """
    check_images(images)
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}: give uint8, or floats in [0, 1]")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # also refuses NaN
        span = f"float images range from {low:.3g} to {high:.3g}"
        raise ValueError(f"{span}: they must lie in [0, 1]; the encoder normalises them")
    return (images * 255).round().to(torch.uint8)


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
