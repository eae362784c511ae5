"""The table of quantities: each one says which closings of a parameter's einsum it needs and how it is made of them.

A closing is what is done with the per-sample, per-column cotangent T[n, k, theta] of a parameter: summed over
samples, kept, squared and summed, ... (see `Closing`). Nothing here knows an operation, and no rule knows a quantity.
c is 1/N for a mean loss and 1 for a summed one.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hbpcompiler.clipping import norms_of

# -- streams: what travels backwards --------------------------------------------------------------------------------
GRADIENT = "gradient"
GGN = "ggn"
GGN_MC = "ggn_mc"
RESIDUAL = "residual"
RESIDUAL_MC = "residual_mc"
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
WEIGHTED = "weighted"
"""The gradient stream once more, each sample's column times a number that is known when the first phase is over."""
FIRST_ORDER = frozenset({GRADIENT, WEIGHTED})
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


ROWS = ("it has a row for each sample: take them batch by batch (with a mean loss, times the batch's share of the "
        "data), or accumulate what they add up to")
DIRECTIONS, COLUMN_WEIGHTS = "directions", "column_weights"
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


class Closed:
    """What `Quantity.value` computes with: the closings of one parameter, the batch size, the reduction."""

    def __init__(self, closings: Mapping[Closing, Any], batch: Any, reduction: str,
                 output: tuple[int, ...] = ()) -> None:
        self.closings = closings
        self.batch = batch
        self.reduction = reduction
        self.output = output
        """The shape of one sample's part of the output at which the stream OUTPUT begins."""

    def get(self, stream: str, kind: str) -> Any:
        """A closing; None if nothing of that stream reaches the parameter (a residual that is zero)."""
        return self.closings.get(Closing(stream, kind))

    def scaled(self, value: Any) -> Any:
        """Times c."""
        return value / self.batch if self.reduction == "mean" else value

    def total(self, value: Any) -> Any:
        """A batch average in terms of L: times N for a summed loss."""
        return value if self.reduction == "mean" else value * self.batch

    def mean(self, value: Any) -> Any:
        """Over N, whatever the reduction."""
        return value / self.batch


PARAMETER, GROUP, BATCH = "parameter", "group", "batch"
"""What a quantity has a value for: each parameter, each group of parameters (`Chosen.groups`)."""


@dataclass(frozen=True)
class Quantity:
    """One entry of the table. `value(closed)` is a tensor, or one per name of `fields`."""

    name: str
    summary: str
    needs: tuple[Closing, ...]
    value: Callable[[Closed], Any]
    fields: tuple[str, ...] = ()
    """The named tuple's fields, for quantities of several tensors."""
    record: str = ""
    """The named tuple's class name."""
    optional: tuple[str, ...] = ()
    """Fields that may be None (a bias has no A)."""
    lists: tuple[str, ...] = ()
    """Fields that are lists of tensors, one for each piece of curvature."""
    of_each_loss: bool = False
    """Whether it is about l_n itself, whose scale depends on whether the loss is a mean or a sum."""
    adds: tuple[str, ...] = ()
    """How it adds up over batches, for the value or for each of `fields`; none: it does not."""
    instead: str = ""
    """What to accumulate, or to do, in place of what does not add up."""
    per: str = PARAMETER
    """What there is a value for; its closings are totals where that is a group, and those of the whole
    batch where there is one value for all of it."""
    arguments: tuple[str, ...] = ()
    """Names of the call arguments (see `arguments`) that a program needs for it."""
    summed: tuple[Closing, ...] = ()
    """Those of its closings that are added up over the parameters that it is for."""
    brings: tuple[str, ...] = ()
    """Quantities that are in the result beside it, for the same parameters."""

    @property
    def streams(self) -> set[str]:
        return {closing.stream for closing in self.needs if closing.stream}

    def needs_roots(self, stream: str) -> bool:
        """Whether it is made of columns themselves of this stream, which must be real square roots."""
        return any(WEIGHED.get(closing.stream, closing.stream) == stream
                   and closing.kind in {VECTORS, COLUMN_SUM, *TOTALS} for closing in self.needs)

    @property
    def of_groups(self) -> bool:
        """Whether it is for parameters in groups alone."""
        return self.per == GROUP or bool(self.streams & WEIGHED.keys())

    @property
    def averages(self) -> bool:
        """Whether averages over the samples go into it, of which weights that are all zero leave nothing."""
        return any(closing.stream in ("", KFRA) or closing.kind == EIGEN for closing in self.needs)


