"""Test the claims of `claims.yaml` on stored results, and what this repository says about itself.

`python -m contsteal.check --profile demo` is what `make check` calls; without a profile it takes all
whose results are stored. It ends with 1 where a stored result contradicts the repository.
"""

import argparse
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from contsteal.lab import artifacts, profiles
from contsteal.lab.tables import ABSENT, FAILS, HOLDS, OPEN
from contsteal.paper import matching, sentences, verdicts
from contsteal.paper.verdicts import Verdict

WORTH = "01_worth"
COLOURS = {HOLDS: "green", FAILS: "red", OPEN: "yellow", ABSENT: "dim"}


def expected(profile: str) -> list[str]:
    """Return what the profile expects of its encoders and what did not come out, in sentences."""
    table = matching.read(artifacts.figures_dir() / profile, WORTH)
    asked = profiles.profile(profile).get("expectations") or []
    if table is None or not asked:
        return []
    met = sentences.judge(table, asked)
    return [
        f"{profile}: {r['encoder']} on {r['task']}, {r['metric']}: expected {r['expected']}, measured "
        f"{r['measured']}" for r in met[met["holds"] == "NO"].to_dict("records")
    ]  # fmt: skip


def show(found: Sequence[Verdict], console: Console) -> None:
    """Print the verdicts as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("claim", "verdict", "effect", "n", "profile", "source"):
        table.add_column(
            name, ratio={"claim": 4, "effect": 2, "source": 2}.get(name), overflow="fold"
        )
    for v in found:
        told = v.finding
        verdict = f"[{COLOURS[told.verdict]}]{told.verdict}[/]"
        cells = (v.claim.text, v.effect, str(told.n or "-"), v.profile, v.claim.source)
        text, effect, n, profile, source = map(escape, cells)
        table.add_row(text, verdict, effect, n, profile, source)
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    told = "\n".join(line.rstrip() for line in captured.get().splitlines())
    console.print(told, markup=False, soft_wrap=True)


def contradictions(found: Sequence[Verdict]) -> list[str]:
    """Return in sentences where the repository says another thing than its results."""
    return [
        f"{v.profile}, claim {v.claim.id}: the repository says '{v.says}', its results say "
        f"'{v.finding.verdict}' ({v.effect}, {v.finding.n} seeds): correct `says` in claims.yaml and "
        "the text, or find what went wrong"
        for v in found if v.contradicts
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, print the verdicts, and return 1 for a contradiction or bad input."""
    parser = argparse.ArgumentParser(prog="contsteal.check", description=__doc__)
    parser.add_argument("--profile", default="auto", help="a profile; auto: all that have results")
    given = parser.parse_args(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=180)
    try:
        return _check([given.profile] if given.profile != "auto" else verdicts.stored(), console)
    except ValueError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1


def _check(profiles: Sequence[str], console: Console) -> int:
    if not profiles:
        console.print("no results are stored: make paper makes some")
        return 0
    by = {profile: verdicts.judge(profile) for profile in profiles}
    show([v for found in by.values() for v in found], console)
    for profile, found in by.items():
        console.print(f"{profile}: {verdicts.counted(found)}")
    wrong = [told for profile in profiles for told in expected(profile)]
    wrong += [told for found in by.values() for told in contradictions(found)]
    for told in wrong:
        console.print(f"[bold red]contradiction:[/] {escape(told)}", soft_wrap=True)
    if not wrong:
        console.print("no stored result contradicts what this repository says")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
