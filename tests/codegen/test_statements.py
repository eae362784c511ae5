"""Statements of a graph: names, inlined expressions, and loops whose turn is a function."""

import operator
import re

import pytest
import torch
from torch import fx, nn

import hbpcompiler as hbp
from hbpcompiler.codegen.functions import Functions
from hbpcompiler.codegen.loops import counted, why
from hbpcompiler.codegen.naming import Names
from hbpcompiler.codegen.outline import Outline
from hbpcompiler.codegen.statements import Printer
from hbpcompiler.codegen.turns import VARIABLE
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.limits import Limits
from tests.selection import few


def printed(graph, given):
    names = Names()
    printer = Printer(graph, names, given, Functions(names, Outline()), {})
    return [line for _, lines in printer.statements() for line in lines]


def test_what_is_read_once_is_written_where_it_is_read():
    graph = fx.Graph()
    x = graph.placeholder("x")
    double = graph.call_function(torch.mul, (x, 2))
    named = graph.call_function(torch.add, (double, 1))
    other = graph.call_function(torch.sub, (named, named))
    graph.output(other)
    for node in (double, named, other):
        meta.set_tensor(node, ("N", "3"), torch.float32)
    meta.ask_for(named, "g_fc")
    lines = printed(graph, {x: "x"})
    assert lines[0] == "g_fc = torch.add(torch.mul(x, 2), 1)  # [N, 3]"


@pytest.mark.parametrize(("read_again", "name"), [(False, "S_x"), (True, "S_x_2")])
def test_a_sum_that_grows_keeps_its_name_unless_what_it_was_is_read(read_again, name):
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(torch.exp, (x,))
    both = graph.call_function(operator.add, (first, x))
    graph.output((both, first) if read_again else both)
    for node in (first, both):
        meta.set_tensor(node, ("N", "3"), torch.float32)
        meta.ask_for(node, "S_x")
    assert printed(graph, {x: "x"}) == ["S_x = torch.exp(x)  # [N, 3]", f"{name} = S_x + x  # [N, 3]"]


@pytest.mark.parametrize(("chunk", "length", "said"), [
    (1, "4", "sample"), (3, "262144", "samples, its largest tensor 3.0 MiB"), (3, "a", "samples")])
def test_a_loop_says_what_it_counts_and_how_large_a_turn_is(chunk, length, said):
    body = fx.Graph()
    x = body.placeholder("x")
    double = body.call_function(torch.mul, (x, 2))
    body.output(None)
    for node in (x, double):
        meta.set_tensor(node, ("n", length), torch.float32)
    lead = fx.Graph().placeholder("lead")
    meta.set_tensor(lead, ("N", length), torch.float32)
    loop = Loop(body, chunk, 0, 0, 0, 1)
    assert counted(lead, loop) + why(loop) == said


def test_what_a_turn_is_given_is_called_after_its_table():
    names = [VARIABLE.match(text)["name"] for text in ('ends.norm_gradient["fc.weight"][first:first + 2]', "g[:2]")]
    assert names == ["norm_gradient", "g"]


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(),
                         nn.Linear(8 * 36, 3))


@few(1, "further cases of one kind")
@pytest.mark.parametrize("quantity", ["variance", "diag_h"])
def test_a_turn_that_makes_large_tensors_is_a_function(quantity):
    X, y = torch.randn(6, 2, 8, 8), torch.arange(6) % 3
    whole = hbp.compile(small(), quantities=[quantity])
    chunks = hbp.compile(small(), quantities=[quantity], limits=Limits(large_item_numbers=8, cache_bytes=2**14))
    expected, found = whole(X, y), chunks(X, y)
    for name, value in expected[quantity].items():
        torch.testing.assert_close(found[quantity][name], value, rtol=1e-4, atol=1e-6)
    loops = re.findall(r"^( *)for \w+ in range\(.*\n\1    (.*)$", chunks.code.partition("class Program")[2], re.M)
    assert any("_turn(" in first for _, first in loops)
    assert "is_scripting(): del" not in chunks.code
    scripted = torch.jit.script(chunks.program)
    with torch.no_grad():
        again = getattr(scripted(chunks.state, X, y), quantity)
    for name, value in found[quantity].items():
        assert torch.equal(again[name], value), name
