"""Tensors beside the parameters: written to in place, and made numbers of."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp

X, Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0])


class Writing(nn.Module):
    """Counts its calls in a tensor, in place."""

    def __init__(self, kind="attribute"):
        super().__init__()
        self.kind, self.count = kind, torch.zeros(())

    def forward(self, output, target=None):
        if self.kind == "attribute":
            self.count += 1
        else:
            CALLS.add_(1)
        return output if target is None else nn.functional.mse_loss(output, target)


CALLS = torch.zeros(())


@pytest.mark.parametrize(("model", "loss", "text"), [
    (nn.Sequential(nn.Linear(3, 2), Writing()), nn.MSELoss(), "module '1' writes in place to its tensor 'count'"),
    (nn.Linear(3, 2), Writing(), r"the loss writes in place to its tensor 'count'.*self.count = self.count \+ 1"),
    (nn.Linear(3, 2), Writing("global"), "the loss writes in place to a tensor that is made elsewhere"),
])
def test_tensors_that_are_no_buffers_are_written_to(model, loss, text):
    with pytest.raises(hbp.HbpError, match=text):
        hbp.compile(model, loss, ["grad"])(torch.randn(4, 3), torch.randn(4, 2))


class Cooled(nn.Module):
    """A buffer's number in forward."""

    def __init__(self, registered):
        super().__init__()
        self.head = nn.Linear(3, 2)
        if registered:
            self.register_buffer("temperature", torch.tensor(2.0))
        else:
            self.temperature = torch.tensor(2.0)

    def forward(self, x):
        return self.head(x) / float(self.temperature)


def test_the_number_of_a_buffer_is_refused_by_line():
    with pytest.raises(hbp.HbpError, match=r"return self.head\(x\) / float\(self.temperature\).*keep it a tensor"):
        hbp.compile(Cooled(True), nn.CrossEntropyLoss(), ["grad"])(X, Y)


def test_the_number_of_a_plain_tensor_is_looked_at_in_each_call():
    model = Cooled(False)
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["grad"])
    for temperature in (2.0, 0.5):
        model.temperature.fill_(temperature)
        found = compiled(X, Y).grad
        right = torch.autograd.grad(nn.functional.cross_entropy(model(X), Y), list(model.parameters()))
        for value, each in zip(found.values(), right, strict=True):
            torch.testing.assert_close(value, each)
