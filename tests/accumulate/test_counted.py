"""`count` says how many terms a batch's mean goes over: the same in all parts of a total, and as the loss says them."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.selection import few

TORCH_LOSS = nn.CrossEntropyLoss()
WEIGHTED = nn.CrossEntropyLoss(torch.tensor([1.0, 3.0, 0.5]).double())
SUMMED = nn.CrossEntropyLoss(reduction="sum")


def batches():
    torch.manual_seed(0)
    return [(torch.randn(size, 4).double(), torch.randint(0, 3, (size,))) for size in (3, 5, 2)]


def run(loss, loader, **options):
    torch.manual_seed(1)
    compiled = hbp.compile(nn.Linear(4, 3).double(), loss, ["grad"])
    return hbp.accumulate(compiled, loader, progress=False, **options)


def samples(batch):
    return len(batch[1])


def weight_of(batch):
    return WEIGHTED.weight[batch[1]].sum()


def squares(batch):
    return len(batch[1]) ** 2


@few(2, "further cases of one kind")
@pytest.mark.parametrize(("loss", "first", "then"), [
    (SUMMED, samples, None), (SUMMED, None, samples), (SUMMED, samples, squares), (WEIGHTED, weight_of, squares)])
def test_a_run_goes_on_with_the_count_that_it_began_with(tmp_path, loss, first, then):
    data, path = batches(), tmp_path / "total.pt"
    run(loss, data, count=first, checkpoint=path, max_batches=2)
    before = path.read_bytes()
    with pytest.raises(hbp.InputError, match="counted"):
        run(loss, data, count=then, checkpoint=path)
    assert path.read_bytes() == before
    found, right = run(loss, data, count=first, checkpoint=path), run(loss, data, count=first)
    assert torch.equal(found.loss, right.loss)


def test_totals_with_and_without_count_are_not_one():
    one, other = run(SUMMED, batches()[:1], count=samples), run(SUMMED, batches()[1:])
    with pytest.raises(hbp.InputError, match="counted: True here, False there"):
        hbp.Total.merge(one, other)


@pytest.mark.parametrize("count", [lambda batch: 1, squares])
def test_a_count_that_contradicts_the_loss_is_refused(count):
    with pytest.raises(hbp.InputError, match=r"batch 1 .* over 5 terms, .* the first, .* 3\. .* leave count out"):
        run(TORCH_LOSS, batches(), count=count)


def test_only_ratios_matter_of_a_count_that_agrees_with_the_loss():
    found, right = run(TORCH_LOSS, batches(), count=lambda batch: 7 * samples(batch)), run(TORCH_LOSS, batches())
    torch.testing.assert_close(found.loss, right.loss)
    torch.testing.assert_close(found.grad["weight"], right.grad["weight"])


def test_class_weights_are_counted_as_the_error_says():
    with pytest.raises(hbp.InputError, match=r"with class weights weight\[batch\[1\]\]\.sum\(\)"):
        run(WEIGHTED, batches())
    found = run(WEIGHTED, batches(), count=weight_of)
    X, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    torch.testing.assert_close(found.loss, run(WEIGHTED, [(X, y)], count=weight_of).loss)
    torch.manual_seed(1)
    torch.testing.assert_close(found.loss, WEIGHTED(nn.Linear(4, 3).double()(X), y).detach())


@pytest.mark.parametrize("name", ["count", "prepare", "sample_weights", "indices"])
def test_what_is_said_of_batches_is_a_function(name):
    with pytest.raises(hbp.InputError, match=f"{name} must be a function of a batch, .* not a list"):
        run(TORCH_LOSS, batches(), **{name: [1.0]})


@pytest.mark.parametrize(("given", "words"), [(None, "NoneType"), ("ten", "str"), (torch.ones(2), r"shape \[2\]")])
def test_what_count_gives_is_a_number(given, words):
    with pytest.raises(hbp.InputError, match=f"count gave .*{words} for a batch; it must be a number of terms"):
        run(SUMMED, batches(), count=lambda batch: given)
