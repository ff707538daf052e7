"""Profiles: every stored one is right, and each mistake is named with its place in one sentence."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from contsteal import attacks, defenses, methods
from contsteal.lab import profiles

WHOLE = {
    "data": "shapes", "image_size": 32, "train_images": 64, "probe_images": 32, "test_images": 32,
    "query_data": "shapes", "query_images": 32, "victim": {}, "supervised": {},
    "surrogate": {"encoder": "conv4"},
}  # fmt: skip


def write(folder: Path, text: str) -> None:
    """Write a profile; its `common`, where it is a table, changes one that has all it needs."""
    given = yaml.safe_load(text)
    given["common"] = WHOLE | given.get("common", {})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(given))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    return tmp_path


def test_further_victims_have_names_that_a_method_takes() -> None:
    """Those of the profile `timm`: each with its own encoder, all at the profile's size."""
    common = profiles.profile("timm")["common"]
    for name, encoder in (("mae", "vit_base_patch16_224.mae"), (None, "resnet50.tv_in1k")):
        config = profiles.config(common, "victim", name)
        assert (config.method, config.encoder, config.weights) == ("ready", encoder, "timm")
        assert config.image_size == 224
    assert profiles.changed("timm", {"method": "dinov3"})[1] == "dinov3"
    with pytest.raises(ValueError, match=r"method 'dino': choose one of .*byol.*, convnextv2"):
        profiles.changed("timm", {"method": "dino"})


