"""torch.bincount of a batch's targets: as long as it is said to be, and refused where it is not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.errors import ModelError


def balanced(output, y):
    return F.cross_entropy(output, y, weight=1 / torch.bincount(y, minlength=3).clamp(min=1).double())


def of_weights(output, y):
    return F.cross_entropy(output, y, weight=y.bincount(torch.full_like(y, 2).double(), minlength=output.shape[1]) + 1)


@pytest.mark.parametrize("loss", [balanced, of_weights])
def test_counts_of_a_said_length_are_those_of_each_batch(loss):
    torch.manual_seed(0)
    model = nn.Linear(3, 3).double()
    compiled = hbp.compile(model, loss, ["grad"])
    x = torch.randn(6, 3).double()
    for y in (torch.tensor([0, 1, 2, 1, 1, 0]), torch.tensor([1, 1, 1, 1, 0, 0])):
        right = torch.autograd.grad(loss(model(x), y), model.weight)[0]
        torch.testing.assert_close(compiled(x, y).grad["weight"], right, rtol=1e-10, atol=1e-12)


def test_counts_of_no_said_length_are_refused_with_what_to_write():
    def loss(output, y):
        return F.cross_entropy(output, y, weight=1 / torch.bincount(y).clamp(min=1).double())

    with pytest.raises(ModelError, match=r"F\.one_hot\(t, C\)\.sum\(0\)"):
        hbp.compile(nn.Linear(3, 3).double(), loss, ["grad"])(torch.randn(3, 3).double(), torch.tensor([0, 1, 2]))
