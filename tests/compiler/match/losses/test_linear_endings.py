"""Reductions of the batch that go behind what is done with the other axes, and numbers in a row."""

import pytest

from hbpcompiler.compiler.match.losses.joined_endings import with_joined_endings
from hbpcompiler.compiler.match.losses.linear_endings import with_linear_endings
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.rule.registry import builtin
from tests.hand_made import graph, operation, parameter, value

X, W = value("x", N, 3, role="input"), parameter("w", 2, 3)
OUTPUT, VECTOR, CLASSES = value("output", N, 2), value("vector", 2), value("classes", 2, role="buffer")
LINEAR = operation("linear", OUTPUT, {"bias": None}, input=X, weight=W)


def mean(output, **given):
    axes = {"dim": [0], "keepdim": False, "dtype": None}
    return operation("mean", output, axes, overload="dim", in_loss=True, **given)


def whole(name, given, target="sum"):
    return operation(target, value(name), {"dtype": None}, in_loss=True, self=given)


def rewritten(*tail, state=(W,)):
    found = graph([LINEAR, *tail], state=list(state), inputs=[X], outputs=[OUTPUT])
    made = with_linear_endings(found, builtin())
    return found, made, [(step.target, tuple(step.output.shape)) for step in made.operations[1:]]


def test_a_sum_of_means_is_the_mean_of_sums():
    _, made, steps = rewritten(mean(VECTOR, self=OUTPUT), whole("loss", VECTOR))
    assert steps == [("aten.sum", (N,)), ("aten.mean", ())]
    assert made.operations[-1].output == made.loss


def test_weights_of_what_is_reduced_first():
    weighted = value("weighted", 2)
    times = operation("mul", weighted, overload="Tensor", in_loss=True, self=VECTOR, other=CLASSES)
    _, _, steps = rewritten(mean(VECTOR, self=OUTPUT), times, whole("loss", weighted, "mean"), state=(W, CLASSES))
    assert steps == [("aten.mul", (N, 2)), ("aten.mean", ())]


def test_numbers_in_a_row():
    one, two = whole("one", OUTPUT), whole("two", OUTPUT, "mean")
    row = operation("stack", VECTOR, {"tensors": ["tensors.0", "tensors.1"], "dim": 0}, in_loss=True,
                    **{"tensors.0": one.output, "tensors.1": two.output})
    _, _, steps = rewritten(one, two, row, whole("loss", VECTOR, "mean"))
    assert steps == [("aten.sum", ()), ("aten.mean", ()), ("aten.add", ()), ("aten.div", ())]


@pytest.mark.parametrize(("reduction", "end"), [("mean", ["mul", "add"]), ("sum", ["add"])])
def test_samples_laid_end_to_end(reduction, end):
    flat = operation("flatten", value("flat", 2 * N), {"start_dim": 0, "end_dim": -1}, in_loss=True, self=OUTPUT)
    each = operation("sum", value("each", N), {"dim": [1], "keepdim": False, "dtype": None}, overload="dim_IntList",
                     in_loss=True, self=OUTPUT)
    row = operation("cat", value("row", 3 * N), {"tensors": ["tensors.0", "tensors.1"], "dim": 0}, in_loss=True,
                    **{"tensors.0": flat.output, "tensors.1": each.output})
    found = graph([LINEAR, flat, each, row, whole("loss", row.output, reduction)], state=[W], inputs=[X],
                  outputs=[OUTPUT])
    made = with_joined_endings(found).operations
    multiple = end[:-1]
    assert [step.short for step in made[3:]] == [reduction, *multiple, reduction, *multiple, "add"]
    shares = [step.attributes["other"] for step in made if step.short == "mul"]
    assert shares == ([pytest.approx(2 / 3), pytest.approx(1 / 3)] if reduction == "mean" else [])
    assert made[-1].output == found.loss


def test_what_is_curved_in_between_stays():
    root = value("root", 2)
    found, made, steps = rewritten(mean(VECTOR, self=OUTPUT), operation("sqrt", root, in_loss=True, self=VECTOR),
                                   whole("loss", root))
    assert [step.target for step in made.operations] == [step.target for step in found.operations]
    assert steps[1] == ("aten.sqrt", (2,))


def test_plain_endings_are_left_alone():
    found, made, _ = rewritten(whole("loss", OUTPUT))
    assert made is found
