"""Squares by pairs of positions: taken where channels are many and pixels few; never below zero."""

import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.figures import UNLIMITED
from hbpcompiler.compiler.routes import choose
from hbpcompiler.compiler.routes.pairs import SquaresByPairs
from hbpcompiler.compiler.routes.site import COLUMNS, Site
from hbpcompiler.quantities import DIAGONAL
from hbpcompiler.reference import reference


def site(positions, channels):
    sizes = (("i", 9 * channels), ("o", channels), ("p", positions))
    return Site("nkop,nip->nkoi", sizes, COLUMNS, 1, False, 4, True, UNLIMITED, formed=True)


def route(positions, channels):
    (choice,) = choose(site(positions, channels), frozenset({DIAGONAL}))
    return choice.route.name


def test_where_it_is_taken():
    assert route(4, 512) == SquaresByPairs.name
    assert route(64, 128) != SquaresByPairs.name
    assert not SquaresByPairs().applies(site(1, 512))


def test_a_weight_without_variance_has_none_below_zero():
    """Positions of which the cotangents cancel: what is left is rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(), nn.Linear(20, 2))
    with torch.no_grad():
        model[2].weight[:, 1::2] = -model[2].weight[:, ::2]
    X = torch.randn(4, 3, 2, 1).expand(4, 3, 2, 2) * 1e3
    y = torch.tensor([0, 1, 0, 1])
    limits = hbp.Limits(route_times=((SquaresByPairs.name, 0),))
    compiled = hbp.compile(model, quantities=["second_moment", "diag_ggn"], limits=limits)
    result = compiled(X, y)
    assert SquaresByPairs.name in compiled.explain()
    for quantity in ("second_moment", "diag_ggn"):
        found = result[quantity]["0.weight"]
        wanted = reference(model.double(), nn.CrossEntropyLoss(), [X.double()], y, quantity)["0.weight"]
        model.float()
        assert (found >= 0).all()
        assert (found - wanted).abs().max() <= 1e-6 * (4 * X.abs().max()) ** 2  # rounding of what cancels
