"""What `compiled.verify` says of inner products of columns, of eigenvectors, and of calls with weights of samples."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.eigen import EKFAC
from hbpcompiler.compiler.prove.groups import NAMES
from hbpcompiler.compiler.prove.prove import prove
from hbpcompiler.compiler.prove.second_order import second_order
from hbpcompiler.compiler.prove.weights import NOT_ALONE
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.quantities import QUANTITIES
from hbpcompiler.reference import Weighted, reference
from tests.compiler.prove.test_second_order import chain
from tests.selection import few

DOUBLE = torch.float64
IN_GROUPS = ["gram", "cross_mc", "project", "project_ggn", "column_sum"]
GROUPS = {"body": ["0.*"], "head": ["2.weight"]}
WEIGHTS = torch.tensor([0.5, 2, 0, 1, 3, 0.1], dtype=DOUBLE)


def vectors(model):
    return {"directions": {name: torch.randn(3, *p.shape, dtype=DOUBLE) for name, p in model.named_parameters()
                           if name != "2.bias"},
            "column_weights": {"body": torch.randn(6, 2, 2, dtype=DOUBLE), "head": torch.randn(6, 2, 1, dtype=DOUBLE)}}


def test_inner_products_in_groups_with_weights():
    """Proven by the first call already, with the weights that it brings."""
    model, X, y = chain()
    compiled = hbp.compile(model, quantities=IN_GROUPS, groups=GROUPS, verify="full")
    given = vectors(model)
    compiled(X, y, sample_weights=WEIGHTS, **given)
    table = compiled.verify(X, y, sample_weights=WEIGHTS, **given)
    assert table.agrees, str(table)
    assert set(table.errors["gram"]) == set(table.errors["cross_mc"]) == set(table.errors["project"]) == set(GROUPS)
    assert set(table.errors["column_sum"]) == {"0.weight", "0.bias", "2.weight"}
    assert all(line.compared for line in table)
    assert {name for name, quantity in QUANTITIES.items() if quantity.of_groups} == set(NAMES)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_wrong_ones_are_noticed(weights):
    """Each a little wrong in a part."""
    model, X, y = chain()
    compiled = hbp.compile(model, quantities=[*IN_GROUPS[:1], "cross", *IN_GROUPS[2:], "kfra", "ekfac"], groups=GROUPS)
    given = vectors(model)
    compiled(X, y, sample_weights=weights, **given)
    candidate = compiled._candidate(*compiled._program_used(), {"sample_weights": weights, **given})

    def run(batch, **beside):
        raw = candidate.run(batch, **beside)
        for name in ("gram", "cross", "project", "project_ggn"):
            getattr(raw, name)["body"][0] *= 1.001
        raw.column_sum["2.weight"][0] *= 1.001
        raw.kfra["0.weight"].B[0] *= 1.001
        raw.ekfac["2.bias"].B[0] *= 1.001
        return raw

    def wrong(of):
        lines = second_order(of, batch_of((X[:2], y[:2])), Draws.now(X.device), 1e-16, random=False)
        return {line.key for line in lines if not line.agrees}

    assert not wrong(candidate)
    assert wrong(replace(candidate, run=run)) == {
        *((name, "body") for name in ("gram", "cross", "project", "project_ggn")), ("column_sum", "2.weight"),
        *(("kfra.B", name) for name in ("0.weight", "0.bias")),  # one tensor
        *((line, name) for line in (f"{EKFAC}.B", f"{EKFAC}.B orthogonal", EKFAC) for name in ("2.weight", "2.bias"))}


def test_kfra_says_where_it_is_not_compared():
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    X, y = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    (line,) = [line for line in hbp.compile(Two(), quantities=["kfra"]).verify(X, y) if line.quantity == "kfra"]
    assert not line.compared
    assert "chains of modules" in line.how


def test_a_loss_whose_parts_do_not_make_it_up_is_left_out():
    """A mean over weighted classes: the loss of one sample alone is another."""
    model, X, y = chain()
    loss = nn.CrossEntropyLoss(torch.tensor([0.5, 2, 1], dtype=DOUBLE))
    compiled = hbp.compile(model, loss, ["grad", "diag_h", "batch_loss"])
    table = compiled.verify(X, y, sample_weights=WEIGHTS)
    assert table.agrees
    assert {"grad", "diag_h"} <= set(table.errors)
    assert "loss" not in table.errors
    assert NOT_ALONE in str(table)
    right = reference(model, Weighted(loss, WEIGHTS), [X], y, "grad")
    torch.testing.assert_close(compiled(X, y, sample_weights=WEIGHTS).grad["0.weight"], right["0.weight"])


def test_weights_that_are_ignored_are_noticed():
    model, X, y = chain()
    compiled = hbp.compile(model, quantities=["grad"], example_inputs=(X, y))
    state, built = compiled._program_used()
    right = compiled._candidate(state, built, {"sample_weights": WEIGHTS})
    ignoring = replace(right, run=lambda batch: compiled._candidate(state, built).run(batch))
    assert prove(right, batch_of((X, y)), Draws.now(X.device)).agrees
    wrong = {line.quantity for line in prove(ignoring, batch_of((X, y)), Draws.now(X.device)).wrong}
    assert wrong == {"loss", "grad"}
