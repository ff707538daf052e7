"""Exact and fast mode, and what is done to an encoder while it is trained; all of it on a CPU."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from contsteal import data, encoders, loop, pretrain, replay, speed, steal
from contsteal.attacks import ATTACKS
from contsteal.lab import artifacts, experiment
from contsteal.methods import METHODS
from contsteal.paper import plan
from contsteal.victim import BlackBox

SMALL = pretrain.Config(
    encoder="test_resnet", epochs=2, batch=8, held_out=0, queue=16, key_groups=2
)
FORMS = {  # of (device, views a call, minutes left, a compiler is there, what is asked for)
    ("cuda", 32, 0.0, False, "auto"): "graph",
    ("cuda", 319, 99.0, True, "auto"): "graph",
    ("cuda", 320, 99.0, True, "auto"): "compile",
    ("cuda", 320, 99.0, False, "auto"): "eager",
    ("cuda", 1024, 0.0, True, "auto"): "eager",
    ("cuda", 1024, 99.0, True, "graph"): "graph",
    ("cuda", 32, 99.0, True, "eager"): "eager",
    ("cuda", 32, 0.0, False, "compile"): "compile",
    ("cpu", 32, 99.0, True, "auto"): "eager",
    ("cpu", 32, 99.0, True, "graph"): "eager",
    ("cpu", 32, 0.0, False, "compile"): "compile",
    ("mps", 32, 99.0, True, "auto"): "eager",
}


@pytest.fixture(autouse=True)
def _flags(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start from the defaults, and leave torch as it was."""
    for variable, _ in speed.CHOICES.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with speed.forced():
        yield


def shapes(n: int = 24) -> data.ImageSet:
    return data.load("shapes", n=n)


def fit(method: str = "simclr", **options) -> tuple[nn.Module, list[float]]:
    """Train a method for two epochs of three steps; return it and its losses."""
    images, model = shapes(), pretrain.build(replace(SMALL, method=method), 10)

    def loss(chosen: Tensor, epoch: int, draws: torch.Generator) -> Tensor:
        value = model(images.images[chosen], images.labels[chosen], draws)
        for p in model.parameters():  # marks what of autograd's graph belongs to this step
            if p.requires_grad:
                torch.autograd.graph.get_gradient_edge(p).node.metadata["step"] = True
        return value

    history = loop.fit(model, loss, len(images), pretrain.schedule(SMALL), seed=0, **options)
    return model, [row["loss"] for row in history]


def state(net: nn.Module) -> str:
    return encoders.digest(net.state_dict().items())


# -------------------------------------------------------------------------------- choices


@pytest.mark.parametrize("given", FORMS)
def test_the_form_follows_device_views_time_and_compiler(given: tuple) -> None:
    assert speed.choose(*given) == FORMS[given]


@pytest.mark.parametrize("name", speed.CHOICES)
def test_a_misspelt_choice_is_refused_with_what_is_allowed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, allowed = speed.CHOICES[name]
    monkeypatch.setenv(variable, "exakt")
    for use in (speed.named, fit, lambda: plan.inputs("00_start_here", "smoke")):
        with pytest.raises(ValueError, match=f"{variable}='exakt'.*{', '.join(allowed)}"):
            use()


def test_exact_mode_has_no_other_form_than_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTSTEAL_MODE", "exact")
    assert speed.form() == "eager"
    monkeypatch.setenv("CONTSTEAL_FORM", "graph")
    with pytest.raises(ValueError, match=r"'graph' in exact mode.*unset CONTSTEAL_FORM"):
        speed.form()


def test_the_default_changes_no_key_and_exact_mode_every_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = experiment.Lab("smoke")
    cpu = ["cpu", loop.precision(lab.device), torch.__version__, timm.__version__]
    monkeypatch.setenv("CONTSTEAL_DEVICE", "cpu")
    before = plan.inputs("00_start_here", "smoke")["machine"]
    assert lab._machine == cpu
    assert before == {"device": "cpu", "torch": torch.__version__}
    assert lab.stamp([0]) == artifacts.stamp("smoke", lab.settings["data"], "0")
    monkeypatch.setenv("CONTSTEAL_MODE", "exact")
    assert lab._machine == [*cpu, "exact mode"]
    assert lab.stamp([0])["device"] == f"{artifacts.processor()}, exact mode"
    now = {"machine": plan.inputs("00_start_here", "smoke")["machine"]}
    record = {"status": "ok", "inputs": {"machine": before}, "outputs": {}}
    rest = {part: {} for part in ("parameters", "settings", "package", "weights", "upstream")}
    told = "machine changed: exact mode: None -> asked for"
    assert plan.reason("00_start_here", "smoke", rest | now, record) == told


