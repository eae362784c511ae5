"""Inner products of columns over pairs of blocks of samples, where memory is limited, against brute force."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler import pipeline
from hbpcompiler.compiler.cost.meter import Meter
from hbpcompiler.compiler.plan.steps import SampleChunks, SamplePairs
from hbpcompiler.compiler.program.pairs import pairs_of_blocks, put_pairs_
from tests.agreement import close
from tests.quantities.test_inner_products import BruteForce
from tests.selection import few, slow
from tests.uses import USES, used

DOUBLE = torch.float64


def loops(compiled):
    return [(type(step), step.samples) for step in compiled._current().draft.plan.steps
            if isinstance(step, SampleChunks)]


def wide():
    """A network whose columns take more memory than all the rest."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 8, 3), nn.Sigmoid(), nn.MaxPool2d(2),
                          nn.Flatten(), nn.Linear(72, 9), nn.Tanh(), nn.Linear(9, 9)).double()
    return model, torch.randn(7, 1, 8, 8, dtype=DOUBLE), torch.randint(9, (7,))


@pytest.fixture
def temporaries(monkeypatch):
    """A function that lets temporaries have so many bytes from now on, as a budget does that leaves no more."""
    def allow(size):
        monkeypatch.setattr(pipeline, "within_budget", lambda make, resources, budget, batch, device: make(
            replace(resources, temporaries=size, batch=batch)))
    return allow


@pytest.mark.parametrize(("count", "block"), [(1, 1), (2, 1), (3, 1), (7, 2), (7, 3), (8, 4), (9, 4), (5, 8)])
def test_any_two_samples_meet(count, block):
    pairs = pairs_of_blocks(torch.zeros(count), block)
    met = {(n, m) for row in pairs.tolist() for n in row for m in row}
    assert met == {(n, m) for n in range(count) for m in range(count)}
    rows = torch.randn(3 * count, 3 * count)
    found = torch.full_like(rows, torch.nan)
    for samples in pairs:
        where = (3 * samples[:, None] + torch.arange(3)).flatten()
        put_pairs_(found, rows[where[:, None], where], samples)
    assert torch.equal(found, rows)


@slow("3 s; budgets and pairs each have tests")
@few(1, "another network")
@pytest.mark.parametrize("backend", ["python", "torchscript"])
def test_a_budget_sends_pairs_of_blocks_back(backend):
    model, X, y = wide()
    names = ["gram", "cross", "batch_dot", "grad"]
    whole = hbp.compile(model, quantities=names, example_inputs=(X, y))
    budget = int(0.65 * whole.predicted_memory(7))
    compiled = hbp.compile(model, quantities=names, memory_budget=budget, backend=backend)
    compiled(X, y)
    assert SamplePairs in dict(loops(compiled))
    assert compiled.predicted_memory(7) <= budget
    assert "pairs_of_blocks(" in compiled.code
    if backend == "python":  # what a call holds, all turns run
        with torch.no_grad(), Meter() as meter:
            compiled.program(compiled.state, X, y)
        assert 1.0 <= compiled.predicted_memory(7) / meter.peak <= 1.2
    assert "inner products in pairs of blocks" not in whole.explain(7)
    for rows in (7, 2, 1):  # the same program serves other batches
        result = compiled(X[:rows], y[:rows])
        expected = BruteForce(model, nn.CrossEntropyLoss(), [X[:rows]], y[:rows])
        expected.check(result.gram["all"], result.cross["all"], f"{rows} samples")
        close(sum(result.batch_dot.values()), expected.gradients @ expected.gradients.T, "batch_dot")


@slow("2 s; pairs have tests")
@few(1, "further cases of one kind")
@pytest.mark.parametrize("size", [1, 60_000])
def test_beside_what_adds_up(temporaries, size):
    """What is summed over samples goes in chunks, inner products in pairs; the numbers are those of whole batches."""
    model, X, y = wide()
    names = ["gram", "cross", "diag_h", "kflr", "variance"]
    whole = hbp.compile(model, quantities=names)(X, y)
    temporaries(size)
    compiled = hbp.compile(model, quantities=names)
    result = compiled(X, y)
    assert [kind for kind, _ in loops(compiled)] == [SampleChunks, SamplePairs]
    BruteForce(model, nn.CrossEntropyLoss(), [X], y).check(result.gram["all"], result.cross["all"], size)
    for name in ("diag_h", "variance"):
        for key, value in whole[name].items():
            close(result[name][key], value, f"{name} of {key}")
    for key, factors in whole.kflr.items():
        close(result.kflr[key].B, factors.B, f"B of {key}")


@few(1, "other pairs of uses")
@pytest.mark.parametrize("name", USES)
def test_uses_of_a_parameter_in_groups(temporaries, name):
    """Tied weights, convolutions of all kinds, attention, a recurrent layer; parameters in two groups, one in none."""
    model, X, y = used(name)
    X, y = torch.cat([X, X[:1].roll(1, 1)]), torch.cat([y, y[:1]])
    temporaries(1)
    loss, names = nn.CrossEntropyLoss(reduction="sum"), [key for key, _ in model.named_parameters()][1:]
    groups = {"first half": names[: len(names) // 2], "others": names[len(names) // 2 :]}
    compiled = hbp.compile(model, loss, ["gram", "cross"], groups=groups)
    result = compiled(X, y)
    assert loops(compiled) == [(SamplePairs, 2)]
    for group, own in groups.items():
        BruteForce(model, loss, [X], y, own).check(result.gram[group], result.cross[group], f"{group} of {name}")


@slow("chunks have tests")
def test_vectors_and_rows_in_chunks_of_samples(temporaries):
    """What a spectrum's other passes ask for: columns of small groups, sums of columns."""
    model, X, y = wide()
    names = ["sqrt_ggn", "batch_diag_h", "column_sum", "diag_ggn"]
    weights = {"all": torch.randn(7, 8, 3, dtype=DOUBLE)}
    expected = hbp.compile(model, quantities=names)(X, y, column_weights=weights)
    temporaries(1)
    compiled = hbp.compile(model, quantities=names)
    result = compiled(X, y, column_weights=weights)
    assert loops(compiled) == [(SampleChunks, 1)]
    for name in names:
        for key, value in expected[name].items():
            close(result[name][key], value, f"{name} of {key}")


@slow("a second or more; shorter ones of its kind stay")
def test_a_spectrum_keeps_to_its_budget():
    model, X, y = wide()
    whole = hbp.spectrum(model)
    expected = whole(X, y)
    budget = int(0.75 * whole.predicted_memory(7))
    compiled = hbp.spectrum(model, memory_budget=budget)
    spectrum = compiled(X, y)
    assert any(loops(first) for first in compiled._phases._first.values())
    assert compiled.predicted_memory(7) <= budget
    torch.testing.assert_close(spectrum.eigenvalues, expected.eigenvalues, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(spectrum.curvatures, expected.curvatures, rtol=1e-6, atol=1e-9)
    for key, step in expected.newton_step(top=5, damping=0.1).items():
        torch.testing.assert_close(spectrum.newton_step(top=5, damping=0.1)[key], step, rtol=1e-6, atol=1e-9)
