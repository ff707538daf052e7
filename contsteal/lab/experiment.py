"""A profile's victim, attacks and scores: each computed once, kept as an artifact, and read back."""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from contsteal import (
    attacks,
    checkpoints,
    data,
    encoders,
    evaluate,
    files,
    loop,
    methods,
    pretrain,
    steal,
)
from contsteal.data import ImageSet, load
from contsteal.data.packed import Packed
from contsteal.encoders import digest
from contsteal.lab import artifacts, profiles
from contsteal.lab.artifacts import Trained
from contsteal.methods import Head
from contsteal.ownership import sslguard, watermark
from contsteal.ownership.sslguard import Key
from contsteal.ownership.watermark import Mark
from contsteal.victim import AnswerCache, AnswerStore, BlackBox, Defense

CARRIERS = 3  # seed of the images that carry a mark; the victim's are 0
SCORING = ("contsteal.evaluate", "contsteal.loop", "contsteal.encoders")
MARKING, GUARDING = ("contsteal.ownership.watermark",), ("contsteal.ownership.sslguard",)
MARK, KEY = "mark.safetensors", "key.safetensors"


@dataclass(frozen=True)
class Owned(Trained):
    """A watermarked victim and the secret that its owner keeps."""

    mark: Mark | Key | None = None


def marked(lab: "Lab") -> Trained:
    """Return a lab's victim; where its setting `watermark` is not {}, an `Owned` with its mark.

    Errors: ValueError for a victim that is ready, whose training nothing here can go on with.
    """
    plan = profiles.watermark(lab.settings.get("watermark", {}))
    if not plan:
        return lab.train("victim", lab.method)
    own = profiles.config(lab.settings, "victim", lab.method)
    if own.method == pretrain.READY and plan["kind"] == "rotation":
        raise ValueError(
            f"watermark of a victim of method {own.method!r}: its own training goes on beside the "
            "rotation task, and is not known; set victim.method, or watermark: {}"
        )
    return (_rotation if plan["kind"] == "rotation" else _guarded)(lab, plan, own)


def _rotation(lab: "Lab", plan: dict[str, Any], own: methods.Config) -> Owned:
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
        checkpoint = artifacts.work_dir(folder) / "last.pt"
        with artifacts.single_thread():  # marks are made side by side
            found = watermark.fit(config, images, checkpoint, start, carriers)
        artifacts.write(folder, found.encoder, found.history, {}, found.projector)
        write_mark(folder, found.mark)

    folder = artifacts.artifact("watermarked", identity, MARKING, make, lab.told.append)
    return Owned(**vars(artifacts.read(folder, lab.device)), mark=read_mark(folder, lab.device))


def _guarded(lab: "Lab", plan: dict[str, Any], own: methods.Config) -> Owned:
    plain, given = lab.train("victim", lab.method), {"lr_encoder": plan["lr"]} if plan["lr"] else {}
    config = sslguard.Config(
        lab.settings["surrogate"]["encoder"], epochs=plan["epochs"],
        image_size=lab.settings["image_size"], **given,
    )  # fmt: skip
    images = lab.train_images().take(slice(plan["images"] or None))
    seen = private(images.images, own)

    def make(folder: Path) -> None:
        with artifacts.single_thread():
            found = sslguard.embed(config, plain.encoder, seen, seen)
        artifacts.write(folder, found.encoder, found.history, {})
        write_key(folder, found.key, config)

    identity = asdict(config) | _origin(lab, images, plain)
    folder = artifacts.artifact("guarded", identity, GUARDING, make, lab.told.append)
    return Owned(**vars(artifacts.read(folder, lab.device)), mark=read_key(folder, lab.device))


def _origin(lab: "Lab", images: ImageSet, plain: Trained | None) -> dict[str, Any]:
    """Return what decides a marked victim beside its config."""
    return {"start": plain and plain.sha256, "images": lab._data_key(images), "on": lab._machine}


def write_mark(folder: Path, mark: Mark) -> None:
    """Write a rotation mark: the head as safetensors, and what it reads as JSON."""
    mark.head.save(folder / MARK)
    about = {"dim": mark.dim, "trained_head": mark.trained_head}
    files.write_json((folder / MARK).with_suffix(".json"), about)


