"""scaled_dot_product_attention: softmax(scale Q K^T + mask) V, put together from the rules of its three steps.

    scores = (scale Q) K^T        weights = softmax(scores)        output = weights V

Each step has its residual; those of the last two are pulled back to Q, K and the mask through the steps before.
Where nothing but gradients come back, one kernel does all steps, and another its derivative, as in torch's own way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import (
    ZERO,
    Factor,
    Noise,
    Op,
    Residual,
    Rule,
    Tensor,
    called,
    fused_attention,
    fused_attention_back,
    otherwise_called,
)

from . import matmul, softmax
from .shared.attention_cases import CASES
from .shared.attention_steps import (
    output_step,
    repeated,
    scale,
    scores_shape,
    scores_step,
    shared,
    weights_step,
)
from .shared.matrix_products import summed

# -- forward ---------------------------------------------------------------------------------------------------------


def forward(op: Op) -> Any:
    options: dict[str, Any] = {"enable_gqa": True} if op.enable_gqa else {}
    if op.scale is not None:
        options["scale"] = op.scale
    for name in ("is_causal", "dropout_p"):
        if getattr(op, name):
            options[name] = getattr(op, name)
    if op.has("attn_mask"):
        options["attn_mask"] = op.attn_mask
    if not op.differentiated:
        return F.scaled_dot_product_attention(op.query, op.key, op.value, **options)
    if fused(op):
        made = fused_attention(op.query, op.key, op.value, op.is_causal, scale(op))
        return made[0], {"log_sums": made[1]}
    weights = masked_weights(op, options) if op.has("attn_mask") else plain_weights(op)
    return weights @ repeated(op, "value"), {"weights": weights}


def fused(op: Op) -> bool:
    """Whether torch's kernel takes it whole: heads of one width, without a mask, of gradients alone."""
    query, key, value = (op.shape(name) for name in ("query", "key", "value"))
    alike = query[:-2] == key[:-2] and query[-1] == key[-1] == value[-1]
    return op.single and not op.has("attn_mask") and len(query) == 3 and alike and 0 not in (*query, *key)


def plain_weights(op: Op) -> Tensor:
    scores = op.query * scale(op) @ repeated(op, "key").transpose(-1, -2)
    if op.is_causal:
        scores = scores + op.query.new_full(scores_shape(op)[-2:], float("-inf")).triu(1)
    return torch.softmax(scores, -1)


def masked_weights(op: Op, options: dict[str, Any]) -> Tensor:
    """What attention returns for unit vectors as values; torch reads the mask, boolean or added."""
    length = op.shape("key")[-2]
    units = torch.diag(op.value.new_ones(length)).expand(op.value.shape[0], *op.shape("value")[:-2], length, length)
    return F.scaled_dot_product_attention(op.query, op.key, units, **options)


FORMULA = (
    "A^T S to V, scale Z K to Q, scale Z^T Q to K,  Z = A * (S V^T - rowsum(A * S V^T)),  A = softmax(scale Q K^T);  "
    "residual: of both products and of the softmax, each back to Q, K and V"
)

# -- backward --------------------------------------------------------------------------------------------------------


def to_scores(op: Op, columns: Tensor) -> Tensor:
    """Columns at the output -> columns at the scores."""
    at_weights = matmul.MATMUL.jac_t["self"](output_step(op), columns)
    return otherwise_called("_at_scores", softmax.SOFTMAX.jac_t["self"](weights_step(op), at_weights))


def one_to_scores(op: Op, gradient: Tensor) -> Tensor:
    """The same for one column [N, *out]; it stays a column."""
    at_weights = matmul.MATMUL.jac_t["self"](output_step(op), gradient.unsqueeze(1))
    at_scores = softmax.softmax_back(weights_step(op), at_weights.squeeze(1))
    return otherwise_called("_at_scores", at_scores).unsqueeze(1)


def scores_to_query(op: Op, columns: Tensor) -> Tensor:
    return matmul.MATMUL.jac_t["self"](scores_step(op), columns) * scale(op)


def scores_to_key(op: Op, columns: Tensor) -> Tensor:
    return shared(op, matmul.MATMUL.jac_t["other"](scores_step(op), columns).transpose(-1, -2))


def scores_to_mask(op: Op, columns: Tensor) -> Tensor:
    """The sum over what the mask is repeated along; it may have an axis of length one in place of samples."""
    shape, full = op.shape("attn_mask"), scores_shape(op)
    own = shape[1:] if len(shape) > len(full) else shape
    total = summed(columns, own, full)
    return total if own == shape else total.unsqueeze(2)


