"""Weights of a second phase, what is weighed, and sums of per-sample gradients, each step by itself on tensors."""

import pytest
import torch
from torch import fx

from hbpcompiler import clipping
from hbpcompiler.compiler.derive import second_phase
from hbpcompiler.compiler.derive.carry_out import HANDLERS, backward_pass
from hbpcompiler.compiler.plan.phases import SumEach, Total, Weigh, Weights
from hbpcompiler.compiler.plan.pieces import Piece
from hbpcompiler.compiler.program.writer import Writer
from hbpcompiler.compiler.routes import COLUMNS
from hbpcompiler.quantities import CLIPPED, EACH, GRADIENT, NORM, SUM, Closing
from tests.compiler.derive.carried import BENT, GRAPH, LAST, MATCHED, SAMPLES, planned

G, C = Piece("g", GRADIENT, COLUMNS, 1, False), Piece("C", CLIPPED, COLUMNS, 1, False)
TOTAL = Total(clipping.ALL, Closing(GRADIENT, NORM), ("b.weight",))
(PARAMETER,) = [value for value in GRAPH.state if value.key == "b.weight"]
SQUARES = torch.tensor([0.0, 0.25, 16.0])


def run(step, prepare, read, *given):
    """What `read` finds in the state after a step, before which `prepare` put what is given there."""
    writer = Writer()
    proxies = [writer.placeholder(f"given_{number}") for number in range(len(given))]
    state = backward_pass(MATCHED, planned("norms"), writer, {}, SAMPLES)
    prepare(state, *proxies)
    state.carry_out(step)
    writer.graph.output(read(state).node)
    return fx.GraphModule(torch.nn.Module(), writer.graph)(*given)


@pytest.mark.parametrize(("style", "expected"), [
    ("flat", [1.0, 1.0, 0.25]), ("automatic", [100.0, 1 / 0.51, 1 / 4.01]), ("opacus", [1.0, 1.0, 1 / 4.000001]),
    ("per_parameter", [1.0, 1.0, 0.25])])
def test_weights_of_norms(style, expected):
    found = clipping.weights(style, clipping.norms_of(SQUARES), 1.0)
    torch.testing.assert_close(found, torch.tensor(expected))
    groups = clipping.groups(style, ["a", "b"])
    assert groups == ({"a": ("a",), "b": ("b",)} if style == "per_parameter" else {"all": ("a", "b")})


def test_weights_are_made_of_a_total():
    def prepare(state, squares, bound):
        state.sums[TOTAL], state.bounds = squares, {clipping.ALL: bound}

    def made(squares):
        return run(Weights(TOTAL, LAST), prepare, lambda state: state.weighing[TOTAL], squares, torch.tensor(2.0))

    torch.testing.assert_close(made(SQUARES), torch.tensor([1.0, 1.0, 0.5]))
    assert made(-SQUARES / 1e9).tolist() == [1, 1, 1]  # squares that rounded to below zero, and to -0.0
    assert HANDLERS[Weights] is second_phase.weigh_samples


def test_columns_are_weighed():
    def prepare(state, columns, weights):
        state.columns["bent", "g"], state.weighing[TOTAL] = columns, weights

    columns, weights = torch.randn(SAMPLES, 1, 4), torch.rand(SAMPLES)
    found = run(Weigh(BENT, G, C, TOTAL), prepare, lambda state: state.columns["bent", "C"], columns, weights)
    torch.testing.assert_close(found, columns * weights[:, None, None])
    assert HANDLERS[Weigh] is second_phase.weigh


def test_per_sample_gradients_are_summed():
    def prepare(state, each, weights):
        state.closed["b.weight"], state.weighing[TOTAL] = {Closing(GRADIENT, EACH): each}, weights

    each, weights = torch.randn(SAMPLES, 2, 4), torch.rand(SAMPLES)
    found = run(SumEach(LAST, PARAMETER, C, None, TOTAL), prepare,
                lambda state: state.closed["b.weight"][Closing(CLIPPED, SUM)], each, weights)
    torch.testing.assert_close(found, (weights[:, None, None] * each).sum(0))
    assert HANDLERS[SumEach] is second_phase.sum_each
