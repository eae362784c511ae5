"""Factors that are too large are refused all at once, with patterns that leave them out and work as they stand."""

import re

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.plan.large_factors import patterns_without

LIMITS = hbp.Limits(full_block_rows=12)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleDict({"words": nn.Embedding(20, 3), "norm": nn.LayerNorm(3)})
        self.places = nn.Parameter(torch.randn(5, 3))
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head((self.embeddings["norm"](self.embeddings["words"](x)) + self.places).mean(1))


def test_a_vocabulary_is_left_out_by_the_patterns_that_the_refusal_says():
    torch.manual_seed(0)
    model, X, y = Tokens(), torch.randint(20, (3, 5)), torch.tensor([0, 3, 1])
    with pytest.raises(hbp.UnsupportedOpError) as error:
        hbp.compile(model, quantities=["grad", "kflr"], limits=LIMITS)(X, y)
    text = str(error.value)
    assert "'embeddings.words.weight'" in text
    assert "its factor A would have 20 x 20 numbers" in text
    assert "its full block of 15 x 15 numbers" in text
    patterns = re.search(r"'kflr': \[(.*?)\]", text)[1].replace("'", "").split(", ")
    assert patterns == ["embeddings.norm.*", "head.*"]
    result = hbp.compile(model, quantities={"kflr": patterns, "grad": "*"}, limits=LIMITS)(X, y)
    assert set(result.kflr) == {"embeddings.norm.weight", "embeddings.norm.bias", "head.weight", "head.bias"}
    assert set(result.grad) == {name for name, _ in model.named_parameters()}


def test_patterns_name_whole_modules_where_they_can():
    assert patterns_without(["a.b.w", "a.b.x", "a.c.w", "d", "e.w"], {"a.b.x"}) == ["a.b.w", "a.c.*", "d", "e.*"]
