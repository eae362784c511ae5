"""All curvature in chunks of samples; the limits are lowered here so that small networks go in chunks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.plan.steps import SampleChunks
from tests.agreement import agree, close
from tests.graph_models import FEW_MODELS, made
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.quantities.test_quantities import check_exact
from tests.selection import few, slow


def in_chunks(size, **others):
    return hbp.Limits(few_columns=0, all_columns_bytes=0, all_columns_chunk_bytes=size, **others)


def loops(compiled):
    return [step for step in compiled._current().draft.plan.steps if isinstance(step, SampleChunks)]


@few(1, "other graphs")
@pytest.mark.parametrize("size", [1, pytest.param(20_000, marks=slow("test_random_networks takes several samples"))])
@pytest.mark.parametrize("name", FEW_MODELS)
def test_graphs_agree_with_brute_force(name, size):
    model, x, y = made(name)
    whole = hbp.compile(model, quantities=["grad", "variance", "kflr", "diag_h_split"])
    expected = whole(x, y)
    compiled = hbp.compile(model, quantities=["grad", "variance", "diag_ggn", "diag_h", "diag_h_split", "kflr"],
                           limits=in_chunks(size))
    result = compiled(x, y)
    assert len(loops(compiled)) == 1
    agree(result, model, nn.CrossEntropyLoss(), [x], y, ("grad", "variance", "diag_ggn", "diag_h"))
    for key, factors in expected.kflr.items():
        close(result.kflr[key].B, factors.B, f"B of {key}")
        if factors.A is not None:
            close(result.kflr[key].A, factors.A, f"A of {key}")
    for key, split in expected.diag_h_split.items():
        for field in ("ggn", "positive", "negative"):
            close(getattr(result.diag_h_split[key], field), getattr(split, field), f"{field} of {key}", split.ggn)


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())), st.sampled_from([1, 4000]))
def test_random_networks(setting, size):
    check_exact(*setting, ["diag_ggn", "diag_h"], limits=in_chunks(size))


def test_tails_inside_and_torchscript():
    limits = in_chunks(5000, spatial_bytes=64, recycled_bytes=700)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.Tanh(),
                          nn.Flatten(), nn.Linear(12, 4), nn.Sigmoid(), nn.Linear(4, 3)).double()
    X, y = torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    compiled, result = check_exact(model, nn.CrossEntropyLoss(), X, y, ["diag_ggn", "diag_h"], limits=limits)
    (loop,) = loops(compiled)
    assert any(type(step).__name__ == "Tail" for step in loop.steps)
    scripted = torch.jit.script(compiled.program)(compiled.state, X, y)
    for key, value in result.diag_h.items():
        close(scripted.diag_h[key], value, key)


def test_sampled_curvature_is_drawn_for_each_chunk():
    """A loss without a distribution: random signs, as many as the chunk has samples. Their mean is the diagonal."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    X, y = torch.randn(3, 3, dtype=torch.float64), torch.rand(3, 2, dtype=torch.float64)
    compiled = hbp.compile(model, lambda output, target: ((output - target) ** 4).mean(), ["diag_h_mc", "diag_h"],
                           mc_samples=400, limits=in_chunks(1))
    result = compiled(X, y)
    assert loops(compiled)
    for key, value in result.diag_h.items():
        torch.testing.assert_close(result.diag_h_mc[key], value, rtol=0.2, atol=0.1 * float(value.abs().max()))


def test_what_keeps_samples_apart_goes_whole():
    model, x, y = made("resnet, smooth")
    compiled = hbp.compile(model, quantities=["batch_diag_h", "diag_h"], example_inputs=(x, y), limits=in_chunks(1))
    assert not loops(compiled)


@slow("a transformer")
def test_memory_of_a_transformer_does_not_grow_with_its_columns():
    """Predicted, as `memory_budget` uses it: a batch four times as large needs little more."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(8 * 24, 3))
    compiled = hbp.compile(model, quantities=["diag_h"],
                           example_inputs=(torch.randn(4, 24, 8), torch.randint(3, (4,))))
    assert loops(compiled)
    peak = compiled._current().draft.memory.peak
    assert peak(64) < 1.5 * peak(16)
