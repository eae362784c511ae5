"""What rounding may have done to a matrix is not held against it."""

from contextlib import nullcontext

import pytest
import torch

import hbpcompiler as hbp
from tests.curvature.test_blocks import Factors, orthogonal, psd

SHAPES = {"w": (2, 3), "d": (4,)}


def test_eigenvalues_that_rounding_made_negative_are_zero():
    basis = orthogonal(3)
    rounded = basis @ torch.tensor([1.0, 1e-9, -1e-9]).double().diag() @ basis.T
    for given, dtype in ((rounded.float(), None), (rounded, torch.float32)):  # a total of float32 batches in float64
        parameters = SHAPES if dtype is None else {"w": torch.zeros(2, 3, dtype=dtype)}
        H = hbp.curvature({"w": Factors(given, torch.eye(2).to(given.dtype))}, parameters)
        assert H["w"].eigenvalues.min() >= 0
        assert H.power(0.5).to_dense().isfinite().all()
    H = hbp.curvature({"w": Factors(rounded, torch.eye(2).double())}, SHAPES)
    with pytest.raises(hbp.InputError, match=r"'w' .* is indefinite"):
        H.power(0.5)
    H = hbp.curvature({"d": torch.tensor([1.0, -1e-17, 1, 1]).double()}, SHAPES)
    assert H["d"].eigenvalues.tolist() == [1, 0, 1, 1]


def test_rounding_grows_with_the_matrix():
    """Sums of float32 rows, nearly all alike, were seen to have an eigenvalue of -24 eps at a size of 145."""
    basis, eps = orthogonal(145), torch.finfo(torch.float32).eps
    for below, message in ((24 * eps, ""), (240 * eps, "is indefinite")):
        values = torch.zeros(145).double()
        values[0], values[1] = 1.0, -below
        A = (basis @ values.diag() @ basis.T).float()
        H = hbp.curvature({"w": Factors(A, torch.eye(2))}, {"w": torch.zeros(2, 145)})
        with pytest.raises(hbp.InputError, match=message) if message else nullcontext():
            H.inverse(1e-12, split="pi")


@pytest.mark.parametrize("split", ["exact", "pi"])
def test_factors_below_the_normal_numbers_are_symmetric(split):
    """Their rounding is not relative to them: a saturated softmax has left such in KFRA's recursion."""
    torch.manual_seed(0)
    B = torch.tensor([[2.5e-43, 4e-45], [9e-45, 1.5e-43]])
    A = psd(3).float()
    H = hbp.curvature({"w": Factors(A, B)}, {"w": torch.zeros(2, 3)})
    dense = torch.kron((B + B.T).double() / 2, A.double())
    if split == "pi":  # pi is about 1e21: one factor is its damping alone, and so is the other
        gamma, pi = 0.1, ((A.double().trace() / 3) / (B.double().trace() / 2)).sqrt()
        dense = torch.kron(B.double() + gamma / pi * torch.eye(2), A.double() + gamma * pi * torch.eye(3))
    else:
        dense += 0.01 * torch.eye(6)
    wanted = torch.linalg.inv(dense)
    assert (H.inverse(0.01, split).to_dense().double() - wanted).norm() < 1e-6 * wanted.norm()