def _second_moment(closed: Closed) -> Any:
    return closed.mean(closed.get(GRADIENT, DIAGONAL))


def _variance(closed: Closed) -> Any:
    return _second_moment(closed) - closed.mean(closed.get(GRADIENT, SUM)).square()


def _batch_l2(closed: Closed) -> Any:
    norm = closed.get(GRADIENT, NORM)
    return norm / closed.batch**2 if closed.reduction == "mean" else norm


def _norms(closed: Closed) -> Any:
    return norms_of(closed.get(GRADIENT, NORM))


def _diag_h(closed: Closed) -> Any:
    ggn, residual = closed.get(GGN, DIAGONAL), closed.get(RESIDUAL, DIAGONAL)
    if residual is None and closed.get(RESIDUAL, POSITIVE) is not None:
        positive, negative = closed.get(RESIDUAL, POSITIVE), closed.get(RESIDUAL, NEGATIVE)
        residual = positive if negative is None else positive - negative
    return closed.scaled(ggn) if residual is None else closed.scaled(ggn + residual)


def _diag_h_mc(closed: Closed) -> Any:
    ggn, residual = closed.get(GGN, DIAGONAL), closed.get(RESIDUAL_MC, DIAGONAL)
    return closed.scaled(ggn) if residual is None else closed.scaled(ggn + residual)


def _diag_h_split(closed: Closed) -> dict[str, Any]:
    ggn = closed.scaled(closed.get(GGN, DIAGONAL))
    parts = {"positive": closed.get(RESIDUAL, POSITIVE), "negative": closed.get(RESIDUAL, NEGATIVE)}
    return {"ggn": ggn, **{name: ggn.new_zeros(ggn.shape) if part is None else closed.scaled(part)
                           for name, part in parts.items()}}


def _batch_diag_h(closed: Closed) -> Any:
    ggn, residual = closed.get(GGN, BATCH_DIAGONAL), closed.get(RESIDUAL, BATCH_DIAGONAL)
    return closed.scaled(ggn) if residual is None else closed.scaled(ggn + residual)


def _batch_dot(closed: Closed) -> Any:
    dot = closed.get(GRADIENT, DOT)
    return dot / closed.batch**2 if closed.reduction == "mean" else dot


def _block(closed: Closed) -> dict[str, Any]:
    parts = (*closed.get(GGN, BLOCK), *(closed.get(RESIDUAL, BLOCK) or ()))
    return {
        "columns": [part.columns for part in parts if part.columns is not None],
        "weights": [closed.scaled(part.signs) for part in parts if part.columns is not None],
        "diagonals": [closed.scaled(part.diagonal) for part in parts if part.diagonal is not None],
        "operand": parts[0].operand,
    }


def _ekfac(closed: Closed) -> dict[str, Any]:
    (part,) = closed.get(GGN_MC, EIGEN)
    return {"A": part.A, "B": part.B, "eigenvalues": closed.scaled(part.eigenvalues)}


def _square_root(stream: str) -> Callable[[Closed], Any]:
    def value(closed: Closed) -> Any:
        vectors = closed.get(stream, VECTORS)
        return vectors / closed.batch**0.5 if closed.reduction == "mean" else vectors

    return value


def _by_samples(matrix: Any, batch: Any) -> Any:
    """[N K, N K] -> [N, K, N, K]."""
    return matrix.unflatten(1, (batch, -1)).unflatten(0, (batch, -1))


def _gram(stream: str) -> Callable[[Closed], Any]:
    return lambda closed: closed.scaled(_by_samples(closed.get(stream, GRAM), closed.batch))


def _cross(stream: str) -> Callable[[Closed], Any]:
    def value(closed: Closed) -> Any:
        found = closed.get(stream, CROSS).unflatten(0, (closed.batch, -1))
        return found / closed.batch**1.5 if closed.reduction == "mean" else found

    return value


def _jacobian(closed: Closed) -> Any:
    vectors = closed.get(OUTPUT, VECTORS)
    if len(closed.output) == 1:
        return vectors
    return vectors.unflatten(1, closed.output) if closed.output else vectors.squeeze(1)


def _projected(stream: str) -> Callable[[Closed], Any]:
    def value(closed: Closed) -> Any:
        found = closed.get(stream, PROJECT)
        if stream == GRADIENT:
            return closed.scaled(found.squeeze(1))
        return found / closed.batch**0.5 if closed.reduction == "mean" else found

    return value


def _column_sum(stream: str) -> Callable[[Closed], Any]:
    def value(closed: Closed) -> Any:
        found = closed.get(stream, COLUMN_SUM)
        return found / closed.batch**0.5 if closed.reduction == "mean" else found

    return value


