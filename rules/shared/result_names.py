"""How a value is called after what it is made of: the square of S_linear_6 is S_linear_6_squared.

Generated files name so what nobody named. Methods, functions and helpers that are not listed are called as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

DECORATION = re.compile(r"^native_|_legit|_no_training|_with_indices|_numpy$")
"""What torch adds to an operation's name, and no reader needs."""

SUFFIX: Mapping[str, str] = {
    "flatten": "flat", "reshape": "shaped", "view": "shaped", "unflatten": "shaped", "square": "squared",
    "sqrt": "root", "rsqrt": "root_inverse", "abs": "size", "unsqueeze": "col", "squeeze": "row",
    "t": "turned", "mT": "turned", "transpose": "turned", "permute": "turned", "movedim": "turned",
    "gather": "chosen", "embedding": "chosen", "index_select": "chosen", "scatter_add": "scattered",
    "expand": "spread", "expand_as": "spread", "repeat_interleave": "repeated", "type_as": "cast", "to": "cast",
    "cumsum": "cumulated", "pad": "padded", "unfold": "windows", "einsum": "contracted", "matmul": "product",
    "onednn_linear": "product", "product_over_pixels": "product", "mul": "scaled", "truediv": "scaled",
    "div": "scaled", "pow": "power", "add": "plus", "sub": "less", "neg": "negative", "cat": "joined",
    "stack": "stacked", "new_ones": "ones", "new_zeros": "zeros", "diag_embed": "diagonal", "one_hot": "onehot",
    "batch_norm": "normalised", "clamp": "clamped", "scatter_to": "scattered", "spread_slice": "placed",
    "spread_select": "placed", "standardised_back": "back", "randn_like": "noise", "randint": "bits",
}
"""Method or function -> how what it makes of a value is called after it; others are called as they are."""
