"""Whole models and losses as people write them, put together at random, and changed between two calls: what comes out
is what autograd says, or an error of ours. `make fuzz` runs thousands, see `fuzz`."""

import warnings
from typing import NamedTuple

import torch
from hypothesis import event, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.errors import InternalError
from hbpcompiler.reference import reference
from tests.user_code import CLASSES, FEATURES, POOLS, POSITIONS, SEQUENCES, Model
from tests.user_losses import LOSSES

QUANTITIES = ("grad", "batch_grad", "diag_ggn", "diag_h")
ATTRIBUTES = {"scale": 0.35, "flag": False, "causal": False, "power": 3, "reduction": "sum", "eps": 0.1}
"""Attributes of the pieces in `user_code` and of torch's modules, and their other values."""


class Setting(NamedTuple):
    title: str
    model: nn.Module
    loss: nn.Module
    seed: int
    """Of the batches."""
    change: int
    """Which of the changes that this model and loss allow."""


@st.composite
def settings(draw):
    torch.manual_seed(draw(st.integers(0, 2**16)))
    names = draw(st.lists(st.sampled_from(list(SEQUENCES)), min_size=1, max_size=3))
    pool, loss = draw(st.sampled_from(list(POOLS))), draw(st.sampled_from(list(LOSSES)))
    tied, frozen = draw(st.booleans()), draw(st.booleans())
    pieces = [SEQUENCES[name]() for name in names]
    model = Model(pieces, POOLS[pool](), tied=tied, frozen=frozen).double().eval()
    title = f"{' > '.join(names)} | {pool} | {loss}" + " | tied" * tied + " | frozen" * frozen
    return Setting(title, model, LOSSES[loss](), draw(st.integers(0, 2**16)), draw(st.integers(0, 2**16)))


def batch(samples):
    x = torch.randn(samples, POSITIONS, FEATURES, dtype=torch.float64)
    return x, torch.randint(CLASSES, (samples,)), torch.randint(CLASSES, (samples,))


def agrees(compiled, model, loss, given, when):
    """Compares one call; a refusal is none of the answers that could be wrong (--hypothesis-show-statistics counts)."""
    *inputs, y = given
    try:
        result = compiled(*given)
    except InternalError:
        raise
    except hbp.HbpError as error:
        event(f"refused {when}: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}")
        return
    torch.testing.assert_close(result.loss, loss(model(*inputs), y), rtol=1e-9, atol=1e-9)
    for quantity in QUANTITIES:
        for name, expected in reference(model, loss, inputs, y, quantity).items():
            torch.testing.assert_close(result[quantity][name], expected, rtol=1e-6, atol=1e-9,
                                       msg=lambda text, at=f"{when}: {quantity} of {name}": f"{at}: {text}")
    event(f"agrees {when.split(' (')[0]}")


def changes(model, loss):
    """Every change of Python state that `model` and `loss` allow, by name: does it, and returns what puts it back."""
    found = {}
    for where, owner in [*model.named_modules(), ("loss", loss)]:
        for name in ATTRIBUTES:
            if name in vars(owner):
                found[f"{where}.{name}"] = lambda o=owner, n=name: replaced(o, n, ATTRIBUTES[n])
        if isinstance(owner, nn.Linear):
            found[f"hook of {where}"] = lambda o=owner: o.register_forward_hook(doubled).remove
            found[f"another {where}"] = lambda o=owner: replaced(o, "weight", nn.Parameter(o.weight.detach() * 0.5))
            found[f"{where} frozen, or no more"] = lambda o=owner: other_way(o.bias)
    if "weights" in dict(loss.named_buffers()):
        found["weights of the loss"] = lambda: replaced(loss, "weights", loss.weights.flip(0))
    found["another pool"] = lambda: replaced(model, "pool", POOLS["mean"]())
    return found


def replaced(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def doubled(module, inputs, output):
    return 2 * output


def other_way(parameter):
    parameter.requires_grad_(not parameter.requires_grad)
    return lambda: parameter.requires_grad_(not parameter.requires_grad)


@examples(max_examples=20 * examples().max_examples)
@given(settings())
def test_models_of_user_code_agree_with_autograd_before_and_after_a_change(setting):
    compare(setting)


def compare(setting):
    """Three calls of one setting beside autograd: as drawn, changed, changed back."""
    _, model, loss, seed, number = setting
    torch.manual_seed(seed)
    possible = changes(model, loss)
    name = list(possible)[number % len(possible)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hbp.IndefiniteCurvatureWarning)
        compiled = hbp.compile(model, loss, QUANTITIES)
        agrees(compiled, model, loss, batch(3), "at first")
        back = possible[name]()
        agrees(compiled, model, loss, batch(2), f"after a change ({name})")
        back()
        agrees(compiled, model, loss, batch(4), "after the change back")
