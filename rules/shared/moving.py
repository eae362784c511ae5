"""What operations share that move elements about and leave the sample axis in front."""

from collections.abc import Callable, Sequence
from typing import Any

from hbpcompiler.rule import Case, Op, Rule, Tensor

from .selecting import selection


def moving(
    operations: str | Sequence[str],
    forward: Callable[[Op], Any],
    jac_t: Callable[[Op, Tensor], Tensor],
    cases: Sequence[Case],
    refuse: Callable[[Op], str | None] = lambda op: None,
    merged: bool = False,
    *,
    formula: str,
) -> Rule:
    """A selection from `self` that may do anything to a tensor without samples, and `refuse`s what moves samples."""
    return selection(
        operations,
        forward,
        jac_t,
        cases,
        lambda op: refuse(op) if op.has_samples("self") else None,
        merged=merged,
        formula=formula,
    )


def refusal(verb: str, instead: str = "change only the axes after it") -> str:
    """Why something that happens to the sample axis is refused."""
    return f"it {verb} the sample axis, without which there are no per-sample quantities; {instead}"


def axis(op: Op, number: int, more: int = 0) -> int:
    """An axis of the input as counted from the front, the sample axis included."""
    return number % (len(op.shape("self")) + (1 if op.has_samples("self") else 0) + more)


def given(*shape: int, batched: Sequence[str] = ("self",), **attributes: Any) -> Case:
    """A case of one input."""
    return Case({"self": shape}, attributes, batched)
