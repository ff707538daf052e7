"""Building, saving, loading and running encoders."""

import json
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from contsteal import checkpoints, encoders


def noise(n: int = 5, size: int = 32, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether both have the same weights, bit for bit."""
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# -------------------------------------------------------------------------------------- build


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


@pytest.mark.parametrize(
    ("name", "size", "built_for", "cost"),
    [("resnet18", 32, 32, 0.5554), ("resnet18", 224, 224, 1.814), ("resnet18", 65, 65, None)],
)
def test_stem_and_cost(name: str, size: int, built_for: int, cost: float | None) -> None:
    net = encoders.build(name, built_for)
    small = built_for <= 64
    assert net.backbone.conv1.kernel_size == ((3, 3) if small else (7, 7))
    assert net.backbone.conv1.stride == ((1, 1) if small else (2, 2))
    assert isinstance(net.backbone.maxpool, nn.Identity if small else nn.MaxPool2d)
    assert net.dim == 512
    if cost is not None:
        assert gmacs(net, size) == pytest.approx(cost, rel=0.005)


def test_the_cifar_stem_ends_above_64_px() -> None:
    kernels = [encoders.build("resnet18", s).backbone.conv1.kernel_size[0] for s in (64, 65)]
    assert kernels == [3, 7]


def test_the_cifar_stem_is_drawn_as_resnets_are() -> None:
    weight = encoders.build("resnet18").backbone.conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


def test_other_names_are_timms(tiny: encoders.Encoder) -> None:
    assert tiny.dim == 96
    assert tiny(noise()).shape == (5, 96)


@pytest.mark.parametrize(("width", "dim"), [(0.5, 256), (0.125, 64), (2.0, 1024)])
def test_width_scales_channels(width: float, dim: int) -> None:
    net = encoders.build("resnet18", width=width)
    assert net.dim == dim
    stages = [getattr(net.backbone, f"layer{i}")[-1].conv2.out_channels for i in range(1, 5)]
    assert stages == [dim // 8, dim // 4, dim // 2, dim]
    assert (gmacs(net, 32) < 0.5554) == (width < 1)


@pytest.mark.parametrize("dim", [8, 96, 200])
def test_out_dim_is_a_linear_layer_where_it_differs(dim: int) -> None:
    net = encoders.build("test_resnet", out_dim=dim).eval()
    assert isinstance(net.projection, nn.Identity if dim == 96 else nn.Linear)
    assert net.dim == dim
    features, out = net.backbone, net(noise())
    assert out.shape == (5, dim)
    x = (noise().float() / 255 - net.mean) / net.std
    torch.testing.assert_close(out, net.projection(features(x)), rtol=1e-4, atol=1e-5)


def test_weights_are_drawn_from_the_seed_alone() -> None:
    options = {"name": "resnet18", "width": 0.125, "out_dim": 7}
    torch.manual_seed(1)
    first = encoders.build(**options, seed=3)
    torch.manual_seed(2)
    assert same(first, encoders.build(**options, seed=3))
    other = encoders.build(**options, seed=4)
    for layer in ("backbone.conv1.weight", "backbone.layer4.1.conv2.weight", "projection.weight"):
        assert not torch.equal(first.state_dict()[layer], other.state_dict()[layer])


@pytest.mark.parametrize("seed", [0, 3])
def test_the_demos_encoder_is_what_timm_draws_from_the_seed(seed: int) -> None:
    torch.manual_seed(seed)
    want = timm.create_model("resnet10t", num_classes=0, channels=(32, 64, 128, 256))
    assert same(encoders.build("resnet10t", width=0.5, seed=seed).backbone, want)


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


def test_building_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    encoders.build("test_resnet", out_dim=5, seed=9)
    encoders.build("resnet18", width=0.125)
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'resnet81'.*nearest names are .*resnet18"):
        encoders.build("resnet81")
    with pytest.raises(ValueError, match=r"'%%%%'.*nearest names are none"):
        encoders.build("%%%%")
    with pytest.raises(ValueError, match=r"'resnet18.a9_in1k': timm has resnet18.a1_in1k, "):
        encoders.build("resnet18.a9_in1k")


@pytest.mark.parametrize("width", [0.1, 0.0, -1.0, 0.0625])
def test_odd_widths_are_refused(width: float) -> None:
    with pytest.raises(ValueError, match=rf"width={width} of resnet18.*multiple of 8"):
        encoders.build("resnet18", width=width)


def test_width_applies_to_resnets_alone() -> None:
    with pytest.raises(ValueError, match=r"width=0.5 of test_vit: only ResNets.*leave it at 1.0"):
        encoders.build("test_vit", width=0.5)


# ------------------------------------------------------------------- sizes and pretrained weights


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub whose weights are drawn on the spot; the list notes what was asked of it."""
    create, asked = timm.create_model, []

    def give(name: str, pretrained: bool, **options: object) -> nn.Module:
        asked.extend([name] * pretrained)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", give)
    return asked


def test_no_pretrained_weights_fit_the_cifar_stem(hub: list[str]) -> None:
    with pytest.raises(ValueError, match=r"resnet18 at 32 px has a CIFAR stem.*resnet18.a1_in1k"):
        encoders.build("resnet18", pretrained=True)
    assert hub == []
    net = encoders.build("resnet18.a1_in1k", pretrained=True)
    assert (hub, net.backbone.conv1.kernel_size) == (["resnet18.a1_in1k"], (7, 7))


def test_pretrained_weights_of_one_size_are_not_built_for_another(hub: list[str]) -> None:
    with pytest.raises(ValueError, match=r"dino at 32 px: .*224 px alone; set `image_size: 224`"):
        encoders.build("vit_small_patch16_224.dino", 32, pretrained=True)
    with pytest.raises(ValueError, match=r"set `image_size: 518`"):
        encoders.build("vit_small_patch14_dinov2.lvd142m", 224, pretrained=True)
    assert hub == []
    assert encoders.build("test_vit", 160, pretrained=True).dim == 64


@pytest.mark.parametrize("size", [32, 48, 160])
def test_an_untrained_vit_is_built_for_the_size_asked_for(size: int) -> None:
    net = encoders.build("test_vit", size, seed=2)
    tokens = net.backbone.pos_embed.shape[1] - net.backbone.num_prefix_tokens
    assert tokens == (size // 16) ** 2
    assert encoders.embed(net, noise(3, size)).shape == (3, 64)


def test_a_fixed_size_comes_back_from_a_file(tmp_path: Path) -> None:
    net = encoders.build("test_vit", 32)
    encoders.save(net, tmp_path / "vit.safetensors")
    assert same(encoders.load(tmp_path / "vit.safetensors"), net)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("test_vit", 40, r"test_vit does not run at 40 px \(.*divisible.*`image_size: 160`"),
        ("inception_v3", 32, r"inception_v3 does not run at 32 px \(.*`image_size: 299`"),
        ("test_vit", 0, r"test_vit cannot be built with \{'img_size': 0\}"),
    ],
)
def test_a_size_that_cannot_be_run_is_refused_at_once(name: str, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoders.build(name, size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet10t", "width": 0.5}, r"width=0.5 of resnet10t: no pretrained weights fit"),
        ({"name": "botnet50ts_256"}, r"botnet50ts_256: timm has no pretrained weights"),
        ({"name": "test_resnet", "weights": "a.pth"}, r"weights=a.pth and pretrained exclude"),
    ],
)
def test_what_no_hub_can_give_is_not_asked_of_it(
    options: dict, message: str, hub: list[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        encoders.build(**options, pretrained=True)
    assert hub == []


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
    with pytest.raises(
        checkpoints.CheckpointError, match=r"padding.*with other inputs are another"
    ):
        encoders.load(tmp_path / "net.safetensors", plain)


@pytest.mark.parametrize(
    ("size", "inputs", "message"),
    [
        (32, {"crop": 1}, r"resnet18 at 32 px: unknown crop; known are mean, std, padding, relu"),
        (65, {"padding": 2}, r"unknown padding; known are mean, std \("),
        (32, {"mean": (1, 2)}, r"mean \(1, 2\) must be three numbers"),
        (32, {"std": (1, 0, 1)}, r"std \(1, 0, 1\) must be three numbers, std above 0"),
        (32, {"padding": -1}, r"padding -1 must be a count"),
        (32, {"relu": "no"}, r"relu 'no' a bool"),
    ],
)
def test_odd_inputs_are_refused(size: int, inputs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoders.build("resnet18", size, inputs=inputs)


# ----------------------------------------------------------------------------------- describe


@pytest.mark.parametrize(
    ("name", "size", "gmac", "millions"),
    [
        ("resnet18", 32, 0.5554, 11.17),
        ("resnet34", 32, 1.159, 21.28),
        ("resnet18", 224, 1.814, 11.18),
        ("resnet50", 224, 4.087, 23.51),
    ],
)
def test_describe_counts_what_is_known_of_resnets(
    name: str, size: int, gmac: float, millions: float
) -> None:
    card = encoders.describe(encoders.build(name, size))
    assert card["gmac"] == pytest.approx(gmac, rel=5e-4)
    assert card["parameters"] == pytest.approx(millions, abs=0.01)


def test_describe_counts_as_the_literal_reference_does(tiny: encoders.Encoder) -> None:
    for net in (tiny, encoders.build("resnet18", 48, width=0.125, out_dim=5)):
        want = gmacs(net, net.spec["image_size"])
        assert encoders.describe(net)["gmac"] == pytest.approx(want, rel=1e-9)


def test_describe_tells_everything_a_table_needs() -> None:
    card = encoders.describe(encoders.build("test_vit", 32, out_dim=9))
    assert card.pop("gmac") > 0
    assert card.pop("parameters") == pytest.approx(0.3007, abs=1e-4)
    assert card == {
        "name": "test_vit",
        "licence": "own weights",
        "features": 9,
        "image_size": 32,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }


def test_describe_changes_nothing(tiny: encoders.Encoder) -> None:
    tiny.train().backbone.bn1.eval()
    modes = {name: layer.training for name, layer in tiny.named_modules()}
    weights = {k: v.clone() for k, v in tiny.state_dict().items()}
    state = torch.get_rng_state()
    encoders.describe(tiny)
    assert {name: layer.training for name, layer in tiny.named_modules()} == modes
    assert all(torch.equal(v, weights[k]) for k, v in tiny.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_licence_of_pretrained_weights_stays_with_them(hub: list[str], tmp_path: Path) -> None:
    net = encoders.build("test_convnext", 160, pretrained=True)
    assert encoders.describe(net)["licence"] == "apache-2.0"
    net.backbone.pretrained_cfg["license"] = None
    encoders.save(net, tmp_path / "net.safetensors", epochs=1)
    assert encoders.load(tmp_path / "net.safetensors").licence == "apache-2.0"
    into = encoders.build("test_convnext", 160)
    assert into.licence == "own weights"
    assert encoders.load(tmp_path / "net.safetensors", into).licence == "apache-2.0"


def test_an_unstated_licence_is_called_so(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def bare(*args: object, **options: object) -> nn.Module:
        net = create(*args, **options)
        net.pretrained_cfg = net.pretrained_cfg | {"license": None}
        return net

    monkeypatch.setattr(timm, "create_model", bare)
    assert encoders.build("test_resnet", pretrained=True).licence == "not stated"


# ------------------------------------------------------------------------------------ forward


def test_uint8_and_float_images_agree(tiny: encoders.Encoder) -> None:
    tiny.eval()
    images = noise()
    assert torch.equal(tiny(images), tiny(images.float() / 255))


def test_images_are_normalised_by_the_models_own_statistics(tiny: encoders.Encoder) -> None:
    seen = []
    tiny.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = noise()
    tiny(images)
    config = tiny.backbone.pretrained_cfg
    for channel in range(3):
        want = (images[:, channel] / 255 - config["mean"][channel]) / config["std"][channel]
        torch.testing.assert_close(seen[0][:, channel], want)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 32, 32, 3)])
def test_wrong_shapes_are_refused(tiny: encoders.Encoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"an encoder takes \(N, 3, H, W\)") as caught:
        tiny(torch.zeros(shape))
    assert str(shape) in str(caught.value)


# -------------------------------------------------------------------------------------- embed


@pytest.mark.parametrize("training", [True, False])
def test_embed_runs_in_eval_mode_and_restores_every_mode(
    tiny: encoders.Encoder, training: bool
) -> None:
    tiny.train(training)
    tiny.backbone.bn1.eval()  # a part may be frozen on its own
    modes = {name: layer.training for name, layer in tiny.named_modules()}
    weights = {k: v.clone() for k, v in tiny.state_dict().items()}
    seen = []
    tiny.backbone.register_forward_pre_hook(lambda layer, _: seen.append(layer.training))
    encoders.embed(tiny, noise())
    assert seen == [False]
    assert {name: layer.training for name, layer in tiny.named_modules()} == modes
    assert all(torch.equal(v, weights[k]) for k, v in tiny.state_dict().items())


def test_embed_restores_the_mode_after_an_error(tiny: encoders.Encoder) -> None:
    tiny.train()
    with pytest.raises(ValueError, match="of shape"):
        encoders.embed(tiny, torch.zeros(4, 1, 32, 32))
    assert tiny.training


def test_embed_gives_plain_float32_features(tiny: encoders.Encoder) -> None:
    for net in (tiny, tiny.to(torch.bfloat16)):
        features = encoders.embed(net, noise().float().div(255).to(net.mean.dtype))
        assert (features.dtype, features.shape) == (torch.float32, (5, 96))
        assert not features.requires_grad


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_embed_does_not_depend_on_the_batch(tiny: encoders.Encoder, batch: int) -> None:
    whole = encoders.embed(tiny, noise(7), batch=7)
    torch.testing.assert_close(encoders.embed(tiny, noise(7), batch=batch), whole)


def test_embed_is_the_network_in_eval_mode(tiny: encoders.Encoder) -> None:
    features = encoders.embed(tiny.train(), noise())
    assert torch.equal(features, tiny.eval()(noise()))
    assert not torch.allclose(features, tiny.train()(noise()))


# ------------------------------------------------------------------------------- save and load


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, encoders.Encoder, str]:
    """A file, the encoder in it (weights and statistics moved from their start), its sha256."""
    net = encoders.build("test_resnet", out_dim=10, seed=5)
    net(noise())  # moves the running statistics
    path = tmp_path / "victim.safetensors"
    return path, net, encoders.save(net, path, method="simclr", epochs=3)


def test_round_trip_is_bitwise(saved: tuple[Path, encoders.Encoder, str]) -> None:
    path, net, sha = saved
    again = encoders.load(path)
    assert same(net, again)
    assert again.spec == net.spec
    assert torch.equal(encoders.embed(net, noise()), encoders.embed(again, noise()))
    assert encoders.digest(again.state_dict().items()) == sha
    assert list(path.parent.iterdir()) == [path], "no partial file is left"


def test_cifar_stem_and_width_come_back(tmp_path: Path) -> None:
    net = encoders.build("resnet18", 32, width=0.125, out_dim=3, seed=1)
    encoders.save(net, tmp_path / "net.safetensors")
    again = encoders.load(tmp_path / "net.safetensors")
    assert same(net, again)
    assert again.backbone.conv1.kernel_size == (3, 3)
    assert again.dim == 3


def test_load_into_a_given_encoder(saved: tuple[Path, encoders.Encoder, str]) -> None:
    path, net, _ = saved
    into = encoders.build("test_resnet", out_dim=10, seed=6)
    assert not same(net, into)
    assert encoders.load(path, into) is into
    assert same(net, into)


def test_metadata_is_readable_by_safetensors(saved: tuple[Path, encoders.Encoder, str]) -> None:
    path, net, sha = saved
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert (header["method"], header["epochs"], header["sha256"]) == ("simclr", "3", sha)
    assert json.loads(header["spec"]) == net.spec


def test_digest_sees_names_shapes_types_and_values() -> None:
    x = torch.arange(6.0)
    variants = [
        [("a", x), ("b", x)],
        [("a", x), ("c", x)],
        [("a", x.view(2, 3)), ("b", x)],
        [("a", x.view(torch.int32)), ("b", x)],
        [("a", x.clone().index_fill_(0, torch.tensor(5), 0)), ("b", x)],
    ]
    assert len({encoders.digest(v) for v in variants}) == len(variants)
    assert encoders.digest(variants[0]) == encoders.digest(variants[0][::-1])
    grid = torch.rand(2, 3, 4, 4)
    wide = grid.to(memory_format=torch.channels_last)
    assert encoders.digest([("a", grid)]) == encoders.digest([("a", wide)])


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.9999])
def test_truncated_file(saved: tuple[Path, encoders.Encoder, str], share: float) -> None:
    path, _, _ = saved
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(
        checkpoints.CheckpointError, match=r"victim.* cannot be read .*fetch it again"
    ):
        encoders.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        checkpoints.CheckpointError, match=r"nowhere.* cannot be read .*fetch it again"
    ):
        encoders.load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9999999])
