"""x @ W.T of a parameter is a linear layer: its factors are one's, and all else is what it was."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.parameters.linear_layers import with_linear_layers
from hbpcompiler.compiler.trace.graph import N
from tests.hand_made import graph, operation, value
from tests.selection import few

WRITTEN = {
    "x @ W.T": lambda x, W, b: x @ W.T,
    "W.t()": lambda x, W, b: torch.matmul(x, W.t()),
    "W.mT": lambda x, W, b: x @ W.mT,
    "transpose": lambda x, W, b: x @ W.transpose(1, 0),
    "permute": lambda x, W, b: x @ W.permute(-1, 0),
    "and a bias": lambda x, W, b: x @ W.T + b,
    "mm": lambda x, W, b: torch.mm(x.flatten(0, -2), W.t()).unflatten(0, x.shape[:-1]),
    "addmm": lambda x, W, b: torch.addmm(b, x.flatten(0, -2), W.T).unflatten(0, x.shape[:-1]),
}
QUANTITIES = ["grad", "batch_l2", "variance", "diag_ggn", "diag_h", "kflr", "kfac_emp"]
SHAPES = {"vectors": (3, 4), "positions": (3, 2, 4)}


class Layers(nn.Module):
    """Two of them, and a curved operation between."""

    def __init__(self, product):
        super().__init__()
        torch.manual_seed(0)
        self.product = product
        self.first, self.bias = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5))
        self.last = nn.Linear(5, 3)
        self.double()

    def forward(self, x):
        h = self.last(torch.tanh(self.product(x, self.first, self.bias)))
        return h if h.dim() == 2 else h.mean(1)


def results(product, shape):
    torch.manual_seed(1)
    X, y = torch.randn(shape, dtype=torch.float64), torch.tensor([0, 2, 1])
    return hbp.compile(Layers(product), quantities=QUANTITIES)(X, y)


@few(1, "other orders of the same axes")
@pytest.mark.filterwarnings("ignore:.*bias")  # where it does not reach the loss
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", WRITTEN)
def test_it_has_the_numbers_of_a_linear_layer(name, shape):
    with_bias = name in ("and a bias", "addmm")
    found = results(WRITTEN[name], shape)
    expected = results(lambda x, W, b: nn.functional.linear(x, W, b if with_bias else None), shape)
    for quantity in QUANTITIES:
        assert found[quantity].keys() == expected[quantity].keys()
        for parameter, number in expected[quantity].items():
            pairs = zip(found[quantity][parameter], number, strict=True) if isinstance(number, tuple) else [
                (found[quantity][parameter], number)]
            for own, other in pairs:
                assert (own is None) == (other is None)
                if own is not None:
                    torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)
    assert found.kflr["first"].A.shape == (4, 4)
    assert found.kflr["first"].B.shape == (5, 5)


W, X = value("w", 5, 4, role="parameter"), value("x", N, 4, role="input")
TURNED = {
    "its transpose": ("t", {}, True),
    "two axes": ("transpose", {"dim0": -1, "dim1": 0}, True),
    "one axis": ("transpose", {"dim0": -1, "dim1": 1}, False),
    "in another order": ("permute", {"dims": [1, -2]}, True),
    "in its own": ("permute", {"dims": [-2, 1]}, False),
}


@pytest.mark.parametrize("name", TURNED)
def test_which_products_are_linear_layers(name):
    short, attributes, is_transposed = TURNED[name]
    turned = operation(short, value("turned", 4, 5), attributes, self=W)
    product = operation("matmul", value("product", N, 5), self=X, other=turned.output)
    ends = operation("sum", value("loss"), self=product.output)
    given = graph([turned, product, ends], inputs=[X], state=[W])
    found = with_linear_layers(given)
    if not is_transposed:
        assert found is given
        return
    linear, _ = found.operations
    assert (linear.target, dict(linear.tensors)) == ("aten.linear", {"input": X, "weight": W})


OTHERS = {
    "twice a transpose": lambda x, W, b: torch.tanh(x @ W.T) @ W.T.t(),
    "a function of it": lambda x, W, b: x @ torch.tanh(W).T,
    "as it is": lambda x, W, b: torch.tanh(x @ W.T) @ W.permute(0, 1),
    "more than the product": lambda x, W, b: torch.addmm(b, x, W.T, beta=2, alpha=3),
    "a bias for all": lambda x, W, b: torch.addmm(b[:1], x, W.T),
}


@few(2, "further cases of one kind")
@pytest.mark.filterwarnings("ignore:.*bias")
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_none_keeps_its_numbers(name):
    torch.manual_seed(1)
    model = Layers(OTHERS[name])
    X, y = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 2, 1])
    if "bias" not in name and "more" not in name and "function" not in name:
        model.last = nn.Linear(4, 3).double()
    result = hbp.compile(model, quantities=["grad", "batch_grad", "diag_h"])(X, y)
    trained = {name: parameter for name, parameter in model.named_parameters() if name in result.grad}
    loss = nn.functional.cross_entropy(model(X), y)
    gradients = torch.autograd.grad(loss, list(trained.values()), create_graph=True)
    for (key, parameter), gradient in zip(trained.items(), gradients, strict=True):
        torch.testing.assert_close(result.grad[key], gradient)
        torch.testing.assert_close(result.batch_grad[key].sum(0), gradient)
        rows = [torch.autograd.grad(entry, parameter, retain_graph=True)[0].flatten()[number]
                for number, entry in enumerate(gradient.flatten())]
        torch.testing.assert_close(result.diag_h[key].flatten(), torch.stack(rows))
