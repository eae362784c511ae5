"""Names of parameters, or shell patterns of them."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.patterns import exact, fits, fitting
from tests.agreement import agree

NAMES = ("layers.[ab].weight", "layers.a.weight", "layers.b.weight")


def test_a_name_is_that_parameter_alone():
    assert fitting(NAMES, "layers.[ab].weight") == ["layers.[ab].weight"]
    assert fitting(NAMES, "layers.[abc].weight") == ["layers.a.weight", "layers.b.weight"]
    assert fitting(NAMES, "*") == list(NAMES)
    assert not fits("layers.a.weight", ["layers.[ab].weight"], NAMES)
    assert fits("layers.a.weight", ["layers.[ab].weight"])
    assert not fits(NAMES[0].upper(), [NAMES[0]], NAMES)
    escaped = exact(["layers.[ab].weight", "layers.*"], NAMES)
    assert [fitting(NAMES, pattern) for pattern in escaped] == [[NAMES[0]], list(NAMES)]


class Bracketed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"[ab]": nn.Linear(3, 4), "a": nn.Linear(4, 3)})

    def forward(self, x):
        return self.layers["a"](torch.tanh(self.layers["[ab]"](x)))


NAME = "layers.[ab].weight"


@pytest.fixture
def problem():
    torch.manual_seed(0)
    return Bracketed().double(), torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])


def test_quantities_of_such_names(problem):
    model, X, y = problem
    loss = nn.CrossEntropyLoss()
    for pattern, names in ((NAME, [NAME]), ("layers.[[]ab].*", [NAME, "layers.[ab].bias"]), ("layers.[ab].bias",
                                                                                         ["layers.[ab].bias"])):
        found = hbp.compile(model, loss, {"grad": [pattern], "kflr": "*"}, verify="full")(X, y)
        assert list(found.grad) == names
        assert list(found.kflr) == [name for name, _ in model.named_parameters()]
    agree(hbp.compile(model, loss, ["grad", "diag_h"])(X, y), model, loss, [X], y)


def test_groups_operators_damping_and_ekfac_of_such_names(problem):
    model, X, y = problem
    loss, names = nn.CrossEntropyLoss(), [name for name, _ in model.named_parameters()]
    hessian = hbp.operator(model, loss, (X, y), kind="ggn").to_dense()
    gram = hbp.compile(model, loss, ["gram"], groups={"group": [NAME]}, verify="full")(X, y).gram["group"]
    torch.testing.assert_close(gram.flatten(2).flatten(0, 1).trace(), hessian.diagonal()[:12].sum())
    assert hbp.operator(model, loss, (X, y), parameters=[NAME]).shape == (12, 12)
    found = hbp.ekfac(model, loss, [(X, y)], columns="exact", progress=False)
    assert list(found.names) == names
    curvature = hbp.curvature(hbp.compile(model, loss, ["kflr"])(X, y).kflr)
    other = curvature.logdet({"*": 1.0, NAME: 2.0, "layers.[ab].bias": 2.0})
    assert not torch.equal(torch.as_tensor(other), torch.as_tensor(curvature.logdet(1.0)))
    found = hbp.optim.Preconditioner(model, loss, "kfac", damping={"*": 1.0, NAME: 2.0})._dampings()
    assert found == dict.fromkeys(names, 1.0) | {NAME: 2.0}