def test_flipped_byte_among_the_weights(
    saved: tuple[Path, encoders.Encoder, str], place: float
) -> None:
    path, _, _ = saved
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= 1
    path.write_bytes(raw)
    with pytest.raises(checkpoints.CheckpointError, match=r"victim.* sha256 .* altered"):
        encoders.load(path)


def test_flipped_byte_in_the_header(saved: tuple[Path, encoders.Encoder, str]) -> None:
    """Whatever byte of the stored architecture and hash is altered, it is a CheckpointError."""
    path, _, _ = saved
    raw = path.read_bytes()
    places = [
        place
        for key in (b'"spec"', b'"sha256"')
        for place in range(raw.index(key), raw.index(key) + 60)
    ]
    survived = []
    for place in places:
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        try:
            encoders.load(path)
            survived.append((place, "loaded"))
        except checkpoints.CheckpointError:
            pass
        except Exception as error:
            survived.append((place, repr(error)))
    assert not survived, (len(survived), survived[:3])


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(checkpoints.CheckpointError, match=r"foreign"):
        encoders.load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_dim": None}, r"2 unexpected: projection.bias, projection.weight"),
        ({"out_dim": 11}, r"2 misshapen: projection.bias, projection.weight"),
        ({"name": "resnet18", "width": 0.125}, r"\d+ missing: backbone.*\d+ unexpected: backbone"),
    ],
)
def test_another_architecture_lists_the_keys(
    saved: tuple[Path, encoders.Encoder, str], options: dict, message: str
) -> None:
    path, _, _ = saved
    into = encoders.build(**{"name": "test_resnet", "out_dim": 10} | options)
    kept = {k: v.clone() for k, v in into.state_dict().items()}
    with pytest.raises(checkpoints.CheckpointError, match=message) as caught:
        encoders.load(path, into)
    assert str(path) in str(caught.value)
    assert "test_resnet" in str(caught.value)
    assert all(torch.equal(v, kept[k]) for k, v in into.state_dict().items()), "nothing was loaded"


