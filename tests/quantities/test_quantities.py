"""Every quantity on random networks, shapes, batch sizes and losses, in float64 against brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import ggn_block, kflr, kfra, reference
from tests.agreement import close
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import few

EXACT = ["grad", "batch_grad", "batch_l2", "batch_inner", "second_moment", "variance", "diag_ggn", "diag_h"]
THOROUGH = settings(max_examples=2 * settings().max_examples)


def check_exact(model, loss, X, y, quantities, **options):
    compiled = hbp.compile(model, loss, quantities, **options)
    torch.manual_seed(0)
    result = compiled(X, y)
    for quantity in quantities:
        expected = reference(model, loss, [X], y, quantity, seed=0)
        assert result[quantity].keys() == expected.keys()
        # A variance is a difference of moments, exact to their rounding.
        scales = reference(model, loss, [X], y, "second_moment", seed=0) if quantity == "variance" else expected
        for name, value in expected.items():
            close(result[quantity][name], value, f"{quantity} of {name}", scales[name])
    return compiled, result


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())))
@THOROUGH
def test_all_exact_quantities_together(setting):
    _, result = check_exact(*setting, EXACT)
    assert torch.isfinite(result.loss)


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())), st.sampled_from(EXACT))
@THOROUGH
def test_each_quantity_alone(setting, quantity):
    check_exact(*setting, [quantity])


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())))
@THOROUGH
def test_split_adds_up_and_parts_are_not_negative(setting):
    model, loss, X, y = setting
    torch.manual_seed(0)
    split = hbp.compile(model, loss, ["diag_h_split"])(X, y).diag_h_split
    whole = reference(model, loss, [X], y, "diag_h", seed=0)
    ggn = reference(model, loss, [X], y, "diag_ggn", seed=0)
    for name, parts in split.items():
        assert (parts.positive >= 0).all()
        assert (parts.negative >= 0).all()
        close(parts.ggn, ggn[name], f"ggn of {name}")
        close(parts.ggn + parts.positive - parts.negative, whole[name], f"sum of {name}")


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())))
@THOROUGH
def test_kflr(setting):
    model, loss, X, y = setting
    torch.manual_seed(0)
    found = hbp.compile(model, loss, ["kflr"])(X, y).kflr
    expected = kflr(model, loss, [X], y, seed=0)
    for name, factors in found.items():
        if name not in expected:  # the scale of a norm or a PReLU has its full block
            close(factors.B, ggn_block(model, loss, [X], y, name, seed=0), f"block of {name}")
            continue
        A, B = expected[name]
        close(factors.B, B, f"B of {name}")
        assert (factors.A is None) == (A is None)
        if A is not None:
            close(factors.A, A, f"A of {name}")


def test_kflr_of_one_sample_is_the_exact_block():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    X, y = torch.randn(1, 3, dtype=torch.float64), torch.tensor([2])
    factors = hbp.compile(model, quantities=["kflr"])(X, y).kflr
    for name in ("0.weight", "2.weight"):
        block = ggn_block(model, nn.CrossEntropyLoss(), [X], y, name)
        close(torch.kron(factors[name].B, factors[name].A), block, name)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ragged_and_single_batches_use_one_program(reduction):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 3)).double()
    loss = nn.CrossEntropyLoss(reduction=reduction)
    compiled = hbp.compile(model, loss, EXACT)
    for samples in (5, 1, 2, 3):
        X, y = torch.randn(samples, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (samples,))
        result = compiled(X, y)
        for quantity in EXACT:
            scales = reference(model, loss, [X], y, "second_moment")
            for name, value in reference(model, loss, [X], y, quantity).items():
                scale = scales[name] if quantity == "variance" else None
                close(result[quantity][name], value, f"{quantity} of {name} for {samples}", scale)
    assert "programs=1" in repr(compiled)


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())))
def test_kfra(setting):
    model, loss, X, y = setting
    torch.manual_seed(0)
    found = hbp.compile(model, loss, ["kfra"])(X, y).kfra
    expected = kfra(model, loss, [X], y, seed=0)
    for name, (A, B) in expected.items():
        close(found[name].B, B, f"B of {name}")
        if A is not None:
            close(found[name].A, A, f"A of {name}")
