"""Elementwise operations joined into one: all ordered pairs of the rule table against autograd.

A pair goes through the compiler's own joining, on a graph of nothing else, and not through a whole compile.
"""

import pytest
import torch

from hbpcompiler.compiler.match.fuse import fuse
from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.trace.graph import (
    Graph,
    N,
    Operation,
    Source,
    Value,
)
from hbpcompiler.rule import Diagonal, computed
from hbpcompiler.testing.expression import by_double_backward
from tests.elementwise_uses import affine, uses
from tests.selection import cases, few

POINTS = torch.cat([torch.linspace(-3, 2.75, 24), torch.linspace(0.03, 0.97, 12)]).double()
POINTS = POINTS[POINTS != 0]
"""Kinks are among them, and the inside of each domain. Not 0, where |x|**2, which is x**2 when joined, has no
second derivative for torch; nor 3, where 1 / x meets a softplus's threshold, at which torch's derivatives disagree."""
HERE = Source("module", "torch.nn.Module")


def value_of(name):
    return Value(name, (N, len(POINTS)), torch.float64, "result")


USES = {operation: stated for operation, cases in uses().items() if (stated := [use for use in cases if use.stated])}


def pairs(first):
    """This operation and each other in turn, in cases that change from pair to pair."""
    place = list(USES).index(first)
    for i, every in enumerate(USES.values()):
        yield USES[first][i % len(USES[first])], every[(i + place) % len(every)]


def joined(chain):
    """The rules that the compiler makes of these operations in a row: one, if it joins them."""
    weight = Value("weight", (len(POINTS),), torch.float64, "parameter", "weight", trainable=True)
    first = Operation("none.made", "", value_of("v0"), {"weight": weight}, {}, 0, HERE)
    operations, rules = [first], {}
    for i, use in enumerate(chain):
        operations.append(Operation(use.target, use.overload, value_of(f"v{i + 1}"), {use.slot: operations[-1].output},
                                    use.attributes, 0, HERE))
        rules[f"v{i + 1}"] = use.rule
    output = operations[-1].output
    loss = Value("loss", (), torch.float64, "result")
    operations.append(Operation("none.loss", "", loss, {"self": output}, {}, 0, Source(in_loss=True)))
    graph = Graph([], [], [weight], operations, [output], loss)
    whole, fused = fuse(graph, rules)
    active = whole.active
    return [(fused[operation.name], operation, active) for operation in whole.operations[1:-1]]


def by_rules(chain):
    """Value, first and second derivative of the operations in a row by the rules that the compiler makes of them."""
    value, slope, curvature = POINTS, torch.ones_like(POINTS), torch.zeros_like(POINTS)
    for rule, operation, active in joined(chain):
        (slot,) = operation.tensors
        tensors = {slot: value[None]}
        tensors["output"] = computed(rule, bind(operation, tensors.__getitem__, active))[0]
        op = bind(operation, tensors.__getitem__, active)
        residual = rule.residual_of(op)
        ones = torch.ones_like(value)[None]
        bent = residual.diagonal(op, ones)[0] if isinstance(residual, Diagonal) else torch.zeros_like(value)
        own = rule.derivative(op)[0]
        curvature = own * curvature + bent * slope**2
        slope = own * slope
        value = tensors["output"][0]
    return value, slope, curvature


def by_autograd(chain, at):
    point = at.clone().requires_grad_()
    output = point
    for use in chain:
        output = use(output)
    return output.detach(), *by_double_backward(output, point)


def compared(chain):
    """Compare both; at how many points: those where torch's own numbers, and each operation's, are finite."""
    expected = by_autograd(chain, POINTS)
    every, value = [*expected], POINTS
    for use in chain:
        own = by_autograd([use], value)
        every += own
        value = own[0]
    finite = torch.stack([torch.isfinite(one) for one in every]).all(0)
    where = " then ".join(use.label for use in chain)
    for what, found, wanted in zip(("value", "derivative", "curvature"), by_rules(chain), expected, strict=True):
        gap = ((found - wanted).abs() / (1 + wanted.abs()))[finite]
        bad = POINTS[finite][~(gap < 1e-9)]
        assert len(bad) == 0, f"{where}: {what} off by {gap.max():.1e} at {bad.tolist()}"
    return int(finite.sum())


def test_a_flat_piece_beside_an_infinite_slope_has_no_slope():
    """relu then sqrt at 0, hardtanh then asin beyond 1: what torch does not multiply, is not multiplied."""
    met = 0
    for inner in ("aten.relu", "aten.hardtanh", "aten.threshold", "aten.clamp"):
        for outer in ("aten.sqrt", "aten.log", "aten.asin", "aten.acosh"):
            chain = [USES[inner][0], USES[outer][0]]
            value, slope, _ = by_autograd(chain, POINTS)
            flat = torch.isfinite(value) & torch.isfinite(slope) & (by_autograd(chain[:1], POINTS)[1] == 0)
            if flat.any() and len(joined(chain)) == 1:
                torch.testing.assert_close(by_rules(chain)[1][flat], slope[flat], msg=f"{inner}, {outer}")
                met += 1
    assert met >= 3


@few(1, "further cases of one kind")
@pytest.mark.parametrize("operation", cases(USES, list(USES)[::10], "as the second of a pair it is met anyway"))
def test_every_pair_joined_agrees_with_autograd(operation):
    for inner, outer in pairs(operation):
        found = compared([inner, outer])
        if found < 5:
            found = compared([inner, *affine(inner(POINTS), outer), outer])
        assert found >= 5, f"{inner.label} then {outer.label}: compared at {found} points"
