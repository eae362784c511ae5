"""How much each position of a class-index target counts: ignored ones, class weights, and the mean's denominator."""

import torch

from hbpcompiler.rule import Op, Tensor, called

from .loss_terms import reduction


def labels(op: Op) -> Tensor:
    """[N, 1, *d]: the targets, with a 0 that counts for nothing where they are ignored."""
    return called("labels", torch.where(op.target != op.ignore_index, op.target, 0).unsqueeze(1))


def counted(op: Op) -> tuple[Tensor, Tensor]:
    """[N, 1, *d] each: the share of a position in l_n without and with its class's weight."""
    kept = called("kept", (op.target != op.ignore_index).type_as(op.self).unsqueeze(1))
    weighted = kept * torch.take(op.weight, labels(op)) if op.has("weight") else kept
    if reduction(op) == "mean":
        scale = op.self.shape[0] / weighted.sum()
        share = called("share", kept * scale)
        return share, called("share_weighted", weighted * scale) if op.has("weight") else share
    return kept, weighted
