"""Squares by blocks of rows: all samples in one turn where the operand is there, some at a time where it is made."""

import copy

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.routes.by_rows import SquaresByRows
from tests.agreement import agree

TOKENS = nn.Linear(6, 7), (3, 6)
IMAGES = nn.Conv2d(2, 3, 2), (2, 5, 4)
LOSS = nn.CrossEntropyLoss(reduction="sum")


def compiled(layer, shape, quantities, **options):
    torch.manual_seed(0)
    X, y = torch.randn(5, *shape, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 2])
    layers = [copy.deepcopy(layer), nn.Tanh(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(nn.Sequential(*layers)(X.float()).shape[1], 3)).double()
    limits = hbp.Limits(route_times=((SquaresByRows.name, 0),), cache_bytes=400, large_numbers=1)
    return model, X, y, hbp.compile(model, LOSS, quantities, example_inputs=(X, y), limits=limits, **options)


@pytest.mark.parametrize("quantities", [["variance"], ["second_moment"], ["grad", "variance"]])
@pytest.mark.parametrize("backend", ["python", "torchscript"])
def test_all_samples_are_one_turn_where_the_operand_is_there(quantities, backend):
    model, X, y, found = compiled(*TOKENS, quantities, backend=backend)
    assert "for first in" not in found.code.partition("class Program")[2]
    assert "kept=0.0" in found.code
    for samples in (5, 1, 0, 3):
        result = found(X[:samples], y[:samples])
        if samples:
            agree(result, model, LOSS, [X[:samples]], y[:samples], quantities)
        elif "second_moment" in quantities:
            assert not result.second_moment["0.weight"].any(), "totals that nothing was written to"


def test_patches_of_some_samples_at_a_time():
    model, X, y, found = compiled(*IMAGES, ["variance"])
    assert "for first in" in found.code.partition("class Program")[2]
    agree(found(X, y), model, LOSS, [X], y, ["variance"])
