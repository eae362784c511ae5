"""Curvatures in two operands of quite different sizes: neither is rounded away."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference


class GeneralizedMean(nn.Module):
    """Pooling by a mean of powers, with a trained exponent (Radenovic et al. 2018)."""

    def __init__(self):
        super().__init__()
        self.exponent, self.last = nn.Parameter(torch.full((1,), 3.0)), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(x.clamp(min=1e-6).pow(self.exponent).mean((2, 3)).pow(1.0 / self.exponent))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_pooling_over_windows_of_zeros(dtype, tolerance):
    """The mean is 1e-18 there, the curvature in it 1e23 times that in the exponent."""
    torch.manual_seed(0)
    model = GeneralizedMean().to(dtype)
    X, y = torch.randn(6, 2, 3, 3, dtype=dtype).relu(), torch.randint(2, (6,))
    X[0, 0] = X[1, 1] = X[2] = 0
    compiled = hbp.compile(model, quantities=["diag_h", "batch_diag_h"], example_inputs=(X[3:], y[3:]))
    result = compiled(X, y)
    expected = reference(model.double(), nn.CrossEntropyLoss(), (X.double(),), y, "diag_h")
    for name, value in expected.items():
        torch.testing.assert_close(result.diag_h[name].double(), value, rtol=tolerance, atol=tolerance * 1e-3)
        torch.testing.assert_close(result.batch_diag_h[name].sum(0).double(), value, rtol=tolerance,
                                   atol=tolerance * 1e-3)