def read_mark(folder: Path, device: torch.device) -> Mark:
    """Return what `write_mark` wrote; CheckpointError for a damaged file."""
    about = files.read_json((folder / MARK).with_suffix(".json"))
    return Mark(Head.load(folder / MARK).to(device).requires_grad_(False), **about)


def write_key(folder: Path, key: Key, config: sslguard.Config) -> None:
    """Write SSLGuard's key as safetensors, with the config that builds it again."""
    state = {name: value.detach().cpu().contiguous() for name, value in key.state_dict().items()}
    about = {"config": json.dumps(asdict(config)), "dim": str(key.dim)}
    (folder / KEY).write_bytes(save(state, metadata=about))


def read_key(folder: Path, device: torch.device) -> Key:
    """Return what `write_key` wrote; CheckpointError for a damaged file."""
    state, header = checkpoints.read_safetensors(folder / KEY)
    key = Key(sslguard.Config(**json.loads(header["config"])), int(header["dim"]))
    key.load_state_dict(state)
    return key.to(device).requires_grad_(False)


def own_carriers(lab: "Lab", plan: dict[str, Any]) -> Tensor:
    """Return the images (N, 3, H, W) that carry a rotation mark where these are not the victim's."""
    size = lab.settings["image_size"]
    return load(plan["data"], "train", None, CARRIERS, size).images.to(lab.device)


