"""A lab's watermarked victim and the secret its owner keeps: made once, kept, and read back."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from contsteal import pretrain, runs, settings, shadow, sslguard, tensorfiles, trained, watermark
from contsteal.data import ImageSet, load
from contsteal.encoders import digest
from contsteal.heads import read as read_head
from contsteal.sslguard import Key
from contsteal.trained import TRAINING, Trained
from contsteal.watermark import Mark

if TYPE_CHECKING:
    from contsteal.experiment import Lab

CARRIERS = 3  # seed of the images that carry a mark; the victim's are 0
MARK, KEY = "mark.safetensors", "key.safetensors"
FITTING = (*TRAINING, "evaluate", "pretrain")
MARKING = (*FITTING, "marking", "ownership", "watermark")
GUARDING = (*MARKING, "shadow", "sslguard")


@dataclass(frozen=True)
class Owned(Trained):
    """A watermarked victim and the secret that its owner keeps."""

    mark: Mark | Key | None = None


def marked(lab: "Lab") -> Trained:
    """Return a lab's victim; where its setting `watermark` is not {}, an `Owned` with its mark.

    Errors: ValueError for a victim that is ready, whose training nothing here can go on with.
    """
    plan = settings.watermark(lab.settings.get("watermark", {}))
    if not plan:
        return lab.train("victim", lab.method)
    own = settings.config(lab.settings, "victim", lab.method)
    if own.method == pretrain.READY and plan["kind"] == "rotation":
        raise ValueError(
            f"watermark of a victim of method {own.method!r}: its own training goes on beside the "
            "rotation task, and is not known; set victim.method, or watermark: {}"
        )
    return (_rotation if plan["kind"] == "rotation" else _guarded)(lab, plan, own)


def _rotation(lab: "Lab", plan: dict[str, Any], own: pretrain.Config) -> Owned:
    given = {k: plan[k] for k in ("epochs", "batch", "lr") if plan[k]}
    own = replace(own, **given)
    config = watermark.Config(own, plan["trained_head"], plan["weight"])
    plain = lab.train("victim", lab.method) if plan["start"] == "victim" else None
    images, carriers = lab.train_images().take(slice(plan["images"] or None)), None
    identity = asdict(config) | _origin(lab, images, plain)
    if plan["data"]:
        carriers = own_carriers(lab, plan)
        identity["carriers"] = digest([("", carriers)])

    def make(folder: Path) -> None:
        start = plain and pretrain.Fitted(plain.encoder, [], plain.projector)
        checkpoint = runs.work_dir(folder) / "last.pt"
        with runs.single_thread():  # marks are made side by side
            found = watermark.fit(config, images, checkpoint, start, carriers)
        trained.write(folder, found.encoder, found.history, {}, found.projector)
        write_mark(folder, found.mark)

    folder = runs.artifact("watermarked", identity, MARKING, make, lab.told.append)
    return Owned(**vars(trained.read(folder, lab.device)), mark=read_mark(folder, lab.device))


def _guarded(lab: "Lab", plan: dict[str, Any], own: pretrain.Config) -> Owned:
    plain, given = lab.train("victim", lab.method), {"lr_encoder": plan["lr"]} if plan["lr"] else {}
    config = sslguard.Config(
        lab.settings["surrogate"]["encoder"], epochs=plan["epochs"],
        image_size=lab.settings["image_size"], **given,
    )  # fmt: skip
    images = lab.train_images().take(slice(plan["images"] or None))
    seen = private(images.images, own)

    def make(folder: Path) -> None:
        with runs.single_thread():
            found = shadow.embed(config, plain.encoder, seen, seen)
        trained.write(folder, found.encoder, found.history, {})
        write_key(folder, found.key, config)

    identity = asdict(config) | _origin(lab, images, plain)
    folder = runs.artifact("guarded", identity, GUARDING, make, lab.told.append)
    return Owned(**vars(trained.read(folder, lab.device)), mark=read_key(folder, lab.device))


def _origin(lab: "Lab", images: ImageSet, plain: Trained | None) -> dict[str, Any]:
    """Return what decides a marked victim beside its config."""
    return {"start": plain and plain.sha256, "images": lab._data_key(images), "on": lab._machine}


def write_mark(folder: Path, mark: Mark) -> None:
    """Write a rotation mark: the head as safetensors, and what it reads as JSON."""
    mark.head.write(folder / MARK)
    about = {"dim": mark.dim, "trained_head": mark.trained_head}
    runs.write_json((folder / MARK).with_suffix(".json"), about)


def read_mark(folder: Path, device: torch.device) -> Mark:
    """Return what `write_mark` wrote; CheckpointError for a damaged file."""
    about = runs.read_json((folder / MARK).with_suffix(".json"))
    return Mark(read_head(folder / MARK).to(device).requires_grad_(False), **about)


def write_key(folder: Path, key: Key, config: sslguard.Config) -> None:
    """Write SSLGuard's key as safetensors, with the config that builds it again."""
    state = {name: value.detach().cpu().contiguous() for name, value in key.state_dict().items()}
    about = {"config": json.dumps(asdict(config)), "dim": str(key.dim)}
    (folder / KEY).write_bytes(save(state, metadata=about))


def read_key(folder: Path, device: torch.device) -> Key:
    """Return what `write_key` wrote; CheckpointError for a damaged file."""
    state, header = tensorfiles.read_safetensors(folder / KEY)
    key = Key(sslguard.Config(**json.loads(header["config"])), int(header["dim"]))
    key.load_state_dict(state)
    return key.to(device).requires_grad_(False)


def own_carriers(lab: "Lab", plan: dict[str, Any]) -> Tensor:
    """Return the images (N, 3, H, W) that carry a rotation mark where these are not the victim's."""
    size = lab.settings["image_size"]
    return load(plan["data"], "train", None, CARRIERS, size).images.to(lab.device)


def private(images: Tensor, config: pretrain.Config) -> Tensor:
    """Return the images (N, 3, H, W) that a config really trains on: those after the held-out ones."""
    return images[min(config.held_out, len(images) // 10) :]
