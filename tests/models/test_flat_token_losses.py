"""Losses of flattened tokens, in float64 against brute force."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from tests.agreement import close
from tests.models.test_modules import draw
from tests.models.test_outputs import WEIGHT, Summed, check
from tests.selection import cases, few


class Tagger(nn.Module):
    """Scores for 3 classes at each of T positions."""

    def __init__(self, returned=lambda scores: scores):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head, self.returned = nn.Linear(2, 3), nn.Linear(3, 3), returned
        self.double()

    def forward(self, x):
        return self.returned(self.head(torch.tanh(self.inner(x))))


TAGS = torch.tensor([[0, 2, -100], [-100, -100, 1]])
SPELLED = "another spelling of what another case merges and splits"
TOKEN_LOSSES = {
    "view": lambda out, y: F.cross_entropy(out.view(-1, 3), y.view(-1)),
    "reshape": lambda out, y: F.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1)),
    "flatten": lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()),
    "ignored": lambda out, y: F.cross_entropy(out.view(-1, 3), y.view(-1), ignore_index=1),
    "class weights": lambda out, y: F.cross_entropy(out.view(-1, 3), y.view(-1), weight=WEIGHT),
    "smoothed": lambda out, y: F.cross_entropy(out.view(-1, 3), y.view(-1), label_smoothing=0.2),
    "log-likelihood": lambda out, y: F.nll_loss(F.log_softmax(out, -1).view(-1, 3), y.view(-1)),
    "softmax of rows": lambda out, y: F.nll_loss(F.log_softmax(out.view(-1, 3), 1), y.view(-1)),
    "shifted": lambda out, y: F.cross_entropy(out[:, :-1].reshape(-1, 3), y[:, 1:].reshape(-1)),
}


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", cases(TOKEN_LOSSES, ("view", "class weights", "log-likelihood", "shifted"), SPELLED))
def test_flat_token_losses(name):
    check(Tagger(), TOKEN_LOSSES[name], (draw(2, 3, 2),), TAGS.clamp(min=0) if name == "ignored" else TAGS)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_summed_flat_token_losses(weight):
    loss = Summed(lambda out, y: F.cross_entropy(out.view(-1, 3), y.view(-1), weight, reduction="sum"))
    check(Tagger(), loss, (draw(2, 3, 2),), TAGS)


def test_flat_probabilities_and_flat_errors():
    y = torch.rand(2, 3, 3, dtype=torch.float64)
    check(Tagger(), lambda out, y: F.cross_entropy(out.view(-1, 3), y.view(-1, 3)), (draw(2, 3, 2),), y)
    check(Tagger(), lambda out, y: F.mse_loss(out.view(-1, 3), y.view(-1, 3)), (draw(2, 3, 2),), y)
    check(Tagger(), lambda out, y: F.binary_cross_entropy_with_logits(out.flatten(), y.flatten()),
          (draw(2, 3, 2),), y)


def test_errors_of_positions_in_front():
    check(Tagger(), lambda out, y: F.mse_loss(out.transpose(0, 1), y.transpose(0, 1)), (draw(2, 4, 2),), draw(2, 4, 3))


def test_a_model_that_flattens_its_output():
    model, x = Tagger(lambda scores: scores.view(-1, 3)), draw(2, 3, 2)
    _, result = check(model, lambda out, y: F.cross_entropy(out, y.view(-1)), (x,), TAGS)
    torch.testing.assert_close(result.output, model(x))


def test_flat_losses_serve_every_batch_size_and_backend():
    loss = TOKEN_LOSSES["view"]
    for backend in ("python", "torchscript"):
        model = Tagger(lambda scores: scores.view(-1, 3))
        compiled = hbp.compile(model, lambda out, y: loss(out, y), ["grad"], backend=backend)
        for samples in (2, 1, 3):
            x, y = draw(samples, 3, 2), torch.randint(3, (samples, 3))
            result = compiled(x, y)
            torch.testing.assert_close(result.output, model(x))
            for name, value in reference(model, loss, (x,), y, "grad").items():
                close(result.grad[name], value, name)
        assert "programs=1" in repr(compiled)


def test_flat_targets_are_checked():
    compiled = hbp.compile(Tagger(), TOKEN_LOSSES["view"], ["grad"])
    with pytest.raises(hbp.InputError, match=r"y: target\[0, 1\] is 7, but class indices lie between 0 and 2"):
        compiled(draw(2, 3, 2), torch.tensor([[0, 7, 1], [0, 0, 0]]))
    with pytest.raises(hbp.InputError, match=r"X has 2 samples, y has 6; .*\[2, 3, ...\]"):
        compiled(draw(2, 3, 2), torch.zeros(6, dtype=torch.long))
