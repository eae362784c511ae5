"""Helpers that a file defines in one of two forms, by the processor that it runs on: both take the same arguments."""

import copy
from inspect import signature
from typing import Optional

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import hbpcompiler as hbp
from hbpcompiler.codegen.definitions import definitions
from hbpcompiler.compiler.program.grams import gram, onednn_gram, pixel_gram
from hbpcompiler.compiler.program.kernels import FALLBACKS, GROWING
from hbpcompiler.compiler.program.products import onednn_add_product_, onednn_linear
from hbpcompiler.reference import reference

TWO_FORMS = [helper for helper, instead in FALLBACKS.items() if instead]
GIVEN = {onednn_linear: lambda: (torch.randn(5, 3), torch.randn(4, 3), torch.randn(4)),
         onednn_add_product_: lambda: (torch.randn(5, 4), torch.randn(5, 3), torch.randn(4, 3), 2.0, 0.5, 1)}
"""All arguments that a program may hand over."""


@pytest.fixture(params=["oneDNN gains", "BLAS is as fast", "no oneDNN"])
def processor(request, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": request.param == "BLAS is as fast"})
    if request.param == "no oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    return request.param


def defined(helper):
    """What a file that calls it has by its name."""
    graph = fx.Graph()
    graph.call_function(helper, tuple(graph.placeholder(name) for name in signature(helper).parameters))
    scope = {"torch": torch, "F": F, "Tensor": torch.Tensor, "Optional": Optional}
    exec("\n\n\n".join(definitions(graph)), scope)
    return scope[helper.__name__]


@pytest.mark.parametrize("helper", TWO_FORMS, ids=lambda helper: helper.__name__)
def test_each_form_takes_all_arguments(helper, processor):
    torch.manual_seed(0)
    given = GIVEN[helper]()
    assert len(given) == len(signature(helper).parameters), "each argument must be met"
    wanted = helper(*copy.deepcopy(given))
    torch.testing.assert_close(defined(helper)(*copy.deepcopy(given)), wanted)
    by_name = dict(zip(signature(helper).parameters, copy.deepcopy(given), strict=True))
    if processor == "oneDNN gains" or helper is onednn_add_product_:
        torch.testing.assert_close(defined(helper)(**by_name), wanted)


def convolutions():
    layers = nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)
    return nn.Sequential(*layers), torch.randn(3, 2, 6, 6)


def tokens():
    layers = nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 5), nn.Tanh(), nn.Flatten(), nn.Linear(20, 4)
    return nn.Sequential(*layers), torch.randn(3, 4, 6)


QUANTITIES = ["grad", "batch_grad", "batch_l2", "variance", "diag_ggn", "diag_h"]


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("made", [GROWING[gram], GROWING[onednn_gram], GROWING[pixel_gram]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_part_of_a_total_is_kept(made, kept, dtype):
    """Also of a total in a wider dtype; of none, whatever was there."""
    torch.manual_seed(0)
    x, total = torch.randn(3, 2, 4, 5), torch.randn(4, 4, dtype=dtype)
    wanted = kept * total + torch.einsum("nkop,nkip->oi", x, x).to(dtype) / 7
    if kept == 0.0:
        total.fill_(torch.nan)
    torch.testing.assert_close(made(total, x, 2, over=7, kept=kept), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", [convolutions, tokens])
@pytest.mark.parametrize("half_rows", [1, 10**9])
def test_programs_are_right_in_each_form(network, processor, half_rows):
    """Each product is large enough for oneDNN."""
    torch.manual_seed(0)
    model, X = network()
    y = torch.tensor([1, 0, 3])
    limits = hbp.Limits(onednn_rows=1, onednn_multiply_adds=1, half_rows=half_rows)
    options = {"example_inputs": (X, y), "limits": limits}
    double = copy.deepcopy(model).double()
    single = hbp.compile(model, nn.CrossEntropyLoss(), [*QUANTITIES, "kflr"], **options)
    assert ("WITHOUT_ONEDNN" in single.code) == (processor != "no oneDNN")
    result = single(X, y)
    for quantity in QUANTITIES:
        for name, value in reference(double, nn.CrossEntropyLoss(), [X.double()], y, quantity).items():
            torch.testing.assert_close(result[quantity][name].double(), value, rtol=1e-3, atol=1e-5)
    exact = hbp.compile(double, nn.CrossEntropyLoss(), ["kflr"])(X.double(), y)
    for name, factors in exact.kflr.items():
        for ours, theirs in zip(result.kflr[name], factors, strict=True):
            if theirs is not None:
                torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-5)
