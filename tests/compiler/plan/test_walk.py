"""The backward walk over graphs written by hand: what travels where, and in which form."""

import pytest

from hbpcompiler import schemes
from hbpcompiler.compiler.plan.arrivals import makes, reads
from hbpcompiler.compiler.plan.plan import plan
from hbpcompiler.compiler.plan.steps import Birth, Close, Gather, Pull, Seed, Widen
from hbpcompiler.compiler.routes import COLUMNS, DIAGONAL_FORM
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.options import check_options
from hbpcompiler.quantities import GGN, GRADIENT, RESIDUAL, closings_for
from tests.hand_made import graph, matched, mlp, operation, parameter, value


def planned(found, *quantities, curvature=schemes.HESSIAN):
    asked = check_options(list(quantities), "python", None, 1, None, curvature)
    return plan(matched(found), schemes.kept(curvature, closings_for(asked.quantities)), asked)


def names(made, kind):
    return [(step.operation.name, getattr(step, "slot", "")) for step in made.flat() if isinstance(step, kind)]


def test_the_gradient_goes_back_through_the_chain():
    made = planned(mlp(), "grad")
    assert names(made, Seed) == [("loss", "")]
    assert names(made, Pull) == [("output", "input"), ("bent", "self")]
    assert names(made, Close) == [("output", "weight"), ("hidden", "weight"), ("hidden", "bias")]
    assert {step.piece.stream for step in made.flat()} == {GRADIENT}


def test_nothing_is_sent_to_the_data():
    assert ("hidden", "input") not in names(planned(mlp(), "grad", "diag_h"), Pull)


def test_only_what_is_asked_for_travels():
    assert {step.piece.stream for step in planned(mlp(), "diag_ggn").flat() if isinstance(step, Seed)} == {GGN}


def test_a_curved_operation_gives_birth_to_a_residual():
    made = planned(mlp(), "diag_h")
    (birth,) = [step for step in made.flat() if isinstance(step, Birth)]
    assert birth.operation.name == "bent"
    assert birth.piece.stream == RESIDUAL
    assert birth.piece.form == DIAGONAL_FORM
    assert birth.gradient.stream == GRADIENT


def test_without_residuals_none_is_born():
    made = planned(mlp(), "diag_h", curvature=schemes.GGN_ALONE)
    assert names(made, Birth) == []


def test_every_step_reads_what_an_earlier_one_made():
    made = planned(mlp(), "grad", "diag_h", "kflr", "batch_l2")
    there = set()
    for step in made.flat():
        assert {(where.name, piece.name) for where, piece in reads(step)} <= there
        there |= {(where.name, piece.name) for where, piece in makes(step)}


def test_a_diagonal_widens_at_a_matrix():
    """Two outputs of a squared error are two columns behind the last layer."""
    made = planned(mlp(), "diag_ggn")
    (widened,) = [step for step in made.flat() if isinstance(step, Widen)]
    assert widened.operation.name == "output"
    assert (widened.into.form, widened.into.columns) == (COLUMNS, 2)


def branches():
    """x -> linear -> a; tanh(a) + sigmoid(a) -> mean squared error."""
    x, y, w = value("x", N, 3, role="input"), value("y", N, 2, role="target"), parameter("w", 2, 3)
    a, left, right, total = (value(name, N, 2) for name in ("a", "left", "right", "total"))
    return graph([
        operation("linear", a, {"bias": None}, input=x, weight=w),
        operation("tanh", left, self=a),
        operation("sigmoid", right, self=a),
        operation("add", total, {"alpha": 1}, overload="Tensor", self=left, other=right),
        operation("mse_loss", value("loss"), {"reduction": 1}, in_loss=True, **{"self": total, "target": y}),
    ], state=[w], inputs=[x], targets=[y])


def test_residuals_of_two_branches_are_gathered_where_they_meet():
    made = planned(branches(), "diag_h")
    born = {step.operation.name: step.piece for step in made.flat() if isinstance(step, Birth)}
    assert born.keys() == {"left", "right"}
    gathered = [step for step in made.flat() if isinstance(step, Gather)]
    assert {piece.name for piece in born.values()} <= {piece.name for step in gathered for piece in step.pieces}
    assert {step.value.name for step in gathered} == {"a"}


@pytest.mark.parametrize("quantity", ["grad", "diag_h", "kfra", "ekfac"])
def test_every_parameter_ends_what_reaches_it(quantity):
    closed = {step.parameter.key for step in planned(mlp(), quantity).closings()}
    assert closed == {"a.weight", "a.bias", "b.weight"}
