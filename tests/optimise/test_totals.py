"""Gram matrices are added to totals as they are made, and totals that would be divided by N grow over N."""

import torch

from hbpcompiler.compiler.optimise.totals import add_to_totals, scale_as_totals_grow
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.kernels import gram
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.writer import named
from tests.optimise.small import lines, loop, program, run, shaped


def samples(x):
    """The batch size, as the program's first lines write it."""
    number = named(x.shape[0], "N")
    meta.play(number.node, Role.BATCH_SIZE)
    return number


def grown(way):
    """A program whose loop adds to a total in this way, and divides it by N."""
    def write(writer, x):
        number = samples(x)

        def body(part):
            if way == "gram":
                part.totals["t"].add_(gram(part["x"], axis=1))
            else:
                part.totals["t"].add_(gram(part["x"], axis=1))
                part.totals["t"].square_()

        total = writer.loop(body, op=None, sliced={"x": x}, chunk=2, totals={"t": (4, 4)})["t"]
        return named(named(total, "inputs") / number, "A")

    return shaped(program(write, "x"), (-1, 4))


def test_totals_grow_by_scaled_products():
    graph = grown("gram")
    x = torch.randn(5, 4)
    add_to_totals(loop(graph).target.body)
    check_program(graph, Level.SHAPED)
    scale_as_totals_grow(graph)
    check_program(graph, Level.SHAPED)
    torch.testing.assert_close(run(graph, x), x.t() @ x / 5)
    text = lines(graph)
    assert not any(line.startswith("truediv") for line in text)
    assert any("gram_to_" in line for line in text)
    (item,) = [node for node in graph.nodes if meta.hint(node) == "mean_inputs"]
    assert meta.shape(item) == ("4", "4")


def test_a_total_that_more_happens_to_is_left_alone():
    graph = grown("squared")
    before, x = lines(graph), torch.randn(4, 4)
    wanted = run(grown("squared"), x)
    scale_as_totals_grow(graph)
    assert lines(graph) == before
    add_to_totals(loop(graph).target.body)
    torch.testing.assert_close(run(graph, x), wanted)


def test_a_total_that_somebody_else_reads_is_divided_as_before():
    def write(writer, x):
        number = samples(x)
        total = writer.loop(lambda part: part.totals["t"].add_(gram(part["x"], axis=1)), op=None, sliced={"x": x},
                            chunk=2, totals={"t": (4, 4)})["t"]
        return total / number, total.sum()

    graph = shaped(program(write, "x"), (-1, 4))
    x = torch.randn(4, 4)
    wanted = x.t() @ x / 4, (x.t() @ x).sum()
    scale_as_totals_grow(graph)
    assert any(line.startswith("truediv") for line in lines(graph))
    torch.testing.assert_close(run(graph, x), wanted)
