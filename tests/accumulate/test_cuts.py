"""However a data set is cut into batches, its totals are those of one batch of all samples."""

import io
import sys
import tempfile
from collections import UserDict
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.quantities import QUANTITIES
from tests.selection import few, slow

EXACT = [name for name, quantity in QUANTITIES.items()
         if quantity.adds and not quantity.arguments and not any(stream.endswith("_mc") for stream in quantity.streams)]
SAMPLES = 9


LIMITS = {False: None, True: hbp.Limits(grown_bytes=0)}
"""By whether programs add to totals while they run, as to large ones."""


def small(reduction, in_place):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
    data = torch.randn(SAMPLES, 2, 6, dtype=torch.float64), torch.randint(0, 3, (SAMPLES,))
    return hbp.compile(model, nn.CrossEntropyLoss(reduction=reduction), EXACT, limits=LIMITS[in_place]), data


COMPILED = {(reduction, in_place): small(reduction, in_place) for reduction in ("mean", "sum") for in_place in LIMITS}


def tensors(value):
    return [part for part in value if part is not None] if isinstance(value, tuple) else [value]


def compare(total, whole, tolerance=1e-12):
    torch.testing.assert_close(total.loss, whole.loss.to(total.loss), rtol=tolerance, atol=tolerance)
    for quantity in whole.quantities:
        assert list(total[quantity]) == list(whole[quantity])
        for name, value in whole[quantity].items():
            own = total[quantity][name]
            assert len(tensors(own)) == len(tensors(value))
            for found, right in zip(tensors(own), tensors(value), strict=True):
                torch.testing.assert_close(found, right.to(found), rtol=tolerance, atol=tolerance,
                                           msg=lambda text, at=f"{quantity} of {name}": f"{at}: {text}")


def cut_into(data, lengths):
    return list(zip(*(tensor.split(list(lengths)) for tensor in data), strict=True))


@given(lengths=st.lists(st.integers(1, 4), min_size=SAMPLES, max_size=SAMPLES), order=st.permutations(range(SAMPLES)),
       reduction=st.sampled_from(["mean", "sum"]), compensated=st.booleans(),
       weights=st.none() | st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=SAMPLES, max_size=SAMPLES).filter(any),
       in_place=st.booleans())
@example(lengths=[4, 4, 1, *[1] * 6], order=range(SAMPLES), reduction="mean", compensated=False,
         weights=[1.5, 0.0, 2.0, 1.0, *[0.0] * 4, 0.5], in_place=True)
def test_any_cutting_gives_the_whole(lengths, order, reduction, compensated, weights, in_place):
    """In place: the program adds to the totals while it runs, as to large ones."""
    compiled, (X, y) = COMPILED[reduction, in_place]
    cut, left = [], SAMPLES
    for length in lengths:
        cut.append(min(length, left))
        left -= cut[-1]
    cut = [length for length in cut if length]
    shuffled, said, given = [X[list(order)], y[list(order)]], {}, {}
    if weights is not None:
        w = torch.tensor(weights, dtype=torch.float64)
        shuffled.append(w[list(order)])
        given["sample_weights"] = w
        said = {"prepare": lambda batch: batch[:2], "sample_weights": lambda batch: batch[2]}
    whole = compiled(X, y, **given)
    total = hbp.accumulate(compiled, cut_into(shuffled, cut), compensated=compensated, progress=False, **said)
    compare(total, whole)
    assert total.samples == SAMPLES
    assert total.quantities == compiled.quantities
    parts = [hbp.accumulate(compiled, [batch], progress=False, **said) for batch in cut_into(shuffled, [4, 5])
             if weights is None or batch[2].any()]
    if len(parts) == 2:
        compare(hbp.Total.merge(*parts), whole)


