"""The quantities `eigenvalues`, `eigenvalues_mc`, `eigenvalues_emp`: squares of columns seen in bases of a call."""

from collections import namedtuple

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler import Limits
from hbpcompiler.compiler.routes.bases import NativeTurnedAfter, TurnedAfter, TurnedBefore
from hbpcompiler.values import INPUTS_FIRST
from tests.agreement import close
from tests.compiler.match.parameters.test_tied import MODELS as TIED
from tests.selection import cases, few

Bases = namedtuple("Bases", "A B")
NAMES = ["eigenvalues", "eigenvalues_mc", "eigenvalues_emp"]
COLUMNS = {"eigenvalues": "sqrt_ggn", "eigenvalues_mc": "sqrt_ggn_mc", "eigenvalues_emp": "batch_grad"}


class Times(nn.Module):
    """A weight [in, out] and a scale, without a module for either."""

    def __init__(self):
        super().__init__()
        self.W, self.s = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x @ self.W * self.s


def layers():
    """Weights of every layout, grouped ones, biases and scales."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Sigmoid(), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 2, groups=2), nn.Tanh(),
        nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.Linear(50, 5), nn.Tanh(), Times()).double()
    return model, torch.randn(4, 2, 5, 5, dtype=torch.float64), torch.randint(4, (4,))


def bases_like(values):
    """Random matrices of the sizes of a result's ekfac: nothing needs them orthogonal."""
    return {name: Bases(None if own.A is None else torch.randn_like(own.A), torch.randn_like(own.B))
            for name, own in values.items()}


def squares(columns, bases, stored):
    """By hand, of columns [N, K, *theta], outputs first."""
    if bases.A is None:
        return (columns.flatten(2) @ bases.B).square().sum((0, 1))
    A, B = (each.unsqueeze(0) if each.dim() == 2 else each for each in bases)
    sizes = [len(A), B.shape[-1], A.shape[-1]]
    if stored.layout == INPUTS_FIRST:
        T = columns.reshape(*columns.shape[:2], len(A), A.shape[-1], B.shape[-1]).mT
    else:
        T = columns.reshape(*columns.shape[:2], *sizes)
    found = (B.mT @ T @ A).square().sum((0, 1))
    return found if bases.A.dim() == 3 else found.squeeze(0)


def check(found, whole, bases, scale, what):
    """`whole` has the columns themselves."""
    for quantity in found:
        for name, own in bases.items():
            columns = whole[COLUMNS[quantity]][name]
            columns = columns.unsqueeze(1) * scale if COLUMNS[quantity] == "batch_grad" else columns
            wanted = squares(columns, own, whole.stored[name])
            assert found[quantity][name].shape == wanted.shape
            close(found[quantity][name], wanted, f"{quantity} of {name} {what}")


AFTER = (TurnedBefore.name, 1e9), (NativeTurnedAfter.name, 1e9)
WAYS = {
    "as planned": None,
    "turned after, tiny chunks": Limits(route_times=AFTER, cache_bytes=1, one_by_one_bytes=0),
    "turned before, tiny chunks": Limits(route_times=((TurnedAfter.name, 1e9),), cache_bytes=1, one_by_one_bytes=0),
    "samples in chunks": Limits(few_columns=0, all_columns_bytes=1, all_columns_chunk_bytes=1000),
    "tails": Limits(few_columns=0, spatial_bytes=1, vector_bytes=1, recycled_bytes=100, vector_chunk_bytes=100),
    "oneDNN's kernels": Limits(route_times=((TurnedBefore.name, 1e9), (TurnedAfter.name, 1e9)), native_image_numbers=0),
}


@pytest.fixture(scope="module", params=["mean", "sum"])
def whole(request):
    model, X, y = layers()
    loss = nn.CrossEntropyLoss(reduction=request.param)
    torch.manual_seed(1)
    result = hbp.compile(model, loss, ["ekfac", *COLUMNS.values()])(X, y)
    return model, loss, X, y, result, bases_like(result.ekfac)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("way", cases(WAYS, ["turned after, tiny chunks", "tails"], "each also in plan/ and routes/"))
