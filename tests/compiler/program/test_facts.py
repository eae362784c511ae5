"""What is known of calls: from torch where it knows, and what it does not say."""

import operator

import pytest
import torch
import torch.nn.functional as F

from hbpcompiler.compiler.program.kernels import PRODUCTS
from hbpcompiler.compiler.program.nodes import (
    facts,
    is_pointwise,
    is_pure,
    returns_its_input,
    shows_its_input,
    writes_in_place,
)
from hbpcompiler.compiler.program.products import onednn_linear
from tests.compiler.optimise.small import loop, program, total_of


def of(write):
    """The last node of a program of one tensor."""
    graph = program(lambda writer, x: write(writer, x), "x")
    return list(graph.nodes)[-2]


def method(name, *arguments):
    return of(lambda writer, x: getattr(x, name)(*arguments))


def function(target, *arguments):
    return of(lambda writer, x: writer.call(target, x, *arguments))


DRAWS = [torch.rand_like, torch.randn_like, torch.bernoulli, torch.multinomial, torch.poisson, F.dropout, F.dropout2d,
         torch.native_dropout, F.alpha_dropout, torch.normal, torch.ops.aten.rand_like, torch.ops.aten.dropout.default]


@pytest.mark.parametrize("target", DRAWS)
def test_draws_are_not_shared(target):
    assert facts(function(target)).random
    assert not is_pure(function(target))


@pytest.mark.parametrize("name", ["add_", "mul_", "copy_", "scatter_add_", "addmm_", "zero_", "squeeze_", "bernoulli_"])
def test_writing_in_place(name):
    assert writes_in_place(method(name))
    assert shows_its_input(method(name))
    assert not is_pure(method(name))


def test_what_is_written_to_is_the_result_unless_its_shape_changes():
    assert all(returns_its_input(method(name)) for name in ("add_", "clamp_", "addmm_", "copy_"))
    assert not any(returns_its_input(method(name, 0)) for name in ("squeeze_", "unsqueeze_", "add", "flatten"))


@pytest.mark.parametrize("name", ["add", "mul", "sum", "squeeze", "to", "expand", "clamp", "__getitem__"])
def test_not_writing(name):
    assert not writes_in_place(method(name, 1))
    assert is_pure(method(name, 1))


def test_writing_to_another_argument_is_not_pure():
    with torch.library._scoped_library("hbp_nodes", "DEF") as library:
        library.define("note(Tensor x, Tensor(a!) seen) -> Tensor")
        node = function(torch.ops.hbp_nodes.note.default, None)
        assert not is_pure(node)
        assert not writes_in_place(node)


@pytest.mark.parametrize("name", ["unflatten", "flatten", "reshape", "view", "unsqueeze", "squeeze", "permute",
                                  "transpose", "t", "detach", "type_as", "to", "contiguous", "select", "narrow",
                                  "unfold", "expand", "expand_as", "movedim", "diagonal", "split", "unbind", "chunk"])
def test_views_may_show_their_input(name):
    assert shows_its_input(method(name, 1))
    assert facts(method(name, 1)).moves == (name not in ("detach", "type_as", "to"))


def test_items_and_attributes():
    assert shows_its_input(of(lambda writer, x: x[0]))
    assert shows_its_input(of(lambda writer, x: x.mT))
    for attribute in (lambda writer, x: x.shape, lambda writer, x: x.dtype, lambda writer, x: x.device):
        assert not shows_its_input(of(attribute))
        assert facts(of(attribute)).moves


@pytest.mark.parametrize("target", [operator.mul, torch.cat, torch.einsum, F.conv2d, F.linear, torch.exp, onednn_linear,
                                    torch.ops.aten.convolution_backward])
def test_results_of_their_own(target):
    assert not shows_its_input(function(target))
    assert is_pure(function(target))


def test_moves_that_copy_and_what_only_has_such_a_name():
    for target in (F.pad, torch.index_select, torch.gather, F.embedding, torch.repeat_interleave, torch.cat):
        assert facts(function(target)).moves, target
    for target in (torch.exp, operator.add, torch.einsum):
        assert not facts(function(target)).moves, target

    def flatten(x):
        return x

    assert not shows_its_input(function(flatten)), "a user's own function of that name"


def test_buffers_loops_and_placeholders():
    assert facts(method("new_zeros", (3,))).buffer
    assert not is_pure(method("new_zeros", (3,)))
    graph = total_of(lambda part, whole: part.sum(0))
    assert not is_pure(loop(graph))
    assert not is_pure(next(iter(graph.nodes)))


def test_products_are_calls_that_programs_make():
    assert all(map(callable, PRODUCTS))


def test_what_is_made_number_by_number():
    pointwise = [method("add_", 2), method("square"), method("addcmul_", 2, 3), function(torch.mul, 2),
                 function(torch.sigmoid), function(torch.ops.aten.div, 2), function(operator.mul, 2),
                 function(operator.truediv, 2), function(operator.gt, 2)]
    assert all(map(is_pointwise, pointwise))
    others = [method("sum", 0), method("matmul", 2), method("addmm_", 2, 3), function(operator.matmul, 2),
              function(operator.getitem, 2), function(onednn_linear, 2), method("index_add", 0, 1, 2)]
    assert not any(map(is_pointwise, others))
