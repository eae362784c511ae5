"""Which operation changes nothing and gives what another leaves in its first argument."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from hbpcompiler.compiler.trace.fx_graph.functional_forms import functional_form, keeps_dtype
from hbpcompiler.rules.shared.filled_diagonal import filled_diagonal

aten = torch.ops.aten


@pytest.mark.parametrize(("changing", "form", "rest"), [
    (aten.relu_.default, aten.relu.default, ()),
    (aten.add_.Tensor, aten.add.Tensor, (torch.ones(3, 3),)),
    (aten.masked_fill_.Scalar, aten.masked_fill.Scalar, (torch.eye(3).bool(), 2.0)),
    (aten.index_put_.default, aten.index_put.default, ([torch.tensor([1])], torch.tensor(4.0))),
    (aten.fill_diagonal_.default, filled_diagonal, (4.0,)),
])
def test_forms(changing, form, rest):
    assert functional_form(changing) is form
    given = torch.randn(3, 3)
    expected = given.clone()
    changing(expected, *rest)
    before = given.clone()
    assert torch.equal(form(given, *rest), expected)
    assert torch.equal(given, before)


@pytest.mark.parametrize("called", [aten.relu.default, aten.native_batch_norm.default, aten.sort.default])
def test_none(called):
    assert functional_form(called) is None


def test_dtypes():
    """h.gt_(0) are numbers, h.gt(0) is not."""
    def of(changing):
        graph = make_fx(lambda h: changing(h.clone(), 0.0), tracing_mode="fake")(torch.randn(3)).graph
        (node,) = (node for node in graph.nodes if node.op == "call_function" and node.target._schema.is_mutable)
        return keeps_dtype(node, functional_form(node.target))

    assert of(torch.Tensor.add_)
    assert not of(torch.Tensor.gt_)
