"""What each speed is compared with: a peer or an older form, a predicted factor, and a bar."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.record import US, Row

FILE = Path(__file__).with_name("bars.yaml")
FIELDS = ("text", "part", "work", "who", "over", "of", "predicted", "at_least", "at_most", "device",
          "source")  # fmt: skip
OF = ("value", "peak_mb", "outside")
MISSED = 3  # the exit code of a run that misses a bar; an error has 1


@dataclass(frozen=True)
class Bar:
    """A factor that was predicted beforehand, and what is asked for.

    `over` names the peer that `who` is compared with, in the same part and work; without it `value`
    itself is what counts. `of` is "value", "peak_mb" (the peer's over ours), or "outside" (how far an
    interval lies from 0). A bar is `at_least` or `at_most`, the latter for values of which less is
    better. `device` is the kind of device it is asked for on.
    """

    text: str
    part: str
    work: str
    device: str = "cpu"
    who: str = US
    over: str | None = None
    of: str = "value"
    predicted: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    source: str = ""

    def measured(self, rows: Iterable[Row]) -> float | None:
        """Return the factor over the peer, or the value itself; None where a row is missing."""
        named = {r.who: r for r in rows if (r.part, r.work) == (self.part, self.work)}
        if self.who not in named or (self.over and self.over not in named):
            return None
        own = getattr(named[self.who], self.of)
        if not self.over:
            return own
        peer = getattr(named[self.over], self.of)
        if not own or not peer:
            return None
        less_is_better = self.of == "peak_mb" or named[self.who].unit == "s"
        return peer / own if less_is_better else own / peer

    def verdict(self, rows: Iterable[Row]) -> str:
        """Return "holds", "missed", "not measured", or "no bar"; a peer that was missing is named."""
        measured = self.measured(rows)
        if measured is None:
            turns = {(r.part, r.work, r.who): r.turns for r in rows}
            absent = turns.get((self.part, self.work, self.over)) == 0
            return f"not measured: no {self.over}" if absent else "not measured"
        if self.at_least is None and self.at_most is None:
            return "no bar"
        high = float("inf") if self.at_most is None else self.at_most
        low = float("-inf") if self.at_least is None else self.at_least
        return "holds" if low <= measured <= high else "missed"

    @property
    def asked(self) -> str:
        """What is asked for, in words; "-" where nothing is."""
        limits = [
            f"{how} {bar:,g}{' x' if self.over else ''}"
            for how, bar in (("at least", self.at_least), ("at most", self.at_most))
            if bar is not None
        ]
        return " and ".join(limits) or "-"


def load(file: Path = FILE) -> list[Bar]:
    """Read the bars; ValueError naming an entry with a field that is unknown or missing."""
    bars = []
    for number, entry in enumerate(yaml.safe_load(file.read_text()), 1):
        unknown = set(entry) - set(FIELDS)
        missing = {"text", "part", "work"} - set(entry)
        if unknown or missing or entry.get("of", "value") not in OF:
            raise ValueError(
                f"{file.name}, entry {number}: unknown fields {sorted(unknown)}, missing "
                f"{sorted(missing)}; known are {', '.join(FIELDS)}, `of` is one of {', '.join(OF)}"
            )
        bars.append(Bar(**entry))
    return bars


def missed(rows: Sequence[Row], on: str) -> list[Bar]:
    """Return the bars of a kind of device that its measured rows do not reach."""
    return [bar for bar in load() if bar.device == on and bar.verdict(rows) == "missed"]
