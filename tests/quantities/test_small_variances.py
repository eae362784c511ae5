"""Variances beside means that dwarf them: rounding leaves none below zero, of which a root would be no number."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from tests.selection import slow


@slow("random data")
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.0, 1e-6, 1e-3]))
def test_no_variance_is_below_zero(seed: int, spread: float) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    X = torch.randn(1, 7).expand(6, 7) + spread * torch.randn(6, 7)
    y = torch.ones(6, dtype=torch.int64)
    result = hbp.compile(model, quantities=["variance", "second_moment"])(X, y)
    wanted = reference(model.double(), nn.CrossEntropyLoss(), [X.double()], y, "variance")
    for name, found in result.variance.items():
        assert (found >= 0).all()
        rounding = 1e-6 * float(result.second_moment[name].abs().max())
        assert (found - wanted[name]).abs().max() <= rounding


def test_a_variance_of_nan_stays_nan() -> None:
    model = nn.Linear(2, 1)
    X = torch.tensor([[float("nan"), 1.0], [0.0, 1.0]])
    result = hbp.compile(model, nn.MSELoss(), quantities=["variance"])(X, torch.zeros(2, 1))
    assert result.variance["weight"].isnan().all()
