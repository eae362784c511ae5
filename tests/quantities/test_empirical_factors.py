"""Kronecker factors of the empirical Fisher: against gradients of each sample's loss at the layers' outputs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import kfac_emp
from tests.agreement import close
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.ways import WAYS

NAMES = ["kfac_emp", "kfac_emp_reduce"]
OF_FACTORS = ["nothing fits the cache", "one sample and one column everywhere", "route half of a symmetric product",
              "route symmetric product", "route products by distance", "route batched product"]
"""Ways of the planner that concern factors of the gradient."""


def block(shares, mean):
    """The empirical Fisher of samples' shares of the gradient, c g_n."""
    flat = shares.flatten(1)
    return (len(flat) if mean else 1) * flat.T @ flat


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())), st.sampled_from(OF_FACTORS))
def test_random_chains_in_every_way(setting, way):
    model, loss, X, y = setting
    torch.manual_seed(0)
    result = hbp.compile(model, loss, [*NAMES, "batch_grad"], limits=WAYS[way])(X, y)
    for quantity in NAMES:
        expected = kfac_emp(model, loss, [X], y, seed=0, reduce=quantity == "kfac_emp_reduce")
        for name, factors in result[quantity].items():
            A, B = expected.get(name, (None, block(result.batch_grad[name], loss.reduction == "mean")))
            close(factors.B, B, f"B of {name}, {quantity}")
            assert (factors.A is None) == (A is None)
            if A is not None:
                close(factors.A, A, f"A of {name}, {quantity}")


class Words(nn.Module):
    """An embedding, a layer that is used twice, a head over all positions; a loss term for each position."""

    def __init__(self):
        super().__init__()
        self.words, self.twice, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        self.met, self.made = [], []
        values = self.words(tokens)
        for _ in range(2):
            self.met.append(values)
            self.made.append(self.twice(values))
            values = torch.tanh(self.made[-1])
        return self.head(values).transpose(1, 2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sequences_tied_layers_and_embeddings(reduction):
    torch.manual_seed(0)
    model = Words().double()
    X, y = torch.randint(7, (3, 5)), torch.randint(3, (3, 5))
    y[0, :2] = -100  # l_n is N times the sample's share of the mean
    loss = nn.CrossEntropyLoss(reduction=reduction)
    result = hbp.compile(model, loss, ["kfac_emp", "batch_grad"])(X, y)
    value = loss(model(X), y)
    of_words, *gradients = torch.autograd.grad(value, [model.met[0], *model.made])
    n, scale = len(X), len(X) if reduction == "mean" else 1
    uses = list(zip(model.met, gradients, strict=True))
    A = sum(torch.einsum("npi,npj->ij", met, met) for met, _ in uses) / n
    B = scale * sum(torch.einsum("npo,npz->oz", slope, slope) for _, slope in uses) / 10
    close(result.kfac_emp["twice.weight"].A, A, "A of a layer that is used twice")
    close(result.kfac_emp["twice.weight"].B, B, "its B")
    counts = F.one_hot(X, 7).double()
    close(result.kfac_emp["words.weight"].A, torch.einsum("npi,npj->ij", counts, counts) / n, "A of words")
    B = scale * torch.einsum("npo,npz->oz", of_words, of_words) / 5
    close(result.kfac_emp["words.weight"].B, B, "B of words")
    for name in ("twice.bias", "head.bias"):
        close(result.kfac_emp[name].B, block(result.batch_grad[name], reduction == "mean"), f"block of {name}")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_one_sample_of_a_plain_layer_is_the_exact_block(reduction):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)).double()
    X, y = torch.randn(1, 3, dtype=torch.float64), torch.tensor([1])
    result = hbp.compile(model, nn.CrossEntropyLoss(reduction=reduction), [*NAMES, "batch_grad"])(X, y)
    for quantity in NAMES:
        for name in ("0.weight", "2.weight"):
            A, B = result[quantity][name]
            close(torch.kron(B, A), block(result.batch_grad[name], reduction == "mean"), name)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weights_of_samples(reduction):
    """B is that of the weighted losses, A the average of weighted samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)).double()
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    w = torch.tensor([2.0, 0.0, 0.5, 1.0, 3.0], dtype=torch.float64)

    class Weighted(nn.Module):
        reduction = "mean"

        def forward(self, output, target):
            each = w * F.cross_entropy(output, target, reduction="none")
            return each.mean() if self.reduction == "mean" else each.sum()

    weighted = Weighted()
    weighted.reduction = reduction
    result = hbp.compile(model, nn.CrossEntropyLoss(reduction=reduction), NAMES)(X, y, sample_weights=w)
    for quantity in NAMES:
        for name, (A, B) in kfac_emp(model, weighted, [X], y).items():
            close(result[quantity][name].B, B, f"B of {name}")
            assert (A is None) == (result[quantity][name].A is None)
    close(result.kfac_emp["0.weight"].A, X.T @ (w[:, None] * X) / w.sum(), "A")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_they_are_curvlinops(reduction):
    """Factors of all layers, by the products with them: weights and biases apart, layers shared over positions."""
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(),
                          nn.Linear(5, 4, bias=False)).double()
    loss, X, y = nn.CrossEntropyLoss(reduction=reduction), torch.randn(9, 1, 6, 6).double(), torch.randint(4, (9,))
    parameters = dict(model.named_parameters())
    vectors = [torch.randn(parameter.shape, dtype=torch.float64) for parameter in parameters.values()]
    result = hbp.compile(model, loss, NAMES)(X, y)
    for quantity, approximation in (("kfac_emp", curvlinops.KFACType.EXPAND),
                                    ("kfac_emp_reduce", curvlinops.KFACType.REDUCE)):
        theirs = curvlinops.KFACLinearOperator(
            model, loss, list(parameters.values()), [(X, y)], fisher_type=curvlinops.FisherType.EMPIRICAL,
            kfac_approx=approximation, check_deterministic=False, separate_weight_and_bias=True)
        own = hbp.curvature(result[quantity]) @ vectors
        for name, ours, right in zip(parameters, own, theirs @ vectors, strict=True):
            if name != "0.bias":  # curvlinops has the weight's B there, we the bias's own block
                close(ours, right, f"{quantity} of {name}")
