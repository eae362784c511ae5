"""Arguments of operations that depend on the batch's size: the right values, or a refusal by name."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.samples.batch_numbers import refuse_numbers
from hbpcompiler.compiler.trace.fx_graph.numbers import arithmetic, plain, unknown
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.rule.registry import builtin
from tests.agreement import agree, close
from tests.hand_made import operation, value

TAKEN = {
    "x * N": lambda x, n: x * n, "x / N": lambda x, n: x / n, "N / x": lambda x, n: n / (x + 3),
    "N - 1": lambda x, n: x * (n - 1), "x * (1 / N)": lambda x, n: x * (1 / n), "N ** .5": lambda x, n: x / n**0.5,
    "x * (N // 2)": lambda x, n: x * (n // 2), "x * (N % 3)": lambda x, n: x * (n % 3), "x ** N": lambda x, n: x**n,
    "clamp": lambda x, n: (3 * x).clamp(-1 / n, n), "softplus": lambda x, n: F.softplus(x, n),
    "alpha": lambda x, n: torch.add(x, x.sin(), alpha=n), "remainder": lambda x, n: torch.remainder(9 * x, n),
    "where": lambda x, n: torch.where(x > 0, x, n), "full": lambda x, n: x * torch.full_like(x, 1 / n),
    "arange": lambda x, n: x * torch.arange(n).unsqueeze(1), "hardshrink": lambda x, n: F.hardshrink(x, 1 / n),
}
REFUSED = {
    "N ** x": lambda x, n: n**x, "leaky_relu": lambda x, n: F.leaky_relu(x, 1 / n), "elu": lambda x, n: F.elu(x, n),
    "hardtanh": lambda x, n: F.hardtanh(x, -n, n),
}


class Numbers(nn.Module):
    """Each function of features of its own and of the batch's size, side by side."""

    def __init__(self, functions):
        super().__init__()
        self.functions, self.first = functions, nn.Linear(3, len(functions))
        self.last = nn.Linear(len(functions), 2)

    def forward(self, x):
        features = torch.tanh(self.first(x)).split(1, 1)
        return self.last(torch.cat([function(part, x.shape[0])
                                    for function, part in zip(self.functions, features, strict=True)], 1))


def test_numbers_of_the_batch_size():
    torch.manual_seed(0)
    model = Numbers(list(TAKEN.values())).double()
    compiled = hbp.compile(model, quantities=["grad", "variance", "diag_ggn", "diag_h"])
    for samples in (4, 3):
        X, y = torch.randn(samples, 3, dtype=torch.float64), torch.arange(samples) % 2
        result = compiled(X, y)
        agree(result, model, nn.CrossEntropyLoss(), [X], y)


def test_what_rules_cannot_take_is_refused_by_name():
    model = Numbers(list(REFUSED.values()))
    with pytest.raises(hbp.UnsupportedOpError) as caught:
        hbp.compile(model, quantities=["grad"])(torch.randn(4, 3), torch.arange(4) % 2)
    for name, argument in (("pow", "self=N"), ("leaky_relu", "negative_slope=1/N"), ("elu", "alpha=N"),
                           ("hardtanh", "min_val=-N, max_val=N")):
        assert any(f"aten.{name} " in line and f"argument {argument} depends on the number of samples" in line
                   for line in str(caught.value).splitlines()), name


def test_only_numbers_that_depend_on_it_are_tried_out():
    rule, given = builtin().find("aten.leaky_relu", ""), value("x", N, 3)
    for slope, refused in ((0.2, False), (1 / N, True)):
        use = operation("leaky_relu", value("y", N, 3), {"negative_slope": slope}, self=given)
        assert (refuse_numbers(use, rule, {"x", "y"}) is not None) == refused


def test_code_that_fixes_the_batch_size():
    """torch.export would keep the traced batch's 1 / 7."""
    model = Numbers([lambda x, n: F.layer_norm(x, (1,), eps=1 / n)])
    with pytest.raises(hbp.CompileError, match=r"fixes the batch's size(.|\n)*\.py:\d+"):
        hbp.compile(model, quantities=["grad"])(torch.randn(4, 3), torch.arange(4) % 2)


def test_arithmetic():
    from torch.utils._sympy.functions import (
        CeilToInt,
        FloatPow,
        FloorDiv,
        FloorToInt,
        IntTrueDiv,
        Max,
        Min,
        Mod,
        RoundDecimal,
    )

    assert plain(IntTrueDiv(3 * N, 3)) == N
    assert plain(FloatPow(N, 0.5)) ** 2 == N
    for expression, number in ((N - 1, 4), (N**2 + 2 * N, 35), (FloorDiv(N, 2), 2), (Mod(N, 3) + 1, 3), (1 / N, 0.2),
                              (N / (N + 5), 0.5), (plain(FloorToInt(IntTrueDiv(N, 2))), 2),
                              (plain(CeilToInt(IntTrueDiv(N, 2))), 3), (plain(Min(N, 3)), 3), (plain(Max(N, 7)), 7),
                              (plain(Min(N + 1, 7)), 6)):
        assert arithmetic(expression, 5) == number
    assert unknown(N / 2) == unknown(1 / (N - 7)) == ""
    assert unknown(plain(RoundDecimal(IntTrueDiv(1, N), 3))) == "RoundDecimal"


