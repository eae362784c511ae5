"""What the elementwise engine writes: saved output instead of input, shared parts, dtypes kept, torch's kinks."""

import re

import pytest
import torch
from sympy.parsing.sympy_parser import convert_xor, implicit_multiplication, parse_expr, standard_transformations

from hbpcompiler.elementwise import attribute, derivatives, elementwise, sympy, x, y
from hbpcompiler.errors import RuleError
from hbpcompiler.rule import ZERO, Diagonal, Op
from hbpcompiler.rule.registry import builtin
from hbpcompiler.testing import check_rule


def reads(operation, attributes=None):
    """The tensors that the derivative reads."""
    rule = builtin().find(operation, "")
    seen = set()

    def tensors(name):
        seen.add(name)
        return torch.linspace(-2, 2, 6).reshape(2, 3)

    rule.derivative(Op(tensors, attributes or {}, {"self": (3,), "output": (3,)}))
    return seen


@pytest.mark.parametrize(
    ("operation", "attributes"),
    [
        ("aten.relu", {}), ("aten.sigmoid", {}), ("aten.tanh", {}), ("aten.log_sigmoid", {}), ("aten.selu", {}),
        ("aten.elu", {"alpha": 1, "scale": 1, "input_scale": 1}), ("aten.celu", {"alpha": 2.0}),
        ("aten.leaky_relu", {"negative_slope": 0.01}), ("aten.hardtanh", {"min_val": -1, "max_val": 1}),
        ("aten.softplus", {"beta": 1, "threshold": 20}), ("aten.exp", {}), ("aten.sqrt", {}),
    ],
)  # fmt: skip
def test_derivative_needs_the_output_only(operation, attributes):
    assert reads(operation, attributes) == {"output"}


def test_derivative_needs_the_input_where_the_output_does_not_tell():
    assert reads("aten.leaky_relu", {"negative_slope": -0.1}) == {"self"}
    assert reads("aten.softplus", {"beta": 1, "threshold": 3}) == {"self"}
    assert reads("aten.silu") == {"self"}


KINKS = {
    "relu": ([0.0], {}),
    "leaky_relu": ([0.0], {"negative_slope": 0.1}),
    "relu6": ([0.0, 6.0], {}),
    "hardtanh": ([-1.0, 1.0], {"min_val": -1, "max_val": 1}),
    "elu": ([0.0], {"alpha": 2, "scale": 1.5, "input_scale": 1}),
    "hardswish": ([-3.0, 3.0], {}),
    "hardsigmoid": ([-3.0, 3.0], {}),
    "hardshrink": ([-0.5, 0.0, 0.5], {"lambd": 0.5}),
    "softshrink": ([-0.5, 0.0, 0.5], {"lambd": 0.5}),
    "threshold": ([1.0], {"threshold": 1.0, "value": 3.0}),
    "abs": ([0.0], {}),
    "clamp": ([-1.0, 1.0], {"min": -1.0, "max": 1.0}),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KINKS)
def test_kinks_are_torchs(name, dtype):
    points, attributes = KINKS[name]
    value = torch.tensor([points], dtype=dtype, requires_grad=True)
    output = getattr(torch.ops.aten, name)(value, *attributes.values())
    (expected,) = torch.autograd.grad(output.sum(), value)
    op = Op({"self": value.detach(), "output": output.detach()}, attributes, {"self": (len(points),)})
    found = builtin().find(f"aten.{name}", "").derivative(op)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


def test_sympy_derivatives_use_the_output():
    first, second = derivatives(sympy.tanh(x))
    assert first == 1 - y**2
    assert sympy.expand(second + 2 * y * (1 - y**2)) == 0
    assert derivatives(sympy.exp(x)) == (y, y)


def test_a_new_activation_is_a_few_lines():
    squareplus = elementwise("my.squareplus", (x + sympy.sqrt(x**2 + attribute("b"))) / 2)
    op = Op({"self": torch.randn(2, 3), "output": torch.randn(2, 3)}, {"b": 4.0}, {"self": (3,), "output": (3,)})
    assert isinstance(squareplus.residual_of(op), Diagonal)
    z = op.self.double().requires_grad_()
    (expected,) = torch.autograd.grad(((z + (z**2 + 4).sqrt()) / 2).sum(), z)
    assert torch.allclose(squareplus.derivative(op), expected.float(), atol=1e-6)


def test_a_linear_function_has_no_residual_and_a_wrong_one_is_caught():
    double = elementwise("aten.neg", 2 * x, forward=lambda op: 2 * op.self)
    assert double.residual_of(Op({}, {}, {"self": (3,)})) is ZERO
    with pytest.raises(AssertionError, match="forward"):
        check_rule(double)
    wrong = elementwise("aten.tanh", sympy.tanh(x), first=1 - y**2, second=-y, forward=lambda op: torch.tanh(op.self))
    with pytest.raises(AssertionError, match="residual"):
        check_rule(wrong)


def test_a_function_that_sympy_cannot_derive_is_no_constant():
    unknown = sympy.Function("unknown", real=True)
    with pytest.raises(RuleError, match="sympy has no derivative of unknown"):
        derivatives(unknown(x) + x)
    assert derivatives(sympy.floor(x) * x)[0] == sympy.floor(x)


@pytest.mark.parametrize("name", ["clamp_min", "clamp_max"])
def test_at_a_limit_that_is_a_tensor_the_slope_is_torchs(name):
    value = torch.tensor([[-1.0, 0.0, 1.0]], requires_grad=True)
    limit = torch.zeros(1, 3)
    (expected,) = torch.autograd.grad(getattr(torch, name)(value, limit).sum(), value)
    op = Op({"self": value.detach(), name.removeprefix("clamp_"): limit}, {}, {"self": (3,)})
    found = builtin().find(f"aten.{name}", "Tensor").jac_t["self"](op, torch.ones(1, 1, 3))
    assert torch.equal(found.squeeze(1), expected)


SAID = re.compile(r"d S,  d = y'\(x\) = (?P<first>.+);  residual: R = g dd,  dd = y''\(x\) = (?P<second>.+)")
SPELT = (*standard_transformations, convert_xor, implicit_multiplication)


@pytest.mark.parametrize("operation", ["sigmoid", "tanh", "silu", "mish", "exp", "rsqrt", "reciprocal", "atanh"])
def test_derivatives_of_headings_are_those_of_the_operation(operation):
    """What a heading says in words, read by sympy: its later parts are what letters stand for."""
    found = SAID.fullmatch(builtin().find(f"aten.{operation}", "").formula)
    at = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    output = getattr(torch.ops.aten, operation)(at)
    (slope,) = torch.autograd.grad(output, at, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, at)
    known = {"x": at.item(), "y": output.item(), "d": slope.item(), "sigmoid": lambda u: 1 / (1 + sympy.exp(-u)),
             "softplus": lambda u: sympy.log(1 + sympy.exp(u))}
    first, *letters = found["first"].split(",  ")
    for letter, _, value in (part.partition(" = ") for part in reversed(letters)):
        known[letter] = parse_expr(value, known, SPELT)
    assert float(parse_expr(first, known, SPELT)) == pytest.approx(slope.item(), rel=1e-12)
    assert float(parse_expr(found["second"], known, SPELT)) == pytest.approx(curvature.item(), rel=1e-12)
