"""Operations without a derivative in which samples meet, and those in which they do not."""

import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.samples.meetings import meetings_of
from hbpcompiler.compiler.trace.batch import batch_of


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.function = function

    def forward(self, x):
        return self.layer(self.function(x))


def test_they_are_named_once_with_their_line():
    def found(function):
        compiled = hbp.compile(Applied(function), nn.CrossEntropyLoss(), ["grad"])
        _, built = compiled._program(batch_of([torch.randn(5, 4), torch.arange(5) % 2]))
        return [place.split()[0] for place in meetings_of(built.matched.graph, built.matched.active)]

    assert found(lambda x: x - x.mean(0)) == ["aten.mean"]
    assert found(lambda x: x.cumsum(0)) == ["aten.cumsum"]
    assert found(lambda x: x / x.sum()) == ["aten.sum"]
    assert found(lambda x: x - x.mean(1, keepdim=True)) == []
    assert found(lambda x: x.sort(1).values.softmax(1).cumsum(1)) == []
    assert found(lambda x: nn.functional.dropout(x + torch.randn_like(x), 0.3)) == []
    assert found(lambda x: torch.linalg.cholesky(x[:, :, None] * x[:, None] + torch.eye(4)).sum(2)) == []
    assert found(lambda x: torch.linalg.inv(x[:, :, None] * x[:, None] + torch.eye(4)).sum(2)) == []
    assert found(lambda x: nn.functional.embedding_bag((x > 0).long(), torch.eye(4))) == []
    assert found(lambda x: (x + x[torch.randperm(len(x))]) / 2) == ["aten.index"]
