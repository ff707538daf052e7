"""What tables say, in sentences: titles of figures and summaries, with every comparison from `compare`.

A difference is reliable where its 95 % t-interval over seeds excludes zero.
"""

import re
from collections.abc import Collection, Sequence
from math import comb
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial import KDTree
from scipy.stats import spearmanr

from contsteal import evaluate
from contsteal.lab import profiles, provider, sweeps, tables
from contsteal.lab.tables import Difference, name
from contsteal.ownership import inference

ALPHA = 0.05
LEAST_POINTS = 5  # below which a rank correlation says nothing
REFERENCES = ("random", "victim")
LOSSES = "Cont-Steal's loss", "MSE's"
EQUAL = "Attacks with equal queries"  # a title, where none of those that it compares was run
GEOMETRY = {"norm_spread": "spread of norms", "anisotropy": "anisotropy",
            "effective_rank": "effective rank"}  # fmt: skip
KINDS = {"victim": "victims", "unmarked": "unmarked victims", "obfuscated": "disguised copies",
         "stolen": "thieves", "stolen before": "thieves before marking",
         "independent": "independent encoders", "profile": "tests of the main victim"}  # fmt: skip
TESTS = {"p_chance": "against chance", "p_rank": "by rank, against chance",
         "p_paper": "against one independent encoder",
         "p_controls": "against the other independent encoders", "p": "",
         "p_keys": "against random keys"}  # fmt: skip


class Summary(NamedTuple):
    """What a table says: the title of its figure, numbers with intervals, and what else is to say."""

    title: str
    numbers: pd.DataFrame = pd.DataFrame()
    details: str = ""

    @property
    def text(self) -> str:
        """Title and details as sentences."""
        return _joined(_capital(self.title), _capital(self.details)) + "."


def percent(value: float) -> str:
    """Format a share as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    text = f"{100 * value:+.1f}"
    return text if float(text) else "0.0"


def signed(value: float) -> str:
    """Format a difference in points for a cell; below one point a decimal keeps its sign."""
    return f"{100 * value:+.0f}" if abs(value) >= 0.0095 else _points(value)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def compare(difference: Difference, a: str, b: str, corrected: bool = False) -> str:
    """Say how a compares with b, given the mean of a - b and its interval.

    `corrected` says that the interval allows for the choice of this pair among several.
    """
    mean, low, high, n = difference
    if n < 2:
        return _capital(f"{a} minus {b}: {_points(mean)} points (one seed, so no interval)")
    if high < 0:
        return compare((-mean, -high, -low, n), b, a, corrected)
    interval = f"{'corrected ' * corrected}95 % CI {100 * low:.1f} to {100 * high:.1f}"
    if low > 0:  # of one length of training: who wins is for the claims to say, which compare two
        return _capital(f"{a} is {100 * mean:.1f} points ahead of {b} ({interval})")
    return f"No reliable difference between {a} and {b} ({_points(mean)} points, {interval})"


def verdict(table: pd.DataFrame, a: str, b: str) -> str:
    """Say which of two attacks is better, paired by seed; nothing where one was not run."""
    if not {a, b} <= set(table["attack"]):
        return ""
    return compare(tables.difference(table, a, b), name(a), name(b))


def points(difference: Difference) -> str:
    """Format a difference in percentage points with its interval."""
    mean, low, high, n = difference
    interval = f" (95 % CI {100 * low:.1f} to {100 * high:.1f})" if n > 1 else ""
    return f"{_points(mean)} points{interval}"


def reliable(differences: Collection[Difference]) -> tuple[int, int]:
    """Count the differences that are reliably above and reliably below zero."""
    return sum(d[1] > 0 for d in differences), sum(d[2] < 0 for d in differences)


def _tally(a: str, b: str, each: Collection[Difference], of: str) -> str:
    """Say on how many of several things a is reliably ahead of b, and on how many behind."""
    ahead, behind = reliable(each)
    many = f"{ahead} of {len(each)} {of}"
    return f"{a} is reliably ahead of {b} on {many}, behind on {behind or 'none'}"


def _changes(rows: pd.DataFrame, column: str, base: str, metric: str) -> dict[str, Difference]:
    """Return what each other value of a column changes of a metric, paired by seed."""
    by = rows.assign(attack=rows[column])
    others = (value for value in rows[column].unique() if value != base)
    return {value: tables.difference(by, value, base, metric) for value in others}


def _count(hits: pd.Series) -> str:
    return f"{hits.sum():.0f} of {len(hits)}"


def _listed(each: dict[str, Difference]) -> str:
    return "; ".join(f"{who}: {points(difference)}" for who, difference in each.items())


def _joined(*sentences: str) -> str:
    """Join sentences; empty ones are left out."""
    return ". ".join(filter(None, sentences))


def main_task(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table's first task."""
    return table[table["task"] == table["task"].iloc[0]]


