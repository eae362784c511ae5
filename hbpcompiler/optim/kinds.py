"""The curvature that a preconditioner divides by: which quantities it is made of, for which parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from hbpcompiler.curvature.block import EXACT, PI, SPLITS
from hbpcompiler.errors import OptionError
from hbpcompiler.values import Stored

AS_IS, ABSOLUTE, CLIPPED = "as it is", "absolute", "clipped"


EIGENVALUES = "eigenvalues"
"""The field of averages that are second moments in the eigenvectors of Kronecker factors."""


@dataclass(frozen=True)
class Kind:
    """One curvature by its name in `KINDS`."""

    quantity: str
    """In the table of quantities."""
    others: str = ""
    """For Kronecker factors: the diagonal that parameters have which have no factors."""
    sign: str = AS_IS
    """What becomes of the negative entries of a diagonal."""
    root: bool = False
    """Whether the quantity is V, and the curvature V V^T."""
    eigenvalues: str = ""
    """The quantity that corrects the eigenvalues of Kronecker factors."""

    def field_of(self, quantity: str) -> str:
        """Of averages: where a quantity of one tensor for each parameter is kept."""
        return EIGENVALUES if quantity == self.eigenvalues else ""


KINDS: Mapping[str, Kind] = {
    "diag_ggn": Kind("diag_ggn"),
    "diag_ggn_mc": Kind("diag_ggn_mc"),
    "diag_h_abs": Kind("diag_h", sign=ABSOLUTE),
    "diag_h_clip": Kind("diag_h", sign=CLIPPED),
    "second_moment": Kind("second_moment"),
    "kfac": Kind("kfac", "diag_ggn_mc"),
    "kfac_reduce": Kind("kfac_reduce", "diag_ggn_mc"),
    "kflr": Kind("kflr", "diag_ggn"),
    "kflr_reduce": Kind("kflr_reduce", "diag_ggn"),
    "kfra": Kind("kfra", "diag_ggn"),
    "kfac_emp": Kind("kfac_emp", "second_moment"),
    "kfac_emp_reduce": Kind("kfac_emp_reduce", "second_moment"),
    "ekfac": Kind("kfac", "diag_ggn_mc", eigenvalues="eigenvalues_mc"),
    "ekfac_exact": Kind("kflr", "diag_ggn", eigenvalues="eigenvalues"),
    "ekfac_emp": Kind("kfac_emp", "second_moment", eigenvalues="eigenvalues_emp"),
    "blocks": Kind("sqrt_ggn", root=True),
    "blocks_mc": Kind("sqrt_ggn_mc", root=True),
}
"""Diagonals; Kronecker factors; their eigenvectors with eigenvalues of their own; the whole block of each parameter."""


def kind_of(name: object) -> Kind:
    """Raises OptionError for what is no curvature."""
    if not isinstance(name, str) or name not in KINDS:
        raise OptionError(f"curvature {name!r} is unknown; choose one of {', '.join(KINDS)}")
    return KINDS[name]


def split_of(name: str, given: str | None) -> str:
    """How a damping meets the curvature: None is "pi" for Kronecker factors, "exact" where there are none to share it.

    Raises OptionError for "pi" of eigenvalues that are not products.
    """
    kind = kind_of(name)
    if given is None:
        return EXACT if kind.eigenvalues else PI
    if given not in SPLITS:
        raise OptionError(f"split {given!r} is unknown; choose one of {', '.join(SPLITS)}")
    if given == PI and kind.eigenvalues:
        raise OptionError(f"curvature={name!r} has eigenvalues of its own, which no factors share: split is 'exact'")
    return given


def embedded(model: nn.Module) -> frozenset[str]:
    """The weights of embeddings, by name, and those that are another layer's too: their uses have no common factors."""
    weights = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in weights)


def with_factors(stored: Mapping[str, Stored], largest: int, without: Collection[str] = ()) -> frozenset[str]:
    """The parameters that have Kronecker factors, by name: weights that meet a layer's inputs, have no side longer than
    `largest` and are not among those `without`; and the vectors of the same layers (biases).

    Scales and shifts of norms meet no inputs that a factor could be made of.
    """
    weights = {name for name, own in stored.items()
               if own.layout and name not in without and max(own.shape[0], math.prod(own.shape[1:])) <= largest}
    layers = {_module(name) for name in weights}
    vectors = {name for name, own in stored.items()
               if len(own.shape) == 1 and own.shape[0] <= largest and _module(name) in layers}
    return frozenset(weights | vectors)


def _module(name: str) -> str:
    return name.rpartition(".")[0]
