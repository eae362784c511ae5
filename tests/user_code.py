"""Pieces of models and losses as people write them, to be put together at random: see `test_fuzzing`.

Sequences are [N, T, D], vectors [N, D]. Each piece is a module of its own with one attribute or buffer that a test may
change between two calls.
"""

import torch
import torch.nn.functional as F
from torch import nn

FEATURES, POSITIONS, CLASSES = 3, 2, 3


class Piece(nn.Module):
    """One step of a model: `code(self, h, ids)`, with the modules and tensors that it needs."""

    def __init__(self, code, modules=None, parameters=None, **attributes):
        super().__init__()
        self.code = code
        for name, module in (modules or {}).items():
            setattr(self, name, module())
        for name, shape in (parameters or {}).items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) * 0.5 + 0.2))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, h, ids):
        return self.code(self, h, ids)


def linear():
    return nn.Linear(FEATURES, FEATURES)


def attention(s, h, ids):
    q, k, v = s.qkv(h).chunk(3, -1)
    return s.out(F.scaled_dot_product_attention(q, k, v, scale=s.scale))


def own_attention(s, h, ids):
    q, k, v = s.qkv(h).split(FEATURES, dim=-1)
    scores = q @ k.transpose(-1, -2) / s.scale + s.bias
    if s.causal:
        scores = scores.masked_fill(torch.ones(POSITIONS, POSITIONS, dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(-1) @ v


def merged(s, h, ids):
    rows = h.reshape(-1, FEATURES)
    rows = s.a(rows).tanh() * s.scale
    return rows.view(h.size(0), -1, FEATURES)


def in_place(s, h, ids):
    h = s.a(h)
    h += s.scale
    h[:, 0] = h[:, 0] * 2
    return h.sigmoid_()


def by_steps(s, h, ids):
    state = torch.zeros(len(h), FEATURES, dtype=h.dtype)
    steps = []
    for t in range(h.shape[1]):
        state = torch.tanh(s.a(h[:, t]) + s.b(state) * s.scale)
        steps.append(state)
    return torch.stack(steps, 1)


def straight(s, h, ids):
    soft = torch.sigmoid(s.a(h))
    return soft + (soft - 0.5).detach() * s.scale


def gated(s, h, ids):
    a, b = s.ab(h).chunk(2, dim=-1)
    return h + s.scale * F.silu(a) * b


def weight_norm(s, h, ids):
    weight = s.g[:, None] * s.v / s.v.norm(dim=1, keepdim=True)
    return F.linear(h, weight) * s.scale


def by_branch(s, h, ids):
    return s.a(h).relu() if s.flag else s.a(h).tanh().square()


def einsum(s, h, ids):
    return torch.einsum("ntd,dke->nte", h, s.w) * s.scale


def over_positions(s, h, ids):
    return s.conv(h.transpose(1, 2)).transpose(1, 2).clamp(-s.scale, s.scale) + h


SEQUENCES = {
    "linear, activation": lambda: Piece(lambda s, h, ids: s.a(h).sigmoid() * s.scale, {"a": linear}, scale=1.5),
    "layer norm": lambda: Piece(lambda s, h, ids: s.a(s.norm(h)), {"a": linear,
                                                                  "norm": lambda: nn.LayerNorm(FEATURES)}),
    "attention": lambda: Piece(attention, {"qkv": lambda: nn.Linear(FEATURES, 3 * FEATURES), "out": linear}, scale=0.7),
    "attention by hand": lambda: Piece(own_attention, {"qkv": lambda: nn.Linear(FEATURES, 3 * FEATURES)},
                                       {"bias": (POSITIONS, POSITIONS)}, scale=1.2, causal=True),
    "merged": lambda: Piece(merged, {"a": linear}, scale=0.8),
    "in place": lambda: Piece(in_place, {"a": linear}, scale=0.3),
    "step by step": lambda: Piece(by_steps, {"a": linear, "b": linear}, scale=0.9),
    "straight": lambda: Piece(straight, {"a": linear}, scale=0.5),
    "gated": lambda: Piece(gated, {"ab": lambda: nn.Linear(FEATURES, 2 * FEATURES)}, scale=1.1),
    "weight norm": lambda: Piece(weight_norm, None, {"g": (FEATURES,), "v": (FEATURES, FEATURES)}, scale=1.3),
    "a branch": lambda: Piece(by_branch, {"a": linear}, flag=True),
    "einsum": lambda: Piece(einsum, None, {"w": (FEATURES, 2, FEATURES)}, scale=0.6),
    "convolution": lambda: Piece(over_positions, {"conv": lambda: nn.Conv1d(FEATURES, FEATURES, 3, padding=1)},
                                 scale=0.9),
    "positions": lambda: Piece(lambda s, h, ids: h + s.table[: h.shape[1]] * s.scale, None,
                               {"table": (POSITIONS + 1, FEATURES)}, scale=0.4),
    "looked up": lambda: Piece(lambda s, h, ids: h * s.scale + s.table(ids).unsqueeze(1),
                               {"table": lambda: nn.Embedding(CLASSES, FEATURES)}, scale=1.2),
}
"""[N, T, D] -> [N, T, D]."""

POOLS = {
    "mean": lambda: Piece(lambda s, h, ids: h.mean(1)),
    "last": lambda: Piece(lambda s, h, ids: h[:, -1]),
    "flat": lambda: Piece(lambda s, h, ids: s.a(h.flatten(1)),
                          {"a": lambda: nn.Linear(POSITIONS * FEATURES, FEATURES)}),
    "picked": lambda: Piece(lambda s, h, ids: h[torch.arange(len(h)), ids % POSITIONS]),
    "weighted": lambda: Piece(lambda s, h, ids: (s.a(h).softmax(1) * h).sum(1), {"a": lambda: nn.Linear(FEATURES, 1)}),
    "largest": lambda: Piece(lambda s, h, ids: h.amax(1) * s.scale, scale=0.7),
}
"""[N, T, D] -> [N, D]."""


def cross_entropy(s, o, y):
    return F.cross_entropy(o / s.scale, y)


def focal(s, o, y):
    ce = F.cross_entropy(o, y, reduction="none")
    return ((1 - torch.exp(-ce)) ** s.power * ce).mean()


def weighted(s, o, y):
    return (F.cross_entropy(o, y, reduction="none") * s.weights[y]).sum() / len(y)


def squares(s, o, y):
    return s.scale * (o - F.one_hot(y, CLASSES)).square().sum() / o.shape[0]


def two_terms(s, o, y):
    return F.cross_entropy(o, y, label_smoothing=0.1) + s.scale * o.square().mean()


def towards_itself(s, o, y):
    return F.mse_loss(o, o.detach().softmax(-1), reduction="sum") * s.scale


def divergence(s, o, y):
    wanted = F.one_hot(y, CLASSES).to(o.dtype) * 0.7 + 0.1
    return F.kl_div(F.log_softmax(o, -1), wanted, reduction="batchmean") * s.scale


def binary(s, o, y):
    return F.binary_cross_entropy_with_logits(o[:, 0], (y == 1).to(o.dtype), reduction=s.reduction)


def in_a_row(s, o, y):
    return torch.stack([F.cross_entropy(o, y), o.square().sum() / int(o.size(0)) * s.scale]).sum()


def samples_first(s, o, y):
    return (o - F.one_hot(y, CLASSES)).square().mean(0) @ s.weights


class Loss(nn.Module):
    def __init__(self, code, **attributes):
        super().__init__()
        self.code = code
        for name, value in attributes.items():
            if isinstance(value, torch.Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, output, target):
        return self.code(self, output, target)


LOSSES = {
    "cross entropy": lambda: Loss(cross_entropy, scale=2.0),
    "focal": lambda: Loss(focal, power=2),
    "weighted": lambda: Loss(weighted, weights=torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)),
    "squares": lambda: Loss(squares, scale=0.5),
    "two terms": lambda: Loss(two_terms, scale=0.1),
    "towards itself": lambda: Loss(towards_itself, scale=1.5),
    "divergence": lambda: Loss(divergence, scale=1.0),
    "in a row": lambda: Loss(in_a_row, scale=0.3),
    "samples first": lambda: Loss(samples_first, weights=torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)),
    "binary": lambda: Loss(binary, reduction="mean"),
}


class Model(nn.Module):
    def __init__(self, pieces, pool, tied, frozen):
        super().__init__()
        self.pieces = nn.ModuleList(pieces)
        if tied:
            self.pieces.append(self.pieces[0])
        self.pool, self.head = pool, nn.Linear(FEATURES, CLASSES)
        if frozen:
            next(self.pieces[-1].parameters()).requires_grad_(False)

    def forward(self, x, ids):
        h = x
        for piece in self.pieces:
            h = piece(h, ids)
        return self.head(self.pool(h, ids))
