"""The functions that a generated file defines for itself if its program calls them, as they stand in this package.

They lie in files by what they are for; here are their table, and what passes ask about them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from hbpcompiler.compiler.program import correlations, draws, grams, histograms, pages, pairs, products, sums, weights
from hbpcompiler.compiler.program.grams import (
    add_gram_,
    gram,
    gram_to_,
    half_gram,
    onednn_add_gram_,
    onednn_gram,
    onednn_gram_to_,
    onednn_half_gram,
    pixel_gram,
    pixel_gram_to_,
)
from hbpcompiler.compiler.program.products import (
    onednn_add_product_,
    onednn_linear,
    product_for_all,
    product_over_pixels,
)
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.rule import derivatives, idioms, image_patches, pooling, probabilities, ranges, recurrences
from hbpcompiler.rule.composite import Composite, EachSample
from hbpcompiler.rule.idioms import (
    IDIOMS,
    passed,
    passed_,
    scatter_to,
    standardised_back,
    standardised_back_,
)
from hbpcompiler.rule.image_patches import patch_rows, patches
from hbpcompiler.rule.pooling import (
    adaptive_avg_pool2d_back,
    adaptive_avg_pool3d_back,
    avg_pool2d_back,
    avg_pool3d_back,
)
from hbpcompiler.rule.probabilities import covariance_root, sampled_columns
from hbpcompiler.rules.shared.torch_operations import CONVOLUTION_BACKWARD

GRAMS = (gram, onednn_gram, pixel_gram)
MADE_SCALED = frozenset({*GRAMS, half_gram, onednn_half_gram})
"""What can be made over a number, its argument `over`."""
GROWING: dict[Any, Callable[..., Any]] = {gram: gram_to_, onednn_gram: onednn_gram_to_, pixel_gram: pixel_gram_to_}
"""A Gram matrix -> what adds one to a total."""
OF_ONEDNN: dict[Any, Callable[..., Any]] = {gram: onednn_gram, add_gram_: onednn_add_gram_,
                                            half_gram: onednn_half_gram}
"""What oneDNN may do instead."""
FILES = [file.__name__ for file in (idioms, probabilities, ranges, image_patches, pooling, recurrences, derivatives,
                                    draws, pages, pairs, weights, products, grams, correlations, sums, histograms)]
"""Where the helpers are, in the order in which they stand in a generated file: those that others call come first."""
FALLBACKS: dict[Callable[..., Any], str] = {
    onednn_linear: "F.linear",
    product_over_pixels: "",
    **dict.fromkeys(sorted(IDIOMS, key=lambda helper: FILES.index(helper.__module__)), ""),
    onednn_add_product_: "add_product_(total, x, y, scale, kept)",
}
"""Helper -> what it is where oneDNN gains nothing, a call or another function's name; "" for all others."""


PRODUCTS: frozenset[Any] = frozenset({
    operator.matmul, torch.einsum, onednn_linear, product_for_all, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d,
    F.conv_transpose2d, F.conv_transpose3d, *MADE_SCALED, CONVOLUTION_BACKWARD})
"""What columns are multiplied by, as programs call it: the results are the largest tensors there are."""
LINEAR: frozenset[Any] = frozenset({patches})
"""Helpers whose result is a linear function of their first argument, sample by sample."""
AS_ROWS: dict[Any, Callable[..., Any]] = {patches: patch_rows}
"""A helper that makes [N, rows, positions] -> the one that makes [rows, N * positions] of the same."""
COLUMNS = (scatter_to, covariance_root, sampled_columns, avg_pool2d_back, avg_pool3d_back, adaptive_avg_pool2d_back,
           adaptive_avg_pool3d_back)
"""Helpers that make columns, which others may be written over."""
WRITTEN_OVER: dict[Any, Callable[..., Any]] = {standardised_back: standardised_back_, passed: passed_}
"""A helper -> the one that writes its result over its first argument."""
TAKE_MASKS: frozenset[Any] = frozenset({operator.mul, passed})
"""What a mask beside columns may come to as truth values."""
ONEDNN_LINEAR = "mkldnn._linear_pointwise"
"""The kernel in `onednn_linear`: not in every build of torch, so by its name."""


def composites(graph: fx.Graph) -> dict[str, Composite]:
    """The functions of torch's calls that a program, or a loop in it, mentions, by name and in order."""
    found: dict[str, Composite] = {}
    for node in graph.nodes:
        if isinstance(node.target, Loop):
            found |= composites(node.target.body)
        for item in (node.target, *node.args):
            if isinstance(item, EachSample):
                found.setdefault(item.whole.name, item.whole)
            if isinstance(item, Composite):
                found.setdefault(item.name, item)
    return found


def on_meta(graph: fx.Graph) -> dict[str, Callable[..., Any]]:
    """The helpers of a program that know by themselves what to make of tensors without memory, by name."""
    known = {helper.__name__: helper for helper in IDIOMS if getattr(helper, "on_meta", None) is not None}
    return {**known, **composites(graph)}


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `onednn_linear` is more than F.linear there."""
    return device.type == "cpu" and dtype is torch.float32 and torch.backends.mkldnn.is_available()
