"""What exact quantities of many classes cost, in words."""

import warnings

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.plan import exact

CLASSES = 1000


def compiled_for(quantity, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, CLASSES))
    X, y = torch.randn(2, 1, 4, 4), torch.randint(CLASSES, (2,))
    return hbp.compile(model, quantities=[quantity], example_inputs=(X, y), verify=False, **options), X, y


def test_kflr_of_many_classes_says_what_it_costs_and_names_the_sampled_way():
    """In explain, and before a call that takes long, with the predicted seconds of both."""
    compiled, X, y = compiled_for("kflr", limits=hbp.Limits(announced_seconds=0.0))
    assert "kflr is exact: 999 columns a sample travel for it" in compiled.explain()
    assert "kfac estimates it" in compiled.explain()
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.LongCallWarning)
        with pytest.raises(hbp.LongCallWarning, match=r"kflr of Sequential, N=2(.|\n)*kfac, sampled, in place of"):
            compiled(X, y)
    sampled, *_ = compiled_for("kfac")
    assert exact.notes(sampled._current().draft.plan) == []
    assert sampled.predicted_seconds(2) < compiled.predicted_seconds(2) / 5
