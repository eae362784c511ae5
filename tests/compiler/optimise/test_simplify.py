"""Neutral operations, inverses, idle reshapes and casts, dead code: what goes and what must stay."""

import operator

import pytest
import torch

from hbpcompiler.compiler.optimise.constants import drop_constant_factors
from hbpcompiler.compiler.optimise.simplify import (
    cancel_inverses,
    drop_dead,
    drop_idle_axes,
    drop_idle_casts,
    drop_idle_reshapes,
    drop_neutral,
    drop_turns_back,
    read_shapes_at_the_source,
)
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.loop_call import LoopCall
from tests.compiler.optimise.small import calls, lines, loop, program, run, shaped, total_of


def test_neutral_numbers_are_dropped():
    graph = shaped(program(lambda writer, x: (x * 1, x / 1, x + 0, x - 0, x * 1.0), "x"), (-1, 3))
    drop_neutral(graph)
    assert lines(graph) == []
    graph = shaped(program(lambda writer, x: (x * 0, x + 1, 1 / x, 0 - x, x / x, x ** 1), "x"), (-1, 3))
    before = lines(graph)
    drop_neutral(graph)
    assert lines(graph) == before


@pytest.mark.parametrize(("dtype", "stay"), [
    (torch.bool, ["mul(x, 1)", "truediv(x, 1)", "add(x, 0)", "mul(x, 1.0)", "add(x, 0.0)"]),
    (torch.uint8, ["truediv(x, 1)", "mul(x, 1.0)", "add(x, 0.0)"]),
    (torch.bfloat16, []),
])
def test_what_makes_numbers_of_another_dtype_is_not_neutral(dtype, stay):
    """True + True is True, 2 of ones; 250 + 10 is 4 of bytes."""
    graph = shaped(program(lambda writer, x: (x * 1, x / 1, x + 0, x * 1.0, x + 0.0), "x"), (-1, 3), dtype=dtype)
    drop_neutral(graph)
    assert lines(graph) == stay


def test_neutral_numbers_of_lengths():
    def write(writer, x):
        samples = x.shape[0]
        return x.new_zeros((samples * 1, samples + 0)), x.new_ones((samples * 2,))

    graph = shaped(program(write, "x"), (-1, 3))
    drop_neutral(graph)
    assert [line for line in calls(graph) if line in ("mul", "add")] == ["mul"]


def test_a_view_as_another_dtype_is_no_reshape():
    def write(writer, x):
        bits = x.view(torch.int32)
        return bits % 2, bits.reshape((3, -1)), x.view(torch.float32) + 1

    graph = shaped(program(write, "x"), (-1, 3))
    drop_idle_reshapes(graph)
    assert lines(graph) == ["view(x, torch.int32)", "mod(view, 2)", "reshape(view, (3, -1))", "add(x, 1)"]


def test_inverses_cancel():
    graph = program(lambda writer, x: (x.unflatten(0, (2, -1)).flatten(0, 1), x.unsqueeze(1).squeeze(1),
                                       x.unsqueeze(-1).squeeze(-1), x.unsqueeze(0).squeeze(0)), "x")
    cancel_inverses(graph)
    drop_dead(graph)
    assert lines(graph) == []


def test_what_is_no_inverse_stays():
    def write(writer, x):
        return (x.unflatten(0, (2, -1)).flatten(1, 2), x.unsqueeze(0).squeeze(1), x.unflatten(2, (2, -1)).flatten(0, 1),
                x.flatten(0, 1).unflatten(0, (2, 2)))

    graph = program(write, "x")
    before = lines(graph)
    cancel_inverses(graph)
    drop_dead(graph)
    assert lines(graph) == before


def test_an_axis_that_nothing_meets_is_not_put_in():
    def write(writer, x):
        return (x.unsqueeze(1).flatten(-2).squeeze(1), x.unsqueeze(1).flatten(-4).squeeze(1),
                x.unsqueeze(1).sum(-2).squeeze(1), x.unsqueeze(0).flatten(-2).squeeze(1))

    graph = shaped(program(write, "x"), (5, 2, 3, 4))
    expected = [tensor.shape for tensor in run(graph, torch.zeros(5, 2, 3, 4))]
    drop_idle_axes(graph)
    drop_dead(graph)
    assert lines(graph)[0] == "flatten(x, -2)"
    assert calls(graph).count("unsqueeze") == 3
    assert [tensor.shape for tensor in run(graph, torch.zeros(5, 2, 3, 4))] == expected


