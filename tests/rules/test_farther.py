"""Rules that are right where numbers are usually drawn, and wrong elsewhere."""

from dataclasses import replace

import pytest
import torch

from hbpcompiler.rule import ZERO, Case, Diagonal, Factor, Op, Rule, Structure
from hbpcompiler.rule.registry import builtin
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


def columns_and(signs):
    """Of a square: g = 0 has a column of zeros, of any sign."""
    def factor(op, gradient):
        return {"self": torch.diag_embed((2 * gradient.abs()).sqrt())}, signs(gradient)
    return Factor(lambda op: op.shape("self")[0], factor)


def taken_to_be_contiguous(op, columns):
    """Strides are given instead of being asked."""
    length = op.self.shape[1]
    return columns * slope(torch.as_strided(op.self, (len(op.self), 1, length), (length, length, 1)))


@pytest.mark.parametrize(("fields", "words"), [
    ({"residual": columns_and(lambda gradient: gradient / gradient.abs())},
     "of gradients that are 0 in part: residual"),
    ({"jac_t": {"self": taken_to_be_contiguous}}, "of tensors that are not contiguous: jac_t of self: off by"),
    ({"jac_t": {"self": lambda op, columns: columns.double() * slope(op.self).unsqueeze(1)}},
     "in float32: jac_t of self: dtype torch.float64, not torch.float32"),
    ({"residual": columns_and(lambda gradient: torch.where(gradient < 0, -1.0, 1.0).double())},
     "in float32: residual's columns at self: dtype torch.float64"),
    ({"jac_t": {"self": lambda op, columns: columns * ((op.self + 1e6) - (op.self - slope(op.self) + 1e6)).unsqueeze(
        1)}}, "in float32: jac_t of self: off by"),
])
def test_what_is_wrong_of_other_forms(fields, words):
    with pytest.raises(AssertionError, match=words):
        check_rule(replace(SQUARED, **fields))


@pytest.mark.parametrize("residual", [
    columns_and(lambda gradient: torch.where(gradient < 0, -1, 1).to(gradient)),
    Diagonal(lambda op, g: 2 * g.half().to(g) if g.dtype == torch.float32 else 2 * g)], ids=["signs", "coarser"])
def test_what_is_right_of_other_forms(residual):
    check_rule(replace(SQUARED, residual=residual))


# -- at zero, of one sample, column or feature -----------------------------------------------------------------------


@torch.library.custom_op("hbptests::cube", mutates_args=())
def cube(self: torch.Tensor) -> torch.Tensor:
    return self**3


@torch.library.custom_op("hbptests::positive_part", mutates_args=())
def positive_part(self: torch.Tensor) -> torch.Tensor:
    return self.relu()


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


cube.register_autograd(lambda ctx, g: g * 3 * ctx.saved_tensors[0] ** 2, setup_context=_keep)
positive_part.register_autograd(lambda ctx, g: g * (ctx.saved_tensors[0] > 0), setup_context=_keep)
SIX = Diagonal(lambda op, gradient: 6 * gradient * op.self)


def elementwise(operation, derivative, residual=SIX, **drawn):
    return Rule(operations=[operation], derivative=derivative, residual=residual, structure=Structure.ELEMENTWISE,
                cases=[Case({"self": (4,)}, **drawn)])


def by_columns(jac_t):
    return Rule(operations=["hbptests.cube"], jac_t={"self": jac_t}, residual=SIX, cases=[Case({"self": (4,)})])


def drawn_near(shape):
    return torch.rand(tuple(shape), dtype=torch.float64)


@pytest.mark.parametrize(("rule", "words"), [
    (elementwise("hbptests.positive_part", lambda op: (op.self >= 0).to(op.self), ZERO), "with zeros"),
    (elementwise("hbptests.cube", lambda op: torch.where(op.self == 0, 1.0, 3 * op.self**2)), "with zeros"),
    (elementwise("hbptests.cube", lambda op: torch.where(op.self == 0, torch.nan, 3 * op.self**2)), "with zeros"),
    (elementwise("hbptests.cube", lambda op: 3 * op.self**2, Diagonal(lambda op, g: 6 * g * op.self.clamp(-30, 30))),
     "at values up to 1500: residual"),
    (elementwise("hbptests.cube", lambda op: 3 * op.self.clamp(0, 30) ** 2, make={"self": drawn_near}),
     "derivative 1 is .* off torch's, at"),
    (elementwise("hbptests.cube", lambda op: 3 * op.self**2 * (1 + (len(op.self) == 1))), "of one sample: jac_t"),
    (by_columns(lambda op, c: (c * (3 * op.self**2).unsqueeze(1)).squeeze()), "jac_t of self: shape"),
    (by_columns(lambda op, c: (c * (3 * op.self**2).unsqueeze(1)) * (1 + (op.self.shape[1] == 1))), "of one feature"),
])
def test_what_is_wrong_at_single_places(rule, words):
    with pytest.raises(AssertionError, match=words):
        check_rule(rule)


@pytest.mark.parametrize("rule", [elementwise("hbptests.cube", lambda op: 3 * op.self**2),
                                  elementwise("hbptests.positive_part", lambda op: (op.self > 0).to(op.self), ZERO),
                                  by_columns(lambda op, c: c * (3 * op.self**2).unsqueeze(1))])
def test_what_is_right_there(rule):
    check_rule(rule)


def test_the_slope_of_no_error_is_torchs():
    """A smooth L1 loss with beta=0, called by its own name: at no error torch takes the slope on the left."""
    value = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    loss = torch.ops.aten.smooth_l1_loss(value, torch.zeros_like(value), 2, 0.0)
    (expected,) = torch.autograd.grad(loss, value)
    rule = builtin().find("aten.smooth_l1_loss", "")
    op = Op({"self": value.detach(), "target": torch.zeros(1, 3, dtype=torch.float64)},
            {"reduction": 2, "beta": 0.0}, {"self": (3,), "target": (3,)})
    assert torch.equal(rule.gradient(op), expected)
