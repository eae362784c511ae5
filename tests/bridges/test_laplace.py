"""Laplace approximations on compiled programs: against Jacobians by torch.func, and laplace-torch's own backend."""

import copy
import gc
import pickle
import weakref
from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.compiler.trace import trace as exporting

pytest.importorskip("laplace")
from laplace import Laplace
from laplace.curvature import CurvlinopsEF, CurvlinopsGGN, EFInterface, GGNInterface
from laplace.utils import FeatureExtractor

from hbpcompiler.bridges.kept import kept
from hbpcompiler.bridges.laplace import HbpEF, HbpGGN
from tests.selection import few

LIKELIHOODS = ["classification", "regression"]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def setting(likelihood):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2, bias=False), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3))
    y = torch.randint(3, (5,)) if likelihood == "classification" else torch.randn(5, 3)
    return model, torch.randn(5, 2, 3, 3), y


def loss_of(likelihood, output, y):
    """Of a sum over samples, with Laplace's factor."""
    if likelihood == "classification":
        return F.cross_entropy(output, y, reduction="sum")
    return (output - y).square().sum() / 2


def hessians(likelihood, output):
    """Of the loss in the outputs, [N, C, C]."""
    p = output.softmax(-1)
    if likelihood == "classification":
        return torch.diag_embed(p) - p[..., None] * p[..., None, :]
    return torch.eye(output.shape[-1]).expand(len(output), -1, -1)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_ggn(likelihood):
    """Jacobians, matrix, diagonal; of a subnetwork too, whose other layers no program computes."""
    model, X, y = setting(likelihood)
    backend, (J, output) = HbpGGN(model, likelihood), GGNInterface(model, likelihood).jacobians(X)
    matrix = torch.einsum("ncp,ncd,ndq->pq", J, hessians(likelihood, output), J)
    close(backend.jacobians(X), (J, output))
    for subnetwork in (slice(None), torch.tensor([61, 24, 40])):
        backend.subnetwork_indices = None if isinstance(subnetwork, slice) else subnetwork
        for loss in (backend.full(X, y, N=5), backend.diag(X, y, N=5)):
            close(loss[0], loss_of(likelihood, output, y))
        close(backend.full(X, y)[1], matrix[subnetwork][:, subnetwork])
        close(backend.diag(X, y)[1], matrix.diagonal()[subnetwork])
    assert {chosen for _, _, chosen, *_ in kept(model)._kept} == {("0.weight", "3.weight", "3.bias"),
                                                                     ("3.weight", "3.bias")}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_empirical_fisher(likelihood):
    """Of the unscaled loss, with the factor once: 1/2 sum (2 r J)^T (2 r J) for squared errors."""
    model, X, y = setting(likelihood)
    backend, (J, output) = HbpEF(model, likelihood), GGNInterface(model, likelihood).jacobians(X)
    residual = output.softmax(-1) - F.one_hot(y, 3) if likelihood == "classification" else 2 * (output - y)
    rows = torch.einsum("nc,ncp->np", residual, J)
    loss = loss_of(likelihood, output, y)
    close(backend.gradients(X, y), (rows, loss / backend.factor))
    close(backend.full(X, y), (loss, backend.factor * rows.mT @ rows))
    close(backend.diag(X, y), (loss, backend.factor * rows.square().sum(0)))


@pytest.mark.parametrize(("ours", "theirs", "likelihood", "approximation"), [
    (HbpGGN, CurvlinopsGGN, "classification", "reduce"), (HbpGGN, CurvlinopsGGN, "regression", "expand"),
    (HbpEF, CurvlinopsEF, "classification", "expand"), (HbpEF, CurvlinopsEF, "regression", "reduce")])
def test_kronecker_factors(ours, theirs, likelihood, approximation):
    """Factor by factor those of laplace-torch's default, and so are sums of them over batches."""
    model, X, y = setting(likelihood)
    for rows in (slice(None), slice(2)):
        loss, kron = ours(model, likelihood).kron(X[rows], y[rows], 5, kfac_approx=approximation)
        right = theirs(model, likelihood).kron(X[rows], y[rows], 5, kfac_approx=approximation)
        close(loss, right[0])
        close(kron.kfacs, right[1].kfacs)


