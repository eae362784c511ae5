"""What rows outside a mask must not do, though they are computed: count in a Kronecker factor, give NaN, be an index
that is none."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler import reference
from tests.agreement import agree, close
from tests.selection import few

D = torch.float64
MASKS = ((6, 0.0), (1, 0.1), (4, 9.0), (1, 9.0), (3, -9.0), (1, -9.0), (5, -0.2))
"""Batch sizes, and the gate's bias: some rows, all, or none."""
FACTORS = {"kflr": (reference.kflr, {}), "kfac_emp": (reference.kfac_emp, {}),
           "kflr_reduce": (reference.kflr, {"reduce": True})}


class Gated(nn.Module):
    """Some samples, or positions of them, meet an expert."""

    def __init__(self, expert, width=3):
        super().__init__()
        self.expert, self.head = expert, nn.Linear(width, 2)
        self.gate = nn.Linear(3, 1).requires_grad_(False)

    def forward(self, x):
        mask, out = self.mask(x), x.new_zeros(*x.shape[:-1], self.head.in_features)
        out[mask] = self.expert(x[mask])
        return self.head(torch.tanh(out))

    def mask(self, x):
        return self.gate(x)[..., 0] > 0


def batches(model, shape=()):
    for size, bias in MASKS:
        model.gate.bias.data.fill_(bias)
        yield torch.randn(size, *shape, 3, dtype=D), torch.randn(size, *shape, 2, dtype=D)


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("joint_bias", [False, True])
def test_factors_are_of_picked_rows(shape, joint_bias):
    """Of the second layer, too, whose inputs are not what a mask picks; a bias has a block of its own then."""
    torch.manual_seed(0)
    expert = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False))
    model = Gated(expert).double()
    compiled = hbp.compile(model, nn.MSELoss(), [*FACTORS, "kfac", "ekfac", "batch_grad", "diag_ggn", "diag_h"],
                           verify="full", joint_bias=joint_bias)
    for X, y in batches(model, shape):
        result = compiled(X, y)
        agree(result, model, nn.MSELoss(), [X], y, ["batch_grad", "diag_ggn", "diag_h"])
        first = X[model.mask(X)]
        for name, rows in {"0": first, "2": torch.tanh(expert[0](first))}.items():
            for quantity in ("kflr", "kfac", "kfac_emp"):
                close(result[quantity][f"expert.{name}.weight"].A, rows.T @ rows / len(X), quantity)
        for quantity, (brute_force, options) in FACTORS.items() if len(first) and not shape else ():
            for name, (A, B) in brute_force(model, nn.MSELoss(), [X], y, **options).items():
                if name.startswith("expert"):
                    close(result[quantity][name].B, B, name)
                    if A is not None:
                        close(result[quantity][name].A, A, name)
    assert dict(result.joint_biases) == ({"head.weight": "head.bias"} if joint_bias else {})


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 2, 2), nn.Linear(2, 2)

    def forward(self, x):
        mask, out = x[:, 0] > 0, x.new_zeros(len(x), 2)
        out[mask] = self.conv(x[mask].unsqueeze(1)).mean(-1)
        return self.head(out)


def test_factors_of_convolutions():
    torch.manual_seed(0)
    model = Convolved().double()
    compiled = hbp.compile(model, nn.MSELoss(), ["kflr", "kfac_emp"], verify="full")
    for picks in ([True, False, True, True], [True], [False, True]):
        X, y = torch.randn(len(picks), 3, dtype=D), torch.randn(len(picks), 2, dtype=D)
        X[:, 0] = torch.where(torch.tensor(picks), X[:, 0].abs(), -X[:, 0].abs())
        result = compiled(X, y)
        for quantity in ("kflr", "kfac_emp"):
            A, B = FACTORS[quantity][0](model, nn.MSELoss(), [X], y)["conv.weight"]
            close(result[quantity]["conv.weight"].A, A, quantity)
            close(result[quantity]["conv.weight"].B, B, quantity)


class Words(nn.Module):
    def __init__(self, padding=None):
        super().__init__()
        self.words, self.kinds = nn.Embedding(9, 3, padding_idx=padding), nn.Embedding(4, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, ids):
        """[N, 2]: a word of nine and a kind of four, some words have none."""
        mask, out = ids[:, 0] < 7, self.head.weight.new_zeros(len(ids), 3)
        out[mask] = self.words(ids[mask][:, 0]) * self.kinds(ids[mask][:, 1] - 10).tanh()
        return self.head(out)


def test_indices_outside_are_none():
    torch.manual_seed(0)
    model = Words().double()
    compiled = hbp.compile(model, nn.MSELoss(), ["grad", "batch_grad", "diag_ggn"], verify="full")
    for words in ([3, 8, 6, 0, 7], [8], [8, 7], [1]):
        ids = torch.tensor([[word, 10 + word % 4 if word < 7 else -99] for word in words])
        y = torch.randn(len(words), 2, dtype=D)
        agree(compiled(ids, y), model, nn.MSELoss(), [ids], y)


