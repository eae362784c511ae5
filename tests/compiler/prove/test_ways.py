"""Branches that a trace passed on one way: whether single samples show that they make no difference."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.prove.ways import check_ways
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.statements import Place
from hbpcompiler.compiler.trace.ways import Way
from tests.compiler.trace.test_ways import Mixture


def doubled(self, x, weight, choice):
    if (choice == 0).any():
        x = x + 1
    return x


def seldom(self, x, weight, choice):
    if (x > 100).any():
        x = x.clamp(max=100)
    return x


def of_many(self, x, weight, choice):
    rows = torch.where(choice == 0)[0]
    if rows.numel() > 0:
        x = x * 2
    return x


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("routed", [doubled, seldom, of_many])
def test_branches_that_choose(routed, verify):
    """Also where no sample of the first batch goes the other way, so that nothing is known of it."""
    torch.manual_seed(1)
    model = Mixture(routed).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(2, (6,))
    with pytest.raises(hbp.CompileError, match=r"control flow depends on the values(.|\n)*test_ways\.py:\d+: if "):
        hbp.compile(model, quantities=["grad"], verify=verify)(x, y)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_way_that_no_sample_goes_is_not_known():
    """Of lengths nobody is told; of tensors both answers have to be met."""
    model, x, y = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    compiled = hbp.compile(model, quantities=["grad"], example_inputs=(x, y))
    candidate, place = compiled._candidate(*compiled._program_used()), Place("nowhere.py", 1, 0, 1, 9)
    check_ways(candidate, batch_of((x, y)), [Way(place, "nowhere.py:1: if len(rows):", False)])
    with pytest.raises(hbp.CompileError, match=r"nowhere\.py:1: if rows\.any"):
        check_ways(candidate, batch_of((x, y)), [Way(place, "nowhere.py:1: if rows.any():", True)])
