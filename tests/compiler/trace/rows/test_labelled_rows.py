"""Losses of picked rows and their labels, some of which count for nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp

LABELS = {"all_count": [0, 1, 2, 0], "all_picked_are_ignored": [0, -100, 2, 0], "all_are_ignored": [-100] * 4,
          "of_no_weight": [0, 2, 1, 0]}


WEIGHT = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["alike", "weighted"])
def test_a_mean_over_ignored_labels_under_a_condition(weight):
    """A mean over nothing is NaN, and what it adds to the gradient zero."""
    def loss(output, y):
        labels, mask = y
        found = output.square().mean()
        if mask.any():
            found = found + F.cross_entropy(output[mask], labels[mask], weight=weight)
        return found

    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), torch.randn(4, 4, dtype=torch.float64)
    compiled = hbp.compile(model, loss, ["grad"])
    for labels in LABELS.values():
        for mask in ([0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]):
            y = torch.tensor(labels), torch.tensor(mask, dtype=torch.bool)
            expected = loss(model(x), y)
            slopes = torch.autograd.grad(expected, list(model.parameters()))
            result = compiled(x, y)
            torch.testing.assert_close(result.loss, expected.detach(), equal_nan=True)
            torch.testing.assert_close(list(result.grad.values()), list(slopes), equal_nan=True)
