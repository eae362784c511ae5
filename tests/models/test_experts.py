"""Mixtures of experts whose rows are sent to them by places, as mixtures of experts of language models are written:
`rows, slots = torch.where(choice == expert)`; `out.index_add_(0, rows, weights[rows, slots, None] * f(x[rows]))`."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.agreement import agree
from tests.selection import few

QUANTITIES = ["grad", "batch_grad", "batch_l2", "variance", "diag_h", "diag_ggn"]


class Mixture(nn.Module):
    def __init__(self, routed, slots=2):
        super().__init__()
        self.gate, self.routed, self.slots = nn.Linear(3, 4, bias=False), routed, slots
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(3, 2), nn.SiLU(), nn.Linear(2, 3)) for _ in range(4))
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        rows = x.reshape(-1, 3)
        weights, choice = self.gate(rows).softmax(-1).topk(self.slots, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        return self.head(torch.tanh(self.routed(self, rows, weights, choice)).view(x.shape))


def added(self, x, weights, choice):
    out = torch.zeros_like(x)
    for number, expert in enumerate(self.experts):
        rows, slots = torch.where(choice == number)
        out.index_add_(0, rows, weights[rows, slots, None] * expert(x[rows]))
    return out


def put(self, x, weights, choice):
    """As Mistral's own code has it."""
    out = torch.zeros_like(x)
    for number, expert in enumerate(self.experts):
        rows, slots = torch.where(choice == number)
        out[rows] += weights[rows, slots, None] * expert(x[rows])
    return out


def turned(self, x, weights, choice):
    """As transformers had it: the mask has the slots in front, and is of whole numbers."""
    out = torch.zeros_like(x)
    chosen = F.one_hot(choice, num_classes=4).permute(2, 1, 0)
    for number, expert in enumerate(self.experts):
        slots, rows = torch.where(chosen[number])
        out.index_add_(0, rows, expert(x[rows]) * weights[rows, slots, None])
    return out


def of_a_table(self, x, weights, choice):
    out = x.new_zeros(x.shape)
    for number, expert in enumerate(self.experts):
        table = (choice == number).nonzero()
        rows, slots = table[:, 0], table[:, 1]
        out = out.index_add(0, rows, weights[rows, slots].unsqueeze(-1) * expert(x.index_select(0, rows)))
    return out


def accumulated(self, x, weights, choice):
    out = x.clone()
    for number, expert in enumerate(self.experts):
        slots, rows = (number == choice.T).nonzero(as_tuple=True)
        out.index_put_((rows,), weights.T[slots, rows][:, None] * expert(x[rows]), accumulate=True)
    return out


def in_a_dictionary(self, x, weights, choice):
    """Rows of one axis of the places, put into a table that has both."""
    out = x.new_zeros(*choice.shape, 3)
    for number, expert in enumerate(self.experts):
        rows, slots = torch.where(choice == number)
        out[rows, slots] = expert(x[rows])
    return (out * weights[..., None]).sum(1)


@few(2, "further cases of one kind")
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 3)])
@pytest.mark.parametrize("routed", [turned, put, added, of_a_table, accumulated, in_a_dictionary])
def test_routed(routed, shape):
    torch.manual_seed(0)
    model, X = Mixture(routed).double(), torch.randn(*shape, dtype=torch.float64)
    y = torch.randn(*shape[:-1], 2, dtype=torch.float64)
    compiled = hbp.compile(model, F.mse_loss, QUANTITIES, verify="full")
    agree(compiled(X, y), model, F.mse_loss, [X], y)
    with torch.no_grad():  # another choice, and an expert whom nobody chooses
        model.gate.weight.neg_()[2] -= 5 * model.gate.weight[0]
    agree(compiled(X[:3], y[:3]), model, F.mse_loss, [X[:3]], y[:3])


class InGroups(nn.Module):
    """DeepSeek's gate: experts of the best groups alone are chosen."""

    def __init__(self, groups):
        super().__init__()
        self.gate, self.groups = nn.Linear(3, 4), groups

    def forward(self, x):
        scores = self.gate(x.view(-1, 3)).sigmoid()
        best = scores.view(-1, self.groups, 4 // self.groups).topk(2, dim=-1)[0].sum(-1)
        chosen = torch.zeros_like(best).scatter_(1, best.topk(1, dim=-1, sorted=False)[1], 1)
        mask = chosen.unsqueeze(-1).expand(-1, self.groups, 4 // self.groups).reshape(-1, 4)
        index = scores.masked_fill(~mask.bool(), -torch.inf).topk(2, dim=-1, sorted=False)[1]
        weights = scores.gather(1, index)
        return (weights / (weights.sum(-1, keepdim=True) + 1e-20)).view(*x.shape[:-1], 2)


@pytest.mark.parametrize("groups", [1, 2])
def test_gates(groups):
    torch.manual_seed(0)
    model, X = InGroups(groups).double(), torch.randn(4, 3, 3, dtype=torch.float64)
    y = torch.randn(4, 3, 2, dtype=torch.float64)
    agree(hbp.compile(model, F.mse_loss, QUANTITIES)(X, y), model, F.mse_loss, [X], y)


class Twice(nn.Module):
    """Both slots of a row may be one expert's: what is put last stays."""

    def __init__(self):
        super().__init__()
        self.expert = nn.Linear(2, 2)

    def forward(self, x, choice):
        out = torch.zeros_like(x)
        rows, slots = torch.where(choice > 0)
        out[rows] = self.expert(x[rows]) * choice[rows, slots, None]
        return out


def test_the_last_of_several_rows_for_one_place_stays():
    torch.manual_seed(0)
    model, X = Twice().double(), torch.randn(4, 2, dtype=torch.float64)
    choice = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    result = hbp.compile(model, F.mse_loss, ["grad"], verify=False)((X, choice), torch.zeros_like(X))
    weight = model.expert.weight.detach().clone().requires_grad_()
    factor = torch.tensor([2.0, 3.0, 0.0, 4.0], dtype=torch.float64)[:, None]
    loss = ((F.linear(X, weight, model.expert.bias.detach()) * factor) ** 2).mean()
    torch.testing.assert_close(result.grad["expert.weight"], torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(result.loss, loss.detach())
