"""Tensors with a history that forward reads and does not compute."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.refusals.from_outside import OUTSIDE
from hbpcompiler.errors import ModelError


class Net(nn.Module):
    def __init__(self, make, read):
        super().__init__()
        self.weight, self.head, self.read = nn.Parameter(torch.randn(8, 4)), nn.Linear(4, 3), read
        self.kept = make(self.weight)

    def forward(self, x):
        return self.head(torch.tanh(self.read(self, x)))


def without_gradient(model, x):
    with torch.no_grad():
        kept = 2 * model.kept[:4]
    return x @ kept + x @ model.weight[:4]


BATCH = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(("make", "read"), [
    (lambda w: w[:4], lambda model, x: x @ model.kept.T), (lambda w: [w.exp()], lambda model, x: x @ model.kept[0][:4]),
    (lambda w: (lambda x, half=w[4:]: x @ half), lambda model, x: model.kept(x)),
], ids=["attribute", "list", "closure"])
def test_a_derivative_from_outside_is_refused(make, read):
    with pytest.raises(ModelError, match=r"test_from_outside\.py") as caught:
        hbp.compile(Net(make, read), quantities=["grad"])(*BATCH)
    assert OUTSIDE in str(caught.value)


@pytest.mark.parametrize("read", [lambda model, x: x @ model.kept.detach()[:4] + x @ model.weight[:4], without_gradient,
                                  lambda model, x: x @ model.weight[: model.kept.shape[0] // 2]])
def test_what_takes_up_no_derivative(read):
    model = Net(torch.exp, read)
    found = hbp.compile(model, quantities=["grad"])(*BATCH).grad["weight"]
    own = torch.autograd.grad(nn.CrossEntropyLoss()(model(BATCH[0]), BATCH[1]), model.weight)[0]
    torch.testing.assert_close(found, own)
