"""Tidy tables for the figures: sweeps over attacks, budgets, seeds and defences, and their frame."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from contsteal import encoders, evaluate, runs
from contsteal.defenses import Defense
from contsteal.experiment import Lab


@dataclass(frozen=True)
class Job:
    """One attack and the tasks it is scored on."""

    attack: str
    queries: int
    seed: int
    tasks: tuple[str, ...]
    defenses: tuple[Defense, ...]
    changes: tuple[tuple[str, Any], ...]

    def run(self, lab: Lab) -> list[dict[str, Any]]:
        """Steal, score, and return one row per task with what it cost in queries."""
        stolen = lab.steal(
            self.attack, self.queries, self.seed, self.defenses, **dict(self.changes)
        )
        about = {"attack": self.attack, "images": self.queries, "seed": self.seed, **stolen.queries}
        return [about | {"task": t, **lab.score(stolen.encoder, t)} for t in self.tasks]


@cache
def _worker_lab(profile: str) -> Lab:
    return Lab(profile)


def _in_worker(profile: str, job: Job) -> list[dict[str, Any]]:
    return job.run(_worker_lab(profile))


def _run(lab: Lab, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Run jobs, one process per core on a CPU (a run uses one thread), one by one on a GPU."""
    workers = min(lab.settings.get("workers", runs.cores()), len(jobs))
    bar = {"desc": "attacks", "total": len(jobs), "disable": len(jobs) < 2}
    if workers < 2 or lab.device.type != "cpu":
        return [row for job in tqdm(jobs, **bar) for row in job.run(lab)]
    _ = lab.victim  # made here, once, not by every worker
    with joblib.parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        work = joblib.Parallel(return_as="generator")(
            joblib.delayed(_in_worker)(lab.profile, job) for job in jobs
        )
        return [row for rows in tqdm(work, **bar) for row in rows]


def sweep(
    lab: Lab,
    attacks: Sequence[str],
    queries: Sequence[int],
    seeds: Sequence[int],
    tasks: Sequence[str],
    defenses: Sequence[Defense] = (),
    **changes: Any,
) -> pd.DataFrame:
    """Run every combination of attack, number of query images and seed; one row per run and task.

    `changes` are fields of `steal.Config`. Each row has what it cost (`unique_inputs`, `calls`) and
    what the surrogate is worth (`accuracy`, `agreement`, `knn`, `cka`, `cosine`).
    """
    jobs = [
        Job(*point, tuple(tasks), tuple(defenses), tuple(sorted(changes.items())))
        for point in product(attacks, queries, seeds)
    ]
    return pd.DataFrame(_run(lab, jobs))


def defended(
    lab: Lab,
    defenses: Sequence[Sequence[Defense]],
    attacks: Sequence[str],
    queries: int,
    seeds: Sequence[int],
    task: str,
) -> pd.DataFrame:
    """Run every attack under every list of defences; add the legitimate user's accuracy under it."""
    jobs = [
        Job(attack, queries, seed, (task,), tuple(chain), ())
        for chain, attack, seed in product(defenses, attacks, seeds)
    ]
    table = pd.DataFrame(_run(lab, jobs))
    names = [" + ".join(map(repr, job.defenses)) or "none" for job in jobs]
    honest = {
        name: lab.legitimate(task, job.defenses) for name, job in zip(names, jobs, strict=True)
    }
    table.insert(0, "defence", names)
    return table.assign(legitimate=[honest[name] for name in names])


def references(lab: Lab, tasks: Iterable[str], seeds: Iterable[int]) -> pd.DataFrame:
    """Return the rows that frame every table: the random floor per seed, and the victim."""
    nets = [("random", s, lab.random(s)) for s in seeds] + [("victim", 0, lab.victim.encoder)]
    return pd.DataFrame(
        {"attack": name, "seed": seed, "task": task, **lab.score(net, task)}
        for (name, seed, net), task in product(nets, tasks)
    )


def summary(table: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Return mean, 95 % t-interval over seeds and n of each metric per group, in order of appearance."""

    def line(values: pd.Series) -> str:
        mean, low, high = evaluate.mean_interval(values)
        span = f" [{100 * low:.1f}, {100 * high:.1f}]" if low == low else ""
        return f"{100 * mean:.1f}{span}"

    groups = table.groupby(list(by), sort=False)
    return groups[list(metrics)].agg(line).assign(n=groups.size())


def difference(table: pd.DataFrame, a: str, b: str, metric: str = "accuracy") -> tuple[float, ...]:
    """Return mean and 95 % t-interval of a's minus b's metric, paired by seed."""
    wide = table.pivot_table(index="seed", columns="attack", values=metric)
    return evaluate.mean_interval((wide[a] - wide[b]).dropna())


def verdict(table: pd.DataFrame, a: str, b: str, metric: str = "accuracy") -> str:
    """Say in one sentence whether a beats b, as measured, with the paired interval and n."""
    mean, low, high = difference(table, a, b, metric)
    n = table.loc[table["attack"] == a, "seed"].nunique()
    how = "beats" if low > 0 else "loses to" if high < 0 else "cannot be told from"
    return f"{a} {how} {b}: {100 * mean:+.1f} points [{100 * low:.1f}, {100 * high:.1f}], {n} seeds"


def embedding_map(
    lab: Lab, nets: dict[str, encoders.Encoder], task: str, count: int, seed: int = 0
) -> pd.DataFrame:
    """Return a t-SNE map (x, y) of `count` test images per encoder, with their class names."""
    from sklearn.manifold import TSNE  # scikit-learn takes seconds to import

    test = lab.images(task, "test").take(slice(count))
    names = np.array(test.classes)[test.labels.cpu().numpy()]
    parts = []
    for name, net in nets.items():
        x = torch.nn.functional.normalize(encoders.embed(net, test.images), dim=1).cpu().numpy()
        xy = TSNE(init="pca", perplexity=min(30, count // 4), random_state=seed).fit_transform(x)
        parts.append(pd.DataFrame({"encoder": name, "x": xy[:, 0], "y": xy[:, 1], "label": names}))
    return pd.concat(parts, ignore_index=True)
