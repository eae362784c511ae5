"""Totals over parameters, the weights that are made of them, and what is weighed: the start of a second phase."""

from __future__ import annotations

from contextlib import nullcontext

from hbpcompiler import clipping
from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.derive.close import put
from hbpcompiler.compiler.plan.phases import SumEach, Total, Weigh, Weights
from hbpcompiler.compiler.program.writer import named
from hbpcompiler.quantities import EACH, GRADIENT, SUM, Closing


def weigh_samples(backward: Backward, step: Weights) -> None:
    """The norms, now that they are complete, and the samples' weights [N]; of all parameters under a heading of their
    own."""
    own = backward.writer.block("clipping", "backward", f"clip[n] = {clipping.STYLES[backward.plan.clipping]}")
    with own if step.total.group == clipping.ALL else nullcontext():
        norms = named(clipping.norms_of(backward.sums[step.total]), f"norms{_suffix(backward, step.total)}")
        weights = clipping.weights(backward.plan.clipping, norms, backward.bounds[step.total.group])
        backward.weighing[step.total] = named(weights, f"clip{_suffix(backward, step.total)}")


def _suffix(backward: Backward, total: Total) -> str:
    """Of the names of what belongs to one of several totals."""
    if len(backward.plan.sums) == 1:
        return ""
    names = {value.key: backward.matched.names[value.name] for value in backward.matched.trainable}
    return f"_{names.get(total.group, total.group)}"


def weigh(backward: Backward, step: Weigh) -> None:
    """Columns [N, 1, *z], each sample's times its weight."""
    columns = backward.columns[step.value.name, step.piece.name]
    weights = backward.weighing[step.total].reshape(-1, 1, *[1] * len(step.value.sample_shape))
    weights = weights.type_as(columns) if backward.matched.mixed else weights
    backward.arrive(step.value, step.into, columns * weights)


def sum_each(backward: Backward, step: SumEach) -> None:
    """sum_n C_n T[n] of per-sample gradients [N, *theta]."""
    each = backward.closed[step.parameter.key][Closing(GRADIENT, EACH)]
    weights = backward.weighing[step.total]
    weights = weights.type_as(each) if backward.matched.mixed else weights
    shape = step.parameter.sample_shape
    total = weights @ each.flatten(1) if len(shape) > 1 else weights @ each
    total = total.unflatten(0, shape) if len(shape) > 1 else total
    put(backward, step.parameter, Closing(step.piece.stream, SUM), total)
