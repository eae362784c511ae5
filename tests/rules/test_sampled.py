"""What check_rule says of a loss's draws: of one, of one sample, and of two samples."""

from dataclasses import replace

import pytest
import torch

from hbpcompiler.rule import Case, Diagonal, LossRule
from hbpcompiler.testing import check_rule


@torch.library.custom_op("hbptests::squared_errors", mutates_args=())
def squares(self: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (self - target).square().sum(1).mean()


def _back(ctx, gradient):
    value, target = ctx.saved_tensors
    slope = gradient * 2 * (value - target) / len(value)
    return slope, -slope


squares.register_autograd(_back, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def noise(op, draws):
    return torch.randn_like(op.self.unsqueeze(1).expand(-1, draws, -1)) * (2 / draws) ** 0.5


def each(op):
    return (op.self - op.target).square().sum(1)


def standardised(op, draws):
    drawn = noise(op, draws)
    return drawn / drawn.std(1, keepdim=True, correction=0) * (2 / draws) ** 0.5


RIGHT = LossRule(
    operations=["hbptests.squared_errors"], forward=lambda op: each(op).mean(), each=each,
    gradient=lambda op: 2 * (op.self - op.target), residual=Diagonal(lambda op: torch.full_like(op.self, 2.0)),
    reduction=lambda op: "mean", sample=noise, cases=[Case({"self": (3,), "target": (3,)})])
WRONG = [
    ({"sample": standardised}, "one draw .* is not finite"),
    ({"sample": lambda op, draws: noise(op, draws) * (1.0 if draws > 1 else 2.0)}, "moment of one draw misses"),
    ({"sample": lambda op, draws: noise(op, draws)[:1].expand(len(op.self), -1, -1)}, "two samples draw the same"),
    ({"sample": lambda op, draws: noise(op, draws) * (1.0 if len(op.self) > 1 else 2.0)}, "of one sample: samples'"),
    ({"each": lambda op: each(op) * (1.0 if len(op.self) > 1 else 2.0)}, "of one sample: l_n: off by"),
    ({"each": lambda op: each(op).squeeze()}, r"of one sample: l_n has shape \[\]"),
]


def test_a_right_one():
    check_rule(RIGHT)


@pytest.mark.parametrize(("fields", "words"), WRONG)
def test_what_is_wrong_is_said(fields, words):
    with pytest.raises(AssertionError, match=words):
        check_rule(replace(RIGHT, **fields))
