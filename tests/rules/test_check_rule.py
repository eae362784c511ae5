"""What `check_rule` says of rules that break the contract."""

from dataclasses import replace

import pytest

from hbpcompiler.rule import Case, Diagonal, Factor, LossRule, Rule, torch
from hbpcompiler.rule.registry import builtin
from hbpcompiler.testing import check_rule

SQUARE = Rule(
    ["aten.square"], forward=lambda op: op.self * op.self, jac_t={"self": lambda op, c: c * (2 * op.self).unsqueeze(1)},
    backward={"self": lambda op, g: g * 2 * op.self}, residual=Diagonal(lambda op, g: 2 * g),
    cases=[Case({"self": (4,)})])


def in_place(op):
    op.self.mul_(1)
    return op.self * op.self


def some(op, gradient, numbers):
    gradient.neg_().neg_()
    return {"self": torch.diag_embed(gradient.abs().mul(2).sqrt())[:, numbers]}, gradient.sign()[:, numbers]


@pytest.mark.parametrize(("fields", "words"), [
    ({"forward": in_place}, "forward changes op.self in place"),
    ({"jac_t": {"self": lambda op, c: c.mul_(2) * op.self.unsqueeze(1)}}, "jac_t of 'self' changes the columns"),
    ({"jac_t": {"self": lambda op, c: c * op.self.mul_(2).unsqueeze(1)}}, "jac_t of 'self' changes op.self"),
    ({"backward": {"self": lambda op, g: g.mul_(2) * op.self}}, "backward of 'self' changes the gradient"),
    ({"residual": Diagonal(lambda op, g: g.mul_(2))}, "diagonal of residual changes the gradient"),
    ({"residual": lambda op: Diagonal(lambda op, g: 2 * g.mul_(1))}, "diagonal of residual changes the gradient"),
    ({"residual": Factor(lambda op: 4, lambda op, g: some(op, g.clone(), slice(None)), some)},
     "some of residual changes the gradient"),
])
def test_a_function_that_changes_what_it_is_given(fields, words):
    check_rule(SQUARE)
    with pytest.raises(AssertionError, match=rf"aten.square .*{words}.*make a new tensor"):
        check_rule(replace(SQUARE, **fields))


def test_a_loss_that_changes_what_it_is_given():
    rule = builtin().find("aten.mse_loss", "")
    assert isinstance(rule, LossRule)

    def gradient(op):
        return rule.gradient(op) + 0 * op.target.add_(0)

    with pytest.raises(AssertionError, match=r"gradient changes op.target in place"):
        check_rule(replace(rule, gradient=gradient))
