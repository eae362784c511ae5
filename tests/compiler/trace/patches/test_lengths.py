"""The batch's size by len(), int() and float()."""

import builtins
import threading

import torch
from torch import nn

from hbpcompiler.compiler.trace.patches.lengths import symbolic_lengths, symbolic_numbers
from tests.models.test_outputs import check

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


class Counted(nn.Linear):
    def forward(self, x):
        samples, features = int(x.size(0)), int(x.shape[1])
        return super().forward(x).reshape(samples, 2) * float(len(x)) / (samples + float("1.5")) / features


def test_numbers_of_the_size_stay_symbols():
    def mean(output, target):
        assert isinstance(int(2.5), int)
        return (output - target).square().sum() / int(target.size(0))

    torch.manual_seed(0)
    compiled, _ = check(Counted(3, 2).to(D), mean, (torch.randn(4, 3, dtype=D),), torch.randn(4, 2, dtype=D),
                        ["grad", "variance"])
    x, y = torch.randn(9, 3, dtype=D), torch.randn(9, 2, dtype=D)
    torch.testing.assert_close(compiled(x, y).loss, mean(compiled.model(x), y))


class Last(nn.Linear):
    def forward(self, x, lengths):
        return super().forward(x)[range(x.size(0)), lengths - 1]


def test_a_range_of_samples_picks_as_numbers_do():
    def likelihood(output, target):
        return -output.log_softmax(1)[range(len(target)), target].mean()

    torch.manual_seed(0)
    x, lengths, y = torch.randn(4, 3, 3, dtype=D), torch.tensor([3, 1, 2, 2]), torch.tensor([1, 0, 0, 1])
    compiled, _ = check(Last(3, 2).to(D), likelihood, (x, lengths), y, ["grad", "variance", "diag_h"])
    x, lengths, y = torch.randn(9, 3, 3, dtype=D), torch.arange(9) % 3 + 1, torch.arange(9) % 2
    torch.testing.assert_close(compiled(x, lengths, y).loss, likelihood(compiled.model(x, lengths), y))


def test_int_and_float_are_themselves_for_all_else_and_afterwards():
    space = {}
    with symbolic_numbers([space, space]):
        number, real = space["int"], space["float"]
        made = [number("12"), number(2.5), number("11", 2), real("1")]
        assert made == [12, 2, 3, 1.0]
        assert [type(item) for item in made] == [int, int, int, float]
        assert [isinstance(item, number) for item in (3, True, 3.0)] == [True, True, False]
        assert issubclass(bool, number)
        assert space["range"](1, 7, 2) == range(1, 7, 2)
        assert isinstance(range(3), space["range"])
    assert not space
