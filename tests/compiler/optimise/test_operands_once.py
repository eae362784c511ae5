"""Patches that a block has whole are not made again chunk by chunk for their Gram matrix."""

import torch

from hbpcompiler.compiler.optimise.operands_once import form_operands_once
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.grams import gram
from hbpcompiler.rule.idioms import patches
from tests.compiler.optimise.small import calls, program, run


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
