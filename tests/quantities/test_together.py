"""What docs/quantities.md says goes together, in which models: each cell of its table."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.selection import slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quantities.md"
TWICE = "Compile the model twice"


class Steps(nn.Module):
    """`forward` says how its layers are put together."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


def tied():
    embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    return Steps(lambda m, x: m.head(torch.tanh(m.inner(m.embedding(x)))).transpose(1, 2), embedding=embedding,
                 inner=nn.Linear(3, 3), head=head)


def layer():
    return nn.Linear(3, 3)


MODELS = {
    "chain": lambda: nn.Sequential(layer(), nn.Tanh(), layer()),
    "branches": lambda: Steps(lambda m, x: m.head(torch.tanh(m.left(x)) + torch.sigmoid(m.right(x))), left=layer(),
                              right=layer(), head=layer()),
    "layer used twice": lambda: Steps(lambda m, x: m.head(torch.tanh(m.inner(torch.tanh(m.inner(x))))), inner=layer(),
                                      head=layer()),
    "recurrent": lambda: Steps(lambda m, x: m.head(m.gru(x.unsqueeze(1).expand(-1, 3, -1))[0][:, -1]),
                               gru=nn.GRU(3, 3, batch_first=True), head=layer()),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(layer()), nn.Tanh(), layer()),
    "embedding as head": tied,
}


def cells():
    """By the model, the quantities of each row and what is said of them."""
    rows = re.search(r"## What goes together.*?\n\n(\| quantities.*?)\n\n", PAGE.read_text(encoding="utf-8"), re.S)
    head, _, *lines = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]
    return {model: [(re.findall(r"`(\w+)`", line[0]), line[column]) for line in lines]
            for column, model in enumerate(head) if column}


def test_the_table_is_of_these_models():
    assert [*cells()] == [*MODELS]
    assert {word for column in cells().values() for _, word in column} == {"yes", "no", "two programs"}


@pytest.mark.parametrize("name", [
    name if name == "layer used twice" else pytest.param(name, marks=slow("further columns of one table"))
    for name in MODELS])
def test_each_cell(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    X = torch.tensor([[0, 1, 2], [3, 4, 0]]) if name == "embedding as head" else torch.randn(2, 3)
    y = X if name == "embedding as head" else torch.tensor([0, 2])

    def compiled(quantities):
        return hbp.compile(model, quantities=quantities, example_inputs=(X, y))

    for quantities, said in cells()[name]:
        if said == "yes":
            assert set(quantities) <= {*compiled(quantities)(X, y)}
            continue
        with pytest.raises(hbp.UnsupportedOpError) as caught:
            compiled(quantities)
        assert (TWICE in str(caught.value)) == (said == "two programs")  # of what a second would be refused as well not
        if said == "no":
            with pytest.raises(hbp.UnsupportedOpError) as told:
                compiled(quantities)
            assert TWICE not in str(told.value)
            with pytest.raises(hbp.UnsupportedOpError):
                compiled(quantities[:1])
            continue
        for quantity in quantities:
            assert quantity in compiled([quantity])(X, y)


@pytest.mark.parametrize(("quantity", "words"), [("kfac_reduce", "the reduced factors of several uses are not defined"),
                                                 ("kfra", "KFRA averages the curvature on its way")])
def test_what_several_uses_never_have_is_no_matter_of_two_programs(quantity, words):
    with pytest.raises(hbp.UnsupportedOpError, match=words) as caught:
        hbp.compile(MODELS["layer used twice"](), nn.CrossEntropyLoss(), [quantity, "diag_h"])(
            torch.randn(2, 3), torch.tensor([0, 2]))
    assert TWICE not in str(caught.value)
