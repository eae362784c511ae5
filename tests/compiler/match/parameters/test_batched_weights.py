"""Samples [N, i] times several matrices [E, i, o], as in a deep ensemble: every quantity of each matrix."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.parameters.batched_weights import with_axes_for_weights
from hbpcompiler.compiler.trace.graph import N
from tests.agreement import agree
from tests.hand_made import graph, operation, value
from tests.selection import few

QUANTITIES = ["grad", "batch_grad", "variance", "diag_ggn", "diag_h"]
PRODUCTS = {
    "matmul": torch.matmul, "@": lambda x, W: x @ W, "method": lambda x, W: x.matmul(W),
    "of what is made of it": lambda x, W: x @ (2 * W).exp(),
}


class Ensemble(nn.Module):
    def __init__(self, product, *several):
        super().__init__()
        torch.manual_seed(0)
        self.product, self.several = product, len(several)
        self.first, self.weights = nn.Linear(2, 3), nn.Parameter(torch.randn(*several, 3, 2) / 2)
        self.double()

    def forward(self, x):
        h = self.product(self.first(x).tanh(), self.weights).tanh()
        return h.flatten(0, self.several - 1).mean(0)


@few(2, "further orders of the same axes")
@pytest.mark.parametrize("several", [(5,), (1,), (4,), (2, 3)])
@pytest.mark.parametrize("product", PRODUCTS)
def test_against_brute_force(product, several):
    model, X, y = Ensemble(PRODUCTS[product], *several), torch.randn(4, 2).double(), torch.tensor([0, 1, 1, 0])
    result = hbp.compile(model, nn.CrossEntropyLoss(), QUANTITIES)(X, y)
    agree(result, model, nn.CrossEntropyLoss(), [X], y, QUANTITIES)


@pytest.mark.parametrize(("x", "weights", "axes"), [
    ((N, 3), (5, 3, 2), 1), ((N, 3), (4, 5, 3, 2), 2), ((N, 3), (3, 2), 0), ((N, 4, 3), (5, 3, 2), 0),
    ((7, 3), (5, 3, 2), 0), ((N, 3), (N, 3, 2), 0)])
def test_where_axes_are_added(x, weights, axes):
    inputs = [value("x", *x, role="input"), value("W", *weights, role="parameter")]
    product = operation("matmul", value("product", *weights[:-2], x[0], 2), self=inputs[0], other=inputs[1])
    found = with_axes_for_weights(graph([product], state=inputs[1:], inputs=inputs[:1]))
    assert [each.short for each in found.operations] == ["unsqueeze"] * axes + ["matmul"]
