"""At zero, where formulas divide zero by zero: torch's own derivatives there, and no NaN on the way back."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.agreement import agree
from tests.networks import Shifted


class Scaled(nn.Module):
    """f(x w), where rows of x may be zeros."""

    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64))
        self.function = function

    def forward(self, x):
        return self.function(x * self.weight)


def standardised(z):
    """As layer norm is written by hand."""
    return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-3)


FUNCTIONS = {
    "sinc": torch.sinc,
    "atan2": lambda z: torch.atan2(z, z.roll(1, 1)),
    "pow": lambda z: torch.pow(z, torch.tensor([2.0, 1.0, 0.0], dtype=z.dtype)),
    "std": standardised,
    "std with correction": lambda z: z * torch.std(z, 1, correction=0, keepdim=True),
    "std_mean": lambda z: z * torch.std_mean(z, 1, keepdim=True)[0],
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_derivatives_are_torchs(function):
    torch.manual_seed(0)
    model, loss = Scaled(function), nn.MSELoss()
    X, y = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    with_zeros = X.clone()
    with_zeros[1] = 0
    compiled = hbp.compile(model, loss, quantities=["grad", "diag_h", "diag_ggn"])
    for x in (X, with_zeros):
        result = compiled(x, y)
        (gradient,) = torch.autograd.grad(loss(model(x), y), model.weight)
        torch.testing.assert_close(result.grad["weight"], gradient)
        assert result.diag_h["weight"].isfinite().all()
        assert result.diag_ggn["weight"].isfinite().all()
    again = hbp.compile(model, loss, quantities=["grad", "diag_h"])(with_zeros, y)  # is proven there, too
    torch.testing.assert_close(again.grad["weight"], gradient)


def test_rows_of_equal_numbers_have_no_deviation():
    """Their mean is rounded: what is left of 0.1 must not be taken for a direction."""
    torch.manual_seed(0)
    model, loss = nn.Sequential(nn.Linear(2, 3, bias=False), Scaled(standardised)).double(), nn.MSELoss()
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[1].weight.fill_(1.0)
    X, y = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    X[2] = torch.tensor([1.0, 0.0])
    result = hbp.compile(model, loss, quantities=["grad"])(X, y)
    (gradient,) = torch.autograd.grad(loss(model(X), y), model[0].weight)
    torch.testing.assert_close(result.grad["0.weight"], gradient)


def test_the_curvature_of_sinc_at_zero():
    model = Scaled(torch.sinc)
    with torch.no_grad():
        model.weight.zero_()
    X, y = torch.ones(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    found = hbp.compile(model, nn.MSELoss(reduction="sum"), quantities=["diag_h"])(X, y).diag_h["weight"]
    expected = torch.full((3,), 2 * -(math.pi**2) / 3, dtype=torch.float64)  # of sinc^2: 2 sinc sinc''
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("function", [torch.special.i0e, torch.special.i1, torch.special.i0, torch.special.i1e])
def test_second_derivatives_of_bessel_functions(function):
    """I1 is odd; exp(-|x|) I0(x) has a kink, where torch's second derivative is that of no side."""
    model = Scaled(function)
    with torch.no_grad():
        model.weight.zero_()
    X, y = torch.ones(1, 3, dtype=torch.float64), torch.full((1, 3), 0.3, dtype=torch.float64)
    loss = nn.MSELoss(reduction="sum")
    found = hbp.compile(model, loss, quantities=["diag_h"])(X, y).diag_h["weight"]
    expected = torch.autograd.functional.hessian(lambda weight: loss(function(X * weight), y), model.weight.detach())
    torch.testing.assert_close(found, expected.diagonal())


def test_the_second_derivative_of_i1_near_zero():
    """3/8 x, which is left of 1 - 1/2 - 1/2 over x: two roundings over 1e-12 were 1e5."""
    model = Scaled(torch.special.i1).float()
    X = torch.tensor([[1e-2, 1e-5, 1e-12]])
    found = hbp.compile(model, lambda o, y: (o * y).sum(), quantities=["diag_h"])
    found(torch.randn(2, 3), torch.ones(2, 3))
    with torch.no_grad():
        model.weight.fill_(1.0)
    diagonal = found(X, torch.ones(1, 3)).diag_h["weight"]
    torch.testing.assert_close(diagonal / X[0] ** 3, torch.full((3,), 0.375), rtol=1e-4, atol=0)


