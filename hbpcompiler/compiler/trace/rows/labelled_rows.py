"""A loss of rows that a mask picks and their labels: outside the mask is the label that counts for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.fx import Node

from hbpcompiler.compiler.trace.fx_graph.by_name import given_to, names_of
from hbpcompiler.compiler.trace.rows.rows import NotWholeError, Rows, Writer
from hbpcompiler.rules.shared.torch_operations import (
    ANY_TRUE,
    DIFFERS,
    MOVE_AXIS,
    NOT,
    PRODUCT,
    RATIO,
    ROWS,
    SUM,
    SUMS,
    TOTAL,
    WHERE_OR_NUMBER,
)

NONE, MEAN, SUMMED = 0, 1, 2
"""Reductions, as torch's schemas number them."""
IGNORED = -100


def reduction_of(node: Node) -> int:
    """How a sum, or a loss function of torch's, adds up what it reads."""
    if node.target in SUMS:
        return MEAN if SUMS[node.target] else SUMMED
    return given_to(node).get("reduction", MEAN) if "reduction" in names_of(node.target) else NONE


def loss_of_labels(writer: Writer, called: Any, given: Mapping[str, Any], scores: Any, labels: Rows,
                   zero_of_none: bool) -> Rows | Node:
    """The loss function `called`, whose other arguments are `given`; of no rows its mean is NaN, or zero."""
    if not isinstance(scores, Rows):
        raise NotWholeError
    classes_behind = scores.lead > 1 and len(scores.beside) == 1 and labels.lead == scores.lead
    if not classes_behind:
        scores, labels = writer.flattened(scores), writer.flattened(labels)
    labels = replace(labels, whole=labels.given or labels.whole)
    all_scores = scores.given or scores.whole
    if classes_behind:
        all_scores = writer.call(MOVE_AXIS, all_scores, -1, 1)
    ignored = writer.put_elsewhere(labels, given.get("ignore_index", IGNORED))
    of_all = {**given, "self": all_scores, "target": ignored}
    if zero_of_none:
        return _mean_or_zero(writer, called, of_all, labels.mask)
    found = writer.called(called, of_all)
    return replace(labels, whole=found, given=None) if given.get("reduction", MEAN) == NONE else found


def _mean_or_zero(writer: Writer, called: Any, given: Mapping[str, Any], mask: Node) -> Node:
    """The mean over labels that count, which is zero where no row is picked; where all are ignored it is NaN, but its
    derivative zero, as torch's."""
    total = writer.called(called, {**given, "reduction": SUMMED})
    nobody = writer.call(NOT, writer.call(ANY_TRUE, mask))
    counts = writer.call(DIFFERS, given["target"], given.get("ignore_index", IGNORED))
    weight = given.get("weight")
    if weight is None:
        counted = writer.count(counts)
    else:
        label = writer.call(WHERE_OR_NUMBER, counts, given["target"], 0)
        weights = writer.call(WHERE_OR_NUMBER, counts, writer.call(ROWS, weight, [label]), 0)
        counted = writer.call(SUM, weights)
    nothing = writer.call(NOT, writer.call(ANY_TRUE, counts))
    mean = writer.call(RATIO, total, writer.call(TOTAL, counted, nothing))
    some_or_nobody = writer.call(TOTAL, nobody, writer.call(NOT, nothing))
    zero_or_nan = writer.call(RATIO, writer.call(PRODUCT, some_or_nobody, 0), some_or_nobody)
    return writer.call(TOTAL, mean, zero_or_nan)
