"""Curvatures in two operands of quite different sizes: neither is rounded away."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference


class GeneralizedMean(nn.Module):
    """Pooling by a mean of powers, with a trained exponent (Radenovic et al. 2018)."""

    def __init__(self):
        super().__init__()
        self.exponent, self.last = nn.Parameter(torch.full((1,), 3.0)), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(x.clamp(min=1e-6).pow(self.exponent).mean((2, 3)).pow(1.0 / self.exponent))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_pooling_over_windows_of_zeros(dtype, tolerance):
    """The mean is 1e-18 there, the curvature in it 1e23 times that in the exponent."""
    torch.manual_seed(0)
    model = GeneralizedMean().to(dtype)
    X, y = torch.randn(6, 2, 3, 3, dtype=dtype).relu(), torch.randint(2, (6,))
    X[0, 0] = X[1, 1] = X[2] = 0
    compiled = hbp.compile(model, quantities=["diag_h", "batch_diag_h"], example_inputs=(X[3:], y[3:]))
    result = compiled(X, y)
    expected = reference(model.double(), nn.CrossEntropyLoss(), (X.double(),), y, "diag_h")
    for name, value in expected.items():
        torch.testing.assert_close(result.diag_h[name].double(), value, rtol=tolerance, atol=tolerance * 1e-3)
        torch.testing.assert_close(result.batch_diag_h[name].sum(0).double(), value, rtol=tolerance,
                                   atol=tolerance * 1e-3)


NORMS = {
    "RMSNorm": lambda h: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6),
    "layer norm": lambda h: (h - h.mean(-1, keepdim=True)) * torch.rsqrt(h.var(-1, keepdim=True) + 1e-5),
    "quotient": lambda h: (h + h.sum(-1, keepdim=True)) / (h.norm(dim=-1, keepdim=True) + 1),
    "cosines": lambda h: ((h * torch.rsqrt(h.square().sum(-1, keepdim=True))).unsqueeze(1)
                          @ torch.linspace(-1, 1, 64).to(h).reshape(8, 8)).squeeze(1),
    "whole": lambda h: h * h.square().mean(-1, keepdim=True).expand_as(h).rsqrt().contiguous(),
    "matrices": lambda h: (h.unsqueeze(2) @ h.square().mean(-1).rsqrt().reshape(-1, 1, 1)).squeeze(2),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_norms_by_hand_of_large_activations(norm):
    """As language models have them: one factor is 3000 and moves by as much, the other is its inverse."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Applied(norm), nn.Linear(8, 3))
    compiled = hbp.compile(model, quantities=["diag_h"])
    compiled(torch.randn(5, 6), torch.randint(3, (5,)))
    X, y = 3000 * torch.randn(7, 6), torch.randint(3, (7,))
    found = compiled(X, y).diag_h["0.weight"].double()
    expected = reference(model.double(), nn.CrossEntropyLoss(), (X.double(),), y, "diag_h")["0.weight"]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *given):
        return self.function(*given)


class Tempered(nn.Module):
    """f(h, t): h depends on the layer alone, and t on itself."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.t = nn.Linear(3, 4), nn.Linear(4, 2), nn.Parameter(torch.tensor(0.5))
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.first(x), self.t))


@pytest.mark.parametrize("function", [lambda h, t: h / t, torch.atan2, lambda h, t: t ** h, torch.hypot],
                         ids=["quotient", "atan2", "power", "hypot"])
def test_what_only_one_operand_depends_on_has_nothing_of_the_cross_terms(function):
    torch.manual_seed(0)
    model = Tempered(function)
    with torch.no_grad():
        model.first.bias.zero_()
    compiled = hbp.compile(model, nn.MSELoss(), quantities=["diag_h"])
    compiled(torch.randn(4, 3), torch.randn(4, 2))
    X, y = 1e-6 * torch.randn(4, 3), torch.randn(4, 2)
    found = compiled(X, y).diag_h
    for name, value in reference(model.double(), nn.MSELoss(), (X.double(),), y.double(), "diag_h").items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))


BOTH = {
    "power": lambda h, t: h.exp().pow(t).pow(1.3 / t),
    "atan2": lambda h, t: torch.atan2(h * h, t + h),
    "hypot": lambda h, t: torch.hypot(h * t, t.expand(4)),
    "logaddexp": lambda h, t: torch.logaddexp(h * t, t + h),
    "quotient": lambda h, t: (h * t) / (t + h.exp()),
}


@pytest.mark.parametrize("function", BOTH.values(), ids=BOTH)
def test_parameters_of_one_operand_and_of_both(function):
    torch.manual_seed(0)
    model = Tempered(function).double()
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    found = hbp.compile(model, nn.MSELoss(), quantities=["diag_h"], verify=False)(X, y).diag_h
    for name, value in reference(model, nn.MSELoss(), (X,), y, "diag_h").items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-13)


class Scale(nn.Module):
    """A function of a layer's outputs and a trained scale, which training has made small."""

    def __init__(self, function, scale):
        super().__init__()
        self.first, self.scale, self.last = nn.Linear(3, 4), nn.Parameter(torch.tensor([scale])), nn.Linear(4, 2)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.first(x), self.scale))