def test_labels_are_sampled():
    model, X, y = setting("regression")
    exact, kron = HbpGGN(model, "regression").diag(X, y)[1], HbpGGN(model, "regression").kron(X, y, 5)[1].to_matrix()
    backend = HbpGGN(model, "regression", stochastic=True, num_samples=2000)
    assert 1e-6 < (backend.diag(X, y)[1] - exact).norm() / exact.norm() < 0.1
    assert 1e-6 < (backend.full(X, y)[1].diagonal() - exact).norm() / exact.norm() < 0.1
    assert 1e-6 < (backend.kron(X, y, 5)[1].to_matrix() - kron).norm() / kron.norm() < 0.1
    assert (backend.diag(X, y, mc_samples=1)[1] - exact).norm() > 0.1 * exact.norm()


def test_jacobians_in_another_dtype_than_the_default():
    model, X, _ = setting("regression")
    right = GGNInterface(model, "regression").jacobians(X)
    torch.set_default_dtype(torch.float32)
    close(HbpGGN(model, "regression").jacobians(X), right)


def test_chosen_outputs():
    model, X, _ = setting("regression")
    backend, chosen = HbpGGN(model, "regression"), torch.tensor([[0, 2], [1, 1], [2, 0], [0, 0], [2, 1]])
    rows, output = backend.jacobians(X)
    close(backend.selected_output_jacobians(X, chosen), (rows[torch.arange(5)[:, None], chosen], output))
    close(backend.selected_output_jacobians(X, chosen[:, 0])[0], rows[torch.arange(5), chosen[:, 0]][:, None])


class Tokens(nn.Module):
    """Takes a mapping, classifies every position; a layer of it is frozen."""

    def __init__(self):
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 3)
        self.words.requires_grad_(False)

    def forward(self, batch):
        return self.head(self.norm(self.words(batch["input_ids"])))


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_mappings_and_positions(kind):
    torch.manual_seed(0)
    model, batch = Tokens(), kind({"input_ids": torch.randint(7, (4, 5)), "labels": torch.randint(3, (4, 5))})
    J, output = GGNInterface(model, "classification").jacobians(batch)
    right = torch.einsum("ntcp,ntcd,ntdp->p", J, hessians("classification", output), J)
    loss = loss_of("classification", output.flatten(0, 1), batch["labels"].flatten())
    close(HbpGGN(model, "classification").diag(batch, batch["labels"]), (loss, right))


def test_factors_of_batches_of_any_length():
    """B is a sum over all positions, A a mean of each batch's: as if every position were a sample."""
    torch.manual_seed(0)
    model = Tokens()
    flat = HbpGGN(nn.Sequential(model.norm, model.head), "classification")
    found, right = [], []
    for length in (2, 5):
        ids, labels = torch.randint(7, (4, length)), torch.randint(3, (4, length))
        found.append(HbpGGN(model, "classification").kron({"input_ids": ids}, labels, 8)[1])
        right.append(flat.kron(model.words(ids).flatten(0, 1), labels.flatten(), 8 * length)[1])
    close((found[0] + found[1]).kfacs[2], (right[0] + right[1]).kfacs[2])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_last_layer(likelihood):
    """With gradients, which laplace-torch's own backends have as zeros there."""
    model, X, y = setting(likelihood)
    rows = EFInterface(model, likelihood).gradients(X, y)[0][:, -39:]
    extractor = FeatureExtractor(model, last_layer_name="3")
    ggn, ef = HbpGGN(extractor, likelihood, last_layer=True), HbpEF(extractor, likelihood, last_layer=True)
    close(ggn.diag(X, y), GGNInterface(extractor, likelihood, last_layer=True).diag(X, y))
    close(ef.diag(X, y)[1], ef.factor * rows.square().sum(0))
    close(ggn.jacobians(X)[0], GGNInterface(model, likelihood).jacobians(X)[0][..., -39:])