def to_value(op: Op, columns: Tensor) -> Tensor:
    return shared(op, matmul.MATMUL.jac_t["other"](output_step(op), columns))


def back(name: str, apart: Callable[[Op, Tensor], Tensor]) -> Callable[[Op, Tensor], Tensor]:
    """The gradient at one input, by the kernel for all three or `apart`."""
    position = ("query", "key", "value").index(name)

    def pulled(op: Op, gradient: Tensor) -> Tensor:
        if not fused(op):
            return apart(op, gradient)
        made = fused_attention_back(gradient, op.query, op.key, op.value, op.output, op.log_sums, op.is_causal,
                                    scale(op))
        pulled: Tensor = made[position]
        return pulled

    return pulled


# -- residual --------------------------------------------------------------------------------------------------------


def curved(op: Op) -> dict[str, tuple[Op, Factor]]:
    """The steps that have a residual at this use."""
    moving = op.varies("query") or op.varies("key") or op.varies("attn_mask")
    steps = {
        "output": (output_step(op), matmul.MATMUL, moving and op.varies("value")),
        "weights": (weights_step(op), softmax.SOFTMAX, moving),
        "scores": (scores_step(op), matmul.MATMUL, op.varies("query") and op.varies("key")),
    }
    found = {name: (part, rule.residual_of(part)) for name, (part, rule, there) in steps.items() if there}
    return {name: (part, residual) for name, (part, residual) in found.items() if isinstance(residual, Factor)}


def count(op: Op) -> int:
    return sum(residual.count(part) for part, residual in curved(op).values())


def at_steps(op: Op, gradient: Tensor) -> dict[str, Tensor]:
    """The gradient [N, *out] at the result of each step."""
    at_weights = called("at_weights", matmul.MATMUL.jac_t["self"](output_step(op), gradient.unsqueeze(1)))
    at_scores = called("at_scores", softmax.SOFTMAX.jac_t["self"](weights_step(op), at_weights))
    return {"output": gradient, "weights": at_weights.squeeze(1), "scores": at_scores.squeeze(1)}


def of_step(name: str, made: tuple[Mapping[str, Tensor], Any]) -> tuple[dict[str, Tensor], Any]:
    """A step's columns and signs by names that say which step's they are."""
    columns, signs = made
    named = {slot: called(f"of_{name}_{slot}", part) for slot, part in columns.items()}
    return named, None if signs is None else called(f"of_{name}_signs", signs)


