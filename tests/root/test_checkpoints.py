"""Importing the weight files of other projects, and refusing what is not one."""

import argparse
import hashlib
import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from lightly.models import ResNetGenerator
from safetensors.torch import save_file
from torch import Tensor, nn

from contsteal import checkpoints, encoders, methods
from contsteal.checkpoints import CheckpointError

State = dict[str, Tensor]
WIDTH = 0.125


def noise(size: int = 32, n: int = 4, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8)


def moved(net: nn.Module, seed: int = 1, size: int = 32, n: int = 4) -> nn.Module:
    """Move every weight and every statistic away from where all networks start."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=g))
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=g))
        net.train()(noise(size, n, seed).float() / 255)
    return net.eval()


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """A small CIFAR ResNet-18 as another project trained it."""
    return moved(encoders.build("resnet18", width=WIDTH, seed=8).backbone)


@pytest.fixture(scope="module")
def slow(original: nn.Module) -> State:
    """The momentum copy of `original`, with other weights."""
    return {k: v * 0.9 if v.is_floating_point() else v for k, v in original.state_dict().items()}


@pytest.fixture
def net() -> encoders.Encoder:
    return encoders.build("resnet18", width=WIDTH, seed=0)


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def plain(net: nn.Module) -> State:
    return {k: v.clone() for k, v in net.state_dict().items()}


def agrees(net: encoders.Encoder, backbone: nn.Module, size: int = 32) -> None:
    """Check an encoder against another project's network on images normalised as the encoder does."""
    images = noise(size)
    with torch.no_grad():
        want = backbone((images / 255 - net.mean) / net.std).flatten(1)
    torch.testing.assert_close(encoders.embed(net, images), want, rtol=1e-3, atol=1e-4)
    assert want.std() > 0.01, "features that differ between images"


def write(path: Path, tree: object) -> Path:
    torch.save(tree, path)
    return path


def refused(net: encoders.Encoder, path: Path) -> str:
    """Import in vain, look that nothing changed, and return the message."""
    kept = plain(net)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.import_weights(path, net)
    assert all(torch.equal(v, kept[k]) for k, v in net.state_dict().items())
    assert str(path) in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------ layouts


def children(state: State, numbers: tuple[int, ...], shortcut: bool = False) -> State:
    """Number a ResNet's children as nn.Sequential does; layers without weights leave gaps."""
    names = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    table = dict(zip(names, map(str, numbers), strict=True))
    parts = [k.partition(".") for k in state]
    out = {f"{table[a]}.{b}": v for (a, _, b), v in zip(parts, state.values(), strict=True)}
    return cifar(out) if shortcut else out


def cifar(state: State) -> State:
    return {k.replace(".downsample.", ".shortcut."): v for k, v in state.items()}


def lightning(state: State) -> dict[str, object]:
    return {"epoch": 3, "pytorch-lightning_version": "2.0", "state_dict": state}