def changed(table: pd.DataFrame) -> pd.DataFrame:
    """Return an ablation's rows with the changed knob and its value in place of the attack."""
    values = table["value"].astype(object).fillna("").astype(str)
    return table.assign(value=values, attack=(table["knob"] + ": " + values).str.removesuffix(": "))


def _verdicts(table: pd.DataFrame, *pairs: tuple[str, str]) -> str:
    """Compare the two attacks of each pair on the main task."""
    return _joined(*(verdict(main_task(table), *pair) for pair in pairs))


# ----------------------------------------------------------------------------- victims (01)


def same_class(rows: pd.DataFrame) -> float:
    """Return how often the nearest neighbour of a point on a map is of its class."""
    labels, xy = rows["label"].to_numpy(), rows[["x", "y"]]
    nearest = KDTree(xy).query(xy, k=2)[1]
    other = np.where(nearest[:, 0] == np.arange(len(xy)), nearest[:, 1], nearest[:, 0])
    return float((labels == labels[other]).mean())


def maps(table: pd.DataFrame) -> Summary:
    """Say of each encoder how often neighbours on its map are of one class."""
    each = ", ".join(f"{name(encoder)} {100 * same_class(rows):.0f} %"
                     for encoder, rows in table.groupby("encoder", sort=False))  # fmt: skip
    return Summary(f"Images whose nearest neighbour on the map is of the same class: {each}")


def training(table: pd.DataFrame) -> Summary:
    """Give the last kNN accuracies, and name what collapsed (spread below 0.1)."""
    last = table.dropna(subset=["knn", "spread"]).groupby("method", sort=False).last()
    each = ", ".join(f"{name(k)} {100 * knn:.0f} %" for k, knn in last["knn"].items())
    collapsed = " and ".join(name(k) for k in last.index[last["spread"] < 0.1])
    each += f"; collapsed: {collapsed}" if collapsed else ""
    return Summary(f"kNN accuracy of held-out images after training: {each}")


def worth(table: pd.DataFrame) -> Summary:
    """Say what a probe reaches on the victim's features and on random ones, one encoder of each kind."""
    wide = table.pivot_table(index="encoder", columns="task", values="accuracy", sort=False)
    victim = next(n for n in wide.index if n not in ("random", "supervised"))
    reached, random = (f"{100 * wide.iloc[:, 0][encoder]:.0f} %" for encoder in (victim, "random"))
    title = f"A linear probe reaches {reached} on the victim's features ({name(victim)}) and {random} on "
    title += f"random ones ({wide.columns[0]})"
    return Summary(title, (100 * wide.rename(name)).round(1))


def stake(table: pd.DataFrame) -> Summary:
    """Say how far each data set's victim is above the best that a thief has without it."""
    by = ["data", "attack"]
    means = table.groupby(by, sort=False)["accuracy"].mean().unstack("attack", sort=False)
    gap = means["victim"] - means.drop(columns="victim").max(axis=1)
    each = (f"{100 * abs(value):.1f} points {'below' if value > 0 else 'above'} it on {data}"
            for data, value in gap.items())  # fmt: skip
    title = f"After {table['steps'].max():g} steps without the victim, a thief is {', '.join(each)}"
    return Summary(title, tables.summary(table, by, ["accuracy"]))


