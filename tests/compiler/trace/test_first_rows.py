"""The run before tracing takes the user's own rows, and nothing of the user's changes in it."""

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.checks import check_runs
from tests.models.test_outputs import check

D = torch.float64


class LastStep(nn.Module):
    """Indices that zeros could not be: lengths from 1, steps counted from the end, classes from 1."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.kinds = nn.Embedding(4, 2)

    def forward(self, x, length, kind):
        if not (length > 0).all():
            raise ValueError("a length is zero")
        last = x.gather(1, (length - 1).view(-1, 1, 1).expand(-1, 1, 3)).squeeze(1)
        return self.head(last) + self.kinds(kind - 1)


def test_indices_that_start_at_one():
    torch.manual_seed(0)
    batch = (torch.randn(4, 5, 3, dtype=D), torch.tensor([5, 2, 3, 1]), torch.tensor([1, 4, 2, 2]))
    loss = lambda output, target: F.cross_entropy(output, target - 1)  # noqa: E731
    check(LastStep().to(D), loss, batch, torch.tensor([1, 2, 2, 1]), ["grad", "diag_h"])


def test_rows_go_round_in_a_circle():
    batch = batch_of((torch.arange(6.0).view(3, 2), torch.tensor([4, 5, 6])))
    x, y = batch.rows(5)
    assert x[:, 0].tolist() == [0, 2, 4, 0, 2]
    assert y.tolist() == [4, 5, 6, 4, 5]
    assert [tensor.shape for tensor in batch_of((torch.ones(0, 2), torch.ones(0))).rows(2)] == [(2, 2), (2,)]


def test_one_sample_is_enough():
    check(nn.Linear(3, 2).to(D), nn.CrossEntropyLoss(), (torch.randn(1, 3, dtype=D),), torch.tensor([1]), ["grad"])


class Restless(nn.Module):
    """Changes its input, a buffer and a frozen parameter in place, and draws."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.frozen.add_(1)
        return self.head(x.mul_(2) * self.frozen + torch.rand(3))


def test_nothing_of_the_users_changes():
    model, x = Restless(), torch.randn(4, 3)
    before = [x.clone(), *(value.clone() for value in model.state_dict().values()), torch.get_rng_state()]
    check_runs(model, nn.CrossEntropyLoss(), batch_of((x, torch.tensor([0, 1, 1, 0]))))
    after = [x, *model.state_dict().values(), torch.get_rng_state()]
    assert all(map(torch.equal, before, after))


def test_a_target_whose_value_is_wrong_is_named_by_the_check_of_targets():
    compiled = hbp.compile(nn.Linear(3, 2), quantities=["grad"])
    with pytest.raises(hbp.InputError, match="class indices lie between 0 and 1"):
        compiled(torch.randn(2, 3), torch.tensor([0, 5]))


def test_a_target_that_only_the_loss_itself_refuses():
    def picky(output, target):
        assert (target > 0).all(), "targets are positive"
        return F.mse_loss(output, target)

    compiled = hbp.compile(nn.Linear(3, 2), picky, quantities=["grad"])
    with pytest.raises(hbp.InputError, match="targets are positive"):
        compiled(torch.randn(2, 3), -torch.ones(2, 2))


def test_probabilities_in_place_of_logits_are_said():
    """A softmax in front of cross-entropy: its gradient is right, and of another function than is meant."""
    x, y, two = torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), nn.Linear(3, 2)
    model, words = nn.Sequential(two, nn.Softmax(1)), "leave the softmax out"
    with pytest.warns(hbp.LossWarning, match=words):
        result = hbp.compile(model, quantities=["grad"])(x, y)
    torch.testing.assert_close(result.grad["0.weight"],
                               torch.autograd.grad(F.cross_entropy(model(x), y), two.weight)[0])
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(reduction="sum")):
        with pytest.warns(hbp.LossWarning, match=words):
            hbp.compile(model.half().float(), loss, ["grad"])(x, y)
    with pytest.warns(hbp.LossWarning, match=words):
        hbp.optim.KFAC(model, nn.CrossEntropyLoss()).step(x, y)
    with pytest.warns(hbp.LossWarning, match=words):
        hbp.operator(model, nn.CrossEntropyLoss(), [(x, y)])
    with pytest.warns(hbp.LossWarning, match=words):
        hbp.spectrum(model, nn.CrossEntropyLoss())(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.LossWarning)
        hbp.compile(nn.Sequential(two, nn.LogSoftmax(1)), quantities=["grad"])(x, y)
        hbp.compile(model, lambda p, t: F.nll_loss(p.log(), t), ["grad"])(x, y)


