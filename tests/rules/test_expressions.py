"""A rule's expression is the operation: what was wrong where operations were joined by one that is not, end to end, and
that `check_rule` tells."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.elementwise import Piecewise, attribute, derivatives, elementwise, settings, sympy, x
from hbpcompiler.reference import reference
from hbpcompiler.rule import Case, operand_symbol
from hbpcompiler.rule.registry import builtin
from hbpcompiler.rule.symbolic import TORCH, evaluate, exactly
from hbpcompiler.testing import check_rule


class Between(nn.Module):
    """A function of a hidden layer, all in one module."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(3, 4), nn.Linear(4, 2), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


class Hardsigmoid(torch.autograd.Function):
    """F.hardsigmoid, whose derivative in torch has a derivative again."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return F.hardsigmoid(z)

    @staticmethod
    def backward(ctx, gradient):
        (z,) = ctx.saved_tensors
        return gradient * torch.where((z > -3) & (z < 3), torch.tensor(1 / 6, dtype=torch.float32).double(), 0.0)


ONCE_WRONG = {
    "clamp, exp": lambda h: h.clamp(-0.3, 0.3).exp(),
    "twice, clamp": lambda h: (h * 2).clamp(-0.3, 0.3),
    "clamp, square root": lambda h: (h.clamp(min=0) + 1).sqrt(),
    "abs, clamp, log": lambda h: (h.abs().clamp(max=0.2) + 0.1).log(),
    "hardsigmoid, log1p": lambda h: F.hardsigmoid(h * 5).log1p(),
    "rounded quotient": lambda h: torch.div(h, 0.3, rounding_mode="floor") + h,
    "round": lambda h: (h * 3).round() * h,
    "ceil": lambda h: (h * 3).ceil() * h,
    "relu of relu6": lambda h: (F.relu6(h + 0.5).relu() - 0.3).relu(),
    "hardswish of a multiple": lambda h: F.hardswish(h * 3),
    "log of relu": lambda h: (h.relu() + 1e-3).log().relu(),
    "times the batch's size": lambda h: (h * h.shape[0] / 8).exp(),
    "abs of log": lambda h: (h.abs() + 0.1).log().abs(),
}


@pytest.mark.parametrize("name", ONCE_WRONG)
def test_what_was_wrong_once(name):
    function = ONCE_WRONG[name]
    torch.manual_seed(0)
    model = Between(function).double()
    x, y, loss = torch.randn(8, 3).double(), torch.arange(8) % 2, nn.CrossEntropyLoss()
    result = hbp.compile(model, loss, ["grad", "diag_h"])(x, y)
    expected = {"grad": reference(model, loss, [x], y, "grad")}
    if name == "hardsigmoid, log1p":
        model.function = lambda h: Hardsigmoid.apply(h * 5).log1p()
    expected["diag_h"] = reference(model, loss, [x], y, "diag_h")
    for quantity, of in expected.items():
        for parameter, value in of.items():
            torch.testing.assert_close(result[quantity][parameter], value, rtol=1e-12, atol=1e-13)


# -- what check_rule tells --------------------------------------------------------------------------------------------


class sloping(sympy.Function):
    """floor, with a derivative that it does not have."""

    def fdiff(self, argindex=1):
        return sympy.Integer(1)


class uncurved(sympy.Function):
    """x**2 and its derivative, which is taken for a constant."""

    def fdiff(self, argindex=1):
        return held(self.args[0])


class held(sympy.Function):
    """2 x, and flat."""

    def fdiff(self, argindex=1):
        return sympy.Integer(0)


@pytest.fixture(autouse=True)
def functions(monkeypatch):
    monkeypatch.setitem(TORCH, sloping, torch.floor)
    monkeypatch.setitem(TORCH, uncurved, torch.square)
    monkeypatch.setitem(TORCH, held, lambda value: 2 * value)


def positive(shape):
    return 0.2 + torch.rand(tuple(shape), dtype=torch.float64)


FLAT = {"first": sympy.Integer(0), "second": sympy.Integer(0)}
WRONG = {
    "only the derivatives are right": ("value", elementwise(
        "aten.clamp_min", x, first=Piecewise((1, x >= attribute("min")), (0, True)), second=sympy.Integer(0),
        forward=lambda op: op.self.clamp(min=op.min), cases=settings({"min": 0.1}))),
    "a constant of eight digits": ("value", elementwise(
        "aten.log2", 1.44269504 * sympy.log(x), first=1 / (sympy.log(2) * x), second=-1 / (sympy.log(2) * x**2),
        forward=lambda op: op.self.log2(), cases=[Case({"self": (4, 3)}, make={"self": positive})])),
    "the value of a step, another slope": ("derivative 1", elementwise(
        "aten.floor", sloping(x), forward=lambda op: op.self.floor(), **FLAT)),
    "no curvature": ("derivative 2", elementwise(
        "aten.square", uncurved(x), first=2 * x, second=sympy.Integer(2), forward=lambda op: op.self.square())),
    "the wrong side of a kink": ("derivative 1", elementwise(
        "aten.relu", Piecewise((x, x >= 0), (0, True)), first=Piecewise((1, x > 0), (0, True)),
        second=sympy.Integer(0), forward=lambda op: F.relu(op.self))),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_expression_is_caught(name):
    what, rule = WRONG[name]
    with pytest.raises(AssertionError, match=f"expression's {what} is off"):
        check_rule(rule)


def test_a_wrong_expression_of_two_operands_is_caught():
    known = builtin().find("aten.mul", "Tensor")
    cases = [Case({"self": (3,), "other": (3,)}, batched=("self", "other"))]
    a, b = operand_symbol("self"), operand_symbol("other")
    for what, written in (("value", a + b), ("value", a * b * exactly(1.00000001))):
        with pytest.raises(AssertionError, match=f"expression's {what} is off"):
            check_rule(replace(known, cases=cases, expression=lambda op, written=written: written))


def test_steps_are_flat_and_the_size_of_a_logarithm_is_real():
    assert derivatives(sympy.floor(2 * x) * x) == (sympy.floor(2 * x), 0)
    assert derivatives(sympy.frac(x) ** 2)[1] == 2
    assert derivatives(sympy.Abs(sympy.log(x)))[0] == sympy.sign(sympy.log(x)) / x


def test_gelu_of_gelu_takes_no_time():
    def gelu(value):
        return value * (1 + sympy.tanh(0.7978845608028654 * (value + 0.044715 * value**3))) / 2

    assert derivatives(gelu(gelu(sympy.exp(x) - 1)))[0].has(sympy.tanh)


def test_decimals_in_an_exponent_take_no_time():
    inner = sympy.sqrt(exactly(0.49) * x + exactly(0.71))
    first, _ = derivatives(sympy.erf(exactly(2.88) * (exactly(4.02) * inner - exactly(3.41)) + exactly(6.52)))
    assert first.has(sympy.exp)


@pytest.mark.parametrize("number", [0.1, 1 / 3, 0.1 + 0.2, 2.7, 1e-300, 0.7978845608028654, 3, -1 / 7])
def test_a_number_is_itself_as_a_fraction(number):
    assert float(exactly(number)) == number
    assert exactly(number).is_Rational
    assert exactly(0.1) * 10 == 1 == exactly(1 / 3) * 3


def test_integers_that_no_tensor_takes():
    """Fused constants are fractions, whose parts may have more digits than 64 bits hold."""
    x = sympy.Symbol("x")
    for number in (2**53 - 1, 2**53 + 1, 10**40):
        found = evaluate(number * x, {x: torch.ones(1, dtype=torch.float64)})
        assert found.item() == float(number)
