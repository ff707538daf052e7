"""Encoders trained independently of a lab's victim, and the images that an owner tests suspects on."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contsteal import data, pretrain, runs, settings, trained
from contsteal.experiment import Lab
from contsteal.marking import FITTING, own_carriers, private
from contsteal.trained import Trained

FIRST = 100  # seed of the first stranger's images and weights; the victim's are 0, queries 1
PUBLIC = 2  # seed of the images that nobody trains on


@dataclass(frozen=True)
class Strangers:
    """How many encoders are trained independently of the victim, by its recipe, and on what.

    `images` of `data` and `split` each, drawn anew for each encoder; "" is the victim's data set, which
    must be endless then. 0 epochs, images or batch are the victim's.
    """

    count: int = 3
    epochs: int = 0
    images: int = 0
    batch: int = 0
    data: str = ""
    split: str = "train"


def trained_on(lab: Lab, count: int) -> Tensor:
    """Return `count` images that a lab's victim, and its mark, were trained on; ValueError for more."""
    mark = settings.watermark(lab.settings.get("watermark", {}))
    images = lab.train_images().images[: mark.get("images") or None]
    if mark.get("data"):
        images = own_carriers(lab, mark)
    own = private(images, settings.config(lab.settings, "victim", lab.method))
    if not 1 <= count <= len(own):
        raise ValueError(f"{count} images to test on: victim and mark were trained on {len(own)}")
    return own[torch.arange(count)]  # read, where they lie on disk


def public(lab: Lab, count: int) -> Tensor:
    """Return `count` images of the victim's data that nobody trains on; ValueError for more.

    Endless sets are drawn anew; of stored ones these are test images, which a probe is tested on.
    """
    name, size = lab.settings["data"], lab.settings["image_size"]
    if name in data.ENDLESS:
        return data.load(name, "train", count, PUBLIC, size).images.to(lab.device)
    found = data.load(name, "test", None, PUBLIC, size).images
    if count > len(found):
        raise ValueError(f"{count} public images: {name} has {len(found)} test images")
    return found[torch.arange(count)].to(lab.device)


def plan(given: dict[str, Any]) -> Strangers:
    """Return how independent encoders are trained; ValueError for a name or type that is not known."""
    settings.check(given, {f.name: f.default for f in fields(Strangers)}, "strangers")
    return Strangers(**given)


def images_of(lab: Lab, how: Strangers, index: int) -> data.ImageSet:
    """Return the images of one independent encoder, none of which is the victim's.

    Errors: ValueError for the stored data and split that the victim was trained on.
    """
    name, size = how.data or lab.settings["data"], lab.settings["image_size"]
    own = lab.settings["data"], lab.settings["train_split"]
    if name not in data.ENDLESS and (name, how.split) == own:
        raise ValueError(
            f"strangers: {name}, split {how.split!r}, is what the victim was trained on, and cannot "
            "be drawn anew: name other `data` or another `split`"
        )
    count = how.images or lab.settings["train_images"] or None
    if name in data.ENDLESS:
        return data.load(name, how.split, count, FIRST + index, size).to(lab.device)
    return data.load(name, how.split, None, FIRST + index, size).take(slice(count)).to(lab.device)


def train(lab: Lab, how: Strangers, index: int) -> Trained:
    """Train an encoder independently of the victim, on one thread, or return it where that was done."""
    own = settings.config(lab.settings, "victim", lab.method)
    if own.method == pretrain.READY:
        raise ValueError(
            f"strangers of a victim of method {own.method!r}: its recipe is not known; count: 0 does "
            "without them"
        )
    given = {k: getattr(how, k) for k in ("epochs", "batch") if getattr(how, k)}
    config = replace(own, **given, seed=FIRST + index)
    images = images_of(lab, how, index)
    identity = asdict(config) | {"images": lab._data_key(images), "on": lab._machine}
    identity["origin"] = pretrain.origin(config)

    def make(folder: Path) -> None:
        with runs.single_thread():
            made = pretrain.fit(config, images, runs.work_dir(folder) / "last.pt")
        trained.write(folder, made.encoder, made.history, {}, made.projector)

    def tell(why: str) -> None:  # each has images and weights of its own
        lab.told.append("computing independent")

    code = (*FITTING, "independent")
    return trained.read(runs.artifact("independent", identity, code, make, tell), lab.device)
