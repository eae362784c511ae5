"""Token embeddings: a row of the weight for each index, so that the weight meets one-hot vectors."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from hbpcompiler.rule import ZERO, Case, Contraction, Op, Rule, Tensor


def padding(op: Op) -> int | None:
    """The row that learns nothing, if there is one."""
    index: int = op.padding_idx
    return index if index >= 0 else None


def one_hot(op: Op) -> Tensor:
    """[N, p, v], or [N, v] of one index for each sample; a padding index has zeros."""
    indices = op.indices.flatten(1) if len(op.shape("indices")) > 1 else op.indices
    rows = op.shape("weight")[0]
    vectors = F.one_hot(indices, rows).type_as(op.output)
    return vectors if padding(op) is None else vectors.masked_fill((indices == padding(op)).unsqueeze(-1), 0)


def index(op: Op) -> Tensor:
    """[N, p], or [N]: the row of each position, -1 where nothing is learnt."""
    indices = op.indices.flatten(1) if len(op.shape("indices")) > 1 else op.indices
    return indices if padding(op) is None else indices.masked_fill(indices == padding(op), -1)


def columns_view(op: Op, columns: Tensor) -> Tensor:
    """[N, K, p, d]; zero where nothing is learnt, whatever came there: a padding row is zero mostly, where the slope of
    a norm or a logarithm is infinite."""
    if padding(op) is not None:
        columns = columns.masked_fill((op.indices == padding(op)).unsqueeze(1).unsqueeze(-1), 0)
    return columns.flatten(2, -2) if len(op.shape("indices")) > 1 else columns


def kernel(op: Op, gradient: Tensor) -> Tensor:
    if padding(op) is not None:
        gradient = gradient.masked_fill((op.indices == padding(op)).unsqueeze(-1), 0)
    rows = gradient.flatten(0, -2) if op.shape("indices") else gradient
    indices = op.indices.flatten() if op.shape("indices") else op.indices
    return gradient.new_zeros(op.shape("weight")).index_add(0, indices, rows)


def added_up(op: Op, columns: Tensor) -> Tensor:
    """Columns of the weight for indices that no sample has of its own (positions): [N, K, v d]."""
    at, rows = op.indices.flatten(), columns.flatten(2, -2) if op.shape("indices") else columns.unsqueeze(2)
    if padding(op) is not None:
        rows = rows.masked_fill((at == padding(op)).unsqueeze(-1), 0)
    total = columns.new_zeros(columns.shape[0], columns.shape[1], *op.shape("weight"))
    return total.index_add(2, at, rows).flatten(2)


def params(op: Op) -> Mapping[str, Contraction]:
    if not op.has_samples("indices"):
        return {"weight": Contraction("nko->nko", added_up)}
    equation = "nkpd,npv->nkvd" if op.shape("indices") else "nkd,nv->nkvd"
    return {"weight": Contraction(equation, columns_view, one_hot, kernel, index=index)}


def refuse(op: Op) -> str | None:
    if op.scale_grad_by_freq:
        return "scale_grad_by_freq=True divides by how often an index occurs in the batch, which mixes the samples"
    return None


def case(*indices: int, **attributes: int) -> Case:
    return Case(
        {"weight": (5, 3), "indices": indices},
        attributes,
        batched=("indices",),
        make={"indices": lambda shape: torch.randint(5, tuple(shape))},
    )


EMBEDDING = Rule(
    operations=["aten.embedding"],
    forward=lambda op: F.embedding(op.indices, op.weight),
    params=params,
    residual=ZERO,
    formula="none, indices have no derivative",
    refuse=refuse,
    cases=[case(), case(4), case(2, 3), case(6, padding_idx=1), case(padding_idx=0)],
)
