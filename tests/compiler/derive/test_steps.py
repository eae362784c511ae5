"""Each kind of step by itself: what arrives, given what had arrived."""

import pytest
import torch

from hbpcompiler import schemes
from hbpcompiler.compiler.derive import begin, close, cross, gather, kfra, sample
from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.derive.carry_out import HANDLERS
from hbpcompiler.compiler.plan.steps import Average, Birth, Close, Gather, Piece, Pull, Sample, Seed, Step, Tail, Widen
from hbpcompiler.compiler.routes import COLUMNS, DIAGONAL_FORM, MATRIX
from hbpcompiler.quantities import GGN, GGN_MC, GRADIENT, KFRA, RESIDUAL, SUM
from tests.compiler.derive.carried import BENT, HIDDEN, LAST, LOSS, OUTPUT, SAMPLES, TANH, carried_out, planned, values

VALUES = values()
G = Piece("g", GRADIENT, COLUMNS, 1, False)
S = Piece("S", GGN, DIAGONAL_FORM, 0, False)
C = Piece("C", GGN, COLUMNS, 2, False)
R = Piece("R", RESIDUAL, DIAGONAL_FORM, 0, True)


def columns(count, size):
    torch.manual_seed(1)
    return torch.randn(SAMPLES, count, size)


def test_every_step_has_a_function():
    assert set(HANDLERS) >= set(Step.__args__) - {Tail}
    assert HANDLERS[Seed] is begin.seed
    assert HANDLERS[Close] is close.close
    assert HANDLERS[Gather] is gather.gather


def test_the_gradient_begins_at_the_loss():
    """Of each sample's own loss, a mean over two outputs."""
    found, _, _ = carried_out(Seed(LOSS, G))
    torch.testing.assert_close(found["output", "g"], (VALUES["output"] - VALUES["y"]).unsqueeze(1))


def test_the_losss_diagonal_begins_there_too():
    found, _, _ = carried_out(Seed(LOSS, S))
    torch.testing.assert_close(found["output", "S"], torch.ones(SAMPLES, 2))


def test_columns_cross_a_linear_layer_and_an_activation():
    given = columns(2, 2)
    found, _, _ = carried_out(Pull(LAST, "input", C), {("output", "C"): given})
    torch.testing.assert_close(found["bent", "C"], given @ VALUES["b.weight"])
    given = columns(2, 4)
    found, _, _ = carried_out(Pull(TANH, "self", C), {("bent", "C"): given})
    torch.testing.assert_close(found["hidden", "C"], given * (1 - VALUES["bent"] ** 2).unsqueeze(1))


def test_a_diagonal_crosses_an_activation_squared():
    given = columns(1, 4)[:, 0]
    found, _, _ = carried_out(Pull(TANH, "self", S), {("bent", "S"): given})
    torch.testing.assert_close(found["hidden", "S"], given * (1 - VALUES["bent"] ** 2) ** 2)


def test_what_arrives_twice_adds_up():
    there, given = columns(2, 4), columns(2, 2)
    found, _, _ = carried_out(Pull(LAST, "input", C), {("bent", "C"): there, ("output", "C"): given})
    torch.testing.assert_close(found["bent", "C"], there + given @ VALUES["b.weight"])


def test_a_diagonal_widens():
    given = columns(1, 2)[:, 0].abs()
    found, _, _ = carried_out(Widen(LAST, "input", S, C), {("output", "S"): given})
    expected = torch.einsum("oi,no,oj->nij", VALUES["b.weight"], given, VALUES["b.weight"])
    torch.testing.assert_close(found["bent", "C"].mT @ found["bent", "C"], expected)


@pytest.mark.parametrize(("curvature", "scheme"), [
    (schemes.HESSIAN, lambda value: value), (schemes.PCH_ABS, torch.abs), (schemes.PCH_CLIP, torch.relu)])
