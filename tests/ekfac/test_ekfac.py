"""EKFAC (George et al. 2018): eigenvectors of kfac's factors, and second moments of the sampled columns in them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import Forward, ggn_block, jacobian
from tests.agreement import close
from tests.compiler.match.parameters.test_tied import MODELS as TIED
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.quantities.test_sampling import columns_drawn, small

CHAINS = st.one_of(settings_of(dense_chains()), settings_of(spatial_chains()))


def modules_of(model):
    """{parameter: its module}."""
    return {f"{path}.{name}" if path else name: module for path, module in model.named_modules()
            for name, _ in module.named_parameters(recurse=False)}


def basis(eigen, module):
    """All eigenvectors of the approximate block, as columns over the parameter laid out flat, outputs first."""
    if eigen.A is None:
        return eigen.B
    if eigen.A.dim() == 2:
        pairs = [(eigen.B, eigen.A)]
    else:
        pairs = list(zip(eigen.B, eigen.A, strict=True))
    blocks = []
    for b, a in pairs:
        if isinstance(module, nn.modules.conv._ConvTransposeNd):  # its weight is [in, out, ...]
            blocks.append(torch.einsum("oz,iy->iozy", b, a).flatten(2).flatten(0, 1))
        else:
            blocks.append(torch.kron(b, a))
    return torch.block_diag(*blocks)


def check(model, loss, X, y, samples=2):
    """Against the sampled block, whose columns the same program returns."""
    torch.manual_seed(0)
    result = hbp.compile(model, loss, ["ekfac", "kfac", "sqrt_ggn_mc"], mc_samples=samples)(X, y)
    for name, eigen in result.ekfac.items():
        Q, columns = basis(eigen, modules_of(model).get(name)), result.sqrt_ggn_mc[name].flatten(2).flatten(0, 1)
        close(Q.T @ Q, torch.eye(len(Q), dtype=Q.dtype), f"{name}: eigenvectors are orthogonal")
        close(eigen.eigenvalues.flatten(), (columns @ Q).square().sum(0), f"second moments of {name}",
              columns.square().sum())
        for factor, vectors in zip(result.kfac[name], eigen, strict=False):
            if factor is not None:
                turned = vectors.mT @ factor @ vectors
                close(turned, torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1)), f"{name}: eigenvectors", factor)
    return result


@given(CHAINS)
def test_random_networks(setting):
    check(*setting)


@pytest.mark.parametrize("name", list(TIED))
def test_tied_parameters_have_joined_factors(name):
    torch.manual_seed(0)
    model, shape = TIED[name]()
    X, y = torch.randn(3, *shape, dtype=torch.float64), torch.tensor([0, 1, 1])
    check(model.double(), nn.CrossEntropyLoss(), X, y)


@pytest.mark.parametrize("loss", ["cross entropy", "summed", "mse", "poisson"])
def test_known_samples(loss):
    """The gradients that were sampled, from the loss's own draw and the model's Jacobian."""
    model, function, X, y = small(loss=loss)
    compiled = hbp.compile(model, function, ["ekfac"], mc_samples=2)
    torch.manual_seed(5)
    found = compiled(X, y).ekfac
    columns = columns_drawn(compiled, X, y, 5)
    run = Forward(model, function, [X], y)
    scale = 1 / len(X) if function.reduction == "mean" else 1
    inputs = {"0.weight": X, "2.weight": model[1](model[0](X)).detach()}
    for name, parameter in model.named_parameters():
        rows = jacobian(run.output, parameter).view(3, 3, -1)
        gradients = torch.einsum("nkc,ncp->nkp", columns, rows).unflatten(2, parameter.shape)
        eigen = found[name]
        if name.endswith("bias"):
            block = scale * torch.einsum("nkp,nkq->pq", gradients, gradients)
            assert eigen.A is None
            close(eigen.B @ eigen.eigenvalues.diag() @ eigen.B.T, block, f"block of {name}")
            continue
        projected = torch.einsum("oz,nkoi,iy->nkzy", eigen.B, gradients, eigen.A)
        close(eigen.eigenvalues, scale * projected.square().sum((0, 1)), f"second moments of {name}")
        turned = eigen.A.T @ (inputs[name].T @ inputs[name] / len(X)) @ eigen.A
        close(turned, turned.diagonal().diag(), f"A of {name}")
        assert (turned.diagonal().diff() >= -1e-12).all()


def test_expectation():
    """In any orthogonal basis the sampled second moments have the exact block's diagonal for a mean."""
    model, function, X, y = small()
    found = hbp.compile(model, function, ["ekfac"], mc_samples=4000)(X, y, generator=torch.Generator().manual_seed(3))
    for name, eigen in found.ekfac.items():
        Q = basis(eigen, None)
        exact = (Q.T @ ggn_block(model, function, [X], y, name) @ Q).diagonal()
        assert (eigen.eigenvalues.flatten() - exact).norm() < 0.08 * exact.norm(), name


