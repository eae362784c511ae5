"""Values changed through detach() or .data: where the gradient is another one for it the line is named, else not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hbpcompiler as hbp
from tests.selection import few


class Net(nn.Module):
    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, dtype=torch.float64), nn.Linear(3, 2, dtype=torch.float64)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.way(self.first(x) + 0.5))


def halved(h: Tensor) -> Tensor:
    h.detach().mul_(0.5)
    return h * h


def bounded(h: Tensor) -> Tensor:
    h.data.clamp_(min=0)
    return h.sin()


def a_piece(h: Tensor) -> Tensor:
    h.data.chunk(3, 1)[0].zero_()
    return h.sin()


def written_out(h: Tensor) -> Tensor:
    torch.sin(h.detach(), out=h.data)
    return h * h


def behind(h: Tensor) -> Tensor:
    made = h * h
    h.data.zero_()
    return made


def set_at(h: Tensor) -> Tensor:
    h.data[:, 0] = 0.0
    return h.sin()


def of_ones(h: Tensor) -> Tensor:
    mask = torch.ones_like(h)
    mask.data[:, 0] = 0
    return h * mask


def of_signs(h: Tensor) -> Tensor:
    signs = h.sign()
    signs.data[signs == 0] = 1
    return h * signs


def of_a_copy(h: Tensor) -> Tensor:
    return h + h.detach().clone().mul_(2)


def straight_through(h: Tensor) -> Tensor:
    changed = h.detach().clone()
    changed.round_()
    return h + (changed - h).detach()


@few(1, "further cases of one kind")
@pytest.mark.parametrize("way", [halved, bounded, a_piece, written_out, behind, set_at])
def test_the_line_is_named(way: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(hbp.ProofError, match=r"in place through .detach\(\) or .data, (.*)test_detached_writes"):
        hbp.compile(Net(way), nn.MSELoss(), quantities=["grad"])(*batch())


@few(2, "further cases of one kind")
@pytest.mark.parametrize("way", [of_ones, of_signs, of_a_copy, straight_through])
def test_what_torch_differentiates_as_it_is_written_is_compiled(way: Callable[[Tensor], Tensor]) -> None:
    net, (X, y) = Net(way), batch()
    found = hbp.compile(net, nn.MSELoss(), quantities=["grad"])(X, y).grad
    wanted = torch.autograd.grad(nn.functional.mse_loss(net(X), y), list(net.parameters()))
    for (name, _), each in zip(net.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(found[name], each)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
