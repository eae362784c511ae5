"""einsum of values and a matrix of parameters is a linear layer: its numbers, and the factors that one has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.patches import einsums
from hbpcompiler.compiler.trace.patches.einsums import einsum_with_layers
from hbpcompiler.reference import reference
from tests.selection import few

LAYERS = ["bti,oi->bto", "bti,io->bto", "oi,bti->bto", "...i,oi->...o", "... i, io -> ... o", "bit,oi->bot",
          "bit,io->bto"]
"""The last one moves an axis beside, which no layer does."""
OTHERS = ["bti,oi->bt", "bti,bo->bto", "bti,ij->bj", "btt,ot->bto", "bti,ti->bti"]


class Net(nn.Module):
    def __init__(self, equation: str, shape: tuple[int, int]) -> None:
        super().__init__()
        self.equation, self.weight = equation, nn.Parameter(torch.randn(shape, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        pair = (self.weight, x) if self.equation.startswith("oi,") else (x, self.weight)
        return torch.einsum(self.equation, *pair).tanh().sum(1)


def shapes(equation: str) -> tuple[tuple[int, int], tuple[int, ...]]:
    weight = (4, 3) if "io" in equation else (3, 4)
    return weight, ((5, 4, 6) if "bit" in equation else (5, 6, 4))


@few(2, "further cases of one kind")
@pytest.mark.parametrize("equation", LAYERS)
def test_numbers(equation: str) -> None:
    torch.manual_seed(0)
    weight, values = shapes(equation)
    net, x = Net(equation, weight), torch.randn(values, dtype=torch.float64)
    y = torch.randn(net(x).shape, dtype=torch.float64)
    result = hbp.compile(net, nn.MSELoss(), quantities=["batch_grad", "diag_ggn", "diag_h"])(x, y)
    for quantity in ("batch_grad", "diag_ggn", "diag_h"):
        wanted = reference(net, nn.MSELoss(), [x], y, quantity)["weight"]
        torch.testing.assert_close(result[quantity]["weight"], wanted)


@few(2, "further cases of one kind")
@pytest.mark.parametrize("equation", LAYERS[:-1])
def test_factors_are_a_layers(equation: str) -> None:
    torch.manual_seed(0)
    weight, values = shapes(equation)
    net, x = Net(equation, weight), torch.randn(values, dtype=torch.float64)
    y = torch.randn(net(x).shape, dtype=torch.float64)
    (a, b) = hbp.compile(net, nn.MSELoss(), quantities=["kflr"])(x, y).kflr["weight"]
    assert a is not None
    assert (a.shape, b.shape) == ((4, 4), (3, 3))


@pytest.mark.parametrize("equation", OTHERS)
def test_others_are_torchs_own(equation: str) -> None:
    sizes = dict(zip("btioj", (5, 6, 4, 3, 2), strict=True))
    given, parameters = equation.split("->")[0].split(",")
    x, weight = (torch.randn([sizes[letter] for letter in letters]) for letters in (given, parameters))
    if equation == "btt,ot->bto":
        x = torch.randn(5, 6, 6)
    assert einsums._as_linear(equation, x, nn.Parameter(weight)) is None
    torch.testing.assert_close(einsum_with_layers(torch.einsum)(equation, x, nn.Parameter(weight)),
                               torch.einsum(equation, x, weight))


@pytest.mark.parametrize(("equation", "weight", "values"), [
    ("ni,oi->no", (2, 1), (4, 3)), ("ni,oi->no", (3, 4), (5, 1)), ("...i,io->...o", (1, 3), (5, 6, 4))])
def test_one_of_the_two_is_repeated(equation: str, weight: tuple[int, int], values: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Parameter(torch.randn(weight)), torch.randn(values)
    torch.testing.assert_close(einsum_with_layers(torch.einsum)(equation, x, layer), torch.einsum(equation, x, layer))


def test_a_function_in_its_place_is_left_alone() -> None:
    def other(*arguments: Any) -> Tensor:
        return torch.zeros(())

    assert einsum_with_layers(other) is other


def test_without_parameters_it_is_torchs_own() -> None:
    assert einsums._as_linear("bi,oi->bo", torch.randn(2, 3), torch.randn(4, 3)) is None


class Watching(TorchFunctionMode):
    """Whether an order was sought for each einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.einsum:
            self.seen.append(torch.backends.opt_einsum.enabled)
        return function(*args, **kwargs or {})


def test_no_order_is_sought_that_depends_on_the_batch() -> None:
    """opt_einsum, where it is installed, turns the number of samples into a number to find the cheapest order."""
    x, weight = torch.randn(4, 3), torch.randn(3)
    with Watching() as mode:
        found = einsum_with_layers(torch.einsum)("ni,nj,j->ni", x, x, weight)
    assert mode.seen == [False]
    torch.testing.assert_close(found, torch.einsum("ni,nj,j->ni", x, x, weight))
