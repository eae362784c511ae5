"""Curvature schemes, against brute force that takes each module's residual apart into its eigenvectors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import derivative, jacobian, reference
from tests.agreement import close
from tests.graph_models import FEW_MODELS, made
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import few, slow

CHAINS = st.one_of(settings_of(dense_chains()), settings_of(spatial_chains()))
EIGENVALUES = {
    "hessian": lambda values: values,
    "ggn": torch.zeros_like,
    "pch_abs": torch.abs,
    "pch_clip": lambda values: values.clamp(min=0),
}
SCHEMES = list(EIGENVALUES)


def diagonals(model, loss, x, y, curvature):
    """{parameter: (GGN part, residual part)} of a chain: matrices [z, z] per sample, from module to module."""
    modules = [module for module in model.modules() if not isinstance(module, nn.Sequential)]
    values = [x]
    for module in modules:
        values.append(module(values[-1].clone()).detach())
    leaf = values[-1].clone().requires_grad_()
    gradient = derivative(loss(leaf, y), leaf, keep=True)
    size, samples = leaf[0].numel(), len(x)
    whole = jacobian(gradient, leaf).view(samples, size, samples, size)
    gradient = gradient.detach()
    blocks = [[whole[n, :, n, :], torch.zeros(size, size).double()] for n in range(samples)]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for module, before in zip(reversed(modules), reversed(values[:-1]), strict=True):
        slopes = torch.zeros_like(before)
        for n in range(samples):
            given = before[n : n + 1].clone().requires_grad_()
            output = module(given.clone())
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad:
                    rows = jacobian(output, parameter)
                    parts = [(rows.T @ block @ rows).diagonal().view_as(parameter) for block in blocks[n]]
                    old = found.get(names[id(parameter)], [0, 0])
                    found[names[id(parameter)]] = [a + b for a, b in zip(old, parts, strict=True)]
            rows = jacobian(output, given)
            slope = derivative((output * gradient[n : n + 1]).sum(), given, keep=True)
            eigenvalues, vectors = torch.linalg.eigh(jacobian(slope, given))
            residual = vectors @ EIGENVALUES[curvature](eigenvalues).diag() @ vectors.T
            blocks[n] = [rows.T @ blocks[n][0] @ rows, rows.T @ blocks[n][1] @ rows + residual]
            slopes[n] = slope.detach()[0]
        gradient = slopes
    return found


def agree(model, loss, x, y, curvature):
    model.eval()
    result = hbp.compile(model, loss, ["diag_h", "batch_diag_h", "trace_h"], curvature=curvature)(x, y)
    split = hbp.compile(model, loss, ["diag_h_split"], curvature=curvature)(x, y).diag_h_split
    scales = reference(model, loss, [x], y, "diag_ggn")
    for name, (ggn, residual) in diagonals(model, loss, x, y, curvature).items():
        scale = scales[name].abs() + ggn.abs() + residual.abs()
        close(result.diag_h[name], ggn + residual, f"diag_h of {name}", scale)
        close(result.batch_diag_h[name].sum(0), ggn + residual, f"batch_diag_h of {name}", scale)
        close(result.trace_h[name], (ggn + residual).sum(), f"trace_h of {name}", scale.sum())
        close(split[name].positive - split[name].negative, residual, f"residual parts of {name}", scale)
        if curvature != "hessian":
            assert not split[name].negative.any()


@given(CHAINS, st.sampled_from(SCHEMES))
def test_chains_against_eigenvalues_of_each_module(setting, curvature):
    agree(*setting, curvature)


class Own(nn.Module):
    """A module of one operation whose residual is no diagonal, though its factor has the residual's eigenvectors."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


FUNCTIONS = {
    "log-softmax": lambda x: torch.log_softmax(x, 1),
    "logsumexp": lambda x: torch.logsumexp(x, 1, keepdim=True),
    "norm": lambda x: x.norm(dim=1, keepdim=True),
    "variance": lambda x: x.var(1, keepdim=True),
    "product": lambda x: x[:, :2] * x[:, 2:],
    "quotient": lambda x: x[:, :2] / x[:, 2:],
    "square": lambda x: x * x,
    "angle": lambda x: torch.atan2(x[:, :2], x[:, 2:]),
    "hypotenuse": lambda x: torch.hypot(x[:, :2], x[:, 2:]),
}


