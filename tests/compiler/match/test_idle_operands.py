"""Tensors without elements in a list that is joined."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.idle_operands import without_idle_operands
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.reference import reference
from tests.hand_made import graph, operation, value

X, OTHER, EMPTY = value("x", N, 3, role="input"), value("other", N, 2, role="input"), value("empty", 0, role="constant")


@pytest.mark.parametrize(("given", "kept"), [
    ([EMPTY, X], ["x"]),
    ([X, EMPTY, OTHER], ["x", "other"]),
    ([X, OTHER], ["x", "other"]),
    ([EMPTY, EMPTY], ["empty", "empty"]),
])
def test_what_is_left_of_a_list(given, kept):
    slots = {f"tensors.{i}": tensor for i, tensor in enumerate(given)}
    joins = operation("cat", value("joined", N, 5), {"dim": 1, "tensors": list(slots)}, **slots)
    ends = operation("sum", value("loss"), self=joins.output)
    found = without_idle_operands(graph([joins, ends], inputs=[X, OTHER], state=[EMPTY])).operations[0]
    assert [found.tensors[slot].name for slot in found.attributes["tensors"]] == kept
    assert list(found.tensors) == found.attributes["tensors"]


class Cached(nn.Module):
    """As language models do on their first tokens: the cache is an object, and empty."""

    def __init__(self):
        super().__init__()
        self.key, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        key = torch.cat([torch.tensor([], dtype=x.dtype), self.key(x)], dim=-2)
        key = torch.cat([x[:, :0], key], 1)
        return {"logits": self.out(key.softmax(1)[:, -1]), "cache": Cache(key)}


class Cache:
    def __init__(self, key):
        self.key = key


def loss(output, y):
    return nn.functional.cross_entropy(output["logits"], y)


def test_an_empty_cache():
    torch.manual_seed(0)
    model, x, y = Cached().double(), torch.randn(2, 4, 3, dtype=torch.float64), torch.tensor([0, 1])
    result = hbp.compile(model, loss, ["grad", "diag_h"])(x, y)
    assert result.output["cache"] is None
    plain = nn.Sequential(model.key, nn.Softmax(1), _Last(), model.out)
    for quantity in ("grad", "diag_h"):
        expected = reference(plain, nn.CrossEntropyLoss(), [x], y, quantity)
        for found, wanted in zip(result[quantity].values(), expected.values(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


class _Last(nn.Module):
    def forward(self, h):
        return h[:, -1]
