"""Where pieces end: sites, routes and shapes, on operations written by hand."""

import pytest
import torch

from hbpcompiler.compiler.cost.figures import UNLIMITED
from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.match.operation.stand_ins import StandIns
from hbpcompiler.compiler.plan.closings import closings_at, shape_of_total
from hbpcompiler.compiler.plan.precision import Precision
from hbpcompiler.compiler.plan.steps import Piece
from hbpcompiler.compiler.routes import COLUMNS
from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.quantities import (
    DIAGONAL,
    EIGEN,
    FACTOR,
    GGN,
    GGN_MC,
    GRADIENT,
    INPUT_FACTOR,
    RESIDUAL,
    SUM,
    VECTORS,
    Closing,
)
from hbpcompiler.rule import ZERO, Rule
from tests.hand_made import mlp, operation, parameter, rules_of, value

GRAPH = mlp()
LINEAR = GRAPH.operations[0]
RULE = rules_of(GRAPH)["hidden"]


def piece(stream, columns=3, signed=False):
    return Piece(f"{stream}_piece", stream, COLUMNS, columns, signed)


def ends(pieces, *wanted):
    op = bind(LINEAR, StandIns(LINEAR, RULE), GRAPH.active)
    closings = [Closing(*closing) for closing in wanted]
    return list(closings_at(LINEAR, RULE, op, pieces, closings, torch.float32, UNLIMITED, Precision()))


def test_weight_and_bias_have_a_site_each():
    weight, bias = ends([piece(GRADIENT, 1)], (GRADIENT, SUM))
    assert (weight.parameter.key, bias.parameter.key) == ("a.weight", "a.bias")
    assert weight.site.shape == (4, 3)
    assert weight.site.features
    assert bias.site.shape == (4,)
    assert not bias.site.has_operand
    assert frozenset().union(*(choice.kinds for choice in weight.choices)) == {SUM}


def test_only_what_is_wanted_of_a_stream():
    found = ends([piece(GGN), piece(GRADIENT, 1)], (GGN, DIAGONAL), (GGN, FACTOR))
    assert {close.piece.stream for close in found} == {GGN}
    assert all(frozenset().union(*(choice.kinds for choice in close.choices)) == {DIAGONAL, FACTOR} for close in found)


def test_the_operand_alone_closes_where_there_are_input_features():
    found = ends([], ("", INPUT_FACTOR))
    assert [(close.parameter.key, close.piece) for close in found] == [("a.weight", None)]


def test_a_stream_that_nobody_wants_ends_nowhere():
    assert ends([piece(RESIDUAL)], (GGN, DIAGONAL)) == []


def test_shapes_of_totals():
    weight, bias = ends([piece(GGN)], (GGN, DIAGONAL), (GGN, FACTOR))
    assert shape_of_total(weight, DIAGONAL) == (4, 3)
    assert shape_of_total(weight, FACTOR) == (4, 4)
    assert shape_of_total(bias, FACTOR) == (4, 4)


def test_no_square_root_of_signed_pieces():
    for stream, name in ((GGN, "sqrt_ggn"), (GGN_MC, "sqrt_ggn_mc")):
        with pytest.raises(UnsupportedOpError, match=f"^{name}: .* no real square root"):
            ends([piece(stream, signed=True)], (stream, VECTORS))


def test_eigenvectors_of_one_piece_only():
    two = [Piece(name, GGN, COLUMNS, 2, False) for name in ("one", "other")]
    with pytest.raises(UnsupportedOpError, match=r"reaches parameter 'a\.weight' in several pieces"):
        ends(two, (GGN, EIGEN))


def test_a_full_block_has_a_limit():
    large = parameter("shift", 2**15)
    added = operation("add", value("sum", 2**15), {"alpha": 1}, overload="Tensor", self=value("x", 2**15), other=large)
    rule = Rule(["aten.add"], residual=ZERO, jac_t={}, forward=lambda op: op.self + op.other,
                params=lambda op: {"other": RULE.params(bind(LINEAR, StandIns(LINEAR, RULE), set()))["bias"]})
    op = bind(added, StandIns(added, rule), {"shift", "sum"})
    with pytest.raises(UnsupportedOpError, match="its full block of 32768 x 32768 numbers"):
        list(closings_at(added, rule, op, [piece(GGN)], [Closing(GGN, FACTOR)], torch.float32, UNLIMITED, Precision()))
