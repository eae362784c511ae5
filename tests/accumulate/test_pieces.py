"""Sums in place, piece by piece: the same as of whole tensors."""

import pytest
import torch

from hbpcompiler.accumulate import pieces
from hbpcompiler.compiler.program.sums import added_, added_product_triangle_, added_triangle_

SHAPES = [(), (0,), (7,), (5, 3), (4, 1, 6)]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(*shape, dtype=torch.float64):
    return torch.rand(shape, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_add_up_as_the_whole(shape):
    total, value = drawn(*shape), drawn(*shape, dtype=torch.float32)
    right = total + 2.5 * value.double()
    added_(total, value, 1.0, 2.5)
    torch.testing.assert_close(total, right)
    single, lost = total.to(torch.float32), torch.zeros(shape)
    pieces.add_compensated(single, lost, value, 2.5, piece=4)
    torch.testing.assert_close(single.double() + lost, right + 2.5 * value.double(), rtol=1e-6, atol=1e-6)


def test_what_does_not_lie_in_a_row_is_added_too():
    total, value = drawn(6, 4), drawn(4, 6, dtype=torch.float32).t()
    right = total + 3 * value.double()
    added_(total, value, 1.0, 3.0)
    torch.testing.assert_close(total, right)
    long, value = drawn(2**16 + 3), drawn(2**16 + 3, dtype=torch.float32)
    right = long + 3 * value.double()
    added_(long, value, 1.0, 6.0, 2)
    assert torch.equal(long, right)


@pytest.mark.parametrize("size", [0, 1, 5, 130])
def test_a_symmetric_matrix_by_its_triangle(size):
    root = drawn(size, 3, dtype=torch.float32)
    total, right = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for share, decay in ((2.0, 1.0), (0.5, 0.25)):
        added_triangle_(total, root @ root.t(), decay, share, 3)
        right = decay * right + share / 3 * (root @ root.t()).double()
    torch.testing.assert_close(pieces.mirrored(total), right)


@pytest.mark.parametrize("size", [0, 1, 5, 130, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_symmetric_product_in_its_total(size, dtype):
    """Of the total's dtype it is made there, of a narrower one it is added."""
    root = drawn(size, 3, dtype=dtype)
    total = torch.full((size, size), torch.nan, dtype=torch.float64)
    right = torch.zeros(size, size, dtype=torch.float64)
    for share, decay in ((2.0, 0.0), (0.5, 0.25), (3.0, 1.0)):
        added_product_triangle_(total, root, root, decay, share, 3)
        right = decay * right + share / 3 * (root @ root.t()).double()
    torch.testing.assert_close(pieces.mirrored(total), right)


@pytest.mark.parametrize("shape", [(2,), (4, 3)])
def test_sums_of_squares_of_two_groups(shape):
    rows, others = drawn(5, *shape), drawn(2, *shape)
    squares, mean = ((rows - rows.mean(0)) ** 2).sum(0), rows.mean(0)
    new = ((others - others.mean(0)) ** 2).sum(0).float(), others.mean(0).float()
    pieces.merge_spread(squares, mean, 5, new[0] / 8, new[1] / 4, 2, 8.0, 4.0, piece=4, small=6)
    whole = torch.cat([rows, others])
    torch.testing.assert_close(mean, whole.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(squares, ((whole - whole.mean(0)) ** 2).sum(0), rtol=1e-6, atol=1e-6)
    first = torch.full_like(squares, torch.nan), torch.full_like(mean, torch.nan)
    pieces.merge_spread(*first, 0, new[0] / 8, new[1] / 4, 2, 8.0, 4.0, piece=4, small=6)
    torch.testing.assert_close(first, (new[0].double(), new[1].double()))
