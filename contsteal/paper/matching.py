"""Which rows of a table a claim compares: filters, sides, pairs by seed, and equal budgets."""

from collections.abc import Iterator
from pathlib import Path
from re import fullmatch
from typing import Any

import pandas as pd

from contsteal import files
from contsteal.paper import sentences
from contsteal.paper.claims import Claim, Filters

SPECIAL = ("first", "other", "each", "largest", "smallest")
LAST = ("largest", "smallest")  # of the rows that the other filters leave
ONE = ("victim", "obfuscated")  # the one victim, as it is and as a thief may disguise it
Sample = pd.Series  # values by seed
Group = tuple[str, pd.DataFrame]


def read(folder: Path, stem: str) -> pd.DataFrame | None:
    """Return a stored table, or None where this profile has none.

    Errors: ValueError for a table without rows, without a stamp, or of another profile's run.
    """
    path, stamp = folder / f"{stem}.csv", files.read_json(folder / f"{stem}.json")
    if not path.is_file():
        return None
    if not isinstance(stamp, dict) or "profile" not in stamp:
        raise ValueError(
            f"{path.with_suffix('.json')} is missing or damaged: nothing says whose results "
            f"{path.name} holds; run notebook {stem[:2]} again"
        )
    if stamp["profile"] != folder.name:
        raise ValueError(
            f"{path} holds results of the profile {stamp['profile']!r}, the folder those of "
            f"{folder.name!r}: results of two profiles are not mixed; run notebook {stem[:2]} again"
        )
    try:
        table = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} is no table: {error}; run notebook {stem[:2]} again") from error
    if table.empty:
        raise ValueError(f"{path} has no rows: run notebook {stem[:2]} again")
    return table


def require(table: pd.DataFrame, claim: Claim, path: Path) -> None:
    """Raise ValueError, naming file and column, where a claim's column is missing or no number."""
    for column in claim.columns:
        if column not in table:
            raise ValueError(f"{path}: no column {column!r}, which claim {claim.id!r} reads")
    if not pd.api.types.is_numeric_dtype(table[claim.metric]):
        raise ValueError(f"{path}: column {claim.metric!r} holds values that are no numbers")


def _references(table: pd.DataFrame) -> pd.Series:
    """Say which rows frame a table: they have no budget, views or defence, so no such filter."""
    if "attack" not in table:
        return pd.Series(False, index=table.index)
    return table["attack"].isin(sentences.REFERENCES)


def _meant(known: list[Any], asked: Any, table: pd.DataFrame, column: str) -> list[Any]:
    """Return the values of a column that a filter's value means, none where it is not there."""
    if asked in LAST:
        here = table[column].dropna()
        return [] if here.empty else [here.max() if asked == "largest" else here.min()]
    if asked in SPECIAL:
        return {"first": known[:1], "other": known[1:], "each": known}[asked]
    if isinstance(asked, str) and len(asked) > 2 and asked[0] == asked[-1] == "/":
        return [v for v in known if fullmatch(asked[1:-1], str(v))]
    wanted = asked if isinstance(asked, list) else [asked]
    there = {_word(v): v for v in known}
    return [there[str(w)] for w in wanted] if {str(w) for w in wanted} <= there.keys() else []


