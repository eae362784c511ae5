"""Spectra against brute force: on chains, graphs, tied weights and transformers, by all ways of making groups."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import jacobian
from tests.compiler.match.parameters.test_tied import MODELS as TIED
from tests.graph_models import MODELS
from tests.models.test_random_graphs import graphs
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.quantities.test_sampling import columns_drawn
from tests.selection import cases, few, slow
from tests.spectra.whole import Whole, by_group, check, flat, near


def mlp(samples=3, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, torch.randn(samples, 4, dtype=torch.float64), torch.arange(samples) % 3


def one(step):
    """[1, D]"""
    return flat({name: value[None] for name, value in step.items()}, step)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("groups", ["all", "layer", "parameter", [["0.weight", "2.bias"], ["2.w*"]],
                                    {"biases": ["*.bias"]}], ids=str)
def test_groups(groups):
    model, X, y = mlp()
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")):
        spectrum = hbp.spectrum(model, loss, groups)(X, y)
        check(spectrum, Whole(model, loss, [X], y))
        torch.testing.assert_close(spectrum.loss, loss(model(X), y))
        assert sorted(spectrum.grad) == sorted(name for names in spectrum.groups.values() for name in names)
    expected = {"layer": ["0", "2"], "all": ["all"], "parameter": list(spectrum.grad),
                "{'biases': ['*.bias']}": ["biases"]}
    assert list(spectrum.groups) == expected.get(str(groups), ["group0", "group1"])


@given(settings_of(st.one_of(dense_chains(), spatial_chains())))
def test_chains(setting):
    model, loss, X, y = setting
    torch.manual_seed(0)
    spectrum = hbp.spectrum(model, loss, groups="layer")(X, y)
    check(spectrum, Whole(model, loss, [X], y))


@slow("chains are compared")
@given(graphs())
def test_graphs(setting):
    model, X, y = setting
    inputs = [X, *model.inputs()]
    try:
        spectrum = hbp.spectrum(model)(*inputs, y)
    except hbp.UnsupportedOpError:
        assume(False)
    check(spectrum, Whole(model, nn.CrossEntropyLoss(), inputs, y))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 2, batch_first=True), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


NETWORKS = {
    "transformer": MODELS["transformer"],
    "resnet, smooth": MODELS["resnet, smooth"],
    "LSTM": (Recurrent, lambda: torch.randn(2, 3, 3)),
    **{f"tied {name}": (lambda make=make: make()[0], lambda make=make: torch.randn(3, *make()[1]))
       for name, make in TIED.items()},
}


@few(1, "further cases of one kind")
@pytest.mark.parametrize("name", cases(NETWORKS, ["transformer", "LSTM", "tied recurrent", "tied convolution"],
                                       "joined as the others are"))
def test_networks_that_are_no_chains(name):
    torch.manual_seed(0)
    make, draw = NETWORKS[name]
    model, X = make().double().eval(), draw()
    X = X.double() if X.is_floating_point() else X
    y = torch.arange(len(X)) % 2
    check(hbp.spectrum(model)(X, y), Whole(model, nn.CrossEntropyLoss(), [X], y))


@few(1, "further cases of one kind")
@pytest.mark.parametrize("groups", ["all", "parameter"])
def test_sampled_columns_are_those_of_the_same_draws(groups):
    """Also in the second pass, with dropout drawn anew; torch's generator moves as by one call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.4), nn.Linear(5, 3)).double()
    X, y, loss = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 2, 1]), nn.CrossEntropyLoss()
    model.eval()
    compiled = hbp.spectrum(model, loss, groups, columns="sampled", mc_samples=2)
    torch.manual_seed(5)
    spectrum = compiled(X, y)
    run = hbp.compile(model, loss, ["grad"], mc_samples=2)
    run(X, y)
    columns = columns_drawn(run, X, y, 5)
    whole = Whole(model, loss, [X], y)

    def each(names):
        rows = torch.cat([jacobian(whole.run.output, whole.run.parameters[name]) for name in names], 1).view(3, 3, -1)
        pulled = torch.einsum("nkc,ncd->nkd", columns, rows)
        return torch.einsum("nkd,nke->nde", pulled, pulled)

    check(spectrum, whole, each=each)
    model.train()
    state = torch.get_rng_state()
    spectrum = compiled(X, y)
    after = torch.get_rng_state()
    assert not torch.equal(state, after)
    for vectors in by_group(spectrum, spectrum.vectors()).values():  # those of other masks would not be orthonormal
        e = flat(vectors, vectors)
        near(e @ e.T, torch.eye(len(e), dtype=e.dtype), 1, "orthonormal", 1e-9)
    assert torch.equal(torch.get_rng_state(), after)
    generator = torch.Generator().manual_seed(3)
    spectra = [compiled(X, y, generator=generator.manual_seed(3)) for _ in range(2)]
    first, second = (by_group(spectrum, spectrum.eigenvalues) for spectrum in spectra)
    assert all(torch.equal(first[group], second[group]) for group in first)
    e = flat(*2 * [by_group(spectra[0], spectra[0].vectors())[groups.replace("parameter", "0.weight")]])
    near(e @ e.T, torch.eye(len(e), dtype=e.dtype), 1, "orthonormal", 1e-9)


