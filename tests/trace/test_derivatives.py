"""Which operations let no derivative through."""

import pytest
import torch

from hbpcompiler.compiler.trace.derivatives import stops
from hbpcompiler.compiler.trace.graph import N
from tests.hand_made import value

X = {"self": value("x", N, 3)}
LIKE = {"dtype": None, "layout": None, "device": None, "pin_memory": None, "memory_format": None}


@pytest.mark.parametrize(("called", "tensors", "attributes", "stopping"), [
    (torch.ops.aten.detach.default, X, {}, True),
    (torch.ops.aten.ones_like.default, X, LIKE, True),
    (torch.ops.aten.full_like.default, X, {**LIKE, "fill_value": 1 / N}, True),
    (torch.ops.aten.argmax.default, X, {"dim": 1, "keepdim": False}, True),
    (torch.ops.aten.tanh.default, X, {}, False),
    (torch.ops.aten.mul.Tensor, {**X, "other": value("y", N, 3)}, {}, False),
    (torch.ops.aten.view.default, X, {"size": [2, 2]}, False),  # it cannot be carried out: nothing is known
])
def test_as_torch_has_it(called, tensors, attributes, stopping):
    assert stops(called, tensors, attributes, 0) is stopping
