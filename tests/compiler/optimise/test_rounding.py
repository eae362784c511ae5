"""What columns of curvature meet is rounded too, as small as it is; what they do not meet is left alone."""

import torch

from hbpcompiler.compiler.optimise.rounding import round_what_columns_meet
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.meta import Mark
from tests.compiler.optimise.small import lines, program, run, settings

HALF = torch.bfloat16
COLUMNS, WEIGHT = (-1, 2, 3), (3, 3)


def begins(proxy):
    columns = proxy.to(HALF)
    meta.set_mark(columns.node, Mark.BEGINS)
    return columns


def ends(proxy):
    result = proxy.to(torch.float32)
    meta.set_mark(result.node, Mark.ENDS)
    return result


def rounded(write, *shapes):
    graph = program(write, *("columns", "weight")[: len(shapes)])
    round_what_columns_meet(graph, HALF, torch.float32, settings(*shapes).arguments)
    check_program(graph, Level.DERIVED)
    return graph


def test_a_weight_that_meets_columns_is_rounded_once():
    def write(writer, columns, weight):
        own = begins(columns)
        return ends((own @ weight) @ weight), weight.exp() @ weight

    graph = rounded(write, COLUMNS, WEIGHT)
    assert lines(graph) == ["to(columns, torch.bfloat16)", "to(weight, torch.bfloat16)", "matmul(to, to_2)",
                            "matmul(matmul, to_2)", "to(matmul_1, torch.float32)", "exp(weight)", "matmul(exp, weight)"]
    product, plain = run(graph, torch.randn(2, 2, 3), torch.randn(3, 3))
    assert (product.dtype, plain.dtype) == (torch.float32, torch.float32)


def test_it_is_rounded_before_it_is_moved_and_spread():
    graph = rounded(lambda writer, columns, weight: ends(begins(columns) @ weight.t().unsqueeze(0)), COLUMNS, WEIGHT)
    assert lines(graph)[-5:] == ["to(weight, torch.bfloat16)", "t(to_2)", "unsqueeze(t_1, 0)",
                                 "matmul(to, unsqueeze_1)", "to(matmul, torch.float32)"]


def test_a_cast_is_no_move():
    graph = rounded(lambda writer, columns, weight: ends(begins(columns) @ weight.detach()), COLUMNS, WEIGHT)
    assert "to(detach, torch.bfloat16)" in lines(graph)


def test_masks_and_shapes_stay_and_columns_keep_their_dtype():
    def write(writer, columns, weight):
        own = begins(columns)
        return ends(own * (weight > 0)[:, 0].type_as(own) * own.shape[1]).type_as(columns)

    graph = rounded(write, COLUMNS, WEIGHT)
    assert not any("to(gt" in line for line in lines(graph))
    assert run(graph, torch.randn(2, 2, 3), torch.randn(3, 3)).dtype is torch.float32


def test_totals_of_loops_are_wide():
    def write(writer, columns):
        own = begins(columns)

        def body(part):
            part.totals["t"].add_(part["own"].sum((0, 1)))

        return ends(writer.loop(body, op=None, sliced={"own": own}, chunk=2, totals={"t": (3,)})["t"])

    graph = rounded(write, COLUMNS)
    (total,) = [node for node in graph.nodes if node.target == "new_zeros"]
    assert total.kwargs["dtype"] is torch.float32
    assert not any(line.endswith("torch.float32)") for line in lines(graph)), "a wide total is not widened again"
    given = torch.randn(5, 2, 3)
    torch.testing.assert_close(run(graph, given), given.to(HALF).float().sum((0, 1)), rtol=2e-2, atol=2e-2)
