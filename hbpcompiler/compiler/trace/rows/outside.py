"""What stands where a mask picks nothing, in front of operations that cannot do with whatever there is.

    linear(all, weight)      zeros: then the Kronecker factor A of the weight, a sum of u u^T, is that of picked rows
    log(all), 1 / all        numbers at which value and slopes are finite: NaN times zero is NaN
    embedding(weight, all)   an index that there is: 0, or that for padding, at which nothing is learnt
    one_hot(all, classes)    a class that there is: 0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from hbpcompiler.compiler.trace.rows.rows import HARMLESS, Rows, is_real
from hbpcompiler.rules.shared.torch_operations import (
    DIVISOR,
    INDICES,
    NAMES_CLASSES,
    PADDING,
    POWERS,
    SOMEWHERE_INFINITE,
    WEIGHED,
)


def outside(called: Any, name: str, rows: Rows, given: Mapping[str, Any], read: Mapping[Node, Any]) -> float | None:
    """The number for the argument of this name, which `rows` are; None where any number does. `read` has what stands
    for all that the operation reads."""
    if not is_real(rows):
        if name in INDICES or called.overloadpacket in NAMES_CLASSES:
            return max(int(given.get(PADDING, 0)), 0)  # -1 where there is none
        return None if rows.is_of_truth or not _has_to_be_finite(called, name, given) else 1
    if called.overloadpacket in WEIGHED and not all(isinstance(value, Rows) for value in read.values()):
        return 0
    if not _has_to_be_finite(called, name, given):
        return None
    return SOMEWHERE_INFINITE.get(called.overloadpacket, HARMLESS)


def _has_to_be_finite(called: Any, name: str, given: Mapping[str, Any]) -> bool:
    """Whether value or slopes of an operation are infinite, or none, at some numbers."""
    kind = called.overloadpacket
    if kind in POWERS:
        power = given["exponent"]
        return isinstance(power, Node) or power < 0 or power != int(power)
    return name == DIVISOR.get(kind) or kind in SOMEWHERE_INFINITE
