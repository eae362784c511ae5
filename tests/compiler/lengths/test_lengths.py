"""One program for any length of some axes: against a fresh program at each, and where there can be none."""

import pickle
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.errors import LengthsWarning, OptionError, OptionTypeError
from hbpcompiler.reference import reference
from tests.selection import slow

WORDS, WIDTH, CLASSES, LONGEST = 7, 4, 3, 40


class Transformer(nn.Module):
    """One block, positions that are looked up or cut off a table, attention that looks back alone or not; a class for
    each sample, or one of the words for each token."""

    def __init__(self, tokens, causal, table):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Parameter(0.3 * torch.randn(LONGEST, WIDTH)) if table else nn.Embedding(LONGEST, WIDTH)
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 6), nn.GELU(), nn.Linear(6, WIDTH))
        self.head = nn.Linear(WIDTH, WORDS if tokens else CLASSES)
        self.tokens, self.causal, self.table = tokens, causal, table

    def forward(self, x):
        samples, length = x.shape
        places = self.positions[:length] if self.table else self.positions(torch.arange(length))
        h = self.words(x) + places
        q, k, v = self.qkv(self.norm(h)).view(samples, length, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        h = h + self.mlp(h)
        return self.head(h if self.tokens else h.mean(1))


class Padded(nn.Module):
    """Words of number 0 are padding, and count for nothing."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.mix, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        mask = (x != 0).unsqueeze(-1)
        scores = self.mix(self.words(x)).sum(-1).masked_fill(~mask.squeeze(-1), -30.0)
        return self.head((torch.softmax(scores, 1).unsqueeze(-1) * self.words(x) * mask).sum(1))


def conv(stride=1):
    return nn.Sequential(nn.Conv1d(2, 3, 3, padding=1, stride=stride), nn.Tanh(), nn.Conv1d(3, 3, 2), nn.ReLU(),
                         nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, CLASSES))


def of_tokens(output, target):
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def of_classes_first(output, target):
    return F.cross_entropy(output.transpose(1, 2), target)


def of_next(output, target):
    """Targets are one shorter than the inputs."""
    return F.cross_entropy(output[:, :-1].transpose(1, 2), target)


def words(samples, length):
    return torch.randint(1, WORDS, (samples, length))


def classes(samples):
    return torch.randint(CLASSES, (samples,))


KINDS = {
    "classifier": (lambda: Transformer(False, False, True), nn.CrossEntropyLoss(),
                   lambda n, t: (words(n, t), classes(n))),
    "tokens": (lambda: Transformer(True, True, False), of_tokens, lambda n, t: (words(n, t), words(n, t))),
    "classes first": (lambda: Transformer(True, False, True), of_classes_first, lambda n, t: (words(n, t),
                                                                                              words(n, t))),
    "next": (lambda: Transformer(True, True, False), of_next, lambda n, t: (words(n, t), words(n, t - 1))),
    "padded": (Padded, nn.CrossEntropyLoss(), lambda n, t: (words(n, t) * (torch.rand(n, t) > 0.3), classes(n))),
    "conv1d": (conv, nn.CrossEntropyLoss(reduction="sum"), lambda n, t: (torch.randn(n, 2, t).double(), classes(n))),
    "squares": (lambda: nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Linear(4, 2)), nn.MSELoss(),
                lambda n, t: (torch.randn(n, t, 2).double(), torch.randn(n, t, 2).double())),
}
QUANTITIES = (["grad", "batch_l2", "variance"], ["batch_grad", "kfac"], ["diag_ggn"], ["diag_ggn_mc", "kflr"],
              ["diag_h"], ["gram", "trace_ggn"])


def tensors(value, name=""):
    """All tensors in a result's fields, by where they are."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else zip(getattr(value, "_fields", ()), value or (), strict=False)
    return {place: tensor for key, part in parts for place, tensor in tensors(part, f"{name} {key}").items()}


def found(compiled, batch, quantities):
    result = compiled(*batch, generator=torch.Generator().manual_seed(3))
    return tensors({"loss": result.loss, "output": result.output,
                    **{name: getattr(result, name) for name in quantities}})


def agree(one, other):
    assert one.keys() == other.keys()
    assert len(one) > 2
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-9, atol=1e-11,
                                   msg=lambda text, name=name: f"{name}: {text}")


