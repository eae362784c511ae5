"""A division by the batch size moves to the smaller operand of a product, or into the loop that fills the rows."""

import torch

from hbpcompiler.compiler.optimise.scaling import divide_before_products
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.writer import named
from tests.compiler.optimise.small import lines, program, run, shaped


def samples(x):
    """The batch size, as the program's first lines write it."""
    number = named(x.shape[0], "N")
    meta.play(number.node, Role.BATCH_SIZE)
    return number


def outer(writer, x, y):
    number = samples(x)
    return named(named(writer.call(torch.einsum, "no,ni->noi", x, y), "product") / number, "each")


def test_the_smaller_operand_is_divided_and_the_product_takes_the_name():
    graph = shaped(program(outer, "x", "y"), (-1, 3), (-1, 40))
    x, y = torch.randn(2, 3), torch.randn(2, 40)
    before = run(graph, x, y)
    divide_before_products(graph)
    check_program(graph, Level.SHAPED)
    assert lines(graph)[-2:] == ["truediv(x, getitem)", "einsum(no,ni->noi, truediv_1, y)"]
    (product,) = [node for node in graph.nodes if node.target is torch.einsum]
    assert meta.hint(product) == "each"
    torch.testing.assert_close(run(graph, x, y), before)


def test_views_of_the_product_are_looked_through():
    def flat(writer, x, y):
        number = samples(x)
        return writer.call(torch.einsum, "no,ni->noi", x, y).flatten(1) / number

    graph = shaped(program(flat, "x", "y"), (-1, 3), (-1, 40))
    divide_before_products(graph)
    check_program(graph, Level.SHAPED)
    assert lines(graph)[2:] == ["truediv(x, getitem)", "einsum(no,ni->noi, truediv_1, y)", "flatten(einsum, 1)"]


def test_it_stays_where_nothing_is_gained():
    def write(writer, x, y):
        number = samples(x)
        twice = writer.call(torch.einsum, "no,ni->noi", x, y)
        summed = writer.call(torch.einsum, "no,ni->oi", x, y)
        square = writer.call(torch.einsum, "no,ni->noi", x, x)
        return twice / number, twice, summed / number, square / number, x / number, twice.square() / 2

    graph = shaped(program(write, "x", "y"), (-1, 3), (-1, 40))
    before = lines(graph)
    divide_before_products(graph)
    assert lines(graph) == before
    graph = shaped(program(outer, "x", "y"), (-1, 1), (-1, 1))
    before = lines(graph)
    divide_before_products(graph)
    assert lines(graph) == before


def test_a_name_decides_nothing():
    graph = shaped(program(lambda writer, x, y: writer.call(torch.einsum, "no,ni->noi", x, y) / named(y.shape[0], "N"),
                           "x", "y"), (-1, 3), (-1, 40))
    before = lines(graph)
    divide_before_products(graph)
    assert lines(graph) == before


def test_rows_that_a_loop_fills_are_divided_there():
    def write(writer, x):
        number = samples(x)

        def body(part):
            part.rows["r"].copy_(part["x"].square())

        return writer.loop(body, op=None, sliced={"x": x}, chunk=2, totals={}, rows={"r": (3,)})["r"] / number

    graph = shaped(program(write, "x"), (-1, 3))
    x = torch.randn(5, 3)
    divide_before_products(graph)
    check_program(graph, Level.SHAPED)
    assert [line for line in lines(graph) if "truediv(" in line] == ["  truediv(square, batch_size)"]
    torch.testing.assert_close(run(graph, x), x.square() / 5)


def test_totals_of_a_loop_are_divided_after_it():
    def write(writer, x):
        number = samples(x)
        return writer.loop(lambda part: part.totals["t"].add_(part["x"].sum(0)), op=None, sliced={"x": x}, chunk=2,
                           totals={"t": (3,)})["t"] / number

    graph = shaped(program(write, "x"), (-1, 3))
    before = lines(graph)
    divide_before_products(graph)
    assert lines(graph) == before
