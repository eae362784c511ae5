"""Branches around what a mask picks: followed where they only save work, refused where they choose."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.conditions.ways import asked_of
from tests.agreement import agree
from tests.selection import few

QUANTITIES = ["grad", "batch_grad", "diag_ggn", "diag_h"]


def elements(mask):
    return mask.any()


CONDITIONS = {
    "any": (lambda m: m.any(), True),
    "not any": (lambda m: ~m.any(), False),
    "none": (lambda m: m.sum() == 0, False),
    "as a number": (lambda m: m.float().sum() > 0, True),
    "at least one": (lambda m: m.count_nonzero() >= 1, True),
    "counted": (lambda m: m.sum(), True),
    "by a helper": (elements, True),
    "more than one": (lambda m: m.sum() > 1, None),
    "all": (lambda m: m.all(), False),
    "not all": (lambda m: ~m.all(), True),
    "any other": (lambda m: (~m).any(), True),
    "all other": (lambda m: torch.logical_not(m).all(), False),
    "of numbers": (lambda m: m.float().any(), None),
    "of any number": (lambda m: m.sum() >= 0, None),
}


INVERTED = {"all", "not all", "any other"}
"""They ask for the false elements."""


@pytest.mark.parametrize("name", CONDITIONS)
def test_what_says_whether_a_mask_picks_rows(name):
    condition, truth = CONDITIONS[name]
    graph = make_fx(condition, tracing_mode="fake")(torch.tensor([True, False])).graph
    (asked,) = graph.output_node().all_input_nodes
    found = asked_of(asked)
    assert (found and found[1]) == truth
    assert found is None or found[0].mask.op == "placeholder"
    assert found is None or found[0].inverted == (name in INVERTED)


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


def put(out, mask, expert, x, weight):
    if not mask.any():
        return out
    return torch.where(mask[:, None], expert(x) * weight, out)


def returned(self, x, weight, choice):
    out = x.clone()
    for number, expert in enumerate(self.experts):
        out = put(out, choice == number, expert, x, weight)
    return out


def otherwise(self, x, weight, choice):
    out, is_empty = x, lambda rows: len(rows) < 1
    for number, expert in enumerate(self.experts):
        rows = torch.where(choice == number)[0]
        out = out if is_empty(rows) else out.index_add(0, rows, expert(x[rows]) * weight[rows])
    return out


def chosen_and_heavy(self, x, weight, choice):
    out = x
    for number, expert in enumerate(self.experts):
        mask, heavy = choice == number, weight.squeeze(1) > 0.3
        if mask.any() and heavy.any():
            both = mask & heavy
            out = out + both[:, None] * expert(x) * weight
        else:
            out = out + 0
    return out


ROUTED = [masks, any_of_them, sums, rows_left, nothing_left_out, lengths, returned, otherwise, chosen_and_heavy]


@few(4, "further cases of one kind")
@pytest.mark.parametrize("routed", ROUTED)
def test_branches_that_save_work(routed):
    torch.manual_seed(0)
    model = Mixture(routed).double()
    compiled = hbp.compile(model, quantities=QUANTITIES, verify="full")
    for size in (6, 1, 4):
        x, y = torch.randn(size, 3, dtype=torch.float64), torch.randint(2, (size,))
        agree(compiled(x, y), model, nn.CrossEntropyLoss(), [x], y)
