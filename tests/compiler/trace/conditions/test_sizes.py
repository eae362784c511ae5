"""Code that compares the batch's size has a program for each way that it goes."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.conditions.sizes import EVERY, Sizes, sizes_of
from hbpcompiler.reference import reference
from tests.agreement import close

D = torch.float64


class BySize(nn.Module):
    """Four ways: of few and of many samples, odd ones and even ones."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        if x.shape[0] > 8:
            x = 2 * x
        return self.head(x) if x.shape[0] % 2 else -self.head(x)


def test_each_size_has_the_program_of_its_way():
    torch.manual_seed(0)
    model = BySize().to(D)
    compiled = hbp.compile(model, quantities=["grad"])
    for samples, programs in ((3, 1), (9, 2), (5, 2), (1, 2), (4, 3), (12, 4), (64, 4), (11, 4)):
        x, y = torch.randn(samples, 3, dtype=D), torch.arange(samples) % 2
        found = compiled(x, y).grad
        for name, value in reference(model, nn.CrossEntropyLoss(), (x,), y, "grad").items():
            close(found[name], value, f"{name} of {samples} samples")
        assert f"programs={programs}" in repr(compiled)


def test_a_way_that_only_one_sample_goes():
    class Alone(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.shape[0] % 8 != 1 else -super().forward(x)

    compiled = hbp.compile(Alone(3, 2), quantities=["grad"])
    compiled(torch.randn(2, 3), torch.tensor([0, 1]))
    with pytest.raises(hbp.CompileError, match=r"for a batch of 1: (.|\n)*x.shape\[0\] % 8 != 1"):
        compiled(torch.randn(1, 3), torch.tensor([0]))


@pytest.mark.parametrize(("share", "sizes"), [(0.7, (6, 9, 2, 40, 7)), (1.0, (6, 9, 2)), (0.29, (100, 10, 7))])
def test_each_rounded_share_of_the_size_has_a_program(share, sizes):
    """0.29 * 100 is a little less than 29 in Python's floats."""
    def loss(output, target):
        return (output.square().sum(1) * (torch.arange(len(output)) < int(share * len(output)))).sum()

    torch.manual_seed(0)
    model = nn.Linear(3, 2).to(D)
    compiled = hbp.compile(model, loss, ["grad"])
    for samples in sizes:
        x = torch.randn(samples, 3, dtype=D)
        result, value = compiled(x, None), loss(model(x), None)
        close(result.loss, value.detach(), f"loss of {samples} samples")
        close(result.grad["weight"], torch.autograd.grad(value, model.weight)[0], f"{samples} samples")


def test_what_cannot_be_computed_of_the_size_is_said_as_it_is_written():
    model, x = nn.Linear(3, 2), torch.randn(6, 3)
    with pytest.raises(hbp.CompileError, match=r"makes a number of the batch's size by comparing \(>\), which"):
        hbp.compile(model, lambda o, t: (len(o) > 3) * o.square().sum(), ["grad"])(x, None)
    with pytest.raises(hbp.CompileError, match=r"its code fixes the batch's size.*\n.*int\(-len\(o\) / 2\)"):
        hbp.compile(model, lambda o, t: o.square().sum() * int(-len(o) / 2), ["grad"])(x, None)


def test_no_conditions():
    program = torch.export.export(nn.Linear(3, 2), (torch.ones(7, 3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert sizes_of(program) == EVERY == Sizes()
    assert EVERY.include(0)
    assert EVERY.include(10**6)
    assert not EVERY.fixing()
    assert not EVERY.excluding(3)


def test_conditions():
    program = torch.export.export(BySize(), (torch.ones(7, 3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                                  strict=False)
    sizes = sizes_of(program)
    assert [sizes.include(samples) for samples in (0, 1, 2, 3, 8, 9, 10)] == [True, True, False, True, False, False,
                                                                               False]
    (compared,) = sizes.excluding(9)
    assert "if x.shape[0] > 8:" in compared
