"""A TensorDataset's rows are read at once: the batches are those of the loader itself."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, Subset, TensorDataset

from hbpcompiler.accumulate.batches import _Rows, _rows_of, batches_from

X, y = torch.arange(22.0).reshape(11, 2), torch.arange(11)
DATA = TensorDataset(X, y, torch.rand(11, 2, 3) > 0.5)


class Own(TensorDataset):
    def __getitem__(self, index):
        return tuple(tensor * 2 for tensor in super().__getitem__(index))


def seeded():
    return torch.Generator().manual_seed(1)


def stacked(rows):
    return [torch.stack(each) for each in zip(*rows, strict=True)]


LOADERS = {
    "in order": lambda: DataLoader(DATA, batch_size=4),
    "shuffled": lambda: DataLoader(DATA, batch_size=4, shuffle=True, generator=seeded(), drop_last=True),
    "parts of parts": lambda: DataLoader(Subset(Subset(DATA, [5, 3, 8, 0, 1]), [4, 0, -2]), batch_size=2),
    "lists of rows": lambda: DataLoader(DATA, batch_size=2, sampler=BatchSampler(SequentialSampler(DATA), 2, True)),
    "one tensor": lambda: DataLoader(TensorDataset(X), batch_size=3),
    "own sampler": lambda: DataLoader(DATA, batch_sampler=[[1, 2], [torch.tensor(3)], [-1, 0]]),
}
OTHERS = {
    "own items": lambda: DataLoader(Own(X, y), batch_size=4),
    "own collate": lambda: DataLoader(DATA, batch_size=4, collate_fn=stacked),
    "no TensorDataset": lambda: DataLoader(list(zip(X, y, strict=True)), batch_size=4),
}


@pytest.mark.parametrize("name", [*LOADERS, *OTHERS])
def test_batches_are_the_loaders_own(name):
    make = {**LOADERS, **OTHERS}[name]
    assert isinstance(_rows_of(make()), _Rows) == (name in LOADERS)
    right, found = list(make()), [item.batch for item in batches_from(make(), 0)]
    assert len(right) == len(found)
    for own, theirs in zip(found, right, strict=True):
        assert type(own) is type(theirs)
        for one, other in zip(own, theirs, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
    again = [item.batch for item in batches_from(make(), 1)]
    assert all(torch.equal(own[0], theirs[0]) for own, theirs in zip(again, right[1:], strict=True))


def test_a_batch_is_a_copy():
    """A `prepare` that writes to its batch leaves the data set alone."""
    before = X.clone()
    for item in batches_from(DataLoader(DATA, batch_size=4), 0):
        item.batch[0].zero_()
    assert torch.equal(X, before)


def test_a_data_set_that_is_none_of_torchs():
    class Rows(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return X[index], y[index]

    assert _rows_of(DataLoader(Rows(), batch_size=2)) is None