def test_which_eigenvectors():
    model, X, y = mlp()
    spectrum = hbp.spectrum(model)(X, y)
    values, every = spectrum.eigenvalues, flat(spectrum.vectors(), spectrum.grad)
    for chosen, places in (({"top": 2}, [0, 1]), ({"indices": [3, 0]}, [3, 0]), ({"indices": torch.tensor([1])}, [1]),
                           ({"threshold": float(values[1])}, [0]), ({"top": 0}, []), ({"threshold": 1e9}, [])):
        near(flat(spectrum.vectors(**chosen), spectrum.grad), every[places], 1, chosen, 1e-12)
    step = spectrum.newton_step(indices=[2], damping=torch.tensor([0.5]))
    length = -float((spectrum.slopes.mean(0) / (values + 0.5))[2])
    near(one(step), length * every[2:3], abs(length), "step", 1e-9)
    assert all(not value.any() for value in spectrum.newton_step(top=0, damping=1.0).values())

    apart = hbp.spectrum(model, groups="parameter")(X, y)
    found = apart.vectors(top={"2.bias": 1})
    assert {group: len(vectors[group]) for group, vectors in found.items()} == {
        "0.weight": 0, "0.bias": 0, "2.weight": 0, "2.bias": 1}
    steps = apart.newton_step(top={"2.bias": 1, "0.weight": 2}, damping=dict.fromkeys(found, 0.5))
    assert [bool(step[group].any()) for group, step in steps.items()] == [True, False, False, True]


@few(1, "further cases of one kind")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_slopes_of_other_samples(reduction):
    """Curvature on some, gradients on others; for a sum the gradient counts as that of the curvature's N samples."""
    model, X, y = mlp(7)
    loss = nn.CrossEntropyLoss(reduction=reduction)
    for groups in ("all", "layer"):
        spectrum = hbp.spectrum(model, loss, groups)(X[:3], y[:3])
        slopes = spectrum.slopes_of(X[3:], y[3:])
        whole, others = Whole(model, loss, [X[:3]], y[:3]), Whole(model, loss, [X[3:]], y[3:])
        first = spectrum.slopes_of(X[3:], y[3:], top=2)
        step = by_group(spectrum, spectrum.newton_step(top=2, damping=0.1, slopes=first))
        vectors, slopes = by_group(spectrum, spectrum.vectors()), by_group(spectrum, slopes)
        for group, names in spectrum.groups.items():
            e, values = flat(vectors[group], names), by_group(spectrum, spectrum.eigenvalues)[group]
            expected = others.gradients(names) @ e.T
            near(slopes[group], expected, expected.abs().max(), "slopes", 1e-10)
            lengths = -expected.mean(0)[:2] * 3 * whole.c / (values[:2] + 0.1)
            near(one(step[group]), (lengths @ e[:2])[None], lengths.abs().max(), "step", 1e-10)


