"""Operations that make zero of zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hbpcompiler.rules.shared.torch_operations import KEEPS_ZERO, POWERS


def keeps_zero(called: Any, others: Sequence[Any]) -> bool:
    """Whether an operation makes zero of zero, with slopes that are finite there; `others` are its arguments behind the
    first."""
    if called in KEEPS_ZERO:
        return True
    power = others[0] if others and getattr(called, "overloadpacket", None) in POWERS else None
    return isinstance(power, int | float) and power >= 1 and float(power).is_integer()
