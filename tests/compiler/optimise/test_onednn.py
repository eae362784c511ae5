"""Large float32 products go to oneDNN: what counts as large depends on the chunk of the loop that they stand in."""

import operator
from inspect import signature

import pytest
import torch
import torch.nn.functional as F

from hbpcompiler.compiler.cost.figures import ONEDNN
from hbpcompiler.compiler.optimise.onednn import multiply_by_onednn
from hbpcompiler.compiler.program import meta, products
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.grams import gram, onednn_add_gram_, onednn_gram, onednn_gram_to_
from hbpcompiler.compiler.program.products import onednn_add_product_
from hbpcompiler.compiler.program.writer import named
from hbpcompiler.limits import DEFAULT_LIMITS, Limits
from tests.compiler.optimise.small import calls, lines, program, run, shaped


def turned(write, *shapes, chunk=64, dtype=torch.float32, limits=DEFAULT_LIMITS):
    graph = shaped(program(write, *"xyz"[: len(shapes)]), *shapes, dtype=dtype)
    multiply_by_onednn(graph, ONEDNN, limits, chunk)
    check_program(graph, Level.SHAPED)
    return graph


def test_products_take_the_right_operand_transposed():
    graph = turned(lambda writer, x, y: named(writer.call(operator.matmul, x, y), "made"), (300, 200), (200, 100))
    assert lines(graph) == ["t(y)", "onednn_linear(x, t)"]
    assert [meta.hint(node) for node in graph.nodes if node.op == "call_function"] == ["made"]
    graph = turned(lambda writer, x, y: x @ y.t(), (300, 200), (100, 200))
    assert lines(graph) == ["onednn_linear(x, y)"]
    x, y = torch.randn(300, 200), torch.randn(100, 200)
    torch.testing.assert_close(run(graph, x, y), x @ y.t(), rtol=1e-4, atol=1e-4)


def test_linear_keeps_its_bias():
    graph = turned(lambda writer, x, y, z: writer.call(F.linear, x, y, z), (-1, 200), (100, 200), (100,))
    assert lines(graph) == ["onednn_linear(x, y, z)"]


def test_a_product_is_added_to_a_total_as_it_is_made():
    graph = turned(lambda writer, x, y, z: x.addmm_(y, z), (300, 100), (300, 200), (200, 100))
    assert lines(graph) == ["t(z)", "onednn_add_product_(x, y, t)"]
    x, y, z = torch.randn(300, 100), torch.randn(300, 200), torch.randn(200, 100)
    torch.testing.assert_close(run(graph, x.clone(), y, z), x + y @ z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("chunk", "expected"), [(4, "matmul"), (512, "onednn_linear")])
def test_samples_of_a_chunk_count(chunk, expected):
    graph = turned(lambda writer, x, y: x @ y, (-1, 50), (50, 100), chunk=chunk)
    assert calls(graph)[-1] == expected


def test_small_ones_other_dtypes_and_stacks_of_matrices_stay():
    assert calls(turned(lambda writer, x, y: x @ y, (10, 20), (20, 10))) == ["matmul"]
    assert calls(turned(lambda writer, x, y: x @ y, (300, 200), (200, 100), dtype=torch.float64)) == ["matmul"]
    assert calls(turned(lambda writer, x, y: x @ y, (9, 300, 200), (9, 200, 100))) == ["matmul"]


HELPERS = (onednn_add_product_, onednn_add_gram_, onednn_gram, onednn_gram_to_)


def test_which_columns_are_few_is_one_limit():
    """A file says it where it is another than the helpers' own, which is the limit's default."""
    assert {signature(helper).parameters["fewest"].default for helper in HELPERS} == {Limits().half_columns}
    few = Limits(half_columns=100)
    graph = turned(lambda writer, x, y, z: x.addmm_(y, z), (300, 100), (300, 200), (200, 100), limits=few)
    assert [node.kwargs for node in graph.nodes if node.target is onednn_add_product_] == [{"fewest": 100}]
    graph = turned(lambda writer, x: writer.call(gram, x, axis=1), (-1, 300, 200), limits=few)
    assert [node.kwargs for node in graph.nodes if node.target is onednn_gram] == [{"axis": 1, "fewest": 100}]


def test_products_of_few_columns_are_made_in_the_total(monkeypatch):
    made = []
    monkeypatch.setattr(products, "onednn_linear", lambda x, y: made.append(x.shape[1]) or x @ y.t())
    for columns, fewest in ((100, 101), (200, 201), (200, 200)):
        x, total = torch.randn(3, columns, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64)
        found = onednn_add_product_(total, x, x, 0.5, fewest=fewest)
        torch.testing.assert_close(found, 1 + x @ x.t() / 2, rtol=1e-12, atol=1e-12)
    assert made == [200]


def test_products_of_few_rows_or_columns_stay():
    assert calls(turned(lambda writer, x, y: x @ y, (6, 4000), (4000, 200)))[-1] == "matmul"
    assert calls(turned(lambda writer, x, y: x @ y, (4000, 200), (200, 6))) == ["matmul"]
    for rows, expected in ((6, gram), (64, onednn_gram)):
        graph = turned(lambda writer, x: writer.call(gram, x, axis=2, chunk=64), (-1, 9, rows, 600))
        assert [node.target for node in graph.nodes if node.op == "call_function"] == [expected]


def test_a_transpose_is_worth_a_copy_where_much_is_multiplied():
    """BLAS reads it as it lies."""
    assert calls(turned(lambda writer, x, y: x.t() @ y, (-1, 512), (-1, 128), chunk=1024))[-1] == "matmul"
    assert calls(turned(lambda writer, x, y: x.t() @ y, (-1, 512), (-1, 1024), chunk=1024))[-1] == "onednn_linear"
    assert calls(turned(lambda writer, x, y: x @ y, (-1, 512), (512, 128), chunk=1024))[-1] == "onednn_linear"
    graph = shaped(program(lambda writer, x, y: x.t() @ y, "x", "y"), (-1, 512), (-1, 128))
    multiply_by_onednn(graph, ONEDNN, Limits(turned_slowdown=1), 1024)
    assert calls(graph)[-1] == "onednn_linear"
