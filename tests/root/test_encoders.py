"""Building, saving, loading and running encoders."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import save
from torch import Tensor, nn

from contsteal import checkpoints, encoders, files, methods
from contsteal.checkpoints import CheckpointError


def noise(n: int = 5, size: int = 32, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether both have the same weights, bit for bit."""
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def gmacs(net: nn.Module, size: int) -> float:
    """Count the multiply-adds of all convolutions and linear layers on one image, in 10^9."""
    counts = []

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        counts.append(out[0, 0].numel() * layer.weight.numel())

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size))
    return sum(counts) / 1e9


@pytest.mark.parametrize("size", [8, 64, 65])
def test_the_cifar_stem_ends_above_64_px(size: int) -> None:
    net, small = encoders.build("resnet18", size), size <= 64
    assert net.backbone.conv1.kernel_size == ((3, 3) if small else (7, 7))
    assert net.backbone.conv1.stride == ((1, 1) if small else (2, 2))
    assert isinstance(net.backbone.maxpool, nn.Identity if small else nn.MaxPool2d)
    assert encoders.embed(net, noise(2, size)).shape == (2, net.dim) == (2, 512)


@pytest.mark.parametrize("dim", [8, 96, 200])
def test_out_dim_is_a_linear_layer_also_where_it_is_the_network_s_own(dim: int) -> None:
    net = encoders.build("test_resnet", out_dim=dim).eval()
    assert isinstance(net.projection, nn.Linear)
    assert net.projection.weight.shape == (dim, 96)
    assert net.dim == dim
    features, out = net.backbone, net(noise())
    assert out.shape == (5, dim)
    x = (noise().float() / 255 - net.mean) / net.std
    torch.testing.assert_close(out, net.projection(features(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [16, 17, 32, 65])
def test_conv4_is_the_mean_of_four_strided_convolutions(size: int) -> None:
    net = encoders.build("conv4", size, width=0.5)
    net(noise(8, size))  # moves the running statistics
    net.eval()
    x = (noise(3, size).float() / 255 - 0.5) / 0.25
    layers = list(net.backbone)
    for conv, norm in zip(layers[0::3][:4], layers[1::3][:4], strict=True):
        x = F.conv2d(x, conv.weight, stride=2, padding=1)
        mean, var = norm.running_mean.view(1, -1, 1, 1), norm.running_var.view(1, -1, 1, 1)
        x = ((x - mean) / (var + norm.eps).sqrt()).clamp(min=0)
    assert x.shape == (3, 64, -(-size // 16), -(-size // 16))
    torch.testing.assert_close(net(noise(3, size)), x.mean((2, 3)))


def test_embedded_sets_and_conv4_need_no_heavy_package(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        import torch
        before = set(sys.modules)
        from contsteal import data, encoders
        images = data.load("shapes", n=1).images
        encoders.check("conv4", 0.5)
        net = encoders.build("conv4", width=0.5, out_dim=5)
        encoders.save(net, Path(sys.argv[1]))
        assert encoders.embed(encoders.load(Path(sys.argv[1])), images).shape == (1, 5)
        heavy = {"timm", "torchvision", "PIL", "sklearn", "joblib", "pandas", "tqdm.auto"}
        print(sorted(heavy & (set(sys.modules) - before)))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "net.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "options",
    [{"name": "resnet18", "width": 0.125}, {"name": "conv4", "width": 0.5}],
    ids=["resnet18", "conv4"],
)
def test_weights_are_drawn_from_the_seed_alone(options: dict) -> None:
    options = options | {"out_dim": 7}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = encoders.build(**options, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(first, encoders.build(**options, seed=3))
    other = encoders.build(**options, seed=4)
    for layer, weight in first.named_parameters():
        assert weight.ndim == 1 or not torch.equal(weight, other.get_parameter(layer))


def test_the_cifar_stem_and_the_output_layer_are_drawn_after_the_rest() -> None:
    torch.manual_seed(4)
    want = timm.create_model("resnet18", num_classes=0, channels=(8, 16, 32, 64))
    stem = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    output = nn.Linear(64, 7)
    net = encoders.build("resnet18", width=0.125, out_dim=7, seed=4)
    assert torch.equal(net.backbone.conv1.weight, stem.weight)
    assert torch.equal(net.backbone.layer4[1].conv2.weight, want.layer4[1].conv2.weight)
    assert same(net.projection, output)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub whose weights are drawn on the spot; the list notes what was asked of it."""
    create, asked = timm.create_model, []

    def give(name: str, pretrained: bool, **options: object) -> nn.Module:
        asked.extend([name] * pretrained)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", give)
    return asked


PRETRAINED = {"pretrained": True}
VIT_14 = {"name": "vit_small_patch14_dinov2.lvd142m", "image_size": 225} | PRETRAINED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet81"}, r"'resnet81'.*nearest names are .*resnet18"),
        ({"name": "%%%%"}, r"'%%%%'.*nearest names are none"),
        ({"name": "resnet18.a9_in1k"}, r"'resnet18.a9_in1k': timm has resnet18.a1_in1k, "),
        ({"width": 0.0625}, r"width=0.0625 of resnet18.*multiple of 8"),
        ({"width": -1.0}, r"width=-1.0: a finite number above 0"),
        ({"name": "test_vit", "width": 0.5}, r"width=0.5 of test_vit: only conv4 and Res.*set 1.0"),
        ({"name": "conv"}, r"'conv'.*nearest names are .*conv4"),
        ({"name": "conv4", "image_size": 15}, r"conv4 at 15 px: .*at least 16 px"),
        ({"name": "conv4", "width": 0.25}, r"width=0.25 of conv4: 16 x width .* multiple of 8"),
        ({"name": "conv4", "width": 0.0}, r"width=0.0: a finite number above 0"),
        (PRETRAINED | {"name": "conv4"}, "conv4: timm has no pretrained weights"),
        ({"name": "conv4", "inputs": {"padding": 2}}, "'padding': choose one of mean, std$"),
        ({"name": "test_resnet", "image_size": 16}, r"test_resnet at 16 px: .*at least 32 px"),
        ({"name": "test_vit", "image_size": 8}, r"test_vit at 8 px: .*at least 16 px"),
        ({"name": "test_vit", "image_size": 0}, r"image_size=0: a whole number of at least 1"),
        (
            {"name": "test_vit", "image_size": 40},
            r"test_vit does not run at 40 px \(.*divisible.*`image_size: 160`",
        ),
        ({"name": "inception_v3"}, r"inception_v3 does not run at 32 px \(.*`image_size: 299`"),
        ({"inputs": {"crop": 1}}, r"input of resnet18 at 32 px 'crop': .*mean, std, padding"),
        ({"image_size": 65, "inputs": {"padding": 2}}, r"'padding': choose one of mean, std$"),
        ({"inputs": {"mean": (1, 2)}}, r"mean=\(1.0, 2.0\): three numbers"),
        ({"inputs": {"std": (1, 0, 1)}}, r"std=0: a finite number above 0"),
        ({"inputs": {"padding": -1}}, r"padding=-1: a whole number of at least 0"),
        ({"inputs": {"mean": (1, 2, float("nan"))}}, "mean=nan: a finite number"),
        ({"inputs": [1]}, r"inputs=\[1\]: names and values"),
        ({"inputs": {"padding": 10**9}}, "padding=1000000000: a whole number of at least 0 and"),
        ({"name": None}, "encoder=None: a text"),
        ({"image_size": 1.5}, "image_size=1.5: a whole number"),
        ({"out_dim": 0}, "out_dim=0: a whole number of at least 1"),
        ({"seed": 2**70}, "seed=1180591620717411303424: a whole number of at least"),
        ({"inputs": {"relu": "no"}}, r"relu='no': True or False"),
        (PRETRAINED, r"resnet18 at 32 px has a CIFAR stem.*resnet18.a1_in1k"),
        (PRETRAINED | {"name": "vit_small_patch16_224.dino"}, r"32 px: .*; set `image_size: 224`"),
        (VIT_14, r"set `image_size: 518`"),
        (
            PRETRAINED | {"name": "resnet10t", "width": 0.5},
            r"width=0.5 of resnet10t: no pretrained",
        ),
        (PRETRAINED | {"name": "botnet50ts_256"}, "botnet50ts_256: timm has no pretrained weights"),
        (PRETRAINED | {"weights": "a.pth"}, r"weights=a.pth and pretrained exclude"),
    ],
)
def test_what_cannot_be_built_or_fetched_is_refused(hub, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoders.build(**{"name": "resnet18"} | options)
    assert hub == []


def test_weights_are_fetched_for_their_own_stem_and_size(hub: list[str]) -> None:
    net = encoders.build("resnet18.a1_in1k", pretrained=True)
    assert (hub, net.backbone.conv1.kernel_size) == (["resnet18.a1_in1k"], (7, 7))
    assert encoders.build("test_vit", 160, pretrained=True).dim == 64
    net = encoders.build("vit_small_patch14_dinov2.lvd142m", 224, pretrained=True)
    assert net.backbone.pos_embed.shape[1] == 1 + (224 // 14) ** 2, "timm resamples positions"


@pytest.mark.parametrize("size", [48, 160])
def test_an_untrained_vit_is_built_for_its_size(size: int, tmp_path: Path) -> None:
    net = encoders.build("test_vit", size, seed=2)
    tokens = net.backbone.pos_embed.shape[1] - net.backbone.num_prefix_tokens
    assert tokens == (size // 16) ** 2
    assert encoders.embed(net, noise(3, size)).shape == (3, 64)
    encoders.save(net, tmp_path / "vit.safetensors")
    assert same(encoders.load(tmp_path / "vit.safetensors"), net)


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    message = r"test_resnet could not be .* model.safetensors of timm/test_resnet.*`weights: PATH`"
    with pytest.raises(encoders.DownloadError, match=message) as caught:
        encoders.build("test_resnet", pretrained=True)
    error = caught.value
    assert error.__suppress_context__, "no stack of the hub's errors above it"
    assert error.__cause__ is None


def test_the_output_of_a_network_with_a_wider_head_is_its_own(tiny: encoders.Encoder) -> None:
    net = encoders.build("mobilenetv3_small_050", 32)
    assert net.backbone.num_features == 288
    assert net.dim == 1024
    assert encoders.embed(net, noise()).shape == (5, 1024)


def test_inputs_replace_normalisation_and_stem(tmp_path: Path) -> None:
    inputs = {"mean": (0.1, 0.2, 0.3), "std": (1, 1, 2), "padding": 2, "relu": False}
    net = encoders.build("resnet18", width=0.125, inputs=inputs, seed=1).eval()
    plain = encoders.build("resnet18", width=0.125, seed=1).eval()
    assert same(net, plain)
    assert net.std.flatten().tolist() == [1, 1, 2]
    assert (net.backbone.conv1.padding, plain.backbone.conv1.padding) == ((2, 2), (1, 1))
    assert isinstance(net.backbone.act1, nn.Identity)
    encoders.save(net, tmp_path / "net.safetensors")
    again = encoders.load(tmp_path / "net.safetensors")
    assert torch.equal(encoders.embed(again, noise()), encoders.embed(net, noise()))
    assert "inputs" not in plain.spec
    assert encoders.load(tmp_path / "net.safetensors", net) is net
    with pytest.raises(CheckpointError, match=r"padding.*with other inputs are another"):
        encoders.load(tmp_path / "net.safetensors", plain)


def test_describe_tells_everything_a_table_needs() -> None:
    net = encoders.build("resnet18", 32, out_dim=9)
    card = encoders.describe(net)
    assert card["gmac"] == pytest.approx(gmacs(net, 32), rel=1e-9)
    assert card["gmac"] == pytest.approx(0.5554, rel=5e-4)
    assert card["parameters"] == pytest.approx(11.17, abs=0.01)
    assert (card["licence"], card["features"]) == ("own weights", 9)


def test_the_licence_of_pretrained_weights_stays_with_them(hub, tmp_path, monkeypatch) -> None:
    net = encoders.build("test_convnext", 160, pretrained=True)
    assert encoders.describe(net)["licence"] == "apache-2.0"
    encoders.save(net, tmp_path / "net.safetensors")
    assert encoders.load(tmp_path / "net.safetensors").licence == "apache-2.0"
    into = encoders.build("test_convnext", 160)
    assert into.licence == "own weights"
    assert encoders.load(tmp_path / "net.safetensors", into).licence == "apache-2.0"
    bare = encoders.build("test_resnet").backbone
    bare.pretrained_cfg = bare.pretrained_cfg | {"license": None}
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: bare)
    assert encoders.build("test_resnet", pretrained=True).licence == "not stated"


def test_images_are_normalised_by_the_models_own_statistics(tiny: encoders.Encoder) -> None:
    seen = []
    tiny.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = noise()
    assert torch.equal(tiny.eval()(images), tiny(images.float() / 255))
    config = tiny.backbone.pretrained_cfg
    for channel in range(3):
        want = (images[:, channel] / 255 - config["mean"][channel]) / config["std"][channel]
        torch.testing.assert_close(seen[0][:, channel], want)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 32, 32, 3)])
def test_other_shapes_are_refused(tiny: encoders.Encoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"an encoder takes \(N, 3, H, W\)") as caught:
        tiny(torch.zeros(shape))
    assert str(shape) in str(caught.value)
    with pytest.raises(ValueError, match="of shape"):
        encoders.embed(tiny.train(), torch.zeros(shape))
    assert tiny.training


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("run", [encoders.describe, lambda net: encoders.embed(net, noise())])
def test_an_encoder_runs_in_eval_mode_and_nothing_of_it_changes(tiny, training, run) -> None:
    tiny.train(training)
    tiny.backbone.bn1.eval()  # a part may be frozen on its own
    modes = {name: layer.training for name, layer in tiny.named_modules()}
    weights = {k: v.clone() for k, v in tiny.state_dict().items()}
    seen, state = [], torch.get_rng_state()
    tiny.backbone.register_forward_pre_hook(lambda layer, _: seen.append(layer.training))
    run(tiny)
    assert seen == [False]
    assert {name: layer.training for name, layer in tiny.named_modules()} == modes
    assert all(torch.equal(v, weights[k]) for k, v in tiny.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_embed_gives_plain_float32_features_of_any_batch(tiny, batch: int) -> None:
    whole = encoders.embed(tiny.train(), noise(7), batch=7)
    assert torch.equal(whole, tiny.eval()(noise(7)))
    assert not torch.allclose(whole, tiny.train()(noise(7)))
    tiny.load_state_dict(encoders.build("test_resnet", seed=0).state_dict())
    torch.testing.assert_close(encoders.embed(tiny, noise(7), batch=batch), whole)
    half = encoders.embed(tiny.to(torch.bfloat16), noise().float() / 255)
    assert (half.dtype, half.shape, half.requires_grad) == (torch.float32, (5, 96), False)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, encoders.Encoder]:
    """A file, and the encoder in it (weights and statistics moved from their start)."""
    net = encoders.build("test_resnet", out_dim=10, seed=5)
    net(noise())  # moves the running statistics
    path = tmp_path / "victim.safetensors"
    encoders.save(net, path)
    return path, net


def test_round_trip_is_bitwise_and_its_metadata_readable(saved) -> None:
    path, net = saved
    into = encoders.build("test_resnet", out_dim=10, seed=6)
    assert not same(net, into)
    assert encoders.load(path, into) is into
    again = encoders.load(path)
    assert same(net, again)
    assert same(net, into)
    assert again.spec == net.spec
    assert torch.equal(encoders.embed(net, noise()), encoders.embed(again, noise()))
    facts = json.loads(checkpoints.read_safetensors(path)[1]["facts"])
    assert facts == {"encoder": net.spec, "licence": "own weights"}


def test_a_save_that_fails_keeps_the_older_file(saved, monkeypatch) -> None:
    def full(path: Path, data: bytes) -> int:
        path.open("wb").write(data[:100])
        raise OSError(28, "No space left on device")

    path, net = saved
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(files.StorageError, match=r"victim.*No space left"):
        encoders.save(encoders.build("test_resnet"), path)
    assert same(encoders.load(path), net)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda data: data[: len(data) // 2], r"victim.* cannot be read .*fetch it again"),
        (lambda data: flipped(data, len(data) // 2), r"victim.* was altered after"),
        (lambda data: flipped(data, len(data) - 1), r"victim.* was altered after"),
        (lambda data: flipped(data, data.index(b"own weights")), r"victim.* was altered after"),
        (lambda data: flipped(data, data.index(b"sha256") + 20), r"victim.* was altered after"),
        (lambda data: flipped(data, data.index(b'"facts"')), "victim"),
        (lambda data: save({"weight": torch.zeros(3)}), "victim"),
    ],
    ids=["truncated", "weight", "last weight", "licence", "hash", "header", "foreign"],
)
def test_a_damaged_file_is_refused(saved, harm, message: str) -> None:
    path, _ = saved
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        encoders.load(path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    methods.Head(4, 2).save(tmp_path / "head.safetensors")
    with pytest.raises(CheckpointError, match="holds no encoder"):
        encoders.load(tmp_path / "head.safetensors")


def test_another_architecture_lists_the_keys(saved) -> None:
    path, _ = saved
    into, untouched = (encoders.build("test_resnet", out_dim=11) for _ in range(2))
    message = r"victim.* is .*test_resnet.*2 misshapen: projection.bias, projection.weight"
    with pytest.raises(CheckpointError, match=message):
        encoders.load(path, into)
    assert same(into, untouched), "nothing was loaded"


def test_equal_weights_with_other_inputs_are_another_encoder() -> None:
    plain, again = (encoders.build("test_resnet", seed=0) for _ in range(2))
    other = encoders.build("test_resnet", seed=0, inputs={"mean": (0.5, 0.5, 0.5)})
    assert same(plain, other)
    assert encoders.identity(plain) == encoders.identity(again) != encoders.identity(other)


@pytest.mark.parametrize(
    "answer",
    [lambda x: None, lambda x: (x,), lambda x: x.flatten(1), lambda x: x[1:].float().flatten(1)],
    ids=["nothing", "tuple", "whole numbers", "fewer rows"],
)
def test_a_network_that_makes_no_features_is_refused(answer) -> None:
    class Odd(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return answer(images)

    with pytest.raises(ValueError, match=r"of 5 images: floats \(5, D\) are needed"):
        encoders.embed(Odd(), noise())
