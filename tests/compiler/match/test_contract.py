"""What match hands on: facts that follow from graph and rules, and what `check_matched` finds wrong."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from hbpcompiler.compiler.match.check import check_matched
from hbpcompiler.compiler.stages import check_promise
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.errors import InternalError
from tests.stages import matched


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


BATCH = torch.randn(3, 3), torch.tensor([0, 1, 1])


@pytest.fixture(scope="module")
def found():
    return matched(network(), *BATCH)


def test_a_matched_graph_is_right(found):
    assert list(check_matched(found)) == []


def test_facts(found):
    last = found.graph.operations[-2]
    assert found.ending.kind == "mean"
    assert list(found.ending.multiples.values()) == [1.0]
    assert found.parameters_above[last.name] == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert not found.mixed
    assert [value.key for value in found.trainable] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_missing_rule_is_found(found):
    first, *others = found.rules
    broken = replace(found, rules={name: found.rules[name] for name in others})
    with pytest.raises(InternalError, match=rf"behind match \(after export, trace\).*{first}.* has no rule"):
        check_promise("match", check_matched(broken))


def test_a_rule_without_operation_is_found(found):
    broken = replace(found, rules={**found.rules, "nothing": next(iter(found.rules.values()))})
    assert list(check_matched(broken)) == ["there is a rule for nothing, which no operation makes"]


def test_samples_that_are_not_in_front_are_found(found):
    first, *others = found.graph.operations
    moved = replace(first, output=replace(first.output, shape=(4, N)))
    broken = replace(found, graph=replace(found.graph, operations=[moved, *others]))
    assert list(check_matched(broken)) == [f"{first.name} of shape [4, N] has its samples elsewhere than in front"]


def test_a_value_without_a_name_is_found(found):
    name = found.graph.operations[0].name
    broken = replace(found, names={key: shown for key, shown in found.names.items() if key != name})
    assert list(check_matched(broken)) == [f"{name} has no name in generated code"]


def test_a_reduction_without_multiple_is_found(found):
    broken = replace(found, ending=replace(found.ending, multiples={}))
    assert ["multiplied" in finding for finding in check_matched(broken)] == [True]


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def test_parameters_without_influence_are_left_out_before_planning():
    found = matched(Unused(), *BATCH)
    assert found.unused == ["idle.weight", "idle.bias"]
    assert [value.key for value in found.trainable] == ["used.weight", "used.bias"]
