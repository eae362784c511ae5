"""Weights of images are laid out pixel by pixel, results as the parameters are; nothing else is."""

import operator

import torch
import torch.nn.functional as F

from hbpcompiler.compiler.optimise.channels_last import use_channels_last
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.shapes import annotate
from hbpcompiler.compiler.program.writer import named
from tests.compiler.optimise.small import lines, program

SHAPES = {"image": (4, 2, 3, 3), "signal": (4, 2, 3), "bias": (4,), "other": (4, 2, 3, 3)}


def convolution(dtype=torch.float32):
    def write(writer, state, x):
        taken = {key: named(state[key].detach(), f"{key}_weight") for key in SHAPES}
        y = writer.call(F.conv2d, x, taken["image"], taken["bias"])
        back = writer.call(torch.ops.aten.convolution_backward, y, x, taken["image"], None, [1, 1], [0, 0], [1, 1],
                           False, [0, 0], 1, [True, True, False])
        return (y, writer.call(operator.getitem, back, 0), writer.call(operator.getitem, back, 1), taken["signal"],
                taken["other"])

    graph = program(write, "state", "x")
    annotate(graph, lambda batch: [{key: torch.empty(shape, dtype=dtype, device="meta")
                                    for key, shape in SHAPES.items()},
                                   torch.empty(batch, 2, 5, 5, dtype=dtype, device="meta")])
    return graph


def test_the_weight_and_its_gradient_are_laid_out():
    graph = convolution()
    use_channels_last(graph, {"image", "signal", "bias"})
    check_program(graph, Level.SHAPED)
    laid = [node for node in graph.nodes if node.target == "contiguous"]
    weight, gradient = laid
    assert weight.kwargs == {"memory_format": torch.channels_last}
    assert meta.hint(weight) == "image_weight"
    assert meta.hint(weight.args[0]) == ""
    assert [user.target for user in weight.users] == [F.conv2d, torch.ops.aten.convolution_backward]
    assert (gradient.args[0].args[1], gradient.kwargs) == (1, {})


def test_weights_of_no_image_stay():
    for images, dtype in ((set(), torch.float32), ({"signal", "bias"}, torch.float32), ({"image"}, torch.float64)):
        graph = convolution(dtype)
        before = lines(graph)
        use_channels_last(graph, images)
        assert lines(graph) == before
