"""How long the trainings of a profile take, and what memory, from a rate measured here and now."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from contsteal import data, loop, pretrain
from contsteal.lab import artifacts, profiles
from contsteal.methods import Config

SECONDS = 1.0  # of steps that are timed, after one that warms up
CLASSES = 10  # of the ceiling's head, whose cost is small
CPU_BATCH = 64  # a large batch takes minutes on a CPU; there the rate hardly depends on it


@dataclass(frozen=True)
class Estimate:
    """What one training will take: views through the encoder, their rate, seconds and bytes."""

    name: str
    views: int
    rate: float
    memory: float

    @property
    def seconds(self) -> float:
        return self.views / self.rate

    def __str__(self) -> str:
        minutes = self.seconds / 60
        took = f"{minutes / 60:.1f} h" if minutes > 90 else f"{max(minutes, 0.1):.1f} min"
        return (
            f"{self.name}: {self.views:,} views at {self.rate:,.0f} a second = {took}, "
            f"{self.memory / 2**30:.1f} GiB"
        )


def profile(name: str, methods: Sequence[str]) -> list[Estimate]:
    """Return what training the victims of a profile by these methods, and its ceiling, will take."""
    common = profiles.SPLITS | profiles.profile(name)["common"]
    configs = [profiles.config(common, method=m) for m in methods]
    configs.append(profiles.config(common, "supervised"))
    if not (configs := [c for c in configs if c.method != pretrain.READY]):
        return []
    count = common["train_images"] or len(
        data.load(common["data"], common["train_split"], image_size=common["image_size"])
    )
    return [training(c, count - min(c.held_out, count // 10)) for c in configs]


def training(config: Config, images: int) -> Estimate:
    """Time some steps of a method on noise and say what its whole training takes.

    `images` are trained on in each epoch. Memory is what a step must hold: weights, gradients, the
    optimizer's state and the activations kept for the backward pass. Errors: as pretrain.fit's.
    """
    device = artifacts.device()
    batch = config.batch if device.type == "cuda" else min(CPU_BATCH, config.batch)
    trial = Trial(replace(config, batch=batch), device)
    held = trial.activations() * config.batch / batch + trial.state()
    per_image = 1 if config.method == "supervised" else 2
    steps = pretrain.schedule(config).check(images)
    views = config.epochs * steps * config.batch * per_image
    return Estimate(f"{config.method} {config.encoder}", views, trial.rate() * per_image, held)


class Trial:
    """A method with an optimizer and one batch of noise to step on."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        self.draws = torch.Generator().manual_seed(0)
        size = (config.batch, 3, config.image_size, config.image_size)
        noise = torch.randint(256, size, dtype=torch.uint8, generator=self.draws)
        self.images = noise.to(device)
        self.labels = torch.arange(config.batch, device=device) % CLASSES
        self.model = pretrain.build(config, CLASSES).to(device).train()
        self.optimizer = pretrain.schedule(config).build(self.model)

    def step(self) -> None:
        with loop.autocast(self.device):
            loss = self.model(self.images, self.labels, self.draws)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def rate(self) -> float:
        """Return images per second of whole steps, augmentation included."""
        self.step()
        self._wait()
        start, steps = time.perf_counter(), 0
        while not steps or time.perf_counter() - start < SECONDS:
            self.step()
            self._wait()
            steps += 1
        return steps * self.config.batch / (time.perf_counter() - start)

    def activations(self) -> int:
        """Return the bytes that autograd keeps for the backward pass, each storage once."""
        kept: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            self.step()
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        return sum(size for place, size in kept.items() if place not in own)

    def state(self) -> int:
        """Return the bytes of weights, gradients, buffers and the optimizer's state."""
        held = [*self.model.parameters(), *self.model.buffers()]
        held += [p.grad for p in self.model.parameters() if p.grad is not None]
        held += [v for s in self.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
        return sum(x.numel() * x.element_size() for x in held)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def matmul_rate(seconds: float = 0.3) -> float:
    """Return the FLOP/s of one large square matrix product in the precision that training uses."""
    device = artifacts.device()
    n = 8192 if device.type == "cuda" else 1024
    kind = torch.bfloat16 if loop.precision(device) == "bf16" else torch.float32
    x = torch.randn(n, n, device=device).to(kind)
    start, done = time.perf_counter(), 0
    while not done or time.perf_counter() - start < seconds:
        (x @ x)[0, 0].item()  # waits for a GPU
        if not done:
            start = time.perf_counter()  # the first product sets things up
        done += 1
    return 2 * n**3 * (done - 1 or 1) / (time.perf_counter() - start)
