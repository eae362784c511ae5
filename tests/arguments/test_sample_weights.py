"""`sample_weights`: every quantity is that of sum_n w_n l_n, in float64 against brute force."""


import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import Weighted, kflr
from tests.agreement import agree, close
from tests.arguments.weighing import WEIGHTS, check, drawn
from tests.graph_models import made
from tests.models.test_ways import network
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import cases, few
from tests.ways import WAYS


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())), st.data())
def test_random_networks(setting, data):
    model, loss, X, y = setting
    check(model, loss, X, y, drawn(data, len(X)))


@few(1, "further cases of one kind")
@pytest.mark.parametrize("name", cases(["transformer", "resnet, smooth", "tokens", "attention", "u-net", "group norm"],
                                       ["transformer", "resnet, smooth"], "no other ways to a parameter"))
def test_graphs(name):
    model, X, y = made(name)
    check(model, nn.CrossEntropyLoss(), X, y, WEIGHTS[[2, 0]])


WAY = ["all columns, some samples", "tails of one column", "chunks in chunks in chunks", "pooled"]


@few(1, "other ways")
@pytest.mark.parametrize("way", cases([way for way in WAYS if not way.startswith("route")], WAY,
                                      "weights are multiplied with before any way begins"))
def test_ways(way):
    model, X, y = network()
    quantities = ["grad", "batch_l2", "variance", "diag_ggn", "diag_h", "kflr"]
    result = hbp.compile(model, quantities=quantities, limits=WAYS[way])(X, y, sample_weights=WEIGHTS[:3])
    held = Weighted(nn.CrossEntropyLoss(), WEIGHTS[:3])
    agree(result, model, held, [X], y, quantities[:-1])
    for name, (left, factor) in kflr(model, held, [X], y).items():
        close(result.kflr[name].B, factor, f"B of {name}")
        if left is not None:
            close(result.kflr[name].A, left, f"A of {name}")
