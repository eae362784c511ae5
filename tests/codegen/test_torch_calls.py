"""Operations of torch.ops as people write them: the same values and dtypes, run by Python and by TorchScript."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from hbpcompiler.codegen.printer import ATOM, expression
from hbpcompiler.codegen.torch_calls import written

aten = torch.ops.aten
LIKE = {"dtype": torch.float32, "layout": None, "device": None, "pin_memory": False, "memory_format": None}

FORMS = [
    ("x > -1", aten.gt, ("x", -1), {}),
    ("n >= 1.5", aten.ge, ("n", 1.5), {}),
    ("n == 0", aten.eq, ("n", 0), {}),
    ("n != m", aten.ne, ("n", "m"), {}),
    ("x <= m", aten.le, ("x", "m"), {}),
    ("~b", aten.bitwise_not, ("b",), {}),
    ("~n", aten.bitwise_not, ("n",), {}),
    ("b & c", aten.bitwise_and, ("b", "c"), {}),
    ("n | m", aten.bitwise_or, ("n", "m"), {}),
    ("-n", aten.neg, ("n",), {}),
    ("n + 2", aten.add, ("n", 2), {"alpha": 1}),
    ("n.add(m, alpha=3)", aten.add, ("n", "m"), {"alpha": 3}),
    ("n - 0.5", aten.sub, ("n", 0.5), {}),
    ("b * x", aten.mul, ("b", "x"), {}),
    ("n / 2", aten.div, ("n", 2), {}),
    ("n / m", aten.div.Tensor, ("n", "m"), {}),
    ('n.div(m, rounding_mode="floor")', aten.div, ("n", "m"), {"rounding_mode": "floor"}),
    ("n.floor_divide(m)", aten.floor_divide, ("n", "m"), {}),
    ("n % m", aten.remainder, ("n", "m"), {}),
    ("n % 2.5", aten.remainder, ("n", 2.5), {}),
    ("n ** 2", aten.pow, ("n", 2), {}),
    ("2 ** x", aten.pow, (2, "x"), {}),
    ("x @ x", aten.matmul, ("x", "x"), {}),
    ("torch.eq(b, True)", aten.eq, ("b", True), {}),
    ("b.logical_and(n)", aten.logical_and, ("b", "n"), {}),
    ("b.logical_not()", aten.logical_not, ("b",), {}),
    ("n.sum()", aten.sum, ("n",), {"dtype": None}),
    ("b.sum([1])", aten.sum, ("b", [1], False), {"dtype": None}),
    ("x.mean([1], keepdim=True)", aten.mean, ("x", [1], True), {"dtype": None}),
    ("b.sum(dtype=torch.float64)", aten.sum.default, ("b",), {"dtype": torch.float64}),
    ("x.std([0], correction=0)", aten.std, ("x", [0]), {"correction": 0, "keepdim": False}),
    ("x.amax([1])", aten.amax, ("x", [1], False), {}),
    ("x.clamp(-1.0)", aten.clamp, ("x", -1.0, None), {}),
    ("x.clamp(None, 1)", aten.clamp, ("x", None, 1), {}),
    ("x.expand([2, -1, -1])", aten.expand, ("x", [2, -1, -1]), {"implicit": False}),
    ("x.flatten()", aten.flatten, ("x", 0, -1), {}),
    ("x.cumsum(0)", aten.cumsum, ("x", 0), {"dtype": None}),
    ("x.masked_fill(b, 2.0)", aten.masked_fill, ("x", "b", 2.0), {}),
    ("torch.zeros_like(b, dtype=torch.float32)", aten.zeros_like, ("b",), LIKE),
    ("torch.full_like(n, 2)", aten.full_like, ("n", 2), {**LIKE, "dtype": None}),
    ("torch.where(b, x, n)", aten.where, ("b", "x", "n"), {}),
    ("torch.binary_cross_entropy_with_logits(x, x, weight=None, pos_weight=None, reduction=1)",
     aten.binary_cross_entropy_with_logits, ("x", "x", None, None, 1), {}),
    ("torch.kl_div(x, x, 1, log_target=True)", aten.kl_div, ("x", "x", 1), {"log_target": True}),
    ("torch.cat([x, n])", aten.cat, (["x", "n"], 0), {}),
    ("torch.arange(1, 4)", aten.arange, (1, 4), {"dtype": None, "layout": None, "device": None, "pin_memory": False}),
    ("torch.ops.aten.threshold_backward(x, x, threshold=0)", aten.threshold_backward, ("x", "x", 0), {}),
    ("torch.ops.aten.gelu_backward(x, x)", aten.gelu_backward, ("x", "x"), {"approximate": "none"}),
    ("F.gelu(x)", F.gelu, ("x",), {"approximate": "none"}),
    ('F.gelu(x, approximate="tanh")', F.gelu, ("x",), {"approximate": "tanh"}),
    ("torch.softmax(x, 1)", torch.softmax, ("x", 1), {"dtype": None}),
    ("x.mean([1])", "mean", ("x", [1], False), {}),
    ("x.flatten(0, -1)", "flatten", ("x", 0, -1), {}),
    ("x.sum(1, keepdim=True)", "sum", ("x", 1, True), {}),
]
"""The text, what is called (a method if it is a text), its arguments with tensors by name."""


def tensors():
    torch.manual_seed(0)
    n = torch.tensor([[3, -7, 2], [1, 0, 5], [4, 4, -1]])
    return {"x": torch.randn(3, 3), "n": n, "m": n.t() + 9, "b": n > 1, "c": n > 3}


def node_of(target, args, kwargs):
    """The node with placeholders for the tensors' names."""
    graph = fx.Graph()
    nodes = {name: graph.placeholder(name) for name in tensors()}
    filled = fx.node.map_aggregate(args, lambda item: nodes[item] if type(item) is str and item in nodes else item)
    method = isinstance(target, str)
    return graph.call_method(target, filled, kwargs) if method else graph.call_function(target, filled, kwargs)


def result(text):
    """What a function with this body returns, by Python and by TorchScript."""
    given = tensors()
    source = f"def run({', '.join(f'{name}: Tensor' for name in given)}) -> Tensor:\n    return {text}\n"
    found = {"torch": torch, "F": F, "Tensor": torch.Tensor}
    exec(source, found)
    scripted = torch.jit.CompilationUnit(source)
    return [found["run"](*given.values()), scripted.run(*given.values())]


@pytest.mark.parametrize(("text", "target", "args", "kwargs"), FORMS, ids=[form[0] for form in FORMS])
def test_a_form(text, target, args, kwargs):
    node = node_of(target, args, kwargs)
    assert expression(node, lambda read: (read.name, ATOM))[0] == text
    given = tensors()
    filled = fx.node.map_aggregate(args, lambda item: given[item] if type(item) is str and item in given else item)
    called = getattr(torch.Tensor, target) if isinstance(target, str) else target
    expected = called(*filled, **kwargs)
    for found in result(text):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_what_only_torch_ops_has_keeps_its_name():
    node = node_of(aten.threshold_backward, ("x", "x", 0), {})
    assert written(node).target is aten.threshold_backward


def test_an_argument_that_decides_between_overloads_stays():
    node = node_of(aten.std, ("x", None), {"correction": None, "keepdim": False})
    assert "correction" in written(node).kwargs  # std(x) has a correction of its own
