"""How far two numbers are apart, and the table that says it."""

import torch

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
