"""torch's functions give under the library's own modes what they give without."""

import ast
import inspect
import textwrap
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.system.modes import FunctionMode

given_by_name = F.l1_loss


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class Idle(FunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_weighted_absolute_error_keeps_its_weight(reduction):
    torch.manual_seed(0)
    o, y, w = double(4, 2), double(4, 2), torch.rand(4, 2, dtype=torch.float64)
    code = F.l1_loss.__code__
    wanted = given_by_name(o, y, reduction=reduction, weight=w)
    with Idle(), Idle():
        torch.testing.assert_close(given_by_name(o, y, reduction=reduction, weight=w), wanted)
        torch.testing.assert_close(F.l1_loss(o, y, reduction=reduction), (o - y).abs() if reduction == "none"
                                   else getattr((o - y).abs(), reduction)())
        with pytest.raises(ValueError, match="must have the same size"):
            F.l1_loss(o, y, weight=w[0])
    assert F.l1_loss.__code__ is code


def test_modes_of_two_threads_that_end_in_turns():
    code, entered, ended = F.l1_loss.__code__, threading.Event(), threading.Event()

    def other():
        with Idle():
            entered.set()
            ended.wait()

    thread = threading.Thread(target=other)
    with Idle():
        thread.start()
        entered.wait()
    assert F.l1_loss.__code__ is not code
    ended.set()
    thread.join()
    assert F.l1_loss.__code__ is code


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_loss_of_weighted_absolute_errors(reduction):
    torch.manual_seed(0)
    model, X = nn.Linear(3, 2).double(), double(4, 3)
    y = double(4, 2), torch.rand(4, 2, dtype=torch.float64)

    def loss(output, target):
        return given_by_name(output, target[0], weight=target[1], reduction=reduction)

    result = hbp.compile(model, loss, ["grad"])(X, y)
    wanted = loss(model(X), y)
    torch.testing.assert_close(result.loss, wanted.detach())
    for name, gradient in zip(("weight", "bias"), torch.autograd.grad(wanted, list(model.parameters())), strict=True):
        torch.testing.assert_close(result.grad[name], gradient)


def test_no_other_function_of_torch_loses_an_argument_under_a_mode():
    """What each function of torch.nn.functional hands on, read from its text."""
    losing = []
    for name, function in inspect.getmembers(F, inspect.isfunction):
        source = textwrap.dedent(inspect.getsource(function))
        definition = ast.parse(source).body[0]
        if not isinstance(definition, ast.FunctionDef) or definition.name != name:
            continue
        arguments = definition.args
        for call in ast.walk(definition):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "handle_torch_function":
                handed = [*call.args[2:], *(keyword.value for keyword in call.keywords)]
                names = {node.id for part in handed for node in ast.walk(part) if isinstance(node, ast.Name)}
                known = {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
                losing += [(name, argument) for argument in sorted(known - names)]
    assert losing in ([("l1_loss", "weight")], [])
