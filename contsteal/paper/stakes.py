"""What the tables of defences say: who pays for a defence, what adapting gains, whom detectors flag."""

import pandas as pd

from contsteal.lab import tables
from contsteal.ownership import inference


def defended(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Say what each defence takes from the attacker and from the legitimate user."""
    rows = table.dropna(subset=["defence"])
    told = [
        f"{name} changes {attack} by {_change(rows, name, attack, 'accuracy')}, the legitimate user "
        f"by {_change(rows, name, attack, 'legitimate')}"
        for name, attack in rows.groupby(["defence", "attack"], sort=False).groups
        if name != "none"
    ]
    by = tables.summary(table, ["defence", "attack"], ["legitimate", "accuracy", "agreement"])
    return tables.sentences(told), by


def adapting(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with attacks named by the defence and by how the attacker adapts to it."""
    how = table["adapts"].where(table["adapts"].fillna("") != "", "as is")
    named = table["defence"] + ", " + how
    rows = table.assign(attack=named.where(table["defence"].notna(), table["attack"]))
    return rows.sort_values("defence", kind="stable", na_position="last")


def gains(table: pd.DataFrame) -> list[tuple[str, str, tuple[float, float, float, int]]]:
    """Return each defence, how the attacker adapts, and what it gains: mean, 95 % t-interval, n."""
    found = []
    for name, rows in table.dropna(subset=["defence"]).groupby("defence", sort=False):
        by = rows.assign(attack=rows["adapts"].fillna(""))
        ways = [how for how in by["attack"].unique() if how]
        found += [(str(name), how, tables.difference(by, how, "")) for how in ways]
    return found


def adapted(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Say what adapting gains the attacker under each defence, paired by seed."""
    told = [f"{name}, {how}: {tables.points(span)}" for name, how, span in gains(table)]
    shown = adapting(table)
    return tables.sentences(told), tables.summary(shown, ["attack"], ["accuracy", "agreement"])


def covered(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return what share of the embedding space each user has covered in the end, and the noise."""
    last = table.groupby("user", sort=False).last()
    return "", last.assign(
        coverage=tables.percentages(last[["coverage"]]), noise=last["noise"].round(6)
    )


def _change(rows: pd.DataFrame, defence: str, attack: str, metric: str) -> str:
    """Return the change by a defence, paired by seed, with its interval."""
    of = rows[rows["attack"] == attack].assign(attack=lambda r: r["defence"])
    return tables.points(tables.difference(of, defence, "none", metric))


def matrix(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Name the defences that surely take from every attack, and those that do from a customer."""
    defences = list(table["defence"].unique())
    worst = {p: rows.groupby("defence") for p, rows in table.groupby("party")}
    stops = worst["attacker"]["high"].max() < 0
    costs = worst["customer"]["high"].min() < 0
    told = (
        f"{_names(stops, defences)} surely take from every attack; {_names(costs, defences)} surely "
        f"take from a customer; {_names(stops & ~costs, defences)} do the first and not the second"
    )
    spans = table[["change", "low", "high", "n"]].itertuples(index=False, name=None)
    cells = [tables.points(span) for span in spans]
    wide = table.assign(cell=cells, who=table["party"] + " " + table["who"])
    shown = wide.pivot(index="defence", columns="who", values="cell").loc[defences]
    return tables.sentences([told]), shown[list(dict.fromkeys(wide["who"]))]


PROVIDER = {"seconds": "s per 1,000 answers", "added": "added time", "bytes": "bytes per user"}


def parties(
    stake: pd.DataFrame, bill: pd.DataFrame, marked: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return what each defence costs thieves, customers and provider, a row each; "-" for nothing.

    `stake` is `provider.matrix`'s, `bill` `prices.price`'s, `marked` `trials.watermark`'s: the customer
    of its victims' task is the first of the matrix. A mark changes neither time nor memory.
    """
    cells = matrix(stake)[1]
    rows = [*cells.index, *(name for name in bill.index if name not in cells.index)]
    costs = bill[[*PROVIDER]].rename(columns=PROVIDER)
    whole = cells.reindex(rows).join(costs.map("{:.3g}".format)).assign(training="none")
    if marked is None:
        return whole.fillna("-")
    customer = next(c for c in cells.columns if c.startswith("customer"))
    for head, found in marked.groupby("head", sort=False):
        worth = found.drop_duplicates("kind").set_index("kind")["accuracy"]
        change = worth["victim"] - worth["unmarked"]
        whole.loc[f"watermark, {head}", [customer, "training"]] = (
            tables.points((change, change, change, 1)), found["mark"].iloc[0],
        )  # fmt: skip
    return whole.fillna("-")


def _names(which: pd.Series, order: list[str]) -> str:
    """Return the defences for which something holds, or "none"."""
    return ", ".join(d for d in order if which.get(d, False)) or "none"


def outcome(table: pd.DataFrame) -> str:
    """Say in a title how many defences hurt thieves without hurting customers."""
    rows = table.groupby(["defence", "party"])["high"].agg(["max", "min"]).unstack("party")
    stops, costs = rows["max", "attacker"] < 0, rows["min", "customer"] < 0
    told = f"{int(stops.sum())} of {len(rows)} defences surely take from every attack"
    return told + (
        f", {int((stops & ~costs).sum())} of them from no customer" if stops.any() else ""
    )


def flagged(table: pd.DataFrame) -> str:
    """Say in a title how often detectors flag thieves, and how often customers."""
    known = table.dropna(subset=["flagged"])
    thief = known["user"].str.startswith("thief")
    told = [
        f"{who} {int(rows['flagged'].astype(bool).sum())} of {len(rows)} times"
        for who, rows in (("thieves", known[thief]), ("customers", known[~thief]))
    ]
    return f"Detectors flag {', '.join(told)} (filled dots)"


def detected(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return how often each detector flags each user, with its interval (Clopper and Pearson)."""
    told, rows = [], []
    for (detector, user), found in table.groupby(["detector", "user"], sort=False):
        flags = found["flagged"].dropna().astype(bool)
        rate = inference.proportion(int(flags.sum()), len(flags)) if len(flags) else None
        shown = (
            f"{100 * rate.rate:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
            if rate
            else "-"
        )
        rows.append({"detector": detector, "user": user, "flagged": shown, "n": len(found),
                     "statistic": f"{found['statistic'].mean():.3g}"})  # fmt: skip
        if rate and rate.hits:
            told.append(f"{detector} flags {user} {rate.hits} of {rate.trials} times")
    shown = pd.DataFrame(rows).set_index(["detector", "user"])
    return tables.sentences(told or ["no detector flags anybody"]), shown
