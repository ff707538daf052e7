"""The networks inside encoders: timm's models by name, and ResNets with the stem of CIFAR."""

import difflib
from collections.abc import Mapping

import timm
from torch import nn

STEM = ("padding", "relu")  # in which projects' CIFAR stems differ
CIFAR_STEM = ("resnet18", "resnet34", "resnet50")  # 3 x 3 first convolution up to 64 px


class DownloadError(RuntimeError):
    """Pretrained weights that could not be fetched."""


def check(name: str, width: float = 1.0) -> None:
    """Raise ValueError for a name that timm does not know (with the nearest) or an unfit width."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4)
        raise ValueError(f"unknown encoder {name!r}: nearest names are {', '.join(near) or 'none'}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        raise ValueError(f"unknown weights {name!r}: timm has {tags or 'none'}") from None
    if width != 1.0:
        _channels(name, width)


def _channels(name: str, width: float) -> tuple[int, ...]:
    if "resnet" not in name or name.startswith("test_"):
        raise ValueError(f"width={width} of {name}: only ResNets have a width; leave it at 1.0")
    channels = tuple(int(c * width) for c in (64, 128, 256, 512))
    if width <= 0 or min(channels) < 8 or any(c % 8 for c in channels):
        raise ValueError(f"width={width} of {name}: 64 x width must be a multiple of 8")
    return channels


def own_size(name: str) -> int | None:
    """Return the side in pixels of the images that `name` was made for, where timm states it."""
    config = timm.get_pretrained_cfg(name)
    return config.input_size[-1] if config else None


def _is_cifar(name: str, image_size: int) -> bool:
    return name in CIFAR_STEM and image_size <= 64


def check_inputs(name: str, image_size: int, inputs: Mapping[str, object]) -> None:
    """Raise ValueError for inputs other than `mean`, `std`, and those of a CIFAR stem."""
    known = ["mean", "std"] + list(STEM) * _is_cifar(name, image_size)
    if wrong := sorted(inputs.keys() - set(known)):
        raise ValueError(
            f"inputs of {name} at {image_size} px: unknown {', '.join(wrong)}; "
            f"known are {', '.join(known)} ({', '.join(STEM)}: of the CIFAR stem)"
        )
    for key in inputs.keys() & {"mean", "std"}:
        if len(inputs[key]) != 3 or (key == "std" and min(inputs[key]) <= 0):
            raise ValueError(f"inputs: {key} {inputs[key]} must be three numbers, std above 0")
    padding, relu = inputs.get("padding", 1), inputs.get("relu", True)
    if type(padding) is not int or padding < 0 or type(relu) is not bool:
        raise ValueError(f"inputs: padding {padding!r} must be a count, relu {relu!r} a bool")


def _options(name: str, image_size: int, width: float, pretrained: bool) -> dict[str, object]:
    """Return timm's arguments for this width and size; refuse them where weights are fetched."""
    config, at = timm.get_pretrained_cfg(name), f"{name} at {image_size} px"
    options = {} if width == 1.0 else {"channels": _channels(name, width)}
    if pretrained and _is_cifar(name, image_size):
        raise ValueError(
            f"{at} has a CIFAR stem: no pretrained weights fit; build it above 64 px, or name a "
            f"tag, which keeps the 7 x 7 stem: {name}.{config.tag}"
        )
    if pretrained and not (config and config.has_weights):
        raise ValueError(f"{name}: timm has no pretrained weights; set `pretrained: false`")
    if pretrained and options:
        raise ValueError(f"width={width} of {name}: no pretrained weights fit; leave it at 1.0")
    if config and config.fixed_input_size and config.input_size[-1] != image_size:
        if pretrained:
            raise ValueError(
                f"{at}: its pretrained weights take images of {config.input_size[-1]} px alone; "
                f"set `image_size: {config.input_size[-1]}`"
            )
        options["img_size"] = image_size
    return options


def _draw(name: str, pretrained: bool, options: dict[str, object]) -> nn.Module:
    """Create timm's network without its classifier, or say what stands in the way."""
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:  # of timm, of its hub, or of any architecture
        line = f"{type(error).__name__}: {error}".partition("\n")[0]
        if not pretrained:
            raise ValueError(f"{name} cannot be built with {options} ({line})") from error
        raise DownloadError(
            f"the weights of {name} could not be fetched ({line}). Without a network, fetch "
            f"model.safetensors of {timm.get_pretrained_cfg(name).hf_hub_id} from the Hugging Face "
            "hub elsewhere, and build with `weights: PATH` in place of `pretrained: true`"
        ) from None  # a stack of the hub's errors would hide what to do


def create(
    name: str,
    image_size: int,
    width: float = 1.0,
    *,
    pretrained: bool = False,
    padding: int = 1,
    relu: bool = True,
) -> nn.Module:
    """Create timm's network `name` without its classifier, drawn from torch's CPU generator.

    ResNet-18, 34 and 50 get the stem of CIFAR (3 x 3, stride 1, no pooling) up to 64 px, which
    `padding` and `relu` describe. Networks of one image size are made for `image_size`. Errors:
    ValueError for what does not fit together, DownloadError where weights cannot be had.
    """
    net = _draw(name, pretrained, _options(name, image_size, width, pretrained))
    if _is_cifar(name, image_size):
        net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, 1, padding, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
        net.act1 = net.act1 if relu else nn.Identity()
    else:
        _check_size(net, name, image_size)
    return net


def _check_size(net: nn.Module, name: str, image_size: int) -> None:
    """Raise ValueError for images that are one pixel before the network's last stage.

    A stride of 2 has nothing left to see there, and oneDNN's bfloat16 gradient of such a
    convolution is uninitialised memory (torch 2.15, on a CPU).
    """
    needs = net.feature_info[-1]["reduction"] if getattr(net, "feature_info", None) else 1
    if image_size < needs:
        raise ValueError(
            f"{name} at {image_size} px: it needs images of at least {needs} px; set `image_size: "
            f"{needs}`, or take one of {', '.join(CIFAR_STEM)}, whose CIFAR stem takes smaller ones"
        )