def _word(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else str(value)


def expand(table: pd.DataFrame, filters: Filters, whole: pd.DataFrame) -> Iterator[Group]:
    """Yield the rows for every combination of values that filters {column: value} mean, named.

    A value is a text or number; null for an empty cell; a list of which all must be there; /regex/;
    "first" in the order of the whole table, or "other" than it; "each"; "largest" or "smallest" of what
    the other filters leave. Only what could have been another value is named.
    """
    ordered = sorted(filters.items(), key=lambda item: item[1] in LAST)
    found: list[Group] = [("", table)]
    for column, asked in ordered:
        known = list(whole.loc[~_references(whole), column].dropna().unique())
        if column == "attack" and asked in sentences.REFERENCES:
            known = [asked]
        found = [group for part in found for group in _split(part, column, asked, known)]
    yield from ((name, rows) for name, rows in found if len(rows))


def _split(part: Group, column: str, asked: Any, known: list[Any]) -> Iterator[Group]:
    name, rows = part
    if asked is None:
        yield name, rows[rows[column].isna()]
        return
    for value in _meant(known, asked, rows, column):
        kept = (rows[column] == value) | (rows[column].isna() & _references(rows))
        plain = asked == "first" or (asked not in SPECIAL and str(asked) == _word(value))
        yield (name if plain else f"{name}, {_word(value)}".lstrip(", ")), rows[kept]


def _side(rows: pd.DataFrame, filters: Filters, whole: pd.DataFrame) -> Iterator[Group]:
    """Yield the groups of one side; floor and victim are none unless they are asked for."""
    if filters.get("attack") not in sentences.REFERENCES:
        rows = rows[~_references(rows)]
    yield from expand(rows, filters, whole)


class Unequal(ValueError):
    """Two sides were measured at unequal budgets: they are not compared."""


def by_seed(claim: Claim, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows indexed by seed and by what is averaged; a table without seeds has one.

    Errors: ValueError where the claim's filters leave several rows of one seed.
    """
    index = ["seed", *claim.mean_over]
    rows = rows.assign(seed=rows.get("seed", 0)).set_index(index)
    if rows.index.has_duplicates:
        again = rows.index[rows.index.duplicated()][0]
        raise ValueError(
            f"claim {claim.id!r}, {claim.stem}.csv: several rows for {', '.join(index)} = {again}; "
            "name more columns in its filters"
        )
    return rows


def _constant(rows: pd.DataFrame) -> bool:
    """Say whether a side is the victim, disguised or not, of which there is one for all seeds."""
    kinds = [rows[column] for column in ("attack", "kind") if column in rows]
    return len(rows) == 1 and any(kind.iloc[0] in ONE for kind in kinds)


def _aligned(claim: Claim, a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both sides with the same seeds and points, the one victim beside each of them."""
    a, b = by_seed(claim, a), by_seed(claim, b)
    if _constant(a):
        return pd.concat([a] * len(b)).set_axis(b.index), b
    if _constant(b):
        return a, pd.concat([b] * len(a)).set_axis(a.index)
    both = a.index.intersection(b.index)
    return a.loc[both], b.loc[both]


def _check_budgets(claim: Claim, a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Raise Unequal where the sides differ in a budget; floor and victim have none."""
    for column in (c for c in claim.equal if c in a):
        one, two = a[column].astype(float), b[column].astype(float)
        apart = (one - two).abs() > 1e-6  # NaN compares as equal
        if apart.any():
            told = f"{one[apart].iloc[0]:g} against {two[apart].iloc[0]:g}"
            raise Unequal(f"unequal {column}: {told}")


def paired(claim: Claim, a: pd.DataFrame, b: pd.DataFrame, share: bool = False) -> Sample:
    """Return a's metric minus b's, or as a share of it, by seed; Unequal at unequal budgets.

    With `mean_over`, a seed counts only where it has every point of those measured.
    """
    a, b = _aligned(claim, a, b)
    _check_budgets(claim, a, b)
    one, two = a[claim.metric], b[claim.metric]
    return _means(claim, one / two if share else one - two)


def alone(claim: Claim, a: pd.DataFrame) -> Sample:
    """Return a's metric by seed."""
    return _means(claim, by_seed(claim, a)[claim.metric])


def _means(claim: Claim, values: pd.Series) -> Sample:
    if not claim.mean_over:
        return values.dropna()
    wide = values.unstack(list(claim.mean_over))
    return wide.dropna().mean(axis=1)


def _pairs(
    rows: pd.DataFrame, a: Filters, b: Filters | None, whole: pd.DataFrame
) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame | None]]:
    for name, side in _side(rows, a, whole):
        if b is None:
            yield name, side, None
            continue
        for other, against in _side(rows, b, whole):
            yield ", ".join(filter(None, (name, other))), side, against


def samples(
    claim: Claim, table: pd.DataFrame, a: Filters, b: Filters | None = None, share: bool = False
) -> tuple[dict[str, Sample], list[str]]:
    """Return the values by seed of every comparison of two sides (or of one), and what was left out."""
    found: dict[str, Sample] = {}
    left: list[str] = []
    for where, rows in expand(table, claim.where, table):
        for name, side, against in _pairs(rows, a, b, table):
            label = ", ".join(filter(None, (where, name)))
            try:
                one = alone(claim, side) if against is None else paired(claim, side, against, share)
            except Unequal as error:
                left.append(f"{label}: {error}".lstrip(": "))
                continue
            if len(one):
                found[label] = one
    return found, left


def largest_within(table: pd.DataFrame, side: Filters, limit: float) -> tuple[pd.DataFrame, float]:
    """Return floor, victim and a side's rows of the most distinct inputs up to `limit`, and how many.

    NaN, and none of the side's rows, where nothing was measured within the limit.
    """
    own = [rows for _, rows in _side(table, side, table)]
    spent = pd.concat(own)["unique_inputs"] if own else pd.Series(dtype=float)
    most = float(spent[spent <= limit].max())
    return table[_references(table) | (table["unique_inputs"] == most)], most