@pytest.mark.parametrize(("end", "loss", "words"), [
    (nn.Sigmoid(), nn.BCEWithLogitsLoss(), r"follows aten.sigmoid in module '1' \(Sigmoid\), .*leave the sigmoid out"),
    (nn.Sequential(nn.Sigmoid(), nn.Unflatten(1, (1, 2)), nn.Flatten()), nn.BCEWithLogitsLoss(), "aten.sigmoid"),
    (nn.Identity(), lambda p, t: F.binary_cross_entropy_with_logits(p.sigmoid(), t), "aten.sigmoid in the loss"),
    (nn.Sigmoid(), nn.CrossEntropyLoss(), "follows aten.sigmoid"),
    (nn.Identity(), nn.NLLLoss(), "no logarithms of probabilities.*nn.LogSoftmax"),
    (nn.Softmax(1), F.nll_loss, "no logarithms of probabilities"),
    (nn.Tanh(), nn.BCEWithLogitsLoss(), None), (nn.Sigmoid(), nn.BCELoss(), None), (nn.LogSoftmax(1), F.nll_loss, None),
    (nn.LogSigmoid(), nn.BCEWithLogitsLoss(), None),
])
def test_what_a_loss_hardly_is_meant_behind_is_said(end, loss, words):
    x, model = torch.randn(4, 3), nn.Sequential(nn.Linear(3, 2), end)
    of_classes = isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or loss is F.nll_loss
    y = torch.tensor([0, 1, 1, 0]) if of_classes else torch.rand(4, 2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", hbp.LossWarning)
        hbp.compile(model, loss, ["grad"])(x, y)
    found = [str(warning.message) for warning in said if warning.category is hbp.LossWarning]
    assert bool(found) == (words is not None), found
    if words is not None:
        assert re.search(words, found[0]), found


def test_a_forgotten_loss_is_said():
    """Where another loss than the default was meant, whatever is asked; classes and probabilities of classes are fine.
    """
    x, one, two = torch.randn(4, 3), nn.Linear(3, 1), nn.Linear(3, 2)
    with pytest.warns(hbp.LossWarning, match=r"one output is zero .*give loss=nn\.MSELoss\(\)"):
        hbp.compile(one, quantities=["grad"])(x, torch.zeros(4, dtype=torch.long))
    with pytest.warns(hbp.LossWarning, match="one output"):
        hbp.compile(one, quantities=["kfac"])(x, torch.ones(4, 1))
    with pytest.warns(hbp.LossWarning, match="negative in part"):
        hbp.operator(two, nn.CrossEntropyLoss(), [(x, torch.full((4, 2), -1.0))])
    with pytest.warns(hbp.LossWarning, match="do not add up to 1"):
        hbp.compile(two, quantities=["grad"])(x, 5 * torch.rand(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.LossWarning)
        hbp.compile(two, quantities=["grad"])(x, torch.tensor([0, 1, 1, 0]))
        hbp.compile(two, quantities=["grad"])(x, torch.randn(4, 2).softmax(1))
        hbp.compile(one, nn.MSELoss(), ["grad"])(x, torch.randn(4, 1))
        hbp.compile(one, quantities=["jacobian"])(x, torch.zeros(4, dtype=torch.long))
    with pytest.raises(hbp.InputError, match=r"outputs \[N, C\], and the model's are \[N\]; give loss=nn\.MSELoss"):
        hbp.compile(nn.Sequential(one, nn.Flatten(0)), quantities=["grad"])(x, torch.rand(4))
