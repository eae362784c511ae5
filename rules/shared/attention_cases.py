"""Uses of attention that its rule is tested on: heads of one length and several, masks, shared keys, constants."""

from __future__ import annotations

from typing import Any

import torch

from hbpcompiler.rule import Case, Tensor


def case(
    queries: int,
    keys: int,
    *heads: int,
    widths: tuple[int, int] = (2, 3),
    mask: Tensor | None = None,
    trained: tuple[int, ...] | None = None,
    sampled: bool = False,
    constant: tuple[str, ...] = (),
    shared_heads: int = 0,
    **attributes: Any,
) -> Case:
    inner, outer = widths
    others = (shared_heads,) if shared_heads else heads
    shapes = {"query": (*heads, queries, inner), "key": (*others, keys, inner), "value": (*others, keys, outer)}
    make = {} if mask is None else {"attn_mask": lambda shape: mask}
    given = trained if mask is None else tuple(mask.shape)
    return Case(
        {**shapes, **({} if given is None else {"attn_mask": given})},
        {"enable_gqa": bool(shared_heads), **attributes},
        batched=("query", "key", "value", *(("attn_mask",) if sampled else ())),
        constant=constant if mask is None else (*constant, "attn_mask"),
        make=make,
    )


LOWER = torch.ones(2, 3, device="cpu").tril().bool()
ADDED = torch.tensor([[0.0, 1.5], [float("-inf"), 0.0], [0.5, -1.0]], dtype=torch.float64,
                     device="cpu")

CASES = [
    case(3, 2),
    case(3, 2, 2, widths=(2, 2)),
    case(2, 3, 2, widths=(3, 3), is_causal=True, scale=0.3),
    case(3, 2, 1, widths=(2, 2), is_causal=True, constant=("query",)),
    case(2, 3, 2, scale=0.3),
    case(3, 3, 2, is_causal=True),
    case(2, 3, mask=LOWER),
    case(3, 2, 2, mask=ADDED),
    case(2, 3, 2, trained=(1, 2, 2, 3)),
    case(2, 3, 2, trained=(1, 3), constant=("query", "key")),
    case(2, 2, 2, trained=(2, 1, 2), sampled=True, constant=("value",)),
    case(2, 2, 4, trained=(4, 2, 2), shared_heads=2, constant=("key",)),
    case(2, 2, 2, 1),
    case(2, 2, 4, shared_heads=2),
    case(1, 1, 2),
    case(2, 2, widths=(3, 1)),
    *[case(2, 3, constant=names) for names in (("query",), ("key",), ("value",), ("query", "key"))],
]
