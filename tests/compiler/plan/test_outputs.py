"""Where the loss ends: what becomes of the pieces that have arrived at the model's output."""

from dataclasses import replace

import pytest

from hbpcompiler import schemes
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.plan.outputs import Outputs
from hbpcompiler.compiler.plan.steps import AddUp, Average, Gather, Piece, Sample, SeedOutput, Unite
from hbpcompiler.compiler.routes import COLUMNS, DIAGONAL_FORM, MATRIX
from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.options import check_options
from hbpcompiler.quantities import GGN, GGN_MC, KFRA, closings_for
from hbpcompiler.quantities import OUTPUT as OUTPUT_STREAM
from tests.hand_made import matched, mlp

GRAPH = replace(mlp(), end="output")
OUTPUT = GRAPH.outputs[0]


def left(*quantities, arrived=(), mc_samples=1):
    """The state behind the loss, and what is then at the output, by name, where these pieces had arrived."""
    asked = check_options(list(quantities), "python", None, mc_samples, None)
    closings = schemes.kept(schemes.HESSIAN, closings_for(asked.quantities))
    outputs = Outputs(matched(GRAPH), frozenset(closings), asked, Resources())
    for piece in arrived:
        outputs._arrive(OUTPUT, piece)
    outputs._leave_loss()
    return outputs, outputs.at[OUTPUT.name]


def piece(stream, form, columns=0, signed=False, name="S"):
    return Piece(name, stream, form, columns, signed)


def test_what_needs_nothing_else_stays():
    diagonal = piece(GGN, DIAGONAL_FORM)
    outputs, there = left("diag_ggn", arrived=[diagonal])
    assert (outputs.steps, there) == ([], {"S": diagonal})
    assert not outputs.indefinite


def test_a_stream_that_has_not_arrived_is_zero():
    outputs, there = left("diag_ggn")
    (step,) = outputs.steps
    assert isinstance(step, Gather)
    assert step.pieces == ()
    assert [(own.stream, own.form) for own in there.values()] == [(GGN, DIAGONAL_FORM)]


@pytest.mark.parametrize("signed", [False, True])
def test_exact_columns_are_sampled_where_the_loss_cannot_do_it(signed):
    """A set of sums for each sign."""
    exact = piece(GGN_MC, COLUMNS, 5, signed)
    outputs, there = left("diag_ggn_mc", arrived=[exact], mc_samples=3)
    (step,) = outputs.steps
    assert isinstance(step, Sample)
    assert step.pieces == (exact,)
    (drawn,) = there.values()
    assert (drawn.form, drawn.columns, drawn.signed) == (COLUMNS, 6 if signed else 3, signed)
    assert outputs.indefinite == signed


def test_kfra_begins_with_an_average():
    outputs, there = left("kfra", arrived=[piece(KFRA, COLUMNS, 2)])
    (step,) = outputs.steps
    assert isinstance(step, Average)
    assert [own.form for own in there.values()] == [MATRIX]


def test_columns_that_meet_those_of_other_parameters_are_one_piece():
    first, second = piece(GGN, DIAGONAL_FORM), piece(GGN, COLUMNS, 3, name="S2")
    outputs, there = left("gram", arrived=[first, second])
    (step,) = outputs.steps
    assert isinstance(step, Unite)
    assert step.parts == ((first, 2), (second, 3))
    assert [own.columns for own in there.values()] == [5]
    with pytest.raises(UnsupportedOpError, match="gram"):
        left("gram", arrived=[piece(GGN, COLUMNS, 3, signed=True)])


def test_columns_are_added_up_for_each_group():
    outputs, there = left("column_sum", arrived=[piece(GGN, COLUMNS, 3)])
    assert [type(step) for step in outputs.steps] == [AddUp]
    (added,) = [own for own in there.values() if own.group]
    assert added.columns == Resources().limits.typical_vectors


def test_unit_columns_begin_at_the_output():
    outputs, there = left("jacobian")
    assert isinstance(outputs.steps[-1], SeedOutput)
    assert [own.columns for own in there.values() if own.stream == OUTPUT_STREAM] == [2]