@pytest.mark.parametrize("name", profiles.names())
def test_stored_profiles_are_right_and_can_be_trained(name: str) -> None:
    common = profiles.profile(name)["common"]
    assert profiles.config(common).image_size == common["image_size"]
    assert profiles.config(common, "supervised").epochs > 0
    assert attacks.Config(**common["surrogate"]).epochs > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notebook: {}", "tiny.yaml: unknown parameter 'notebook': choose one of about, common"),
        ("common: {dta: shapes}", "tiny.yaml, common: unknown parameter 'dta': choose one of data, im"),
        ("common: {victim: {epoch: 3}}", "victim: unknown parameter 'epoch': choose one of method"),
        ("common: {surrogate: {encoder: conv4, epoch: 3}}", "surrogate: unknown parameter 'epoch': "),
        ("common: {methods: {mocoo: {}}}", "tiny.yaml, methods.mocoo: unknown method 'mocoo': choose"),
        ("common: {rates: {embedding: x}}", "rates.embedding='x' should be a valid number"),
        ("common: {methods: {moco: {lr: x}}}", "methods.moco.lr='x' should be a valid number"),
        ("common: {victim: {lr: 1e-3}}", "tiny.yaml: victim.lr='1e-3' should be a valid number; YAML "
         "reads 1e-3 as text, write 1.0e-3"),
        ("common: {victim: {epochs: 3.0}}", "victim.epochs=3.0 should be a valid integer"),
        ("common: {surrogate: {encoder: conv4, negatives: all}}", "surrogate.negatives='all' should"),
        ("common: {victim: 3}", "tiny.yaml: victim=3 should be a valid dictionary"),
        ("common: {image_size: '32'}", "image_size='32' should be a valid integer"),
        ("notebooks: [a]", "notebooks=['a'] should be a valid dictionary"),
        ("expectations: [{encoder: a, task: b, metric: mrr}]",
         "expectations[0].metric='mrr' should be 'accuracy' or 'knn'"),
        ("expectations: [{encoder: a, metric: knn}]", "expectations[0].task is needed; demo.yaml"),
        ("expectations: [{encoder: a, task: b, metric: knn, low: .nan}]", "low=nan should be a finite"),
        ("common: {surrogate: {lr: 0.1}}", "tiny.yaml: surrogate.encoder is needed"),
        ("common: {at_once: 0}", "tiny.yaml: at_once=0 should be greater than or equal to 1"),
        ("common: {image_size: 7}", "tiny.yaml: image_size=7 should be greater than or equal to 8"),
        ("common: {price: .nan}", "tiny.yaml: price=nan should be a finite number"),
        ("common: {victim: {temperature: 0}}", "temperature=0.0: a finite number above 0 is needed"),
        ("common: {watermark: {kind: rotation}}", "watermark: set epochs to 1 or more"),
        ("common: {watermark: {epochs: 1, kind: sslguard, start: scratch}}", "set start to victim"),
        ("common: {victim: {encoder: resnet19}}", "victim.encoder: unknown encoder 'resnet19': nearest"),
        ("common: {surrogate: {encoder: ''}}", "surrogate.encoder: unknown encoder ''"),
        ("common: {supervised: {policy: simcrl}}", "supervised.policy: unknown policy 'simcrl'"),
        ("common: {surrogate: {encoder: conv4, policy: a}}", "policy: unknown policy 'a': choose"),
        ("common: {methods: {moco: {optimizer: adam}}}", "methods.moco.optimizer: unknown optimizer"),
        ("common: {victim: {method: mocoo}}", "victim.method: unknown method 'mocoo': choose one of"),
        ("common: {surrogate: {encoder: conv4, attack: mse}}", "attack: unknown attack 'mse': choose"),
        ("common: {data: shapez}", "tiny.yaml, data: unknown data set 'shapez': choose one of"),
        ("common: {query_data: 'folder:'}", "query_data: unknown data set 'folder:': choose one of"),
        ("common: {watermark: {epochs: 1, data: a}}", "watermark.data: unknown data set 'a': choose one"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(folder: Path, text: str, message: str) -> None:
    write(folder, text)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 the message follows
        profiles.profile("tiny")
    assert message in str(raised.value)
    assert str(raised.value).count("\n") == 0, "one mistake is one sentence"
    write(folder, "common: {workers: a, victim: {epochs: b}}\nabout: 3")
    with pytest.raises(ValueError, match=r"^.*about=3.*\n.*\n.*$"):
        profiles.profile("tiny")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"common: [", "tiny.yaml cannot be read: while parsing .*, line 2"),
        (b"common: {data: \xe9}", "tiny.yaml cannot be read: unacceptable character .*UTF-8"),
        (b"common: {data: a}\0", "tiny.yaml cannot be read: unacceptable character"),
        (b"common: &a {data: *a}", "tiny.yaml cannot be read: an alias.*: write its values out"),
        (b"common:\n  data: a\n  price: 1\n  data: b",
         r"tiny.yaml cannot be read: line 2: \['data', 'price', 'data'\] names 'data' twice"),
        (b"notebooks:\n  a: {seeds: [0]}\n  'a': {}", "tiny.yaml cannot .* names 'a' twice: name it"),
        (b"about: " + 3000 * b"[", "tiny.yaml cannot be read: "),
        (b"- 1", r"tiny.yaml: \[1\] should be a valid dictionary"),
        (b"", "tiny.yaml: None should be a valid dictionary"),
        (b"about: a", "tiny.yaml: common is needed; demo.yaml shows how"),
        (None, "tiny.yaml cannot be read: .*Is a directory"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_profile_is_named_in_one_line(
    folder: Path, content: bytes | None, message: str
) -> None:
    path = folder / "tiny.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        profiles.profile("tiny")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": [0, 1, 0]}, r"seeds=\[0, 1, 0\] names 0 twice: name it once"),
        ({"goals": [1, 0.5, 1.0]}, r"goals=\[1, 0.5, 1.0\] names 1.0 twice"),
        ({"more_seeds": [1]}, r"seeds and more_seeds=\[0, 1, 1\] names 1 twice"),
        ({"tasks": ["a", "a"]}, "tasks=.* names 'a' twice"),
        ({"elsewhere": [["a", "b", 1]] * 2}, "elsewhere=.* twice"),
        ({"strengths": {"top-k": [5, 5]}}, r"strengths.top-k=\[5, 5\] names 5 twice"),
        ({"strengths": {"top-k": [math.inf]}}, r"strengths.top-k\[0\]=inf: a finite number is"),
        ({"goals": [math.nan]}, r"goals\[0\]=nan should be a finite number"),
        ({"offset": [math.nan, 1.0]}, r"offset\[0\]=nan should be a finite number"),
        ({"attacks": ["label", "mse"]}, r"attacks\[1\]: unknown attack 'mse': choose one of label"),
        ({"attacks": ["label, no views"]}, r"attacks\[0\]: unknown variant 'no views': choose"),
        ({"classifiers": {"victim": ["a"]}}, r"classifiers.victim\[0\]: unknown attack 'a'"),
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any], message: str) -> None:
    known = {"seeds": [0, 1], "more_seeds": [], "tasks": [""], "elsewhere": [["", "", 0]],
             "strengths": {}, "goals": [0.5], "offset": [0.2, 1.0],
             "attacks": ["label"], "classifiers": {}}  # fmt: skip
    profiles.check({"offset": [1.0, 1.0], "elsewhere": [["a", "a", 1]]}, known, "here")
    with pytest.raises(ValueError, match=f"^here: {message}"):
        profiles.check(values, known, "here")


@pytest.mark.parametrize("name", ["huge", "../../x", "/etc/passwd", "", "tiny.yaml"])
def test_only_profiles_of_the_folder_exist(folder: Path, name: str) -> None:
    (folder / "tiny.yaml").write_text("common: {}")
    with pytest.raises(ValueError, match=f"unknown profile '{name}': choose one of tiny"):
        profiles.profile(name)