class Tagger(nn.Module):
    """[N, T] tokens -> [N, classes, T]."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.out = nn.Embedding(7, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, tokens):
        return self.out(torch.tanh(self.hidden(self.embedding(tokens)))).transpose(1, 2)


def padded(batches, length):
    """Batches of several lengths as one, with labels that are ignored behind the shorter ones."""
    tokens = [nn.functional.pad(X, (0, length - X.shape[1])) for X, _ in batches]
    labels = [nn.functional.pad(y, (0, length - y.shape[1]), value=-100) for _, y in batches]
    return torch.cat(tokens), torch.cat(labels)


@slow("a second or more; shorter ones of its kind stay")
@few(1, "further losses and quantities")
@pytest.mark.parametrize(("counted", "in_place"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sequences_of_several_lengths_with_ignored_labels(reduction, counted, in_place):
    """The mean is over labels that count: as of one padded batch."""
    torch.manual_seed(0)
    model = Tagger().double()
    batches = []
    for samples, length in ((3, 4), (2, 6), (1, 3)):
        labels = torch.randint(0, 3, (samples, length))
        labels[0, :2] = -100
        batches.append((torch.randint(0, 7, (samples, length)), labels))
    names = ["grad", "second_moment", "variance", "diag_ggn", "kfac_emp", "kflr"]
    count = (lambda batch: (batch[1] != -100).sum()) if counted else None
    compiled = hbp.compile(model, nn.CrossEntropyLoss(reduction=reduction), names, limits=LIMITS[in_place])
    total = hbp.accumulate(compiled, batches, count=count, progress=False)
    of_mean = reduction == "mean" or counted
    whole = hbp.compile(model, nn.CrossEntropyLoss(reduction="mean" if of_mean else "sum"), names)(*padded(batches, 6))
    plain = ["grad", "second_moment", "variance", "diag_ggn"]
    torch.testing.assert_close(total.loss, whole.loss)
    for name in plain:
        for parameter, value in whole[name].items():
            torch.testing.assert_close(total[name][parameter], value)
    # B divides by positions; those of the whole are the mean number that a sample has, and the padded ones are none.
    mean_length = sum(X.numel() for X, _ in batches) / total.samples
    for name in ("kflr", "kfac_emp"):
        for parameter in ("hidden.weight", "out.weight"):
            torch.testing.assert_close(total[name][parameter].B, whole[name][parameter].B * 6 / mean_length)
        torch.testing.assert_close(total[name]["out.bias"].B, whole[name]["out.bias"].B)


TAGGER = Tagger().double()
TAGGERS = {(reduction, in_place): hbp.compile(TAGGER, nn.CrossEntropyLoss(reduction=reduction),
                                              ["grad", "second_moment", "kflr"], limits=LIMITS[in_place])
           for reduction in ("mean", "sum") for in_place in LIMITS}


@few(1, "further cases of one kind")
@pytest.mark.parametrize("in_place", [False, True])
@given(data=st.data(), lengths=st.lists(st.sampled_from([2, 4]), min_size=2, max_size=4),
       reduction=st.sampled_from(["mean", "sum"]))
def test_any_number_of_tokens_and_any_point_of_resumption(data, lengths, reduction, in_place):
    """Labels are ignored at random; the run is stopped behind some batch, and goes on to the same bits. Programs add
    to large totals themselves."""
    compiled, batches = TAGGERS[reduction, in_place], []
    for length in lengths:
        shape = (data.draw(st.integers(1, 3)), length)
        labels = torch.tensor(data.draw(st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=shape[0] * length,
                                                 max_size=shape[0] * length))).view(shape)
        labels[0, 0] = 1  # a mean over no label has no value
        batches.append((torch.arange(labels.numel()).view(shape) % 7, labels))
    total = hbp.accumulate(compiled, batches, progress=False)
    whole = hbp.accumulate(compiled, [padded(batches, 4)], progress=False)
    torch.testing.assert_close(total.loss, whole.loss)
    mean_length = sum(X.numel() for X, _ in batches) / total.samples
    for name in ("embedding.weight", "hidden.bias", "out.weight"):
        torch.testing.assert_close(total.grad[name], whole.grad[name])
        torch.testing.assert_close(total.second_moment[name], whole.second_moment[name])
    torch.testing.assert_close(total.kflr["out.weight"].B, whole.kflr["out.weight"].B * 4 / mean_length)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "total.pt"
        hbp.accumulate(compiled, batches, progress=False, checkpoint=path,
                       max_batches=data.draw(st.integers(1, len(batches))))
        resumed = hbp.accumulate(compiled, batches, progress=False, checkpoint=path)
    compare(resumed, total, tolerance=0)


def test_one_program_and_one_copy_of_the_result():
    """The last, smaller batch uses the program of the others; totals are one tensor for each of the result's."""
    compiled, data = COMPILED["mean", False]
    programs, sizes = [], []
    whole = compiled(*data)

    class Watched(list):
        def __iter__(self):
            for batch in super().__iter__():
                yield batch
                programs.append(compiled.also("grad")._current() if "grad" not in EXACT else compiled._current())

    total = hbp.accumulate(compiled, Watched(cut_into(data, [4, 4, 1])), progress=False)
    assert len({id(built) for built in programs}) == 1
    for quantity in EXACT:
        sizes += [part.numel() for value in whole[quantity].values() for part in tensors(value)]
    means = sum(value.numel() for value in whole.variance.values())
    assert sum(held.numel() for held in total._sums.totals.values()) == sum(sizes) + means + 1  # and the loss