def factor(op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Columns of all steps, one after the other, at each of query, key, value and mask."""
    cotangents = at_steps(op, gradient)
    found = {name: of_step(name, residual.factor(part, cotangents[name]))
             for name, (part, residual) in curved(op).items()}
    pulled, query, key, columns = [], [], [], {}
    if "output" in found:
        of_output, _ = found["output"]
        pulled.append(otherwise_called(
            "of_output_at_scores", softmax.SOFTMAX.jac_t["self"](weights_step(op), of_output["self"])))
        value = shared(op, of_output["other"])
        others = count(op) - curved(op)["output"][1].count(output_step(op))
        columns["value"] = F.pad(value, [0, 0] * len(op.shape("value")) + [0, others]) if others else value
    if "weights" in found:
        pulled.append(found["weights"][0]["self"])
    if pulled:
        joined = called("columns", torch.cat(pulled, 1))
        query.append(scores_to_query(op, joined))
        key.append(scores_to_key(op, joined))
        if op.varies("attn_mask"):
            mask = scores_to_mask(op, joined)
            others = curved(op)["scores"][1].count(scores_step(op)) if "scores" in found else 0
            columns["attn_mask"] = F.pad(mask, [0, 0] * len(op.shape("attn_mask")) + [0, others]) if others else mask
    if "scores" in found:
        of_scores, _ = found["scores"]
        query.append(of_scores["self"] * scale(op))
        key.append(shared(op, of_scores["other"].transpose(-1, -2)))
    columns |= {"query": torch.cat(query, 1), "key": torch.cat(key, 1)}
    if op.varies("attn_mask") and not pulled:  # of one key: its weight is 1, whatever the mask says
        columns["attn_mask"] = columns["query"].new_zeros(*columns["query"].shape[:2], *op.shape("attn_mask"))
    signs = torch.cat([signs for _, signs in found.values() if signs is not None], 1)
    return {name: part for name, part in columns.items() if op.varies(name)}, signs


def some(op: Op, gradient: Tensor, numbers: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Columns with these numbers [k]: each is one step's, and zero in the others."""
    cotangents = at_steps(op, gradient)
    found: dict[str, Any] = {}
    total, start = None, 0
    for name, (part, step) in curved(op).items():
        assert step.some is not None
        end = start + step.count(part)
        columns, signs = step.some(part, cotangents[name], (numbers - start).clamp(0, end - start - 1))
        assert signs is not None
        own = ((numbers >= start) & (numbers < end)).type_as(gradient)
        found[name] = {slot: columns[slot] * with_axes(own, len(part.shape(slot))) for slot in columns}
        total = signs * own if total is None else total + signs * own
        start = end
    assert total is not None
    return to_inputs(op, found), total


def drawn(op: Op, gradient: Tensor, noise: Noise) -> dict[str, Tensor]:
    """Random sums of the columns of each step, which add up at the inputs as columns do."""
    cotangents = at_steps(op, gradient)
    found: dict[str, Any] = {}
    for name, (part, step) in curved(op).items():
        assert step.drawn is not None
        found[name] = step.drawn(part, cotangents[name], noise)
    return to_inputs(op, found)


def with_axes(own: Tensor, count: int) -> Tensor:
    """[k] -> [k, 1, ...]."""
    return own[(..., *[None] * count)]


def to_inputs(op: Op, found: dict[str, Any]) -> dict[str, Tensor]:
    """Columns at the inputs of each step, as many of each, added up at the inputs of all."""
    columns: dict[str, Tensor] = {}
    pulled = None
    if "output" in found:
        pulled = softmax.SOFTMAX.jac_t["self"](weights_step(op), found["output"]["self"])
        columns["value"] = shared(op, found["output"]["other"])
    if "weights" in found:
        of_weights = found["weights"]["self"]
        pulled = of_weights if pulled is None else pulled + of_weights
    if pulled is not None:
        columns |= {"query": scores_to_query(op, pulled), "key": scores_to_key(op, pulled)}
        if op.varies("attn_mask"):
            columns["attn_mask"] = scores_to_mask(op, pulled)
    if "scores" in found:
        query, key = found["scores"]["self"] * scale(op), shared(op, found["scores"]["other"].transpose(-1, -2))
        columns["query"] = columns["query"] + query if "query" in columns else query
        columns["key"] = columns["key"] + key if "key" in columns else key
        if op.varies("attn_mask") and pulled is None:  # of one key: its weight is 1, whatever the mask says
            columns["attn_mask"] = query.new_zeros(*query.shape[:2], *op.shape("attn_mask"))
    return {name: part for name, part in columns.items() if op.varies(name)}


def residual(op: Op) -> Residual:
    return Factor(count, factor, some, drawn) if curved(op) else ZERO


def refuse(op: Op) -> str | None:
    if op.dropout_p:
        return "dropout inside attention has no rule; call model.eval(), or set its dropout to 0"
    if not all(op.has_samples(name) for name in ("query", "key", "value")):
        return "query, key and value must all begin with the sample axis; expand the one that does not"
    if len(op.shape("query")) < 2:
        return "it is among the samples, which it mixes; give each its own axis of positions, [N, positions, features]"
    if op.has_samples("attn_mask") and len(op.shape("attn_mask")) != len(scores_shape(op)):
        return "its mask has fewer axes than the scores, so that its sample axis meets another axis; unsqueeze it"
    return None


ATTENTION = Rule(
    operations=["aten.scaled_dot_product_attention"],
    forward=forward,
    jac_t={
        "query": lambda op, columns: scores_to_query(op, to_scores(op, columns)),
        "key": lambda op, columns: scores_to_key(op, to_scores(op, columns)),
        "value": to_value,
        "attn_mask": lambda op, columns: scores_to_mask(op, to_scores(op, columns)),
    },
    backward={
        "query": back("query", lambda op, gradient: scores_to_query(op, one_to_scores(op, gradient)).squeeze(1)),
        "key": back("key", lambda op, gradient: scores_to_key(op, one_to_scores(op, gradient)).squeeze(1)),
        "value": back("value", lambda op, gradient: to_value(op, gradient.unsqueeze(1)).squeeze(1)),
        "attn_mask": lambda op, gradient: scores_to_mask(op, one_to_scores(op, gradient)).squeeze(1),
    },
    residual=residual,
    formula=FORMULA,
    refuse=refuse,
    cases=CASES,
)