def test_every_layer_every_way(whole, way):
    model, loss, X, y, result, bases = whole
    compiled = hbp.compile(model, loss, NAMES, limits=WAYS[way])
    torch.manual_seed(1)
    found = compiled(X, y, bases={name: Bases(*own) for name, own in bases.items()})
    check(found, result, bases, len(X) ** 0.5 if loss.reduction == "mean" else 1, way)
    if way == "oneDNN's kernels":
        assert NativeTurnedAfter.name in compiled.code


@pytest.mark.parametrize("name", cases(TIED, ["convolution"], "tied in other layers"))
def test_uses_of_a_tied_parameter_are_one(name):
    torch.manual_seed(0)
    model, shape = TIED[name]()
    model, X, y = model.double(), torch.randn(3, *shape, dtype=torch.float64), torch.tensor([0, 1, 1])
    result = hbp.compile(model, quantities=["ekfac", "sqrt_ggn"])(X, y)
    bases = bases_like(result.ekfac)
    found = hbp.compile(model, quantities=["eigenvalues"])(X, y, bases=bases)
    check(found, result, bases, None, "tied")


@few(2, "further cases of one kind")
@pytest.mark.parametrize("options", [{"joint_bias": True}, {"backend": "torchscript"},
                                     {"verify": "full", "curvature_dtype": torch.bfloat16}])
def test_ekfac_is_these_in_its_own_eigenvectors(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 3)).double()
    X, y = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    torch.manual_seed(3)
    eigen = hbp.compile(model, quantities=["ekfac"], **options)(X, y).ekfac
    compiled = hbp.compile(model, quantities=["eigenvalues_mc", "eigenvalues_emp"], **options)
    torch.manual_seed(3)
    found = compiled(X, y, bases=eigen).eigenvalues_mc
    for name, own in eigen.items():
        close(found[name], own.eigenvalues, name)
    single = {name: Bases(None if own.A is None else own.A.float(), own.B.float()) for name, own in eigen.items()}
    weights = torch.tensor([0.0, 1, 2, 0.5, 1], dtype=torch.float64)
    weighted = compiled(X, y, bases=single, sample_weights=weights).eigenvalues_emp  # bases in another dtype are cast
    alone = [compiled(X[n : n + 1], y[n : n + 1], bases=single).eigenvalues_emp for n in range(5)]
    for name, value in weighted.items():
        close(value, sum(w**2 * each[name] for w, each in zip(weights, alone, strict=True)) / 5, name)
    if options.get("verify"):
        compared = compiled.verify(X, y, bases=eigen)
        assert {"eigenvalues_mc", "eigenvalues_emp"} <= set(compared.errors)
        assert compared.agrees


def test_what_does_not_fit_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    X, y = torch.randn(3, 4), torch.tensor([0, 1, 1])
    compiled = hbp.compile(model, quantities=["eigenvalues"])
    eigen = hbp.compile(model, quantities=["ekfac"])(X, y).ekfac
    wrong = {**eigen, "0.weight": eigen["2.weight"], "3.weight": eigen["0.bias"]}
    del wrong["0.bias"]
    for given, words in (
        ({}, r"bases is missing: eigenvalues needs it"),
        ({"bases": 3}, "bases must be a dict from parameter name"),
        ({"bases": {"0.weight": 3}}, "'0.weight' is int, which has no B"),
        ({"bases": {"0.bias": Bases(None, torch.eye(3).long())}}, "B of '0.bias' is no tensor of floating-point"),
        ({"bases": wrong}, r"(?s)A of '0.weight' has shape \[3, 3\] instead of \[4, 4\].*B of '0.bias' is missing"
                           r".*there is no B of '3.weight'"),
        ({"bases": {**eigen, "0.bias": eigen["0.weight"]}}, "no A of '0.bias', which meets no input features"),
    ):
        with pytest.raises(hbp.InputError, match=words):
            compiled(X, y, **given)
    with pytest.raises(hbp.InputError, match="eigenvalues is no block of a curvature"):
        hbp.curvature(compiled(X, y, bases=eigen).eigenvalues)
