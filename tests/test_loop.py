"""The training loop: schedule, divergence, and a resumed run that equals an uninterrupted one."""

import io
import itertools
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from contsteal import loop

SCHEDULE = loop.Schedule(epochs=5, batch=8, lr=1e-2)
N = 20  # two full batches and an incomplete one, which is dropped


def problem() -> tuple[nn.Module, loop.Loss]:
    """Return a small regression whose loss uses the loop's draws, with BatchNorm in the model."""
    x = torch.linspace(-1, 1, N * 4).reshape(N, 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    def loss(chosen, epoch, draws):
        noisy = x[chosen] + 0.1 * torch.randn(len(chosen), 4, generator=draws)
        return (model(noisy) - x[chosen, :2].sin()).square().mean()

    return model, loss


def weights_of(model: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def fit(seed: int = 0, **options) -> tuple[bytes, list[loop.Row]]:
    model, loss = problem()
    history = loop.fit(model, loss, N, options.pop("schedule", SCHEDULE), seed=seed, **options)
    return weights_of(model), history


def losses_of(history: list[loop.Row]) -> list[float]:
    return [row["loss"] for row in history]


def die_at(epoch: int):
    def after_epoch(done: int) -> loop.Row:
        if done == epoch:
            raise KeyboardInterrupt
        return {}

    return after_epoch


@pytest.fixture
def always_save(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)


# ------------------------------------------------------------------------------ schedule


@pytest.mark.parametrize("steps", [10, 37, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_schedule_is_a_linear_warm_up_and_then_one_cosine(steps, warmup):
    schedule = loop.Schedule(epochs=1, batch=2, lr=1.0, warmup=warmup)
    factors = [schedule.factor(step, steps) for step in range(steps)]
    ramp = max(1, round(warmup * steps))
    assert factors[:ramp] == pytest.approx([(i + 1) / ramp for i in range(ramp)])
    rest = factors[ramp:]
    assert rest == pytest.approx(
        [math.cos(math.pi * i / len(rest) / 2) ** 2 for i in range(len(rest))]
    )
    assert all(a > b for a, b in itertools.pairwise(rest)), "it never climbs back"
    assert rest[0] == 1
    assert rest[-1] == pytest.approx(0, abs=2.5 / len(rest) ** 2)


def test_the_cosine_spans_the_whole_run_and_not_an_epoch():
    _, history = fit()
    steps = SCHEDULE.epochs * (N // SCHEDULE.batch)
    expected = [1e-2 * SCHEDULE.factor(2 * epoch + 1, steps) for epoch in range(SCHEDULE.epochs)]
    assert [row["lr"] for row in history] == pytest.approx(expected)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]


def test_every_step_takes_a_full_batch_and_no_sample_twice_an_epoch():
    model, loss = problem()
    seen: dict[int, list[int]] = {}

    def spy(chosen, epoch, draws):
        assert len(chosen) == SCHEDULE.batch
        seen.setdefault(epoch, []).extend(chosen.tolist())
        return loss(chosen, epoch, draws)

    loop.fit(model, spy, N, SCHEDULE, seed=0)
    assert all(len(set(order)) == 16 and set(order) <= set(range(N)) for order in seen.values())
    assert len({tuple(order) for order in seen.values()}) == 5, "each epoch has its own order"


@pytest.mark.parametrize("n", [1, 7])
def test_fewer_samples_than_a_batch(n):
    with pytest.raises(ValueError, match=rf"{n} images .* batch of 8.*budget.*set batch to"):
        SCHEDULE.check(n)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch": 1}, {"lr": 0.0}, {"lr": float("nan")}, {"warmup": 1.0}]
)
def test_impossible_schedules(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        fit(schedule=loop.Schedule(**{"epochs": 1, "batch": 2, "lr": 0.1} | wrong))


# --------------------------------------------------------------------------- determinism


def test_training_learns_and_ends_in_eval_mode():
    model, loss = problem()
    values = losses_of(loop.fit(model, loss, N, loop.Schedule(40, 8, 1e-2), seed=0))
    assert values[-1] < 0.5 * values[0]
    assert not model.training


def test_the_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    first, history = fit(seed=3)
    torch.manual_seed(2)
    second, again = fit(seed=3)
    assert first == second
    assert losses_of(history) == losses_of(again)
    assert fit(seed=4)[0] != first


# ---------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path, always_save, bad):
    path, (model, loss) = tmp_path / "c.pt", problem()
    steps, seen = itertools.count(1), []

    def breaks(chosen, epoch, draws):  # in the second step of the third epoch
        seen.append(chosen.tolist())
        return loss(chosen, epoch, draws) * (bad if next(steps) == 6 else 1)

    with pytest.raises(loop.Diverged, match=r"epoch 3, step 2 .*learning rate") as caught:
        loop.fit(model, breaks, N, SCHEDULE, seed=0, checkpoint=path)
    some = ", ".join(map(str, seen[5][:8]))
    assert f"on images {some}, ... of the {len(seen[5])} of its batch" in str(caught.value)
    state = torch.load(path, weights_only=True)
    assert len(state["history"]) == 2
    assert all(value.isfinite().all() for value in state["model"].values())
    assert fit(checkpoint=path)[0] == fit()[0], "the good epochs are worth continuing"


def test_a_gradient_that_is_not_finite_is_a_divergence_too(tmp_path, always_save):
    path, (model, loss) = tmp_path / "c.pt", problem()
    steps = itertools.count(1)

    def breaks(chosen, epoch, draws):  # finite loss, NaN gradient, in the last step of epoch 2
        value = loss(chosen, epoch, draws)
        return value + (0 * value).sqrt() if next(steps) == 4 else value

    with pytest.raises(loop.Diverged):
        loop.fit(model, breaks, N, loop.Schedule(2, 8, 1e-2), seed=0, checkpoint=path)
    weights = torch.load(path, weights_only=True)["model"].values()
    assert all(value.isfinite().all() for value in weights)


# -------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_a_killed_run_continues_to_the_same_weights(tmp_path, always_save, epoch):
    path = tmp_path / "c.pt"
    weights, history = fit()
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint=path, after_epoch=die_at(epoch))
    saved = torch.load(path, weights_only=True)["history"]
    assert len(saved) == epoch
    torch.manual_seed(99)
    resumed, full = fit(checkpoint=path)
    assert resumed == weights
    assert losses_of(full) == losses_of(history)
    assert full[:epoch] == saved, "epochs before the kill were not run again"


def test_a_finished_run_is_not_run_again(tmp_path, always_save):
    weights, history = fit(checkpoint=tmp_path / "c.pt")
    assert fit(checkpoint=tmp_path / "c.pt") == (weights, history)


def test_dropout_continues_where_it_was(tmp_path, always_save):
    def run(**options):
        model, _ = problem()
        model.insert(3, nn.Dropout(0.5))
        x = torch.linspace(-1, 1, N * 4).reshape(N, 4)
        loop.fit(
            model, lambda i, *_: model(x[i]).square().mean(), N, SCHEDULE, seed=0, **options
        )  # fmt: skip
        return weights_of(model)

    torch.manual_seed(5)
    weights = run()
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "c.pt", after_epoch=die_at(2))
    torch.manual_seed(6)
    assert run(checkpoint=tmp_path / "c.pt") == weights


def test_kill_9_in_the_middle_of_an_epoch(tmp_path):
    script = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_loop import N, SCHEDULE, loop, problem
        loop.SAVE_EVERY = 0.0
        model, loss = problem()
        def hangs(chosen, epoch, draws):
            if epoch == 3:
                print("in epoch 4", flush=True)
                time.sleep(60)
            return loss(chosen, epoch, draws)
        loop.fit(model, hangs, N, SCHEDULE, seed=0, checkpoint=Path({str(tmp_path / "c.pt")!r}))
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert child.stdout.readline() == "in epoch 4\n"
    child.kill()
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    weights, history = fit()
    resumed, full = fit(checkpoint=tmp_path / "c.pt")
    assert resumed == weights
    assert losses_of(full) == losses_of(history)


def test_a_crash_while_saving_keeps_the_checkpoint_before(tmp_path, always_save, monkeypatch):
    path, save, count = tmp_path / "c.pt", torch.save, itertools.count(1)

    def crashes(state, file):
        if next(count) == 3:
            file.write(b"half a file")
            raise KeyboardInterrupt
        save(state, file)

    monkeypatch.setattr(torch, "save", crashes)
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint=path)
    monkeypatch.undo()
    assert len(torch.load(path, weights_only=True)["history"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.csv", "c.pt"]
    assert fit(checkpoint=path)[0] == fit()[0]


def flip(data: bytes) -> bytes:
    """Change one stored weight; the archive around it stays as it is."""
    weight = torch.load(io.BytesIO(data), weights_only=True)["model"]["0.weight"].numpy().tobytes()
    assert weight in data
    return data.replace(weight, bytes([weight[0] ^ 0xFF]) + weight[1:])


@pytest.mark.parametrize(
    "harm",
    [lambda d: b"", lambda d: b"no checkpoint", lambda d: d[: len(d) // 2], flip],
    ids=["empty", "foreign", "truncated", "flipped"],
)
def test_a_damaged_checkpoint_is_moved_aside(tmp_path, always_save, harm):
    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint=path, after_epoch=die_at(3))
    path.write_bytes(harm(path.read_bytes()))
    with pytest.warns(UserWarning, match=r"c\.pt is damaged"):
        weights, history = fit(checkpoint=path)
    assert weights == fit()[0]
    assert len(history) == SCHEDULE.epochs
    assert len(list(tmp_path.glob("c.pt.corrupt-*"))) == 1


@pytest.mark.parametrize("other", [{"seed": 1}, {"schedule": loop.Schedule(6, 8, 1e-2)}])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, always_save, other):
    path = tmp_path / "c.pt"
    fit(checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="another run"):
        fit(checkpoint=path, **other)
    assert path.read_bytes() == before


def test_every_epoch_is_logged_to_a_csv_beside_the_checkpoint(tmp_path):
    seen = []

    def after_epoch(epoch: int) -> loop.Row:
        path = tmp_path / "last.csv"
        seen.append(path.read_text().splitlines() if path.exists() else [])
        return {"knn": 0.5} if epoch == 2 else {}

    history = fit(checkpoint=tmp_path / "last.pt", after_epoch=after_epoch)[1]
    lines = (tmp_path / "last.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,lr,seconds,knn"
    assert [len(part) for part in seen] == [0, 2, 3, 4, 5], "after each epoch, and not at the end"
    assert [line.split(",")[1] for line in lines[1:]] == [str(row["loss"]) for row in history]
    assert [line.split(",")[4] for line in lines[1:]] == ["", "", "0.5", "", ""]
