"""The whole program of a graph written by hand, run as an fx graph, against autograd."""

import pytest
import torch
from torch import fx

from hbpcompiler.compiler.derive.forward import derive
from tests.compiler.derive.carried import MATCHED, planned, values


def run(*quantities, sample_weights=None, **options):
    """(loss, outputs, results) of the derived graph."""
    graph = derive(MATCHED, planned(*quantities, **options)).graph
    given, state = values(), {}
    state = {value.key: given[value.name] for value in MATCHED.graph.state}
    given |= {"state": state, "argument_sample_weights": sample_weights}
    arguments = [given[node.target] for node in graph.nodes if node.op == "placeholder"]
    return fx.GraphModule(torch.nn.Module(), graph)(*arguments)


def loss_of(parameters):
    given = {**values(), **parameters}
    hidden = given["x"] @ given["a.weight"].t() + given["a.bias"]
    return (hidden.tanh() @ given["b.weight"].t() - given["y"]).square().mean()


def parameters():
    return {value.key: values()[value.name] for value in MATCHED.graph.state}


def test_forward_and_gradient():
    loss, outputs, results = run("grad")
    torch.testing.assert_close(loss, loss_of({}))
    torch.testing.assert_close(outputs[0], values()["output"])
    leaves = {key: value.clone().requires_grad_() for key, value in parameters().items()}
    slopes = torch.autograd.grad(loss_of(leaves), list(leaves.values()))
    for key, slope in zip(leaves, slopes, strict=True):
        torch.testing.assert_close(results["grad"][key], slope)


@pytest.mark.parametrize("key", ["a.weight", "a.bias", "b.weight"])
def test_the_hessian_diagonal(key):
    _, _, results = run("diag_h")
    theta = parameters()[key]
    hessian = torch.autograd.functional.hessian(lambda value: loss_of({key: value.view_as(theta)}), theta.flatten())
    torch.testing.assert_close(results["diag_h"][key], hessian.diagonal().view_as(theta))


def test_nodes_stand_under_the_headings_of_their_operations():
    graph = derive(MATCHED, planned("grad")).graph
    titles = {(node.meta["block"].title, node.meta["block"].part) for node in graph.nodes if node.meta.get("block")}
    assert {("hidden: linear", "forward"), ("bent: tanh", "backward"), ("grad", "results")} <= titles
    steps = [node.meta["step"] for node in graph.nodes if node.meta.get("step") is not None]
    assert steps == sorted(steps)


def test_fields_of_a_quantity_with_several_tensors():
    _, _, results = run("kflr")
    assert results["kflr"]["a.weight"].keys() == {"A", "B"}
    assert results["kflr"]["a.bias"]["A"] is None