def test_a_residual_is_born(curvature, scheme):
    made = planned("diag_h", curvature=curvature)
    (birth,) = [step for step in made.flat() if isinstance(step, Birth)]
    gradient = columns(1, 4)
    found, _, _ = carried_out(birth, {("bent", birth.gradient.name): gradient}, made=made)
    bent = VALUES["bent"]
    expected = scheme(-2 * bent * (1 - bent**2) * gradient[:, 0])
    torch.testing.assert_close(found["hidden", birth.piece.name], expected)


def test_columns_are_laid_side_by_side_and_diagonals_added():
    left, right, both = (Piece(name, RESIDUAL, COLUMNS, count, True) for name, count in
                         (("l", 1), ("r", 2), ("b", 3)))
    signs = {"l": torch.ones(SAMPLES, 1), "r": -torch.ones(SAMPLES, 2)}
    found, known, _ = carried_out(Gather(BENT, (left, right), both),
                                  {("bent", "l"): columns(1, 4), ("bent", "r"): columns(2, 4)}, signs)
    torch.testing.assert_close(found["bent", "b"], torch.cat([columns(1, 4), columns(2, 4)], 1))
    assert known["b"].tolist() == [[1, -1, -1]] * SAMPLES
    found, _, _ = carried_out(Gather(HIDDEN, (R, S), R), {("hidden", "R"): torch.ones(SAMPLES, 4),
                                                          ("hidden", "S"): columns(1, 4)[:, 0]})
    torch.testing.assert_close(found["hidden", "R"], 2 + columns(1, 4)[:, 0])


def test_kfra_averages_over_the_samples():
    G0 = Piece("G", KFRA, MATRIX, 0, False)
    given, diagonal = columns(2, 2), columns(1, 2)[:, 0]
    found, _, _ = carried_out(Average(OUTPUT, (C, S), G0), {("output", "C"): given, ("output", "S"): diagonal})
    torch.testing.assert_close(found["output", "G"],
                               (given.mT @ given).mean(0) + torch.diag(diagonal.mean(0)))
    assert HANDLERS[Average] is kfra.average


def test_kfras_matrix_crosses_a_linear_layer():
    """Written as W^T G W, of a G that need not be turned."""
    piece = Piece("G", KFRA, MATRIX, 0, False)
    given = columns(2, 2)[0]
    found, _, _ = carried_out(Pull(LAST, "input", piece), {("output", "G"): given + given.mT}, made=planned("kfra"))
    weight = VALUES["b.weight"]
    torch.testing.assert_close(found["bent", "G"], weight.mT @ (given + given.mT) @ weight)


def test_random_signs_keep_the_sum_of_outer_products_in_expectation():
    into = Piece("M", GGN_MC, COLUMNS, 4000, False)
    given = columns(2, 2)
    torch.manual_seed(0)
    found, _, _ = carried_out(Sample(OUTPUT, (C,), into), {("output", "C"): given},
                              made=planned("diag_ggn_mc", mc_samples=4000))
    drawn = found["output", "M"]
    assert drawn.shape == (SAMPLES, 4000, 2)
    torch.testing.assert_close(drawn.mT @ drawn, given.mT @ given, rtol=0.15, atol=0.15)
    assert HANDLERS[Sample] is sample.sample


def test_a_piece_ends_at_a_parameter():
    made = planned("grad")
    (end,) = [step for step in made.flat() if isinstance(step, Close) and step.operation.name == "output"]
    given = columns(1, 2)
    _, _, closed = carried_out(end, {("output", end.piece.name): given}, made=made)
    torch.testing.assert_close(closed["b.weight", SUM], torch.einsum("no,ni->oi", given[:, 0], VALUES["bent"]))


def test_inside_a_loop_a_pass_has_its_own_state():
    assert HANDLERS[Pull] is cross.pull
    outer = Backward(None, planned("grad"), None, {}, 3, HANDLERS, columns={("a", "p"): 1})
    inner = outer.inside(None, {}, lambda tensor: tensor, batch=1)
    assert (inner.batch, dict(inner.columns)) == (1, {})
    assert outer.columns == {("a", "p"): 1}
