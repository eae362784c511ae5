"""How residuals enter the curvature."""

import pytest
import torch

from hbpcompiler import schemes
from hbpcompiler.compiler.derive.residuals import columns_under, diagonal_under
from hbpcompiler.quantities import QUANTITIES, RESIDUAL, RESIDUAL_MC, closings_for


@pytest.mark.parametrize("curvature", schemes.SCHEMES)
def test_only_the_ggn_drops_residuals(curvature):
    wanted = closings_for(["diag_h", "diag_h_mc", "kflr"])
    kept = schemes.kept(curvature, wanted)
    dropped = {closing.stream for closing in wanted - kept}
    assert dropped == ({RESIDUAL, RESIDUAL_MC} if curvature == "ggn" else set())


def test_which_quantities_are_of_the_ggn():
    assert schemes.is_ggn("hessian", QUANTITIES["kflr"])
    assert not schemes.is_ggn("hessian", QUANTITIES["diag_h"])
    assert schemes.is_ggn("ggn", QUANTITIES["diag_h"])
    assert not schemes.is_ggn("ggn", QUANTITIES["grad"])
    assert [name for name in schemes.SCHEMES if schemes.is_signed(name)] == ["hessian"]


DIAGONAL = torch.tensor([[-2.0, 3.0]])


@pytest.mark.parametrize(("curvature", "expected"), [
    ("hessian", [-2.0, 3.0]), ("pch_abs", [2.0, 3.0]), ("pch_clip", [0.0, 3.0])])
def test_a_diagonal_residual(curvature, expected):
    assert diagonal_under(curvature, DIAGONAL).tolist() == [expected]


def test_columns_of_a_residual():
    columns, signs = torch.ones(1, 2, 3), torch.tensor([[1.0, -1.0]])
    assert columns_under("pch_clip", columns, signs, 1).tolist() == [[[1, 1, 1], [0, 0, 0]]]
    assert columns_under("pch_clip", columns, None, 1) is columns
    assert columns_under("pch_abs", columns, signs, 1) is columns
