"""The checks of parameters that configs, schedules and defences share."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import contsteal
from contsteal import attacks, loop, methods

CONFIGS = {
    "attack": attacks.Config(),
    "victim": methods.Config(),
    "schedule": loop.Schedule(epochs=1, batch=8, lr=1e-3),
}
BAD_NUMBERS = [math.nan, math.inf, -math.inf, "3", [3], True, 10**400, 1j, torch.ones(2)]


@pytest.mark.parametrize(
    ("hint", "value", "kept"),
    [
        (int, np.int64(3), 3),
        (float, 2, 2.0),
        (float, np.float32(0.5), 0.5),
        (float, Fraction(1, 4), 0.25),
        (contsteal.Positive | None, None, None),
        (contsteal.Count | None, 3, 3),
        (Literal["a", "b"], "b", "b"),
        (Literal["a", "b"] | None, None, None),
        (bool, False, False),
        (str | None, "x", "x"),
        (dict[str, Any] | None, {"a": 1}, {"a": 1}),
    ],
)
def test_what_fits_an_annotation_is_kept_as_its_type(hint: Any, value: Any, kept: Any) -> None:
    got = contsteal.fitting(value, "x", hint)
    assert got == kept
    assert type(got) is type(kept)


@pytest.mark.parametrize(
    ("hint", "values", "message"),
    [
        (int, [*BAD_NUMBERS, 1.5, 2.0], "x=.*: a whole number is needed"),
        (float, BAD_NUMBERS, "x=.*: a finite number is needed"),
        (contsteal.Positive, [0, -1.0, None], "x=.*: a finite number above 0 is needed"),
        (contsteal.Natural | None, [-1, 0.5], "x=.*: a whole number of at least 0 is needed"),
        (contsteal.Seed, [2**63, -(2**64)], "x=.*: a whole number of at least"),
        (Annotated[float, ("least", 0), ("below", 1)], [1, -0.1], "of at least 0 and below 1"),
        (Literal["a", "b"], ["c", None, 3, ["a"], np.array(["a", "b"])], "unknown x .*of a, b$"),
        (bool, [0, 1, "no", None], "x=.*: True or False is needed"),
        (str, [3, None, b"x"], "x=.*: a text is needed"),
    ],
)
def test_what_does_not_fit_is_refused(hint: Any, values: list[Any], message: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=message):
            contsteal.fitting(value, "x", hint)


@given(
    kind=st.sampled_from(list(CONFIGS)),
    data=st.data(),
    value=st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
        st.lists(st.integers(), max_size=2), st.sampled_from(["clean", "self", 10**400, b"x", 1j]),
    ),
)  # fmt: skip
def test_a_config_holds_what_its_annotations_say_or_is_refused(kind, data, value) -> None:
    field = data.draw(st.sampled_from(sorted(vars(CONFIGS[kind]))))
    try:
        config = replace(CONFIGS[kind], **{field: value})
    except ValueError:
        return  # any other error fails the test
    kept, default = getattr(config, field), getattr(CONFIGS[kind], field)
    assert kept is value or kept == value
    assert not isinstance(kept, float) or math.isfinite(kept)
    assert field == "inputs" or isinstance(kept, type(default) | int | float | str | None)


def test_a_tensor_of_real_numbers_is_dense_and_anything_else_is_named() -> None:
    x = torch.ones(2, 2)
    assert contsteal.dense(x)
    assert contsteal.shown(x) == "(2, 2) torch.float32"
    quantised = torch.quantize_per_tensor(x, 1.0, 0, torch.quint8)
    others = [x.to_sparse(), x.to("meta"), x + 0j, torch.nested.nested_tensor([x]), quantised]
    for other in (*others, None, x.numpy(), x.tolist(), "x"):
        assert not contsteal.dense(other)
        assert contsteal.shown(other) == f"of kind {type(other).__name__}"
