"""Elementwise results are written over tensors that nobody reads again, and over no others."""

import operator

import pytest
import torch
import torch.nn.functional as F

from hbpcompiler.compiler.optimise.in_place import write_in_place
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.rule import standardised_back
from tests.compiler.optimise.small import calls, loop, program, run, shaped, total_of

COLUMNS = (-1, 2, 3)


def written(write, *shapes, dtype=torch.float32):
    """Calls after the pass, which leaves the numbers as they are."""
    graph = shaped(program(write, *"xyz"[: len(shapes)]), *shapes, dtype=dtype)
    given = [torch.randn([4 if length == -1 else length for length in shape], dtype=dtype) for shape in shapes]
    before = run(graph, *(tensor.clone() for tensor in given))
    write_in_place(graph)
    check_program(graph, Level.FINAL)
    copies = [tensor.clone() for tensor in given]
    torch.testing.assert_close(run(graph, *copies), before)
    assert all(map(torch.equal, copies, given)), "an argument was written to"
    return calls(graph)


def test_a_dead_product_takes_the_result():
    assert written(lambda writer, x, y: (x * y) * y, COLUMNS, COLUMNS) == ["mul", "mul_"]
    assert written(lambda writer, x, y: (x @ y).square() / 2, COLUMNS, (3, 3)) == ["matmul", "square_", "div_"]
    assert written(lambda writer, x, y: (x - y).flatten(0, 1).unflatten(0, (-1, 2)) - y, COLUMNS, COLUMNS) == [
        "sub", "flatten", "unflatten", "sub_"]


def test_arguments_and_what_is_read_again_are_kept():
    assert written(lambda writer, x, y: x * y, COLUMNS, COLUMNS) == ["mul"]
    assert written(lambda writer, x, y: x.flatten(1).unflatten(1, (2, 3)) * y, COLUMNS, COLUMNS)[-1] == "mul"

    def read_again(writer, x, y):
        product = x * y
        return product * y, product

    assert written(read_again, COLUMNS, COLUMNS) == ["mul", "mul"]

    def view_read_again(writer, x, y):
        product = x * y
        rows = product.flatten(0, 1)
        return product * y, rows.sum(0)

    assert written(view_read_again, COLUMNS, COLUMNS) == ["mul", "flatten", "mul", "sum"]


def test_a_tensor_times_itself_is_read_twice():
    def write(writer, x, y):
        product = x * y
        return product * product.flatten(0).unflatten(0, (-1, 2, 3))

    assert written(write, COLUMNS, COLUMNS)[-1] == "mul"


def test_what_grows_changes_dtype_or_is_spread_is_kept():
    assert written(lambda writer, x, y: (x * 2) * y, (-1, 1, 3), COLUMNS) == ["mul", "mul"]
    assert written(lambda writer, x, y: (x * 2).expand(-1, 2, 3) * y, (-1, 1, 3), COLUMNS) == ["mul", "expand", "mul"]
    assert written(lambda writer, x, y: (x * 2).double() * y, COLUMNS, COLUMNS)[-1] == "mul"


def test_small_tensors_do_not_pay_for_it():
    assert written(lambda writer, x, y: (x * y) * y, (-1, 3), (-1, 3)) == ["mul", "mul"]
    assert written(lambda writer, x, y: (x * y) * y, (300, 300), (300, 300)) == ["mul", "mul_"]


def test_an_einsum_of_one_may_be_a_view():
    assert written(lambda writer, x: writer.call(torch.einsum, "nki->nik", x) * 2, COLUMNS) == ["einsum", "mul"]
    assert written(lambda writer, x, y: writer.call(torch.einsum, "nki,nki->nki", x, y) * 2, COLUMNS, COLUMNS) == [
        "einsum", "mul_"]


def test_kernels_results_are_reused():
    assert written(lambda writer, x, y: writer.call(F.conv2d, x, y) * 2, (-1, 2, 5, 5), (3, 2, 2, 2)) == [
        "conv2d", "mul_"]


