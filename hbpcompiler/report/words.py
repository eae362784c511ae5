"""Numbers and steps in words, and what a verdict is."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """One line in words with its number."""

    text: str
    notable: bool = False
    """Whether it belongs into the list of what stands out."""


def number(value: float, digits: int = 3) -> str:
    """With so many significant digits: 1200, 0.0032, 3.1e-07."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -4 <= size < digits + 3:
        text = f"{round(value, digits - 1 - size):.{max(0, digits - 1 - size)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def share(part: float) -> str:
    """0.034 as 3.4 %."""
    return f"{number(100 * part, 2)} %"


def times(ratio: float) -> str:
    """How many times as large: 3.2 times."""
    return f"{number(ratio, 2)} times"
