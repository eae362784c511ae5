"""Diagonals of products in which samples meet, against autograd."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.losses.diagonals import with_diagonals_of_products
from hbpcompiler.compiler.trace.graph import N
from tests.hand_made import graph, operation, value

METRIC = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
SUMS = {
    "features": lambda o, y: torch.trace((o - y).T @ (o - y)),
    "samples": lambda o, y: torch.trace((o - y) @ (o - y).mT),
    "by hand": lambda o, y: ((o - y).T @ (o - y)).diagonal().sum(),
    "inner": lambda o, y: torch.inner(o - y, o - y).diagonal().sum(),
    "a metric": lambda o, y: ((o - y) @ METRIC @ (o - y).T).diag().sum(),
    "curved": lambda o, y: torch.diagonal(o @ y.transpose(-1, -2), dim1=1, dim2=0).exp().sum(),
    "mm": lambda o, y: torch.mm(o, y.t()).diagonal().square().sum(),
}
QUANTITIES = ["grad", "batch_grad", "diag_h"]


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("name", SUMS)
def test_against_autograd(name, mean):
    torch.manual_seed(0)
    model, summed = nn.Linear(3, 2).double(), SUMS[name]

    def loss(output, y):
        return summed(output, y) / len(y) if mean else summed(output, y)

    compiled = hbp.compile(model, loss, QUANTITIES)
    for count in (4, 7, 1):
        X, y = torch.randn(count, 3).double(), torch.randn(count, 2).double()
        found = compiled(X, y)
        assert found.reduction == ("mean" if mean else "sum")
        for key, weight in model.named_parameters():
            (slope,) = torch.autograd.grad(loss(model(X), y), weight, create_graph=True)
            each = [torch.autograd.grad(summed(model(X[n : n + 1]), y[n : n + 1]), weight)[0] for n in range(count)]
            curved = [torch.autograd.grad(number, weight, retain_graph=True)[0].flatten()[place]
                      for place, number in enumerate(slope.flatten())]
            torch.testing.assert_close(found.grad[key], slope, rtol=1e-10, atol=1e-12)
            wanted = torch.stack(each) / (count if mean else 1)
            torch.testing.assert_close(found.batch_grad[key], wanted, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(found.diag_h[key].flatten(), torch.stack(curved), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("attributes", [{"dim0": 0, "dim1": 0}, {"dim0": -1, "dim1": 1}])
def test_an_axis_turned_with_itself_is_not_turned(attributes):
    """A [N, 2], B [2, N] given as transpose(0, 0) of itself: what is multiplied is B's own transpose."""
    a, b = value("a", N, 2, role="input"), value("b", 2, N, role="input")
    still, product = value("still", 2, N), value("product", N, N)
    before = graph([
        operation("transpose", still, attributes, overload="int", self=b),
        operation("matmul", product, self=a, other=still),
        operation("diagonal", value("diagonal", N), {"offset": 0, "dim1": 0, "dim2": 1}, self=product),
        operation("sum", value("loss"), {"dtype": None}, in_loss=True, self=value("diagonal", N)),
    ], inputs=[a, b])
    after = with_diagonals_of_products(before)
    assert [made.target for made in after.operations] == [
        "aten.transpose", "aten.permute", "aten.mul", "aten.sum", "aten.sum"]
    assert after.makers["diagonal_turned"].tensors["self"] == still


def test_beside_the_diagonal_samples_meet():
    with pytest.raises(hbp.UnsupportedOpError, match="each sample meets all others"):
        hbp.compile(nn.Linear(3, 2), lambda o, y: torch.diagonal(o @ y.T, 1).sum(), ["grad"])(
            torch.randn(4, 3), torch.randn(4, 2))
