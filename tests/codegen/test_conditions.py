"""What a saved file refuses, because it was written for other arguments."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.codegen.conditions import conditions
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.trace.sizes import EVERY


class Covariance(nn.Module):
    """Has the sequence's length in it, and goes another way for large batches."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 4), nn.Linear(16, 3)

    def forward(self, x):
        z = self.inner(x)
        found = self.outer((z.transpose(1, 2) @ z / x.shape[1]).flatten(1))
        return 2 * found if x.shape[0] > 4 else found


def batch(samples, length):
    return torch.randn(samples, length, 2), torch.zeros(samples, dtype=torch.int64)


def asserted(code):
    return [line.strip() for line in code.splitlines() if line.strip().startswith("assert ")]


def test_a_file_refuses_other_lengths_and_batches_that_go_another_way():
    compiled = hbp.compile(Covariance(), quantities=["grad"])
    compiled(*batch(4, 8))
    program, scripted = compiled.program, torch.jit.script(compiled.program)
    state = dict(compiled.state)
    for samples in (0, 1, 3, 4):
        program(state, *batch(samples, 8))
    for run, error in ((program, AssertionError), (scripted, torch.jit.Error)):
        with pytest.raises(error, match=r"x is not \[N, 8, 2\], for which this file was written"):
            run(state, *batch(4, 12))
        with pytest.raises(error, match="this file is for batches of N samples with N <= 4"):
            run(state, *batch(5, 8))
    compiled(*batch(5, 8))
    assert "this file is for batches of N samples with N > 4" in compiled.code


def test_a_file_for_any_length_asks_for_what_it_needs():
    compiled = hbp.compile(Covariance(), quantities=["grad"], dynamic={"x": [1]})
    compiled(*batch(4, 8))
    message = '"x is not [N, T, 2], for which this file was written"'
    axes, features, targets, size = asserted(compiled.code)
    assert axes == f"assert x.dim() == 3, {message}"
    assert features == f"assert x.shape[2] == 2, {message}"
    assert targets == 'assert list(y.shape) == [x.shape[0]], "y is not [N], for which this file was written"'
    assert "N <= 4" in size
    for length in (5, 8, 12):
        compiled.program(dict(compiled.state), *batch(4, length))


def test_targets_have_as_many_samples_as_the_inputs_and_no_further_axes():
    graph = torch.fx.Graph()
    x, y, w = map(graph.placeholder, "xyw")
    meta.set_tensor(x, ("N", "3", "4"), torch.float32)
    meta.set_tensor(y, ("N",), torch.int64)
    assert conditions({x: "images", y: "y", w: "state"}, EVERY) == [
        'assert list(images.shape[1:]) == [3, 4], "images is not [N, 3, 4], for which this file was written"',
        'assert list(y.shape) == [images.shape[0]], "y is not [N], for which this file was written"']


@pytest.mark.parametrize("target", [torch.zeros(1), torch.zeros(()), torch.zeros(6, 1), torch.zeros(3)])
@pytest.mark.parametrize("script", [False, True])
def test_targets_that_would_be_broadcast_are_refused(target, script):
    compiled = hbp.compile(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), nn.MSELoss(), ["grad"])
    X = torch.randn(6, 4)
    compiled(X, torch.randn(6))
    program = torch.jit.script(compiled.program) if script else compiled.program
    with pytest.raises(torch.jit.Error if script else AssertionError, match=r"y is not \[N\]"):
        program(dict(compiled.state), X, target)


class Threshold(nn.Module):
    def __init__(self, condition):
        super().__init__()
        self.condition, self.layer = condition, nn.Linear(2, 3)

    def forward(self, x):
        found = self.layer(x)
        return 2 * found if self.condition(len(x)) else found


@pytest.mark.parametrize(("condition", "size"), [
    (lambda n: n > 1000, 1001), (lambda n: 3 * n >= 1000, 334), (lambda n: n * n > 10**6, 1001),
    (lambda n: n < 300, 300),
])
def test_conditions_that_turn_at_large_batches(condition, size):
    """The file refuses batches of the other kind, and the compiled model has a program for them."""
    model = Threshold(condition).double()
    compiled = hbp.compile(model, quantities=["grad"], example_inputs=(torch.randn(6, 2).double(), torch.arange(6) % 3))
    program, state = compiled.program, dict(compiled.state)
    for samples in (size - 1, size):
        X, y = torch.randn(samples, 2, dtype=torch.float64), torch.arange(samples) % 3
        expected = torch.autograd.grad(nn.CrossEntropyLoss()(model(X), y), [*model.parameters()])
        torch.testing.assert_close([*compiled(X, y).grad.values()], [*expected])
        if condition(samples) == condition(6):
            torch.testing.assert_close([*program(state, X, y).grad.values()], [*expected])
        else:
            with pytest.raises(AssertionError, match="this file is for batches"):
                program(state, X, y)


def test_a_length_that_another_makes_is_asked_for():
    """Two axes of any length have programs for those that keep a distance."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    compiled = hbp.compile(model, nn.MSELoss(), ["grad"], dynamic={"x": [2, 3]})
    y = torch.randn(4, 2)
    compiled(torch.randn(4, 1, 8, 9), y)
    program, state = compiled.program, dict(compiled.state)
    message = '"x is not [N, 1, T, T + 1], for which this file was written"'
    assert asserted(compiled.code)[:3] == [f"assert x.dim() == 4, {message}", f"assert x.shape[1] == 1, {message}",
                                           f"assert x.shape[3] == x.shape[2] + 1, {message}"]
    program(state, torch.randn(4, 1, 11, 12), y)
    with pytest.raises(AssertionError, match="x is not"):
        program(state, torch.randn(4, 1, 11, 14), y)
