"""Operations carried out sample by sample: orders of merged axes, parts, sample numbers, pieces; on graphs by hand."""

import torch

from hbpcompiler.compiler.match.parameters.cross_terms import with_cross_terms
from hbpcompiler.compiler.match.parameters.parameter_pieces import shared_pieces
from hbpcompiler.compiler.match.parameters.parameter_values import with_values
from hbpcompiler.compiler.match.samples.sample_numbers import with_sample_numbers
from hbpcompiler.compiler.match.samples.sample_wise import in_pieces, order_of_result, parts_stay_apart
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.rule.registry import builtin
from tests.hand_made import graph, operation, parameter, value

X, W = value("x", N, 4, 3, role="input"), parameter("w", 3)
TURNED = value("turned", 4, N, 3)


def test_which_of_samples_and_positions_is_counted_first():
    of_samples = operation("view", value("a", 4 * N, 3), {"size": [-1, 3]}, self=X)
    of_positions = operation("view", value("b", 4 * N, 3), {"size": [-1, 3]}, self=TURNED)
    mixed = operation("view", value("c", 2 * N, 6), {"size": [-1, 6]}, self=TURNED)
    orders = [order_of_result(own, set()) for own in (of_samples, of_positions, mixed)]
    assert orders == [False, True, None]
    summed = operation("add", value("d", 4 * N, 3), {"alpha": 1}, overload="Tensor", self=of_samples.output,
                       other=of_positions.output)
    assert order_of_result(summed, {"b"}) is None
    assert order_of_result(summed, {"a", "b"}) is True


def test_whole_numbers_are_indices_that_the_operation_takes():
    """Along an axis of one there is none but 0."""
    rows, places = value("rows", 4 * N, 1), value("places", 4 * N, 1, dtype=torch.int64)

    def gathered(axis):
        return operation("gather", value("out", 4 * N, 1), {"dim": axis, "sparse_grad": False}, self=rows, index=places)

    assert order_of_result(gathered(1), set()) is False
    assert parts_stay_apart(gathered(1))
    assert order_of_result(gathered(0), set()) is None
    assert not parts_stay_apart(gathered(0))


def test_parts_that_an_operation_takes_one_by_one():
    frames, out = value("frames", 2 * N, 3, 5), value("out", 2 * N, 1, 5)
    options = {"bias": None, "stride": [1], "padding": [0], "dilation": [1], "groups": 1}
    assert parts_stay_apart(operation("conv1d", out, options, input=frames, weight=parameter("k", 1, 3, 1)))
    assert not parts_stay_apart(operation("cumsum", value("s", 2 * N, 3, 5), {"dim": 0, "dtype": None}, self=frames))


def test_values_that_number_the_samples():
    empty = dict.fromkeys(("dtype", "layout", "device", "pin_memory"))
    numbers = value("numbers", N, dtype=torch.int64)
    behind = value("behind", N, 1, dtype=torch.int64)
    twice = value("twice", N, dtype=torch.int64)
    made = with_sample_numbers(graph([
        operation("arange", numbers, {"end": N, **empty}, overload="default"),
        operation("unsqueeze", behind, {"dim": 1}, self=numbers),
        operation("mul", twice, {}, overload="Tensor", self=numbers, other=numbers),
        operation("sum", value("loss"), {"dtype": None}, self=twice, in_loss=True),
    ]))
    assert {own.name: own.output.numbering for own in made.operations} == {
        "numbers": True, "behind": True, "twice": False, "loss": False}
    assert made.operations[1].tensors["self"].numbering


def test_a_norm_in_pieces_makes_the_same_value():
    norm = operation("layer_norm", value("out", N, 4, 3), {"normalized_shape": [3], "bias": None, "eps": 0.1,
                                                           "cudnn_enable": True}, input=X, weight=W)
    pieces = in_pieces(norm, builtin())
    assert pieces[-1].output == norm.output
    assert pieces[-1].target == "aten.mul"


def norms(first, second):
    """One after the other, the weights of both."""
    options = {"normalized_shape": [3], "bias": None, "eps": 0.1, "cudnn_enable": True}
    inner, outer = value("inner", N, 4, 3), value("outer", N, 4, 3)
    target = value("t", N, 4, 3, role="target")
    return graph([
        operation("layer_norm", inner, options, input=X, weight=first),
        operation("layer_norm", outer, options, input=inner, weight=second),
        operation("mse_loss", value("loss"), {"reduction": 1}, in_loss=True, **{"self": outer, "target": target}),
    ], state=list({first.name: first, second.name: second}.values()), inputs=[X], targets=[target])


def test_only_a_norm_whose_input_depends_on_its_weight_is_taken_apart():
    for second, apart in ((W, True), (parameter("w2", 3), False)):
        found = norms(W, second)
        valued = with_values(found, builtin(), lambda uses: set(uses))
        made = with_cross_terms(found, valued, builtin())
        assert (made is found) == (not apart)
        assert [own.target for own in made.operations].count("aten.layer_norm") == (1 if apart else 2)


def test_a_function_of_parameters_by_parts():
    """Interpolation takes its first axis for samples: here it is a part of the one that all samples share."""
    grid = value("grid_each", 1, 1, 2, 3, 3, shared=True)
    resize = operation("_upsample_bicubic2d_aa", value("out", 1, 2, 2, 2),
                       {"output_size": [2, 2], "align_corners": False, "scale_factors": None}, overload="vec",
                       input=parameter("grid", 1, 2, 3, 3))
    (whole,), result = shared_pieces(resize, {"input": grid}, builtin())
    assert whole.parts
    assert (result.shape, result.shared) == ((1, 1, 2, 2, 2), True)
