"""Where torch's slope is NaN, joined operations say so too, instead of what sympy simplified them to."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.edges import loses_edge
from hbpcompiler.elementwise import elementwise, x
from hbpcompiler.rule import Op
from tests.selection import cases

EDGES = {
    "sqrt(x^2)": lambda h: h.square().sqrt(),
    "(x^2)^0.5": lambda h: (h * h).pow(0.5),
    "sqrt(x)^2": lambda h: h.sqrt() ** 2,
    "exp(log(x))": lambda h: h.log().exp(),
    "x^3 / x": lambda h: h**3 / h,
    "1 / (1 / x)": lambda h: 1 / (1 / h),
}


class Joined(nn.Module):
    """Its values are exactly 0 in the first column."""

    def __init__(self, run):
        super().__init__()
        self.linear, self.run = nn.Linear(3, 2, bias=False), run
        with torch.no_grad():
            self.linear.weight.fill_(0.25)
            self.linear.weight[0] = 0.0

    def forward(self, x):
        return self.run(self.linear(x))


@pytest.mark.parametrize("name", cases(EDGES, ["sqrt(x^2)"], "the same lines"))
def test_a_slope_that_is_nan_by_torch_is_nan_by_the_program(name):
    model, X, y = Joined(EDGES[name]).double(), torch.rand(2, 3).double() + 0.5, torch.rand(2, 2).double()
    result = hbp.compile(model, nn.MSELoss(), ["grad", "batch_l2"])(X, y)
    loss = nn.functional.mse_loss(model(X), y)
    (expected,) = torch.autograd.grad(loss, model.linear.weight)
    assert expected[0].isnan().all()
    torch.testing.assert_close(result.grad["linear.weight"], expected, equal_nan=True)
    assert result.batch_l2["linear.weight"].isnan().all()


def loses(expression, run):
    rule = elementwise("mylib.joined", expression)

    def slope(given, made):
        return rule.derivative(Op({"self": given, "output": made}, {}, {})) * torch.ones_like(given)

    return loses_edge(expression, run, slope)


def test_only_what_has_lost_an_edge_is_left_in_pieces():
    for name, run in EDGES.items():
        lost = {"sqrt(x^2)": abs(x), "(x^2)^0.5": abs(x), "x^3 / x": x**2}.get(name, x)
        assert loses(lost, run), name
    assert not loses(1 / (x - 3), lambda h: (h - 3) ** -1)  # infinite by both
    assert not loses(abs(x), torch.abs)
    assert not loses(x / (1 + abs(x)), nn.functional.softsign)


def test_edges_are_looked_for_at_the_expressions_own_numbers():
    """sqrt((x - 3)^2) has its edge at 3."""
    assert loses(abs(x - 3), lambda h: (h - 3).square().sqrt())
    assert not loses(abs(x - 3), lambda h: (h - 3).abs())
