"""Networks whose generated programs are looked at."""

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """A small residual network with batch norms."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
                                   nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.pool((x + self.block(x)).relu()).flatten(1))


class Transformer(nn.Module):
    """One small layer with attention, over six words of ten."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.norm = nn.LayerNorm(4)
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.mlp = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.words(x)
        seen = self.norm(x)
        heads = [layer(seen).unflatten(2, (2, 2)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        x = x + F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.head((x + self.mlp(x)).mean(1))


class ViT(nn.Module):
    """A large program: two layers over patches and a token, which share functions."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.after = nn.LayerNorm(8), nn.LayerNorm(8)
            self.heads, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
            self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

        def forward(self, x):
            heads = self.heads(self.before(x)).reshape(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4)
            x = x + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
            return x + self.mlp(self.after(x))

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.layers = nn.Sequential(self.Layer(), self.Layer())
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        patches = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.places
        return self.head(self.norm(self.layers(x))[:, 0])


class GRU(nn.Module):
    """Steps of a recurrent network over words."""

    def __init__(self):
        super().__init__()
        self.words, self.gru, self.head = nn.Embedding(11, 4), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 11)

    def forward(self, x):
        return self.head(self.gru(self.words(x))[0]).transpose(1, 2)


class AlikeBlocks(nn.Module):
    """A program as those of large networks are: three residual blocks and two layers of the head share functions."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
            self.second = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return x + self.second(self.norm(self.first(x)).relu())

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(self.Block(), self.Block(), self.Block())
        self.head = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 3))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))
