"""Modules called with other tensors in the place of their own, and what they are afterwards."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.with_state import call_with_state
from hbpcompiler.monitor.settings import changes_buffers


def used_twice():
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.BatchNorm1d(3), nn.Linear(3, 2)).double()


def own(model):
    return {name: tensor for module in model.modules() for name, tensor in [*module._parameters.items(),
                                                                              *module._buffers.items()]}


def same(model, before):
    assert [id(tensor) for tensor in own(model).values()] == [id(tensor) for tensor in before.values()]
    assert isinstance(model[0].weight, nn.Parameter)


def test_a_layer_with_two_names_keeps_its_parameters():
    model, x = used_twice(), torch.randn(4, 3, dtype=torch.float64)
    before, given = own(model), {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    found = call_with_state(model, given, {}, (x,))
    assert (found == 0).all()
    same(model, before)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        call_with_state(model, given, {}, (x[:, :2],))
    same(model, before)


def test_nothing_of_the_users_changes_in_proofs_operators_and_monitors():
    model, loss = used_twice(), nn.CrossEntropyLoss()
    model[3].eval()
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    before = own(model)
    result = hbp.compile(model, loss, quantities=["diag_h"], verify="full")(X, y)
    assert set(result.diag_h) == {name for name, _ in model.named_parameters()}
    same(model, before)
    assert not changes_buffers(model, batch_of((X, y)))
    same(model, before)
    operator = hbp.operator(model, loss, (X, y), "hessian", verify=True)
    torch.testing.assert_close(operator.diagonal()["0.weight"], result.diag_h["0.weight"])
    same(model, before)
