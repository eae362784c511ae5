"""Steps whose result nothing reads are dropped: what was not asked for is not computed."""

from __future__ import annotations

from hbpcompiler.steps import Close, Step, Tied, makes, reads


def live(steps: list[Step]) -> list[Step]:
    """Drop every step whose result nothing reads: what was not asked for is not computed."""
    wanted: set[tuple[str, str]] = set()
    kept: list[Step] = []
    for step in reversed(steps):
        if isinstance(step, Close | Tied) or any((value.name, piece.name) in wanted for value, piece in makes(step)):
            wanted |= {(value.name, piece.name) for value, piece in reads(step)}
            kept.append(step)
    return kept[::-1]
