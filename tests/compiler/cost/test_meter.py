"""What a meter counts, and what runs under it makes, is the same whether a like call was met before or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hbpcompiler.compiler.cost.meter import Meter
from hbpcompiler.compiler.program.alike_calls import storage_of, tensors_in

aten = torch.ops.aten


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.add.Tensor, (tensor(3, 4), tensor(4))),
    (aten.mul.Scalar, (tensor(3, dtype=torch.int64), 2)),
    (aten.mul.Scalar, (tensor(3, dtype=torch.int64), 2.0)),  # equal numbers of two types: another dtype
    (aten.mul.Scalar, (tensor(3, dtype=torch.int64), True)),
    (aten.sum.dim_IntList, (tensor(3, 4), [0])),
    (aten.sum.dim_IntList, (tensor(3, 4), [1])),
    (aten.mm.default, (tensor(3, 4), tensor(4, 5))),
    (aten.clone.default, (tensor(3, 4),)),
    (aten.clone.default, (tensor(4, 3).t(),)),  # another layout of the same shape
    (aten.max.dim, (tensor(3, 4), 1)),
    (aten.cat.default, ([tensor(3, 4), tensor(2, 4)],)),
    (aten.native_layer_norm.default, (tensor(3, 4), [4], None, None, 1e-5)),
    (aten.convolution_backward.default, (tensor(2, 5, 4, 4), tensor(2, 3, 4, 4), tensor(5, 3, 1, 1), [0], [1, 1],
                                         [0, 0], [1, 1], False, [0, 0], 1, [True, False, True])),
]


def run(meter: Meter, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Facts of the result, and what the call counted and held."""
    before, held = vars(meter.counts).copy(), meter.held
    with meter:
        result = func(*args)
        counted = {name: value - before[name] for name, value in vars(meter.counts).items()}
        return [(each.shape, each.stride(), each.dtype) for each in tensors_in(result)], counted, meter.held - held


@pytest.mark.parametrize(("func", "args"), CALLS)
def test_a_call_again_is_as_before(func: Any, args: tuple[Any, ...]) -> None:
    meter = Meter()
    for other, arguments in CALLS:  # whatever else has been met before
        run(meter, other, arguments)
    assert run(meter, func, args) == run(Meter(), func, args)


def test_views_stay_views() -> None:
    x = tensor(3, 4)
    calls = [(aten.view.default, (x, [12])), (aten._unsafe_view.default, (x, [12])), (aten.t.default, (x,)),
             (aten.detach.default, (x,)), (aten.add_.Tensor, (x, 1.0))]
    with Meter() as meter:
        for func, args in [*calls, *calls]:
            assert storage_of(func(*args)) == storage_of(x), func
        assert meter.held == 0


def test_tensors_with_memory_are_computed() -> None:
    with Meter():
        for number in (1.0, 2.0):
            x = torch.full((2,), number)
            assert x.exp().tolist() == [pytest.approx(2.718281828**number)] * 2


def test_calls_without_tensors_are_not_compared() -> None:
    """torch's profiler hands over objects that cannot be."""
    with Meter():
        for _ in range(2):
            with torch.profiler.record_function("a part"):
                tensor(2).add(1)
