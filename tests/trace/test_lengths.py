"""The batch's size by len()."""

import builtins
import threading

import torch
from torch import nn

from hbpcompiler.compiler.trace.lengths import symbolic_lengths
from tests.test_outputs import check

D = torch.float64


class ByLength(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        places = torch.arange(len(x), dtype=x.dtype).mul(0).unsqueeze(1)
        return self.head(x.view(len(x), -1)) + torch.zeros(len(x), len(x[0]), dtype=x.dtype).mean(1, True) + places


def test_len_of_a_tensor():
    def mean(output, target):
        return (output - target).square().sum() / len(target)

    torch.manual_seed(0)
    compiled, _ = check(ByLength().to(D), mean, (torch.randn(4, 2, 3, dtype=D),), torch.randn(4, 2, dtype=D),
                        ["grad"])
    x, y = torch.randn(9, 2, 3, dtype=D), torch.randn(9, 2, dtype=D)
    torch.testing.assert_close(compiled(x, y).loss, mean(compiled.model(x), y))


def test_len_is_itself_for_all_else_and_afterwards():
    plain, seen = builtins.len, []
    with symbolic_lengths():
        assert len([1, 2]) == len(torch.zeros(2, 5)) == 2
        other = threading.Thread(target=lambda: seen.append(len("abc")))
        other.start()
        other.join()
    assert seen == [3]
    assert builtins.len is plain
