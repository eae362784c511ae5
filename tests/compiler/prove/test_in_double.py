"""Where single precision leaves a doubt, the same program in double precision decides."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.prove import prove
from hbpcompiler.compiler.prove.comparison import Comparison, compared
from hbpcompiler.compiler.prove.in_double import EXPLAINED, Doubled, as_near, explained
from tests.selection import few


@pytest.fixture
def doubtful(monkeypatch):
    """Single precision explains nothing: every gap of it is beyond the limit."""
    real = prove.compared

    def compared(found, expected, eps, *rest, **named):
        lines = real(found, expected, eps, *rest, **named)
        return [replace(line, allowed=-1.0) for line in lines] if eps == prove.SINGLE else lines

    monkeypatch.setattr(prove, "compared", compared)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(16, 3))


BATCH = torch.randn(10, 1, 6, 6), torch.randint(3, (10,))


@few(1, "further cases of one kind")
@pytest.mark.parametrize("quantity", ["grad", "batch_l2"])
def test_what_agrees_in_double_precision_is_proven(doubtful, quantity):
    compiled = hbp.compile(network(), quantities=[quantity])
    compiled(*BATCH, sample_weights=torch.rand(10))
    assert {line.how for line in compiled.verify(*BATCH, full=False)} == {EXPLAINED}


def test_what_is_wrong_by_little_is_refused(doubtful):
    model = network()
    model[0].weight.register_hook(lambda gradient: 1.005 * gradient)
    with pytest.raises(hbp.ProofError, match=r"grad of '0\.weight'"):
        hbp.compile(model, quantities=["grad"])(*BATCH)


def test_a_model_that_has_no_double_precision_is_refused(doubtful):
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) @ torch.eye(3)

    with pytest.raises(hbp.ProofError):
        hbp.compile(Single(), quantities=["grad"])(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))


def test_large_gaps_are_not_asked_about():
    def never(doubled):
        raise AssertionError("asked")

    right = Comparison("grad", "a", 0.0, 1.0, 1e-6)
    far, near = replace(right, error=0.05), replace(right, error=0.01)
    assert explained([right, right], never) == [right, right]
    assert explained([right, far], never) == [right, far]
    assert explained([right, near], lambda doubled: [near]) == [right, near]
    assert explained([right, near], lambda doubled: []) == [right, near]
    assert explained([right, near], lambda doubled: [right])[1].agrees


def test_everything_in_double_precision():
    doubled = Doubled().named({"a": torch.ones(2), "b": torch.ones(2).bfloat16(), "c": {"d": torch.ones(1)}, "e": 3})
    assert (doubled["a"].dtype, doubled["b"].dtype) == (torch.float64, torch.bfloat16)
    assert (doubled["c"]["d"].dtype, doubled["e"]) == (torch.float64, 3)


def by_hand(output, y):
    return (torch.logsumexp(output, 1) - output.gather(1, y[:, None])[:, 0]).mean()


@pytest.mark.parametrize("gap", [10.0, 14.0, 18.0])
def test_a_slope_of_which_single_precision_has_nothing(gap):
    """p - 1 by hand: the program is no farther from the truth than torch, and a fault of it is."""
    torch.manual_seed(1)
    model, X, y = nn.Linear(3, 3), torch.rand(8, 3), torch.zeros(8, dtype=torch.long)
    with torch.no_grad():
        model.weight.mul_(0.1)
        model.bias.copy_(torch.tensor([gap, 0.0, 0.0]))
    hbp.compile(model, by_hand, ["grad"])(X, y)
    right, truth = {("grad", "w"): torch.tensor([1.1])}, {("grad", "w"): torch.tensor([1.0])}
    for error, agrees in ((0.15, True), (0.3, False)):
        found = {("grad", "w"): torch.tensor([1.0 - error])}
        (line,) = as_near(compared(found, right, 1e-7), found, right, lambda: truth)
        assert line.agrees == agrees
