"""That V is never stored: by predicted memory and by the shapes in generated code; and the decomposition's memory."""

import re

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.spectra.decompose import Columns, Products
from hbpcompiler.spectra.phases import Phases
from hbpcompiler.spectra.room import check_room, decomposition_bytes


def test_no_columns_are_stored():
    """2 million parameters, 18 columns: V would be 150 MB, a gradient is 8 MB."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4000), nn.ReLU(),
                          nn.Linear(4000, 350), nn.ReLU(), nn.Linear(350, 10))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    X, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 1])
    compiled = hbp.spectrum(model, verify=False)
    spectrum = compiled(X, y)
    spectrum.newton_step(damping=1.0)
    spectrum.vectors(top=2)
    phases: Phases = spectrum._phases
    columns, gradient = 18 * 4 * parameters, 4 * parameters
    assert compiled.predicted_memory(2) < 4 * gradient < columns
    (first,), (second,) = phases._first.values(), phases._second.values()
    assert second.predicted_memory(2) < (hbp.Limits().typical_vectors + 1) * gradient  # the results themselves
    for code in (first.code, second.code):
        shapes = [found[1].split(", ") for line in code.splitlines() if (found := re.search(r"# \[(.*)\]$", line))]
        assert ["N", "4000"] in shapes
        for_each_sample = [shape for shape in shapes if shape[0].startswith("N")]
        assert [shape for shape in for_each_sample if shape[-2:] in (["4000", "144"], ["350", "4000"])] == []
    small = hbp.spectrum(model, groups="parameter", verify=False)(X, y)
    (mixed,) = small._phases._first.values()
    assert mixed.predicted_memory(2) < 4 * gradient


def test_a_group_with_fewer_parameters_than_columns_is_decomposed_by_its_parameters():
    torch.manual_seed(0)
    model, X, y = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(40, 3), torch.arange(40) % 3
    spectrum = hbp.spectrum(model, groups="layer")(X, y)
    orders = {group: len(spectrum.eigenvalues[group]) + spectrum.dropped[group] for group in spectrum.groups}
    assert orders == {"0": 16, "2": 15}
    assert not spectrum._phases._second
    spectrum.vectors()  # known already
    assert not spectrum._phases._second


def test_the_room_of_a_decomposition():
    products = Products(torch.empty(10, 10, 10, 10, device="meta"), torch.empty(10, 10, 10, device="meta"))
    columns = Columns(torch.empty(1000, 10, 20, device="meta"), torch.empty(1000, 20, device="meta"))
    assert decomposition_bytes(products.order) == 320_000
    assert columns.order == 20
    for group, budget in ((products, 364_000), (columns, 2_500_000)):
        check_room(group, 10, budget, torch.device("cpu"), None)
        with pytest.raises(hbp.InputError, match=r"a batch of 10 needs about .* take fewer samples"):
            check_room(group, 10, budget - 110_000, torch.device("cpu"), None)
    huge = Products(torch.empty(10**6, 10, 10**6, 10, device="meta"), torch.empty(10**6, 10, 1, device="meta"))
    with pytest.raises(hbp.InputError, match="of memory that are free"):
        check_room(huge, 10**6, None, torch.device("cpu"), None)


def test_predicted_memory_is_of_the_decomposition_too():
    model, X, y = nn.Linear(50, 3), torch.randn(6, 50), torch.arange(6) % 3
    compiled = hbp.spectrum(model)
    with pytest.raises(hbp.CompileError, match="no program yet"):
        compiled.predicted_memory(6)
    compiled(X, y)
    assert decomposition_bytes(2000) < compiled.predicted_memory(1000) < 1.5 * decomposition_bytes(2000)
