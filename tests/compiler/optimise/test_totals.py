"""Gram matrices are added to totals as they are made, and totals that would be divided by N grow over N."""

import copy

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.optimise.totals import add_to_totals, scale_as_totals_grow, write_first
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.grams import gram
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.pages import in_huge_pages
from hbpcompiler.compiler.program.writer import named
from tests.compiler.optimise.small import lines, loop, program, run, shaped
from tests.selection import few


def samples(x):
    """The batch size, as the program's first lines write it."""
    number = named(x.shape[0], "N")
    meta.play(number.node, Role.BATCH_SIZE)
    return number


def grown(way):
    """A program whose loop adds to a total in this way, and divides it by N."""
    def write(writer, x):
        number = samples(x)

        def body(part):
            if way == "gram":
                part.totals["t"].add_(gram(part["x"], axis=1))
            else:
                part.totals["t"].add_(gram(part["x"], axis=1))
                part.totals["t"].square_()

        total = writer.loop(body, op=None, sliced={"x": x}, chunk=2, totals={"t": (4, 4)})["t"]
        return named(named(total, "inputs") / number, "A")

    return shaped(program(write, "x"), (-1, 4))


def test_totals_grow_by_scaled_products():
    graph = grown("gram")
    x = torch.randn(5, 4)
    add_to_totals(loop(graph).target.body)
    check_program(graph, Level.SHAPED)
    scale_as_totals_grow(graph)
    check_program(graph, Level.SHAPED)
    torch.testing.assert_close(run(graph, x), x.t() @ x / 5)
    text = lines(graph)
    assert not any(line.startswith("truediv") for line in text)
    assert any("gram_to_" in line for line in text)
    (item,) = [node for node in graph.nodes if meta.hint(node) == "mean_inputs"]
    assert meta.shape(item) == ("4", "4")


def test_a_total_that_more_happens_to_is_left_alone():
    graph = grown("squared")
    before, x = lines(graph), torch.randn(4, 4)
    wanted = run(grown("squared"), x)
    scale_as_totals_grow(graph)
    assert lines(graph) == before
    add_to_totals(loop(graph).target.body)
    torch.testing.assert_close(run(graph, x), wanted)


def test_a_total_that_somebody_else_reads_is_divided_as_before():
    def write(writer, x):
        number = samples(x)
        total = writer.loop(lambda part: part.totals["t"].add_(gram(part["x"], axis=1)), op=None, sliced={"x": x},
                            chunk=2, totals={"t": (4, 4)})["t"]
        return total / number, total.sum()

    graph = shaped(program(write, "x"), (-1, 4))
    x = torch.randn(4, 4)
    wanted = x.t() @ x / 4, (x.t() @ x).sum()
    scale_as_totals_grow(graph)
    assert any(line.startswith("truediv") for line in lines(graph))
    torch.testing.assert_close(run(graph, x), wanted)


def begun(graph):
    """How the loop's totals begin."""
    return [node.target for node in graph.nodes if str(node.target).startswith("new_")]


@pytest.mark.parametrize("samples", [0, 1, 5])
def test_the_first_turn_writes(samples):
    """Over no samples, too, there is a turn: it writes zeros."""
    graph = grown("gram")
    add_to_totals(loop(graph).target.body)
    scale_as_totals_grow(graph)
    write_first(graph, large=17)
    assert begun(graph) == ["new_zeros"]  # too small for that
    write_first(graph, large=16)
    check_program(graph, Level.SHAPED)
    assert begun(graph) == ["new_empty"]
    x = torch.randn(samples, 4)
    torch.testing.assert_close(run(graph, x), x.t() @ x / max(1, samples))


def test_large_totals_lie_in_huge_pages():
    graph = grown("gram")
    add_to_totals(loop(graph).target.body)
    scale_as_totals_grow(graph)
    write_first(graph, large=16, pages=64)
    check_program(graph, Level.SHAPED)
    assert "large_empty(x, [4, 4])" in lines(graph)
    x = torch.randn(5, 4)
    torch.testing.assert_close(run(graph, x), x.t() @ x / 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_huge_pages_are_a_tensor_like_any_other(dtype, tmp_path):
    x = torch.ones(2, dtype=dtype)
    found = in_huge_pages(x, [3, 700])
    assert (found.shape, found.dtype, found.is_contiguous()) == ((3, 700), dtype, True)
    found.fill_(2).mul_(x[0])
    torch.save(found, tmp_path / "found.pt")
    torch.testing.assert_close(torch.load(tmp_path / "found.pt"), torch.full((3, 700), 2, dtype=dtype))
    torch.testing.assert_close(copy.deepcopy(found), found)
    assert in_huge_pages(x, [0, 4]).shape == (0, 4)
    assert in_huge_pages(x.to("meta"), [3]).is_meta


@pytest.mark.parametrize("backend", ["python", "torchscript"])
def test_a_program_with_totals_in_huge_pages(backend):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3)).double()
    X, y = torch.randn(5, 2, 4, 4, dtype=torch.float64), torch.randint(3, (5,))
    limits = hbp.Limits(huge_page_bytes=1, large_numbers=1, half_rows=2, half_columns=0, half_blocks=2,
                        route_times=(("half of a symmetric product", 0),))
    found = hbp.compile(model, quantities=["kflr"], limits=limits, backend=backend, example_inputs=(X, y))
    assert "large_empty(" in found.code
    assert "over=N * 16" in found.code or "over=batch_size * 16" in found.code  # B, over samples and positions
    plain = hbp.compile(model, quantities=["kflr"], example_inputs=(X, y))
    for name, factors in plain(X, y).kflr.items():
        own = found(X, y).kflr[name]
        torch.testing.assert_close(own.B, factors.B)
        if factors.A is not None:
            torch.testing.assert_close(own.A, factors.A)


def test_a_total_that_more_happens_to_begins_with_zeros():
    graph = grown("squared")
    add_to_totals(loop(graph).target.body)
    write_first(graph, large=1)
    assert begun(graph) == ["new_zeros"]


@few(1, "further cases of one kind")
@pytest.mark.parametrize("backend", ["python", "torchscript"])
def test_factors_whose_first_turn_writes(backend):
    """Patches in chunks, whole products and halves, in single precision, where oneDNN makes them; an empty batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 2, stride=2), nn.Tanh(),
                          nn.Flatten(), nn.Linear(16, 3))
    X, y = torch.randn(5, 2, 4, 4), torch.randint(3, (5,))
    loss = nn.CrossEntropyLoss(reduction="sum")
    wanted = hbp.compile(model, loss, ["kflr"], limits=hbp.Limits(half_rows=10**6))(X, y).kflr
    for halves, onednn in ((10**6, 10**6), (4, 1)):
        limits = hbp.Limits(large_numbers=1, cache_bytes=2000, half_rows=halves, onednn_multiply_adds=onednn,
                            onednn_rows=1,
                            route_times=(("products by distance", 100), ("half of a symmetric product", 0)))
        compiled = hbp.compile(model, loss, ["kflr"], limits=limits, backend=backend)
        found = compiled(X, y).kflr
        assert "> 0)" in compiled.code  # float(first > 0)
        for name, factors in wanted.items():
            for own, other in zip(factors, found[name], strict=True):
                torch.testing.assert_close(other, own, rtol=1e-5, atol=1e-6)
        for factors in compiled(X[:0], y[:0]).kflr.values():
            assert not any(factor.any() for factor in factors if factor is not None)