def test_results_of_the_two_modes_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTSTEAL_RUNS", str(tmp_path))
    lab = experiment.Lab("smoke")
    for name in ("fast", "exact", "fast", "exact"):
        monkeypatch.setenv("CONTSTEAL_MODE", name)
        lab.train("supervised", epochs=1)
    assert artifacts.count_artifacts() == 2


def test_forced_choices_end_with_their_block() -> None:
    cpu = torch.device("cpu")
    own = loop.precision(cpu)
    with speed.forced("compile", precision="fp32"):
        assert (speed.form(), loop.precision(cpu)) == ("compile", "fp32")
        with speed.forced("eager", mode="exact", precision="bf16"):
            assert loop.autocast(cpu)._enabled
            assert torch.are_deterministic_algorithms_enabled()
            assert speed.named() == ["exact mode", "eager form", "bf16 precision"]
        assert not torch.are_deterministic_algorithms_enabled()
        assert (speed.form(), loop.precision(cpu)) == ("compile", "fp32")
    with pytest.raises(ValueError, match="'quick' is unknown"), speed.forced("quick"):
        pass
    assert (speed.form(), loop.precision(cpu)) == ("auto", own)


def test_a_process_is_exact_from_its_start() -> None:
    code = (
        "import os, torch, contsteal.loop\n"
        "print(os.environ['CUBLAS_WORKSPACE_CONFIG'], torch.are_deterministic_algorithms_enabled())\n"
    )
    own = os.environ | {"CONTSTEAL_MODE": "exact"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own)
    assert run.stdout.split() == [":4096:8", "True"], run.stderr


@pytest.mark.parametrize(("given", "mode"), [([], "fast"), (["MODE=exact"], "exact")])
def test_make_hands_the_mode_on(given: list[str], mode: str) -> None:
    show = ["make", "-s", "paper", "PYTHON=printenv CONTSTEAL_MODE #", *given]
    told = subprocess.run(show, capture_output=True, text=True, cwd=artifacts.ROOT, check=True)
    assert told.stdout.split() == [mode]


# ---------------------------------------------------------------------------------- exact


def test_exact_runs_repeat_bit_by_bit_also_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTSTEAL_MODE", "exact")
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    seen = []

    def die(epoch: int) -> loop.Row:
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        if epoch == 1:
            raise KeyboardInterrupt
        return {}

    once, again = state(fit("moco")[0]), state(fit("moco")[0])
    with pytest.raises(KeyboardInterrupt):
        fit("moco", checkpoint=tmp_path / "last.pt", after_epoch=die)
    resumed = state(fit("moco", checkpoint=tmp_path / "last.pt")[0])
    assert once == again == resumed
    assert seen == [(True, False)] * 2
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


# Whose backward (of nll_loss2d also the forward) on CUDA has no deterministic form: torch 2.15's list.
UNSTEADY = (
    "AdaptiveAvgPool2D", "AdaptiveMaxPool2D", "AvgPool3D", "GridSampler2D", "ReflectionPad2D",
    "UpsampleBilinear2D", "UpsampleBicubic2D", "NllLoss2D", "FractionalMaxPool2D",
)  # fmt: skip


