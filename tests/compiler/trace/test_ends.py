"""Where derivatives begin, on graphs written by hand."""

import pytest

from hbpcompiler.compiler.trace.ends import Ends, with_ends
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.errors import ModelError
from tests.hand_made import graph, mlp, operation, parameter, value

ONLY_OUTPUT, BOTH = Ends(loss=False, output=True), Ends(output=True)


def test_at_the_loss_unless_an_output_is_asked_for():
    plain = mlp()
    assert with_ends(plain, Ends()) is plain
    both = with_ends(plain, BOTH)
    assert both.end == "output"
    assert both.active == plain.active
    assert both.ending == plain.ending


def test_without_the_loss_nothing_of_it_is_active():
    found = with_ends(mlp(), ONLY_OUTPUT)
    assert found.active == mlp().active - {"loss"}
    assert found.ending == ([], [])


def branches(*read):
    """x -> linear -> a; a -> tanh -> b; x -> exp -> c; all returned, the loss takes those that are `read`."""
    x, w, b = value("x", N, 3, role="input"), parameter("w", 3, 3), value("b", N, 3)
    a, c, joined = value("a", N, 3), value("c", N, 3), value("joined", N, 3)
    values = {"a": a, "b": b, "c": c}
    return graph([
        operation("linear", a, {"bias": None}, input=x, weight=w),
        operation("tanh", b, self=a),
        operation("exp", c, self=x),
        operation("add", joined, {"alpha": 1}, in_loss=True, self=values[read[0]], other=values[read[-1]]),
        operation("mean", value("loss"), {"dtype": None}, in_loss=True, self=joined),
    ], state=[w], inputs=[x], outputs=[a, b, c])


def test_of_several_outputs_it_is_the_one_that_the_loss_takes():
    assert with_ends(branches("b"), ONLY_OUTPUT).end == "b"
    assert with_ends(branches("a"), ONLY_OUTPUT).active == {"w", "a"}
    with pytest.raises(ModelError, match=r"a of shape \[N, 3\], which the loss takes\n.*b of shape .*takes"):
        with_ends(branches("a", "b"), ONLY_OUTPUT)
    with pytest.raises(ModelError, match=r"a of shape \[N, 3\]\n"):
        with_ends(branches("c"), BOTH)


def test_an_output_that_nothing_trained_reaches_is_none():
    untrained = branches("c")
    with pytest.raises(ModelError, match="no output of the model depends on a trainable parameter"):
        with_ends(graph(untrained.operations, untrained.state, untrained.inputs, outputs=[untrained.outputs[2]]),
                  ONLY_OUTPUT)
