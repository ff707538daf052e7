"""Views per second of one training step: each method here, SimCLR against lightly's whole pipeline."""

import time
from collections.abc import Callable

import joblib
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image

from benchmarks import record
from benchmarks.record import US, Row
from contsteal import data, encoders, loop, pretrain
from contsteal.lab import artifacts

METHODS = ("simclr", "moco", "byol", "simsiam", "supervised")
BATCH = 128
ENCODER = {"encoder": "resnet10t", "width": 0.5}  # the demo's; a GPU's part has ResNet-18


class Images(Dataset):
    """Images as a DataLoader's workers get them: Pillow images, augmented one by one."""

    def __init__(self, images: Tensor, transform: Callable[[object], list[Tensor]]) -> None:
        self.images, self.transform = [to_pil_image(image) for image in images], transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(self.images[index])


class Lightly:
    """SimCLR as lightly's examples train it: its transform, a DataLoader, its head and its loss."""

    def __init__(self, images: Tensor, workers: int, batch: int, name: str, width: float) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform

        size = images.shape[-1]
        # Without blur, as its CIFAR-10 benchmark; crop and jitter as this package's policy.
        policy = SimCLRTransform(input_size=size, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0)
        self.loader = DataLoader(Images(images, policy), batch, shuffle=True, drop_last=True,
                                 num_workers=workers, persistent_workers=workers > 0)  # fmt: skip
        self.net = encoders.build(name, size, width=width, seed=0).to(artifacts.device()).train()
        dim = self.net.dim
        self.head = SimCLRProjectionHead(dim, dim, 128).to(artifacts.device())
        self.criterion = NTXentLoss(0.5)
        self.optimizer = torch.optim.SGD(
            nn.ModuleList([self.net, self.head]).parameters(), lr=0.06, momentum=0.9
        )

    def epoch(self) -> None:
        """Train one pass over the images, in float32; its workers are idle between two passes."""
        for views in self.loader:
            one, two = (view.to(artifacts.device()) for view in views)
            # The transform has normalised already: past the encoder's own normalisation.
            loss = self.criterion(*(self.head(self.net.projection(self.net.backbone(v)))
                                    for v in (one, two)))  # fmt: skip
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


class Trial:
    """A method of this package with its optimizer, and one batch of noise to step on."""

    def __init__(self, config: pretrain.Config, device: torch.device) -> None:
        self.config, self.device, self.draws = config, device, torch.Generator().manual_seed(0)
        size = (config.batch, 3, config.image_size, config.image_size)
        noise = torch.randint(256, size, dtype=torch.uint8, generator=self.draws)
        self.images = noise.to(device)
        self.labels = torch.arange(config.batch, device=device) % 10
        self.model = pretrain.build(config, 10).to(device).train()
        self.compare = self.model.loss
        self.optimizer = pretrain.schedule(config).build(self.model)

    def step(self) -> None:
        """Take one step, augmentation included."""
        self.optimizer.zero_grad(set_to_none=True)
        with loop.autocast(self.device):
            loss = self.compare(*self.model.views(self.images, self.labels, self.draws))
        loss.backward()
        self.optimizer.step()

    def timed(self, turns: int, least: float) -> tuple[float, list[float]]:
        """Return the seconds of the first steps, and images per second in turns of `least` seconds.

        The step has the form that `record.forced` names; compiling it falls into the first steps.
        """
        torch.backends.cudnn.benchmark = loop.mode() == "fast"  # as `loop.fit` has it
        with loop.compiled(self.model.loss, self.device, 0) as self.compare:
            first = record.seconds(lambda: [self.step() for _ in range(3)])  # graphs: the second
            rates = [self.config.batch * sustained(self.step, least) for _ in range(turns)]
        return first, rates


def own(method: str, batch: int, **changes: object) -> Trial:
    """Return a training of this package to step on, without monitor and checkpoint."""
    given = {**ENCODER, "batch": batch, "epochs": 1, "lr": 0.06, "hidden": 256, **changes}
    return Trial(pretrain.Config(method=method, **given), artifacts.device())


def sustained(step: Callable[[], object], least: float) -> float:
    """Return steps per second of `step` called for `least` seconds, after one call to warm up."""
    step()
    record.wait()
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() - start < least:
        step()
        count += 1
    record.wait()
    return count / (time.perf_counter() - start)


def measure(tiny: bool) -> list[Row]:
    """Return views per second of a step by method, and of SimCLR by who trains it."""
    batch, steps, turns = (32, 2, 1) if tiny else (BATCH, 16, 5)  # MoCo splits keys in 8
    images = data.load("shapes", n=steps * batch).images
    trial = own("simclr", batch)
    workers = 0 if tiny else joblib.cpu_count()
    peer = Lightly(images, workers, batch, ENCODER["encoder"], ENCODER["width"])

    def ours() -> None:
        for _ in range(steps):
            trial.step()

    ways = {US: ours, "lightly": peer.epoch}
    rows = record.compare("training", "simclr step", ways, 2 * batch * steps, "views", turns)
    for method in METHODS[1:]:
        per_step = batch * (1 if method == "supervised" else 2)
        step = own(method, batch).step
        rates = [per_step * sustained(step, 0.0 if tiny else 2.0) for _ in range(1 if tiny else 3)]
        rows.append(record.row("training", f"{method} step", US, "views", rates))
    return rows + modes(batch, steps, turns)


def modes(batch: int, steps: int, turns: int) -> list[Row]:
    """Return views per second of a SimCLR step in fast and in exact mode, by turns."""
    trials = {}
    for mode in ("fast", "exact"):
        with record.forced(mode=mode):
            trials[mode] = own("simclr", batch)

    def run(mode: str) -> None:
        with record.forced(mode=mode):
            for _ in range(steps):
                trials[mode].step()

    ways = {US: lambda: run("fast"), "exact mode": lambda: run("exact")}
    return record.compare("training", "simclr step, modes", ways, 2 * batch * steps, "views", turns)
