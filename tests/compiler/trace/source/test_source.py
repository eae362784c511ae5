"""Where a node of the exported graph comes from, told from the marks that torch leaves on it."""

from pathlib import Path
from types import SimpleNamespace

import torch

from hbpcompiler.compiler.trace.source.source import source_of

INSIDE_TORCH = str(Path(torch.__file__).parent / "nn" / "functional.py")


def node(path="", kind="", frames=(), **meta):
    trace = "".join(f'  File "{file}", line {line}, in forward\n    {code}\n' for file, line, code in frames)
    stack = {"id": (path, kind)} if path or kind else {}
    return SimpleNamespace(meta={"nn_module_stack": stack, "stack_trace": trace, **meta})


def test_the_innermost_line_of_the_users_code():
    frames = [("net.py", 3, "y = self.inner(x)"), ("net.py", 9, "return F.relu(x)"), (INSIDE_TORCH, 99, "return x")]
    source = source_of(node("model.inner", "net.Inner", frames))
    assert (source.module, source.module_type) == ("inner", "net.Inner")
    assert (source.file, source.line, source.code) == ("net.py", 9, "return F.relu(x)")
    assert not source.in_loss


def test_a_class_instead_of_its_name():
    assert source_of(node("model.0", torch.nn.ReLU)).module_type == "torch.nn.modules.activation.ReLU"


def test_the_loss():
    source = source_of(node("loss", torch.nn.MSELoss))
    assert source.in_loss
    assert (source.module, source.module_type) == ("", "")


def test_the_models_own_forward():
    assert source_of(node("model", "net.Model")).module == ""
    assert source_of(node()).module == ""


def test_a_second_call_of_a_module():
    assert source_of(node("model@1.inner", "net.Inner")).module == ""


def test_the_operation_that_was_taken_apart():
    first = SimpleNamespace(target="aten.gelu.default", from_node=[])
    second = SimpleNamespace(target="aten.mul.Tensor", from_node=[first])
    assert source_of(node(from_node=[second])).whole == "aten.gelu"