@given(st.sampled_from(sorted(KINDS)), st.sampled_from(QUANTITIES), st.permutations([3, 4, 5, 7, 10, 16, 23]),
       st.integers(1, 5), st.sampled_from([None, {"x": [1]}]), st.integers(0, 99))
def test_every_length_and_batch_size_against_a_fresh_program(kind, quantities, lengths, samples, dynamic, seed):
    torch.manual_seed(seed)
    make, loss, batch_of_length = KINDS[kind]
    model, first = make().double(), batch_of_length(3, lengths[0])
    if dynamic is not None:  # named at once, with the targets' axis if it is as long
        axis = 2 if kind == "conv1d" else 1
        dynamic = {"x": [axis]} | ({"y": [1]} if first[1].dim() > 1 else {})
    compiled = hbp.compile(model, loss, quantities, dynamic=dynamic)
    compiled(*first)
    for length in lengths[1:4]:
        batch = batch_of_length(samples, length)
        fresh = hbp.compile(model, loss, quantities, dynamic=False, verify=False)
        agree(found(compiled, batch, quantities), found(fresh, batch, quantities))
    alone = kind == "next" and 3 in lengths[:2]  # beside it, targets have one position: another program perhaps
    assert repr(compiled).endswith(("programs=1)", "programs=2)") if alone else "programs=1)")
    assert "One program for every length: T is axis" in compiled.explain(2)
    assert " N T" in compiled.explain(2).replace("^2", "")


@slow("five lengths of a transformer, each beside a program of its own")
@pytest.mark.filterwarnings("error::hbpcompiler.errors.LengthsWarning")
def test_where_a_rule_turns_below_the_first_length_there_is_still_one_program_from_there_on():
    """Attention's weights [T, T] meet values [T, 2]: the residual has columns for the shorter side of the product,
    which is the other one where T is 2."""
    torch.manual_seed(0)
    model = Transformer(False, False, False).double()
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["diag_h"], dynamic={"x": [1]})
    compiled(words(3, 3), classes(3))
    for length, programs in ((4, 1), (11, 1), (7, 1), (2, 2), (5, 2)):
        batch = words(2, length), classes(2)
        fresh = hbp.compile(model, nn.CrossEntropyLoss(), ["diag_h"], dynamic=False, verify=False)
        agree(dict(compiled(*batch).diag_h), dict(fresh(*batch).diag_h))
        assert repr(compiled).endswith(f"programs={programs})")


@slow("a transformer; the numbers at other lengths are compared")
def test_the_text_has_the_length_in_it_and_nothing_of_the_first_one():
    """11 is no other length of this model."""
    compiled = hbp.compile(Transformer(True, True, False), of_tokens, ["grad", "diag_ggn"])
    for length in (11, 13):
        compiled(words(2, length), words(2, length))
    body = compiled.code.partition("class Program")[2]
    assert "        T = x.shape[1]\n" in body
    assert "# [N, T, 4]" in body
    assert not re.search(r"\b11\b", body)
    assert "T is axis 1 of X, axis 1 of y; planned for T = 11." in " ".join(compiled.code.split())
    assert "⟨" not in compiled.code
    compiled(words(3, 17), words(3, 17))
    assert repr(compiled).endswith("programs=1)")


@slow("a second or more; shorter ones of its kind stay")
def test_a_loop_over_positions_needs_a_program_for_each_length():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(2, 3, batch_first=True, proj_size=2), nn.Linear(2, CLASSES)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    model = Recurrent().double()
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["grad"])

    def right_at(length):
        x, y = torch.randn(3, length, 2).double(), classes(3)
        expected = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        for mine, other in zip(compiled(x, y).grad.values(), expected, strict=True):
            torch.testing.assert_close(mine, other)

    right_at(2)
    with pytest.warns(LengthsWarning, match="module 'lstm' is [0-9]+ operations .* written out step by step"):
        right_at(3)
    right_at(4)
    assert repr(compiled).endswith("programs=3)")
    assert "There is no program for every length: " in compiled.explain()


