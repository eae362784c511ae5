"""The table of quantities: each one says which closings of a parameter's einsum it needs and how it is made of them.

A closing is what is done with the per-sample, per-column cotangent T[n, k, theta] of a parameter: summed over
samples, kept, squared and summed, ... (see `Closing`). Nothing here knows an operation, and no rule knows a quantity.
c is 1/N for a mean loss and 1 for a summed one.
"""

from __future__ import annotations

from collections.abc import Mapping

from hbpcompiler.quantities.quantity import BATCH, GROUP, Quantity
from hbpcompiler.quantities.values import (
    batch_diag_h,
    batch_dot,
    batch_inner,
    batch_l2,
    block,
    column_sum,
    cross,
    diag_h,
    diag_h_sampled,
    diag_h_split,
    diagonal_entry,
    eigenvalues_entry,
    ekfac,
    gram,
    jacobian,
    kronecker_entry,
    norms,
    projected,
    second_moment,
    square_root,
    variance,
)
from hbpcompiler.quantities.vocabulary import (
    ALONG,
    BATCH_DIAGONAL,
    BLOCK,
    CLIPPED,
    COLUMN_SUM,
    COLUMN_WEIGHTS,
    COUNTS,
    CROSS,
    DIAGONAL,
    DIRECTIONS,
    DOT,
    EACH,
    EIGEN,
    GGN,
    GGN_MC,
    GRADIENT,
    GRADIENT_EDGES,
    GRAM,
    HISTOGRAM,
    HISTOGRAM_2D,
    KFRA,
    LOSS,
    NEGATIVE,
    NORM,
    OF_LOSS,
    OUTPUT,
    PAIRS,
    PARAMETER_EDGES,
    POSITIVE,
    PROJECT,
    REDUCED_FACTOR,
    REDUCED_INPUT_FACTOR,
    RESIDUAL,
    RESIDUAL_MC,
    RESIDUAL_PARTS,
    ROWS,
    SPREAD,
    SQUARES,
    SUM,
    SUM_GGN,
    SUM_GGN_MC,
    VECTORS,
    Closing,
)

