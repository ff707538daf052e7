"""From the tables of a profile to its figures, with titles that say what was measured, and a summary."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from contsteal import figures, runs, tables


def main_task(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the first task of a table."""
    return table[table["task"] == table["task"].iloc[0]]


def _duel(table: pd.DataFrame, a: str, b: str, otherwise: str) -> str:
    """Say how a compares with b where a table has both, `otherwise` where it has not."""
    return tables.verdict(table, a, b) if {a, b} <= set(table["attack"]) else otherwise


def _attacks(table: pd.DataFrame, a: str, b: str) -> Figure:
    rows = main_task(table)
    return figures.attack_dots(rows, _duel(rows, a, b, "Attacks at equal queries"))


def largest(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of the largest number of query images."""
    return table[table["images"] == table["images"].max()]


FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "00_samples": figures.sample_sheet,
    "01_training": figures.training_curve,
    "01_worth": figures.worth_bars,
    "02_conventional": lambda t: _attacks(t, "embedding", "label"),
    "03_attacks": lambda t: _attacks(t, "cont-steal", "embedding"),
    "03_two_by_two": lambda t: figures.two_by_two(t, "Loss and augmentation, one at a time"),
    "03_embedding_map": figures.embedding_map,
    "04_budget": lambda t: figures.budget_curves(
        t, _duel(largest(t), "cont-steal", "embedding", "Accuracy against both budgets")
    ),
    "05_defenses": figures.defence_tradeoff,
}


def draw(stem: str, table: pd.DataFrame) -> Figure:
    """Draw the figure `stem` from its table; ValueError for an unknown stem lists the known."""
    if stem not in FIGURES:
        raise ValueError(f"unknown figure {stem!r}: choose one of {', '.join(FIGURES)}")
    return FIGURES[stem](table)


def publish(stem: str, table: pd.DataFrame, stamp: dict[str, str]) -> Figure:
    """Draw a figure and save it, with its table, under `figures/<profile>/`."""
    fig = draw(stem, table)
    figures.save(fig, runs.figures_dir() / stamp["profile"], stem, table, stamp)
    return fig


# ------------------------------------------------------------------------------- summary


def _percent(table: pd.DataFrame) -> pd.DataFrame:
    return (100 * table).round(1)


def _worth(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    wide = table.pivot_table(index="encoder", columns="task", values="accuracy", sort=False)
    task = table["task"].iloc[0]
    told = ", ".join(f"{name} {figures.percent(wide.loc[name, task])}" for name in wide.index)
    return f"Linear-probe accuracy on `{task}`: {told}.", _percent(wide)


def _conventional(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    rows = main_task(table)
    told = [_duel(rows, "embedding", b, "") for b in ("label", "posterior")]
    by = tables.summary(table, ["task", "attack"], ["accuracy", "agreement", "knn"])
    return _sentences(told), by


def _contrastive(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    told = [_duel(table, a, "embedding", "") for a in ("cont-steal", "cont-steal-code", "info-nce")]
    metrics = ["accuracy", "agreement", "knn", "cka", "cosine"]
    return _sentences(told), tables.summary(table, ["attack"], metrics)


def _two_by_two(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    told = [
        f"{view}: {_duel(rows, 'cont-steal', 'embedding', '')}"
        for view, rows in table.groupby("views", sort=False)
    ]
    by = tables.summary(
        table.dropna(subset="views"), ["views", "attack"], ["accuracy", "agreement"]
    )
    return _sentences(told), by


def _budget(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    rows = table.dropna(subset=["calls"]).astype(
        {"images": int, "unique_inputs": int, "calls": int}
    )
    by = ["attack", "images", "unique_inputs", "calls"]
    told = [
        f"{count} images: {_duel(r, 'cont-steal', 'embedding', '')}"
        for count, r in rows.groupby("images")
    ]
    return _sentences(told), tables.summary(rows, by, ["accuracy", "agreement"])


def _defended(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    rows = table.dropna(subset=["defence"])
    by = tables.summary(rows, ["defence", "attack"], ["accuracy", "agreement"])
    honest = rows.groupby(["defence", "attack"], sort=False)["legitimate"].first()
    by.insert(0, "legitimate", (100 * honest).map("{:.1f}".format))
    none = rows[rows["defence"] == "none"].groupby("attack")["accuracy"].mean()
    loss = none.mean() - rows.groupby("defence", sort=False)["accuracy"].mean()
    cost = rows["legitimate"].max() - rows.groupby("defence", sort=False)["legitimate"].first()
    told = [
        f"{name} takes {100 * loss[name]:.1f} points from the attackers and {100 * cost[name]:.1f} "
        "from the legitimate user"
        for name in loss.index
        if name != "none"
    ]
    return _sentences(told), by


def _sentences(told: list[str]) -> str:
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in told if sentence)


SECTIONS: dict[str, tuple[str, Callable[[pd.DataFrame], tuple[str, pd.DataFrame]] | None]] = {
    "00_samples": ("The embedded data sets.", None),
    "01_training": ("The victim's training, monitored on held-out training images.", None),
    "01_worth": ("What the victim is worth, between random floor and supervised ceiling.", _worth),
    "02_conventional": ("Conventional attacks at equal queries.", _conventional),
    "03_attacks": ("All attacks at equal queries.", _contrastive),
    "03_two_by_two": ("{MSE, contrastive} x {clean, augmented}.", _two_by_two),
    "03_embedding_map": ("Test images by the victim and by two surrogates (t-SNE).", None),
    "04_budget": ("Accuracy against both query budgets.", _budget),
    "05_defenses": ("Defences: attacker and legitimate user.", _defended),
}


def write(profile: str) -> Path:
    """Write `summary.md` of a profile: per figure what it shows, numbers with interval and n, device.

    Intervals are 95 % t-intervals over seeds, in percentage points. Errors: ValueError naming the
    notebook whose results are missing.
    """
    folder = runs.figures_dir() / profile
    parts = [
        f"# Results of the `{profile}` profile",
        "Generated from the tables in this folder. Percentages; in brackets the 95 % t-interval over "
        "seeds (queries, surrogate weights and batches are drawn anew per seed; the victim is one).",
        _durations(folder),
    ]
    for stem, (what, tell) in SECTIONS.items():
        table, stamp = figures.read(folder, stem)
        origin = "; ".join(f"{k} {stamp[k]}" for k in ("data", "seeds", "device", "torch", "date"))
        parts += [f"## {what}", f"![{what}]({stem}.png)", f"`{stem}`: {origin}."]
        if tell:
            sentence, numbers = tell(table)
            parts += [sentence, numbers.reset_index().to_markdown(index=False)]
    path = folder / "summary.md"
    runs.write_text(path, "\n\n".join(parts) + "\n")
    return path


def _durations(folder: Path) -> str:
    """Return the recorded seconds of each notebook, or say that none are recorded."""
    seconds = runs.read_json(folder / "timings.json")
    if not seconds:
        return "No durations are recorded: the notebooks were not run by `make paper`."
    rows = [{"notebook": name, "seconds": value} for name, value in sorted(seconds.items())]
    rows.append({"notebook": "in all", "seconds": round(sum(seconds.values()), 1)})
    return pd.DataFrame(rows).to_markdown(index=False)
