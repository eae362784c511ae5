"""What operations make of tensors without memory, told from earlier calls, is what torch says anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hbpcompiler.compiler.cost.answers import Answers, storage_of, tensors_in
from hbpcompiler.compiler.cost.meter import Meter

aten = torch.ops.aten


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def facts(result: Any) -> list[Any]:
    return [(each.shape, each.stride(), each.dtype) for each in tensors_in(result)]


CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.add.Tensor, (tensor(3, 4), tensor(4))),
    (aten.mul.Scalar, (tensor(3, dtype=torch.int64), 2)),
    (aten.mul.Scalar, (tensor(3, dtype=torch.int64), 2.0)),  # equal numbers of two types: another dtype
    (aten.mul.Scalar, (tensor(3, dtype=torch.int64), True)),
    (aten.sum.dim_IntList, (tensor(3, 4), [0])),
    (aten.sum.dim_IntList, (tensor(3, 4), [1])),
    (aten.clone.default, (tensor(3, 4),)),
    (aten.clone.default, (tensor(4, 3).t(),)),  # another layout of the same shape
    (aten.max.dim, (tensor(3, 4), 1)),
    (aten.cat.default, ([tensor(3, 4), tensor(2, 4)],)),
    (aten.native_layer_norm.default, (tensor(3, 4), [4], None, None, 1e-5)),
    (aten.convolution_backward.default, (tensor(2, 5, 4, 4), tensor(2, 3, 4, 4), tensor(5, 3, 1, 1), [0], [1, 1],
                                         [0, 0], [1, 1], False, [0, 0], 1, [True, False, True])),
]


@pytest.mark.parametrize(("func", "args"), CALLS)
def test_second_answers_are_torchs(func: Any, args: tuple[Any, ...]) -> None:
    answers = Answers()
    for other, arguments in CALLS:  # whatever else has been asked before
        answers.of(other, arguments, {}, list(tensors_in(arguments)))
    found = answers.of(func, args, {}, list(tensors_in(args)))
    assert facts(found) == facts(func(*args))
    memory = {storage_of(each) for each in tensors_in(args)}
    assert not memory & {storage_of(each) for each in tensors_in(found)}


def test_views_stay_views() -> None:
    answers, x = Answers(), tensor(3, 4)
    calls = [(aten.view.default, (x, [12])), (aten._unsafe_view.default, (x, [12])), (aten.t.default, (x,)),
             (aten.detach.default, (x,)), (aten.add_.Tensor, (x, 1.0))]
    for func, args in [*calls, *calls]:
        (made,) = tensors_in(answers.of(func, args, {}, [x]))
        assert storage_of(made) == storage_of(x), func


def test_tensors_with_memory_are_computed() -> None:
    answers = Answers()
    for number in (1.0, 2.0):
        x = torch.full((2,), number)
        torch.testing.assert_close(answers.of(aten.exp.default, (x,), {}, [x]), x.exp())


def test_calls_without_tensors_are_not_compared() -> None:
    """torch's profiler hands over objects that cannot be."""
    with Meter():
        for _ in range(2):
            with torch.profiler.record_function("a part"):
                tensor(2).add(1)
