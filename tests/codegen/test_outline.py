"""Large programs: alike blocks share a function, and nothing else changes, to the last bit."""

import functools
import re

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import hbpcompiler as hbp
from hbpcompiler.codegen import emit
from tests.selection import few, slow

X, Y = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])


class Block(nn.Module):
    def __init__(self, width, activation):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
        self.activation = activation()

    def forward(self, x):
        inner = self.activation(self.bn1(self.conv1(x)))
        return self.activation(self.bn2(self.conv2(inner)) + x)


def residual(widths, activation=nn.ReLU):
    torch.manual_seed(0)
    first, last = widths[0], widths[-1]
    layers = [nn.Conv2d(3, first, 3, padding=1)]
    for before, width in zip([first, *widths], widths, strict=False):
        layers += [nn.Conv2d(before, width, 1)] * (before != width) + [Block(width, activation)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 4)).eval()


def both(model, quantities, monkeypatch, **options):
    """The program, and the one that says everything in its place."""
    shared = hbp.compile(model, quantities=quantities, example_inputs=(X, Y), **options)
    with monkeypatch.context() as patch:
        patch.setattr(emit, "emit", functools.partial(emit.emit, outline=False))
        plain = hbp.compile(model, quantities=quantities, example_inputs=(X, Y), **options)
    return shared, plain


def run(compiled, program):
    torch.manual_seed(0)
    with torch.no_grad():
        return program(compiled.state, X, Y)


def assert_same(found, expected):
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, tuple):
        for part, other in zip(found, expected, strict=True):
            assert_same(part, other)
    else:
        assert found == expected


@few(1, "further cases of one kind")
@pytest.mark.parametrize("quantities", [["grad", "batch_l2", "kfac"], ["variance", "diag_h"]])
def test_alike_blocks_are_written_once(quantities, monkeypatch):
    shared, plain = both(residual([4, 4, 4, 6]), quantities, monkeypatch)
    assert shared.code.count("\n") < 0.8 * plain.code.count("\n")
    assert len(re.findall(r"^def conv2d_back\w*\(", shared.code, re.M)) >= 1
    assert "_back(" not in plain.code
    assert_same(run(shared, shared.program), run(plain, plain.program))
    assert_same(run(shared, torch.jit.script(shared.program)), run(plain, plain.program))
    sizes = [compiled.predicted_memory(64) for compiled in (shared, plain)]
    assert sizes[0] <= 1.02 * sizes[1]


@slow("alike blocks are tested")
def test_numbers_that_differ_are_arguments(monkeypatch):
    shared, plain = both(residual([4, 4, 4, 6, 6, 6]), ["grad", "diag_ggn"], monkeypatch)
    (head,) = re.findall(r"^def batch_norm_back\([^)]*\)", shared.code, re.M)
    assert "path: str" in head
    calls = re.findall(r"relu_back\w*\(.*", shared.code)
    assert len(calls) > 4
    assert_same(run(shared, shared.program), run(plain, plain.program))


class Grouped(nn.Sequential):
    """Blocks whose convolutions have other numbers of groups, with images large enough to be freed in a loop."""

    def __init__(self):
        torch.manual_seed(0)
        layers = []
        for groups in (2, 4, 2, 4, 2, 4, 2, 4):
            layers += [nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.BatchNorm2d(8), nn.Sigmoid()]
        super().__init__(nn.Conv2d(3, 8, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        self.eval()


@slow("alike blocks are tested")
def test_numbers_that_differ_reach_the_turns_of_loops(monkeypatch):
    limits = hbp.Limits(cache_bytes=1, one_by_one_bytes=0, large_item_numbers=1, route_times=(("chunked product", 0),))
    shared, plain = both(Grouped(), ["grad", "batch_l2"], monkeypatch, limits=limits)
    assert re.search(r"def conv2d_turn\([^)]*\b(?!N\b)\w+: int", shared.code)
    assert_same(run(shared, shared.program), run(plain, plain.program))


class Views(nn.Module):
    """Tokens [N, 6, 8] seen with one more axis, before them or inside their features: on the way back it goes."""

    def __init__(self, *axes):
        super().__init__()
        self.linear, self.axes = nn.Linear(8, 8), axes

    def forward(self, x):
        return self.linear(x).view(len(x), *self.axes).tanh().view(len(x), 6, 8)


@slow("alike blocks are tested")
def test_a_view_is_spelled_by_the_shape_that_it_has_in_every_place(monkeypatch):
    """[1, 6, 8] and [6, 2, 4] become [6, 8]: the same call of reshape, but flatten(2, 3) and flatten(3, 4)."""
    torch.manual_seed(0)
    blocks = [Views(1, 6, 8) if number % 2 else Views(6, 2, 4) for number in range(14)]
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 48), nn.Unflatten(1, (6, 8)), *blocks, nn.Flatten(),
                          nn.Linear(48, 4))
    shared, plain = both(model, ["grad", "batch_l2", "kfac", "kflr"], monkeypatch)
    assert re.search(r"def view_back\w*\(", shared.code)
    assert_same(run(shared, shared.program), run(plain, plain.program))


def test_regenerated_text_is_the_same():
    texts = {hbp.compile(residual([4] * 4), quantities=["grad", "kfac"], example_inputs=(X, Y)).code for _ in range(2)}
    assert len(texts) == 1


def test_small_programs_stay_as_they_are():
    code = hbp.compile(residual([4]), quantities=["grad", "kfac"], example_inputs=(X, Y)).code
    assert "path: str" not in code


@hypothesis.given(st.lists(st.sampled_from([3, 5]), min_size=3, max_size=5), st.sampled_from([nn.ReLU, nn.Tanh]),
                  st.sampled_from([["grad", "batch_l2"], ["kflr", "variance"], ["diag_h", "grad"], ["diag_ggn_mc"]]))
def test_outlined_is_not_outlined(widths, activation, quantities):
    with pytest.MonkeyPatch.context() as patch:
        shared, plain = both(residual(widths, activation), quantities, patch)
    assert_same(run(shared, shared.program), run(plain, plain.program))
