"""The frame of operations whose every output copies at most one input, and what they share that go along one axis."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hbpcompiler.rule import ZERO, Case, Contraction, JacT, Op, Rule, Structure, Tensor, Window

SELECTED = "S at the places it was taken from, 0 elsewhere"


def selection(
    operations: str | Sequence[str],
    forward: Callable[[Op], Any] | None,
    jac_t: JacT | Mapping[str, JacT],
    cases: Sequence[Case],
    refuse: Callable[[Op], str | None] = lambda op: None,
    *,
    params: Callable[[Op], Mapping[str, Contraction]] = lambda op: {},
    window: Callable[[Op], Window | None] = lambda op: None,
    merged: bool = False,
    formula: str = SELECTED,
) -> Rule:
    """The rule of an operation that copies elements of `self`, or of the inputs that `jac_t` names."""
    return Rule(
        operations=[operations] if isinstance(operations, str) else operations,
        forward=forward,
        jac_t=jac_t if isinstance(jac_t, Mapping) else {"self": jac_t},
        params=params,
        residual=ZERO,
        formula=formula,
        structure=Structure.SELECTION,
        window=window,
        refuse=refuse,
        merged=merged,
        cases=cases,
    )


def axis(op: Op, name: str = "self", more: int = 0) -> int:
    """The operation's axis as counted within a sample; the sample axis itself is -1."""
    lead = 1 if op.has_samples(name) else 0
    dim: int = op.dim
    return dim % (len(op.shape(name)) + lead + more) - lead


def zeros(op: Op, columns: Tensor) -> Tensor:
    """Columns at `self`, to put columns of the result into."""
    return columns.new_zeros(columns.shape[0], columns.shape[1], *op.shape("self"))


def across_samples(op: Op) -> str | None:
    """Why an operation along the sample axis is refused."""
    if axis(op) == -1:
        return "it picks samples out of the batch; pick along the axes after the sample axis"
    return None


def with_places(op: Op, result: Any) -> Any:
    """One of (values, indices); with the values go the indices, if columns have to find their way back."""
    if op.index == 0 and op.differentiated:
        return result[0], {"indices": result[1]}
    return result[op.index]


# -- a range along that axis -----------------------------------------------------------------------------------------


def is_whole_batch(op: Op) -> bool:
    """Whether a part along the sample axis has all samples, x[:N]."""
    return axis(op) == -1 and op.has_samples("output")


def is_everything(op: Op) -> bool:
    """Whether a slice leaves nothing out."""
    if axis(op) == -1:
        return op.step == 1 and op.has_samples("output")
    return not op.start and _is_unbounded(op) and op.step == 1


def _is_unbounded(op: Op) -> bool:
    return op.end is None or (isinstance(op.end, int) and op.end >= 2**62)


def range_of(op: Op) -> slice:
    """A slice as one would write it: x[:, 1:3]."""
    start = op.start if op.start is not None and op.start != 0 else None
    return slice(start, None if _is_unbounded(op) else op.end, None if op.step == 1 else op.step)