SCALES = {
    "snake": (lambda h, s: h + torch.sin(s * h) ** 2 / s, 1e-2, 5e-3),
    "temperature": (lambda h, s: torch.logsumexp(torch.stack([h, -h]) / s, 0) * s, 0.05, 1e-3),
    "a small gate": (lambda h, s: h + s * torch.tanh(h + s * h.sin()), 1e-3, 1e-4),
}


@pytest.mark.parametrize(("function", "scale", "tolerance"), SCALES.values(), ids=SCALES)
def test_small_trained_scales_in_float32(function, scale, tolerance):
    """Wrong by 27 % and 0.5 % where both parts counted alike; a gate near zero loses as many digits as its root has."""
    for seed in range(4):
        torch.manual_seed(seed)
        model = Scale(function, 1.5)
        X, y = torch.randn(4, 3), torch.randint(2, (4,))
        compiled = hbp.compile(model, F.cross_entropy, ["diag_h"], example_inputs=(X, y))
        with torch.no_grad():
            model.scale.fill_(scale)
        found = compiled(X, y).diag_h
        expected = reference(model.double(), F.cross_entropy, (X.double(),), y, "diag_h")
        for name, value in expected.items():
            error = (found[name].double() - value).abs().max() / value.abs().max()
            assert error < tolerance, f"{name}: {error:.1e}"


TOKENS = {
    "RMSNorm": lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6),
    "quotient": lambda h: h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt(),
    "whole": lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True).expand_as(h) + 1e-6).contiguous(),
    "matrices": lambda h: h.unsqueeze(-1) @ torch.rsqrt(h.square().mean(-1) + 1e-6)[..., None, None],
}


