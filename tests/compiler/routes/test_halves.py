"""Kronecker factors by blocks of rows, mirrored: exact on random chains, taken where there is enough to leave out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.meter import Meter
from hbpcompiler.compiler.program.grams import half_gram, onednn_half_gram
from hbpcompiler.compiler.routes.factors import HalfInputFactor
from hbpcompiler.reference import kflr
from tests.agreement import close
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import few

NAME = HalfInputFactor.name


ONLY_HALVES = hbp.Limits(half_rows=4, half_columns=6, route_times=((NAME, 0),))
"""From four rows on nothing else gives a factor; of five columns or fewer all of it is made."""


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())))
def test_random_networks(setting):
    model, loss, X, y = setting
    torch.manual_seed(0)  # dropout draws the same mask as the reference
    found = hbp.compile(model, loss, ["kflr"], limits=ONLY_HALVES)(X, y).kflr
    for name, (A, B) in kflr(model, loss, [X], y, seed=0).items():
        close(found[name].B, B, f"B of {name}")
        if A is not None:
            close(found[name].A, A, f"A of {name}")


def wide(samples):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(600, 300), nn.Sigmoid(), nn.Linear(300, 4))
    return model, torch.randn(samples, 600), torch.randint(4, (samples,))


def test_signs_of_an_indefinite_curvature():
    """A factor of a loss times a negative number is the negative of the factor."""
    model, X, y = wide(3)
    model, X = model.double(), X.double()

    def negative(output, target):
        return -nn.functional.cross_entropy(output, target)

    plain, turned = (hbp.compile(model, loss, ["kflr"], limits=ONLY_HALVES)
                     for loss in (nn.CrossEntropyLoss(), negative))
    found, expected = turned(X, y).kflr, plain(X, y).kflr
    assert NAME in turned.code
    for name in ("0.weight", "2.weight"):
        close(found[name].B, -expected[name].B, name)
        close(found[name].A, expected[name].A, name)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("backend", ["python", "torchscript"])
def test_it_leaves_out_three_eighths(backend):
    model, X, y = wide(64)
    adds, results = [], []
    for halves in (False, True):
        compiled = hbp.compile(model, quantities=["kflr"], example_inputs=(X, y), backend=backend,
                               limits=ONLY_HALVES if halves else None)
        assert (NAME in compiled.code) == halves
        results.append(compiled(X, y).kflr["0.weight"].A)
        with Meter() as meter:
            compiled(X, y)
        adds.append(meter.counts.multiply_adds)
    factors_of_both = 64 * (600**2 + 300**2 + 3 * 300**2 + 3 * 4**2)  # A and B; a bias has its weight's B
    assert adds[0] - adds[1] == pytest.approx(factors_of_both * 3 / 8, rel=0.001)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    assert torch.equal(results[1], results[1].T)


@pytest.mark.parametrize(("samples", "chosen"), [(16, False), (4096, True)])
def test_it_is_taken_for_many_rows_of_positions(samples, chosen):
    """What is mirrored costs the same however many rows were summed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 3), nn.Flatten(), nn.Linear(3 * (samples // 16), 2))
    example = torch.randn(2, samples // 16, 512), torch.zeros(2, dtype=torch.long)
    code = hbp.compile(model, quantities=["kfac"], example_inputs=example).code
    (line,) = (line for line in code.splitlines() if "0.weight" in line and "operand" in line)
    assert (NAME in line) == chosen


@pytest.mark.parametrize("made", [half_gram, onednn_half_gram])
@pytest.mark.parametrize("columns", [0, 1, 5, 6, 40])
def test_all_of_it_where_columns_are_few(made, columns):
    """Of 5 columns, as of none, 6 and 40, of which half is made."""
    numbers = torch.Generator().manual_seed(columns)
    rows = torch.randn(9, columns, generator=numbers)
    weights = torch.randn(columns, generator=numbers)
    for others, expected in ((None, rows @ rows.T), (rows * weights, rows * weights @ rows.T)):
        for over in (1, 7):
            with Meter() as meter:
                found = made(rows, others, block=3, over=over, fewest=6)
            torch.testing.assert_close(found, expected / over)
            whole = 0 < columns < 6
            assert meter.counts.multiply_adds == columns * 9 * (9 if whole else 6)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("size", "samples", "positions"), [(7, 1, 1), (257, 3, 1), (300, 5, 20), (513, 85, 3)])
def test_all_of_it_is_symmetric(size, samples, positions, signed):
    """To the bit by oneDNN, to rounding by BLAS; of columns that are a view, and of two that differ in signs."""
    numbers = torch.Generator().manual_seed(size)
    columns = torch.randn(samples, size, positions, generator=numbers)
    signs = torch.where(torch.rand(samples, 1, positions, generator=numbers) < 0.5, -1.0, 1.0) if signed else 1.0
    rows = columns.double().movedim(1, 0).flatten(1)
    expected = rows @ (columns * signs).double().movedim(1, 0).flatten(1).T / 7
    for made in (half_gram, onednn_half_gram):
        found = made(columns * signs, columns if signed else None, axis=1, over=7, fewest=256)
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found, found.T, rtol=1e-4, atol=1e-4)
        assert made is half_gram or torch.equal(found, found.T)
