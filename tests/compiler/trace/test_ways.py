"""Branches around what a mask picks: followed where they only save work, refused where they choose."""

import linecache
import sys

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.ways import way_with_rows
from tests.agreement import agree
from tests.selection import few

QUANTITIES = ["grad", "batch_grad", "diag_ggn", "diag_h"]
WITH_ROWS = {
    "if ask():\n    x = 3": True,
    "if not ask(): x = 3": False,
    "for _ in [1]:\n    if ask(): continue\n    x = 3": False,
    "for _ in [1]:\n    if not ask(): continue": True,
    "if not TRUTH: x = 3": False,
    "for _ in [1]:\n    if not TRUTH and 3: continue": None,
    "for _ in [1]:\n    if not TRUTH or not 3: continue": True,
    "if 3 > 5 or not ask():\n    pass": True,
    "if ask(): x = 3\nelse: x = 4": None,
    "for _ in [1]:\n    if ask(): break": None,
    "for _ in [1]:\n    if ask():\n        x = 3\n        continue": None,
    "def f():\n    if ask(): return 3\nf()": None,
    "x = 3 if ask() else 4": None,
    "if (x := ask()): y = x": None,
    "while ask(): break": None,
    "try:\n    if ask(): x = 3\nexcept ValueError:\n    pass": None,
}


@pytest.mark.parametrize("text", WITH_ROWS)
def test_what_a_test_is_where_there_are_rows(text):
    name, found = f"<{text}>", []

    def ask():
        found.append(way_with_rows(sys._getframe(1)))
        return True

    class Truth:
        """Asked by Python itself, whose jumps say less of where they are."""

        def __bool__(self):
            found.append(way_with_rows(sys._getframe(1)))
            return True

    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), {"ask": ask, "TRUTH": Truth()})
    (answer,) = found
    assert (answer and answer[1]) == WITH_ROWS[text]


class Mixture(nn.Module):
    def __init__(self, routed):
        super().__init__()
        self.gate, self.routed, self.head = nn.Linear(3, 4), routed, nn.Linear(3, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(4))

    def forward(self, x):
        weight, choice = self.gate(x).softmax(-1).max(-1)
        return self.head(self.routed(self, x, weight.unsqueeze(-1), choice))


def masks(self, x, weight, choice):
    out = torch.zeros_like(x)
    for number, expert in enumerate(self.experts):
        mask = choice == number
        if mask.any():
            out[mask] = expert(x[mask]) * weight[mask]
    return out


def any_of_them(self, x, weight, choice):
    out = x.clone()
    for number, expert in enumerate(self.experts):
        mask = choice == number
        if not mask.any():
            continue
        out[mask] += expert(x[mask]) * weight[mask]
    return out


def sums(self, x, weight, choice):
    out = x.clone()
    for number, expert in enumerate(self.experts):
        mask = choice == number
        if mask.sum() == 0: continue  # noqa: E701  # in one line
        out[mask] += expert(x[mask]) * weight[mask]
    return out


def lengths(self, x, weight, choice):
    out = torch.zeros_like(x)
    for number, expert in enumerate(self.experts):
        rows = torch.where(choice == number)[0]
        if rows.numel() == 0:
            continue
        out.index_add_(0, rows, expert(x[rows]) * weight[rows])
    return out


def rows_left(self, x, weight, choice):
    out = torch.zeros_like(x)
    for number, expert in enumerate(self.experts):
        rows = (choice == number).nonzero().flatten()
        if len(rows):
            out[rows] = expert(x[rows]) * weight[rows]
    return out


def nothing_left_out(self, x, weight, choice):
    out = torch.zeros_like(x)
    for number, expert in enumerate(self.experts):
        rows = (choice == number).nonzero(as_tuple=True)[0]
        if not rows.shape[0] > 0:
            continue
        out[rows] = expert(x[rows]) * weight[rows]
    return out


@few(2, "further cases of one kind")
@pytest.mark.parametrize("routed", [masks, any_of_them, sums, rows_left, nothing_left_out, lengths])
def test_branches_that_save_work(routed):
    torch.manual_seed(0)
    model = Mixture(routed).double()
    compiled = hbp.compile(model, quantities=QUANTITIES, verify="full")
    for size in (6, 1, 4):
        x, y = torch.randn(size, 3, dtype=torch.float64), torch.randint(2, (size,))
        agree(compiled(x, y), model, nn.CrossEntropyLoss(), [x], y)
