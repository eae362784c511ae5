"""Checks of values do not make a trace impossible; control flow by values does."""

import contextlib
import copy

import pytest
import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.conditions.values import FUNCTIONS, METHODS, recorded
from tests.models.test_outputs import check

D = torch.float64
X, Y = torch.randn(4, 3, dtype=D, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0])
T = torch.rand(4, 1, dtype=D, generator=torch.Generator().manual_seed(1)) + 0.5


def all_checks(output, target):
    """Losses whose code looks at values: of positive numbers, classes and numbers in between."""
    place, scale = output[:, :1], F.softplus(output[:, 1:2])
    classes = td.Categorical(logits=output[:, 2:], validate_args=True)
    return (F.gaussian_nll_loss(place, target, scale)
            - td.Normal(place, scale).log_prob(target).mean()
            - td.Independent(td.Laplace(output[:, :2], F.softplus(output[:, 2:4])), 1).log_prob(target).mean()
            - td.Gamma(scale, scale, validate_args=True).log_prob(target).mean()
            - classes.log_prob(target[:, 0].long()).mean()
            + td.kl_divergence(td.Normal(place, scale), td.Normal(torch.zeros(1, dtype=D), 1.0)).mean())


def test_losses_of_torch_that_check_values():
    torch.manual_seed(0)
    check(nn.Linear(3, 5).to(D), all_checks, (X,), T, ["grad", "batch_grad"])


class Careful(nn.Module):
    """Each of these only raises, prints or warns, or depends on constants."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def small(self, x):
        return bool((x.abs() < 1e5).all())

    def forward(self, x):
        assert torch.isfinite(x).all(), "not finite"
        assert self.small(x)
        assert (x.max() < 5000).item() or not torch.equal(x, torch.zeros_like(x))
        if x.max().item() > 1000 or x.min() < -1000:
            raise ValueError("too large")
        elif float(x.sum()) > 1e6:
            raise ValueError("too large in all")
        if not (x.abs().sum() < 1e6):
            print("large")
        if (x < 1e6).all():
            x = x * 1
        else:
            raise ValueError("too large")
        torch._assert((x < 1e4).all(), "large")
        if torch.ones(3).sum() > 2:
            x = x * 2
        return self.head(x)[:, : int(torch.tensor([1.0, 1.0]).sum())]


def test_assertions_of_the_users():
    model = Careful().to(D)
    check(model, nn.CrossEntropyLoss(), (X,), Y, ["grad"])
    with pytest.raises(hbp.InputError, match="ValueError: too large"):
        hbp.compile(model, quantities=["grad"])(X + 2000, Y)


def test_transformer_encoders_with_masks():
    torch.manual_seed(0)

    class Encoder(nn.Module):
        def __init__(self, **options):
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True, dropout=0.0)
            self.encoder = nn.TransformerEncoder(layer, 1)
            self.head, self.options = nn.Linear(4, 2), options

        def forward(self, x, padding):
            mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
            return self.head(self.encoder(x, mask=mask, src_key_padding_mask=padding, **self.options).mean(1))

    inputs = torch.randn(4, 5, 4, dtype=D), torch.arange(5) >= torch.tensor([[5], [3], [4], [5]])
    for model in (Encoder().to(D).eval(), Encoder(is_causal=False).to(D).train()):
        check(model, nn.CrossEntropyLoss(), inputs, Y, ["grad"])
    assert torch.backends.mha.get_fastpath_enabled()


def caught(x):
    try:
        assert (x > 0).all()
    except AssertionError:
        return -x
    return x


def suppressed(x):
    with contextlib.suppress(AssertionError):
        assert (x < 1e6).all()
        x = -x
    return x


def counted(x):
    rows = x[x[:, 0] > 0]
    with contextlib.suppress(AssertionError):
        assert len(rows) < 50
        x = -x
    return x


def error(x):
    x.mul_(2)


def written(x):
    x = 1 * x
    if (x > 0).all():
        error(x)
    return x


def kept(x):
    if (largest := x.max().item()) > 100:
        raise ValueError
    return x * largest


def random(x):
    if torch.rand(()) < 0.5:
        return -x
    return x


def sized(x):
    if torch.ones(x.shape[0]).sum() > 5:
        return -x
    return x


def chosen(x):
    return -x if bool(x.sum() > 0) else x


def until(x):
    while x.sum() < 1:
        x = x + 1
    return x


def otherwise(x):
    if (x > 1e6).any():
        print("large")
    else:
        x = 2 * x
    return x


@pytest.mark.parametrize("branch", [caught, suppressed, counted, written, kept,
                                    random, sized, chosen, until, otherwise])
def test_what_values_decide_is_refused(branch):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return branch(self.head(x))

    with pytest.raises(hbp.CompileError, match=r"values|how many rows"):
        hbp.compile(Branch().to(D), quantities=["grad"])(X, Y)


def test_torch_is_as_before():
    own = [vars(torch.Tensor).get(name) for name in METHODS], [getattr(torch, name) for name in FUNCTIONS]
    with recorded() as answers:
        assert copy.copy(X).sum().item() == X.sum()
    assert list(answers.values()) == [[X.sum().item()], [True]]
    assert own == ([vars(torch.Tensor).get(name) for name in METHODS], [getattr(torch, name) for name in FUNCTIONS])
