"""Kronecker factors and averages over weighted samples: whole weights repeat samples."""


import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.agreement import close
from tests.arguments.weighing import DOUBLE, TIMES, check_ones, run
from tests.selection import few


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mixed, self.head = nn.Embedding(5, 3), nn.Bilinear(3, 3, 2), nn.Linear(2, 3)

    def forward(self, x):
        words = self.words(x)
        return self.head(torch.tanh(self.mixed(words[:, 0], words[:, 1])))


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 2, 2, groups=2), nn.Tanh(), nn.ConvTranspose2d(2, 2, 2, 2), nn.Sigmoid(),
                         nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3))


FACTORS = ["kflr", "kflr_reduce", "ekfac"]


@few(2, "further cases of one kind")
@pytest.mark.parametrize("kind", ["chain", "words"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_whole_weights_repeat_samples(kind, reduction):
    """A is the same as where sample n stands w_n times; so is B, but for the N that a mean divides by."""
    model = (convolutions() if kind == "chain" else Words()).double()
    X = torch.randn(4, 2, 3, 3, dtype=DOUBLE) if kind == "chain" else torch.tensor([[0, 1], [3, 3], [2, 4], [4, 4]])
    y = torch.tensor([0, 2, 1, 2])
    compiled = hbp.compile(model, nn.CrossEntropyLoss(reduction=reduction),
                           [*FACTORS[:2], *(["kfra"] if kind == "chain" else [])])
    weighted = compiled(X, y, sample_weights=TIMES.double())
    again = compiled(X.repeat_interleave(TIMES, 0), y.repeat_interleave(TIMES))
    scale = int(TIMES.sum()) / 4 if reduction == "mean" else 1
    for quantity in compiled.quantities:
        for name, (A, B) in again[quantity].items():
            close(weighted[quantity][name].B, B * scale, f"{quantity}: B of {name}")
            if A is not None:
                close(weighted[quantity][name].A, A, f"{quantity}: A of {name}")
    check_ones(compiled, X, y)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("joint_bias", [False, True])
def test_eigenvectors_and_joint_blocks(joint_bias):
    """A of what is sampled; its columns are those without weights times the weight's root."""
    model, X, y = convolutions().double(), torch.randn(4, 2, 3, 3, dtype=DOUBLE), torch.tensor([0, 2, 1, 2])
    names = ["kfac", "sqrt_ggn_mc", "kfac_emp"] if joint_bias else ["kfac", "sqrt_ggn_mc", "kfac_emp", "ekfac"]
    compiled = hbp.compile(model, quantities=names, joint_bias=joint_bias)
    weights = TIMES.double()
    plain, weighted = run(compiled, X, y), run(compiled, X, y, sample_weights=weights)
    again = run(compiled, X.repeat_interleave(TIMES, 0), y.repeat_interleave(TIMES))
    for name, columns in plain.sqrt_ggn_mc.items():
        roots = weights.sqrt().view(-1, *[1] * (columns.dim() - 1))
        close(weighted.sqrt_ggn_mc[name], roots * columns, f"sampled columns of {name}")
    for name, factors in again.kfac.items():
        if factors.A is not None:
            close(weighted.kfac[name].A, factors.A, f"A of {name}")
            close(weighted.kfac_emp[name].A, factors.A, f"A of {name}")
    for name, (A, _, values) in weighted.ekfac.items() if not joint_bias else []:
        if A is not None and A.dim() == 2:
            turned = A.T @ weighted.kfac[name].A @ A
            close(turned.diag().diag_embed(), turned, f"eigenvectors of {name}")
            close(values.sum(), weighted.sqrt_ggn_mc[name].square().sum(), f"sum of eigenvalues of {name}")
    check_ones(compiled, X, y)