def test_values_are_returned_as_written(folder: Path) -> None:
    """A whole number for a float stays one: it is part of the keys of stored artifacts."""
    write(folder, "common: {price: 1, victim: {lr: 1}}")
    assert profiles.profile("tiny") == {"common": WHOLE | {"price": 1, "victim": {"lr": 1}}}
    assert type(profiles.profile("tiny")["common"]["price"]) is int


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dta": 3}, "changes of smoke: unknown parameter 'dta'"),
        ({"query_images": "9"}, "changes of smoke: query_images='9' should be a valid integer"),
        ({"method": "mocoo"}, "unknown method 'mocoo': choose one of simclr, moco"),
        ({"watermark": {"lr": 0.1}}, "changes of smoke, watermark: set epochs"),
        ({"watermark": {"epochs": 1, "batch": -1}}, "watermark.batch=-1 should be greater than"),
        ({"surrogate": {"temperature": 0.0}}, "temperature=0.0: a finite number above 0 is needed"),
        ({"rates": {"embeding": 0.1}}, "rates.embeding: unknown attack 'embeding': choose"),
        ({"rates": {"label, own view": 0.1}}, "unknown variant 'own view': choose one of"),
        ({"rates": {"label, anew": 0.1}}, "'label, anew': name an attack, with no other word"),
        ({"rates": {"embedding": 0.0}}, "rates.embedding=0.0 should be greater than 0"),
        ({"rates": {"embedding": math.nan}}, "rates.embedding=nan should be a finite number"),
    ],
)
def test_changes_are_checked_too(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 the message follows
        profiles.changed("smoke", changes)
    assert message in str(raised.value)


def test_changes_replace_settings_and_name_the_method() -> None:
    settings, method = profiles.changed("smoke", {"query_images": 7, "method": "byol"})
    assert (settings["query_images"], settings["query_split"], method) == (7, "train", "byol")
    assert "method" not in settings
    assert profiles.changed("smoke", {})[1] is None


def test_another_method_keeps_the_victims_settings_but_not_those_of_its_method() -> None:
    common = {"image_size": 32, "victim": {"method": "simclr", "temperature": 0.1, "epochs": 3},
              "methods": {"moco": {"queue": 64}}}  # fmt: skip
    moco = profiles.config(common, "victim", "moco")
    assert (moco.method, moco.temperature, moco.epochs, moco.queue) == ("moco", None, 3, 64)
    simclr = profiles.config(common)
    assert (simclr.temperature, simclr.queue) == (0.1, methods.Config.queue)


@pytest.mark.parametrize(
    ("own", "length"),
    [
        ({}, (200, 9)),
        ({"epochs": 3}, (3, 0)),
        ({"epochs": 3, "steps": 5}, (3, 5)),
        ({"steps": 5}, (200, 5)),
    ],
)
def test_epochs_of_a_method_s_own_replace_the_victim_s_steps(own: dict, length: tuple) -> None:
    victim = {"method": "simclr", "steps": 9}
    common = {"image_size": 32, "victim": victim, "methods": {"byol": own}}
    byol, simclr = profiles.config(common, "victim", "byol"), profiles.config(common)
    assert (byol.epochs, byol.steps) == length
    assert simclr.steps == 9


def test_weights_are_looked_for_in_the_repository() -> None:
    victim = {"method": "ready", "weights": "a.pth"}
    config = profiles.config({"image_size": 32, "victim": victim})
    assert config.weights == str(profiles.artifacts.ROOT / "a.pth")


def test_defaults_of_a_watermark_are_filled_in() -> None:
    assert profiles.watermark({}) == {}
    filled = profiles.watermark({"epochs": 2, "lr": 1})
    assert filled == {
        "kind": "rotation", "start": "victim", "epochs": 2, "images": 0, "batch": 0, "lr": 1,
        "weight": 1.0, "trained_head": True, "data": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("default", "right", "wrong"),
    [
        (0.1, [0.2, 1], ["1e-3", True, None]),
        (1, [2], [2.0, True, "2"]),
        (True, [False], [0]),
        ("a", [""], [1, None]),
        ([1], [[2, 3]], [[], 1, ["a"], [2.5]]),
        ([], [[], ["a", 1]], [1]),
        ([["a", "b", 1]], [[["c", "d", 2], ["e", "f", 3]]], [[["c", "d"]], [["c", 1, 2]], ["c"]]),
        ({"a": 1}, [{}, {"b": "c"}], [[1], 1]),
        (None, [None, 1, "a"], []),
    ],
)
def test_a_value_is_of_its_defaults_type(default: object, right: list, wrong: list) -> None:
    for value in right:
        profiles.check({"x": value}, {"x": default, "y": 1}, "here")
    for value in wrong:
        with pytest.raises(ValueError, match=r"^here: x"):
            profiles.check({"x": value}, {"x": default}, "here")


def test_equal_defences_are_one_value_named_twice() -> None:
    """They are compared by what they say of themselves: each is an object of its own."""
    with pytest.raises(ValueError, match=r"names \[TopK\(5\)\] twice"):
        profiles.distinct([[defenses.TopK(5)], [defenses.TopK(5)]])
    assert len(profiles.distinct([[defenses.TopK(5)], [defenses.TopK(6)], []])) == 3
