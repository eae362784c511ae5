"""Loaders: their batches count as one, whatever the loss divides by, or it is said what is wrong."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.reference import Forward
from tests.operators.dense import dense, double, same
from tests.selection import few

KINDS = ("ggn", "hessian", "fisher_empirical")


MODEL = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
WEIGHTS = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)


def masked(output, target):
    """A mean over what a mask leaves."""
    y, mask = target
    return (cross_entropy(output, y, reduction="none") * mask).sum() / mask.sum()


LOSSES = {
    "mean": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "weights of classes": nn.CrossEntropyLoss(WEIGHTS),
    "ignored targets": nn.CrossEntropyLoss(ignore_index=1),
    "a sum of parts": lambda output, y: cross_entropy(output, y, WEIGHTS) * 2,
}


@few(1, "other kinds of matrices")
@pytest.mark.parametrize("name", list(LOSSES))
def test_unequal_batches_are_one(name):
    X, y, loss = double(7, 3), torch.tensor([0, 1, 2, 2, 0, 1, 2]), LOSSES[name]
    loader = DataLoader(TensorDataset(X, y), batch_size=3)
    before = torch.get_rng_state()
    for kind in KINDS:
        operator = hbp.operator(MODEL, loss, loader, kind)
        expected = hbp.operator(MODEL, loss, (X, y), kind).to_dense()
        same(operator.to_dense(), expected, what=kind)
        same(operator.to_flat(operator.diagonal()), expected.diagonal(), what=kind)
        same(operator.trace(), expected.trace(), what=kind)
        assert operator.samples == 7
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mask_among_the_targets_and_outputs_without_slope():
    X, y, mask = double(6, 3), torch.tensor([0, 1, 2, 2, 0, 1]), torch.tensor([1.0, 1, 0, 1, 0, 1]).double()
    loader = [(X[:4], (y[:4], mask[:4])), (X[4:], (y[4:], mask[4:]))]
    for kind in KINDS:
        expected = hbp.operator(MODEL, masked, (X, (y, mask)), kind).to_dense()
        same(hbp.operator(MODEL, masked, loader, kind).to_dense(), expected, what=kind)
    with torch.no_grad():
        exact = MODEL(X)
    parts = [(X[:4], exact[:4]), (X[4:], exact[4:])]
    for loss in (nn.MSELoss(), nn.MSELoss(reduction="sum")):
        expected = hbp.operator(MODEL, loss, (X, exact)).to_dense()
        same(hbp.operator(MODEL, loss, parts).to_dense(), expected)


@few(1, "other kinds of matrices")
@pytest.mark.parametrize("without", [0, 1, 2])
@pytest.mark.parametrize("name", ["mean", "sum", "ignored targets", "smoothed"])
def test_a_batch_whose_targets_are_all_ignored_weighs_nothing(name, without):
    """Its shares were those of a batch with terms; first in a loader, it made a sum a mean."""
    losses = LOSSES | {"smoothed": nn.CrossEntropyLoss(WEIGHTS, ignore_index=1, label_smoothing=0.2)}
    X, y, loss = double(7, 3), torch.tensor([0, 1, 2, 2, 0, 1, 2]), losses[name]
    y[3 * without : 3 * without + 3] = loss.ignore_index
    loader = DataLoader(TensorDataset(X, y), batch_size=3)
    for kind in KINDS:
        expected = dense(Forward(MODEL, loss, [X], y), kind)
        operator = hbp.operator(MODEL, loss, loader, kind)
        same(operator.to_dense(), expected, what=kind)
        same(operator.to_flat(operator.diagonal()), expected.diagonal(), what=kind)
    same(hbp.operator(MODEL, loss, loader, blocks="programs").to_dense(), dense(Forward(MODEL, loss, [X], y), "ggn"))


def test_a_batch_without_slopes_that_a_mean_counts():
    """All its margins are met: it has no slopes, and its samples count."""
    X, y = double(6, 3), torch.tensor([0, 1, 2, 2, 0, 1])
    model = nn.Linear(3, 3).double()
    with torch.no_grad():
        X[:3] = torch.linalg.solve(model.weight, (20 * torch.eye(3).double()[y[:3]] - model.bias).T).T

    def hinge(output, y):
        return (output - output.gather(1, y[:, None]) + 1).relu().square().mean()

    for parts in ([(X[:3], y[:3]), (X[3:], y[3:])], [(X[3:], y[3:]), (X[:3], y[:3])]):
        for kind in KINDS:
            same(hbp.operator(model, hinge, parts, kind).to_dense(), dense(Forward(model, hinge, [X], y), kind))


def test_sequences_of_other_lengths_need_a_count():
    def loss(output, y):
        return cross_entropy(output.flatten(0, 1), y.flatten())

    long, short = (double(2, 5, 3), torch.randint(0, 3, (2, 5))), (double(3, 2, 3), torch.randint(0, 3, (3, 2)))
    with pytest.raises(hbp.InputError, match=r"cannot be laid together.*count=lambda batch"):
        hbp.operator(MODEL, loss, [long, short])
    found = hbp.operator(MODEL, loss, [long, short], count=lambda batch: batch[1].numel())
    flat = [torch.cat([batch[i].flatten(0, 1) for batch in (long, short)]) for i in (0, 1)]
    same(found.to_dense(), hbp.operator(MODEL, nn.CrossEntropyLoss(), tuple(flat)).to_dense())
    with pytest.raises(hbp.InputError, match="count must give"):
        hbp.operator(MODEL, loss, [long, short], count=lambda batch: -1)


class Once:
    """Another batch at each reading."""

    def __init__(self):
        self.read = 0

    def __iter__(self):
        self.read += 1
        return iter([(double(3, 3), torch.tensor([0, 1, 2]))] * (2 if self.read != 2 else 1))


def test_data_that_cannot_be():
    X, y, loss = double(4, 3), torch.tensor([0, 1, 2, 2]), nn.CrossEntropyLoss()
    shuffled = DataLoader(TensorDataset(double(50, 3), torch.randint(0, 3, (50,))), batch_size=10, shuffle=True)
    for data, message in [
        ([], "gives no batch"),
        (((X, y) for _ in range(2)), "generator, which can be read only once"),
        (shuffled, r"gave other data when it was read again \(first in batch 0\).*shuffle=False"),
        (Once(), "gave 2 batches at first and 1 when it was read again"),
        ([X, y], "a list with tensors in it; one batch is a tuple"),
        (X, "one batch .* or a loader of such batches, not Tensor"),
        ([{"x": X, "labels": y}], "batch 0 of the loader is no batch"),
        ([(X, y), (X[:0], y[:0])], "batch 1 has no samples"),
        ((X, y[:3]), "X has 4 samples, y has 3"),
        ([(X, y), (X.float(), y)], "X has dtype torch.float32"),
    ]:  # fmt: skip
        with pytest.raises(hbp.InputError, match=message):
            hbp.operator(MODEL, loss, data)


def test_a_loader_that_changes_later():
    batches = [(double(4, 3), torch.tensor([0, 1, 2, 2]))] * 2
    operator = hbp.operator(MODEL, nn.CrossEntropyLoss(), batches)
    batches.pop()
    with pytest.raises(hbp.InputError, match="gave 1 batches, but 2 when the operator was made"):
        operator.to_dense()
    batches.append((double(3, 3), torch.tensor([0, 1, 2])))
    with pytest.raises(hbp.InputError, match="batch 1 is another one"):
        operator.to_dense()


def test_samples_that_mix():
    X, y, loss = double(6, 3), torch.tensor([0, 1, 2, 2, 0, 1]), nn.CrossEntropyLoss()
    loader = [(X[:3], y[:3]), (X[3:], y[3:])]
    norm = nn.Sequential(MODEL, nn.BatchNorm1d(3)).double()
    centred = nn.Sequential(MODEL)
    centred.register_forward_hook(lambda module, given, output: output - output.mean(0))
    for model, message in ((norm, r"batch norm in training mode mixes samples \(1\)"),
                           (centred, "the model mixes samples")):
        for data, kind in ((loader, "ggn"), ((X, y), "fisher_empirical"), ((X, y), "fisher_sampled")):
            with pytest.raises(hbp.UnsupportedOpError, match=message):
                hbp.operator(model, loss, data, kind)
    whole = hbp.operator(norm.eval(), loss, (X, y)).to_dense()
    same(hbp.operator(norm, loss, loader).to_dense(), whole)

    def contrastive(output, y):
        return cross_entropy(output @ output.T, torch.arange(len(output)))

    with pytest.raises(hbp.UnsupportedOpError, match=r"no mean or sum|neither a mean nor a sum"):
        hbp.operator(MODEL, contrastive, loader)
    with pytest.raises(hbp.UnsupportedOpError, match="neither a mean nor a sum over samples"):
        hbp.operator(MODEL, lambda output, y: cross_entropy(output, y, reduction="sum") / len(y) ** 0.5, (X, y),
                     "fisher_empirical")




CHANGES = {
    "class weights in place": lambda model, loss, batches: loss.weight.copy_(torch.tensor([1.0, 9.0, 1.0])),
    "other class weights": lambda model, loss, batches: setattr(loss, "weight", WEIGHTS),
    "ignored labels": lambda model, loss, batches: batches[0][1][:2].fill_(-100),
    "another batch": lambda model, loss, batches: batches.__setitem__(
        1, (double(4, 3), torch.tensor([2, -100, -100, 1]))),
    "another loss": lambda model, loss, batches: setattr(loss, "ignore_index", 1),
    "a sum": lambda model, loss, batches: setattr(loss, "reduction", "sum"),
    "inputs": lambda model, loss, batches: batches[0][0].mul_(2),
    "parameters": lambda model, loss, batches: model[0].weight.data.mul_(2),
}


@few(2, "further cases of one kind")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_has_changed_since_the_operator_was_made(kind, change):
    """Shares of batches are measured, by what the loss and its targets are now."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    loss = nn.CrossEntropyLoss(torch.ones(3, dtype=torch.float64))
    X, y = double(7, 3), torch.tensor([0, 1, 2, 2, 0, 1, 2])
    batches = [(X[:3].clone(), y[:3].clone()), (X[3:], y[3:])]
    operator, v = hbp.operator(model, loss, batches, kind), double(31)
    assert operator @ v is not None
    CHANGES[change](model, loss, batches)
    inputs, labels = torch.cat([inputs for inputs, _ in batches]), torch.cat([labels for _, labels in batches])
    expected = dense(Forward(model, loss, [inputs], labels), kind)
    same(operator @ v, expected @ v)
    same(operator.trace(), expected.trace())
    same(hbp.operator(model, loss, batches, kind) @ v, expected @ v)


