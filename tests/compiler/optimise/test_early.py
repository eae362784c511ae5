"""Results of several totals are finished where these are, and are what they were."""

import operator

import pytest
import torch
from torch import fx, nn

import hbpcompiler as hbp
from hbpcompiler.compiler.optimise.early import finish_early
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.adding import is_of_results
from hbpcompiler.compiler.program.meta import Block
from hbpcompiler.compiler.program.products import add_products_
from hbpcompiler.compiler.routes.by_rows import SquaresByRows
from hbpcompiler.reference import reference
from tests.selection import few, slow

QUANTITIES = ["grad", "variance"]
BY_ROWS = ((SquaresByRows.name, 0),)
EARLY = hbp.Limits(large_numbers=16, cache_bytes=2000, route_times=BY_ROWS)
LATE = hbp.Limits(route_times=BY_ROWS)


def network():
    """Layers over positions, more parameters than a small program has, one of them tied."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6) for _ in range(12)]
    layers[3].weight = layers[5].weight
    parts = [part for layer in layers for part in (layer, nn.Tanh())]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(18, 4)).double()
    return model, torch.randn(5, 3, 6, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2])


@few(1, "further cases of one kind")
@pytest.mark.parametrize("quantities", [["variance"], QUANTITIES])
def test_they_are_the_same(quantities):
    model, X, y = network()
    early, scripted = (hbp.compile(model, quantities=quantities, limits=EARLY, backend=backend, example_inputs=(X, y))
                       for backend in ("python", "torchscript"))
    assert "made_variance[" in early.code
    assert "kept=" in early.code
    expected = reference(model, nn.CrossEntropyLoss(), [X], y, "variance")
    for result in (early(X, y), scripted(X, y)):
        for key, value in expected.items():
            torch.testing.assert_close(result.variance[key], value, rtol=1e-9, atol=1e-15)
    into = early(X, y, into=early(X, y), decay=0.5)
    for name in quantities:
        for key, value in reference(model, nn.CrossEntropyLoss(), [X], y, name).items():
            torch.testing.assert_close(into[name][key], 1.5 * value, rtol=1e-9, atol=1e-15)


def test_only_what_has_several_large_parts_is_moved():
    graph = fx.Graph()
    made = graph.placeholder("made")
    first, second, later = (graph.call_method(name, (made,)) for name in ("square", "exp", "neg"))
    result = graph.call_function(operator.sub, (first, second))
    output = graph.output((later, result))
    for node in (made, first, second, later, result):
        meta.set_tensor(node, ("3", "4"), torch.float32)
        node.meta["block"], node.meta["step"] = Block("0: linear", "backward", ""), 0
    result.meta["block"] = Block("variance", "results", "")
    finish_early(graph, large=13)
    assert list(graph.nodes) == [made, first, second, later, result, output]
    finish_early(graph, large=12)
    assert list(graph.nodes) == [made, first, second, result, later, output]
    assert not is_of_results(result)


@slow("memory of whole programs")
def test_they_take_less_memory():
    model, X, y = network()
    early, late = (hbp.compile(model, quantities=["variance"], limits=limits, example_inputs=(X, y))
                   for limits in (EARLY, LATE))
    assert "made_variance[" not in late.code
    assert early.predicted_memory(5) < late.predicted_memory(5)


@pytest.mark.parametrize("samples", [0, 1, 3])
@pytest.mark.parametrize("summed", [False, True])
def test_products_write_over_what_totals_were(samples, summed):
    x, y = torch.randn(samples, 5, 2), torch.randn(samples, 4, 2)
    squares = torch.full((5, 4), torch.nan)
    sums = torch.full((5, 4), torch.nan) if summed else None
    add_products_(squares, sums, x, y, 2, kept=0.0)
    products = x @ y.mT
    torch.testing.assert_close(squares, products.square().sum(0))
    if sums is not None:
        torch.testing.assert_close(sums, products.sum(0))
    add_products_(squares, sums, x, y, 3)
    torch.testing.assert_close(squares, 2 * products.square().sum(0))
