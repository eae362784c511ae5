"""Of which overload of an operation a case is: the one that takes its tensors and attributes."""

import pytest
import torch

from hbpcompiler.rule import Case
from hbpcompiler.testing.overloads import overload_of


@pytest.mark.parametrize(("operation", "case", "wanted"), [
    ("sum", Case({"self": (3,)}), "default"),
    ("sum", Case({"self": (3,)}, {"dim": [1]}), "dim_IntList"),
    ("squeeze", Case({"self": (3, 1)}, {"dim": 2}), "dim"),
    ("add", Case({"self": (3,), "other": (3,)}), "Tensor"),
    ("add", Case({"self": (3,)}, {"other": 1.5}), "Scalar"),
    ("where", Case({"condition": (3,), "self": (3,)}, {"other": 0.5}), "ScalarOther"),
    ("split", Case({"self": (5,)}, {"split_size": 2, "dim": 1}), "Tensor"),
    ("split", Case({"self": (5,)}, {"split_size": [2, 3], "dim": 1}), "sizes"),
    ("conv2d", Case({"input": (1, 4, 4), "weight": (1, 1, 2, 2)}, {"padding": "same"}), "padding"),
    ("conv2d", Case({"input": (1, 4, 4), "weight": (1, 1, 2, 2)}, {"padding": [1, 1]}), "default"),
    ("cat", Case({"tensors": [(2,), (3,)]}, {"dim": 1}), "default"),
    ("index", Case({"self": (3,), "indices": [(), ()]}), "Tensor"),
    ("std", Case({"self": (3,)}, {"dim": [1], "correction": None}), "correction"),
    ("sum", Case({"nothing": (3,)}), "default"),  # that none takes, which check_rule says
])
def test_it_is_the_one_that_takes_what_is_given(operation, case, wanted):
    assert overload_of(getattr(torch.ops.aten, operation), case)._overloadname == wanted


def test_a_rule_of_one_overload_has_that_one():
    given = Case({"self": (3,)}, {"dim": [1]})
    assert overload_of(torch.ops.aten.sum, given, "dim_IntList")._overloadname == "dim_IntList"
    assert overload_of(torch.ops.aten.to, Case({"self": (3,)}, {"dtype": torch.float32}), "dtype_layout"
                       )._overloadname == "dtype_layout"
