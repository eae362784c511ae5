"""What is said of a loss that hardly is the one that is meant."""

import pytest
import torch
from torch import nn

from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.refusals.advice import advice, unlikely

SCORES = torch.tensor([[1.0, 2.0], [0.5, 0.1]])


@pytest.mark.parametrize(("output", "target", "words"), [
    (SCORES[:, :1], torch.tensor([0, 0]), "of a model with one output"),
    (SCORES, -SCORES, "negative in part"),
    (SCORES, SCORES, "do not add up to 1"),
])
def test_the_default_loss_where_another_was_forgotten(output, target, words):
    assert words in unlikely(nn.CrossEntropyLoss(), output, target)
    assert not unlikely(nn.MSELoss(), output, target)


def test_nothing_is_said_of_classes_and_probabilities():
    assert not unlikely(nn.CrossEntropyLoss(), SCORES, torch.tensor([0, 1]))
    assert not unlikely(nn.CrossEntropyLoss(), SCORES, SCORES.softmax(1))


def test_targets_without_the_axis_of_one_output():
    batch = batch_of((torch.randn(2, 3), torch.randn(2)))
    assert advice("Using a target size (torch.Size([2]))", batch, "[N, 1] torch.float32").startswith("; pass y.unsq")
    assert not advice("Using a target size (torch.Size([2]))", batch, "[N, 2] torch.float32")
