"""Counts of per-sample gradients' entries, by magnitude and between given edges, over every way that T is formed."""

import math

import numpy
import pytest
import torch
from torch import Tensor, nn

import hbpcompiler as hbp
from hbpcompiler.compiler.program.histograms import MAGNITUDES, PARAMETER_MAGNITUDES, histogram_cells
from hbpcompiler.compiler.routes.histograms import bins_of
from hbpcompiler.reference import reference
from tests.compiler.routes.test_native_kernel import only_native
from tests.selection import few

ASKED = ["grad", "batch_inner", "grad_histogram", "grad_histogram_2d"]


class Words(nn.Module):
    """A table that is read and multiplied with, a layer that is used twice, a convolution over words, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.layer = nn.Linear(4, 4)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        x = x + torch.tanh(self.layer(x))
        x = self.norm(x + torch.tanh(self.layer(x)))
        x = torch.tanh(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return (x @ self.table.weight.T).mean(1)


def cell(number: float, low: int, octaves: int, parts: int) -> int:
    """Without bits: by the logarithm's own definition."""
    if abs(number) < 2.0**low:
        return octaves * parts
    fraction, exponent = math.frexp(abs(number))  # number = fraction 2^exponent, 0.5 <= fraction < 1
    place = (exponent - 1 - low) * parts + (parts == 2 and fraction >= 0.75) + 1
    return octaves * parts + int(math.copysign(min(place, octaves * parts), number))


def counted(cells: list[int], bins: int) -> list[int]:
    return torch.bincount(torch.tensor(cells), minlength=bins).tolist()


@few(1, "other networks")
@pytest.mark.parametrize(("options", "asked"), [({}, ASKED), ({"backend": "torchscript"}, ASKED),
                                                ({}, [*ASKED, "trace_h"])])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_counts_and_inner_products_of_tied_parameters(options: dict, asked: list[str], reduction: str) -> None:
    torch.manual_seed(0)
    model, loss = Words().double(), nn.CrossEntropyLoss(reduction=reduction)
    x, y = torch.randint(0, 6, (5, 3)), torch.randint(0, 6, (5,))
    result = hbp.compile(model, loss, asked, **options)(x, y)
    edges = torch.linspace(-0.02, 0.02, 8).double()
    between = hbp.compile(model, loss, asked, **options)(x, y, gradient_edges=edges)
    each = reference(model, loss, [x], y, "batch_grad")
    inner = reference(model, loss, [x], y, "batch_inner")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(result.batch_inner[name], inner[name], rtol=1e-9, atol=1e-14)
        entries = each[name].detach() * (5 if reduction == "mean" else 1)
        columns = [cell(number, *MAGNITUDES) for number in entries.flatten().tolist()]
        assert result.grad_histogram[name].tolist() == counted(columns, bins_of(MAGNITUDES)), name
        own = [cell(number, *PARAMETER_MAGNITUDES) for number in parameter.flatten().tolist()] * 5
        both = [row * bins_of(MAGNITUDES) + column for row, column in zip(own, columns, strict=True)]
        flat = counted(both, bins_of(MAGNITUDES) * bins_of(PARAMETER_MAGNITUDES))
        assert result.grad_histogram_2d[name].flatten().tolist() == flat
        clipped = entries.flatten().clamp(float(edges[0]), float(edges[-1])).numpy()
        assert between.grad_histogram[name].tolist() == numpy.histogram(clipped, edges)[0].tolist()


def test_counts_by_torchs_kernel_for_one_sample_and_in_chunks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3)).double()
    x, y = torch.randn(4, 2, 6, 6).double(), torch.randint(0, 3, (4,))
    plain = hbp.compile(model, None, ASKED)(x, y)
    for limits in (only_native(model[0].weight), hbp.Limits(cache_bytes=1)):
        other = hbp.compile(model, None, ASKED, limits=limits)(x, y)
        for name in plain.grad:
            assert torch.equal(other.grad_histogram_2d[name], plain.grad_histogram_2d[name])
            torch.testing.assert_close(other.batch_inner[name], plain.batch_inner[name], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cells_at_edges_and_beyond(dtype: torch.dtype) -> None:
    numbers = [0.0, -0.0, 1.0, -1.0, 1.5, 1.25, -1.75, 2.0**-14, 3e4, -3e4, math.inf, -math.inf, 1e-7]
    given = torch.tensor(numbers, dtype=dtype)
    for low, octaves, parts in (MAGNITUDES, PARAMETER_MAGNITUDES):
        expected = [cell(number, low, octaves, parts) if math.isfinite(number) else
                    (2 * octaves * parts if number > 0 else 0) for number in given.tolist()]
        assert histogram_cells(given, None, low, octaves, parts).tolist() == expected


def test_edges_that_are_none_are_refused() -> None:
    model, x, y = nn.Linear(4, 3), torch.randn(2, 4), torch.tensor([0, 1])
    for wrong in ([0.0, 1.0], torch.tensor([1.0]), torch.tensor([1.0, 0.0]), torch.zeros(2, 2)):
        with pytest.raises(hbp.InputError, match="increasing"):
            hbp.compile(model, None, ["grad_histogram"])(x, y, gradient_edges=wrong)


def test_counts_by_parameter_of_a_large_program() -> None:
    """Of more than 20 parameters results are tables, and loops add to what stands in them."""
    torch.manual_seed(0)
    inner = [layer for _ in range(10) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.Tanh())]
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Tanh(), *inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(32, 3))
    X, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 3
    counts = hbp.compile(model, quantities=["grad_histogram_2d"], verify=False)(X, y).grad_histogram_2d
    gradients = hbp.compile(model, quantities=["batch_grad"], verify=False)(X, y).batch_grad
    assert counts.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        rows = histogram_cells(parameter.detach(), None, *PARAMETER_MAGNITUDES)
        cells = histogram_cells(16 * gradients[name], None, *MAGNITUDES) + rows * bins_of(MAGNITUDES)
        expected = torch.bincount(cells.flatten(), minlength=counts[name].numel()).reshape(counts[name].shape)
        assert torch.equal(counts[name].sum(1), expected.sum(1)), name
        moved = int((counts[name] - expected).abs().sum())  # rounding takes a few over the edge of their bin
        assert moved <= 1e-4 * expected.sum() + 2, f"{name}: {moved} of {int(expected.sum())}"
