"""What is computed twice is computed once, and only that."""

import torch

from hbpcompiler.compiler.optimise.share import share_common_subexpressions
from tests.compiler.optimise.small import calls, lines, program, run, shaped, total_of


def test_equal_calls_are_one_and_keep_a_name():
    graph = program(lambda writer, x: (x.flatten(2), writer.call(torch.flatten, x, 2), x.flatten(2).square()), "x")
    named = [node for node in graph.nodes if node.target == "flatten"][1]
    named.meta["hint"] = "rows"
    share_common_subexpressions(graph)
    assert lines(graph) == ["flatten(x, 2)", "flatten(x, 2)", "square(flatten)"]  # a method and a function
    assert [node.meta["hint"] for node in graph.nodes if node.target == "flatten"] == ["rows"]


def test_other_arguments_types_and_keywords_are_other_calls():
    graph = program(lambda writer, x: (x * 1, x * 1.0, x * True, x.sum(1), x.sum(1, keepdim=True), x.sum(0)), "x")
    before = lines(graph)
    share_common_subexpressions(graph)
    assert lines(graph) == before


def test_equations_that_differ_in_letters_are_one():
    graph = program(lambda writer, x: (writer.call(torch.einsum, "nko,nkz->oz", x, x),
                                       writer.call(torch.einsum, "nka,nkb->ab", x, x),
                                       writer.call(torch.einsum, "nka,nkb->ba", x, x)), "x")
    share_common_subexpressions(graph)
    assert lines(graph) == ["einsum(nko,nkz->oz, x, x)", "einsum(nka,nkb->ba, x, x)"]


def test_draws_buffers_and_what_is_written_to_stay_apart():
    def write(writer, x):
        written, other = x.clone(), x.clone()
        written.add_(1)
        return (writer.call(torch.rand_like, x), writer.call(torch.rand_like, x), x.new_zeros((3,)), x.new_zeros((3,)),
                written, other)

    graph = program(write, "x")
    before = lines(graph)
    share_common_subexpressions(graph)
    assert lines(graph) == before


def test_axes_from_the_back_are_the_same_axes_once_shapes_are_known():
    graph = program(lambda writer, x: (x.flatten(2), x.flatten(-2), x.flatten(2, 3), x.sum(-1), x.sum(3),
                                       x.permute((0, 1, -1, 2)), x.permute((0, 1, 3, 2))), "x")
    share_common_subexpressions(graph)
    assert len(lines(graph)) == 7
    shaped(graph, (-1, 2, 3, 4))
    given = torch.randn(2, 2, 3, 4)
    before = run(graph, given)
    share_common_subexpressions(graph)
    assert lines(graph) == ["flatten(x, 2)", "sum(x, -1)", "permute(x, (0, 1, -1, 2))"]
    torch.testing.assert_close(run(graph, given), before)


def test_axes_that_a_method_adds_are_left_alone():
    graph = program(lambda writer, x: (x.unsqueeze(-1), x.unsqueeze(2), x.unsqueeze(1), x.unflatten(-2, (1, 2)),
                                       x.unflatten(1, (1, 2))), "x")
    shaped(graph, (2, 2))
    share_common_subexpressions(graph)
    assert calls(graph) == ["unsqueeze"] * 3 + ["unflatten"] * 2


def test_bodies_of_loops_share_too():
    graph = total_of(lambda part, whole: (part.square() * whole + part.square()).sum(0))
    (body,) = [node.target.body for node in graph.nodes if hasattr(node.target, "body")]
    share_common_subexpressions(body)
    assert calls(body).count("square") == 1


def test_a_kernel_is_asked_once_for_all_results_that_somebody_needs():
    def write(writer, gradient, x, mean, root, weight):
        def asked(*wanted):
            return writer.call(torch.ops.aten.native_layer_norm_backward, gradient, x, [4], mean, root, weight, None,
                               list(wanted))
        return asked(False, True, False)[1], asked(True, False, False)[0], asked(True, False, False)[0]

    graph = program(write, "gradient", "x", "mean", "root", "weight")
    given = [torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 1), torch.rand(3, 1), torch.randn(4)]
    before = run(graph, *given)
    share_common_subexpressions(graph)
    kernel, *_ = [node for node in graph.nodes if node.op == "call_function"]
    assert calls(graph) == ["native_layer_norm_backward", "getitem", "getitem"]
    assert kernel.args[-1] == [True, True, False]
    for one, other in zip(run(graph, *given), before, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
