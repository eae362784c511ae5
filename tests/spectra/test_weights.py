"""Spectra with weights of samples: those of the GGN of sum_n w_n l_n, against brute force in float64."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import Forward, Weighted, jacobian

DOUBLE = torch.float64
WEIGHTS = torch.tensor([0.5, 2, 0, 1, 3, 0.1], dtype=DOUBLE)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weights_of_samples(reduction):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    X, y = torch.randn(6, 4, dtype=DOUBLE), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = nn.CrossEntropyLoss(reduction=reduction)
    spectrum = hbp.spectrum(model, loss)(X, y, sample_weights=WEIGHTS)
    run = Forward(model, Weighted(loss, WEIGHTS), [X], y)
    rows = torch.cat([jacobian(run.output, parameter) for parameter in run.parameters.values()], 1)
    ggn, gradient = rows.T @ run.curvature @ rows, torch.cat([run.grad(name).flatten() for name in run.parameters])
    values = spectrum.eigenvalues
    torch.testing.assert_close(values, torch.linalg.eigvalsh(ggn).flip(0)[: len(values)])
    vectors = torch.cat([part.flatten(1) for part in spectrum.vectors(top=3).values()], 1)
    torch.testing.assert_close(ggn @ vectors.T, vectors.T * values[:3])
    slopes, curvatures = ((part.mean(0) if reduction == "mean" else part.sum(0))
                          for part in (spectrum.slopes, spectrum.curvatures))
    torch.testing.assert_close(slopes[:3], vectors @ gradient)
    torch.testing.assert_close(curvatures, values)
    step = torch.cat([part.flatten() for part in spectrum.newton_step(top=3, damping=1.0).values()])
    torch.testing.assert_close(step, -vectors.T @ ((vectors @ gradient) / (values[:3] + 1)))
