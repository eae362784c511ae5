"""How many elements a mask picks is known to no program before it runs."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.samples.unknown_lengths import refuse_unknown_lengths
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.errors import ModelError
from tests.hand_made import graph, operation, value


class Kept(nn.Module):
    """Some of the features, by a mask or by their numbers."""

    def __init__(self, kept):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.register_buffer("kept", kept)

    def forward(self, x):
        return self.inner(x)[:, self.kept]


def test_a_mask_that_picks_features_is_refused_by_name_and_their_numbers_are_right():
    mask = torch.tensor([True, False, True])
    x, y = torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])
    with pytest.raises(ModelError, match="how many elements are picked depends on values") as error:
        hbp.compile(Kept(mask).double(), quantities=["grad"])(x, y)
    assert "index = mask.nonzero()[:, 0]" in str(error.value)
    assert "test_unknown_lengths.py" in str(error.value)
    model = Kept(mask.nonzero()[:, 0]).double()
    found = hbp.compile(model, quantities=["grad", "diag_ggn"])(x, y)
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    for name, slope in zip(found.grad, expected, strict=True):
        torch.testing.assert_close(found.grad[name], slope)


def test_lengths_of_the_batch_are_no_unknown_ones():
    X = value("x", N, 3, role="input")
    refuse_unknown_lengths(graph([operation("exp", value("a", 2 * N, 3), self=X)], inputs=[X], targets=[], outputs=[]))
