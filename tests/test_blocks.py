"""Products with a parameter's block, against the block by brute force times the vectors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import ggn_block, hessian_block
from tests.agreement import close
from tests.compiler.match.parameters.test_tied import MODELS as TIED
from tests.graph_models import FEW_MODELS, made
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import cases, few, slow

CHAINS = st.one_of(settings_of(dense_chains()), settings_of(spatial_chains()))
BLOCKS = {"hessian": hessian_block, "ggn": ggn_block}


def whole(compiled, result, name):
    """The block itself: its product with every unit vector."""
    shape = compiled.model.get_parameter(name).shape
    units = torch.eye(shape.numel(), dtype=torch.float64).reshape(-1, *shape)
    return compiled.block_product(result, name, units).flatten(1)


def agree(model, loss, x, y, curvature, limits=None):
    compiled = hbp.compile(model, loss, ["block", "diag_h"], curvature=curvature, limits=limits)
    torch.manual_seed(0)
    result = compiled(x, y)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        expected = BLOCKS[curvature](model, loss, [x], y, name, seed=0)
        scale = expected.abs().max() + ggn_block(model, loss, [x], y, name, seed=0).abs().max()
        vectors = torch.randn(2, 3, *parameter.shape, dtype=torch.float64)
        product = (vectors.flatten(2) @ expected).view_as(vectors)
        close(compiled.block_product(result, name, vectors), product, f"block of {name}", scale)
        close(compiled.block_product(result, name, vectors[0, 0]), product[0, 0], f"{name}: one vector", scale)
        diagonal = whole(compiled, result, name).diagonal().view_as(parameter)
        close(result.diag_h[name], diagonal, f"diagonal of {name}", scale)


@given(CHAINS, st.sampled_from(list(BLOCKS)))
def test_random_chains(setting, curvature):
    agree(*setting, curvature)


@few(1, "other graphs")
@pytest.mark.parametrize("name", FEW_MODELS)
def test_graphs(name):
    model, x, y = made(name)
    agree(model, nn.CrossEntropyLoss(), x, y, "hessian")


@pytest.mark.parametrize("curvature", cases(BLOCKS, ["hessian"], "the schemes meet no uses, which are joined before"))
@pytest.mark.parametrize("name", list(TIED))
def test_tied_parameters(name, curvature):
    torch.manual_seed(0)
    model, shape = TIED[name]()
    X, y = torch.randn(3, *shape, dtype=torch.float64), torch.tensor([0, 1, 1])
    agree(model.double(), nn.CrossEntropyLoss(), X, y, curvature)


def test_a_summed_loss_and_one_sample():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    agree(model, nn.MSELoss(reduction="sum"), torch.randn(1, 3).double(), torch.randn(1, 2).double(), "hessian")


def test_overlapping_patches_right_below_a_curved_activation():
    """A transposed convolution's output has several positions of the input above it: its diagonal is no diagonal."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(2, 4, 3, 2, groups=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(100, 2))
    X, y = torch.randn(2, 2, 2, 2, dtype=torch.float64), torch.tensor([0, 1])
    agree(model.double(), nn.CrossEntropyLoss(), X, y, "hessian")


def test_many_columns_are_kept_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 4), nn.Sigmoid(), nn.Linear(4, 3))
    X, y = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 2, 1])
    limits = hbp.Limits(few_columns=0, spatial_bytes=1, recycled_bytes=1, vector_bytes=1, vector_chunk_bytes=1)
    agree(model.double(), nn.CrossEntropyLoss(), X, y, "hessian", limits)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("curvature", ["pch_abs", "pch_clip"])
@pytest.mark.parametrize("name", ["resnet, smooth", "attention", "SwiGLU"])
def test_positive_schemes_are_positive_and_not_below_the_hessian(name, curvature):
    model, x, y = made(name)
    compiled = hbp.compile(model, quantities=["block"], curvature=curvature)
    result = compiled(x, y)
    for key in result.block:
        block = whole(compiled, result, key)
        exact = hessian_block(model, nn.CrossEntropyLoss(), [x], y, key)
        least = -1e-10 * (1 + block.abs().max())
        close(block, block.T, f"{key}: symmetry", block.abs())
        assert torch.linalg.eigvalsh(block).min() >= least
        assert torch.linalg.eigvalsh(block - exact).min() >= least


@pytest.mark.parametrize("backend", ["torchscript", pytest.param("inductor", marks=slow("compiles C++"))])
def test_backends(backend):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 3)).double()
    X, y = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 2, 1])
    compiled = hbp.compile(model, quantities=["block"], backend=backend)
    result = compiled(X, y)
    for name in result.block:
        expected = hessian_block(model, nn.CrossEntropyLoss(), [X], y, name)
        close(whole(compiled, result, name), expected, name)


def test_nothing_as_large_as_columns_times_parameter_is_kept():
    model = nn.Sequential(nn.Linear(50, 40), nn.Sigmoid(), nn.Linear(40, 10))
    X, y = torch.randn(6, 50), torch.randint(10, (6,))
    for kept in hbp.compile(model, quantities=["block"])(X, y).block.values():
        sizes = [tensor.numel() for field in kept for tensor in (field if isinstance(field, list) else [field])
                 if tensor is not None]
        assert max(sizes) <= 6 * 10 * 50


# -- what is refused -------------------------------------------------------------------------------------------------


def computed(quantities):
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    compiled = hbp.compile(model, quantities=quantities)
    return compiled, compiled(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))


def test_a_result_without_the_quantity_is_refused():
    compiled, result = computed(["grad", "diag_h"])
    with pytest.raises(hbp.InputError, match=r"needs what the quantity 'block' keeps: name it in .*; this program "
                                             "computes grad, diag_h"):
        compiled.block_product(result, "weight", torch.zeros(2, 3))


@pytest.mark.parametrize(("name", "vectors", "message"), [
    ("bias", torch.zeros(2), "'bias' is no trainable parameter of this program; it has weight"),
    ("weight", torch.zeros(3, 2), r"vectors of shape \[3, 2\] do not end in the shape of 'weight', \[2, 3\]"),
    ("weight", torch.zeros(3), r"vectors of shape \[3\] do not end"),
    ("weight", torch.zeros(2, 3, dtype=torch.float64), r"must be a tensor of torch.float32, not torch.float64"),
    ("weight", [[0.0] * 3] * 2, "must be a tensor of torch.float32, not list"),
])
def test_wrong_arguments_are_refused(name, vectors, message):
    compiled, result = computed(["block"])
    with pytest.raises(hbp.InputError, match=message):
        compiled.block_product(result, name, vectors)


def test_a_result_of_another_model_is_refused():
    compiled, _ = computed(["block"])
    _, other = computed(["block"])
    with pytest.raises(hbp.InputError, match="a result that this compiled model returned"):
        compiled.block_product(other, "weight", torch.zeros(2, 3))


def test_a_batch_that_is_changed_in_place_has_no_products():
    """Of the first layer, whose operand is the batch; the others keep values of their own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    compiled = hbp.compile(model, quantities=["block"])
    result = compiled(X, y)
    own, later = torch.randn(4, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    before = compiled.block_product(result, "2.weight", later)
    compiled.block_product(result, "0.weight", own)
    X.mul_(2)
    with pytest.raises(hbp.InputError, match=r"'0\.weight' keeps of it, was changed in place"):
        compiled.block_product(result, "0.weight", own)
    torch.testing.assert_close(compiled.block_product(result, "2.weight", later), before)
    compiled.block_product(compiled(X, y), "0.weight", own)
