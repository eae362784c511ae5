"""What a model reads and does not register: a warning that names it, and none where none is due."""

import warnings

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.refusals.unregistered import unregistered


class Listed(nn.Module):
    """A middle layer in a plain container."""

    def __init__(self, keep, grad=True):
        super().__init__()
        self.first, self.last, self.grad = nn.Linear(4, 5), nn.Linear(5, 3), grad
        self.middle = keep(nn.Linear(5, 5))

    def forward(self, x):
        found = self.middle["a"] if isinstance(self.middle, dict) else self.middle[0]
        h = self.first(x)
        if self.grad:
            return self.last(found(h))
        with torch.no_grad():  # as of a teacher, which nobody trains
            taught = found(h)
        return self.last(h + taught)


class Plain(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.head, self.scale = nn.Linear(4, 3), torch.ones(3, **options)

    def forward(self, x):
        return self.head(x) * self.scale


def task():
    torch.manual_seed(0)
    return torch.randn(6, 4), torch.randint(3, (6,))


@pytest.mark.parametrize(("make", "name"), [
    (lambda: Listed(lambda layer: [layer]), r"middle\[0\]\.weight, middle\[0\]\.bias"),
    (lambda: nn.Sequential(Listed(lambda layer: {"a": layer})), r"0\.middle\['a'\]\.weight"),
    (lambda: Plain(requires_grad=True), r"of the model: scale\."),
])
def test_what_is_not_registered_is_named(make, name):
    X, y = task()
    model = make()
    with pytest.warns(hbp.UnusedParametersWarning, match=name):
        result = hbp.compile(model, quantities=["grad"])(X, y)
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = nn.functional.cross_entropy(model(X), y)
    for key, expected in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(result.grad[key], expected)


def test_the_optimizers_say_it_too():
    model = Listed(lambda layer: [layer])
    with pytest.warns(hbp.UnusedParametersWarning, match="nn.ModuleList"):
        hbp.optim.KFAC(model, nn.CrossEntropyLoss()).step(*task())


@pytest.mark.parametrize("make", [
    lambda: Listed(lambda layer: nn.ModuleList([layer])), lambda: Listed(lambda layer: [layer], grad=False),
    lambda: Listed(lambda layer: [layer.requires_grad_(False)]), lambda: Plain(),
])
def test_nothing_is_said_of_constants_that_are_meant(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hbp.compile(make(), quantities=["grad"])(*task())


def test_inputs_and_what_a_loss_reads_are_no_strangers():
    X, y = task()
    X.requires_grad_()
    judge = nn.Linear(3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.UnusedParametersWarning)
        hbp.compile(nn.Linear(4, 3), lambda o, y: nn.functional.cross_entropy(judge(o), y), ["grad"])(X, y)
    model = nn.Linear(4, 3)
    assert unregistered(model, [model(X)], [X]) == ""
    assert "a tensor [6, 4]" in unregistered(model, [model(X)], [])
    assert unregistered(model, [torch.ones(3)], []) == ""
