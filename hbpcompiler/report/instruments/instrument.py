"""What an instrument is: what it needs, how it is read, and how one run is drawn on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hbpcompiler.report.curves import curve
from hbpcompiler.report.tracks import Series, Track
from hbpcompiler.report.verdicts.general import not_finite
from hbpcompiler.report.words import Verdict


@dataclass(frozen=True)
class Drawn:
    """One run on an instrument."""

    data: dict[str, Any]
    """For the page, as the kind of the instrument wants it: JSON."""
    verdicts: tuple[Verdict, ...]
    """At least one."""


@dataclass(frozen=True)
class Line:
    """A line of an instrument of the kind "series"."""

    label: str
    axis: str = "left"
    """"left" or "right"."""
    role: str = "main"
    """"main", "second" and "third" (thinner), "stairs" (through the values), "edge" (dashed)."""


@dataclass(frozen=True)
class Instrument:
    """An instrument; it knows no run."""

    key: str
    title: str
    needs: tuple[str, ...]
    """Names of the quantities, any of which is enough."""
    how: str
    """How it is read."""
    kind: str
    """How the page draws it: "series", "alpha", "tests", "bars", "field"."""
    draw: Callable[[Track], Drawn | None]
    """One run; None where what is needed is missing."""
    lines: tuple[Line, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    """Further words to the page: "log" allows a logarithmic axis, "unit" names the left axis."""


def drawn_lines(lines: Sequence[Series], verdicts: Sequence[Verdict | None]) -> Drawn | None:
    """A run on an instrument of lines: the curves, and the verdicts after what is to be said of values that are not
    finite; None where no line has a value."""
    if not any(len(line) for line in lines):
        return None
    said = [*(broken(line) for line in lines), *verdicts]
    found = tuple(dict.fromkeys(verdict for verdict in said if verdict is not None))
    return Drawn({"lines": [curve(line) for line in lines]}, found or (Verdict("tracked"),))


def broken(series: Series) -> Verdict | None:
    """What is to be said of values that are not finite."""
    steps = series.steps[~series.values.isfinite()]
    return not_finite(len(steps), int(steps[0]) if len(steps) else 0, len(series))