def test_damping_as_a_function_sees_what_the_spectrum_says():
    model, X, y = mlp()
    spectrum = hbp.spectrum(model)(X, y)
    seen = []

    def damping(eigenvalues, slopes, curvatures):
        seen.extend((eigenvalues, slopes, curvatures))
        return torch.tensor([0.5, torch.inf, 2.0])

    step = spectrum.newton_step(indices=[0, 1, 4], damping=damping)
    for found, expected in zip(seen, (spectrum.eigenvalues, spectrum.slopes, spectrum.curvatures), strict=True):
        assert torch.equal(found, expected[..., [0, 1, 4]])
    e, values = flat(spectrum.vectors(indices=[0, 4]), step), spectrum.eigenvalues[[0, 4]]
    lengths = -spectrum.slopes.mean(0)[[0, 4]] / (values + torch.tensor([0.5, 2.0]))
    near(one(step), (lengths @ e)[None], 1, "step", 1e-9)
    for groups in ("all", "layer"):
        steps = hbp.spectrum(model, groups=groups)(X, y).newton_step(top=2, damping="bootstrap")
        assert len(steps) == (4 if groups == "all" else 2)


def test_zeros_are_dropped_and_counted():
    """A sample laid twice gives no new directions; a class too many is none; without curvature there is nothing."""
    model, X, y = mlp(2)
    spectrum = hbp.spectrum(model)(X.repeat(2, 1), y.repeat(2))
    assert (len(spectrum.eigenvalues), spectrum.dropped) == (4, 4)  # of 4 samples times 3 - 1 columns
    whole = Whole(model, nn.CrossEntropyLoss(), [X.repeat(2, 1)], y.repeat(2))
    check(spectrum, whole)
    spectrum = hbp.spectrum(model)(X[:1], y[:1])
    assert len(spectrum.eigenvalues) == 2
    check(spectrum, Whole(model, nn.CrossEntropyLoss(), [X[:1]], y[:1]))
    assert len(hbp.spectrum(model, tolerance=0.5)(X, y).eigenvalues) < 4

    still = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
    spectrum = hbp.spectrum(still, nn.MSELoss())(torch.zeros(4, 3).double(), torch.ones(4, 2).double())
    assert (len(spectrum.eigenvalues), spectrum.dropped) == (0, 6)
    assert spectrum.slopes.shape == spectrum.curvatures.shape == (4, 0)
    assert spectrum.vectors()["0.weight"].shape == (0, 2, 3)
    assert not spectrum.newton_step(damping=1.0)["0.weight"].any()
    assert spectrum.slopes_of(torch.zeros(4, 3).double(), torch.ones(4, 2).double()).shape == (4, 0)


@pytest.mark.parametrize("groups", ["all", "parameter"])
def test_a_parameter_that_is_one_number(groups):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(0.7))

        def forward(self, x):
            return self.layer(x) * self.scale

    torch.manual_seed(0)
    model, X, y = Scaled().double(), torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1])
    check(hbp.spectrum(model, groups=groups)(X, y), Whole(model, nn.CrossEntropyLoss(), [X], y))


def test_a_parameter_that_influences_nothing():
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.other = nn.Linear(3, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    model, X, y = Model().double(), torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1])
    with pytest.warns(hbp.UnusedParametersWarning, match="other"):
        spectrum = hbp.spectrum(model, groups="layer")(X, y)
    assert len(spectrum.eigenvalues["other"]) == 0
    assert spectrum.vectors()["other"] == spectrum.newton_step(damping=1.0)["other"] == {}
    assert list(spectrum.vectors()["used"]) == ["used.weight", "used.bias"]


def test_float32_is_as_good_as_its_rounding():
    model, X, y = mlp(5)
    exact = hbp.spectrum(model)(X, y)
    spectrum = hbp.spectrum(model.float())(X.float(), y)
    count = len(spectrum.eigenvalues)
    assert count <= len(exact.eigenvalues)
    assert all(value.dtype == torch.float32 for value in (spectrum.eigenvalues, spectrum.slopes, spectrum.curvatures,
                                                           *spectrum.vectors(top=1).values()))
    near(spectrum.eigenvalues.double(), exact.eigenvalues[:count], exact.eigenvalues[0], "eigenvalues", 1e-6)
    near(spectrum.slopes[:, :2].abs().double(), exact.slopes[:, :2].abs(), exact.slopes.abs().max(), "slopes", 1e-4)
