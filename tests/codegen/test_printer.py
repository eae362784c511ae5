"""One node as Python text: what is printed computes what was traced."""

import ast
import operator

import pytest
import torch
import torch.nn.functional as F

from hbpcompiler.codegen.printer import ADD, ATOM, MULTIPLY, expression, function_name, quote
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.writer import Writer


def printed(make):
    """The text of an expression of x and y, nested as deep as it goes."""
    writer = Writer()
    x, y = writer.placeholder("x"), writer.placeholder("y")

    def look(node):
        return (node.name, ATOM) if node.op == "placeholder" else expression(node, look)

    return expression(make(x, y).node, look)[0]


EXPRESSIONS = {
    "(x + y) * 2": lambda x, y: (x + y) * 2,
    "x + y * 2": lambda x, y: x + y * 2,
    "x - (y - 1)": lambda x, y: x - (y - 1),
    "x - y - 1": lambda x, y: x - y - 1,
    "x / (y * 2)": lambda x, y: x / (y * 2),
    "-(x + 1)": lambda x, y: -(x + 1),
    "(-x) ** 2": lambda x, y: (-x) ** 2,
    "(x ** 2) ** 3": lambda x, y: (x**2) ** 3,
    "(x > 0) & (y > 0)": lambda x, y: (x > 0) & (y > 0),
    "x @ y.t()": lambda x, y: x @ y.t(),
    "(x + y).flatten(1)": lambda x, y: (x + y).flatten(1),
    "x.shape[0]": lambda x, y: x.shape[0],
    "x[:, None, 1:3]": lambda x, y: x[:, None, 1:3],
    "x[..., ::2]": lambda x, y: x[..., ::2],
    'torch.einsum("ij,kj->ik", [x, y])': lambda x, y: torch.einsum("ij,kj->ik", x, y),
    "torch.cat([x, y], 1)": lambda x, y: torch.cat([x, y], 1),
    "x.to(dtype=torch.float64)": lambda x, y: x.to(dtype=torch.float64),
    "F.softplus(x)": lambda x, y: F.softplus(x),
    "x * (8 ** -0.5)": lambda x, y: x * 8**-0.5,
    "x.mul(1 / 3 ** 0.5)": lambda x, y: x.mul(1 / 3**0.5),
    "x.mul(72 ** 0.5)": lambda x, y: x.mul(72**0.5),
    "x * 0.353553": lambda x, y: x * 0.353553,
    "x * -(2 ** -0.5)": lambda x, y: x * -(2**-0.5),
    "x / 3e-05": lambda x, y: x / 3e-5,
    "x.masked_fill(y > 0, float(\"-inf\"))": lambda x, y: x.masked_fill(y > 0, float("-inf")),
}


@pytest.mark.parametrize("text", list(EXPRESSIONS))
def test_the_text(text):
    assert printed(EXPRESSIONS[text]) == text


@pytest.mark.parametrize("make", list(EXPRESSIONS.values()), ids=list(EXPRESSIONS))
def test_the_text_computes_what_was_written(make):
    torch.manual_seed(0)
    x, y = torch.randn(3, 3), torch.randn(3, 3)
    found = eval(printed(make), {"torch": torch, "F": F, "x": x, "y": y})
    expected = make(x, y)
    assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


@pytest.mark.parametrize(("number", "text"), [
    (1 / 128, "x * (1 / 128)"), (1 / 3, "x * (1 / 3)"), (0.1, "x * 0.1"), (0.01, "x * 0.01"), (0.125, "x * 0.125"),
    (2 / 3, "x * (2 / 3)"), (-1 / 128, "x * -(1 / 128)"), (1e-12, "x * 1e-12"), (5e-324, "x * 5e-324"),
    (1.7976931348623157e308, "x * 1.7976931348623157e+308"), (-1e300, "x * -1e+300"), (1e-200, "x * 1e-200"),
    (1.0, "x * 1.0"), (0.0, "x * 0.0")])
def test_a_share_of_one_is_written_as_that(number, text):
    assert printed(lambda x, y: x * number) == text
    assert eval(text.replace("x", "1.0")) == number


def test_a_sum_of_numbers_begins_with_its_first_term():
    writer = Writer()
    n = writer.placeholder("n")
    times = n * 2
    total = 0 + times
    look = {n.node: ("N", ATOM), times.node: ("N * 2", MULTIPLY)}.__getitem__
    assert expression(total.node, look) == ("0 + N * 2", ADD)  # perhaps a tensor, whose dtype may become another
    meta.set_no_tensor(total.node)
    assert expression(total.node, look) == ("N * 2", MULTIPLY)


def test_public_names():
    assert function_name(torch.tanh) == "torch.tanh"
    assert function_name(F.conv2d) == "F.conv2d"
    assert function_name(F.max_pool2d_with_indices) == "F.max_pool2d"
    assert function_name(torch.linalg.qr) == "torch.linalg.qr"
    assert function_name(torch.ops.aten.convolution_backward.default) == "torch.ops.aten.convolution_backward"
    with pytest.raises(TypeError, match="has no public name"):
        function_name(lambda x: x)


@pytest.mark.parametrize("text", ["plain", 'a"b', "a\\b", "\n\t\r", "\u2028\x00\u202e", "日本 ☃"])
def test_quoted_texts_are_read_back(text):
    assert ast.literal_eval(quote(text)) == text
    assert "\n" not in quote(text)


def reshaped(sizes, before, after):
    """x.reshape(sizes(x)) with the shapes that two runs with chunks of 8 would see."""
    writer = Writer()
    x = writer.placeholder("x")
    y = x.reshape(*sizes(x))
    x.node.meta["shape"], y.node.meta["shape"] = before, after

    def look(node):
        return (node.name, ATOM) if node.op == "placeholder" else expression(node, look)

    return expression(y.node, look)[0]


def test_a_reshape_by_lengths_that_it_states_is_an_unflatten():
    text = reshaped(lambda x: (x.shape[0], 2, 4), ("N", "8"), ("N", "2", "4"))
    assert text == "x.unflatten(1, (2, 4))"


@pytest.mark.parametrize(("shape", "text"), [
    ((1, 8), "x.unsqueeze(0)"), ((8, 1), "x.unsqueeze(1)"), ((2, 4), "x.unflatten(0, (2, 4))")])
def test_a_reshape_to_an_axis_of_length_one_more_says_so(shape, text):
    assert reshaped(lambda x: shape, ("8",), tuple(map(str, shape))) == text


def test_a_length_read_from_a_shape_is_not_taken_for_a_number():
    """A chunk's, in a loop inside another, was 8 where it was looked at, and may be anything."""
    text = reshaped(lambda x: (operator.add(x.shape[:2], (1, 1)),), ("1", "8"), ("1", "8", "1", "1"))
    assert "unflatten" not in text
