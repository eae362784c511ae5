"""Which operations give no negative numbers, whatever they are given or if nothing that they are given is negative.

A loss that is multiplied by such numbers, as by a mask, stays convex.
"""

from __future__ import annotations

NEVER_NEGATIVE = frozenset({
    "aten.abs", "aten.exp", "aten.sigmoid", "aten.softplus", "aten.relu", "aten.softmax", "aten._softmax",
    "aten._safe_softmax", "aten.ones_like", "aten.zeros_like", "aten.ones", "aten.zeros", "aten.one_hot",
    "aten.linalg_vector_norm", "aten.argmax", "aten.argmin",
})
WITHOUT_NEGATIVE = frozenset({
    "aten._to_copy", "aten.to", "aten.clone", "aten.detach", "aten.alias", "aten.view", "aten._unsafe_view",
    "aten.reshape", "aten.unsqueeze", "aten.squeeze", "aten.expand", "aten.transpose", "aten.permute", "aten.t",
    "aten.select", "aten.slice", "aten.flatten", "aten.unflatten", "aten.index", "aten.index_select", "aten.gather",
    "aten.where", "aten.cat", "aten.stack", "aten.repeat", "aten.flip", "aten.sum", "aten.mean", "aten.cumsum",
    "aten.amax", "aten.amin", "aten.maximum", "aten.minimum", "aten.sqrt", "aten.mul", "aten.div", "aten.add",
    "aten.reciprocal", "aten.masked_fill", "aten.full_like", "aten.full", "aten.scalar_tensor", "aten.pow",
})
"""They give none if no tensor, and no number among these arguments, is negative."""
NUMBERS = frozenset({"self", "other", "value", "alpha", "fill_value", "s"})
"""Arguments that enter the result, if they are numbers; `dim` does not."""
AT_LEAST = {"aten.clamp": "min", "aten.clamp_min": "min"}
"""Operation -> the argument that no result is below."""
EVEN = {"aten.pow": "exponent"}
"""Operation -> its exponent: of even ones no result is negative."""
