"""Which positions are read, through windows."""

from hbpcompiler.compiler.plan.neighbourhood import Neighbourhood
from hbpcompiler.rule import Window

POINT = Neighbourhood((1, 1), (0, 0), (1, 1))
PADDED = Window(size=[3, 3], stride=[1, 1], dilation=[1, 1], before=[1, 1])


def test_one_output_of_a_convolution_reads_its_window():
    assert POINT.read_through(PADDED) == Neighbourhood((1, 1), (-1, -1), (3, 3))


def test_windows_grow_layer_by_layer():
    assert POINT.read_through(PADDED).read_through(PADDED) == Neighbourhood((1, 1), (-2, -2), (5, 5))


def test_strides_and_dilations():
    strided = Window(size=[2, 3], stride=[2, 1], dilation=[1, 2], before=[0, 2])
    assert POINT.read_through(strided) == Neighbourhood((2, 1), (0, -2), (2, 5))
    assert Neighbourhood((1, 1), (-1, 0), (3, 2)).read_through(strided) == Neighbourhood((2, 1), (-2, -2), (6, 6))


def test_the_outputs_that_are_counted_by_hand():
    """Outputs first, ..., first + length - 1 of a strided, dilated window read exactly what is said."""
    window = Window(size=[3], stride=[2], dilation=[2], before=[1])
    place = Neighbourhood((1,), (4,), (3,))
    read = {2 * y - 1 + 2 * a for y in range(4, 7) for a in range(3)}
    through = place.read_through(window)
    assert (through.first[0], through.first[0] + through.length[0] - 1) == (min(read), max(read))


def test_the_smallest_that_holds_both():
    left, right = Neighbourhood((2,), (-3,), (4,)), Neighbourhood((2,), (0,), (5,))
    assert left.joined(right) == right.joined(left) == Neighbourhood((2,), (-3,), (8,))


def test_margins_as_pad_counts_them():
    outer, inner = Neighbourhood((1, 1), (-2, -1), (6, 4)), Neighbourhood((1, 1), (-1, 0), (2, 2))
    assert outer.margins(inner) == [1, 1, 1, 3]
