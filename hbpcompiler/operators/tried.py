"""What `verify` tries of each batch: products are those of one symmetric matrix, of a vector alone and in a block."""

from __future__ import annotations

import torch

from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import ProofError
from hbpcompiler.operators.blocks import PROGRAMS, Blocks, same_products
from hbpcompiler.operators.products import Products, joined
from hbpcompiler.operators.vectors import Columns, inner


def try_products(products: Products, blocks: Blocks, number: int, batch: Batch, u: Columns, v: Columns) -> None:
    """Leaves out ways of computing products that are wrong for the model. Raises ProofError if none is left."""
    while (gap := _asymmetry(products, number, batch, u, v)) is not None:
        if not products.leave_out_forward():
            raise ProofError(
                f"products with this matrix are not those of a symmetric one: {gap}. Either the model draws anew in "
                "each pass, from a generator of its own, or a custom backward or hook is not the derivative of its "
                "forward. verify=False leaves this trial out")
    if products.passes.draws(number, batch):
        _try_block(products, blocks, number, batch, u, v)


def _asymmetry(products: Products, number: int, batch: Batch, u: Columns, v: Columns) -> str | None:
    """What is not symmetric, in numbers; None if nothing is."""
    after_u, after_v = products.times(number, batch, u), products.times(number, batch, v)
    one, other = _inner(v, after_u), _inner(u, after_v)
    size = _inner(after_u, after_u) ** 0.5 + _inner(after_v, after_v) ** 0.5
    if not size < float("inf"):
        raise ProofError("products with this matrix are not finite; are the loss and its derivatives?")
    if abs(one - other) <= 3 * torch.finfo(u[0].dtype).eps ** 0.5 * size:
        return None
    return f"<u, A v> is {other:.6g}, <v, A u> is {one:.6g}"


def _try_block(products: Products, blocks: Blocks, number: int, batch: Batch, u: Columns, v: Columns) -> None:
    """A block's products are those of its vectors: torch may draw by another kernel where vectors are batched, as for
    dropout on a GPU, and then they go through one by one."""
    block = joined([u, v])
    while True:
        each = joined([products.times(number, batch, vector) for vector in (u, v)])
        if same_products(products.times(number, batch, block), each):
            break
        if not (products.leave_out_batches() or products.leave_out_forward()):
            raise ProofError("the model draws otherwise for several vectors at once than for one, so that products are "
                             "not those of one matrix; without random layers, as in eval mode, they are")
    if blocks.choice == PROGRAMS and not same_products(blocks.times(number, batch, block), each):
        raise ProofError("the two programs draw otherwise than torch's passes, so that products are not those of one "
                         "matrix; blocks='passes' keeps to the passes")


def _inner(one: Columns, other: Columns) -> float:
    return float(sum(inner(left, right) for left, right in zip(one, other, strict=True)))
