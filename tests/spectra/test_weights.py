"""Spectra with weights of samples: all that they say of sum_n w_n l_n, against brute force in float64."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import Weighted
from tests.models.test_random_graphs import graphs
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import few
from tests.spectra.test_spectrum import NETWORKS, mlp
from tests.spectra.whole import Whole, check

WEIGHTS = torch.tensor([0.5, 2, 0, 1, 3, 0.1], dtype=torch.float64)
"""The first two are positive: by them a program is proven."""


def compare(model, loss, inputs, y, groups="all", weights=WEIGHTS):
    weights = weights[: len(inputs[0])]
    torch.manual_seed(0)
    spectrum = hbp.spectrum(model, loss, groups)(*inputs, y, sample_weights=weights)
    check(spectrum, Whole(model, Weighted(loss, weights), inputs, y))


@given(settings_of(st.one_of(dense_chains(), spatial_chains())))
def test_chains(setting):
    model, loss, X, y = setting
    compare(model, loss, [X], y, "layer")


@given(graphs(), st.sampled_from(["mean", "sum"]))
def test_graphs(setting, reduction):
    model, X, y = setting
    try:
        compare(model, nn.CrossEntropyLoss(reduction=reduction), [X, *model.inputs()], y)
    except hbp.UnsupportedOpError:
        assume(False)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("name", ["transformer", "tied recurrent"])
def test_attention_and_tied_weights(name):
    torch.manual_seed(0)
    make, draw = NETWORKS[name]
    model, X = make().double().eval(), draw()
    X = X.double() if X.is_floating_point() else X
    compare(model, nn.CrossEntropyLoss(reduction="sum"), [X], torch.arange(len(X)) % 2)


@pytest.mark.parametrize("groups", ["all", "layer"])
def test_ones_change_no_bit_and_a_zero_drops_its_sample(groups):
    """Also in the second pass."""
    model, X, y = mlp(5)
    compiled = hbp.spectrum(model, nn.CrossEntropyLoss(reduction="sum"), groups)
    ones, zero = torch.ones(5, dtype=torch.float64), torch.tensor([1, 1, 1, 0, 1], dtype=torch.float64)
    plain, same = (said(compiled(X, y, sample_weights=weights)) for weights in (None, ones))
    for name, value in plain.items():
        assert torch.equal(same[name], value), name
    kept = zero.bool()
    dropped, fewer = said(compiled(X, y, sample_weights=zero)), said(compiled(X[kept], y[kept]))
    for name, value in fewer.items():
        found = dropped[name][kept] if "of samples" in name else dropped[name]
        if "step" not in name:  # eigenvectors have no sign
            found, value = found.abs(), value.abs()
        torch.testing.assert_close(found, value, rtol=1e-7, atol=1e-9, msg=name)


def said(spectrum):
    """Tensors by what they are."""
    whole = {"eigenvalues": spectrum.eigenvalues, "slopes of samples": spectrum.slopes,
             "curvatures of samples": spectrum.curvatures, "vectors": spectrum.vectors(top=2),
             "step": spectrum.newton_step(top=2, damping=0.1)}
    return dict(leaves("", whole))


def leaves(name, value):
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    for key, part in value.items():
        yield from leaves(f"{name} {key}", part)
