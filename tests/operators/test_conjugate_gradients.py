"""Solving with operators by products alone."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.optim.models import close


def test_conjugate_gradients():
    torch.manual_seed(0)
    root = torch.randn(30, 30).double()
    A, b = root @ root.T, torch.randn(30).double()
    solve = hbp.optim.conjugate_gradients
    found = solve(lambda v: A @ v, b, damping=0.1, tolerance=1e-10, progress=0.0, most_iterations=200)
    close(found.x, torch.linalg.solve(A + 0.1 * torch.eye(30).double(), b), "solution", 1e-8)
    assert found.converged
    assert not found.negative
    martens = solve(lambda v: A @ v, b, damping=0.1)
    assert martens.converged
    assert martens.iterations < found.iterations
    few = solve(lambda v: A @ v, b, most_iterations=3)
    assert few.iterations == 3
    assert not few.converged
    assert solve(lambda v: A @ v, torch.zeros(30).double()).converged
    D = torch.tensor([3.0, 2.0, -1.0]).double()
    downhill = solve(lambda v: D * v, torch.tensor([1.0, 1.0, 0.1]).double())
    assert downhill.negative
    assert downhill.x @ torch.tensor([1.0, 1.0, 0.1]).double() > 0
    uphill = solve(lambda v: -v, b)
    assert uphill.negative
    assert torch.equal(uphill.x, b)
    close(solve(lambda v: -3 * v, b, damping=2.0).x, b / 5, "as long as with the other sign")
    assert torch.equal(solve(lambda v: 0 * v, b).x, b)


def operator(dtype=torch.float64, kind="ggn"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    X, y = torch.randn(12, 4, dtype=dtype), torch.randint(3, (12,))
    return hbp.operator(model, nn.CrossEntropyLoss(), [(X[:7], y[:7]), (X[7:], y[7:])], kind)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-7), (torch.float32, 1e-3)])
def test_solutions_have_the_form_of_what_was_given(dtype, digits):
    A = operator(dtype).damped(0.1)
    dense, b = A.to_dense().double(), torch.randn(A.shape[0], 2, dtype=dtype)
    expected = torch.linalg.solve(dense, b.double()).to(dtype)
    close(A.solve(b), expected, "two vectors", digits)
    close(A.solve(b[:, 0]), expected[:, 0], "one", digits)
    for name, part in A.solve(A.to_dict(b)).items():
        close(part, A.to_dict(expected)[name], name, digits)
    listed = A.solve(tuple(A.to_dict(b[:, 1]).values()))
    assert isinstance(listed, tuple)
    close(A.to_flat(listed), expected[:, 1], "listed", digits)


def test_what_has_no_solution_by_conjugate_gradients_is_said():
    hessian, b = operator(kind="hessian"), torch.ones(43, dtype=torch.float64)
    lowest = hessian.top(1, "smallest")
    with pytest.raises(hbp.InputError, match=r"not positive definite.*operator\.damped"):
        hessian.solve(lowest.vectors | {name: part[0] for name, part in lowest.vectors.items()})
    with pytest.raises(hbp.InputError, match="infinite or NaN"):
        operator().damped(1.0).solve(b / 0)
    assert operator().damped(1.0).solve(torch.zeros(43, 0, dtype=torch.float64)).shape == (43, 0)
    with pytest.raises(hbp.NotConvergedError, match=r"in 3 products: give a larger tolerance="):
        operator().damped(1e-6).solve(b, most_products=3)
    assert (operator().damped(1.0).solve(b, tolerance=0.5, most_products=3) != 0).any()


class Scaled(nn.Module):
    """A layer and a trained number, which has no axes."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 3).double(), nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x):
        return self.layer(x) * self.scale


def test_numbers_without_axes_are_parameters_as_others_are():
    torch.manual_seed(0)
    model, X, y = Scaled(), torch.randn(8, 3, dtype=torch.float64), torch.randint(3, (8,))
    A = hbp.operator(model, nn.CrossEntropyLoss(), [(X, y)], "ggn").damped(0.1)
    vector = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    found = A.solve(vector)
    dense = torch.linalg.solve(A.to_dense(), torch.cat([part.flatten() for part in vector.values()]))
    close(torch.cat([found[name].flatten() for name in vector]), dense, "solution", 1e-6)
    optimizer = hbp.optim.BlockNewton(model, nn.CrossEntropyLoss())
    before = float(nn.CrossEntropyLoss()(model(X), y))
    for _ in range(3):
        optimizer.step(X, y)
    assert float(nn.CrossEntropyLoss()(model(X), y)) < before
