"""Losses of picked rows and their labels, some of which count for nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp

LABELS = {"all_count": [0, 1, 2, 0], "all_picked_are_ignored": [0, -100, 2, 0], "all_are_ignored": [-100] * 4,
          "of_no_weight": [0, 2, 1, 0]}


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)],
                         ids=["alike", "weighted"])
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


AS_NUMBERS = {
    "one_hot": lambda o, y: (F.one_hot(y, 2) * o).sum(),
    "probabilities": lambda o, y: F.cross_entropy(o, F.one_hot(y, 2).to(o.dtype), reduction="sum"),
    "gather": lambda o, y: -o.log_softmax(1).gather(1, y[:, None]).sum(),
    "divisor": lambda o, y: ((12 // (y + 1))[:, None] * o).sum(),
    "exponent": lambda o, y: ((2**y)[:, None] * o).sum(),
}


@pytest.mark.parametrize("name", AS_NUMBERS)
def test_labels_that_the_mask_leaves_out_may_be_any_numbers(name):
    """Torch raises at such a class, a division by zero and a negative power."""
    def loss(output, y):
        mask = (y >= 0) & (y < 2)
        return AS_NUMBERS[name](output[mask], y[mask])

    torch.manual_seed(0)
    model, x = nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64)
    compiled = hbp.compile(model, loss, ["grad"])
    for labels in ([0, -1, 1, 7], [-100, -1, 1, 0], [0, 1, 1, 0]):
        y = torch.tensor(labels)
        expected = torch.autograd.grad(loss(model(x), y), [*model.parameters()])
        torch.testing.assert_close([*compiled(x, y).grad.values()], [*expected])