def nodes(value: Tensor) -> set[str]:
    """Return the names of all nodes of a tensor's autograd graph."""
    found, todo = {}, [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found[node] = node.name()
            todo += [n for n, _ in node.next_functions]
    return set(found.values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("encoder", ["resnet10t", "test_resnet"])
def test_no_method_differentiates_what_cuda_cannot_repeat(method: str, encoder: str) -> None:
    model = pretrain.build(replace(SMALL, method=method, encoder=encoder), 10).train()
    images = shapes(8)
    found = nodes(model(images.images, images.labels, torch.Generator()))
    assert any("Convolution" in n for n in found)
    assert not [n for n in found if n.startswith(UNSTEADY)]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_differentiates_what_cuda_cannot_repeat(attack: str) -> None:
    recipe, g = ATTACKS[attack], torch.Generator().manual_seed(0)
    s = torch.randn(16, 4, generator=g).requires_grad_()
    t = torch.randn(16, 4, generator=g)
    t = t[:8] if recipe.views == "both" else t
    t = {"label": t.argmax(1), "posterior": t.softmax(1)}.get(recipe.answer, t)
    more = {"labels": torch.arange(16) % 2} if recipe.labels else {}
    assert not [n for n in nodes(recipe.loss(s, t, **more)) if n.startswith(UNSTEADY)]


# -------------------------------------------------------------------------------- compile


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_a_compiled_encoder_learns_the_same_and_is_itself_again(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "BACKEND", "aot_eager")
    made = []
    monkeypatch.setattr(torch, "compile", counting(torch.compile, made))
    plain, expected = fit(method)
    keys = list(plain.state_dict())
    with speed.forced("compile"):
        model, losses = fit(method)
    assert len(made) == {"simclr": 1, "byol": 2}[method]
    assert losses == pytest.approx(expected, rel=0.02)
    assert list(model.state_dict()) == keys
    assert all("forward" not in vars(m) for m in model.modules())


def counting(call: Callable, into: list) -> Callable:
    def counted(*args, **kwargs):
        into.append(args)
        return call(*args, **kwargs)

    return counted


def test_what_cannot_be_compiled_runs_eagerly_unless_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(replay, "BACKEND", broken)
    with speed.forced("compile"), pytest.raises(RuntimeError, match="no compiler"):
        fit()
    expected = state(fit()[0])
    monkeypatch.setattr(speed, "choose", lambda *_: "compile")
    monkeypatch.setattr(speed, "kind", lambda model: "cuda")
    with pytest.warns(UserWarning, match="could not be compiled.*runs eagerly"):
        assert state(fit()[0]) == expected


# ---------------------------------------------------------------------------------- graph


class Recorder:
    """Stands in for torch.cuda.make_graphed_callables: static inputs and outputs, warm-up and all.

    As there, a replay overwrites the output of the last one, and a backward pass belongs to the last.
    """

    def __init__(self, fails: bool = False) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.grads: list[bool] = []
        self.fails = fails

    def __call__(self, net: nn.Module, args: tuple[Tensor], allow_unused_input: bool) -> nn.Module:
        weights = [p for p in net.parameters() if p.requires_grad]
        for p in weights:  # a node on the main stream would break the recording
            assert "step" not in torch.autograd.graph.get_gradient_edge(p).node.metadata
        assert not torch.is_autocast_enabled("cpu") or not torch.is_autocast_cache_enabled()
        for _ in range(3):
            out = net(*args)
            if out.requires_grad:
                torch.autograd.grad(out, weights, torch.ones_like(out), allow_unused=True)
        torch.rand(1)  # as dropout does
        if self.fails:
            raise RuntimeError("out of memory")
        self.shapes.append(tuple(args[0].shape))
        self.grads.append(out.requires_grad)
        net.forward = replayed(net.forward, args[0], weights)
        return net


def replayed(forward: Callable[[Tensor], Tensor], given: Tensor, weights: list[Tensor]) -> Callable:
    kept: dict[str, Tensor] = {}

    class Graphed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, *weights: Tensor) -> Tensor:
            given.copy_(x)
            with torch.set_grad_enabled(bool(weights)):
                kept["out"] = forward(given)
            kept.setdefault("static", kept["out"].detach().clone()).copy_(kept["out"])
            return kept["static"].detach()

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
            return None, *torch.autograd.grad(kept["out"], weights, grad, allow_unused=True)

    return lambda x: Graphed.apply(x, *weights)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", found)
    monkeypatch.setattr(speed, "kind", lambda model: "cuda")
    return found


RECORDED = {  # shapes of the graphs that a step of eight images needs, and whether they have gradients
    "simclr": [(16, True)],
    "moco": [(8, True), (8, True), (4, False)],
    "byol": [(8, True), (8, True), (8, False)],
    "simsiam": [(8, True), (8, True)],
    "supervised": [(8, True)],
}


@pytest.mark.parametrize("method", METHODS)
def test_replayed_training_equals_eager_training_bit_by_bit(
    method: str, recorder: Recorder
) -> None:
    with speed.forced(precision="fp32"):
        with speed.forced("eager"):
            plain, expected = fit(method)
        assert not recorder.shapes
        before = torch.get_rng_state()
        model, losses = fit(method)
    found = [(s[0], grad) for s, grad in zip(recorder.shapes, recorder.grads, strict=True)]
    assert found == RECORDED[method]
    assert losses == expected
    assert state(model) == state(plain)  # weights and running statistics
    assert torch.equal(torch.get_rng_state(), before)
    assert all("forward" not in vars(m) for m in model.modules())


@pytest.mark.parametrize("method", ["simclr", "simsiam"])
def test_replayed_training_in_bf16(method: str, recorder: Recorder) -> None:
    """Eager calls of one step share bf16 weights and sum their gradients in bf16, replays in fp32."""
    with speed.forced(precision="bf16"):
        with speed.forced("eager"):
            plain, expected = fit(method)
        model, losses = fit(method)
    assert recorder.shapes
    assert losses == pytest.approx(expected, rel=0.01)
    assert (state(model) == state(plain)) == (method == "simclr")


def test_one_graph_for_two_calls_would_be_wrong(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in is stricter than CUDA: what the tests above prove, they could have refuted."""
    with speed.forced(precision="fp32"):
        with speed.forced("eager"):
            expected = fit("simsiam")[1]
        monkeypatch.setattr(replay, "MOST", 1)
        assert fit("simsiam")[1] == expected  # the second call is made eagerly
        monkeypatch.setattr(replay.Calls, "place", once)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            fit("simsiam")  # on CUDA wrong gradients, without a word


def once(calls: replay.Calls, call: replay.Call) -> int:
    """Give every call of a kind the first one's graph."""
    calls.now[call] += 1
    return 0


def test_other_shapes_and_eval_mode_get_the_ordinary_forward(recorder: Recorder) -> None:
    net = encoders.build("test_resnet")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    images = shapes(8).images

    def step(x: Tensor) -> None:
        net(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    with speed.accelerated(net, optimizer):
        step(images)
        step(images)
        assert recorder.shapes == [(8, 3, 32, 32)]
        count = net.backbone.bn1.num_batches_tracked.item()
        for x in (images[:4], images.float() / 255):
            step(x)  # another size, another type
        assert net.backbone.bn1.num_batches_tracked == count + 2
        told = encoders.embed(net, images)
        turned = (images / 255).requires_grad_()
        net(turned).sum().backward()
        assert turned.grad is not None
        with pytest.raises(RuntimeError, match="cannot be copied during its training"):
            copy.deepcopy(net)
    assert recorder.shapes == [(8, 3, 32, 32)]
    assert told.shape == (8, net.dim)


@pytest.mark.parametrize("attack", ["embedding", "info-nce-2", "stolen-encoder", "label"])
def test_a_replayed_surrogate_equals_an_eager_one(attack: str, recorder: Recorder) -> None:
    images = shapes(24)
    config = steal.Config(attack, encoder="test_resnet", epochs=2, batch=8)

    def stolen() -> steal.Result:
        net = encoders.build("test_resnet", seed=1).eval()
        api = BlackBox(net, head=nn.Linear(net.dim, 10).requires_grad_(False))
        return steal.train(config, api, images.images, labels=images.labels)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        with speed.forced("eager"):
            expected = stolen()
        torch.manual_seed(0)
        found = stolen()
    assert len(recorder.shapes) == 1
    assert state(found.encoder) == state(expected.encoder)


def test_what_cannot_be_recorded_runs_eagerly_unless_it_was_asked_for(
    recorder: Recorder,
) -> None:
    with speed.forced("eager"):
        expected = state(fit("byol")[0])
    recorder.fails = True
    with pytest.warns(UserWarning, match="could not be recorded.*out of memory"):
        assert state(fit("byol")[0]) == expected
    with speed.forced("graph"), pytest.raises(RuntimeError, match="out of memory"):
        fit("byol")


def test_a_long_training_is_compiled_after_its_first_epoch(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list = []
    monkeypatch.setattr(replay, "BACKEND", "eager")
    monkeypatch.setattr(torch, "compile", counting(torch.compile, made))
    monkeypatch.setattr(speed, "compiler", lambda: True)
    monkeypatch.setattr(speed, "LAUNCH_BOUND", 1)
    fit()
    assert not made
    monkeypatch.setattr(speed, "WORTH", 0.0)
    fit()
    assert len(made) == 1
    assert not recorder.shapes


def test_on_a_cpu_nothing_is_touched() -> None:
    net = encoders.build("test_resnet")
    with speed.forced("graph"), speed.accelerated(net, torch.optim.SGD(net.parameters())) as pace:
        assert "forward" not in vars(net)
        assert not pace.calls
