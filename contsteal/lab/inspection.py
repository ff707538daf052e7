"""What a notebook shows of encoders: views, curves, worth, maps; and what its trainings would cost."""

import ast
import base64
import timeit
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock, patch

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor

from contsteal import attacks, augment, data, encoders, loop, methods
from contsteal.data import ImageSet
from contsteal.lab import artifacts, detection, experiment, owner, profiles, provider, sweeps
from contsteal.lab.artifacts import Trained
from contsteal.lab.experiment import Lab, pixels, private
from contsteal.lab.sweeps import Names, Numbers, Row, product
from contsteal.seeds import generator
from contsteal.victim import STORE_LIMIT


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
    """Return the seconds of each training in all, and the views per second of its median epoch."""
    rows, images = {}, pixels(lab.train_images())
    for name, one in trained.items():
        if one.history.empty:  # a ready encoder
            continue
        config = profiles.config(lab.settings, method=name)
        kept, seconds = len(private(images, config)), one.history["seconds"]
        rate = 2 * (kept // config.batch) * config.batch / seconds.median()
        rows[name] = {"seconds": round(seconds.sum(), 1), "views per second": round(rate)}
    return pd.DataFrame(rows).T


def worth(
    lab: Lab, nets: Mapping[str, encoders.Encoder], tasks: Names, seeds: Numbers
) -> pd.DataFrame:
    """Return linear-probe and kNN accuracy of each encoder on each task, means over labelled images."""
    rows = [
        {"encoder": name, "task": task, **lab.score(net, task, seed)}
        for (name, net), task, seed in product(nets.items(), tasks, seeds)
    ]
    by = pd.DataFrame(rows).groupby(["encoder", "task"], sort=False)
    return by[["accuracy", "knn"]].mean().reset_index()


def embedding_map(
    lab: Lab, nets: Mapping[str, encoders.Encoder], task: str, count: int
) -> pd.DataFrame:
    """Return a t-SNE map (x, y) of `count` test images per encoder, with their class names."""
    test, parts = lab.images(task, "test").take(slice(count)), []
    names = np.array(test.classes)[cast(Tensor, test.labels).cpu().numpy()]
    for name, net in nets.items():
        x, y = _map(lab, net, test).T
        parts.append(pd.DataFrame({"encoder": name, "x": x, "y": y, "label": names}))
    return pd.concat(parts, ignore_index=True)


def _map(lab: Lab, net: encoders.Encoder, test: ImageSet) -> np.ndarray:
    """Return a t-SNE map (N, 2) of images, from its artifact where it was drawn before."""
    on = [*lab.machine, version("scikit-learn")]
    identity = {"encoder": encoders.identity(net), "images": lab.data_key(test), "on": on}

    def draw() -> list[list[float]]:
        from sklearn.manifold import TSNE  # scikit-learn takes seconds to import

        x = F.normalize(encoders.embed(net, pixels(test)), dim=1).cpu().numpy()
        tsne = TSNE(init="pca", perplexity=min(30, len(x) // 4), random_state=0)
        with threadpool_limits(1):  # else threads of notebooks side by side wait for each other
            return cast(list[list[float]], tsne.fit_transform(x).tolist())

    return np.array(lab.kept("map", identity, ["contsteal.encoders"], draw), np.float32)


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


# ------------------------------------------------------------- what a notebook would cost


@dataclass(frozen=True)
class Machine:
    """What a device makes of arithmetic; `said` says which of its rates were measured."""

    name: str
    training: float  #: FLOP/s that a training step reaches
    forward: float  #: FLOP/s that a frozen network reaches
    view: float  #: seconds for the augmentation of one image
    step: float  #: seconds that a step takes at least
    beside: float  #: seconds for building, hashing and writing an encoder
    probe: float  #: seconds for a score beside its forward passes
    start: float  #: seconds for a notebook's kernel, imports and figures
    cores: int = 1  #: that work side by side
    said: str = ""  #: how the rates came about


# 790 TFLOP/s are a measured product of bf16 matrices on this card; nothing else of it is measured.
H200 = Machine("NVIDIA H200", 0.25 * 790e12, 0.40 * 790e12, 1e-6, 4e-3, 2.0, 1.0, 15.0, 1,
               "790 TFLOP/s of bf16, 25 % of it in training, 40 % in forward passes")  # fmt: skip
# As measured in `demo` on one core of an AMD EPYC, whose conv4 has 1 MMAC an image.
CORE = Machine("CPU core", 85e9, 85e9, 5.2e-5, 1e-3, 0.2, 0.2, 15.0, 1,
               "85 GFLOP/s of bf16 and 19,000 views a second a core, as in `demo`")  # fmt: skip
Net = tuple[str, int, float]  # an encoder, its image size and its width
# Forward passes that a training step costs an image.
PASSES = {"simclr": 6, "moco": 8, "byol": 8, "simsiam": 6, "supervised": 3}
MARKING = {"rotation": 6, "sslguard": 15}  # those of a mark, beside its method's
SIZES = {  # images of stored sets; of GTSRB those of the competition
    "cifar10": (50000, 10000), "cifar100": (50000, 10000), "stl10": (5000, 8000),
    "svhn": (73257, 26032), "fashion_mnist": (60000, 10000), "gtsrb": (26640, 12630),
    "imagenet": (1281167, 50000), "imagenet100": (126689, 5000),
}  # fmt: skip
MORE = {"unlabeled": 100000, "extra": 531131}  # of further splits


@dataclass(frozen=True)
class Training:
    """One training: its network, how many images pass it, how often, and what each step holds."""

    net: Net
    steps: int
    batch: int
    passes: float  #: forward passes that an image of the batch costs, backward ones count two
    views: float  #: augmented views of an image

    def seconds(self, machine: Machine) -> float:
        """Return what it takes: arithmetic or the start of its kernels, and its views."""
        work = self.batch * self.passes * _flop(*self.net)
        each = max(work / machine.training, machine.step)
        return self.steps * (each + self.batch * self.views * machine.view)

    def memory(self) -> float:
        """Return the bytes of weights, gradients, moments and what is kept for the way back."""
        cost = _cost(*self.net)
        return 16 * cost["weights"] + 2 * cost["made"] * self.batch * max(1.0, self.passes / 3)


@cache
def _flop(encoder: str, image_size: int, width: float) -> float:
    """Return the FLOP of one image's forward pass; torch's counter takes seconds to import."""
    return 2e9 * encoders.describe(encoders.build(encoder, image_size, width=width))["gmac"]


@cache
def _cost(encoder: str, image_size: int, width: float) -> dict[str, float]:
    """Return an encoder's weights and features, and how many numbers its layers make of an image."""
    net, made = encoders.build(encoder, image_size, width=width), [0]
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *given: made.append(_numel(given[-1])))
    encoders.embed(net, torch.zeros(1, 3, image_size, image_size))
    weights = sum(p.numel() for p in net.parameters())
    return {"weights": weights, "features": net.dim, "made": sum(made)}


def _numel(output: object) -> int:
    return output.numel() if isinstance(output, Tensor) else 0


@dataclass
class Work:
    """What a notebook asks for, each thing once: trainings, scores, images sent to victims."""

    trainings: dict[str, Training] = field(default_factory=dict)
    # How many images pass which network: by encoder, task and seed; by victim and what it is sent.
    scores: dict[str, tuple[float, Net]] = field(default_factory=dict)
    inputs: dict[tuple[str, str], tuple[float, Net]] = field(default_factory=dict)
    resident: dict[str, float] = field(default_factory=dict)  # bytes of images in memory
    drawn: dict[str, float] = field(default_factory=dict)  # bytes of embedded images on disk

    def without(self, done: Sequence["Work"]) -> "Work":
        """Return what remains where other notebooks have done theirs."""
        kept: dict[str, Any] = {}
        for name in ("trainings", "scores", "inputs", "drawn"):
            known = {key for other in done for key in getattr(other, name)}
            kept[name] = {k: v for k, v in getattr(self, name).items() if k not in known}
        return replace(self, **kept)

    @property
    def forwards(self) -> float:
        """The images that victims answer."""
        return sum(images for images, _ in self.inputs.values())

    def seconds(self, machine: Machine) -> float:
        """Return what it takes, without the start of the notebook."""
        trained = sum(machine.beside + t.seconds(machine) for t in self.trainings.values())
        passed = [*self.inputs.values(), *self.scores.values()]
        flops = sum(images * _flop(*net) for images, net in passed)
        scored = machine.probe * len(self.scores) + flops / machine.forward
        return (trained + scored) / machine.cores

    def disk(self) -> float:
        """Return the bytes of encoders, answers and embedded images that are kept."""
        kept = sum(4 * _cost(*training.net)["weights"] for training in self.trainings.values())
        answers = sum(4 * images * _cost(*net)["features"] for images, net in self.inputs.values())
        most = STORE_LIMIT * len({victim for victim, _ in self.inputs})
        return kept + sum(self.drawn.values()) + min(answers, most)

    def memory(self) -> float:
        """Return the bytes of the largest training beside the images."""
        largest = max((training.memory() for training in self.trainings.values()), default=0.0)
        return largest + sum(self.resident.values())


class Rehearsal(Lab):
    """A lab that trains, asks and reads nothing: it notes what would be, in the one `work`."""

    work: Work
    given: Mapping[str, Any]

    def _note(self, name: str, training: Training) -> Trained:
        self.work.trainings.setdefault(name, training)
        dim = int(_cost(*training.net)["features"])
        net = cast(Any, SimpleNamespace(key=name, net=training.net, dim=dim))
        return Trained(net, pd.DataFrame(), name, 0.0, {})

    def _load(self, name: str, split: str, n: int, seed: int = 0) -> Any:
        """Note that images are held in memory, or lie on disk; return something as long as they."""
        count = n or 50000
        if known := SIZES.get(name):
            whole = sum(MORE.get(part) or known[part == "test"] for part in split.split("+"))
            count = min(n or whole, whole)
        held = 3 * self.settings["image_size"] ** 2 * count
        place, most = f"{name} {split}", self.work.resident
        most[place] = max(most.get(place, 0.0), held if held <= data.LARGEST else 0.0)
        if name in data.SOURCES:
            self.work.drawn[f"{place} {held} {seed}"] = held
        return range(count)

    def _take(self, pool: Any, rows: Tensor) -> Any:
        return range(len(rows))

    def fit(self, kind: str, config: methods.Config, images: Any) -> Trained:
        """Note the training of an encoder; of a ready one nothing is trained."""
        steps = config.steps or config.epochs * (len(private(images, config)) // config.batch)
        passes = PASSES.get(config.method, 0)
        views = 2 if passes != 3 else 1
        own = Training(_net(config), steps * bool(passes), config.batch, passes, views)
        on = ["data", "train_split"]
        if kind == "alone":
            on = ["data"] if config.method == "supervised" else ["query_data", "query_split"]
        return self._note(f"{kind} {config} {len(images)} {[self.settings[k] for k in on]}", own)

    @cached_property
    def victim(self) -> Any:
        """The victim, with what its mark costs."""
        plain, plan = self.train("victim", self.method), self.watermark
        if not plan:
            return plain
        config = self.recipe
        batch, count = plan["batch"] or config.batch, plan["images"] or len(self.train_images())
        passes = MARKING[plan["kind"]] + PASSES.get(config.method, 0) * (plan["kind"] == "rotation")
        own = Training(_net(config), plan["epochs"] * (count // batch), batch, passes, 4)
        return self._note(f"mark {plan} of {plain.sha256}", own)

    def _sent(self, what: str, count: float) -> None:
        """Note that the victim answers images: of nested sets the largest counts."""
        key, net = (self.victim.sha256, what), _net(self.recipe)
        self.work.inputs[key] = max(self.work.inputs.get(key, (0, net)), (count, net))

    def _test(self, task: str, seed: int) -> int:
        """Note that the victim answers the images of a task: labelled ones and tests."""
        count = len(self._load(task, "train", self.settings["probe_images"]))
        self._sent(f"{task}, labelled, {seed if self.settings['probe_images'] else ''}", count)
        tests = len(self._load(task, "test", self.settings["test_images"]))
        self._sent(f"{task}, tests", tests)
        return count + tests

    def steal(
        self, attack: str, queries: int, seed: int = 0, defenses: Any = (), **changes: Any
    ) -> Trained:
        """Note the training of a surrogate and the images that it is paid for."""
        config = self.attack_config(attack, queries, seed, **changes)
        distinct = config.distinct(queries)
        query = [self.settings[k] for k in ("query_data", "query_split")]
        self._load(query[0], query[1], self.settings["query_images"])
        views = {"clean": 0, "both": 1, "prototype": config.recipe.patches, "pair": 2}
        seen = {"both": 2, "pair": 2, "prototype": config.recipe.patches}.get(config.mode, 1)
        steps = config.steps or config.epochs * (queries // config.batch)
        own = Training(_net(config), steps, config.batch, 3 * seen, views.get(config.mode, 1))
        drawn = config.mode in attacks.ASKS_VIEWS
        how = [config.policies, config.rounds, config.mode == "pair"] if drawn else "clean"
        self._sent(f"{query} {seed} {how}", distinct)
        same = asdict(config) | {"views": config.mode, "answers": config.rounds}
        name = f"{same} {queries} {query} {[*map(repr, defenses)]} {self.victim.sha256}"
        stolen = self._note(name, own)
        stolen.queries.update(unique_inputs=distinct, calls=distinct, forwards=0, steps=steps)
        return stolen

    def random(self, seed: int = 0) -> Any:
        """Return a network that nobody trains."""
        return SimpleNamespace(key=f"random {seed}", net=_net(self.attack_config("embedding", 1)))

    def score(
        self, net: Any, task: str, seed: int = 0, draws: int | None = None, head: Any = None
    ) -> dict[str, float]:
        """Note that an encoder is scored, and return some numbers."""
        self.work.scores[f"{net.key} {task} {seed} {draws}"] = self._test(task, seed), net.net
        return dict.fromkeys(("accuracy", "agreement", "knn", "cka", "cosine"), 0.5)

    def stamp(self, seeds: Sequence[int]) -> dict[str, str]:
        """Return nothing: no figure is drawn."""
        return {}


def _net(config: methods.Config | attacks.Config) -> Net:
    return config.encoder, config.image_size, config.width


def _unread(lab: Any, name: str) -> None:
    """Note a score whose images are counted elsewhere."""
    lab.work.scores[f"{name} {lab.victim.sha256}"] = 0, _net(lab.recipe)


def _purchase(lab: Any, chain: Any, task: str, seed: int = 0, classes: int = 0) -> list[Row]:
    _unread(lab, f"customer {chain} {task} {seed} {classes}")
    lab._test(task, seed)
    return [{"legitimate": 0.5}]


def _served(lab: Any, chain: Any, task: str, classes: int, budgets: Any, seed: int) -> list[Row]:
    """Note the images of two customers."""
    lab._sent(f"{task}, over queries, {seed}", 2 * max(budgets))
    return []


def _trial(
    lab: Any, attack: str, rate: float, queries: int, held_out: int, seed: int, steps: int
) -> list[Row]:
    lab.steal(attack, queries, seed, lr=rate, steps=steps)
    return [{"attack": attack, "rate": rate, "seed": seed, "loss": 1.0}]


def _examine(lab: Any, suspect: Any, test: Any) -> list[Row]:
    about = suspect.about | {"steps": None}
    if suspect.kind != "obfuscated":
        about = suspect.find(lab)[1]
    _unread(lab, f"examined {suspect} {test}")
    return [about | {"applies": "yes", "wsr": 0.5, "cosine": 0.5, "right": 1, "answers": 2}]


def _strange(plan: owner.Strangers, lab: Any, index: int) -> Any:
    name, count = plan.data or lab.settings["data"], plan.images or lab.settings["train_images"]
    return lab._load(name, "train", count, owner.FIRST + index)


def _refusals(lab: Any, watchers: Any, users: Any, seeds: Any) -> pd.DataFrame:
    """Note that every user is watched; in the worst case each is refused half way."""
    queries = lab.given["queries"]
    lab._sent("watched", len(users) * (len(seeds) + lab.given["users"]) * queries)
    return pd.DataFrame([
        {"detector": name, "user": user, "seed": seed, "queries": queries, "answers": queries // 2,
         "accounts": 2, "answered": queries, "refusals": 1}
        for name, user, seed in product(watchers, users, seeds)
    ])  # fmt: skip


def _run(lab: Lab, jobs: Sequence[sweeps.Job]) -> list[Row]:
    return [row for job in jobs for row in job.make(lab.but(**dict(job.lab)), *job.given)]


def timed(lab: Lab) -> Machine:
    """Return this device's rates, from ten steps of the surrogate's training after three others."""
    config = lab.attack_config("embedding", lab.settings["query_images"])
    shape = config.batch, 3, config.image_size, config.image_size
    net = (
        encoders.build(config.encoder, config.image_size, width=config.width).to(lab.device).train()
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    images = torch.zeros(shape, dtype=torch.uint8, device=lab.device)

    def step() -> None:
        with loop.autocast(lab.device):
            loss = net(images).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU

    _, seconds = (timeit.timeit(step, number=count) / count for count in (3, 10))
    rate = 3 * _flop(*_net(config)) * config.batch / seconds
    said = f"10 steps timed here, {rate / 1e12:.3g} TFLOP/s in training; all else is arithmetic"
    like = H200 if lab.device.type == "cuda" else CORE
    return replace(like, name=artifacts.processor(), training=rate, forward=1.6 * rate, said=said)


def _noting(work: Work, values: Mapping[str, Any]) -> list[tuple[object, str, object]]:
    """Return what the lab's functions are replaced by, to note in `work` what they would do."""
    own = type("Rehearsal", (Rehearsal,), {"work": work, "given": values})
    return [
        (experiment, "Lab", own), (profiles, "profile", cache(profiles.profile)),
        (sweeps, "run", _run), (sweeps, "trial_rows", _trial),
        (provider, "purchase", _purchase), (provider, "_served", _served),
        (provider, "calibrated", lambda lab, b4b, *_: b4b.calibrated(0.5, 1.0)),
        (owner, "_judged", lambda table, _: table.assign(p_paper=1.0)),
        (owner, "examine", _examine), (owner.Strangers, "load", _strange),
        (detection, "refusals", _refusals),
        (detection, "calibrated", lambda *_: {f"{n}, calibrated": None for n in detection.CALIBRATED}),
    ]  # fmt: skip


STARTS = {  # calls of a cell that train or score, or check what it is given
    "lab.train", "lab.steal", "inspection.worth", "detection.check_names", "detection.refusals",
    "detection.refused", "provider.customers", "provider.defended", "provider.adapting",
    "provider.over_queries", "owner.dataset_inference", "owner.watermark", "owner.guard",
    "sweeps.train", "sweeps.sweep", "sweeps.search_rates", "sweeps.without_victim", "sweeps.stake",
    "sweeps.victims", "sweeps.references", "sweeps.ablate", "sweeps.losses", "sweeps.classifiers",
    "sweeps.elsewhere", "sweeps.grid",
}  # fmt: skip
SHOWN = ("figures", "plots", "sentences", "Markdown", "Image", "display", "tables", "stats")


def rehearse(code: Sequence[str], values: Mapping[str, Any]) -> Work:
    """Return what a notebook would do, from those of its statements that train, score or ask.

    They run in a lab that only notes: no data set is read, and no network is built but to count its
    arithmetic. What depends on results (how far a refused thief gets) counts as the worst case.

    Args:
        code: the notebook's cells.
        values: its parameters.
    """
    statements = [node for cell in code for node in ast.parse(cell).body]
    work, space = Work(), {name: MagicMock() for name in SHOWN} | dict(values)
    space["figures"].read.return_value = (pd.DataFrame(), {})
    with ExitStack() as stack:
        for patched in _noting(work, values):
            stack.enter_context(patch.object(*patched))
        for node in _needed(statements, set(space)):
            exec(compile(ast.Module([node], []), "<notebook>", "exec"), space)  # the notebook's own
    return work


def _needed(statements: Sequence[ast.stmt], known: set[str]) -> list[ast.stmt]:
    """Return the statements that start work, and those that make what these use, in order."""
    chosen: list[ast.stmt] = []
    wanted: set[str] = set()
    for node in reversed(statements):
        inner = list(ast.walk(node))
        names = [n for n in inner if isinstance(n, ast.Name)]
        own = {n.id for part in inner if isinstance(part, ast.comprehension)
               for n in ast.walk(part.target) if isinstance(n, ast.Name)}  # fmt: skip
        made = {n.asname or n.name for n in inner if isinstance(n, ast.alias)} - own
        made |= {n.id for n in names if isinstance(n.ctx, ast.Store)} - own
        filled = {n.value.id for n in inner if isinstance(n, ast.Subscript)
                  and isinstance(n.ctx, ast.Store) and isinstance(n.value, ast.Name)}  # fmt: skip
        if isinstance(node, ast.For):  # its variables are its own
            made = set()
        used = (made | filled) & (wanted - known) and not {n.id for n in names} & set(SHOWN)
        calls = {ast.unparse(n.func) for n in inner if isinstance(n, ast.Call)}
        if not used and not calls & STARTS:
            continue
        chosen.append(node)
        if isinstance(node, ast.Assign):
            wanted -= made
        wanted |= {n.id for n in names if isinstance(n.ctx, ast.Load)} - own
    return chosen[::-1]
