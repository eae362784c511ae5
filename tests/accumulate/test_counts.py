"""Histograms over a data set: counts of all batches, where gradients of samples have one scale in all of them."""

import numpy as np
import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.selection import few

NAMES = ["grad_histogram", "grad_histogram_2d", "grad"]
EDGES = {"gradient_edges": torch.linspace(-1, 1, 12, dtype=torch.float64),
         "parameter_edges": torch.linspace(-0.5, 0.5, 4, dtype=torch.float64)}


def setting(reduction):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, hbp.compile(model, nn.CrossEntropyLoss(reduction=reduction), NAMES), \
        (torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,)))


def cut(data, *lengths):
    return list(zip(*(tensor.split(lengths) for tensor in data), strict=True))


@few(2, "further cases of one kind")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("arguments", [{}, EDGES], ids=["octaves", "edges"])
def test_counts_of_batches_are_those_of_the_whole(reduction, arguments, tmp_path):
    """In float32 totals too, which have no whole numbers beyond 2^24; from a file, and merged."""
    model, compiled, data = setting(reduction)
    whole = compiled(*data, **arguments)
    said = {"arguments": arguments, "progress": False, "dtype": torch.float32}
    total = hbp.accumulate(compiled, cut(data, 4, 3, 2), compensated=True, **said)
    total.save(tmp_path / "total.pt")
    parts = [hbp.accumulate(compiled, [batch], **said) for batch in cut(data, 4, 5)]
    for found in (total, hbp.Total.load(tmp_path / "total.pt", model), hbp.Total.merge(*parts),
                  parts[0].merge(*parts[1:]), hbp.Total.merge(*parts).to(dtype=torch.float32)):
        for quantity in NAMES[:2]:
            for name, counts in whole[quantity].items():
                assert found[quantity][name].dtype == torch.int64
                assert torch.equal(found[quantity][name], counts)
    if arguments:
        gradients = compiled.instead(["batch_grad"])(*data).batch_grad["0.weight"] * (9 if reduction == "mean" else 1)
        right = np.histogram(gradients.clamp(-1, 1), EDGES["gradient_edges"])[0]
        assert total.grad_histogram["0.weight"].tolist() == right.tolist()
    large = total._sums.totals[next(key for key in total._sums.totals if key.quantity == "grad_histogram")]
    assert (large.fill_(2.0**24).add_(1) == 2**24 + 1).all()


def test_counts_at_another_scale_are_refused():
    """A sample with more labels that count has another share in a mean over labels."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    X, y = torch.randn(4, 5, 3, dtype=torch.float64), torch.randint(2, (4, 5))
    y[3, 1:] = -100

    def loss(reduction):
        return lambda output, target: nn.functional.cross_entropy(output.flatten(0, 1), target.flatten(),
                                                                  reduction=reduction)

    mean, summed = (hbp.compile(model, loss(reduction), NAMES) for reduction in ("mean", "sum"))
    batches = cut((X, y), 2, 2)
    with pytest.raises(hbp.InputError, match=r"batch 1 of the loader: grad_histogram, grad_histogram_2d cannot be "
                                             r"added up: .* 3 of them in this batch, 5 in the first"):
        hbp.accumulate(mean, batches, progress=False)
    parts = [hbp.accumulate(mean, [batch], progress=False) for batch in batches]
    with pytest.raises(hbp.InputError, match="cannot be added up"):
        hbp.Total.merge(*parts)
    with pytest.raises(hbp.InputError, match="count makes a mean of a sum"):
        hbp.accumulate(summed, batches, count=lambda batch: (batch[1] != -100).sum(), progress=False)
    with pytest.raises(hbp.InputError, match="all weights of this batch are zero"):
        hbp.accumulate(summed, batches, sample_weights=lambda batch: torch.full((2,), float(batch[1][1, 1] >= 0)),
                       progress=False)
    total = hbp.accumulate(summed, batches, progress=False)
    assert torch.equal(total.grad_histogram["weight"], summed(X, y).grad_histogram["weight"])
