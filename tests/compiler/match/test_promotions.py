"""Operations that torch promotes: derivatives flow back in each input's own dtype."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.promotions import with_promotions
from hbpcompiler.compiler.trace.graph import N
from tests.hand_made import graph, mlp, operation, parameter, value

X, WIDE = value("x", N, 3, role="input"), value("wide", 3, role="buffer", dtype=torch.float64)
W = parameter("w", 3, 3)


def test_a_promoted_input_is_cast():
    hidden, summed = value("hidden", N, 3), value("summed", N, 3, dtype=torch.float64)
    found = with_promotions(graph([
        operation("mm", hidden, self=X, mat2=W),
        operation("add", summed, {"alpha": 1}, overload="Tensor", self=hidden, other=WIDE),
        operation("sum", value("loss", dtype=torch.float64), self=summed, in_loss=True),
    ], state=[W, WIDE], inputs=[X]))
    _, cast, add, _ = found.operations
    assert (cast.target, cast.output.dtype) == ("aten.to", torch.float64)
    assert add.tensors == {"self": cast.output, "other": WIDE}


def test_a_graph_of_one_dtype_stays_as_it_is():
    plain = mlp()
    assert with_promotions(plain) is plain


class Mixed(nn.Module):
    """Attention whose scores are in single precision, with a mask in double precision: they meet in sums, products
    and choices."""

    def __init__(self, wide):
        super().__init__()
        self.qkv, self.out, self.scale = nn.Linear(3, 9), nn.Linear(3, 2), nn.Parameter(torch.tensor(0.7))
        self.register_buffer("mask", torch.randn(4, 4, dtype=wide))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q.float() @ k.float().transpose(1, 2)
        scores = torch.where(self.mask > 0, scores + self.mask, scores) * self.scale
        return self.out((scores.softmax(-1).to(v.dtype) @ v).mean(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_mixed_precision(dtype):
    torch.manual_seed(0)
    model, x, y = Mixed(dtype).to(dtype), torch.randn(2, 4, 3, dtype=dtype), torch.tensor([0, 1])
    loss = nn.CrossEntropyLoss()
    result = hbp.compile(model, loss, ["grad", "batch_grad", "diag_ggn"])(x, y)
    expected = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
    tolerance = 1e-5 if dtype == torch.float64 else 0.05
    for (name, found), wanted in zip(result.grad.items(), expected, strict=True):
        assert found.dtype == dtype, name
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(result.batch_grad[name].sum(0), found, rtol=tolerance, atol=tolerance)