def test_the_bar_shows_loss_and_rate(monkeypatch):
    shown = []

    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            shown.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Terminal())
    compiled, data = COMPILED["sum", False]
    total = hbp.accumulate(compiled, cut_into(data, [4, 4, 1]))
    assert f"loss {float(total.loss):.5g}" in "".join(shown)
    assert "3/3" in "".join(shown)
    assert "samples/s" in "".join(shown)
    shown.clear()
    hbp.accumulate(compiled, cut_into(data, [4, 4, 1]), progress=False)
    assert not shown


def test_float32_totals_of_many_batches_lose_nothing_where_they_are_compensated():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    compiled = hbp.compile(model, lambda output, target: ((output - target) ** 2).sum() / 2, ["grad"])
    batches = [(torch.ones(1, 1), torch.full((1, 1), value)) for value in [-1.0, *[-6e-8] * 400]]
    found = {compensated: hbp.accumulate(compiled, batches, dtype=torch.float32, compensated=compensated,
                                         progress=False).grad["weight"].item() for compensated in (False, True)}
    right = 1 + 400 * 6e-8
    assert abs(found[True] - right) < 2e-7 < abs(found[False] - right)
    exact = hbp.accumulate(compiled, batches, progress=False).grad["weight"]
    assert exact.dtype == torch.float64
    assert abs(exact.item() - right) < 1e-12


def test_labels_that_are_all_ignored_and_batches_without_samples():
    torch.manual_seed(0)
    model = Tagger().double()
    X, y = torch.randint(0, 7, (3, 4)), torch.randint(0, 3, (3, 4))
    batches = [(X[:0], y[:0]), (X, y), (X[:1], torch.full_like(y[:1], -100))]
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["grad", "variance", "kflr"])
    compare(hbp.accumulate(compiled, batches[:2], progress=False), compiled(X, y))
    whole = compiled(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))
    compare(hbp.accumulate(compiled, batches, progress=False), whole)
    compiled = hbp.compile(model, nn.CrossEntropyLoss(reduction="sum"), ["grad", "variance"])
    total = hbp.accumulate(compiled, batches, progress=False)
    whole = compiled(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))
    compare(total, whole)
    assert total.samples == 4


def test_dicts_and_what_prepare_makes():
    torch.manual_seed(0)
    compiled = hbp.compile(nn.Linear(3, 2).double(), None, ["grad"])
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 2, (5,))
    right = compiled(X, y)
    compare(hbp.accumulate(compiled, [{"input": X[:2], "labels": y[:2]}, {"input": X[2:], "labels": y[2:]}],
                           progress=False), right)
    compare(hbp.accumulate(compiled, [{"image": X, "class": y}], prepare=lambda item: (item["image"], item["class"]),
                           progress=False), right)
    named = [UserDict(input=X[:2], labels=y[:2]), UserDict(input=X[2:], labels=y[2:])]  # as tokenizers give them
    compare(hbp.accumulate(compiled, named, progress=False), right)
    with pytest.raises(hbp.InputError, match=r"which of these is the target\? Pass prepare=lambda batch: \("
                       r"\{'input': batch\['input'\]\}, batch\['class'\]\), say"):
        hbp.accumulate(compiled, [{"input": X, "class": y}], progress=False)
    with pytest.raises(hbp.InputError, match="not \\(X, y\\)"):
        hbp.accumulate(compiled, [X], progress=False)
    with pytest.raises(hbp.InputError, match=r"is a list of 1 entry, not \(X, y\)"):
        hbp.accumulate(compiled, [[X]], progress=False)
    for loader, text in ((TensorDataset(X, y), r"a data set by itself.* DataLoader\(dataset"),
                         ((X, y), r"pass a list of it, \[\(X, y\)\]"), (5, "the loader is a int")):
        with pytest.raises(hbp.InputError, match=text):
            hbp.accumulate(compiled, loader, progress=False)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_last_batch_of_one_sample_whose_axis_is_squeezed_away():
    class Regression(nn.Linear):
        def forward(self, x):
            return super().forward(x).squeeze()

    torch.manual_seed(0)
    compiled = hbp.compile(Regression(3, 1).double(), nn.MSELoss(), ["grad"])
    data = TensorDataset(torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64))
    compare(hbp.accumulate(compiled, DataLoader(data, 2, drop_last=True), progress=False), compiled(*data[:4]))
    with pytest.raises(hbp.ProofError, match=r"(?s)output: the program's shape is \[1\], the model's is \[\].*"
                                             r"squeeze\(-1\).*drop_last=True"):
        hbp.accumulate(compiled, DataLoader(data, 2), progress=False)


def test_variances_ask_for_gradients_too_which_are_compiled_once():
    compiled = hbp.compile(nn.Linear(3, 2), None, ["variance"])
    batches = [(torch.ones(2, 3), torch.tensor([0, 1]))]
    for _ in range(2):
        hbp.accumulate(compiled, batches, progress=False)
    assert compiled.also("grad") is compiled.also("grad")
    assert hbp.accumulate(compiled, batches, progress=False).quantities == ("variance",)