def judge(worth: pd.DataFrame, expectations: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return what a profile expects of its encoders, what was measured, and whether it holds."""
    rows = []
    for given in expectations:
        wanted = profiles.Expectation(**given).model_dump()
        match = (worth["encoder"] == wanted["encoder"]) & (worth["task"] == wanted["task"])
        values, measured, holds = worth.loc[match, wanted["metric"]], "-", "not run"
        if len(values):
            measured = percent(values.iloc[0])
            holds = "yes" if wanted["low"] <= values.iloc[0] <= wanted["high"] else "NO"
        rows.append({
            "encoder": name(wanted["encoder"]), "task": wanted["task"], "metric": wanted["metric"],
            "expected": f"{100 * wanted['low']:g} to {100 * wanted['high']:g} %",
            "measured": measured, "holds": holds, "source": wanted["source"],
        })  # fmt: skip
    return pd.DataFrame(rows)


# --------------------------------------------------------------------- attacks (02, 03, 04)


def conventional(table: pd.DataFrame) -> Summary:
    """Say whether embeddings give away more than labels and posteriors."""
    title = _verdicts(table, ("embedding", "label"), ("embedding", "posterior")) or EQUAL
    metrics = [m for m in ("accuracy", "own_head", "agreement", "knn") if m in table]
    return Summary(title, tables.summary(table, ["task", "attack"], metrics))


def readings(table: pd.DataFrame) -> Summary:
    """Say in which readings an embedding thief is ahead of a classifier's thief, and in which behind."""
    by = tables.readings(table).groupby(["reading", "attack"], sort=False)["gain"]
    each = {f"{name(rival)}, {reading}": (*evaluate.mean_interval(gains), len(gains))
            for (reading, rival), gains in by}  # fmt: skip
    thieves = "The thief of embeddings (MSE)", "thieves of labels or posteriors"
    title = _tally(*thieves, each.values(), "comparisons")
    rows = {who: {"embedding thief's lead": points(d), "n": d[3]} for who, d in each.items()}
    return Summary(title, pd.DataFrame(rows).T.rename_axis("rival, reading"))


def losses(table: pd.DataFrame) -> Summary:
    """Compare the best and the worst attack per victim, with one query an image: equal budgets.

    The interval allows for the choice among all pairs (Bonferroni).
    """
    rows, parts = main_task(table).dropna(subset=["unique_inputs"]), []
    each = list(rows.groupby("victim", sort=False))
    for victim, runs in each:
        same = runs[runs["unique_inputs"] == runs["images"]]
        order = list(same.groupby("attack")["accuracy"].mean().sort_values().index)
        if len(order) > 1:
            pairs = comb(len(order), 2)
            best, worst = f"the best, {name(order[-1])},", f"the worst, {name(order[0])}"
            gap = tables.difference(same, order[-1], order[0], level=1 - ALPHA / pairs)
            lead = compare(gap, best, worst, corrected=pairs > 1)
            on = f" on {victim}" if len(each) > 1 else ""
            parts.append(f"Of the {len(order)} attacks{on} with equal queries, "
                         f"{lead[:1].lower()}{lead[1:]}")  # fmt: skip
    first, *others = parts or ["Accuracy and agreement of one loss"]
    return Summary(first, tables.layout(table), _joined(*others))


def queries(table: pd.DataFrame) -> Summary:
    """Compare each query set with the first, mean over attacks, at the first number of images."""
    rows = main_task(table).dropna(subset=["query_data"])
    same = rows[rows["images"] == rows["images"].iloc[0]]
    means = same.groupby(["query_data", "seed"], sort=False)["accuracy"].mean().reset_index()
    by = means.assign(attack=means["query_data"].map(name))
    count = f"{same['images'].iloc[0]:g} images"
    first, *others = by["attack"].unique()
    differences = [tables.difference(by, first, other) for other in others]
    ahead, behind = reliable(differences)
    title = f"A thief with {count} of {first} is reliably more accurate than with as many of {ahead} of "
    title += f"{len(others)} other sets"
    title += f", and less accurate than with those of {behind}" * bool(behind)
    if len(others) == 1:
        far = f"stealing with as many {others[0]}"
        title = compare(differences[0], f"stealing with {count} of {first}", far)
    return Summary(title, tables.layout(table))


def pulls(table: pd.DataFrame) -> Summary:
    """Say which losses push a surrogate's vector away from other vectors."""
    away = table.groupby("loss", sort=False)["pull"].min() < 0
    push, pull = (" and ".join(map(name, away.index[flag])) for flag in (away, ~away))
    parts = (f"{push} push a surrogate's vector away from those of other images (red)" if push else "",
             f"{pull} only pulls it to its target (blue)" if pull else "")  # fmt: skip
    return Summary("; ".join(filter(None, parts)))


def attacks(table: pd.DataFrame) -> Summary:
    """Say whether contrastive attacks beat regression with equal queries."""
    table = main_task(table)
    title = _verdicts(table, ("cont-steal", "embedding"), ("cont-steal", "embedding, own views"))
    contrastive = ("cont-steal-code", "info-nce", "info-nce, own views")
    details = _verdicts(table, *((attack, "embedding") for attack in contrastive))
    metrics = ["accuracy", "agreement", "knn", "cka", "cosine"]
    numbers = tables.summary(table, ["attack"], metrics)
    shares = tables.shares(table, sweeps.ALONE)  # controls do not go that way
    controls = shares.index.isin(["random", *sweeps.ALONE]) | shares.index.str.endswith("shuffled")
    shares = shares.astype(object).mask(controls, "control").rename(name)
    numbers.insert(len(numbers.columns) - 1, "share of the way", shares)
    return Summary(title or EQUAL, numbers, details)


def control(table: pd.DataFrame) -> Summary:
    """Say what the right answers gain over other images', and which attacks steal nothing."""
    rows = main_task(table)
    known = rows["attack"].unique()
    title = _joined(*(f"Shuffling the victim's answers changes the accuracy of {name(right)} by "
                      f"{points(tables.difference(rows, f'{right}, shuffled', right))}"
                      for right in known if f"{right}, shuffled" in known))  # fmt: skip
    numbers = tables.summary(table, ["attack"], ["accuracy", "agreement", "cka"])
    means = table.groupby("attack", sort=False)["accuracy"].mean()
    means = means.drop([*REFERENCES, *sweeps.ALONE], errors="ignore")
    stolen = means > tables.floor(table, sweeps.ALONE)
    above, below = (", ".join(map(name, means.index[some])) or "none" for some in (stolen, ~stolen))
    found = f"Above the best that needs no victim: {above}; not above it: {below}"
    return Summary(title or "Controls, beside attacks with equal queries", numbers, found)


def best_rates(table: pd.DataFrame) -> dict[str, float]:
    """Return the learning rate of each attack with the least mean loss on held-out queries."""
    losses = table.pivot_table(index="attack", columns="rate", values="loss", sort=False)
    return dict(losses.idxmin(axis=1))


def rates(table: pd.DataFrame) -> Summary:
    """Name the learning rates with the least loss on held-out queries."""
    losses = table.pivot_table(index="attack", columns="rate", values="loss", sort=False)
    least = " or ".join(f"{rate:g}" for rate in sorted(set(best_rates(table).values())))
    title = f"The loss on held-out queries is least at a learning rate of {least}"
    title += ", depending on the attack" * (" or " in least)
    return Summary(title, losses.round(4).rename(name).rename(columns="{:g}".format))


def steps(table: pd.DataFrame) -> Summary:
    """Say which attack leads after each length, and what augmentation and loss add after the longest."""
    leaders: dict[str, list[str]] = {}
    trained = tables.trainings(main_task(table))
    for rows in trained:
        runs = rows[rows["attack"].ne("victim") & rows["steps"].notna()]
        best = runs.groupby("attack")["accuracy"].mean().idxmax()
        leaders.setdefault(name(best), []).append(f"{runs['steps'].iloc[0]:g}")
    parts = [f"{who} after {' and '.join(lengths)} steps" for who, lengths in leaders.items()]
    pairs = ("embedding, own views", "embedding"), ("cont-steal", "embedding, own views")
    last = _verdicts(trained[-1], *pairs)
    details = f"After {trained[-1]['steps'].max():g} steps: {last}" if last else ""
    numbers = tables.summary(main_task(table), ["attack", "steps"], ["accuracy"])
    return Summary(f"The most accurate thief is {', '.join(parts)}", numbers, details)


def victims(table: pd.DataFrame) -> Summary:
    """Compare Cont-Steal with MSE on each victim; of several, count the reliable differences."""
    pair = "cont-steal", "embedding"
    each = {f"victim {seed:g}": tables.difference(rows, *pair)
            for seed, rows in table.groupby("victim_seed", sort=False)}  # fmt: skip
    numbers = tables.summary(table, ["victim_seed", "attack"], ["accuracy"])
    if len(each) == 1:
        return Summary(verdict(table, *pair), numbers)
    return Summary(_tally("Cont-Steal", "MSE", each.values(), "victims"), numbers, _listed(each))


def by_views(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of attacks such as "embedding, own views" with their loss and views apart."""
    apart = table["attack"].str.split(", ", n=1, expand=True).reindex(columns=[0, 1]).astype(object)
    return table.assign(loss=apart[0], views=apart[1])


def views(table: pd.DataFrame) -> Summary:
    """Say for how many kinds of views Cont-Steal's loss is ahead of MSE, and by how much for each."""
    rows = by_views(main_task(table)).dropna(subset=["views"])
    pairs = [(f"cont-steal, {view}", f"embedding, {view}") for view in rows["views"].unique()]
    each = {name(a).removeprefix("Cont-Steal "): tables.difference(rows, a, b)
            for a, b in pairs if {a, b} <= set(rows["attack"])}  # fmt: skip
    title = "At equal views, " + _tally(*LOSSES, each.values(), "kinds of views")
    numbers = tables.summary(rows, ["loss", "views"], ["accuracy", "agreement"])
    return Summary(title, numbers, _listed(each))


def ablations(table: pd.DataFrame) -> Summary:
    """Say how many changes of a knob help or harm Cont-Steal, paired by seed, and what each does."""
    rows = changed(table)
    each = _changes(rows, "attack", sweeps.AS_GIVEN, "accuracy")
    better, worse = reliable(each.values())
    title = f"Of {len(each)} changes to Cont-Steal, one at a time, {better or 'none'} reliably "
    title += f"raises its accuracy, and {worse or 'none'} reliably lowers it"
    numbers = tables.summary(rows, ["knob", "value"], ["accuracy", "agreement", "cka"])
    return Summary(title, numbers, _listed(each))


def not_stolen(table: pd.DataFrame, gains: pd.DataFrame) -> pd.Series:
    """Say at which points of a map neither attack is above the best that needs no victim."""
    return gains["best"] <= tables.floor(main_task(table), sweeps.ALONE)


def boundary(table: pd.DataFrame) -> Summary:
    """Say where Cont-Steal's loss is better than MSE.

    Settings in which neither is above the best that needs no victim are counted apart.
    """
    gains = tables.gains(main_task(table), "cont-steal", "embedding")
    weak, axes = not_stolen(table, gains), [axis for axis in tables.POINT if axis in gains]
    kept = gains.loc[~weak, ["gain", "low", "high", "n"]].itertuples(index=False, name=None)
    where = "settings in which something is stolen" if weak.any() else "settings"
    title = f"At equal views, {_tally(*LOSSES, [*kept], where)} (cells: its lead in points)"
    grey = f"In {weak.sum()} settings neither is above the best that needs no victim (grey)"
    shown = gains.set_index(axes)
    numbers = (100 * shown[["gain", "low", "high"]]).round(1).assign(n=shown["n"])
    return Summary(title, numbers, grey * bool(weak.any()))


def geometry(table: pd.DataFrame) -> Summary:
    """Name what goes with Cont-Steal's gain: rank correlations, corrected for how many are tried."""
    n, numbers = len(table), table.round(3).set_index(["method", "query_data"]).rename(name)
    if n < LEAST_POINTS:
        title = f"A correlation needs at least {LEAST_POINTS} pairs of a victim and a query set; "
        title += f"this table has {n}"
        return Summary(title, numbers)
    ranks = {label: spearmanr(table[column], table["gain"]) for column, label in GEOMETRY.items()}
    known = [f"{label} ({r.statistic:+.2f})" for label, r in ranks.items()
             if r.pvalue < ALPHA / len(GEOMETRY)]  # fmt: skip
    subject = _capital(" and ".join(known)) or f"None of {len(GEOMETRY)} measures"
    verb = "correlate" if len(known) > 1 else "correlates"
    return Summary(f"{subject} reliably {verb} with Cont-Steal's gain over MSE (n = {n})", numbers)


def budget(table: pd.DataFrame) -> Summary:
    """Give Cont-Steal's lead over MSE with the fewest query images and with the most; compare at each."""
    pairs = {
        ("cont-steal", "embedding"): ("Cont-Steal on augmented views", "MSE on clean images"),
        ("cont-steal, anew", "cont-steal"): ("Cont-Steal asked anew", "Cont-Steal asked once"),
    }
    leads, parts = [], []
    for count in sorted(table["images"].dropna().unique()):
        rows = table[table["images"] == count]
        gaps = {called: tables.difference(rows, *pair) for pair, called in pairs.items()
                if {*pair} <= set(rows["attack"])}  # fmt: skip
        parts += [f"With {count:g} images: {compare(gap, *called)}" for called, gap in gaps.items()]
        leads += [f"{points(gap)} with {count:g} queries" for gap in [*gaps.values()][:1]]
    ends = ", ".join(dict.fromkeys([*leads[:1], *leads[-1:]]))
    title = f"Cont-Steal's lead over MSE is {ends}" if leads else "Accuracy against the budget"
    numbers = tables.summary(table, ["attack", "images"], ["accuracy", "agreement"])
    return Summary(title, numbers, _joined(*parts))


# ----------------------------------------------------------------------------- defences (05)


def defenses(table: pd.DataFrame) -> Summary:
    """Count the defences that harm each thief and the customer, and say what adapting gains."""
    runs = table.dropna(subset=["defence"]).assign(adapts=table["adapts"].fillna(""))
    plain, attacks = runs[runs["adapts"] == ""], runs.loc[runs["adapts"] == "", "attack"].unique()
    parties = [(name(a), a, "accuracy") for a in attacks]
    counts: list[str] = []
    for who, attack, metric in (*parties, ("customers", attacks[0], "legitimate")):
        changes = _changes(plain[plain["attack"] == attack], "defence", "none", metric)
        harm = reliable(changes.values())[1]
        counts.append(f"{harm} {'that' if counts else 'reliably lower the accuracy'} of {who}")
    counts[0] = f"Of {plain['defence'].nunique() - 1} defences, {counts[0]}"
    both = ["defence", "attack"]
    gains = {f"{name(attack)}, {way}, against {name(defence)}": gain
             for (defence, attack), rows in runs.groupby(both, sort=False) if "" in {*rows["adapts"]}
             for way, gain in _changes(rows, "adapts", "", "accuracy").items()}  # fmt: skip
    numbers = tables.summary(table, [*both, "adapts"], ["legitimate", "accuracy", "agreement"])
    numbers = numbers.rename(columns={"legitimate": "customer's accuracy"})
    adapting = f"What adapting gains: {_listed(gains)}" if gains else ""
    return Summary(", ".join(counts), numbers, adapting)


def coverage(table: pd.DataFrame) -> Summary:
    """Say how much of the embedding space a thief and customers cover with as many queries.

    As many as the user who stands first in the table, or the thief where it sends fewer.
    """
    costs = provider.lost(table)
    table = table[table["defence"] == table["defence"].iloc[0]].dropna(subset=["coverage"])
    means = table.groupby(["user", "queries"], sort=False)["coverage"].mean().reset_index()
    ends = means.groupby("user", sort=False)["queries"].max()
    sent = min(ends.iloc[0], ends["thief"])
    shares = {str(user): float(np.interp(sent, own["queries"], own["coverage"]))
              for user, own in means.groupby("user", sort=False) if ends[user] >= sent}  # fmt: skip
    thief = percent(shares.pop("thief"))
    each = (f"a {user.replace(', ', ' of ')} {percent(share)}" for user, share in shares.items())
    title = ", ".join([f"With {sent:g} queries a thief reaches {thief} of B4B's buckets", *each])
    changes = {f"{user} after {queries:g} queries": (*evaluate.mean_interval(gaps), len(gaps))
               for (user, queries), gaps in costs.groupby(["user", "queries"])["change"]
               } if len(costs) else {}  # fmt: skip
    paid = f"Change of accuracy with this B4B: {_listed(changes)}" if changes else ""
    return Summary(title, means.groupby("user", sort=False).last().round(3), paid)


def matrix(table: pd.DataFrame) -> Summary:
    """Say how many defences take enough from every thief and little from every customer."""
    verdicts = provider.worth(table)
    works, fails = (sum(verdicts["verdict"] == word) for word in (provider.WORKS, provider.FAILS))
    title = f"Of {len(verdicts)} defences, {works or 'none'} {'take' if works > 1 else 'takes'} at least "
    title += "5 points from every thief and at most 1 from every customer"
    undecided = len(verdicts) - works - fails
    title += f" ({undecided} undecided)" * (undecided > 0)
    order = list(verdicts["defence"])
    bounded = table["high"] - table["low"] > tables.SAME  # equal runs have no interval
    spans = (100 * table[["low", "high"]]).map("{:.1f}".format).agg(", ".join, axis=1)
    cells = table["change"].map(_points) + (" [" + spans + "]").where(bounded, "")
    who = (table["party"] + ", " + table["who"]).map(name)
    wide = table.assign(cell=cells, who=who).pivot(index="defence", columns="who", values="cell")
    numbers = wide.loc[order, list(who.unique())].fillna("-").assign(verdict=[*verdicts["verdict"]])
    return Summary(title, numbers.rename(tables.names(order)))


def detectors(table: pd.DataFrame) -> Summary:
    """Say which detector does best, and how often each flags each user."""
    known = table.dropna(subset=["flagged"]).astype({"flagged": float})
    thief = known["user"].str.startswith("thief")
    rates = [known[side].groupby("detector")["flagged"].mean() for side in (thief, ~thief)]
    lead = rates[0] - rates[1]
    best = lead.idxmax() if len(lead) else "none"
    flagged = known["flagged"][known["detector"] == best]
    thieves, customers = _count(flagged[thief]), _count(flagged[~thief])
    groups = table.groupby(["detector", "user"], sort=False)
    numbers = groups["flagged"].agg(_rate).to_frame().assign(n=groups.size())
    numbers["statistic"] = groups["statistic"].mean().map("{:.3g}".format)
    title = f"The best detector ({best}) flags {thieves} thieves and {customers} customers"
    return Summary(title, numbers)


def roc(table: pd.DataFrame) -> Summary:
    """Give each detector's rates at its own threshold, exact intervals, and the area of its curve."""
    most = table.groupby("user", sort=False)["auc"].max().items()
    each = ", ".join(f"{100 * area:.0f} % ({str(user).partition(', ')[2]})" for user, area in most)
    by = ["detector", "user"]
    numbers = table.groupby(by, sort=False)["auc"].first().round(2).to_frame("area")
    verdicts = table[table["at"] == "verdict"].set_index(by)
    for side, rate in (("customers", "fpr"), ("thieves", "tpr")):
        shares = {at: _share(row[rate] * row[side], row[side]) for at, row in verdicts.iterrows()}
        numbers[f"{side} flagged"] = pd.Series(shares, numbers.index, dtype=object)
    title = "To the best detector, a thief looks more suspicious than a customer in this share of "
    return Summary(f"{title}pairs (chance: 50 %): {each}", numbers.fillna("-"))


def _share(hits: float, trials: int) -> str:
    """Return a share with its Clopper-Pearson 95 % interval; "-" where no hit was possible."""
    if not trials:
        return "-"
    rate, low, high = inference.proportion(round(hits), trials)
    return f"{100 * rate:.1f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _rate(hits: pd.Series) -> str:
    """Return the share of ones; what is missing does not count."""
    return _share(hits.sum(), int(hits.count()))


def accounts(table: pd.DataFrame) -> Summary:
    """Say how many answers a user gets before it is refused, and how many accounts all answers take."""
    thief = table["user"].str.startswith("thief")
    refused = table["refusals"] > 0
    by = table.groupby(["detector", "user"], sort=False)
    numbers = by[["queries", "answers", "accounts", "answered"]].mean().round(1).assign(n=by.size())
    title = f"Detectors refuse a thief in {_count(refused[thief])} runs, and a customer in "
    title += _count(refused[~thief])
    return Summary(title, numbers)


def refused(table: pd.DataFrame) -> Summary:
    """Say what thieves with several views end with when they are refused: where they stop or go on."""
    by, metrics = ["detector", "attack"], ["answers", "accuracy"]
    means = table.groupby(by, sort=False)[metrics].mean().reset_index()
    views = means[means["attack"].str.contains("views")]
    ends = [f"{100 * row['accuracy']:.0f} % if it {'stops' if 'stops' in row['attack'] else 'goes on'} "
            f"({row['answers']:.0f} answers)" for row in views.head(2).to_dict("records")]  # fmt: skip
    title = f"A thief that is refused because it sends four views per image reaches {' and '.join(ends)}"
    whole = table.assign(detector=table["detector"].fillna("-"))
    return Summary(title, tables.summary(whole, by, ["accuracy"]))


PERTURBATION, DETECTOR, PROOF = "perturbation", "detector", "proof"  # kinds of a provider's means


def parties(table: pd.DataFrame) -> Summary:
    """Say how many perturbations work, and whether a detector or a proof finds every kind of thief.

    Shares of thieves are of the kind that is found least often.
    """
    perturbations = table["verdict"][table["kind"] == PERTURBATION]
    parts = [f"{_count(perturbations == provider.WORKS)} perturbations work"]
    for kind, does, others in ((DETECTOR, "flags", "customers"), (PROOF, "accuses", "others")):
        rows = table[table["kind"] == kind].dropna(subset=["thieves", "others"])
        lead = rows["thieves"] - rows["others"]
        if len(rows) and lead.max() <= 0:
            parts.append(f"No {kind} separates all thieves from {others}")
        elif len(rows):
            best = rows.iloc[int(lead.to_numpy().argmax())]
            found, wrong = (f"{100 * best[who]:.0f} %" for who in ("thieves", "others"))
            tool = re.sub("(dataset inference).*", r"\1 on victims that memorise", best["means"])
            parts.append(f"The best {kind} ({tool}) {does} {found} of thieves, {wrong} of {others}")
    shown = table.set_index("means").rename(columns={"bytes": "bytes kept per user"})
    for column in shown.columns.difference(["verdict", "kind"]):
        scale, form = (1, "{:.0f}") if column == "bytes kept per user" else (100, "{:.1f}")
        shown[column] = (scale * shown[column]).map(form.format, na_action="ignore")
    return Summary(_joined(*parts), shown.rename(columns=name).astype(object).fillna("-"))


# ---------------------------------------------------------------------------- ownership (05)


def _accusations(rows: pd.DataFrame) -> str:
    """Count the accused of each kind, thieves of the largest budget and of the least."""
    counts, known = [], rows.dropna(subset=["accused"])
    for kind, called in KINDS.items():
        if kind == "victim" and "profile" in {*rows["kind"]}:  # beside the main one
            called = f"memorising {called}"
        runs = known[known["kind"] == kind]
        parts, (least, most) = {called: runs}, runs["images"].agg(["min", "max"])
        if kind == "stolen" and least < most:
            parts = {f"{called} ({n:g} queries)": runs[runs["images"] == n] for n in (most, least)}
        counts += [f"{_count(part['accused'])} {who}" for who, part in parts.items() if len(part)]
    return ", ".join(counts)


def _detection(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return how often suspects of each group are accused, with its interval, and the least effect."""
    groups = rows.groupby(list(by), sort=False, dropna=False)
    least = groups["detectable"].mean().round(3)
    return pd.DataFrame({"accused": groups["accused"].agg(_rate), "least effect": least})


def _measured(table: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Return means of what a proof measures per group of suspects, and how often they are accused."""
    groups = table.groupby(list(by), sort=False, dropna=False)
    numbers = groups[list(metrics)].mean().round(3).assign(n=groups.size())
    return numbers.join(_detection(table, by)).rename(name, level="suspect")


def dataset_inference(table: pd.DataFrame) -> Summary:
    """Say how many encoders of each kind dataset inference accuses, in its two forms."""
    parts = {form: f"The {form} form accuses {_accusations(rows)}"
             for form, rows in table.groupby("form", sort=False)}  # fmt: skip
    by = ["form", "suspect", "images", "on"]
    numbers = _measured(table, by, ["gap", "effect"])
    numbers.insert(2, "p", table.groupby(by, sort=False, dropna=False)["p"].median().to_numpy())
    power = f"An effect above {table['detectable'].max():.2f} standard deviations would be "
    power += "accused, a true one of that size every second time"
    title = parts.pop("signed").replace("The signed form", "Dataset inference")
    return Summary(title, numbers, _joined(*parts.values(), power))


def _accused(rows: pd.DataFrame, proof: str, unit: str = "points", scale: float = 100) -> list[str]:
    """Say whom a mark or a key accuses, and from what excess over the independent encoders on."""
    suspects = rows[rows["kind"].isin(["stolen", "stolen before", "independent"])]
    counts = _accusations(suspects) or "nobody: too few independent encoders"
    known = rows[rows["kind"] != "independent"].dropna(subset=["detectable"])
    least = [f"An excess of {scale * row['detectable']:.2g} {unit} over the mean of "
             f"{row['controls']:.0f} independent ones is accused: the smallest effect that this test "
             "can see" for row in known.head(1).to_dict("records")]  # fmt: skip
    return [f"{proof} accuses {counts}", *least]


def watermark(table: pd.DataFrame) -> Summary:
    """Say whom the mark accuses; victim, thieves and others respond to it with the rate `wsr`."""
    title, *parts = (part for head, rows in table.groupby("head", sort=False)
                     for part in _accused(rows, f"The watermark ({head})"))  # fmt: skip
    read_on = ("on " + table["on"]).where(table["applies"] == "yes", table["applies"])
    shown, by = table.assign(read=read_on), ["head", "suspect", "images", "read"]
    groups = shown.groupby(by, sort=False, dropna=False)
    more = groups[["p_chance", "p_rank", "p_controls"]].median().join(_detection(shown, by))
    numbers = tables.summary(shown, by, ["wsr", "auc", "accuracy"])
    return Summary(title, numbers.join(more.set_axis(numbers.index)), _joined(*parts))


def guard(table: pd.DataFrame) -> Summary:
    """Say whom SSLGuard's key accuses, and how well each suspect answers it."""
    title, *parts = _accused(table, "SSLGuard's key", "in cosine", 1)
    numbers = _measured(table, ["suspect", "images"], ["rate", "cosine", "accuracy"])
    return Summary(title, numbers, _joined(*parts))


def false_positive_rates(*verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return how often each test accuses independent encoders, per head or form of the test.

    `of` is the number of encoders that the test is defined for.
    """
    rows = []
    for table in verdicts:
        proofs = {"head": "watermark", "form": "dataset inference", "cosine": "SSLGuard"}
        by = next(c for c in proofs if c in table)
        for form, part in [("", table)] if by == "cosine" else table.groupby(by, sort=False):
            for column in (c for c in TESTS if c in part):
                hits = part.loc[part["kind"] == "independent", column].dropna() <= ALPHA
                test = ", ".join(filter(None, (proofs[by], TESTS[column])))
                rows.append({"test": test, "form": form, "accused": hits.sum(),
                             "of": len(hits), "rate [95 % interval]": _rate(hits)})  # fmt: skip
    return pd.DataFrame(rows).set_index(["test", "form"])
