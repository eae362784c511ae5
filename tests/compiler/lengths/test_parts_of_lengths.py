"""What lengths are made of: whole numbers, formulas, walks, axes of two batches, decisions."""

import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from hbpcompiler.compiler import any_length, at_length
from hbpcompiler.compiler.cost.decisions import OtherDecisionsError, apart, decided, followed, written_down
from hbpcompiler.compiler.lengths import axes, fits, matched_at, numbers, walk, write
from hbpcompiler.compiler.trace.batch import batch_of
from tests.compiler.lengths.test_lengths import words
from tests.stages import matched


@given(st.integers(-40, 40), st.integers(-9, 9), st.integers(-3, 3), st.lists(st.integers(2, 300), min_size=4,
                                                                           max_size=6, unique=True))
def test_whole_numbers(constant, slope, bend, lengths):
    made = [constant + slope * length + bend * length**2 for length in lengths]
    if len(set(made)) == 1:
        return
    polynomial = numbers.expression(lengths, made)
    assert [polynomial.at(length) for length in (1, 17, 1000)] == [
        constant + slope * length + bend * length**2 for length in (1, 17, 1000)]
    assert eval(numbers.text(polynomial), {"T": 31}) == polynomial.at(31)
    assert numbers.expression(lengths, [*made[:-1], made[-1] + 1]) is None


def test_pairs_roots_means_and_what_has_no_formula():
    lengths = [6, 9, 10, 16]
    assert numbers.text(numbers.expression(lengths, [t * (t + 1) // 2 for t in lengths])) == "(T*T + T)//2"
    assert numbers.text(numbers.expression(lengths, [2 * t - 3 for t in lengths])) == "2*T - 3"
    for make in (lambda t: 1 / t, lambda t: 0.5 / (t - 1), lambda t: (1 / t) ** 0.5, lambda t: 3.7 * t**0.5,
                 lambda t: 2.0 * t):
        found_one = numbers.expression(lengths, [make(t) for t in lengths])
        assert found_one.at(77) == pytest.approx(make(77), rel=1e-12)
        assert eval(numbers.text(found_one), {"T": 77}) == pytest.approx(make(77), rel=1e-12)
    assert numbers.expression(lengths, [t // 2 for t in lengths]) is None
    assert numbers.expression(lengths, [min(t, 9) for t in lengths]) is None
    assert numbers.expression(lengths, [1 / t + 1e-9 * (t == 9) for t in lengths]) is None
    with pytest.raises(numbers.NeedsMoreError):
        numbers.expression(lengths[:3], [t * t for t in lengths[:3]])


def test_polynomials_of_degree_three():
    lengths = [23, 4, 5, 3, 8]
    cubic = [2 * t**3 + 27 * t**2 for t in lengths]
    with pytest.raises(numbers.NeedsMoreError):
        numbers.expression(lengths[:4], cubic[:4])
    found_one = numbers.expression(lengths, cubic)
    assert numbers.text(found_one) == "2*(T*T*T) + 27*(T*T)"
    assert found_one.at(100) == 2 * 100**3 + 27 * 100**2
    half = numbers.expression(lengths, [t * t * (t + 1) // 2 for t in lengths])
    assert eval(numbers.text(half), {"T": 7}) == half.at(7) == 7 * 7 * 8 // 2
    assert numbers.expression(lengths, [*cubic[:-1], cubic[-1] + 1]) is None
    assert numbers.expression(lengths, [t**4 for t in lengths]) is None


def graph_of(length, factor=2.0):
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = graph.call_method("reshape", (x, (-1, 3 * length)))
    graph.output(graph.call_function(operator.mul, (made, factor)))
    return graph


def test_a_walk_finds_numbers_and_nothing_else():
    own = fits.Fits([2, 5, 6])
    seen = walk.Walk(own)
    seen.run([graph_of(2), graph_of(5), graph_of(6)])
    assert [numbers.text(each) for each in own.found if each is not None] == ["3*T"]
    graph = fx.Graph()
    graph.output(graph.call_method("relu", (graph.placeholder("x"),)))
    with pytest.raises(walk.LengthsDifferError, match="what is called"):
        walk.Walk(fits.Fits([2, 5])).run([graph_of(2), graph])
    walk.Walk(fits.Check(9, own.found)).run([graph_of(2), graph_of(9)])
    with pytest.raises(walk.LengthsDifferError, match="formula gives 27"):
        walk.Walk(fits.Check(9, own.found)).run([graph_of(2), graph_of(10)])
    with pytest.raises(walk.LengthsDifferError, match=r"is 3[.]0 at a length of 9"):
        walk.Walk(fits.Check(9, own.found)).run([graph_of(2), graph_of(9, 3.0)])
    assert isinstance(own.found[1], write.FITTED) or isinstance(own.found[0], write.FITTED)
    with pytest.raises(walk.LengthsDifferError, match="no simple formula"):
        matched_at._item("here", [[1], [2], [4]], fits.Fits([2, 5, 9]))


def test_axes_of_two_batches():
    long, short = (batch_of((words(2, t), words(2, t - 1))) for t in (8, 5))
    found_axes = axes.between(short.form, long.form)
    assert found_axes.of == (axes.Axis(0, 1, 0), axes.Axis(1, 1, -1))
    assert found_axes.length(long) == 8
    assert found_axes.length(batch_of((words(2, 8), words(2, 8)))) is None
    assert found_axes.form(long) == found_axes.form(short)
    assert [tuple(tensor.shape) for tensor in found_axes.at(short, 7).tensors] == [(2, 7), (2, 6)]
    assert torch.equal(found_axes.at(long, 5).tensors[0], long.tensors[0][:, :5])
    assert axes.between(long.form, batch_of((words(2, 9), words(2, 8)[:, :3])).form) == (
        "several lengths vary, each by itself")
    assert axes.between(long.form, long.form) is None
    assert any_length.candidates(6, 9)[:2] == [9, 10]


class OneByOne(nn.Module):
    """A loop over positions, which a trace writes out."""

    def __init__(self):
        super().__init__()
        self.step = nn.Linear(2, 3)

    def forward(self, x):
        total = self.step(x[:, 0])
        for position in range(1, x.shape[1]):
            total = total + self.step(x[:, position])
        return total


def test_operations_at_two_lengths_are_compared_place_by_place():
    first, other = (matched(OneByOne(), torch.randn(2, length, 2), torch.tensor([0, 2])) for length in (3, 4))
    at_length.check_operations(first, first, 3)
    with pytest.raises(walk.LengthsDifferError, match="at a length of 4: a loop over positions"):
        at_length.check_operations(first, other, 4)


def test_decisions_are_followed_in_their_order():
    with written_down() as decisions:
        assert [decided("a", lambda: 1), decided("b", lambda: decided("inner", lambda: 2))] == [1, 2]
        with apart():
            decided("nothing", lambda: 0)
    assert decisions.made == [("a", 1), ("b", 2)]
    with followed(decisions):
        assert [decided("a", lambda: 7), decided("b", lambda: 7)] == [1, 2]
    with pytest.raises(OtherDecisionsError), followed(decisions):
        decided("b", lambda: 7)
    with pytest.raises(OtherDecisionsError), followed(decisions):
        decided("a", lambda: 7)
