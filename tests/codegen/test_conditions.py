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
    first, second = asserted(compiled.code)
    assert first == 'assert x.shape[2] == 2, "x is not [N, T, 2], for which this file was written"'
    assert "N <= 4" in second
    for length in (5, 8, 12):
        compiled.program(dict(compiled.state), *batch(4, length))


def test_what_has_no_axes_beside_the_samples_is_not_asked_for_any():
    graph = torch.fx.Graph()
    x, y, w = map(graph.placeholder, "xyw")
    meta.set_tensor(x, ("N", "3", "4"), torch.float32)
    meta.set_tensor(y, ("N",), torch.int64)
    assert conditions({x: "images", y: "y", w: "state"}, EVERY) == [
        'assert list(images.shape[1:]) == [3, 4], "images is not [N, 3, 4], for which this file was written"']


def test_a_length_that_another_makes_is_asked_for():
    """Two axes of any length have programs for those that keep a distance."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    compiled = hbp.compile(model, nn.MSELoss(), ["grad"], dynamic={"x": [2, 3]})
    y = torch.randn(4, 2)
    compiled(torch.randn(4, 1, 8, 9), y)
    program, state = compiled.program, dict(compiled.state)
    message = '"x is not [N, 1, T, T + 1], for which this file was written"'
    assert asserted(compiled.code)[:2] == [f"assert x.shape[1] == 1, {message}",
                                           f"assert x.shape[3] == x.shape[2] + 1, {message}"]
    program(state, torch.randn(4, 1, 11, 12), y)
    with pytest.raises(AssertionError, match="x is not"):
        program(state, torch.randn(4, 1, 11, 14), y)
