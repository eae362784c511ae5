"""`hbp.ekfac` where a forward takes another way with other batches, against brute force over samples."""

import pytest
import torch

import hbpcompiler as hbp
from hbpcompiler.curvature import Diagonal, EigenKronecker
from tests.accumulate.test_reach import setting
from tests.agreement import close
from tests.ekfac.test_passes import columns_of
from tests.selection import few, slow

pytestmark = pytest.mark.filterwarnings("ignore::hbpcompiler.errors.UnusedParametersWarning",
                                        "ignore::hbpcompiler.errors.LengthsWarning")
ORDERS = ((0, 1, 2, 3, 4), (3, 2, 0, 1, 4))
"""Of batches of which 0 and 2 are short; the first order begins with one."""
NAMES = ("all.weight", "all.bias", "long.weight", "long.bias", "head.weight", "head.bias")


def columns(model, batches, name, kind):
    """[N, K, *theta], with zeros for samples that do not reach the parameter."""
    found = []
    for X, y in batches:
        if name.startswith("long") and X.shape[1] <= 3:
            rows = 1 if kind == "empirical" else 2
            found.append(torch.zeros(len(y), rows, *model.get_parameter(name).shape, dtype=torch.float64))
        else:
            found.append(columns_of(model, X, y, name, kind))
    return torch.cat(found)


@slow("a second or more; shorter ones of its kind stay")
@few(1, "other orders of the batches")
@pytest.mark.parametrize(("kind", "reduction"), [("exact", "mean"), ("empirical", "sum")])
@pytest.mark.parametrize("order", ORDERS)
def test_samples_have_zeros_for_what_they_do_not_reach(kind, reduction, order):
    model, batches = setting()
    batches = [batches[number] for number in order]
    samples = sum(len(y) for _, y in batches)
    loss, scale = torch.nn.CrossEntropyLoss(reduction=reduction), 1 / samples if reduction == "mean" else 1
    H = hbp.ekfac(model, loss, batches, kind, progress=False)
    factors = "kflr" if kind == "exact" else "kfac_emp"
    kfac = hbp.accumulate(hbp.compile(model, loss, [factors]), batches, progress=False)[factors]
    assert H.names == tuple(kfac) == NAMES
    for name in NAMES:
        T, own = columns(model, batches, name, kind), H[name]
        rows = T.flatten(2).flatten(0, 1)
        if name.endswith("bias"):
            close(own.to_dense(), scale * rows.T @ rows, name)
            continue
        assert isinstance(own, EigenKronecker)
        close(own.values.squeeze(0), scale * (own.B.T @ T @ own.A).square().sum((0, 1)), name)
        for Q, matrix in ((own.A, kfac[name].A), (own.B, kfac[name].B)):
            turned = Q.T @ matrix @ Q
            close(turned, turned.diagonal().diag(), f"eigenvectors of {name}")
    v = torch.randn(H.shape[0], dtype=torch.float64)
    close(H.solve(v, damping=0.1), torch.linalg.solve(H.to_dense() + 0.1 * torch.eye(len(v)).double(), v), "solve")


@slow("6 s; the same sums as its neighbour's")
def test_a_diagonal_of_what_some_batches_do_not_reach():
    model, batches = setting()
    for order in ORDERS:
        cut = [batches[number] for number in order]
        H = hbp.ekfac(model, None, cut, "exact", parameters=["long.*", "head.*"], diagonal=["long.*"], progress=False)
        assert H.names == NAMES[2:]
        for name in ("long.weight", "long.bias"):
            assert isinstance(H[name], Diagonal)
            close(H[name].values, columns(model, cut, name, "exact").square().sum((0, 1)).flatten() / 10, name)
        alone = hbp.ekfac(model, None, cut, "exact", parameters=["long.weight"], progress=False)
        T = columns(model, cut, "long.weight", "exact")
        own = alone["long.weight"]
        close(own.values.squeeze(0), (own.B.T @ T @ own.A).square().sum((0, 1)) / 10, "alone")


@slow("4 s; accumulate/test_draws.py has the draws")
def test_draws_of_samples_in_any_order():
    model, batches = setting()
    numbers = torch.arange(10).split([len(y) for _, y in batches])
    numbered = [(*batch, number) for batch, number in zip(batches, numbers, strict=True)]
    found = [hbp.ekfac(model, None, [numbered[number] for number in order], progress=False,
                       prepare=lambda batch: batch[:2], indices=lambda batch: batch[2]) for order in ORDERS]
    close(found[1].to_dense(), found[0].to_dense(), "another order")


@slow("a second or more; shorter ones of its kind stay")
def test_patterns_of_what_no_batch_reaches():
    model, batches = setting()
    short = [batches[0], batches[2]]
    with pytest.raises(hbp.HbpError, match=r"(?s)parameters: 'long\.\*'.*There are all.weight"):
        hbp.ekfac(model, None, short, parameters=["long.*"], progress=False)
    assert hbp.ekfac(model, None, short, progress=False).names == NAMES[:2] + NAMES[4:]
