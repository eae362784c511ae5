"""diag_h_mc of residuals that are no diagonals: random sums are made where they are born, without their columns."""

import math

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.plan.steps import Birth, Sample
from hbpcompiler.reference import reference
from tests.agreement import close
from tests.selection import few, slow


class Mixed(nn.Module):
    """Of a norm, of attention (at three inputs at once), of a product of two uses of a value."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.qkv = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 12)
        self.gate, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = h + nn.functional.scaled_dot_product_attention(*self.qkv(self.norm(h)).chunk(3, -1), is_causal=True)
        return self.last(h + self.gate(h) * h).mean(1)


class Gates(nn.Module):
    """Group norms, a gate for each channel, a quotient by one, softmax and its logarithm inside the model, a norm over
    merged positions, a variance and lengths of vectors."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.squeeze = nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.Linear(4, 4)
        self.rows, self.last = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.norm(self.conv(x))
        scale = torch.hypot(self.squeeze(h.mean((2, 3))), h.mean((2, 3)))
        h = h * torch.sigmoid(scale)[:, :, None, None] / (2 + torch.tanh(scale))[:, :, None, None]
        z = self.rows(h.flatten(2).transpose(1, 2).reshape(-1, 4)).view(x.shape[0], -1, 4)
        mixed = torch.softmax(z, 1).transpose(1, 2) @ torch.log_softmax(z, 2)
        mixed = mixed / (3 + z.norm(dim=2, keepdim=True).mean(1, True) + h.var((1, 2, 3))[:, None, None])
        return self.last(mixed).mean(1)


def problem(build, *shape):
    torch.manual_seed(0)
    return build().double(), torch.randn(*shape, dtype=torch.float64), torch.tensor([0, 2, 1])[: shape[0]]


def births(compiled):
    return [step for step in compiled._current().draft.plan.flat() if isinstance(step, Birth) and step.draws]


def mean_over_signs(compiled, X, y, monkeypatch):
    """The mean of what may be drawn, in one call: as many copies of the batch as a sample has random signs, in each of
    which one of these stands alone, times the root of their number."""
    asked, start = [], 0

    def counted(keys, number, shape, like):
        asked.append(math.prod(shape))
        return like.new_ones([len(keys), *shape])

    def alone(keys, number, shape, like):
        nonlocal start
        own = like.new_zeros(len(X), total, math.prod(shape))
        own[:, range(start, start + own.shape[2]), range(own.shape[2])] = total**0.5
        start += own.shape[2]
        return own.reshape([len(keys), *shape])

    names = type(compiled.program).forward.__globals__
    with monkeypatch.context() as patch:
        patch.setitem(names, "signs_of_samples", counted)
        compiled(X, y)
        total = sum(asked)
        patch.setitem(names, "signs_of_samples", alone)
        found = compiled(X.repeat_interleave(total, 0), y.repeat_interleave(total, 0)).diag_h_mc
    assert start == total
    return found


@few(1, "further cases of one kind")
@pytest.mark.parametrize(("build", "shape", "drawn"), [
    (Mixed, (3, 4, 3), {"layer_norm", "scaled_dot_product_attention", "mul"}),
    (Gates, (2, 1, 3, 3), {"group_norm", "mul", "div", "softmax", "log_softmax", "matmul", "native_layer_norm",
                            "linalg_vector_norm", "var", "hypot"}),
])
def test_what_is_drawn_has_the_exact_diagonal_for_its_mean(build, shape, drawn, monkeypatch):
    model, X, y = problem(build, *shape)
    compiled = hbp.compile(model, quantities=["diag_h_mc"], example_inputs=(X, y), verify=False)
    found = mean_over_signs(compiled, X, y, monkeypatch)
    assert {step.operation.short for step in births(compiled)} == drawn
    for name, value in reference(model, nn.CrossEntropyLoss(), [X], y, "diag_h").items():
        close(found[name], value, name)


@slow("many calls; known signs are compared")
def test_random_signs_are_drawn_at_each_call_and_their_mean_is_the_diagonal():
    """The mean of many calls, to a few of its own deviations; and how far one with many draws is."""
    model, X, y = problem(Mixed, 3, 4, 3)
    compiled, generator = hbp.compile(model, quantities=["diag_h_mc"]), torch.Generator().manual_seed(0)
    calls = [compiled(X, y, generator=generator).diag_h_mc for _ in range(400)]
    assert {step.piece.columns for step in births(compiled)} == {2}
    several = hbp.compile(model, quantities=["diag_h_mc"], mc_samples=4, backend="torchscript")
    fewer = [several(X, y, generator=generator).diag_h_mc for _ in range(100)]
    assert {step.piece.columns for step in births(several)} == {8}
    for name, value in reference(model, nn.CrossEntropyLoss(), [X], y, "diag_h").items():
        deviations = []
        for drawn in (calls, fewer):
            found = torch.stack([call[name] for call in drawn])
            deviation = found.std(0) / len(drawn) ** 0.5
            assert ((found.mean(0) - value).abs() <= 4.5 * deviation + 1e-12).all(), name
            deviations.append(deviation.norm())
        first, second = deviations  # of as many draws in all; zero where what is exact ends
        assert 0.7 * first - 1e-12 <= second <= 1.4 * first + 1e-12, name


