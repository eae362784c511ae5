"""Which weights may lie pixel by pixel: what rules say, not what operations are called."""

from dataclasses import replace

import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.plan.pixels import image_weights, is_pixel_by_pixel, weights_outweigh_images
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
    assert is_pixel_by_pixel(*matched(plain), plain.draft.plan, 64)
    assert not is_pixel_by_pixel(*matched(pooled), pooled.draft.plan, 64)
    graph, rules = matched(pooled)
    silent = {name: replace(rule, layout=None) if getattr(rule, "layout", None) is Layout.CHANNELS else rule
              for name, rule in rules.items()}
    assert is_pixel_by_pixel(graph, silent, pooled.draft.plan, 64)


def test_norms_of_groups_of_channels_decide_alone():
    normed = built(nn.GroupNorm(1, 2))
    graph, rules = matched(normed)
    assert not is_pixel_by_pixel(graph, rules, normed.draft.plan, 64)
    silent = {name: replace(rule, layout=None) if getattr(rule, "layout", None) is Layout.GROUPS else rule
              for name, rule in rules.items()}
    assert is_pixel_by_pixel(graph, silent, normed.draft.plan, 64)


def test_weights_that_are_larger_than_the_images_of_a_batch_stay_as_they_are():
    graph, rules = matched(built())
    # 18 numbers of a 3 x 3 kernel between 36 and 32 pixels, 16 of a 2 x 2 kernel between 32 and 50
    assert not weights_outweigh_images(graph, rules, samples=1)
    wide = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 50, 1), nn.Flatten(), nn.Linear(200, 2))
    found = hbp.compile(wide, quantities=["variance"], example_inputs=(torch.randn(2, 8, 2, 2), torch.tensor([0, 1])),
                        verify=False)._current()
    # 4 x 576 against 64 for each sample; the 400 of the kernel of one pixel count for nothing
    graph, rules = matched(found)
    assert weights_outweigh_images(graph, rules, samples=35)
    assert not weights_outweigh_images(graph, rules, samples=36)
    assert not is_pixel_by_pixel(graph, rules, found.draft.plan, 35)
    assert is_pixel_by_pixel(graph, rules, found.draft.plan, 36)
    limits = hbp.Limits(rearranged_images=2)
    assert weights_outweigh_images(graph, rules, 17, limits)
    assert is_pixel_by_pixel(graph, rules, found.draft.plan, 18, limits)


def test_without_images_nothing_is_laid_out():
    found = built()
    graph, rules = matched(found)
    silent = {name: replace(rule, layout=None) if hasattr(rule, "layout") else rule for name, rule in rules.items()}
    assert image_weights(graph, silent) == frozenset()
    assert not is_pixel_by_pixel(graph, silent, found.draft.plan, 64)


def matched(found):
    return found.matched.graph, found.matched.rules
