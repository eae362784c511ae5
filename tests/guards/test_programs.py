"""Programs made before a change of Python's state are not used after it, and are found again: against autograd."""

import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.agreement import close

X, Y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
FACTOR = torch.tensor(2.0, dtype=torch.float64)


class Scaled(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.layer, self.T = nn.Linear(3, 2).double(), 1.0
        self.kept = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        self.kept.append(1)
        return self.layer(x) / self.T


def agrees(compiled, model, loss, x=X, y=Y):
    result = compiled(x, y)
    wanted = loss(model(x), y)
    close(result.loss, wanted.detach(), "loss")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, slope in zip(parameters, torch.autograd.grad(wanted, [*parameters.values()]), strict=True):
        close(result.grad[name], slope, name)


def programs(compiled):
    return int(repr(compiled).partition("programs=")[2].rstrip(")"))


def test_changes_of_model_and_loss_there_and_back():
    model, loss = Scaled(), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0], dtype=torch.float64))
    compiled = hbp.compile(model, loss, quantities=["grad"])
    agrees(compiled, model, loss)
    assert len(model.kept) == 1  # by the model's own run above: tracing has left the list alone
    model.T = 5.0
    agrees(compiled, model, loss)
    model.layer = nn.Linear(3, 2).double()
    loss.weight = torch.tensor([3.0, 1.0], dtype=torch.float64)
    model.T = 1.0
    agrees(compiled, model, loss)
    loss.reduction = "sum"
    agrees(compiled, model, loss)


def test_going_back_finds_the_program():
    model, loss = Scaled(), nn.CrossEntropyLoss()
    model.forward = lambda x: model.layer(x) / model.T
    compiled = hbp.compile(model, loss, quantities=["grad"])
    for T in (1.0, 5.0, 1.0, 5.0):
        model.T = T
        agrees(compiled, model, loss)
    assert programs(compiled) == 2
    handle = model.layer.register_forward_hook(lambda m, i, o: 2 * o)
    agrees(compiled, model, loss)
    handle.remove()
    agrees(compiled, model, loss)
    assert programs(compiled) == 3


def test_tensors_outside_the_model_are_read_live():
    """In attributes, closures and globals, replaced and in place; numbers that Python reads of them make programs."""
    global FACTOR
    model = Scaled(T=torch.tensor(2.0, dtype=torch.float64), number=torch.tensor(3.0))
    held = [torch.tensor(0.5, dtype=torch.float64)]
    model.forward = lambda x: model.layer(x) / model.T * held[0] * float(model.number)
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def loss(o, t):
        return F.cross_entropy(o, t, weight=weight) * FACTOR

    compiled = hbp.compile(model, loss, quantities=["grad"])
    agrees(compiled, model, loss)
    model.T, held[0] = torch.tensor(3.0, dtype=torch.float64), torch.tensor(7.0, dtype=torch.float64)
    weight, FACTOR = torch.tensor([4.0, 2.0], dtype=torch.float64), FACTOR * 2
    agrees(compiled, model, loss)
    weight[0] = 0.25
    model.T.add_(1)
    agrees(compiled, model, loss)
    assert programs(compiled) == 1
    model.number.fill_(5.0)
    agrees(compiled, model, loss)
    assert programs(compiled) == 2


def test_tied_and_reshaped_parameters():
    model, loss = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double(), nn.CrossEntropyLoss()
    compiled = hbp.compile(model, loss, quantities=["grad"])
    agrees(compiled, model, loss)
    model[2].weight = model[0].weight
    agrees(compiled, model, loss)
    model[2] = nn.Linear(3, 5).double()
    agrees(compiled, model, loss)
    model.append(nn.Sigmoid())
    agrees(compiled, model, loss)


GENERATOR = np.random.default_rng(0)
COUNT, CYCLE, LISTED = itertools.count(1), itertools.cycle([1.0, 2.0]), iter([1.0] * 9)
MADE, PAIRS = (float(number) for number in range(9)), enumerate([1.0] * 9)


@pytest.mark.parametrize(("draw", "words"), [
    (lambda: random.gauss(0, 1), "Python's random"), (lambda: np.random.rand(), "numpy.random"),
    (lambda: GENERATOR.normal(), "numpy.random._generator.Generator"), (lambda: next(COUNT), "an iterator (count)"),
    (lambda: next(CYCLE), "an iterator (cycle)"), (lambda: next(LISTED), "an iterator (list_iterator)"),
    (lambda: next(MADE), "an iterator (generator)"), (lambda: next(PAIRS)[1], "an iterator (enumerate)")])
def test_draws_that_are_not_torchs_are_refused(draw, words):
    model = nn.Linear(3, 2).double()
    model.forward = lambda x: model.weight.sum() + x * (
        1 + draw())
    states = [random.getstate(), GENERATOR.bit_generator.state]
    with pytest.raises(hbp.CompileError, match="draws from") as caught:
        hbp.compile(model, quantities=["grad"])(X, Y)
    assert words in str(caught.value)
    assert f"{__file__}:" in str(caught.value)
    assert [random.getstate(), GENERATOR.bit_generator.state] == states


def test_iterators_that_forward_leaves_alone():
    model = nn.Linear(3, 2).double()
    model.batches, model.numbers = iter([1, 2]), (number for number in [1, 2])
    compiled = hbp.compile(model, quantities=["grad"])
    for _ in range(2):
        agrees(compiled, model, nn.CrossEntropyLoss())
        next(model.batches), next(model.numbers)
    assert len(compiled._guards) == 1


def test_torchs_own_draws_are_followed():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).double()
    compiled = hbp.compile(model, quantities=["grad"])
    assert not torch.equal(compiled(X, Y).output, compiled(X, Y).output)
    model[1].p = 0.0
    close(compiled(X, Y).output, model(X).detach(), "output")


def test_the_programs_used_last_are_kept():
    model = nn.Sequential(nn.Linear(3, 2), nn.Flatten(2), nn.AdaptiveAvgPool1d(2), nn.Flatten()).double()
    compiled = hbp.compile(model, quantities=["grad"], limits=hbp.Limits(kept_programs=2), verify=False, dynamic=False)

    def of(length):
        compiled(torch.randn(4, length, 3, dtype=torch.float64), torch.tensor([0, 3, 2, 1]).clamp(max=2 * length - 1))
        return compiled.program

    first, second = of(2), of(3)
    assert of(2) is first
    of(4)
    assert programs(compiled) == 2
    assert of(2) is first
    assert of(3) is not second
    assert programs(compiled) == 2
    agrees(compiled, model, nn.CrossEntropyLoss(), torch.randn(4, 3, 3, dtype=torch.float64))


def test_a_tensor_that_a_transformation_has_left_behind():
    """torch.func leaves such tensors in an LSTM, of no storage that one could ask for; the module runs on."""
    left = []
    torch.func.grad(lambda x: [left.append(x), x.sum()][1])(torch.ones(2))
    with pytest.raises(RuntimeError, match="storage"):
        left[0].data_ptr()
    model = Scaled(left=left)
    agrees(hbp.compile(model, quantities=["grad"]), model, nn.CrossEntropyLoss())
