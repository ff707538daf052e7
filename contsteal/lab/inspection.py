"""What a notebook shows of encoders: the views they learn from, their curves, worth and maps."""

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from contsteal import augment, encoders, loop, methods
from contsteal.data import ImageSet
from contsteal.lab import artifacts, profiles
from contsteal.lab.artifacts import Trained
from contsteal.lab.experiment import Lab, pixels
from contsteal.lab.sweeps import product
from contsteal.seeds import generator


def sheet_table(
    sets: Sequence[ImageSet], names: Sequence[str] = (), count: int = 10
) -> pd.DataFrame:
    """Return `count` images per set with their captions, pixels included (base64 of H x W x 3)."""
    rows = []
    for name, images in zip(names or [s.name for s in sets], sets, strict=True):
        for i, image in enumerate(pixels(images)[:count].permute(0, 2, 3, 1).cpu().numpy()):
            label = "" if images.labels is None else images.classes[int(images.labels[i])]
            text = base64.b64encode(image.tobytes()).decode()
            rows.append({"set": name, "label": label, "size": len(image), "pixels": text})
    return pd.DataFrame(rows)


def view_sheet(lab: Lab, count: int = 10) -> pd.DataFrame:
    """Return a sample sheet of training images, each over two views as its victim's method draws them."""
    shown = lab.train_images().take(torch.arange(count))
    policy = lab.settings["victim"].get("policy", methods.Config.policy)
    views = [
        augment.to_uint8(augment.apply(policy, pixels(shown), generator("views shown", k)))
        for k in range(2)
    ]
    rows = [shown, *(replace(shown, images=view, labels=None) for view in views)]
    return sheet_table(rows, ["image", "one view", "another"], count)


def histories(trained: Mapping[str, Trained]) -> pd.DataFrame:
    """Return loss, learning rate, kNN and spread per epoch of each method, without its seconds.

    A ready encoder has no epochs, and no row.
    """
    parts = [
        one.history.drop(columns="seconds").assign(method=name)
        for name, one in trained.items()
        if len(one.history)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["method"])


def rates(lab: Lab, trained: Mapping[str, Trained]) -> pd.DataFrame:
    """Return seconds in all, views per second of a median epoch, and their share of the hardware's rate.

    A view costs three forward passes (one forward, two back) of 2 FLOP a MAC; the rate is that of a
    matrix product, measured now. Momentum encoders and heads are not counted.
    """
    limit, rows, n = matmul_rate(), {}, len(lab.train_images())
    for name, one in trained.items():
        if one.history.empty:  # a ready encoder
            continue
        config = profiles.config(lab.settings, method=name)
        kept = n - min(config.held_out, n // 10)
        seconds = one.history["seconds"]
        rate = 2 * (kept // config.batch) * config.batch / seconds.median()
        share = 6e9 * cast(float, encoders.describe(one.encoder)["gmac"]) * rate / limit
        rows[name] = {"seconds": round(seconds.sum(), 1), "views per second": round(rate),
                      "share of matmul rate": f"{share:.1%}"}  # fmt: skip
    return pd.DataFrame(rows).T


def matmul_rate(seconds: float = 0.3) -> float:
    """Return the FLOP/s of one large square matrix product in the precision that training uses."""
    device = artifacts.device()
    n = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if loop.precision(device) == "bf16" else torch.float32
    x = torch.randn(n, n, device=device).to(dtype)
    (x @ x)[0, 0].item()  # the first product sets things up; item waits for a GPU
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() - start < seconds:
        (x @ x)[0, 0].item()
        count += 1
    return 2 * n**3 * count / (time.perf_counter() - start)


def worth(
    lab: Lab,
    nets: Mapping[str, encoders.Encoder],
    tasks: Sequence[str],
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Return linear-probe and kNN accuracy of each encoder on each task, means over labelled images."""
    rows = [
        {"encoder": name, "task": task, **lab.score(net, task, seed)}
        for (name, net), task, seed in product(nets.items(), tasks, seeds)
    ]
    by = pd.DataFrame(rows).groupby(["encoder", "task"], sort=False)
    return by[["accuracy", "knn"]].mean().reset_index()


def embedding_map(
    lab: Lab, nets: Mapping[str, encoders.Encoder], task: str, count: int, seed: int = 0
) -> pd.DataFrame:
    """Return a t-SNE map (x, y) of `count` test images per encoder, with their class names."""
    return image_map(nets, lab.images(task, "test").take(slice(count)), seed)


def image_map(nets: Mapping[str, encoders.Encoder], test: ImageSet, seed: int = 0) -> pd.DataFrame:
    """Return a t-SNE map (x, y) of labelled images per encoder, with their class names."""
    from sklearn.manifold import TSNE  # scikit-learn takes seconds to import

    names = np.array(test.classes)[cast(Tensor, test.labels).cpu().numpy()]
    tsne, parts = TSNE(init="pca", perplexity=min(30, len(names) // 4), random_state=seed), []
    for name, net in nets.items():
        x = F.normalize(encoders.embed(net, pixels(test)), dim=1).cpu().numpy()
        xy = tsne.fit_transform(x)
        parts.append(pd.DataFrame({"encoder": name, "x": xy[:, 0], "y": xy[:, 1], "label": names}))
    return pd.concat(parts, ignore_index=True)


def pulls(forms: Mapping[str, Callable[[Tensor, Tensor], Tensor]], n: int = 4) -> pd.DataFrame:
    """Return how losses move a surrogate's vector s_i towards (+) or away from (-) every other one.

    The 2n vectors [s; t] are orthonormal, so that a small step of s_i towards z_j changes the cosine of
    this one pair alone: the `pull` is minus the loss's derivative by that cosine.
    """
    z, rows = torch.eye(2 * n, dtype=torch.float64), []
    names = [f"{side}{k + 1}" for side in "st" for k in range(n)]
    for name, loss in forms.items():
        s = z[:n].clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(s, z[n:]), s)  # column j: the derivative by s_i z_j
        for i, j in product(range(n), range(2 * n)):
            pull = 0.0 if i == j else -slope[i, j].item()
            rows.append({"loss": name, "anchor": names[i], "other": names[j], "pull": pull})
    return pd.DataFrame(rows)
