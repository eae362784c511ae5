"""Quantities beyond the BackPACK paper's table, against brute force."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.quantities import BATCH, WITHOUT_VECTORS
from hbpcompiler.reference import ggn_block, hessian_block, reference
from tests.agreement import agree, close
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import few, slow

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


def test_references_of_traces_and_of_what_there_is_none_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    result = hbp.compile(model, quantities=["trace_ggn", "trace_h"])(X, y)
    agree(result, model, nn.CrossEntropyLoss(), [X], y)
    with pytest.raises(ValueError, match="no reference for 'kfra'; there is one for grad, batch_grad"):
        reference(model, nn.CrossEntropyLoss(), [X], y, "kfra")


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


def test_sampled_hessian_diagonal_in_expectation_and_where_it_is_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)).double()
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.randint(0, 2, (4,))
    compiled = hbp.compile(model, quantities=["diag_h_mc"], mc_samples=3000)
    found = compiled(X, y, generator=torch.Generator().manual_seed(0)).diag_h_mc
    exact = reference(model, nn.CrossEntropyLoss(), [X], y, "diag_h")
    for name in ("2.weight", "2.bias", "4.weight", "4.bias"):
        close(found[name], exact[name], f"{name}: no residual columns have been sampled yet")
    for name in ("0.weight", "0.bias"):
        assert 0 < (found[name] - exact[name]).norm() < 0.05 * exact[name].norm()


@few(1, "further cases of one kind")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_hessian_diagonal_with_a_sampled_ggn(reduction):
    """The same draws as diag_ggn_mc and diag_h_mc in one program; its mean is the exact diagonal."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 3)).double()
    X, y = torch.randn(3, 2, 3, dtype=torch.float64), torch.randint(0, 3, (3, 2))
    loss = nn.CrossEntropyLoss(reduction=reduction)

    def of_tokens(output, target):
        return loss(output.flatten(0, 1), target.flatten())

    parts = ["diag_h_mc_all", "diag_ggn_mc", "diag_h_mc", "diag_ggn"]
    together = hbp.compile(model, of_tokens, parts, mc_samples=2)(X, y)
    many = hbp.compile(model, of_tokens, ["diag_h_mc_all"], mc_samples=5000)
    found = many(X, y, generator=torch.Generator().manual_seed(0)).diag_h_mc_all
    for name, exact in reference(model, of_tokens, [X], y, "diag_h").items():
        residual = together.diag_h_mc[name] - together.diag_ggn[name]
        close(together.diag_h_mc_all[name], together.diag_ggn_mc[name] + residual, name)
        assert 0 < (found[name] - exact).norm() < 0.05 * exact.norm(), name


def test_sampled_residual_of_a_known_draw(monkeypatch):
    """One residual crosses one layer: with the signs known, its diagonal is that of the signed sums."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    X, y = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    loss = nn.MSELoss(reduction="sum")
    noises = [torch.randint(0, 2, (3, 2, 4)).double() * 2 - 1 for _ in range(2)]
    compiled = hbp.compile(model, loss, ["diag_h_mc"], mc_samples=2, example_inputs=(X, y), verify=False)
    drawn = iter(noises)
    monkeypatch.setitem(type(compiled.program).forward.__globals__, "signs_of_samples",
                        lambda *given, **numbers: next(drawn))
    found = compiled(X, y).diag_h_mc["0.bias"]
    z = (model[1](model[0](X))).detach().requires_grad_()
    hidden = torch.tanh(z).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(model[3](hidden), y), hidden)
    residual = gradient * (-2 * hidden * (1 - hidden**2)).detach()
    total = reference(model, loss, [X], y, "diag_ggn")["0.bias"]
    for sign, noise in zip((1.0, -1.0), noises, strict=True):
        columns = noise * (sign * residual).clamp(min=0).sqrt()[:, None] / 2**0.5
        total = total + sign * (columns @ model[1].weight).detach().square().sum((0, 1))
    close(found, total, "0.bias")


def test_reduced_factors_are_exact_for_a_mean_over_positions():
    """A linear layer, then a mean over positions, one sample: reduce is the block (Eschenhagen et al. 2023)."""
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.layer(x).mean(1))

    torch.manual_seed(0)
    model, X, y = Pooled().double(), torch.randn(1, 5, 3, dtype=torch.float64), torch.tensor([1])
    factors = hbp.compile(model, quantities=["kflr_reduce"])(X, y).kflr_reduce
    for name in ("layer.weight", "head.weight"):
        block = ggn_block(model, nn.CrossEntropyLoss(), [X], y, name)
        close(torch.kron(factors[name].B, factors[name].A), block, name)


def test_expanded_factors_are_exact_for_one_input_at_all_positions_of_a_loss_per_position():
    """A loss for each position, the same input at each: expand is the block."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    X = torch.randn(1, 1, 3, dtype=torch.float64).expand(1, 4, 3).contiguous()
    y = torch.randn(1, 4, 2, dtype=torch.float64)
    factors = hbp.compile(model, nn.MSELoss(), ["kflr"])(X, y).kflr["weight"]
    close(torch.kron(factors.B, factors.A), ggn_block(model, nn.MSELoss(), [X], y, "weight"), "weight")


def test_square_root_of_a_curvature_without_known_sign_is_refused():
    model, X, y = nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2)
    with pytest.raises(hbp.UnsupportedOpError, match="sqrt_ggn: the curvature of this loss is not known"):
        hbp.compile(model, lambda output, target: ((output - target) ** 3).mean(), ["sqrt_ggn"])(X, y)


def pieces(value):
    if hasattr(value, "diagonals"):  # the same curvature is a diagonal in one program and columns in another
        parts = [torch.einsum("nk,nk...,nkz->n...z", weights, columns, columns.flatten(2)).flatten(1, -2)
                 for columns, weights in zip(value.columns, value.weights, strict=True)]
        parts += [torch.diag_embed(diagonal.flatten(1)) for diagonal in value.diagonals]
        return [sum(parts), *([] if value.operand is None else [value.operand])]
    if isinstance(value, tuple | list):
        return [piece for part in value if part is not None for piece in pieces(part)]
    return [value]


@slow("4 s; mlp_everything's golden file and random networks")
@few(1, "another network")
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(reduction="sum")])
def test_all_quantities_in_one_program_are_those_of_one_each(loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 4), nn.Sigmoid(),
                          nn.Linear(4, 3)).double()
    X = torch.randn(3, 1, 5, 5, dtype=torch.float64)
    y = torch.randn(3, 3, dtype=torch.float64) if isinstance(loss, nn.MSELoss) else torch.tensor([0, 2, 1])
    sampled = {"diag_ggn_mc", "kfac", "sqrt_ggn_mc", "kfac_reduce", "diag_h_mc", "diag_h_mc_all", "ekfac",
               "gram_mc", "cross_mc"}
    together = hbp.compile(model, loss, WITHOUT_VECTORS)(X, y, max_norm=0.5)
    for name in WITHOUT_VECTORS:
        beside = {"max_norm": 0.5} if "max_norm" in hbp.QUANTITIES[name].arguments else {}
        alone, all_of_it = hbp.compile(model, loss, [name])(X, y, **beside)[name], together[name]
        if hbp.QUANTITIES[name].per == BATCH:
            alone, all_of_it = {"": alone}, {"": all_of_it}
        for key, value in alone.items():
            found = pieces(all_of_it[key])
            assert len(found) == len(pieces(value))
            for part, expected in zip(found, pieces(value), strict=True):
                assert part.shape == expected.shape, f"{name} of {key}"
                if name not in sampled:
                    close(part, expected, f"{name} of {key}")