def test_what_does_not_add_up_is_refused_with_what_to_do():
    compiled = hbp.compile(nn.Linear(3, 2), None, ["grad", "batch_grad", "kfra", "ekfac"])
    with pytest.raises(hbp.InputError) as raised:
        hbp.accumulate(compiled, [])
    text = str(raised.value)
    for part in ("batch_grad: it has a row", "kfra: its recursion", "take kflr", "ekfac: its eigenvectors"):
        assert part in text
    assert "grad:" not in text.replace("batch_grad:", "")


def test_weights_that_do_not_fit():
    compiled, data = COMPILED["mean", False]
    for weights, text in ((lambda batch: torch.ones(2), "float32 of shape \\[2\\] for a batch of 9 samples"),
                          (lambda batch: [1.0] * 9, "sample_weights gave list"),
                          (lambda batch: -torch.ones(9), "weights are not negative for"),
                          (lambda batch: torch.zeros(9), "all weights of the data set are zero")):
        with pytest.raises(hbp.InputError, match=text):
            hbp.accumulate(compiled, [data], sample_weights=weights, progress=False)


def test_class_weights_need_a_count():
    torch.manual_seed(0)
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    model, loss = nn.Linear(3, 3).double(), nn.CrossEntropyLoss(weight)
    compiled = hbp.compile(model, loss, ["grad", "second_moment", "kflr"])
    X, y = torch.randn(7, 3, dtype=torch.float64), torch.randint(0, 3, (7,))
    batches = cut_into((X, y), [3, 2, 2])
    with pytest.raises(hbp.InputError, match=r"batch 0 of the loader.*pass count="):
        hbp.accumulate(compiled, batches, progress=False)
    compare(hbp.accumulate(compiled, batches, count=lambda batch: weight[batch[1]].sum(), progress=False),
            compiled(X, y))


def test_a_loss_of_two_means_over_different_numbers_of_terms():
    torch.manual_seed(0)
    model = Tagger().double()

    def loss(output, target):
        return nn.functional.cross_entropy(output, target) + output.square().mean()

    compiled = hbp.compile(model, loss, ["grad"])
    X, y = torch.randint(0, 7, (4, 3)), torch.randint(0, 3, (4, 3))
    compare(hbp.accumulate(compiled, cut_into((X, y), [3, 1]), progress=False), compiled(X, y))
    y[0, 0] = -100
    with pytest.raises(hbp.InputError, match="one by one"):
        hbp.accumulate(compiled, cut_into((X, y), [2, 2]), progress=False)


def test_batches_with_indices_behind_the_target():
    torch.manual_seed(0)
    compiled = hbp.compile(nn.Linear(3, 2), None, ["grad"])
    X, y = torch.randn(4, 3), torch.randint(2, (4,))
    batches = [(X, y, torch.arange(4))]
    with pytest.raises(hbp.InputError, match=r"^batch 0 of the loader: (.|\n)*Of the 3 entries of a batch the last is "
                                             r"taken as the target.*prepare=lambda batch: \(batch\[0\], batch\[1\]\)"):
        hbp.accumulate(compiled, batches, progress=False)
    with pytest.raises(hbp.InputError) as raised:
        hbp.accumulate(compiled, batches, progress=False, prepare=lambda batch: batch)
    assert "prepare=" not in str(raised.value)
    compare(hbp.accumulate(compiled, batches, progress=False, prepare=lambda batch: (batch[0], batch[1]),
                           indices=lambda batch: batch[2]), compiled(X, y))


def test_dicts_with_more_than_arguments_and_a_target():
    class Named(nn.Linear):
        def forward(self, pixels):
            return super().forward(pixels)

    torch.manual_seed(0)
    compiled = hbp.compile(Named(3, 2), None, ["grad"])
    batch = {"pixels": torch.randn(4, 3), "labels": torch.randint(2, (4,)), "weight": torch.rand(4)}
    with pytest.raises(hbp.InputError, match="has other entries too, pass prepare=, a function from the"):
        hbp.accumulate(compiled, [batch], progress=False)
    found = hbp.accumulate(compiled, [batch], progress=False, sample_weights=lambda batch: batch["weight"],
                           prepare=lambda batch: {name: batch[name] for name in ("pixels", "labels")})
    compare(found, compiled(batch["pixels"], batch["labels"], sample_weights=batch["weight"]))


def test_shards_hold_every_sample_once():
    for size in (0, 1, 7, 8):
        shards = [hbp.shard(range(size), rank, 3) for rank in range(3)]
        assert sorted(item for part in shards for item in part) == list(range(size))
    with pytest.raises(hbp.InputError, match="rank 3 of 3"):
        hbp.shard(range(3), 3, 3)
