"""What has no rule is taken apart as far as that leads anywhere, and loses nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler import options
from tests.agreement import agree
from tests.compiler.match.made.taken_away import without

QUANTITIES = ("grad", "variance", "diag_h")


class Padded(nn.Module):
    """Tokens of which one is padding, and a table that is read at places of no sample's."""

    def __init__(self):
        super().__init__()
        self.table, self.places, self.head = nn.Embedding(5, 3, padding_idx=1), nn.Embedding(4, 3), nn.Linear(3, 2)

    def forward(self, ids):
        places = F.embedding(torch.tensor([2, 0, 2]), self.places.weight, padding_idx=2)
        return self.head(torch.tanh(self.table(ids) + places.exp()).mean(1))


def test_pieces_keep_what_an_argument_says_of_derivatives_alone(monkeypatch):
    torch.manual_seed(0)
    model = Padded().double()
    nn.init.normal_(model.table.weight)
    ids, y = torch.tensor([[0, 1, 2], [1, 1, 4], [3, 2, 2]]), torch.tensor([0, 1, 1])
    monkeypatch.setattr(options, "with_rules", lambda paths: without("aten.embedding"))
    result = hbp.compile(model, quantities=QUANTITIES)(ids, y)
    agree(result, model, nn.CrossEntropyLoss(), [ids], y, QUANTITIES)
    assert not result.grad["table.weight"][1].any()
    assert not result.grad["places.weight"][2].any()


def test_counts_of_indices_are_no_pieces(monkeypatch):
    model = nn.Sequential(nn.Embedding(5, 3, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(9, 2))
    monkeypatch.setattr(options, "with_rules", lambda paths: without("aten.embedding"))
    with pytest.raises(hbp.UnsupportedOpError, match="it mixes the samples"):
        hbp.compile(model, quantities=QUANTITIES)(torch.tensor([[0, 1, 2], [1, 1, 4]]), torch.tensor([0, 1]))


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(2, 4), nn.Linear(2, 2)

    def forward(self, x):
        h = torch.tanh(self.stem(x))
        return self.head(h[:, :2] * h[:, 2:])


def test_what_would_end_in_refused_pieces_stays_whole(monkeypatch):
    """Torch's table makes a view of memory of a slice."""
    torch.manual_seed(0)
    model, x, y = Halves().double(), torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, 1, 1])
    monkeypatch.setattr(options, "with_rules", lambda paths: without("aten.slice"))
    compiled = hbp.compile(model, quantities=QUANTITIES)
    agree(compiled(x, y), model, nn.CrossEntropyLoss(), [x], y, QUANTITIES)
    assert "No rule, so that torch differentiates them" in compiled.code


class Positions(nn.Module):
    """Positions that are samples to a layer, as torch's table has them where a matrix meets more than two axes."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.stem(x)).mean(1))


def test_pieces_that_act_on_positions_get_rules_of_their_own(monkeypatch):
    torch.manual_seed(0)
    model, x, y = Positions().double(), torch.randn(3, 4, 2, dtype=torch.float64), torch.tensor([0, 1, 1])
    monkeypatch.setattr(options, "with_rules", lambda paths: without("aten.linear"))
    compiled = hbp.compile(model, quantities=QUANTITIES)
    agree(compiled(x, y), model, nn.CrossEntropyLoss(), [x], y, QUANTITIES)
    assert "No rule, so that torch differentiates them" in compiled.code
