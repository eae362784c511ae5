"""Which operations make zero of zero, with finite slopes."""

import torch

from hbpcompiler.compiler.trace.rows.kept_zeros import keeps_zero

aten = torch.ops.aten


def test_powers_that_are_whole_numbers():
    power = aten.pow.Tensor_Scalar
    tried = (-1, 0, 0.5, 1, 1.5, 2, 3.0, float("inf"))
    assert [exponent for exponent in tried if keeps_zero(power, [exponent])] == [1, 2, 3]
    assert not keeps_zero(aten.sqrt.default, [])
    assert not keeps_zero(aten.cos.default, [])
    assert keeps_zero(aten.abs.default, [])
