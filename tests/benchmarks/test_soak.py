"""The campaign of faults in short: everything is survived, and what is not survived would be counted."""

import math

import pandas as pd
import pytest
import torch

from benchmarks import soak
from contsteal import losses, victim


def test_a_short_campaign_is_survived(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.random.get_rng_state()
    table, problems = soak.campaign(short=True, seed=0)
    torch.random.set_rng_state(before)
    assert problems == []
    assert (table["tried"] == table["survived"]).all()
    assert len(table) >= len(soak.FAULTS) - 2, "whole runs are for `make soak`"


@pytest.mark.parametrize(
    ("do", "problem"),
    [
        (lambda: {}["a"], "KeyError"),
        (lambda: torch.ones(2) @ torch.ones(3), "RuntimeError"),
        (lambda: int("a"), "ValueError"),
        (lambda: math.nan, "NaN or infinity"),
        (lambda: [0.0, {"a": torch.tensor([1.0, math.inf])}], "NaN or infinity"),
        (lambda: losses.mse(torch.ones(2, 2), torch.ones(3, 2)), None),
        (lambda: victim.BlackBox(soak.Sums(), budget=0), None),
        (lambda: [1, "a", torch.ones(2)], None),
    ],
)
def test_only_finite_results_and_clear_errors_count_as_survived(do, problem: str | None) -> None:
    text = soak.outcome(do)
    assert text == soak.SURVIVED if problem is None else text.startswith(problem)


def test_what_is_not_survived_is_counted_and_makes_the_command_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    def fault(home, dice, count: int):
        for k in range(count):
            yield "it broke" if k % 2 else soak.SURVIVED

    monkeypatch.setattr(soak, "FAULTS", {"a fault": (fault, 4, 2)})
    monkeypatch.setattr(soak, "RESULT", tmp_path / "soak.csv")
    assert soak.main(["--short"]) == 1
    assert "a fault: it broke (1)" in capsys.readouterr().out
    assert not soak.RESULT.exists()
    assert soak.main([]) == 1
    assert pd.read_csv(soak.RESULT)[["tried", "survived"]].to_numpy().tolist() == [[4, 2]]
