"""Names that are no quantities', and which were meant."""

from __future__ import annotations

import difflib
import re

from hbpcompiler.quantities.table import QUANTITIES

OF_OTHERS = {
    "BatchGrad": "batch_grad", "BatchL2Grad": "batch_l2", "BatchDotGrad": "batch_inner",
    "SumGradSquared": "second_moment", "Variance": "variance", "DiagGGNExact": "diag_ggn", "DiagGGN": "diag_ggn",
    "DiagGGNMC": "diag_ggn_mc", "DiagHessian": "diag_h", "BatchDiagGGNExact": "batch_diag_ggn",
    "BatchDiagHessian": "batch_diag_h", "SqrtGGNExact": "sqrt_ggn", "SqrtGGN": "sqrt_ggn", "SqrtGGNMC": "sqrt_ggn_mc",
    "KFAC": "kfac", "KFLR": "kflr", "KFRA": "kfra", "HMP": "hbp.operator", "GGNMP": "hbp.operator",
    "PCHMP": "hbp.operator",
    "grad_batch": "batch_grad", "grad_sample": "batch_grad", "grad_samples": "batch_grad",
    "per_sample_grad": "batch_grad", "per_sample_grads": "batch_grad", "per_sample_gradient": "batch_grad",
    "per_sample_gradients": "batch_grad", "individual_grad": "batch_grad", "sum_grad_squared": "second_moment",
    "diag_ggn_exact": "diag_ggn", "diag_ggn_exact_batch": "batch_diag_ggn", "diag_h_batch": "batch_diag_h",
    "diag_hessian": "diag_h", "hessian_diag": "diag_h", "hessian_diagonal": "diag_h", "ggn_diag": "diag_ggn",
    "ggn_diagonal": "diag_ggn", "sqrt_ggn_exact": "sqrt_ggn",
}
"""BackPACK's extensions, what they save, Opacus's and other names -> quantities; values of some differ by a factor
(docs/coming-from.md)."""
_DIAGONALS = {"hessian": "diag_h", "ggn": "diag_ggn", "fisher_sampled": "diag_ggn_mc",
              "fisher_empirical": "second_moment"}
OF_MATRICES = {
    "h": "hessian", "hessian": "hessian", "hvp": "hessian", "hvps": "hessian", "ggn": "ggn", "gauss_newton": "ggn",
    "ggnvp": "ggn", "gvp": "ggn", "fisher": "fisher_sampled", "fim": "fisher_sampled", "fvp": "fisher_sampled",
    "empirical_fisher": "fisher_empirical", "fisher_empirical": "fisher_empirical",
    "fisher_sampled": "fisher_sampled",
}
"""Names of whole matrices and their products -> the operator's kind."""


def with_the_closest(unknown: str) -> str:
    """The name as it was given, and the quantity that was meant, if one is very close, begins it, or is close; what to
    write, if it is several."""
    name = unknown.lower()
    several = re.findall(r"\w+", unknown)
    if len(several) > 1 and all(each in QUANTITIES for each in several):
        return f"{unknown!r} (several names in one string; write {', '.join(map(repr, several))})"
    if meant := OF_OTHERS.get(unknown) or OF_OTHERS.get(name):
        return f"{unknown!r} (is it {meant}?)"
    if kind := OF_MATRICES.get(name):
        return (f"{unknown!r} (the whole matrix is hbp.operator(model, loss, data, kind={kind!r}), by its products; "
                f"its diagonal is the quantity {_DIAGONALS[kind]})")
    begins = sorted((known for known in QUANTITIES if name.startswith(known)), key=len, reverse=True)
    closest = [*difflib.get_close_matches(name, QUANTITIES, 1, 0.9), *begins,
               *difflib.get_close_matches(name, QUANTITIES, 1)]
    return repr(unknown) + (f" (is it {closest[0]}?)" if closest else "")
