"""Quantities beyond the BackPACK paper's table, against brute force."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import ggn_block, hessian_block, reference
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.test_quantities import close

RANDOM = st.one_of(settings_of(dense_chains()), settings_of(spatial_chains()))


@given(RANDOM)
def test_shares_of_diagonals_and_traces(setting):
    model, loss, X, y = setting
    names = ["batch_diag_ggn", "batch_diag_h", "trace_ggn", "trace_h"]
    torch.manual_seed(0)
    result = hbp.compile(model, loss, names)(X, y)
    for whole in ("ggn", "h"):
        expected = reference(model, loss, [X], y, f"diag_{whole}", seed=0)
        for name, value in expected.items():
            shares = result[f"batch_diag_{whole}"][name]
            assert shares.shape == (len(X), *value.shape)
            close(shares.sum(0), value, f"batch_diag_{whole} of {name}")
            close(result[f"trace_{whole}"][name], value.sum(), f"trace_{whole} of {name}", value.abs().sum())


def test_each_share_is_its_samples_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    X, y = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    result = hbp.compile(model, quantities=["batch_diag_h", "batch_diag_ggn"])(X, y)
    for n in range(3):
        for whole in ("ggn", "h"):
            alone = reference(model, nn.CrossEntropyLoss(), [X[n : n + 1]], y[n : n + 1], f"diag_{whole}")
            for name, value in alone.items():
                close(3 * result[f"batch_diag_{whole}"][name][n], value, f"sample {n}, {name}")


@given(RANDOM)
def test_batch_dot(setting):
    model, loss, X, y = setting
    torch.manual_seed(0)
    found = hbp.compile(model, loss, ["batch_dot"])(X, y).batch_dot
    for name, value in reference(model, loss, [X], y, "batch_grad", seed=0).items():
        flat = value.flatten(1)
        close(found[name], flat @ flat.T, name)


@given(RANDOM)
def test_square_root(setting):
    model, loss, X, y = setting
    torch.manual_seed(0)
    found = hbp.compile(model, loss, ["sqrt_ggn"])(X, y).sqrt_ggn
    for name, columns in found.items():
        flat = columns.flatten(2).flatten(0, 1)
        close(flat.T @ flat, ggn_block(model, loss, [X], y, name, seed=0), name)


def test_sampled_square_root_belongs_to_the_sampled_diagonal():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 3, (5,))
    result = hbp.compile(model, quantities=["sqrt_ggn_mc", "diag_ggn_mc"], mc_samples=2)(X, y)
    for name, columns in result.sqrt_ggn_mc.items():
        assert columns.shape[:2] == (5, 2)
        close(columns.square().sum((0, 1)), result.diag_ggn_mc[name], name)


@pytest.mark.parametrize("name", ["trace_ggn", "trace_h"])
def test_trace_of_a_block(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)).double()
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    loss = nn.MSELoss(reduction="sum")
    block = ggn_block if name == "trace_ggn" else hessian_block
    for key, value in hbp.compile(model, loss, [name])(X, y)[name].items():
        close(value, block(model, loss, [X], y, key).trace(), key)