def test_what_is_turned_twice_is_as_it_was():
    def write(writer, x):
        turned = x.transpose(-1, -2)
        return turned.transpose(-2, -1), turned.unsqueeze(1).transpose(-1, -2), turned.unsqueeze(0).transpose(-1, -2)

    graph, x = shaped(program(write, "x"), (5, 3, 4)), torch.randn(5, 3, 4)
    expected = run(graph, x)
    drop_turns_back(graph)
    drop_dead(graph)
    check_program(graph, Level.SHAPED)
    assert lines(graph) == ["unsqueeze(x, 1)", "unsqueeze(x, 0)"]
    for found, wanted in zip(run(graph, x), expected, strict=True):
        assert torch.equal(found, wanted)


def test_what_is_turned_otherwise_stays_turned():
    def write(writer, x, y):
        turned, of_two = x.transpose(-1, -2), y.transpose(-1, -2)
        return (turned.unsqueeze(2).transpose(-1, -2), turned.unsqueeze(-1).transpose(-1, -2), turned.transpose(1, 2),
                turned.transpose(0, 1), turned.square().transpose(-1, -2), of_two.unsqueeze(1).transpose(-1, -2))

    graph = shaped(program(write, "x", "y"), (5, 3, 4), (5, 3))
    before = lines(graph)
    drop_turns_back(graph)
    assert lines(graph) == before


def test_a_shape_is_read_where_it_comes_from():
    graph = program(lambda writer, u, v: u.unflatten(0, v.shape[:2]).shape[:2], "u", "v")
    read_shapes_at_the_source(graph)
    drop_dead(graph)
    assert lines(graph) == ["getattr(v, shape)", "getitem(getattr_1, slice(None, 2, None))"]
    graph = program(lambda writer, u, v: (u.unflatten(1, v.shape[:2]).shape[:2], u.unflatten(0, v.shape[:2]).shape[:3]),
                    "u", "v")
    before = lines(graph)
    read_shapes_at_the_source(graph)
    assert lines(graph) == before


def test_what_nothing_reads_is_dropped_unless_it_writes_to_what_is_read():
    def write(writer, x):
        seen, unseen = x.clone(), x.clone()
        seen.add_(1)
        unseen.add_(1)
        seen[0].mul_(2)
        x.square()
        return seen

    graph = program(write, "x")
    drop_dead(graph)
    assert calls(graph) == ["clone", "add_", "getitem", "mul_"]
    torch.testing.assert_close(run(graph, torch.ones(2)), torch.tensor([4.0, 2.0]))


def test_totals_of_a_loop_are_read_outside():
    graph = total_of(lambda part, whole: part.sum(0))
    drop_dead(loop(graph).target.body)
    drop_dead(graph)
    assert calls(graph) == ["new_zeros", "loop", "  sum", "  add_", "getitem"]
    graph = program(lambda writer, x: writer.loop(lambda part: part.totals["t"].add_(part["x"].sum(0)), op=None,
                                                  sliced={"x": x}, chunk=2, totals={"t": (3,)}) and x, "x")
    drop_dead(graph)
    assert lines(graph) == []  # nobody reads its total


def test_loops_are_not_passed_what_they_do_not_read():
    def write(writer, x, y, v, w):
        def outer(part):
            def inner(piece):
                piece.outer(part.totals["t"]).add_(piece["x"].sum(0) * piece.outer(part.outer(w)))
                piece.outer(part.outer(v)).square()

            part["y"].exp()
            part.writer.loop(inner, op=None, sliced={"x": part["x"]}, chunk=1, totals={})

        return writer.loop(outer, op=None, sliced={"y": y, "x": x}, chunk=2, totals={"t": (3,)})["t"]

    graph = program(write, "x", "y", "v", "w")
    outer = loop(graph).target.body
    inner = loop(outer)
    for each in (inner.target.body, outer, graph):
        drop_dead(each)
    assert [node.name for node in loop(graph).all_input_nodes if node.op == "placeholder"] == ["x", "w"]
    assert len(LoopCall.of(inner).whole) == 2  # the total and w
    check_program(graph, Level.DERIVED)
    given = torch.randn(5, 3), torch.randn(5, 3), torch.randn(3), torch.randn(3)
    torch.testing.assert_close(run(graph, *given), given[0].sum(0) * given[3])


