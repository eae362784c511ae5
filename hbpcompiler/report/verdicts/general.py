"""What can be said of any series."""

from __future__ import annotations

from hbpcompiler.report.words import Verdict, number


def not_finite(count: int, first: int, known: int) -> Verdict | None:
    """How many of the known values are not finite, and from which step on."""
    if not count:
        return None
    if count == known:
        return Verdict(f"no value is finite, from step {first} on", notable=True)
    return Verdict(f"{count} of {known} values are not finite, the first at step {first}", notable=True)


def course(first: float, recent: float, when: str = "lately") -> str:
    """From where to where: "0.31 lately, 2.1 at first"; a number alone where nothing has changed."""
    if recent == first:
        return number(recent)
    return f"{number(recent)} {when}, {number(first)} at first"
