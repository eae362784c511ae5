"""Large tensors end with the block that reads them last, in loops too: at the end of a call only results are alive."""

import re
import sys

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.codegen.lifetimes import Section, free_at_last_use, tell_once
from hbpcompiler.codegen.turns import cut_again, length_text
from hbpcompiler.limits import DEFAULT_LIMITS, Limits
from tests.selection import few, slow

LARGE, LARGE_ITEM = DEFAULT_LIMITS.large_numbers, DEFAULT_LIMITS.large_item_numbers


def test_the_block_of_the_last_reader_deletes():
    sections = [Section("one", ["a = x.relu()  # [N, 3]", "b = a * 2  # [N, 3]", "c = a.sum(1)  # [N]"]),
                Section("two", ["d = b.sum()  # []"]), Section("results", ["e = c + d  # [N, 2]"])]
    free_at_last_use(sections, kept={"e"})
    assert [section.lines[-1] for section in sections] == ["del a", "del b", "e = c + d  # [N, 2]"]


def test_a_method_is_no_reader():
    sections = [Section("one", ["square = x * x  # [N, 3]", "y = square + 1  # [N]"]),
                Section("two", ["z = x.square().square()  # []"]), Section("results")]
    free_at_last_use(sections)
    assert [section.lines[-1] for section in sections[:2]] == ["del square", "z = x.square().square()  # []"]


@pytest.mark.parametrize(("shape", "large"), [
    ("[N]", False), ("[N, 1]", False), ("[N, 2]", True), ("[2*N, 1]", True),
    (f"[{LARGE}]", True), (f"[{LARGE - 1}]", False), (f"[1, {LARGE_ITEM}]", True),
    (f"[n, {LARGE_ITEM}]", True), (f"[n, k, {LARGE_ITEM - 1}]", False), ("[64, 64*k]", True),
    ("[n + 1, 2]", False), ("[]", False),
])
def test_what_is_large(shape, large):
    section = Section("", [f"a = f(x)  # {shape}"])
    assert free_at_last_use([section, Section("results")]) == large
    assert (len(section.lines) > 1) == large


def test_a_call_with_several_results_has_several_shapes():
    section = Section("", ["(a, b) = f(x)  # [N] [N, 3]"])
    free_at_last_use([section, Section("results")])
    assert section.lines[-1] == "del a, b"


def test_what_the_last_section_makes_ends_with_the_frame():
    section = Section("", ["a = f(x)  # [N, 3]"])
    assert not free_at_last_use([section])
    assert section.lines == ["a = f(x)  # [N, 3]"]


def test_limits_say_what_is_large():
    section = Section("", ["a = f(x)  # [1, 8]"])
    free_at_last_use([section, Section("")], limits=Limits(large_item_numbers=8))
    assert section.lines[-1].endswith("del a")


def test_what_a_deeper_loop_makes_is_its_own():
    section = Section("", ["a = x * 2  # [1, 9000]", "for i in range(3):", "    b = a[i:]  # [1, 9000]"])
    free_at_last_use([section, Section("")])
    assert section.lines[-1].endswith("del a")


def test_a_slice_is_cut_where_it_is_read():
    assert cut_again("S", "[first:first + 4]") == "S[first:first + 4]"
    assert cut_again("S[first:first + 4]", "[:, k:k + 2]") == "S[first:first + 4, k:k + 2]"
    assert cut_again("S[:, k:k + 2]", "[first:first + 4]") == "S[first:first + 4, k:k + 2]"
    assert cut_again("S[first:first + 4]", "[i:i + 2]") == "S[first:first + 4][i:i + 2]"
    assert cut_again('saved["S"]', "[:, k:k + 2]") == 'saved["S"][:, k:k + 2]'


def test_how_long_a_slice_is():
    assert length_text("S", 1) == "S.shape[1]"
    assert length_text("S[first:first + 4]", 0) == "S[first:first + 4].shape[0]"
    assert length_text("S[first:first + 4]", 1) == "S.shape[1]"
    assert length_text("S[:, k:k + 2]", 0) == "S.shape[0]"
    assert length_text("S[first:first + 4, k:k + 2]", 0) == "S[first:first + 4].shape[0]"
    assert length_text("S[first:first + 4, k:k + 2]", 1) == "S[:, k:k + 2].shape[1]"
    assert length_text('saved["S"]', 1) == 'saved["S"].shape[1]'


OF_A_TURN = re.compile(r"^ +(?P<name>\w+) = (?P<source>\w+)\[first", re.MULTILINE)


