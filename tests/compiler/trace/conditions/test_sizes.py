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
