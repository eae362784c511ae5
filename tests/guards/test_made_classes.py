"""Classes that a program has made while it ran."""

import torch
from torch import nn

import hbpcompiler as hbp


def test_classes_without_a_module_are_walked():
    """sympy makes such ones: an expression in a forward's closure."""
    made = type("made", (), {"scale": 2.0})
    made.__module__ = None
    held = made()

    def loss(output, target):
        return (output - target).square().mean() * held.scale

    compiled = hbp.compile(nn.Linear(2, 2), loss, ["grad"])
    X, y = torch.randn(3, 2), torch.randn(3, 2)
    before = compiled(X, y).loss
    held.scale = 4.0
    torch.testing.assert_close(compiled(X, y).loss, 2 * before)
