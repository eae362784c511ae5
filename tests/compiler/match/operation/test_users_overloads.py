"""Overloads of a user's operation are functions of their own, and its texts may read as its arguments' names."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hbpcompiler as hbp

LIBRARY = torch.library.Library("hbptests_several", "DEF")
CALLS = {
    "by_type.real": ("Tensor x, float a", lambda op, x: op(x, 2.0)),
    "by_type.whole": ("Tensor x, int a", lambda op, x: op(x, 2)),
    "by_name.left": ("Tensor x, float a=1.0", lambda op, x: op(x)),
    "by_name.right": ("Tensor x, float b=1.0", lambda op, x: op(x)),
    "by_place.key": ("Tensor x, *, float a=3.0", lambda op, x: op(x, a=2.0)),
    "by_place.any": ("Tensor x, float a=1.0", lambda op, x: op(x, 2.0)),
}
"""Of each pair torch takes the first for what both can take."""


def define(name, arguments, second):
    """x times its only number, or in the second of a pair minus that."""
    usual = float(arguments.partition("=")[2] or 0)

    def factor(a=usual):
        return -a if second else a

    def run(x, *given, **named):
        return x * factor(*given, *named.values())

    def kept(ctx, inputs, output, keyword_only_inputs=None):
        ctx.factor = factor(*inputs[1:], *(keyword_only_inputs or {}).values())

    def back(ctx, gradient):
        return gradient * ctx.factor, *[None] * ("*" not in arguments)

    LIBRARY.define(f"{name}({arguments}) -> Tensor")
    LIBRARY.impl(name, run, "CPU")
    full = f"hbptests_several::{name}"
    torch.library.register_fake(full, lambda x, *given, **named: torch.empty_like(x), lib=LIBRARY)
    torch.library.register_autograd(full, back, setup_context=kept, lib=LIBRARY)


for place, (called, (schema, _)) in enumerate(CALLS.items()):
    define(called, schema, place % 2)


def overload(name):
    packet, _, one = name.partition(".")
    return getattr(getattr(torch.ops.hbptests_several, packet), one)


class Uses(nn.Module):
    """An operation on the inputs and, where derivatives pass it, on a layer's result."""

    def __init__(self, operation):
        super().__init__()
        self.a, self.b, self.operation = nn.Linear(3, 4), nn.Linear(4, 2), operation

    def forward(self, x):
        return self.b(self.operation(self.a(self.operation(x))).tanh())


def check(model):
    compiled = hbp.compile(model, quantities=["grad"], verify=False)
    for count in (4, 7, 1):
        x, y = torch.randn(count, 3).double(), torch.randint(2, (count,))
        slopes = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        for found, expected in zip(compiled(x, y).grad.values(), slopes, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    return compiled


@pytest.mark.parametrize("name", CALLS)
def test_the_overload_that_the_model_calls(name):
    torch.manual_seed(0)
    compiled = check(Uses(lambda x: CALLS[name][1](overload(name), x)).double())
    assert f"torch.ops.hbptests_several.{name}(" in compiled.code


@torch.library.custom_op("hbptests_several::said", mutates_args=())
def said(x: Tensor, mode: str = "x") -> Tensor:
    return x * (2 if mode == "x" else 3)


def keep_factor(ctx, inputs, output):
    ctx.factor = 2 if inputs[1] == "x" else 3


said.register_fake(lambda x, mode="x": torch.empty_like(x))
said.register_autograd(lambda ctx, gradient: (gradient * ctx.factor, None), setup_context=keep_factor)


@pytest.mark.parametrize("mode", ["x", "y"])
def test_a_text_that_reads_as_an_argument_is_a_text(mode):
    torch.manual_seed(0)
    check(Uses(lambda x: said(x, mode)).double())
