"""Names of what nobody named come from the tensor and what is done to it; long paths are shortened, uniquely."""

import re

import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.codegen.paths import LONGEST, Paths
from hbpcompiler.codegen.printer import ATOM
from hbpcompiler.codegen.temporaries import Temporaries
from tests.optimise.small import program


def test_long_paths_are_shortened_from_the_left():
    paths = Paths(["features.denseblock1.denselayer12.conv1.weight", "features.norm.weight", "classifier.weight"])
    assert paths.shortened("features.norm.weight") == "features.norm.weight"
    assert paths.shortened("features.denseblock1.denselayer12.conv1.weight") == "f.denseb1.densel12.co1.weight"
    assert paths.legend() == {"co": "conv", "denseb": "denseblock", "densel": "denselayer", "f": "features"}
    assert len(paths.shortened("features.denseblock1.conv1.weight")) <= LONGEST


def test_temporaries_are_called_after_their_tensors():
    graph = program(lambda writer, x: x.flatten(0, 1).square().sum(0).sqrt(), "S_linear")
    texts, found = {}, []
    names = Temporaries(texts)
    for node in graph.nodes:
        if node.op != "output":
            name = str(node.target) if node.op == "placeholder" else names.wish(node)
            texts[node] = (name, ATOM)
            names.gave(node, name)
            found.append(name)
    assert found == ["S_linear", "S_linear_rows", "S_linear_rows_squared", "S_linear_sum", "S_linear_sum_root"]


def test_a_gradient_in_front_of_a_pool_is_called_after_its_value_and_signs_after_where_they_are_born():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.SiLU(), nn.Flatten(),
                          nn.Linear(24, 3))
    batch = torch.randn(2, 1, 10, 10), torch.tensor([0, 2])
    limits = hbp.Limits(large_numbers=1, large_item_numbers=1)
    code = hbp.compile(model, quantities=["diag_h"], example_inputs=batch, limits=limits, verify=False).code
    assert "g_tanh_1_row = torch.ops.aten.max_pool2d_with_indices_backward(" in code
    assert " back = " not in code
    assert "sign_conv2d_3 = " in code
    assert "_n_n" not in code
    assert re.search(r"_n_\w+_n\b", code) is None
    assert not [line for line in code.splitlines() if line != line.rstrip()]
