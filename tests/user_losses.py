"""Losses as people write them, of an output [N, CLASSES] and labels [N]: see `test_fuzzing`.

Each is a module with one attribute or buffer that a test may change between two calls.
"""

import torch
import torch.nn.functional as F
from torch import nn

from tests.user_code import CLASSES


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


def smooth(s, o, y):
    return F.smooth_l1_loss(o, F.one_hot(y, CLASSES).to(o.dtype), beta=s.scale)


def counts(s, o, y):
    return F.poisson_nll_loss(o, y[:, None].expand_as(o).to(o.dtype), reduction=s.reduction)


def drawn_from(s, o, y):
    return -torch.distributions.Categorical(logits=o * s.scale).log_prob(y).mean()


def where_asked(s, o, y):
    """A sum over rows with a class other than 0, divided by their number."""
    asked = (y != 0).to(o.dtype)
    per_row = (o - F.one_hot(y, CLASSES)).square().mean(1)
    return s.scale * (per_row * asked).sum() / (asked.sum() + 1)


def gaussian(s, o, y):
    return F.gaussian_nll_loss(o[:, 0], y.to(o.dtype), F.softplus(o[:, 1]) + 0.1, full=s.flag)


def padded(s, o, y):
    return F.cross_entropy(o, y, ignore_index=0, reduction="sum") / len(y) * s.scale


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
    "smooth": lambda: Loss(smooth, scale=0.7),
    "counts": lambda: Loss(counts, reduction="mean"),
    "drawn from": lambda: Loss(drawn_from, scale=1.2),
    "where asked": lambda: Loss(where_asked, scale=1.4),
    "gaussian": lambda: Loss(gaussian, flag=True),
    "padded": lambda: Loss(padded, scale=0.8),
}
