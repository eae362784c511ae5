"""Which operations keep rows to themselves, and what is put where a mask picks nothing."""

import pytest
import torch

from hbpcompiler.compiler.trace.rows.among_rows import mixes_rows
from hbpcompiler.compiler.trace.rows.outside import outside
from hbpcompiler.compiler.trace.rows.row_by_row import RowByRow
from hbpcompiler.compiler.trace.rows.row_lengths import Lengths
from hbpcompiler.compiler.trace.rows.rows import HARMLESS, NotWholeError, Rows, Writer

aten = torch.ops.aten


@pytest.mark.parametrize(("called", "given", "are_rows", "mixes"), [
    (aten.exp.default, {}, {"self": [2]}, False),
    (aten.softmax.int, {"dim": -1}, {"self": [2]}, False), (aten.softmax.int, {"dim": 0}, {"self": [2]}, True),
    (aten.tril.default, {}, {"self": [2]}, True), (aten.tril.default, {}, {"self": [3]}, False),
    (aten.pad.default, {"pad": [1, 0]}, {"self": [2]}, False),
    (aten.pad.default, {"pad": [0, 0, 1, 0]}, {"self": [2]}, True),
    (aten.embedding.default, {}, {"weight": [2], "indices": [1]}, True),
    (aten.matmul.default, {}, {"self": [3], "other": [3]}, False),
    (aten.matmul.default, {}, {"self": [2], "other": [2]}, True),
    (aten.gather.default, {"dim": 1}, {"self": [0], "index": [2]}, True),
    (aten.layer_norm.default, {"normalized_shape": [3, 4]}, {"input": [2]}, True),
    (aten.batch_norm.default, {"training": True}, {"input": [2]}, True),
    (aten.movedim.int, {"source": 0, "destination": 1}, {"self": [2]}, True),
    (aten.linalg_inv.default, {}, {"self": [3]}, True), (aten.ctc_loss.Tensor, {}, {"log_probs": [3]}, True),
    (aten.einsum.default, {"equation": "bi,oi->bo"}, {"tensors": [2, 0]}, False),
    (aten.einsum.default, {"equation": "...i,...i->..."}, {"tensors": [2, 3]}, True),
    (aten.einsum.default, {"equation": "bi,ci->bi"}, {"tensors": [2, 2]}, True)])
def test_what_mixes_rows(called, given, are_rows, mixes):
    assert mixes_rows(called, given, are_rows, max(max(found) for found in are_rows.values())) is mixes


def nodes(*values):
    graph = torch.fx.Graph()
    found = []
    for number, value in enumerate(values):
        found.append(graph.placeholder(f"x_{number}"))
        found[-1].meta["val"] = value
    return graph, found


def test_what_stands_outside():
    _, (mask, real, whole, weight) = nodes(torch.ones(3).bool(), torch.ones(3, 2), torch.ones(3).long(), torch.ones(2))
    rows, numbers = Rows(real, mask, mask), Rows(whole, mask, mask)
    read = {real: rows, weight: weight}
    assert outside(aten.linear.default, "input", rows, {}, read) == 0
    assert outside(aten.matmul.default, "self", rows, {}, {real: rows}) is None
    assert outside(aten.log.default, "self", rows, {}, {real: rows}) == HARMLESS
    assert outside(aten.div.Tensor, "self", rows, {}, {real: rows}) is None
    assert outside(aten.div.Tensor, "other", rows, {}, {real: rows}) == HARMLESS
    assert outside(aten.pow.Tensor_Scalar, "self", rows, {"exponent": 2}, {real: rows}) is None
    assert outside(aten.pow.Tensor_Scalar, "self", rows, {"exponent": 0.5}, {real: rows}) == HARMLESS
    assert outside(aten.embedding.default, "indices", numbers, {"padding_idx": 1}, {}) == 1
    assert outside(aten.embedding.default, "indices", numbers, {"padding_idx": -1}, {}) == 0
    assert outside(aten.remainder.Tensor, "other", numbers, {}, {}) == 1
    assert outside(aten.exp.default, "self", Rows(mask, mask, mask), {}, {}) is None


def test_rows_by_themselves():
    graph, (mask, real) = nodes(torch.ones(3).bool(), torch.ones(3, 2))
    writer = Writer(graph)
    rows = writer.picked(writer.alike.enter(real), writer.alike.enter(mask), [0])
    picked = graph.call_function(aten.std.dim, (real, [1]))
    picked.meta["val"] = torch.ones(3)
    each = RowByRow(writer, {real: rows}, Lengths(writer, {real: rows}))
    (found,) = each.results(picked, aten.std.dim, {"self": real, "dim": [1]})
    assert found.whole.target is aten.sqrt.default  # of the variance, which has a slope where all numbers are the same
    with pytest.raises(NotWholeError):
        each.results(picked, aten.std.dim, {"self": real, "dim": [0]})
