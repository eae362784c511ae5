"""Which weights may lie pixel by pixel: what rules say, not what operations are called."""

from dataclasses import replace

import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.plan.pixels import image_weights, is_pixel_by_pixel
from hbpcompiler.rule import Layout


def built(*pools):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), *pools, nn.ConvTranspose2d(2, 2, 2), nn.Flatten(2),
                          nn.Conv1d(2, 3, 2), nn.Flatten(), nn.LazyLinear(4))
    X = torch.randn(2, 1, 6, 6)
    model(X)
    return hbp.compile(model, quantities=["diag_ggn"], example_inputs=(X, torch.tensor([0, 1])))._current()


def test_weights_of_images_alone():
    found = built()
    assert image_weights(*matched(found)) == {"0.weight", "2.weight"}


def test_many_columns_that_are_sent_back_channel_by_channel_decide():
    plain, pooled = built(), built(nn.MaxPool2d(2))
    assert is_pixel_by_pixel(*matched(plain), plain.draft.plan)
    assert not is_pixel_by_pixel(*matched(pooled), pooled.draft.plan)
    graph, rules = matched(pooled)
    silent = {name: replace(rule, layout=None) if getattr(rule, "layout", None) is Layout.CHANNELS else rule
              for name, rule in rules.items()}
    assert is_pixel_by_pixel(graph, silent, pooled.draft.plan)


def test_norms_of_groups_of_channels_decide_alone():
    normed = built(nn.GroupNorm(1, 2))
    graph, rules = matched(normed)
    assert not is_pixel_by_pixel(graph, rules, normed.draft.plan)
    silent = {name: replace(rule, layout=None) if getattr(rule, "layout", None) is Layout.GROUPS else rule
              for name, rule in rules.items()}
    assert is_pixel_by_pixel(graph, silent, normed.draft.plan)


def test_without_images_nothing_is_laid_out():
    found = built()
    graph, rules = matched(found)
    silent = {name: replace(rule, layout=None) if hasattr(rule, "layout") else rule for name, rule in rules.items()}
    assert image_weights(graph, silent) == frozenset()
    assert not is_pixel_by_pixel(graph, silent, found.draft.plan)


def matched(found):
    return found.matched.graph, found.matched.rules
