"""Names of what nobody named come from the tensor and what is done to it; long paths are shortened, uniquely."""

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
