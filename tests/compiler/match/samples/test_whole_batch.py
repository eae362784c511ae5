"""Parts along the sample axis that are the whole batch; parts that are not; numbers given to all samples."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.models.test_outputs import check
from tests.selection import few

X, LABELS = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])


class Sliced(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2).double()

    def forward(self, x):
        return self.layer(x[: x.shape[0]]).narrow(0, 0, x.shape[0])


def test_the_whole_batch_is_no_part():
    def loss(output, target):
        n = target.shape[0]
        return (F.cross_entropy(output[:n], target[:n]) + output[-n:].square().mean()
                + output.split(n)[0].exp().mean() + output.chunk(1)[0].sin().mean())

    check(Sliced(), loss, (X,), LABELS)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("part", [
    lambda o: o[1:] - o[:-1], lambda o: o[1:], lambda o: o[:-1], lambda o: o[::2], lambda o: o[: o.shape[0] // 2],
    lambda o: o.diff(dim=0),
])
def test_some_of_the_samples_are_refused_by_name(part):
    with pytest.raises(hbp.UnsupportedOpError, match=r"aten\.\w+ in the loss.*it takes some of the samples .*shape \["):
        hbp.compile(Sliced(), lambda output, target: part(output).square().mean(), quantities=["grad"])(X, LABELS)


class Given(nn.Module):
    """Functions of the parameters alone, given to every sample in several ways."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2).double()

    def forward(self, x):
        n, weight, bias = x.shape[0], self.layer.weight, self.layer.bias
        output = self.layer(x) + weight.sum().expand(n, 2) + weight.sin().sum().repeat(n, 1)
        output = output * bias.repeat(n, 1) + torch.cat([x[:, :1], weight.mean().expand(n, 1)], 1)
        return output, weight.sum().expand(n), bias.exp().expand(n, -1)


def test_numbers_and_vectors_of_parameters_given_to_all_samples():
    def loss(output, target):
        logits, number, vector = output
        return F.cross_entropy(logits, target) + number.square().mean() + 0.3 * vector.square().mean()

    check(Given(), loss, (X,), LABELS)
