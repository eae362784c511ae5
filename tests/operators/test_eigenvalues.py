"""SciPy, Lanczos, traces, diagonals and densities against the dense matrix."""

import numpy
import pytest
import torch
from scipy.sparse import linalg
from torch import nn

import hbpcompiler as hbp
from tests.operators.dense import same
from tests.selection import few, slow


@pytest.fixture(scope="module", params=["ggn", "hessian"])
def operator(request):
    """Of 119 rows: more than are decomposed whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3), nn.Linear(3, 2)).double()
    batch = torch.randn(9, 5, dtype=torch.float64), torch.randint(0, 2, (9,))
    return hbp.operator(model, nn.CrossEntropyLoss(), batch, request.param)


def test_scipy_takes_it(operator):
    matrix = operator.to_dense()
    scipy = operator.to_scipy()
    assert scipy.dtype == numpy.float64
    assert scipy.shape == operator.shape
    vectors = numpy.random.default_rng(0).normal(size=(len(matrix), 3))
    products = matrix.numpy() @ vectors
    for found, expected in ((scipy @ vectors, products), (scipy.T @ vectors[:, 0], products[:, 0]),
                            (scipy.matvec(vectors[:, :1]), products[:, :1])):
        numpy.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    values = linalg.eigsh(scipy, 4, which="BE", return_eigenvectors=False)
    exact = torch.linalg.eigvalsh(matrix)
    numpy.testing.assert_allclose(numpy.sort(values), torch.cat([exact[:2], exact[-2:]]).numpy(), atol=1e-10)


@few(1, "further cases of one kind")
def test_outer_eigenvalues(operator):
    matrix = operator.to_dense()
    values = torch.linalg.eigvalsh(matrix)
    expected = {"largest": values.flip(0)[:3], "smallest": values[:3],
                "magnitude": values[values.abs().argsort(descending=True)][:3]}
    for which, wanted in expected.items():
        found = operator.top(3, which)
        same(found.values, wanted, 1e-7, which)
        vectors = operator.to_flat(found.vectors)
        same(matrix @ vectors, vectors * found.values, 1e-5, which)
        same(vectors.T @ vectors, torch.eye(3, dtype=torch.float64), 1e-8, which)
    assert found.vectors["0.weight"].shape == (3, 12, 5)
    whole = operator.top(operator.shape[0])
    same(whole.values, values.flip(0), 1e-8)


def test_zeros_that_lanczos_does_not_find():
    """Of a GGN of rank 60 in 92 rows the smallest eigenvalue is there 32 times."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    batch = torch.randn(20, 6, dtype=torch.float64), torch.randint(0, 4, (20,))
    operator = hbp.operator(model, nn.CrossEntropyLoss(), batch, "ggn")
    for matrix in (operator, operator.damped(0.01)):
        same(matrix.top(2, "smallest").values, torch.linalg.eigvalsh(matrix.to_dense())[:2], 1e-12)
    with pytest.raises(hbp.NotConvergedError, match="the smallest ones of a GGN with more parameters than columns"):
        operator.top(2, "smallest", most_products=80)


def test_the_last_vectors_are_the_next_start(operator, monkeypatch):
    products = []
    times = operator._times
    monkeypatch.setattr(operator, "_times", lambda columns: products.append(len(columns[0])) or times(columns))
    operator._starts.clear()
    first = operator.top(1, "magnitude")
    cold, products[:] = sum(products), []
    second = operator.top(1, "magnitude")
    assert sum(products) <= cold
    same(second.values, first.values, 1e-8)


@few(1, "further cases of one kind")
def test_draws_are_the_operator_s_own(operator):
    """No global generator moves, and the same seed draws the same."""
    def drawn(seed):
        again = hbp.operator(operator._passes.model, operator._passes.loss, operator._data._given[0], operator.kind,
                             seed=seed)
        return [again.top(2).values, *again.estimate_trace(8), *again.estimate_diagonal(8),
                again.density(20, steps=4, vectors=2).density]

    of_torch, of_numpy = torch.get_rng_state(), numpy.random.get_state()[1].copy()
    first, second, other = drawn(3), drawn(3), drawn(4)
    assert all(torch.equal(one, same) for one, same in zip(first, second, strict=True))
    assert not any(torch.equal(one, another) for one, another in zip(first[1:], other[1:], strict=True))
    same(first[0], other[0], 1e-7)
    assert torch.equal(torch.get_rng_state(), of_torch)
    assert (numpy.random.get_state()[1] == of_numpy).all()


