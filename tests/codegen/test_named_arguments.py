"""Numbers in calls say what they are where nobody would know."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from hbpcompiler.codegen.named_arguments import with_names
from hbpcompiler.codegen.printer import ATOM, expression
from hbpcompiler.codegen.torch_calls import written
from hbpcompiler.rule.idioms import standardised_back_
from hbpcompiler.rule.image_patches import patches

aten = torch.ops.aten


def text(make):
    """How a call of a function of x, y and z is written."""
    graph = fx.Graph()
    values = [graph.placeholder(name) for name in "xyz"]
    for value in values:
        value.meta["shape"] = ("N", "3")
    return expression(make(graph, *values), lambda node: (node.name, ATOM))[0]


@pytest.mark.parametrize(("make", "expected"), [
    (lambda graph, x, y, z: graph.call_function(aten._softmax_backward_data.default, (x, y, -1, torch.float32)),
     "torch.ops.aten._softmax_backward_data(x, y, dim=-1, input_dtype=torch.float32)"),
    (lambda graph, x, y, z: graph.call_function(patches, (x, [3, 3])), "patches(x, kernel=[3, 3])"),
    (lambda graph, x, y, z: graph.call_function(standardised_back_, (x, y, z, True, x)),
     "standardised_back_(x, y, z, centred=True, weight=x)"),
    (lambda graph, x, y, z: graph.call_function(torch.nan_to_num, (x, 1.0, 1.0)),
     "torch.nan_to_num(x, nan=1.0, posinf=1.0)"),
    (lambda graph, x, y, z: graph.call_function(torch.native_layer_norm, (x, [3], y, z, 1e-05)),
     "torch.native_layer_norm(x, normalized_shape=[3], weight=y, bias=z, eps=1e-05)"),
    (lambda graph, x, y, z: graph.call_method("mean", (x, [0, 1], True)), "x.mean([0, 1], keepdim=True)"),
    (lambda graph, x, y, z: graph.call_function(F.conv2d, (x, y, None), {"padding": 1}), "F.conv2d(x, y, padding=1)"),
])
def test_they_are_named(make, expected):
    assert text(make) == expected


@pytest.mark.parametrize(("make", "expected"), [
    (lambda graph, x, y, z: graph.call_function(torch.softmax, (x, 1)), "torch.softmax(x, 1)"),
    (lambda graph, x, y, z: graph.call_function(torch.cat, ([x, y], 1)), "torch.cat([x, y], 1)"),
    (lambda graph, x, y, z: graph.call_method("flatten", (x, 0, 1)), "x.flatten(0, 1)"),
    (lambda graph, x, y, z: graph.call_function(F.linear, (x, y, z)), "F.linear(x, y, z)"),
    (lambda graph, x, y, z: graph.call_function(aten.pow.Scalar, (2, x)), "2 ** x"),
])
def test_what_people_say_in_place_stays_there(make, expected):
    assert text(make) == expected


def test_no_argument_is_named_by_a_word_of_python():
    graph = fx.Graph()
    call = written(graph.call_function(aten.uniform.default, (graph.placeholder("x"), 0.5, 2.0)))
    assert with_names(call) == call


def test_every_kernel_takes_its_arguments_by_name():
    """The names of schemas are those that torch takes."""
    x, mean, inverse = torch.randn(2, 3), torch.randn(2, 1), torch.rand(2, 1)
    by_place = aten.native_layer_norm_backward(x, x, [3], mean, inverse, None, None, [True, False, False])[0]
    by_name = aten.native_layer_norm_backward(x, x, normalized_shape=[3], mean=mean, rstd=inverse, weight=None,
                                              bias=None, output_mask=[True, False, False])[0]
    assert torch.equal(by_place, by_name)
