"""What a saved file refuses, because it was written for other arguments."""

import importlib.util
import math

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.codegen.conditions import conditions
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.trace.conditions.sizes import EVERY
from tests.selection import few, slow


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


@slow("files for one length are tested")
def test_a_file_for_any_length_asks_for_what_it_needs():
    compiled = hbp.compile(Covariance(), quantities=["grad"], dynamic={"x": [1]})
    compiled(*batch(4, 8))
    message = '"x is not [N, T, 2], for which this file was written"'
    axes, features, targets, weights, size = asserted(compiled.code)
    assert axes == f"assert x.dim() == 3, {message}"
    assert features == f"assert x.shape[2] == 2, {message}"
    assert targets == 'assert list(y.shape) == [x.shape[0]], "y is not [N], for which this file was written"'
    assert weights == ('assert sample_weights is None or list(sample_weights.shape) == [x.shape[0]], '
                       '"sample_weights is not [N]"')
    assert "N <= 4" in size
    for length in (5, 8, 12):
        compiled.program(dict(compiled.state), *batch(4, length))


class Cut(nn.Module):
    """Another function of sequences longer than eight."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        return torch.tanh(self.layer(x[:, :8])).mean(1)


def test_a_saved_file_refuses_lengths_that_nobody_looked_at(tmp_path):
    model = Cut().double()
    compiled = hbp.compile(model, quantities=["grad"], dynamic={"x": [1]})
    X, y = torch.randn(4, 40, 2, dtype=torch.float64), torch.arange(4) % 3
    compiled(X[:, :5], y)
    assert "tried at" not in compiled.code
    state, expected = dict(compiled.state), torch.autograd.grad(nn.CrossEntropyLoss()(model(X[:, :6]), y),
                                                                [*model.parameters()])
    program = load(compiled.save(tmp_path / "short.py"))
    for each in (program, torch.jit.script(program)):
        torch.testing.assert_close([*each(state, X[:, :6], y).grad.values()], [*expected])
        with pytest.raises((AssertionError, torch.jit.Error), match="is not between 4 and 6, the lengths"):
            each(state, X, y)


@slow("a saved file")
def test_a_saved_file_is_for_the_lengths_between_those_of_the_calls(tmp_path):
    model = Covariance().double()
    compiled = hbp.compile(model, quantities=["grad"], dynamic={"x": [1]})
    X, y = torch.randn(4, 40, 2, dtype=torch.float64), torch.arange(4) % 3
    compiled(X[:, :5], y)
    compiled(X, y)
    program, state = load(compiled.save(tmp_path / "long.py")), dict(compiled.state)
    for length in (6, 29, 40):
        expected = torch.autograd.grad(nn.CrossEntropyLoss()(model(X[:, :length]), y), [*model.parameters()])
        torch.testing.assert_close([*program(state, X[:, :length], y).grad.values()], [*expected])


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Program()


def test_targets_have_as_many_samples_as_the_inputs_and_no_further_axes():
    graph = torch.fx.Graph()
    x, y, w = map(graph.placeholder, "xyw")
    meta.set_tensor(x, ("N", "3", "4"), torch.float32)
    meta.set_tensor(y, ("N",), torch.int64)
    assert conditions({x: "images", y: "y", w: "state"}, EVERY) == [
        'assert list(images.shape[1:]) == [3, 4], "images is not [N, 3, 4], for which this file was written"',
        'assert list(y.shape) == [images.shape[0]], "y is not [N], for which this file was written"']


@few(3, "further cases of one kind")
@pytest.mark.parametrize("target", [torch.zeros(1), torch.zeros(()), torch.zeros(6, 1), torch.zeros(3)])
@pytest.mark.parametrize("script", [False, True])
def test_targets_that_would_be_broadcast_are_refused(target, script):
    compiled = hbp.compile(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), nn.MSELoss(), ["grad"])
    X = torch.randn(6, 4)
    compiled(X, torch.randn(6))
    program = torch.jit.script(compiled.program) if script else compiled.program
    with pytest.raises(torch.jit.Error if script else AssertionError, match=r"y is not \[N\]"):
        program(dict(compiled.state), X, target)


@pytest.mark.parametrize("shape", [(6, 1), (1,), (), (2,)])
def test_weights_that_would_be_broadcast_are_refused(shape):
    compiled = hbp.compile(nn.Linear(4, 3), quantities=["grad"])
    X, y = torch.randn(6, 4), torch.arange(6) % 3
    compiled(X, y)
    state = dict(compiled.state)
    for program in (compiled.program, torch.jit.script(compiled.program)):
        program(state, X, y, torch.ones(6))
        with pytest.raises((AssertionError, torch.jit.Error), match=r"sample_weights is not \[N\]"):
            program(state, X, y, torch.ones(shape))


class Threshold(nn.Module):
    def __init__(self, condition):
        super().__init__()
        self.condition, self.layer = condition, nn.Linear(2, 3)

    def forward(self, x):
        found = self.layer(x)
        return 2 * found if self.condition(len(x)) else found


@few(2, "further cases of one kind")
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


@few(2, "further cases of one kind")
@pytest.mark.parametrize("number", [
    lambda n: int(0.5 * n) + 1, lambda n: int(n**0.5), lambda n: 2 if math.floor(0.3 * n) < 5 else 3,
    lambda n: int(n / 4) + 1,
])
def test_whole_numbers_that_python_makes_of_the_batchs_size(number):
    """Each has a program for the sizes that make the same number, and its file asks for those."""
    def loss(output, target):
        return nn.functional.cross_entropy(output, target, reduction="sum") / number(len(output))

    model = nn.Linear(2, 3).double()
    compiled = hbp.compile(model, loss, quantities=["grad"])
    for samples in (6, 4, 7, 9):
        X, y = torch.randn(samples, 2, dtype=torch.float64), torch.arange(samples) % 3
        expected = torch.autograd.grad(loss(model(X), y), [*model.parameters()])
        torch.testing.assert_close([*compiled(X, y).grad.values()], [*expected])
        torch.testing.assert_close([*torch.jit.script(compiled.program)(dict(compiled.state), X, y).grad.values()],
                                   [*expected])
    with pytest.raises(AssertionError, match="this file is for batches of N samples with"):
        compiled.program(dict(compiled.state), torch.randn(700, 2, dtype=torch.float64), torch.arange(700) % 3)
