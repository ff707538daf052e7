"""Shared by all tests: one thread, no progress bars, repeatable property tests, a tiny encoder."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from contsteal import encoders
from contsteal.lab.experiment import Lab

os.environ["TQDM_DISABLE"] = "1"
torch.set_num_threads(1)
settings.register_profile("contsteal", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("contsteal")


@pytest.fixture
def tiny() -> encoders.Encoder:
    """A fresh encoder of 0.4 M weights: images (N, 3, H, W) to features (N, 96)."""
    return encoders.build("test_resnet", seed=0)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The smoke profile, with artifacts and figures in folders that one module's tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTSTEAL_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("CONTSTEAL_FIGURES", str(tmp_path_factory.mktemp("figures")))
        yield Lab("smoke")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test: beside it, the other worker does most of the short ones."""
    items.sort(key=lambda item: item.name != "test_the_commands_run_one_after_another")
