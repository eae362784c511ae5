"""Multiples and sums of operators against the same of their matrices."""

import numpy
import pytest
import torch
from scipy.sparse import linalg
from torch import nn

import hbpcompiler as hbp
from tests.operators.dense import double
from tests.selection import few


@pytest.fixture(scope="module")
def matrices():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    batch = double(6, 4), torch.tensor([0, 2, 1, 1, 0, 2])
    found = [hbp.operator(model, None, batch, kind) for kind in ("ggn", "hessian")]
    return *found, *(operator.to_dense() for operator in found)


@few(2, "further cases of one kind")
@pytest.mark.parametrize("combine", [
    lambda A, H: 2 * A, lambda A, H: A * numpy.float64(0.3), lambda A, H: -A / 3, lambda A, H: A - H,
    lambda A, H: numpy.float64(2) * A, lambda A, H: A * torch.tensor(2.0), lambda A, H: 0.5 * (A + 3 * H) - 2 * A,
], ids=range(7))
def test_multiples_and_sums(matrices, combine):
    """Products, trace and diagonal; A itself stays what it was."""
    A, H, dense_A, dense_H = matrices
    combined, expected = combine(A, H), combine(dense_A, dense_H)
    torch.testing.assert_close(combined.to_dense(), expected)
    torch.testing.assert_close(combined.trace(), expected.trace())
    torch.testing.assert_close(combined.to_flat(combined.diagonal()), expected.diagonal())
    v = {name: double(*shape) for name, shape in A.parameters.items()}
    torch.testing.assert_close(combined.to_flat(combined @ v), expected @ A.to_flat(v))
    torch.testing.assert_close(A.to_dense(), dense_A)


def test_damped(matrices):
    """What solvers and eigenvalues see; the operator's own eigenvalues are not affected."""
    A, _, dense, _ = matrices
    damped = A.damped(0.1)
    expected = dense + 0.1 * torch.eye(len(dense), dtype=torch.float64)
    torch.testing.assert_close(damped.to_dense(), expected)
    torch.testing.assert_close(damped.top(3).values, torch.linalg.eigvalsh(expected).flip(0)[:3])
    torch.testing.assert_close(A.top(3).values, damped.top(3).values - 0.1)
    right = double(len(dense))
    step, failed = linalg.cg(damped.to_scipy(), right.numpy(), rtol=1e-10)
    assert not failed
    torch.testing.assert_close(torch.from_numpy(step), torch.linalg.solve(expected, right))
    torch.testing.assert_close(damped.estimate_trace(1000).value, expected.trace())
    assert repr(0.5 * damped) == f"0.5 * ({A!r} + 0.1 * identity)"


def test_sums_of_many(matrices):
    A, B, dense, other = matrices
    torch.testing.assert_close(sum([A, B, A]).to_dense(), 2 * dense + other)
    assert +A is A


def test_what_cannot_be_combined(matrices):
    A = matrices[0]
    other = nn.Linear(4, 3).double()
    batch = double(6, 4), torch.tensor([0, 2, 1, 1, 0, 2])
    with pytest.raises(hbp.InputError, match=r"one has 0\.weight \[5, 4\].*the other weight \[3, 4\]"):
        A + hbp.operator(other, None, batch)
    with pytest.raises(hbp.InputError, match=r"operator\.damped"):
        A + 0.1
    with pytest.raises(hbp.InputError, match="operator @ vectors"):
        A * double(43)
    for make in (lambda: float("nan") * A, lambda: 10**400 * A, lambda: A.damped(float("inf")), lambda: A / 0):
        with pytest.raises(hbp.InputError, match=r"finite number|divided by zero"):
            make()
    with pytest.raises(hbp.InputError, match="not to int"):
        1 + A


def test_a_density_of_what_is_not_finite():
    model = nn.Linear(4, 3).double()
    A = hbp.operator(model, None, (double(6, 4), torch.tensor([0, 2, 1, 1, 0, 2])), verify=False)
    model.weight.data[0, 0] = float("nan")
    with pytest.raises(hbp.InputError, match="not finite"):
        A.density(steps=3)
