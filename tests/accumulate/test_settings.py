"""Totals of models that compute otherwise do not go together, though their tensors are equal."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import hbpcompiler as hbp
from hbpcompiler.accumulate.settings import settings_of
from tests.selection import few


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Own(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, output, y):
        return self.factor * cross_entropy(output, y)


def times(factor):
    return lambda output, y: factor * cross_entropy(output, y)


def model(activation=None, eps=1e-5, factor=1.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), activation or nn.Tanh(), nn.BatchNorm1d(5, eps=eps), Scaled(factor),
                         nn.Linear(5, 3)).double().eval()


X, Y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
BATCHES = list(zip(X.split(3), Y.split(3), strict=True))
OTHERS = {
    "activation": lambda: (model(nn.Sigmoid()), nn.CrossEntropyLoss()),
    "eps": lambda: (model(eps=0.1), nn.CrossEntropyLoss()),
    "attribute": lambda: (model(factor=3.0), nn.CrossEntropyLoss()),
    "loss's attribute": lambda: (model(), Own(2.0)),
    "what a loss holds": lambda: (model(), times(2.0)),
}
FIRST = {"loss's attribute": Own(1.0), "what a loss holds": times(1.0)}


@few(1, "further cases of one kind")
@pytest.mark.parametrize("name", OTHERS)
def test_another_model_or_loss_is_refused(tmp_path, name):
    path = tmp_path / "total.pt"
    loss = FIRST.get(name, nn.CrossEntropyLoss())
    one = hbp.compile(model(), loss, ["grad"])
    first = hbp.accumulate(one, BATCHES, checkpoint=path, max_batches=2, progress=False)
    other = hbp.compile(*OTHERS[name](), ["grad"])
    with pytest.raises(hbp.InputError, match="what computes"):
        hbp.accumulate(other, BATCHES, checkpoint=path, progress=False)
    with pytest.raises(hbp.InputError, match="what computes"):
        hbp.Total.merge(first, hbp.accumulate(other, BATCHES[2:], progress=False))
    again = hbp.compile(model(), FIRST.get(name, nn.CrossEntropyLoss()), ["grad"])
    whole = hbp.accumulate(again, BATCHES, checkpoint=path, progress=False)
    torch.testing.assert_close(whole.loss, loss(model()(X), Y).detach())


@few(2, "further cases of one kind")
@pytest.mark.parametrize(("first", "second"), [({"joint_bias": True}, {}), ({}, {"joint_bias": True}),
                                               ({"mc_samples": 2}, {})])
def test_other_options_are_refused(tmp_path, first, second):
    path, quantities = tmp_path / "total.pt", ["kflr", "kfac"]
    one, other = (hbp.compile(model(), quantities=quantities, **options) for options in (first, second))
    (name,) = {*first, *second}
    total = hbp.accumulate(one, BATCHES, checkpoint=path, progress=False)
    with pytest.raises(hbp.InputError, match=f"options: '{name}' is .* here, .* there"):
        hbp.accumulate(other, BATCHES, checkpoint=path, progress=False)
    with pytest.raises(hbp.InputError, match=f"options: '{name}' is"):
        hbp.Total.merge(total, hbp.accumulate(other, BATCHES, progress=False))
    with pytest.raises(TypeError, match="not with NoneType"):
        hbp.Total.merge(total, None)


def test_hooks_are_settings():
    hooked = model()
    hooked[1].register_forward_hook(lambda module, given, output: 2 * output)
    assert settings_of(hooked, None) != settings_of(model(), None)


def test_an_attribute_that_is_set_while_batches_are_read():
    own = model()

    def batches():
        yield BATCHES[0]
        own[3].factor = 2.0
        yield BATCHES[1]

    class Loader:
        def __iter__(self):
            return batches()

    with pytest.raises(hbp.InputError, match="is no longer what it was for the batches before"):
        hbp.accumulate(hbp.compile(own, None, ["grad"]), Loader(), progress=False)


def test_the_same_settings_are_the_same_words():
    assert settings_of(model(), times(2.0)) == settings_of(model(), times(2.0))
    assert settings_of(Scaled({"a": 1, "b": {2, 3}}), Own(1)) != settings_of(Scaled({"a": 1, "b": {2, 4}}), Own(1))
    assert settings_of(model(), Own(2.0)).keys() == {"the model", "0", "1", "2", "3", "4", "the loss"}
