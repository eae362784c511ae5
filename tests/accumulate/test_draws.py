"""What is drawn belongs to samples: sampled totals and dropout do not depend on cutting, order or place of a sample."""

import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.accumulate.batches import batches_from
from hbpcompiler.accumulate.keys import keys_of
from tests.accumulate.test_cuts import compare
from tests.selection import few

NAMES = ["grad", "variance", "diag_ggn_mc", "diag_h_mc", "diag_h_mc_all", "kfac"]
SAMPLES = 9


def made():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(12, 3)).double()
    return hbp.compile(model, None, NAMES)


COMPILED = made()
DATA = TensorDataset(torch.randn(SAMPLES, 2, 6, dtype=torch.float64), torch.randint(0, 3, (SAMPLES,)))


def total(loader, **options):
    return hbp.accumulate(COMPILED, loader, progress=False, **options)


def whole(**options):
    return total(DataLoader(DATA, batch_size=SAMPLES), **options)


def batches_of(rows):
    """Loaders of every kind over these batches, each with what says where its samples are from."""
    yield DataLoader(DATA, batch_sampler=rows), {}
    yield [(*DATA[part], torch.tensor(part)) for part in rows], {
        "prepare": lambda batch: batch[:2], "indices": lambda batch: batch[2]}


@given(order=st.permutations(range(SAMPLES)), cuts=st.sets(st.integers(1, SAMPLES - 1)), seed=st.integers(-3, 3))
def test_any_cutting_and_order_draws_the_same(order, cuts, seed):
    ends = [0, *sorted(cuts), SAMPLES]
    rows = [order[start:end] for start, end in pairwise(ends)]
    right = whole(seed=seed)
    for loader, said in batches_of(rows):
        compare(total(loader, seed=seed, **said), right)
    parts = [total(DataLoader(Subset(DATA, order[start:end]), batch_size=2), seed=seed)
             for start, end in ((0, 4), (4, SAMPLES))]
    compare(hbp.Total.merge(*parts), right)
    other = whole(seed=seed + 1)
    assert not torch.equal(other.grad["0.weight"], right.grad["0.weight"])


def test_samples_draw_apart_and_torch_draws_as_before():
    twice = TensorDataset(DATA[0][0].expand(2, 2, 6), DATA[0][1].expand(2))
    one, both = (total(DataLoader(Subset(twice, rows), batch_size=2)) for rows in ([0], [0, 1]))
    assert not torch.equal(one.grad["0.weight"], both.grad["0.weight"])
    before = torch.get_rng_state()
    total([DATA[:]])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_shuffled_loader_with_a_seed_is_resumed(tmp_path):
    def loader():
        return DataLoader(DATA, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(3))

    path = tmp_path / "total.pt"
    right = total(loader())
    total(loader(), checkpoint=path, max_batches=2)
    resumed = total(loader(), checkpoint=path)
    for name, value in right.grad.items():
        assert torch.equal(value, resumed.grad[name])
    compare(resumed, whole())
    total(list(loader()), checkpoint=tmp_path / "listed.pt", max_batches=3)
    total(loader(), checkpoint=tmp_path / "listed.pt")  # which has the order that the loader by itself has
    total(loader(), checkpoint=tmp_path / "other.pt", max_batches=2)
    with pytest.raises(hbp.InputError, match="does not repeat itself"):
        total(DataLoader(DATA, batch_size=2, shuffle=True), checkpoint=tmp_path / "other.pt")


def test_what_belongs_to_no_sample_is_drawn_for_each_batch(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, 3)

        def forward(self, x):
            return self.layer(x.flatten(1) * torch.rand(1, dtype=x.dtype))

    torch.manual_seed(0)
    compiled = hbp.compile(Scaled().double(), None, ["grad"])
    loader, path = DataLoader(DATA, batch_size=2), tmp_path / "total.pt"
    with pytest.warns(hbp.TotalWarning) as warned:
        first = hbp.accumulate(compiled, loader, progress=False)
    text, = (str(each.message) for each in warned)
    for part in ("depends on how the data are cut", "aten.rand in the model's forward (Scaled)", "test_draws.py:",
                 "torch.rand(1, dtype=x.dtype)", "along the axis of the samples"):
        assert part in text
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hbp.TotalWarning)
        hbp.accumulate(compiled, loader, progress=False, checkpoint=path, max_batches=3)
        resumed = hbp.accumulate(compiled, loader, progress=False, checkpoint=path)
        assert torch.equal(first.loss, resumed.loss)
        assert not torch.equal(hbp.accumulate(compiled, loader, progress=False, seed=1).loss, first.loss)


