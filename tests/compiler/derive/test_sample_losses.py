"""The losses l_n and the loss of weighted samples, of a graph written by hand, against what they are."""

from dataclasses import replace

import torch
from torch import fx

from hbpcompiler.compiler.derive.carry_out import backward_pass
from hbpcompiler.compiler.derive.inputs import stream_of_inputs
from hbpcompiler.compiler.derive.sample_losses import SampleLosses
from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.program.weighted_loss import WeightedLoss
from hbpcompiler.compiler.program.weights import Weights
from hbpcompiler.compiler.program.writer import Writer
from hbpcompiler.rule import Contraction, Op
from tests.compiler.derive.carried import GRAPH, LINEAR, MATCHED, SAMPLES, planned, values
from tests.compiler.derive.test_forward import parameters, run

WEIGHTS = torch.tensor([0.5, 0.0, 3.0])


def losses(leaves):
    given = {**values(), **leaves}
    hidden = given["x"] @ given["a.weight"].t() + given["a.bias"]
    return (hidden.tanh() @ given["b.weight"].t() - given["y"]).square().flatten(1).mean(1)


def function():
    """l_n of the graph, with the names of what it reads."""
    writer = Writer()
    proxies = {name: writer.placeholder(name.replace(".", "_")) for name in values()}
    ops = {own.name: bind(own, lambda slot, own=own: proxies[own.name if slot == "output" else own.tensors[slot].name],
                          GRAPH.active) for own in GRAPH.operations}
    found = SampleLosses(MATCHED, ops)
    return found.function, [str(tensor.node.target) for tensor in found.tensors]


def test_losses_are_a_function_of_what_the_loss_reads():
    made, read = function()
    assert read == ["output", "y"]
    torch.testing.assert_close(made(*(values()[name] for name in read)), losses({}))
    assert made(*(values()[name].to("meta") for name in read)).shape == (SAMPLES,)


def test_the_loss_of_weighted_samples():
    made, read = function()
    tensors = [values()[name] for name in read]
    whole = WeightedLoss(made, "mean", torch.float32)
    plain = torch.tensor(7.0)
    assert whole(plain, None, *tensors) is plain
    assert whole(plain, torch.ones(SAMPLES), *tensors) == plain
    torch.testing.assert_close(whole(plain, WEIGHTS, *tensors), (WEIGHTS * losses({})).mean())
    torch.testing.assert_close(WeightedLoss(made, "sum", torch.float32)(plain, WEIGHTS, *tensors),
                               (WEIGHTS * losses({})).sum())


def test_every_column_has_its_samples_weight():
    loss, _, results = run("batch_loss", "batch_grad", sample_weights=WEIGHTS)
    torch.testing.assert_close(loss, (WEIGHTS * losses({})).mean())
    torch.testing.assert_close(results["batch_loss"], WEIGHTS * losses({}))
    leaves = {key: value.clone().requires_grad_() for key, value in parameters().items()}
    for n, loss in enumerate(WEIGHTS * losses(leaves) / SAMPLES):
        for (key, leaf), share in zip(leaves.items(), torch.autograd.grad(loss, leaves.values(), retain_graph=True),
                                      strict=True):
            assert leaf.shape == share.shape
            torch.testing.assert_close(results["batch_grad"][key][n], share)


def test_inputs_of_factors_have_weights_that_are_one_on_average():
    _, _, results = run("kflr", sample_weights=WEIGHTS)
    x = values()["x"]
    expected = torch.einsum("n,ni,nj->ij", WEIGHTS / WEIGHTS.sum(), x, x)
    torch.testing.assert_close(results["kflr"]["a.weight"]["A"], expected)


def test_an_operand_that_is_not_linear_is_multiplied_where_it_is_made():
    writer = Writer()
    x, weights = writer.placeholder("x"), writer.placeholder("w")
    state = backward_pass(MATCHED, planned("kflr"), writer, {}, SAMPLES)
    state.weights = Weights.of(weights)
    op = Op({"x": x}, {}, {"x": (4,)})
    contraction = Contraction("nko,ni->nkoi", operand=lambda op: op.x.square())
    twice = replace(LINEAR, tensors={"one": LINEAR.tensors["input"], "two": LINEAR.tensors["input"]})
    own, its, _ = stream_of_inputs(state, twice, op.with_tensor("one", x), contraction)
    writer.graph.output(its.operand(own).node)
    given = values()["x"]
    found = fx.GraphModule(torch.nn.Module(), writer.graph)(given, WEIGHTS)
    roots = (WEIGHTS * SAMPLES / WEIGHTS.sum()).sqrt()
    torch.testing.assert_close(found, given.square() * roots[:, None])
