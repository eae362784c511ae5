"""Parameters as values: made of other parameters, in curved places, used several times in different ways."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

import hbpcompiler as hbp
from hbpcompiler.reference import derivative, ggn_block, hessian_block, reference
from tests.agreement import agree, close
from tests.selection import few

QUANTITIES = ["grad", "batch_grad", "batch_l2", "variance", "diag_ggn", "diag_h"]


class Scaled(nn.Module):
    """Softplus of a scale, and a quotient by a parameter of no axes."""

    def __init__(self):
        super().__init__()
        self.raw, self.temperature = nn.Parameter(torch.randn(3)), nn.Parameter(torch.rand(()) + 1)
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x)) * F.softplus(self.raw)) / self.temperature


class LowRank(nn.Module):
    """A weight plus a product of two others."""

    def __init__(self):
        super().__init__()
        self.weight, self.outer = nn.Parameter(torch.randn(4, 3)), nn.Linear(4, 2)
        self.left, self.right = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 3))

    def forward(self, x):
        return self.outer(torch.tanh(F.linear(x, self.weight + self.left @ self.right)))


class UnitRows(nn.Module):
    """Weight normalisation written out: torch's fused one has no correct second derivative to compare with."""

    def forward(self, weight):
        return weight / torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)


class Centred(nn.Module):
    def forward(self, weight):
        return weight - weight.mean(1, keepdim=True)


class SoftmaxMixture(nn.Module):
    """Weights of a mixture, a row of a table of parameters, and a transposed and sliced weight."""

    def __init__(self):
        super().__init__()
        self.logits, self.table = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(5, 4))
        self.first, self.second, self.outer = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        share = torch.softmax(self.logits, 0)
        mixed = share[0] * torch.tanh(self.first(x)) + share[1] * torch.sigmoid(self.second(x))
        return self.outer(F.linear(mixed, self.table[:4].t().exp()) + self.table[-1].sin())


class TiedEmbedding(nn.Module):
    """A language model's: the output layer is the embedding's transpose."""

    def __init__(self):
        super().__init__()
        self.embedding, self.inner = nn.Embedding(5, 3), nn.Linear(3, 3)

    def forward(self, x):
        return F.linear(torch.tanh(self.inner(self.embedding(x).mean(1))), self.embedding.weight)


def parametrized(layer, transform):
    parametrize.register_parametrization(layer, "weight", transform)
    return layer


MODELS = {
    "scaled": lambda: (Scaled(), (3,)),
    "low rank": lambda: (LowRank(), (3,)),
    "unit rows": lambda: (nn.Sequential(parametrized(nn.Linear(3, 4), UnitRows()), nn.Tanh(), nn.Linear(4, 2)), (3,)),
    "unit filters": lambda: (
        nn.Sequential(parametrized(nn.Conv2d(1, 2, 3, padding=1), UnitRows()), nn.Sigmoid(),
                      parametrized(nn.Conv2d(2, 2, 2, stride=2, groups=2), Centred()), nn.Flatten(), nn.Linear(8, 2)),
        (1, 4, 4),
    ),
    "mixture": lambda: (SoftmaxMixture(), (4,)),
    "tied embedding": lambda: (TiedEmbedding(), None),
}


def batch(shape, samples=4):
    X = torch.randint(0, 5, (samples, 3)) if shape is None else torch.randn(samples, *shape, dtype=torch.float64)
    return X, torch.randint(0, 2, (samples,))


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", list(MODELS))
def test_against_brute_force(name):
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    model = model.double()
    X, y = batch(shape)
    result = hbp.compile(model, quantities=QUANTITIES)(X, y)
    agree(result, model, nn.CrossEntropyLoss(), [X], y, QUANTITIES)


@given(seed=st.integers(0, 2**31), width=st.integers(3, 5), depth=st.integers(1, 2),
       transforms=st.lists(st.sampled_from([UnitRows, Centred, nn.Softplus, nn.Tanh]), min_size=1, max_size=3))