def test_a_model_that_draws_by_a_shape_does_not_depend_on_the_cutting():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, 3)

        def forward(self, x):
            h = self.layer(x.flatten(1))
            return h * torch.rand(h.shape) + torch.randn(h.shape) + torch.randn_like(h)

    torch.manual_seed(0)
    compiled = hbp.compile(Noisy().double(), None, ["grad", "kfac"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.TotalWarning)
        whole, parts = (hbp.accumulate(compiled, DataLoader(DATA, batch_size=size), progress=False) for size in (9, 2))
    compare(parts, whole)


MOVED = {
    "transposed": lambda x: torch.rand(12 * len(x), dtype=x.dtype).view(12, -1).t(),
    "flipped": lambda x: torch.rand(len(x), 12, dtype=x.dtype).flip(0),
    "rolled": lambda x: torch.rand(len(x), 12, dtype=x.dtype).roll(1, 0),
    "summed": lambda x: torch.randn(len(x), 12, dtype=x.dtype).cumsum(0),
    "averaged": lambda x: torch.randn(len(x), 12, dtype=x.dtype).mean(0),
}
KEPT = {
    "viewed": lambda x: torch.rand(12 * len(x), dtype=x.dtype).view(-1, 12),
    "twice transposed": lambda x: torch.rand(12, len(x), dtype=x.dtype).t(),
    "flipped within": lambda x: torch.rand(len(x), 12, dtype=x.dtype).flip(1).cumsum(1),
}


@few(4, "other ways to move them")
@pytest.mark.parametrize("way", [*MOVED, *KEPT])
def test_draws_that_do_not_stay_with_their_samples_are_told(way):
    """And those that do are not: their totals do not depend on the cutting."""
    noise = {**MOVED, **KEPT}[way]

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, 3)

        def forward(self, x):
            return self.layer(x.flatten(1) * noise(x))

    torch.manual_seed(0)
    compiled = hbp.compile(Noisy().double(), None, ["grad"])
    weights = {"prepare": lambda batch: batch, "sample_weights": lambda batch: batch[1].double() + 1}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", hbp.TotalWarning)
        whole = hbp.accumulate(compiled, DataLoader(DATA, batch_size=9), progress=False)
        hbp.accumulate(compiled, DataLoader(DATA, batch_size=2), progress=False, **weights)
        parts = hbp.accumulate(compiled, DataLoader(DATA, batch_size=2), progress=False)
    texts = [str(each.message) for each in told]
    if way in MOVED:
        assert len(texts) == 3
        assert all("moved from sample to sample" in text and "test_draws.py:" in text for text in texts)
        assert not torch.allclose(whole.grad["layer.weight"], parts.grad["layer.weight"])
    else:
        assert not texts
        compare(parts, whole)


@pytest.mark.filterwarnings("ignore::hbpcompiler.TotalWarning")
def test_a_loader_that_shuffles_anew_is_told_before_the_run(tmp_path):
    with pytest.warns(hbp.TotalWarning, match="shuffles by torch's global generator"):
        total(DataLoader(DATA, batch_size=2, shuffle=True), checkpoint=tmp_path / "total.pt", max_batches=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.TotalWarning)
        total(DataLoader(DATA, batch_size=2, shuffle=True))
        total(DataLoader(DATA, batch_size=2), checkpoint=tmp_path / "plain.pt")
        total(DataLoader(DATA, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(0)),
              checkpoint=tmp_path / "seeded.pt")


def test_what_is_known_of_samples_indices():
    """Through subsets of subsets; a loader over all of a data set may be one of several ranks' own."""
    part = Subset(Subset(DATA, [8, 2, 5, 1]), [3, 0, 2])
    for loader, first, indices, own_data in (
            (DataLoader(DATA, batch_size=4), 1, [[4, 5, 6, 7], [8]], True),
            (DataLoader(part, batch_size=2), 0, [[1, 8], [5]], False),
            (DataLoader(part, batch_size=2, num_workers=1), 0, [[1, 8], [5]], False),
            (DataLoader(DATA, sampler=[3, 7], batch_size=1), 0, [[3], [7]], False),
            (DataLoader(DATA, batch_size=None, sampler=[3]), 0, [None], True),
            ([DATA[:2]], 0, [None], True)):
        items = list(batches_from(loader, first))
        assert [item.indices() for item in items] == indices
        assert all(item.own_data is own_data for item in items)
    assert torch.equal(keys_of(3, 0, [5]), keys_of(3, 0, range(9))[5:6])
    assert len({*keys_of(3, 0, range(99)).tolist(), *keys_of(3, 1, range(99)).tolist()}) == 198


def test_indices_that_do_not_fit():
    for indices in (lambda batch: torch.arange(3), lambda batch: torch.rand(9), lambda batch: 4):
        with pytest.raises(hbp.InputError, match=r"batch 0 of the loader: indices gave .* for a batch of 9 samples"):
            whole(indices=indices)