def test_a_mode_in_which_samples_mix_is_seen_later_too():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double().eval()
    batches = [(double(4, 3), torch.tensor([0, 1, 2, 0])), (double(3, 3), torch.tensor([0, 1, 2]))]
    operator = hbp.operator(model, None, batches)
    model.train()
    with pytest.raises(hbp.UnsupportedOpError, match="mixes samples"):
        operator @ double(operator.shape[0])


def test_a_loader_that_begins_to_shuffle():
    X, y = double(50, 3), torch.arange(50) % 3
    data, order = TensorDataset(X, y), list(range(50))
    operator = hbp.operator(MODEL, None, DataLoader(data, batch_size=10, sampler=order))
    v = double(operator.shape[0])
    before = operator @ v
    order.reverse()  # another order of the same
    same(operator @ v, before)

    class Shuffled(list):
        def __iter__(self):
            return iter(torch.randperm(50).tolist())

    shuffling = hbp.operator(MODEL, None, DataLoader(data, batch_size=10, sampler=order))
    shuffling._data._given.batch_sampler.sampler = Shuffled(order)
    with pytest.raises(hbp.InputError, match="other targets each time"):
        shuffling @ v


def test_copies_watch_their_own_model():
    loss = nn.CrossEntropyLoss(torch.ones(3, dtype=torch.float64))
    batches = [(double(4, 3), torch.tensor([0, 1, 2, 0])), (double(3, 3), torch.tensor([0, 1, 2]))]
    operator, v = hbp.operator(MODEL, loss, batches), double(31)
    copies = copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))
    before = operator @ v
    loss.weight.mul_(WEIGHTS)
    for copied in copies:
        same(copied @ v, before)
        copied._passes.loss.weight.mul_(WEIGHTS)
        same(copied @ v, operator @ v)


