"""Shared by all tests: one thread, no progress bars, repeatable property tests, a tiny encoder."""

import os

import pytest
import torch
from hypothesis import settings

from contsteal import encoders

os.environ["TQDM_DISABLE"] = "1"
torch.set_num_threads(1)
settings.register_profile("contsteal", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("contsteal")


@pytest.fixture
def tiny() -> encoders.Encoder:
    """A fresh encoder of 0.4 M weights: images (N, 3, H, W) to features (N, 96)."""
    return encoders.build("test_resnet", seed=0)
