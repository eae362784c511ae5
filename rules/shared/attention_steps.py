"""The three steps of attention as operations of their own, which the rules of products and softmax are asked about."""

from __future__ import annotations

from hbpcompiler.rule import Op, Shape, Tensor


def scale(op: Op) -> float:
    factor: float = op.shape("query")[-1] ** -0.5 if op.scale is None else op.scale
    return factor


def repeats(op: Op) -> int:
    """How many heads of the query share one of key and value (grouped-query attention)."""
    return op.shape("query")[-3] // op.shape("key")[-3] if op.enable_gqa else 1


def repeated(op: Op, name: str) -> Tensor:
    """Key or value, for each head of the query."""
    value: Tensor = getattr(op, name)
    return value.repeat_interleave(repeats(op), -3) if repeats(op) > 1 else value


def shared(op: Op, columns: Tensor) -> Tensor:
    """Columns of what was repeated, added up."""
    return columns.unflatten(-3, (-1, repeats(op))).sum(-3) if repeats(op) > 1 else columns


def heads(op: Op, name: str) -> Shape:
    shape = op.shape(name)
    return (*shape[:-3], shape[-3] * repeats(op), *shape[-2:]) if repeats(op) > 1 else shape


def scores_shape(op: Op) -> Shape:
    return (*op.shape("output")[:-1], op.shape("key")[-2])


def scores_step(op: Op) -> Op:
    *batch, length, features = heads(op, "key")

    def tensors(name: str) -> Tensor:
        scaled: Tensor = op.query * scale(op)
        return scaled if name == "self" else repeated(op, "key").transpose(-1, -2)

    shapes = {"self": op.shape("query"), "other": (*batch, features, length), "output": scores_shape(op)}
    return Op(tensors, {}, shapes)


def weights_step(op: Op) -> Op:
    shapes = {"self": scores_shape(op), "output": scores_shape(op)}
    return Op(lambda name: op.weights, {"dim": -1, "dtype": None}, shapes)


def output_step(op: Op) -> Op:
    shapes = {"self": scores_shape(op), "other": heads(op, "value"), "output": op.shape("output")}
    return Op(lambda name: op.weights if name == "self" else repeated(op, "value"), {}, shapes)
