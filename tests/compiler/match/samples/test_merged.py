"""Positions merged into the sample axis, and values of parameters that have no sample axis."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.models.test_modules import EXACT, check, draw
from tests.selection import few


class Merged(nn.Module):
    """Linear maps on all tokens of all samples at once."""

    def __init__(self):
        super().__init__()
        self.inner, self.weight, self.bias = nn.Linear(3, 4), nn.Parameter(draw(4, 3)), nn.Parameter(draw(3))

    def forward(self, x):
        rows = torch.tanh(self.inner(x.reshape(-1, 3)))
        rows = torch.addmm(self.bias, rows, self.weight) * 2 + rows @ self.weight.new_ones(4, 3)
        return rows.view(x.shape[0], -1, 3).sum(1)


def test_positions_in_the_sample_axis():
    torch.manual_seed(0)
    check(Merged().double(), [draw(2, 4, 3)], torch.tensor([0, 2]), [*EXACT, "diag_h", "batch_l2"])


def test_what_cannot_keep_samples_apart_is_refused():
    class Sorted(Merged):
        def forward(self, x):
            return torch.sort(self.inner(x.reshape(-1, 3)), 0)[0].view(x.shape[0], -1) * self.weight.sum()

    with pytest.raises(hbp.UnsupportedOpError, match=r"sort in .*no form that keeps them apart"):
        hbp.compile(Sorted().double(), quantities=["grad"])(draw(2, 2, 3), torch.tensor([0, 1]))


@few(2, "further cases of one kind")
@pytest.mark.parametrize("shape", [(3,), (1, 3)])
@pytest.mark.parametrize("padding", [None, 1])
def test_embedded_positions(shape, padding):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.places = nn.Embedding(5, 4), nn.Embedding(6, 4, padding_idx=padding)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            places = torch.arange(3).view(shape)
            return self.head(torch.tanh(self.tokens(x) + self.places(places)).sum(1))

    torch.manual_seed(0)
    check(Positions().double(), [torch.tensor([[1, 2, 2], [0, 4, 1]])], torch.tensor([0, 1]), [*EXACT, "diag_h"])


def test_no_grad_around_constants():
    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.register_buffer("angles", draw(4))

        def forward(self, x):
            with torch.no_grad():
                turned = torch.cos(self.angles) * x
            return self.head(turned)

    torch.manual_seed(0)
    check(Rotated().double(), [draw(2, 4)], torch.tensor([0, 1]), EXACT)
