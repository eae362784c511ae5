"""Norms of per-sample gradients in chunks: squares where nothing else reads the product, norms of rows elsewhere."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler import reference
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.routes.building_blocks import squared_norms

X, Y = torch.randn(3, 8, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 1])


@pytest.mark.parametrize(("quantities", "squares"), [(["batch_l2"], True), (["grad", "batch_l2"], False)])
def test_a_product_that_nothing_else_reads_is_squared(quantities, squares):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(80, 2)).double()
    compiled = hbp.compile(model, quantities=quantities, limits=hbp.Limits(route_times=(("chunked product", 0),)))
    found = compiled(X, Y).batch_l2["0.weight"]
    assert "chunked product" in compiled.code
    body = compiled.code.partition("for first in range")[2]
    assert ("norm(2, [-1])" in body) != squares
    each = reference.Forward(model, nn.CrossEntropyLoss(), (X,), Y).sample_gradients("0.weight")
    torch.testing.assert_close(found, (each / 3).flatten(1).square().sum(1), rtol=1e-10, atol=0)


@pytest.mark.parametrize("row_numbers", [64, 101])
def test_both_ways_agree(row_numbers):
    class Site:
        theta, row, resources = "oi", 100, Resources(limits=hbp.Limits(row_numbers=row_numbers))

    product = torch.randn(4, 1, 3, 100, dtype=torch.float64)
    torch.testing.assert_close(squared_norms(Site, product), squared_norms(Site, product, alone=True))


def test_from_which_length_of_a_row_on_is_a_limit():
    model = nn.Sequential(nn.Conv2d(8, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(80, 2)).double()
    for row_numbers, by_rows in ((72, True), (81, False)):
        limits = hbp.Limits(route_times=(("chunked product", 0),), row_numbers=row_numbers)
        code = hbp.compile(model, quantities=["grad", "batch_l2"], limits=limits, example_inputs=(X, Y)).code
        assert ("norm(2, [-1])" in code.partition("for first in range")[2]) == by_rows
