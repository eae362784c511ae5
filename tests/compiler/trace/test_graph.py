"""The traced graph: what derivatives reach, how the loss ends, and what `check_graph` finds wrong."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from hbpcompiler.compiler.stages import check_promise
from hbpcompiler.compiler.trace.check import check_graph
from hbpcompiler.errors import InternalError
from tests.stages import traced


class Frozen(nn.Module):
    """Its first layer is frozen, so derivatives do not reach the first result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).tanh())


@pytest.fixture(scope="module")
def graph():
    return traced(Frozen(), torch.randn(3, 3), torch.tensor([0, 1, 1])).graph


def test_derivatives_reach_what_lies_between_a_trainable_parameter_and_the_loss(graph):
    shorts = [operation.short for operation in graph.operations if operation.name in graph.active]
    assert [operation.short for operation in graph.operations] == ["linear", "tanh", "linear", "cross_entropy_loss"]
    assert shorts == ["linear", "cross_entropy_loss"]
    parameters = {value.key for value in graph.state if value.name in graph.active}
    assert parameters == {"second.weight", "second.bias"}


def test_the_loss_is_what_reduces_the_batch(graph):
    reductions, tail = graph.ending
    assert [operation.short for operation in reductions] == ["cross_entropy_loss"]
    assert tail == []


def test_a_traced_graph_is_right(graph):
    assert list(check_graph(graph)) == []


def test_an_operation_before_its_operand_is_found(graph):
    broken = replace(graph, operations=graph.operations[::-1])
    with pytest.raises(InternalError, match=r"behind trace \(after export\).*before it is made.*report"):
        check_promise("trace", check_graph(broken))


def test_a_name_given_twice_is_found(graph):
    broken = replace(graph, operations=[*graph.operations, graph.operations[0]])
    assert list(check_graph(broken)) == [f"two values are called {graph.operations[0].name}"]


def test_a_result_that_nothing_makes_is_found(graph):
    broken = replace(graph, operations=graph.operations[:-1])
    assert list(check_graph(broken)) == [f"{graph.loss.name} is returned, and nothing makes it"]