def test_factors_of_tables():
    torch.manual_seed(0)
    ids, y = torch.tensor([[3, 10], [8, 12], [3, 13], [1, 10]]), torch.randn(4, 2, dtype=D)
    with pytest.raises(hbp.UnsupportedOpError, match=r"'kinds.weight' is a table for rows that a mask picks.*ids"):
        hbp.compile(Words(padding=1).double(), nn.MSELoss(), ["kflr"])(ids, y)
    model = Words(padding=1).double()
    result = hbp.compile(model, nn.MSELoss(), {"kflr": ["words.*", "head.*"]})(ids, y)
    counts = torch.zeros(9, dtype=D).index_fill(0, torch.tensor([3]), 2 / 4)
    close(result.kflr["words.weight"].A, counts.diag(), "counts")


class Own(nn.Module):
    """An expert that ends in a linear layer, so that NaN before it reaches a parameter."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.scale, self.function = nn.Linear(3, 3, bias=False), nn.Linear(3, 3), nn.Parameter(
            torch.ones(3)), function

    def forward(self, r):
        return self.last(self.scale * self.function(self.first(r)))


ROWS = [lambda r: (r - r.mean(1, True)) / r.std(1, keepdim=True),
        lambda r: (r - r.amin(1, True)) / (r.amax(1, True) - r.amin(1, True)),
        lambda r: (r - r.flip(1)).square().sum(1, True).sqrt() * r, lambda r: r / len(r),
        lambda r: r / r.norm(dim=1, keepdim=True) + (r - r.flip(1)).norm(dim=1, keepdim=True),
        lambda r: r.abs().log() + r.abs() ** -0.5 + 1 / r, lambda r: torch.atan2(r, r.flip(1)) * r.std(1)[:, None],
        lambda r: r.square().mean(1, True).rsqrt() * r, lambda r: torch.log_softmax(r.abs().log(), 1)]


@few(3, "further cases of one kind")
@pytest.mark.parametrize("function", ROWS)
def test_no_row_outside_is_without_a_number(function):
    torch.manual_seed(0)
    model = Gated(Own(function)).double()
    compiled = hbp.compile(model, nn.MSELoss(), ["grad", "batch_grad", "diag_ggn", "diag_h"], verify="full")
    for X, y in batches(model):
        agree(compiled(X, y), model, nn.MSELoss(), [X], y)


class Valid(nn.Module):
    """Sequences without a valid token are left out: their mean is 0 / 0, their last token is none."""

    def __init__(self, function):
        super().__init__()
        self.first, self.head, self.function = nn.Linear(3, 4), nn.Linear(4, 2), function

    def forward(self, x, valid):
        some, h = valid.any(1), torch.tanh(self.first(x))
        out = h.new_zeros(len(h), 4)
        out[some] = self.function(h[some], valid[some])
        return self.head(out)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("function", [
    lambda h, v: (h * v[..., None]).sum(1) / v.sum(1, keepdim=True),
    lambda h, v: h.gather(1, (v.sum(1) - 1)[:, None, None].expand(-1, 1, 4))[:, 0] ** 2,
    lambda h, v: (h[..., 0].masked_fill(~v, -torch.inf).softmax(1)[..., None] * h).sum(1)])
def test_sequences_without_a_token(function):
    torch.manual_seed(0)
    model = Valid(function).double()
    compiled = hbp.compile(model, nn.MSELoss(), ["grad", "batch_grad", "diag_ggn", "diag_h"], verify="full")
    for valid in ([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]], [[0, 0, 0]], [[1, 1, 0]], [[1, 1, 1], [1, 0, 0]]):
        v = torch.tensor(valid).bool()
        X, y = torch.randn(len(v), 3, 3, dtype=D), torch.randn(len(v), 2, dtype=D)
        agree(compiled((X, v), y), model, nn.MSELoss(), [X, v], y)


def test_classes_counted_from_behind():
    def loss(o, y):
        scores = o[y >= 0].log_softmax(1)
        return -scores[torch.arange(len(scores)), y[y >= 0] - 3].mean() - F.nll_loss(scores, y[y >= 0])

    torch.manual_seed(0)
    model = nn.Linear(3, 3).double()
    compiled = hbp.compile(model, loss, ["grad", "batch_grad", "diag_h"], verify="full")
    for labels in ([0, 1, -1, 2, 1, 0], [2], [1, 0]):
        X, y = torch.randn(len(labels), 3, dtype=D), torch.tensor(labels)
        agree(compiled(X, y), model, loss, [X], y)
