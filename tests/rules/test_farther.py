"""Rules that are right near zero and wrong beyond."""

from dataclasses import replace

import pytest
import torch

from hbpcompiler.rule import Case, Diagonal, Rule
from hbpcompiler.testing import check_rule
from hbpcompiler.testing.farther import check_farther


def slope(value):
    return 2 * value


CASE = Case({"self": (4,)})
SQUARED = Rule(operations=["aten.square"], forward=lambda op: op.self**2, cases=[CASE],
               jac_t={"self": lambda op, columns: columns * slope(op.self).unsqueeze(1)},
               residual=Diagonal(lambda op, gradient: 2 * gradient))


def beyond(value):
    """Nothing where the standard normal hardly comes."""
    return torch.where(value < -6, 0, 1)


WRONG = {
    "forward": {"forward": lambda op: beyond(op.self) * op.self**2},
    "jac_t of self": {"jac_t": {"self": lambda op, columns: columns * (beyond(op.self) * slope(op.self)).unsqueeze(1)}},
    "residual": {"residual": Diagonal(lambda op, gradient: 2 * beyond(op.self) * gradient)}}


def test_a_right_rule():
    check_rule(SQUARED)


@pytest.mark.parametrize("where", WRONG)
def test_what_is_wrong_farther_from_zero(where):
    with pytest.raises(AssertionError, match=rf"aten\.square .*, at values up to 24: {where}: off by"):
        check_rule(replace(SQUARED, **WRONG[where]))


def test_what_a_maker_draws_stays():
    """It knows what values the operation takes."""
    drawn = Case({"self": (4,)}, make={"self": lambda shape: torch.rand(shape, dtype=torch.float64)})
    check_farther(replace(SQUARED, **WRONG["forward"]), "aten.square", drawn, "")
