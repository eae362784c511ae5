"""What is written to parts of what is made of parameters alone, against brute force and without the proof."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import hbpcompiler as hbp
from hbpcompiler.compiler.match.operation.vmapped import NotSampleWiseError, written
from hbpcompiler.rules.shared.filled_diagonal import filled_diagonal
from tests.agreement import agree, close
from tests.selection import few

aten = torch.ops.aten


class Written(nn.Module):
    """Statements that write to copies of a matrix and of a vector."""

    def __init__(self, statements):
        super().__init__()
        self.statements = statements
        self.matrix, self.vector = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3))
        self.outer = nn.Linear(3, 2)

    def forward(self, x):
        known = {"w": self.matrix.clone(), "v": self.vector.clone(), "own": self.vector, "matrix": self.matrix,
                 "torch": torch, "zeros": torch.zeros(3, 3, dtype=x.dtype)}
        exec(self.statements, known)
        return self.outer(torch.sin(x @ known["w"]) * known["v"] + x @ known["zeros"].sin())


@few(1, "other ways to write the same")
@pytest.mark.parametrize("statements", [
    "w[0] *= 2; v[0] *= 2", "w[:, 2] = own; v[1] = own[2] * own[0]", "zeros[2] = own; zeros[:, 0] = own.exp()",
    "w[-1, -1] = 1.; w[2, 1] = own[0]; v[-1] = 0.", "w.fill_diagonal_(0)",
    "w = torch.select_scatter(matrix, own, 1, 2)",
    "w.diagonal().mul_(3); zeros.diagonal().copy_(own)", "zeros[0, :2] = own[1:]; w[1:].mul_(w[:2].clone())",
    "w[0].softmax(0)[1].mul_(2); w = torch.index_copy(matrix, 1, torch.tensor([2, 0]), w[:, :2])",
    "w[torch.tensor([True, False, True])] = 0.; v[torch.tensor([True, False, True])] = own.sum()",
    "w[:, torch.tensor([True, False, True])] = own[1]; zeros[torch.tensor([False, True, True])] = own",
    "w[matrix.detach() > 0] = own[0]; w[0, torch.tensor([True, False, True])] = 2.; zeros[[True, False, True]] = own",
    "w = w.softmax(0).cumsum(1); w[1] = w.softmax(1)[:, 2]; zeros[0] = w.sum(1)",
])
def test_against_brute_force(statements):
    torch.manual_seed(0)
    model = Written(statements).double()
    X, y = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1])
    result = hbp.compile(model, quantities=["grad", "batch_grad", "diag_ggn", "diag_h"], verify=False)(X, y)
    close(result.output, model(X).detach(), "output")
    agree(result, model, nn.CrossEntropyLoss(), [X], y)


def test_what_vmap_writes_with_wrong_derivatives_is_not_taken():
    """select_scatter, which it writes as a scatter of equal values to each place: the backward pass counts them all."""
    values = torch.zeros(2, 3, 3), torch.zeros(2, 3)
    with pytest.raises(NotSampleWiseError):
        written(lambda whole, part: aten.select_scatter(whole, part, 0, 1), (0, 0), values, {})
    apart = written(lambda whole, part: aten.slice_scatter(whole, part.unsqueeze(0), 0, 1, 2), (0, 0), values, {})
    expected = torch.tensor([0.0, 1, 0])[:, None].expand(2, 3, 3)
    torch.testing.assert_close(apart(values[0], values[1] + 1), expected)


def test_numbers_stay_numbers():
    """vmap makes a tensor of the number that a value without axes is multiplied with."""
    plain = written(lambda value: value * 2, (0,), [torch.zeros(4)], {})
    (product,) = plain.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
    assert product.args[1] == 2


@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (7, 3), (3, 3, 3), (1, 4)])
@pytest.mark.parametrize("wrap", [False, True])
def test_filled_diagonals_are_torchs(shape, wrap):
    x = torch.randn(shape)
    assert torch.equal(filled_diagonal(x, 2.0, wrap), x.clone().fill_diagonal_(2.0, wrap))
    traced = make_fx(lambda x: filled_diagonal(x, 2.0, wrap))(x)
    assert not any(node.target._schema.is_mutable for node in traced.graph.nodes if node.op == "call_function")


class Strided(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return x @ torch.as_strided_scatter(self.matrix, torch.ones(3, dtype=x.dtype), [3], [4], 0)


def test_what_torch_differentiates_wrongly_is_refused():
    X, y = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1])
    with pytest.raises(hbp.UnsupportedOpError, match=r"torch's own derivative of it is wrong.*write through slices"):
        hbp.compile(Strided().double(), quantities=["grad"], verify=False)(X, y)
