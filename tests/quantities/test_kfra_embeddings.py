"""KFRA: B of an embedding, whose places that learn nothing are others in each sample: the average of what each sees."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.agreement import close


@pytest.mark.parametrize("positions", [(), (3,)])
@pytest.mark.parametrize("padding", [None, 0])
def test_of_one_sample_or_a_constant_curvature_it_is_kflr(padding, positions):
    torch.manual_seed(0)
    wide = 4 * (positions[0] if positions else 1)
    X, y = torch.randint(6, (5, *positions)), torch.randn(5, 3, dtype=torch.float64)
    curved = nn.Sequential(nn.Embedding(6, 4, padding), nn.Flatten(), nn.Tanh(), nn.Linear(wide, 3)).double()
    compiled = hbp.compile(curved, nn.MSELoss(), ["kfra", "kflr"], example_inputs=(X, y))
    for n in range(5):
        one = compiled(X[n : n + 1], y[n : n + 1])
        close(one.kfra["0.weight"].B, one.kflr["0.weight"].B, "one sample")
    straight = nn.Sequential(curved[0], curved[1], curved[3])
    result = hbp.compile(straight, nn.MSELoss(), ["kfra", "kflr"])(X, y)
    close(result.kfra["0.weight"].B, result.kflr["0.weight"].B, "the same matrix at every sample")
    weights = torch.arange(5.0)
    weighted = hbp.compile(straight, nn.MSELoss(), ["kfra", "kflr"])(X, y, sample_weights=weights)
    close(weighted.kfra["0.weight"].B, weighted.kflr["0.weight"].B, "weighted")
