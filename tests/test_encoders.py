"""Building, saving, loading and running encoders."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from contsteal import encoders


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


@pytest.mark.parametrize("width", [0.1, 0.0, -1.0, 0.0625])
def test_odd_widths_are_refused(width: float) -> None:
    with pytest.raises(ValueError, match=rf"width={width} of resnet18.*multiple of 8"):
        encoders.build("resnet18", width=width)


def test_width_applies_to_resnets_alone() -> None:
    with pytest.raises(ValueError, match=r"width=0.5 of test_vit: only ResNets.*leave it at 1.0"):
        encoders.build("test_vit", width=0.5)


def test_no_pretrained_weights_fit_the_cifar_stem(monkeypatch: pytest.MonkeyPatch) -> None:
    create = encoders.timm.create_model
    offline = lambda name, pretrained, **options: create(name, **options)  # noqa: E731
    monkeypatch.setattr(encoders.timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"resnet18 at 32 px has a CIFAR stem"):
        encoders.build("resnet18", pretrained=True)


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
    with encoders.safe_open(path, framework="pt") as file:
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
    with pytest.raises(encoders.CheckpointError, match=r"victim.* cannot be read .*fetch it again"):
        encoders.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        encoders.CheckpointError, match=r"nowhere.* cannot be read .*fetch it again"
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
    with pytest.raises(encoders.CheckpointError, match=r"victim.* sha256 .* altered"):
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
        except encoders.CheckpointError:
            pass
        except Exception as error:
            survived.append((place, repr(error)))
    assert not survived, (len(survived), survived[:3])


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(encoders.CheckpointError, match=r"foreign"):
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
    with pytest.raises(encoders.CheckpointError, match=message) as caught:
        encoders.load(path, into)
    assert str(path) in str(caught.value)
    assert "test_resnet" in str(caught.value)
    assert all(torch.equal(v, kept[k]) for k, v in into.state_dict().items()), "nothing was loaded"


def test_missing_keys_are_listed(tmp_path: Path, tiny: encoders.Encoder) -> None:
    encoders.save(tiny, tmp_path / "net.safetensors")
    with pytest.raises(encoders.CheckpointError, match=r"2 missing: projection.bias"):
        encoders.load(tmp_path / "net.safetensors", encoders.build("test_resnet", out_dim=10))
