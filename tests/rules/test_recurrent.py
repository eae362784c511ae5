"""Recurrent layers as loops: every quantity as brute force has it, a loop each way, one program for any length."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.errors import LengthsWarning
from hbpcompiler.reference import reference, relative_error
from tests.selection import few, slow
from tests.ways import WAYS

FIRST = ["grad", "batch_grad", "batch_l2", "variance", "diag_ggn"]
KINDS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}
CE = nn.CrossEntropyLoss()


class Reader(nn.Module):
    """A recurrent layer and a head on its last step, on all steps, or on its last states alone."""

    def __init__(self, recurrent, read="last", states=False):
        super().__init__()
        ways = 2 if recurrent.bidirectional else 1
        self.recurrent, self.read, self.ways = recurrent, read, ways * recurrent.num_layers
        several = isinstance(recurrent, nn.LSTM)
        width = recurrent.hidden_size * (ways if read != "states" else self.ways * (1 + several))
        self.start = nn.Linear(recurrent.input_size, self.ways * recurrent.hidden_size) if states else None
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = x if self.recurrent.batch_first else x.transpose(0, 1)
        hx = None
        if self.start is not None:
            first = x[:, 0] if self.recurrent.batch_first else x[0]
            hidden = torch.tanh(self.start(first)).unflatten(1, (self.ways, -1)).transpose(0, 1)
            hx = (hidden, 2 * hidden) if isinstance(self.recurrent, nn.LSTM) else hidden
        outputs, last = self.recurrent(x, hx)
        outputs = outputs if self.recurrent.batch_first else outputs.transpose(0, 1)
        if self.read == "states":
            states = torch.cat(last, 2) if isinstance(last, tuple) else last
            return self.head(states.transpose(0, 1).flatten(1))
        return self.head(outputs[:, -1]) if self.read == "last" else self.head(outputs).transpose(1, 2)


def batch(samples, length, features, read="last"):
    x = torch.randn(samples, length, features, dtype=torch.float64)
    return x, torch.randint(3, (samples, length) if read == "all" else (samples,))


def assert_right(model, x, y, quantities, **options):
    compiled = hbp.compile(model, CE, quantities, **options)
    result = compiled(x, y)
    for quantity in quantities:
        for name, value in reference(model, CE, (x,), y, quantity).items():
            error = relative_error(result[quantity][name], value)
            assert error < 1e-9, f"{quantity} of {name}: {error}"
    return compiled


def loops(code):
    """How often the program calls each loop."""
    body = code.partition("class Program")[2]
    return {name: body.count(f"{name}(") for name in
            ("lstm_steps", "lstm_steps_back", "gru_steps", "gru_steps_back", "rnn_steps", "rnn_steps_back")
            if f"{name}(" in body}


@slow("random layers; fixed ones are beside it")
@settings(max_examples=6, deadline=None, derandomize=True)
@given(kind=st.sampled_from(list(KINDS)), sizes=st.tuples(*[st.integers(1, 4)] * 4), layers=st.integers(1, 2),
       options=st.fixed_dictionaries({name: st.booleans() for name in ("bidirectional", "bias", "batch_first")}),
       read=st.sampled_from(["last", "all", "states"]), states=st.booleans(), frozen=st.sets(st.integers(0, 7)))
def test_as_brute_force_has_it(kind, sizes, layers, options, read, states, frozen):
    samples, length, features, width = sizes
    torch.manual_seed(0)
    model = Reader(KINDS[kind](features, width, layers, **options), read, states).double()
    for number, parameter in enumerate(model.recurrent.parameters()):
        parameter.requires_grad_(number not in frozen)
    x, y = batch(samples + 1, length, features, read)
    compiled = assert_right(model, x, y, FIRST)
    assert loops(compiled.code)


class ByHand(nn.Module):
    """An LSTM whose steps are a loop in Python."""

    def __init__(self, model):
        super().__init__()
        self.recurrent, self.head = model.recurrent, model.head

    def forward(self, x):
        own, hidden, cell, outputs = self.recurrent, x.new_zeros(len(x), 3), x.new_zeros(len(x), 3), []
        for t in range(x.shape[1]):
            sums = F.linear(x[:, t], own.weight_ih_l0, own.bias_ih_l0)
            sums = sums + F.linear(hidden, own.weight_hh_l0, own.bias_hh_l0)
            enter, forget, new, leave = sums.chunk(4, 1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
            hidden = torch.sigmoid(leave) * torch.tanh(cell)
            outputs.append(hidden)
        return self.head(torch.stack(outputs, 1)).transpose(1, 2)


@slow("recurrent layers are compared")
def test_the_factors_are_those_of_steps_by_hand():
    torch.manual_seed(0)
    model = Reader(nn.LSTM(2, 3, batch_first=True), "all").double()
    x, y = batch(3, 4, 2, "all")
    looped, by_hand = (hbp.compile(each, CE, ["kflr"]) for each in (model, ByHand(model)))
    found, expected = looped(x, y), by_hand(x, y)
    assert loops(looped.code)
    assert not loops(by_hand.code)
    for name, factors in expected.kflr.items():
        for mine, other in zip(found.kflr[name], factors, strict=True):
            assert (mine is other is None) or relative_error(mine, other) < 1e-9, name


@few(1, "other gates")
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_loop_each_way_whatever_the_length(kind):
    torch.manual_seed(0)
    lines = []
    for length in (3, 9):
        model = Reader(KINDS[kind](2, 3, batch_first=True)).double()
        compiled = assert_right(model, *batch(3, length, 2), ["grad", "batch_l2", "diag_ggn"])
        name = kind if kind in ("lstm", "gru") else "rnn"
        assert loops(compiled.code)[f"{name}_steps"] == 1
        lines.append(len(compiled.code.splitlines()))
    assert lines[0] == lines[1]


@slow("recurrent layers at many lengths")
@few(1, "other gates")
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_one_program_for_any_length(kind):
    torch.manual_seed(0)
    model = Reader(KINDS[kind](2, 3, batch_first=True), "all").double()
    compiled = hbp.compile(model, CE, ["grad", "variance", "diag_ggn"], dynamic={"x": [1], "y": [1]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", LengthsWarning)
        for length in (4, 7, 3, 12):
            x, y = batch(2, length, 2, "all")
            result = compiled(x, y)
            for quantity in ("variance", "diag_ggn"):
                for name, value in reference(model, CE, (x,), y, quantity).items():
                    assert relative_error(result[quantity][name], value) < 1e-9
    assert repr(compiled).endswith("programs=1)")


@few(1, "further cases of one kind")
@pytest.mark.parametrize("kind", list(KINDS))
def test_torchscript(kind):
    torch.manual_seed(0)
    model = Reader(KINDS[kind](2, 3, bidirectional=True, batch_first=True), "states").double()
    assert loops(assert_right(model, *batch(2, 4, 2), ["grad", "diag_ggn"], backend="torchscript").code)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("way", ["tails of one column", "as on a GPU", "all columns, sample by sample",
                                 "chunks in chunks in chunks"])
def test_in_chunks(way):
    torch.manual_seed(0)
    model = Reader(nn.LSTM(2, 3, batch_first=True), "all").double()
    assert_right(model, *batch(5, 4, 2, "all"), ["batch_l2", "diag_ggn"], limits=WAYS[way])


def test_weights_that_two_layers_share():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.GRU(3, 3, batch_first=True), nn.GRU(3, 3, batch_first=True)
            self.second.weight_hh_l0, self.second.bias_ih_l0 = self.first.weight_hh_l0, self.first.bias_ih_l0
            self.head = nn.Linear(3, 3)

        def forward(self, x):
            return self.head(self.second(self.first(x)[0])[0][:, -1])

    torch.manual_seed(0)
    assert loops(assert_right(Twice().double(), *batch(3, 3, 3), FIRST).code)


def test_a_frozen_layer_below():
    """Nothing goes back through it, and it is a loop all the same."""
    torch.manual_seed(0)
    model = Reader(nn.LSTM(2, 3, batch_first=True)).double()
    model.recurrent.requires_grad_(False)
    assert loops(assert_right(model, *batch(3, 4, 2), FIRST).code) == {"lstm_steps": 1}


@slow("4 s; the loops are compared with brute force")
@few(1, "the same loop, other gates")
@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh"])
def test_curvature_inside_is_that_of_the_steps_written_out(kind):
    torch.manual_seed(0)
    model = Reader(KINDS[kind](2, 2, batch_first=True)).double()
    compiled = assert_right(model, *batch(2, 3, 2), ["diag_h"])
    assert not loops(compiled.code)
    said = "Written out step by step, as there is curvature inside: module 'recurrent'."
    assert said in " ".join(compiled.explain().split())
    assert said in " ".join(compiled.code.split())
    assert said not in assert_right(model, *batch(2, 3, 2), ["diag_ggn"]).explain()


@slow("a second or more; shorter ones of its kind stay")
def test_a_layer_inside_the_loss_is_written_out():
    class Judged(nn.Module):
        def __init__(self):
            super().__init__()
            self.judge = nn.LSTM(1, 2, batch_first=True).double().requires_grad_(False)

        def forward(self, output, target):
            return self.judge(output.unsqueeze(2))[0].square().mean()

    torch.manual_seed(0)
    model, loss = nn.Linear(2, 3).double(), Judged()
    x, y = batch(3, 2, 2)
    compiled = hbp.compile(model, loss, ["grad", "variance", "diag_ggn"])
    result = compiled(x[:, 0], y)
    for quantity in ("variance", "diag_ggn"):
        for name, value in reference(model, loss, (x[:, 0],), y, quantity).items():
            assert relative_error(result[quantity][name], value) < 1e-9
    assert not loops(compiled.code)


class Both(nn.Module):
    """Rows and columns of images as sequences, as a sequencer has them: samples are merged with the others."""

    def __init__(self):
        super().__init__()
        self.rows, self.columns = (nn.LSTM(2, 2, bidirectional=True, batch_first=True) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        samples, height, width, features = x.shape
        rows = self.rows(x.reshape(-1, width, features))[0].reshape(samples, height, width, -1)
        columns = self.columns(x.permute(0, 2, 1, 3).reshape(-1, height, features))[0]
        columns = columns.reshape(samples, width, height, -1).permute(0, 2, 1, 3)
        return self.head(torch.cat([rows, columns], -1).mean((1, 2)))


@slow("recurrent layers whole")
def test_samples_merged_with_other_axes():
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 2])
    compiled = assert_right(Both().double(), x, y, ["batch_l2", "diag_ggn"])
    assert loops(compiled.code) == {"lstm_steps": 4, "lstm_steps_back": 8}


@slow("a second or more; shorter ones of its kind stay")
def test_where_dtypes_differ_the_steps_are_written_out():
    """Autocast rounds products alone; the first call compares the program with the model's own pass."""
    torch.manual_seed(0)
    model, (x, y) = Reader(nn.LSTM(2, 3, batch_first=True)), batch(3, 3, 2)
    # Without oneDNN, which has no bfloat16 layers on some processors.
    with torch.autocast("cpu", torch.bfloat16), torch.backends.mkldnn.flags(enabled=False):
        compiled = hbp.compile(model, CE, ["grad", "variance"])
        compiled(x.float(), y)
    assert not loops(compiled.code)
