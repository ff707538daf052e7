"""The published Cont-Steal pipeline as its code works, restated in our words and repaired until it runs.

It is a peer to compare with, not a way to steal. Its semantics are kept, also where they cost: the
names R2 to R11 in the comments number these costs in the table of benchmarks/README.md. Repaired is
what cannot run: names that are undefined, calls with too few arguments, a package that is not declared
(RandAugment is torchvision's here). Changed so that both sides do the same work: images stay at the
size they have (R1 makes 224 px of everything), victim and surrogate are the encoders that we use,
which normalise their input themselves. The code also sets torch to one thread (R4), which is
the caller's to do.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from contsteal.data import ImageSet

LR, TAU, BATCH = 3e-4, 0.5, 32


class PilImages(Dataset):
    """Images that are turned into PIL images and transformed one at a time, each time anew (R4)."""

    def __init__(self, images: Tensor, labels: Tensor | None, augmented: bool) -> None:
        size = images.shape[-1]
        self.pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        self.labels = np.zeros(len(images), np.int64) if labels is None else labels.cpu().numpy()
        drawn = [transforms.RandAugment(2, 14), transforms.RandomCrop(size, padding=4),
                 transforms.RandomHorizontalFlip()] if augmented else []  # fmt: skip
        self.transform = transforms.Compose(
            [transforms.Resize((size, size)), *drawn, transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])


def loader(
    images: Tensor, labels: Tensor | None, batch: int, augmented: bool = False, whole: bool = False
) -> DataLoader:
    """Return shuffled batches made in the main process (R4); incomplete ones only where `whole`."""
    return DataLoader(PilImages(images, labels, augmented), batch, shuffle=True, num_workers=0,
                      drop_last=not whole)  # fmt: skip


def loss(s: Tensor, t: Tensor, temperature: float = TAU) -> Tensor:
    """NT-Xent of surrogate s and victim t (N, D), the cosines of all pairs by broadcasting (R7, R8).

    mean_i -log(e^{z_i z_p(i)} / sum_{k != i} e^{z_i z_k}) over z = [s; t]: `losses.info_nce`, from
    (2N, 2N, D) products, a dense mask, and exp before log.
    """
    z = torch.cat([s, t])
    cosines = F.cosine_similarity(z[:, None, :], z[None, :, :], dim=2) / temperature
    partners = torch.cat([cosines.diagonal(len(s)), cosines.diagonal(-len(s))])
    others = 1 - torch.eye(len(z), device=z.device)
    return -torch.log(partners.exp() / (others * cosines.exp()).sum(1)).mean()


def steal(
    victim: nn.Module, net: nn.Module, images: Tensor, epochs: int, batch: int = BATCH
) -> nn.Module:
    """Train the surrogate `net`: each step asks the victim anew about newly augmented images (R3).

    The victim's answers carry their graph, so backward runs through the victim too and fills its
    gradients (R2), in float32 (R6) and small batches (R5). Two values a step reach the host, one of
    an error that is only printed (R9).
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    device = next(net.parameters()).device
    victim.eval()
    for _ in range(epochs):
        net.train()
        total, distance = 0.0, 0.0
        for x, _unused in loader(images, None, batch, augmented=True):
            x = x.to(device)
            answer, own = victim(x), net(x)
            value = loss(own, answer)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += value.item()
            distance += F.mse_loss(own, answer).item()
    return net.eval()


def evaluate(
    victim: nn.Module,
    net: nn.Module,
    train: ImageSet,
    test: ImageSet,
    epochs: int,
    batch: int = BATCH,
) -> float:
    """Train a linear head on `train` and return its accuracy on `test` after the last epoch.

    Every epoch encodes all images again with a graph that nothing uses, and collects lists on the
    host (R10); then it tests, for which the surrogate runs twice and the victim once (R11).
    """
    device = next(net.parameters()).device
    head = nn.Linear(net.dim, len(train.classes)).to(device)
    optimizer = torch.optim.Adam(head.parameters(), lr=LR)
    accuracy = 0.0
    for _ in range(epochs):
        _epoch(net, head, optimizer, train, batch)
        accuracy = _test(victim, net, head, test, batch)
    return accuracy


def _epoch(
    net: nn.Module, head: nn.Module, optimizer: torch.optim.Optimizer, train: ImageSet, batch: int
) -> None:
    """Train the head for an epoch on images that the encoder is run on again (R10)."""
    seen: list[int] = []
    device = next(net.parameters()).device
    for x, y in loader(train.images, train.labels, batch):
        logits = head(net(x.to(device)))
        value = F.cross_entropy(logits, y.to(device))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        value.item()
        seen.extend(logits.argmax(1).cpu().numpy())


def _test(victim: nn.Module, net: nn.Module, head: nn.Module, test: ImageSet, batch: int) -> float:
    """Return the accuracy on all test images; the distance to the victim is taken and dropped (R11)."""
    right, distance, device = 0, 0.0, next(net.parameters()).device
    for x, y in loader(test.images, test.labels, batch, whole=True):
        x = x.to(device)
        right += int((head(net(x)).argmax(1).cpu() == y).sum())
        distance += F.mse_loss(net(x), victim(x)).item()
    return right / len(test)
