"""How the parts of a loss grow when the batch is laid twice."""

import pytest

from hbpcompiler.compiler.match.losses.endings import slopes
from hbpcompiler.compiler.match.losses.growth import growths
from hbpcompiler.compiler.trace.graph import N
from tests.hand_made import graph, operation, parameter, rules_of, value

X, W, Y = value("x", N, 3, role="input"), parameter("w", 2, 3), value("y", N, 2, role="target")
OUTPUT = value("output", N, 2)
LINEAR = operation("linear", OUTPUT, {"bias": None}, input=X, weight=W)
PART = operation("mse_loss", value("part"), {"reduction": 2}, in_loss=True, **{"self": OUTPUT, "target": Y})
COUNT = operation("sum", value("count"), {"dtype": None}, in_loss=True, self=Y)


def divided(by=None, **tensors):
    attributes = {} if tensors else {"other": by}
    return operation("div", value("loss"), attributes, overload="Tensor", in_loss=True, self=PART.output, **tensors)


@pytest.mark.parametrize(("end", "power"), [
    ([], 1), ([divided(3.0)], 1), ([divided(N)], 0), ([divided(2 * N)], 0), ([divided(N**2)], -1),
    ([COUNT, divided(other=COUNT.output)], 0),
])
def test_powers(end, power):
    found = graph([LINEAR, PART, *end], state=[W], inputs=[X], targets=[Y], outputs=[OUTPUT])
    rules = rules_of(found)
    grown = growths(found, rules, lambda op_of: slopes(found, rules, op_of))
    assert grown == {"part": pytest.approx(power, abs=0.05)}