class Normed(nn.Module):
    """Vectors of one length, or 0 where there is padding, whose row is zero and has a norm of infinite slope."""

    def __init__(self, bag):
        super().__init__()
        self.table = nn.EmbeddingBag(6, 4, mode="sum", padding_idx=0) if bag else nn.Embedding(6, 4, padding_idx=0)
        self.bag, self.head = bag, nn.Linear(4, 3)

    def forward(self, tokens):
        rows = self.table(tokens)
        there = (tokens != 0).any(1, keepdim=True) if self.bag else (tokens != 0).unsqueeze(-1)
        rows = torch.where(there, rows / rows.square().sum(-1, keepdim=True).sqrt(), 0.0)
        return self.head(rows if self.bag else rows.sum(1))


@pytest.mark.parametrize("bag", [False, True])
def test_padding_learns_nothing_whatever_comes_back(bag):
    """Met behind the first batch, where nothing proves it any more; torch drops what comes back to that row."""
    torch.manual_seed(0)
    model = Normed(bag).double()
    tokens, y = torch.randint(1, 6, (5, 3)), torch.randint(3, (5,))
    compiled = hbp.compile(model, quantities=["grad", "batch_grad", "variance", "diag_ggn", "diag_h"])
    compiled(tokens, y)
    tokens[2] = 0
    tokens[0, 1] = 0
    result = compiled(tokens, y)
    agree(result, model, nn.CrossEntropyLoss(), [tokens], y, ["grad", "batch_grad", "variance", "diag_ggn"])
    assert not result.diag_h["table.weight"][0].any()


@pytest.mark.parametrize("order", [2, 1.5, 3, 1, math.inf])
@pytest.mark.parametrize("rows", ["a row of zeros", "tiny numbers"])
def test_the_curvature_of_a_norm(order, rows):
    """At zero it is infinite; torch has NaN there, but for the orders of which it has none."""
    model, loss = Shifted(lambda z: z.norm(p=order, dim=1, keepdim=True)), nn.MSELoss()
    X, y = torch.tensor([[1.0, 2, 4], [0, 0, 0]]).double(), torch.tensor([[1], [0.25]]).double()
    X = X if rows == "a row of zeros" else X + torch.tensor([[0.0, 0, 0], [2, 1, 4]]).double() * 1e-35
    compiled = hbp.compile(model, loss, quantities=["grad", "diag_h"])
    compiled(torch.ones(2, 3).double(), y)
    found = compiled(X, y)
    (gradient,) = torch.autograd.grad(loss(model(X), y), model.bias, create_graph=True)
    right = torch.stack([torch.autograd.grad(entry, model.bias, retain_graph=True)[0][number]
                         for number, entry in enumerate(gradient)])
    torch.testing.assert_close(found.grad["bias"], gradient.detach(), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.diag_h["bias"], right, rtol=1e-10, atol=1e-14, equal_nan=True)
    assert found.diag_h["bias"].isnan().any() == (rows == "a row of zeros" and order in (1.5, 2))


def test_a_norm_at_zero_that_does_not_reach_the_loss():
    """In F.normalize the divisor is the least that there may be, 1e-12."""
    torch.manual_seed(0)
    model = nn.Sequential(Shifted(lambda z: torch.nn.functional.normalize(z, dim=1, eps=0.1)), nn.Linear(3, 1)).double()
    X, y = torch.tensor([[1.0, 2, 3], [0, 0, 0]]).double(), torch.tensor([[1], [0.25]]).double()
    found = hbp.compile(model, nn.MSELoss(), quantities=["diag_h"])(X, y).diag_h["0.bias"]
    step, bias = 1e-4, model[0].bias
    for number in range(3):
        def at(by):
            with torch.no_grad():
                bias[number] += by
                value = float(nn.functional.mse_loss(model(X), y))
                bias[number] -= by
            return value

        assert float(found[number]) == pytest.approx((at(step) - 2 * at(0) + at(-step)) / step**2, rel=1e-5)


ERRORS = {
    "huber_loss": lambda z: F.huber_loss(z, torch.zeros_like(z), reduction="none", delta=0.7),
    "smooth_l1_loss": lambda z: F.smooth_l1_loss(z, torch.zeros_like(z), reduction="none", beta=0.4),
}


@pytest.mark.parametrize("each", ERRORS.values(), ids=ERRORS)
def test_curvature_of_no_error(each):
    """Inside the model, and in a loss that weighs the errors of each element."""
    torch.manual_seed(0)
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64)
    X[1], X[2, 0] = 0, 0
    model, weighing = Scaled(each), Scaled(lambda z: z)
    agree(hbp.compile(model, nn.MSELoss(), ["diag_h"])(X, y), model, nn.MSELoss(), [X], y, ["diag_h"])

    def weighed(output, weights):
        return (weights * each(output)).sum(1).mean()

    result = hbp.compile(weighing, weighed, ["diag_h", "diag_ggn"])(X, y)
    agree(result, weighing, weighed, [X], y, ["diag_h", "diag_ggn"])