def test_turns_are_counted_by_a_tensor_that_is_not_read():
    graph = program(lambda writer, x: writer.loop(lambda part: part.totals["t"].add_(1), op=None, sliced={"x": x},
                                                  chunk=2, totals={"t": (3,)})["t"], "x")
    drop_dead(graph)
    assert torch.equal(run(graph, torch.randn(5, 3)), torch.full((3,), 3.0))


def test_idle_reshapes_are_dropped_and_two_are_one():
    def write(writer, x):
        return (x.reshape(2, 6), x.flatten(1).reshape(2, 3, 2), x.reshape(2, 6).unflatten(1, (6,)),
                writer.call(torch.einsum, "ab->ab", x), x.flatten(0))

    graph = program(write, "x")
    shaped(graph, (2, 6))
    given = torch.randn(2, 6)
    before = run(graph, given)
    drop_idle_reshapes(graph)
    drop_dead(graph)
    assert lines(graph) == ["reshape(x, 2, 3, 2)", "flatten(x, 0)"]
    torch.testing.assert_close(run(graph, given), before)


def test_an_axis_left_out_and_there_again_is_nothing():
    graph = program(lambda writer, x, y: (x.squeeze(1).unsqueeze(1) * 2, y.squeeze(1).unsqueeze(1) * 2,
                                          x.squeeze(1).unsqueeze(2) * 2), "x", "y")
    shaped(graph, (2, 1, 3), (2, 4, 3))
    drop_idle_reshapes(graph)
    drop_dead(graph)
    assert [call for call in calls(graph) if call != "mul"] == ["squeeze", "unsqueeze", "squeeze", "unsqueeze"]


def test_a_factor_of_one_number_is_that_number():
    def write(writer, x, y):
        ones, halves = writer.call(torch.ones_like, y), writer.call(torch.full_like, y, 0.5)
        return x * ones.unsqueeze(1) + 3, x * halves.unsqueeze(1), y * halves.unsqueeze(1)

    graph = program(write, "x", "y")
    shaped(graph, (2, 4, 3), (2, 3))
    given = torch.randn(2, 4, 3), torch.randn(2, 3)
    before = run(graph, *given)
    drop_constant_factors(graph)
    drop_dead(graph)
    assert calls(graph) == ["full_like", "add", "mul", "unsqueeze", "mul"]
    torch.testing.assert_close(run(graph, *given), before)


def test_an_equation_that_sums_or_turns_is_no_idle_one():
    graph = program(lambda writer, x: (writer.call(torch.einsum, "ab->ba", x), writer.call(torch.einsum, "aa->a", x),
                                       writer.call(torch.einsum, "ab->a", x)), "x")
    shaped(graph, (2, 2))
    before = lines(graph)
    drop_idle_reshapes(graph)
    assert lines(graph) == before


def test_a_mask_that_meets_factors_alone_stays_a_mask():
    def write(writer, x, columns):
        mask = (x > 0).type_as(x).unsqueeze(1)
        return columns * mask

    graph = shaped(program(write, "x", "columns"), (-1, 3), (-1, 2, 3))
    drop_idle_casts(graph)
    drop_dead(graph)
    assert calls(graph) == ["gt", "unsqueeze", "mul"]
    assert next(node for node in graph.nodes if node.target == "unsqueeze").meta["dtype"] is torch.bool
    given = torch.randn(4, 3), torch.randn(4, 2, 3)
    torch.testing.assert_close(run(graph, *given), given[1] * (given[0] > 0).unsqueeze(1))


def test_a_mask_that_meets_other_masks_is_cast():
    def write(writer, x, columns):
        mask = (x > 0).type_as(x).unsqueeze(1)
        return columns * mask, mask + 1, writer.call(operator.mul, mask, columns)

    graph = shaped(program(write, "x", "columns"), (-1, 3), (-1, 2, 3))
    before = lines(graph)
    drop_idle_casts(graph)
    assert lines(graph) == before


def test_a_cast_to_the_dtype_that_is_there_goes_where_kernels_compute_in_it():
    for dtype, left in ((torch.float32, ["mul"]), (torch.float64, ["mul"]), (torch.bfloat16, ["mul", "type_as"])):
        graph = shaped(program(lambda writer, x, y: (x * 2).type_as(y), "x", "y"), (-1, 3), (-1, 3), dtype=dtype)
        drop_idle_casts(graph)
        assert calls(graph) == left
