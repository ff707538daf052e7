"""A profile's victim, attacks and scores: each computed once, kept as an artifact, and read back."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from torch import Tensor

from contsteal import data, encoders, evaluate, loop, pretrain, runs, settings, steal
from contsteal.defenses import Defense
from contsteal.victim import Answers, BlackBox

# Modules whose source decides an artifact's content: a change of one computes it again.
TRAINING = (
    "augment", "data", "encoders", "experiment", "losses", "loop", "randaugment", "seeds", "synthetic",
)  # fmt: skip
STEALING = (*TRAINING, "defenses", "evaluate", "pretrain", "steal", "victim")
SCORING = ("data", "encoders", "evaluate", "experiment", "seeds", "synthetic")


@dataclass(frozen=True)
class Trained:
    """An encoder read back from its artifact, its history per epoch, and its weights' sha256."""

    encoder: encoders.Encoder
    history: pd.DataFrame
    sha256: str
    seconds: float
    queries: dict[str, int]


class Lab:
    """One profile's experiments; everything expensive comes from, and goes to, `runs/artifacts`."""

    def __init__(self, name: str) -> None:
        self.profile, self.settings = name, settings.profile(name)["common"]
        self.device = runs.device()
        self._features: dict[tuple[str, str, str], Tensor] = {}

    # --------------------------------------------------------------------------- data

    def images(self, task: str, split: str = "train") -> data.ImageSet:
        """Return the images a downstream task's probe is fitted (train) or tested (test) on."""
        n = self.settings["probe_images" if split == "train" else "test_images"]
        return self._load(task, split, n, 0)

    def train_images(self) -> data.ImageSet:
        """Return the victim's training images."""
        return self._load(self.settings["data"], "train", self.settings["train_images"], 0)

    def queries(self, count: int, seed: int = 0) -> Tensor:
        """Return the first `count` images of the one query order of `seed`: budgets are nested."""
        pool = self._load(
            self.settings["query_data"], "train", self.settings["query_images"], 1
        ).images
        if not 1 <= count <= len(pool):
            raise ValueError(f"{count} queries: the pool of this profile has {len(pool)} images")
        return pool[data.order(len(pool), seed)[:count].to(self.device)]

    def _load(self, name: str, split: str, n: int, seed: int) -> data.ImageSet:
        if name == "digits":
            n = min(n, len(_cached(name, split, None, seed, 32)))
        return _cached(name, split, n, seed, self.settings["image_size"]).to(self.device)

    # ----------------------------------------------------------------------- encoders

    def train(self, part: str = "victim", **changes: Any) -> Trained:
        """Train the profile's "victim" or "supervised" encoder, or return it where that was done."""
        config = pretrain.Config(
            **{**self.settings[part], "image_size": self.settings["image_size"], **changes}
        )
        images = self.train_images()
        identity = asdict(config) | {"images": self._data_key(images), "on": self._machine}
        identity["cores"] = runs.cores()  # not the threads: a worker has one, and reads this back

        def make(folder: Path) -> None:
            net, history = pretrain.fit(config, images, runs.work_dir(folder) / "last.pt")
            _write(folder, net, history, {})

        return self._read(
            runs.artifact(part, identity, (*TRAINING, "pretrain", "evaluate"), make, tell=True)
        )

    @cached_property
    def victim(self) -> Trained:
        """The profile's victim."""
        return self.train("victim")

    @cached_property
    def answers(self) -> Answers:
        """The victim's answers, shared by every black box of this lab: one forward per input."""
        return Answers(self.victim.encoder)

    def random(self, seed: int = 0) -> encoders.Encoder:
        """Return a surrogate that was never trained: the floor of every table."""
        like, size = self.settings["surrogate"], self.settings["image_size"]
        net = encoders.build(like["encoder"], size, width=like.get("width", 1.0), seed=seed)
        return net.to(self.device).eval()

    def api(self, defenses: Sequence[Defense] = (), budget: int | None = None) -> BlackBox:
        """Return the victim behind a fresh API; its classifier is the probe on the main task."""
        head = self._probe(self.settings["data"]).head
        # Copies: what a defence remembers of one attack must not reach the next.
        return BlackBox(self.answers, copy.deepcopy(list(defenses)), budget, head)

    def steal(
        self,
        attack: str,
        queries: int,
        seed: int = 0,
        defenses: Sequence[Defense] = (),
        **changes: Any,
    ) -> Trained:
        """Run one attack on `queries` images of the query order, or return it where it was run."""
        config = steal.Config(**{
            **self.settings["surrogate"], "image_size": self.settings["image_size"],
            "attack": attack, "seed": seed, **changes,
        })  # fmt: skip
        images = self.queries(queries, seed)
        same = {"views": config.mode, "answers": config.rounds, "temperature": config.tau}
        identity = asdict(config) | same | {
            "victim": self.victim.sha256, "defenses": [f"{type(d).__module__}.{d!r}" for d in defenses],
            "images": runs.key(encoders.digest([("images", images)])), "on": self._machine,
            "probe": [self.settings[k] for k in ("data", "probe_images", "test_images")],
        }  # fmt: skip

        def make(folder: Path) -> None:
            api = self.api(defenses, config.distinct(queries))
            with runs.single_thread():
                result = steal.train(config, api, images, runs.work_dir(folder) / "last.pt")
            spent = {"unique_inputs": result.unique_inputs, "calls": result.calls}
            _write(folder, result.encoder, result.history, spent)

        return self._read(runs.artifact("attack", identity, STEALING, make))

    # --------------------------------------------------------------------- evaluation

    def score(self, net: encoders.Encoder, task: str) -> dict[str, float]:
        """Return what an encoder is worth on a downstream task, and how close it is to the victim.

        accuracy (linear probe), knn, agreement with the victim's own probe, linear CKA, cosine.
        """
        sha = encoders.digest(net.state_dict().items())
        sizes = [self.settings[k] for k in ("probe_images", "test_images", "image_size")]
        identity = {"encoder": sha, "victim": self.victim.sha256, "task": task, "sizes": sizes,
                    "on": self._machine}  # fmt: skip

        def make(folder: Path) -> None:
            with runs.single_thread():
                runs.write_json(folder / "score.json", self._score(net, sha, task))

        folder = runs.artifact("score", identity, SCORING, make)
        return runs.read_json(folder / "score.json") or {}

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
        at = (sha, task.split(":")[0], split)  # label sets of one data set share their images
        keep = {sha, self.victim.sha256}  # of other encoders nothing is needed any more
        self._features = {k: v for k, v in self._features.items() if k[0] in keep}
        if at not in self._features:
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
        return runs.stamp(self.profile, self.settings["data"], ", ".join(map(str, seeds)))

    # ------------------------------------------------------------------------- inside

    @property
    def _machine(self) -> list[str]:
        """What rounds numbers differently: bf16 on one kind of device is not fp32 on another."""
        versions = [torch.__version__, timm.__version__]
        return [self.device.type, loop.precision(self.device), *versions]

    def _data_key(self, images: data.ImageSet) -> list[object]:
        return [images.name, images.split, len(images), images.images.shape[-1]]

    def _read(self, folder: Path) -> Trained:
        net = encoders.load(folder / "encoder.safetensors").to(self.device).eval()
        manifest = runs.read_json(folder / runs.MANIFEST) or {}
        return Trained(
            net, pd.read_csv(folder / "history.csv"), encoders.digest(net.state_dict().items()),
            manifest["seconds"], runs.read_json(folder / "queries.json") or {},
        )  # fmt: skip


@cache
def _cached(name: str, split: str, n: int | None, seed: int, image_size: int) -> data.ImageSet:
    return data.load(name, split, n, seed, image_size)


def _write(
    folder: Path, net: encoders.Encoder, history: list[loop.Row], queries: dict[str, int]
) -> None:
    encoders.save(net, folder / "encoder.safetensors", epochs=len(history))
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
    runs.write_json(folder / "queries.json", queries)
