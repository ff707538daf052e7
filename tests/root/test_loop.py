"""The training loop: schedule, divergence, resumed runs, exact mode, and compiled steps."""

import io
import itertools
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.record import forced
from contsteal import loop

SCHEDULE = loop.Schedule(epochs=5, batch=8, lr=1e-2)
N = 20  # two full batches and an incomplete one, which is dropped
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _defaults(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start from the defaults, and leave torch as it was."""
    for variable, _ in loop.CHOICES.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with forced():
        yield


@pytest.fixture
def always_save(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)


def problem() -> tuple[nn.Module, loop.Loss]:
    """Return a small regression whose loss uses the loop's draws, with BatchNorm in the model."""
    x = torch.linspace(-1, 1, N * 4).reshape(N, 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    def loss(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        noisy = x[chosen] + 0.1 * torch.randn(len(chosen), 4, generator=draws)
        return (model(noisy) - x[chosen, :2].sin()).square().mean()

    return model, loss


def weights_of(model: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def fit(seed: int = 0, schedule: loop.Schedule = SCHEDULE, **options: Any) -> tuple[bytes, list]:
    """Train the small regression; return its weights and its losses."""
    model, loss = problem()
    history = loop.fit(model, loss, N, schedule, seed=seed, **options)
    return weights_of(model), [row["loss"] for row in history]


def die_at(epoch: int) -> Callable[[int], loop.Row]:
    def after_epoch(done: int) -> loop.Row:
        if done == epoch:
            raise KeyboardInterrupt
        return {}

    return after_epoch


# ------------------------------------------------------------------------------ schedule


@pytest.mark.parametrize("steps", [10, 37, 1000])
def test_schedule_is_a_linear_warm_up_and_then_one_cosine(steps):
    schedule = loop.Schedule(epochs=1, batch=2, lr=1.0)
    factors = [schedule.factor(step, steps) for step in range(steps)]
    ramp = {10: 1, 37: 4, 1000: 100}[steps]
    rest = [math.cos(math.pi * i / (steps - ramp) / 2) ** 2 for i in range(steps - ramp)]
    assert factors == pytest.approx([(i + 1) / ramp for i in range(ramp)] + rest)
    assert all(a > b for a, b in itertools.pairwise(factors[ramp:])), "it never climbs back"


@pytest.fixture
def stepped() -> Iterator[list[float]]:
    """The learning rate of every step that an optimizer does."""
    rates = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    hook = register_optimizer_step_post_hook(note)
    yield rates
    hook.remove()


@pytest.mark.parametrize("batch", [3, 20])
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_exactly_so_many_steps_are_done_and_the_last_epoch_is_cut_short(stepped, batch, steps):
    (model, loss), seen = problem(), []

    def spy(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        seen.append((epoch, chosen.tolist()))
        return loss(chosen, epoch, draws)

    schedule = loop.Schedule(epochs=99, batch=batch, lr=1e-2, steps=steps)
    history = loop.fit(model, spy, N, schedule, seed=0)
    assert schedule.total(N) == len(stepped) == len(seen) == steps
    per_epoch = N // batch
    assert [epoch for epoch, _ in seen] == [step // per_epoch for step in range(steps)]
    assert [row["epoch"] for row in history] == list(range(1, math.ceil(steps / per_epoch) + 1))
    for epoch in range(len(history)):
        images = [i for e, chosen in seen if e == epoch for i in chosen]
        assert len(images) == len(set(images)), "an image is seen once an epoch"
    assert all(len(chosen) == batch for _, chosen in seen)
    assert len({tuple(chosen) for _, chosen in seen}) == steps, "each epoch has its own order"
    assert all(math.isfinite(row["loss"]) for row in history), "over the steps that were done"
    assert history[-1]["lr"] == stepped[-1]
    assert stepped == pytest.approx([1e-2 * schedule.factor(k, steps) for k in range(steps)])


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("batch", [6, 8])
def test_epochs_and_steps_that_mean_the_same_give_the_same_weights(epochs, batch):
    by_epochs = loop.Schedule(epochs, batch, 1e-2)
    by_steps = loop.Schedule(99, batch, 1e-2, steps=epochs * (N // batch))
    assert fit(schedule=by_steps) == fit(schedule=by_epochs)
    assert by_steps.total(N) == by_epochs.total(N)
    cut = replace(by_steps, steps=by_steps.steps + 1)
    assert fit(schedule=cut)[0] != fit(schedule=by_epochs)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps=-1: a whole number of at least 0"),
        ({"steps": 3, "batch": 21}, "20 images .* batch of 21"),
        ({"batch": 21}, "20 images .* batch of 21.*budget.*set batch to 20"),
        ({"epochs": 0}, "epochs=0: a whole number of at least 1"),
        ({"batch": 1}, "batch=1: a whole number of at least 2"),
        ({"lr": 0.0}, r"lr=0\.0: a finite number above 0"),
        ({"lr": float("nan")}, "lr=nan: a finite number above 0"),
        ({"optimizer": "lars"}, "unknown optimizer 'lars': choose one of adamw, sgd"),
    ],
)
def test_impossible_schedules(changes, message):
    with pytest.raises(ValueError, match=message):
        fit(schedule=replace(SCHEDULE, **changes))


def test_training_learns_and_leaves_no_gradients():
    model, loss = problem()
    history = loop.fit(model, loss, N, loop.Schedule(40, 8, 1e-2), seed=0)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_the_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    first = fit(seed=3)
    torch.manual_seed(2)
    assert fit(seed=3) == first
    assert fit(seed=4)[0] != first[0]


# ---------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path, always_save, bad):
    path, (model, loss) = tmp_path / "c.pt", problem()
    seen: list[list[int]] = []

    def breaks(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        seen.append(chosen.tolist())
        return loss(chosen, epoch, draws) * (bad if len(seen) == 6 else 1)

    with pytest.raises(loop.Diverged, match=r"epoch 3, step 2, .*learning rate") as caught:
        loop.fit(model, breaks, N, SCHEDULE, seed=0, checkpoint=path)
    some = ", ".join(map(str, seen[5]))
    assert f"on a batch of 8 images ({some}, ...)" in str(caught.value)
    state = torch.load(path, weights_only=True)
    assert len(state["history"]) == 2
    assert all(value.isfinite().all() for value in state["model"].values())
    assert fit(checkpoint=path)[0] == fit()[0], "the good epochs are worth continuing"


def test_a_gradient_that_is_not_finite_is_a_divergence_too(tmp_path, always_save):
    path, (model, loss), steps = tmp_path / "c.pt", problem(), itertools.count(1)

    def breaks(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        value = loss(chosen, epoch, draws)  # finite, with a NaN gradient in the last step
        return value + (0 * value).sqrt() if next(steps) == 4 else value

    with pytest.raises(loop.Diverged, match="epoch 2"):
        loop.fit(model, breaks, N, loop.Schedule(2, 8, 1e-2), seed=0, checkpoint=path)
    weights = torch.load(path, weights_only=True)["model"].values()
    assert all(value.isfinite().all() for value in weights)


# -------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(("steps", "epoch"), [(0, 1), (0, 2), (0, 4), (7, 1), (7, 3)])
def test_a_killed_run_continues_to_the_same_weights(tmp_path, always_save, stepped, steps, epoch):
    path, schedule = tmp_path / "c.pt", replace(SCHEDULE, steps=steps)
    with pytest.raises(KeyboardInterrupt):
        fit(schedule=schedule, checkpoint=path, after_epoch=die_at(epoch))
    saved, before = torch.load(path, weights_only=True)["history"], len(stepped)
    assert (len(saved), before) == (epoch, min(2 * (epoch + 1), schedule.total(N)))
    torch.manual_seed(99)
    model, loss = problem()
    history = loop.fit(model, loss, N, schedule, seed=0, checkpoint=path)
    assert len(stepped) == before + schedule.total(N) - 2 * epoch, (
        "what was saved is not done again"
    )
    assert (weights_of(model), [row["loss"] for row in history]) == fit(schedule=schedule)
    assert history[:epoch] == saved
    done = len(stepped)
    assert fit(schedule=schedule, checkpoint=path)[0] == weights_of(model)
    assert len(stepped) == done, "a finished run is not run again"
    with pytest.raises(ValueError, match="another run"):
        fit(schedule=replace(schedule, steps=8), checkpoint=path)


def test_dropout_continues_where_it_was(tmp_path, always_save):
    def run(seed: int, **options: Any) -> bytes:
        torch.manual_seed(seed)
        x = torch.linspace(-1, 1, N * 4).reshape(N, 4)
        model = nn.Sequential(problem()[0], nn.Dropout(0.5), nn.Linear(2, 2))
        torch.manual_seed(seed)
        nn.init.eye_(model[2].weight)
        nn.init.zeros_(model[2].bias)
        loop.fit(model, lambda i, *_: model(x[i]).square().mean(), N, SCHEDULE, seed=0, **options)
        return weights_of(model)

    weights = run(5)
    with pytest.raises(KeyboardInterrupt):
        run(5, checkpoint=tmp_path / "c.pt", after_epoch=die_at(2))
    assert run(6, checkpoint=tmp_path / "c.pt") == weights
    assert run(6) != weights


def test_kill_9_in_the_middle_of_an_epoch(tmp_path):
    script = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_loop import N, SCHEDULE, loop, problem
        loop.SAVE_EVERY = -1.0
        model, loss = problem()
        def hangs(chosen, epoch, draws):
            if epoch == 3:
                print("in epoch 4", flush=True)
                time.sleep(60)
            return loss(chosen, epoch, draws)
        loop.fit(model, hangs, N, SCHEDULE, seed=0, checkpoint=Path({str(tmp_path / "c.pt")!r}))
    """
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    options = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | threads}
    with subprocess.Popen(command, **options) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == "in epoch 4\n"
        p.kill()
        assert p.wait() == -signal.SIGKILL
    assert len(torch.load(tmp_path / "c.pt", weights_only=True)["history"]) == 3
    assert fit(checkpoint=tmp_path / "c.pt") == fit()


def test_a_crash_while_saving_keeps_the_checkpoint_before(tmp_path, always_save, monkeypatch):
    path, write, count = tmp_path / "c.pt", Path.write_bytes, itertools.count(1)

    def crashes(path: Path, data: bytes) -> None:
        if next(count) == 3:
            write(path, b"half a file")
            raise SystemExit
        write(path, data)

    monkeypatch.setattr(Path, "write_bytes", crashes)
    with pytest.raises(SystemExit):
        fit(checkpoint=path)
    monkeypatch.undo()
    assert len(torch.load(path, weights_only=True)["history"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pt"]
    assert fit(checkpoint=path) == fit()


def test_a_folder_is_no_checkpoint_and_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="checkpoint=3: the path of a file is needed"):
        fit(checkpoint=3)
    with pytest.raises(ValueError, match="mine is a folder"):
        fit(checkpoint=tmp_path / "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def flip(data: bytes) -> bytes:
    """Change one stored weight; the archive around it stays as it is."""
    weight = torch.load(io.BytesIO(data), weights_only=True)["model"]["0.weight"].numpy().tobytes()
    assert weight in data
    return data.replace(weight, bytes([weight[0] ^ 0xFF]) + weight[1:])


def resized(data: bytes) -> bytes:
    """Give a checkpoint weights of another shape."""
    state, file = torch.load(io.BytesIO(data), weights_only=True), io.BytesIO()
    state["model"]["0.weight"] = torch.ones(9, 9)
    torch.save(state, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "harm",
    [
        lambda d: b"",
        lambda d: b"no checkpoint",
        lambda d: d[: len(d) // 2],
        flip,
        resized,
        pickle.dumps,
    ],
    ids=["empty", "foreign", "truncated", "flipped", "other weights", "pickle"],
)
def test_a_damaged_checkpoint_is_moved_aside(tmp_path, always_save, harm):
    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint=path, after_epoch=die_at(3))
    path.write_bytes(harm(path.read_bytes()))
    with pytest.warns(UserWarning, match=r"damaged: it is moved aside, and training starts again$"):
        assert fit(checkpoint=path) == fit()
    assert len(list(tmp_path.glob("c.pt.corrupt-*"))) == 1


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"schedule": loop.Schedule(6, 8, 1e-2)}, {"identity": "another"}]
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, always_save, other):
    path = tmp_path / "c.pt"
    fit(checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="another run"):
        fit(checkpoint=path, **other)
    assert path.read_bytes() == before


def test_the_owner_of_a_checkpoint_is_known_by_whole_words(tmp_path, always_save):
    path = tmp_path / "c.pt"
    loop.check_owner(path, "anything")  # there is none yet
    fit(checkpoint=path, identity="a 12")
    loop.check_owner(path, "a 12")
    with pytest.raises(ValueError, match="another run"):
        loop.check_owner(path, "a 1")
    path.write_bytes(b"damaged")
    loop.check_owner(path, "a 1")


# ------------------------------------------------------------------------- exact or fast


@pytest.mark.parametrize("name", loop.CHOICES)
def test_a_misspelt_choice_is_refused_with_what_is_allowed(name, monkeypatch):
    variable, allowed = loop.CHOICES[name]
    monkeypatch.setenv(variable, "exakt")
    for use in (loop.mode_labels, fit):
        with pytest.raises(ValueError, match=f"unknown {variable} 'exakt'.*{', '.join(allowed)}"):
            use()


def test_choices_come_from_the_environment_unless_they_are_forced(monkeypatch):
    assert (loop.mode(), loop.mode_labels()) == ("fast", [])
    monkeypatch.setenv("CONTSTEAL_MODE", "exact")
    monkeypatch.setenv("CONTSTEAL_PRECISION", "bf16")
    with forced(precision="fp32"):
        assert loop.mode_labels() == ["exact mode", "fp32 precision"]
        assert torch.are_deterministic_algorithms_enabled()
        with forced(mode="fast"):
            assert (loop.mode(), loop.precision(CPU)) == ("fast", "fp32")
    with pytest.raises(ValueError, match="unknown CONTSTEAL_MODE 'quick'"), forced(mode="quick"):
        pass
    assert loop.mode_labels() == ["exact mode", "bf16 precision"]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float)])
def test_the_loss_is_computed_in_the_precision(precision, dtype):
    model, loss = problem()
    types = []
    model[3].register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    with forced(precision=precision):
        loop.fit(model, loss, N, loop.Schedule(1, 8, 1e-2), seed=0)
    assert types == [dtype] * 2


@pytest.mark.parametrize(("mode", "flags"), [("fast", (False, True)), ("exact", (True, False))])
def test_the_mode_decides_torch_s_flags(mode, flags, monkeypatch):
    monkeypatch.setenv("CONTSTEAL_MODE", mode)
    seen = set()

    def after_epoch(epoch: int) -> loop.Row:
        seen.add((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        return {}

    before = torch.backends.cudnn.benchmark
    assert fit(after_epoch=after_epoch) == fit()
    assert seen == {flags}
    assert torch.backends.cudnn.benchmark == before
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if mode == "exact" else None)


# ------------------------------------------------------------------------------ compiled


@pytest.mark.parametrize(
    ("device", "steps", "tools", "choice", "compiles"),
    [
        ("cuda", loop.COMPILE_FROM, True, {}, True),
        ("cuda", loop.COMPILE_FROM - 1, True, {}, False),
        ("cuda", loop.COMPILE_FROM, False, {}, False),
        ("cuda", loop.COMPILE_FROM, True, {"mode": "exact"}, False),
        ("cuda", loop.COMPILE_FROM, True, {"backend": "none"}, False),
        ("cpu", loop.COMPILE_FROM, True, {}, False),
        ("mps", loop.COMPILE_FROM, True, {}, False),
    ],
)
def test_long_trainings_on_a_gpu_are_compiled(device, steps, tools, choice, compiles, monkeypatch):
    made, model = [], problem()[0]
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(loop, "find_spec", lambda name: tools or None)
    monkeypatch.setattr(torch, "compile", lambda f, **given: made.append(given["mode"]) or f)
    with forced(**choice), loop.compiled(model, torch.device(device), steps) as network:
        assert (network is model) != compiles
    assert made == ["reduce-overhead"] * compiles


def test_without_a_c_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(loop.shutil, "which", lambda name: None)
    monkeypatch.setattr(loop, "find_spec", lambda name: True)
    model = problem()[0]
    with loop.compiled(model, torch.device("cuda"), loop.COMPILE_FROM) as network:
        assert network is model


@pytest.mark.parametrize(("takes", "saved"), [(0.0, 5), (1.0, 3), (9.0, 3)])
def test_a_state_that_takes_long_is_saved_less_often_and_at_least_by_the_half_minute(
    tmp_path, monkeypatch, takes, saved
):
    """Five epochs of 16 s each: a save of a second is followed by 20 without one, one of nine by 30."""
    clock, states = [0.0], []
    monkeypatch.setattr(loop, "SAVE_EVERY", 1.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def save(state: dict[str, Any], file: Any) -> None:
        clock[0] += takes
        states.append(len(state["history"]))

    def after_epoch(epoch: int) -> loop.Row:
        clock[0] += 16
        return {}

    monkeypatch.setattr(torch, "save", save)
    fit(checkpoint=tmp_path / "c.pt", after_epoch=after_epoch)
    assert len(states) == saved, states


def compiled_fit(backend: Any, **options: Any) -> tuple[bytes, list[float]]:
    """Train by the compiled form of a model; return its weights and its losses."""
    model, x = problem()[0], torch.linspace(-1, 1, N * 4).reshape(N, 4)
    keys = list(model.state_dict())
    with forced(backend=backend), loop.compiled(model, CPU, 10) as network:

        def loss(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
            return (network(x[chosen]) - x[chosen, :2].sin()).square().mean()

        history = loop.fit(model, loss, N, SCHEDULE, seed=0, **options)
    assert list(model.state_dict()) == keys
    assert all("forward" not in vars(module) for module in model.modules())
    return weights_of(model), [row["loss"] for row in history]


def test_compiled_training_equals_eager_training_also_when_resumed(tmp_path, always_save):
    expected = compiled_fit("none")
    assert compiled_fit("eager") == expected
    with pytest.raises(KeyboardInterrupt):
        compiled_fit("eager", checkpoint=tmp_path / "c.pt", after_epoch=die_at(2))
    assert compiled_fit("none", checkpoint=tmp_path / "c.pt") == expected


def test_what_cannot_be_compiled_runs_eagerly_after_one_warning():
    calls = []

    def broken(graph: object, inputs: object) -> None:
        calls.append(graph)
        raise RuntimeError("no compiler")

    with pytest.warns(UserWarning, match="could not be compiled.*it runs eagerly") as caught:
        assert compiled_fit(broken) == compiled_fit("none")
    assert len(calls) == len([w for w in caught if "runs eagerly" in str(w.message)]) == 1