def test_one_sampled_gradient_is_met_exactly():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    result = check(model, nn.CrossEntropyLoss(), torch.randn(1, 3).double(), torch.tensor([2]), samples=1)
    for name, eigen in result.ekfac.items():
        Q, column = basis(eigen, None), result.sqrt_ggn_mc[name].flatten()
        close(Q @ eigen.eigenvalues.flatten().diag() @ Q.T, torch.outer(column, column), name)


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 3))])
def test_closer_to_the_sampled_block_than_kfac(layer):
    """What George et al. (2018, proposition 3.1) prove: no other eigenvalues in kfac's eigenvectors come closer."""
    torch.manual_seed(0)
    model = layer.double()
    X = torch.randn(20, 4).double() if isinstance(layer, nn.Linear) else torch.randn(20, 2, 3, 3).double()
    result = check(model, nn.CrossEntropyLoss(), X, torch.randint(3, (20,)))
    for name, eigen in result.ekfac.items():
        if eigen.A is not None:
            columns, Q = result.sqrt_ggn_mc[name].flatten(2).flatten(0, 1), basis(eigen, None)
            block, factors = columns.T @ columns, result.kfac[name]
            ours = (Q @ eigen.eigenvalues.flatten().diag() @ Q.T - block).norm()
            assert ours < (torch.kron(factors.B, factors.A) - block).norm()


def test_a_loss_without_curvature_has_zeros():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    found = hbp.compile(model, nn.L1Loss(), ["ekfac"])(torch.randn(3, 3), torch.randn(3, 2)).ekfac
    for name, eigen in found.items():
        assert not eigen.eigenvalues.any()
        assert eigen.eigenvalues.numel() == model.get_parameter(name).numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 3)).to(dtype)
    result = hbp.compile(model, quantities=["ekfac", "diag_ggn_mc"])(torch.randn(5, 1, 4, 4).to(dtype),
                                                                     torch.tensor([0, 2, 1, 1, 0]))
    for name, eigen in result.ekfac.items():
        assert eigen.eigenvalues.dtype == eigen.B.dtype == dtype
        trace = result.diag_ggn_mc[name].float().sum()
        assert (eigen.eigenvalues.float().sum() - trace).abs() < 10 * torch.finfo(dtype).eps * trace


def test_torchscript():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 3)).double()
    X, y = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 2, 1])
    found = [hbp.compile(model, quantities=["ekfac"], backend=backend)(X, y, generator=torch.Generator().manual_seed(0))
             for backend in ("python", "torchscript")]
    for name, eigen in found[0].ekfac.items():
        close(found[1].ekfac[name].eigenvalues, eigen.eigenvalues, name)


@pytest.mark.parametrize("backend", ["python", "torchscript"])
def test_entries_that_are_not_finite(backend):
    """Of the batch that the program is made for, and of a later one."""
    model, X, y = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    wrong = torch.where(torch.arange(4).unsqueeze(1) == 1, torch.nan, X)
    words = "torch.linalg.eigh finds no eigenvectors of .* Kronecker factor: .* NaN or infinite.*; look at the inputs"
    for before in ([], [X]):
        compiled = hbp.compile(model, quantities=["ekfac"], backend=backend)
        for x in before:
            compiled(x, y)
        with pytest.raises(hbp.InputError, match=words):
            compiled(wrong, y)
