"""Each loop around steps by itself: in chunks of any size it closes what the steps close on the whole batch."""

import pytest
import torch

from hbpcompiler.compiler.derive import neighbourhood_loop, sample_loop, sample_pairs, tail_loop
from hbpcompiler.compiler.derive.carry_out import HANDLERS
from hbpcompiler.compiler.plan.neighbourhood import Neighbourhood
from hbpcompiler.compiler.plan.steps import Close, LocalTail, Pull, SampleChunks, SamplePairs, Tail, Widen
from hbpcompiler.quantities import DIAGONAL, GRAM
from tests.compiler.derive.carried import BENT, LAST, SAMPLES, carried_out, planned, values

VALUES = values()
MADE = planned("diag_ggn")


def way(made):
    """How columns at the bent values end at the first layer: the steps, and their piece."""
    steps = tuple(step for step in made.steps if isinstance(step, Pull | Close)
                  and (step.operation.name in ("bent", "hidden")))
    return steps, steps[0].piece


def columns(piece):
    torch.manual_seed(1)
    return torch.randn(SAMPLES, piece.columns, 4)


def gradients(given):
    """What the columns are at weight and bias: [N, K, 4, 3], [N, K, 4]."""
    bias = given * (1 - VALUES["bent"] ** 2).unsqueeze(1)
    return torch.einsum("nko,ni->nkoi", bias, VALUES["x"]), bias


def check_diagonals(closed, given):
    weight, bias = gradients(given)
    torch.testing.assert_close(closed["a.weight", DIAGONAL], weight.square().sum((0, 1)))
    torch.testing.assert_close(closed["a.bias", DIAGONAL], bias.square().sum((0, 1)))


def test_each_loop_has_its_function():
    assert {kind: HANDLERS[kind] for kind in (Tail, LocalTail, SampleChunks, SamplePairs)} == {
        Tail: tail_loop.walk_tail, LocalTail: neighbourhood_loop.walk_local_tail,
        SampleChunks: sample_loop.walk_sample_chunks, SamplePairs: sample_pairs.walk_sample_pairs}


@pytest.mark.parametrize(("samples", "at_once"), [(1, 1), (2, 1), (2, 2), (SAMPLES, 2)])
def test_a_tail_from_columns_that_are_there(samples, at_once):
    steps, piece = way(MADE)
    given = columns(piece)
    _, _, closed = carried_out(Tail(piece, (BENT,), steps, samples, at_once), {("bent", piece.name): given}, made=MADE)
    check_diagonals(closed, given)


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_tail_whose_columns_are_born_in_it(at_once):
    """Of a diagonal at the output: a column for each coordinate, through the last layer's weight."""
    steps, piece = way(MADE)
    (widen,) = [step for step in MADE.steps if isinstance(step, Widen)]
    diagonal = VALUES["y"].abs()
    _, _, closed = carried_out(Tail(piece, (LAST.output,), (widen, *steps), 2, at_once),
                               {("output", widen.piece.name): diagonal}, made=MADE)
    check_diagonals(closed, diagonal.sqrt().unsqueeze(2) * VALUES["b.weight"])


@pytest.mark.parametrize("samples", [1, 2, SAMPLES])
def test_chunks_of_samples(samples):
    steps, piece = way(MADE)
    given = columns(piece)
    _, _, closed = carried_out(SampleChunks(steps, samples), {("bent", piece.name): given}, made=MADE)
    check_diagonals(closed, given)


@pytest.mark.parametrize("samples", [2, 4, 6])
def test_pairs_of_blocks_of_samples(samples):
    """Any two samples meet in some turn: the inner products of all columns with each other, over all parameters."""
    made = planned("gram")
    steps, piece = way(made)
    given = columns(piece)
    _, _, closed = carried_out(SamplePairs(steps, samples), {("bent", piece.name): given}, made=made)
    rows = torch.cat([part.flatten(2).flatten(0, 1) for part in gradients(given)], 1)
    (found,) = [value for (_, kind), value in closed.items() if kind == GRAM]
    torch.testing.assert_close(found, rows @ rows.t())


@pytest.mark.parametrize(("first", "fill"), [(0, 0.0), (-1, 0.0), (-1, 7.0), (1, 0.0)])
def test_neighbourhoods_are_cut_position_by_position(first, fill):
    """Along an axis of six, every second position with the three that it reads; outside the image is what fills it."""
    image = torch.randn(2, 3, 6)
    found = neighbourhood_loop.cut(image, (6,), (3,), Neighbourhood((2,), (first,), (3,)), fill)
    assert found.shape == (2 * 3, 3, 3)
    for position in range(3):
        for offset in range(3):
            index = 2 * position + first + offset
            expected = image[:, :, index] if 0 <= index < 6 else torch.full((2, 3), fill)
            torch.testing.assert_close(found.unflatten(0, (2, 3))[:, position, :, offset], expected)


def test_neighbourhoods_of_images():
    """As torch's own windows, for each position one behind the other."""
    image = torch.randn(2, 3, 5, 4)
    found = neighbourhood_loop.cut(image, (5, 4), (3, 2), Neighbourhood((1, 2), (0, 0), (3, 2)))
    windows = torch.nn.functional.unfold(image, (3, 2), stride=(1, 2))
    torch.testing.assert_close(found.flatten(1), windows.mT.flatten(0, 1))