LOSS_NUMBERS = {
    "floor": lambda n: math.floor(n), "floor of a half": lambda n: math.floor(n / 2) + 1,
    "ceil": lambda n: math.ceil(n / 2), "min": lambda n: min(n, 5), "max": lambda n: max(n - 1, 3),
}


@pytest.mark.parametrize("name", LOSS_NUMBERS)
def test_what_the_loss_is_divided_by(name):
    def loss(output, target):
        return F.cross_entropy(output, target, reduction="sum") / LOSS_NUMBERS[name](len(target))

    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    compiled = hbp.compile(model, loss, quantities=["grad"])
    for samples in (4, 3, 9):
        X, y = torch.randn(samples, 3, dtype=torch.float64), torch.arange(samples) % 2
        (expected,) = torch.autograd.grad(loss(model(X), y), model.weight)
        close(compiled(X, y).grad["weight"], expected, f"{name} of {samples} samples")


def test_what_is_no_number_of_a_batch():
    model, X, y = nn.Linear(3, 2), torch.randn(4, 3), torch.arange(4) % 2

    def rounded(output, target):
        return F.cross_entropy(output, target, reduction="sum") * round(1 / len(target), 3)

    with pytest.raises(hbp.CompileError, match=r"the loss, .*\.py:\d+: .* round\(\) to places"):
        hbp.compile(model, rounded, quantities=["grad"])(X, y)
    compiled = hbp.compile(model, lambda o, t: F.cross_entropy(o, t, reduction="sum") / (len(t) - 1),
                           quantities=["grad"])
    compiled(X, y)
    with pytest.raises(hbp.InputError, match=r"that is 0 for 1 samples.*max\(x.shape\[0\] - 1, 1\)"):
        compiled(X[:1], y[:1])


@pytest.mark.parametrize("over_batch", [nn.functional.layer_norm, nn.functional.rms_norm])
def test_lists_with_the_batchs_size_in_them(over_batch):
    """Of the target they are written as arithmetic in the batch's size; what carries derivatives is refused by name."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()

    def loss(output, target):
        return (output[:, 0] - over_batch(target, target.shape)).square().mean()

    compiled = hbp.compile(model, loss, ["grad"])
    for samples in (6, 2, 9):
        x, y = torch.randn(samples, 3, dtype=torch.float64), torch.randn(samples, dtype=torch.float64)
        expected = torch.autograd.grad(loss(model(x), y), [*model.parameters()])
        torch.testing.assert_close([*compiled(x, y).grad.values()], [*expected])
    compiled = hbp.compile(model, lambda o, t: (over_batch(o[:, 0], t.shape) - t).square().mean(), ["grad"])
    with pytest.raises(hbp.HbpError, match=r"_norm in the loss, .*: its argument normalized_shape=\[N\] depends on"):
        compiled(x, y)


def a_parameter_times(function):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3, dtype=torch.float64)
            self.p = nn.Parameter(torch.randn(3, dtype=torch.float64))
            self.w = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

        def forward(self, x):
            return function(torch.tanh(self.layer(x)) @ self.w, self, len(x))

    return Model()


@pytest.mark.parametrize("function", [
    lambda h, m, n: torch.add(h, m.p, alpha=1 / n), lambda h, m, n: torch.sub(h, m.p, alpha=1 / n),
    lambda h, m, n: torch.rsub(m.p, h, alpha=n), lambda h, m, n: torch.addmm(m.p, h, m.w, beta=1 / n, alpha=2 / n)],
    ids=["add", "sub", "rsub", "addmm"])
def test_parameters_that_are_added_so_many_times(function):
    torch.manual_seed(0)
    model = a_parameter_times(function)
    compiled = hbp.compile(model, quantities=["grad", "variance", "diag_ggn", "diag_h"])
    for samples in (6, 5, 2, 1):
        X, y = torch.randn(samples, 4, dtype=torch.float64), torch.arange(samples) % 3
        agree(compiled(X, y), model, nn.CrossEntropyLoss(), [X], y)


@pytest.mark.parametrize("loss", [
    lambda o, t: torch.add(o.square().sum(), o.exp().sum(), alpha=1 / len(o)),
    lambda o, t: torch.sub(o.square().sum(), o.exp().sum(), alpha=-1 / len(o)),
    lambda o, t: torch.sub(o.square().mean(), o.sin().mean(), alpha=len(o))], ids=["add", "sub", "times N"])
def test_sums_in_a_loss_that_are_added_so_many_times(loss):
    torch.manual_seed(0)
    model = nn.Linear(4, 3, dtype=torch.float64)
    compiled = hbp.compile(model, loss, ["grad"])
    for samples in (6, 9, 2, 1):
        X = torch.randn(samples, 4, dtype=torch.float64)
        result, value = compiled(X, None), loss(model(X), None)
        close(result.loss, value.detach(), "loss")
        close(result.grad["weight"], torch.autograd.grad(value, model.weight)[0], "gradient")
