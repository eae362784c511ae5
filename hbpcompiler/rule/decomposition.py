"""Operations that rule files write in others, where torch's own table of decompositions leads nowhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hbpcompiler.rule.case import Case
from hbpcompiler.rule.fields import check_cases, check_functions, check_operations


@dataclass(frozen=True)
class Decomposition:
    """An operation that is written in others which have rules.

    `function` takes the operation's arguments and returns its result. It is traced with a sample axis of symbolic
    length, so it reads no number off that axis. An operation that has a rule too, in this file or beside it in its
    folder, is taken apart only where the rule cannot serve, as for a function of parameters alone, or for a parameter
    that depends on what its input depends on.
    """

    operations: Sequence[str]
    """ATen names, with overload where only that one is meant ("aten.prod.dim_int")."""
    function: Callable[..., Any]
    cases: Sequence[Case] = ()
    curved: Callable[..., Any] | None = None
    """What stands for `function` where that has the right first derivatives alone: where curvature inside the model is
    asked for, or the operation is part of a loss."""

    def __post_init__(self) -> None:
        check_operations("Decomposition", self.operations)
        kind = f"decomposition of {', '.join(self.operations)}"
        check_functions(kind, self, ["function"], ["curved"])
        check_cases(kind, self.cases, Case)