def test_what_cannot_be_asked_for(operator):
    for k in (0, 120, 1.5, True):
        with pytest.raises(hbp.InputError, match="k must be a whole number from 1 to 119"):
            operator.top(k)
    with pytest.raises(hbp.InputError, match="largest, smallest, magnitude"):
        operator.top(1, "LM")
    if operator.kind == "hessian":  # the GGN's rank is small enough for one basis
        _give_up(operator)
    with pytest.raises(hbp.InputError, match="at least 4 products"):
        operator.estimate_trace(3)


def _give_up(operator):
    with pytest.raises(hbp.NotConvergedError, match="of 20 eigenvalues were found in 1 products"):
        operator.top(20, "smallest", tolerance=1e-14, most_products=1)


@few(1, "further cases of one kind")
def test_exact_trace_and_diagonal_and_their_estimates(operator):
    matrix = operator.to_dense()
    same(operator.trace(), matrix.trace())
    same(operator.to_flat(operator.diagonal()), matrix.diagonal())
    value, error = operator.estimate_trace(60)
    assert abs(value - matrix.trace()) <= 5 * error + 1e-10
    assert error < 0.2 * matrix.trace().abs()
    value, error = operator.estimate_diagonal(400)
    assert ((value - matrix.diagonal()).abs() <= 6 * error + 1e-10).all()
    assert (value - matrix.diagonal()).norm() < 0.3 * matrix.diagonal().norm()


@slow("many draws")
def test_estimates_where_nothing_is_exact():
    """XTrace is unbiased, and exact for a matrix of low rank."""
    model = nn.Linear(4, 3).double()
    batch = torch.randn(2, 4, dtype=torch.float64), torch.tensor([0, 2])
    operator = hbp.operator(model, nn.CrossEntropyLoss(), batch, "fisher_sampled")
    trace = operator.to_dense().trace()
    with pytest.raises(hbp.InputError, match="nothing exact is known of kind 'fisher_sampled'"):
        operator.trace()
    same(operator.estimate_trace(8).value, trace, 1e-8)
    full = hbp.operator(model, lambda output, y: output.exp().mean(), (torch.randn(40, 4).double(), torch.zeros(40)))
    estimates = [hbp.operators.estimates.trace(full, 8, torch.Generator().manual_seed(n)) for n in range(100)]
    values = torch.stack([one.value for one in estimates])
    assert abs(values.mean() - full.to_dense().trace()) < 4 * values.std() / 10
    errors = torch.stack([one.error for one in estimates])
    assert 0.3 * values.std() < errors.square().mean().sqrt() < 3 * values.std()


@slow("many draws")
@few(1, "further cases of one kind")
def test_density(operator):
    values = torch.linalg.eigvalsh(operator.to_dense())
    grid, density = operator.density(2000, steps=40, vectors=20, width=0.05)
    assert abs(torch.trapezoid(density, grid) - 1) < 1e-3
    assert abs(torch.trapezoid(density * grid, grid) - values.mean()) < 0.1 * values.abs().mean()
    above = torch.trapezoid(density[grid > 0.1], grid[grid > 0.1])
    exact = torch.special.ndtr((values - 0.1) / 0.05).mean()
    assert abs(above - exact) < 0.03


def test_single_precision():
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 2))
    batch = torch.randn(9, 5), torch.randint(0, 2, (9,))
    found = hbp.operator(model, nn.CrossEntropyLoss(), batch).top(2)
    exact = hbp.operator(model.double(), nn.CrossEntropyLoss(), (batch[0].double(), batch[1])).top(2)
    same(found.values.double(), exact.values, 1e-4)
    assert found.values.dtype == torch.float32
