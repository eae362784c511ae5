"""Whole models and losses as people write them, put together at random, and changed between two calls: what comes out
is what autograd says, or an error of ours. HBP_EXAMPLES=2000 for a long run."""

import warnings

import torch
from hypothesis import event, given
from hypothesis import strategies as st

import hbpcompiler as hbp
from hbpcompiler.errors import InternalError
from hbpcompiler.reference import reference
from tests.user_code import CLASSES, FEATURES, LOSSES, POOLS, POSITIONS, SEQUENCES, Model

QUANTITIES = ("grad", "batch_grad", "diag_ggn", "diag_h")
CHANGED = {"scale": 0.35, "flag": False, "causal": False, "power": 3, "reduction": "sum"}
"""Attributes of the pieces in `user_code`, and their other values."""


@st.composite
def settings(draw):
    torch.manual_seed(draw(st.integers(0, 2**16)))
    names = draw(st.lists(st.sampled_from(list(SEQUENCES)), min_size=1, max_size=3))
    pool = POOLS[draw(st.sampled_from(list(POOLS)))]()
    pieces = [SEQUENCES[name]() for name in names]
    model = Model(pieces, pool, tied=draw(st.booleans()), frozen=draw(st.booleans())).double().eval()
    loss = LOSSES[draw(st.sampled_from(list(LOSSES)))]()
    return model, loss, draw(st.integers(0, 2**16))


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
        event(f"refused {when}: {type(error).__name__}: {str(error).splitlines()[-1][:120]}")
        return
    torch.testing.assert_close(result.loss, loss(model(*inputs), y), rtol=1e-9, atol=1e-9)
    for quantity in QUANTITIES:
        for name, expected in reference(model, loss, inputs, y, quantity).items():
            torch.testing.assert_close(result[quantity][name], expected, rtol=1e-6, atol=1e-9,
                                       msg=lambda text, at=f"{when}: {quantity} of {name}": f"{at}: {text}")
    event(f"agrees {when}")


def change(model, loss, seed):
    """One attribute of one piece or of the loss, drawn by `seed`; returns what puts it back."""
    owners = [(owner, name) for owner in (*model.modules(), loss) for name in CHANGED if name in vars(owner)]
    if not owners:
        return lambda: None
    owner, name = owners[seed % len(owners)]
    before = getattr(owner, name)
    setattr(owner, name, CHANGED[name])
    return lambda: setattr(owner, name, before)


@given(settings())
def test_models_of_user_code_agree_with_autograd_before_and_after_a_change(setting):
    model, loss, seed = setting
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hbp.IndefiniteCurvatureWarning)
        compiled = hbp.compile(model, loss, QUANTITIES)
        agrees(compiled, model, loss, batch(3), "at first")
        back = change(model, loss, seed)
        agrees(compiled, model, loss, batch(2), "after a change")
        back()
        agrees(compiled, model, loss, batch(4), "after the change back")
