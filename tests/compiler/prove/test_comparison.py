"""How far two numbers are apart, and the table that says it."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.prove.comparison import compared, gap, left_out
from hbpcompiler.compiler.prove.verification import Verification


def test_gaps_between_numbers_that_are_not_finite():
    right = torch.tensor([1.0, float("inf"), float("nan")])
    assert gap(right.clone(), right, strict=True) == (0.0, 1.0)
    assert gap(torch.tensor([1.0, 2.0, 3.0]), right, strict=False) == (0.0, 1.0)
    assert gap(torch.tensor([1.0, 2.0, float("nan")]), right, strict=True)[0] == float("inf")
    assert gap(torch.tensor([float("nan"), 2.0, 3.0]), right, strict=False)[0] == float("inf")
    assert gap(torch.zeros(2), right, strict=False)[0] == float("inf")
    assert gap(None, torch.tensor([0.0, -2.0]), strict=False) == (2.0, 2.0)


def test_a_table_reads_well():
    lines = compared({("grad", "0.weight"): torch.tensor([1.0])}, {("grad", "0.weight"): torch.tensor([2.0])}, 1e-9)
    table = Verification((*lines, left_out("kfra", "", "nothing to compare it with")), ("A note.",))
    assert str(table).splitlines() == [
        "quantity  parameter  error  largest  allowed",
        "grad      0.weight   1      2        2.2e-05  WRONG",
        "kfra                                          not compared, nothing to compare it with",
        "A note."]
    assert not table.agrees
    assert table.errors == {"grad": {"0.weight": 0.5}}
    assert [line.parameter for line in table.wrong] == ["0.weight"]
    assert len(list(table)) == len(table) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_below_the_least_of_full_precision_have_no_digits(dtype):
    least, key, eps = torch.finfo(dtype).tiny, ("grad", "0.weight"), torch.finfo(dtype).eps

    def agree(found, expected):
        lines = compared({key: torch.tensor([found], dtype=dtype)}, {key: torch.tensor([expected], dtype=dtype)}, eps)
        return lines[0].agrees

    assert agree(0.5 * least, 0.0)
    assert agree(0.5 * least, 0.25 * least)
    assert not agree(3 * least, 0.0)
    assert not agree(5 * least, 3 * least)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 80), (torch.float64, 700)])
def test_slopes_of_a_saturated_loss_that_fall_below_it(dtype, least):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, generator=generator).to(dtype)
    for margin in range(least, least + 60, 4):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            first, second = model(x).topk(2, 1).values.unbind(1)
            for parameter in model[2].parameters():
                parameter *= margin / (first - second).min()
        y = model(x).argmax(1)
        result = hbp.compile(model, nn.CrossEntropyLoss(), ["grad", "diag_h"], verify="full")(x, y)
        assert result.loss == nn.CrossEntropyLoss()(model(x), y)
