"""A plan in plain text, and what decides the layout of images and the joining of uses, on plans made by hand."""

import pytest

from hbpcompiler.compiler.cost.figures import DEFAULT, Machine
from hbpcompiler.compiler.plan.pixels import is_pixel_by_pixel
from hbpcompiler.compiler.plan.steps import Close, Tied
from hbpcompiler.compiler.plan.table import _polynomial, _short, header_table, machine_notes
from hbpcompiler.compiler.plan.tied import join_uses
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.errors import UnsupportedOpError, UsesNotJoinedError
from hbpcompiler.quantities import closings_for
from tests.compiler.derive.carried import MATCHED, planned
from tests.hand_made import operation, parameter, value


@pytest.mark.parametrize(("number", "text"), [(3, "3"), (1234, "1.23k"), (5e6, "5M"), (2.5e9, "2.5G"), (0.25, "0.25")])
def test_short_numbers(number, text):
    assert _short(number) == text


@pytest.mark.parametrize(("expression", "text"), [(7, "7"), (3 * N, "3 N"), (2000 * N**2 + 5, "2k N^2 + 5")])
def test_polynomials(expression, text):
    assert _polynomial(expression) == text


def test_the_head_has_a_row_for_each_choice():
    head, *rows = header_table(MATCHED.graph, planned("grad", "kflr"))
    assert head.split() == ["parameter", "from", "closing", "route", "multiply-adds"]
    assert {row.split()[0] for row in rows if not row.startswith(" ")} == {"a.weight", "a.bias", "b.weight"}
    assert any("gradient: 1 column " in row and " sum " in row for row in rows)
    assert any("operand" in row and "input_factor" in row for row in rows)


def test_measured_figures_are_said():
    assert machine_notes(DEFAULT, False) == []
    assert len(machine_notes(DEFAULT, True)) == 1
    assert "1e+09 multiply-adds/s" in machine_notes(Machine(multiply_adds_per_second=1e9), False)[1]


def test_only_images_have_a_layout():
    assert not is_pixel_by_pixel(MATCHED.graph, MATCHED.rules, planned("grad"), 64)


def twice(*quantities):
    """The steps, one weight's closings once more at another operation."""
    steps = list(planned(*quantities).steps)
    last = next(step for step in steps if isinstance(step, Close) and step.operation.name == "output")
    other = operation("linear", value("elsewhere", N, 2), {"bias": None}, input=value("z", N, 4),
                      weight=parameter("b.weight", 2, 4))
    again = [Close(other, step.slot, step.parameter, step.piece, step.site, step.contraction, step.choices)
             for step in steps if isinstance(step, Close) and step.operation is last.operation]
    return [*steps, *again], frozenset(closings_for(quantities))


def test_sums_stay_with_each_use():
    steps, closings = twice("grad")
    assert join_uses(steps, closings) == steps


def test_squares_are_joined_along_the_positions():
    steps, closings = twice("batch_l2")
    (joined,) = [step for step in join_uses(steps, closings) if isinstance(step, Tied)]
    assert [use.operation.name for use in joined.uses] == ["output", "elsewhere"]
    assert joined.site.size("p") == 2
    assert joined.site.equation == "nkpo,npi->nkoi"


def test_a_parameter_used_once_is_left_alone():
    steps = list(planned("batch_l2").steps)
    assert join_uses(steps, frozenset(closings_for(["batch_l2"]))) == steps


def test_what_cannot_be_joined_names_its_parameters():
    """A diagonal that arrives at both."""
    steps, closings = twice("diag_ggn")
    with pytest.raises(UsesNotJoinedError) as caught:
        join_uses(steps, closings)
    assert caught.value.parameters == {"b.weight"}
    with pytest.raises(UnsupportedOpError, match=r"parameter 'b\.weight' is used 2 times"):
        join_uses(*twice("kflr"))
