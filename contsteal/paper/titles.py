"""Titles of figures: one sentence each about what its table shows, never more than its seeds allow.

"Surely" stands for a 95 % t-interval over seeds that excludes zero, as everywhere in the figures.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.spatial import KDTree
from scipy.stats import spearmanr

from contsteal.lab import tables
from contsteal.lab.sweeps import AS_GIVEN
from contsteal.paper import stakes, style, summary

Span = tuple[float, float, float, int]
LEAST = 5  # points below which a rank correlation says nothing
RISK = 0.05


def samples(table: pd.DataFrame, what: str) -> str:
    """Say what a sheet shows and how many images of it."""
    sizes = table.groupby("set", sort=False).size()
    return f"{what}: {', '.join(sizes.index)}; {sizes.min()} images of each"


def training(table: pd.DataFrame) -> str:
    """Say where each training ended, and whether its vectors fell together (spread below 0.1)."""
    last = table.dropna(subset=["knn", "spread"]).groupby("method", sort=False).last()
    told = [f"{name} {100 * r['knn']:.0f} % in {r['epoch']:g}" for name, r in last.iterrows()]
    fallen = ", ".join(last.index[last["spread"] < 0.1])
    end = f"{fallen} collapsed" if fallen else "none collapsed"
    return f"kNN accuracy and epochs: {', '.join(told)}; {end}"


def worth(table: pd.DataFrame) -> str:
    """Say what pre-training gains on the first task, as measured on one encoder of each kind."""
    wide = table.pivot_table(index="encoder", columns="task", values="accuracy", sort=False)
    victim = summary.victims(table)[0]
    gain = 100 * (wide.loc[victim].iloc[0] - wide.loc["random"].iloc[0])
    side = "above" if gain >= 0 else "below"
    return (
        f"{victim} is {abs(gain):.0f} points {side} random features on {wide.columns[0]} "
        "(one encoder each)"
    )


def neighbours(table: pd.DataFrame) -> str:
    """Say how often a point's nearest neighbour on its map is of its class."""
    told = []
    for name, rows in table.groupby("encoder", sort=False):
        labels = rows["label"].to_numpy()
        nearest = KDTree(rows[["x", "y"]]).query(rows[["x", "y"]], k=2)[1]
        other = np.where(nearest[:, 0] == np.arange(len(rows)), nearest[:, 1], nearest[:, 0])
        told.append(f"{name} {100 * (labels == labels[other]).mean():.0f} %")
    return "Nearest on the map is of the same class: " + ", ".join(told)


def losses(table: pd.DataFrame) -> str:
    """Compare the best and the worst loss at equal queries; its interval allows for the choice."""
    rows = summary.first(table, "victim")
    own = rows[rows["unique_inputs"] == rows["images"]]
    order = own.groupby("attack")["accuracy"].mean().sort_values().index
    if len(order) < 2:
        return "One loss at equal queries"
    pairs = len(list(combinations(order, 2)))
    mean, low, _, n = tables.difference(own, order[-1], order[0], level=1 - RISK / pairs)
    told = f"Best and worst of {len(order)} losses: {order[-1]}"
    if n < 2:
        return f"{told} {100 * mean:+.1f} points over {order[0]}, one seed proves nothing"
    how = "beats" if low > 0 else "cannot be told from"
    return f"{told} {how} {order[0]} ({100 * mean:+.1f} points, {n} seeds)"


def elsewhere(table: pd.DataFrame) -> str:
    """Say how queries from elsewhere compare with the victim's own."""
    return f"Queries: {summary.elsewhere(table)[0]}"


def pulls(table: pd.DataFrame) -> str:
    """Say which losses drive a vector from others, and which only draw it to its own answer."""
    away = table.groupby("loss", sort=False)["pull"].min() < 0
    drive, only = (" and ".join(away.index[flag]) for flag in (away, ~away))
    told = [f"repel under {drive}"] * bool(drive) + [f"not under {only}"] * bool(only)
    return f"Other vectors {', '.join(told)}"


def two_by_two(table: pd.DataFrame) -> str:
    """Give Cont-Steal's difference from MSE without and with augmentation, and say if they are sure."""
    views = table.groupby("views", sort=False)
    each = {view: tables.difference(rows, "cont-steal", "embedding") for view, rows in views}
    told = ", ".join(f"{view} {_span(found)}" for view, found in each.items())
    return f"cont-steal minus embedding: {told}, {_sure(list(each.values()))}"


