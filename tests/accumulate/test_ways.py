"""Code that goes another way by the batch's size: a total is not that of all samples as one batch, which is said."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp


class ByForward(nn.Module):
    def __init__(self, most):
        super().__init__()
        self.layer, self.most = nn.Linear(4, 3), most

    def forward(self, x):
        return self.layer(x) * 2 if len(x) > self.most else self.layer(x)


def by_loss(output, target):
    return F.cross_entropy(output, target) if len(target) > 3 else 2 * F.cross_entropy(output, target)


def alike(output, target):
    return F.cross_entropy(output, target) if len(target) > 3 else F.cross_entropy(2 * output - output, target)


def batches(sizes):
    torch.manual_seed(0)
    X, y = torch.randn(sum(sizes), 4, dtype=torch.float64), torch.randint(3, (sum(sizes),))
    return list(zip(X.split(sizes), y.split(sizes), strict=True))


def as_one(data):
    return tuple(torch.cat(parts) for parts in zip(*data, strict=True))


def total(model, loss, data):
    torch.manual_seed(1)
    compiled = hbp.compile(model.double(), loss, ["grad"])
    return hbp.accumulate(compiled, data, progress=False), compiled(*as_one(data))


@pytest.mark.parametrize(("model", "loss", "sizes"), [
    (ByForward(5), nn.CrossEntropyLoss(), [4, 4, 4]), (ByForward(5), nn.CrossEntropyLoss(), [6, 6, 2]),
    (ByForward(40), nn.CrossEntropyLoss(), [30, 30]), (nn.Linear(4, 3), by_loss, [6, 2])])
def test_ways_that_differ(model, loss, sizes):
    with pytest.warns(hbp.TotalWarning, match=r"go another way(.|\n)*test_ways\.py:\d+"):
        found, right = total(model, loss, batches(sizes))
    assert abs(found.loss - right.loss) > 1e-3


@pytest.mark.parametrize(("model", "loss", "sizes"), [
    (ByForward(5), nn.CrossEntropyLoss(), [6, 6, 8]), (ByForward(50), nn.CrossEntropyLoss(), [6, 6, 8]),
    (nn.Linear(4, 3), alike, [6, 2]), (nn.Linear(4, 3), by_loss, [4, 5])])
def test_one_way_or_two_that_come_to_the_same(model, loss, sizes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, right = total(model, loss, batches(sizes))
    torch.testing.assert_close(found.loss, right.loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(dict(found.grad), dict(right.grad), rtol=1e-10, atol=1e-12)


def test_more_samples_than_are_tried():
    with pytest.warns(hbp.TotalWarning, match=r"was not tried(.|\n)*test_ways\.py:\d+"):
        total(ByForward(1999), nn.CrossEntropyLoss(), batches([1000, 1000]))


BESIDE = torch.tensor(0.3)


@pytest.mark.parametrize("beside", [lambda t: 0.3, lambda t: BESIDE, lambda t: BESIDE.exp() + t.sum()])
def test_a_number_beside_a_sum(beside):
    def loss(output, target):
        return F.cross_entropy(output, target, reduction="sum") + beside(target)

    with pytest.warns(hbp.TotalWarning, match=r"test_ways\.py:\d+.*adds a number that no sample has"):
        total(nn.Linear(4, 3), loss, batches([4, 4]))


@pytest.mark.parametrize("beside", [lambda t: 0.0, lambda t: 0.3 * len(t), lambda t: t.sum()])
def test_what_adds_up_beside_a_sum(beside):
    def loss(output, target):
        return F.cross_entropy(output, target, reduction="sum") + beside(target)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, right = total(nn.Linear(4, 3), loss, batches([4, 4]))
    torch.testing.assert_close(found.loss, right.loss, rtol=1e-10, atol=0)