TABLE: tuple[Quantity, ...] = (
    Quantity("batch_loss", "each sample's loss l_n, [N]", (Closing(LOSS, EACH),), lambda c: c.get(LOSS, EACH),
             of_each_loss=True, per=BATCH, instead=ROWS),
    Quantity("grad", "gradient of L", (Closing(GRADIENT, SUM),), lambda c: c.scaled(c.get(GRADIENT, SUM)),
             adds=(OF_LOSS,)),
    Quantity("batch_grad", "each sample's share of the gradient, [N, *theta]", (Closing(GRADIENT, EACH),),
             lambda c: c.scaled(c.get(GRADIENT, EACH)), instead=ROWS),
    Quantity("batch_l2", "squared norm of each sample's share, [N]", (Closing(GRADIENT, NORM),), batch_l2,
             instead=ROWS),
    Quantity("batch_inner", "inner product of each sample's share of the gradient with the gradient, [N]",
             (Closing(GRADIENT, ALONG), Closing(GRADIENT, SUM)), batch_inner, instead=ROWS),
    Quantity("second_moment", "mean of the squared gradients of l_n", (Closing(GRADIENT, DIAGONAL),), second_moment,
             of_each_loss=True, adds=(SQUARES,)),
    Quantity("variance", "variance of the gradients of l_n", (Closing(GRADIENT, DIAGONAL), Closing(GRADIENT, SUM)),
             variance, of_each_loss=True, adds=(SPREAD,)),
    diagonal_entry("diag_ggn", GGN, "diagonal of the generalised Gauss-Newton matrix"),
    diagonal_entry("diag_ggn_mc", GGN_MC, "its Monte-Carlo estimate from mc_samples gradients per sample"),
    Quantity("diag_h", "exact diagonal of the Hessian", (Closing(GGN, DIAGONAL), Closing(RESIDUAL, DIAGONAL)), diag_h,
             adds=(OF_LOSS,)),
    Quantity("diag_h_mc", "unbiased estimate of diag_h: exact GGN, residuals of mc_samples random-sign columns a sign",
             (Closing(GGN, DIAGONAL), Closing(RESIDUAL_MC, DIAGONAL)), diag_h_sampled(GGN), adds=(OF_LOSS,)),
    Quantity("diag_h_mc_all", "unbiased estimate of diag_h: GGN as in diag_ggn_mc, residuals as in diag_h_mc",
             (Closing(GGN_MC, DIAGONAL), Closing(RESIDUAL_MC, DIAGONAL)), diag_h_sampled(GGN_MC), adds=(OF_LOSS,)),
    Quantity("diag_h_split", "its GGN, positive and negative residual parts: ggn + positive - negative",
             (Closing(GGN, DIAGONAL), Closing(RESIDUAL, POSITIVE), Closing(RESIDUAL, NEGATIVE)), diag_h_split,
             ("ggn", "positive", "negative"), "Split", adds=(OF_LOSS,) * 3),
    Quantity("batch_diag_ggn", "each sample's share of diag_ggn, [N, *theta]", (Closing(GGN, BATCH_DIAGONAL),),
             lambda c: c.scaled(c.get(GGN, BATCH_DIAGONAL)), instead=ROWS),
    Quantity("batch_diag_h", "each sample's share of diag_h, [N, *theta]",
             (Closing(GGN, BATCH_DIAGONAL), Closing(RESIDUAL, BATCH_DIAGONAL)), batch_diag_h,
             instead=ROWS),
    Quantity("trace_ggn", "trace of the parameter's GGN block", (Closing(GGN, DIAGONAL),),
             lambda c: c.scaled(c.get(GGN, DIAGONAL)).sum(), adds=(OF_LOSS,)),
    Quantity("trace_h", "trace of the parameter's Hessian block", (Closing(GGN, DIAGONAL), Closing(RESIDUAL, DIAGONAL)),
             lambda c: diag_h(c).sum(), adds=(OF_LOSS,)),
    Quantity("batch_dot", "dot products of the samples' shares of the gradient, [N, N]", (Closing(GRADIENT, DOT),),
             batch_dot, instead=PAIRS),
    Quantity("clipped_grad", "sum over the samples of the gradients of l_n, each scaled down to max_norm",
             (Closing(GRADIENT, NORM), Closing(CLIPPED, SUM)), lambda c: c.get(CLIPPED, SUM), of_each_loss=True,
             instead="it is a sum over samples, whatever the loss: add up your calls' results, or use into=",
             arguments=("max_norm",), summed=(Closing(GRADIENT, NORM),), brings=("norms",)),
    Quantity("norms", "norms of the gradients of l_n over all parameters, [N]", (Closing(GRADIENT, NORM),), norms,
             of_each_loss=True, per=BATCH, instead=ROWS, summed=(Closing(GRADIENT, NORM),)),
    Quantity("grad_histogram", "how many entries of the gradients of l_n lie in each bin, [B]",
             (Closing(GRADIENT, HISTOGRAM),), lambda c: c.get(GRADIENT, HISTOGRAM), of_each_loss=True,
             adds=(COUNTS,), arguments=(GRADIENT_EDGES,)),
    Quantity("grad_histogram_2d", "the same for each bin of the parameter's values, [R, B]",
             (Closing(GRADIENT, HISTOGRAM_2D),), lambda c: c.get(GRADIENT, HISTOGRAM_2D), of_each_loss=True,
             adds=(COUNTS,), arguments=(GRADIENT_EDGES, PARAMETER_EDGES)),
    Quantity("sqrt_ggn", "columns V, [N, K, *theta], with sum_nk V V^T the GGN block", (Closing(GGN, VECTORS),),
             square_root(GGN), instead=ROWS),
    Quantity("sqrt_ggn_mc", "sampled columns V, [N, mc_samples, *theta]", (Closing(GGN_MC, VECTORS),),
             square_root(GGN_MC), instead=ROWS),
    Quantity("jacobian", "derivative of the model's output, [N, *out, *theta]", (Closing(OUTPUT, VECTORS),), jacobian,
             instead="it has a row for each sample: take them batch by batch"),
    Quantity("block", "what compiled.block_product multiplies with the parameter's Hessian block",
             (Closing(GGN, BLOCK), Closing(RESIDUAL, BLOCK)), block, ("columns", "weights", "diagonals", "operand"),
             "Block", ("operand",), ("columns", "weights", "diagonals"),
             instead="it keeps a batch's columns for products: add up the products"),
    kronecker_entry("kfac", GGN_MC, "Kronecker factors of the GGN, sampled (Martens & Grosse 2015)"),
    kronecker_entry("kflr", GGN, "Kronecker factors of the GGN, exact columns (Botev et al. 2017)"),
    kronecker_entry("kfra", KFRA, "Kronecker factors of the GGN, batch-averaged recursion (Botev et al. 2017)"),
    kronecker_entry("kfac_reduce", GGN_MC, "kfac with positions summed first (Eschenhagen et al. 2023, reduce)",
                     REDUCED_INPUT_FACTOR, REDUCED_FACTOR),
    kronecker_entry("kflr_reduce", GGN, "kflr with positions summed first (Eschenhagen et al. 2023, reduce)",
                     REDUCED_INPUT_FACTOR, REDUCED_FACTOR),
    kronecker_entry("kfac_emp", GRADIENT, "Kronecker factors of the empirical Fisher, of the gradients themselves",
                     of_each_loss=True),
    kronecker_entry("kfac_emp_reduce", GRADIENT, "kfac_emp with positions summed first (Eschenhagen et al. 2023)",
                     REDUCED_INPUT_FACTOR, REDUCED_FACTOR, of_each_loss=True),
    Quantity("ekfac", "eigenvectors of kfac's factors, and sampled second moments in them (George et al. 2018)",
             (Closing(GGN_MC, EIGEN),), ekfac, ("A", "B", "eigenvalues"), "Eigen", ("A",),
             instead="its eigenvectors are those of one batch: hbp.ekfac takes those of the whole data set"),
    eigenvalues_entry("eigenvalues", GGN, "second moments of the exact columns in given bases (EKFAC's eigenvalues)"),
    eigenvalues_entry("eigenvalues_mc", GGN_MC, "the same of sampled columns (George et al. 2018)"),
    eigenvalues_entry("eigenvalues_emp", GRADIENT, "the same of the gradients themselves: of the empirical Fisher"),
    Quantity("gram", "V^T V by group of parameters, [N, K, N, K], with V V^T the GGN of the group",
             (Closing(GGN, GRAM),), gram(GGN), per=GROUP, instead=PAIRS),
    Quantity("gram_mc", "V^T V of sampled columns by group, [N, mc_samples, N, mc_samples]",
             (Closing(GGN_MC, GRAM),), gram(GGN_MC), per=GROUP, instead=PAIRS),
    Quantity("cross", "inner products of the columns V with the samples' shares of the gradient, by group, [N, K, N]",
             (Closing(GGN, CROSS),), cross(GGN), per=GROUP, instead=PAIRS),
    Quantity("cross_mc", "the same of sampled columns, [N, mc_samples, N]",
             (Closing(GGN_MC, CROSS),), cross(GGN_MC), per=GROUP,
             instead=PAIRS),
    Quantity("project", "inner products of the samples' shares of the gradient with directions, by group, [N, F]",
             (Closing(GRADIENT, PROJECT),), projected(GRADIENT), per=GROUP, instead=ROWS, arguments=(DIRECTIONS,)),
    Quantity("project_ggn", "V^T d for each direction, by group, [N, K, F]",
             (Closing(GGN, PROJECT),), projected(GGN), per=GROUP, instead=ROWS, arguments=(DIRECTIONS,)),
    Quantity("project_ggn_mc", "the same of sampled columns, [N, mc_samples, F]",
             (Closing(GGN_MC, PROJECT),), projected(GGN_MC), per=GROUP, instead=ROWS, arguments=(DIRECTIONS,)),
    Quantity("column_sum", "V w for each vector of weights of the parameter's group, [F, *theta]",
             (Closing(SUM_GGN, COLUMN_SUM),), column_sum(SUM_GGN), instead=ROWS, arguments=(COLUMN_WEIGHTS,)),
    Quantity("column_sum_mc", "the same of sampled columns",
             (Closing(SUM_GGN_MC, COLUMN_SUM),), column_sum(SUM_GGN_MC), instead=ROWS, arguments=(COLUMN_WEIGHTS,)),
)


