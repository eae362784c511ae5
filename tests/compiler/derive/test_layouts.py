"""Batches that lie in memory otherwise than the one that a program was made with."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp

FRAMES = {
    "flatten": lambda x: x.flatten(0, 1).flatten(1).reshape(-1, 48),
    "tanh": lambda x: torch.tanh(x.flatten(0, 1)).unflatten(0, (-1, 3)).flatten(1),
    "reshape": lambda x: x.reshape(-1, 16).reshape(-1, 48),
    "relu": lambda x: torch.relu(x).flatten(0, 1).reshape(-1, 48),
}
IMAGES = {
    "channels last": lambda: torch.randn(4, 3, 4, 4).double().to(memory_format=torch.channels_last),
    "sliced": lambda: torch.randn(4, 3, 4, 8).double()[..., ::2],
    "expanded": lambda: torch.randn(4, 1, 4, 4).double().expand(4, 3, 4, 4),
}


class Net(nn.Module):
    def __init__(self, frames):
        super().__init__()
        self.frames, self.layer = frames, nn.Linear(48, 2).double()

    def forward(self, x):
        return self.layer(self.frames(x))


@pytest.mark.parametrize("name", FRAMES)
def test_samples_that_are_merged_and_parted_again(name):
    torch.manual_seed(0)
    model, y = Net(FRAMES[name]), torch.randn(4, 2).double()
    compiled = hbp.compile(model, nn.MSELoss(), quantities=["grad"])
    compiled(torch.randn(4, 3, 4, 4).double(), y)
    for make in IMAGES.values():
        X = make()
        wanted = torch.autograd.grad(nn.MSELoss()(model(X), y), list(model.parameters()))
        for found, right in zip(compiled(X, y).grad.values(), wanted, strict=True):
            torch.testing.assert_close(found, right)
