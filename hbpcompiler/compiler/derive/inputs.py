"""The operand alone, as Kronecker factors A see it: each sample's times the root of its weight, 1 on average.

So sums of u u^T over the samples, over N, are the average sum_n w_n u_n u_n^T / sum_n w_n.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.rule import Contraction, Op, Structure


def stream_of_inputs(backward: Backward, operation: Operation, op: Op, contraction: Contraction,
                     rounded: bool = True) -> tuple[Op, Contraction, Any]:
    """The operation and its contraction with this operand, and a tensor that loops over its samples cut.

    `rounded`: in the dtype of curvature.
    """
    def begun(stream: Any) -> Any:
        return backward.precision.rounded(stream, None) if rounded else stream

    slots = {**operation.tensors, "output": operation.output}
    floating = [slot for slot, value in slots.items() if value.batched and value.dtype.is_floating_point]
    slot, stream = floating[0], getattr(op, floating[0])
    constant = floating == [slot, "output"] and backward.rule_of(operation).structure_of(op) is Structure.CONSTANT
    if (constant and contraction.linear) or backward.weights is None:
        stream = begun(backward.weighted(stream, root=True, average=True))
        return op.with_tensor(slot, stream), contraction, stream
    stream = begun(stream)
    return *_times_roots(backward, op.with_tensor(slot, stream), contraction, stream), stream


def _times_roots(backward: Backward, op: Op, contraction: Contraction, stream: Any) -> tuple[Op, Contraction]:
    """For an operand that is no linear function of one input: it is multiplied where it is made."""
    roots = backward.weighted(stream.new_ones(stream.shape[:1]), root=True, average=True)
    axes = (1,) * (len(contraction.letters[1]) - 1)

    def operand(op: Op) -> Any:
        assert contraction.operand is not None
        return contraction.operand(op) * op.argument("roots_of_weights").reshape(-1, *axes)

    return op.with_tensor("roots_of_weights", roots), replace(contraction, operand=operand, index=None, product=None)