HEAD = {"weight": torch.ones(3, 4), "bias": torch.ones(3)}
GAPS, DEMO, LATE = (0, 1, 4, 5, 6, 7), (0, 1, 3, 4, 5, 6), (7, 8, 10, 11, 12, 13)
LAYOUTS = {
    "solo-learn": lambda x, m: lightning(
        under("backbone.", x) | under("momentum_backbone.", m) | under("projector.0.", HEAD)
        | under("momentum_projector.0.", HEAD) | under("predictor.3.", HEAD)
        | under("classifier.", HEAD) | {"queue": torch.ones(2, 9), "queue_ptr": torch.zeros(1)}
    ),
    "solo-learn, early": lambda x, m: lightning(
        under("encoder.", x) | under("momentum_encoder.", m) | under("classifier.", HEAD)
    ),
    "lightly, its ResNet": lambda x, m: lightning(
        under("backbone.", children(x, DEMO, shortcut=True))
        | under("backbone_momentum.", children(m, DEMO, shortcut=True))
        | under("projection_head.layers.0.", HEAD) | under("projection_head_momentum.0.", HEAD)
        | {"dummy_param": torch.zeros(1), "criterion.memory_bank.bank": torch.ones(3, 3)}
    ),
    "lightly, torchvision's ResNet": lambda x, m: lightning(
        under("backbone.", children(x, GAPS)) | under("prediction_head.layers.0.", HEAD)
    ),
    "lightly, MoCo and DINO on ImageNet": lambda x, m: lightning(
        under("backbone.", m) | under("query_backbone.", x) | under("online_classifier.", HEAD)
    ),
    "lightly, BYOL on ImageNet": lambda x, m: lightning(
        under("teacher_backbone.", m) | under("teacher_projection_head.0.", HEAD)
        | under("backbone.", x) | under("projection_head.0.", HEAD)
    ),
    "MoCo": lambda x, m: {
        "epoch": 9, "arch": "resnet18", "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "state_dict": under("module.encoder_k.", m) | under("module.encoder_k.fc.", HEAD)
        | under("module.encoder_q.", x) | under("module.encoder_q.fc.0.", HEAD)
        | {"module.queue": torch.ones(2, 4), "module.queue_ptr": torch.zeros(1)},
    },
    "MoCo, demo": lambda x, m: {
        "state_dict": under("encoder_q.net.", children(x, DEMO)) | under("encoder_q.net.9.", HEAD)
        | under("encoder_k.net.", children(m, DEMO)) | under("encoder_k.net.9.", HEAD)
    },
    "numbers of two digits": lambda x, m: children(x, LATE) | under("14.", HEAD),
    "SimSiam": lambda x, m: {
        "arch": "resnet18", "args": argparse.Namespace(lr=0.05, nested=argparse.Namespace(k=1)),
        "state_dict": under("module.encoder.", x) | under("module.encoder.fc.6.", HEAD)
        | under("module.predictor.0.", HEAD),
    },
    "ICML 2022": lambda x, m: {
        "epoch": 200, "arch": "resnet18",
        "state_dict": under("backbone.", cifar(x)) | under("backbone.fc.0.", HEAD)
        | under("backbone.fc.2.", HEAD),
    },
    "torchvision and timm": lambda x, m: x | under("fc.", HEAD),
    "kuangliu": lambda x, m: cifar(x) | under("linear.", HEAD),
    "DDP": lambda x, m: {"model": under("module.", x) | under("module.fc.", HEAD)},
    "Lightning around compile": lambda x, m: lightning(under("model._orig_mod.", x)),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_trained_network(layout, original, slow, net, tmp_path) -> None:
    tree = LAYOUTS[layout](plain(original), slow)
    path = write(tmp_path / "net.pth", tree)
    report = checkpoints.import_weights(path, net)
    agrees(net, original)
    own = original.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in net.backbone.state_dict().items())
    table = next((tree[k] for k in ("state_dict", "model") if k in tree), tree)
    left = {k for why, keys in report.left_out.items() if why != "not weights" for k in keys}
    assert report.used == len(own)
    assert len(left) == len(table) - len(own), "every key is used or left out"
    assert left <= set(table)
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_the_report_says_what_was_taken_and_what_was_not(original, slow, net, tmp_path) -> None:
    path = write(tmp_path / "moco.pth", LAYOUTS["MoCo"](plain(original), slow))
    report = checkpoints.import_weights(path, net)
    assert report.layout == "state_dict: module.encoder_q.*"
    head = ("module.encoder_q.fc.0.weight", "module.encoder_q.fc.0.bias")
    assert set(report.left_out["head"]) == {*head, "module.queue", "module.queue_ptr"}
    assert len(report.left_out["momentum copy"]) == len(slow) + 2
    assert report.left_out["not weights"] == ("epoch", "arch", "optimizer")
    for part in ("moco.pth", report.sha256, "126 tensors", "module.queue_ptr", "and 116 more"):
        assert part in str(report)
    assert "two encoders: module.encoder_q.* is the trained one" in str(report)
    unstated = r"no normalisation.*mean \[0.485, 0.456, 0.406\].*pads its stem by 1"
    assert re.search(unstated, str(report))
    single = checkpoints.import_weights(write(tmp_path / "net.pth", plain(original)), net)
    assert single.left_out == {}
    assert "two encoders" not in str(single)


