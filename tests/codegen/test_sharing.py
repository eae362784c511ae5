"""Loops that are alike in blocks that are not share a function; numbers, memory and scripts stay as they are."""

import re

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.codegen.bodies import returning
from hbpcompiler.codegen.calls import Outline
from hbpcompiler.codegen.forms import Form
from hbpcompiler.codegen.lifetimes import Section, free_at_last_use
from hbpcompiler.codegen.segments import segments
from hbpcompiler.codegen.sharing import arguments, share
from tests.codegen.test_outline import assert_same, both, run
from tests.codegen.test_outline_parts import chain
from tests.selection import few, slow

CHUNKS = hbp.Limits(cache_bytes=1, one_by_one_bytes=0, large_item_numbers=2**9,
                    route_times=(("chunked product", 0),))


class Mixed(nn.Sequential):
    """Convolutions with and without bias and padding, one of each: no two blocks back are alike, their loops are."""

    def __init__(self):
        torch.manual_seed(0)
        layers = []
        for number in range(8):
            layers += [nn.Conv2d(6, 6, 1 + 2 * (number % 2), padding=number % 2, bias=number % 3 == 0),
                       nn.BatchNorm2d(6), (nn.Tanh, nn.Sigmoid)[number % 2]()]
        super().__init__(nn.Conv2d(3, 6, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
        self.eval()


@slow("alike blocks are tested")
@few(1, "further cases of one kind")
@pytest.mark.parametrize("quantities", [["grad", "batch_l2"], ["variance", "kfac"]])
def test_alike_loops_share_a_function(quantities, monkeypatch):
    shared, plain = both(Mixed(), quantities, monkeypatch, limits=CHUNKS)
    assert "for first" in plain.code
    loops = re.findall(r"^def (\w+_in_chunks_back\w*)\(", shared.code, re.M)
    assert loops
    for name in loops:
        assert len(re.findall(rf"\b{name}\(", shared.code)) > 2, "a definition and two calls at least"
    assert_same(run(shared, shared.program), run(plain, plain.program))
    assert_same(run(shared, torch.jit.script(shared.program)), run(plain, plain.program))
    sizes = [compiled.predicted_memory(64) for compiled in (shared, plain)]
    assert sizes[0] <= 1.02 * sizes[1]


def test_the_function_has_a_letter_for_each_number_that_differs():
    members = [(segment, Form(segment, {})) for segment in segments(chain(4))]
    assert arguments(members, Outline()) == [(0, 1, 2, 3)]
    found = Outline()
    function = share(members, members[0][0].block, Outline(), {}, found)
    assert (function.members, len(function.letters), len(found.calls)) == (4, 1, 4)
    assert function.sizes[function.letters[0]] == 3
    assert max(function.sizes.values()) == 5, "of shapes too: the last block's second axis"


def test_letters_are_as_large_as_what_they_stand_for():
    lines = ["x = a  # [n, a, b]"]
    assert not free_at_last_use([Section("", [*lines]), Section("")])
    assert free_at_last_use([Section("", [*lines]), Section("")], sizes={"a": 2**10, "b": 2**10})


def test_a_function_returns_what_its_last_line_makes():
    assert returning(["a = x", "y = a * 2  # [N]"], ["y"]) == ["a = x", "return a * 2  # [N]"]
    assert returning(["g.mul_(x)"], ["g"]) == ["return g.mul_(x)"]
    assert returning(['saved["x"] = x'], ['saved["x"]']) == ['saved["x"] = x', 'return saved["x"]']
    assert returning(["a = x", "b = y"], ["a", "b"])[-1] == "return a, b"
    assert returning(["f(x)"], []) == ["f(x)"]
