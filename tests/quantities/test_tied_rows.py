"""A matrix whose rows are looked up and which is multiplied with as well, as a language model's embedding and head."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from tests.agreement import agree, close
from tests.ways import WAYS

BY_ROWS = ("batch_l2", "second_moment", "variance", "diag_ggn", "grad")
FORMS = ("one head", "two heads", "two tables and two heads", "the head first", "of one position", "one label")


class LanguageModel(nn.Module):
    def __init__(self, form, words, width, padding=None):
        super().__init__()
        self.form, self.words, self.padding = form, words, padding
        self.table = nn.Parameter(torch.randn(words, width))
        self.inner = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(words))

    def forward(self, x):
        rows = F.embedding(x, self.table, self.padding)
        h = torch.tanh(self.inner(rows))
        if self.form == "the head first":
            gates = F.linear(h, self.table, self.bias).tanh().mean(-1, keepdim=True)
            return (gates * F.embedding(x.flip(1), self.table)).flatten(1)
        if self.form == "one label":
            return F.linear(h.mean(1), self.table, self.bias)
        out = F.linear(h, self.table, self.bias)
        if self.form == "two heads":
            out = out + F.linear(torch.sin(h), self.table)
        if self.form == "two tables and two heads":
            out = out + F.linear(torch.sin(h) + F.embedding(x.flip(1), self.table), self.table)
        return out.transpose(1, 2) if x.dim() > 1 else out


def made(form, seed, samples, positions, words=5, width=3, padding=None):
    torch.manual_seed(seed)
    model = LanguageModel(form, words, width, padding).double()
    shape = (samples,) if form == "of one position" else (samples, positions)
    x = torch.randint(words, shape)
    of_words = form != "the head first"
    y = torch.randint(words, (samples,) if form in ("one label", "of one position") else shape)
    loss = nn.CrossEntropyLoss() if of_words else nn.MSELoss(reduction="sum")
    return model, loss, x, y if of_words else torch.randn(samples, positions * width, dtype=torch.float64)


@given(st.sampled_from(FORMS), st.sampled_from(["nothing", *WAYS]), st.integers(1, 4), st.integers(1, 5),
       st.sampled_from([None, 0, 2]), st.integers(0, 2**16))
def test_all_quantities_in_every_way(form, way, samples, positions, padding, seed):
    model, loss, x, y = made(form, seed, samples, positions, padding=padding)
    compiled = hbp.compile(model, loss, list(BY_ROWS), limits=WAYS.get(way))
    agree(compiled(x, y), model, loss, [x], y)


@pytest.mark.parametrize("form", FORMS)
def test_no_sample_has_a_matrix_of_its_own(form):
    model, loss, x, y = made(form, 0, 3, 4, words=97, width=31)
    compiled = hbp.compile(model, loss, ["batch_l2", "variance"], limits=hbp.Limits(recycled_bytes=1))
    agree(compiled(x, y), model, loss, [x], y)
    assert "sums_of_equal(" in compiled.code
    assert "one_hot" not in compiled.code
    for each in ("[N, 97, 31]", "[N, 1, 97, 31]", "each_sample"):
        assert each not in compiled.code


def test_rows_that_cancel_are_not_below_zero():
    """The loss is linear: with a = -b the two uses take away what they give, but for rounding of squares of a."""
    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(4, 3))

        def forward(self, x, a, b):
            at_row = F.one_hot(x, 4).to(a.dtype)
            return (F.embedding(x, self.table) * a).sum(1) + (F.linear(b, self.table) * at_row).sum(1)

    torch.manual_seed(0)
    model, x, a = Difference(), torch.arange(64) % 4, torch.randn(64, 3)
    compiled = hbp.compile(model, lambda output, y: (output * y).sum(), ["batch_l2", "second_moment"])
    result = compiled(x, a, -a * (1 + 1e-7), torch.ones(64))
    for quantity, unit in (("second_moment", a.square().max()), ("batch_l2", a.square().sum(1).max())):
        assert result[quantity]["table"].min() >= 0
        assert result[quantity]["table"].max() < 4 * torch.finfo(torch.float32).eps * unit


@pytest.mark.parametrize("backend", ["python", "torchscript"])
def test_with_a_budget_and_as_torchscript(backend):
    model, loss, x, y = made("two tables and two heads", 1, 6, 5, words=11)
    compiled = hbp.compile(model, loss, [*BY_ROWS, "batch_grad"], backend=backend)
    agree(compiled(x, y), model, loss, [x], y)
    least = hbp.compile(model, loss, list(BY_ROWS), backend=backend, memory_budget=2**20)
    agree(least(x, y), model, loss, [x], y)


def test_at_any_length():
    model, loss, x, y = made("one head", 2, 3, 6)
    compiled = hbp.compile(model, loss, list(BY_ROWS), dynamic={"x": [1], "y": [1]})
    for length in (6, 2, 9):
        x, y = torch.randint(5, (4, length)), torch.randint(5, (4, length))
        agree(compiled(x, y), model, loss, [x], y)


def test_the_hessian_diagonal_and_inner_products_still_join_the_uses_as_values():
    model, loss, x, y = made("one head", 3, 3, 4)
    agree(hbp.compile(model, loss, ["diag_h", "batch_l2"])(x, y), model, loss, [x], y)
    result = hbp.compile(model, loss, ["batch_dot", "variance", "batch_grad"])(x, y)
    agree(result, model, loss, [x], y, ["variance", "batch_grad"])
    rows = result["batch_grad"]["table"].flatten(1)
    close(result["batch_dot"]["table"], rows @ rows.t(), "batch_dot")
