"""Fewer columns where a network narrows: the same curvature from as many columns as a value has numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.derive.compression import compressed
from tests.agreement import close
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.quantities.test_quantities import EXACT, check_exact
from tests.selection import few, slow


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 5), st.booleans(), st.booleans())
def test_the_sum_of_outer_products_is_kept(samples, size, more, signed, singular):
    torch.manual_seed(0)
    columns = torch.randn(samples, size + more, size, dtype=torch.float64)
    if singular:
        columns[:, :, 0] = 0
    signs = torch.randn(samples, size + more, dtype=torch.float64).sign() if signed else None
    fewer, own = compressed(columns, signs, (size,))
    assert fewer.shape == (samples, size, size)
    weights = [torch.ones(one.shape[:2], dtype=torch.float64) if sign is None else sign
               for one, sign in ((columns, signs), (fewer, own))]
    before, after = (torch.einsum("nk,nka,nkb->nab", weight, one, one)
                     for weight, one in zip(weights, (columns, fewer), strict=True))
    close(after, before, "sum of outer products", torch.ones_like(before))


SOON = hbp.Limits(compressed_growth=2)


def autoencoder(activation=nn.Sigmoid):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 6), activation(), nn.Linear(6, 2), activation(), nn.Linear(2, 6), activation(),
                          nn.Linear(6, 40)).double()
    return model, torch.randn(3, 40, dtype=torch.float64), torch.randn(3, 40, dtype=torch.float64)


@slow("compression has tests")
@few(1, "further cases of one kind")
@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.ReLU])
def test_an_autoencoder_is_compressed_at_its_code(activation):
    model, X, y = autoencoder(activation)
    quantities = ["diag_ggn", "diag_h"]
    compiled, result = check_exact(model, nn.MSELoss(), X, y, quantities, limits=SOON)
    assert "torch.linalg.qr" in compiled.code
    assert ("torch.linalg.eigh" in compiled.code) == (activation is nn.Sigmoid)
    assert "compressed" in compiled.explain()
    scripted = torch.jit.script(compiled.program)(compiled.state, X, y)
    close(scripted.diag_h["0.weight"], result.diag_h["0.weight"], "scripted")
    factors, plain = (hbp.compile(model, nn.MSELoss(), ["kflr"], limits=limits)(X, y).kflr
                      for limits in (SOON, hbp.Limits(compressed_columns=10**6)))
    for name, factor in plain.items():
        close(factors[name].B, factor.B, f"B of {name}")


@pytest.mark.parametrize("quantities", [["sqrt_ggn"], ["diag_h_split"]])
def test_where_the_columns_themselves_matter_they_stay(quantities):
    """Columns that are returned, and parts by sign, which another choice of columns would change."""
    model, X, y = autoencoder(nn.ReLU if quantities == ["sqrt_ggn"] else nn.Sigmoid)
    code = hbp.compile(model, nn.MSELoss(), quantities, example_inputs=(X, y), limits=SOON).code
    assert "linalg.eigh" not in code
    assert quantities == ["diag_h_split"] or "linalg" not in code


def test_half_precision_is_left_alone():
    model, X, y = autoencoder()
    model, X, y = model.bfloat16(), X.bfloat16(), y.bfloat16()
    code = hbp.compile(model, nn.MSELoss(), ["diag_h"], example_inputs=(X, y), limits=SOON).code
    assert "linalg" not in code


@slow("random networks; fixed ones are beside it")
@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())))
def test_random_networks_compressed_everywhere(setting):
    always = hbp.Limits(compressed_columns=1, compressed_growth=0)
    check_exact(*setting, [name for name in EXACT if "split" not in name], limits=always)
