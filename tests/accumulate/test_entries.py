"""(X, y, indices) and a forward with an optional second argument: what a batch's entries are taken for is said."""

import warnings
from functools import partialmethod

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.bridges.influence import scores, self_scores
from tests.selection import slow


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x, mask=None):
        output = self.layer(x)
        return output if mask is None else output * mask


class Required(Masked):
    def forward(self, x, mask):
        return super().forward(x, mask)


class Unsigned(Masked):
    forward = partialmethod(Masked.forward)


torch.manual_seed(0)
X, y, numbers = torch.randn(7, 3).double(), torch.randn(7, 1).double(), torch.arange(7.0).double().unsqueeze(1)
LOADER = DataLoader(TensorDataset(X, y, numbers), batch_size=3)
PAIRS = DataLoader(TensorDataset(X, y), batch_size=3)
TAKEN = r"Masked's forward gets batch\[1\] as its optional argument 'mask', and batch\[2\] is the target"


def compiled_for(model):
    return hbp.compile(model.double(), nn.MSELoss(), ["grad"])


def quiet(run):
    """What it returns, if it warns of nothing that is ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.TotalWarning)
        return run()


def test_a_total_says_where_labels_are_taken_for_an_optional_argument():
    compiled = compiled_for(Masked())
    with pytest.warns(hbp.TotalWarning, match=TAKEN + r".*prepare=lambda batch: \(batch\[0\], batch\[1\]\), and "
                                                      r"indices=lambda batch: batch\[2\]"):
        hbp.accumulate(compiled, LOADER, progress=False)
    found = quiet(lambda: hbp.accumulate(compiled, LOADER, progress=False, prepare=lambda batch: batch[:2],
                                         indices=lambda batch: batch[2].long().flatten()))
    torch.testing.assert_close(found.grad["layer.weight"], compiled(X, y).grad["layer.weight"], rtol=1e-12, atol=1e-14)


def test_what_is_meant_can_be_said():
    compiled = compiled_for(Masked())
    right = compiled(X, y, numbers).grad["layer.weight"]
    for loader in ([((X, y), numbers)], [({"x": X, "mask": y}, numbers)]):
        found = quiet(lambda loader=loader: hbp.accumulate(compiled, loader, progress=False))
        torch.testing.assert_close(found.grad["layer.weight"], right, rtol=1e-12, atol=1e-14)
    needed = quiet(lambda: hbp.accumulate(compiled_for(Required()), LOADER, progress=False))
    assert needed.samples == 7
    quiet(lambda: hbp.accumulate(compiled_for(Unsigned()), PAIRS, progress=False))


@slow("accumulate says the same by the same function")
def test_ekfac_scores_and_operators_say_so_too():
    model = Masked().double()
    with pytest.warns(hbp.TotalWarning, match=TAKEN):
        hbp.ekfac(model, nn.MSELoss(), LOADER, columns="exact", progress=False)
    H = quiet(lambda: hbp.ekfac(model, nn.MSELoss(), PAIRS, columns="exact", progress=False))
    train = compiled_for(model)
    for run in (lambda: scores(H, train, PAIRS, train, LOADER, progress=False),
                lambda: self_scores(H, train, LOADER, progress=False)):
        with pytest.warns(hbp.TotalWarning, match=TAKEN + r".*prepare=lambda batch: \(batch\[0\], batch\[1\]\); "):
            run()
    quiet(lambda: scores(H, train, PAIRS, train, LOADER, progress=False, prepare=lambda batch: batch[:2]))
    with pytest.warns(hbp.TotalWarning, match=TAKEN + ".*hand over a loader of"):
        hbp.operator(model, nn.MSELoss(), LOADER)
    quiet(lambda: hbp.operator(model, nn.MSELoss(), (X, y, numbers)))


def test_errors_of_batches_that_do_not_fit_name_the_batch_and_the_way():
    model = nn.Linear(3, 1).double()
    H = hbp.ekfac(model, nn.MSELoss(), PAIRS, columns="exact", progress=False)
    train = compiled_for(model)
    for run, title in ((lambda: hbp.ekfac(model, nn.MSELoss(), LOADER, progress=False), "loader"),
                       (lambda: scores(H, train, PAIRS, train, LOADER, progress=False), "training data"),
                       (lambda: self_scores(H, train, LOADER, progress=False), "training data")):
        with pytest.raises(hbp.InputError, match=rf"^batch 0 of the {title}: (.|\n)*Of the 3 entries of a batch the "
                                                 r"last is taken as the target(.|\n)*pass prepare="):
            run()


def test_training_data_without_samples():
    model = nn.Linear(3, 1).double()
    H = hbp.ekfac(model, nn.MSELoss(), PAIRS, columns="exact", progress=False)
    train = compiled_for(model)
    for run in (lambda data: scores(H, train, PAIRS, train, data, progress=False),
                lambda data: self_scores(H, train, data, progress=False)):
        for data in ([], [(X[:0], y[:0])]):
            with pytest.raises(hbp.InputError, match="the loader of the training data gave no samples"):
                run(data)


class NoNumber:
    pass


@pytest.mark.parametrize("name", ["indices", "sample_weights", "count"])
@pytest.mark.parametrize("given", [None, "a", ["a"] * 4, NoNumber(), {}], ids=lambda given: type(given).__name__)
def test_what_the_users_functions_give_for_a_later_batch(name, given):
    torch.manual_seed(0)
    right = {"indices": torch.arange(4), "sample_weights": torch.rand(4), "count": 4}[name]
    batches = [(torch.randn(4, 4), torch.randint(3, (4,)), right), (torch.randn(4, 4), torch.randint(3, (4,)), given)]
    compiled = hbp.compile(nn.Linear(4, 3), nn.CrossEntropyLoss(), ["grad"])
    said = {name: lambda batch: batch[2]}
    with pytest.raises(hbp.InputError, match=f"batch 1 of the loader: {name} gave {type(given).__name__} for a batch"):
        hbp.accumulate(compiled, batches, prepare=lambda batch: batch[:2], progress=False, **said)
