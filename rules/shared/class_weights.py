"""How much each position of a class-index target counts: ignored ones, class weights, and the mean's denominator."""

from typing import Any

import torch

from hbpcompiler.rule import Op, Tensor, called, counted_labels

from .loss_terms import bounds, reduction


def given(op: Op) -> dict[str, Any]:
    """What torch's loss functions are told of it: what is not as they have it anyway."""
    found: dict[str, Any] = {"weight": op.weight} if op.has("weight") else {}
    return found | ({"ignore_index": op.ignore_index} if op.ignore_index != -100 else {})


def labels(op: Op) -> Tensor:
    """[N, 1, *d]: the targets, with a 0 that counts for nothing where they are ignored."""
    return called("label", counts_and_labels(op)[1])


def counts_and_labels(op: Op) -> tuple[Tensor, Tensor]:
    """Without class weights the counts are the mean's shares already."""
    mean = reduction(op) == "mean" and not op.has("weight")
    return counted_labels(op.target, op.self, ignore_index=op.ignore_index, mean=mean)


def of_samples(op: Op, elements: Tensor) -> Tensor:
    """l_n [N] of the weighted loss of each position, [N, *d]: of a mean, N times the sample's share."""
    each = elements.flatten(1).sum(1) if op.shape("self")[1:] else elements
    if reduction(op) != "mean":
        return each
    kept = (op.target != op.ignore_index).type_as(elements)
    if op.has("weight"):
        kept = kept * torch.take(op.weight, labels(op)).squeeze(1)
    return each * (op.self.shape[0] / kept.sum())


def counted(op: Op) -> tuple[Tensor, Tensor]:
    """[N, 1, *d] each: the share of a position in l_n without and with its class's weight."""
    plain = called("counted", counts_and_labels(op)[0])
    if not op.has("weight"):
        return plain, plain
    weighted = plain * torch.take(op.weight, labels(op))
    if reduction(op) != "mean":
        return plain, weighted
    # Where all is ignored, all shares are zero; where all that counts weighs nothing, they are 0 / 0, as torch's mean.
    scale = op.self.shape[0] / (weighted.sum() + (plain.sum() == 0))
    return called("share", plain * scale), called("share_weighted", weighted * scale)


def terms(op: Op, target: Tensor) -> int | None:
    """How many labels are not ignored; if there are some, class weights would be needed to weigh them."""
    low, high = bounds(target)
    found = int((target.long() != op.ignore_index).sum()) if low <= op.ignore_index <= high else target.numel()
    return None if found and op.has("weight") else found
