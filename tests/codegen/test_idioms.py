"""The helper functions that generated files define: what they compute, and that each runs as TorchScript."""

import pytest
import torch
import torch.nn.functional as F

from hbpcompiler.codegen.definitions import _source
from hbpcompiler.compiler.program.grams import gram, onednn_gram, pixel_gram
from hbpcompiler.compiler.program.kernels import FALLBACKS
from hbpcompiler.compiler.program.weights import mean_weights, root_weights, weighted
from hbpcompiler.rule import bend_of, passing_of, pulled_back, residual_columns, slope_of, vjp
from hbpcompiler.rule.derivatives import slope_in_all
from hbpcompiler.rule.idioms import (
    passed,
    passed_,
    rows_at,
    scatter_to,
    spread_select,
    spread_slice,
    standardised_back,
    standardised_back_,
)
from hbpcompiler.rule.image_patches import patch_rows, patches
from hbpcompiler.rule.probabilities import counted_labels, covariance_root, sampled_columns, softmax_as_laid


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_grams(chunk, dtype):
    torch.manual_seed(0)
    x = torch.randn(5, 2, 3, 4)
    for axis, equation in ((2, "nkop,nkzp->oz"), (3, "nkpo,nkpz->oz")):
        wanted = torch.einsum(equation, x, x)
        for helper in (gram, onednn_gram, pixel_gram)[: 3 if axis == 2 else 2]:
            found = helper(x, axis=axis, chunk=chunk, dtype=dtype)
            assert found.dtype is (dtype or torch.float32)
            torch.testing.assert_close(found.float(), wanted)


@pytest.mark.parametrize(("stride", "dilation", "padding"), [
    (None, None, None), ([2, 1], None, [1, 1, 0, 0]), (None, [2, 1], [1, 1, 2, 2]), ([1, 2], [1, 2], None),
])
def test_patches_are_what_unfold_makes(stride, dilation, padding):
    x = double(2, 3, 6, 7)
    padded = F.pad(x, padding) if padding else x
    wanted = F.unfold(padded, (3, 2), dilation or 1, 0, stride or 1)
    assert patches(x, [3, 2], stride, dilation, padding).equal(wanted)
    assert patch_rows(x, [3, 2], stride, dilation, padding).equal(wanted.transpose(0, 1).flatten(1))


def test_patches_along_one_axis():
    x = double(2, 3, 6)
    wanted = F.unfold(x.unsqueeze(3), (3, 1), (2, 1), 0, (1, 1))
    assert patches(x, [3], dilation=[2]).equal(wanted)
    assert patch_rows(x, [3], dilation=[2]).equal(wanted.transpose(0, 1).flatten(1))


def test_rows_at_takes_each_samples_own():
    x, index = torch.randn(3, 5, 2), torch.randint(5, (3, 4, 6))
    for n in range(3):
        assert torch.equal(rows_at(x, index)[n], x[n][index[n]])


@pytest.mark.parametrize(("first", "last", "step"), [(1, 4, 1), (None, -1, 2), (0, 2**63 - 1, 1)])
def test_spread_slice_and_select_are_transposes_of_taking(first, last, step):
    x = double(2, 3, 5)
    taken = x[:, :, first:last:step]
    spread = spread_slice(taken, 2, 5, first, last, step)
    assert spread.shape == x.shape
    assert torch.equal(spread[:, :, first:last:step], taken)
    assert spread.count_nonzero() == taken.numel()
    assert torch.equal(spread_select(x[:, :, 3], 2, 5, 3)[:, :, 3], x[:, :, 3])
    assert spread_select(x[:, :, 3], 2, 5, 3).count_nonzero() == 6


def test_scatter_to_is_the_transpose_of_max_pooling():
    x = double(2, 3, 4, 6).requires_grad_()
    values, index = F.max_pool2d(x, 2, return_indices=True)
    columns = double(2, 5, *values.shape[1:])
    for column in range(5):
        (wanted,) = torch.autograd.grad(values, x, columns[:, column], retain_graph=True)
        assert scatter_to(columns, index, [4, 6])[:, column].equal(wanted)


@pytest.mark.parametrize("p", [[[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]], [[0.0, 0.0, 0.3, 0.7]]])
def test_covariance_root(p):
    p = torch.tensor(p, dtype=torch.float64)
    root = covariance_root(p)
    wanted = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    torch.testing.assert_close(root.mT @ root, wanted, atol=1e-15, rtol=0)


def test_softmax_lies_as_what_it_is_of():
    tokens = double(2, 5, 3)
    for x in (tokens, tokens.mT, double(2, 3, 4, 5), double(2, 3, 4, 5).to(memory_format=torch.channels_last)):
        found = softmax_as_laid(x)
        torch.testing.assert_close(found, torch.softmax(x, 1))
        assert found.stride() == x.stride()