def _span(found: Span) -> str:
    mean, low, high, n = found
    return f"{100 * mean:+.1f}" + (f" [{100 * low:.1f}, {100 * high:.1f}]" if n > 1 else "")


def _sure(found: Sequence[Span]) -> str:
    """Say what intervals allow to say of differences, counted."""
    if max(n for *_, n in found) < 2:
        return "one seed proves nothing"
    above, below = sum(f[1] > 0 for f in found), sum(f[2] < 0 for f in found)
    if not above and not below:
        return "no sure difference"
    return f"surely ahead in {above} of {len(found)}, behind in {below}"


def ablations(table: pd.DataFrame) -> str:
    """Say how many changes of a knob surely help or harm."""
    rows = style.worded(table, "value")
    rows = rows.assign(attack=(rows["knob"] + " " + rows["value"]).str.strip())
    names = [n for n in rows["attack"].unique() if n != AS_GIVEN]
    each = {name: tables.difference(rows, name, AS_GIVEN) for name in names}
    if len(each) == 1:
        ((name, found),) = each.items()
        return f"Cont-Steal with {name}: {_span(found)} points, {_sure([found])}"
    return f"Cont-Steal, {len(each)} changes one at a time: {_changes(each)}"


def _changes(each: dict[str, Span]) -> str:
    """Name what surely helps and what surely harms."""
    if not each:
        return "none was tried"
    if max(n for *_, n in each.values()) < 2:
        return "one seed proves nothing"
    helps = [name for name, f in each.items() if f[1] > 0]
    harms = [name for name, f in each.items() if f[2] < 0]
    told = []
    for verb, names in (("help", helps), ("harm", harms)):
        one = len(names) == 1
        told.append(f"{len(names)} surely {verb}" + (f"s ({names[0]})" if one else ""))
    return f"{', '.join(told)}, {len(each) - len(helps) - len(harms)} cannot be told"


def geometry(table: pd.DataFrame, metrics: dict[str, str]) -> str:
    """Name what goes with Cont-Steal's gain: rank correlations, corrected for how many are tried."""
    if len(table) < LEAST:
        return (
            f"{len(table)} of the {LEAST} victims and query sets that a correlation needs at least"
        )
    told = []
    for metric, label in metrics.items():
        found = spearmanr(table[metric], table["gain"])
        if found.pvalue < RISK / len(metrics):
            told.append(f"{label} ({found.statistic:+.2f})")
    goes = f"{' and '.join(told)} surely" if told else f"none of {len(metrics)} measures surely"
    verb = "go" if len(told) > 1 else "goes"
    return f"{goes[0].upper()}{goes[1:]} {verb} with Cont-Steal's gain over MSE, n {len(table)}"


def budget(table: pd.DataFrame) -> str:
    """Compare Cont-Steal and MSE at the largest number of images."""
    rows = table[table["images"] == table["images"].max()]
    told = summary.duel(rows, "cont-steal", "embedding", "accuracy against both budgets")
    return f"{table['images'].max():g} images: {told}"


def adapting(table: pd.DataFrame) -> str:
    """Say how many ways to adapt surely gain or lose something."""
    found = {f"{how}, {style.short(name, 24)}": span for name, how, span in stakes.gains(table)}
    return f"Adapting, {len(found)} ways: {_changes(found)}"


def coverage(table: pd.DataFrame) -> str:
    """Say what share each user has covered after as many queries, without a claim about other runs."""
    last = table.groupby("user", sort=False)["queries"].max()
    at = table[(table["queries"] == last.max())].groupby("user", sort=False)["coverage"].mean()
    told = ", ".join(f"{user} {100 * share:.0f} %" for user, share in at.items())
    return f"Covered after {last.max():g} queries: {told}"


def defended(table: pd.DataFrame) -> str:
    """Count the defences that surely take from each attack and from the paying user."""
    rows = table.dropna(subset=["defence"])
    names = [d for d in rows["defence"].unique() if d != "none"]
    attacks = list(rows["attack"].unique())
    hurt = {who: _hurt(rows[rows["attack"] == who], names, "accuracy") for who in attacks}
    user = _hurt(rows[rows["attack"] == attacks[0]], names, "legitimate")
    told = ", ".join(f"{count} from {who}" for who, count in hurt.items())
    return f"Of {len(names)} defences, surely take: {told}, {user} from the paying user"


def _hurt(rows: pd.DataFrame, names: Sequence[str], metric: str) -> int:
    by = rows.assign(attack=rows["defence"])
    return sum(tables.difference(by, name, "none", metric)[2] < 0 for name in names)
