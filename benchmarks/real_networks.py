"""Networks of today, with random weights: their names, sizes and batches, and which libraries they come from."""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch
from torch import Tensor, nn

from .networks import SEED, Problem

CELLS = ("resnet18:16@64", "resnet50:8@64", "convnext_tiny:8@64", "deit3_small:8@64", "bert:8x64", "gpt2:4x64")
"""name:batch@pixels, or name:batchxtokens."""
CLASSES, LABELS = 100, 5
LIBRARIES = {"resnet18": "torchvision", "resnet50": "torchvision", "convnext_tiny": "torchvision",
             "deit3_small": "timm", "bert": "transformers", "gpt2": "transformers", "vit4": "timm",
             "bert4": "transformers"}
"""vit4 and bert4 have four layers of deit3_small's and of BERT-base's size."""
CELL = re.compile(r"(\w+):(\d+)([@x])(\d+)")


class NotInstalledError(Exception):
    """A library that a network comes from is missing."""


class Logits(nn.Module):
    """A model of transformers, which returns a dict, as a function of its tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens).logits
        return logits


def every_token(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of [N, T, C] with [N, T], every token a target."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def given(cell: str) -> Problem:
    """The network and a batch. ValueError for what is no cell, NotInstalledError."""
    match = CELL.fullmatch(cell)
    if match is None or match[1] not in LIBRARIES:
        raise ValueError(f"{cell!r} is no network: name:batch@pixels or name:batchxtokens, {', '.join(CELLS)}")
    name, batch, size = match[1], int(match[2]), int(match[4])
    try:
        importlib.import_module(LIBRARIES[name])
    except ImportError:
        raise NotInstalledError(f"{cell}: {LIBRARIES[name]} is not installed") from None
    torch.manual_seed(SEED)
    if match[3] == "@":
        model = _of_images(name, size)
        return Problem(model.eval(), nn.CrossEntropyLoss(), torch.randn(batch, 3, size, size),
                       torch.randint(CLASSES, (batch,)))
    model, words = _of_tokens(name)
    tokens = torch.randint(words, (batch, size))
    if name == "gpt2":
        return Problem(model.eval(), every_token, tokens, torch.randint(words, (batch, size)))
    return Problem(model.eval(), nn.CrossEntropyLoss(), tokens, torch.randint(LABELS, (batch,)))


def _of_images(name: str, pixels: int) -> nn.Module:
    if LIBRARIES[name] == "timm":
        timm: Any = importlib.import_module("timm")
        depth = {"depth": 4} if name == "vit4" else {}
        found: nn.Module = timm.create_model("deit3_small_patch16_224", num_classes=CLASSES, img_size=pixels, **depth)
        return found
    models: Any = importlib.import_module("torchvision.models")
    made: nn.Module = getattr(models, name)(num_classes=CLASSES)
    return made


def _of_tokens(name: str) -> tuple[nn.Module, int]:
    """(a model of tokens, how many different ones there are)."""
    transformers: Any = importlib.import_module("transformers")
    if name == "gpt2":
        of_gpt = transformers.GPT2Config(use_cache=False)
        return Logits(transformers.GPT2LMHeadModel(of_gpt)), of_gpt.vocab_size
    depth = {"num_hidden_layers": 4} if name == "bert4" else {}
    of_bert = transformers.BertConfig(num_labels=LABELS, **depth)
    return Logits(transformers.BertForSequenceClassification(of_bert)), of_bert.vocab_size


def in_words(count: int) -> str:
    """Bytes as MiB."""
    return f"{count / 2**20:.0f} MiB"
