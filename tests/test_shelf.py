"""Answers that outlive a process: read, not computed; never half, never another victim's."""

from pathlib import Path

import pytest
import torch
from torch import nn

from contsteal import encoders
from contsteal.lab import artifacts
from contsteal.victim import Answers, Shelf, digests


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return encoders.build("test_resnet", 32, seed=0).eval()


def test_another_process_reads_what_one_has_computed(
    net: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    names = digests(images)
    one, two = (Answers(net, Shelf(tmp_path / "kept")) for _ in range(2))
    made = one(images, names)
    read = two(images.flip(0), names[::-1])  # another request: computed
    again = Answers(net, Shelf(tmp_path / "kept"))
    assert torch.equal(again(images, names), made)
    assert torch.equal(again(images[3:5], names[3:5]), made[3:5])
    assert (one.forwards, two.forwards, again.forwards) == (12, 12, 0)
    torch.testing.assert_close(read.flip(0), made)


def test_a_damaged_file_is_moved_aside_and_computed_again(
    net: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    names = digests(images)
    made = Answers(net, Shelf(tmp_path))(images, names)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-40])
    anew = Answers(net, Shelf(tmp_path))
    assert torch.equal(anew(images, names), made)
    assert anew.forwards == 12
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 1
    assert Answers(net, Shelf(tmp_path)).shelf.get(names) is not None


def test_a_full_shelf_keeps_what_it_has_and_takes_no_more(tmp_path: Path) -> None:
    full = Shelf(tmp_path, limit=1000)
    full.put([b"a"], torch.ones(1, 100))
    full.put([b"b"], torch.ones(1, 200))
    assert full.get([b"a"]).shape == (1, 100)
    assert full.get([b"b"]) is None
    assert 400 < full.bytes() <= 1000


def test_a_shelf_belongs_to_one_victim_on_one_kind_of_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "runs_dir", lambda: tmp_path)
    folders = {Shelf.of(v, [m]).folder for v in ("one", "two") for m in ("cpu", "cuda")}
    assert len(folders) == 4
    assert Shelf.of("one", ["cpu"]).folder in folders
