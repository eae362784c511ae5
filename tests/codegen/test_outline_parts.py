"""The parts of outlining by themselves: roles of names, places under a path, names given again, tables."""

import torch
from torch import fx

from hbpcompiler.codegen.bodies import several
from hbpcompiler.codegen.calls import Outline
from hbpcompiler.codegen.copying import LETTERS, Letter
from hbpcompiler.codegen.forms import Form
from hbpcompiler.codegen.lifetimes import Section
from hbpcompiler.codegen.naming import Names
from hbpcompiler.codegen.outline import outlined
from hbpcompiler.codegen.places import PARAMETERS, Listed, Place
from hbpcompiler.codegen.reuse import Reused
from hbpcompiler.codegen.roles import role
from hbpcompiler.codegen.segments import is_text, segments
from hbpcompiler.codegen.tables import merged, parameter_table
from hbpcompiler.compiler.program.writer import Block


def chain(length):
    """g_0 -> g_1 -> ..., each twice the one before it, under a heading of its own."""
    graph = fx.Graph()
    node = graph.placeholder("x")
    node.meta |= {"shape": ("N", "1"), "dtype": torch.float32}
    for number in range(length):
        shape = ("N", str(number + 2))
        double = graph.call_function(torch.mul, (node, 2))
        node = graph.call_function(torch.add, (double, number))
        for made in (double, node):
            made.meta |= {"shape": shape, "dtype": torch.float32, "block": Block(f"layer{number}: double", "backward")}
        node.meta["hint"] = f"g_layer{number}"
    graph.output(node)
    return graph


def test_role():
    assert [role(name) for name in ("g_fc", "S_layer1_conv", "pooled_R_relu", "layer1_conv")] == ["g", "S", "R", "x"]


def test_several_names_are_in_brackets_where_they_are_long():
    assert several(["a", "b"]) == "a, b"
    assert several(["a" * 30, "b" * 30]).startswith("(")


def test_a_place_is_under_its_module_only():
    place = Place("p", "layer1.bn.weight")
    assert place.under("layer1.bn") == "weight"
    assert place.under("layer1") == "bn.weight"
    assert place.under("layer1.b") is None
    assert place.under("") is None


def test_blocks_alike_but_for_a_number_are_one_function():
    graph = chain(8)
    outline = outlined(graph, {})
    assert len(outline.calls) == 8
    (function,) = {id(call.function): call.function for call in outline.calls.values()}.values()
    assert function.members == 8
    assert [call.numbers for call in outline.calls.values()] == [[number] for number in range(8)]
    assert not outlined(chain(2), {}).calls, "two short blocks are not worth a function"


def test_forms_differ_in_numbers_alone():
    first, second, *_ = [Form(segment, {}) for segment in segments(chain(3))]
    assert first.key == second.key
    assert first.numbers != second.numbers
    assert repr(Letter("a")) == "a"


def test_a_name_is_given_again_when_nobody_reads_it_any_more():
    graph = chain(3)
    made = [node for node in graph.nodes if node.meta.get("hint")]
    reused = Reused(graph, Names(), Outline())
    assert [reused.name(node, node.meta["hint"]) for node in made] == ["g", "g", "g"]


def test_a_name_that_is_still_read_is_kept():
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(torch.mul, (x, 2))
    second = graph.call_function(torch.add, (first, 1))
    graph.output(graph.call_function(torch.add, (first, second)))
    for node in (first, second):
        node.meta["shape"] = ("N",)
    first.meta["hint"], second.meta["hint"] = "g_a", "g_b"
    reused = Reused(graph, Names(), Outline())
    assert reused.name(first, "g_a") == "g"
    assert reused.name(second, "g_b") == "g_2"


def test_shapes_are_written_where_they_are_read():
    graph = fx.Graph()
    x = graph.placeholder("x")
    shape = graph.call_function(getattr, (x, "shape"))
    double = graph.call_function(torch.mul, (x, 2))
    double.meta["shape"] = ("N",)
    assert is_text(shape)
    assert not is_text(double)


def test_relaid_parameters_are_named():
    listed = Listed("parameters", ("conv.weight", "fc.weight"))
    assert parameter_table([], listed, {}) == ["p = {name: tensor.detach() for name, tensor in state.items()}"]
    assert parameter_table(["conv.weight"], listed, {"conv.weight": 4, "fc.weight": 2})[1:3] == [
        "for name in parameters:", "    if p[name].dim() == 4:"]
    assert parameter_table(["conv.weight"], listed, {"conv.weight": 4, "fc.weight": 4})[1] == (
        'for name in ["conv.weight"]:'), "not all of four axes"


def test_names_in_a_row_are_a_part_of_the_list():
    listed = Listed("parameters", tuple("abcd"))
    assert [listed.text(keys) for keys in ("abcd", "bcd", "abc", "bc")] == [
        "parameters", "parameters[1:]", "parameters[:3]", "parameters[1:3]"]
    assert listed.text("ac") == '["a", "c"]'
    assert listed.text("dx") == '["d", "x"]'


def test_blocks_of_one_line_share_a_heading():
    sections = [Section("layer1.bn: batch_norm", ["a = f()", "del b"]), Section("layer1.relu: relu", ["c = g(a)"]),
                Section("layer1.conv: conv2d", ["d = h(c)", "e = d + 1"])]
    found = merged(sections)
    assert [(section.title, len(section.lines)) for section in found] == [("layer1", 3), ("layer1.conv: conv2d", 2)]


def test_letters_are_no_names_of_tables_or_streams():
    assert not set(LETTERS) & {PARAMETERS, *"nkNxygSMRQGHdTAB"}
    assert len(set(LETTERS)) == len(LETTERS)


def test_what_a_module_does_between_its_parts_stands_under_the_module():
    titles = ["b.0.conv: conv2d", "b.0.down.0: conv2d", "b.0: add", "b.0.relu: relu", "b.1: block", "head: linear",
              "mul"]
    found = merged([Section(title, [f"line{number} = ..."]) for number, title in enumerate(titles)])
    assert [(section.title, len(section.lines)) for section in found] == [
        ("b.0", 1), ("b.0.down", 1), ("b.0", 2), ("b", 1), ("head", 1), ("mul", 1)]
