"""A step's products with the factors of an inverse, by whichever kernel."""

import pytest
import torch

from hbpcompiler.optim.products import times

SHAPES = {
    "large enough for oneDNN": ((1, 1, 70, 130), (130, 130)),
    "not square": ((1, 1, 130, 70), (70, 140)),
    "too few rows": ((1, 1, 10, 300), (300, 300)),
    "a matrix for each group": ((1, 2, 70, 130), (2, 130, 130)),
    "several vectors": ((3, 1, 70, 130), (130, 130)),
    "a matrix in front": ((130, 130), (1, 1, 130, 70)),
    "a matrix in front, not square": ((140, 130), (1, 1, 130, 70)),
    "in front of several vectors": ((130, 130), (3, 1, 130, 70)),
    "in front of each group's": ((2, 130, 130), (1, 2, 130, 70)),
}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_products_are_what_they_should_be(case, dtype, is_transposed):
    """The matrix is not symmetric, so that its transpose would be noticed."""
    of_vectors, of_matrix = SHAPES[case]
    vectors, matrix = torch.randn(of_vectors, dtype=dtype), torch.randn(of_matrix, dtype=dtype)
    given = matrix.mT.contiguous().mT if is_transposed else matrix
    found, expected = times(vectors, given), vectors.double() @ matrix.double()
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    assert (found - expected).abs().max() < 100 * torch.finfo(dtype).eps * expected.abs().max()


def test_what_has_a_derivative_keeps_it():
    vectors, matrix = torch.randn(1, 1, 130, 130, requires_grad=True), torch.randn(130, 130)
    (gradient,) = torch.autograd.grad(times(vectors, matrix).sum(), vectors)
    assert (gradient - matrix.sum(1)).abs().max() < 1e-4
    (gradient,) = torch.autograd.grad(times(matrix, vectors).sum(), vectors)
    assert (gradient - matrix.sum(0).unsqueeze(1)).abs().max() < 1e-4