def test_no_slice_outlives_its_tensor():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 96, 3), nn.ReLU(), nn.Conv2d(96, 192, 3), nn.ReLU(), nn.Conv2d(192, 192, 1),
                          nn.ReLU(), nn.Conv2d(192, 100, 1), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten())
    X, y = torch.randn(4, 3, 10, 10), torch.randint(100, (4,))
    code = hbp.compile(model, quantities=["diag_ggn"], example_inputs=(X, y)).code
    functions = re.split(r"\n(?=def |class )", code)
    assert sum("for first" in function and "del " in function for function in functions) > 1
    for function in functions:
        deleted = {name for line in re.findall(r"^ +del (.*)$", function, re.MULTILINE) for name in line.split(", ")}
        outlived = [match["name"] for match in OF_A_TURN.finditer(function) if match["source"] in deleted]
        assert outlived == []


def alive_at_the_end(compiled, X, y):
    """Names of tensors of the program, and their bytes, that are neither results nor parameters nor data."""
    found = {}

    def trace(frame, event, argument):
        if frame.f_code.co_filename != str(compiled.path) or frame.f_code.co_name != "forward":
            return None
        if event == "return":
            known = {tensor.untyped_storage().data_ptr() for tensor in (X, y, *compiled.state.values())}
            known |= {tensor.untyped_storage().data_ptr() for tensor in torch.utils._pytree.tree_leaves(tuple(argument))
                      if isinstance(tensor, torch.Tensor)}
            found.update({name: item.untyped_storage().nbytes() for name, item in frame.f_locals.items()
                          if isinstance(item, torch.Tensor) and item.untyped_storage().data_ptr() not in known})
        return trace

    sys.settrace(trace)
    try:
        compiled(X, y)
    finally:
        sys.settrace(None)
    assert found  # small ones are left
    return found


@few(1, "further cases of one kind")
@pytest.mark.parametrize(("quantities", "smooth"), [
    (["kflr"], False), (["diag_h"], True), (["variance", "diag_ggn", "kfac"], False),
    *[pytest.param(quantities, smooth, marks=slow("the same loops")) for quantities, smooth in (
        (["kflr"], True), (["diag_h"], False), (["variance", "diag_ggn", "kfac"], True))]])
def test_nothing_large_is_alive_at_the_end(quantities, smooth):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 40, 3), nn.ReLU(), nn.MaxPool2d(2),
                          nn.Conv2d(40, 48, 3), nn.Sigmoid() if smooth else nn.ReLU(), nn.Flatten(),
                          nn.Linear(48 * 5 * 5, 90))
    X, y = torch.randn(3, 3, 16, 16), torch.randint(90, (3,))
    compiled = hbp.compile(model, quantities=quantities, example_inputs=(X, y))
    assert "for first" in compiled.code
    alive = alive_at_the_end(compiled, X, y)
    assert [name for name, size in alive.items() if size >= 4 * LARGE] == []


def test_what_a_heading_computes_is_said_once_and_in_the_program_if_it_stands_there():
    sections = [Section("0: conv2d", ["a = 1"], "T = S U"),
                Section("1: tanh", ["for first in range(0, 4, 2):", "    # 0: conv2d    T = S U", "    b = a  # [n]"]),
                Section("0: conv2d", ["c = 2"], "T = S U")]
    functions = {"turn": "def turn():\n    # 0: conv2d    T = S U\n    # 2: relu    d = y'(x)\n    # [n, 9]",
                 "other": "def other():\n    # 2: relu    d = y'(x)"}
    tell_once(sections, functions)
    assert [section.heading for section in sections] == ["0: conv2d    T = S U", "1: tanh", "0: conv2d    as above"]
    assert sections[1].lines[1:] == ["    # 0: conv2d    as above", "    b = a  # [n]"]
    assert functions == {"turn": "def turn():\n    # 0: conv2d\n    # 2: relu    d = y'(x)\n    # [n, 9]",
                         "other": "def other():\n    # 2: relu    as above"}


def test_what_a_loop_says_is_said_in_its_section_alone():
    sections = [Section("3: conv2d", ["for n in x:", "    # 1: tanh    d S", "    # 1: tanh    d S"], "T = S U"),
                Section("1: tanh", ["a = 1"], "d S")]
    tell_once(sections, {})
    assert sections[0].lines[1:] == ["    # 1: tanh    d S", "    # 1: tanh    as above"]
    assert sections[1].heading == "1: tanh    d S"
