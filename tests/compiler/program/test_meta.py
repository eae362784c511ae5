"""What nodes say of themselves, and loops taken apart by name."""

import torch

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.loop_call import LoopCall
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.writer import named
from tests.compiler.optimise.small import loop, program, run, shaped


def test_shapes_and_memory_are_annotated():
    def write(writer, x):
        values, places = writer.call(torch.ops.aten.max_pool2d_with_indices,
                                     x, [2, 2])[0], x.shape
        return values, places, x.flatten(1), x.flatten(1).exp(), x[:, :1] + 1, x.expand(2, -1, -1, -1, -1).sum(0)

    graph = shaped(program(write, "x"), (-1, 2, 4, 4))
    known = {node.name: node for node in graph.nodes}
    assert meta.results(known["max_pool2d_with_indices"]) == 2
    assert meta.shape(known["getitem"]) == ("N", "2", "2", "2")
    assert meta.shape(known["getattr_1"]) is None
    assert [meta.owns_memory(known[name]) for name in ("x", "flatten", "exp", "add", "expand", "sum_1")] == [
        False, False, True, True, False, True]


def test_a_result_that_is_the_argument_owns_nothing():
    graph = program(lambda writer, x: (writer.call(torch.dropout, x, 0.5, False), x.type_as(x), x.double()), "x")
    shaped(graph, (-1, 3))
    assert [meta.owns_memory(node) for node in graph.nodes][1:4] == [False, False, True]


def test_the_first_wish_for_a_name_counts():
    graph = program(lambda writer, x: named(named(x.exp(), "first"), "second"), "x")
    node = list(graph.nodes)[1]
    assert meta.hint(node) == "first"
    meta.rename(node, "third")
    assert meta.hint(node) == "third"


def test_places_copies_and_moves():
    graph = program(lambda writer, x: (named(x.exp(), "e"), x.neg(), x.abs(), x.sin()), "x")
    exp, neg, absolute, sin = list(graph.nodes)[1:5]
    exp.meta["step"] = 7
    meta.set_tensor(exp, ("N",), torch.float64)
    meta.place(neg, exp)
    assert (meta.step(neg), meta.shape(neg), meta.hint(neg)) == (7, None, "")
    meta.copy(absolute, exp)
    assert meta.alike(absolute, exp)
    assert meta.hint(absolute) == ""
    meta.move(sin, exp)
    assert (meta.hint(sin), meta.hint(exp), meta.step(sin)) == ("e", "", 7)


def filled():
    def write(writer, x, w):
        def body(part):
            part.totals["t"].add_((part["x"] * part.outer(w)).sum(0))
            part.rows["r"].copy_(part["x"])

        made = writer.loop(body, op=None, sliced={"x": x}, chunk=2, totals={"t": (3,)}, rows={"r": (3,)})
        return made["t"], made["r"]

    return program(write, "x", "w")


def test_a_loop_is_taken_apart_by_name():
    call = LoopCall.of(loop(filled()))
    parts = {name: [(passed.outer.name, passed.inner.name) for passed in getattr(call, name)]
             for name in ("totals", "rows", "cut", "whole")}
    assert parts == {"totals": [("new_zeros", "total_0")], "rows": [("new_empty", "rows_0")], "cut": [("x", "part_0")],
                     "whole": [("w", "whole_1")]}
    assert call.filled == call.totals + call.rows
    roles = [meta.role(passed.inner) for passed in (*call.filled, *call.cut, *call.whole)]
    assert roles == [Role.TOTAL, Role.ROWS, Role.CUT, Role.WHOLE]


def test_one_more_tensor_is_passed():
    graph = filled()
    call = LoopCall.of(loop(graph))
    inner = call.pass_whole(call.cut[0].outer, "again")
    assert LoopCall.of(loop(graph)).whole[-1].inner is inner
    assert meta.role(inner) is Role.WHOLE
    x, w = torch.randn(5, 3), torch.randn(3)
    total, rows = run(graph, x, w)
    torch.testing.assert_close(total, (x * w).sum(0))
    torch.testing.assert_close(rows, x)