def test_what_follows_the_last_layer_must_be_said():
    model = nn.Sequential(nn.Tanh(), nn.Linear(4, 3), nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten())
    X = torch.randn(2, 5, 4)
    for reduction, refused in ((None, True), ("pick_last", True), ("average", False)):
        backend = HbpGGN(FeatureExtractor(model, "1", feature_reduction=reduction), "classification", last_layer=True)
        if refused:
            with pytest.raises(hbp.InputError, match="feature_reduction"):
                backend.diag(X, torch.tensor([0, 1]))
        else:
            assert backend.diag(X, torch.tensor([0, 1]))[1].shape == (15,)


def test_programs_are_the_models():
    """Another backend compiles nothing; copies and pickles have none; they do not keep the model alive."""
    model, X, y = setting("classification")
    first = HbpGGN(model, "classification").diag(X, y)
    compiled = list(kept(model)._kept.values())
    close(HbpGGN(model, "classification").diag(X[:3], y[:3])[1] + HbpGGN(model, "classification").diag(X[3:], y[3:])[1],
          first[1])
    assert list(kept(model)._kept.values()) == compiled
    assert len(compiled[0]._guards) == 1
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert len(kept(other)) == 0
    with torch.no_grad():
        model[3].weight.mul_(2)
    close(HbpGGN(model, "classification").diag(X, y), GGNInterface(model, "classification").diag(X, y))
    backend = pickle.loads(pickle.dumps(HbpGGN(model, "classification")))
    assert backend.model is not model
    alive = weakref.ref(model)
    del model, compiled, other
    exporting.export.forget()  # what the tests keep of torch.export
    gc.collect()
    assert alive() is None


def test_refusals():
    """Each says which parameters or options, and what to do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 4, 2, groups=2), nn.LayerNorm((4, 2)), nn.Flatten(), nn.Linear(8, 2))
    X, y = torch.randn(3, 4, 3), torch.tensor([0, 1, 1])
    backend = HbpGGN(model, "classification")
    with pytest.raises(hbp.InputError, match=r"(?s)0.weight.*2 groups.*1.weight.*one block of 8.*freeze them"):
        backend.kron(X, y, 3)
    with pytest.raises(TypeError, match="approx: no such option; there are N, kfac_approx, mc_samples"):
        backend.diag(X, y, approx="expand")
    with pytest.raises(hbp.InputError, match="expand, reduce"):
        backend.kron(X, y, 3, kfac_approx="mean")
    with pytest.raises(hbp.InputError, match="row for each of the 3 samples"):
        backend.selected_output_jacobians(X, torch.tensor([0]))
    backend.subnetwork_indices = torch.tensor([0])
    with pytest.raises(hbp.InputError, match="subnetwork has no Kronecker factors"):
        backend.kron(X, y, 3)
    model[0].requires_grad_(False)
    with pytest.raises(hbp.InputError, match="2 of the 6 parameters"):
        backend.diag(X, y)
    mixing = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with pytest.raises(hbp.UnsupportedOpError, match="eval") as caught:
        HbpEF(mixing, "classification").diag(torch.randn(3, 3), y)
    assert "last_layer" in caught.value.__notes__[0]


@pytest.mark.parametrize(("structure", "subset"), [("kron", "all"), ("diag", "last_layer")])
def test_a_whole_approximation(structure, subset):
    """Fitted batch by batch, the last of them smaller: evidence and predictions of the default backend."""
    model, X, y = setting("classification")
    loader = DataLoader(TensorDataset(X, y), batch_size=2)
    fitted = []
    for backend in (HbpGGN, CurvlinopsGGN):
        one = Laplace(copy.deepcopy(model), "classification", subset, structure, backend=backend)
        one.fit(loader)
        fitted.append((one.log_marginal_likelihood(), one(X)))
    close(*fitted)
