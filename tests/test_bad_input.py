"""What a user may hand the experiments by mistake: each is refused in words."""

import numpy as np
import pytest
import torch

from contsteal import steal
from contsteal.defenses import GaussianNoise
from contsteal.lab import provider
from contsteal.seeds import generator

ROWS = torch.randn(40, 6, generator=generator("rows"))


def test_seeds_of_numpy_make_the_chain_of_their_numbers():
    one, two = (provider.seeded([GaussianNoise(1.0)], seed)[0] for seed in (np.int64(3), 3))
    assert one(ROWS, "ann").equal(two(ROWS, "ann"))


def test_a_threshold_needs_queries():
    for rows, share in ((ROWS[:1], 0.05), (ROWS[:0], 0.05), (ROWS, 0.0), (ROWS, 2)):
        with pytest.raises(ValueError, match=f"{len(rows)} queries, share={share}: at least 2"):
            provider.similarity(rows, share)
    with pytest.raises(ValueError, match="NaN"):
        provider.similarity(ROWS / 0)


def test_no_map_is_learnt_from_nan():
    with pytest.raises(ValueError, match="one finite row each"):
        steal.learn_remap(ROWS / 0, ROWS)
    with pytest.raises(ValueError, match="one finite row each"):
        steal.learn_remap(ROWS, ROWS[:3])
