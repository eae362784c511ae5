"""Derivatives that go through complex values."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp


class Spectrum(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        h = self.layer(x)
        return h + torch.fft.fft(h).real


def test_what_has_no_rule_for_complex_numbers_is_refused_by_name():
    with pytest.raises(hbp.UnsupportedOpError, match=r"fft.* complex"):
        hbp.compile(Spectrum(), quantities=["grad"])(torch.randn(4, 3), torch.randint(3, (4,)))
