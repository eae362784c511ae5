"""The table of errors that a proof gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hbpcompiler.compiler.prove.comparison import Comparison


@dataclass(frozen=True)
class Verification:
    """A program's numbers beside those of the model's own training step, a line each; print it to see them all.

    `errors["grad"]["0.weight"]` is the largest difference over the largest right number; `agrees` says whether the
    dtype's rounding explains every difference.
    """

    lines: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()
    """how it was compared"""

    @property
    def agrees(self) -> bool:
        return all(line.agrees for line in self.lines)

    @property
    def wrong(self) -> list[Comparison]:
        """The lines with a difference that rounding does not explain."""
        return [line for line in self.lines if not line.agrees]

    @property
    def errors(self) -> dict[str, dict[str, float]]:
        """Relative errors by quantity ("loss", "output", "grad", ...) and parameter; what was not compared is left
        out."""
        found: dict[str, dict[str, float]] = {}
        for line in self.lines:
            if line.compared:
                found.setdefault(line.quantity, {})[line.parameter] = line.relative
        return found

    def __iter__(self) -> Iterator[Comparison]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __str__(self) -> str:
        rows: list[Sequence[str]] = [("quantity", "parameter", "error", "largest", "allowed", "")]
        for line in self.lines:
            figures = [f"{number:.2g}" for number in (line.error, line.largest, line.allowed)]
            verdict = "agrees" if line.agrees else "WRONG"
            rows.append((line.quantity, line.parameter, *(figures if line.compared else [""] * 3),
                         ", ".join(filter(None, [verdict if line.compared else "not compared", line.how]))))
        return "\n".join([*_aligned(rows), *self.notes])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