PARTS = (POSITIVE, NEGATIVE)
"""Closings of a residual to which each column counts by its own sign."""
QUANTITIES: Mapping[str, Quantity] = {quantity.name: quantity for quantity in TABLE}

SAMPLED: Mapping[str, str] = {
    "diag_ggn": "diag_ggn_mc", "trace_ggn": "diag_ggn_mc", "diag_h": "diag_h_mc", "diag_h_split": "diag_h_mc",
    "trace_h": "diag_h_mc", "diag_h_mc": "diag_h_mc_all", "sqrt_ggn": "sqrt_ggn_mc", "kflr": "kfac",
    "kflr_reduce": "kfac_reduce", "gram": "gram_mc", "cross": "cross_mc", "project_ggn": "project_ggn_mc",
    "column_sum": "column_sum_mc",
    "eigenvalues": "eigenvalues_mc",
}
"""Quantities that estimate, from sampled columns, what others say exactly."""


def closings_for(names: tuple[str, ...], apart: bool = False) -> frozenset[Closing]:
    """All closings that the named quantities need; DIAGONAL follows from POSITIVE and NEGATIVE where both are there,
    unless parts are `apart`, in a stream of their own."""
    needed = {closing for name in names for closing in QUANTITIES[name].needs}
    if apart:
        return frozenset(Closing(RESIDUAL_PARTS if stream == RESIDUAL and kind in PARTS else stream, kind)
                         for stream, kind in needed)
    for stream in {closing.stream for closing in needed}:
        if Closing(stream, POSITIVE) in needed:
            needed.discard(Closing(stream, DIAGONAL))
    return frozenset(needed)
