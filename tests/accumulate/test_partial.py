"""Symmetric matrices of float32 programs: a few batches' sums in float32, and those in float64 totals."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.accumulate.partial import BATCHES, Partials
from tests.selection import few

U = 2.0**-24
"""What a float32 operation rounds off."""
LENGTHS = [*[5] * 18, 3, 5, 1]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5))


def data():
    torch.manual_seed(1)
    return torch.randn(sum(LENGTHS), 2, 6), torch.randint(5, (sum(LENGTHS),))


def batches():
    return list(zip(*(tensor.split(LENGTHS) for tensor in data()), strict=True))


NAMES = ["kflr", "kfac_emp", "grad"]
IN_PLACE = hbp.Limits(grown_bytes=0)
COMPILED = hbp.compile(network(), None, NAMES, limits=IN_PLACE)


def tensors(total):
    return [part for name in NAMES for value in total[name].values()
            for part in (value if isinstance(value, tuple) else (value,)) if part is not None]


def run(compiled=COMPILED, **options):
    return hbp.accumulate(compiled, batches(), progress=False, **options)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("held", [IN_PLACE.partial_bytes, 0])
def test_totals_are_those_of_double_precision(held):
    compiled = hbp.compile(network(), None, NAMES, limits=replace(IN_PLACE, partial_bytes=held))
    X, y = data()
    right = tensors(hbp.compile(network().double(), None, NAMES)(X.double(), y))
    total = run(compiled)
    assert bool(total._sums.partials.sums) == (held > 0)
    parts = [hbp.accumulate(compiled, some, progress=False) for some in (batches()[:12], batches()[12:])]
    for found in (total, hbp.Total.merge(*parts), total.to(dtype=torch.float64)):
        for own, whole in zip(tensors(found), right, strict=True):
            assert own.dtype == torch.float64
            assert (own - whole).abs().max() <= 4 * BATCHES * U * whole.abs().max()


def test_what_is_small_beside_the_sum_is_not_lost():
    """A of one input: 1, and 400 times what float32 would round off beside it."""
    small = 4e-8
    model = nn.Linear(1, 1)
    compiled = hbp.compile(model, lambda output, target: ((output - target) ** 2).sum() / 2, ["kflr"], limits=IN_PLACE)
    inputs = [math.sqrt(small), 1.0, *[math.sqrt(small)] * 399]
    total = hbp.accumulate(compiled, [(torch.full((1, 1), x), torch.zeros(1, 1)) for x in inputs], progress=False)
    exact = sum(torch.full((), x).double().item() ** 2 for x in inputs)
    single = torch.zeros(())
    for x in inputs:
        single += x**2
    apart = abs(total.kflr["weight"].A.item() * len(inputs) - exact)
    assert apart <= BATCHES * U
    assert abs(single.item() - exact) > 20 * BATCHES * U, "float32 alone would lose it"


@few(3, "further cases of one kind")
@pytest.mark.parametrize("stop", [1, 2, BATCHES - 1, BATCHES, BATCHES + 1, BATCHES + 4, 2 * BATCHES + 1])
def test_a_run_goes_on_in_the_middle_to_the_same_bits(tmp_path, stop):
    path = tmp_path / "total.pt"
    part = run(checkpoint=path, max_batches=stop)
    loaded = hbp.Total.load(path, COMPILED.model)
    for own, whole in zip(tensors(loaded), tensors(part), strict=True):
        assert torch.equal(own, whole)
    resumed = run(checkpoint=path)
    for own, whole in zip(tensors(resumed), tensors(run()), strict=True):
        assert torch.equal(own, whole)


def test_which_totals_have_a_sum_beside_them():
    wide, partials = torch.zeros(4, 4, dtype=torch.float64), Partials(most=64 + 63)
    held = partials.of("float32", wide, torch.float32)
    assert held.dtype == torch.float32
    assert partials.of("float32", wide, torch.float32) is held
    for dtype in (torch.float64, torch.bfloat16, None):
        assert partials.of(dtype, wide, dtype) is wide
    assert partials.of("single", wide.float(), torch.float32).dtype == torch.float32
    assert partials.of("no more memory", wide, torch.float32) is wide
    assert list(partials.sums) == ["float32"]


def test_they_are_added_every_few_batches():
    total, partials = torch.ones(2, 2, dtype=torch.float64), Partials()
    for batch in range(1, 2 * BATCHES + 2):
        partials.of("A", total, torch.float32).add_(1.0)
        partials.count({"A": total})
        assert total[0, 0] == 1 + batch - batch % BATCHES
    partials.add_to({"A": total})
    assert torch.equal(total, torch.full((2, 2), 2.0 + 2 * BATCHES, dtype=torch.float64))
    assert partials.batches == 0


def test_zeros_are_not_added_again():
    partials = Partials()
    partials.of("A", torch.ones(2, 2, dtype=torch.float64), torch.float32)
    partials.add_to({})
