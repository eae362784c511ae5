"""Helpers of generated code about classes: their probabilities, labels, and columns made of both."""

from __future__ import annotations

import torch
from torch import Tensor

from hbpcompiler.rule.idioms import idiom


@idiom
def covariance_root(p: Tensor) -> Tensor:
    """Exact root S of diag(p) - p p^T = S^T S: [..., C] -> [..., C-1, C], a column S[k] for each class but the first.

    With heads h_j = p_0 + ... + p_j, column j is sqrt(p_j h_{j-1} / h_j) (e_j - sum_{i<j} p_i / h_{j-1} e_i). No ratio
    exceeds 1; where a head vanishes, so do its terms, and a divisor of 1 makes 0/0 a 0.
    """
    heads = p.cumsum(-1)
    divisor = heads + (heads == 0).type_as(p)
    ratio = (p / divisor)[..., 1:].sqrt()
    own = torch.diag_embed(ratio * heads[..., :-1].sqrt(), offset=1)[..., :-1, :]
    others = torch.tril((ratio / divisor[..., :-1].sqrt()).unsqueeze(-1) * p.unsqueeze(-2))
    return own - others


@idiom
def counted_labels(y: Tensor, like: Tensor, ignore_index: int = -100, mean: bool = True) -> tuple[Tensor, Tensor]:
    """[N, 1, *d] each: what a target counts for in l_n, 0 where it is ignored; and the targets, with a 0 there.

    Of a mean over what is not ignored, l_n is N times the sample's share. `like` gives the dtype.
    """
    kept = y != ignore_index
    counted, label = kept.type_as(like).unsqueeze(1), torch.where(kept, y, 0).unsqueeze(1)
    return counted * (like.shape[0] / counted.sum().clamp(min=1)) if mean else counted, label


@idiom
def softmax_as_laid(x: Tensor) -> Tensor:
    """softmax over axis 1 of x [N, C, *d], which lies in memory as x does: torch.softmax lays classes apart, and of
    tokens' outputs [N, T, C], turned, makes a copy that all who read it would have to turn back."""
    return torch.softmax(x.movedim(1, -1), -1).movedim(-1, 1) if x.stride(1) == 1 else torch.softmax(x, 1)


@idiom
def sampled_columns(p: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Of labels [N, M, *d] that were drawn from p [N, C, *d], sqrt(weight / M) (p - e_label): [N, M, C, *d]."""
    place, root = label.unsqueeze(2), (weight.unsqueeze(1) / label.shape[1]).sqrt()
    columns = p.unsqueeze(1) * root
    if label.shape[1] == 1:
        return columns.scatter_add_(2, place, -root.expand_as(place))
    columns = columns.expand([-1, label.shape[1]] + [-1] * (p.dim() - 1))  # TorchScript has no *
    return columns.scatter_add(2, place, -root.expand_as(place))


@idiom(on_meta=lambda weight: weight.clamp(min=0))
def not_negative(weight: Tensor) -> Tensor:
    """Weights of a loss, of which roots are taken; an error where some are negative, which then have none."""
    if bool((weight < 0).any()):
        raise RuntimeError("weights of the loss are negative")
    return weight.clamp(min=0)
