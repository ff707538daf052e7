"""Images per second of each policy: batched here, against peers that do the same to the same images."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import joblib
import torch
import torchvision.transforms.v2 as v2
from torch import Tensor

from benchmarks import record
from benchmarks.record import US, Row
from contsteal import augment, data, seeds
from contsteal.lab import artifacts

CALL = 256  # views of a step of the demo's training
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}  # as augment.jitter's


def torchvision_policy(size: int) -> Callable[[Tensor], Tensor]:
    """Return SimCLR's policy of torchvision for one uint8 image (3, H, W)."""
    return v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(**JITTER)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip


def torchvision_rand(size: int) -> Callable[[Tensor], Tensor]:
    """Return the official code's policy of torchvision for one uint8 image (3, H, W)."""
    return v2.Compose([
        v2.RandAugment(2, 14), v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip


PEERS = {"simclr": torchvision_policy, "randaugment": torchvision_rand}


def kornia_policy(size: int) -> Callable[[Tensor], Tensor]:
    """Return SimCLR's policy of kornia for a float batch (N, 3, H, W)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kornia.augmentation as K

    return K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJiggle(**JITTER, p=0.8),
        K.RandomGrayscale(p=0.2),
        data_keys=["input"],
    )


def one_by_one(policy: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Apply a policy to one image after another, on all cores: threads, a share of the images each."""
    parts = images.chunk(joblib.cpu_count())

    def some(part: Tensor) -> Tensor:
        return torch.stack([policy(image) for image in part])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small images: threads inside an operator only wait for each other
    try:
        with ThreadPoolExecutor(len(parts)) as pool:
            return torch.cat(list(pool.map(some, parts)))
    finally:
        torch.set_num_threads(threads)


def ways(policy: str, images: Tensor, few: Tensor, call: int) -> dict[str, Callable[[], object]]:
    """Return who applies a policy: to all images, `call` in one batch, or to some of them one by one."""
    parts, size = images.to(artifacts.device()).split(call), images.shape[-1]
    chosen: dict[str, Callable[[], object]] = {
        US: lambda: [augment.apply(policy, part, seeds.generator("bench")) for part in parts]
    }
    if policy in PEERS:
        one = PEERS[policy](size)
        chosen["torchvision"] = lambda: one_by_one(one, few)
    if policy == "simclr":
        batched = kornia_policy(size).to(artifacts.device())
        chosen["kornia"] = lambda: [batched(part.float() / 255) for part in parts]
    return chosen


def measure(tiny: bool) -> list[Row]:
    """Return images per second by policy and by who applies it, in calls of a training step's views.

    SimCLR's policy also in one call: batches that no cache holds are slower for everybody.
    """
    images = data.load("shapes", n=16 if tiny else 2048).images
    few = images[: len(images) // 4]  # the slow way does a quarter of the same work
    works = {policy: (policy, CALL) for policy in augment.POLICIES}
    works[f"simclr, {len(images):,} at once"] = ("simclr", len(images))
    rows = []
    for work, (policy, call) in works.items():
        by = ways(policy, images, few, call)
        amount = {who: len(few if who == "torchvision" else images) for who in by}
        rows += record.compare("augmentation", work, by, amount, "images", 1 if tiny else 7)
    return rows