def _kronecker(stream: str, inputs: str = INPUT_FACTOR, outputs: str = FACTOR) -> Callable[[Closed], dict[str, Any]]:
    def value(closed: Closed) -> dict[str, Any]:
        features, factor = closed.get("", inputs), closed.get(stream, outputs)
        return {
            "A": None if features is None else closed.mean(features),
            "B": closed.total(factor) if stream == KFRA else closed.scaled(factor),  # KFRA's is an average already
        }

    return value


def _kronecker_entry(name: str, stream: str, summary: str, inputs: str = INPUT_FACTOR,
                     outputs: str = FACTOR, of_each_loss: bool = False) -> Quantity:
    needs = (Closing(stream, outputs), Closing("", inputs))
    over = OVER_POSITIONS if outputs == FACTOR else OF_LOSS
    if stream == GRADIENT:
        over = PRODUCTS_OVER_POSITIONS if outputs == FACTOR else PRODUCTS
    adds: tuple[str, ...] = (MEAN, over) if stream != KFRA else ()
    instead = "its recursion is not linear in the batch: take kflr" if stream == KFRA else ""
    return Quantity(name, summary, needs, _kronecker(stream, inputs, outputs), ("A", "B"), "Factors", ("A",),
                    of_each_loss=of_each_loss, adds=adds, instead=instead)


def _diagonal_entry(name: str, stream: str, summary: str) -> Quantity:
    closing = Closing(stream, DIAGONAL)
    return Quantity(name, summary, (closing,), lambda closed: closed.scaled(closed.get(*closing)), adds=(OF_LOSS,))


