"""What one line reads is written into that line, unless it is long, asks for a name, or would be computed too late."""

import torch
from torch import fx

from hbpcompiler.codegen.functions import Functions
from hbpcompiler.codegen.inline import Inlining, all_pure
from hbpcompiler.codegen.naming import Names
from hbpcompiler.codegen.outline import Outline
from hbpcompiler.codegen.places import Place
from hbpcompiler.compiler.program.meta import Block


def chain(part="forward", change=False):
    """relu(exp(x)), each an operation of its own, and the relu written into; the first asks for a name."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    with_exp = graph.call_method("exp", (x,))
    with_exp.meta = {"hint": "first", "block": Block("first: exp", part)}
    if change:
        graph.call_method("add_", (x, 1))
    graph.call_function(torch.relu, (with_exp,)).meta = {"block": Block("second: relu", part), "shape": ("N",)}
    return graph, with_exp


def asked(graph, node, text, large=True):
    functions = Functions(Names(), Outline(), {next(iter(graph.nodes)): Place("p", "x")} if large else {})
    return Inlining(graph, functions, ()).is_inline(node, text)


def test_chains_of_a_large_programs_forward_pass_are_one_line():
    graph, node = chain()
    assert asked(graph, node, "x.exp()")
    assert not asked(graph, node, "x.exp()", large=False)
    assert not asked(graph, node, "x" * 100)
    graph, node = chain("backward")
    assert not asked(graph, node, "x.exp()")


def test_what_is_read_twice_has_a_line():
    graph, node = chain()
    last = list(graph.nodes)[-1]
    last.args = (node, node)
    assert not asked(graph, node, "x.exp()")


def test_nothing_is_computed_after_what_it_reads_was_overwritten():
    graph, node = chain(change=True)
    assert not asked(graph, node, "x.exp()")
    assert not all_pure(graph)
    assert all_pure(chain()[0])


def written_over(part="results", between=False):
    """x.div_(2).clamp_(min=0), and y changed between the two."""
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    divided = graph.call_method("div_", (x, 2))
    if between:
        graph.call_method("add_", (y, 1))
    graph.output(graph.call_method("clamp_", (divided,), {"min": 0}))
    for node in graph.nodes:
        node.meta = {"block": Block("variance", part), "shape": ("3",)}
    return graph, divided


def test_results_that_are_written_over_are_one_line():
    assert asked(*written_over(), "x.div_(2)")
    assert not asked(*written_over("backward"), "x.div_(2)")
    assert not asked(*written_over(between=True), "x.div_(2)")
