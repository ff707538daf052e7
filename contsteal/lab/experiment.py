"""A profile's victim, attacks and scores: each computed once, kept as an artifact, and read back."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import cache, cached_property, wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from contsteal import (
    attacks,
    checkpoints,
    choice,
    data,
    encoders,
    evaluate,
    files,
    loop,
    methods,
    number,
    pretrain,
    steal,
)
from contsteal.data import ImageSet
from contsteal.data.packed import Packed
from contsteal.lab import artifacts, profiles
from contsteal.lab.artifacts import Trained
from contsteal.lab.profiles import VARIANTS, variant
from contsteal.ownership import sslguard, watermark
from contsteal.seeds import generator
from contsteal.victim import AnswerCache, AnswerStore, BlackBox, Defense

CARRIERS = 3  # seed of the images that carry a mark; the victim's are 0
PROVIDER = "provider"  # whose classifier is fitted on labelled images of its own
LABELLED, POOL = 5, 4096  # seed, and least number, of the images that probes draw theirs from
MARK, KEY, DRAWN = "mark.safetensors", "key.safetensors", "images.safetensors"


def modes() -> list[str]:
    """Return what is not the default of this process, such as "exact mode", and switch to it."""
    loop.set_mode()
    return loop.mode_labels()


def pixels(images: ImageSet) -> Tensor:
    """Return the images (N, 3, H, W) of a set; those on disk are used like a tensor."""
    return cast(Tensor, images.images)


def private(images: Tensor, config: methods.Config) -> Tensor:
    """Return the images (N, 3, H, W) that a config trains on: those after the held-out ones."""
    return images[min(config.held_out, len(images) // 10) :]


class Lab:
    """One profile's experiments; everything expensive comes from, and goes to, `runs/artifacts`.

    `changes` replace some of its settings; `method` among them names the victim's, with that method's
    own settings. `messages` collects what `report` gets: which encoders and scores were computed.
    """

    def __init__(self, name: str, **changes: Any) -> None:
        self.profile, self.changes = name, changes
        self.settings, self.method = profiles.changed(name, changes)
        self.device = artifacts.device()
        self.messages: list[str] = []
        self.report: Callable[[str], object] = self.messages.append
        self._others: dict[str, Lab] = {repr([]): self}  # by their changes
        self._features: dict[tuple[str, str, str], Tensor] = {}
        self._probes: dict[tuple[str, str], evaluate.Probe] = {}
        modes()

    def but(self, **changes: Any) -> "Lab":
        """Return this profile's lab under other settings; the same one for the same changes."""
        name = repr(sorted(changes.items()))
        if name not in self._others:
            self._others[name] = other = Lab(self.profile, **self.changes | changes)
            other.messages, other.report = self.messages, self.report
        return self._others[name]

    def stamp(self, seeds: Sequence[int]) -> dict[str, str]:
        """Return what figures of this lab carry; the device says which mode is not the default.

        Beside what `artifacts.stamp` says there are keys of the settings and of the images: those that
        the victim was trained on, those that are queried, and the main task's test images.
        """
        names = map(str, profiles.distinct(seeds, "seeds="))
        stamp = artifacts.stamp(self.profile, self.settings["data"], ", ".join(names))
        return stamp | {
            "device": ", ".join([stamp["device"], *modes()]),
            "configuration": files.key([self.settings, self.method]), "images": self._images_key(),
        }  # fmt: skip

    @cache  # noqa: B019 a lab lives as long as its notebook
    def _images_key(self) -> str:
        name, split, n = (self.settings[f"query_{part}"] for part in ("data", "split", "images"))
        sets = self.train_images(), self._load(name, split, n, 1)
        return files.key([*map(self.data_key, sets), self.test_key(self.settings["data"])])

    @property
    def machine(self) -> list[str]:
        """What rounds numbers differently: bf16 on one kind of device is not fp32 on another."""
        precision = loop.precision(self.device)
        return [self.device.type, precision, torch.__version__, version("timm"), *modes()]

    # --------------------------------------------------------------------------- data

    def images(self, task: str, split: str = "train") -> ImageSet:
        """Return the images that the provider's own probe of a task is fitted on, or the test images."""
        n = self.settings["probe_images" if split == "train" else "test_images"]
        return self._load(task, split, n, 0)

    @cache  # noqa: B019 a lab lives as long as its notebook
    def labelled(self, task: str, seed: int = 0) -> list[ImageSet]:
        """Return what a thief or a customer has labels of: `probe_draws` sets of `probe_images` each.

        They are drawn by `seed`: an accuracy is the mean over probes fitted on each of them, so that it
        does not hang on one draw. Of an endless set they are drawn from four times as many, on which
        nobody trained. Where the training split of a stored set has no more, the one set is all of it.
        """
        n, endless = self.settings["probe_images"], task in data.ENDLESS
        wanted = (max(4 * n, POOL), LABELLED) if endless else (0, 0)
        pool = self._load(task, "train", *wanted)
        if not 0 < n < len(pool):
            return [pool]
        draws = (generator("labelled", seed, k) for k in range(self.settings.get("probe_draws", 1)))
        return [self._take(pool, torch.randperm(len(pool), generator=g)[:n]) for g in draws]

    def train_images(self, part: str = "victim") -> ImageSet:
        """Return the images that a part is trained on: the ceiling's are the labelled ones."""
        split = self.settings["train_split"] if part == "victim" else "train"
        return self._load(self.settings["data"], split, self.settings["train_images"], 0)

    def queries(self, count: int, seed: int = 0) -> Tensor:
        """Return the first `count` images of the one query order of `seed`: budgets are nested."""
        return pixels(self._queries(count, seed))

    def _queries(self, count: int, seed: int) -> ImageSet:
        name, split = self.settings["query_data"], self.settings["query_split"]
        pool = self._load(name, split, self.settings["query_images"], 1)
        if not 1 <= (count := number(count, "queries", int)) <= len(pool):
            raise ValueError(f"{count} queries: 1 to {len(pool)} are possible; raise query_images")
        return self._take(pool, data.order(len(pool), seed)[:count])

    def _take(self, pool: ImageSet, rows: Tensor) -> ImageSet:
        """Return some images of a set; those on disk stay there."""
        rows = rows.to(self.device)
        if isinstance(pool.images, Packed):
            labels = None if pool.labels is None else pool.labels[rows]
            return replace(pool, images=pool.images.rows(rows), labels=labels)
        return pool.take(rows)

    def _load(self, name: str, split: str, n: int, seed: int) -> ImageSet:
        """Load `n` images, or all where n is 0 or a stored set has fewer."""
        count = n or None if name in data.ENDLESS else None  # of a stored set all are read
        images = _cached(name, split, count, seed, self.settings["image_size"])
        return images.take(slice(n or None)).to(self.device)

    def data_key(self, images: ImageSet) -> list[object]:
        """Return what identifies a set: its name and size, its pixels and its labels."""
        labels = None if images.labels is None else encoders.digest([("", images.labels)])
        size = pixels(images).shape[-1]
        return [images.name, images.split, len(images), size, files.content(pixels(images)), labels]

    @cache  # noqa: B019 as above
    def labelled_keys(self, task: str, seed: int) -> list[list[object]]:
        """Return the `data_key` of each of the `labelled` sets."""
        return [self.data_key(images) for images in self.labelled(task, seed)]

    @cache  # noqa: B019 as above
    def test_key(self, task: str) -> list[object]:
        """Return the `data_key` of a task's test images."""
        return self.data_key(self.images(task, "test"))

    # ------------------------------------------------------------------- victim and attacks

    @cached_property
    def recipe(self) -> methods.Config:
        """How the victim is trained."""
        return profiles.config(self.settings, "victim", self.method)

    @property
    def watermark(self) -> dict[str, Any]:
        """How the victim is marked, defaults filled in; {} for a victim that is not."""
        return profiles.watermark(self.settings.get("watermark", {}))

    def train(self, part: str = "victim", method: str | None = None, **changes: Any) -> Trained:
        """Train the profile's "victim" or "supervised" encoder, or return it where that was done.

        A victim may be trained by another `method`, with that method's settings. `changes` are fields
        of pretrain.Config.
        """
        config = profiles.config(self.settings, part, method)
        config = replace(config, **profiles.lengthened(changes))
        return self.fit(part, config, self.train_images(part))

    def fit(self, kind: str, config: methods.Config, images: ImageSet) -> Trained:
        """Train an encoder on images, or return it where that was done."""

        def make(folder: Path) -> None:
            result = pretrain.fit(config, cast(Any, images), artifacts.work_dir(folder) / "last.pt")
            artifacts.write(folder, result.encoder, result.history, {}, result.projector)

        origin, code = pretrain.origin(config), ["contsteal.pretrain"]
        folder = self.made(kind, config, images, code, make, origin=origin)
        return artifacts.read(folder, self.device)

    def made(
        self, kind: str, config: Any, used: ImageSet, code: Sequence[str],
        make: Callable[[Path], None], **more: object,
    ) -> Path:  # fmt: skip
        """Return the folder of what `make` trains on images, by a config and `more` that decides it."""
        identity = asdict(config) | {"images": self.data_key(used), "on": self.machine} | more
        with artifacts.single_thread():
            return artifacts.artifact(kind, identity, code, make, self.report)

    @cached_property
    def victim(self) -> Trained:
        """The profile's victim, with the watermark that its settings ask for."""
        if not self.watermark:
            return self.train("victim", self.method)
        return _rotation_mark(self) if self.watermark["kind"] == "rotation" else _sslguard_key(self)

    @cached_property
    def answers(self) -> AnswerCache:
        """The victim's answers, shared by every black box of this machine: one forward per input."""
        code = artifacts.sources("contsteal.victim")
        origin = {"victim": self.victim.sha256, "on": self.machine, "code": code}
        store = AnswerStore(artifacts.runs_dir() / "answers" / files.key(origin))
        return AnswerCache(self.victim.encoder, store)

    def api(self, defenses: Sequence[Defense] = (), budget: int | None = None) -> BlackBox:
        """Return the victim behind a fresh API; its classifier is the probe on the main task."""
        # Copies: what a defence remembers of one attack must not reach the next.
        fresh = copy.deepcopy(list(defenses))
        return BlackBox(self.answers, fresh, budget, self._classifier, self.victim.projector)

    @artifacts.single_thread()
    def _classifier(self, features: Tensor) -> Tensor:
        """Return logits (N, C) of the provider's classifier, which is fitted at the first question."""
        probe = self._probe(self.settings["data"], PROVIDER, self.images(self.settings["data"]))
        return cast(evaluate.Linear, probe.head)(features)

    def random(self, seed: int = 0) -> encoders.Encoder:
        """Return a surrogate that was never trained: the floor of every table."""
        like, size = self.settings["surrogate"], self.settings["image_size"]
        net = encoders.build(like["encoder"], size, width=like.get("width", 1.0), seed=seed)
        return net.to(self.device).eval()

    def steal(
        self,
        attack: str,
        queries: int,
        seed: int = 0,
        defenses: Sequence[Defense] = (),
        **changes: Any,
    ) -> Trained:
        """Run one attack on `queries` images of the query order, or return it where it was run.

        `attack` may have variants; `changes` are fields of steal.Config.
        """
        config = self.attack_config(attack, queries, seed, **changes)
        sent = self._queries(queries, seed)
        # With what a recipe fills in: an attack under other words is the same artifact.
        more: dict[str, object] = {
            "views": config.mode, "answers": config.rounds, "temperature": config.tau,
            "policy": config.policies, "victim": self.victim.sha256,
            "defenses": [artifacts.object_key(d) for d in defenses],
            # By whatever name they have: pixels, and labels where these are used.
            "images": self.data_key(sent)[4 : 6 if config.recipe.labels else 5],
        }  # fmt: skip
        if config.recipe.answer in ("label", "posterior"):  # of the provider's classifier
            more["probe"] = [self.settings[k] for k in ("data", "probe_images")]

        def make(folder: Path) -> None:
            api, before = self.api(defenses, config.distinct(queries)), self.answers.forwards
            checkpoint = artifacts.work_dir(folder) / "last.pt"
            result = steal.train(config, api, pixels(sent), checkpoint, labels=sent.labels)
            cost = {"unique_inputs": result.unique_inputs, "calls": result.calls}
            cost["forwards"] = self.answers.forwards - before
            cost["steps"] = config.steps or config.epochs * (queries // config.batch)
            head = result.head if isinstance(result.head, methods.Head) else None
            artifacts.write(folder, result.encoder, result.history, cost, head)

        code = ["contsteal.steal", "contsteal.evaluate", *artifacts.defining_modules(*defenses)]
        return artifacts.read(self.made("attack", config, sent, code, make, **more), self.device)

    def attack_config(
        self, attack: str, queries: int, seed: int = 0, **changes: Any
    ) -> attacks.Config:
        """Return the settings with which `steal` runs an attack."""
        given = {**self.settings["surrogate"], "image_size": self.settings["image_size"]}
        attack, varied = variant(attack)
        for name in changes:
            choice(name, "parameter of an attack", [field.name for field in fields(attacks.Config)])
        if twice := sorted(varied.keys() & changes.keys()):
            raise ValueError(f"{twice[0]}={changes[twice[0]]!r}: the attack's name sets it already")
        changes = varied | profiles.lengthened(changes)
        given |= {"lr": self.rate(attack, changes.get("views")), "attack": attack, "seed": seed}
        return attacks.Config(**given | changes).for_images(queries)

    def rate(self, name: str, views: str | None = None) -> float:
        """Return an attack's learning rate: the profile's for its views, else for it, else for all."""
        (attack, varied), rates = variant(name), self.settings.get("rates", {})
        own = attacks.Config(attack).recipe.views
        seen = {"views": views or varied.get("views") or own}
        names = [f"{attack}, {word}" for word, change in VARIANTS.items() if change == seen]
        general = self.settings["surrogate"].get("lr", attacks.Config.lr)
        return next((rates[name] for name in [*names, attack] if name in rates), general)

    def alone(self, method: str, queries: int, seed: int, steps: int) -> Trained:
        """Train what a thief could without the victim, in the surrogate's architecture.

        "simclr" learns from the query images alone, as the victim did; "supervised" from the first of
        the `labelled` sets of the main task.
        """
        if method == "supervised":
            part, images = "supervised", self.labelled(self.settings["data"], seed)[0]
        else:
            part, images = "victim", self._queries(queries, seed)
        like = self.settings["surrogate"]
        config = replace(
            profiles.config(self.settings, part, method),  # from scratch, where part is a ready one
            encoder=like["encoder"], width=like.get("width", 1.0), steps=steps, held_out=0,
            batch=like.get("batch", attacks.Config.batch), seed=seed,
        )  # fmt: skip
        return self.fit("alone", config, images)

    # --------------------------------------------------------------------- evaluation

    def score(
        self, net: encoders.Encoder, task: str, seed: int = 0, draws: int | None = None,
        head: methods.Head | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Return what an encoder is worth on a task, and how close it is to the victim.

        Accuracy of a linear probe, agreement with the victim's probe on the same labelled images, and
        knn are means over the sets of `labelled(task, seed)`, or the first `draws` of them; linear CKA
        and cosine compare the features of the test images. A classifier's thief has a linear `head` of
        its own, judged on the task that the victim serves: `own_head` is its accuracy, `own_agreement`
        how often it predicts what the provider's classifier does.
        """
        if task != self.settings["data"] or head is None or len(head) > 1:  # a projector, or none
            head = None
        identity = {
            "encoder": encoders.identity(net), "victim": self.victim.sha256, "task": task,
            "labelled": self.labelled_keys(task, seed)[:draws], "test": self.test_key(task),
            "head": head and encoders.digest(head.state_dict().items()),
            "served": head and self.data_key(self.images(task)), "on": self.machine,
        }  # fmt: skip
        code = ["contsteal.evaluate", "contsteal.loop", "contsteal.encoders", "contsteal.methods"]
        return self.kept("score", identity, code, lambda: self._score(net, task, seed, draws, head))

    @artifacts.single_thread()
    def _score(
        self, net: encoders.Encoder, task: str, seed: int, draws: int | None, head: methods.Head | None
    ) -> dict[str, float]:  # fmt: skip
        test, each = self.images(task, "test"), []
        y, victim_y = (self._embed(n, task, "test", test) for n in (net, self.victim.encoder))
        truth = labels_of(test)
        for k, images in enumerate(self.labelled(task, seed)[:draws]):
            # Named by its pixels, as seeds may share them.
            place = str(self.labelled_keys(task, seed)[k][4])
            x, labels = self._embed(net, task, place, images), labels_of(images)
            probe = evaluate.linear_probe(x, labels, y, truth)
            theirs = self._probe(task, place, images)
            agreement = evaluate.agreement(probe.predictions, theirs.predictions)
            knn = evaluate.knn(x, labels, y, truth).accuracy
            each.append({"accuracy": probe.accuracy, "agreement": agreement, "knn": knn})
        means = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
        cka, cosine = evaluate.linear_cka(y, victim_y), evaluate.mean_cosine(y, victim_y)
        means |= {"cka": cka, "cosine": cosine}
        scores = dict(sorted(means.items()))  # the order of the columns of tables
        if head is not None:
            predicted = head(y).argmax(1)
            served = self._probe(task, PROVIDER, self.images(task)).predictions
            scores["own_head"] = (predicted == truth).float().mean().item()
            scores["own_agreement"] = (predicted == served).float().mean().item()
        return scores

    def _probe(self, task: str, place: str, images: ImageSet) -> evaluate.Probe:
        """Return the victim's own probe on a task, fitted on these labelled images."""
        if (task, place) not in self._probes:
            sides = (place, images), ("test", self.images(task, "test"))
            x, y = (self._embed(self.victim.encoder, task, *side) for side in sides)
            labels = [labels_of(side) for _, side in sides]
            self._probes[task, place] = evaluate.linear_probe(x, labels[0], y, labels[1])
        return self._probes[task, place]

    def _embed(self, net: encoders.Encoder, task: str, place: str, images: ImageSet) -> Tensor:
        """Return features of the images that `place` names: the test set, or a draw of labelled ones."""
        # Label sets of an embedded set share its images; folder:A and folder:B share a word.
        sha, victim = encoders.identity(net), self.victim.sha256
        key = (sha, task.split(":")[0] if task in data.SOURCES else task, place)
        # Of other encoders nothing is needed any more.
        self._features = {k: v for k, v in self._features.items() if k[0] in (sha, victim)}
        if key not in self._features:
            with loop.autocast(self.device):  # as in training; half the time of float32 on a CPU
                self._features[key] = encoders.embed(net, pixels(images))
        return self._features[key]

    def kept(
        self, kind: str, identity: object, code: Sequence[str], compute: Callable[[], Any]
    ) -> Any:
        """Return what `compute` returns, which JSON can hold, from its artifact where that was done."""

        @wraps(compute)  # whose module is part of the key
        def make(folder: Path) -> None:
            (folder / "found.json").write_text(json.dumps(compute()))

        folder = artifacts.artifact(kind, identity, code, make, self.report)
        return json.loads((folder / "found.json").read_text())


def labels_of(images: ImageSet) -> Tensor:
    """Return the labels (N,) of a set; ValueError for one without."""
    if images.labels is None:
        raise ValueError(f"{images.name} has no labels: choose another downstream task")
    return images.labels


def load(name: str, split: str, n: int | None, seed: int, image_size: int) -> ImageSet:
    """Return what `data.load` does; images of an embedded set are `drawn` once for all processes."""

    def draw() -> ImageSet:
        return data.load(name, split, n, seed, image_size)

    return drawn([name, split, n, seed, image_size], draw) if name in data.SOURCES else draw()


_cached = cache(load)  # for a lab, whose sets are few


def drawn(about: Sequence[Any], draw: Callable[[], ImageSet]) -> ImageSet:
    """Return images of an embedded set, from the artifact where they were drawn before.

    `about` has the set's name, its split, and all else that decides what `draw` returns.
    """

    @wraps(draw)  # whose module is part of the key
    def make(folder: Path) -> None:
        images = draw()
        tensors = {"images": pixels(images), "labels": images.labels}
        kept = {k: v.cpu().contiguous() for k, v in tensors.items() if v is not None}
        (folder / DRAWN).write_bytes(save(kept))

    code, identity = ["contsteal.data"], [*about, torch.__version__]
    folder = artifacts.artifact("images", identity, code, make, lambda _: None)
    kept = load_file(folder / DRAWN)
    name, split = about[:2]
    return ImageSet(kept["images"], kept.get("labels"), name, split, data.SOURCES[name].classes)


# ------------------------------------------------------------------------- marked victims


def _rotation_mark(lab: Lab) -> Trained:
    """Return a lab's victim with a rotation mark; ValueError for a ready one, which nobody trains."""
    plan, method = lab.watermark, lab.recipe.method
    if method == pretrain.READY:
        raise ValueError(
            f"a rotation mark continues the victim's training, which method {method!r} does not know: "
            "set another victim.method, or watermark: {}"
        )
    given = profiles.lengthened({k: plan[k] for k in ("epochs", "batch", "lr") if plan[k]})
    config = watermark.Config(replace(lab.recipe, **given), plan["trained_head"], plan["weight"])
    plain = lab.train("victim", lab.method) if plan["start"] == "victim" else None
    start = pretrain.Fitted(plain.encoder, [], plain.projector) if plain else None
    images = lab.train_images().take(slice(plan["images"] or None))
    carriers = carrier_images(lab) if plan["data"] else None
    more = {"start": plain and plain.sha256,
            "carriers": None if carriers is None else files.content(carriers)}  # fmt: skip

    def make(folder: Path) -> None:
        checkpoint = artifacts.work_dir(folder) / "last.pt"
        result = watermark.fit(config, cast(Any, images), checkpoint, start, carriers)
        artifacts.write(folder, result.encoder, result.history, {}, result.projector)
        cast(methods.Head, result.mark.head).save(folder / MARK)

    code = ["contsteal.ownership.watermark"]
    folder = lab.made("watermarked", config, images, code, make, **more)
    victim = artifacts.read(folder, lab.device)
    head = methods.Head.load(folder / MARK).to(lab.device).requires_grad_(False)
    return replace(victim, mark=watermark.Mark(head, victim.encoder.dim))


def _sslguard_key(lab: Lab) -> Trained:
    plan, plain = lab.watermark, lab.train("victim", lab.method)
    config = sslguard.Config(
        lab.settings["surrogate"]["encoder"], epochs=plan["epochs"],
        lr_encoder=plan["lr"] or sslguard.Config.lr_encoder, image_size=lab.settings["image_size"],
    )  # fmt: skip
    images = lab.train_images().take(slice(plan["images"] or None))
    seen = private(pixels(images), lab.recipe)

    def make(folder: Path) -> None:
        result = sslguard.embed(config, plain.encoder, seen, seen)
        artifacts.write(folder, result.encoder, result.history)
        checkpoints.write_sealed(folder / KEY, result.key.state_dict())

    code = ["contsteal.ownership.sslguard"]
    folder = lab.made("guarded", config, images, code, make, start=plain.sha256)
    victim = artifacts.read(folder, lab.device)
    key = sslguard.Key(config, victim.encoder.dim)
    key.load_state_dict(load_file(folder / KEY))
    return replace(victim, mark=key.to(lab.device).requires_grad_(False))


def carrier_images(lab: Lab) -> Tensor:
    """Return the images (N, 3, H, W) that carry a rotation mark where these are not the victim's."""
    size = lab.settings["image_size"]
    images = load(lab.watermark["data"], "train", None, CARRIERS, size)
    return pixels(images.to(lab.device))
