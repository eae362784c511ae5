"""Inverses by Cholesky's method are those by eigenvectors, which take over where small eigenvalues matter."""

import pytest
import torch

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.meter import Meter
from hbpcompiler.curvature import symmetric
from tests.curvature.test_blocks import Factors, close, psd


@pytest.fixture
def eigenvectors(monkeypatch):
    """The labels of the matrices whose eigenvectors were found."""
    labels, own = [], symmetric._eigh

    def counted(matrix, label):
        labels.append(label)
        return own(matrix, label)

    monkeypatch.setattr(symmetric, "_eigh", counted)
    return labels


def both_ways(values, shapes, damping, split):
    """The inverse as it is found, and with eigenvectors known before."""
    quick, slow = (hbp.curvature(values, shapes) for _ in range(2))
    for block in slow.blocks:
        for matrix in block.symmetric_matrices:
            _ = matrix.eigen
    return quick.inverse(damping, split), slow.inverse(damping, split)


def test_an_inverse_needs_no_eigenvectors(eigenvectors):
    """Two groups, a dead unit, a factor of zeros, a whole block, each with a damping of its own."""
    torch.manual_seed(0)
    dead = psd(4, rank=2)
    dead[1], dead[:, 1] = 0.0, 0.0
    values = {"groups": Factors(psd(3, groups=2), psd(2, groups=2)), "dead": Factors(dead, psd(3)), "whole": psd(4)}
    shapes = {"groups": (4, 3), "dead": (3, 4), "whole": (4,)}
    dampings = {"groups": 0.1, "dead": 0.03, "whole": 1e-6}
    quick = hbp.curvature(values, shapes).inverse(dampings, "pi").to_dense()
    assert not eigenvectors
    _, slow = both_ways(values, shapes, dampings, "pi")
    assert len(eigenvectors) == 5
    close(quick, slow.to_dense(), "inverse", 1e-10)
    zero = {"zero": Factors(psd(3), torch.zeros(2, 2).double())}
    close(*(found.to_dense() for found in both_ways(zero, {"zero": (2, 3)}, 0.25, "pi")), "a factor of zeros")


def test_of_indefinite_and_of_nearly_singular_matrices_eigenvectors_decide(eigenvectors):
    torch.manual_seed(0)
    indefinite = psd(3) - 0.5 * torch.eye(3).double()
    assert torch.linalg.eigvalsh(indefinite)[0] < -0.1
    quick, slow = both_ways({"a": indefinite}, {"a": (3,)}, 2.0, "exact")
    assert len(eigenvectors) == 2
    close(quick.to_dense(), slow.to_dense(), "indefinite")
    with pytest.raises(hbp.InputError, match="is indefinite"):
        hbp.curvature({"a": indefinite}, {"a": (3,)}).inverse(1e-3)

    eigenvectors.clear()
    flat = psd(60, rank=3, dtype=torch.float32)  # 57 zeros, to rounding
    damping = 1e-8
    quick, slow = both_ways({"a": flat}, {"a": (60,)}, damping, "exact")
    assert len(eigenvectors) == 2
    close(quick.to_dense(), slow.to_dense(), "nearly singular")
    assert torch.linalg.eigvalsh(quick.to_dense().double())[-1] < 1.01 / damping


def test_it_takes_one_matrix_in_double_precision_beside_the_result():
    torch.manual_seed(0)
    size = 300
    root = torch.randn(size, size)
    blocks = hbp.curvature({"a": root @ root.T / size}, {"a": (size,)})
    with Meter() as meter:
        start = meter.peak = meter.held
        found = blocks.inverse(0.3, "exact")
        grown = meter.peak - start
    assert found.dtype == torch.float32
    single = 4 * size**2
    assert grown < 2 * single + 3.5 * single  # what drops traces of dead units is in single precision