def test_lightlys_own_resnet_in_a_row_has_no_relu_behind_its_stem(tmp_path: Path) -> None:
    """As its CIFAR benchmark builds it, with the split batch norm that its MoCo trains with."""
    torch.manual_seed(0)
    resnet = ResNetGenerator("resnet-18", num_splits=2)
    backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1)).train()
    moved(backbone, n=8)
    backbone.train()
    backbone(noise(n=8, seed=5) / 255)  # both halves of the statistics differ in the file
    path = write(tmp_path / "net.ckpt", lightning(under("backbone.", plain(backbone))))
    backbone.eval()
    with pytest.raises(CheckpointError, match=r"no ReLU: .*inputs=\{'relu': False\}"):
        encoders.build("resnet18", weights=path)
    net = encoders.build("resnet18", weights=path, inputs={"relu": False})
    agrees(net, backbone)
    assert "40 statistics of split batch norm are averaged" in str(net.report)
    assert net.report.left_out == {"not weights": ("epoch", "pytorch-lightning_version")}


def test_a_relu_that_the_file_has_is_not_left_out(original: nn.Module, tmp_path: Path) -> None:
    path = write(tmp_path / "net.ckpt", under("backbone.", children(plain(original), DEMO)))
    with pytest.raises(CheckpointError, match=r"a ReLU: .*inputs=\{'relu': True\}"):
        encoders.build("resnet18", width=WIDTH, weights=path, inputs={"relu": False})


def test_the_resnet_that_lightly_and_the_icml_code_share(tmp_path: Path) -> None:
    torch.manual_seed(0)
    resnet = moved(ResNetGenerator("resnet-18"))
    path = write(tmp_path / "net.pth.tar", {"state_dict": under("backbone.", plain(resnet))})
    net = encoders.build("resnet18", weights=path)
    resnet.linear = nn.Identity()
    agrees(net, resnet)
    assert net.report.left_out["head"] == ("backbone.linear.weight", "backbone.linear.bias")


def test_torchvisions_own_resnet_of_before_batches_were_counted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = moved(torchvision.models.resnet18(), size=64)
    state = {k: v for k, v in plain(backbone).items() if "num_batches" not in k}
    net = encoders.build("resnet18", 65, weights=write(tmp_path / "resnet18.pth", state))
    backbone.fc = nn.Identity()
    agrees(net, backbone, 65)
    assert "20 num_batches_tracked are not in the file" in str(net.report)
    assert not any(v.any() for k, v in net.state_dict().items() if "num_batches" in k)


def test_a_vit_by_hand_in_the_place_of_the_hubs(tmp_path: Path) -> None:
    vit = moved(timm.create_model("test_vit", num_classes=5, img_size=32))
    save_file(plain(vit), tmp_path / "model.safetensors")
    net = encoders.build("test_vit", 32, weights=str(tmp_path / "model.safetensors"))
    vit.reset_classifier(0)
    agrees(net, vit)
    assert net.report.left_out == {"head": ("head.bias", "head.weight")}


def test_moco_v3_and_half_precision(tmp_path: Path) -> None:
    vit = moved(timm.create_model("test_vit", num_classes=0, img_size=32)).half().float()
    state = under("module.base_encoder.", plain(vit)) | under("module.base_encoder.head.0.", HEAD)
    state |= under("module.momentum_encoder.", plain(vit)) | under("module.predictor.0.", HEAD)
    path = write(tmp_path / "v3.pth", {"state_dict": {k: v.half() for k, v in state.items()}})
    net = encoders.build("test_vit", 32, weights=path)
    assert {v.dtype for v in net.parameters()} == {torch.float32}
    agrees(net, vit)


wrappers = st.lists(st.sampled_from(checkpoints.WRAPPERS), max_size=3).map("".join)