@slow("a second or more; shorter ones of its kind stay")
def test_what_a_stride_rounds_has_no_formula():
    model = conv(2).double()
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["grad", "diag_ggn"])

    def right_at(length):
        batch = torch.randn(2, 2, length).double(), classes(2)
        expected = reference(model, nn.CrossEntropyLoss(), [batch[0]], batch[1], "diag_ggn")
        for name, value in compiled(*batch).diag_ggn.items():
            torch.testing.assert_close(value, expected[name])

    right_at(8)
    with pytest.warns(LengthsWarning, match="follows no simple formula"):
        right_at(11)
    right_at(9)


@slow("a second or more; shorter ones of its kind stay")
def test_a_model_that_changes_its_way_at_some_length():
    """In between those at which it was checked nothing shows that; the proof at the length does."""
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            y = torch.tanh(self.layer(x))
            return 2 * y.mean(1) if x.shape[1] == 9 else y.mean(1)

    model = Odd().double()
    compiled = hbp.compile(model, nn.MSELoss(), ["grad"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", LengthsWarning)
        for length in (4, 16):
            compiled(torch.randn(3, length, 2).double(), torch.randn(3, 2).double())
    x, y = torch.randn(3, 9, 2).double(), torch.randn(3, 2).double()
    with pytest.warns(LengthsWarning, match="at a length of 9 it does not compute what the model does"):
        torch.testing.assert_close(compiled(x, y).output, model(x).detach())


def test_a_batch_that_does_not_fit_says_nothing_of_lengths():
    """It is refused as ever, and its length is tried again with one that fits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Flatten(1), nn.AdaptiveAvgPool1d(1)).double()
    compiled = hbp.compile(model, nn.MSELoss(), ["grad"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", LengthsWarning)
        compiled(torch.randn(3, 4, 2).double(), torch.randn(3, 1).double())
        for length in (6, 9):
            with pytest.raises(hbp.InputError):
                compiled(torch.randn(3, length, 2).double(), torch.randn(3, 5, 7).double())
            with pytest.raises(hbp.InputError):
                compiled(torch.randn(3, length, 4).double(), torch.randn(3, 1).double())
            compiled(torch.randn(3, length, 2).double(), torch.randn(3, 1).double())
    assert "One program for every length" in compiled.explain()


class Scaled(nn.Module):
    """A line, its mean over places, and a factor that Python makes."""

    def __init__(self, factor):
        super().__init__()
        self.layer, self.factor = nn.Linear(2, 2), factor
        self.tensors = {length: torch.tensor(1.0 + length).double() for length in range(40)}

    def forward(self, x):
        return self.factor(self, x.shape[1]) * torch.tanh(self.layer(x)).mean(1)


def right_output(compiled, model, length):
    x = torch.randn(3, length, 2).double()
    result = compiled(x, torch.zeros(3, 2).double())
    expected = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    torch.testing.assert_close(result.output, model(x).detach())
    for mine, other in zip(result.grad.values(), expected, strict=True):
        torch.testing.assert_close(mine, other)


@slow("a second or more; shorter ones of its kind stay")
def test_without_proofs_what_a_model_does_at_each_length_is_still_seen():
    """Between 6, 10 and 11 nothing says that 8 is another way."""
    model = Scaled(lambda self, length: 2.0 if length % 4 == 0 else 1.0).double()
    compiled = hbp.compile(model, nn.MSELoss(), ["grad"], verify=False)
    for length, programs in ((6, 1), (10, 1), (9, 1), (8, 2), (7, 2), (8, 2)):
        right_output(compiled, model, length)
        assert repr(compiled).endswith(f"programs={programs})")
    assert "a length of 8 needs a program of its own" in " ".join(compiled._lengths.reasons.values())


def test_tensors_that_python_looks_up_by_length():
    model = Scaled(lambda self, length: self.tensors[length]).double()
    compiled = hbp.compile(model, nn.MSELoss(), ["grad"], verify=False)
    right_output(compiled, model, 6)
    with pytest.warns(LengthsWarning, match="reads another tensor at another length"):
        right_output(compiled, model, 9)
    right_output(compiled, model, 8)


@slow("a second or more; shorter ones of its kind stay")
def test_each_state_of_the_model_has_its_program_for_any_length():
    model = Scaled(lambda self, length: self.scale).double()
    compiled = hbp.compile(model, nn.MSELoss(), ["grad"])
    for scale, programs in ((1.0, 1), (2.0, 2), (3.0, 3), (1.0, 3)):
        model.scale = scale
        for length in (6, 9, 8):
            right_output(compiled, model, length)
        assert repr(compiled).endswith(f"programs={programs})")


def test_several_lengths_that_vary_each_by_itself():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["grad"])
    for height, width in ((5, 6), (7, 7), (8, 5)):
        x = torch.randn(3, 1, height, width).double()
        torch.testing.assert_close(compiled(x, torch.tensor([0, 1, 1])).output, model(x).detach())
    assert "several lengths vary, each by itself" in compiled.explain()


@slow("7 s; sums over data, scripts and pickles have tests of their own")
def test_sums_over_data_in_torchscript_and_pickles():
    model, quantities = Transformer(False, True, True).double(), ["grad", "variance", "diag_ggn_mc"]
    batches = [(words(n, t), classes(n)) for n, t in ((3, 5), (2, 8), (1, 6), (4, 7))]
    compiled = hbp.compile(model, quantities=quantities, backend="torchscript")
    other = hbp.compile(model, quantities=quantities, dynamic=False)
    one, each = (hbp.accumulate(own, batches, seed=5, progress=False) for own in (compiled, other))
    for name in quantities:
        agree(tensors(dict(getattr(one, name))), tensors(dict(getattr(each, name))))
    assert repr(compiled).endswith("programs=1)")
    assert repr(pickle.loads(pickle.dumps(compiled))).endswith("programs=0)")


@slow("6 s; one program, other arguments of the call")
def test_weights_clipping_into_and_full_proofs_at_lengths_in_between():
    model, quantities = Transformer(True, True, False).double(), ["grad", "clipped_grad", "kfac"]
    compiled = hbp.compile(model, of_tokens, quantities, dynamic={"x": [1], "y": [1]}, verify="full")
    other = hbp.compile(model, of_tokens, quantities, dynamic=False, verify=False)
    first = compiled(words(3, 4), words(3, 4), max_norm=0.5)
    batch, weights = (words(3, 6), words(3, 6)), torch.tensor([0.5, 0.0, 2.0]).double()
    mine, theirs = (own(*batch, max_norm=0.5, sample_weights=weights, generator=torch.Generator().manual_seed(1))
                    for own in (compiled, other))
    for name in quantities:
        agree({**tensors(getattr(mine, name)), "loss": mine.loss}, {**tensors(getattr(theirs, name)),
                                                                  "loss": theirs.loss})
    before = {name: tensor.clone() for name, tensor in first.grad.items()}
    added = compiled(*batch, max_norm=0.5, into={"grad": first.grad}, decay=0.5)
    plain = other(*batch, max_norm=0.5)
    for name, tensor in added.grad.items():
        assert tensor is first.grad[name]
        torch.testing.assert_close(tensor, 0.5 * before[name] + plain.grad[name])
    assert compiled.verify(*batch, max_norm=0.5).agrees
    assert repr(compiled).endswith("programs=1)")


@slow("5 s; tests/compiler/cost has budgets")
def test_budgets_hold_at_every_length():
    model, quantities = Transformer(True, True, False).double(), ["batch_grad"]
    longest = (words(4, 24), words(4, 24))
    need = hbp.compile(model, of_tokens, quantities, example_inputs=longest).predicted_memory(4)
    compiled = hbp.compile(model, of_tokens, quantities, memory_budget=need // 2)
    for length in (5, 6):
        compiled(words(4, length), words(4, length))
    assert compiled.predicted_memory(4) < need // 2
    with pytest.raises(OptionError, match="too small"):
        compiled(*longest)


def test_what_dynamic_takes():
    model = Transformer(True, True, False)
    for wrong, message in (({"x": 1}, "list of axes"), ({"x": [0]}, "from 1 on"), (True, "dict from names"),
                           ({}, "dict from names"), ({"x": ["a"]}, "list of axes")):
        with pytest.raises((OptionError, OptionTypeError), match=message):
            hbp.compile(model, of_tokens, ["grad"], dynamic=wrong)
    compiled = hbp.compile(model, of_tokens, ["grad"], dynamic={"x": [2], "tokens": [1]})
    with pytest.raises(OptionError, match="there is no 'tokens'; there are 'x', 'y'") as raised:
        compiled(words(2, 5), words(2, 5))
    assert "'x' has the axes 1 to 1 behind that of the samples, but no 2" in str(raised.value)