TABLE: tuple[Quantity, ...] = (
    Quantity("batch_loss", "each sample's loss l_n, [N]", (Closing(LOSS, EACH),), lambda c: c.get(LOSS, EACH),
             of_each_loss=True, per=BATCH, instead=ROWS),
    Quantity("grad", "gradient of L", (Closing(GRADIENT, SUM),), lambda c: c.scaled(c.get(GRADIENT, SUM)),
             adds=(OF_LOSS,)),
    Quantity("batch_grad", "each sample's share of the gradient, [N, *theta]", (Closing(GRADIENT, EACH),),
             lambda c: c.scaled(c.get(GRADIENT, EACH)), instead=ROWS),
    Quantity("batch_l2", "squared norm of each sample's share, [N]", (Closing(GRADIENT, NORM),), _batch_l2,
             instead=ROWS),
    Quantity("second_moment", "mean of the squared gradients of l_n", (Closing(GRADIENT, DIAGONAL),), _second_moment,
             of_each_loss=True, adds=(SQUARES,)),
    Quantity("variance", "variance of the gradients of l_n", (Closing(GRADIENT, DIAGONAL), Closing(GRADIENT, SUM)),
             _variance, of_each_loss=True, adds=(SPREAD,)),
    _diagonal_entry("diag_ggn", GGN, "diagonal of the generalised Gauss-Newton matrix"),
    _diagonal_entry("diag_ggn_mc", GGN_MC, "its Monte-Carlo estimate from mc_samples gradients per sample"),
    Quantity("diag_h", "exact diagonal of the Hessian", (Closing(GGN, DIAGONAL), Closing(RESIDUAL, DIAGONAL)), _diag_h,
             adds=(OF_LOSS,)),
    Quantity("diag_h_mc", "unbiased estimate of diag_h: exact GGN, residuals of mc_samples random-sign columns a sign",
             (Closing(GGN, DIAGONAL), Closing(RESIDUAL_MC, DIAGONAL)), _diag_h_mc, adds=(OF_LOSS,)),
    Quantity("diag_h_split", "its GGN, positive and negative residual parts: ggn + positive - negative",
             (Closing(GGN, DIAGONAL), Closing(RESIDUAL, POSITIVE), Closing(RESIDUAL, NEGATIVE)), _diag_h_split,
             ("ggn", "positive", "negative"), "Split", adds=(OF_LOSS,) * 3),
    Quantity("batch_diag_ggn", "each sample's share of diag_ggn, [N, *theta]", (Closing(GGN, BATCH_DIAGONAL),),
             lambda c: c.scaled(c.get(GGN, BATCH_DIAGONAL)), instead=ROWS),
    Quantity("batch_diag_h", "each sample's share of diag_h, [N, *theta]",
             (Closing(GGN, BATCH_DIAGONAL), Closing(RESIDUAL, BATCH_DIAGONAL)), _batch_diag_h,
             instead=ROWS),
    Quantity("trace_ggn", "trace of the parameter's GGN block", (Closing(GGN, DIAGONAL),),
             lambda c: c.scaled(c.get(GGN, DIAGONAL)).sum(), adds=(OF_LOSS,)),
    Quantity("trace_h", "trace of the parameter's Hessian block", (Closing(GGN, DIAGONAL), Closing(RESIDUAL, DIAGONAL)),
             lambda c: _diag_h(c).sum(), adds=(OF_LOSS,)),
    Quantity("batch_dot", "dot products of the samples' shares of the gradient, [N, N]", (Closing(GRADIENT, DOT),),
             _batch_dot, instead=PAIRS),
    Quantity("clipped_grad", "sum over the samples of the gradients of l_n, each scaled down to max_norm",
             (Closing(GRADIENT, NORM), Closing(WEIGHTED, SUM)), lambda c: c.get(WEIGHTED, SUM), of_each_loss=True,
             instead="it is a sum over samples, whatever the loss: add it up", arguments=("max_norm",),
             summed=(Closing(GRADIENT, NORM),), brings=("norms",)),
    Quantity("norms", "norms of the gradients of l_n over all parameters, [N]", (Closing(GRADIENT, NORM),), _norms,
             of_each_loss=True, per=BATCH, instead=ROWS, summed=(Closing(GRADIENT, NORM),)),
    Quantity("sqrt_ggn", "columns V, [N, K, *theta], with sum_nk V V^T the GGN block", (Closing(GGN, VECTORS),),
             _square_root(GGN), instead=ROWS),
    Quantity("sqrt_ggn_mc", "sampled columns V, [N, mc_samples, *theta]", (Closing(GGN_MC, VECTORS),),
             _square_root(GGN_MC), instead=ROWS),
    Quantity("jacobian", "derivative of the model's output, [N, *out, *theta]", (Closing(OUTPUT, VECTORS),), _jacobian,
             instead="it has a row for each sample: take them batch by batch"),
    Quantity("block", "what compiled.block_product multiplies with the parameter's Hessian block",
             (Closing(GGN, BLOCK), Closing(RESIDUAL, BLOCK)), _block, ("columns", "weights", "diagonals", "operand"),
             "Block", ("operand",), ("columns", "weights", "diagonals"),
             instead="it keeps a batch's columns for products: add up the products"),
    _kronecker_entry("kfac", GGN_MC, "Kronecker factors of the GGN, sampled (Martens & Grosse 2015)"),
    _kronecker_entry("kflr", GGN, "Kronecker factors of the GGN, exact columns (Botev et al. 2017)"),
    _kronecker_entry("kfra", KFRA, "Kronecker factors of the GGN, batch-averaged recursion (Botev et al. 2017)"),
    _kronecker_entry("kfac_reduce", GGN_MC, "kfac with positions summed first (Eschenhagen et al. 2023, reduce)",
                     REDUCED_INPUT_FACTOR, REDUCED_FACTOR),
    _kronecker_entry("kflr_reduce", GGN, "kflr with positions summed first (Eschenhagen et al. 2023, reduce)",
                     REDUCED_INPUT_FACTOR, REDUCED_FACTOR),
    _kronecker_entry("kfac_emp", GRADIENT, "Kronecker factors of the empirical Fisher, of the gradients themselves",
                     of_each_loss=True),
    _kronecker_entry("kfac_emp_reduce", GRADIENT, "kfac_emp with positions summed first (Eschenhagen et al. 2023)",
                     REDUCED_INPUT_FACTOR, REDUCED_FACTOR, of_each_loss=True),
    Quantity("ekfac", "eigenvectors of kfac's factors, and sampled second moments in them (George et al. 2018)",
             (Closing(GGN_MC, EIGEN),), _ekfac, ("A", "B", "eigenvalues"), "Eigen", ("A",),
             instead="its eigenvectors are those of one batch: accumulate kfac, and take those of the total"),
    Quantity("gram", "V^T V by group of parameters, [N, K, N, K], with V V^T the GGN of the group",
             (Closing(GGN, GRAM),), _gram(GGN), per=GROUP, instead=PAIRS),
    Quantity("gram_mc", "V^T V of sampled columns by group, [N, mc_samples, N, mc_samples]",
             (Closing(GGN_MC, GRAM),), _gram(GGN_MC), per=GROUP, instead=PAIRS),
    Quantity("cross", "inner products of the columns V with the samples' shares of the gradient, by group, [N, K, N]",
             (Closing(GGN, CROSS),), _cross(GGN), per=GROUP, instead=PAIRS),
    Quantity("cross_mc", "the same of sampled columns, [N, mc_samples, N]",
             (Closing(GGN_MC, CROSS),), _cross(GGN_MC), per=GROUP,
             instead=PAIRS),
    Quantity("project", "inner products of the samples' shares of the gradient with directions, by group, [N, F]",
             (Closing(GRADIENT, PROJECT),), _projected(GRADIENT), per=GROUP, instead=ROWS, arguments=(DIRECTIONS,)),
    Quantity("project_ggn", "V^T d for each direction, by group, [N, K, F]",
             (Closing(GGN, PROJECT),), _projected(GGN), per=GROUP, instead=ROWS, arguments=(DIRECTIONS,)),
    Quantity("project_ggn_mc", "the same of sampled columns, [N, mc_samples, F]",
             (Closing(GGN_MC, PROJECT),), _projected(GGN_MC), per=GROUP, instead=ROWS, arguments=(DIRECTIONS,)),
    Quantity("column_sum", "V w for each vector of weights of the parameter's group, [F, *theta]",
             (Closing(SUM_GGN, COLUMN_SUM),), _column_sum(SUM_GGN), instead=ROWS, arguments=(COLUMN_WEIGHTS,)),
    Quantity("column_sum_mc", "the same of sampled columns",
             (Closing(SUM_GGN_MC, COLUMN_SUM),), _column_sum(SUM_GGN_MC), instead=ROWS, arguments=(COLUMN_WEIGHTS,)),
)

