"""The output at which columns begin, as the value with samples in front that it shows."""

from dataclasses import replace

from hbpcompiler.compiler.match.samples.shown_end import with_shown_end
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.rule.registry import builtin
from tests.hand_made import graph, operation, parameter, value


def shown(target, attributes, *shape):
    """The end of x -> linear [N, 4, 3] -> an operation that makes what is returned."""
    x, w, made = value("x", N, 4, 3, role="input"), parameter("w", 3, 3), value("made", N, 4, 3)
    output = value("output", *shape)
    own = graph([
        operation("linear", made, {"bias": None}, input=x, weight=w),
        operation(target, output, attributes, self=made),
        operation("mean", value("loss"), {"dtype": None}, in_loss=True, self=made),
    ], state=[w], inputs=[x])
    return with_shown_end(replace(own, end="output", has_loss_streams=False), builtin()).end


def test_what_moves_the_numbers_is_looked_through():
    assert shown("permute", {"dims": [1, 0, 2]}, 4, N, 3) == "made"
    assert shown("flatten", {"start_dim": 0, "end_dim": 1}, 4 * N, 3) == "made"


def test_an_output_with_samples_in_front_is_itself():
    assert shown("permute", {"dims": [0, 2, 1]}, N, 3, 4) == "output"


def test_what_changes_the_numbers_is_not():
    assert shown("exp", {}, 4 * N, 3) == "output"


def test_without_an_end_nothing_is_looked_for():
    own = graph([operation("mean", value("loss"), {"dtype": None}, in_loss=True, self=value("x", N, 3, role="input"))],
                inputs=[value("x", N, 3, role="input")], outputs=[value("x", N, 3, role="input")])
    assert with_shown_end(own, builtin()) is own