@few(2, "further cases of one kind")
@pytest.mark.parametrize("curvature", ["pch_clip", pytest.param("pch_abs", marks=slow("the same columns, all kept"))])
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_operations_whose_factor_has_the_eigenvectors(name, curvature):
    torch.manual_seed(0)
    function = Own(FUNCTIONS[name])
    width = function(torch.ones(1, 4)).shape[1]
    model = nn.Sequential(nn.Linear(3, 4), function, nn.Linear(width, 3), nn.Sigmoid(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].bias += 2
    X, y = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1])
    agree(model, nn.CrossEntropyLoss(), X, y, curvature)


@slow("schemes are compared with brute force")
@few(1, "other networks")
@pytest.mark.parametrize("name", FEW_MODELS)
def test_positive_schemes_bound_the_hessian(name):
    """On any graph: the GGN <= clip <= abs, the Hessian <= clip, and abs + Hessian = 2 clip (less the GGN)."""
    model, x, y = made(name)
    found = {scheme: hbp.compile(model, quantities=["diag_h"], curvature=scheme)(x, y).diag_h for scheme in SCHEMES}
    ggn = reference(model, nn.CrossEntropyLoss(), [x], y, "diag_ggn")
    for key, exact in reference(model, nn.CrossEntropyLoss(), [x], y, "diag_h").items():
        least = -1e-10 * (1 + exact.abs().max())
        close(found["hessian"][key], exact, f"hessian of {key}")
        close(found["ggn"][key], ggn[key], f"ggn of {key}", exact.abs() + ggn[key])
        clip, absolute = found["pch_clip"][key], found["pch_abs"][key]
        assert (clip - ggn[key]).min() >= least
        assert (clip - exact).min() >= least
        assert (absolute - clip).min() >= least
        close(absolute + exact, 2 * clip, f"halves of {key}", absolute)


def test_where_residuals_are_positive_the_schemes_are_the_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        model[2].weight.abs_()
    X = torch.randn(5, 3, dtype=torch.float64)
    y = model(X).detach() - 1  # every output is too large: the gradient is positive everywhere
    exact = reference(model, nn.MSELoss(), [X], y, "diag_h")
    for scheme in ("pch_abs", "pch_clip"):
        for name, value in hbp.compile(model, nn.MSELoss(), ["diag_h"], curvature=scheme)(X, y).diag_h.items():
            close(value, exact[name], name)


@pytest.mark.parametrize("curvature", ["pch_abs", "pch_clip"])
def test_sampled_diagonal_of_known_draws(curvature, monkeypatch):
    """One residual crosses one layer: mc_samples columns of one sign, with the signs known."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    X, y, loss = torch.randn(3, 2).double(), torch.randn(3, 2).double(), nn.MSELoss(reduction="sum")
    noise = torch.randint(0, 2, (3, 2, 4)).double() * 2 - 1
    compiled = hbp.compile(model, loss, ["diag_h_mc"], mc_samples=2, curvature=curvature, example_inputs=(X, y),
                           verify=False)
    monkeypatch.setitem(type(compiled.program).forward.__globals__, "signs_of_samples",
                        lambda *drawn, **numbers: noise)
    found = compiled(X, y).diag_h_mc["0.bias"]
    hidden = torch.tanh(model[1](model[0](X))).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(model[3](hidden), y), hidden)
    residual = EIGENVALUES[curvature](gradient * (-2 * hidden * (1 - hidden**2)).detach())
    columns = (noise * residual.sqrt()[:, None] / math.sqrt(2)) @ model[1].weight.detach()
    close(found, reference(model, loss, [X], y, "diag_ggn")["0.bias"] + columns.square().sum((0, 1)), "0.bias")


def test_without_residuals_tied_parameters_are_no_obstacle():
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(3, 2)).double()
    X, y = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1])
    found = hbp.compile(model, quantities=["diag_h"], curvature="ggn")(X, y).diag_h
    for name, value in reference(model, nn.CrossEntropyLoss(), [X], y, "diag_ggn").items():
        close(found[name], value, name)


def test_the_file_says_which_curvature_it_computes():
    model, batch = nn.Sequential(nn.Linear(3, 2), nn.Tanh()), (torch.zeros(2, 3), torch.tensor([0, 1]))
    plain = hbp.compile(model, quantities=["diag_h"], example_inputs=batch).code
    clipped = hbp.compile(model, quantities=["diag_h"], curvature="pch_clip", example_inputs=batch).code
    assert "Curvature" not in plain
    assert "Curvature pch_clip: residuals without their negative eigenvalues." in clipped


@pytest.mark.parametrize("curvature", ["GGN", None, 1])
def test_an_unknown_scheme_is_refused(curvature):
    with pytest.raises(hbp.CompileError, match="is unknown; choose one of hessian, ggn, pch_abs, pch_clip"):
        hbp.compile(nn.Linear(3, 2), quantities=["diag_h"], curvature=curvature)
