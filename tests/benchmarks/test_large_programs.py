"""How long the programs of large networks are, and that they keep to what small ones do."""

import ast
import re

import pytest

import hbpcompiler as hbp
from benchmarks.large_networks import problem
from tests.selection import slow

LINES = {"resnet50": 1800, "densenet121": 3800}
"""7,492 and 23,728 before alike parts shared functions."""


@slow("whole programs of large networks")
@pytest.mark.parametrize("network", LINES)
def test_alike_parts_are_written_once(network):
    given = problem(network, 2, 64)
    code = hbp.compile(given.model, given.loss, quantities=["grad", "batch_l2", "kfac"], verify=False,
                       example_inputs=(given.inputs, given.target)).code
    lines = code.splitlines()
    assert len(lines) <= LINES[network]
    assert max(map(len, lines)) <= 120
    shared = [part for part in ast.parse(code).body if isinstance(part, ast.FunctionDef)
              and re.search(r", at \d+ places\.", ast.get_docstring(part) or "")]
    assert len(shared) > 10
    names = {node.id for part in shared for node in ast.walk(part) if isinstance(node, ast.Name)}
    assert not [name for name in names if re.search(r"layer\d|dense[bl]|conv\d_", name)]
