"""Cholesky's inverses in halves, in the memory of a float32 matrix, against dense algebra in float64."""

import pytest
import torch

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.meter import Meter
from hbpcompiler.curvature.inverses import WHOLE, invert, is_positive, reciprocals
from tests.curvature.test_blocks import psd
from tests.selection import few

HALVES = int(WHOLE**0.5) + 1
"""The least size that is taken apart."""


def spectrum(size, dtype, least=0.0):
    """A matrix whose eigenvalues fall from 1 to 1e-8, by steps of the same factor, and are no lower than this."""
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    matrix = basis @ torch.logspace(0, -8, size, dtype=torch.float64).clamp(min=least).diag() @ basis.T
    matrix = ((matrix + matrix.T) / 2).to(dtype)
    return torch.tril(matrix) + torch.tril(matrix, -1).T


def dense(matrix, shift):
    return torch.linalg.inv(matrix.double() + shift.unsqueeze(-1).unsqueeze(-1)
                            * torch.eye(matrix.shape[-1], dtype=torch.float64))


@few(1, "other sizes and dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [HALVES, HALVES + 1, HALVES - 1, 7, 1])
def test_an_inverse_is_that_of_dense_algebra(size, dtype):
    """For dampings from 1e-6 to 1: to the rounding of the result, and of float64's own algebra on both sides."""
    torch.manual_seed(0)
    matrix = spectrum(size, dtype)
    into, before = torch.full_like(matrix, float("nan")), matrix.clone()
    for damping in (1.0, 1e-2, 1e-4, 1e-6) if dtype != torch.bfloat16 else (1.0, 0.1):
        shift = torch.tensor(damping, dtype=torch.float64)
        assert is_positive(matrix, shift)
        assert invert(matrix, shift, into)
        wanted = dense(matrix, shift)
        rounding = torch.finfo(dtype).eps + 2e-15 / damping
        assert (into.double() - wanted).norm() < rounding * wanted.norm()
        assert torch.equal(into, into.mT)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("size", [HALVES, 5])
def test_groups_have_shifts_of_their_own(size):
    torch.manual_seed(0)
    matrix = psd(size, groups=3).float()
    shift = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    into = torch.empty_like(matrix)
    assert invert(matrix, shift, into)
    wanted = dense(matrix, shift)
    assert (into - wanted).norm() < 1e-6 * wanted.norm()
    assert not is_positive(matrix - 2 * torch.eye(size), torch.tensor([5.0, 0.0, 5.0]).double())


@pytest.mark.parametrize("at", [0, -1])
def test_what_is_not_positive_definite_has_none(at):
    """In the first half, and in the second."""
    matrix = torch.eye(HALVES)
    matrix[at, at] = -1.0
    shift = torch.tensor(0.5, dtype=torch.float64)
    assert not is_positive(matrix, shift)
    assert not invert(matrix, shift, torch.empty_like(matrix))
    assert is_positive(matrix, shift + 1)


def test_it_takes_no_more_than_the_matrix_in_float32():
    matrix = torch.eye(4 * HALVES)
    into, shift = torch.empty_like(matrix), torch.tensor(0.5, dtype=torch.float64)
    with Meter() as meter:
        for call in (lambda: invert(matrix, shift, into), lambda: is_positive(matrix, shift)):
            start = meter.peak = meter.held
            assert call()
            assert meter.peak - start < 1.05 * matrix.nbytes


def test_reciprocals():
    values = torch.tensor([1.0, 1e-9, 0.0, -1e-9])
    found = reciprocals(values, 0.5, 1e-6, None)
    assert torch.equal(found, (1 / (values.double().clamp(min=0) + 0.5)).float())
    into = torch.empty_like(values)
    assert reciprocals(values, 0.25, 1e-6, into) is into
    assert reciprocals(values, 0.0, 1e-6, None) is None
    assert reciprocals(-values, 0.5, 1e-6, None) is None
    with pytest.raises(hbp.InputError, match="is indefinite"):
        hbp.curvature({"d": -values}, {"d": (4,)}).inverse(0.5)