@slow("a second or more; shorter ones of its kind stay")
@few(1, "the other scheme")
@pytest.mark.parametrize("curvature", ["pch_abs", "pch_clip"])
def test_what_is_drawn_of_positive_curvature(curvature, monkeypatch):
    model, X, y = problem(Gates, 2, 1, 3, 3)
    options = {"curvature": curvature, "example_inputs": (X, y), "verify": False}
    compiled = hbp.compile(model, quantities=["diag_h_mc"], **options)
    found = mean_over_signs(compiled, X, y, monkeypatch)
    assert {step.piece.columns for step in births(compiled)} == {2 if curvature == "pch_abs" else 1}
    for name, value in hbp.compile(model, quantities=["diag_h"], **options)(X, y).diag_h.items():
        close(found[name], value, name)


def test_residuals_without_drawn_sums_have_their_columns_combined_unless_these_are_too_many():
    """Of sums up to each place: two columns for each are made at once and combined; or all travel."""
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(torch.logcumsumexp(self.first(x), 1))

    model, X, y = problem(Sums, 3, 3)
    found = {}
    for most in (2**28, 0):
        compiled = hbp.compile(model, quantities=["diag_h_mc"], limits=hbp.Limits(drawn_bytes=most), mc_samples=2,
                               example_inputs=(X, y))
        found[most] = {step.pieces[0].columns for step in compiled._current().draft.plan.flat()
                       if isinstance(step, Sample)}
    exact = reference(model, nn.CrossEntropyLoss(), [X], y, "diag_h")
    assert found == {2**28: {8}, 0: set()}
    for name, value in compiled(X, y).diag_h_mc.items():
        close(value, exact[name], name)


@slow("a second or more; shorter ones of its kind stay")
@few(1, "further cases of one kind")
@pytest.mark.parametrize("quantity", ["diag_h_mc", "diag_h_mc_all"])
@pytest.mark.parametrize(("build", "shape"), [
    (Mixed, (3, 4, 3)), pytest.param(Gates, (2, 1, 3, 3), marks=slow("the same loops, of more residuals"))])
def test_with_one_seed_the_draws_are_those_of_any_budget(build, shape, quantity):
    """Signs are drawn in loops over samples, of as many turns as memory says."""
    model, X, y = problem(build, *shape)
    options = {"quantities": [quantity], "mc_samples": 4, "example_inputs": (X, y), "verify": False}
    needed = hbp.compile(model, **options).predicted_memory(len(X))
    ways = [{}, {"memory_budget": int(needed * 0.9)}, {"limits": hbp.Limits(recycled_bytes=500, cache_bytes=500)}]
    found = {}
    for way in ways:
        compiled = hbp.compile(model, **options, **way)
        found[compiled.code] = compiled(X, y, generator=torch.Generator().manual_seed(1))[quantity]
    first, *others = found.values()
    assert others
    for drawn in others:
        for name, value in first.items():
            close(drawn[name], value, name)


def test_outputs_of_which_only_some_have_negative_curvature():
    """A difference of two lengths, of two outputs."""
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.first(x), self.second(x)

    def loss(output, target):
        return (output[0].norm(dim=-1) - output[1].norm(dim=-1)).mean()

    torch.manual_seed(0)
    model, X = Two().double(), torch.randn(4, 3, dtype=torch.float64)
    y = torch.zeros(4, dtype=torch.float64)
    exact = hbp.compile(model, loss, quantities=["diag_ggn"])(X, y).diag_ggn
    sampled = hbp.compile(model, loss, quantities=["diag_ggn_mc", "kfac"], mc_samples=4000)
    result = sampled(X, y, generator=torch.Generator().manual_seed(0))
    for name, value in exact.items():
        assert (result.diag_ggn_mc[name] - value).abs().max() < 0.06 * value.abs().max()
    assert (exact["first.weight"] >= 0).all()
    assert (exact["second.weight"] <= 0).all()
