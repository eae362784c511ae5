"""Curvature that arrives where an operation has no slope."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.derive.edges import CURVATURE
from hbpcompiler.quantities import GGN, QUANTITIES
from tests.agreement import agree
from tests.networks import Shifted


def norm(z):
    return z.norm(dim=1)


def test_all_that_is_added_up_to_a_hessian_is_looked_at():
    assert GGN in CURVATURE
    assert {closing.stream for closing in QUANTITIES["diag_h_mc_all"].needs} <= set(CURVATURE)


EDGES = {
    "hyperbolic": lambda z: norm(z).cosh(),
    "cosine": lambda z: 1 - norm(z).cos(),
    "order 1.5": lambda z: z.norm(p=1.5, dim=1) ** 2,
}
LIMITS = {"whole": {}, "in chunks": {"few_columns": 0, "all_columns_bytes": 1, "all_columns_chunk_bytes": 1},
          "column by column": {"vector_bytes": 0, "vector_chunk_bytes": 1}}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("place", ["model", "between", "loss"])
@pytest.mark.parametrize("function", EDGES.values(), ids=EDGES)
def test_curvature_that_arrives_at_a_norm_of_zero_is_not_lost(function, place, limits):
    """No gradient arrives there, and the loss is curved: NaN, as torch has it, though GGNs of a model have none."""
    X = torch.tensor([[1.0, 2, 4], [0, 0, 0]]).double()
    model, loss = Shifted({"model": function, "between": norm, "loss": nn.Identity()}[place]), nn.MSELoss()
    if place != "between":
        def loss(o, _):
            return (function(o) if place == "loss" else o).mean()
    X, y = X.repeat(2, 1), torch.zeros(4).double()
    limits = hbp.Limits(**limits)
    both = hbp.compile(model, loss, quantities=["diag_ggn", "diag_h"], limits=limits)(X, y)
    alone = hbp.compile(model, loss, quantities=["batch_diag_h"], limits=limits)(X, y).batch_diag_h["bias"]
    drawn = hbp.compile(model, loss, quantities=["diag_h_mc_all"], limits=limits)(X, y).diag_h_mc_all["bias"]
    assert alone[1::2].isnan().all()
    assert alone[::2].isfinite().all()
    assert both.diag_h["bias"].isnan().all()
    assert drawn.isnan().all()
    assert both.diag_ggn["bias"].isnan().any() == (place == "loss")


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("function", [lambda z: norm(z) ** 3, lambda z: norm(z).clamp(min=0.1) ** 2,
                                      lambda z: torch.where(norm(z) > 1, norm(z), 0.0).cos()])
def test_a_norm_of_zero_that_is_flat_or_masked(function, limits):
    """What does not reach the loss has no curvature."""
    X = torch.tensor([[1.0, 2, 4], [0, 0, 0]]).double()
    model, loss = Shifted(function), lambda o, _: o.mean()
    compiled = hbp.compile(model, loss, quantities=["batch_diag_h", "diag_h"], limits=hbp.Limits(**limits))
    found = compiled(X, None)
    agree(compiled(X[:1], None), model, loss, [X[:1]], None, ["diag_h"])
    if not found.batch_diag_h["bias"][1].isnan().any():
        assert not found.batch_diag_h["bias"][1].any()
    else:
        assert limits, "at hand it is"
