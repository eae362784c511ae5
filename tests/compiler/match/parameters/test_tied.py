"""Tied parameters and reused modules: joined along positions, or refused; never a cross term left out."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import ggn_block, reference
from tests.agreement import agree, close


def reused_linear():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.ReLU(), nn.Linear(3, 2)), (3,)


def reused_convolution():
    layer = nn.Conv2d(2, 2, 3, padding=1)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Flatten(), nn.Linear(32, 2)), (2, 4, 4)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.hidden, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        state = torch.tanh(self.inner(x[:, 0]))
        for t in range(1, 3):
            state = torch.tanh(self.inner(x[:, t]) + self.hidden(state))
        return self.out(state)


MODELS = {
    "linear": reused_linear,
    "convolution": reused_convolution,
    "recurrent": lambda: (Recurrent(), (3, 3)),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_uses_are_joined(name):
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    model = model.double()
    X, y = torch.randn(3, *shape, dtype=torch.float64), torch.tensor([0, 1, 1])
    names = ["grad", "batch_grad", "batch_l2", "second_moment", "diag_ggn"]
    result = hbp.compile(model, quantities=[*names, "kflr"])(X, y)
    agree(result, model, nn.CrossEntropyLoss(), [X], y, names)
    for key, factors in result.kflr.items():
        if key.endswith("bias"):
            close(factors.B, ggn_block(model, nn.CrossEntropyLoss(), [X], y, key), f"block of {key}")
        else:
            assert factors.A.shape[0] * factors.B.shape[0] == model.get_parameter(key).numel()


@pytest.mark.parametrize("name", list(MODELS))
def test_the_exact_diagonal_has_the_cross_terms_between_uses(name):
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    model = model.double()
    X, y = torch.randn(3, *shape, dtype=torch.float64), torch.tensor([0, 1, 1])
    names = ["grad", "batch_grad", "diag_ggn", "diag_h"]
    result = hbp.compile(model, quantities=names)(X, y)
    agree(result, model, nn.CrossEntropyLoss(), [X], y, names)


def test_curvature_that_is_no_columns_is_joined_at_the_parameter():
    """A squared error's diagonal arrives at one use, columns at the other."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer).double()
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    result = hbp.compile(model, nn.MSELoss(), quantities=["diag_ggn"])(X, y)
    for key, value in reference(model, nn.MSELoss(), [X], y, "diag_ggn").items():
        close(result.diag_ggn[key], value, key)


@pytest.mark.parametrize("quantities", [["diag_h", "kflr"], ["kfra"]])
def test_what_cannot_be_joined_is_refused(quantities):
    model, shape = reused_linear()
    X, y = torch.randn(3, *shape), torch.tensor([0, 1, 1])
    with pytest.raises(hbp.UnsupportedOpError, match=r"'0.weight' is used 2 times \(module '[02]' \(Linear\)"):
        hbp.compile(model, quantities=quantities)(X, y)


def test_a_place_of_many_uses_is_said_once():
    """All steps of a recurrent layer are in one line."""

    class Last(nn.GRU):
        def forward(self, x):
            return super().forward(x)[0][:, -1]

    compiled = hbp.compile(Last(2, 3, batch_first=True), quantities=["diag_h", "kfac"])
    with pytest.raises(hbp.UnsupportedOpError, match=r"(?s)'weight_hh_l0' is used 4 times.*for the Hessian") as caught:
        compiled(torch.randn(2, 4, 2), torch.tensor([0, 1]))
    assert all(line.count("test_tied.py") <= 1 for line in str(caught.value).splitlines())


def test_a_frozen_tied_parameter_is_no_obstacle():
    torch.manual_seed(0)
    model, shape = reused_linear()
    model = model.double()
    model[0].requires_grad_(False)
    X, y = torch.randn(3, *shape, dtype=torch.float64), torch.tensor([0, 1, 1])
    found = hbp.compile(model, quantities=["diag_h"])(X, y).diag_h
    for key, value in reference(model, nn.CrossEntropyLoss(), [X], y, "diag_h").items():
        close(found[key], value, key)


def test_kronecker_factors_of_a_reused_layer_lay_its_uses_end_to_end():
    """A sums over the uses' inputs, B averages J^T H J over them, as over the positions of one use."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Sigmoid(), nn.Linear(3, 2)).double()
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    found = hbp.compile(model, quantities=["kflr"])(X, y).kflr["0.weight"]
    first = layer(X)
    between = torch.tanh(first)
    second = layer(between)
    logits = model[4](torch.sigmoid(second))
    inputs, outputs = [X, between], [first, second]
    share = torch.softmax(logits, 1).detach()
    curvature = torch.diag_embed(share) - share.unsqueeze(2) * share.unsqueeze(1)
    a = sum(u.T @ u for u in inputs) / len(X)
    b = torch.zeros(3, 3, dtype=torch.float64)
    for output in outputs:
        rows = [torch.autograd.grad(logits[:, c].sum(), output, retain_graph=True)[0] for c in range(2)]
        jacobian = torch.stack(rows, 1)  # [N, C, 3]
        b += torch.einsum("nci,ncd,ndj->ij", jacobian, curvature, jacobian) / len(X) / len(outputs)
    close(found.A, a.detach(), "A")
    close(found.B, b, "B")
