"""Plain attributes of parameters and buffers, p.scale = 2.0: tensors in their place have them, and they belong to the
state."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.guards.walk import Walk
from tests.guards.test_programs import agrees, programs

READS = {
    "of a parameter": lambda model: model.layer.weight.scale,
    "with a default": lambda model: getattr(model.layer.weight, "scale", 1.0),
    "of a buffer": lambda model: model.shift.scale,
    "a buffer of it": lambda model: model.layer.weight.factor * model.shift.scale,
    "if there is one": lambda model: 2.0 if hasattr(model.layer.bias, "late") else 1.0,
}


class Marked(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.layer, self.read = nn.Linear(3, 2).double(), read
        self.register_buffer("shift", torch.ones(2, dtype=torch.float64))
        self.layer.weight.scale, self.shift.scale = 2.0, 3.0
        self.layer.weight.factor = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def forward(self, x):
        return self.layer(x) * self.read(self) + self.shift


@pytest.mark.parametrize("name", READS)
def test_attributes_there_and_back(name):
    model, loss = Marked(READS[name]), nn.CrossEntropyLoss()
    compiled = hbp.compile(model, loss, quantities=["grad"])
    agrees(compiled, model, loss)
    model.layer.weight.scale = model.shift.scale = 5.0
    model.layer.bias.late = True
    model.layer.weight.factor = torch.tensor([4.0, 3.0], dtype=torch.float64)
    agrees(compiled, model, loss)
    model.layer.weight.scale, model.shift.scale = 2.0, 3.0
    del model.layer.bias.late, model.layer.weight.scale
    model.layer.weight.scale = 2.0
    model.layer.weight.factor.add_(1.0)
    agrees(compiled, model, loss)
    assert programs(compiled) == 2


def test_a_loss_and_every_quantity_of_the_proof():
    model = Marked(READS["of a parameter"])
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0], dtype=torch.float64))
    loss.weight.scale = 0.5
    forward = loss.forward
    loss.forward = lambda output, target: forward(output, target) * loss.weight.scale
    compiled = hbp.compile(model, loss, quantities=["grad", "diag_h", "kflr"], verify="full")
    for scale in (0.5, 3.0):
        loss.weight.scale = scale
        agrees(compiled, model, loss)


def test_what_no_code_names_changes_nothing():
    """Optimizers keep numbers there."""
    model = Marked(READS["of a buffer"])
    walk = Walk(model, nn.MSELoss())
    model.layer.weight.steps = 3
    assert Walk(model, nn.MSELoss()).key == walk.key


def test_what_a_forward_sets_is_put_back():
    model = Marked(READS["of a parameter"])
    walk = Walk(model, nn.MSELoss())
    model.layer.weight.scale, model.shift.late = 7.0, 1
    walk.watched.put_back()
    assert (model.layer.weight.scale, hasattr(model.shift, "late")) == (2.0, False)
    assert walk.watched.unchanged()


@pytest.mark.parametrize("asks", [lambda held: held.is_contiguous(), lambda held: held.stride()[0] == 3])
def test_how_numbers_lie_where_code_asks(asks):
    model, loss = Marked(lambda model: model.held[0][0, :2] * (2.0 if asks(model.held[0]) else 1.0)), nn.MSELoss()
    targets = torch.ones(4, 2, dtype=torch.float64)
    model.held = [torch.arange(9, dtype=torch.float64).reshape(3, 3)]
    compiled = hbp.compile(model, loss, quantities=["grad"])
    for _ in range(3):
        agrees(compiled, model, loss, y=targets)
        model.held[0] = model.held[0].t()
    assert programs(compiled) == 2