def test_random_parametrizations(seed, width, depth, transforms):
    torch.manual_seed(seed)
    layers = []
    for _ in range(depth):
        layer = nn.Linear(width, width)
        for transform in transforms:
            parametrized(layer, transform())
        layers += [layer, nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, 2)).double()
    X, y = batch((width,), 2)
    result = hbp.compile(model, quantities=["batch_grad", "diag_ggn", "diag_h"])(X, y)
    for quantity in result:
        for key, value in reference(model, nn.CrossEntropyLoss(), [X], y, quantity).items():
            # Beside numbers of size one: large terms may cancel in what is nearly scale invariant.
            close(result[quantity][key], value, f"{quantity} of {key}", 1 + value.abs())


def test_kronecker_factors_are_the_full_block():
    """A parameter that meets no input features has no A."""
    torch.manual_seed(0)
    model, shape = MODELS["unit rows"]()
    model = model.double()
    X, y = batch(shape)
    result = hbp.compile(model, quantities=["kflr"])(X, y)
    key = "0.parametrizations.weight.original"
    assert result.kflr[key].A is None
    close(result.kflr[key].B, ggn_block(model, nn.CrossEntropyLoss(), [X], y, key), key)
    assert result.kflr["2.weight"].A.shape == (4, 4)


def test_a_block_too_large_is_refused():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.raw = nn.Parameter(torch.randn(2, 8193))

        def forward(self, x):
            return F.linear(x, self.raw.exp())

    with pytest.raises(hbp.UnsupportedOpError, match=r"'raw' in .*its full block of 16386 x 16386 numbers"):
        hbp.compile(Wide(), quantities=["kflr"])(torch.randn(2, 8193), torch.tensor([0, 1]))


def test_torchs_weight_norm_against_differences_of_gradients():
    """torch differentiates its fused weight norm correctly once only."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).double()
    X, y = batch((3,))
    found = hbp.compile(model, quantities=["diag_h"])(X, y).diag_h
    for key, parameter in model.named_parameters():
        flat, slopes = parameter.detach().view(-1), []
        for i in range(len(flat)):
            values = []
            for step in (1e-5, -1e-5):
                flat[i] += step
                values.append(derivative(nn.functional.cross_entropy(model(X), y), parameter).flatten()[i])
                flat[i] -= step
            slopes.append((values[0] - values[1]) / 2e-5)
        torch.testing.assert_close(found[key].flatten(), torch.stack(slopes), rtol=1e-6, atol=1e-8)


def test_only_what_needs_it_becomes_a_value():
    """The layers around a scale keep their contractions, and a plain model has no such lines."""
    torch.manual_seed(0)
    compiled = hbp.compile(Scaled(), quantities=["diag_ggn"])
    compiled(torch.randn(4, 3), torch.randint(0, 2, (4,)))
    assert compiled.code.count("each_sample") > 0
    assert "g_inner_weight" not in compiled.code
    plain = hbp.compile(nn.Sequential(nn.Linear(3, 2)), quantities=["diag_ggn"])
    plain(torch.randn(4, 3), torch.randint(0, 2, (4,)))
    assert "each_sample" not in plain.code


def test_torchscript_and_other_batch_sizes():
    torch.manual_seed(0)
    model, shape = MODELS["low rank"]()
    model = model.double()
    compiled = hbp.compile(model, quantities=["diag_h"], backend="torchscript", example_inputs=batch(shape))
    for samples in (1, 6):
        X, y = batch(shape, samples)
        for key in ("left", "weight"):
            block = hessian_block(model, nn.CrossEntropyLoss(), [X], y, key)
            close(compiled(X, y).diag_h[key].flatten(), block.diagonal(), key)


class WithoutAxes(nn.Module):
    """Numbers made of parameters, and of none, that lose their last axis."""

    def __init__(self):
        super().__init__()
        self.scales, self.layer = nn.Parameter(torch.randn(4)), nn.Linear(3, 2)

    def forward(self, x):
        scale = self.scales.exp().sum().reshape(()) * self.scales[:1].sin().view([])
        return self.layer(x) * scale * torch.arange(2, 3).reshape([])


def test_one_number_without_axes():
    torch.manual_seed(0)
    model = WithoutAxes().double()
    X, y = batch((3,))
    compiled = hbp.compile(model, quantities=["grad", "diag_h"], backend="torchscript")
    result = compiled(X, y)
    agree(result, model, nn.CrossEntropyLoss(), [X], y)
