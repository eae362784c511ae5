"""What is said of a loss that hardly is the one that is meant."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.refusals.advice import advice, unlikely

SCORES = torch.tensor([[1.0, 2.0], [0.5, 0.1]])


@pytest.mark.parametrize(("output", "target", "words"), [
    (SCORES[:, :1], torch.tensor([0, 0]), "of a model with one output"),
    (SCORES, -SCORES, "negative in part"),
    (SCORES, SCORES, "do not add up to 1"),
])
def test_the_default_loss_where_another_was_forgotten(output, target, words):
    assert words in unlikely(nn.CrossEntropyLoss(), output, target)
    assert not unlikely(nn.MSELoss(), output, target)


def test_nothing_is_said_of_classes_and_probabilities():
    assert not unlikely(nn.CrossEntropyLoss(), SCORES, torch.tensor([0, 1]))
    assert not unlikely(nn.CrossEntropyLoss(), SCORES, SCORES.softmax(1))


def test_targets_without_the_axis_of_one_output():
    batch = batch_of((torch.randn(2, 3), torch.randn(2)))
    assert advice("Using a target size (torch.Size([2]))", batch, "[N, 1] torch.float32").startswith("; pass y.unsq")
    assert not advice("Using a target size (torch.Size([2]))", batch, "[N, 2] torch.float32")


class Own(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(4, 3), function

    def forward(self, x):
        return self.function(self.layer(x))


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, a, b):
        return self.layer(a + b)


class Training(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def training_step(self, batch, number):
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])


def made_in_inference_mode():
    with torch.inference_mode():
        return nn.Linear(4, 3)


@pytest.mark.parametrize(("make", "text"), [
    (made_in_inference_mode, "was made under torch.inference_mode"),
    (Training, "Training, has no forward.*training_step"),
    (Sum, r"missing 1 required.*several inputs are a tuple, compiled\(\(x1, x2\), y\)"),
    (lambda: nn.Linear(5, 3), "it takes 5 features, in the last axis, and is given 4"),
    (lambda: Own(torch.sum), "returns one number, its own loss, say"),
    (lambda: Own(lambda output: output.sum().item()), r"returned float; leave .item\(\)"),
    (lambda: nn.Linear(4, 3).requires_grad_(False), r"model.requires_grad_\(True\)"),
    (nn.ReLU, "nothing trainable: no parameter has requires_grad=True$"),
    (lambda: nn.Linear(4, 3).state_dict(), "not OrderedDict: the model that loads it"),
    (lambda: torch.tanh, "must be a torch.nn.Module, not builtin"),
    (lambda: made_in_inference_mode, "not function: write it as the forward"),
])
def test_models_that_are_none(make, text):
    with pytest.raises(hbp.HbpError, match=text):
        hbp.compile(make(), nn.CrossEntropyLoss(), ["grad"])(torch.randn(6, 4), torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize(("loss", "text"), [
    (lambda output: output.sum(), r"lambda output, y: loss\(output\)$"),
    (lambda output, y, weight: output.sum(), r"lambda output, y: loss\(output, y, ...\)$"),
    (lambda y, output: nn.functional.cross_entropy(output, y), r"is called with \(output, target\), in this order"),
])
def test_losses_that_are_called_otherwise(loss, text):
    with pytest.raises(hbp.HbpError, match=text):
        hbp.compile(nn.Linear(4, 3), loss, ["grad"])(torch.randn(6, 4), torch.zeros(6, dtype=torch.long))


def test_arguments_in_another_order():
    model, batch = nn.Linear(4, 3), (torch.randn(6, 4), torch.zeros(6, dtype=torch.long))
    with pytest.raises(hbp.HbpError, match=r"the model comes first, as in hbp.compile\(model, loss\)"):
        hbp.compile(nn.CrossEntropyLoss(), model, ["grad"])
    with pytest.raises(hbp.HbpError, match=r"or third, hbp.operator\(model, loss, \(X, y\)\)"):
        hbp.operator(model, batch, nn.CrossEntropyLoss())
    with pytest.raises(hbp.HbpError, match=r"what compile returns, compiled\(X, y\)"):
        hbp.compile(model, batch)


def test_calls_that_are_none():
    compiled = hbp.compile(nn.Linear(4, 3), quantities=["grad"])
    X, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
    with pytest.raises(hbp.HbpError, match=r"not list: torch.tensor\(X\)"):
        compiled(X.tolist(), y)
    with pytest.raises(hbp.HbpError, match="all arguments of a call but the last one, the target, are inputs"):
        compiled(X, X, y)
    with pytest.raises(hbp.HbpError, match=r"not Linear: hbp.accumulate\(hbp.compile\("):
        hbp.accumulate(nn.Linear(4, 3), [(X, y)])
