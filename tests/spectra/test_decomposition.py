"""What is decomposed, in which precision; which eigenvalues count as zero; losses that are convex by composition."""

import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.spectra.test_spectrum import mlp
from tests.spectra.whole import Whole, check


def test_the_smaller_matrix_is_decomposed_in_double_precision(monkeypatch):
    """NK = 80 columns; 20 parameters in the first layer, 126 in the second; the model in single precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 25), nn.Linear(25, 3)).requires_grad_(False)
    model[0].requires_grad_(True)
    model[2].requires_grad_(True)
    decomposed, eigh = [], torch.linalg.eigh

    def recorded(matrix):
        decomposed.append((matrix.dtype, len(matrix)))
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", recorded)
    spectrum = hbp.spectrum(model, groups="layer", verify=False)(torch.randn(40, 4), torch.arange(40) % 3)
    assert sorted(decomposed) == [(torch.float64, 20), (torch.float64, 80)]
    assert spectrum.eigenvalues["0"].dtype == torch.float32


def test_the_cut_is_relative():
    """A loss a million times smaller has the same directions; what is dropped is reported."""
    model, X, y = mlp(4)
    X[3], y[3] = X[0], y[0]  # two columns that give nothing new
    plain = hbp.spectrum(model)(X, y)
    small = hbp.spectrum(model, lambda output, target: 1e-6 * F.cross_entropy(output, target))(X, y)
    assert (len(plain.eigenvalues), plain.dropped) == (len(small.eigenvalues), small.dropped) == (6, 2)
    torch.testing.assert_close(small.eigenvalues, 1e-6 * plain.eigenvalues, rtol=1e-9, atol=0)
    values = plain.eigenvalues
    share = float((values[2] + values[3]) / 2 / values[0])
    coarse = hbp.spectrum(model, tolerance=share)(X, y)
    assert (len(coarse.eigenvalues), coarse.dropped) == (3, 5)


def by_hand(output, target):
    """A hinge over the classes, smoothed, and two penalties of outputs."""
    wrong = output - output.gather(1, target[:, None]) + 1
    return wrong.logsumexp(1).mean() + 0.3 * output.square().sum(1).mean() + 0.1 * output.abs().sum(1).mean()


def test_losses_that_are_convex_by_composition():
    """No rule has their name."""
    model, X, y = mlp(3)
    check(hbp.spectrum(model, by_hand)(X, y), Whole(model, by_hand, [X], y))
