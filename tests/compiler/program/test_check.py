"""Each thing that a program must not be, made by hand, is found."""

import pytest

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.check import BrokenProgramError, Level, check_program
from hbpcompiler.compiler.program.loop_call import LoopCall
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.writer import Writer
from tests.compiler.optimise.small import loop, program, shaped, total_of


def simple():
    return shaped(program(lambda writer, x: (x.square() * 2).flatten(1), "x"), (-1, 2, 3))


def node(graph, target):
    return next(found for found in graph.nodes if found.target == target or found.name == target)


def found(graph, level, match):
    with pytest.raises(BrokenProgramError, match=match):
        check_program(graph, level)


def test_a_sound_program_passes_at_its_level():
    check_program(simple(), Level.SHAPED)
    check_program(simple(), Level.FINAL)
    graph = program(lambda writer, x: x.square(), "x")
    check_program(graph, Level.DERIVED)
    found(graph, Level.SHAPED, "%x .*not said what it makes")


def test_a_read_of_what_comes_later():
    graph = simple()
    node(graph, "square").prepend(node(graph, "mul"))
    found(graph, Level.DERIVED, "%mul .*reads square, which does not come before it")


def test_a_reader_that_is_not_known():
    graph = simple()
    del node(graph, "square").users[node(graph, "mul")]
    found(graph, Level.DERIVED, "%mul .*square does not know that it is read here")


def test_a_reader_that_was_erased_or_reads_something_else():
    graph = simple()
    square, mul = node(graph, "square"), node(graph, "mul")
    node(graph, "x").users[mul] = None
    found(graph, Level.DERIVED, "%x .*takes mul for a reader")
    del node(graph, "x").users[mul]
    square._erased = True
    found(graph, Level.DERIVED, "%mul .*reads square, which was erased")


@pytest.mark.parametrize("key", ["block", "step"])
def test_a_node_that_stands_nowhere(key):
    graph = simple()
    del node(graph, "mul").meta[key]
    found(graph, Level.DERIVED, "%mul .*under which heading")


@pytest.mark.parametrize("key", ["shape", "dtype"])
def test_a_tensor_without_shape_or_dtype(key):
    graph = simple()
    del node(graph, "mul").meta[key]
    check_program(graph, Level.DERIVED)
    found(graph, Level.SHAPED, "%mul .*not said what it makes")


def overwritten(after):
    """product, then product.mul_(2) over it, then what `after` makes of the two."""
    def write(writer, x):
        product = x * x
        rows = product.flatten(1)
        over = product.mul_(2)
        meta.play(over.node, Role.OVERWRITES)
        return after(product, rows, over)

    return final(write)


def final(write):
    """A program of one argument and one result with shapes, as it is."""
    writer = Writer()
    writer.graph.output(write(writer, writer.placeholder("x")).node)
    return shaped(writer.graph, (-1, 3))


def test_an_overwritten_value_is_read_through_the_write_alone():
    check_program(overwritten(lambda product, rows, over: over.flatten(1).sum(0)), Level.FINAL)
    found(overwritten(lambda product, rows, over: over + product), Level.FINAL, "%add .*reads mul, which was overwr")
    found(overwritten(lambda product, rows, over: over.flatten(1) + rows), Level.FINAL, "%add .*reads flatten, which")
    found(overwritten(lambda product, rows, over: rows.square()), Level.FINAL, "%square .*reads flatten, which")


def test_what_is_meant_to_be_written_to_may_be_read():
    def write(writer, x):
        total = x.new_zeros((3,))
        total.add_(1)
        return total + x

    check_program(final(write), Level.FINAL)


def test_results_of_a_loop_are_overwritten_one_by_one():
    def write(second):
        def written(writer, x):
            made = writer.loop(lambda part: [total.add_(part["x"].sum(0)) for total in part.totals.values()], op=None,
                               sliced={"x": x}, chunk=2, totals={"t": (3,), "u": (3,)})
            over = made["t"].div_(2)
            meta.play(over.node, Role.OVERWRITES)
            return over + made[second]

        return final(written)

    check_program(write("u"), Level.FINAL)
    found(write("t"), Level.FINAL, "reads getitem, which was overwritten")


def summed():
    return total_of(lambda part, whole: (part * whole).sum(0))


def test_a_loop_passes_totals_rows_cut_and_whole_in_this_order():
    graph = summed()
    check_program(graph, Level.DERIVED)
    body = LoopCall.of(loop(graph)).loop.body
    node(body, "total_0").prepend(node(body, "part_0"))
    found(graph, Level.DERIVED, "%part_0 .*stands where the loop passes total")


def test_a_body_takes_as_many_tensors_as_it_is_given():
    graph = summed()
    accumulators, cut, whole = loop(graph).args
    loop(graph).args = (accumulators, cut, (*whole, node(graph, "x")))
    found(graph, Level.DERIVED, "does not take as many tensors as it is given")


@pytest.mark.parametrize(("field", "value"), [("totals", 2), ("rows", 1), ("cut", 0)])
def test_a_loop_that_miscounts(field, value):
    graph = summed()
    setattr(loop(graph).target, field, value)
    found(graph, Level.DERIVED, "it says .* totals")


def test_faults_in_bodies_are_found():
    graph = shaped(summed(), (-1, 3), (3,))
    body = LoopCall.of(loop(graph)).loop.body
    del node(body, "sum").meta["shape"]
    found(graph, Level.SHAPED, "%sum.* not said what it makes")
    graph = summed()
    body = LoopCall.of(loop(graph)).loop.body
    body.erase_node(node(body, "add_"))
    node(body, "mul").users[node(body, "total_0")] = None
    found(graph, Level.DERIVED, "%mul.* takes total_0 for a reader")
