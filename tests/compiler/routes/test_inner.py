"""Inner products of columns without the columns' shares of a parameter: where positions are absent or few."""

import re

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.routes.by_index import InnerByIndex
from hbpcompiler.compiler.routes.inner import PairsOfPositions, PartsOfProduct
from hbpcompiler.quantities import GGN
from tests.selection import few

SAMPLES, CLASSES = 64, 10
INNER = ["gram", "cross", "batch_dot"]


class Words(nn.Module):
    """Four words of 500, and a class for them."""

    def __init__(self):
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(500, 64), nn.LayerNorm(64), nn.Linear(64, CLASSES)

    def forward(self, x):
        return self.head(self.norm(self.words(x)).mean(1))


MODELS = {
    "a linear layer": (lambda: nn.Sequential(nn.Linear(200, 300), nn.Tanh(), nn.Linear(300, CLASSES)),
                       lambda: torch.randn(SAMPLES, 200), "0.weight"),
    "one position": (lambda: nn.Sequential(nn.Conv2d(32, 64, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, CLASSES)),
                     lambda: torch.randn(SAMPLES, 32, 4, 4), "0.weight"),
    "four positions": (lambda: nn.Sequential(nn.Conv2d(64, 128, 3), nn.Tanh(), nn.Flatten(), nn.Linear(512, CLASSES)),
                       lambda: torch.randn(SAMPLES, 64, 4, 4), "0.weight"),
    "an embedding": (Words, lambda: torch.randint(500, (SAMPLES, 4)), "words.weight"),
}


def planned(model, X):
    torch.manual_seed(0)
    return hbp.compile(model, quantities=INNER, example_inputs=(X, torch.randint(CLASSES, (len(X),))))


def routes_of(compiled, parameter, stream):
    """By which the stream's columns end there."""
    return {choice.route.name for step in compiled._current().draft.plan.closings()
            if step.parameter.key == parameter and step.piece.stream == stream for choice in step.choices}


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", MODELS)
def test_columns_are_not_formed(name):
    """Of this parameter they would be several times what the whole call takes."""
    torch.manual_seed(0)
    make, draw, parameter = MODELS[name]
    model = make()
    compiled = planned(model, draw())
    route = InnerByIndex if isinstance(model, Words) else PairsOfPositions
    assert routes_of(compiled, parameter, GGN) == {route.name}
    columns = SAMPLES * (CLASSES - 1) * model.get_parameter(parameter).numel() * 4
    assert compiled.predicted_memory(SAMPLES) < columns / 3


def test_of_a_norm_they_are_formed_in_parts():
    """Its columns are as large as its output's: some entries of the scale at a time, d of them."""
    torch.manual_seed(0)
    compiled = planned(nn.Sequential(nn.LayerNorm(8192), nn.Linear(8192, CLASSES)), torch.randn(SAMPLES, 8192))
    assert routes_of(compiled, "0.weight", GGN) == {PartsOfProduct.name}
    formed = re.findall(r"\w+_rows = torch\.einsum\(.*# \[9\*N, (\w+)\]\n", compiled.code)
    assert formed == ["d"]


def test_no_unit_vectors_of_a_vocabulary():
    """Inner products and projections of an embedding read rows by their index, however long the vocabulary is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50000, 8), nn.Flatten(), nn.Linear(160, CLASSES))
    X, y = torch.randint(50000, (6, 20)), torch.randint(CLASSES, (6,))
    compiled = hbp.compile(model, quantities=[*INNER, "project_ggn"], example_inputs=(X, y))
    assert "one_hot" not in compiled.code
    assert "add_products_by_index_" in compiled.code
    assert "rows_of_vectors" in compiled.code
    assert compiled.predicted_memory(6) < 6 * 50000 * 8 * 4