def private(images: Tensor, config: methods.Config) -> Tensor:
    """Return the images (N, 3, H, W) that a config really trains on: those after the held-out ones."""
    return images[min(config.held_out, len(images) // 10) :]


class Lab:
    """One profile's experiments; everything expensive comes from, and goes to, `runs/artifacts`.

    `changes` replace some of its settings; `method` among them names the victim's, with that method's
    own settings.
    """

    def __init__(self, name: str, **changes: Any) -> None:
        self.profile, self.changes = name, changes
        self.settings, self.method = profiles.changed(name, changes)
        self.device = artifacts.device()
        self._others: dict[str, Lab] = {}
        self._features: dict[tuple[str, str, str], Tensor] = {}
        self.told: list[str] = []  # why attacks and scores were computed

    def but(self, **changes: Any) -> "Lab":
        """Return this profile's lab under other settings; the same one for the same changes."""
        if not changes:
            return self
        name = repr(sorted(changes.items()))
        if name not in self._others:
            self._others[name] = Lab(self.profile, **self.changes | changes)
        return self._others[name]

    # --------------------------------------------------------------------------- data

    def images(self, task: str, split: str = "train") -> data.ImageSet:
        """Return the images a downstream task's probe is fitted (train) or tested (test) on."""
        n = self.settings["probe_images" if split == "train" else "test_images"]
        return self._load(task, split, n, 0)

    def train_images(self, part: str = "victim") -> data.ImageSet:
        """Return the images that a part is trained on: the ceiling's are the labelled ones."""
        split = self.settings["train_split"] if part == "victim" else "train"
        return self._load(self.settings["data"], split, self.settings["train_images"], 0)

    def queries(self, count: int, seed: int = 0) -> Tensor:
        """Return the first `count` images of the one query order of `seed`: budgets are nested."""
        return self._queries(count, seed).images

    def _queries(self, count: int, seed: int) -> data.ImageSet:
        pool = self._load(*(self.settings[f"query_{k}"] for k in ("data", "split", "images")), 1)
        if not 1 <= count <= len(pool):
            raise ValueError(f"{count} queries: the pool of this profile has {len(pool)} images")
        chosen = data.order(len(pool), seed)[:count].to(self.device)
        if isinstance(pool.images, Packed):  # stays on disk
            labels = None if pool.labels is None else pool.labels[chosen]
            return replace(pool, images=pool.images.rows(chosen), labels=labels)
        return pool.take(chosen)

    def _load(self, name: str, split: str, n: int, seed: int) -> data.ImageSet:
        """Load `n` images, or all where n is 0 or a stored set has fewer."""
        size = self.settings["image_size"]
        if name in data.ENDLESS:
            return _cached(name, split, n or None, seed, size).to(self.device)
        return _cached(name, split, None, seed, size).take(slice(n or None)).to(self.device)

    # ----------------------------------------------------------------------- encoders

    def train(self, part: str = "victim", method: str | None = None, **changes: Any) -> Trained:
        """Train the profile's "victim" or "supervised" encoder, or return it where that was done.

        A victim may be trained by another `method`, with that method's settings. `changes` are fields
        of pretrain.Config.
        """
        config = replace(profiles.config(self.settings, part, method), **changes)
        images = self.train_images(part)
        identity = asdict(config) | {"images": self._data_key(images), "on": self._machine}
        identity["origin"] = pretrain.origin(config)
        identity["cores"] = (
            artifacts.cores()
        )  # not the threads: a worker has one, and reads this back

        def make(folder: Path) -> None:
            made = pretrain.fit(config, images, artifacts.work_dir(folder) / "last.pt")
            artifacts.write(folder, made.encoder, made.history, {}, made.projector)

        return artifacts.read(
            artifacts.artifact(part, identity, ("contsteal.pretrain",), make),
            self.device,
        )

    @cached_property
    def victim(self) -> Trained:
        """The profile's victim, with the watermark that its settings ask for."""
        return marked(self)

    @cached_property
    def answers(self) -> AnswerCache:
        """The victim's answers, shared by every black box of this machine: one forward per input."""
        return AnswerCache(self.victim.encoder, self._kept_answers())

    def _kept_answers(self) -> AnswerStore:
        """Return the store of the victim's answers on disk, by its weights and what rounds alike."""
        code = artifacts.sources("contsteal.encoders")
        made_by = {"victim": self.victim.sha256, "on": self._machine, "code": code}
        return AnswerStore(artifacts.runs_dir() / "answers" / files.key(made_by))

    def random(self, seed: int = 0) -> encoders.Encoder:
        """Return a surrogate that was never trained: the floor of every table."""
        like, size = self.settings["surrogate"], self.settings["image_size"]
        net = encoders.build(like["encoder"], size, width=like.get("width", 1.0), seed=seed)
        return net.to(self.device).eval()

    def api(self, defenses: Sequence[Defense] = (), budget: int | None = None) -> BlackBox:
        """Return the victim behind a fresh API; its classifier is the probe on the main task."""
        head = self._probe(self.settings["data"]).head
        # Copies: what a defence remembers of one attack must not reach the next.
        own = copy.deepcopy(list(defenses))
        return BlackBox(self.answers, own, budget, head, self.victim.projector)

    def steal(
        self,
        attack: str,
        queries: int,
        seed: int = 0,
        defenses: Sequence[Defense] = (),
        **changes: Any,
    ) -> Trained:
        """Run one attack on `queries` images of the query order, or return it where it was run."""
        config = attacks.Config(**{
            **self.settings["surrogate"], "image_size": self.settings["image_size"],
            "attack": attack, "seed": seed, **changes,
        })  # fmt: skip
        sent = self._queries(queries, seed)
        images, labels = sent.images, sent.labels if config.recipe.labels else None
        same = {"views": config.mode, "answers": config.rounds, "temperature": config.tau,
                "policy": config.policies}  # fmt: skip
        identity = asdict(config) | same | {
            "victim": self.victim.sha256, "defenses": [f"{type(d).__module__}.{d!r}" for d in defenses],
            "images": files.key(_content(images)), "on": self._machine,
            "labels": None if labels is None else encoders.digest([("", labels)]),
            "probe": [self.settings[k] for k in ("data", "probe_images", "test_images")],
        }  # fmt: skip

        code = ("contsteal.steal", "contsteal.evaluate", *_modules(defenses))

        def make(folder: Path) -> None:
            api, before = self.api(defenses, config.distinct(queries)), self.answers.forwards
            with artifacts.single_thread():
                checkpoint = artifacts.work_dir(folder) / "last.pt"
                result = steal.train(config, api, images, checkpoint, labels=labels)
            spent = {"unique_inputs": result.unique_inputs, "calls": result.calls}
            spent["forwards"] = self.answers.forwards - before
            artifacts.write(folder, result.encoder, result.history, spent)

        folder = artifacts.artifact("attack", identity, code, make, self.told.append)
        return artifacts.read(folder, self.device)

    # --------------------------------------------------------------------- evaluation

    def score(self, net: encoders.Encoder, task: str) -> dict[str, float]:
        """Return what an encoder is worth on a task, and how close it is to the victim: accuracy of a
        linear probe, knn, agreement with the victim's own probe, linear CKA, cosine."""
        sha = encoders.identity(net)
        sizes = [self.settings[k] for k in ("probe_images", "test_images", "image_size")]
        images = [self._task_key(task, split) for split in data.SPLITS]
        identity = {"encoder": sha, "victim": self.victim.sha256, "task": task, "sizes": sizes,
                    "images": images, "on": self._machine}  # fmt: skip

        def make(folder: Path) -> None:
            with artifacts.single_thread():
                files.write_json(folder / "score.json", self._score(net, sha, task))

        folder = artifacts.artifact("score", identity, SCORING, make, self.told.append)
        return json.loads((folder / "score.json").read_text())

    def _score(self, net: encoders.Encoder, sha: str, task: str) -> dict[str, float]:
        train, test = self.images(task), self.images(task, "test")
        x, y = self._embed(net, sha, task, "train"), self._embed(net, sha, task, "test")
        probe = evaluate.linear_probe(x, train.labels, y, test.labels)
        own = self._embed(self.victim.encoder, self.victim.sha256, task, "test")
        return {
            "accuracy": probe.accuracy,
            "agreement": evaluate.agreement(probe.predictions, self._probe(task).predictions),
            "knn": evaluate.knn(x, train.labels, y, test.labels).accuracy,
            "cka": evaluate.linear_cka(y, own),
            "cosine": evaluate.mean_cosine(y, own),
        }

    @cache  # noqa: B019 a lab lives as long as its notebook
    def _probe(self, task: str) -> evaluate.Probe:
        """The victim's own probe on a task."""
        train, test = self.images(task), self.images(task, "test")
        x, y = (self._embed(*self._victim, task, split) for split in data.SPLITS)
        return evaluate.linear_probe(x, train.labels, y, test.labels)

    @property
    def _victim(self) -> tuple[encoders.Encoder, str]:
        return self.victim.encoder, self.victim.sha256

    def _embed(self, net: encoders.Encoder, sha: str, task: str, split: str) -> Tensor:
        # Label sets of an embedded set share its images; folder:A and folder:B share a word.
        at = (sha, task.split(":")[0] if task in data.SOURCES else task, split)
        keep = {sha, self.victim.sha256}  # of other encoders nothing is needed any more
        self._features = {k: v for k, v in self._features.items() if k[0] in keep}
        if at not in self._features:
            with loop.autocast(self.device):  # as in training; half the time of float32 on a CPU
                self._features[at] = encoders.embed(net, self.images(task, split).images)
        return self._features[at]

    def legitimate(self, task: str, defenses: Sequence[Defense] = ()) -> float:
        """Return the accuracy of a paying user who trains and tests a probe on defended answers."""
        api = self.api(defenses)
        train, test = self.images(task), self.images(task, "test")
        x, y = (api.embed(s.images, user="legitimate") for s in (train, test))
        return evaluate.linear_probe(x, train.labels, y, test.labels).accuracy

    def stamp(self, seeds: Sequence[int]) -> dict[str, str]:
        """Return what figures of this lab carry."""
        stamp = artifacts.stamp(self.profile, self.settings["data"], ", ".join(map(str, seeds)))
        return stamp | {"device": ", ".join([stamp["device"], *loop.mode_labels()])}

    # ------------------------------------------------------------------------- inside
    @property
    def _machine(self) -> list[str]:
        """What rounds numbers differently: bf16 on one kind of device is not fp32 on another."""
        versions = [torch.__version__, timm.__version__, *loop.mode_labels()]
        return [self.device.type, loop.precision(self.device), *versions]

    @cache  # noqa: B019 as above
    def _task_key(self, task: str, split: str) -> list[object]:
        return self._data_key(self.images(task, split))

    def _data_key(self, images: data.ImageSet) -> list[object]:
        pixels, labels = images.images, images.labels
        told = None if labels is None else encoders.digest([("", labels)])
        return [images.name, images.split, len(images), pixels.shape[-1], _content(pixels), told]


def _modules(defenses: Sequence[Defense]) -> list[str]:
    """Return the package's modules that these defences are defined in."""
    return sorted(
        {type(d).__module__ for d in defenses if type(d).__module__.startswith("contsteal.")}
    )


def _content(pixels: Tensor | Packed) -> str:
    """Return what tells images from others."""
    return encoders.digest([("", pixels)]) if isinstance(pixels, Tensor) else pixels.key


@cache
def _cached(name: str, split: str, n: int | None, seed: int, image_size: int) -> data.ImageSet:
    return data.load(name, split, n, seed, image_size)
