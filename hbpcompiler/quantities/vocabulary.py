"""The words of quantities: streams, closings, totals, and how values add up over batches."""

from __future__ import annotations

from typing import Any, NamedTuple

# -- streams: what travels backwards --------------------------------------------------------------------------------
GRADIENT = "gradient"
GGN = "ggn"
GGN_MC = "ggn_mc"
RESIDUAL = "residual"
RESIDUAL_MC = "residual_mc"
RESIDUAL_PARTS = "residual_parts"
"""RESIDUAL once more, by eigenvectors, where its positive and negative parts are wanted beside their sum: the sum's own
columns are in units of what they meet, so that it keeps its digits."""
KFRA = "kfra"
OUTPUT = "output"
"""One unit column for each entry of the model's output, whatever the loss is."""
SUM_GGN = "sum_ggn"
SUM_GGN_MC = "sum_ggn_mc"
"""For each group of parameters F columns a sample: sums of its GGN columns with the weights that a call gives."""
WEIGHED = {SUM_GGN: GGN, SUM_GGN_MC: GGN_MC}
"""Such a stream -> that of the columns which are added up."""
CURVATURE = frozenset({GGN, GGN_MC, KFRA, *WEIGHED})
"""Those that begin with square roots, or with averages, of the loss's own curvature."""
LOSS = "loss"
"""What travels nowhere: of the loss itself, for the whole batch."""
CLIPPED = "clipped"
"""The gradient stream once more, each sample's column times a number that is known when the first phase is over."""
FIRST_ORDER = frozenset({GRADIENT, CLIPPED})
"""Streams of one column, that of the gradient."""


# -- closings: how a stream ends at a parameter ---------------------------------------------------------------------
SUM = "sum"
"""sum_n T, shape [*theta] (gradient stream, one column)."""
EACH = "each"
"""T itself, [N, *theta] (gradient stream); of the loss, l_n [N]."""
NORM = "norm"
"""sum over theta of T^2, [N] (gradient stream); also added up over parameters, as a total."""
DIAGONAL = "diagonal"
"""sum_{n,k} sign_k T^2, [*theta]."""
POSITIVE = "positive"
"""the part of DIAGONAL with sign +."""
NEGATIVE = "negative"
"""the part of DIAGONAL with sign -, as a non-negative number."""
BATCH_DIAGONAL = "batch_diagonal"
"""DIAGONAL before the sum over samples, [N, *theta]."""
VECTORS = "vectors"
"""T itself, all columns, [N, K, *theta]."""
DOT = "dot"
"""sum over theta of T[n] T[m], [N, N] (gradient stream)."""
ALONG = "along"
"""sum over theta of T[n] sum_m T[m], [N] (gradient stream): inner products with their own sum."""
HISTOGRAM = "histogram"
"""how many entries of T, of all samples, lie in each of [B] bins (gradient stream)."""
HISTOGRAM_2D = "histogram_2d"
"""HISTOGRAM apart for the parameter's own values, [R, B]."""
HISTOGRAMS = frozenset({HISTOGRAM, HISTOGRAM_2D})
FACTOR = "factor"
"""B: sum_{n,k,p} over the columns' features over the number of positions, or, for a parameter that meets no input
features (bias, scale), its full block sum_{n,k} T T^T."""
INPUT_FACTOR = "input_factor"
"""A: sum_{n,p} u u^T of the operand; no stream."""
REDUCED_FACTOR = "reduced_factor"
"""B of the columns summed over positions; as FACTOR for a parameter that meets no input features."""
REDUCED_INPUT_FACTOR = "reduced_input_factor"
"""A of the operand averaged over positions."""
BLOCK = "block"
"""What a product with the parameter's block needs of a piece, as a `BlockPart`."""
EIGEN = "eigen"
"""Eigenvectors of FACTOR and INPUT_FACTOR, and DIAGONAL of the cotangents turned into them, as an `EigenPart`."""
IN_BASES = "in_bases"
"""DIAGONAL of the cotangents seen in the bases that a call gives, Q_B^T T Q_A: [*shared, outputs, inputs]; of a whole
block, where there is no A, [n]."""
COLUMN_SUM = "column_sum"
"""sum_n T, all columns, [F, *theta]: of columns that begin as weighted sums of others."""


# -- totals: closings that add up over the parameters of a group -----------------------------------------------------
GRAM = "gram"
"""sum over theta of T[n, k] T[m, j], [N K, N K]: inner products of all columns; DOT of many columns and parameters."""
CROSS = "cross"
"""sum over theta of T[n, k] g[m], [N K, N]: inner products with the gradient's columns."""
PROJECT = "project"
"""sum over theta of T[n, k] d[f], [N, K, F]: inner products of columns with the directions that a call gives."""
TOTALS = frozenset({GRAM, CROSS, PROJECT})
"""One running tensor for each group of parameters, added to in place while the backward pass runs."""
UNDIVIDED = frozenset({BATCH_DIAGONAL, VECTORS, BLOCK, EIGEN, COLUMN_SUM, *TOTALS})
"""Closings that keep samples or columns apart: no loop over chunks of these can add them up."""


# -- how values of several batches become that of all of them together (see `accumulate`) ----------------------------
OF_LOSS = "of the loss"
"""on the scale of L: batches weigh as their losses do."""
MEAN = "mean"
"""a mean over samples, whatever the loss."""
SQUARES = "squares"
"""a mean over samples of squares of the gradients of l_n, whose scale a loss that is a mean over terms gives."""
SPREAD = "spread"
"""their variance, which is merged with the gradients of the batches."""
OVER_POSITIONS = "over positions"
"""as OF_LOSS, but already divided by the number of positions, which may be another in the next batch."""
PRODUCTS = "products"
"""on the scale of L, of products of two gradients of l_n."""
PRODUCTS_OVER_POSITIONS = "products over positions"
"""as PRODUCTS, divided as OVER_POSITIONS."""
COUNTS = "counts"
"""numbers of entries of the gradients of l_n, where these have one scale in all batches."""
ROWS = ("it has a row for each sample, on the scale of its own batch: take them batch by batch, or accumulate what "
        "they add up to")
DIRECTIONS, COLUMN_WEIGHTS, BASES = "directions", "column_weights", "bases"
GRADIENT_EDGES, PARAMETER_EDGES = "gradient_edges", "parameter_edges"
"""Names of call arguments (see `arguments`)."""
PAIRS = "it pairs the samples of one batch with each other"


class EigenPart(NamedTuple):
    """Eigenvectors of A and of B as columns, and the squares [*outputs, *inputs]; A is None for a full block B."""

    A: Any
    B: Any
    eigenvalues: Any


class BlockPart(NamedTuple):
    """A piece as it meets the parameter: columns [n, k, ...] and their signs [n, k], or a diagonal [n, ...].

    The operand [n, ...] is the other side of the parameter's einsum, None where the einsum has but one.
    """

    columns: Any
    signs: Any
    diagonal: Any
    operand: Any


class Closing(NamedTuple):
    """One closing of one stream."""

    stream: str
    kind: str
