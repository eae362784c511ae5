"""Names that are no quantities', and which were meant."""

from __future__ import annotations

import difflib

from hbpcompiler.quantities.table import QUANTITIES

OF_BACKPACK = {
    "BatchGrad": "batch_grad", "BatchL2Grad": "batch_l2", "BatchDotGrad": "batch_inner",
    "SumGradSquared": "second_moment", "Variance": "variance", "DiagGGNExact": "diag_ggn", "DiagGGN": "diag_ggn",
    "DiagGGNMC": "diag_ggn_mc", "DiagHessian": "diag_h", "BatchDiagGGNExact": "batch_diag_ggn",
    "BatchDiagHessian": "batch_diag_h", "SqrtGGNExact": "sqrt_ggn", "SqrtGGN": "sqrt_ggn", "SqrtGGNMC": "sqrt_ggn_mc",
    "KFAC": "kfac", "KFLR": "kflr", "KFRA": "kfra", "HMP": "hbp.operator", "GGNMP": "hbp.operator",
    "PCHMP": "hbp.operator",
}
"""Its extensions -> quantities; the values of some differ by a factor (docs/coming-from.md)."""


def with_the_closest(unknown: str) -> str:
    """The name as it was given, and the quantity that was meant, if one is very close, begins it, or is close."""
    if unknown in OF_BACKPACK:
        return f"{unknown!r} (is it {OF_BACKPACK[unknown]}?)"
    name = unknown.lower()
    begins = sorted((known for known in QUANTITIES if name.startswith(known)), key=len, reverse=True)
    closest = [*difflib.get_close_matches(name, QUANTITIES, 1, 0.9), *begins,
               *difflib.get_close_matches(name, QUANTITIES, 1)]
    return repr(unknown) + (f" (is it {closest[0]}?)" if closest else "")
