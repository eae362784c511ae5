"""Squares of norms are sums of squares."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.squared_norms import with_sums_of_squares
from hbpcompiler.compiler.trace.graph import N
from tests.agreement import agree
from tests.hand_made import graph, operation, parameter, value
from tests.networks import Shifted

X, W, OUTPUT = value("x", N, 3, role="input"), parameter("w", 2, 3), value("output", N, 2)
LINEAR = operation("linear", OUTPUT, {"bias": None}, input=X, weight=W)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("of_loss", [False, True])
@pytest.mark.parametrize("power", [2, 3])
def test_what_is_rewritten(order, of_loss, power):
    """Not a square in the loss of a norm that the model returns: its GGN is of that output."""
    settings = {"ord": order, "dim": [1], "dtype": None, "keepdim": False}
    norm = operation("linalg_vector_norm", value("norm", N), settings, self=OUTPUT)
    square = operation("pow", value("square", N), {"exponent": power}, in_loss=of_loss, self=norm.output)
    end = operation("sum", value("loss"), {"dtype": None}, in_loss=True, self=square.output)
    found = with_sums_of_squares(graph([LINEAR, norm, square, end], state=[W], inputs=[X], outputs=[OUTPUT]))
    kept = (order, power, of_loss) != (2, 2, False)
    assert [own.name for own in found.operations] == (
        ["output", "norm", "square", "loss"] if kept else ["output", "square_each", "square", "loss"])


def norm(z):
    return z.norm(dim=1)


SQUARES = {
    "power": lambda z: norm(z) ** 2,
    "square": lambda z: norm(z).square(),
    "product": lambda z: norm(z) * norm(z),
    "axis kept": lambda z: torch.linalg.vector_norm(z, dim=-1, keepdim=True) ** 2,
    "and the norm": lambda z: norm(z) ** 2 + 0.0 * norm(z).clamp(min=0.5),
}
BETWEEN = {
    "unsqueeze": lambda z: norm(z).unsqueeze(1).square().squeeze(1),
    "index": lambda z: (norm(z)[:, None] ** 2)[:, 0],
    "multiple": lambda z: (2 * norm(z)) ** 2 / 4,
    "quotient": lambda z: (-norm(z) / 2).square() * 4,
    "signed product": lambda z: -norm(z) * norm(z) / -1,
    "product of views": lambda z: (norm(z)[:, None] * (3 * norm(z).view(-1, 1))).sum(1) / 3,
    "relu": lambda z: torch.relu(norm(z)) ** 2,
    "clamp": lambda z: norm(z).clamp(min=0).abs().square(),
    "leaky": lambda z: F.leaky_relu(norm(z)) ** 2,
    "exponential unit": lambda z: F.elu(3 * norm(z)) * norm(z) / 3,
    "nothing added": lambda z: norm(z).mul(1.0).add(0.0).square(),
    "its own dtype": lambda z: torch.linalg.vector_norm(z, dim=1, dtype=torch.float64) ** 2,
    "both": lambda z: torch.stack([norm(z), norm(2 * z)], 1).square().sum(1) / 5,
    "and others": lambda z: torch.cat([norm(z)[:, None], z[:, :1]], 1).square().sum(1) - z[:, 0] ** 2,
    "matrix norm": lambda z: torch.linalg.matrix_norm(z.view(-1, 3, 1)).unsqueeze(1).square().squeeze(1),
    "distance": lambda z: nn.PairwiseDistance(eps=0.0)(z, torch.zeros_like(z)).unsqueeze(1).square().squeeze(1),
}


@pytest.mark.parametrize("place", ["model", "loss"])
@pytest.mark.parametrize("square", [*SQUARES.values(), *BETWEEN.values()], ids=[*SQUARES, *BETWEEN])
def test_the_square_of_a_norm_at_zero_is_a_sum_of_squares(square, place):
    """Of which torch knows the curvature, 2 I; it has NaN for the square of a norm."""
    def plain(z):
        return z.square().sum(1)

    X = torch.tensor([[1.0, 2, 4], [0, 0, 0]]).double()
    inside, outside = (square, torch.mean) if place == "model" else (nn.Identity(), lambda z: square(z).mean())
    model, loss = Shifted(inside), lambda o, _: outside(o)
    compiled = hbp.compile(model, loss, quantities=["grad", "diag_h", "kflr"])
    found = compiled(X, None)
    inside, outside = (plain, torch.mean) if place == "model" else (nn.Identity(), lambda z: plain(z).mean())
    agree(found, Shifted(inside), lambda o, _: outside(o), [X], None, ["grad", "diag_h"])
    expected = torch.eye(3).double() * (2 if place == "loss" else 0)
    torch.testing.assert_close(found.kflr["bias"].B, expected)


def test_what_is_no_square_of_a_norm_stays():
    """Products of norms of different values, or of different parts of one, and rounded quotients."""
    def values(z):
        n = torch.stack([norm(z), norm(z + 1)], 1)
        return norm(z) * norm(z + 1) + n[:, 0] * n[:, 1] + norm(z).div(0.3, rounding_mode="floor") ** 2

    X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()
    model, loss = Shifted(values), lambda o, _: o.mean()
    agree(hbp.compile(model, loss, ["grad", "diag_h"])(X, None), model, loss, [X], None, ["grad", "diag_h"])
