"""Pieces of models as people write them, to be put together at random: see `test_fuzzing`, and `user_losses`.

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


def encoder():
    return nn.TransformerEncoderLayer(FEATURES, 1, 4, dropout=0.0, activation="gelu", batch_first=True)


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


def rotary(s, h, ids):
    pairs = torch.view_as_complex(s.ab(h).reshape(h.shape[0], h.shape[1], FEATURES, 2))
    angles = torch.arange(h.shape[1], dtype=h.dtype)[:, None] * s.scale
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles))
    return turned[..., 0] + 0.3 * turned[..., 1]


def filtered(s, h, ids):
    return torch.fft.irfft(torch.fft.rfft(s.a(h), dim=1) * s.scale, n=h.shape[1], dim=1).tanh()


def two_weights(s, h, ids):
    return h + torch.tanh(h @ (s.u @ s.v)) * s.scale


def written_where(s, h, ids):
    h = s.a(h).clone()
    h[ids == 0] = s.scale
    return h


def norm_twice(s, h, ids):
    return s.norm(s.a(s.norm(h)) * s.scale)


def own_backward(s, h, ids):
    """A function of one's own whose backward is right."""
    return Cubed.apply(s.a(h)) * s.scale


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


def without_gradient(s, h, ids):
    with torch.no_grad():
        size = h.abs().mean(-1, keepdim=True) + s.scale
    return s.a(h / size)


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
    "rotary": lambda: Piece(rotary, {"ab": lambda: nn.Linear(FEATURES, 2 * FEATURES)}, scale=0.7),
    "filtered": lambda: Piece(filtered, {"a": linear}, scale=0.8),
    "two weights": lambda: Piece(two_weights, None, {"u": (FEATURES, 2), "v": (2, FEATURES)}, scale=0.9),
    "written where": lambda: Piece(written_where, {"a": linear}, scale=0.6),
    "norm twice": lambda: Piece(norm_twice, {"a": linear, "norm": lambda: nn.LayerNorm(FEATURES)}, scale=1.2),
    "own backward": lambda: Piece(own_backward, {"a": linear}, scale=0.4),
    "without gradient": lambda: Piece(without_gradient, {"a": linear}, scale=0.5),
    "lstm": lambda: Piece(lambda s, h, ids: s.rnn(h)[0] * s.scale,
                          {"rnn": lambda: nn.LSTM(FEATURES, FEATURES, batch_first=True)}, scale=1.4),
    "encoder": lambda: Piece(lambda s, h, ids: s.layer(h) * s.scale, {"layer": encoder}, scale=0.8),
    "group norm": lambda: Piece(lambda s, h, ids: s.norm(s.a(h).transpose(1, 2)).transpose(1, 2) * s.scale,
                                {"a": linear, "norm": lambda: nn.GroupNorm(1, FEATURES)}, scale=0.9),
    "sums so far": lambda: Piece(lambda s, h, ids: s.a(h).cumsum(1).sin() * s.scale, {"a": linear}, scale=0.7),
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