def test_missing_keys_are_listed(tmp_path: Path, tiny: encoders.Encoder) -> None:
    encoders.save(tiny, tmp_path / "net.safetensors")
    with pytest.raises(checkpoints.CheckpointError, match=r"2 missing: projection.bias"):
        encoders.load(tmp_path / "net.safetensors", encoders.build("test_resnet", out_dim=10))


@pytest.mark.parametrize(("name", "size", "needs"), [("test_resnet", 16, 32), ("test_vit", 8, 16)])
def test_images_that_shrink_away_before_the_last_stage_are_refused(name, size, needs):
    with pytest.raises(ValueError, match=rf"{name} at {size} px: .*at least {needs} px"):
        encoders.build(name, size)


def test_smaller_images_fit_a_cifar_stem():
    assert encoders.build("resnet18", 8)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (
        2,
        512,
    )


def test_equal_weights_with_other_inputs_are_another_encoder() -> None:
    plain, again = (encoders.build("test_resnet", seed=0) for _ in range(2))
    other = encoders.build("test_resnet", seed=0, inputs={"mean": (0.5, 0.5, 0.5)})
    assert encoders.identity(plain) == encoders.identity(again)
    assert encoders.digest(plain.state_dict().items()) == encoders.digest(
        other.state_dict().items()
    )
    assert encoders.identity(plain) != encoders.identity(other)
