"""Whatever is written to tensors changes their checksums, and nothing else does."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.system.checksums import Checksums


def tensors():
    torch.manual_seed(0)
    base = torch.randn(9, 5)
    return [torch.randn(3, 4), torch.randn(7).bfloat16(), torch.arange(5), torch.tensor(True), torch.empty(0, 3),
            torch.randn(4, 6).t(), base[1:], base[:, 1], torch.randn(2, dtype=torch.complex64), torch.randn(300, 7),
            torch.eye(3).to_sparse(), torch.full((2,), torch.nan)]


@pytest.fixture(params=[None, 16])
def at_once(request):
    return request.param


def test_equal_numbers_have_equal_checksums(at_once):
    held, copies = Checksums(tensors(), at_once), Checksums(tensors(), at_once)
    assert held.now() == copies.now() == held.now()


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 6, 7, 8, 9, 11])
def test_every_change_is_seen(number, at_once):
    held = Checksums(tensors(), at_once)
    before, tensor = held.now(), held.tensors[number]
    for entry in range(tensor.numel()):
        at = tuple(int(index) for index in torch.unravel_index(torch.tensor(entry), tensor.shape))
        kept = tensor[at].clone()
        tensor.data[at] = ~kept if tensor.dtype is torch.bool else kept + 1 if not kept.isnan() else kept.new_zeros(())
        assert held.now() != before
        tensor.data[at] = kept
    assert held.now() == before


@pytest.mark.parametrize("shape", [(1 << 12,), (1 << 17,), (64, 64)])
@pytest.mark.parametrize("change", [lambda w: w * 2, lambda w: -w, lambda w: w.flip(0), lambda w: w.roll(2, 0)])
def test_changes_of_all_numbers_alike(shape, change):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    held = Checksums([weight])
    before = held.now()
    weight.data = change(weight)
    assert held.now() != before


def test_other_axes_of_the_same_memory():
    weight = torch.arange(9.0).reshape(3, 3)
    held = Checksums([weight])
    before = held.now()
    weight.data = weight.data.t()
    assert held.now() != before


def test_a_spectrum_of_parameters_changed_behind_torchs_count():
    torch.manual_seed(0)
    model, X, y = nn.Linear(3, 2).double(), torch.randn(4, 3).double(), torch.randint(2, (4,))
    compiled = hbp.compile(model, quantities=["block"], curvature="ggn")
    result = compiled(X, y)
    vector = torch.randn(2, 3).double()
    compiled.block_product(result, "weight", vector)
    X.numpy()[:] = 0
    with pytest.raises(hbp.InputError):
        compiled.block_product(result, "weight", vector)