def test_a_loops_result_is_reused_by_its_only_reader():
    def once(writer, x):
        totals = writer.loop(lambda part: [total.add_(part["x"].sum(0)) for total in part.totals.values()], op=None,
                             sliced={"x": x}, chunk=2, totals={"t": (2, 2, 3), "u": (2, 2, 3)})
        return totals["t"] / 2, totals["u"].sum(0), totals["u"] / 2

    assert written(once, (-1, 2, 3)).count("div_") == 2


def test_bodies_are_written_in_place_too():
    graph = shaped(total_of(lambda part, whole: ((part.unsqueeze(1) * whole) * 2).sum((0, 1))), (-1, 3), (3,))
    write_in_place(loop(graph).target.body)
    assert calls(graph).count("  mul_") == 1


@pytest.mark.parametrize("whole", [False, True])
def test_what_a_body_is_given_is_never_written_to(whole):
    graph = shaped(total_of(lambda part, given: ((given if whole else part).unsqueeze(0) * 2).sum((0, 1))
                            if not whole else (given.unsqueeze(0).unsqueeze(0) * part).sum((0, 1))), (-1, 3), (3,))
    write_in_place(loop(graph).target.body)
    assert "  mul" in calls(graph)


def test_products_are_added_to_a_total_as_they_are_made():
    graph = shaped(program(lambda writer, t, x, y: t.add_(writer.call(operator.matmul, x, y)), "t", "x", "y"),
                   (2, 4), (2, 3), (3, 4))
    write_in_place(graph)
    assert calls(graph) == ["addmm_"]


def test_results_of_kernels_for_one_cotangent_are_reused():
    def write(writer, x, y):
        inner = writer.call(torch.ops.aten.threshold_backward, x.squeeze(1), y, 0).unsqueeze(1) * 2
        outer = writer.call(torch.ops.aten.native_layer_norm_backward, inner.squeeze(1), y, [3], y.mean(1, True),
                            y.mean(1, True) + 3, None, None, [True, False, False])
        return writer.call(operator.getitem, outer, 0) * y

    found = written(write, (70000, 1, 3), (70000, 3))
    assert [call for call in found if call.startswith("mul")] == ["mul_", "mul_"]


def test_a_norms_way_back_is_written_over_dead_columns():
    def write(writer, x, y, z):
        return standardised_back(x * y, z, z, True)

    def kept(writer, x, y, z):
        return standardised_back(x, y, z, True)

    shapes = COLUMNS, COLUMNS, (-1, 1, 3)
    assert written(write, *shapes) == ["mul", "standardised_back_"]
    assert written(kept, *shapes) == ["standardised_back"]


def test_the_other_factor_may_be_written_over():
    assert written(lambda writer, x, y: x[:, :1] * torch.softmax(y, 1), COLUMNS, COLUMNS)[-2:] == ["softmax", "mul_"]
    assert written(lambda writer, x, y: x[:, :1] * y, COLUMNS, COLUMNS)[-1] == "mul"
    assert written(lambda writer, x, y: x * torch.softmax(y, 1)[:, :1], COLUMNS, COLUMNS)[-1] == "mul"


def test_rows_are_added_to_zeros_where_these_lie():
    def write(writer, x, y):
        index = (y[:, 0, 0] > 0).long()
        return x.new_zeros(4, 2, 3).index_add(0, index, x)

    def of_argument(writer, x, y):
        return x.index_add(0, (y[:, 0, 0] > 0).long(), y)

    def scattered(writer, x, y):
        return torch.softmax(x, 1).scatter_add(1, (y > 0).long(), -y)

    assert written(write, COLUMNS, COLUMNS)[-1] == "index_add_"
    assert written(of_argument, COLUMNS, COLUMNS)[-1] == "index_add"
    assert written(scattered, COLUMNS, COLUMNS)[-1] == "scatter_add_"
