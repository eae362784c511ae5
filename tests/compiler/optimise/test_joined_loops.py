"""Loops that make the same patches of the same samples become one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.meter import Meter
from hbpcompiler.compiler.optimise.joined_loops import join_loops
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.weights import weighted
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.reference import reference
from hbpcompiler.rule.image_patches import patches
from tests.compiler.optimise.small import lines, program, run


def two(kernel=(2, 2), chunk=2, axis=0, block="conv", read=False, weighed=(False, True)):
    """Two loops over patches of 2 x 2 of x, the second's of `kernel`; `read`: it reads what the first makes."""

    def write(writer, x, w):
        def squares(part):
            part.totals["a"].add_(patches(part["x"], [2, 2]).square().sum(0))

        def sums(part):
            factor = part.outer(first["a"]).sum() if read else 1
            part.totals["b"].add_(patches(part["x"], list(kernel)).sum((0, 2)) * factor)

        sources = [weighted(x, w) if given else x for given in weighed]
        with writer.block("conv", "backward"):
            first = writer.loop(squares, op=None, sliced={"x": sources[0]}, chunk=2, totals={"a": (4, 9)})
        with writer.block(block, "backward"):
            second = writer.loop(sums, op=None, sliced={"x": sources[1]}, chunk=chunk, axis=axis,
                                 totals={"b": (kernel[0] * kernel[1],)})
            return first["a"], second["b"] * 2

    return program(write, "x", "w")


def loops(graph):
    return [node for node in graph.nodes if isinstance(node.target, Loop)]


@pytest.mark.parametrize("weighed", [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("weights", [True, False])
def test_they_are_made_once(weighed, weights):
    x, w = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.rand(5, dtype=torch.float64) if weights else None
    graph = two(weighed=weighed)
    expected = run(two(weighed=weighed), x, w)
    join_loops(graph)
    check_program(graph, Level.DERIVED)
    (only,) = loops(graph)
    assert (only.target.totals, "  ".join(lines(graph)).count("patches(")) == (2, 1)
    torch.testing.assert_close(run(graph, x, w), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("other", [{"kernel": (2, 1)}, {"chunk": 3}, {"block": "pool"}, {"read": True},
                                   {"weighed": (True, False)}])
def test_other_loops_stay(other):
    graph = two(**other)
    before = lines(graph)
    join_loops(graph)
    assert (len(loops(graph)), lines(graph)) == (2, before)


def test_what_is_read_before_the_second_adds_to_it_stays():
    def write(writer, x):
        def sums(part):
            part.totals["b"].add_(patches(part["x"], [2, 2]).sum((0, 2)))

        begun = x.new_zeros((4,))
        with writer.block("conv", "backward"):
            other = writer.loop(sums, op=None, sliced={"x": x}, chunk=2, totals={"b": (4,)})["b"]
            read = begun + 1
            return read, other, writer.loop(sums, op=None, sliced={"x": x}, chunk=2, totals={"b": begun})["b"]

    graph = program(write, "x")
    join_loops(graph)
    assert len(loops(graph)) == 2
    assert torch.equal(run(graph, torch.randn(5, 1, 4, 4))[0], torch.ones(4))


def test_three_of_them_become_one():
    def write(writer, x):
        def sums(part):
            part.totals["b"].add_(patches(part["x"], [2, 2]).sum((0, 2)))

        with writer.block("conv", "backward"):
            return [writer.loop(sums, op=None, sliced={"x": x}, chunk=2, totals={"b": (4,)})["b"] for _ in range(3)]

    graph, x = program(write, "x"), torch.randn(5, 1, 4, 4, dtype=torch.float64)
    join_loops(graph)
    check_program(graph, Level.DERIVED)
    (only,) = loops(graph)
    assert only.target.totals == 3
    torch.testing.assert_close(torch.stack(run(graph, x)), patches(x, [2, 2]).sum((0, 2)).expand(3, -1))


def convolved():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(5 * 9, 3))
    return model.double(), torch.randn(7, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0])


LIMITS = hbp.Limits(one_by_one_bytes=0, cache_bytes=2**14, half_rows=1,
                    route_times=(("products by blocks of rows", 0), ("half of a symmetric product", 0)))


@pytest.mark.parametrize("weights", [False, True])
def test_variances_and_factors_of_a_convolution(weights):
    model, x, y = convolved()
    compiled = hbp.compile(model, quantities=["second_moment", "kflr"], example_inputs=(x, y), limits=LIMITS)
    assert compiled.code.count(" patches(x[first:") == 1
    w = torch.rand(7, dtype=torch.float64) if weights else None
    found = compiled(x, y, **({} if w is None else {"sample_weights": w}))
    each = w if weights else torch.ones(7, dtype=torch.float64)
    seen = F.unfold(x, 3, stride=2)
    expected = torch.einsum("n,nip,njp->ij", each / each.sum(), seen, seen)
    torch.testing.assert_close(found.kflr["0.weight"].A, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.kflr["0.weight"].A, found.kflr["0.weight"].A.t(), rtol=0, atol=0)
    if not weights:
        wanted = reference(model, nn.CrossEntropyLoss(), (x,), y, "second_moment")
        for name, value in wanted.items():
            torch.testing.assert_close(found.second_moment[name], value, rtol=1e-10, atol=1e-12)


def test_such_a_program_holds_what_is_predicted_and_is_scripted():
    model, x, y = convolved()
    x, y = x.repeat(9, 1, 1, 1), y.repeat(9)
    compiled = hbp.compile(model, quantities=["second_moment", "kflr"], example_inputs=(x, y), limits=LIMITS)
    with torch.no_grad():
        with Meter() as meter:
            result = compiled.program(compiled.state, x, y)
        assert result.loss > 0
        assert 1.0 <= compiled.predicted_memory(len(x)) / meter.peak <= 1.2
        for w in (None, torch.rand(len(x), dtype=torch.float64)):
            expected = compiled.program(compiled.state, x, y, w)
            found = torch.jit.script(compiled.program)(compiled.state, x, y, w)
            torch.testing.assert_close(found.kflr["0.weight"].A, expected.kflr["0.weight"].A, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(found.second_moment["0.weight"], expected.second_moment["0.weight"])
