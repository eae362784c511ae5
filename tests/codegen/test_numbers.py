"""Numbers that functions are given are called after what they are in the calls that read them."""

import torch
from torch import fx

from hbpcompiler.codegen.copying import lettered
from hbpcompiler.codegen.numbers import argument_names, part_of


def test_arguments_have_the_names_that_torch_gives_them():
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert argument_names(graph.call_method("select", (x, 1, 2)))[1:] == ["dim", "index"]
    assert argument_names(graph.call_method("new_zeros", (x, (3, 4))))[1] == "size"
    assert argument_names(graph.call_function(torch.nn.functional.pad, (x, [1, 1])))[:2] == ["input", "pad"]
    assert argument_names(graph.call_function(torch.ops.aten.select.int, (x, 0, 1)))[2] == "index"
    assert argument_names(graph.call_method("no_such_method", (x, 1))) == ["", ""]


def test_a_matrix_has_rows_and_columns():
    assert [part_of("size", position, 2) for position in (0, 1)] == ["rows", "columns"]
    assert part_of("size", 0, 1) == "size"
    assert part_of("padding", 1, 2) == "padding"


def test_what_code_reads_is_a_word_and_what_stands_in_shapes_alone_a_letter():
    rows = [[8, 16, 91, 91, 5], [16, 8, 45, 45, 6]]
    written, names = lettered(rows, [False] * 5, ["rows", "", "", "chunk", "chunk"])
    assert [str(number) for number in written] == ["rows", "a", "chunk", "chunk", "chunk_2"]
    assert names[91, 45] == "chunk"
