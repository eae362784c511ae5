"""Which parameters become values, and what their graph looks like then."""

import pytest
import torch

from hbpcompiler.compiler.match.parameters.parameter_values import ALL_SAMPLES, EACH_SAMPLE, rule_of, with_values
from hbpcompiler.compiler.match.parameters.tied_values import uses_as_values
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.quantities import closings_for
from hbpcompiler.rule import Op
from hbpcompiler.rule.registry import builtin
from tests.hand_made import graph, operation, parameter, value

X, Y, W = value("x", N, 3, role="input"), value("y", N, 3, role="target"), parameter("w", 3, 3)
BOTH = parameter("b", 3)
FIRST, SECOND = value("first", N, 3), value("second", N, 3)


def twice(weight=W):
    """One weight in two layers."""
    return [operation("linear", FIRST, {"bias": None}, input=X, weight=weight),
            operation("linear", SECOND, {"bias": None}, input=FIRST, weight=weight)]


def whole(operations, state=(W,)):
    loss = operation("mse_loss", value("loss"), {"reduction": 1}, in_loss=True, **{"self": SECOND, "target": Y})
    return graph([*operations, loss], state=list(state), inputs=[X], targets=[Y])


def uses_of(found):
    seen = {}
    with_values(found, builtin(), lambda uses: seen.update(uses) or set())
    return seen


def test_uses_are_found():
    places = uses_of(whole(twice()))["w"]
    assert [(use.operation.name, use.slot) for use in places] == [("first", "weight"), ("second", "weight")]
    assert all(use.contraction is not None for use in places)


@pytest.mark.parametrize(("quantities", "chosen"), [(["grad", "batch_l2"], set()), (["diag_ggn"], set()),
                                                    (["diag_h"], {"w"}), (["kflr"], set())])
def test_the_hessian_wants_cross_terms(quantities, chosen):
    assert uses_as_values(uses_of(whole(twice())), frozenset(closings_for(quantities))) == chosen


def test_a_hessian_diagonal_and_factors_are_not_both_to_be_had():
    with pytest.raises(UnsupportedOpError, match=r"(?s)parameter 'w' is used 2 times.*Compile the model twice"):
        uses_as_values(uses_of(whole(twice())), frozenset(closings_for(["diag_h", "kflr"])))


def test_where_there_are_no_factors_at_all_a_second_program_is_no_advice():
    shifted = [operation("add", FIRST, {"alpha": 1}, input=X, other=BOTH),
               operation("mul", SECOND, self=FIRST, other=BOTH)]
    with pytest.raises(UnsupportedOpError, match=r"(?s)parameter 'b' is used 2 times.*choose parameters") as caught:
        uses_as_values(uses_of(whole(shifted, (BOTH,))), frozenset(closings_for(["diag_h", "kflr"])))
    assert "twice" not in str(caught.value)


def test_a_parameter_as_a_value():
    made = with_values(whole(twice()), builtin(), lambda uses: {"w"})
    assert [own.target for own in made.operations[:2]] == ["parameter.each_sample", "parameter.all_samples"]
    each, shared = made.operations[0].output, made.operations[1].output
    assert (each.shape, each.shared) == ((1, 3, 3), True)
    assert all(own.tensors["weight"] == shared for own in made.operations[2:4])


def test_where_nothing_needs_it_the_graph_stays():
    found = whole(twice())
    assert with_values(found, builtin(), lambda uses: set()) is found


def test_what_is_made_of_parameters_alone_becomes_a_batch_of_one():
    positive = value("positive", 3, 3)
    made = with_values(whole([operation("exp", positive, self=W), *twice(positive)]), builtin(), lambda uses: set())
    targets = [own.target for own in made.operations]
    assert targets[:3] == ["parameter.each_sample", "aten.exp", "parameter.all_samples"]
    assert made.operations[1].output.shared
    assert all(rule_of(own, builtin()) is not None for own in made.operations)


def test_the_two_rules_undo_each_other():
    theta = torch.randn(2, 3)
    each = EACH_SAMPLE.forward(Op({"self": theta}, {}, {"self": (2, 3), "output": (2, 3)}))
    assert each.shape == (1, 2, 3)
    assert torch.equal(ALL_SAMPLES.forward(Op({"self": each}, {}, {})), theta)
