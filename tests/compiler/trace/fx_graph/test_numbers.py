"""Numbers that Python makes of the batch's size."""

import math

import pytest
import sympy
import torch
from torch import nn
from torch.utils._sympy.functions import RoundToInt, ToFloat, TruncToInt

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.fx_graph.numbers import arithmetic, plain, rounds_apart
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.errors import ModelError

D = torch.float64


def loss_by(number):
    def loss(output, target):
        return nn.functional.cross_entropy(output, target, reduction="sum") / number(len(output))

    return loss


@pytest.mark.parametrize("number", [
    lambda n: round(0.75 * n) + 1, lambda n: round(n / 2) + 1, lambda n: abs(n - 4) + 1,
    lambda n: math.trunc(0.5 * n) + 1,
    lambda n: divmod(n, 4)[0] + 1, lambda n: math.ceil(0.3 * n), lambda n: math.floor(0.3 * n) + 1,
])
def test_functions_of_the_batchs_size(number):
    torch.manual_seed(0)
    model, loss = nn.Linear(3, 2).to(D), loss_by(number)
    compiled = hbp.compile(model, loss, quantities=["grad"])
    for samples in (6, 2, 5, 3, 15, 1, 100):
        x, y = torch.randn(samples, 3, dtype=D), torch.arange(samples) % 2
        expected = torch.autograd.grad(loss(model(x), y), [*model.parameters()])
        torch.testing.assert_close([*compiled(x, y).grad.values()], [*expected])
    assert "programs=1" in repr(compiled)
    torch.testing.assert_close([*torch.jit.script(compiled.program)(dict(compiled.state), x, y).grad.values()],
                               [*expected])


@pytest.mark.parametrize("number", [lambda n: math.floor(0.29 * n) + 1, lambda n: round(0.7 * n) + 1])
def test_a_rounding_at_which_floats_are_beside_the_exact_number_is_refused(number):
    """math.floor(0.29 * 100) is 28, round(0.7 * 45) is 31."""
    compiled = hbp.compile(nn.Linear(3, 2), loss_by(number), quantities=["grad"])
    with pytest.raises(ModelError, match="write it in whole numbers"):
        compiled(torch.randn(6, 3), torch.arange(6) % 2)


def test_what_has_no_arithmetic_is_refused_in_the_users_words():
    compiled = hbp.compile(nn.Linear(3, 2), loss_by(lambda n: math.trunc(0.5 * (n - 20)) + 50), quantities=["grad"])
    with pytest.raises(ModelError, match=r"makes a number of the batch's size by int\(\) or math.trunc\(\)"):
        compiled(torch.randn(6, 3), torch.arange(6) % 2)


def test_halves_become_even():
    rounded = plain(RoundToInt(sympy.Float(0.5) * ToFloat(N)))
    assert [arithmetic(rounded, size) for size in range(1, 40)] == [round(0.5 * size) for size in range(1, 40)]
    assert plain(TruncToInt(sympy.Float(0.5) * ToFloat(N))) == sympy.floor(N / 2)
    assert not rounds_apart(RoundToInt(sympy.Float(0.5) * ToFloat(N)))
    assert rounds_apart(TruncToInt(sympy.Float(0.29) * ToFloat(N)))
