"""Names that are given again: not before what is written into a later line has been read there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.selection import few


class Attention(nn.Module):
    """As GPT-2 writes it: one product for queries, keys and values, which are split first and shaped afterwards."""

    def __init__(self, width, heads, order):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.order = heads, order

    def forward(self, h):
        parts = list(self.qkv(self.norm(h)).split(h.shape[-1], dim=2))
        for which in self.order:
            parts[which] = parts[which].view(*h.shape[:2], self.heads, -1).transpose(1, 2)
        q, k, v = parts
        k, v = torch.cat([k], -2), torch.cat([v], -2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(h.shape)
        return h + self.out(mixed)


class Embeddings(nn.Module):
    """As BERT writes them: three values, and then their sum."""

    def __init__(self):
        super().__init__()
        self.word_embeddings, self.kind_embeddings, self.place_embeddings = (nn.Linear(3, 8) for _ in range(3))

    def forward(self, x):
        words, kinds, places = self.word_embeddings(x), self.kind_embeddings(x), self.place_embeddings(x)
        return words + kinds + places


class Decoder(nn.Module):
    """Its path is so long that names say "t_" for it, which looks like a stream's columns."""

    def __init__(self, order):
        super().__init__()
        self.embeddings = Embeddings()
        self.hidden_layers = nn.ModuleList(Attention(8, 2, order) for _ in range(3))

    def forward(self, x):
        h = self.embeddings(x)
        for layer in self.hidden_layers:
            h = layer(h)
        return h.mean(1)


class Model(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.transformer, self.last = Decoder(order), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.transformer(x))


@few(1, "further cases of one kind")
@pytest.mark.parametrize("order", [(1, 2, 0), (0, 1, 2), (2, 0, 1)])
def test_what_is_split_first_and_shaped_afterwards_and_sums_of_three(order):
    torch.manual_seed(0)
    model, X, y = Model(order).double(), torch.randn(2, 5, 3).double(), torch.tensor([0, 3])
    compiled = hbp.compile(model, quantities=["grad"])
    found = compiled(X, y).grad
    expected = torch.autograd.grad(F.cross_entropy(model(X), y), list(model.parameters()))
    for (name, _), slope in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name], slope, msg=name)
    assert "t transformer" in compiled.code
