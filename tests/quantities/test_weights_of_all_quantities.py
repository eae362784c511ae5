"""Every quantity of the table under weights of samples: ones change no bit, and a weight of zero drops its sample."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.quantities import QUANTITIES
from tests.agreement import close
from tests.quantities.test_more_quantities import pieces
from tests.selection import few

DOUBLE = torch.float64
SAMPLES, CLASSES, COLUMNS = 4, 3, 2
"""As many sampled columns as exact ones: weights of columns serve both."""
LAST = SAMPLES - 1
"""What is drawn for the others does not depend on whether the last one is there."""

ROWS = {"batch_loss", "batch_grad", "batch_l2", "batch_inner", "batch_diag_ggn", "batch_diag_h", "norms", "sqrt_ggn",
        "sqrt_ggn_mc", "project", "project_ggn", "project_ggn_mc"}
PAIRS = {"batch_dot": 1, "gram": 2, "gram_mc": 2, "cross": 2, "cross_mc": 2}
"""A row for each sample, and a column on this axis."""
COUNTS = {"grad_histogram", "grad_histogram_2d"}
EIGENVECTORS = {"ekfac"}
OF_THE_OUTPUT = {"jacobian"}
AVERAGES = {"second_moment", "variance"}
"""Divided by N, that of all rows."""
DRAWN_LATER = {"diag_h_mc", "diag_h_mc_all"}
"""Its second draws come behind the first ones of all samples, so that they are others in another batch."""
FOR_PRODUCTS = {"block"}
SUMS = (QUANTITIES.keys() - ROWS - PAIRS.keys() - COUNTS - EIGENVECTORS - OF_THE_OUTPUT - AVERAGES - DRAWN_LATER
        - FOR_PRODUCTS)


def chain():
    """Convolution, pool, linear layers: all quantities know it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 4), nn.Sigmoid(),
                          nn.Linear(4, CLASSES)).double()
    return model, torch.randn(SAMPLES, 1, 5, 5, dtype=DOUBLE), torch.tensor([0, 2, 1, 1])


def arguments(model, compiled_for_bases, X, y):
    """All that calls bring: of the last sample too."""
    torch.manual_seed(1)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return {"max_norm": 0.5, "bases": compiled_for_bases(X, y).ekfac,
            "gradient_edges": torch.linspace(-1.01, 1, 9, dtype=DOUBLE),
            "parameter_edges": torch.linspace(-1, 1, 4, dtype=DOUBLE),
            "directions": {name: torch.randn(2, *shape, dtype=DOUBLE) for name, shape in shapes.items()},
            "column_weights": {"all": torch.randn(SAMPLES, COLUMNS, 2, dtype=DOUBLE)}}


def called(compiled, X, y, **given):
    torch.manual_seed(0)
    return compiled(X, y, **given)


def by_name(quantity, value):
    return value if isinstance(value, dict) else {quantity: value}


def everything(reduction):
    model, X, y = chain()
    loss = nn.CrossEntropyLoss(reduction=reduction)
    bases = hbp.compile(model, loss, ["ekfac"], mc_samples=COLUMNS)
    compiled = hbp.compile(model, loss, list(QUANTITIES), mc_samples=COLUMNS)
    return compiled, X, y, arguments(model, bases, X, y)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ones_change_no_bit(reduction):
    compiled, X, y, given = everything(reduction)
    plain = called(compiled, X, y, **given)
    ones = called(compiled, X, y, sample_weights=torch.ones(SAMPLES), **given)
    assert set(plain) == set(QUANTITIES)
    assert torch.equal(plain.loss, ones.loss)
    for quantity in plain:
        found = plain[quantity]
        for name, value in by_name(quantity, found).items():
            other = by_name(quantity, ones[quantity])[name]
            for one, two in zip(pieces(value), pieces(other), strict=True):
                assert torch.equal(one, two), f"{quantity} of {name}"


def test_a_weight_of_zero_drops_its_sample():
    """Of a sum. What has rows has zeros there; averages over N rows keep that N; counts have its zeros."""
    compiled, X, y, given = everything("sum")
    weights = torch.ones(SAMPLES)
    weights[LAST] = 0
    found = called(compiled, X, y, sample_weights=weights, **given)
    fewer = {**given, "column_weights": {"all": given["column_weights"]["all"][:LAST]}}
    alone = called(compiled, X[:LAST], y[:LAST], **fewer)
    close(found.loss, alone.loss, "loss")
    for quantity in QUANTITIES:
        for name, value in by_name(quantity, found[quantity]).items():
            check_dropped(quantity, value, by_name(quantity, alone[quantity])[name], alone, name)
    for name, vectors in given["directions"].items():
        for vector in vectors:
            product, expected = (compiled.block_product(result, name, vector) for result in (found, alone))
            close(product, expected, f"block of {name}")


def check_dropped(quantity, found, alone, others, name):
    what = f"{quantity} of {name}"
    if quantity in ROWS:
        close(found[:LAST], alone, what)
        assert not found[LAST].any(), what
    elif quantity in PAIRS:
        axis = PAIRS[quantity]
        close(found[:LAST].narrow(axis, 0, LAST), alone, what)
        assert not found[LAST].any(), what
        assert not found.select(axis, LAST).any(), what
    elif quantity in COUNTS:
        of_zeros = found - alone
        assert int(of_zeros.sum()) == others.grad[name].numel(), what
        assert of_zeros.reshape(-1, of_zeros.shape[-1]).count_nonzero(0).count_nonzero() == 1, what
    elif quantity in EIGENVECTORS:  # those of equal matrices, whose signs are arbitrary
        close(found.eigenvalues, alone.eigenvalues, what)
    elif quantity in OF_THE_OUTPUT:  # no weight is in it
        close(found[:LAST], alone, what)
        assert found[LAST].any(), what
    elif quantity in DRAWN_LATER | FOR_PRODUCTS:
        return  # see the other test, and the products of blocks
    elif quantity in AVERAGES:
        squares = others.second_moment[name] * LAST / SAMPLES
        mean = others.grad[name] / SAMPLES
        close(found, squares - mean.square() if quantity == "variance" else squares, what, squares)
    else:
        assert quantity in SUMS
        for one, other in zip(pieces(found), pieces(alone), strict=True):
            close(one, other, what)


def test_what_is_drawn_in_passing_adds_up_over_the_weights():
    """With the same draws, the samples that are left out are what is missing."""
    model, X, y = chain()
    compiled = hbp.compile(model, nn.CrossEntropyLoss(reduction="sum"), list(DRAWN_LATER), mc_samples=COLUMNS)
    weights = torch.tensor([1, 0.5, 1, 0], dtype=DOUBLE)
    whole, kept, rest = (called(compiled, X, y, sample_weights=given) for given in (None, weights, 1 - weights))
    for quantity in DRAWN_LATER:
        for name, value in whole[quantity].items():
            close(kept[quantity][name] + rest[quantity][name], value, f"{quantity} of {name}")
            assert not torch.equal(kept[quantity][name], value)