@given(wrappers, st.sampled_from(("", *(f"{p}." for p in checkpoints.ONLINE))), wrappers)
def test_wrappers_in_any_number_are_taken_off(outer: str, online: str, inner: str) -> None:
    own = {"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.ones(1)}
    inner = inner if online else ""  # without a name of its own, nothing sets it apart from a head
    state = under(outer + online + inner, own) | {f"{outer}queue": torch.ones(1)}
    prefix, used, left_out, unexpected = checkpoints._match(state, own)
    assert prefix == outer + online + inner
    assert used == {key: prefix + key for key in own}
    assert (left_out, unexpected) == ({"head": (f"{outer}queue",)}, ())


# ---------------------------------------------------------------- what a file cannot say, and build


def test_padding_and_normalisation_of_solo_learn_are_given(original, tmp_path) -> None:
    """solo-learn's CIFAR stem pads by 2: the same weights are another network."""
    theirs = encoders.build("resnet18", width=WIDTH).backbone
    theirs.load_state_dict(original.state_dict())
    theirs.conv1.padding = (2, 2)
    theirs.eval()
    path = write(tmp_path / "solo.ckpt", lightning(under("backbone.", plain(theirs))))
    inputs = {"padding": 2, "mean": (0.49, 0.48, 0.44), "std": [0.2, 0.25, 0.3]}
    net = encoders.build("resnet18", width=WIDTH, weights=path, inputs=inputs)
    agrees(net, theirs)
    assert net.mean.flatten().tolist() == pytest.approx([0.49, 0.48, 0.44])
    with pytest.raises(AssertionError):
        agrees(encoders.build("resnet18", width=WIDTH, weights=path), theirs)
    assert encoders.describe(net)["licence"] == "not stated"


def test_our_own_file_is_checked_as_our_own(tmp_path: Path) -> None:
    net = encoders.build("test_resnet", out_dim=7, seed=4)
    path = tmp_path / "own.safetensors"
    encoders.save(net, path)
    again = encoders.build("test_resnet", out_dim=7, weights=path)
    assert torch.equal(encoders.embed(again, noise()), encoders.embed(net, noise()))
    assert (again.report, again.licence) == (None, "own weights")
    with pytest.raises(CheckpointError, match="2 misshapen: projection"):
        encoders.build("test_resnet", out_dim=8, weights=path)


# ----------------------------------------------------------------------- files that are no weights


class Evil:
    """What a hostile file holds: unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["beside", "instead"])
def test_a_pickle_with_code_is_refused_and_not_executed(zipped, place, original, net, tmp_path):
    evil, path = Evil(tmp_path / "touched"), tmp_path / "evil.pth"
    tree = {"state_dict": plain(original), "args": evil} if place == "beside" else evil
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    assert re.search(r"evil.*Python objects \(\S*open\)", refused(net, path))
    assert not (tmp_path / "touched").exists()
    whole = write(tmp_path / "whole.pth", original)
    assert re.search(r"whole.*ResNet.*net.state_dict\(\)", refused(net, whole))
    torch.load(path, weights_only=False)
    assert (tmp_path / "touched").exists(), "the file would have run its code"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.9999])
def test_a_truncated_or_missing_file_is_refused(suffix, share, original, net, tmp_path) -> None:
    path = tmp_path / f"cut{suffix}"
    state = {k: v.contiguous() for k, v in plain(original).items()}
    save_file(state, path) if suffix == ".safetensors" else write(path, state)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    for file in (path, path.with_stem("cut 2")):
        assert re.search(r"cut.* cannot be read .*fetch it again", refused(net, file))


def test_an_altered_file_is_refused(original, net, tmp_path) -> None:
    """torch.load alone reads on: it does not compare the checksums of its own format."""
    path = write(tmp_path / "net.pth", plain(original))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    torch.load(path, weights_only=True)
    assert "cannot be read (the checksum of" in refused(net, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, original, net, tmp_path) -> None:
    state = plain(original)
    state["layer2.0.bn1.bias"][3] = value
    path = write(tmp_path / "net.pth", {"state_dict": under("module.", state)})
    assert "NaN or infinity in module.layer2.0.bn1" in refused(net, path)


@pytest.mark.parametrize(
    ("tree", "content"),
    [
        ({"teacher": {"a": torch.ones(1)}, "epoch": 3}, "epoch, teacher"),
        ({"state_dict": {"a": torch.ones(1), "b": "text"}}, "state_dict"),
        ({"state_dict": {}}, "state_dict"),
        ({}, "nothing"),
        (torch.ones(3), "Tensor"),
        ({3: torch.ones(1)}, "3"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tree, content: str, net, tmp_path) -> None:
    message = refused(net, write(tmp_path / "net.pth", tree))
    assert re.search(rf"holds {content}, .*under state_dict or model", message)


# ------------------------------------------------------------------------- weights that do not fit


def test_unknown_and_missing_keys_are_listed(original, net, tmp_path) -> None:
    state = under("backbone.", plain(original)) | {"backbone.extra.weight": torch.ones(1)}
    gone = state.pop("backbone.layer1.0.conv2.weight")
    message = refused(net, write(tmp_path / "net.pth", lightning(state)))
    assert "(state_dict: backbone.*)" in message
    assert "1 missing: layer1.0.conv2.weight; 1 unexpected: backbone.extra.weight" in message
    elsewhere = state | {"layer1.0.conv2.weight": gone}
    message = refused(net, write(tmp_path / "net.pth", elsewhere))
    assert "1 missing: layer1.0.conv2.weight; 2 unexpected" in message


@pytest.mark.parametrize("first", ["shortcut", "downsample"])
def test_two_keys_for_one_weight_are_refused(first: str, original, net, tmp_path) -> None:
    state = plain(original)
    weight = state.pop("layer2.0.downsample.0.weight")
    for name in (first, "downsample", "shortcut"):
        state.setdefault(f"layer2.0.{name}.0.weight", weight)
    message = refused(net, write(tmp_path / "net.pth", state))
    twice = r"1 unexpected: layer2.0.(shortcut.0.weight|downsample.0.weight twice)"
    assert re.search(twice, message)


VIT, LARGE = {"name": "test_vit", "width": 1.0}, {"image_size": 224}


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ({}, VIT, r"\d\d missing: blocks.0.* and \d+ more; 126 unexpected: bn1.bias"),
        ({}, {"name": "resnet34"}, r"80 missing: layer1.2.*and 68 more$"),
        ({}, {"out_dim": 5}, r"an output layer cannot be imported: build without out_dim$"),
        (
            {},
            LARGE,
            r"\(64, 3, 3, 3\) in the file and \(64, 3, 7, 7\) in the network; image_size decides",
        ),
        (
            {},
            {"width": 0.25},
            r"is \(8,\) in the file and \(16,\) in the network; image_size decides",
        ),
        (
            VIT | {"image_size": 64},
            VIT,
            r"\(1, 1[67], 64\) in .*\(1, [45], 64\) in the network; image_size decides",
        ),
    ],
)
def test_another_network_names_what_differs(theirs, ours, message, tmp_path) -> None:
    default = {"name": "resnet18", "width": WIDTH}
    path = write(tmp_path / "net.pth", plain(encoders.build(**default | theirs).backbone))
    assert re.search(message, refused(encoders.build(**default | ours), path))


@pytest.mark.parametrize(
    "write_file",
    [
        lambda path: path.write_bytes(pickle.dumps({"a": 1})),
        lambda path: torch.save({"a": bytearray(b"a")}, path, pickle_protocol=5),
        lambda path: path.write_text("<html>"),
        lambda path: path.write_bytes(b""),
        lambda path: path.mkdir(),
        lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path),
        lambda path: torch.save({"a": torch.ones(3, device="meta")}, path),
        lambda path: torch.save({"a": torch.ones(3) + 0j}, path),
    ],
    ids=["pickle", "opcode", "page", "empty", "folder", "sparse", "meta", "complex"],
)
def test_what_is_no_table_of_weights_is_refused_without_advice_to_trust_it(
    write_file, net, tmp_path: Path
) -> None:
    write_file(tmp_path / "net.pth")
    message = refused(net, tmp_path / "net.pth")
    assert "net.pth" in message
    assert not re.search(r"weights_only|PyTorch|\(\)", message)


def test_a_file_without_a_head_holds_none(net, tmp_path: Path) -> None:
    encoders.save(net, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="holds no head"):
        methods.Head.load(tmp_path / "net.safetensors")
