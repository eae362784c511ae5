"""How quantities are made of closings, and the entries that are alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hbpcompiler.clipping import norms_of
from hbpcompiler.quantities.quantity import Closed, Quantity
from hbpcompiler.quantities.vocabulary import (
    ALONG,
    BASES,
    BATCH_DIAGONAL,
    BLOCK,
    COLUMN_SUM,
    CROSS,
    DIAGONAL,
    DOT,
    EIGEN,
    FACTOR,
    GGN,
    GGN_MC,
    GRADIENT,
    GRAM,
    IN_BASES,
    INPUT_FACTOR,
    KFRA,
    MEAN,
    NEGATIVE,
    NORM,
    OF_LOSS,
    OUTPUT,
    OVER_POSITIONS,
    POSITIVE,
    PRODUCTS,
    PRODUCTS_OVER_POSITIONS,
    PROJECT,
    RESIDUAL,
    RESIDUAL_MC,
    RESIDUAL_PARTS,
    SUM,
    VECTORS,
    Closing,
)


def second_moment(closed: Closed) -> Any:
    return closed.mean(closed.get(GRADIENT, DIAGONAL))


def variance(closed: Closed) -> Any:
    # Rounding alone would make the small one negative that stands beside a large mean, and its root not a number.
    return (second_moment(closed) - closed.mean(closed.get(GRADIENT, SUM)).square()).clamp(min=0)


def batch_l2(closed: Closed) -> Any:
    norm = closed.get(GRADIENT, NORM)
    return norm / closed.batch**2 if closed.reduction == "mean" else norm


def batch_inner(closed: Closed) -> Any:
    along = closed.get(GRADIENT, ALONG)
    return along / closed.batch**2 if closed.reduction == "mean" else along


def norms(closed: Closed) -> Any:
    return norms_of(closed.get(GRADIENT, NORM))


def diag_h(closed: Closed) -> Any:
    ggn, residual = closed.get(GGN, DIAGONAL), closed.get(RESIDUAL, DIAGONAL)
    if residual is None and closed.get(RESIDUAL, POSITIVE) is not None:
        positive, negative = closed.get(RESIDUAL, POSITIVE), closed.get(RESIDUAL, NEGATIVE)
        residual = positive if negative is None else positive - negative
    return closed.scaled(ggn) if residual is None else closed.scaled(ggn + residual)


def diag_h_sampled(ggn_stream: str) -> Callable[[Closed], Any]:
    """Sampled residuals beside this stream's GGN, exact or sampled."""
    def value(closed: Closed) -> Any:
        ggn, residual = closed.get(ggn_stream, DIAGONAL), closed.get(RESIDUAL_MC, DIAGONAL)
        return closed.scaled(ggn) if residual is None else closed.scaled(ggn + residual)

    return value


def diag_h_split(closed: Closed) -> dict[str, Any]:
    ggn = closed.scaled(closed.get(GGN, DIAGONAL))
    parts = {"positive": _part(closed, POSITIVE), "negative": _part(closed, NEGATIVE)}
    return {"ggn": ggn, **{name: ggn.new_zeros(ggn.shape) if part is None else closed.scaled(part)
                           for name, part in parts.items()}}


def _part(closed: Closed, kind: str) -> Any:
    found = closed.get(RESIDUAL, kind)
    return closed.get(RESIDUAL_PARTS, kind) if found is None else found


def batch_diag_h(closed: Closed) -> Any:
    ggn, residual = closed.get(GGN, BATCH_DIAGONAL), closed.get(RESIDUAL, BATCH_DIAGONAL)
    return closed.scaled(ggn) if residual is None else closed.scaled(ggn + residual)


def batch_dot(closed: Closed) -> Any:
    dot = closed.get(GRADIENT, DOT)
    return dot / closed.batch**2 if closed.reduction == "mean" else dot


def block(closed: Closed) -> dict[str, Any]:
    parts = (*closed.get(GGN, BLOCK), *(closed.get(RESIDUAL, BLOCK) or ()))
    return {
        "columns": [part.columns for part in parts if part.columns is not None],
        "weights": [closed.scaled(part.signs) for part in parts if part.columns is not None],
        "diagonals": [closed.scaled(part.diagonal) for part in parts if part.diagonal is not None],
        "operand": parts[0].operand,
    }


def ekfac(closed: Closed) -> dict[str, Any]:
    (part,) = closed.get(GGN_MC, EIGEN)
    return {"A": part.A, "B": part.B, "eigenvalues": closed.scaled(part.eigenvalues)}


def square_root(stream: str) -> Callable[[Closed], Any]:
    def value(closed: Closed) -> Any:
        vectors = closed.get(stream, VECTORS)
        return vectors / closed.batch**0.5 if closed.reduction == "mean" else vectors

    return value


def _by_samples(matrix: Any, batch: Any) -> Any:
    """[N K, N K] -> [N, K, N, K]."""
    return matrix.unflatten(1, (batch, -1)).unflatten(0, (batch, -1))


def gram(stream: str) -> Callable[[Closed], Any]:
    return lambda closed: closed.scaled(_by_samples(closed.get(stream, GRAM), closed.batch))


def cross(stream: str) -> Callable[[Closed], Any]:
    def value(closed: Closed) -> Any:
        found = closed.get(stream, CROSS).unflatten(0, (closed.batch, -1))
        return found / closed.batch**1.5 if closed.reduction == "mean" else found

    return value


def jacobian(closed: Closed) -> Any:
    vectors = closed.get(OUTPUT, VECTORS)
    if len(closed.output) == 1:
        return vectors
    return vectors.unflatten(1, closed.output) if closed.output else vectors.squeeze(1)


def projected(stream: str) -> Callable[[Closed], Any]:
    def value(closed: Closed) -> Any:
        found = closed.get(stream, PROJECT)
        if stream == GRADIENT:
            return closed.scaled(found.squeeze(1))
        return found / closed.batch**0.5 if closed.reduction == "mean" else found

    return value


def column_sum(stream: str) -> Callable[[Closed], Any]:
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


def kronecker_entry(name: str, stream: str, summary: str, inputs: str = INPUT_FACTOR,
                     outputs: str = FACTOR, of_each_loss: bool = False) -> Quantity:
    needs = (Closing(stream, outputs), Closing("", inputs))
    over = OVER_POSITIONS if outputs == FACTOR else OF_LOSS
    if stream == GRADIENT:
        over = PRODUCTS_OVER_POSITIONS if outputs == FACTOR else PRODUCTS
    adds: tuple[str, ...] = (MEAN, over) if stream != KFRA else ()
    instead = "its recursion is not linear in the batch: take kflr" if stream == KFRA else ""
    return Quantity(name, summary, needs, _kronecker(stream, inputs, outputs), ("A", "B"), "Factors", ("A",),
                    symmetric=("A", "B"), of_each_loss=of_each_loss, adds=adds, instead=instead)


def eigenvalues_entry(name: str, stream: str, summary: str) -> Quantity:
    closing = Closing(stream, IN_BASES)
    own = stream == GRADIENT
    return Quantity(name, summary, (closing,), lambda closed: closed.scaled(closed.get(*closing)), of_each_loss=own,
                    adds=(PRODUCTS if own else OF_LOSS,), arguments=(BASES,))


def diagonal_entry(name: str, stream: str, summary: str) -> Quantity:
    closing = Closing(stream, DIAGONAL)
    return Quantity(name, summary, (closing,), lambda closed: closed.scaled(closed.get(*closing)), adds=(OF_LOSS,))
