"""Values changed through detach() or .data: refused by the line where their derivative would stay the old one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.detached_writes import check_detached_writes

WAYS: list[Callable[[Tensor], object]] = [
    lambda h: h.detach().mul_(2),
    lambda h: h.data.clamp_(min=0),
    lambda h: h.view(-1).detach()[:2].zero_(),
    lambda h: h.detach().t().add_(1.0),
]


class Net(nn.Module):
    def __init__(self, way: Callable[[Tensor], object], reads: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, dtype=torch.float64), nn.Linear(3, 2, dtype=torch.float64)
        self.way, self.reads = way, reads

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).sin()
        made = self.way(h)
        if self.reads:
            return self.second(h)
        assert isinstance(made, Tensor)
        return self.second(made) + self.second(x)


@pytest.mark.parametrize("way", WAYS)
def test_named_by_the_line(way: Callable[[Tensor], object]) -> None:
    with pytest.raises(hbp.HbpError, match=r"changed in place through .detach\(\) or .data.*\n.*test_detached_writes"):
        hbp.compile(Net(way), nn.MSELoss(), quantities=["grad"])(*batch())


def test_what_is_read_is_the_detached_value_alone() -> None:
    net = Net(lambda h: h.detach().mul_(2), reads=False)
    agrees(net)


def test_what_no_derivative_comes_from_may_be_changed() -> None:
    def way(h: Tensor) -> object:
        mask = torch.ones(3, dtype=torch.float64) + 0 * h.detach()[0]
        mask.data[0] = 0
        return h * mask

    agrees(Net(way, reads=False))


def test_a_copy_may_be_changed() -> None:
    agrees(Net(lambda h: h.detach().clone().mul_(2), reads=False))


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)


def agrees(net: Net) -> None:
    X, y = batch()
    found = hbp.compile(net, nn.MSELoss(), quantities=["grad"])(X, y).grad
    wanted = torch.autograd.grad(nn.functional.mse_loss(net(X), y), list(net.parameters()), allow_unused=True)
    for (name, _), each in zip(net.named_parameters(), wanted, strict=True):
        assert (name in found) == (each is not None)
        if each is not None:
            torch.testing.assert_close(found[name], each)


def test_programs_without_views_pass() -> None:
    check_detached_writes(torch.export.export(nn.Linear(3, 2), (torch.randn(2, 3),)))
