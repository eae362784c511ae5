"""`hbp.ekfac` beside curvlinops and kronfluence, where those are installed and define the same matrix."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp
from tests.agreement import close
from tests.bridges.test_kronfluence import fitted
from tests.selection import few

SAMPLES = 60
pytestmark = pytest.mark.filterwarnings("ignore")


def setting():
    """As many samples as all factors' eigenvectors need to be of one eigenvalue each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(),
                          nn.Linear(5, 4, bias=False)).double()
    return model, TensorDataset(torch.randn(SAMPLES, 1, 6, 6).double(), torch.randint(4, (SAMPLES,)))


@few(1, "further cases of one kind")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_products_are_curvlinops(reduction):
    """Weights with their biases, of exact columns and of gradients; batches of several sizes."""
    curvlinops = pytest.importorskip("curvlinops")
    model, data = setting()
    loss, loader = nn.CrossEntropyLoss(reduction=reduction), DataLoader(data, 25)
    parameters = dict(model.named_parameters())
    vectors = [torch.randn(parameter.shape, dtype=torch.float64) for parameter in parameters.values()]
    for columns, kind in (("empirical", curvlinops.FisherType.EMPIRICAL), ("exact", curvlinops.FisherType.TYPE2)):
        H = hbp.ekfac(model, loss, loader, columns, joint_bias=True, progress=False)
        theirs = curvlinops.EKFACLinearOperator(
            model, loss, list(parameters.values()), loader, fisher_type=kind, check_deterministic=False,
            separate_weight_and_bias=False)
        for name, own, right in zip(parameters, H @ vectors, theirs @ vectors, strict=True):
            close(own, right, f"{columns}: {name}")


def test_blocks_are_kronfluences(tmp_path):
    pytest.importorskip("kronfluence")
    model, data = setting()
    analyzer = fitted(model, data, tmp_path)
    eigen, squares = analyzer.load_eigendecomposition("ekfac"), analyzer.load_lambda_matrices("ekfac")
    H = hbp.ekfac(model, None, DataLoader(data, 25), "empirical", joint_bias=True, progress=False)
    for layer in ("0", "4", "6"):
        A, B = eigen["activation_eigenvectors"][layer], eigen["gradient_eigenvectors"][layer]
        mean = squares["lambda_matrix"][layer] / squares["num_lambda_processed"][layer]
        block = H[f"{layer}.weight"]
        vectors = torch.randn(3, 1, len(B), len(A), dtype=torch.float64)
        right = B @ (mean * (B.T @ vectors @ A)) @ A.T
        close(block.product(vectors), right, layer)
