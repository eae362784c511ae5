"""Operations as calls of torch.ops, and what takes them apart."""

import torch

from hbpcompiler.compiler.match.operation.aten import call, decomposition, decompositions, overload_of, packet_of
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.rule.registry import builtin
from tests.hand_made import operation, value

X = value("x", N, 4)


def test_overloads():
    added = operation("add", value("a", N, 4), {"alpha": 1}, overload="Tensor", self=X, other=X)
    assert packet_of(added) is torch.ops.aten.add
    assert overload_of(added) is torch.ops.aten.add.Tensor
    assert overload_of(operation("tanh", value("t", N, 4), self=X)) is torch.ops.aten.tanh.default


def test_arguments_stand_in_the_schemas_order():
    added = operation("add", value("a", N, 4), {"alpha": 2}, overload="Tensor", other=X, self=value("z", N, 4))
    positional, keywords = call(added, lambda *args, **kwargs: (args, kwargs), lambda slot: f"<{slot}>")
    assert positional == ("<self>", "<other>")
    assert keywords == {"alpha": 2}


def test_lists_of_tensors_and_other_arguments():
    joined = operation("cat", value("c", N, 8), {"tensors": ["tensors.0", "tensors.1"], "dim": 1})
    joined = type(joined)(**{**vars(joined), "tensors": {"tensors.0": X, "tensors.1": X}})
    args = call(joined, lambda *args: args, lambda slot: f"<{slot}>", lambda item: item * 10)
    assert args == (["<tensors.0>", "<tensors.1>"], 10)


def test_of_several_results_the_operations_own():
    part = operation("max", value("m", N), {"dim": 1, "keepdim": False}, overload="dim", self=X)
    part = type(part)(**{**vars(part), "index": 1})
    assert call(part, lambda *args: ("values", "indices"), lambda slot: slot) == "indices"


def test_torchs_own_table_takes_apart_what_no_rule_has():
    missing = operation("trace", value("t"), self=X)
    assert builtin().find(missing.target, missing.overload) is None
    table = decompositions([missing], builtin())
    assert set(table) == {torch.ops.aten.trace.default}
    assert table[torch.ops.aten.trace.default](torch.diag(torch.tensor([3.0, 4.0]))).item() == 7


def test_what_nobody_can_take_apart():
    assert decomposition(torch.ops.aten.nonzero.default, builtin()) is None
