"""Patches that a block has whole are not made again chunk by chunk."""

import torch

from hbpcompiler.compiler.optimise.operands_once import form_operands_once
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.grams import gram
from hbpcompiler.rule.image_patches import patches
from tests.compiler.optimise.small import calls, loop, program, run


def written(kernel):
    def write(writer, x):
        def body(part):
            part.totals["t"].add_(gram(patches(part["x"], [2, 2]), axis=1))

        with writer.block("conv", "backward"):
            whole = patches(x, kernel)
            total = writer.loop(body, op=None, sliced={"x": x}, chunk=2, totals={"t": (4, 4)})["t"]
            return whole.sum(), total

    return program(write, "x")


def test_what_is_there_whole_is_taken():
    graph, x = written([2, 2]), torch.randn(5, 1, 4, 4)
    before = run(graph, x)[1]
    form_operands_once(graph)
    check_program(graph, Level.DERIVED)
    assert calls(graph) == ["patches", "sum", "gram"] or calls(graph) == ["patches", "gram", "sum"]
    torch.testing.assert_close(run(graph, x)[1], before)


def test_other_patches_are_not():
    graph = written([3, 3])
    before = calls(graph)
    form_operands_once(graph)
    assert calls(graph) == before


def squared(kernel):
    """A loop that squares patches, made of its chunk, in a block that has others whole."""

    def write(writer, x):
        def body(part):
            part.totals["t"].add_(patches(part["x"], [2, 2]).square().sum(0))

        with writer.block("conv", "backward"):
            total = writer.loop(body, op=None, sliced={"x": x}, chunk=2, totals={"t": (4, 9)})["t"]
            return patches(x, kernel).sum(), total

    return program(write, "x")


def test_a_loop_cuts_what_is_there_whole_though_it_is_made_later():
    graph, x = squared([2, 2]), torch.randn(5, 1, 4, 4)
    form_operands_once(graph)
    check_program(graph, Level.DERIVED)
    assert calls(graph).count("patches") == 1
    assert "patches" not in calls(loop(graph).target.body)
    torch.testing.assert_close(run(graph, x), run(squared([2, 2]), x))


def test_a_loop_makes_patches_that_nobody_has_whole():
    graph = squared([3, 3])
    form_operands_once(graph)
    assert "patches" in calls(loop(graph).target.body)