QUANTITIES: Mapping[str, Quantity] = {quantity.name: quantity for quantity in TABLE}
WITHOUT_VECTORS = tuple(quantity.name for quantity in TABLE
                        if not {DIRECTIONS, COLUMN_WEIGHTS}.intersection(quantity.arguments))
"""All but those that take vectors of parameters or of columns, whose shapes depend on the model."""


def closings_for(names: tuple[str, ...]) -> frozenset[Closing]:
    """All closings that the named quantities need; DIAGONAL follows from POSITIVE and NEGATIVE where both are there."""
    needed = {closing for name in names for closing in QUANTITIES[name].needs}
    for stream in {closing.stream for closing in needed}:
        if Closing(stream, POSITIVE) in needed:
            needed.discard(Closing(stream, DIAGONAL))
    return frozenset(needed)


ALL = "all"
"""The group of all parameters, where no others are given."""


@dataclass(frozen=True)
class Chosen:
    """Which parameters a quantity is for: shell patterns of names, by quantity; those without any are for all."""

    patterns: tuple[tuple[str, tuple[str, ...]], ...] = ()
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ((ALL, ("*",)),)
    """What quantities by group add up over: (the group's name, patterns of its parameters' names)."""

    def asks(self, quantity: str, parameter: str) -> bool:
        """Whether the quantity is for this parameter: one by group, for those in some group."""
        found = dict(self.patterns).get(quantity)
        if QUANTITIES[quantity].of_groups and self.group_of(parameter) is None:
            return False
        return found is None or _fits(parameter, found)

    def group_of(self, parameter: str) -> str | None:
        """The group that a parameter is in, if it is in one."""
        return next((name for name, patterns in self.groups if _fits(parameter, patterns)), None)

    def notes(self) -> list[str]:
        """What the head of the file, and `explain`, say about it."""
        return [f"{name} is for parameters {', '.join(patterns)}." for name, patterns in self.patterns]


def _fits(parameter: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(parameter, pattern) for pattern in patterns)


class Closings(frozenset[Closing]):
    """All closings of a program; `of` says which of them one parameter has."""

    def __new__(cls, names: tuple[str, ...], chosen: Chosen, kept: Callable[[frozenset[Closing]], frozenset[Closing]],
                ) -> Closings:
        made = super().__new__(cls, kept(closings_for(names)))
        made.names, made.chosen, made.kept = names, chosen, kept
        return made

    names: tuple[str, ...]
    chosen: Chosen
    kept: Callable[[frozenset[Closing]], frozenset[Closing]]

    def of(self, parameter: str) -> frozenset[Closing]:
        """Those that the quantities chosen for this parameter need."""
        return self.kept(closings_for(tuple(name for name in self.names if self.chosen.asks(name, parameter))))


def closings_of(closings: Collection[Closing], parameter: str) -> Collection[Closing]:
    """Those of one parameter, where they differ from parameter to parameter."""
    return closings.of(parameter) if isinstance(closings, Closings) else closings
