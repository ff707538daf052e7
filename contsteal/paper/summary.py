"""What the tables of a profile say: a sentence with intervals, a table, and whether expectations hold."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from contsteal.lab import profiles, sweeps, tables
from contsteal.paper import proofs, stakes, style


def main_task(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the first task of a table."""
    return table[table["task"] == table["task"].iloc[0]]


def first(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the rows of a column's first value, of the first task; references have no value."""
    rows = main_task(table)
    return rows[(rows[column] == rows[column].iloc[0]) | rows[column].isna()]


def duel(table: pd.DataFrame, a: str, b: str, otherwise: str = "") -> str:
    """Say how a compares with b where a table has both, `otherwise` where it has not."""
    return tables.verdict(table, a, b) if {a, b} <= set(table["attack"]) else otherwise


def judge(worth: pd.DataFrame, expectations: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return what a profile expects of its encoders, what was measured, and whether it holds."""
    rows = []
    for given in expectations:
        asked = profiles.EXPECTATION | given
        found = worth[(worth["encoder"] == asked["encoder"]) & (worth["task"] == asked["task"])]
        value = float(found[asked["metric"]].iloc[0]) if len(found) else float("nan")
        holds = "not run" if pd.isna(value) else asked["low"] <= value <= asked["high"]
        rows.append({
            **{k: asked[k] for k in ("encoder", "task", "metric")},
            "expected": f"{100 * asked['low']:g} to {100 * asked['high']:g} %",
            "measured": "-" if pd.isna(value) else style.percent(value),
            "holds": {True: "yes", False: "NO"}.get(holds, holds), "source": asked["source"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def worth(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Say what each encoder is worth on the main task, and what pre-training gained on every task."""
    wide = table.pivot_table(index="encoder", columns="task", values="accuracy", sort=False)
    task = table["task"].iloc[0]
    told = ", ".join(f"{name} {style.percent(wide.loc[name, task])}" for name in wide.index)
    victim = victims(table)[0]
    gain = wide.loc[victim] - wide.loc["random"]
    each = ", ".join(f"`{name}` {100 * value:+.1f}" for name, value in gain.items())
    return (
        f"Linear-probe accuracy on `{task}`: {told} (one encoder each, so no interval). "
        f"{victim} minus random floor, in points: {each}."
    ), tables.percentages(wide)


def victims(worth: pd.DataFrame) -> list[str]:
    """Return the encoders of a table between floor and ceiling, the profile's own victim first."""
    return [n for n in worth["encoder"].unique() if n not in ("random", "supervised")]


def conventional(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Say whether embeddings give away more than labels and posteriors."""
    rows = main_task(table)
    told = [duel(rows, "embedding", b) for b in ("label", "posterior")]
    by = tables.summary(table, ["task", "attack"], ["accuracy", "agreement", "knn"])
    return tables.sentences(told), by


def losses(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Name the best and the worst loss with one query an image, and whether they can be told apart."""
    told = []
    for victim, rows in main_task(table).groupby("victim", sort=False):
        own = rows[rows["unique_inputs"] == rows["images"]]  # one query an image: equal budgets
        order = own.groupby("attack")["accuracy"].mean().sort_values().index
        where = f"{victim}: " if len(set(table["victim"])) > 1 else ""
        told += [where + duel(rows, order[-1], order[0])] if len(order) > 1 else []
    return tables.sentences(told), tables.layout(table)


def sources(table: pd.DataFrame) -> pd.DataFrame:
    """Return the main task's rows with attacks named by what they were queried with."""
    rows = main_task(table)
    named = rows["attack"] + ", " + rows["query_data"].fillna("") + " " + rows["images"].map(
        "{:g}".format
    )  # fmt: skip
    return rows.assign(attack=named.where(~rows["attack"].isin(style.REFERENCES), rows["attack"]))


def elsewhere(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Compare each set of queries with the first, mean over attacks, at the first number of images."""
    rows = main_task(table).dropna(subset=["query_data"])
    same = rows[rows["images"] == rows["images"].iloc[0]]
    means = same.groupby(["query_data", "seed"], sort=False)["accuracy"].mean().reset_index()
    own, *others = means["query_data"].unique()
    by, count = means.assign(attack=means["query_data"]), f"{same['images'].iloc[0]:g} images"
    if not others:
        return f"one set with {count}", tables.layout(table)
    if len(others) == 1:
        return f"{tables.verdict(by, own, others[0])}, {count}", tables.layout(table)
    found = [tables.difference(by, own, other) for other in others]
    ahead, behind = sum(f[1] > 0 for f in found), sum(f[2] < 0 for f in found)
    told = f"{own} beats {ahead} of {len(others)} other sets and loses to {behind}, {count} each"
    return told, tables.layout(table)


def boundary(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Say at how many points Cont-Steal or MSE is surely ahead."""
    found = tables.gains(main_task(table), "cont-steal", "embedding")
    ahead, behind = int((found["low"] > 0).sum()), int((found["high"] < 0).sum())
    told = (
        f"Cont-Steal is ahead of MSE in {ahead} of {len(found)} settings, behind in {behind}, "
        f"and cannot be told from it in {len(found) - ahead - behind}"
    )
    shown = found.set_index([c for c in tables.POINT if c in found])
    return told, tables.percentages(shown[["gain", "low", "high"]]).assign(n=shown["n"])


def levels(found: pd.DataFrame) -> str:
    """Say how the mean difference of a `boundary` varies along each axis of its grid."""
    told = []
    for axis in (a for a in tables.POINT if a in found and len(set(found[a])) > 1):
        means = found.groupby(axis, sort=False)["gain"].mean()
        told.append(f"{axis}: " + ", ".join(f"{k} {100 * v:+.1f}" for k, v in means.items()))
    return "; ".join(told)


def ablations(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Say what each change of a knob does to Cont-Steal, paired by seed."""
    rows = style.worded(table, "value")
    rows = rows.assign(attack=(rows["knob"] + " " + rows["value"]).str.strip())
    names = [n for n in rows["attack"].unique() if n != sweeps.AS_GIVEN]
    told = [f"{n}: {tables.points(tables.difference(rows, n, sweeps.AS_GIVEN))}" for n in names]
    by = tables.summary(rows, ["knob", "value"], ["accuracy", "agreement", "cka"])
    return tables.sentences(told), by


def geometry(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return how the victims' embeddings lie, beside what Cont-Steal gains over MSE on them."""
    return "", table.round(3).set_index(["method", "query_data"])


def contrastive(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Say whether contrastive attacks beat regression at equal queries."""
    told = [duel(table, a, "embedding") for a in ("cont-steal", "cont-steal-code", "info-nce")]
    metrics = ["accuracy", "agreement", "knn", "cka", "cosine"]
    return tables.sentences(told), tables.summary(table, ["attack"], metrics)


def controlled(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Say what the right answers gain over everybody else's."""
    told = duel(table, "embedding", "embedding, shuffled")
    return tables.sentences([told]), tables.summary(
        table, ["attack"], ["accuracy", "agreement", "cka"]
    )


def two_by_two(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Say which loss wins, without and with augmentation."""
    told = [
        f"{view}: {duel(rows, 'cont-steal', 'embedding')}"
        for view, rows in table.groupby("views", sort=False)
    ]
    return tables.sentences(told), tables.summary(
        table, ["views", "attack"], ["accuracy", "agreement"]
    )


def budget(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Say which attack wins at each number of query images."""
    rows = table.dropna(subset=["calls"]).astype({"images": int})
    told = [
        f"{count} images: {duel(r, a, b)}"
        for count, r in rows.groupby("images")
        for a, b in (("cont-steal", "embedding"), ("cont-steal, anew", "cont-steal"))
    ]
    return tables.sentences(told), tables.summary(
        table, ["attack", "images"], ["accuracy", "agreement"]
    )


SECTIONS: dict[str, tuple[str, Callable[[pd.DataFrame], tuple[str, pd.DataFrame]] | None]] = {
    "00_samples": ("The embedded data sets.", None),
    "01_views": ("Two augmented views of each image, as the victim's training sees them.", None),
    "01_training": ("The victim's training, monitored on held-out training images.", None),
    "01_worth": ("What the victim is worth, between random floor and supervised ceiling.", worth),
    "01_embedding_map": ("Test images as the encoders see them (t-SNE).", None),
    "02_conventional": ("Conventional attacks at equal queries.", conventional),
    "02_losses": (
        "Stealing losses by victim and downstream task (published rows: queries are test images there).",
        losses,
    ),
    "02_elsewhere": ("Queries from other data than the victim's.", elsewhere),
    "03_pulls": ("Whom each loss draws a surrogate's vector to, and drives it from.", None),
    "03_attacks": ("All attacks at equal queries.", contrastive),
    "03_control": ("A control that must fail: every image with the answer to another.", controlled),
    "03_two_by_two": ("{MSE, contrastive} x {clean, augmented}.", two_by_two),
    "03_ablations": ("Cont-Steal with one knob changed at a time.", ablations),
    "03_boundary": ("When contrastive stealing beats regression.", boundary),
    "03_geometry": ("The victims' embeddings, and what Cont-Steal gains on them.", geometry),
    "03_embedding_map": ("Test images by the victim and by two surrogates (t-SNE).", None),
    "04_budget": ("Accuracy against both query budgets.", budget),
    "05_adaptive": ("What adapting to a defence gains the attacker.", stakes.adapted),
    "05_coverage": ("What B4B sees of its users.", stakes.covered),
    "05_defenses": ("Defences: attacker and legitimate user.", stakes.defended),
    "05_matrix": ("What each defence changes for attacks and for customers.", stakes.matrix),
    "05_detectors": ("What detectors see of their users, and whom they flag.", stakes.detected),
    "05_inference": (
        "Dataset inference: is the victim's training set known to it?",
        proofs.inferred,
    ),
    "05_watermark": ("The rotation watermark: who carries it.", proofs.watermarked),
}
