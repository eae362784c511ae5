"""Pieces with many columns walk the rest of their way in chunks; limits are lowered here so that small ones do."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from tests.agreement import close
from tests.graph_models import FEW_MODELS, made
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.quantities.test_quantities import check_exact
from tests.selection import few, slow


def in_chunks(size):
    return hbp.Limits(few_columns=0, spatial_bytes=64, recycled_bytes=size, vector_bytes=64, vector_chunk_bytes=size)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2, padding=1), nn.Tanh(),
                         nn.Flatten(), nn.Linear(48, 4), nn.Sigmoid(), nn.Linear(4, 3)).double()


@few(1, "further cases of one kind")
@pytest.mark.parametrize("chunk", [1, 700, 4000])
def test_chunks_change_nothing(chunk):
    """Chunks of one sample and one column, of some columns, and of some samples."""
    torch.manual_seed(1)
    X, y = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    model = network()
    compiled, result = check_exact(model, nn.CrossEntropyLoss(), X, y, ["diag_ggn", "diag_h"],
                                   limits=in_chunks(chunk))
    split = hbp.compile(model, quantities=["diag_h_split", "kflr"], limits=in_chunks(chunk))(X, y)
    for name, parts in split.diag_h_split.items():
        close(parts.ggn + parts.positive - parts.negative, result.diag_h[name], name)
        assert (parts.positive >= 0).all()
        assert (parts.negative >= 0).all()
    plain = torch.einsum("oo->o", split.kflr["0.bias"].B)
    close(plain, reference(model, nn.CrossEntropyLoss(), [X], y, "diag_ggn")["0.bias"], "diagonal of B")
    torch.jit.script(compiled.program)


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())))
def test_chunks_on_random_networks(setting):
    check_exact(*setting, ["diag_h"], limits=in_chunks(900))


@few(1, "further cases of one kind")
@pytest.mark.parametrize("chunk", [1, pytest.param(300, marks=slow("the batch has two samples"))])
@pytest.mark.parametrize("name", FEW_MODELS)
def test_the_end_of_the_way_of_few_columns_in_chunks_of_samples(name, chunk):
    """Graphs with branches too, where the rest of the way may read what only arrived before it."""
    limits = hbp.Limits(recycled_bytes=64 * 64, late_chunk_bytes=chunk, late_time=math.inf)
    model, x, y = made(name)
    result = hbp.compile(model, quantities=["diag_ggn", "kflr"], limits=limits)(x, y)
    for key, value in reference(model, nn.CrossEntropyLoss(), [x], y, "diag_ggn").items():
        close(result.diag_ggn[key], value, f"diag_ggn of {key}")
    whole = hbp.compile(model, quantities=["kflr"], memory_budget="1GiB")
    for key, factors in whole(x, y).kflr.items():
        close(result.kflr[key].B, factors.B, f"B of {key}")


def test_large_values_of_few_columns_exist_for_a_chunk_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Linear(4096, 10)).double()
    X, y = torch.randn(5, 1, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4])
    compiled = hbp.compile(model, quantities=["diag_ggn"], example_inputs=(X, y))
    assert "# [n, 9, 16, 32, 32]" in compiled.code
    assert "# [N, 9, 16, 32, 32]" not in compiled.code
    all_recycled = hbp.Limits(recycled_bytes=2**40)
    whole = hbp.compile(model, quantities=["diag_ggn"], example_inputs=(X, y), limits=all_recycled)
    assert "# [N, 9, 16, 32, 32]" in whole.code
    for key, value in whole(X, y).diag_ggn.items():
        close(compiled(X, y).diag_ggn[key], value, key)


def test_memory_stays_below_the_columns():
    """The residual's columns of this network would be [N, 64, 8, 30, 30]; no tensor of the program is that large."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 8, 3, padding=1), nn.ReLU(),
                          nn.Flatten(), nn.Linear(7200, 64), nn.Sigmoid(), nn.Linear(64, 3))
    batch = (torch.zeros(2, 1, 30, 30), torch.tensor([0, 1]))
    code = hbp.compile(model, quantities=["diag_h"], example_inputs=batch).code
    assert "for first" in code
    assert "# [N, 64, 40, 30, 30]" not in code


def test_what_all_chunks_share_is_computed_once():
    """A sample's patches stand before the loop over its columns, and a weight's transpose before all loops."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8192, 300), nn.Sigmoid(),
                          nn.Linear(300, 3)).double()
    X, y = torch.randn(2, 1, 32, 32, dtype=torch.float64), torch.tensor([0, 2])
    code = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y)).code
    functions = {text.partition("(")[0]: text.partition("\n\n\n")[0] for text in code.split("\ndef ")[1:]}
    (outer,) = [text for name, text in functions.items() if "_turn" in name and "for first in range(" in text]
    before, _, inside = outer.partition("for first in range(")
    inside += "".join(text for name, text in functions.items() if f"{name}(" in inside)
    assert "patches(" in before
    assert "patches(" not in inside


class Gated(nn.Module):
    """A product of two branches, as in a SwiGLU layer, behind a layer that both depend on."""

    def __init__(self, width):
        super().__init__()
        self.trunk = nn.Linear(3, 3)
        self.gate, self.up, self.head = nn.Linear(3, width), nn.Linear(3, width), nn.Linear(width, 2)

    def forward(self, x):
        x = self.trunk(x)
        return self.head(torch.sigmoid(self.gate(x)) * self.up(x))


def test_the_columns_of_a_product_are_born_some_at_a_time():
    """All of them, two for each number at both factors, would be [N, 1200, 600] twice."""
    torch.manual_seed(0)
    model, X, y = Gated(600).double(), torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1])
    compiled = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y))
    whole = 2 * 3 * 1200 * 600 * 8
    assert compiled.predicted_memory(3) < whole / 4
    at_once = hbp.compile(model, quantities=["diag_h"], limits=hbp.Limits(vector_bytes=2**40))
    for name, value in at_once(X, y).diag_h.items():
        close(compiled(X, y).diag_h[name], value, name)
    assert at_once.predicted_memory(3) > whole
