"""One column of each sample is no more than a gradient: it goes whole, unless chunks are predicted to be faster."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.plan.sample_chunks import with_sample_chunks
from hbpcompiler.compiler.plan.steps import SampleChunks, Tail
from hbpcompiler.compiler.plan.tails import with_tails
from hbpcompiler.limits import DEFAULT_LIMITS
from tests.agreement import close
from tests.selection import few

WORDS, TOKENS, WIDTH = 2000, 16, 256
LARGE = {"spatial_bytes": 2**16, "recycled_bytes": 2**21, "all_columns_bytes": 2**20}
"""Limits beyond which the logits of a sentence are, as those of a real vocabulary are beyond the usual ones."""


def language_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(),
                         nn.Linear(WIDTH, WORDS)).double()


def every_token(logits, target):
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def sentences(count=3):
    return torch.randn(count, TOKENS, WIDTH, dtype=torch.float64), torch.randint(WORDS, (count, TOKENS))


def loops(compiled):
    return [step for step in compiled._current().draft.plan.steps if isinstance(step, Tail | SampleChunks)]


def made(quantities, limits, **options):
    model, batch = language_model(), sentences()
    compiled = hbp.compile(model, every_token, quantities, limits=limits, verify=False, **options)
    torch.manual_seed(1)
    return compiled, compiled(*batch)


@few(2, "the same decision of other closings")
@pytest.mark.parametrize("quantity", ["diag_ggn_mc", "kfac", "kfac_emp"])
def test_one_column_of_large_logits_goes_whole(quantity):
    asked = {quantity: ["0.*"], "grad": "*"} if quantity.startswith("kfac") else [quantity]
    whole, result = made(asked, hbp.Limits(**LARGE))
    assert not loops(whole)
    cut, others = made(asked, hbp.Limits(few_columns=0, late_time=math.inf, **LARGE))
    if quantity != "kfac_emp":  # which closes the gradient's own columns
        assert loops(cut)
    for key, value in result[quantity].items():
        close(value.B if hasattr(value, "B") else value, others[quantity][key].B if hasattr(value, "B")
              else others[quantity][key], key)


def test_two_columns_of_large_logits_go_in_chunks():
    assert loops(made(["diag_ggn_mc"], hbp.Limits(**LARGE), mc_samples=2)[0])


def steps_of(model, batch, limits):
    """The steps before any went in chunks, and the resources that they were planned with."""
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["diag_ggn_mc"], limits=limits, verify=False)
    compiled(*batch)
    plan = compiled._current().draft.plan
    assert not loops(compiled)
    return list(plan.steps), next(step.site.resources for step in plan.steps if hasattr(step, "site"))


def test_late_chunks_where_closings_weigh_little_and_not_where_weights_are_large():
    """Of a convolution's first layers, and of wide linear layers over positions."""
    never = replace(DEFAULT_LIMITS, recycled_bytes=2**62, few_columns=1)
    images = nn.Sequential(nn.Conv2d(3, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(),
                           nn.AvgPool2d(32), nn.Flatten(), nn.Linear(96, 10))
    positions = nn.Sequential(nn.Linear(512, 2048), nn.Tanh(), nn.Linear(2048, 512), nn.Tanh(), nn.Flatten(),
                              nn.Linear(512 * 64, 10))
    for model, X, chunks in ((images, torch.randn(2, 3, 32, 32), True), (positions, torch.randn(2, 64, 512), False)):
        steps, resources = steps_of(model, (X, torch.tensor([0, 1])), never)
        usual = replace(resources, limits=DEFAULT_LIMITS)
        made_of = with_tails(steps, 4, usual)
        assert any(isinstance(step, Tail) for step in made_of) == chunks
        forced = with_tails(steps, 4, replace(resources, limits=replace(DEFAULT_LIMITS, late_time=math.inf)))
        assert any(isinstance(step, Tail) for step in forced)
        no_room = replace(resources, limits=replace(DEFAULT_LIMITS, all_columns_bytes=0))
        assert with_sample_chunks(steps, 4, no_room) == steps
