"""An operation as its rule sees it."""

import pytest
import sympy
import torch

from hbpcompiler.compiler.match.operation.bind import bind, is_curved, static_op
from hbpcompiler.compiler.match.operation.stand_ins import StandIns
from hbpcompiler.compiler.trace.graph import N
from tests.hand_made import mlp, operation, rules_of, value

GRAPH = mlp()
LINEAR, TANH, LAST, LOSS = GRAPH.operations
ACTIVE = GRAPH.active


def test_shapes_without_the_sample_axis():
    op = static_op(LINEAR, ACTIVE)
    assert op.shape("input") == (3,)
    assert op.shape("weight") == (4, 3)
    assert op.shape("output") == (4,)
    assert op.has_samples("input")
    assert not op.has_samples("weight")


def test_attributes_and_missing_tensors():
    assert static_op(LAST, ACTIVE).bias is None
    with pytest.raises(AttributeError, match=r"no argument 'weigth'; it has .*weight"):
        _ = static_op(LAST, ACTIVE).weigth


def test_derivatives_end_at_parameters_and_data():
    assert not static_op(LINEAR, ACTIVE).varies("input")
    assert not static_op(LINEAR, ACTIVE).varies("weight")
    assert static_op(LAST, ACTIVE).varies("input")


def test_tensors_come_from_the_function():
    op = bind(LINEAR, lambda name: f"<{name}>", ACTIVE)
    assert (op.input, op.weight, op.output) == ("<input>", "<weight>", "<output>")


def test_a_list_of_tensors_is_a_list():
    x, y = value("x", N, 2), value("y", N, 3)
    joined = operation("cat", value("c", N, 5), {"tensors": ["tensors.0", "tensors.1"], "dim": 1},
                       **{"tensors.0": x, "tensors.1": y})
    op = bind(joined, lambda name: f"<{name}>", {"x", "y"})
    assert op.tensors == ["<tensors.0>", "<tensors.1>"]
    assert op.shape("tensors") == [(2,), (3,)]
    assert op.varies("tensors.1")


def test_what_stands_for_the_batch_size():
    expanded = operation("expand", value("e", N, 4), {"size": 2 * N, "implicit": False}, self=value("x", 1, 4))
    assert bind(expanded, lambda name: name, set(), number=lambda name, item: item.subs(N, 5)).size == sympy.Integer(10)


def test_curved_operations():
    rules = rules_of(GRAPH)
    assert is_curved(rules["bent"], static_op(TANH, ACTIVE))
    assert not is_curved(rules["output"], static_op(LAST, ACTIVE))


def test_stand_ins_have_the_shapes_and_what_forward_saves():
    rules = rules_of(GRAPH)
    found = StandIns(LINEAR, rules["hidden"])
    assert found("weight").is_meta
    assert tuple(found("output").shape) == (2, 4)
    pooled = operation("max_pool2d", value("p", N, 1, 2, 2), {
        "kernel_size": [2, 2], "stride": [], "padding": [0, 0], "dilation": [1, 1], "ceil_mode": False},
        self=value("x", N, 1, 4, 4))
    rule = rules_of(type(GRAPH)([], [], [], [pooled], [], pooled.output))["p"]
    op = bind(pooled, StandIns(pooled, rule), {"x", "p"})
    columns = torch.empty(2, 3, 1, 2, 2, device="meta")
    assert tuple(rule.jac_t["self"](op, columns).shape) == (2, 3, 1, 4, 4)