class Auxiliary(nn.Module):
    """Of Inception's kind: a second output in training alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return (self.b(h), self.aux(self.dropout(h))) if self.training else self.b(h)


def of_both(outputs, y):
    return cross_entropy(outputs[0], y) + 0.4 * cross_entropy(outputs[1], y)


@pytest.mark.parametrize("kind", ["ggn", "hessian", "fisher_empirical"])
def test_outputs_that_a_model_has_in_training_alone(kind):
    torch.manual_seed(0)
    model, X, y = Auxiliary().double(), double(9, 3), torch.arange(9) % 2
    model.dropout.p = 0.0
    whole = hbp.operator(model, of_both, (X, y), kind)
    parts = hbp.operator(model, of_both, [(X[:4], y[:4]), (X[4:], y[4:])], kind)
    same(parts.to_dense(), whole.to_dense())
    model.dropout.p = 0.5
    assert hbp.operator(model, of_both, [(X[:4], y[:4]), (X[4:], y[4:])], kind).to_dense().isfinite().all()


class OtherwiseInTraining(nn.Linear):
    def forward(self, x):
        return super().forward(x).T if self.training else super().forward(x)


def test_outputs_that_lie_otherwise_in_training():
    torch.manual_seed(0)
    model, X, y = OtherwiseInTraining(3, 2).double(), double(9, 3), torch.arange(9) % 2

    def loss(output, target):
        return cross_entropy(output.T, target)

    whole = hbp.operator(model, loss, (X, y), "ggn").to_dense()
    same(hbp.operator(model, loss, [(X[:4], y[:4]), (X[4:], y[4:])], "ggn").to_dense(), whole)
