"""Positions merged into the sample axis, split off again on graphs written by hand."""

from hbpcompiler.compiler.match.samples.merged_positions import positions, split_merged
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.rule.registry import builtin
from tests.hand_made import graph, operation, parameter, value

X, Y = value("x", N, 4, 3, role="input"), value("y", 4 * N, 2, role="target")
W = parameter("w", 2, 3)


def test_positions_of_a_value():
    assert positions(value("v", 4 * N, 3)) == 4
    assert positions(value("v", N, 3)) == 1
    assert positions(value("v", 3, 3)) == 0
    assert positions(value("v", N**2, 3)) == 0
    assert positions(value("v")) == 0


def flattened():
    """x [N, 4, 3] -> [4 N, 3] -> linear -> tanh, and back to [N, 4, 2] or not."""
    merged, hidden, bent = value("merged", 4 * N, 3), value("hidden", 4 * N, 2), value("bent", 4 * N, 2)
    return [
        operation("view", merged, {"size": [-1, 3]}, self=X),
        operation("linear", hidden, {"bias": None}, input=merged, weight=W),
        operation("tanh", bent, self=hidden),
    ]


def test_a_region_is_split():
    back, loss = value("back", N, 4, 2), value("loss")
    target = value("t", N, 4, 2, role="target")
    made = graph([*flattened(), operation("view", back, {"size": [-1, 4, 2]}, self=value("bent", 4 * N, 2)),
                  operation("mse_loss", loss, {"reduction": 1}, in_loss=True, **{"self": back, "target": target})],
                 state=[W], inputs=[X], targets=[target])
    split = split_merged(made, builtin())
    shapes = {operation.name: operation.output.shape for operation in split.operations}
    assert shapes["hidden"] == shapes["bent"] == (N, 4, 2)
    assert [operation.name for operation in split.operations] == [operation.name for operation in made.operations]
    assert split.makers["bent"].tensors["self"].shape == (N, 4, 2)


def test_an_output_keeps_the_shape_that_the_user_gave_it():
    loss = value("loss")
    made = graph([*flattened(), operation("mse_loss", loss, {"reduction": 1}, in_loss=True,
                                          **{"self": value("bent", 4 * N, 2), "target": Y})],
                 state=[W], inputs=[X], targets=[Y])
    split = split_merged(made, builtin())
    (output,) = split.outputs
    assert output.shape == (4 * N, 2)
    assert split.makers[output.name].output.shape == output.shape


def test_without_derivatives_nothing_is_touched():
    frozen = value("w", 2, 3, role="buffer")
    operations = flattened()
    operations[1] = operation("linear", operations[1].output, {"bias": None}, input=operations[0].output, weight=frozen)
    made = graph([*operations, operation("sum", value("loss"), {"dtype": None}, self=operations[-1].output)],
                 state=[frozen], inputs=[X])
    assert [operation.output for operation in split_merged(made, builtin()).operations] == [
        operation.output for operation in made.operations]