@pytest.mark.parametrize("draws", [1, 3])
def test_sampled_columns(draws):
    p, weight = torch.softmax(double(2, 4, 5), 1), torch.rand(2, 1, 5, dtype=torch.float64)
    label, before = torch.randint(4, (2, draws, 5)), p.clone()
    unit = F.one_hot(label, 4).movedim(-1, 2)
    wanted = (weight.unsqueeze(1) / draws).sqrt() * (p.unsqueeze(1) - unit)
    torch.testing.assert_close(sampled_columns(p, label, weight), wanted)
    assert torch.equal(p, before)


def test_counted_labels():
    y, like = torch.tensor([2, -100, 1, 0]), double(4, 3)
    w, label = counted_labels(y, like)
    assert w.flatten().tolist() == [4 / 3, 0, 4 / 3, 4 / 3]
    assert label.flatten().tolist() == [2, 0, 1, 0]
    assert counted_labels(y, like, mean=False)[0].flatten().tolist() == [1, 0, 1, 1]
    assert counted_labels(y, like, ignore_index=1, mean=False)[0].flatten().tolist() == [1, 1, 0, 1]


def test_weights_of_samples():
    x, w = double(3, 2, 4), torch.tensor([1.0, 0.0, 4.0])
    assert weighted(x, w).equal(torch.einsum("nkp,n->nkp", x, w.double()))
    assert root_weights(w).tolist() == [1, 0, 2]
    torch.testing.assert_close(mean_weights(w), torch.tensor([0.6, 0, 2.4], dtype=torch.float64))
    assert weighted(x, None) is x
    assert root_weights(None) is mean_weights(None) is None


def test_each_is_documented_and_scriptable(tmp_path):
    head = ("from typing import Callable, Optional\nimport torch\nimport torch.nn.functional as F\n"
            "from torch import Tensor\n\n\n")
    file = tmp_path / "helpers.py"
    file.write_text(head + "\n\n\n".join(_source(helper) for helper in FALLBACKS))
    space = {"__name__": "helpers"}
    exec(compile(file.read_text(), str(file), "exec"), space)
    of_functions = (vjp, pulled_back, residual_columns, slope_in_all, slope_of, bend_of, passing_of)  # derivatives
    for helper in FALLBACKS:
        assert helper.__doc__
        if helper not in of_functions:
            torch.jit.script(space[helper.__name__])


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("has_weight", [True, False])
def test_standardised_back_is_the_transposed_jacobian(centred, has_weight):
    x, columns, weight = double(3, 5), double(3, 1, 5), double(5) if has_weight else None

    def norm(x):
        error = x - x.mean(-1, True) if centred else x
        standardised = error / error.square().mean(-1, True).sqrt()
        return standardised if weight is None else standardised * weight

    error = x - x.mean(-1, True) if centred else x
    inverse = error.square().mean(-1, True).rsqrt()
    (wanted,) = torch.autograd.grad(norm(x.requires_grad_()), x, columns[:, 0])
    given = columns.clone(), (error * inverse).unsqueeze(1).detach(), inverse.unsqueeze(1).detach(), centred, weight
    torch.testing.assert_close(standardised_back(*given)[:, 0], wanted)
    assert torch.equal(given[0], columns)
    written = standardised_back_(*given)
    torch.testing.assert_close(written[:, 0], wanted)
    assert written.data_ptr() == given[0].data_ptr()


def test_sampled_columns_are_what_drawn_labels_leave():
    p, weight = double(2, 3, 4).softmax(1), double(2, 1, 4).square()
    label = torch.tensor([[[0, 1, 2, 0]], [[2, 2, 1, 0]]])
    wanted = weight.sqrt() * (p - F.one_hot(label[:, 0], 3).movedim(-1, 1))
    torch.testing.assert_close(sampled_columns(p, label, weight)[:, 0], wanted)
    assert sampled_columns(p, label.expand(-1, 5, -1), weight).shape == (2, 5, 3, 4)


def test_passed_selects_also_infinities_and_nan():
    columns = torch.tensor([[float("inf"), 2.0], [float("nan"), -float("inf")]]).reshape(1, 2, 2)
    for mask in (torch.tensor([[False, True]]), torch.tensor([[0.0, 1.0]])):
        wanted = torch.where(mask.unsqueeze(1) != 0, columns, 0)
        assert torch.equal(passed(columns, mask.unsqueeze(1)), wanted)
        own = columns.clone()
        assert passed_(own, mask.unsqueeze(1)).data_ptr() == own.data_ptr()
        assert torch.equal(own, wanted)
