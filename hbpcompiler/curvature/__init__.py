"""Linear algebra with curvature: products, inverses, powers and samples of Kronecker, diagonal and dense blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hbpcompiler.curvature.block import Block
from hbpcompiler.curvature.elementary import Dense, Diagonal
from hbpcompiler.curvature.kronecker import EigenKronecker, Kronecker
from hbpcompiler.curvature.read import blocks_of
from hbpcompiler.curvature.spread import decompose
from hbpcompiler.curvature.whole import Curvature

__all__ = ["Block", "Curvature", "Dense", "Diagonal", "EigenKronecker", "Kronecker", "curvature"]


def curvature(values: Mapping[str, Any], parameters: nn.Module | Mapping[str, Any] | None = None, *,
              layouts: Mapping[str, str] | None = None,
              joint_biases: Mapping[str, str] | None = None, group: Any = None) -> Curvature:
    """The block-diagonal matrix of one quantity of a result: `hbp.curvature(result.kfac)`.

    Args:
        values: by parameter name, what a result or a total holds: Kronecker factors (A, B), eigenvectors of some
            (ekfac), diagonals [*theta], or whole blocks [n, n] for a parameter of n entries. A parameter without A (a
            bias) has a dense block B. What comes from a result knows its parameters; what follows is for dicts of your
            own.
        parameters: the model, or {name: tensor or shape}, in the order of flat vectors.
        layouts: for weights with factors, "out, in" if the first axis counts the layer's outputs (linear layers,
            convolutions), "in, out" if it counts its inputs (x @ W, transposed convolutions, embeddings). Without, it
            is whichever fits the first axis' length, and an error where both do.
        joint_biases: by the name of a weight, that of the bias which is the last of the inputs in its block, as
            `Result.joint_biases` has it.
        group: a torch.distributed group, each of whose ranks makes this call with the same values: eigenvectors are
            found at once, each matrix's on one rank, so that all have about as much to do, and handed to all.

    Raises:
        RankError: where eigenvectors could not be found on another rank.
        InputError: listing every value that does not fit: unknown names, wrong shapes or dtypes, factors that are not
            symmetric or not finite, quantities that are no curvature.
    """
    found = Curvature(*blocks_of(values, parameters, layouts, joint_biases), getattr(values, "weights", ""))
    if group is not None:
        decompose([matrix for block in found.blocks for matrix in block.symmetric_matrices], group)
    return found
