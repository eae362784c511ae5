"""Hidden parameters that lie in the memory of registered ones: right, or traced anew, whichever of them is moved."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.guards.memory import place, shared
from tests.selection import few


class Hidden(nn.Module):
    """A layer that `parameters()` does not show, with the weight of one that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.shown, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        hidden = nn.Linear(4, 4, bias=False)
        hidden.weight.data = self.shown.weight.data
        self.hidden = [hidden]

    def forward(self, x):
        return self.head(self.shown(x).tanh() + self.hidden[0](x))


def _new():
    return torch.randn(4, 4, dtype=torch.float64)


MOVES = {
    "another parameter": lambda model: setattr(model.shown, "weight", nn.Parameter(_new())),
    "assigned": lambda model: model.load_state_dict({"shown.weight": _new(), "head.weight": model.head.weight,
                                                     "head.bias": model.head.bias}, assign=True),
    "other numbers": lambda model: model.shown.weight.data.copy_(_new()),
    "other memory": lambda model: setattr(model.shown.weight, "data", _new()),
    "other memory of the hidden": lambda model: setattr(model.hidden[0].weight, "data", _new()),
    "another hidden": lambda model: setattr(model.hidden[0], "weight", nn.Parameter(_new())),
}


@few(4, "further cases of one kind")
@pytest.mark.parametrize("first", MOVES)
@pytest.mark.parametrize("second", ["other memory", "other memory of the hidden"])
def test_what_lay_in_one_memory(first, second):
    torch.manual_seed(0)
    model, loss = Hidden().double(), nn.CrossEntropyLoss()
    model.hidden[0].double().weight.data = model.shown.weight.data
    inputs, targets = torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,))
    compiled = hbp.compile(model, loss, ["grad"], verify=False)
    for move in (lambda _: None, MOVES[first], MOVES[second]):
        move(model)
        value = loss(model(inputs), targets)
        expected = torch.autograd.grad(value, list(model.parameters()))
        result = compiled(inputs, targets)
        torch.testing.assert_close(result.loss, value.detach())
        torch.testing.assert_close(result.grad, dict(zip(dict(model.named_parameters()), expected, strict=True)))


def test_places():
    numbers = torch.zeros(3, 3)
    alike, turned, other = numbers.view(3, 3), numbers.T, torch.zeros(3, 3)
    assert place(numbers) == place(alike)
    assert place(numbers) != place(turned)
    assert shared([other, numbers, turned, alike]) == [[1, 3]]
    assert shared([torch.zeros(0), torch.zeros(0)]) == []
