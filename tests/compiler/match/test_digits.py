"""Derivatives of joined operations where numbers are large or small: as good as torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.chained import Chain, chained
from hbpcompiler.compiler.match.digits import keeps_digits
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.elementwise import derivatives, elementwise, evaluate, sympy, x
from hbpcompiler.rule import Op
from hbpcompiler.rule.simpler import without_overflow
from hbpcompiler.rule.symbolic import sigmoid, softplus
from tests.hand_made import graph, operation, rules_of, value
from tests.selection import cases

FUNCTIONS = {
    "sigmoid by hand": lambda h: 1 / (1 + torch.exp(-h)),
    "swish by hand": lambda h: h / (1 + torch.exp(-h)),
    "a power": lambda h: h * (1 + torch.exp(-h)) ** -1.5,
    "Gumbel": lambda h: torch.exp(-torch.exp(-h)),
    "tanh by exponentials": lambda h: (h.exp() - (-h).exp()) / (h.exp() + (-h).exp()),
    "a logarithm": lambda h: -torch.log(1 / (1 + torch.exp(-h)) + 1e-9),
    "QuickGELU": lambda h: h * torch.sigmoid(1.702 * h),
    "a square of SiLU": lambda h: F.silu(h) ** 2,
    "SiLU twice": lambda h: F.silu(F.silu(h)),
    "a Gaussian tail": lambda h: torch.log(torch.erfc(-0.7 * h) + 1e-9),
    "two of one": lambda h: torch.sinh(h) / torch.cosh(h),
    "GELU by hand": lambda h: 0.5 * h * (1 + torch.tanh(0.7978845608 * (h + 0.044715 * h**3))),
    "a difference": lambda h: F.softplus(h) - F.softplus(-h),
}
SIZES = (0.7, 3.0, 13.0, 30.0, 44.0, 60.0, 88.0, 120.0, 400.0, 800.0, 1e4, 1e6, 3e7)


class Joined(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.bias, self.function = nn.Parameter(torch.zeros(2 * len(SIZES))), function

    def forward(self, given):
        return self.function(given + self.bias)


def total(output, target):
    return (output * target).sum()


@pytest.mark.parametrize("name", cases(FUNCTIONS, ["swish by hand", "QuickGELU"], "the same lines"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_keep_the_digits_that_torchs_keep(name, dtype):
    model = Joined(FUNCTIONS[name]).to(dtype)
    compiled = hbp.compile(model, total, ["grad", "diag_h"])
    ones = torch.ones(1, 2 * len(SIZES), dtype=dtype)
    compiled(torch.linspace(-1, 1, 2 * len(SIZES), dtype=dtype).unsqueeze(0), ones)
    X = torch.tensor([*SIZES, *(-size for size in SIZES)], dtype=dtype).unsqueeze(0)
    found = compiled(X, ones)
    for came, right, own in zip((found.grad["bias"], found.diag_h["bias"]), by_torch(model.double(), X.double()),
                                by_torch(model.to(dtype), X), strict=True):
        known = own.isfinite() & right.isfinite()
        allowed = 16 * (own - right).abs() + 100 * torch.finfo(dtype).eps * right.abs().clamp(min=1)
        assert known.sum() >= len(SIZES)
        assert ((came - right).abs() <= allowed)[known].all(), (came, right)


SMALL = (0.1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-12)
TOWARDS_ZERO = {
    "log cosh": lambda h: torch.log(torch.cosh(h)),
    "Pade's tanh": lambda h: h * (27 + h * h) / (27 + 9 * h * h),
    "TanhExp": lambda h: h * torch.tanh(torch.exp(h)),
    "Mish by exponentials": lambda h: h * (h.exp() ** 2 + 2 * h.exp()) / (h.exp() ** 2 + 2 * h.exp() + 2),
    "tanh by exponentials": FUNCTIONS["tanh by exponentials"],
    "softsign by hand": lambda h: h / (1 + h.abs()),
}


@pytest.mark.parametrize("name", cases(TOWARDS_ZERO, ["log cosh", "Pade's tanh"], "the same lines"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_keep_their_digits_towards_zero(name, dtype):
    model = Joined(TOWARDS_ZERO[name]).to(dtype)
    compiled = hbp.compile(model, total, ["grad", "diag_h"])
    ones = torch.ones(1, 2 * len(SIZES), dtype=dtype)
    compiled(torch.linspace(-1, 1, 2 * len(SIZES), dtype=dtype).unsqueeze(0), ones)
    X = torch.ones_like(ones)
    X[0, : 2 * len(SMALL)] = torch.tensor([*SMALL, *(-size for size in SMALL)], dtype=dtype)
    found = compiled(X, ones)
    first, second = by_torch(model.double(), X.double())
    slack = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.grad["bias"].double(), first, rtol=slack, atol=0)
    torch.testing.assert_close(found.diag_h["bias"].double(), second, rtol=slack, atol=slack)


LARGE = (4e9, 1e11, 6e12, 1e14, 1e17, 8e18, 2e19)
AT_LARGE = {
    "a Gaussian": lambda h: torch.exp(-(h**2)),
    "GELU by erf": lambda h: 0.5 * h * (1 + torch.erf(h * 0.5**0.5)),
    "a bounded square": lambda h: 1 - 1 / (1 + h**2),
    "Geman and McClure": lambda h: h**2 / (h**2 + 4),
    "a root of a product": lambda h: torch.sqrt(h.abs() * torch.sqrt(1 + h.abs()) + 0.1),
}


@pytest.mark.parametrize("name", AT_LARGE)
def test_squares_that_overflow_leave_derivatives_finite(name):
    """Slopes that sympy multiplies out hold 0 times an infinite square, which is NaN, where torch has a number."""
    model = Joined(AT_LARGE[name])
    compiled = hbp.compile(model, total, ["grad", "diag_h"])
    ones = torch.ones(1, 2 * len(SIZES))
    compiled(torch.linspace(-1, 1, 2 * len(SIZES)).unsqueeze(0), ones)
    X = ones.clone()
    X[0, : 2 * len(LARGE)] = torch.tensor([*LARGE, *(-size for size in LARGE)])
    found = compiled(X, ones)
    own = by_torch(model, X)
    slack = 100 * torch.finfo(torch.float32).eps
    for came, torchs, right in zip((found.grad["bias"], found.diag_h["bias"]), own,
                                   by_torch(model.double(), X.double()), strict=True):
        known = torchs.isfinite()
        assert known[:len(LARGE) - 1].all()
        torch.testing.assert_close(came.double()[known], right[known], rtol=slack, atol=1e-30)


def test_squares_that_overflow_divide_nothing():
    """The slope of x / (1 + |x|) is 1 / (1 + |x|)^2, whose square is infinite from 1.8e19 on in float32."""
    model = Joined(F.softsign)
    compiled = hbp.compile(model, total, ["grad", "diag_h"])
    ones = torch.ones(1, 2 * len(SIZES))
    compiled(torch.linspace(-1, 1, 2 * len(SIZES)).unsqueeze(0), ones)
    found = compiled(ones * 1e21, ones)
    assert found.grad["bias"].abs().max() < 1e-12
    assert found.diag_h["bias"].abs().max() < 1e-12


def test_diagonals_meet_a_slope_whose_square_is_infinite_as_gradients_do():
    """torch multiplies one factor after the other: 0 times 1e21 twice is 0."""
    model = nn.Sequential(Exponential(), nn.Hardtanh())
    compiled = hbp.compile(model, nn.MSELoss(), ["grad", "diag_ggn", "diag_h"])
    compiled(torch.randn(2, 1), torch.zeros(2, 1))
    found = compiled(torch.tensor([[0.3], [50.0]]), torch.zeros(2, 1))
    for quantity in (found.grad, found.diag_ggn, found.diag_h):
        torch.testing.assert_close(quantity["0.bias"], torch.zeros(1))


class Exponential(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, given):
        return torch.exp(given + self.bias)


def by_torch(model, X):
    (first,) = torch.autograd.grad(model(X).sum(), model.bias, create_graph=True)
    if not first.requires_grad:
        return first, torch.zeros_like(first)
    (second,) = torch.autograd.grad(first.sum(), model.bias)
    return first.detach(), second


def found_by(expression):
    def find(given, made):
        return tuple(evaluate(written, {x: given}) for written in expression)

    return find


def test_what_sympy_multiplies_out_is_told_from_what_keeps_its_digits():
    quick = FUNCTIONS["QuickGELU"]
    number = sympy.Rational(851, 500)
    share = sigmoid(number * x)
    multiplied = number * x + 1 - number * x * share
    second = number * share * (1 - share) * (2 + number * x * (1 - 2 * share))
    expression, slope = x * sigmoid(number * x), share + number * x * share * (1 - share)
    assert keeps_digits(expression, quick, found_by((slope, second)))
    assert not keeps_digits(expression, quick, found_by((share * multiplied, second)))
    assert not keeps_digits(expression, quick, found_by((slope, second * (1 + 1e-5))))
    wrong = 2 * x * sigmoid(number * x)
    assert not keeps_digits(wrong, quick, found_by(derivatives(wrong)))


def test_double_precision_of_torch_is_no_measure_where_exponentials_overflow():
    def run(given):
        return torch.log1p(torch.exp(given))

    expression = softplus(x)
    share = sigmoid(x)
    assert keeps_digits(expression, run, found_by((share, share * (1 - share))))
    assert not keeps_digits(expression, run, found_by((share, share * (1 - share) + 1e-7 * sympy.exp(-x / 500))))


def test_what_is_divided_by_one_and_an_exponential_is_a_sigmoid():
    assert without_overflow(x / (1 + sympy.exp(-x))) == x * sigmoid(x)
    assert without_overflow((1 + sympy.exp(2 * x)) ** -3) == sigmoid(-2 * x) ** 3
    assert derivatives(without_overflow(1 / (1 + sympy.exp(-x))))[0].has(sympy.exp) is False


def test_the_chain_rule_in_two_operands_and_in_one():
    """a / (1 + |a|), and its square: by each operation's own derivatives."""
    A, SIZE, MORE, SOFT, OUT = (value(name, N, 2) for name in ("a", "size", "more", "soft", "out"))
    made = [
        operation("abs", SIZE, self=A), operation("add", MORE, {"other": 1, "alpha": 1}, overload="Scalar", self=SIZE),
        operation("div", SOFT, overload="Tensor", self=A, other=MORE),
        operation("pow", OUT, {"exponent": 2}, overload="Tensor_Scalar", self=SOFT),
    ]
    names = {"a", "size", "more", "soft", "out"}
    chain = Chain(made, A, rules_of(graph(made)), names)
    given = torch.tensor([[-3.0, -0.5, 0.25, 2.0]], dtype=torch.float64, requires_grad=True)
    wanted = F.softsign(given) ** 2
    (first,) = torch.autograd.grad(wanted.sum(), given, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), given)
    op = Op({"self": given.detach(), "output": wanted.detach()}, {}, {"self": (4,), "output": (4,)})
    rule = chained(elementwise("mylib.joined", (x / (1 + abs(x))) ** 2, forward=chain.result), chain)
    torch.testing.assert_close(rule.forward(op), wanted.detach())
    torch.testing.assert_close(rule.derivative(op), first.detach())
    torch.testing.assert_close(rule.residual_of(op).diagonal(op, torch.ones_like(given)), second)


@pytest.mark.parametrize("name", ["clamped", "by hardtanh", "by a threshold"])
def test_limits_that_single_precision_has_no_numbers_for(name):
    """As of a model in double precision that is cut off at the largest number."""
    largest = torch.finfo(torch.float64).max
    function = {"clamped": lambda h: h.clamp(-largest, largest).square(), "by a threshold":
                lambda h: F.threshold(h, -1e300, 1e300).square(),
                "by hardtanh": lambda h: F.hardtanh(h, -1e300, 1e300).sinh()}[name]
    torch.manual_seed(0)
    model, X = nn.Linear(3, 2).double(), torch.randn(4, 3).double()
    compiled = hbp.compile(model, lambda output, y: function(output).sum(), ["grad", "diag_h"])
    result = compiled(X, torch.zeros(4).double())
    curved = function(model(X)).sum()
    (slope,) = torch.autograd.grad(curved, model.bias, create_graph=True)
    bend = torch.stack([torch.autograd.grad(part, model.bias, retain_graph=True)[0] for part in slope]).diagonal()
    torch.testing.assert_close(result.grad["bias"], slope.detach())
    torch.testing.assert_close(result.diag_h["bias"], bend)