@pytest.mark.parametrize("norm", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("sizes", [(1e5, 1, 1), (1, 1e-4, 1e-4), (1, 1, 0)])
def test_positions_of_a_sequence_have_units_of_their_own(norm, sizes):
    """Some tokens of a language model are thousands of times as large as the others (Sun et al. 2024)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3, bias=False), Applied(lambda h: norm(h).reshape(h.shape).mean(1)),
                          nn.Linear(3, 2))
    compiled = hbp.compile(model, nn.MSELoss(), ["diag_h"])
    compiled(torch.randn(3, 3, 2), torch.randn(3, 2))
    X, y = torch.randn(4, 3, 2) * torch.tensor(sizes).reshape(1, 3, 1), torch.randn(4, 2)
    found = compiled(X, y).diag_h["0.weight"].double()
    expected = reference(model.double(), nn.MSELoss(), (X.double(),), y.double(), "diag_h")["0.weight"]
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))


def total(h):
    return h.abs().sum(1, keepdim=True)


class Pair(nn.Module):
    """A function of two layers' outputs."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.function, self.last = function, nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.function(self.first(x), self.second(x)))


INVARIANT = {
    "products": (lambda h, k: h * (h * k).sum(1, True) / (total(h)**2 * total(k)), 1e5),
    "matrices": (lambda h, k: (h.unsqueeze(1) @ k.unsqueeze(2)).squeeze(2) * h / (total(h)**2 * total(k)), 1e5),
    "cosines": (lambda h, k: h * k / (h.norm(dim=1, keepdim=True) * k.norm(dim=1, keepdim=True)), 1e6),
    "a share": (lambda h, k: h / (total(h) + total(k)), 1e9),
    "an inverse root": (lambda h, k: h * h.square().sum(1, True).rsqrt() + 0 * k, 1e8),
    "an inverse": (lambda h, k: h * (total(h) + total(k)).reciprocal(), 1e9),
}


@pytest.mark.parametrize(("function", "scale"), INVARIANT.values(), ids=INVARIANT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("small", [False, True])
def test_derivatives_of_any_size(function, scale, dtype, small):
    """Of functions that are the same at any scale: lengths have squares beyond the range of numbers, in float64 too."""
    torch.manual_seed(3)
    model = Pair(function).to(dtype)
    scale = scale if dtype == torch.float32 else scale**4
    compiled = hbp.compile(model, nn.MSELoss(), ["diag_h"])
    compiled(torch.randn(4, 3, dtype=dtype), torch.randn(4, 2, dtype=dtype))
    X, y = torch.randn(4, 3, dtype=dtype), torch.randn(4, 2, dtype=dtype)
    found = compiled(X / scale if small else X * scale, y).diag_h["first.weight"].double()
    expected = reference(model.double(), nn.MSELoss(), (X.double(),), y.double(), "diag_h")["first.weight"]
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


class Gated(nn.Module):
    """A recurrent step by hand, of which one layer is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(3, 3, bias=False), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = self.first(x)
        share = torch.sigmoid(self.twice(h))
        return self.last(share * h + (1 - share) * torch.tanh(self.twice(share * h)))


def test_small_values_that_meet_a_layer_twice():
    """A weight's own derivative is 1, and that of what it meets as small as that; wrong by 3 % with both alike."""
    torch.manual_seed(3)
    model = Gated()
    compiled = hbp.compile(model, nn.MSELoss(), ["diag_h"])
    compiled(torch.randn(4, 3), torch.randn(4, 2))
    X, y = torch.randn(4, 3) * 1e-2, torch.randn(4, 2)
    found = compiled(X, y).diag_h
    expected = reference(model.double(), nn.MSELoss(), (X.double(),), y.double(), "diag_h")
    for name in ("first.weight", "twice.weight", "twice.bias"):
        error = (found[name].double() - expected[name]).abs().max() / expected[name].abs().max()
        assert error < 3e-4, f"{name}: {error:.1e}"


@pytest.mark.parametrize("name", ["RMSNorm", "matrices", "cosines"])
def test_diagonals_beside_their_parts_keep_their_digits(name):
    """Columns of the parts are eigenvectors and have no units; those of the sum have their own. Parts are the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Applied(NORMS[name]), nn.Linear(8, 3))
    X, y = torch.randn(5, 6), torch.randint(3, (5,))
    alone = hbp.compile(model, quantities=["diag_h_split"], example_inputs=(X, y))(X, y).diag_h_split["0.weight"]
    compiled = hbp.compile(model, quantities=["diag_h", "batch_diag_h", "diag_h_split"])
    beside = compiled(X, y).diag_h_split["0.weight"]
    for own, other in zip(alone, beside, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)
    X, y = 3000 * torch.randn(7, 6), torch.randint(3, (7,))
    found = compiled(X, y)
    expected = reference(model.double(), nn.CrossEntropyLoss(), (X.double(),), y, "diag_h")["0.weight"]
    for value in (found.diag_h["0.weight"], found.batch_diag_h["0.weight"].sum(0)):
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_parts_of_powers_with_a_trained_exponent(pooled, dtype, tolerance):
    """Eigenvalues of quite different sizes in the base and in the exponent: the smaller one cancelled."""
    def function(h, t):
        power = (h**2 + 0.1) ** t
        return power.mean(1, keepdim=True) ** (1 / t) * h if pooled else power

    torch.manual_seed(2)
    model, loss = Tempered(function).to(dtype), nn.MSELoss()
    X, y = torch.randn(4, 3, dtype=dtype), torch.randn(4, 2, dtype=dtype)
    compiled = hbp.compile(model, loss, ["diag_h_split"], example_inputs=(X, y))
    with torch.no_grad():
        model.t.fill_(0.8)
    found = compiled(100 * X, y).diag_h_split
    for name, value in reference(model.double(), loss, (100 * X.double(),), y.double(), "diag_h").items():
        ggn, positive, negative = (part.double() for part in found[name])
        largest = float(value.abs().max())
        torch.testing.assert_close(ggn + positive - negative, value, rtol=0, atol=tolerance * largest)
