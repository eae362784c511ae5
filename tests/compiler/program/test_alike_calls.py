"""Calls on meta tensors that are alike: made once, with the same shapes, strides, dtypes and memory as when made."""

import itertools
import operator

import pytest
import torch

from hbpcompiler.compiler.program.alike_calls import AlikeCalls, storage_of, tensors_in


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


class Counted:
    """Calls a function twice with tensors of the same kinds; counts how often it is run."""

    def __init__(self, function, most=100, pointwise=False):
        self.function, self.alike, self.runs = function, AlikeCalls(most=most), 0
        self.pointwise = pointwise

    def __call__(self, *args, **kwargs):
        def call():
            self.runs += 1
            return self.function(*args, **kwargs)

        return self.alike.result(self.function, args, kwargs, call, self.pointwise)


def described(result):
    return [(each.shape, each.stride(), each.dtype, each.device.type) for each in tensors_in(result)]


@pytest.mark.parametrize(("function", "args"), [
    (operator.add, lambda: (meta(5, 1, 3), meta(4, 1))),
    (operator.truediv, lambda: (meta(3, dtype=torch.int64), 2)),
    (torch.cat, lambda: ([meta(2, 3), meta(4, 3)],)),
    (torch.nn.functional.conv2d, lambda: (meta(2, 3, 5, 5).to(memory_format=torch.channels_last), meta(4, 3, 3, 3))),
    (torch.aminmax, lambda: (meta(3),)),
    (torch.linalg.qr, lambda: (meta(4, 4),)),
    (torch.split_with_sizes_copy, lambda: (meta(5, 2), [2, 3])),
])  # fmt: skip
def test_what_is_made_again_is_like_what_was_made(function, args):
    counted = Counted(function)
    first, second = counted(*args()), counted(*args())
    assert described(first) == described(second) == described(function(*args()))
    assert not set(map(storage_of, tensors_in(first))) & set(map(storage_of, tensors_in(second)))


def test_a_call_like_another_is_not_run():
    counted = Counted(operator.add)
    counted(meta(3), meta(3))
    counted(meta(3), meta(3))
    assert counted.runs == 1


@pytest.mark.parametrize("other", [
    lambda: (meta(4), 1), lambda: (meta(3, dtype=torch.float64), 1), lambda: (meta(3), 1.0), lambda: (meta(3), True),
    lambda: (meta(6)[::2], 1),
])  # fmt: skip
def test_arguments_of_another_kind_are_run(other):
    counted = Counted(operator.mul)
    counted(meta(3), 1)
    expected = operator.mul(*other())
    assert described(counted(*other())) == described(expected)
    assert counted.runs == 2


@pytest.mark.parametrize(("function", "rest"), [
    (torch.Tensor.t, ()), (torch.Tensor.reshape, (-1,)), (torch.Tensor.to, (torch.float32,)), (torch.Tensor.add_, (1,)),
    (torch.Tensor.split, (1,)),
])  # fmt: skip
def test_what_shows_memory_that_was_given_shows_it_each_time(function, rest):
    counted = Counted(function)
    for _ in range(2):
        given = meta(2, 3)
        assert {storage_of(each) for each in tensors_in(counted(given, *rest))} == {storage_of(given)}


def test_tables_of_tensors_and_what_is_no_tensor_are_run():
    state = {"weight": meta(2)}
    counted = Counted(operator.getitem)
    assert counted(state, "weight") is counted(state, "weight") is state["weight"]
    assert Counted(getattr)(meta(2, 3), "shape") == (2, 3)


def test_what_is_made_depends_on_the_default_dtype_and_old_calls_are_forgotten():
    counted = Counted(lambda x: torch.ones(2, device="meta") + x, most=1)
    assert counted(1).dtype == counted(1).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert counted(1).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert counted.runs == 2
    assert len(counted.alike.known) == 1


@pytest.mark.parametrize("function", [
    lambda x: x + x, lambda x: x / 2, lambda x: x > 0, torch.square, torch.relu, torch.nn.functional.gelu, torch.max,
    lambda x: x.clamp(0.0, 1.0), lambda x: x * x.bool(), lambda x: x**2.0, torch.logical_not,
])  # fmt: skip
def test_what_is_made_number_by_number_is_known_for_all_shapes(function):
    counted = Counted(function, pointwise=True)
    for shape in [(5, 1), (3, 4), (1, 1, 7), (2, 3, 4, 5), (0, 3), (1,), (), (2,)]:
        for dtype in (torch.float32, torch.float64):
            assert described(counted(meta(*shape, dtype=dtype))) == described(function(meta(*shape, dtype=dtype)))


def test_only_tensors_that_lie_row_by_row_and_are_expanded_to_one_of_them_are_alike_in_all_shapes():
    counted = Counted(operator.mul, pointwise=True)
    counted(meta(3, 4), 2.0)
    counted(meta(6), 2.0)
    counted(meta(6), 3.0)
    assert counted.runs == 2, "(3, 4) and (6) are, 2 and 3 are not"
    for other in ((meta(3, 4).t(), 2.0), (meta(3, 4), meta(4)), (meta(8)[::2], 2.0), (meta(), 2.0)):
        assert described(counted(*other)) == described(operator.mul(*other))
    assert counted.runs == 6
    counted(meta(2, 5, 1), meta(5, 1))
    assert counted.runs == 6, "as (3, 4) and (4)"
    for other in ((meta(3, 1), meta(4)), (meta(3, 4), meta()), (meta(4, 3).t(), meta(4))):
        assert described(counted(*other)) == described(operator.mul(*other))
    assert counted.runs == 9


SHAPES = [shape for axes in range(4) for shape in itertools.product((0, 1, 3), repeat=axes)]


@pytest.mark.parametrize("function", [torch.mul, torch.gt, torch.atan2, lambda x, y: torch.addcmul(x, y, y)])
def test_what_is_expanded_has_the_shape_strides_and_dtype_that_torch_gives_it(function):
    counted, calls = Counted(function, pointwise=True), 0
    for first, second in itertools.product(SHAPES, SHAPES):
        for dtypes in ((torch.float32, torch.float32), (torch.float64, torch.float32), (torch.float32, torch.float64)):
            given = meta(*first, dtype=dtypes[0]), meta(*second, dtype=dtypes[1])
            try:
                expected = described(function(*given))
            except RuntimeError:  # they do not fit
                continue
            assert described(counted(*given)) == expected, (first, second, dtypes)
            calls += 1
    assert counted.runs < calls
